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
	"sync/atomic"
	"time"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// Keys are the HMAC keys of the chain, by epoch. All orgs have the same keys. A key may have a
// time from which on it signs. Of the keys that have reached their time, the newest one signs.
// All keys verify. Copies of a Keys share its set, which Replace replaces. The zero Keys is
// empty. Keys are never printed.
type Keys struct{ set *atomic.Pointer[keySet] }

type keySet struct {
	byEpoch map[int32]key
	epochs  []int32 // ascending
}

type key struct {
	secret []byte
	from   time.Time // zero: always
}

// ParseKeys reads lines of the form "EPOCH HEX" or "EPOCH HEX from=TIME". EPOCH is a number from
// 1, HEX has 32 to 64 bytes, and TIME is when the key begins to sign (RFC 3339). So every replica
// can have a key before one of them signs with it. Empty lines and lines that begin with # are
// skipped. There must be at least one key, and no key twice. The first epoch has no time, and the
// times ascend. The error names the line and never quotes it.
func ParseKeys(lines []string) (Keys, error) {
	set := &keySet{byEpoch: make(map[int32]key)}
	for i, line := range lines {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		part := strings.Fields(line)
		if len(part) != 2 && len(part) != 3 {
			return Keys{}, fmt.Errorf("line %d: a key is EPOCH HEX, or EPOCH HEX from=TIME", i+1)
		}
		epoch, err := strconv.ParseInt(part[0], 10, 32)
		if err != nil || epoch < 1 {
			return Keys{}, fmt.Errorf("line %d: the epoch is a number from 1 to %d", i+1, math.MaxInt32)
		}
		var k key
		k.secret, err = hex.DecodeString(part[1])
		if err != nil || len(k.secret) < 32 || len(k.secret) > sha256.BlockSize {
			return Keys{}, fmt.Errorf("line %d: the key has from 64 to %d hex digits", i+1, 2*sha256.BlockSize)
		}
		if len(part) == 3 {
			text, ok := strings.CutPrefix(part[2], "from=")
			if k.from, err = time.Parse(time.RFC3339, text); !ok || err != nil {
				return Keys{}, fmt.Errorf("line %d: after the key, write only from=TIME, such as from=2026-12-01T00:00:00Z", i+1)
			}
		}
		for e, other := range set.byEpoch {
			if e == int32(epoch) || hmac.Equal(k.secret, other.secret) {
				return Keys{}, fmt.Errorf("line %d: the epoch or its key is in the file twice", i+1)
			}
		}
		set.byEpoch[int32(epoch)] = k
	}
	if set.epochs = slices.Sorted(maps.Keys(set.byEpoch)); len(set.epochs) == 0 {
		return Keys{}, errors.New("the file has no key: write lines of the form EPOCH HEX")
	}
	var last time.Time
	for i, e := range set.epochs {
		switch from := set.byEpoch[e].from; {
		case i == 0 && !from.IsZero():
			return Keys{}, fmt.Errorf("epoch %d is the first and has a from=TIME: remove the time, since no key would sign before it", e)
		case i > 0 && !last.IsZero() && !from.After(last):
			return Keys{}, fmt.Errorf("epoch %d begins to sign before epoch %d: give it a later from=TIME", e, set.epochs[i-1])
		default:
			last = from
		}
	}
	k := Keys{new(atomic.Pointer[keySet])}
	k.set.Store(set)
	return k, nil
}

// Replace replaces the keys while they are in use. A key that has begun to sign must stay, since
// entries may have its MACs.
func (k Keys) Replace(next Keys, now time.Time) error {
	have, then := k.set.Load(), next.set.Load()
	for _, e := range have.epochs {
		old := have.byEpoch[e]
		if old.from.After(now) {
			continue
		}
		switch other, ok := then.byEpoch[e]; {
		case !ok:
			return fmt.Errorf("the key of epoch %d is in use and is missing: entries could not be verified without it", e)
		case !hmac.Equal(old.secret, other.secret):
			return fmt.Errorf("the key of epoch %d is in use and has changed: give a new key a new epoch", e)
		}
	}
	k.set.Store(then)
	return nil
}

// signing returns the epoch of the key that signs at a time.
func (k Keys) signing(at time.Time) (epoch int32) {
	set := k.set.Load()
	for _, e := range set.epochs {
		if !set.byEpoch[e].from.After(at) {
			epoch = e
		}
	}
	return epoch
}

// last returns the newest epoch, which may not sign yet.
func (k Keys) last() int32 {
	set := k.set.Load()
	return set.epochs[len(set.epochs)-1]
}

