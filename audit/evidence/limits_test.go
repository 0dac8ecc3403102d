package evidence_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// sized returns a checkpoint of any size, with a signature of each key.
func sized(l *aLog, size uint64) string {
	text := fmt.Sprintf("%s\n%d\n%s\ntime 2026-11-27T15:00:00.000000Z\n", l.origin(), size, base64.StdEncoding.EncodeToString(make([]byte, 32)))
	note := text + "\n"
	for _, k := range []local{l.p256, l.ed} {
		// The four bytes of a key's id are those of any other note of this origin.
		_, lines, _ := strings.Cut(signedAs(l, 0, k), "\n\n")
		_, old, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(lines), "\u2014 "), " ")
		raw, err := base64.StdEncoding.DecodeString(old)
		if err != nil {
			panic(err)
		}
		sig, err := k.Sign(context.Background(), []byte(text))
		if err != nil {
			panic(err)
		}
		note += "\u2014 " + l.origin() + " " + base64.StdEncoding.EncodeToString(append(raw[:4:4], sig...)) + "\n"
	}
	return note
}

// A checkpoint has at most 2⁶¹ entries. Both verifiers reject a larger one before they compute
// with its size.
func TestHugeSizes(t *testing.T) {
	l := newLog("org_1")
	l.add(3, "x")
	set := jwks(t, l.keys(t))
	py := startSecond(t)
	for _, c := range []struct {
		size uint64
		exit int
	}{{1 << 61, 0}, {1<<61 + 1, 1}, {1 << 62, 1}, {1<<62 + 1, 1}, {1<<63 - 1, 1}, {1 << 63, 1}, {1<<64 - 1, 1}} {
		note := sized(l, c.size)
		name := fmt.Sprint(c.size)
		if v := py.both(name, question{Command: "checkpoint", JWKS: set, Held: [][2]string{{"a", note}}}); v.Exit != c.exit {
			t.Errorf("checkpoint %s: %+v", name, v)
		}
		if _, err := evidence.ParseNote(note); (err == nil) != (c.exit == 0) {
			t.Errorf("%s: %v", name, err)
		}
		// The proofs are wrong for each size: the result is the same, and it comes at once.
		hash := make([]byte, 32)
		size := int64(min(c.size, 1<<63-1))
		for _, b := range []evidence.Bundle{
			{Consistency: []evidence.BundleConsistency{{Incarnation: 1, Old: 2, Size: size, Proof: [][]byte{hash}}}, Entries: []evidence.BundleEntry{}},
			{Consistency: []evidence.BundleConsistency{}, Entries: []evidence.BundleEntry{evidence.NewBundleEntry(l.rows[0].Link, l.rows[0].Bytes, 0, size, []tlog.Hash{{}})}},
		} {
			b.Format, b.Org, b.Checkpoints = evidence.BundleFormat, "org_1", []string{l.note(2), note}
			text, err := json.Marshal(b)
			if err != nil {
				t.Fatal(err)
			}
			if v := py.both("bundle "+name, question{Command: "bundle", JWKS: set, Data: text}); v.Exit != 1 {
				t.Errorf("bundle %s: %+v", name, v)
			}
		}
		h := evidence.ExportHeader{Org: "org_1", Incarnation: 1, FirstSeq: 1, End: l.note(2), Newest: note, Consistency: [][]byte{hash}}
		_, line, err := evidence.NewExportWriter(h)
		if err != nil {
			t.Fatal(err)
		}
		if v := py.both("export "+name, question{Command: "chain", JWKS: set, Data: append(line, "],\n"...)}); v.Exit != 1 || v.Where != "the newest checkpoint" {
			t.Errorf("export %s: %+v", name, v)
		}
	}
}
