package identity_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/ai-identity/ai-identity/identity"
)

func seeded(s string) *rand.ChaCha8 { return rand.NewChaCha8(sha256.Sum256([]byte(s))) }

func mint(t testing.TB, k identity.Kind, seed string) string {
	t.Helper()
	secret, hash, err := identity.Mint(k, seeded(seed))
	if err != nil {
		t.Fatal(err)
	}
	if hash != sha256.Sum256([]byte(secret)) {
		t.Errorf("hash is not the SHA-256 of the secret")
	}
	return secret
}

var kinds = []identity.Kind{identity.AgentKey, identity.OrgKey, identity.NodeToken}

func TestMintAndParse(t *testing.T) {
	pattern := regexp.MustCompile("^" + identity.Pattern + "$")
	src := seeded("mint")
	seen := map[string]bool{}
	for range 2000 {
		for _, k := range kinds {
			secret, hash, err := identity.Mint(k, src)
			if err != nil {
				t.Fatal(err)
			}
			if seen[secret] {
				t.Fatalf("made %q twice", secret)
			}
			seen[secret] = true
			if !pattern.MatchString(secret) || !strings.HasPrefix(secret, k.Prefix()) {
				t.Fatalf("%q does not match the documented pattern", secret)
			}
			gotKind, gotHash, err := identity.Parse(secret)
			if err != nil || gotKind != k || gotHash != hash {
				t.Fatalf("Parse = %v, %x, %v", gotKind, gotHash, err)
			}
			if !identity.FindSecrets([]byte(secret)) {
				t.Fatalf("%q is not found", secret)
			}
		}
	}
}

// The form never changes: keys are in the hands of people. The first is all zero
// bits, the last all one; computed with Python's integers and zlib.crc32.
func TestForm(t *testing.T) {
	for _, tc := range []struct {
		kind    identity.Kind
		entropy byte
		want    string
	}{
		{identity.AgentKey, 0x00, "aid_sk_00000000000000000000000000000000000000000002SlnBN"},
		{identity.OrgKey, 0x00, "aid_org_000000000000000000000000000000000000000000032ttCp"},
		{identity.NodeToken, 0xff, "aid_node_yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp11heirr"},
	} {
		got, _, err := identity.Mint(tc.kind, bytes.NewReader(bytes.Repeat([]byte{tc.entropy}, 32)))
		if err != nil || got != tc.want {
			t.Errorf("Mint = %q, %v, want %q", got, err, tc.want)
		}
	}
}

