package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Record is an entry as a writer keeps and ships it.
type Record struct {
	Seq   uint64 // of the writer: from 1, ascending, over all its orgs
	Prev  uint64 // the writer's last durable number of the same org; 0: this is its first
	Org   string
	Entry []byte // exactly as it was made durable
}

// Receipt says where an entry is. It is given to the caller of the exchange, who
// can later show that the entry must be in the org's log.
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

// ParseReceipt reads what String wrote.
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
		return Receipt{}, fmt.Errorf("%w: not in its one form", errForm)
	}
	return r, nil
}

// LeafHash is the hash of a Merkle tree's leaf, RFC 6962 section 2.1.
func LeafHash(entry []byte) [32]byte {
	h := sha256.New()
	h.Write([]byte{0})
	h.Write(entry)
	return [32]byte(h.Sum(nil))
}

// validID says whether s can be an id of ours: short, and harmless in a path, a
// log and a header.
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
