package evidence

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
)

// A Key is a public key of the installation. Source: RFC 7517, RFC 7518 and RFC 8037.
type Key struct {
	ID     string           // the JWK thumbprint (RFC 7638), base64url
	Public crypto.PublicKey // *ecdsa.PublicKey on P-256, or ed25519.PublicKey

	// The key signs checkpoints of the directory with From <= size < To. To is 0 for a key that
	// still signs. Other logs have their own sizes: see KeyChange.
	From, To int64
}

// NewKey returns the key of a public key. P-256 and Ed25519 are supported.
func NewKey(public crypto.PublicKey) (Key, error) {
	k := Key{Public: public}
	j, err := k.jwk()
	if err != nil {
		return Key{}, err
	}
	k.ID = j.thumbprint()
	return k, nil
}

// KeySet is a set of public keys. The zero KeySet is empty and verifies nothing.
type KeySet struct {
	Keys    []Key
	Changes []KeyChange

	// Own is for the installation itself: a log whose key change is not written yet is valid with
	// the key before.
	Own bool

	believed map[string]bool // nil: all keys; see Pin
}

// jwk is a key in a JWKS. The names that begin with aid_ are ours.
type jwk struct {
	Kty  string `json:"kty"`
	Crv  string `json:"crv"`
	X    string `json:"x"`
	Y    string `json:"y,omitempty"`
	Kid  string `json:"kid"`
	Alg  string `json:"alg"`
	Use  string `json:"use"`
	From int64  `json:"aid_from"`
	To   int64  `json:"aid_to,omitzero"`
}

func (k Key) jwk() (jwk, error) {
	b64 := base64.RawURLEncoding.EncodeToString
	j := jwk{Kid: k.ID, Use: "sig", From: k.From, To: k.To}
	switch p := k.Public.(type) {
	case ed25519.PublicKey:
		j.Kty, j.Crv, j.Alg, j.X = "OKP", "Ed25519", "EdDSA", b64(p)
	case *ecdsa.PublicKey:
		if p.Curve != elliptic.P256() {
			return jwk{}, errors.New("the key's curve is not P-256")
		}
		point, err := p.Bytes() // 0x04 ‖ X ‖ Y
		if err != nil {
			return jwk{}, err
		}
		j.Kty, j.Crv, j.Alg, j.X, j.Y = "EC", "P-256", "ES256", b64(point[1:33]), b64(point[33:])
	default:
		return jwk{}, fmt.Errorf("a key of type %T is neither P-256 nor Ed25519", k.Public)
	}
	return j, nil
}

// thumbprint returns the JWK thumbprint (RFC 7638): SHA-256 over the required members in
// lexicographic order.
func (j jwk) thumbprint() string {
	text := `{"crv":"` + j.Crv + `","kty":"` + j.Kty + `","x":"` + j.X + `"}`
	if j.Kty == "EC" {
		text = `{"crv":"` + j.Crv + `","kty":"` + j.Kty + `","x":"` + j.X + `","y":"` + j.Y + `"}`
	}
	sum := sha256.Sum256([]byte(text))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// JWKS returns the set as a JSON Web Key Set (RFC 7517).
func (s KeySet) JWKS() ([]byte, error) {
	out := jwks{Keys: []jwk{}, Changes: s.Changes}
	for _, k := range s.Keys {
		j, err := k.jwk()
		if err != nil {
			return nil, err
		}
		out.Keys = append(out.Keys, j)
	}
	return json.Marshal(out)
}

// jwks is a JSON Web Key Set. The member aid_changes is ours.
type jwks struct {
	Keys    []jwk       `json:"keys"`
	Changes []KeyChange `json:"aid_changes,omitempty"`
}

// maxJWKS limits what ParseJWKS reads.
const maxJWKS = 1 << 20

// ParseJWKS parses a JSON Web Key Set strictly. Each key must be P-256 or Ed25519, have its
// thumbprint as kid, and be there once. The key changes must be valid: see Check.
func ParseJWKS(b []byte) (KeySet, error) {
	if len(b) > maxJWKS {
		return KeySet{}, fmt.Errorf("the JWKS has %d bytes, and at most %d are allowed", len(b), maxJWKS)
	}
	var in jwks
	if err := parse(b, &in); err != nil {
		return KeySet{}, fmt.Errorf("the JWKS is invalid: %w", err)
	}
	var s KeySet
	seen := make(map[string]bool)
	for i, j := range in.Keys {
		k, err := j.key()
		if err != nil {
			return KeySet{}, fmt.Errorf("key %d of the JWKS: %w", i+1, err)
		}
		if seen[k.ID] {
			return KeySet{}, fmt.Errorf("key %d of the JWKS: %s is there twice", i+1, k.ID)
		}
		seen[k.ID] = true
		s.Keys = append(s.Keys, k)
	}
	s.Changes = in.Changes
	if err := s.Check(); err != nil {
		return KeySet{}, fmt.Errorf("the JWKS: %w", err)
	}
	return s, nil
}

func (j jwk) key() (Key, error) {
	x, ok := coordinate(j.X)
	if !ok {
		return Key{}, errors.New("x is not the base64url of 32 bytes")
	}
	var k Key
	switch [3]string{j.Kty, j.Crv, j.Alg} {
	case [3]string{"OKP", "Ed25519", "EdDSA"}:
		if j.Y != "" {
			return Key{}, errors.New("an Ed25519 key has no y")
		}
		if !usable(x) {
			return Key{}, errors.New("x is not a point of Ed25519 in canonical form, or has a small order")
		}
		k.Public = ed25519.PublicKey(x)
	case [3]string{"EC", "P-256", "ES256"}:
		y, ok := coordinate(j.Y)
		if !ok {
			return Key{}, errors.New("y is not the base64url of 32 bytes")
		}
		p, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), bytes.Join([][]byte{{4}, x, y}, nil))
		if err != nil {
			return Key{}, errors.New("x and y are not a point of P-256")
		}
		k.Public = p
	default:
		return Key{}, errors.New("it is neither P-256 with ES256 nor Ed25519 with EdDSA")
	}
	if j.Use != "sig" {
		return Key{}, errors.New(`its use is not "sig"`)
	}
	if k.ID = j.thumbprint(); k.ID != j.Kid {
		return Key{}, errors.New("its kid is not its thumbprint (RFC 7638)")
	}
	if k.From, k.To = j.From, j.To; k.From < 0 || k.To != 0 && k.To <= k.From {
		return Key{}, errors.New("aid_from and aid_to are not a range of sizes")
	}
	return k, nil
}

