package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// Batch is one shipment of a sidecar: records of one writer in one org.
type Batch struct {
	Org     string
	Node    string // the authenticated node; set by the control plane, never by the sender
	Writer  string // the writer of the records
	Shipper string // the writer id of the process that sends them; empty: Writer
	Fork    bool   // store them as Shipper's copy, beside Writer's records in the chain
	Records []Record
	Mark    *Mark // of Shipper, once the records are committed; nil: none

	reopenAfter int64                // the records begin the chain's next incarnation, after this number; 0: they do not
	restored    []evidence.ExportRow // the records' rows in the chain that was lost; nil: they are new
}

// lane names the sequence of records that the batch continues.
func (b Batch) lane() string {
	if b.Fork {
		return b.Shipper
	}
	return ""
}

// ErrFork means that the chain has other records under these numbers, or that the writer
// belongs to another node. The sidecar then uses a new writer id, and ships the records again
// with Fork set.
var ErrFork = errors.New("audit records fork")

// Behind is Append's error if a batch does not follow the last record in the chain. The
// sidecar sends again from Have, or records a Gap.
type Behind struct{ Have uint64 }

func (b *Behind) Error() string {
	return fmt.Sprintf("the chain has records up to %d: send the records after that number, or record a gap", b.Have)
}

// maxJump is the largest difference between two consecutive numbers of a writer. Failed
// batches and records of other orgs skip numbers.
const maxJump = 1 << 40

// checkBatch rejects a batch that no sidecar sends. It does not check entries.
func checkBatch(b Batch) error {
	for _, id := range []string{b.Writer, b.Shipper} {
		if !validID(id) || !strings.HasPrefix(id, "w_") {
			return fmt.Errorf("%w: a writer id begins with w_ and has at most %d letters and digits", ErrRefused, maxID)
		}
	}
	if !validID(b.Org) || b.Node == "" {
		return fmt.Errorf("%w: the org or the node is not valid", ErrRefused)
	}
	if b.Fork && b.Shipper == b.Writer {
		return fmt.Errorf("%w: a fork needs a new writer id", ErrRefused)
	}
	if b.Mark != nil {
		if err := checkMark(b); err != nil {
			return err
		}
	}
	for i, r := range b.Records {
		switch {
		case r.Seq <= r.Prev || r.Seq > math.MaxInt64 || i > 0 && r.Prev != b.Records[i-1].Seq:
			return fmt.Errorf("%w: record %d has %d as its previous record", ErrRefused, r.Seq, r.Prev)
		case r.Seq-r.Prev > maxJump:
			return fmt.Errorf("%w: the number of record %d is more than %d above the previous one", ErrRefused, r.Seq, int64(maxJump))
		case r.Org != b.Org:
			return fmt.Errorf("%w: record %d belongs to another org", ErrRefused, r.Seq)
		case len(r.Entry) == 0 || len(r.Entry) > MaxEntryBytes:
			return fmt.Errorf("%w: record %d has an entry of %d bytes", ErrRefused, r.Seq, len(r.Entry))
		}
	}
	return nil
}

// position returns the last number of a lane and the lane's node.
func position(ctx context.Context, tx pgx.Tx, org, writer, lane string) (have uint64, node string, known bool, err error) {
	err = tx.QueryRow(ctx, "SELECT writer_seq, node_id FROM audit_writers WHERE org_id = $1 AND writer = $2 AND lane = $3", org, writer, lane).
		Scan(&have, &node)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, "", false, nil
	}
	return have, node, err == nil, err
}

// bind assigns a writer to the first node that uses it. The database has older writers
// without a node; such a writer is assigned to the first node that uses it again.
func bind(ctx context.Context, tx pgx.Tx, org, writer, node string) error {
	_, bound, known, err := position(ctx, tx, org, writer, "")
	if err != nil {
		return err
	}
	switch {
	case known && bound == node:
		return nil
	case known && bound != "":
		return fmt.Errorf("%w: writer %s belongs to node %s, and node %s sends its records", ErrFork, writer, bound, node)
	}
	_, err = tx.Exec(ctx, `INSERT INTO audit_writers (org_id, writer, lane, writer_seq, node_id) VALUES ($1, $2, '', 0, $3)
		ON CONFLICT (org_id, writer, lane) DO UPDATE SET node_id = EXCLUDED.node_id`, org, writer, node)
	return err
}

