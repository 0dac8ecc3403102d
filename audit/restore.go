package audit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// A Restoration puts entries back that a restored database lacks, from exports.
type Restoration struct {
	Org     string
	LogName string
	Keys    evidence.KeySet // with the key changes of the org
	// Newest returns the newest checkpoint of an origin outside of the database, or nil.
	Newest func(ctx context.Context, origin string) ([]byte, error)
	// Exports are opened in their order, several times each. They have every entry, without a
	// filter. The last one reaches the newest checkpoint, and each other one the next one's begin.
	Exports []ExportFile
}

// An ExportFile is an export outside of the database.
type ExportFile struct {
	Name string
	Open func() (io.ReadCloser, error)
}

// RestoreResult has what Restore did.
type RestoreResult struct {
	From, To int64 // numbers of the entries that were put back; 0: none
	Size     int64 // of the newest checkpoint
}

// restoreBatch is how many entries one transaction puts back.
const restoreBatch = 1000

// Restore puts back the entries of an org that a restored database lacks, byte for byte. Every
// export must be intact and agree with the newest checkpoint outside of the database. Each entry
// must have the MAC that it had. At the end the tree must have that checkpoint's root, and the
// checkpoint is stored again. The error is ErrNothingLost if the database has it.
func (c *Chain) Restore(ctx context.Context, r Restoration) (done RestoreResult, err error) {
	var head, incarnation, first int64
	var there bool
	var outside evidence.Checkpoint
	var note []byte
	err = c.c.DB.InOrg(ctx, r.Org, func(tx pgx.Tx) (err error) {
		if err := tx.QueryRow(ctx, "SELECT seq, incarnation FROM audit_heads WHERE org_id = $1", r.Org).Scan(&head, &incarnation); err != nil {
			return fmt.Errorf("reading the head: %w", err)
		}
		if first, err = firstSeq(ctx, tx, r.Org, incarnation); err != nil {
			return err
		}
		origin := evidence.OrgOrigin(r.LogName, r.Org, incarnation)
		if note, err = r.Newest(ctx, origin); err != nil {
			return err
		} else if note == nil {
			return fmt.Errorf("the anchors have no checkpoint of %s", origin)
		}
		if outside, err = r.Keys.Open(note, origin); err != nil {
			return err
		}
		return tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM audit_checkpoints WHERE org_id = $1 AND incarnation = $2 AND size = $3)", r.Org, incarnation, outside.Size).Scan(&there)
	})
	if err != nil {
		return done, err
	}
	done.Size = outside.Size
	last := first + outside.Size - 1
	if there && head >= last {
		return done, ErrNothingLost
	}
	// From the last export to the first one, each is held against the checkpoint behind it.
	held := evidence.HeldNote{From: "the newest checkpoint outside of the database", Note: note}
	for i := len(r.Exports) - 1; i >= 0; i-- {
		var h evidence.ExportHeader
		v, err := r.verify(r.Exports[i], evidence.ChainOptions{Keys: r.Keys, Held: []evidence.HeldNote{held}, Opened: func(x evidence.ExportHeader) { h = x }})
		switch {
		case err != nil:
			return done, err
		case v.Exit != evidence.Intact:
			return done, fmt.Errorf("%s: %s: %s %s: nothing is put back from it", r.Exports[i].Name, v.Verdict, v.Where, v.Problem)
		case h.Org != r.Org || h.Incarnation != incarnation:
			return done, fmt.Errorf("%s is of %s and incarnation %d, and the database has incarnation %d of %s", r.Exports[i].Name, h.Org, h.Incarnation, incarnation, r.Org)
		}
		held = evidence.HeldNote{From: "the beginning of " + r.Exports[i].Name, Note: []byte(h.Before)}
		if h.Before == "" && i > 0 {
			return done, fmt.Errorf("%s begins with the log, so the exports before it are of no use", r.Exports[i].Name)
		}
	}
	at := head
	for _, f := range r.Exports {
		if err := r.putBack(ctx, c, f, last, &at); err != nil {
			return done, fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	if at > head {
		done.From, done.To = head+1, at
	}
	if at < last {
		return done, fmt.Errorf("entries %d to %d are in none of the exports: order exports without a filter, up to the newest checkpoint", at+1, last)
	}
	return done, r.checkpoint(ctx, c, outside, incarnation, note)
}

// verify runs a verification of a file.
func (r Restoration) verify(f ExportFile, o evidence.ChainOptions) (evidence.Verdict, error) {
	in, err := f.Open()
	if err != nil {
		return evidence.Verdict{}, err
	}
	defer in.Close()
	return evidence.VerifyChain(in, o), nil
}

// putBack appends the entries of an export that the chain lacks, up to a number.
func (r Restoration) putBack(ctx context.Context, c *Chain, f ExportFile, last int64, at *int64) error {
	var rows []evidence.ExportRow
	var failed error
	flush := func() error {
		if len(rows) == 0 {
			return nil
		}
		failed = c.c.DB.InOrg(ctx, r.Org, func(tx pgx.Tx) error { return c.putBack(ctx, tx, r.Org, rows) })
		if failed == nil {
			*at = rows[len(rows)-1].Seq
		}
		rows = rows[:0]
		return failed
	}
	v, err := r.verify(f, evidence.ChainOptions{Keys: r.Keys, Rows: func(row evidence.ExportRow) error {
		next := *at + int64(len(rows)) + 1
		switch {
		case row.Seq < next || row.Seq > last:
			return nil
		case row.Seq > next:
			failed = fmt.Errorf("entry %d is not in it: order exports without a filter, from there on", next)
			return failed
		case row.Version != macVersion:
			failed = fmt.Errorf("entry %d was written by a version with another MAC: restore a newer backup", row.Seq)
			return failed
		}
		if rows = append(rows, row); len(rows) == restoreBatch {
			return flush()
		}
		return nil
	}})
	if err == nil && failed == nil && v.Exit != evidence.Intact {
		err = fmt.Errorf("it was changed meanwhile: %s %s", v.Where, v.Problem)
	}
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	return flush()
}

// putBack appends rows as they were: each with its number, time and MAC.
func (c *Chain) putBack(ctx context.Context, tx pgx.Tx, org string, rows []evidence.ExportRow) error {
	if err := lockChain(ctx, tx, org); err != nil {
		return err
	}
	var head int64
	if err := tx.QueryRow(ctx, "SELECT seq FROM audit_heads WHERE org_id = $1", org).Scan(&head); err != nil {
		return err
	}
	if head+1 != rows[0].Seq {
		return fmt.Errorf("the chain has %d entries, and entry %d is to be put back: something appends to it", head, rows[0].Seq)
	}
	for len(rows) > 0 {
		// One batch has one writer, and one sequence of its records.
		n := 1
		for n < len(rows) && rows[n].Writer == rows[0].Writer && rows[n].Epoch == rows[0].Epoch && rows[n].PrevWriterSeq == rows[n-1].WriterSeq {
			n++
		}
		b := Batch{Org: org, Writer: rows[0].Writer, Shipper: rows[0].Writer, restored: rows[:n]}
		have, _, _, err := position(ctx, tx, org, b.Writer, "")
		if err != nil {
			return err
		}
		if b.Writer != controlWriter && int64(have) != rows[0].PrevWriterSeq {
			b.Shipper, b.Fork = restoredShipper, true
		}
		recs := make([]Record, n)
		for i, row := range rows[:n] {
			recs[i] = Record{Org: org, Seq: uint64(row.WriterSeq), Prev: uint64(row.PrevWriterSeq), Entry: row.Bytes}
		}
		if _, err := c.append(ctx, tx, b, recs); err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

// restoredShipper is the shipper of a fork that was put back. An export does not have the one
// that it had.
const restoredShipper = "restored"

// checkpoint stores the newest checkpoint again, once the tree has its root.
func (r Restoration) checkpoint(ctx context.Context, c *Chain, outside evidence.Checkpoint, incarnation int64, note []byte) error {
	for ctx.Err() == nil {
		var g growth
		err := c.c.DB.InOrg(ctx, r.Org, func(tx pgx.Tx) (err error) {
			if g, err = grow(ctx, tx, r.Org, growBatch, nil); err != nil || g.busy || g.behind() > 0 {
				return err
			}
			tree, err := RangeBefore(ctx, tx, r.Org, incarnation, outside.Size)
			if err != nil {
				return err
			}
			if tree.Root() != outside.Root {
				return fmt.Errorf("%w: the entries up to %d are not those that were signed", ErrTree, g.firstSeq+outside.Size-1)
			}
			nonce, err := slot(ctx, tx, r.Org, rand.Reader)
			if err != nil {
				return err
			}
			leaf := evidence.SlotData(nonce, outside.Text())
			var b pgx.Batch
			b.Queue("INSERT INTO audit_checkpoints (org_id, incarnation, size, root, time, note) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
				r.Org, incarnation, outside.Size, outside.Root[:], outside.Time, note)
			b.Queue("UPDATE audit_slots SET incarnation = $2, size = $3, seq = $4, leaf = $5 WHERE org_id = $1 AND (incarnation, size) < ($2, $3)",
				r.Org, incarnation, outside.Size, g.firstSeq+outside.Size-1, leaf[:])
			return tx.SendBatch(ctx, &b).Close()
		})
		if err != nil {
			return err
		}
		if !g.busy && g.behind() == 0 {
			return nil
		}
		if g.busy {
			rest(ctx, 100*time.Millisecond) // a control plane has the tree
		}
	}
	return ctx.Err()
}

// firstSeq returns the number of the first entry of an incarnation.
func firstSeq(ctx context.Context, tx pgx.Tx, org string, incarnation int64) (first int64, err error) {
	if incarnation == 1 {
		return 1, nil
	}
	// The first entry may be archived. The tree knows its number.
	err = tx.QueryRow(ctx, `SELECT coalesce((SELECT first_seq FROM audit_trees WHERE org_id = $1 AND incarnation = $2),
		(SELECT min(seq) FROM audit_entries WHERE org_id = $1 AND incarnation = $2), 0)`, org, incarnation).Scan(&first)
	if err == nil && first == 0 {
		err = fmt.Errorf("%s: %w: incarnation %d has no entry", org, ErrTree, incarnation)
	}
	return first, err
}
