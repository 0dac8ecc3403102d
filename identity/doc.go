// Package identity says which agent is asking.
//
// An org has agents; an agent has keys; who presents a key is its agent. Beside
// them stand the keys of people who manage (org keys) and the tokens of the
// machines that enforce (nodes). All three are secrets of one form, see
// [Pattern]: they are made here, shown once, and kept only as a SHA-256, which is
// enough because nobody can guess 256 bits.
//
// The package knows Postgres (postgres.go) but opens none, and asks no clock and
// no random source that it was not given.
package identity
