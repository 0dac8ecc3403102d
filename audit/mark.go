package audit

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Mark is a watermark: what the chain of an org has of a process. Batches have one, and a
// process without records for an org sends it alone.
type Mark struct {
	Seq   uint64    // the chain has all records of the process up to this number
	Time  time.Time // and all of its entries with an earlier time; by its own clock
	Ended []string  // earlier writers of its folder, whose records are all in the chain

	Leaving bool // the process ends: it records nothing more
}

const (
	// markSlack covers the time between an entry's own time and the moment when the Writer
	// knows of it.
	markSlack    = time.Second
	markInterval = 200 * time.Millisecond // between two marks that are kept
	maxMarks     = 4096

	// Pauses between the marks of a process that has no records for an org. They double.
	firstBeat = time.Second
	lastBeat  = 5 * time.Minute
	beatTick  = 500 * time.Millisecond
	// maxMarkOrgs limits the orgs that get marks without records.
	maxMarkOrgs = 10_000
)

// Deciding notes that a decision with a time is being made. Until done is called, no watermark
// passes that time.
func (w *Writer) Deciding(at time.Time) (done func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.decidingID++
	id := w.decidingID
	w.deciding[id] = at
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.deciding, id)
	}
}

// markLocked returns the mark for the records that are durable now.
func (w *Writer) markLocked(now time.Time) Mark {
	at := now
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(at) {
			at = t
		}
	}
	for _, t := range w.deciding {
		earlier(t)
	}
	earlier(w.committing)
	if len(w.queue) > 0 {
		earlier(w.queue[0].began)
	}
	return Mark{Seq: w.durable, Time: at.Add(-markSlack)}
}

// keepMarkLocked keeps a mark for the batches that ship these records.
func (w *Writer) keepMarkLocked() {
	now := w.c.Now()
	if n := len(w.marks); n > 0 && now.Sub(w.marked).Abs() < markInterval {
		return
	}
	w.marked = now
	w.marks = append(w.marks, w.markLocked(now))
	if first := w.markIndexLocked(w.acked); first > 0 {
		w.marks = slices.Delete(w.marks, 0, first)
	}
	if len(w.marks) > maxMarks {
		i := 0
		w.marks = slices.DeleteFunc(w.marks, func(Mark) bool { i++; return i%2 == 0 })
	}
}

// markIndexLocked returns the index of the newest mark up to a number, or -1.
func (w *Writer) markIndexLocked(upTo uint64) int {
	i, _ := slices.BinarySearchFunc(w.marks, upTo, func(m Mark, seq uint64) int {
		if m.Seq <= seq {
			return -1
		}
		return 1
	})
	return i - 1
}

// markFor returns the mark of a process whose records are in the chain up to a number, or nil.
func (w *Writer) markFor(upTo uint64) *Mark {
	w.mu.Lock()
	defer w.mu.Unlock()
	if upTo >= w.durable {
		return w.endingLocked(w.markLocked(w.c.Now()))
	}
	i := w.markIndexLocked(upTo)
	if i < 0 {
		return nil
	}
	return w.endingLocked(w.marks[i])
}

// endingLocked adds the writers that have ended. Their records are in the folder, up to found.
func (w *Writer) endingLocked(m Mark) *Mark {
	if m.Seq >= w.found {
		m.Ended = slices.Concat(w.earlier, w.retired)
	}
	return &m
}

// beat is when an org's next mark without records is due.
type beat struct {
	due   time.Time
	pause time.Duration
	last  time.Time // the Time of the last one
}

// shippedRecords notes that the chain of an org has accepted records, so marks are due soon.
func (sh *shipping) shippedRecords(org string) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.beats[org] != nil || len(sh.beats) < maxMarkOrgs {
		sh.beats[org] = &beat{due: sh.w.c.Now().Add(firstBeat), pause: firstBeat}
	}
}

// beating sends marks for orgs without new records, until ctx is done.
func (sh *shipping) beating(ctx context.Context) {
	for ctx.Err() == nil {
		rest(ctx, beatTick)
		now := sh.w.c.Now()
		sh.mu.Lock()
		var due []string
		for org, b := range sh.beats {
			if !now.Before(b.due) {
				due = append(due, org)
			}
		}
		sh.mu.Unlock()
		slices.Sort(due)
		for _, org := range due {
			if ctx.Err() == nil {
				sh.beat(ctx, org, false)
			}
		}
	}
}

