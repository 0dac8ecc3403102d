package evidence_test

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// aLog is a log in memory, as the control plane keeps one in Postgres.
type aLog struct {
	org         string
	incarnation int64
	firstSeq    int64
	rows        []evidence.ExportRow
	stored      []tlog.Hash
	key         []byte // the HMAC key of the org
	p256, ed    local
	began       time.Time
	turns       []turn // the keys that took the place of p256 and ed
}

// A turn is a key that signs from a size on. The one before it signs for overlap sizes beside it.
type turn struct {
	local
	size    int64
	change  evidence.KeyChange
	general evidence.KeyChange // the directory's
}

const overlap = 10

// signers returns the keys that sign a checkpoint of a size, P-256 first.
func (l *aLog) signers(size int64) (out []evidence.Signer) {
	for _, first := range []local{l.p256, l.ed} {
		role := mustKey(first).Role()
		own := []evidence.Signer{first}
		for _, t := range l.turns {
			if t.change.Role != role {
				continue
			}
			if size >= t.size {
				own = append(own, t.local)
			}
			if size >= t.size+overlap {
				own = own[1:]
			}
		}
		out = append(out, own...)
	}
	return out
}

// document returns the key that signs documents.
func (l *aLog) document() local {
	signer := l.p256
	for _, t := range l.turns {
		if t.change.Role == evidence.RoleP256 {
			signer = t.local
		}
	}
	return signer
}

// rotate appends the entry of a key change, from the last key of the role to next.
func (l *aLog) rotate(next local) {
	role, old := mustKey(next).Role(), l.p256
	if role == evidence.RoleEd25519 {
		old = l.ed
	}
	for _, t := range l.turns {
		if t.change.Role == role {
			old = t.local
		}
	}
	sign := func(origin string, size int64) evidence.KeyChange {
		c, err := evidence.SignKeyChange(context.Background(), origin, size, old, next)
		if err != nil {
			panic(err)
		}
		return c
	}
	i := int64(len(l.rows))
	c := sign(l.origin(), i+1)
	l.turns = append(l.turns, turn{next, c.Size, c, sign(evidence.DirectoryOrigin(installation), 1000+i)})
	l.changed(c)
}

// changed appends the entry of a key change.
func (l *aLog) changed(c evidence.KeyChange) {
	i := int64(len(l.rows))
	at := l.began.Add(time.Duration(i) * time.Second)
	entry, err := json.Marshal(map[string]any{"v": 1, "kind": evidence.KindKeysChanged, "time": at.Format("2006-01-02T15:04:05.000000Z"), "org": l.org, "writer": "control", "request_id": "",
		"role": c.Role, "old_kid": c.Old, "new_kid": c.New, "size": c.Size, "old_signature": c.OldSignature, "new_signature": c.NewSignature})
	if err != nil {
		panic(err)
	}
	l.append(evidence.ExportRow{Link: evidence.Link{Org: l.org, Incarnation: l.incarnation, Seq: l.firstSeq + i, AppendedAt: at, Time: at,
		Kind: evidence.KindKeysChanged, Writer: "control", WriterSeq: i + 1}, Epoch: 1, Version: 3, Bytes: entry})
}

const installation = "aid-00112233445566aa"

func newLog(org string) *aLog {
	key, err := hkdf.Key(sha256.New, bytes.Repeat([]byte{11}, 32), nil, string(binary.BigEndian.AppendUint64([]byte("aid audit chain v2\x00"), 1))+org, 32)
	if err != nil {
		panic(err)
	}
	return &aLog{org: org, incarnation: 1, firstSeq: 1, key: key, p256: p256("a"), ed: ed("b"), began: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
}

func (l *aLog) clone() *aLog {
	c := *l
	c.rows = append([]evidence.ExportRow(nil), l.rows...)
	c.stored = append([]tlog.Hash(nil), l.stored...)
	return &c
}

func (l *aLog) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = l.stored[x]
	}
	return out, nil
}

// add appends n entries of two agents. Their content depends on the number and salt.
func (l *aLog) add(n int, salt string) {
	for range n {
		i := int64(len(l.rows))
		appended := l.began.Add(time.Duration(i) * time.Second)
		at := appended.Add(-time.Duration(i%5) * 4 * time.Second) // entries arrive out of order
		agent, kind := fmt.Sprintf("ag_%d", i%3), []string{"request.decided", "request.settled"}[i%2]
		request := fmt.Sprintf("req_%d", i/2)
		entry := fmt.Appendf(nil, `{"v":1,"kind":"%s","time":"%s","org":"%s","writer":"w_1","request_id":"%s","agent_id":"%s","model":"gpt-4o \u00e9 \"%s\""}`,
			kind, at.Format("2006-01-02T15:04:05.000000Z"), l.org, request, agent, salt)
		r := evidence.ExportRow{Link: evidence.Link{Org: l.org, Incarnation: l.incarnation, Seq: l.firstSeq + i, AppendedAt: appended, Time: at,
			Kind: kind, AgentID: agent, RequestID: request, Writer: "w_1", WriterSeq: i + 1, PrevWriterSeq: i}, Epoch: 1, Version: int16(2 + i%3/2), Bytes: entry}
		if i%50 == 17 { // bytes that could not be read
			r.Bytes, r.Kind, r.AgentID, r.RequestID, r.Time = []byte{0xff, byte(i)}, "malformed", "", "", r.AppendedAt
		}
		l.append(r)
	}
}

