package extproc

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
)

const testSecret = "sk-provider/0123+456=789_abc"

func newRedactor() *redactor { return &redactor{patterns: newPatterns([]string{testSecret})} }

// everyByte spells each byte of s with format.
func everyByte(s, format string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		fmt.Fprintf(&b, format, c)
	}
	return b.String()
}

// quoted is s as it stands in a JSON string.
func quoted(s string) string {
	b, _ := json.Marshal(s)
	return string(b[1 : len(b)-1])
}

// wrapped is s with line after every n characters.
func wrapped(s string, n int, line string) string {
	var b strings.Builder
	for len(s) > n {
		b.WriteString(s[:n] + line)
		s = s[n:]
	}
	return b.String() + s
}

// spellings are the forms in which a response may contain the secret.
func spellings(secret string) map[string]string {
	all := map[string]string{
		"raw":             secret,
		"slashes":         strings.ReplaceAll(secret, "/", `\/`),
		"one escape":      strings.ReplaceAll(secret, "+", `\u002b`),
		"upper case":      strings.ReplaceAll(secret, "+", `\u002B`),
		"all escaped":     everyByte(secret, `\u%04x`),
		"all, upper":      everyByte(secret, `\u%04X`),
		"nested":          quoted(everyByte(secret, `\u%04x`)),
		"nested twice":    quoted(quoted(everyByte(secret, `\u%04x`))),
		"escaped escape":  everyByte(everyByte(secret, `\u%04x`), `\u%04x`),
		"js":              everyByte(secret, `\x%02x`),
		"braces":          everyByte(secret, `\u{%x}`),
		"query":           url.QueryEscape(secret),
		"query, lower":    strings.ToLower(url.QueryEscape(secret)),
		"percent":         everyByte(secret, "%%%02X"),
		"percent twice":   url.QueryEscape(everyByte(secret, "%%%02x")),
		"percent in JSON": strings.ReplaceAll(everyByte(secret, "%%%02x"), "%", `\u0025`),
		"html":            everyByte(secret, "&#%d;"),
		"html, hex":       everyByte(secret, "&#x%x;"),
		"html, named":     strings.NewReplacer("+", "&plus;", "/", "&sol;", "=", "&equals;").Replace(secret),
		"hex":             hex.EncodeToString([]byte(secret)),
		"hex, upper":      strings.ToUpper(hex.EncodeToString([]byte(secret))),
		"markdown":        strings.ReplaceAll(secret, "_", `\_`),
		"after percent":   "100%" + secret,
	}
	var wide []byte
	for _, u := range utf16.Encode([]rune(secret)) {
		wide = append(wide, byte(u), 0)
	}
	all["utf-16"] = string(wide)
	for name, line := range map[string]string{"LF": "\n", "CRLF": "\r\n", "JSON": `\n`, "CRLF in JSON": `\r\n`, "nested": `\\r\\n`, "indented": "\n    ", "data": "\ndata: "} {
		all["base64, wrapped, "+name] = wrapped(base64.StdEncoding.EncodeToString([]byte(secret)), 9, line)
		all["base64, wrapped, escaped, "+name] = strings.ReplaceAll(wrapped(base64.StdEncoding.EncodeToString([]byte("a"+secret)), 16, line), "/", `\/`)
		all["hex, wrapped, "+name] = wrapped(hex.EncodeToString([]byte(secret)), 16, line)
		all["wrapped, "+name] = wrapped(secret, 10, line)
	}
	for _, before := range []string{"", "a", "ab", "user:"} {
		for _, after := range []string{"", "z", "zz"} {
			for name, e := range map[string]*base64.Encoding{"std": base64.StdEncoding, "url": base64.URLEncoding, "raw": base64.RawStdEncoding, "raw url": base64.RawURLEncoding} {
				text := e.EncodeToString([]byte(before + secret + after))
				all[fmt.Sprintf("base64 %s %q %q", name, before, after)] = text
				all[fmt.Sprintf("base64 %s %q %q, escaped", name, before, after)] = strings.NewReplacer("/", `\/`, "+", `\u002b`, "=", "%3D").Replace(text)
				all[fmt.Sprintf("base64 %s %q %q, percent", name, before, after)] = url.QueryEscape(text)
			}
		}
	}
	return all
}

