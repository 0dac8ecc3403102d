package audit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// Errors of exports.
var (
	ErrNoExport         = errors.New("there is no such export")
	ErrCheckpointBehind = errors.New("no checkpoint covers what was ordered yet")
	ErrArchived         = errors.New("entries of the range are not in the database any more")
	ErrOtherFilter      = errors.New("the export to continue has another filter")
)

// An ExportOrder says what an export is to have.
type ExportOrder struct {
	Filter evidence.ExportFilter
	After  string    // an export with the same filter; this one begins behind its end
	AsOf   time.Time // up to the first checkpoint at or after this time; zero: the newest checkpoint
	Newest bool      // the checkpoint must cover the newest entry

	archive *archiveOrder
}

// archiveOrder is the order of an archive's next file: all entries of an incarnation, up to the
// first checkpoint with at least size leaves.
type archiveOrder struct {
	incarnation, size int64
	after             Archived // the file before; its Size is 0 for the first one
}

// An Export is an ordered export. Its file has the same bytes whenever it is written.
type Export struct {
	evidence.ExportHeader
	FirstEntry, LastEntry int64 // numbers; the range is empty if LastEntry is less
	End                   evidence.Checkpoint
	CreatedAt             time.Time
	Complete              bool
	Problem               string // why it is not complete; "": it is being made
	Entries               int64  // that the filter selects
	Size                  int64  // bytes
	SHA256                string // hex, of the file

	lastLine []byte
	marks    []int64
}

// OrderExport stores an order. An order of the same filter, range and checkpoint returns the
// stored one. tx has the org set.
func OrderExport(ctx context.Context, tx pgx.Tx, org string, o ExportOrder, now time.Time) (Export, error) {
	newest, err := NewestCheckpoint(ctx, tx, org)
	if err != nil {
		return Export{}, err
	}
	if o.Newest {
		var head int64
		if err := tx.QueryRow(ctx, "SELECT coalesce(max(seq), 0) FROM audit_heads WHERE org_id = $1", org).Scan(&head); err != nil {
			return Export{}, fmt.Errorf("reading the head: %w", err)
		}
		if newest.LastSeq() < head {
			return Export{}, ErrCheckpointBehind
		}
	}
	end := newest
	if !o.AsOf.IsZero() {
		end, err = scanCheckpoint(tx.QueryRow(ctx, selectCheckpoint+"AND c.incarnation = $2 AND c.time >= $3 ORDER BY c.size LIMIT 1", org, newest.Incarnation, o.AsOf))
		if errors.Is(err, ErrNoCheckpoint) {
			return Export{}, ErrCheckpointBehind
		} else if err != nil {
			return Export{}, err
		}
	}
	if a := o.archive; a != nil {
		if end, err = CheckpointAt(ctx, tx, org, a.incarnation, a.size); err == nil {
			newest, err = LastCheckpoint(ctx, tx, org, a.incarnation)
		}
		if err != nil {
			return Export{}, err
		}
	}
	h := evidence.ExportHeader{Org: org, Incarnation: end.Incarnation, FirstSeq: end.FirstSeq, Filter: o.Filter, After: o.After, End: string(end.Note)}
	if err := exportBeginning(ctx, tx, o, &h); err != nil {
		return Export{}, err
	}
	left, err := trimmed(ctx, tx, org)
	if err != nil {
		return Export{}, err
	}
	if n := left.leaves(h.Incarnation, h.FirstSeq); h.First < n {
		if o.After != "" || o.Filter.Since != 0 || o.archive != nil || left.incarnation != h.Incarnation || left.Size > end.Size {
			return Export{}, ErrArchived
		}
		h.First, h.Before = left.Size, left.Checkpoint // it begins where the log does
	}
	if h.First > end.Size {
		return Export{}, ErrCheckpointBehind
	}
	what := sha256.Sum256(fmt.Appendf(nil, "%s\n%d\n%d\n%d\n%s\n%+v", evidence.ExportFormat, h.Incarnation, h.First, end.Size, h.After, h.Filter))
	if e, err := scanExport(tx.QueryRow(ctx, selectExport+"AND what = $2", org, what[:])); !errors.Is(err, ErrNoExport) {
		return e, err
	}
	tree, err := RangeBefore(ctx, tx, org, h.Incarnation, h.First)
	if err != nil {
		return Export{}, err
	}
	h.Left = evidence.Hashes(tree.Hashes())
	var mac []byte
	switch err := tx.QueryRow(ctx, "SELECT prev_mac FROM audit_entries WHERE org_id = $1 AND seq = $2", org, h.FirstSeq+h.First).Scan(&mac); {
	case errors.Is(err, pgx.ErrNoRows):
		if h.First < end.Size {
			return Export{}, ErrArchived
		}
	case err != nil:
		return Export{}, fmt.Errorf("reading entry %d: %w", h.FirstSeq+h.First, err)
	}
	h.PrevMAC = hex.EncodeToString(mac)
	if newest.Size > end.Size {
		h.Newest = string(newest.Note)
		if end.Size > 0 {
			proof, err := Consistency(ctx, tx, org, h.Incarnation, end.Size, newest.Size)
			if err != nil {
				return Export{}, err
			}
			h.Consistency = evidence.Hashes(proof)
		}
	}
	w, _, err := evidence.NewExportWriter(h)
	if err != nil {
		return Export{}, fmt.Errorf("ordering an export: %w", err)
	}
	b, err := json.Marshal(w.Header())
	if err != nil {
		return Export{}, err
	}
	if _, err := tx.Exec(ctx, "INSERT INTO audit_exports (org_id, id, what, header, created_at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
		org, w.Header().ID, what[:], b, now); err != nil {
		return Export{}, fmt.Errorf("storing an export: %w", err)
	}
	return scanExport(tx.QueryRow(ctx, selectExport+"AND what = $2", org, what[:]))
}

