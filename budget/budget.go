// Package budget counts what callers use, and returns whether a limit is exceeded.
//
// The arithmetic is pure: gcra.go has that of rates, calendar.go that of days and
// months.
// memory.go keeps the counts in this process.
package budget

import (
	"errors"
	"time"
)

// Kind says how a limit counts. A limit under a USD cap is reserved before a request is
// forwarded and replaced by the charge at its end. So it cannot be overspent by requests
// that are in flight together.
type Kind uint8

const (
	Requests   Kind = iota // requests per minute
	Tokens                 // tokens per minute: an estimate at once, the true rest at the end
	Slots                  // requests in progress
	Day                    // nano-dollars in a calendar day
	Month                  // nano-dollars in a calendar month
	Starts                 // sessions that begin, per hour
	Uses                   // requests in a session
	SessionUSD             // nano-dollars in a session
)

// Money reports whether the limit is a USD cap.
func (k Kind) Money() bool { return k == Day || k == Month || k == SessionUSD }

// rate reports whether the limit fills up again evenly.
func (k Kind) rate() bool { return k == Requests || k == Tokens || k == Starts }

// Limit is something that may be used up, and what one request takes of it.
type Limit struct {
	// Key names what is counted, such as "key:key_1", without the period. Limits with
	// equal keys are of one kind and share one count.
	Key  string
	Kind Kind
	// Max is the most that may be used: per minute, at a time, or in the period. After a
	// minute without use, all of a rate may come at once. Thereafter it may come evenly.
	// 0 or less allows none.
	Max int64
	// Amount is what the request takes at once: its tokens, or the nano-dollars that it may
	// cost at most. Requests, Slots and Uses take 1. A request with an Amount of 0 takes nothing,
	// and is never rejected by the limit.
	Amount int64
	// Shadow is true for a policy in shadow: its caps begin at zero with this process.
	Shadow bool
	// Calendar names the Day or Month; nil: UTC.
	Calendar *Calendar
	// Session is the session of Uses and SessionUSD. Its name is in Key.
	Session Session

	// Reserve sets the rest.
	Period string        // of a Day or Month: "2026-11-27" or "2026-11"; of a session: when it began
	Left   int64         // what is left after the result; below 0: it is in debt
	Reset  time.Duration // until all of it is there again
}

// Counter is the full name of the count: Key, and the period if there is one.
func (l *Limit) Counter() string {
	if l.Period == "" {
		return l.Key
	}
	return l.Key + "@" + l.Period
}

// amount is what the request takes.
func (l *Limit) amount() int64 {
	if l.Kind == Requests || l.Kind == Slots || l.Kind == Uses {
		return 1
	}
	return max(0, l.Amount)
}

// Why says why a request was rejected.
type Why uint8

const (
	Exceeded Why = iota // a rate: it passes after RetryAfter
	Busy                // all slots are in use
	Spent               // nothing is left of the cap until its period ends
	Held                // it fits once what is in flight is charged less than it may cost
	TooLarge            // it is larger than the limit, or than what is left with nothing in flight
)

// Result is whether something may happen, and the figures for the caller's headers. If it
// may not, they are those of the limit with the longest wait, and of one that no wait helps
// first. If it may, they are those of the limit on requests with the least left. The zero
// Result rejects.
type Result struct {
	OK        bool
	Limit     int64         // as Limit.Max
	Remaining int64         // what is left right now; at least 0
	Reset     time.Duration // until all of it is there again
	// RetryAfter is how long a rejected caller must wait. It is 0 if the request is allowed,
	// and if waiting does not help before Reset. For a limit of 0 it is a minute.
	RetryAfter time.Duration
	Why        Why
	Fits       int64 // of TooLarge: the largest amount that would pass with nothing in flight
	Which      int   // index of the limit with these figures; -1: there are none
}

// Used is what a request has used, as far as it is known at its end.
type Used struct {
	Tokens  int64 // of input and output
	Counted bool  // false: Tokens is not known, and the estimate stays
	NanoUSD int64 // the charge under USD caps
}

// ErrUnknownSums rejects a request under a USD cap while what was charged before is not
// known.
var ErrUnknownSums = errors.New("what was charged in this period is not known")

// ErrStoreRequired rejects a request under a USD cap where another sidecar serves the org,
// and each would count alone.
var ErrStoreRequired = errors.New("another sidecar serves the org, and they share no store")
