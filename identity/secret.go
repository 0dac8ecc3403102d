package identity

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
)

// Pattern is a regular expression (RE2, and that of scanners) that matches one of our
// secrets from end to end. It is for scanners that look for leaked secrets:
//
//	aid_sk_   an agent's key       aid_org_   an organization's      aid_node_   a node's token
//	  then 43 characters of 0-9A-Za-z   256 random bits as a number in base 62, most significant digit first
//	  then  6 characters of 0-9A-Za-z   CRC-32 (IEEE) of all that stands before, likewise in base 62
//
// The digits are in the order of ASCII: 0-9, A-Z, a-z. The checksum is not secret. It
// separates keys from strings that only look like keys. So a mistyped key costs no lookup,
// and a scanner raises no false alert.
const Pattern = `aid_(?:sk|org|node)_[0-9A-Za-z]{49}`

// Kind is the purpose of a secret.
type Kind int

// The kinds of secrets. The zero Kind is invalid.
const (
	AgentKey  Kind = iota + 1 // aid_sk_…: for an agent, to call models
	OrgKey                    // aid_org_…: for a person or a program, to manage
	NodeToken                 // aid_node_…: for a sidecar or an Envoy, to fetch configuration
)

// Prefix is the beginning of every secret of the kind, or "" for an invalid kind.
func (k Kind) Prefix() string {
	switch k {
	case AgentKey:
		return "aid_sk_"
	case OrgKey:
		return "aid_org_"
	case NodeToken:
		return "aid_node_"
	}
	return ""
}

const (
	keyPrefix   = "aid_" // of every kind
	digits      = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	entropyLen  = 43 // 62^43 > 2^256
	checksumLen = 6  // 62^6 > 2^32
	bodyLen     = entropyLen + checksumLen
)

// Mint makes a secret of kind k from 32 bytes of rand. It returns the secret and its
// SHA-256, which is stored. It returns an error if rand fails or k is invalid.
func Mint(k Kind, rand io.Reader) (secret string, hash [32]byte, err error) {
	if k.Prefix() == "" {
		return "", hash, fmt.Errorf("making a secret: no such kind: %d", k)
	}
	var entropy [32]byte
	if _, err := io.ReadFull(rand, entropy[:]); err != nil {
		return "", hash, fmt.Errorf("making a secret: %w", err)
	}
	b := make([]byte, 0, len(k.Prefix())+bodyLen)
	b = append(b, k.Prefix()...)
	b = append(b, make([]byte, entropyLen)...)
	var n [4]uint64 // big-endian
	for i := range n {
		n[i] = binary.BigEndian.Uint64(entropy[8*i:])
	}
	for i := range entropyLen {
		var rem uint64
		for j := range n {
			n[j], rem = bits.Div64(rem, n[j], uint64(len(digits)))
		}
		b[len(b)-1-i] = digits[rem]
	}
	sum := checksum(b)
	b = append(b, sum[:]...)
	return string(b), sha256.Sum256(b), nil
}

func checksum(b []byte) (sum [checksumLen]byte) {
	c := crc32.ChecksumIEEE(b)
	for i := range sum {
		sum[len(sum)-1-i] = digits[c%uint32(len(digits))]
		c /= uint32(len(digits))
	}
	return sum
}

var (
	errForm     = errors.New("not an AI Identity key")
	errChecksum = errors.New("not an AI Identity key: its checksum is wrong. Copy the key again")
)

// Parse reads the form of a secret: its kind, and the SHA-256 for its lookup. It makes no
// lookup, and costs less than a microsecond for every input. Its errors have no part of the
// input. A secret must have no other text around it, not even spaces.
func Parse(secret string) (Kind, [32]byte, error) {
	const longest = len("aid_node_") + bodyLen
	if len(secret) > longest {
		return 0, [32]byte{}, errForm
	}
	b := []byte(secret)
	for k := AgentKey; k <= NodeToken; k++ {
		p := k.Prefix()
		if len(b) != len(p)+bodyLen || string(b[:len(p)]) != p {
			continue
		}
		for _, c := range b[len(p):] {
			if !digit(c) {
				return 0, [32]byte{}, errForm
			}
		}
		if !summed(b) {
			return 0, [32]byte{}, errChecksum
		}
		return k, sha256.Sum256(b), nil
	}
	return 0, [32]byte{}, errForm
}

// summed reports whether b ends in the checksum of the bytes before it.
func summed(b []byte) bool {
	sum := checksum(b[:len(b)-checksumLen])
	return string(sum[:]) == string(b[len(b)-checksumLen:])
}

// digit reports whether c is one of digits.
func digit(c byte) bool { return c-'0' < 10 || c|0x20-'a' < 26 }

// findSecret reports whether one of our secrets is in b, complete and with a valid checksum.
// It does not find a text about keys, a placeholder such as aid_sk_your_agent_key, or a key
// that was cut short. Any text before or after a secret does not hide it.
//
// It reads request bodies up to the largest, so it looks at few of their bytes. A secret is
// an underscore and 49 digits, and the last of those positions is checked first.
func findSecret(b []byte) bool {
	for i := 0; ; {
		u := bytes.IndexByte(b[i:], '_')
		if u < 0 || i+u+bodyLen >= len(b) {
			return false
		}
		u += i
		// It searches from the end of the 49, so that a miss excludes the most positions.
		i = u + bodyLen
		for i > u && digit(b[i]) {
			i--
		}
		if i > u {
			continue // no secret's digits include b[i], which may be an underscore
		}
		for k := AgentKey; k <= NodeToken; k++ {
			p := k.Prefix()
			start := u + 1 - len(p)
			if start >= 0 && string(b[start:u+1]) == p && summed(b[start:u+1+bodyLen]) {
				return true
			}
		}
		i = u + 1 + bodyLen
	}
}
