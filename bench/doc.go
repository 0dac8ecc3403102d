// Command bench measures what docs/performance.md claims: in one run, on one
// machine, against the same provider stand-in and with the same load, it drives
//
//	plain   Envoy alone
//	no-op   Envoy with an ext_proc server that answers the same messages and decides nothing
//	aid     the whole product, started by `aid up`, with policy, record and credential swap
//
// and prints ratios. Absolute figures move with the machine; ratios within one
// run are what counts, and none of them decides a test.
package main