// coordinate decodes the base64url of 32 bytes. Only one text decodes to the same bytes.
func coordinate(s string) ([]byte, bool) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	return b, err == nil && len(b) == 32 && base64.RawURLEncoding.EncodeToString(b) == s
}

// smallOrder has the y coordinates of the points of Ed25519 whose order is at most 8, little-endian
// in hex. A signature by such a key can be valid for every message.
var smallOrder = []string{
	"0000000000000000000000000000000000000000000000000000000000000000",
	"0100000000000000000000000000000000000000000000000000000000000000",
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
}

// usable reports whether the y coordinate of an Ed25519 key is less than 2²⁵⁵-19, and that of
// no point with a small order.
func usable(key []byte) bool {
	y := slices.Clone(key)
	y[31] &= 0x7f
	prime := y[0] >= 0xed && y[31] == 0x7f && !slices.ContainsFunc(y[1:31], func(b byte) bool { return b != 0xff })
	return !prime && !slices.Contains(smallOrder, hex.EncodeToString(y))
}

// Find returns the key with this id.
func (s KeySet) Find(id string) (Key, bool) {
	for _, k := range s.Keys {
		if k.ID == id {
			return k, true
		}
	}
	return Key{}, false
}

// maxNote limits the bytes of a checkpoint.
const maxNote = 64 << 10

// maxSignatures limits the signature lines of a note. C2SP requires at least 16.
const maxSignatures = 64

// Open verifies a signed checkpoint of this origin. It must have a valid signature of the P-256
// key and of the Ed25519 key that the set names for its size. A signature line of a known key
// that is invalid rejects the note. Lines of unknown keys are ignored, such as those of witnesses.
func (s KeySet) Open(note []byte, origin string) (Checkpoint, error) {
	c, signed, err := s.signatures(note, origin)
	if err == nil {
		err = s.signedBy(c, signed)
	}
	if err != nil {
		return Checkpoint{}, err
	}
	return c, nil
}

// signatures returns the keys of the set that have signed a note.
func (s KeySet) signatures(note []byte, origin string) (Checkpoint, map[string]Key, error) {
	if len(note) > maxNote {
		return Checkpoint{}, nil, fmt.Errorf("%w: it has more than %d bytes", errCheckpoint, maxNote)
	}
	text, rest, ok := strings.Cut(string(note), "\n\n")
	if !ok {
		return Checkpoint{}, nil, fmt.Errorf("%w: it has no signatures", errCheckpoint)
	}
	text += "\n"
	c, err := ParseCheckpoint(text)
	if err != nil {
		return Checkpoint{}, nil, err
	}
	if c.Origin != origin {
		return Checkpoint{}, nil, fmt.Errorf("%w: its origin is %s, not %s", errCheckpoint, c.Origin, origin)
	}
	directory := IsDirectory(origin)
	signed := make(map[string]Key)
	lines, ok := strings.CutSuffix(rest, "\n")
	if !ok || strings.Count(lines, "\n") >= maxSignatures {
		return Checkpoint{}, nil, fmt.Errorf("%w: its signature lines are incomplete, or more than %d", errCheckpoint, maxSignatures)
	}
	for line := range strings.SplitSeq(lines, "\n") {
		name, sig, ok := strings.Cut(strings.TrimPrefix(line, "\u2014 "), " ")
		raw, err := decode64(sig)
		if !ok || !strings.HasPrefix(line, "\u2014 ") || !validName(name) || err != nil || len(raw) < 5 {
			return Checkpoint{}, nil, fmt.Errorf("%w: a signature line has not the form of a signed note", errCheckpoint)
		}
		if name != origin {
			continue
		}
		for _, k := range s.Keys {
			id, err := noteKeyID(origin, k.Public)
			if err != nil || id != binary.BigEndian.Uint32(raw) || !s.believes(k) {
				continue
			}
			if !verify(k.Public, []byte(text), raw[4:]) {
				return Checkpoint{}, nil, fmt.Errorf("%w: the signature of key %s is wrong", errCheckpoint, k.ID)
			}
			if directory && c.Size < k.From {
				continue // it signs before its place in the log; that proves nothing
			}
			if directory && k.To != 0 && c.Size >= k.To {
				return Checkpoint{}, nil, fmt.Errorf("%w: key %s signed it, and does not sign from size %d on", errCheckpoint, k.ID, k.To)
			}
			signed[k.ID] = k
		}
	}
	return c, signed, nil
}
