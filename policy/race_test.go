//go:build race

package policy_test

// racing reports whether the race detector is built in.
const racing = true
