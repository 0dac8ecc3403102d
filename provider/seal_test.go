package provider_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/provider"
)

// fernetKey is a key that is b 32 times.
func fernetKey(b byte) string { return base64.URLEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32)) }

func sealer(t testing.TB, keys ...string) *provider.Sealer {
	t.Helper()
	s, err := provider.NewSealer(keys)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSealer(t *testing.T) {
	older, newer := sealer(t, fernetKey(1)), sealer(t, fernetKey(2), fernetKey(1))
	for _, secret := range []string{"sk-hunter2", "", strings.Repeat("x", 10_000), "\x00\xff"} {
		sealed, err := older.Seal([]byte(secret))
		if err != nil || strings.Contains(sealed, "hunter2") {
			t.Fatal(sealed, err)
		}
		again, _ := older.Seal([]byte(secret))
		if again == sealed {
			t.Error("sealed twice alike")
		}
		// Rotation: the new sealer decrypts the old one's tokens, and not the reverse.
		if b, err := newer.Open(sealed); err != nil || string(b) != secret {
			t.Errorf("%q: %q %v", secret, b, err)
		}
		resealed, _ := newer.Seal([]byte(secret))
		if b, err := older.Open(resealed); !errors.Is(err, provider.ErrUnreadable) || b != nil {
			t.Errorf("%q %v", b, err)
		}
		for i := range min(len(sealed), 200) {
			broken := []byte(sealed)
			broken[i] ^= 1
			if b, err := older.Open(string(broken)); err == nil && string(b) != secret {
				t.Errorf("altered at %d: %q", i, b)
			}
		}
	}
	for _, s := range []string{"", "x", "gAAAAAA=", strings.Repeat("A", 100), "\xff"} {
		if b, err := older.Open(s); !errors.Is(err, provider.ErrUnreadable) {
			t.Errorf("%q: %q %v", s, b, err)
		}
	}
}

func TestSealerKeys(t *testing.T) {
	for _, keys := range [][]string{nil, {""}, {"short"}, {fernetKey(1), "hunter2"}, {fernetKey(1)[:40]}, {fernetKey(1) + "AAAA"}} {
		if _, err := provider.NewSealer(keys); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", keys, err)
		}
	}
}

// TestFernet decrypts a token of https://github.com/fernet/spec/blob/master/verify.json in
// the specification.
func TestFernet(t *testing.T) {
	s := sealer(t, "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=")
	b, err := s.Open("gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==")
	if err != nil || string(b) != "hello" {
		t.Errorf("%q %v", b, err)
	}
}