// beat sends a mark without records. An org with a lane is behind, so its batches send marks.
func (sh *shipping) beat(ctx context.Context, org string, leaving bool) {
	w := sh.w
	w.mu.Lock()
	separate, passed := w.lanes[org] != nil, w.passed
	w.mu.Unlock()
	now := w.c.Now()
	m := w.markFor(passed)
	sh.mu.Lock()
	b := sh.beats[org]
	b.due = now.Add(b.pause)
	b.pause = min(2*b.pause, lastBeat)
	same := m == nil || !m.Time.After(b.last)
	sh.mu.Unlock()
	if separate || same && !leaving || m == nil {
		return
	}
	m.Leaving = leaving
	ctx, cancel := context.WithTimeout(ctx, separateAfter)
	defer cancel()
	if _, err := sh.s.Send(ctx, Batch{Org: org, Writer: w.ID(), Shipper: w.ID(), Mark: m}); err != nil {
		w.c.Log.DebugContext(ctx, "the control plane did not accept a watermark", "org", org, "err", err)
		return
	}
	sh.mu.Lock()
	b.last = m.Time
	sh.mu.Unlock()
}

// leave reports to the control plane that the process records nothing more, if all of it is shipped.
func (sh *shipping) leave(ctx context.Context) {
	w := sh.w
	w.mu.Lock()
	whole := w.closed && len(w.queue) == 0 && w.passed >= w.durable && len(w.lanes) == 0
	w.mu.Unlock()
	if !whole {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), separateAfter)
	defer cancel()
	sh.mu.Lock()
	orgs := make([]string, 0, len(sh.beats))
	for org := range sh.beats {
		orgs = append(orgs, org)
	}
	sh.mu.Unlock()
	slices.Sort(orgs)
	for _, org := range orgs {
		if ctx.Err() == nil {
			sh.beat(ctx, org, true)
		}
	}
}

// checkMark rejects a mark that no sidecar sends.
func checkMark(b Batch) error {
	if len(b.Mark.Ended) > 2*maxEnded {
		return fmt.Errorf("%w: a watermark has at most %d ended writers", ErrRefused, 2*maxEnded)
	}
	for _, id := range b.Mark.Ended {
		if !validID(id) || !strings.HasPrefix(id, "w_") {
			return fmt.Errorf("%w: a writer id begins with w_ and has at most %d letters and digits", ErrRefused, maxID)
		}
	}
	if y := b.Mark.Time.Year(); y < 1970 || y > 9999 {
		return fmt.Errorf("%w: the time of the watermark is not valid", ErrRefused)
	}
	return nil
}

// storeMark stores the watermark of a batch, whose records are in the chain. A node can state
// watermarks for its own writers only. A clock that is ahead counts as ours.
func storeMark(ctx context.Context, tx pgx.Tx, b Batch) error {
	if len(b.Records) == 0 { // otherwise the writer is bound to the node already
		_, node, known, err := position(ctx, tx, b.Org, b.Shipper, "")
		if err != nil {
			return err
		}
		if known && node != "" && node != b.Node {
			return fmt.Errorf("%w: writer %s belongs to another node", ErrFork, b.Shipper)
		}
	}
	var batch pgx.Batch
	batch.Queue(`INSERT INTO audit_watermarks AS w (org_id, writer, node_id, seq, at, seen_at, ended)
		VALUES ($1, $2, $3, $4, least($5, clock_timestamp()), clock_timestamp(), $6)
		ON CONFLICT (org_id, writer) DO UPDATE SET seq = greatest(w.seq, EXCLUDED.seq), at = greatest(w.at, EXCLUDED.at), seen_at = EXCLUDED.seen_at,
			ended = EXCLUDED.ended WHERE w.node_id = EXCLUDED.node_id`,
		b.Org, b.Shipper, b.Node, int64(b.Mark.Seq), b.Mark.Time.UTC(), b.Mark.Leaving)
	if len(b.Mark.Ended) > 0 {
		batch.Queue("UPDATE audit_watermarks SET ended = true WHERE org_id = $1 AND writer = ANY($2) AND writer <> $3 AND node_id = $4 AND NOT ended",
			b.Org, b.Mark.Ended, b.Shipper, b.Node)
	}
	return tx.SendBatch(ctx, &batch).Close()
}

// appendMark stores a watermark that came without records.
func (c *Chain) appendMark(ctx context.Context, b Batch) error {
	b.Shipper = cmp.Or(b.Shipper, b.Writer)
	if err := checkBatch(b); err != nil {
		return c.refused(ctx, b, err)
	}
	ctx, cancel := context.WithTimeout(ctx, countsDeadline)
	defer cancel()
	if err := c.c.DB.InOrg(ctx, b.Org, func(tx pgx.Tx) error { return storeMark(ctx, tx, b) }); err != nil {
		return fmt.Errorf("storing a watermark of %s: %w", b.Shipper, err)
	}
	return nil
}
