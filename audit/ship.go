package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"
)

// A Shipper takes records to the control plane.
type Shipper interface {
	// Send sends a batch and returns its last number once all of it is committed.
	// The error is a *Behind, or wraps ErrFork or ErrRefused, as Chain.Append's.
	// Sending some of the records again changes nothing. It is called by several
	// goroutines, each with another org.
	Send(ctx context.Context, b Batch) (upTo uint64, err error)
}

const (
	// Bounds of one shipment. A single record may be larger.
	maxSendRecords = 512
	maxSendBytes   = 1 << 20

	// sendInterval is the time between shipments that are not full. Each is a transaction
	// of the database, which costs about the same for one record as for hundreds. The first
	// record after a quiet time is sent at once.
	sendInterval = 100 * time.Millisecond

	// sendDeadline bounds the wait for one batch: a connection that went silent is
	// given up.
	sendDeadline = time.Minute
	// separateAfter is how long one org's batch may take before the org gets a lane
	// of its own.
	separateAfter = 2 * time.Second

	minSendPause = 100 * time.Millisecond
	maxSendPause = 15 * time.Second
)

// Ship sends what is durable to s, in each org's order, and lets go of each segment
// once the control plane has all of it. While s fails it tries again after 0.1 s,
// then later and later up to every 15 s. It blocks until ctx is done and then
// returns nil; any other return means that a segment cannot be read, which is never
// skipped. It may be called again, one at a time.
//
// An org whose batch fails, or takes longer than 2 s, gets a lane of its own and
// holds up no other org: see lanes.go. s is called by all lanes at once.
//
// After a restart it sends the oldest segment again from its beginning.
func (w *Writer) Ship(ctx context.Context, s Shipper) error {
	w.mu.Lock()
	if w.shipping || w.lock == nil {
		w.mu.Unlock()
		return errors.New("audit segments are being shipped already, or the writer is closed")
	}
	w.shipping, w.passed, w.lanes = true, w.acked, make(map[string]*lane)
	common := cursor{after: w.acked}
	w.mu.Unlock()
	defer common.close()

	ctx, stop := context.WithCancel(ctx)
	sh := &shipping{w: w, s: s, forks: make(map[source]int), rewound: make(map[source]uint64), failed: make(chan error, 1)}
	sh.running.Go(func() { sh.recheck(ctx) })
	err := sh.common(ctx, &common)
	stop()
	sh.running.Wait()
	w.mu.Lock()
	acked := w.acked
	w.passed, w.lanes, w.shipping = acked, nil, false
	w.releaseLocked()
	w.mu.Unlock()
	w.writeAcked(acked)
	if err != nil {
		return fmt.Errorf("shipping audit segments: %w", err)
	}
	return nil
}

// shipping is one call of Ship.
type shipping struct {
	w       *Writer
	s       Shipper
	running sync.WaitGroup // the lanes
	failed  chan error     // a lane cannot read its segment

	mu      sync.Mutex
	forks   map[source]int    // how often the chain had other records of that writer; above 0: they are shipped as a fork
	rewound map[source]uint64 // it was sent again from there already; what lies between is lost
}

// source is a writer's records in an org.
type source struct{ writer, org string }

// parcel is what one org gets of what was read.
type parcel struct {
	org  string
	recs []Record
}