// unseen locks the org's chain and returns the records that are not in it. If they do not
// follow the records in it, the error is a *Behind or wraps ErrFork.
func unseen(ctx context.Context, tx pgx.Tx, b Batch) ([]Record, error) {
	if err := lockChain(ctx, tx, b.Org); err != nil {
		return nil, err
	}
	if err := bind(ctx, tx, b.Org, b.Shipper, b.Node); err != nil {
		return nil, err
	}
	if !b.Fork && b.Writer != b.Shipper {
		if err := bind(ctx, tx, b.Org, b.Writer, b.Node); err != nil {
			return nil, err
		}
	}
	have, node, known, err := position(ctx, tx, b.Org, b.Writer, b.lane())
	if err != nil {
		return nil, err
	}
	if known && node != b.Node {
		return nil, fmt.Errorf("%w: this fork of writer %s belongs to another node", ErrFork, b.Writer)
	}
	recs := b.Records
	if !b.Fork && recs[0].Prev == have || b.Fork && known && recs[0].Prev == have {
		return recs, nil // the usual case: the batch follows
	}
	stored, err := sameNumbers(ctx, tx, b)
	if err != nil {
		return nil, err
	}
	var leaf []byte
	if err := tx.QueryRow(ctx, "SELECT leaf FROM audit_writers WHERE org_id = $1 AND writer = $2 AND lane = $3", b.Org, b.Writer, b.lane()).
		Scan(&leaf); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, err
	}
	n := 0
	for ; n < len(recs); n++ {
		r := recs[n]
		copies := stored[r.Seq]
		same := false
		for _, c := range copies {
			same = same || bytes.Equal(c.entry, r.Entry) && (b.Fork || c.lane == "")
		}
		if len(copies) == 0 && r.Seq == have && leaf != nil {
			// The row may have left the database. Its hash stays.
			hash := LeafHash(r.Entry)
			same = bytes.Equal(leaf, hash[:])
		}
		if same {
			continue
		}
		if r.Seq <= have {
			return nil, fmt.Errorf("%w: the chain has another record %d of writer %s: two processes use copies of one segment folder",
				ErrFork, r.Seq, b.Writer)
		}
		break
	}
	if n == len(recs) {
		return nil, nil
	}
	switch prev := recs[n].Prev; {
	case prev == have:
	case b.Fork && !known && (prev == 0 || n > 0 || len(stored[prev]) > 0):
		// A fork begins at a record that both copies have.
	case prev < have:
		return nil, fmt.Errorf("%w: the chain has record %d of writer %s, which lies between %d and %d here", ErrFork, have, b.Writer, prev, recs[n].Seq)
	default:
		return nil, &Behind{have}
	}
	return recs[n:], nil
}

type storedCopy struct {
	lane  string
	entry []byte
}

// sameNumbers returns the chain's records with the numbers of a batch.
func sameNumbers(ctx context.Context, tx pgx.Tx, b Batch) (map[uint64][]storedCopy, error) {
	seqs := []int64{int64(b.Records[0].Prev)}
	for _, r := range b.Records {
		seqs = append(seqs, int64(r.Seq))
	}
	rows, err := tx.Query(ctx, "SELECT writer_seq, lane, entry FROM audit_entries WHERE org_id = $1 AND writer = $2 AND writer_seq = ANY($3)",
		b.Org, b.Writer, seqs)
	if err != nil {
		return nil, err
	}
	stored := make(map[uint64][]storedCopy, len(seqs))
	var seq uint64
	var c storedCopy
	_, err = pgx.ForEachRow(rows, []any{&seq, &c.lane, &c.entry}, func() error {
		stored[seq] = append(stored[seq], storedCopy{c.lane, bytes.Clone(c.entry)})
		return nil
	})
	return stored, err
}
