package translate

import (
	"crypto/sha256"
	"encoding/hex"
)

const letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// fitID returns a tool call's id in a form that the kind accepts. It keeps a valid id.
// Otherwise it derives one, always the same, so that a call and its result still match.
//
// Mistral accepts nine letters and digits. Anthropic accepts letters, digits, "_" and "-".
func fitID(kind, id string) string {
	fits := id != ""
	for _, c := range []byte(id) {
		alnum := c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		if !alnum && (kind == Mistral || c != '_' && c != '-') {
			fits = false
		}
	}
	if kind == Mistral && len(id) != 9 {
		fits = false
	}
	if fits || kind != Mistral && kind != Anthropic {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	if kind == Mistral {
		return short([]byte(id), 9)
	}
	return "call_" + hex.EncodeToString(sum[:12])
}

// short is a digest of b in n letters and digits, at most 32.
func short(b []byte, n int) string {
	sum := sha256.Sum256(b)
	out := make([]byte, n)
	for i := range out {
		out[i] = letters[int(sum[i])%len(letters)]
	}
	return string(out)
}