// append sets the row's entry hash and MAC.
func (l *aLog) append(r evidence.ExportRow) {
	var prev []byte
	if n := len(l.rows); n > 0 {
		prev = l.rows[n-1].MAC
	}
	r.Entry = evidence.EntryHash(r.Bytes)
	b := binary.BigEndian.AppendUint64(nil, uint64(r.Epoch))
	b = append(binary.BigEndian.AppendUint64(b, uint64(len(prev))), prev...)
	h := hmac.New(sha256.New, l.key)
	h.Write(r.Link.Append(b))
	r.MAC = h.Sum(nil)
	more, err := tlog.StoredHashesForRecordHash(int64(len(l.rows)), r.Leaf(), l)
	if err != nil {
		panic(err)
	}
	l.stored = append(l.stored, more...)
	l.rows = append(l.rows, r)
}

func (l *aLog) origin() string { return evidence.OrgOrigin(installation, l.org, l.incarnation) }

// note is the checkpoint of a size.
func (l *aLog) note(size int64) string {
	root, err := tlog.TreeHash(size, l)
	if err != nil {
		panic(err)
	}
	if size == 0 {
		root = sha256.Sum256(nil)
	}
	b, err := evidence.Sign(context.Background(), evidence.Checkpoint{Origin: l.origin(), Size: size, Root: root, Time: l.began.Add(time.Duration(size)*time.Second + time.Millisecond)}, l.signers(size)...)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func (l *aLog) rangeAt(size int64) *evidence.Range {
	var r evidence.Range
	for _, row := range l.rows[:size] {
		r.Append(row.Leaf())
	}
	return &r
}

// order is what an export is made of.
type order struct {
	filter             evidence.ExportFilter
	first, end, newest int64
	after              string
}

func (l *aLog) export(o order) []byte {
	h := evidence.ExportHeader{Org: l.org, Incarnation: l.incarnation, FirstSeq: l.firstSeq, Filter: o.filter, After: o.after, First: o.first, End: l.note(o.end)}
	for _, x := range l.rangeAt(o.first).Hashes() {
		h.Left = append(h.Left, x[:])
	}
	if o.first > 0 {
		h.Before, h.PrevMAC = l.note(o.first), hex.EncodeToString(l.rows[o.first-1].MAC)
	}
	if o.newest > o.end {
		h.Newest = l.note(o.newest)
		if o.end > 0 {
			proof, err := tlog.ProveTree(o.newest, o.end, l)
			if err != nil {
				panic(err)
			}
			for _, x := range proof {
				h.Consistency = append(h.Consistency, x[:])
			}
		}
	}
	w, out, err := evidence.NewExportWriter(h)
	if err != nil {
		panic(err)
	}
	for i := o.first; i < o.end; i++ {
		if out, err = w.AppendRow(out, &l.rows[i]); err != nil {
			panic(err)
		}
	}
	out = append(out, evidence.ExportRowsEnd...)
	statement, err := w.Statement(sha256.Sum256(out))
	if err != nil {
		panic(err)
	}
	e, err := evidence.SignEnvelope(context.Background(), evidence.ExportType, statement, l.document())
	if err != nil {
		panic(err)
	}
	last, err := evidence.ExportLastLine(e)
	if err != nil {
		panic(err)
	}
	return append(out, last...)
}

func (l *aLog) keys(testing.TB) evidence.KeySet { return l.keySet() }

func (l *aLog) keySet() evidence.KeySet {
	s := evidence.KeySet{Keys: []evidence.Key{mustKey(l.p256), mustKey(l.ed)}}
	for _, turn := range l.turns {
		k := mustKey(turn.local)
		k.From = turn.general.Size
		s.Keys, s.Changes = append(s.Keys, k), append(s.Changes, turn.general, turn.change)
	}
	return s
}

func (l *aLog) verify(t testing.TB, b []byte, held ...string) evidence.Verdict {
	t.Helper()
	o := evidence.ChainOptions{Keys: l.keys(t), MACKeys: map[int32][]byte{0: l.key}}
	for i, h := range held {
		o.Held = append(o.Held, evidence.HeldNote{From: fmt.Sprintf("held-%d", i), Note: []byte(h)})
	}
	return evidence.VerifyChain(bytes.NewReader(b), o)
}

func TestVerifyChain(t *testing.T) {
	l := newLog("org_1")
	l.add(700, "x")
	for _, o := range []order{
		{end: 0}, {end: 1}, {end: 700}, {end: 600, newest: 700}, {first: 300, end: 600, newest: 700}, {first: 512, end: 700}, {first: 700, end: 700}, {end: 0, newest: 700},
		{end: 700, filter: evidence.ExportFilter{AgentID: "ag_1"}}, {end: 700, filter: evidence.ExportFilter{Kind: "request.decided", Since: l.began.Add(100 * time.Second).UnixMicro(), Until: l.began.Add(200 * time.Second).UnixMicro()}},
		{first: 300, end: 700, after: "exp_1", filter: evidence.ExportFilter{RequestID: "req_200"}},
	} {
		b := l.export(o)
		v := l.verify(t, b, l.note(o.end))
		if v.Exit != evidence.Intact || v.Complete == "" {
			t.Errorf("%+v: %+v", o, v)
		}
		if !bytes.Equal(b, l.export(o)) && o.end > 0 {
			t.Errorf("%+v: the same order gives other bytes", o)
		}
	}
}
