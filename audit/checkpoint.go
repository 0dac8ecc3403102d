package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"
)

// A StoredCheckpoint is a signed checkpoint of an org's tree. Only committed ones are read, so
// each may be published.
type StoredCheckpoint struct {
	Incarnation int64
	FirstSeq    int64 // number of the entry of leaf 0
	Size        int64
	Root        tlog.Hash
	Time        time.Time
	Note        []byte // signed
}

// LastSeq returns the number of the last entry under the checkpoint.
func (c StoredCheckpoint) LastSeq() int64 { return c.FirstSeq + c.Size - 1 }

// root returns the root of a checkpoint, or that of an empty tree without a checkpoint.
func (c StoredCheckpoint) root() tlog.Hash {
	if c.Note == nil {
		return (&merkle{}).root()
	}
	return c.Root
}

// ErrNoCheckpoint means that no checkpoint was signed that fits the request.
var ErrNoCheckpoint = errors.New("there is no such checkpoint")

const selectCheckpoint = `SELECT c.incarnation, t.first_seq, c.size, c.root, c.time, c.note
	FROM audit_checkpoints c JOIN audit_trees t ON t.org_id = c.org_id AND t.incarnation = c.incarnation WHERE c.org_id = $1 `

// NewestCheckpoint returns the newest checkpoint of the org, which tx has set. Without one,
// the error is ErrNoCheckpoint.
func NewestCheckpoint(ctx context.Context, tx pgx.Tx, org string) (StoredCheckpoint, error) {
	return scanCheckpoint(tx.QueryRow(ctx, selectCheckpoint+"ORDER BY c.incarnation DESC, c.size DESC LIMIT 1", org))
}

// LastCheckpoint returns the newest checkpoint of an incarnation.
func LastCheckpoint(ctx context.Context, tx pgx.Tx, org string, incarnation int64) (StoredCheckpoint, error) {
	return scanCheckpoint(tx.QueryRow(ctx, selectCheckpoint+"AND c.incarnation = $2 ORDER BY c.size DESC LIMIT 1", org, incarnation))
}

// CheckpointAt returns the first checkpoint of an incarnation with at least size leaves.
func CheckpointAt(ctx context.Context, tx pgx.Tx, org string, incarnation, size int64) (StoredCheckpoint, error) {
	return scanCheckpoint(tx.QueryRow(ctx, selectCheckpoint+"AND c.incarnation = $2 AND c.size >= $3 ORDER BY c.size LIMIT 1", org, incarnation, size))
}

// CheckpointsAround returns the last checkpoint with at most size leaves, and the first one with
// at least size. A checkpoint that does not exist is nil. Both are the same one if it has exactly size.
func CheckpointsAround(ctx context.Context, tx pgx.Tx, org string, incarnation, size int64) (before, after *StoredCheckpoint, err error) {
	b, err := scanCheckpoint(tx.QueryRow(ctx, selectCheckpoint+"AND c.incarnation = $2 AND c.size <= $3 ORDER BY c.size DESC LIMIT 1", org, incarnation, size))
	if err == nil {
		before = &b
	} else if !errors.Is(err, ErrNoCheckpoint) {
		return nil, nil, err
	}
	a, err := CheckpointAt(ctx, tx, org, incarnation, size)
	if err == nil {
		after = &a
	} else if !errors.Is(err, ErrNoCheckpoint) {
		return nil, nil, err
	}
	return before, after, nil
}

func scanCheckpoint(row pgx.Row) (c StoredCheckpoint, err error) {
	var root []byte
	err = row.Scan(&c.Incarnation, &c.FirstSeq, &c.Size, &root, &c.Time, &c.Note)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return c, ErrNoCheckpoint
	case err != nil:
		return c, fmt.Errorf("reading a checkpoint: %w", err)
	case len(root) != tlog.HashSize:
		return c, fmt.Errorf("%w: a checkpoint's root has %d bytes", ErrTree, len(root))
	}
	c.Root, c.Time = tlog.Hash(root), c.Time.UTC()
	return c, nil
}