// exportBeginning sets the first leaf: behind the export to continue, or at the last checkpoint
// before the filter's time. Entries are appended after their time, so those before are of other times.
func exportBeginning(ctx context.Context, tx pgx.Tx, o ExportOrder, h *evidence.ExportHeader) error {
	if a := o.archive; a != nil {
		if a.after.Size > 0 {
			h.First, h.Before, h.After = a.after.Size, string(a.after.note), a.after.export
		}
		return nil
	}
	if o.After != "" {
		before, err := GetExport(ctx, tx, h.Org, o.After)
		switch {
		case err != nil:
			return err
		case before.Filter != o.Filter:
			return ErrOtherFilter
		case before.Incarnation != h.Incarnation:
			h.After = "" // the chain was reopened: this export begins with the new one
			return nil
		case before.End.Size > 0:
			h.First, h.Before = before.End.Size, before.ExportHeader.End
		default:
			h.After = ""
		}
		return nil
	}
	if o.Filter.Since == 0 {
		return nil
	}
	c, err := scanCheckpoint(tx.QueryRow(ctx, selectCheckpoint+"AND c.incarnation = $2 AND c.time <= $3 AND c.size > 0 ORDER BY c.size DESC LIMIT 1",
		h.Org, h.Incarnation, time.UnixMicro(o.Filter.Since).Add(-clockSlack)))
	switch {
	case errors.Is(err, ErrNoCheckpoint):
		return nil
	case err != nil:
		return err
	}
	h.First, h.Before = c.Size, string(c.Note)
	return nil
}

const selectExport = "SELECT header, created_at, problem, entries, size, sha256, last_line, marks FROM audit_exports WHERE org_id = $1 "

// GetExport returns an export of the org, which tx has set.
func GetExport(ctx context.Context, tx pgx.Tx, org, id string) (Export, error) {
	return scanExport(tx.QueryRow(ctx, selectExport+"AND id = $2", org, id))
}

