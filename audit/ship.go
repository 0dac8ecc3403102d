package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"time"
)

// A Shipper takes records to the control plane.
type Shipper interface {
	// Send sends a batch and returns its last number once all of it is committed.
	// The error is a *Behind, or wraps ErrFork or ErrRefused, as Chain.Append's.
	// Sending some of the records again changes nothing.
	Send(ctx context.Context, b Batch) (upTo uint64, err error)
}

const (
	// Bounds of what is sent at once. One record may be larger by itself.
	maxSendRecords = 512
	maxSendBytes   = 1 << 20

	// sendInterval is from one shipment that was not full to the next: each is a
	// transaction of the database, which costs about the same for one record as for
	// hundreds. What comes first after a quiet time goes at once.
	sendInterval = 100 * time.Millisecond

	// sendDeadline bounds the wait for one batch: a connection that went silent is
	// given up.
	sendDeadline = time.Minute

	minSendPause = 100 * time.Millisecond
	maxSendPause = 15 * time.Second
)

// Ship sends what is durable to s, in order, and removes each segment that the
// control plane has committed to its end. While s fails it tries again after
// 0.1 s, then later and later up to every 15 s. It blocks until ctx is done and
// then returns nil; any other return means that a segment cannot be read, which
// is never skipped. It may be called again, one at a time.
//
// After a restart it sends the oldest segment again from its beginning.
func (w *Writer) Ship(ctx context.Context, s Shipper) error {
	w.mu.Lock()
	if w.shipping || w.lock == nil {
		w.mu.Unlock()
		return errors.New("audit segments are being shipped already, or the writer is closed")
	}
	w.shipping = true
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.shipping = false
		w.releaseLocked()
		w.mu.Unlock()
	}()
	var c cursor
	defer c.close()
	defer func() {
		w.mu.Lock()
		acked := w.acked
		w.mu.Unlock()
		w.writeAcked(acked)
	}()
	lanes := lanes{forks: make(map[lane]bool), rewound: make(map[lane]uint64)}
	var recs []Record
	var writer string
	pause := minSendPause
	for ctx.Err() == nil {
		if len(recs) == 0 {
			changed := w.change()
			var err error
			if writer, recs, err = w.read(&c); err != nil {
				return fmt.Errorf("shipping audit segments: %w", err)
			}
			if len(recs) == 0 {
				select {
				case <-changed:
				case <-ctx.Done():
				}
				continue
			}
		}
		err := w.send(ctx, s, writer, recs, &lanes)
		var back *rewind
		switch {
		case err == nil:
			full := len(recs) >= maxSendRecords/2
			w.acknowledge(recs[len(recs)-1].Seq)
			recs, pause = nil, minSendPause
			if !full {
				rest(ctx, sendInterval)
			}
			continue
		case errors.As(err, &back):
			w.c.Log.WarnContext(ctx, "the control plane has fewer audit records than it acknowledged; they are sent again", "writer", back.writer, "have", back.have)
			w.rewind(&c, back)
			recs = nil
			continue
		case ctx.Err() != nil:
			return nil
		}
		w.metrics.shipFailures.Inc()
		if errors.Is(err, ErrRefused) || errors.Is(err, ErrFork) {
			w.mu.Lock()
			w.refused = err
			w.mu.Unlock()
		}
		wait := w.jitter(pause)
		w.c.Log.WarnContext(ctx, "the control plane does not take audit records", "err", err, "lag", w.lag(), "pause", wait)
		pause = min(2*pause, maxSendPause)
		rest(ctx, wait)
	}
	return nil
}

// lane is a writer's records in an org.
type lane struct{ writer, org string }

// lanes is what Ship knows of them.
type lanes struct {
	forks   map[lane]bool   // the chain has other records of that writer
	rewound map[lane]uint64 // it was sent again from there already; what lies between is lost
}

// rewind is send's error when the chain has lost records that may be here.
type rewind struct {
	writer string
	have   uint64
}

func (r *rewind) Error() string {
	return fmt.Sprintf("writer %s: send again after %d", r.writer, r.have)
}

// send sends records of one writer, each org's apart. All are committed when it
// returns nil.
func (w *Writer) send(ctx context.Context, s Shipper, writer string, recs []Record, l *lanes) error {
	var orgs []string
	byOrg := make(map[string][]Record)
	for _, r := range recs {
		if byOrg[r.Org] == nil {
			orgs = append(orgs, r.Org)
		}
		byOrg[r.Org] = append(byOrg[r.Org], r)
	}
	for _, org := range orgs {
		if err := w.sendOrg(ctx, s, writer, org, byOrg[org], l); err != nil {
			return err
		}
	}
	return nil
}

