//go:build race

package policy_test

// racing says whether the race detector is built in.
const racing = true
