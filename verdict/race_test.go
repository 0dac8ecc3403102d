//go:build race

package verdict_test

const racing = true