// common ships all orgs that have no lane of their own, from one cursor.
func (sh *shipping) common(ctx context.Context, c *cursor) error {
	w := sh.w
	var writer string
	var todo []parcel
	full, pause := false, minSendPause
	for ctx.Err() == nil {
		select {
		case err := <-sh.failed:
			return err
		default:
		}
		if len(todo) == 0 {
			changed := w.change()
			var recs []Record
			var err error
			if writer, recs, err = w.read(c); err != nil {
				return err
			}
			if len(recs) == 0 {
				var quiet <-chan time.Time
				if w.unnoted() {
					quiet = time.After(noteInterval)
				}
				select {
				case <-changed:
				case <-quiet:
					w.acknowledge() // or a crash after a quiet hour would show a lag of an hour
				case err := <-sh.failed:
					return err
				case <-ctx.Done():
				}
				continue
			}
			w.noteOldest(nil, recs)
			full = len(recs) >= maxSendRecords/2
			todo = w.parcels(recs)
		}
		var err error
		for len(todo) > 0 && err == nil {
			err = sh.try(ctx, writer, todo[0])
			if err != nil && ctx.Err() == nil && sh.separate(ctx, todo[0], err) {
				err = nil
			}
			if err == nil {
				todo = todo[1:]
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			pause = minSendPause
			w.pass(c.at)
			if !full {
				rest(ctx, sendInterval)
			}
			continue
		}
		// As many orgs as may have a lane fail already.
		w.metrics.shipFailures.Inc()
		w.mu.Lock()
		w.refused = fmt.Errorf("org %s: %w", todo[0].org, err)
		w.mu.Unlock()
		wait := w.jitter(pause)
		w.c.Log.Log(ctx, again(pause), "the control plane takes no audit records of many orgs", "org", todo[0].org, "err", err, "lag", w.lag(), "pause", wait)
		pause = min(2*pause, maxSendPause)
		rest(ctx, wait)
	}
	return nil
}

// again is the level of a failure's line: the first one in a row is a warning. The
// metrics show the rest, and a line says when records are taken again.
func again(pause time.Duration) slog.Level {
	if pause == minSendPause {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// try sends a parcel once.
func (sh *shipping) try(ctx context.Context, writer string, p parcel) error {
	limit := separateAfter
	if sh.w.lanesFull() {
		limit = sendDeadline
	}
	sh.mu.Lock()
	fork := sh.forks[source{writer, p.org}] > 0
	sh.mu.Unlock()
	return sh.send(ctx, limit, Batch{Org: p.org, Writer: writer, Shipper: sh.w.ID(), Fork: fork, Records: p.recs})
}

// send sends a batch and waits until it is committed.
func (sh *shipping) send(ctx context.Context, limit time.Duration, b Batch) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	upTo, err := sh.s.Send(ctx, b)
	if last := b.Records[len(b.Records)-1].Seq; err == nil && upTo != last {
		err = fmt.Errorf("it acknowledged record %d, and %d is the last one sent", upTo, last)
	}
	if err != nil {
		return err
	}
	sh.w.metrics.shipped.Add(float64(len(b.Records)))
	sh.mu.Lock()
	delete(sh.rewound, source{b.Writer, b.Org})
	sh.mu.Unlock()
	return nil
}

// changeID has Run take a new writer id in place of old, and waits for it.
func (w *Writer) changeID(ctx context.Context, old string) error {
	ctx, cancel := context.WithTimeout(ctx, sendDeadline)
	defer cancel()
	for {
		changed := w.change()
		if w.ID() != old {
			return nil
		}
		w.rotate.Store(true)
		select {
		case w.wake <- struct{}{}:
		default:
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: writer %s needs another id, and gets one when the process starts again or the disk works", ErrFork, old)
		}
	}
}

// rest waits for d, or until ctx is done.
func rest(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// WaitShipped waits until the control plane has all that is durable now. Ship
// must run meanwhile. The error is ctx's, and says how much is left.
func (w *Writer) WaitShipped(ctx context.Context) error {
	w.mu.Lock()
	until := w.durable
	w.mu.Unlock()
	for {
		w.mu.Lock()
		changed, done, left := w.changed, w.acked >= until, w.lagLocked()
		w.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d audit records are not shipped: %w", left, ctx.Err())
		}
	}
}

// Waiting is how many durable records the control plane does not have.
func (w *Writer) Waiting() uint64 { return w.lag() }

func (w *Writer) change() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

func (w *Writer) lag() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lagLocked()
}

// lagLocked counts the records that the control plane does not have.
func (w *Writer) lagLocked() uint64 {
	if w.lanes == nil {
		return w.durable - min(w.acked, w.durable)
	}
	n := w.durable - min(w.passed, w.durable)
	for _, l := range w.lanes {
		n += uint64(l.waiting)
	}
	return n
}

// jitter returns from half of d to all of it, so that many nodes do not come back
// at once.
func (w *Writer) jitter(d time.Duration) time.Duration {
	var b [4]byte
	if _, err := io.ReadFull(w.c.Rand, b[:]); err != nil {
		return d
	}
	return d/2 + time.Duration(float64(d/2)*float64(binary.BigEndian.Uint32(b[:]))/(1<<32))
}

// pass takes note that the orgs without a lane have everything up to upTo.
func (w *Writer) pass(upTo uint64) {
	w.mu.Lock()
	w.passed = max(w.passed, upTo)
	w.progress, w.refused = w.c.Now(), nil
	if w.passed >= w.durable {
		w.oldest = time.Time{}
	}
	w.mu.Unlock()
	w.acknowledge()
}

// noteInterval is how often acked is written to its file while records are shipped.
const noteInterval = time.Second

// unnoted says whether the file of acked is behind.
func (w *Writer) unnoted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.notedAt != w.acked
}

// acknowledge finds out up to where the control plane has everything, in all orgs.
// Segments that end there or before are kept for a while: see KeepAckedBytes. Their
// unsettled decisions are in the head of the one after them.
func (w *Writer) acknowledge() {
	w.ackMu.Lock()
	defer w.ackMu.Unlock()
	now := w.c.Now()
	w.mu.Lock()
	w.acked = w.passed
	for _, l := range w.lanes {
		w.acked = min(w.acked, l.pos)
	}
	note := now.Sub(w.noted).Abs() >= noteInterval
	if note {
		w.noted, w.notedAt = now, w.acked
	}
	acked, kept := w.acked, w.keptLocked()
	var done []*segment
	for i, s := range w.segs {
		if i == len(w.segs)-1 || s.last > w.acked {
			break
		}
		if s.ackedAt.IsZero() {
			s.ackedAt = now
		}
		if len(done) == i && (kept > w.c.KeepAckedBytes || now.Sub(s.ackedAt) > keepAcked || w.full != nil) {
			done = append(done, s)
			kept -= s.size
		}
	}
	w.tellLocked()
	w.mu.Unlock()
	if note {
		w.writeAcked(acked)
	}
	for _, seg := range done {
		err := w.disk.remove(seg.path)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			// One after the other, or a crash could leave a hole in the middle,
			// which looks as if somebody had taken a segment away.
			err = w.disk.syncDir()
		}
		if err != nil {
			w.c.Log.Warn("a shipped audit segment cannot be removed; it is tried again later", "path", seg.path, "err", err)
			return
		}
		w.mu.Lock()
		if len(w.segs) > 1 && w.segs[0] == seg {
			w.segs = w.segs[1:]
		}
		w.mu.Unlock()
	}
}

