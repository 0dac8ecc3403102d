package budget

import (
	"math/bits"
	"time"
)

// maxPerMinute is one per nanosecond, the finest step of the arithmetic.
const maxPerMinute = int64(time.Minute)

// longest is how far a count without debt can reach into the future, at most: a minute,
// rounded up to whole steps.
const longest = 2 * time.Minute

// farthest is how far a debt can reach, and so the longest wait. Twice as many nanoseconds are
// exact in the numbers of Lua, which valkey.go needs.
const farthest = 50 * 24 * time.Hour

// take is one step of the generic cell rate algorithm (ITU-T I.371, "virtual scheduling")
// for n at once. Its whole state is one instant, tat: when the bucket will be full again.
// It is pure: it returns the state after the step, and the result. Instants are durations
// since any epoch.
func take(now, tat time.Duration, perMinute, n int64) (next time.Duration, r Result) {
	if perMinute <= 0 {
		return tat, Result{RetryAfter: time.Minute, Reset: time.Minute}
	}
	// The window is made of whole intervals, so that a burst is exactly perMinute.
	interval := interval(perMinute)
	window := interval * time.Duration(min(perMinute, maxPerMinute))
	tat = max(tat, now) // a bucket is never fuller than full
	r = Result{Limit: perMinute, Reset: tat - now, Remaining: int64(max(0, now+window-tat) / interval)}
	if n > perMinute {
		r.Why, r.Fits = TooLarge, perMinute
		return tat, r
	}
	next = tat + times(interval, n)
	if wait := next - window - now; wait > 0 && n > 0 {
		r.RetryAfter = wait
		return tat, r
	}
	r.OK = true
	r.Remaining = int64(max(0, now+window-next) / interval)
	r.Reset = next - now
	return next, r
}

// left is what a rate has left, below 0 in debt.
func left(now, tat time.Duration, perMinute int64) int64 {
	if perMinute <= 0 {
		return 0
	}
	interval := interval(perMinute)
	rest := now + interval*time.Duration(min(perMinute, maxPerMinute)) - max(tat, now)
	n := rest / interval
	if rest < 0 && rest%interval != 0 {
		n-- // rounded down
	}
	return int64(n)
}

// interval is the time between two requests at that rate, rounded up, so that the
// rate is never above it.
func interval(perMinute int64) time.Duration {
	n := min(perMinute, maxPerMinute)
	return (time.Minute + time.Duration(n-1)) / time.Duration(n)
}

// times is n intervals, at most farthest.
func times(interval time.Duration, n int64) time.Duration {
	hi, lo := bits.Mul64(uint64(interval), uint64(max(0, n)))
	if hi != 0 || lo > uint64(farthest) {
		return farthest
	}
	return time.Duration(lo)
}
