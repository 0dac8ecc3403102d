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
	// Send sends a batch and returns its last number once all of it is committed. The error
	// is a *Behind, or wraps ErrFork or ErrRefused, like Chain.Append's. Sending some of the
	// records again changes nothing. Several goroutines call it, each with another org.
	Send(ctx context.Context, b Batch) (upTo uint64, err error)
}

const (
	// Limits of one shipment. A single record may be larger.
	maxSendRecords = 512
	maxSendBytes   = 1 << 20

	// sendInterval is the time between shipments that are not full. Each is a transaction
	// of the database, which costs about the same for one record as for hundreds. The first
	// record after a quiet time is sent at once.
	sendInterval = 100 * time.Millisecond

	// sendDeadline limits the wait for one batch, so that a silent connection is closed.
	sendDeadline = time.Minute
	// separateAfter is how long one org's batch may take before the org gets its own lane.
	separateAfter    = 2 * time.Second
	minSeparateAfter = 200 * time.Millisecond

	minSendPause = 100 * time.Millisecond
	maxSendPause = 15 * time.Second
)

// Ship sends durable records to s, in each org's order. It releases each segment once the
// control plane has all of it. If s fails, it tries again after 0.1 s, with growing pauses up
// to 15 s. It returns nil when ctx is done. It returns an error if a segment cannot be read,
// since a segment is never skipped. It may be called again, but only one call runs at a time.
//
// An org gets its own lane if its batch fails or takes longer than 2 seconds. It then does not
// block other orgs (lanes.go). Several lanes call s concurrently.
func (w *Writer) Ship(ctx context.Context, s Shipper) error {
	kept, err := w.lastKept()
	if err != nil {
		w.c.Log.WarnContext(ctx, "shipped audit segments cannot be read, so it is not checked whether the chain still has them", "err", err)
	}
	w.mu.Lock()
	if w.shipping || w.lock == nil {
		w.mu.Unlock()
		return errors.New("audit segments are being shipped already, or the writer is closed")
	}
	ctx, stop := context.WithCancel(ctx)
	sh := &shipping{
		w: w, s: s, forks: make(map[source]int), rewound: make(map[source]uint64), failed: make(chan error, 1),
		kept: make(map[string]keptRecord), beats: make(map[string]*beat), merged: make(map[string]bool), fresh: make(chan struct{}, lanesAtOnce), failing: make(chan struct{}, lanesAtOnce),
	}
	w.shipping, w.lanes = true, make(map[string]*lane)
	common := cursor{after: w.passed}
	for _, k := range kept {
		if _, ok := w.behind[k.rec.Org]; !ok {
			sh.kept[k.rec.Org] = k
		}
	}
	for org, pos := range w.behind {
		l := &lane{org: org, until: w.passed, pos: pos}
		w.seekLocked(&l.c, pos)
		sh.startLocked(ctx, l)
	}
	w.behind = nil
	for _, s := range w.segs {
		for org := range s.orgs {
			if len(sh.beats) < maxMarkOrgs {
				sh.beats[org] = &beat{pause: firstBeat}
			}
		}
	}
	w.mu.Unlock()
	defer common.close()
	sh.running.Go(func() { sh.recheck(ctx) })
	sh.running.Go(func() { sh.beating(ctx) })
	err = sh.common(ctx, &common)
	stop()
	sh.running.Wait()
	sh.leave(ctx)
	w.mu.Lock()
	noted := w.notedLocked()
	w.behind, w.lanes, w.shipping = noted.behind, nil, false
	w.releaseLocked()
	w.mu.Unlock()
	w.writeAcked(noted)
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

	// Turns of the lanes without a failure, and of those with one.
	fresh, failing chan struct{}

	// Guarded by the Writer's mu.
	streak []*lane         // lanes that began since a batch of any org was accepted
	merge  []*lane         // lanes to end, since the failure was not specific to their org
	merged map[string]bool // orgs that were merged, and had no accepted batch since

	mu      sync.Mutex
	forks   map[source]int        // how often the chain had other records of that writer; above 0: ship as a fork
	rewound map[source]uint64     // records were already sent again from this number; those in between are lost
	kept    map[string]keptRecord // the last acknowledged record, by org
	beats   map[string]*beat      // marks without records that are due, by org
}

