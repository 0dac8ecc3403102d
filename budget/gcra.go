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
func take(window, now, tat time.Duration, most, n int64) (next time.Duration, r Result) {
	if most <= 0 {
		return tat, Result{RetryAfter: time.Minute, Reset: time.Minute}
	}
	// The window is made of whole intervals, so that a burst is exactly most.
	interval := interval(window, most)
	window = interval * time.Duration(min(most, maxPerMinute))
	tat = max(tat, now) // a bucket is never fuller than full
	r = Result{Limit: most, Reset: tat - now, Remaining: int64(max(0, now+window-tat) / interval)}
	if n > most {
		r.Why, r.Fits = TooLarge, most
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
func left(window, now, tat time.Duration, most int64) int64 {
	if most <= 0 {
		return 0
	}
	interval := interval(window, most)
	rest := now + interval*time.Duration(min(most, maxPerMinute)) - max(tat, now)
	n := rest / interval
	if rest < 0 && rest%interval != 0 {
		n-- // rounded down
	}
	return int64(n)
}

// window is the time in which all of a rate comes back.
func (k Kind) window() time.Duration {
	if k == Starts {
		return time.Hour
	}
	return time.Minute
}

// interval is the time between two requests at a rate of most in the window, rounded up, so that the
// rate is never above it.
func interval(window time.Duration, most int64) time.Duration {
	n := min(most, maxPerMinute)
	return (window + time.Duration(n-1)) / time.Duration(n)
}

// times is n intervals, at most farthest.
func times(interval time.Duration, n int64) time.Duration {
	hi, lo := bits.Mul64(uint64(interval), uint64(max(0, n)))
	if hi != 0 || lo > uint64(farthest) {
		return farthest
	}
	return time.Duration(lo)
}
