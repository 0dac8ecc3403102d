package store

import "time"

// SCRAMMatches is scramMatches.
func SCRAMMatches(password, stored string) bool { return scramMatches(password, stored) }

// AskAfter sets how long a connection that listens may be silent.
func (db *DB) AskAfter(d time.Duration) { db.silence = d }

// OnePrimary and Primaries are onePrimary and primaries.
var (
	OnePrimary = onePrimary
	Primaries  = primaries
)
