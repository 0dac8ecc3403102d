package evidence_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"
)

// The Python verifier accepts exactly the valid signatures of Wycheproof, with and without the
// package cryptography. So does Go's library.
func TestWycheproof(t *testing.T) {
	b, err := os.ReadFile("testdata/wycheproof/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var sets map[string][][5]any
	if err := json.Unmarshal(b, &sets); err != nil {
		t.Fatal(err)
	}
	py := startSecond(t)
	n := 0
	for kind, cases := range sets {
		for _, c := range cases {
			var raw [3][]byte
			for i := range raw {
				if raw[i], err = hex.DecodeString(c[i].(string)); err != nil {
					t.Fatal(err)
				}
			}
			key, message, sig, want := raw[0], raw[1], raw[2], c[3].(bool)
			got := false
			if kind == "p256" {
				p, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), key)
				if err != nil {
					t.Fatal(err)
				}
				sum := sha256.Sum256(message)
				got = ecdsa.VerifyASN1(p, sum[:], sig)
			} else {
				got = ed25519.Verify(key, message, sig)
			}
			b, err := json.Marshal(map[string]any{"command": "signature", "signature": []string{c[0].(string), c[1].(string), c[2].(string)}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := py.in.Write(append(b, '\n')); err != nil {
				t.Fatal(err)
			}
			line, err := py.out.ReadBytes('\n')
			if err != nil {
				t.Fatal(err)
			}
			var both []bool
			if err := json.Unmarshal(line, &both); err != nil {
				t.Fatal(err)
			}
			if got != want || len(both) != 2 || both[0] != want || both[1] != want {
				t.Errorf("%s, %s: want %t; Go %t, Python %v", kind, c[4], want, got, both)
			}
			n++
		}
	}
	t.Logf("%d signatures", n)
}