// Format prints only the epochs, never the keys.
func (k Keys) Format(s fmt.State, _ rune) {
	if k.set == nil {
		fmt.Fprint(s, "audit.Keys without a key")
		return
	}
	fmt.Fprintf(s, "audit.Keys of epochs %v", k.set.Load().epochs)
}

// link has everything that an entry's MAC covers. docs/audit.md describes it.
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
	prevWriter  int64 // the writer's previous number in this org
}

// bytes appends the link of version 2 to b.
func (l link) bytes(b []byte) []byte {
	return evidence.Link{
		Org: l.org, Incarnation: l.incarnation, Seq: l.seq, AppendedAt: l.appendedAt, Time: l.time, Kind: l.kind, AgentID: l.agent,
		SessionID: l.session, RequestID: l.request, Writer: l.writer, WriterSeq: l.writerSeq, PrevWriterSeq: l.prevWriter, Entry: LeafHash(l.entry),
	}.Append(b)
}

// macVersion is the version of new entries. Versions 1 and 2 are only verified. Version 3 has
// the MAC of version 2. It differs in the column session_id only: completions have it too, and
// requests without an id of the caller have the sidecar's.
const macVersion = 3

// keyDomain separates the keys of orgs and epochs from other uses of the same key.
const keyDomain = "aid audit chain v2\x00"

// linkDomain separates these MACs from other uses of the same key.
const linkDomain = "aid audit chain v1\x00"

// A sealer computes the MACs of one epoch.
type sealer struct {
	h   hash.Hash // for version 1, with the installation's key
	h2  hash.Hash // for version 2, with the org's key in this epoch
	buf []byte
}

// sealer returns false if there is no key of the epoch.
func (k Keys) sealer(org string, epoch int32) (*sealer, bool) {
	found, ok := k.set.Load().byEpoch[epoch]
	if !ok {
		return nil, false
	}
	key := found.secret
	own, err := k.orgKey(org, epoch)
	if err != nil {
		return nil, false
	}
	return &sealer{h: hmac.New(sha256.New, key), h2: hmac.New(sha256.New, own)}, true
}

// mac returns HMAC-SHA256 over l. Every part has a fixed width or its length before it, so two
// different links never have the same bytes.
func (s *sealer) mac(l link) [32]byte {
	if l.version > 1 {
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
// change or a threshold, which no node may report. It is kept because a record must not vanish, and must
// not block the records behind it.
const KindMalformed = "malformed"

// columns are the columns for searching entries in the database. They are derived from the
// entry, so Verify detects a changed column. How they are derived must never change.
type columns struct {
	kind    string
	time    time.Time
	agent   string
	request string
	session string
}

// describe returns the columns of an entry that writer wrote for org, and the parsed entry. A
// malformed entry is nil.
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
	session := ""
	switch e := e.(type) {
	case Changed, Threshold, ClockRegressed, Reopened, Trimmed, KeysChanged:
		if writer != controlWriter {
			return malformed, nil
		}
	case Decided:
		session = e.SessionID
		if version > 2 && session == "" {
			session = e.OwnSession
		}
	case Settled:
		if version > 1 && e.unbelievable() != "" {
			return malformed, nil
		}
		if version > 2 {
			session = e.SessionID
		}
	}
	return columns{
		kind: column(h.Kind, maxWord), time: h.Time.UTC(), agent: column(h.AgentID, maxID), request: column(h.RequestID, maxID),
		session: column(session, maxName),
	}, e
}

// column returns s for a text column: Postgres does not support NUL, and an index does not
// support long strings. It does not change the values of valid entries.
func column(s string, limit int) string {
	return bounded(strings.ReplaceAll(s, "\x00", "\ufffd"), limit)
}

// OrgKeys returns an org's own keys in the form of the verifier's variable AI_IDENTITY_HMAC_KEY:
// EPOCH:HEX, with commas between them. They verify the org's entries from version 2 on, and
// nothing of other orgs.
func (k Keys) OrgKeys(org string) (string, error) {
	var out []string
	for _, epoch := range k.set.Load().epochs {
		own, err := k.orgKey(org, epoch)
		if err != nil {
			return "", err
		}
		out = append(out, strconv.FormatInt(int64(epoch), 10)+":"+hex.EncodeToString(own))
	}
	return strings.Join(out, ","), nil
}

// orgKey derives the key of an org in an epoch, which must exist.
func (k Keys) orgKey(org string, epoch int32) ([]byte, error) {
	info := string(binary.BigEndian.AppendUint64([]byte(keyDomain), uint64(epoch))) + org
	return hkdf.Key(sha256.New, k.set.Load().byEpoch[epoch].secret, nil, info, sha256.Size)
}
