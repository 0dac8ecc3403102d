package identity_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/identity"
)

// wrap breaks a text into lines, as base64 (76) and openssl (64) do.
func wrap(text string, width int, end string) string {
	var b strings.Builder
	for len(text) > width {
		b.WriteString(text[:width] + end)
		text = text[width:]
	}
	return b.String() + text + end
}

// quoted is a text as a string of JSON.
func quoted(text string) string {
	b, _ := json.Marshal(text)
	return string(b)
}

// each replaces each byte of a text that is in set.
func each(text, set, format string) string {
	var b strings.Builder
	for _, c := range []byte(text) {
		if strings.IndexByte(set, c) >= 0 {
			fmt.Fprintf(&b, format, c)
			continue
		}
		b.WriteByte(c)
	}
	return b.String()
}

// Keys and tokens are found in every encoding that a receiver would decode.
func TestFindEncoded(t *testing.T) {
	x := newTrust(t)
	credentials := map[string]func([]byte) bool{
		x.cluster.sign(t, x.cluster.header(), k8sClaims(cluster).with(nil)): x.issuers.Find,
		x.corp.sign(t, x.corp.header(), svidClaims().with(nil)):             x.issuers.Find,
	}
	for _, k := range kinds {
		credentials[mint(t, k, "encoded")] = identity.FindSecrets
	}
	const all = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
	for c, find := range credentials {
		texts := map[string]string{
			"plain": c, "all escaped": each(c, all, `\u%04x`), "upper": each(c, "_.jJ", `\u%04X`), "percent": each(c, all, "%%%02x"), "a broken escape": each(c, "_.", "%%%02X") + "/%zz",
			"percent in percent": each(each(c, "_.", "%%%02x"), "%", "%%%02x"), "JSON in JSON": quoted(quoted(c + `"`)), "escape in JSON": each(c, "_.", `\\u%04x`), "twice": each(c, "_.", `\\\\u%04x`),
			"percent in JSON": each(each(c, "_.", "%%%02x"), "%", `\u%04x`),
		}
		for i := range 4 {
			plain := strings.Repeat("?", i) + c + "~?"
			for alphabet, coder := range map[string]*base64.Encoding{"std": base64.StdEncoding, "raw": base64.RawStdEncoding, "url": base64.URLEncoding} {
				coded := coder.EncodeToString([]byte(plain))
				long := coder.EncodeToString([]byte(strings.Repeat("?>", 501) + plain))
				for name, text := range map[string]string{
					"": coded, "in JSON": quoted("see:\n" + coded), "data URL": "data:a/b;base64," + coded + "==x", "escaped": url.QueryEscape(coded), "all escaped": each(coded, all+"+/=", `\u%04x`),
					"slashes": strings.ReplaceAll(coded, "/", `\/`), "long": long, "long, slashes": strings.ReplaceAll(long, "/", `\/`),
					"after padding": base64.StdEncoding.EncodeToString([]byte("x")) + coded, "after base64": base64.StdEncoding.EncodeToString([]byte(strings.Repeat("y", 61))) + coded,
					"after a decoy": "?haWRfV5SjV5Sg" + strings.Repeat("A", i) + coded, "after two": "?FpZFuZXlKLmV5Sg" + strings.Repeat("A", i) + coded, "lines of 76": wrap(coded, 76, "\n"), "of 64": wrap(coded, 64, "\r\n"), "of 5": wrap(coded, 5, "\n"), "of 1": wrap(coded, 1, "\n"), "in JSON, of 76": quoted(wrap(coded, 76, "\n")), "in JSON, of 64": quoted(wrap(long, 64, "\r\n")),
					"in JSON in JSON, of 20": quoted(quoted(wrap(coded, 20, "\n"))), "indented": wrap(coded, 64, "\n   \t"), "indented in JSON": quoted(wrap(coded, 64, "\n    ")), "percent, of 76": url.QueryEscape(wrap(coded, 76, "\r\n")),
				} {
					texts[fmt.Sprintf("base64 %s %d %s", alphabet, i, name)] = text
				}
			}
		}
		for name, text := range texts {
			for _, around := range []string{"%s", `{"content":"%s"}`, "x %s y"} {
				if !find(fmt.Appendf(nil, around, text)) {
					t.Errorf("%s of %.8s is not found in %s", name, c, around)
				}
			}
		}
	}
}

// An image has no credential. The cost of hostile texts is linear: a quadratic one would take
// hours for a MiB.
func TestFindIsLinear(t *testing.T) {
	x := newTrust(t)
	image := make([]byte, 2<<20)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(image)
	coded := base64.StdEncoding.EncodeToString(image)
	for name, text := range map[string]string{
		"image": coded, "in lines": wrap(coded, 76, "\n"), "in JSON": quoted(wrap(coded, 76, "\r\n")), "slashes": strings.ReplaceAll(coded, "/", `\/`), "percent": strings.ReplaceAll(coded, "/", "%2f"),
	} {
		if identity.FindSecrets([]byte(text)) || x.issuers.Find([]byte(text)) {
			t.Errorf("a credential is found in an %s", name)
		}
	}
	for _, part := range []string{"YWlkX", "FpZF", "haWRf", "LmV5S", "YWlkX3NrXw", "\n", "\n ", `\n `, `\n`, `\`, `\\`, "%25", `\u005c`, `\u005cu00`, "%", `\u00`, "aid_sk_", "A\n", strings.Repeat("A", 48) + "\n" + strings.Repeat(" ", 1000)} {
		text := bytes.Repeat([]byte(part), 1<<20/len(part))
		if identity.FindSecrets(text) || x.issuers.Find(text) {
			t.Errorf("found in repeated %.10q", part)
		}
	}
}

// BenchmarkFind reads 100 KB without a credential.
func BenchmarkFind(b *testing.B) {
	x := newTrust(b)
	const size = 100_000
	fill := func(s string) []byte { return []byte(strings.Repeat(s, size/len(s)+1)[:size]) }
	image := make([]byte, size*3/4)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(image)
	for _, c := range []struct {
		name string
		body []byte
	}{
		{"chat", fill(`{"role":"user","content":"What did the tool_call say about the aide? She said: add a day, in full.\n50% of it"},`)},
		{"accents", fill(`{"role":"user","content":"Das m\u00fc\u00dfte man pr\u00fcfen, sagte sie.\n"},`)},
		{"escaped code", fill(`if a \u003c b \u0026\u0026 c { return d[e] }\n`)},
		{"underscores", fill(`{"role":"user","content":"tool\u005fcall_id of the agent\n"},`)},
		{"image", []byte(base64.StdEncoding.EncodeToString(image))},
		{"image in lines", []byte(quoted(wrap(base64.StdEncoding.EncodeToString(image), 76, "\n")))},
	} {
		for name, find := range map[string]func([]byte) bool{"keys": identity.FindSecrets, "tokens": x.issuers.Find} {
			b.Run(c.name+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if find(c.body) {
						b.Fatal("found")
					}
				}
			})
		}
	}
}
