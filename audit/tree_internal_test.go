package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// A tree has the root that tlog computes, at every size, also after it was stored and read.
// Its full tiles are the ones of tlog.
func TestMerkle(t *testing.T) {
	const sizes = 66_000 // three levels
	var m merkle
	var r evidence.Range
	stored := map[tileKey][]byte{}
	for n := range int64(sizes) {
		h := tlog.RecordHash(binary.BigEndian.AppendUint64(nil, uint64(n)))
		m.add(h)
		r.Append(h)
		for _, full := range m.full {
			stored[tileKey{full.level, full.n}] = full.hashes
		}
		m.full = nil
		if n > 520 && n%997 != 0 && n%4096 > 1 {
			continue
		}
		if m.root() != r.Root() {
			t.Fatalf("size %d: root %v, want %v", n+1, m.root(), r.Root())
		}
		root := m.root()
		back, err := parseTree(m.size, root[:], m.bytes())
		if err != nil || !bytes.Equal(back.bytes(), m.bytes()) {
			t.Fatalf("size %d: read back: %v", n+1, err)
		}
		for _, wrong := range []struct {
			size int64
			edge []byte
		}{{m.size + 1, m.bytes()}, {m.size, append(m.bytes(), root[:]...)}, {m.size, append([]byte{m.bytes()[0] ^ 1}, m.bytes()[1:]...)}} {
			if _, err := parseTree(wrong.size, root[:], wrong.edge); !errors.Is(err, ErrTree) {
				t.Fatalf("size %d: a wrong tree is accepted: %v", n+1, err)
			}
		}
	}
	if len(stored) != sizes/256+sizes/65536 {
		t.Errorf("%d tiles", len(stored))
	}
	// Each tile of a higher level is over the tiles below.
	for k, hashes := range stored {
		if k.level == 0 {
			continue
		}
		for i := range int64(tileWidth) {
			var below []tlog.Hash
			for b := stored[tileKey{k.level - 1, k.n*tileWidth + i}]; len(b) > 0; b = b[tlog.HashSize:] {
				below = append(below, tlog.Hash(b[:tlog.HashSize]))
			}
			if got := subtree(below); string(got[:]) != string(hashes[i*tlog.HashSize:(i+1)*tlog.HashSize]) {
				t.Fatalf("hash %d of tile %v is wrong", i, k)
			}
		}
	}
}

// BenchmarkTree is the tree alone: links of the usual length become leaves of a tree.
func BenchmarkTree(b *testing.B) {
	l := evidence.Link{
		Org: "org_default", Incarnation: 1, AppendedAt: time.Unix(1, 0), Time: time.Unix(1, 0), Kind: "request.decided", AgentID: "ag_0123456789abcdef",
		SessionID: "sess_0123456789", RequestID: "req_0123456789abcdef0123", Writer: "w_0123456789abcdef0123", WriterSeq: 1,
	}
	var m merkle
	buf := make([]byte, 0, 500)
	for b.Loop() {
		l.Seq++
		buf = l.Append(append(buf[:0], 0))
		m.add(leafHash(buf))
		m.full = m.full[:0]
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "leaves/s")
	if m.size != l.Seq {
		b.Fatal(fmt.Sprint(m.size))
	}
}
