package evidence

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/tlog"
)

// A Checkpoint is the state of a tree: its size and root at a time.
// Source: https://c2sp.org/tlog-checkpoint.
type Checkpoint struct {
	Origin string // identifies the tree: OrgOrigin or DirectoryOrigin
	Size   int64
	Root   tlog.Hash
	Time   time.Time // UTC, microseconds; in an extension line
}

// OrgOrigin returns the origin of the tree of an org's incarnation.
func OrgOrigin(installation, org string, incarnation int64) string {
	return installation + "/org/" + org + "/" + strconv.FormatInt(incarnation, 10)
}

// DirectoryOrigin returns the origin of the directory's log.
func DirectoryOrigin(installation string) string { return installation + "/directory" }

// TimeLayout is the form of times in checkpoints and entries: UTC, microseconds.
const TimeLayout = "2006-01-02T15:04:05.000000Z"

// Text returns the bytes that are signed: four lines.
func (c Checkpoint) Text() string {
	return fmt.Sprintf("%s\n%d\n%s\ntime %s\n", c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]), c.Time.UTC().Format(TimeLayout))
}

// maxSize limits the size of a checkpoint. The functions of tlog do not end for sizes above 2⁶².
const maxSize = 1 << 61

// errCheckpoint is wrapped by the errors of ParseCheckpoint and Open.
var errCheckpoint = errors.New("invalid checkpoint")

// ParseCheckpoint parses the text of a checkpoint without its signatures. Only the result of
// Text is accepted.
func ParseCheckpoint(text string) (Checkpoint, error) {
	line := strings.Split(text, "\n")
	if len(line) != 5 || line[4] != "" {
		return Checkpoint{}, fmt.Errorf("%w: it has not the four lines origin, size, root and time", errCheckpoint)
	}
	c := Checkpoint{Origin: line[0]}
	if !validName(c.Origin) {
		return Checkpoint{}, fmt.Errorf("%w: its origin is empty or has a space, a plus sign or a control character", errCheckpoint)
	}
	var err error
	if c.Size, err = strconv.ParseInt(line[1], 10, 64); err != nil || c.Size < 0 || c.Size > maxSize {
		return Checkpoint{}, fmt.Errorf("%w: its size is not a number from 0 to %d", errCheckpoint, int64(maxSize))
	}
	root, err := decode64(line[2])
	if err != nil || len(root) != len(c.Root) {
		return Checkpoint{}, fmt.Errorf("%w: its root is not the base64 of 32 bytes", errCheckpoint)
	}
	c.Root = tlog.Hash(root)
	at, ok := strings.CutPrefix(line[3], "time ")
	if c.Time, err = time.Parse(TimeLayout, at); !ok || err != nil || c.Time.Year() < 1970 {
		return Checkpoint{}, fmt.Errorf("%w: its fourth line is not a time such as \"time 2026-11-27T15:00:00.000000Z\"", errCheckpoint)
	}
	if c.Text() != text {
		return Checkpoint{}, fmt.Errorf("%w: it is not in canonical form", errCheckpoint)
	}
	return c, nil
}

// validName reports whether s can be an origin and the name of a key in a signed note.
// The characters are listed, so that every implementation has the same ones.
func validName(s string) bool {
	return s != "" && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		switch {
		case r <= 0x20, r >= 0x7f && r <= 0xa0, r == '+', r == 0x1680, r >= 0x2000 && r <= 0x200a, r == 0x2028, r == 0x2029, r == 0x202f, r == 0x205f, r == 0x3000:
			return true
		}
		return false
	})
}

// decode64 decodes base64 (RFC 4648, section 4). Only one text decodes to the same bytes.
func decode64(s string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err == nil && base64.StdEncoding.EncodeToString(b) != s {
		err = errors.New("the base64 is not canonical")
	}
	return b, err
}

// A Signer signs with a private key, which may be in a KMS. A *ecdsa.PublicKey is P-256: the
// signature is ASN.1 DER over the SHA-256 of the message. An ed25519.PublicKey signs the
// message (RFC 8032).
type Signer interface {
	Public() crypto.PublicKey
	Sign(ctx context.Context, message []byte) ([]byte, error)
}

// noteKeyID returns the key's id in a signed note. Source: https://c2sp.org/signed-note.
func noteKeyID(name string, key crypto.PublicKey) (uint32, error) {
	var sum [32]byte
	switch key := key.(type) {
	case ed25519.PublicKey:
		b := append([]byte(name), '\n', 1)
		sum = sha256.Sum256(append(b, key...))
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() {
			return 0, errors.New("the key's curve is not P-256")
		}
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			return 0, err
		}
		sum = sha256.Sum256(der)
	default:
		return 0, fmt.Errorf("a key of type %T signs no checkpoints", key)
	}
	return binary.BigEndian.Uint32(sum[:4]), nil
}

// VerifierKey returns the key in the form that witnesses and other readers of signed notes
// accept. Source: https://c2sp.org/signed-note.
func VerifierKey(name string, key crypto.PublicKey) (string, error) {
	id, err := noteKeyID(name, key)
	if err != nil {
		return "", err
	}
	var typed []byte
	switch key := key.(type) {
	case ed25519.PublicKey:
		typed = append([]byte{1}, key...)
	case *ecdsa.PublicKey:
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			return "", err
		}
		typed = append([]byte{2}, der...)
	}
	return fmt.Sprintf("%s+%08x+%s", name, id, base64.StdEncoding.EncodeToString(typed)), nil
}

// Sign returns the checkpoint as a signed note with a signature line of each signer, in their
// order. The name in each line is the origin.
func Sign(ctx context.Context, c Checkpoint, signers ...Signer) ([]byte, error) {
	if _, err := ParseCheckpoint(c.Text()); err != nil {
		return nil, err
	}
	var note bytes.Buffer
	note.WriteString(c.Text())
	note.WriteByte('\n')
	for _, s := range signers {
		id, err := noteKeyID(c.Origin, s.Public())
		if err != nil {
			return nil, err
		}
		sig, err := s.Sign(ctx, []byte(c.Text()))
		if err != nil {
			return nil, fmt.Errorf("signing checkpoint %d of %s: %w", c.Size, c.Origin, err)
		}
		if !verify(s.Public(), []byte(c.Text()), sig) {
			return nil, fmt.Errorf("signing checkpoint %d of %s: the signer returned an invalid signature", c.Size, c.Origin)
		}
		fmt.Fprintf(&note, "\u2014 %s %s\n", c.Origin, base64.StdEncoding.EncodeToString(append(binary.BigEndian.AppendUint32(nil, id), sig...)))
	}
	return note.Bytes(), nil
}

// verify reports whether sig is the key's signature of the message.
func verify(key crypto.PublicKey, message, sig []byte) bool {
	switch key := key.(type) {
	case ed25519.PublicKey:
		return len(key) == ed25519.PublicKeySize && ed25519.Verify(key, message, sig)
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(message)
		return ecdsa.VerifyASN1(key, sum[:], sig)
	}
	return false
}
