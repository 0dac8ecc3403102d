package extproc_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/ai-identity/ai-identity/extproc"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/provider/prices"
)

var update = flag.Bool("update", false, "rewrite the wants of testdata/*.txt")

// TestScripts plays testdata/*.txt. Each is one exchange, written for readers who do not
// read Go:
//
//	caller            JSON that changes the agent or the key: {"agent": {…}, "key": {…}}
//	provider          JSON of the provider that has every model, in the place of the one of kind openai: {"kind": …, "settings": {…}}
//	policy …          one policy document each, as in POST /v1/policies
//	prices            a file for --prices; without it no cost is known
//	world             what is broken, a line each: "audit is down", "directory is stale",
//	                  "policies are unavailable", "decide panics", "record returns an error", …
//	request           the first line, headers, a blank line, the body; $KEY is the agent's key, $ORGKEY an org's
//	answer            the provider's; "…" alone on a line separates the pieces in which it comes
//	want upstream     what the provider gets
//	want client       what the client gets, or how the stream ended
//	want audit        the entries, in order
//
// Each want is complete, even with lines that are alike in every exchange (ids of time,
// user agent). A line that is not shown is not tested.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { script(t, file) })
	}
}

func script(t *testing.T, file string) {
	ar, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var o options
	section := func(name string) (string, bool) {
		for _, f := range ar.Files {
			if f.Name == name {
				return string(f.Data), true
			}
		}
		return "", false
	}
	if text, ok := section("caller"); ok {
		var c struct{ Agent, Key json.RawMessage }
		unmarshal(t, text, &c)
		o.agent = func(a *identity.Agent) { unmarshal(t, string(c.Agent), a) }
		o.caller = func(k *identity.Key) { unmarshal(t, string(c.Key), k) }
	}
	if text, ok := section("provider"); ok {
		p := provider.Provider{
			ID: "prov_two", OrgID: "org_acme", Name: "two", BaseURL: "http://127.0.0.1:1", Models: []string{"*"},
			Credential: provider.NewSecret(providerKey), HasCredential: true,
		}
		unmarshal(t, text, &p)
		o.providers = []provider.Provider{p}
	}
	for _, f := range ar.Files {
		if strings.HasPrefix(f.Name, "policy") {
			o.policies = append(o.policies, string(f.Data))
		}
	}
	broken, _ := section("world")
	list, priced := section("prices")
	o.config = func(c *extproc.Config) {
		extproc.SetFault(c, faultOf(broken))
		if priced {
			if c.Pricer, err = prices.Load([]byte(list)); err != nil {
				t.Fatal(err)
			}
		}
	}
	w := serve(t, o)
	for line := range strings.Lines(broken) {
		switch strings.TrimSpace(line) {
		case "audit is down":
			w.record.fail = func(string) (bool, error) { return false, errors.New("disk full") }
		case "audit fails, but the entry was kept":
			w.record.fail = func(string) (bool, error) { return true, errors.New("fsync: input/output error") }
		case "a request was made just now":
			answer, pieces := ok()
			w.play(context.Background(), w.chat("small"), answer, pieces)
			w.idle()
			w.record.entries = nil
		case "directory is stale":
			w.dir.err = errors.New("stale for 11m")
		case "policies are unavailable":
			w.dir.orgErr = errors.New("not received yet")
		}
	}

	text, _ := section("request")
	req := parseMessage(t, w, text, true)
	var answer *message
	var pieces [][]byte
	if text, ok := section("answer"); ok {
		m := parseMessage(t, w, text, false)
		answer = &m
		for p := range bytes.SplitSeq(m.body, []byte("\n…\n")) {
			pieces = append(pieces, p)
		}
	}
	out := w.play(context.Background(), req, answer, pieces)

	var record strings.Builder
	for _, e := range w.entries() {
		var b bytes.Buffer
		if err := json.Indent(&b, []byte(e.json), "", "  "); err != nil {
			t.Fatal(err)
		}
		record.WriteString(b.String() + "\n")
	}
	client := render(out.client)
	if out.err != nil {
		client += "stream: " + out.err.Error() + "\n"
	}
	got := map[string]string{"want upstream": render(out.upstream), "want client": client, "want audit": record.String()}

	// These hold for every script.
	for what, s := range map[string]string{"client": got["want client"], "record": got["want audit"], "log": w.logs.String()} {
		if strings.Contains(s, providerKey) {
			t.Errorf("the provider's key is in the %s", what)
		}
	}
	for what, s := range map[string]string{"upstream": got["want upstream"], "record": got["want audit"], "log": w.logs.String()} {
		if strings.Contains(s, w.key) || strings.Contains(s, w.orgKey) {
			t.Errorf("the caller's key is in the %s", what)
		}
	}

	if *update {
		for name, text := range got {
			i := slices.IndexFunc(ar.Files, func(f txtar.File) bool { return f.Name == name })
			if i < 0 {
				i = len(ar.Files)
				ar.Files = append(ar.Files, txtar.File{Name: name})
			}
			ar.Files[i].Data = []byte(text)
		}
		order := func(name string) int {
			return slices.Index([]string{"want upstream", "want client", "want audit"}, name)
		}
		slices.SortStableFunc(ar.Files, func(a, b txtar.File) int { return order(a.Name) - order(b.Name) })
		if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for _, name := range []string{"want upstream", "want client", "want audit"} {
		want, _ := section(name)
		if d := cmp.Diff(want, got[name]); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// faultOf turns lines like "decide panics", "record closes the stream" and
// "parse returns an error" into a fault.
func faultOf(text string) func(string) error {
	faults := map[string]string{}
	for line := range strings.Lines(text) {
		phase, what, _ := strings.Cut(strings.TrimSpace(line), " ")
		faults[phase] = what
	}
	return func(phase string) error {
		switch faults[phase] {
		case "panics":
			panic("a prompt, perhaps")
		case "closes the stream":
			return extproc.ErrCloseStream
		case "returns an error":
			return errors.New("broken for a test")
		}
		return nil
	}
}

func unmarshal(t *testing.T, text string, v any) {
	t.Helper()
	if text == "" {
		return
	}
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

// parseMessage reads a request ("POST /path") or a response ("200").
func parseMessage(t *testing.T, w *world, text string, request bool) message {
	t.Helper()
	text = strings.NewReplacer("$KEY", w.key, "$ORGKEY", w.orgKey, "$PROVIDERKEY", providerKey).Replace(text)
	head, body, hasBody := strings.Cut(text, "\n\n")
	lines := strings.Split(strings.TrimSuffix(head, "\n"), "\n")
	var m message
	if request {
		method, path, _ := strings.Cut(lines[0], " ")
		m.headers = [][2]string{{":method", method}, {":path", path}, {":authority", "gateway.test"}, {":scheme", "http"},
			{"x-request-id", "req-1"}, {"x-forwarded-for", "198.51.100.1"}, {"x-aid-peer", "203.0.113.9"}}
	} else {
		m.headers = [][2]string{{":status", lines[0]}}
	}
	for _, l := range lines[1:] {
		name, value, ok := strings.Cut(l, ":")
		if !ok {
			t.Fatalf("not a header: %q", l)
		}
		m.headers = append(m.headers, [2]string{name, strings.TrimSpace(value)})
	}
	m.hasBody = hasBody
	m.body = []byte(strings.TrimSuffix(body, "\n"))
	if request && hasBody && m.get("content-length") == "" {
		m.headers = append(m.headers, [2]string{"content-length", strconv.Itoa(len(m.body))})
	}
	return m
}

func render(m *message) string {
	if m == nil {
		return "nothing\n"
	}
	var b strings.Builder
	for _, h := range sorted(m.headers) {
		fmt.Fprintf(&b, "%s: %s\n", h[0], h[1])
	}
	if len(m.body) > 0 {
		fmt.Fprintf(&b, "\n%s\n", bytes.TrimRight(m.body, "\n"))
	}
	return b.String()
}
