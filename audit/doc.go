// Package audit is the audit log. It records requests of agents, decisions, the ends of
// requests, and changes of the configuration, so that they can be proved later.
//
// An entry has three forms. Its bytes never change:
//
//	Entry      a Go value (Decided, Settled, Changed)
//	segment    Writer.Append encodes it, writes it to a file beside the process
//	           that decides, and returns only when the disk has it
//	chain      Writer.Ship sends it to the control plane, where Chain.Append
//	           gives it the org's next sequence number and the next link of the
//	           org's HMAC chain, in Postgres
//
// The guarantees, and the code for each:
//
//   - Append returns nil only once the entry is on disk (writer.go, commit). After a
//     failed write or fsync nothing more is written to that file: the kernel may have
//     dropped the pages and reported it once.
//   - A crash may lose only entries whose Append has not returned nil. Damage anywhere
//     else is an error that names the file and the offset. It is never skipped
//     (segment.go, scan; recovery.go).
//   - A record that was sent twice is in the chain once, and a sequence number is never
//     missing (postgres.go, Append).
//   - The package imports no other package of this module, so a later binary can verify
//     today's records (entry.go, Parse).
//
// docs/audit.md describes the formats for those who verify them.
package audit
