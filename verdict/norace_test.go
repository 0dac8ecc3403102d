//go:build !race

package verdict_test

// racing reports whether the race detector is built in.
const racing = false
