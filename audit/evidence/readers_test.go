package evidence_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// put appends an entry. more follows the members that each entry has.
func (l *aLog) put(kind, writer, agent, more string) {
	i := int64(len(l.rows))
	at := l.began.Add(time.Duration(i) * time.Second)
	entry := fmt.Appendf(nil, `{"v":1,"kind":"%s","time":"%s","org":"%s","writer":"%s","request_id":""%s}`, kind, at.Format(evidence.TimeLayout), l.org, writer, more)
	l.append(evidence.ExportRow{Link: evidence.Link{Org: l.org, Incarnation: l.incarnation, Seq: l.firstSeq + i, AppendedAt: at, Time: at,
		Kind: kind, AgentID: agent, Writer: writer, WriterSeq: i + 1, PrevWriterSeq: i}, Epoch: 1, Version: 3, Bytes: entry})
}

// levels is a value with n levels.
func levels(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

const huge = "123456789012345678901"

// Both verifiers read each entry in the same way: depth, escapes, numbers and null.
func TestEntriesAreReadAlike(t *testing.T) {
	py := startSecond(t)
	set := jwks(t, newLog("org_1").keys(t))
	change := func(more string) string {
		return `,"role":"p256","old_kid":"a","new_kid":"b","size":1,"old_signature":"","new_signature":""` + more
	}
	earlier := newLog("org_1")
	earlier.add(5, "x")
	note, err := json.Marshal(earlier.note(5))
	if err != nil {
		t.Fatal(err)
	}
	reopened := func(more string) string { return fmt.Sprintf(`,"previous":%s,"restored":5%s`, note, more) }
	for _, c := range []struct {
		name, kind, writer, agent, more string
		exit                            int
	}{
		{"as many levels as are read", "x", "w_1", "", `,"x":` + levels(9999), 0},
		{"one more level", "x", "w_1", "", `,"x":` + levels(10000), 1},
		{"many more levels", "x", "w_1", "", `,"x":` + levels(200000), 1},
		{"brackets in a string", "x", "w_1", "", `,"x":"` + strings.Repeat(`[{\"\\`, 20000) + `"`, 0},
		{"many lists side by side", "x", "w_1", "", `,"x":[` + strings.Repeat("[],", 20000) + `{}]`, 0},
		{"half of a surrogate pair", "x", "w_1", "", `,"x":"\ud800"`, 1},
		{"the other half", "x", "w_1", "", `,"x":"a\uDFFFb"`, 1},
		{"halves in the wrong order", "x", "w_1", "", `,"x":"\udc00\ud800"`, 1},
		{"two first halves", "x", "w_1", "", `,"x":"\ud83d\ud83d\ude00"`, 1},
		{"half in a name", "x", "w_1", "", `,"\ud800":1`, 1},
		{"a surrogate pair", "x", "w_1", "", `,"x":"\ud83d\ude00"`, 0},
		{"a backslash before u", "x", "w_1", "", `,"x":"\\ud800"`, 0},
		{"any numbers", "x", "w_1", "", `,"x":[-0,1.5,1e400,` + huge + `]`, 0},
		{"NaN", "x", "w_1", "", `,"x":NaN`, 1},
		{"a number for text", "x", "w_1", "123", `,"agent_id":123`, 1},
		{"a fraction for text", "x", "w_1", "1.5", `,"agent_id":1.5`, 1},
		{"null for text", "x", "w_1", "", `,"agent_id":null`, 0},
		{"a name twice", "x", "w_1", "", `,"x":1,"x":1`, 1},

		{"a key change", "keys.changed", "control", "", change(""), 2},
		{"a key change with null", "keys.changed", "control", "", change(`,"x":null`), 2},
		{"a key change with a huge number", "keys.changed", "control", "", change(`,"x":` + huge), 2},
		{"a key change with a fraction", "keys.changed", "control", "", change(`,"x":[1.5,-0]`), 2},
		{"a key change with many levels", "keys.changed", "control", "", change(`,"x":` + levels(9999)), 2},
		{"a key change without a role", "keys.changed", "control", "", `,"role":null,"old_kid":null,"size":1`, 2},
		{"a size that is null", "keys.changed", "control", "", `,"role":"p256","size":null`, 1},
		{"a huge size", "keys.changed", "control", "", `,"role":"p256","size":` + huge, 1},
		{"a size that is a fraction", "keys.changed", "control", "", `,"role":"p256","size":1.0`, 1},
		{"a role that is a number", "keys.changed", "control", "", `,"role":1,"size":1`, 1},

		{"a reopened log", evidence.KindReopened, "control", "", reopened(""), 0},
		{"a reopened log with null", evidence.KindReopened, "control", "", reopened(`,"lost_from":null,"x":null`), 0},
		{"a reopened log with a huge number", evidence.KindReopened, "control", "", reopened(`,"x":` + huge), 0},
		{"a huge loss", evidence.KindReopened, "control", "", reopened(`,"lost_from":1,"lost_to":` + huge), 1},
		{"a loss that is a fraction", evidence.KindReopened, "control", "", reopened(`,"lost_from":1.5`), 1},
		{"nothing before", evidence.KindReopened, "control", "", `,"previous":null`, 1},
	} {
		l := newLog("org_1")
		if c.kind == evidence.KindReopened {
			l.incarnation, l.firstSeq = 2, 6
		}
		l.put(c.kind, c.writer, c.agent, c.more)
		if v := py.both(c.name, question{Command: "chain", JWKS: set, Data: l.export(order{end: 1})}); v.Exit != c.exit || v.Exit == 1 && v.Where != fmt.Sprintf("entry %d", l.firstSeq) {
			t.Errorf("%s: %+v", c.name, v)
		}
	}
}

// Both verifiers read receipt keys, documents and responses of the API in the same way.
func TestDocumentsAreReadAlike(t *testing.T) {
	py := startSecond(t)
	l := newLog("org_1")
	set := jwks(t, l.keys(t))
	ask := func(name, command string, data []byte, exit int) {
		t.Helper()
		if v := py.both(name, question{Command: command, JWKS: set, Data: data, Receipt: ""}); v.Exit != exit {
			t.Errorf("%s: %+v", name, v)
		}
	}
	text := func(v any) []byte {
		t.Helper()
		b, err := jsonv2.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}

	// Receipts of a writer with one or two entries writer.started.
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, 32))
	public := base64.RawURLEncoding.EncodeToString(key.Public().(ed25519.PublicKey))
	for _, c := range []struct {
		first, second string
		exit          int
	}{
		{`""`, "", 0}, {`null`, "", 0}, {`5`, "", 0}, {`"` + public + `"`, "", 0}, {`"` + public + `"`, `""`, 0}, {`"+"`, "", 1}, {`"AA"`, "", 1},
		{`"` + public + `"`, `"+"`, 1}, {`"+"`, `"` + public + `"`, 1}, {`"AA"`, `"` + public + `"`, 0}, {`"` + public + `","x":` + levels(9999), "", 0},
	} {
		r := newLog("org_1")
		n := 0
		for _, k := range []string{c.first, c.second} {
			if k != "" {
				r.put("writer.started", "w_9", "", `,"receipt_key":`+k)
				n++
			}
		}
		r.put("x", "w_9", "", "")
		b := evidence.Bundle{Format: evidence.BundleFormat, Org: "org_1", Checkpoints: []string{r.note(int64(n + 1))}, Consistency: []evidence.BundleConsistency{}, Entries: []evidence.BundleEntry{}}
		for i := range n + 1 {
			b.Entries = append(b.Entries, r.piece(int64(i), int64(n+1)))
		}
		receipt := evidence.SignReceipt(evidence.Receipt{Writer: "w_9", Seq: uint64(n + 1), Leaf: r.rows[n].Entry}, "org_1", key)
		if v := py.both(c.first+c.second, question{Command: "receipt", JWKS: set, Data: text(b), Receipt: receipt.String()}); v.Exit != c.exit {
			t.Errorf("receipt keys %.60s %.60s: %+v", c.first, c.second, v)
		}
	}

	// Attestations and reports.
	attestation := func(name, digest, predicate string) []byte {
		return text(signedBy(t, evidence.InTotoType, fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://ai-identity.co/attestations/session/v1",
			"subject":[{"name":%s,"digest":{"rfc6962_sha256":%s}}],"predicate":{"complete":true%s}}`, name, digest, predicate), l.p256))
	}
	name, digest := `"aid:session/org_1/a/s/1"`, `"`+strings.Repeat("1", 64)+`"`
	for predicate, exit := range map[string]int{
		"": 0, `,"x":` + huge: 0, `,"x":-0`: 0, `,"x":1.5`: 0, `,"x":null`: 0, `,"x":"\ud800"`: 1, `,"x":` + levels(9998): 0, `,"x":` + levels(9999): 1,
	} {
		ask("predicate "+predicate[:min(len(predicate), 30)], "attestation", attestation(name, digest, predicate), exit)
	}
	ask("a digest that is a number", "attestation", attestation(name, strings.Trim(digest, `"`), ""), 1)
	ask("a name that is a number", "attestation", attestation("1", digest, ""), 1)
	report := string(text(evidence.Report{Format: evidence.ReportFormat, Org: "org_1", Attestation: []byte("null"), Summary: evidence.ReportSummary{Agents: []string{}, Models: []string{}, Policies: []string{}},
		Timeline: []evidence.ReportStep{{Seq: 1, Time: "t", Detail: []string{}}},
		Bundle:   evidence.Bundle{Format: evidence.BundleFormat, Org: "org_1", Checkpoints: []string{}, Consistency: []evidence.BundleConsistency{}, Entries: []evidence.BundleEntry{}}}))
	report = strings.Replace(report, `"timeline":[{"seq":1,"time":"t"`, `"timeline":[{"seq":1,"time":TIME`, 1)
	report = strings.Replace(report, `"timeline":[{`, `"timeline":[STEPS{`, 1)
	for _, c := range []struct {
		old, new string
		exit     int
	}{
		{"", "", 0}, {`"requests":0`, `"requests":-0`, 0}, {`"requests":0`, `"requests":1.5`, 1}, {`"requests":0`, `"requests":0.0`, 1}, {`"requests":0`, `"requests":` + huge, 1},
		{`"attestation":null`, `"attestation":1.5`, 1}, {`"attestation":null`, `"attestation":[` + huge + `]`, 1}, {`"attestation":null`, `"attestation":` + levels(9000), 1},
		{`"agents":[]`, `"agents":[1]`, 1}, {`"agents":[]`, `"agents":null`, 1},
	} {
		plain := reportWithoutSteps(report)
		if c.old != "" && !strings.Contains(plain, c.old) {
			t.Fatalf("the report has no %s: %s", c.old, plain)
		}
		ask("report "+c.new[:min(len(c.new), 30)], "report", text(signedBy(t, evidence.ReportType, []byte(strings.Replace(plain, c.old, c.new, 1)), l.p256)), c.exit)
	}
	for _, moment := range []string{"1.5", "1", "null"} {
		step := strings.NewReplacer("STEPS", "", "TIME", moment).Replace(report)
		ask("a time "+moment, "report", text(signedBy(t, evidence.ReportType, []byte(step), l.p256)), 1)
	}

	// Responses of the API.
	l.add(3, "x")
	note, err := json.Marshal(l.note(3))
	if err != nil {
		t.Fatal(err)
	}
	r := l.rows[2]
	proof := fmt.Sprintf(`{"status":"included","seq":3,"request_id":"%s","incarnation":1,"leaf_index":2,"link":"%s","path":%s,"checkpoint":%s`,
		r.RequestID, base64.StdEncoding.EncodeToString(r.Append(nil)), text(evidence.Hashes(l.inclusion(2, 3))), note)
	for more, exit := range map[string]int{
		"": 0, `,"reason":null`: 0, `,"reason":5`: 1, `,"reason":1.5`: 1, `,"archive":null`: 0, `,"archive":[1.5,` + huge + `,null]`: 0, `,"receipt":null`: 0, `,"x":null`: 1,
	} {
		ask("proof "+more, "bundle", []byte(proof+more+"}"), exit)
	}
	ask("a status that is null", "bundle", []byte(`{"status":null}`), 2)
	ask("a path with null", "bundle", []byte(strings.Replace(proof, `"path":[`, `"path":[null,`, 1)+"}"), 1)
	ask("a size that is null", "bundle", []byte(strings.Replace(proof, `"leaf_index":2`, `"leaf_index":null`, 1)+"}"), 1)
	zero := strings.ReplaceAll(set, `"aid_from":0`, `"aid_from":-0`)
	if v := py.both("a negative zero in the JWKS", question{Command: "checkpoint", JWKS: zero, Held: [][2]string{{"a", l.note(3)}}}); v.Exit != 0 {
		t.Errorf("%+v", v)
	}
}

// reportWithoutSteps removes the steps of the report's timeline.
func reportWithoutSteps(report string) string {
	head, rest, _ := strings.Cut(report, "STEPS")
	_, tail, _ := strings.Cut(rest, "}]")
	return head + "]" + tail
}

// A checkpoint that is not UTF-8 has exit code 1: the file is wrong, and the usage is right.
func TestNoteOfOtherBytes(t *testing.T) {
	l := newLog("org_1")
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	python := os.Getenv("AID_SDK_PYTHON")
	if python == "" {
		python = "python3"
	}
	set, good := write("jwks.json", []byte(jwks(t, l.keys(t)))), l.note(0)
	for name, b := range map[string]string{"first": "\xff" + good, "origin": strings.Replace(good, "org_1", "org_\xff", 1), "signature": strings.Replace(good, "\u2014 ", "\u2014 \xfe", 1), "last": good + "\x80"} {
		file := write(name, []byte(b))
		if v := evidence.VerifyCheckpoints([]evidence.HeldNote{{From: file, Note: []byte(b)}}, l.keySet(), nil); v.Exit != evidence.Tampered {
			t.Errorf("%s: %+v", name, v)
		}
		cmd := exec.Command(python, "../../cli/ai_identity_verify.py", "checkpoint", file, "--jwks", set)
		if out, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != evidence.Tampered {
			t.Errorf("%s: exit code %d: %s", name, cmd.ProcessState.ExitCode(), out)
		}
	}
}
