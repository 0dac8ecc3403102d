package evidence_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

// Entries can have any time of the years 0 to 9999. They are late only in an export that
// continues another one.
func TestOldTimes(t *testing.T) {
	l := newLog("org_1")
	l.add(2, "x")
	times := []string{
		"1970-01-01T00:00:00.000000Z", "1969-12-31T23:59:59.999999Z", "1900-02-28T12:00:00.000001Z", "0001-01-01T00:00:00.000000Z",
		"0000-12-31T23:59:59.999999Z", "0000-02-29T01:02:03.000004Z", "0000-01-01T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z",
	}
	for i, text := range times {
		moment, err := time.Parse(evidence.TimeLayout, text)
		if err != nil {
			t.Fatal(err)
		}
		entry := fmt.Appendf(nil, `{"v":1,"kind":"request.decided","time":"%s","org":"org_1","writer":"w_1","request_id":"req_%d","agent_id":"ag_1"}`, text, i)
		n := int64(len(l.rows))
		l.append(evidence.ExportRow{Link: evidence.Link{Org: "org_1", Incarnation: 1, Seq: n + 1, AppendedAt: l.began.Add(time.Duration(n) * time.Second), Time: moment,
			Kind: "request.decided", AgentID: "ag_1", RequestID: fmt.Sprintf("req_%d", i), Writer: "w_1", WriterSeq: n + 1, PrevWriterSeq: n}, Epoch: 1, Version: 3, Bytes: entry})
	}
	n := int64(len(l.rows))
	py := startSecond(t)
	for name, o := range map[string]order{
		"all": {end: n}, "a range": {first: 2, end: n}, "a filter": {end: n, filter: evidence.ExportFilter{AgentID: "ag_1"}},
		"before 1970": {end: n, filter: evidence.ExportFilter{Since: -1 << 62, Until: -1}}, "late": {first: 2, end: n, after: "exp_1"},
	} {
		b := l.export(o)
		if v := py.both(name, question{Command: "chain", JWKS: jwks(t, l.keys(t)), Data: b}); v.Exit != evidence.Intact {
			t.Errorf("%s: %+v", name, v)
		}
		want := 0
		if o.after != "" {
			want = len(times) - 1 // the last one is in the future
		}
		if got := strings.Count(string(b), `"late":true`); got != want {
			t.Errorf("%s: %d entries are late, and %d must be", name, got, want)
		}
	}
	text := jwks(t, l.keys(t))
	b := strings.Replace(string(l.export(order{end: n})), `,"entry":`, `,"late":true,"entry":`, 1)
	if v := py.both("a mark without another export", question{Command: "chain", JWKS: text, Data: []byte(b)}); v.Exit != evidence.Tampered {
		t.Errorf("%+v", v)
	}
}

// OnlyLost is true for the gaps of a reopened log and for nothing else: an archive counts then.
func TestOnlyLost(t *testing.T) {
	read := func(name string) []byte {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(vectorsDir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	l := newLog("org_1")
	for _, c := range []struct {
		name string
		file []byte
		keys evidence.KeySet
		exit int
		only bool
	}{
		{"nothing is lost", read("export-12.json"), l.keySet(), 0, false},
		{"entries were lost", read("export-lost.json"), l.keySet(), 2, true},
		{"another key signed the export", resigned(t, read("export-lost.json"), p256("x")), l.keySet(), 2, false},
		{"no key of checkpoints", read("export-lost.json"), evidence.KeySet{}, 2, false},
		{"a lie", read("export-hidden.json"), l.keySet(), 1, false},
	} {
		if v := evidence.VerifyChain(bytes.NewReader(c.file), evidence.ChainOptions{Keys: c.keys}); v.Exit != c.exit || v.OnlyLost != c.only {
			t.Errorf("%s: %t %+v", c.name, v.OnlyLost, v)
		}
	}
}