// redacted returns text after redaction, when it arrives in these chunks.
func redacted(t *testing.T, text string, pieces ...string) string {
	t.Helper()
	r := newRedactor()
	var got []byte
	for i, p := range pieces {
		in := []byte(p)
		out, _ := r.pass(in, i == len(pieces)-1)
		if string(in) != p {
			t.Fatal("the chunk was written to")
		}
		got = append(got, out...)
	}
	if len(got) != len(text) || r.holds() {
		t.Fatalf("%d bytes of %d, held: %v", len(got), len(text), r.holds())
	}
	return string(got)
}

// TestRedactorSpellings: the secret is found in every spelling, for every split of the
// response, and everything around it passes.
func TestRedactorSpellings(t *testing.T) {
	for name, spelled := range spellings(testSecret) {
		t.Run(name, func(t *testing.T) {
			const before, after = `data: {"echo": "`, `", "x": 1}` + "\n\n"
			text := before + spelled + after
			want := redacted(t, text, text)
			if !strings.HasPrefix(want, before) || !strings.HasSuffix(want, after) {
				t.Fatalf("more is gone: %q", want)
			}
			kept := strings.ReplaceAll(want[len(before):len(want)-len(after)], "*", "")
			if most := map[bool]int{true: 16, false: 4}[strings.Contains(name, "base64")]; len(kept) > most {
				t.Fatalf("too much is left: %q", want)
			}
			if !newRedactor().in([]byte(spelled)) {
				t.Error("not found in a header")
			}
			for i := range text {
				if got := redacted(t, text, text[:i], text[i:]); got != want {
					t.Fatalf("cut at %d:\n%q\n%q", i, got, want)
				}
			}
			single := strings.Split(text, "")
			if got := redacted(t, text, single...); got != want {
				t.Fatalf("byte by byte:\n%q\n%q", got, want)
			}
		})
	}
}

// TestRedactorHolds: no chunk ends with the beginning of a secret, and an ordinary
// event is not held back.
func TestRedactorHolds(t *testing.T) {
	for name, spelled := range spellings(testSecret) {
		r := newRedactor()
		if name == "after percent" || name == "utf-16" || strings.HasPrefix(name, "base64") {
			continue // characters before the form pass
		}
		for i := 1; i < len(spelled); i++ {
			r.held = nil
			if out, _ := r.pass([]byte(spelled[:i]), false); len(out) > 0 {
				t.Fatalf("%s: %q is out before it is known what it is", name, out)
			}
		}
	}
	r := newRedactor()
	for _, event := range []string{"data: {\"a\":\"sk-\\n\\\"\"}\n\n", ": s\n\n", "100%\r\n\r\n", "data: s\r\r", "s k- &amp; \u00e9"} {
		if out, blanked := r.pass([]byte(event), false); string(out) != event || blanked {
			t.Errorf("%q became %q", event, out)
		}
	}
}

func TestUnreadable(t *testing.T) {
	for _, c := range []struct {
		encoding, kind string
		passes         bool
	}{
		{"", "application/json", true},
		{"identity", "application/json; charset=utf-8", true},
		{"", `application/json; charset="UTF-8"`, true},
		{"", "text/event-stream;charset=us-ascii", true},
		{"", "text/html; charset=iso-8859-1", true},
		{"", "audio/mpeg", true},
		{"", "", true},
		{"gzip", "application/json", false},
		{"identity, br", "application/json", false},
		{"GZIP", "text/html", false},
		{"aes128gcm", "", false},
		{"", "application/json; charset=utf-16", false},
		{"", "application/json; charset=iso-8859-1", false},
		{"", "text/event-stream; x=y; Charset=UTF-7", false},
		{"", "text/plain; charset=ibm037", false},
		{"", "application/problem+json; charset='utf-32'", false},
	} {
		if why := unreadable(c.encoding, c.kind); (why == "") != c.passes {
			t.Errorf("%q %q: %q", c.encoding, c.kind, why)
		}
	}
}

// FuzzRedactor: the result does not depend on the split of the response, and the secret
// never passes.
func FuzzRedactor(f *testing.F) {
	for _, spelled := range spellings(testSecret) {
		f.Add([]byte("x"+spelled+"y"), uint8(3))
	}
	f.Fuzz(func(t *testing.T, text []byte, size uint8) {
		whole, _ := newRedactor().pass(text, true)
		if bytes.Contains(whole, []byte(testSecret)) || len(whole) != len(text) {
			t.Fatalf("%q became %q", text, whole)
		}
		r := newRedactor()
		var got []byte
		for rest := text; ; {
			n := min(int(size)+1, len(rest))
			out, _ := r.pass(rest[:n], n == len(rest))
			got = append(got, out...)
			if rest = rest[n:]; len(rest) == 0 {
				break
			}
		}
		if newRedactor().in(whole) != newRedactor().in(got) || len(got) != len(text) {
			t.Fatalf("in chunks of %d: %q became %q, at once %q", int(size)+1, text, got, whole)
		}
	})
}