// source is a writer's records in an org.
type source struct{ writer, org string }

// parcel has the records of one org, out of those that were read.
type parcel struct {
	org  string
	recs []Record
}

// common ships all orgs without a lane, from one cursor.
func (sh *shipping) common(ctx context.Context, c *cursor) error {
	w := sh.w
	var writer string
	var todo []parcel
	full := false
	for ctx.Err() == nil {
		select {
		case err := <-sh.failed:
			return err
		default:
		}
		if sh.together(ctx, c) {
			todo = nil
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
					w.acknowledge() // without it, a crash after a quiet hour would show a lag of an hour
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
		for ; len(todo) > 0 && ctx.Err() == nil; todo = todo[1:] {
			if err := sh.try(ctx, writer, todo[0]); err != nil && ctx.Err() == nil {
				sh.separate(ctx, todo[0], err)
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		w.pass(c.at)
		if !full {
			rest(ctx, sendInterval)
		}
	}
	return nil
}

// again returns the log level of a failure. The first one in a row is a warning. The metrics
// show the others, and a log line reports when records are accepted again.
func again(pause time.Duration) slog.Level {
	if pause == minSendPause {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// try sends a parcel once.
func (sh *shipping) try(ctx context.Context, writer string, p parcel) error {
	// With more hanging orgs, the wait for the next one is shorter, so that together they
	// delay the others only by seconds.
	limit := max(separateAfter/time.Duration(1+sh.w.laneCount()), minSeparateAfter)
	sh.mu.Lock()
	fork := sh.forks[source{writer, p.org}] > 0
	sh.mu.Unlock()
	before := sh.before(writer, p.org, p.recs)
	if err := sh.has(ctx, limit, before); err != nil {
		return err
	}
	if err := sh.send(ctx, limit, Batch{Org: p.org, Writer: writer, Shipper: sh.w.ID(), Fork: fork, Records: p.recs}); err != nil {
		return err
	}
	// Check again, since the chain may have been restored in between.
	if err := sh.has(ctx, limit, before); err != nil {
		return err
	}
	if !fork {
		sh.keep(writer, p.recs)
	}
	return nil
}

// send sends a batch and waits until it is committed.
func (sh *shipping) send(ctx context.Context, limit time.Duration, b Batch) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	b.Mark = sh.w.markFor(b.Records[len(b.Records)-1].Seq)
	upTo, err := sh.s.Send(ctx, b)
	if last := b.Records[len(b.Records)-1].Seq; err == nil && upTo != last {
		err = fmt.Errorf("the control plane acknowledged record %d, and the last one sent is %d", upTo, last)
	}
	if err != nil {
		return err
	}
	sh.w.metrics.shipped.Add(float64(len(b.Records)))
	sh.taken(b.Org)
	sh.shippedRecords(b.Org)
	sh.mu.Lock()
	delete(sh.rewound, source{b.Writer, b.Org})
	sh.mu.Unlock()
	return nil
}

// changeID lets Run replace the writer id old, and waits until it has.
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
			return fmt.Errorf("%w: writer %s needs a new id, and gets it when the process restarts or the disk works again", ErrFork, old)
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

// WaitShipped waits until the control plane has all records that are durable now. Ship must be
// running. The error wraps ctx's, with the number of records that are left.
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

// Waiting returns the number of durable records that the control plane does not have.
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

// jitter returns a random duration from half of d to d, so that many nodes do not connect at
// once.
func (w *Writer) jitter(d time.Duration) time.Duration {
	var b [4]byte
	if _, err := io.ReadFull(w.c.Rand, b[:]); err != nil {
		return d
	}
	return d/2 + time.Duration(float64(d/2)*float64(binary.BigEndian.Uint32(b[:]))/(1<<32))
}

// pass stores that the orgs without a lane have all records up to upTo.
func (w *Writer) pass(upTo uint64) {
	w.mu.Lock()
	w.passLocked(max(w.passed, upTo))
	w.progress = w.c.Now()
	if w.passed >= w.durable {
		w.oldest = time.Time{}
	}
	w.mu.Unlock()
	w.acknowledge()
}

// noteInterval is the interval at which acked is written to its file while shipping.
const noteInterval = time.Second

// unnoted reports whether the file of acked is out of date.
func (w *Writer) unnoted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.notedAt != [2]uint64{w.acked, w.passed}
}

// acknowledge computes the number up to which the control plane has the records of all orgs.
// Shipped records are kept for a while: see KeepAckedBytes. The decisions of a segment without a
// completion are in the head of the next segment.
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
		w.noted, w.notedAt = now, [2]uint64{w.acked, w.passed}
	}
	noted := w.notedLocked()
	for _, s := range w.segs[:len(w.segs)-1] {
		if s.last <= w.passed && s.ackedAt.IsZero() {
			s.ackedAt = now
		}
	}
	w.tellLocked()
	w.mu.Unlock()
	if note {
		w.writeAcked(noted)
	}
	if err := w.tidy(); err != nil {
		w.c.Log.Warn("a shipped audit segment cannot be removed or written again; trying again later", "err", err)
	}
}

// cursor is a read position in the segments.
type cursor struct {
	seg    *segment // nil: none yet
	file   *os.File
	placed bool // offset and prevs are of seg
	offset int64
	prevs  map[string]uint64 // by org: the last number that was read; of org alone, if it is set
	after  uint64            // records up to this number are not sent
	at     uint64            // the last record that was read or skipped
	org    string            // only records of this org are read; empty: of all orgs
	limit  uint64            // records after this number are not read; 0: no limit
}

// close leaves the cursor where it is, without a file.
func (c *cursor) close() {
	if c.file != nil {
		_ = c.file.Close()
		c.file = nil
	}
}

// read returns the next durable records, at most as many as one shipment may have. An empty
// result means that there are no more now.
func (w *Writer) read(c *cursor) (writer string, recs []Record, err error) {
	var batch shipment
	for {
		w.mu.Lock()
		if c.seg == nil || c.file == nil && !slices.Contains(w.segs, c.seg) {
			w.seekLocked(c, max(c.after, c.at))
		}
		end, next := c.seg.end, w.nextLocked(c.seg)
		var err error
		if c.file == nil && c.seg.start < end {
			c.file, err = w.openLocked(c.seg)
		}
		w.mu.Unlock()
		if err != nil {
			return "", nil, err
		}
		if c.file != nil && !c.placed {
			c.placed, c.offset, c.prevs = true, c.seg.start, c.before()
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
		c.seg, c.placed = next, false
	}
	return writer, batch.recs, nil
}

// before returns each org's last number before the segment, or the one org's.
func (c *cursor) before() map[string]uint64 {
	if c.org == "" {
		return maps.Clone(c.seg.prevs)
	}
	return map[string]uint64{c.org: c.seg.prevs[c.org]}
}

// openLocked opens a segment that is still one of ours: one that was written again has
// other offsets.
func (w *Writer) openLocked(s *segment) (*os.File, error) {
	if !slices.Contains(w.segs, s) {
		return nil, os.ErrNotExist
	}
	return os.Open(s.path)
}

// seekLocked moves the cursor to the first record after a number, or to the oldest record in
// the files.
func (w *Writer) seekLocked(c *cursor, after uint64) {
	c.close()
	c.seg, c.placed = nil, false
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

// shipment has the records of one batch.
type shipment struct {
	recs []Record
	size int
}

// fill adds records up to offset end of the segment. full is true if it stopped because the
// shipment is full.
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
			if c.org == "" || f.name == c.org {
				c.prevs[f.name] = f.seq
			}
			c.offset, c.at = r.offset, max(c.at, f.seq)
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

// nextLocked returns the segment after seg. seg may be removed already. If there is a next
// segment, seg does not grow any more.
func (w *Writer) nextLocked(seg *segment) *segment {
	for _, s := range w.segs {
		if s.first > seg.first {
			return s
		}
	}
	return nil
}

// noteOldest stores the time of the oldest record that is not shipped, in a lane or in all
// orgs without a lane.
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

// oldestLocked returns the time of the oldest record that is not shipped. It is zero if all
// are shipped.
func (w *Writer) oldestLocked() time.Time {
	t := w.oldest
	for _, l := range w.lanes {
		if t.IsZero() || !l.oldest.IsZero() && l.oldest.Before(t) {
			t = l.oldest
		}
	}
	return t
}
