package evidence_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

var (
	tampers = flag.Int("tampers", 150, "how many tampered exports TestTampers generates")
	valid   = flag.Int("valid", 20, "how many valid exports TestValidExports generates")
)

// The second verifier is cli/ai_identity_verify.py, in one interpreter for all cases.
type second struct {
	t   testing.TB
	in  io.WriteCloser
	out *bufio.Reader
}

// A question is a case for both verifiers.
type question struct {
	Command string      `json:"command"`
	JWKS    string      `json:"jwks"`
	Pins    []string    `json:"pins"`
	Data    []byte      `json:"data"`
	Held    [][2]string `json:"held"`
	MAC     string      `json:"mac"`
	Receipt string      `json:"receipt"`
}

func startSecond(t testing.TB, env ...string) *second {
	t.Helper()
	python := os.Getenv("AID_SDK_PYTHON")
	if python == "" {
		python = "python3"
	}
	cmd := exec.Command(python, "testdata/driver.py")
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		if os.Getenv("CI") == "" {
			t.Skipf("there is no python3: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the Python verifier: %v", err)
		}
	})
	return &second{t, in, bufio.NewReaderSize(out, 1<<20)}
}

func (s *second) ask(q question) (v evidence.Verdict) {
	s.t.Helper()
	b, err := json.Marshal(q)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.in.Write(append(b, '\n')); err != nil {
		s.t.Fatal(err)
	}
	line, err := s.out.ReadBytes('\n')
	if err != nil {
		s.t.Fatal(err)
	}
	if err := json.Unmarshal(line, &v); err != nil {
		s.t.Fatal(err)
	}
	return v
}

// both asks both verifiers, and fails if they differ.
func (s *second) both(name string, q question) evidence.Verdict {
	s.t.Helper()
	keys, err := evidence.ParseJWKS([]byte(q.JWKS))
	if err == nil {
		keys, err = keys.Pin(q.Pins...)
	}
	if err != nil {
		keys = evidence.KeySet{}
	}
	var held []evidence.HeldNote
	for _, h := range q.Held {
		held = append(held, evidence.HeldNote{From: h[0], Note: []byte(h[1])})
	}
	var first evidence.Verdict
	switch q.Command {
	case "chain":
		o := evidence.ChainOptions{Keys: keys, Held: held}
		if text := q.MAC; text != "" {
			key, err := hex.DecodeString(text)
			if err != nil {
				s.t.Fatal(err)
			}
			o.MACKeys = map[int32][]byte{0: key}
		}
		first = evidence.VerifyChain(bytes.NewReader(q.Data), o)
	case "checkpoint":
		first = evidence.VerifyCheckpoints(held, keys, q.Data)
	case "bundle":
		first = evidence.VerifyBundle(q.Data, keys)
	case "receipt":
		first = evidence.VerifyReceipt(q.Receipt, q.Data, keys)
	case "report":
		first = evidence.VerifyReport(q.Data, keys)
	case "attestation":
		first = evidence.VerifyAttestation(q.Data, keys)
	default:
		s.t.Fatalf("no command %s", q.Command)
	}
	other := s.ask(q)
	if first.Exit != other.Exit || first.Exit == evidence.Tampered && first.Where != other.Where || first.Complete != other.Complete {
		s.t.Errorf("%s: the verifiers differ:\nGo:     %+v\nPython: %+v", name, first, other)
		if f := os.Getenv("AID_CASE"); f != "" {
			os.WriteFile(f, q.Data, 0o600)
		}
	}
	return first
}