func (w *Writer) sendOrg(ctx context.Context, s Shipper, writer, org string, recs []Record, l *lanes) error {
	k := lane{writer, org}
	last := recs[len(recs)-1].Seq
	for range maxSendRecords {
		shipper := w.ID()
		b := Batch{Org: org, Writer: writer, Shipper: shipper, Fork: l.forks[k], Records: recs}
		upTo, err := func() (uint64, error) {
			ctx, cancel := context.WithTimeout(ctx, sendDeadline)
			defer cancel()
			return s.Send(ctx, b)
		}()
		var behind *Behind
		switch {
		case err == nil && upTo != last:
			return fmt.Errorf("it acknowledged record %d, and %d is the last one sent", upTo, last)
		case err == nil:
			delete(l.rewound, k)
			return nil
		case errors.As(err, &behind):
			if had, again := l.rewound[k]; !again || had != behind.Have {
				l.rewound[k] = behind.Have
				return &rewind{writer, behind.Have}
			}
			// What lies between is not here any more. Say so, once and for all.
			prev := recs[0].Prev
			if prev <= behind.Have {
				return err
			}
			gap := Gap{Org: org, Writer: writer, After: behind.Have, Last: prev}
			if e, err := Parse(recs[0].Entry); err == nil {
				gap.Time = e.Head().Time
			}
			w.metrics.gaps.Inc()
			w.c.Log.ErrorContext(ctx, "the control plane lost audit records that are not kept here: a gap is recorded", "org", org, "writer", writer,
				"after", behind.Have, "last", prev)
			recs = append([]Record{{Seq: prev, Prev: behind.Have, Org: org, Entry: gap.Encode()}}, recs...)
		case errors.Is(err, ErrFork):
			w.mu.Lock()
			w.refused = err
			w.mu.Unlock()
			if writer == shipper || l.forks[k] {
				if err := w.changeID(ctx, shipper); err != nil {
					return err
				}
			}
			l.forks[k] = true
		default:
			return err
		}
	}
	return fmt.Errorf("%w: records of writer %s in org %s, again and again", ErrRefused, writer, org)
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

// rewind moves the cursor to the first record of the writer that the chain lacks,
// or as near to it as the files here go back.
func (w *Writer) rewind(c *cursor, r *rewind) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c.close()
	c.seg = nil
	for _, s := range w.segs {
		if s.writer == r.writer && s.last > r.have {
			c.seg = s
			break
		}
	}
	c.after = r.have
	w.acked = min(w.acked, r.have)
	w.tellLocked()
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

func (w *Writer) lagLocked() uint64 { return w.durable - min(w.acked, w.durable) }

// jitter returns from half of d to all of it, so that many nodes do not come back
// at once.
func (w *Writer) jitter(d time.Duration) time.Duration {
	var b [4]byte
	if _, err := io.ReadFull(w.c.Rand, b[:]); err != nil {
		return d
	}
	return d/2 + time.Duration(float64(d/2)*float64(binary.BigEndian.Uint32(b[:]))/(1<<32))
}

// acknowledge takes note that the control plane has everything up to upTo. Segments
// that end there or before are kept for a while: see KeepAckedBytes. Their
// unsettled decisions are in the head of the one after them.
func (w *Writer) acknowledge(upTo uint64) {
	now := w.c.Now()
	w.mu.Lock()
	w.metrics.shipped.Add(float64(upTo - min(upTo, w.acked)))
	w.acked = max(w.acked, upTo)
	w.progress, w.refused = now, nil
	if w.acked >= w.durable {
		w.oldest = time.Time{}
	}
	var note bool
	if note = now.Sub(w.noted).Abs() >= time.Second; note {
		w.noted = now
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
			c.seg = w.segs[0]
			c.after = w.acked
			for _, s := range w.segs {
				if c.seg = s; s.last > w.acked {
					break
				}
			}
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
	return writer, w.noteOldest(batch.recs), nil
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
		if f.seq <= c.after {
			c.prevs[f.name], c.offset = f.seq, r.offset
			continue
		}
		if n := len(s.recs); n > 0 && (n == maxSendRecords || s.size+len(f.body) > maxSendBytes) {
			return true, nil // the next call reads it again
		}
		s.recs = append(s.recs, Record{Seq: f.seq, Prev: c.prevs[f.name], Org: f.name, Entry: slices.Clone(f.body)})
		s.size += len(f.body)
		c.prevs[f.name] = f.seq
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

// noteOldest notes of when the oldest record is that is not shipped.
func (w *Writer) noteOldest(recs []Record) []Record {
	if len(recs) == 0 {
		return recs
	}
	if e, err := Parse(recs[0].Entry); err == nil {
		w.mu.Lock()
		w.oldest = e.Head().Time
		w.mu.Unlock()
	}
	return recs
}
