// Package audit is the record: what an agent asked for, what was decided, how it
// ended, and who changed what, kept so that it can be proved later.
//
// An entry goes through three forms, and the bytes never change on the way:
//
//	Entry      a Go value (Decided, Settled, Changed)
//	segment    Writer.Append encodes it, writes it to a file beside the process
//	           that decides, and returns only when the disk has it
//	chain      Writer.Ship carries it to the control plane, where Chain.Append
//	           gives it the org's next sequence number and the next link of the
//	           org's HMAC chain, in Postgres
//
// What is promised, and where it is kept:
//
//   - Append returns nil only once the entry is on disk (writer.go, commit). After
//     a failed write or fsync nothing more is written to that file: the kernel may
//     have dropped the pages and reported it once.
//   - Only what nobody was told is durable may be lost in a crash. Damage anywhere
//     else is an error that names the file and the offset, never skipped
//     (segment.go, scan; recovery.go).
//   - A record that was sent twice is in the chain once, and a sequence number is
//     never missing (postgres.go, Append).
//   - The package knows no other package of ours: a record of today can be
//     verified by a binary built years from now (entry.go, Parse).
//
// docs/audit.md describes the formats for those who verify them.
package audit