func TestMintFails(t *testing.T) {
	if s, _, err := identity.Mint(identity.AgentKey, iotest.ErrReader(errors.New("no entropy"))); err == nil || s != "" {
		t.Errorf("Mint without entropy = %q, %v", s, err)
	}
	if s, _, err := identity.Mint(identity.AgentKey, strings.NewReader("short")); err == nil || s != "" {
		t.Errorf("Mint with little entropy = %q, %v", s, err)
	}
	for _, k := range []identity.Kind{0, -1, 4} {
		if s, _, err := identity.Mint(k, seeded("x")); err == nil || s != "" {
			t.Errorf("Mint(%d) = %q, %v", k, s, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	key := mint(t, identity.AgentKey, "refuse")
	bad := map[string]string{
		"empty": "", "prefix alone": "aid_sk_", "cut": key[:len(key)-1], "longer": key + "0", "space before": " " + key, "space after": key + " ",
		"line end": key + "\n", "upper": strings.ToUpper(key), "kind swapped": "aid_org_" + key[len("aid_sk_"):], "unknown kind": "aid_xx_" + key[len("aid_sk_"):],
		"placeholder": "aid_sk_your_agent_key", "OpenAI's": "sk-proj-" + strings.Repeat("a", 48), "nul": key[:20] + "\x00" + key[21:],
		"full-width": strings.Replace(key, "aid", "ａｉｄ", 1), "quote": "' OR 1=1 --", "1 MB": strings.Repeat("a", 1<<20), "1 MB of a key": key + strings.Repeat("a", 1<<20),
		"its own hash": "aid_sk_" + strings.Repeat("0a", 32),
	}
	for name, s := range bad {
		k, hash, err := identity.Parse(s)
		if err == nil || k != 0 || hash != [32]byte{} {
			t.Errorf("%s: Parse = %v, %x, %v", name, k, hash, err)
			continue
		}
		if len(s) > 7 && strings.Contains(err.Error(), s[:8]) {
			t.Errorf("%s: the error quotes: %v", name, err)
		}
	}
	// The checksum detects every single wrong character.
	for i := len("aid_sk_"); i < len(key); i++ {
		for _, c := range "0Zz" {
			typo := key[:i] + string(c) + key[i+1:]
			if typo == key {
				continue
			}
			if _, _, err := identity.Parse(typo); err == nil {
				t.Fatalf("a key with character %d wrong is taken", i)
			}
		}
	}
}

func TestFindSecrets(t *testing.T) {
	for _, k := range kinds {
		key := mint(t, k, "find")
		for name, text := range map[string]string{
			"alone": key, "in JSON": `{"messages":[{"content":"my key is ` + key + ` please"}]}`, "at the end": "aid_sk_ aid_" + key, "in a URL": "/v1?key=" + key + "&x=1",
			"glued": "xx" + key + "yy", "after one cut short": key[:20] + key, "after a near miss": "aid_sk_" + strings.Repeat("a", 49) + key, "twice": key + key,
		} {
			if !identity.FindSecrets([]byte(text)) {
				t.Errorf("%s: %s is not found", name, k.Prefix())
			}
		}
		for name, text := range map[string]string{
			"nothing": "", "the word": "Agent keys begin with " + k.Prefix() + " and are shown once.", "placeholder": k.Prefix() + "your_agent_key",
			"cut short": key[:len(key)-1], "split": key[:20] + " " + key[20:], "checksum wrong": key[:len(key)-1] + "!", "another checksum": swapLast(key),
			"upper": strings.ToUpper(key), "documentation": "curl -H 'Authorization: Bearer " + k.Prefix() + strings.Repeat("x", 49) + "'",
		} {
			if identity.FindSecrets([]byte(text)) {
				t.Errorf("%s: found in %q", name, text)
			}
		}
	}
}

func swapLast(s string) string {
	c := byte('0')
	if s[len(s)-1] == c {
		c = '1'
	}
	return s[:len(s)-1] + string(c)
}

func TestHint(t *testing.T) {
	key := mint(t, identity.AgentKey, "hint")
	if h := identity.Hint(key); len(h) != 4 || !strings.HasSuffix(key, h) {
		t.Errorf("Hint = %q", h)
	}
	if h := identity.Hint("ab"); h != "ab" {
		t.Errorf("Hint of a short text = %q", h)
	}
}

func FuzzParse(f *testing.F) {
	pattern := regexp.MustCompile("^" + identity.Pattern + "$")
	for _, k := range kinds {
		key := mint(f, k, "fuzz")
		f.Add(key)
		f.Add(key[:len(key)-1])
		f.Add(swapLast(key))
	}
	f.Add("aid_sk_")
	f.Fuzz(func(t *testing.T, s string) {
		k, hash, err := identity.Parse(s)
		if err != nil {
			if k != 0 || hash != [32]byte{} {
				t.Errorf("an error with a result")
			}
			return
		}
		if !pattern.MatchString(s) || !strings.HasPrefix(s, k.Prefix()) || hash != sha256.Sum256([]byte(s)) {
			t.Errorf("Parse took %q as %v", s, k)
		}
		if !identity.FindSecrets([]byte(s)) {
			t.Errorf("Parse takes %q, FindSecrets does not find it", s)
		}
	})
}

// FindSecrets finds what a slow and plain search finds, and more only in encodings.
func FuzzFindSecrets(f *testing.F) {
	for _, k := range kinds {
		key := mint(f, k, "fuzz")
		f.Add([]byte("x" + key + "y"))
		f.Add([]byte(key[:30] + key))
		f.Add([]byte(swapLast(key) + "aid_aid_" + key[:50]))
	}
	pattern := regexp.MustCompile(identity.Pattern)
	f.Fuzz(func(t *testing.T, b []byte) {
		want := false
		for i := range b {
			if loc := pattern.FindIndex(b[i:]); loc != nil && loc[0] == 0 {
				if _, _, err := identity.Parse(string(b[i : i+loc[1]])); err == nil {
					want = true
				}
			}
		}
		encoded := bytes.ContainsAny(b, `\%`) || len(b) >= 75 // the length of a key in base64
		if got := identity.FindSecrets(b); got != want && (want || !encoded) {
			t.Errorf("FindSecrets(%q) = %v, want %v", b, got, want)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	key := mint(b, identity.AgentKey, "bench")
	for name, s := range map[string]string{"key": key, "typo": swapLast(key), "junk of 1 MB": strings.Repeat("aid_sk_", 150_000)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				identity.Parse(s) //nolint:errcheck // its cost is what counts
			}
		})
	}
}

// BenchmarkFindSecrets reads 2 MB. The last three are what somebody would send to
// make it slow.
func BenchmarkFindSecrets(b *testing.B) {
	const size = 2 << 20
	fill := func(s string) []byte { return []byte(strings.Repeat(s, size/len(s)+1)[:size]) }
	for _, tc := range []struct {
		name string
		body []byte
	}{
		{"chat", fill(`{"role":"user","content":"What did the tool_call said_about say of the aide and the mermaid_s paid_in_full invoice? She said: “add a day.”\n"},`)},
		{"code", fill("\tfor _, tool_call_id := range said_about_agent_key { add_a_raid_to(a.aaa_aaa, paid_amount_usd) }\\n")},
		{"hostile: aid_", fill("aid_")},
		{"hostile: prefixes", fill("aid_sk_")},
		{"hostile: shaped", fill("aid_sk_" + strings.Repeat("a", 49))},
	} {
		b.Run(tc.name, func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				if identity.FindSecrets(tc.body) {
					b.Fatal("found")
				}
			}
		})
	}
}
