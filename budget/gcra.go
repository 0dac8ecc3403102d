package budget

import "time"

// maxPerMinute is one per nanosecond, the finest step of the arithmetic.
const maxPerMinute = int64(time.Minute)

// longest is how far a count can reach into the future, at most: a minute, rounded up to
// whole steps.
const longest = 2 * time.Minute

// take is one step of the generic cell rate algorithm (ITU-T I.371, "virtual scheduling").
// Its whole state is one instant, tat: when the bucket will be full again. It is pure: it
// returns the state after the step, and the result. Instants are durations since any epoch.
func take(now, tat time.Duration, perMinute int64) (next time.Duration, r Result) {
	if perMinute <= 0 {
		return tat, Result{RetryAfter: time.Minute, Reset: time.Minute}
	}
	n := min(perMinute, maxPerMinute)
	// The window is made of whole intervals, so that a burst is exactly n.
	interval := interval(n)
	window := interval * time.Duration(n)
	tat = max(tat, now) // a bucket is never fuller than full
	next = tat + interval
	r = Result{Limit: perMinute}
	if wait := next - window - now; wait > 0 {
		r.RetryAfter = wait
		r.Reset = tat - now
		return tat, r
	}
	r.OK = true
	r.Remaining = int64((now + window - next) / interval)
	r.Reset = next - now
	return next, r
}

// interval is the time between two requests at that rate, rounded up, so that the
// rate is never above it.
func interval(perMinute int64) time.Duration {
	n := min(perMinute, maxPerMinute)
	return (time.Minute + time.Duration(n-1)) / time.Duration(n)
}
