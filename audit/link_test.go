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
