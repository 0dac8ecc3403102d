package audit

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Keys are the HMAC keys of the chain, by epoch. The newest epoch seals; the
// others verify what was sealed in theirs. They are one set for all orgs. The
// zero Keys has none. Keys never print.
type Keys struct {
	byEpoch map[int32][]byte
	newest  int32
}

// ParseKeys reads lines of the form "EPOCH HEX": a number from 1 and 32 to 64
// bytes. Empty lines and those that begin with # are left out. At least one key
// must be there, and none twice. The error names the line and never quotes it.
func ParseKeys(lines []string) (Keys, error) {
	k := Keys{byEpoch: make(map[int32][]byte)}
	for i, line := range lines {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		part := strings.Fields(line)
		if len(part) != 2 {
			return Keys{}, fmt.Errorf("line %d: a key is EPOCH HEX", i+1)
		}
		epoch, err := strconv.ParseInt(part[0], 10, 32)
		if err != nil || epoch < 1 {
			return Keys{}, fmt.Errorf("line %d: the epoch is a number from 1 to %d", i+1, math.MaxInt32)
		}
		key, err := hex.DecodeString(part[1])
		if err != nil || len(key) < 32 || len(key) > sha256.BlockSize {
			return Keys{}, fmt.Errorf("line %d: the key has from 64 to %d hex digits", i+1, 2*sha256.BlockSize)
		}
		for e, other := range k.byEpoch {
			if e == int32(epoch) || hmac.Equal(key, other) {
				return Keys{}, fmt.Errorf("line %d: the epoch or its key is there twice", i+1)
			}
		}
		k.byEpoch[int32(epoch)] = key
		k.newest = max(k.newest, int32(epoch))
	}
	if k.newest == 0 {
		return Keys{}, errors.New("there is no key: a line is EPOCH HEX")
	}
	return k, nil
}

// Format keeps keys out of whatever prints them.
func (k Keys) Format(s fmt.State, _ rune) {
	fmt.Fprintf(s, "audit.Keys of epochs %v", slices.Sorted(maps.Keys(k.byEpoch)))
}

// link is everything that an entry's MAC covers. docs/audit.md says it in words.
type link struct {
	epoch      int32
	org        string
	seq        int64
	appendedAt time.Time
	writer     string
	writerSeq  int64
	kind       string
	prev       []byte // the MAC of the entry before; empty for the first
	entry      []byte

	// The following are covered from version 2 on.
	version     int16
	incarnation int64
	time        time.Time
	agent       string
	session     string
	request     string
	prevWriter  int64 // the writer's number before, in this org
}

// bytes returns the link of version 2: each part with its length before it. It is
// what a Merkle tree over the chain has as its leaf's data.
func (l link) bytes(b []byte) []byte {
	number := func(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }
	leaf := LeafHash(l.entry)
	for _, part := range [][]byte{
		[]byte(linkDomainV2), []byte(l.org), number(l.incarnation), number(l.seq), number(l.appendedAt.UnixMicro()), number(l.time.UnixMicro()),
		[]byte(l.kind), []byte(l.agent), []byte(l.session), []byte(l.request), []byte(l.writer), number(l.writerSeq), number(l.prevWriter), leaf[:],
	} {
		b = binary.BigEndian.AppendUint64(b, uint64(len(part)))
		b = append(b, part...)
	}
	return b
}

// linkDomainV2 is the first part of a link.
const linkDomainV2 = "aid link v2"

// macVersion is the version that is written. Version 1 is only verified.
const macVersion = 2

// keyDomain separates the keys of orgs and epochs from other uses of the same key.
const keyDomain = "aid audit chain v2\x00"

// linkDomain keeps a MAC of ours from meaning anything else under the same key.
const linkDomain = "aid audit chain v1\x00"

// A sealer computes the MACs of one epoch.
type sealer struct {
	h   hash.Hash // of version 1: the installation's key
	h2  hash.Hash // of version 2: the org's key in this epoch
	buf []byte
}

