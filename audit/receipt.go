package audit

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// Record is an entry with its writer's numbers.
type Record struct {
	Seq   uint64 // the writer's number: from 1, ascending over all of its orgs
	Prev  uint64 // the writer's previous durable number in the same org; 0: this is the first
	Org   string
	Entry []byte // the exact bytes that were made durable
}

// Receipt identifies an entry. The caller of the request receives it, and can later prove that
// the entry must be in the org's log.
type Receipt struct {
	Writer string
	Seq    uint64
	Leaf   [32]byte // LeafHash of the stored bytes
}

// String is "w_…/12/9f86…". The zero Receipt is "".
func (r Receipt) String() string {
	if r.Seq == 0 {
		return ""
	}
	return r.Writer + "/" + strconv.FormatUint(r.Seq, 10) + "/" + hex.EncodeToString(r.Leaf[:])
}

// ParseReceipt parses the result of String.
func ParseReceipt(s string) (Receipt, error) {
	errForm := errors.New("a receipt is WRITER/SEQUENCE/LEAF, with the leaf's 64 hex digits")
	part := strings.Split(s, "/")
	if len(part) != 3 || !validID(part[0]) {
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
	r := Receipt{Writer: part[0], Seq: seq, Leaf: [32]byte(leaf)}
	if r.String() != s {
		return Receipt{}, fmt.Errorf("%w: it is not in canonical form", errForm)
	}
	return r, nil
}

// LeafHash returns the hash of an entry's bytes, which receipts and links have.
func LeafHash(entry []byte) [32]byte { return evidence.EntryHash(entry) }

// validID reports whether s has the form of an id: short, and safe in a path, a log and a
// header.
func validID(s string) bool {
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
