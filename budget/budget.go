// Package budget counts what callers use, and returns whether a limit is exceeded.
//
// The arithmetic is a pure function in gcra.go. memory.go keeps the counts in this process.
package budget

import "time"

// Limit is the rate at which something may happen.
type Limit struct {
	// Key names what is counted, such as "key:key_1". Limits with equal keys share one
	// count.
	Key string
	// PerMinute is the number per minute. After a minute without use, all of them may come
	// at once. Thereafter they may come evenly. 0 or less allows none.
	PerMinute int64
}

// Result is whether something may happen, and the figures for the caller's headers. The
// figures are those of the limit with the longest wait. If all allow, they are those of the
// limit with the least left. The zero Result rejects.
type Result struct {
	OK        bool
	Limit     int64         // per minute
	Remaining int64         // what is left right now
	Reset     time.Duration // until all of it is there again
	// RetryAfter is how long a rejected caller must wait, and 0 if the request is allowed.
	// For a limit of 0 it is a minute.
	RetryAfter time.Duration
	Which      int // index of the limit with these figures; -1: there were no limits
}

// Used is what a request has used, as far as it is known at its end.
type Used struct {
	Tokens  int64 // of input and output
	NanoUSD int64
}