// sealer returns false if there is no key of the epoch.
func (k Keys) sealer(org string, epoch int32) (*sealer, bool) {
	key, ok := k.byEpoch[epoch]
	if !ok {
		return nil, false
	}
	info := string(binary.BigEndian.AppendUint64([]byte(keyDomain), uint64(epoch))) + org
	own, err := hkdf.Key(sha256.New, key, nil, info, sha256.Size)
	if err != nil {
		return nil, false
	}
	return &sealer{h: hmac.New(sha256.New, key), h2: hmac.New(sha256.New, own)}, true
}

// mac returns HMAC-SHA256 over l. Every part has a fixed width or its length
// before it, so that no two links have the same bytes.
func (s *sealer) mac(l link) [32]byte {
	if l.version == macVersion {
		b := binary.BigEndian.AppendUint64(s.buf[:0], uint64(l.epoch))
		b = binary.BigEndian.AppendUint64(b, uint64(len(l.prev)))
		b = append(b, l.prev...)
		b = l.bytes(b)
		s.buf = b
		s.h2.Reset()
		s.h2.Write(b)
		return [32]byte(s.h2.Sum(nil))
	}
	b := append(s.buf[:0], linkDomain...)
	b = binary.BigEndian.AppendUint64(b, uint64(l.epoch))
	b = binary.BigEndian.AppendUint64(b, uint64(l.seq))
	b = binary.BigEndian.AppendUint64(b, uint64(l.appendedAt.UnixMicro()))
	b = binary.BigEndian.AppendUint64(b, uint64(l.writerSeq))
	for _, part := range []string{l.org, l.writer, l.kind} {
		b = binary.BigEndian.AppendUint64(b, uint64(len(part)))
		b = append(b, part...)
	}
	for _, part := range [][]byte{l.prev, l.entry} {
		b = binary.BigEndian.AppendUint64(b, uint64(len(part)))
		b = append(b, part...)
	}
	s.buf = b
	s.h.Reset()
	s.h.Write(b)
	return [32]byte(s.h.Sum(nil))
}

// KindMalformed is the kind of a record that is kept as it came, but not as the entry it
// claims to be. The entry could not be read, or names another org or writer, or is a
// change, which no node may report. It is kept because a record must not vanish, and must
// not block the records behind it.
const KindMalformed = "malformed"

// columns are what an entry is found by in the database. They say nothing that
// the entry does not, so that Verify can tell when they were changed: what they
// are made of must never change.
type columns struct {
	kind    string
	time    time.Time
	agent   string
	request string
	session string
}

// describe returns the columns of an entry that writer wrote for org, and the
// entry itself; nil if it is malformed.
func describe(org, writer string, entry []byte, appendedAt time.Time, version int16) (columns, Entry) {
	malformed := columns{kind: KindMalformed, time: appendedAt}
	e, err := Parse(entry)
	if err != nil {
		return malformed, nil
	}
	h := e.Head()
	if h.Org != org || h.Writer != writer || h.Kind == KindMalformed {
		return malformed, nil
	}
	if _, change := e.(Changed); change && writer != controlWriter {
		return malformed, nil
	}
	session := ""
	switch e := e.(type) {
	case Decided:
		session = e.SessionID
	case Settled:
		if version > 1 && e.unbelievable() != "" {
			return malformed, nil
		}
	}
	return columns{
		kind: column(h.Kind, maxWord), time: h.Time.UTC(), agent: column(h.AgentID, maxID), request: column(h.RequestID, maxID),
		session: column(session, maxName),
	}, e
}

// column is s as a text column can hold it: Postgres knows no NUL, and an index
// no long strings. An entry of ours is not changed by it.
func column(s string, limit int) string {
	return bounded(strings.ReplaceAll(s, "\x00", "\ufffd"), limit)
}
