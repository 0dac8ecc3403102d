package translate

import (
	"crypto/sha256"
	"encoding/hex"
)

const letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// fitID is a tool call's id in a form that the kind takes: as it is, or else
// made of it, always the same, so that a call and its result still meet.
//
// Mistral takes nine letters and digits. Anthropic takes letters, digits, "_" and "-".
func fitID(kind, id string) string {
	fits := id != ""
	for _, c := range []byte(id) {
		alnum := c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		if !alnum && (kind == Mistral || c != '_' && c != '-') {
			fits = false
		}
	}
	sum := sha256.Sum256([]byte(id))
	switch {
	case kind == Mistral && (!fits || len(id) != 9):
		var b [9]byte
		for i := range b {
			b[i] = letters[int(sum[i])%len(letters)]
		}
		return string(b[:])
	case kind == Anthropic && !fits:
		return "call_" + hex.EncodeToString(sum[:12])
	}
	return id
}