func jwks(t testing.TB, k evidence.KeySet) string {
	t.Helper()
	b, err := k.JWKS()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// randomOrder is an order of an export of l.
func randomOrder(r *rand.Rand, l *aLog) (o order) {
	n := int64(len(l.rows))
	o.end = r.Int64N(n + 1)
	o.first = r.Int64N(o.end + 1)
	if r.IntN(2) == 0 {
		o.first = 0
	}
	o.newest = o.end + r.Int64N(n-o.end+1)
	if o.first > 0 && r.IntN(2) == 0 {
		o.after = "exp_00"
	}
	at := func() int64 { return l.began.Add(time.Duration(r.Int64N(n+1)) * time.Second).UnixMicro() }
	switch r.IntN(7) {
	case 0:
		o.filter.AgentID = fmt.Sprintf("ag_%d", r.IntN(4))
	case 1:
		o.filter.Kind = []string{"request.decided", "malformed"}[r.IntN(2)]
	case 2:
		o.filter.RequestID = fmt.Sprintf("req_%d", r.Int64N(n))
	case 3:
		if o.filter.Since, o.filter.Until = at(), at(); o.filter.Until <= o.filter.Since {
			o.filter.Until = 0
		}
	case 4:
		o.filter.SessionID = "sess_1"
	}
	return o
}

// Valid exports are intact for both verifiers.
func TestValidExports(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	l := newLog("org_1")
	l.add(120, "x")
	py := startSecond(t)
	set := jwks(t, l.keys(t))
	for i := range *valid {
		o := randomOrder(r, l)
		q := question{Command: "chain", JWKS: set, Data: l.export(o)}
		if r.IntN(2) == 0 {
			q.MAC = hex.EncodeToString(l.key)
		}
		if r.IntN(2) == 0 {
			size := o.first + r.Int64N(o.end-o.first+1)
			q.Held = append(q.Held, [2]string{"kept", l.note(size)})
		}
		if v := py.both(fmt.Sprint(i, o), q); v.Exit != evidence.Intact {
			t.Errorf("%d: %+v: %+v", i, o, v)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d valid exports, 0 false alarms", *valid)
}

// lines returns the export's lines.
func lines(b []byte) []string {
	return strings.SplitAfter(strings.TrimSuffix(string(b), "\n")+"\n", "\n")
}

// A tamper changes a valid export. want is the entry that was changed first, or 0.
type tamper struct {
	name  string
	apply func(r *rand.Rand, l *aLog, o order, q *question) (want int64, ok bool)
}

// edit is a tamper of the text.
func edit(name string, fn func(r *rand.Rand, rows []string, text string) string) tamper {
	return tamper{name, func(r *rand.Rand, l *aLog, o order, q *question) (int64, bool) {
		text := string(q.Data)
		all := lines(q.Data)
		changed := fn(r, all[1:len(all)-3], text)
		q.Data = []byte(changed)
		return 0, changed != text
	}}
}

// inRow replaces one text by another in one random row.
func inRow(name, old, new string) tamper {
	return tamper{name, func(r *rand.Rand, l *aLog, o order, q *question) (int64, bool) {
		all := lines(q.Data)
		if o.end == o.first {
			return 0, false
		}
		n := int(o.end - o.first)
		for from, k := r.IntN(n), 0; k < n; k++ {
			i := 1 + (from+k)%n
			changed := strings.Replace(all[i], old, new, 1)
			if changed == all[i] {
				continue
			}
			all[i] = changed
			q.Data = []byte(strings.Join(all, ""))
			return l.firstSeq + o.first + int64(i) - 1, true
		}
		return 0, false
	}}
}

// prover has all keys of the log, and signs a changed log. The auditor kept a checkpoint.
func prover(name string, change func(r *rand.Rand, l *aLog, at int)) tamper {
	return tamper{name, func(r *rand.Rand, l *aLog, o order, q *question) (int64, bool) {
		if o.end-o.first < 2 {
			return 0, false
		}
		at := int(o.first) + r.IntN(int(o.end-o.first))
		kept := int64(at+1) + r.Int64N(o.end-int64(at))
		q.Held = [][2]string{{"kept", l.note(kept)}}
		false_ := l.clone()
		change(r, false_, at)
		o.end, o.newest = min(o.end, int64(len(false_.rows))), 0
		if o.first > o.end {
			return 0, false
		}
		q.Data = false_.export(o)
		return int64(at) + l.firstSeq, true
	}}
}

// rebuild makes the chain and tree of rows anew, with the HMAC key.
func (l *aLog) rebuild(rows []evidence.ExportRow) {
	l.rows, l.stored = nil, nil
	for i, r := range rows {
		r.Seq = l.firstSeq + int64(i)
		l.append(r)
	}
}

func allTampers() []tamper {
	row := func(r *rand.Rand, rows []string) int { return r.IntN(max(1, len(rows))) }
	out := []tamper{
		{"flip a bit", func(r *rand.Rand, l *aLog, o order, q *question) (int64, bool) {
			q.Data = bytes.Clone(q.Data)
			q.Data[r.IntN(len(q.Data))] ^= 1 << r.IntN(8)
			return 0, true
		}},
		{"flip a bit of the last line", func(r *rand.Rand, l *aLog, o order, q *question) (int64, bool) {
			q.Data = bytes.Clone(q.Data)
			n := bytes.LastIndexByte(q.Data[:len(q.Data)-1], '\n')
			q.Data[n+1+r.IntN(len(q.Data)-n-1)] ^= 1 << r.IntN(8)
			return 0, true
		}},
		{"flip a bit of the header", func(r *rand.Rand, l *aLog, o order, q *question) (int64, bool) {
			q.Data = bytes.Clone(q.Data)
			q.Data[r.IntN(bytes.IndexByte(q.Data, '\n')+1)] ^= 1 << r.IntN(8)
			return 0, true
		}},
		edit("delete a byte", func(r *rand.Rand, _ []string, s string) string { i := r.IntN(len(s)); return s[:i] + s[i+1:] }),
		edit("insert a byte", func(r *rand.Rand, _ []string, s string) string {
			i := r.IntN(len(s) + 1)
			return s[:i] + string(rune(32+r.IntN(95))) + s[i:]
		}),
		edit("cut the end", func(r *rand.Rand, _ []string, s string) string { return s[:r.IntN(len(s))] }),
		edit("cut the beginning", func(r *rand.Rand, _ []string, s string) string { return s[1+r.IntN(len(s)-1):] }),
		edit("delete a row", func(r *rand.Rand, rows []string, s string) string {
			if len(rows) == 0 {
				return s
			}
			return strings.Replace(s, rows[row(r, rows)], "", 1)
		}),
		edit("a row twice", func(r *rand.Rand, rows []string, s string) string {
			if len(rows) == 0 {
				return s
			}
			x := rows[row(r, rows)]
			return strings.Replace(s, x, x+x, 1)
		}),
		edit("swap rows", func(r *rand.Rand, rows []string, s string) string {
			if len(rows) < 2 {
				return s
			}
			i := r.IntN(len(rows) - 1)
			return strings.Replace(s, rows[i]+rows[i+1], rows[i+1]+rows[i], 1)
		}),
		edit("another space", func(r *rand.Rand, _ []string, s string) string {
			i := strings.Index(s[r.IntN(len(s)):], ",")
			if i < 0 {
				return s
			}
			return s[:i+1] + " " + s[i+1:]
		}),
		edit("more after the end", func(r *rand.Rand, _ []string, s string) string { return s + []string{"\n", " ", "{}", s}[r.IntN(4)] }),
		edit("CRLF", func(r *rand.Rand, _ []string, s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }),
		edit("another format", func(r *rand.Rand, _ []string, s string) string {
			return strings.Replace(s, "export v1", "export v2", 1)
		}),
		edit("another payload type", func(r *rand.Rand, _ []string, s string) string {
			return strings.Replace(s, evidence.ExportType, []string{evidence.ReportType, evidence.InTotoType, ""}[r.IntN(3)], 1)
		}),
		edit("no signatures", func(r *rand.Rand, _ []string, s string) string {
			i := strings.Index(s, `"signatures":[`)
			return s[:i] + `"signatures":[]}}` + "\n"
		}),
		edit("an empty key id", func(r *rand.Rand, _ []string, s string) string {
			i := strings.Index(s, `"keyid":"`) + 9
			return s[:i] + s[i+43:]
		}),
		edit("alg none", func(r *rand.Rand, _ []string, s string) string {
			return strings.Replace(s, `{"keyid"`, `{"alg":"none","keyid"`, 1)
		}),
		edit("r and s without DER", func(r *rand.Rand, _ []string, s string) string {
			i := strings.Index(s, `"sig":"`) + 7
			return s[:i] + base64.StdEncoding.EncodeToString(make([]byte, 64)) + s[strings.Index(s[i:], `"`)+i:]
		}),
		edit("without a signature line", func(r *rand.Rand, _ []string, s string) string {
			i := strings.Index(s, "\u2014 ")
			j := strings.Index(s[i:], `\n`)
			return s[:i] + s[i+j+2:]
		}),
		edit("a signature of another checkpoint", func(r *rand.Rand, _ []string, s string) string {
			from, to := "org_1/1\\n", "org_1/2\\n"
			return strings.Replace(s, from, to, 1)
		}),
		edit("another filter", func(r *rand.Rand, _ []string, s string) string {
			return strings.Replace(s, `"filter":{"agent_id":"`, `"filter":{"agent_id":"x`, 1)
		}),
		edit("an unknown name in the header", func(r *rand.Rand, _ []string, s string) string {
			return strings.Replace(s, `{"id":`, `{"x":1,"id":`, 1)
		}),
		edit("a name twice in the header", func(r *rand.Rand, _ []string, s string) string {
			return strings.Replace(s, `"first_seq":1`, `"first_seq":1,"first_seq":1`, 1)
		}),
		edit("a huge number in the header", func(r *rand.Rand, _ []string, s string) string {
			return strings.Replace(s, `"first_seq":1`, `"first_seq":1`+strings.Repeat("0", 18+r.IntN(5000)), 1)
		}),
		edit("a fraction in the header", func(r *rand.Rand, _ []string, s string) string {
			return strings.Replace(s, `"first_seq":1`, `"first_seq":1.0`, 1)
		}),
		edit("NaN in the header", func(r *rand.Rand, _ []string, s string) string {
			return strings.Replace(s, `"first_seq":1`, `"first_seq":NaN`, 1)
		}),
		inRow("a huge number in a row", `"epoch":1`, `"epoch":1`+strings.Repeat("0", 30)),
		inRow("a number that overflows", `"prev_writer_seq":`, `"prev_writer_seq":92233720368547758`),
		inRow("NaN in a row", `"epoch":1`, `"epoch":NaN`),
		inRow("null in a row", `"session_id":""`, `"session_id":null`),
		inRow("true for 1", `"epoch":1`, `"epoch":true`),
		inRow("a fraction in a row", `"epoch":1`, `"epoch":1.0`),
		inRow("a negative zero", `"epoch":1`, `"epoch":-0`),
		inRow("a leading zero", `"epoch":1`, `"epoch":01`),
		inRow("an unknown name in a row", `{"seq"`, `{"x":1,"seq"`),
		inRow("a name twice in a row", `"epoch":1`, `"epoch":1,"epoch":1`),
		inRow("other order of names", `"epoch":1,"mac_version":2`, `"mac_version":2,"epoch":1`),
		inRow("another epoch", `"epoch":1`, `"epoch":2`),
		inRow("another MAC version", `"mac_version":2`, `"mac_version":1`),
		inRow("an unknown MAC version", `"mac_version":2`, `"mac_version":4`),
		inRow("another agent", `"agent_id":"ag_`, `"agent_id":"ag_9`),
		inRow("a session", `"session_id":""`, `"session_id":"sess_9"`),
		inRow("another writer", `"writer":"w_1"`, `"writer":"w_2"`),
		inRow("another time", `"time":17`, `"time":16`),
		inRow("another time of appending", `"appended_at":17`, `"appended_at":16`),
		inRow("another kind", `"kind":"request.`, `"kind":"Request.`),
		inRow("an escape that is not needed", `"writer":"w_1"`, `"writer":"\u0077_1"`),
		inRow("half a surrogate pair", `"session_id":""`, `"session_id":"\ud800"`),
		inRow("bytes that are not UTF-8", `"session_id":""`, "\"session_id\":\"\xff\""),
		inRow("a control character", `"session_id":""`, "\"session_id\":\"\x01\""),
		inRow("late", `,"entry":`, `,"late":true,"entry":`),
		inRow("not late", `,"late":true`, ``),
		inRow("late is false", `,"late":true`, `,"late":false`),
		inRow("the entry is removed", `,"entry":`, `,"other":`),
		inRow("the entry is changed", `\"model\":\"gpt-4o`, `\"model\":\"gpt-4x`),
		inRow("the entry is in base64", `"entry":"`, `"entry_base64":"`),
		inRow("uppercase digits", `"entry_hash":"`, `"entry_hash":"A`),
		tamper{"a removed entry", func(r *rand.Rand, l *aLog, o order, q *question) (int64, bool) {
			all := lines(q.Data)
			if o.end == o.first {
				return 0, false
			}
			i := 1 + r.IntN(int(o.end-o.first))
			at := strings.Index(all[i], `,"entry":`)
			if at < 0 {
				return 0, false
			}
			if all[i] = all[i][:at] + "},\n"; int64(i) == o.end-o.first {
				all[i] = all[i][:at] + "}\n"
			}
			q.Data = []byte(strings.Join(all, ""))
			return l.firstSeq + o.first + int64(i) - 1, true
		}},
		tamper{"rows of another organization", func(r *rand.Rand, l *aLog, o order, q *question) (int64, bool) {
			if o.end == o.first {
				return 0, false
			}
			other := newLog("org_2")
			other.add(len(l.rows), "x")
			all, theirs := lines(q.Data), lines(other.export(o))
			i := 1 + r.IntN(int(o.end-o.first))
			same := all[i] == theirs[i]
			all[i] = theirs[i]
			q.Data = []byte(strings.Join(all, ""))
			return 0, !same
		}},
		tamper{"the export of another organization", func(r *rand.Rand, l *aLog, o order, q *question) (int64, bool) {
			other := newLog("org_2")
			other.add(len(l.rows), "x")
			q.Data, q.Held = other.export(o), [][2]string{{"kept", l.note(o.end)}}
			return 0, true
		}},
		tamper{"the signature of another export", func(r *rand.Rand, l *aLog, o order, q *question) (int64, bool) {
			all := lines(q.Data)
			o.filter = evidence.ExportFilter{AgentID: "ag_7"}
			theirs := lines(l.export(o))
			all[len(all)-2] = theirs[len(theirs)-2]
			q.Data = []byte(strings.Join(all, ""))
			return 0, true
		}},
		tamper{"an older export", func(r *rand.Rand, l *aLog, o order, q *question) (int64, bool) {
			kept := max(o.end, o.newest)
			q.Held = [][2]string{{"kept", l.note(kept)}}
			if kept == 0 {
				return 0, false
			}
			o.end = r.Int64N(kept)
			o.first, o.newest, o.after = min(o.first, o.end), 0, ""
			q.Data = l.export(o)
			return 0, true
		}},
		tamper{"keys of an attacker", func(r *rand.Rand, l *aLog, o order, q *question) (int64, bool) {
			other := l.clone()
			other.p256, other.ed = p256("evil"), ed("evil")
			q.Data = other.export(o)
			return 0, true
		}},
		tamper{"one key of an attacker", func(r *rand.Rand, l *aLog, o order, q *question) (int64, bool) {
			other := l.clone()
			if r.IntN(2) == 0 {
				other.p256 = p256("evil")
			} else {
				other.ed = ed("evil")
			}
			q.Data = other.export(o)
			return 0, true
		}},
		tamper{"a key that was replaced signs", func(r *rand.Rand, l *aLog, o order, q *question) (int64, bool) {
			if len(l.turns) == 0 || o.end < l.turns[0].size {
				return 0, false
			}
			other := l.clone()
			other.turns = other.turns[1:]
			q.Data = other.export(o)
			return 0, true
		}},
		tamper{"the newer signature is removed", func(r *rand.Rand, l *aLog, o order, q *question) (int64, bool) {
			if len(l.turns) == 0 || o.end < l.turns[0].size || o.end >= l.turns[0].size+overlap {
				return 0, false
			}
			other := l.clone()
			other.turns = other.turns[1:]
			note := strings.ReplaceAll(other.note(o.end), "\n", `\n`)
			q.Data = bytes.Replace(q.Data, []byte(strings.ReplaceAll(l.note(o.end), "\n", `\n`)), []byte(note), 1)
			return 0, true
		}},
		tamper{"an older JWKS", func(r *rand.Rand, l *aLog, o order, q *question) (int64, bool) {
			if len(l.turns) == 0 || o.first >= l.turns[0].size || o.end < l.turns[0].size {
				return 0, false
			}
			other := l.clone()
			other.turns = other.turns[1:]
			set, err := (evidence.KeySet{Keys: []evidence.Key{mustKey(l.p256), mustKey(l.ed)}}).JWKS()
			if err != nil {
				panic(err)
			}
			q.JWKS = string(set)
			return 0, true
		}},
		tamper{"another JWKS", func(r *rand.Rand, l *aLog, o order, q *question) (int64, bool) {
			q.JWKS = []string{
				``, `{}`, `{"keys":[]}`, strings.Replace(q.JWKS, "ES256", "HS256", 1), strings.Replace(q.JWKS, `"kty":"EC"`, `"kty":"oct"`, 1),
				strings.Replace(q.JWKS, `"sig"`, `"enc"`, 1), q.JWKS[:len(q.JWKS)/2],
			}[r.IntN(7)]
			return 0, true
		}},
		prover("an entry is changed, and everything signed again", func(r *rand.Rand, l *aLog, at int) {
			rows := append([]evidence.ExportRow(nil), l.rows...)
			rows[at].Bytes = bytes.Replace(rows[at].Bytes, []byte("gpt-4o"), []byte("gpt-3x"), 1)
			if bytes.Equal(rows[at].Bytes, l.rows[at].Bytes) {
				rows[at].Bytes = append(bytes.Clone(rows[at].Bytes), 0xfe)
			}
			l.rebuild(rows)
		}),
		prover("an entry is removed, and everything signed again", func(r *rand.Rand, l *aLog, at int) {
			rows := append([]evidence.ExportRow(nil), l.rows[:at]...)
			rows = append(rows, l.rows[at+1:]...)
			l.rebuild(rows)
		}),
		prover("an entry is added, and everything signed again", func(r *rand.Rand, l *aLog, at int) {
			rows := append([]evidence.ExportRow(nil), l.rows[:at]...)
			more := l.rows[at]
			more.AppendedAt = more.AppendedAt.Add(-time.Microsecond)
			more.WriterSeq += 1000
			rows = append(append(rows, more), l.rows[at:]...)
			l.rebuild(rows)
		}),
		prover("a time is changed, and everything signed again", func(r *rand.Rand, l *aLog, at int) {
			rows := append([]evidence.ExportRow(nil), l.rows...)
			rows[at].AppendedAt = rows[at].AppendedAt.Add(time.Microsecond)
			if rows[at].Kind == "malformed" {
				rows[at].Time = rows[at].AppendedAt
			}
			l.rebuild(rows)
		}),
		prover("the end is cut, and everything signed again", func(r *rand.Rand, l *aLog, at int) {
			l.rows = l.rows[:at]
			rows := l.rows
			l.rebuild(rows)
			l.began = l.began.Add(time.Hour) // signed later
		}),
	}
	return out
}

// Every tamper is caught by both verifiers with public keys, and with one checkpoint that the
// auditor kept where the attacker has every key.
func TestTampers(t *testing.T) {
	logs := []*aLog{newLog("org_1"), newLog("org_1")}
	logs[0].add(60, "x")
	logs[1].add(20, "x")
	logs[1].rotate(p256("c"))
	logs[1].add(9, "x")
	logs[1].rotate(ed("d"))
	logs[1].add(29, "x")
	py := startSecond(t)
	kinds := allTampers()
	count := make(map[string]int)
	codes := make(map[int]int)
	r := rand.New(rand.NewPCG(3, 4))
	for i, done := 0, 0; done < *tampers; i++ {
		kind, l := kinds[i%len(kinds)], logs[i/len(kinds)%2]
		o := randomOrder(r, l)
		q := question{Command: "chain", JWKS: jwks(t, l.keys(t)), Data: l.export(o)}
		if r.IntN(4) == 0 {
			q.MAC = hex.EncodeToString(l.key)
		}
		want, ok := kind.apply(r, l, o, &q)
		if !ok {
			continue // this export has nothing of the kind
		}
		done++
		count[kind.name]++
		v := py.both(kind.name, q)
		codes[v.Exit]++
		if v.Exit == evidence.Intact {
			t.Errorf("%s: not caught: %+v", kind.name, o)
		}
		var from, to int64
		if n, _ := fmt.Sscanf(v.Where, "entries %d to %d", &from, &to); n < 2 {
			fmt.Sscanf(v.Where, "entry %d", &from)
			to = from
		}
		// The entry behind the changed one can be the one that contradicts it.
		if want > 0 && v.Exit == evidence.Tampered && from > 0 && (want < from-1 || want > to) {
			t.Errorf("%s: entry %d was changed, and the verdict is %s: %s", kind.name, want, v.Where, v.Problem)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d tampers of %d kinds: all caught; exit codes %v", *tampers, len(count), codes)
	for _, kind := range kinds {
		if *tampers >= 10*len(kinds) && count[kind.name] == 0 {
			t.Errorf("no tamper of the kind %s", kind.name)
		}
	}
}
