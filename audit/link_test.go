package audit

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"
	"time"
)

// TestLinkVector compares the bytes with docs/audit.md, for other implementations of the
// verifier.
func TestLinkVector(t *testing.T) {
	b, err := os.ReadFile("testdata/link.json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Key, Epoch, Org, Entry, Kind, Agent, Session, Request, Writer string
		Incarnation, Seq, AppendedAt, Time, WriterSeq, PrevWriterSeq  int64
		PrevMAC, Link, MAC                                            string
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	keys, err := ParseKeys([]string{v.Epoch + " " + v.Key})
	if err != nil {
		t.Fatal(err)
	}
	prev, err := hex.DecodeString(v.PrevMAC)
	if err != nil {
		t.Fatal(err)
	}
	l := link{
		version: macVersion, epoch: keys.last(), org: v.Org, incarnation: v.Incarnation, seq: v.Seq, appendedAt: time.UnixMicro(v.AppendedAt),
		time: time.UnixMicro(v.Time), kind: v.Kind, agent: v.Agent, session: v.Session, request: v.Request, writer: v.Writer,
		writerSeq: v.WriterSeq, prevWriter: v.PrevWriterSeq, prev: prev, entry: []byte(v.Entry),
	}
	seal, _ := keys.sealer(v.Org, keys.last())
	mac := seal.mac(l)
	if got := hex.EncodeToString(l.bytes(nil)); got != v.Link {
		t.Errorf("the link is %s", got)
	}
	if got := hex.EncodeToString(mac[:]); got != v.MAC {
		t.Errorf("the MAC is %s", got)
	}
}

// TestSessionColumn fixes the column session_id of each version. Rows of a version must have the
// same columns for ever.
func TestSessionColumn(t *testing.T) {
	at := time.UnixMicro(0).UTC()
	for _, c := range []struct {
		e      Entry
		v2, v3 string
	}{
		{Decided{SessionID: "chosen", OwnSession: "sess_1"}, "chosen", "chosen"},
		{Decided{OwnSession: "sess_1"}, "", "sess_1"},
		{Settled{SessionID: "sess_1"}, "", "sess_1"},
		{Settled{}, "", ""},
		{Gap{}, "", ""},
	} {
		b := Stamp(c.e, "org_1", "w_1", at).Encode()
		for version, want := range map[int16]string{2: c.v2, 3: c.v3} {
			if cols, e := describe("org_1", "w_1", b, at, version); e == nil || cols.session != want {
				t.Errorf("version %d of %s: %q, want %q", version, b, cols.session, want)
			}
		}
	}
}

// TestSignedReceipt verifies a receipt with the key in writer.started. Another start has another
// key.
func TestSignedReceipt(t *testing.T) {
	dir := t.TempDir()
	var keys []string
	for range 2 {
		w, stop := open(t, dir, nil)
		r, err := w.Append(t.Context(), "org_1", decided("r1", "deny"))
		if err != nil || r.Signed {
			t.Fatalf("%v, %v", r, err)
		}
		id := w.ID()
		signed := w.Sign("org_1", r)
		stop()
		key := ""
		f, err := OpenFolder(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Each(func(rec FolderRecord) error {
			if e, err := Parse(rec.Entry); err == nil && rec.Writer == id {
				if s, ok := e.(Started); ok {
					key = s.ReceiptKey
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if err := signed.Verify("org_1", key); err != nil {
			t.Error(err)
		}
		if err := signed.Verify("org_2", key); err == nil {
			t.Error("the receipt is valid in another org")
		}
		keys = append(keys, key)
	}
	if keys[0] == keys[1] {
		t.Error("two starts have one key")
	}
}
