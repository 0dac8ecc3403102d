// Package budget counts what callers use up, and says when it is too much.
//
// The arithmetic is a pure function in gcra.go; memory.go keeps its state in this
// process.
package budget

import "time"

// Limit is how often something may happen.
type Limit struct {
	// Key is what is counted, such as "key:key_1". Limits with equal keys share
	// one count.
	Key string
	// PerMinute is how many a minute: at once after a minute's silence, and
	// evenly thereafter. 0 or less: none.
	PerMinute int64
}

// Result is whether something may happen, and the figures for the caller's
// headers. They are those of one limit: of the one that refuses longest, or, if
// all allow, of the one with the least left. The zero Result refuses.
type Result struct {
	OK        bool
	Limit     int64         // per minute
	Remaining int64         // what is left right now
	Reset     time.Duration // until all of it is there again
	// RetryAfter is how long a refused caller must wait, 0 if none was
	// refused. Of a limit that is never met it is a minute.
	RetryAfter time.Duration
	Which      int // index of the limit that the figures are of; -1: there was none
}

// Used is what a request has used, as far as it is known at its end.
type Used struct {
	Tokens  int64 // of input and output
	NanoUSD int64
}