// Exports returns the exports of the org, the newest first: at most limit of those before the
// one with the id after.
func Exports(ctx context.Context, tx pgx.Tx, org, after string, limit int) ([]Export, error) {
	rows, err := tx.Query(ctx, selectExport+`AND ($2 = '' OR (created_at, id) < (SELECT created_at, id FROM audit_exports WHERE org_id = $1 AND id = $2))
		ORDER BY created_at DESC, id DESC LIMIT $3`, org, after, limit)
	if err != nil {
		return nil, fmt.Errorf("reading exports: %w", err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (Export, error) { return scanExport(row) })
}

func scanExport(row pgx.Row) (e Export, err error) {
	var header, sum []byte
	err = row.Scan(&header, &e.CreatedAt, &e.Problem, &e.Entries, &e.Size, &sum, &e.lastLine, &e.marks)
	if errors.Is(err, pgx.ErrNoRows) {
		return e, ErrNoExport
	} else if err != nil {
		return e, fmt.Errorf("reading an export: %w", err)
	}
	if err := json.Unmarshal(header, &e.ExportHeader); err != nil {
		return e, fmt.Errorf("reading an export: %w", err)
	}
	text, _, _ := strings.Cut(e.ExportHeader.End, "\n\n")
	if e.End, err = evidence.ParseCheckpoint(text + "\n"); err != nil {
		return e, fmt.Errorf("reading an export: %w", err)
	}
	e.CreatedAt, e.Complete, e.SHA256 = e.CreatedAt.UTC(), e.lastLine != nil, hex.EncodeToString(sum)
	e.FirstEntry, e.LastEntry = e.FirstSeq+e.First, e.FirstSeq+e.End.Size-1
	return e, nil
}

// exportBatch is the number of rows that one transaction reads, and between two marks.
const exportBatch = 5_000

// exportLease is how long another control plane waits for the one that makes a file.
const exportLease = time.Minute

// MakeExport computes an export and signs it. It returns false if another process is at it, or
// if it was complete.
func MakeExport(ctx context.Context, db DB, org, id string, signer evidence.Signer, now func() time.Time) (bool, error) {
	var e Export
	mine := false
	err := db.InOrg(ctx, org, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `UPDATE audit_exports SET worked_at = $3, problem = '' WHERE org_id = $1 AND id = $2 AND last_line IS NULL
			AND (worked_at IS NULL OR worked_at < $4)`, org, id, now(), now().Add(-exportLease))
		if mine = tag.RowsAffected() == 1; err != nil || !mine {
			return err
		}
		e, err = GetExport(ctx, tx, org, id)
		return err
	})
	if err != nil || !mine {
		return false, err
	}
	if err := e.make(ctx, db, signer, now); err != nil {
		// Another attempt may begin at once.
		text := err.Error()
		if errors.Is(err, context.Canceled) {
			text = ""
		}
		return true, errors.Join(err, db.InOrg(context.WithoutCancel(ctx), org, func(tx pgx.Tx) error {
			_, err := tx.Exec(context.WithoutCancel(ctx), "UPDATE audit_exports SET worked_at = NULL, problem = $3 WHERE org_id = $1 AND id = $2", org, id, text)
			return err
		}))
	}
	return true, nil
}