// cursor is how far segments have been read.
type cursor struct {
	seg    *segment // nil: none yet
	file   *os.File
	offset int64
	prevs  map[string]uint64 // by org: the last number that was read
	after  uint64            // records up to this one are not sent
	at     uint64            // the last record that was read, or left out
	org    string            // the records of others are left out; empty: none are
	limit  uint64            // records behind this one are not read; 0: none
}

func (c *cursor) close() {
	if c.file != nil {
		_ = c.file.Close()
		c.file = nil
	}
}

// read returns the next durable records, as many as may be sent at once. None
// means that there are no more for now.
func (w *Writer) read(c *cursor) (writer string, recs []Record, err error) {
	var batch shipment
	for {
		w.mu.Lock()
		if c.seg == nil {
			w.seekLocked(c, c.after)
		}
		end, next := c.seg.end, w.nextLocked(c.seg)
		w.mu.Unlock()

		if c.file == nil && c.seg.start < end {
			f, err := os.Open(c.seg.path)
			if err != nil {
				return "", nil, err
			}
			c.file, c.offset, c.prevs = f, c.seg.start, maps.Clone(c.seg.prevs)
		}
		if c.file != nil && c.offset < end {
			writer = c.seg.writer
			full, err := c.fill(&batch, end)
			if err != nil {
				return "", nil, err
			}
			if full {
				break
			}
		}
		if next == nil || len(batch.recs) > 0 && next.writer != writer {
			break
		}
		c.close()
		c.seg = next
	}
	return writer, batch.recs, nil
}

// seekLocked moves the cursor to the first record after a number, or as near to it as
// the files here go back.
func (w *Writer) seekLocked(c *cursor, after uint64) {
	c.close()
	c.seg = nil
	for _, s := range w.segs {
		if s.last > after {
			c.seg = s
			break
		}
	}
	if c.seg == nil {
		c.seg = w.segs[len(w.segs)-1]
	}
	c.after = max(after, c.seg.first-1)
	c.at = c.after
}

// shipment is what is sent at once.
type shipment struct {
	recs []Record
	size int
}

// fill adds records up to the byte end of the segment, and says whether it
// stopped because no more fit.
func (c *cursor) fill(s *shipment, end int64) (full bool, err error) {
	r := newFrames(c.seg.path, c.file, c.offset, end)
	for c.offset < end {
		f, err := r.next()
		if err == io.EOF {
			err = &damage{c.seg.path, r.offset, "it became shorter"}
		}
		if err != nil {
			return false, err
		}
		if c.limit != 0 && f.seq > c.limit {
			return true, nil
		}
		if f.seq <= c.after || c.org != "" && f.name != c.org {
			c.prevs[f.name], c.offset, c.at = f.seq, r.offset, max(c.at, f.seq)
			continue
		}
		if n := len(s.recs); n > 0 && (n == maxSendRecords || s.size+len(f.body) > maxSendBytes) {
			return true, nil // the next call reads it again
		}
		s.recs = append(s.recs, Record{Seq: f.seq, Prev: c.prevs[f.name], Org: f.name, Entry: slices.Clone(f.body)})
		s.size += len(f.body)
		c.prevs[f.name], c.at = f.seq, f.seq
		c.offset = r.offset
	}
	return false, nil
}

// nextLocked returns the segment after seg, which may be gone already. If there is
// one, seg does not grow any more.
func (w *Writer) nextLocked(seg *segment) *segment {
	for _, s := range w.segs {
		if s.first > seg.first {
			return s
		}
	}
	return nil
}

// noteOldest notes of when the oldest record is that is not shipped: in a lane, or in
// all orgs without one.
func (w *Writer) noteOldest(l *lane, recs []Record) {
	e, err := Parse(recs[0].Entry)
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if l != nil {
		l.oldest = e.Head().Time
	} else {
		w.oldest = e.Head().Time
	}
}

// oldestLocked is when the oldest record that is not shipped was made; zero: all are
// shipped.
func (w *Writer) oldestLocked() time.Time {
	t := w.oldest
	for _, l := range w.lanes {
		if t.IsZero() || !l.oldest.IsZero() && l.oldest.Before(t) {
			t = l.oldest
		}
	}
	return t
}