func BenchmarkRedactor(b *testing.B) {
	event := []byte(`data: {"id":"chatcmpl-9aB","object":"chat.completion.chunk","created":1782907200,"model":"gpt-4o-mini-2024-07-18","service_tier":"default","system_fingerprint":"fp_560af6e559","choices":[{"index":0,"delta":{"content":" hello\n"},"logprobs":null,"finish_reason":null}]}` + "\n\n")
	b.Run("event", func(b *testing.B) {
		r := redactor{patterns: newPatterns([]string{"sk-proj-" + strings.Repeat("aB3_x-Yz", 20)})}
		b.ReportAllocs()
		b.SetBytes(int64(len(event)))
		for range b.N {
			r.pass(event, false)
		}
	})
	b.Run("new", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			newPatterns([]string{"sk-proj-" + strings.Repeat("aB3_x-Yz", 20)})
		}
	})
}

// TestRedactorDisguised: a compressed response without content-encoding is detected by its
// first bytes, for every split.
func TestRedactorDisguised(t *testing.T) {
	for _, c := range []struct {
		body, kind string
		passes     bool
	}{
		{"\x1f\x8b\x08\x00\x00", "application/json", false},
		{"\x1f\x8b\x08\x00\x00", "", false},
		{"\x28\xb5\x2f\xfd\x04", "text/event-stream", false},
		{"\x28\xb5\x2f\xfd\x04", "text/plain", false},
		{"\x78\x9c\xab\x56\x4a", "application/octet-stream", false},
		{"\x78\x5e\xab\x56\x4a", "text/event-stream; charset=utf-8", false},
		{"BZh91AY", "application/json", false},
		{"\x1b\x0d\x00\xf8", "application/json", false}, // brotli has no magic bytes
		{"\x0b\x02\x80{\"a\"", "application/problem+json", false},
		{"!a", "text/event-stream", false},
		{`{"a":1}`, "application/json", true},
		{"\ufeff {}", "application/json", true},
		{" \n[1]", "application/x-ndjson", true},
		{"null", "application/json", true},
		{"data: x\n\n", "text/event-stream", true},
		{": hi\n\n", "text/event-stream", true},
		{"\r\nevent: x\n", "text/event-stream", true},
		{`{"error":"x"}`, "text/event-stream", true},
		{"", "application/json", true},
		{"ID3\x04", "audio/mpeg", true},
		{"x", "text/plain", true},
	} {
		for _, pieces := range [][]string{{c.body}, strings.Split(c.body, "")} {
			r, found := newRedactor(), false
			for _, p := range pieces {
				found = r.disguised([]byte(p), formOf(c.kind)) || found
			}
			if found == c.passes {
				t.Errorf("%q as %s, in %d chunks: %t", c.body, c.kind, len(pieces), found)
			}
		}
	}
}

// TestPatternsForgotten: secrets are forgotten with the snapshot of providers that has them.
func TestPatternsForgotten(t *testing.T) {
	var s Server
	snapshot := func() *provider.Registry {
		r, err := provider.NewRegistry([]provider.Provider{{ID: "p", Name: "one", Kind: "openai", Models: []string{"*"}}}, policy.Matches)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	old, now := snapshot(), snapshot()
	first := s.patternsOf(old, "p", []string{testSecret})
	if first == nil || s.patternsOf(old, "p", []string{testSecret}) != first {
		t.Error("they are made for each request")
	}
	s.patternsOf(now, "p", []string{"another-secret"})
	runtime.KeepAlive(old)
	old = nil
	kept := func() (n int) {
		s.patterns.Range(func(_, _ any) bool { n++; return true })
		return n
	}
	for deadline := time.Now().Add(20 * time.Second); kept() > 1 && time.Now().Before(deadline); {
		runtime.GC()
		runtime.Gosched()
	}
	if n := kept(); n != 1 {
		t.Errorf("%d providers' secrets are kept, want 1", n)
	}
	runtime.KeepAlive(now)
}
