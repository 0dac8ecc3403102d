// Command bench measures the figures of docs/performance.md. In one run, on one machine, with
// the same test provider and the same load, it drives
//
//	plain   Envoy alone
//	no-op   Envoy with an ext_proc server that sends the same messages and decides nothing
//	aid     the whole product, started by `aid up`, with policy, audit log and credentials
//
// and prints ratios. Absolute figures depend on the machine, so only ratios within one run are
// relevant. No test depends on them.
package main
