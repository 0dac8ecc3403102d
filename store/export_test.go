package store

// SCRAMMatches is scramMatches.
func SCRAMMatches(password, stored string) bool { return scramMatches(password, stored) }
