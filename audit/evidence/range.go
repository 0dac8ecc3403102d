package evidence

import (
	"crypto/sha256"
	"errors"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// A Range is a tree that is built leaf by leaf: the roots of its complete subtrees, from the
// largest to the smallest. So a tree of any size is continued with at most 63 hashes.
// The zero Range is the empty tree.
type Range struct {
	size   int64
	hashes []tlog.Hash
}

// NewRange returns the tree of this size, whose complete subtrees have these roots.
func NewRange(size int64, hashes []tlog.Hash) (*Range, error) {
	if size < 0 || len(hashes) != bits.OnesCount64(uint64(size)) {
		return nil, errors.New("the number of hashes does not fit the size of the tree")
	}
	return &Range{size: size, hashes: append([]tlog.Hash(nil), hashes...)}, nil
}

// Size returns the number of leaves.
func (r *Range) Size() int64 { return r.size }

// Hashes returns the roots of the complete subtrees, from the largest to the smallest.
func (r *Range) Hashes() []tlog.Hash { return append([]tlog.Hash(nil), r.hashes...) }

// Append adds a leaf by its hash.
func (r *Range) Append(leaf tlog.Hash) {
	h := leaf
	for n := r.size; n&1 == 1; n >>= 1 {
		last := len(r.hashes) - 1
		h = tlog.NodeHash(r.hashes[last], h)
		r.hashes = r.hashes[:last]
	}
	r.hashes = append(r.hashes, h)
	r.size++
}

// Root returns the root of the tree (RFC 6962, section 2.1). The empty tree has the hash of
// the empty string.
func (r *Range) Root() tlog.Hash {
	if r.size == 0 {
		return emptyRoot
	}
	h := r.hashes[len(r.hashes)-1]
	for i := len(r.hashes) - 2; i >= 0; i-- {
		h = tlog.NodeHash(r.hashes[i], h)
	}
	return h
}

// emptyRoot is the root of a tree without leaves: SHA-256 of the empty string.
var emptyRoot = tlog.Hash(sha256.Sum256(nil))
