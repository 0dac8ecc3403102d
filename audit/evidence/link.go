package evidence

import (
	"crypto/sha256"
	"encoding/binary"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// LinkDomain is the first part of a link.
const LinkDomain = "aid link v2"

// A Link identifies one entry of an org's chain. It has the entry's hash and not its content.
// Its bytes are the data of the entry's leaf, and the MACs of the chain cover them too.
type Link struct {
	Org           string
	Incarnation   int64 // from 1; a chain that was reopened after a loss has the next one
	Seq           int64 // in the org's chain, from 1
	AppendedAt    time.Time
	Time          time.Time // of the entry
	Kind          string
	AgentID       string
	SessionID     string
	RequestID     string
	Writer        string
	WriterSeq     int64
	PrevWriterSeq int64    // the writer's previous number in this org
	Entry         [32]byte // EntryHash of the entry's bytes
}

// Append appends the link's bytes to b: each part after its length in 8 bytes, big-endian.
// Numbers have 8 bytes, and times are microseconds since 1970.
func (l Link) Append(b []byte) []byte {
	number := func(n int64) {
		b = binary.BigEndian.AppendUint64(b, 8)
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	text := func(s string) {
		b = binary.BigEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, s...)
	}
	text(LinkDomain)
	text(l.Org)
	number(l.Incarnation)
	number(l.Seq)
	number(l.AppendedAt.UnixMicro())
	number(l.Time.UnixMicro())
	text(l.Kind)
	text(l.AgentID)
	text(l.SessionID)
	text(l.RequestID)
	text(l.Writer)
	number(l.WriterSeq)
	number(l.PrevWriterSeq)
	b = binary.BigEndian.AppendUint64(b, uint64(len(l.Entry)))
	return append(b, l.Entry[:]...)
}

// Leaf returns the hash of the link's leaf in the org's tree (RFC 6962, section 2.1).
func (l Link) Leaf() tlog.Hash { return tlog.RecordHash(l.Append(make([]byte, 0, 400))) }

// EntryHash returns SHA-256(0x00 ‖ entry). Receipts and links have it.
func EntryHash(entry []byte) [32]byte {
	h := sha256.New()
	h.Write([]byte{0})
	h.Write(entry)
	return [32]byte(h.Sum(nil))
}
