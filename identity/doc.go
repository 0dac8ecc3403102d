// Package identity identifies the agent that sends a request.
//
// An org has agents, and an agent has keys. The key that a request presents identifies the
// agent. Org keys are for people who manage, and node tokens are for the machines that
// enforce. All three are secrets of one form, see [Pattern]. They are made here, shown
// once, and kept only as a SHA-256. A hash without salt is enough, because 256 random bits
// cannot be guessed.
//
// The package reads and writes Postgres (postgres.go) in transactions that it is given.
// Time and randomness are parameters.
package identity
