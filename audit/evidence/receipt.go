package evidence

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// receiptDomain is the first part of what a receipt's signature covers.
const receiptDomain = "aid receipt v1"

// A Receipt identifies an entry. The caller of the request receives it, and can later prove
// that the entry must be in the org's log.
type Receipt struct {
	Writer string
	Seq    uint64
	Leaf   [32]byte // EntryHash of the stored bytes
	Sig    [ed25519.SignatureSize]byte
	Signed bool // false: an earlier version made the receipt, or it is not signed yet
}

// String is "w_…/12/9f86…/SIG", without the last part if it is not signed. The zero Receipt
// is "".
func (r Receipt) String() string {
	if r.Seq == 0 {
		return ""
	}
	s := r.Writer + "/" + strconv.FormatUint(r.Seq, 10) + "/" + hex.EncodeToString(r.Leaf[:])
	if r.Signed {
		s += "/" + base64.RawURLEncoding.EncodeToString(r.Sig[:])
	}
	return s
}

// ParseReceipt parses the result of String.
func ParseReceipt(s string) (Receipt, error) {
	errForm := errors.New("a receipt is WRITER/SEQUENCE/LEAF/SIGNATURE, with 64 hex digits and 86 characters of base64url")
	part := strings.Split(s, "/")
	if len(part) != 3 && len(part) != 4 || !ValidID(part[0]) {
		return Receipt{}, errForm
	}
	seq, err := strconv.ParseUint(part[1], 10, 63)
	if err != nil || seq == 0 {
		return Receipt{}, errForm
	}
	leaf, err := hex.DecodeString(part[2])
	if err != nil || len(leaf) != 32 {
		return Receipt{}, errForm
	}
	r := Receipt{Writer: part[0], Seq: seq, Leaf: [32]byte(leaf), Signed: len(part) == 4}
	if r.Signed {
		sig, err := base64.RawURLEncoding.Strict().DecodeString(part[3])
		if err != nil || len(sig) != len(r.Sig) {
			return Receipt{}, errForm
		}
		r.Sig = [ed25519.SignatureSize]byte(sig)
	}
	if r.String() != s {
		return Receipt{}, fmt.Errorf("%w: it is not in canonical form", errForm)
	}
	return r, nil
}

// message returns what the signature of a receipt of org covers: each part after its length
// in 8 bytes, big-endian.
func (r Receipt) message(org string) []byte {
	var b []byte
	text := func(s string) {
		b = binary.BigEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, s...)
	}
	text(receiptDomain)
	text(org)
	text(r.Writer)
	b = binary.BigEndian.AppendUint64(b, 8)
	b = binary.BigEndian.AppendUint64(b, r.Seq)
	text(string(r.Leaf[:]))
	return b
}

// SignReceipt returns the receipt of org with the signature of the process that recorded the
// entry.
func SignReceipt(r Receipt, org string, key ed25519.PrivateKey) Receipt {
	r.Sig, r.Signed = [ed25519.SignatureSize]byte(ed25519.Sign(key, r.message(org))), true
	return r
}

// Verify reports whether the process with a key signed the receipt in org. The key is
// receipt_key of the writer's entry writer.started. That entry must be verified too.
func (r Receipt) Verify(org, receiptKey string) error {
	if !r.Signed {
		return errors.New("the receipt has no signature: an earlier version made it")
	}
	key, err := decodeReceiptKey(receiptKey)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return errors.New("the receipt key is not the base64url of 32 bytes")
	}
	if !r.signedBy(org, key) {
		return errors.New("the receipt's signature is wrong")
	}
	return nil
}

// decodeReceiptKey decodes the base64url of a key. Only one text decodes to the same bytes.
func decodeReceiptKey(text string) (ed25519.PublicKey, error) {
	key, err := base64.RawURLEncoding.DecodeString(text)
	if err == nil && base64.RawURLEncoding.EncodeToString(key) != text {
		err = errors.New("the base64url is not canonical")
	}
	return key, err
}

func (r Receipt) signedBy(org string, key ed25519.PublicKey) bool {
	return len(key) == ed25519.PublicKeySize && ed25519.Verify(key, r.message(org), r.Sig[:])
}

// maxID limits the length of an id.
const maxID = 128

// ValidID reports whether s has the form of an id: short, and safe in a path, a log and a
// header.
func ValidID(s string) bool {
	if s == "" || len(s) > maxID {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' && c != '.' {
			return false
		}
	}
	return true
}