func (e *Export) make(ctx context.Context, db DB, signer evidence.Signer, now func() time.Time) error {
	w, line, err := evidence.NewExportWriter(e.ExportHeader)
	if err != nil {
		return err
	}
	sum := sha256.New()
	size := int64(len(line))
	sum.Write(line)
	marks := []int64{}
	var lines []byte
	for w.Rows() < w.Size() {
		marks = append(marks, size)
		if lines, err = e.lines(ctx, db, w, lines[:0]); err != nil {
			return err
		}
		sum.Write(lines)
		size += int64(len(lines))
		if err := db.InOrg(ctx, e.Org, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "UPDATE audit_exports SET worked_at = $3 WHERE org_id = $1 AND id = $2", e.Org, e.ID, now())
			return err
		}); err != nil {
			return err
		}
	}
	sum.Write([]byte(evidence.ExportRowsEnd))
	statement, err := w.Statement([32]byte(sum.Sum(nil)))
	if err != nil {
		return err
	}
	envelope, err := evidence.SignEnvelope(ctx, evidence.ExportType, statement, signer)
	if err != nil {
		return err
	}
	last, err := evidence.ExportLastLine(envelope)
	if err != nil {
		return err
	}
	sum.Write(last)
	size += int64(len(evidence.ExportRowsEnd) + len(last))
	return db.InOrg(ctx, e.Org, func(tx pgx.Tx) error {
		// A signature that is there stays: the file has one form.
		_, err := tx.Exec(ctx, `UPDATE audit_exports SET entries = $3, size = $4, sha256 = $5, last_line = $6, marks = $7, problem = ''
			WHERE org_id = $1 AND id = $2 AND last_line IS NULL`, e.Org, e.ID, w.Entries(), size, sum.Sum(nil), last, marks)
		return err
	})
}

// lines appends the lines of the next rows, at most exportBatch.
func (e *Export) lines(ctx context.Context, db DB, w *evidence.ExportWriter, b []byte) ([]byte, error) {
	first := e.FirstSeq + e.First + w.Rows()
	var found []evidence.ExportRow
	err := db.InOrg(ctx, e.Org, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT incarnation, seq, appended_at, time, kind, agent_id, session_id, request_id, writer, writer_seq, prev_writer_seq,
			epoch, mac_version, mac, entry FROM audit_entries WHERE org_id = $1 AND seq >= $2 AND seq < $3 ORDER BY seq`,
			e.Org, first, min(first+exportBatch, e.LastEntry+1))
		if err != nil {
			return err
		}
		found, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (r evidence.ExportRow, err error) {
			err = row.Scan(&r.Incarnation, &r.Seq, &r.AppendedAt, &r.Time, &r.Kind, &r.AgentID, &r.SessionID, &r.RequestID, &r.Writer, &r.WriterSeq, &r.PrevWriterSeq,
				&r.Epoch, &r.Version, &r.MAC, &r.Bytes)
			r.Org, r.Entry = e.Org, evidence.EntryHash(r.Bytes)
			return r, err
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading entries from %d: %w", first, err)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("entry %d: %w", first, ErrArchived)
	}
	for i := range found {
		if b, err = w.AppendRow(b, &found[i]); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Write writes the file of a complete export from an offset on.
func (e *Export) Write(ctx context.Context, db DB, out io.Writer, from int64) error {
	if !e.Complete {
		return errors.New("the export is not complete")
	}
	w, line, err := evidence.NewExportWriter(e.ExportHeader)
	if err != nil {
		return err
	}
	at := int64(0)
	if n, exact := slices.BinarySearch(e.marks, from); n > 0 || exact { // from is behind the first line
		if !exact {
			n--
		}
		at, line = e.marks[n], nil
		w.Skip(int64(n) * exportBatch)
	}
	write := func(b []byte) error {
		skip := min(max(from-at, 0), int64(len(b)))
		at += int64(len(b))
		_, err := out.Write(b[skip:])
		return err
	}
	if err := write(line); err != nil {
		return err
	}
	var lines []byte
	for w.Rows() < w.Size() {
		if lines, err = e.lines(ctx, db, w, lines[:0]); err != nil {
			return err
		}
		if err := write(lines); err != nil {
			return err
		}
	}
	if err := write([]byte(evidence.ExportRowsEnd)); err != nil {
		return err
	}
	if err := write(e.lastLine); err != nil {
		return err
	}
	if at != e.Size {
		return fmt.Errorf("export %s has %d bytes now, and had %d", e.ID, at, e.Size)
	}
	return nil
}
