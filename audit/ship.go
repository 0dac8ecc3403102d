package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// A Shipper takes records to the control plane.
type Shipper interface {
	// Send sends recs, which are of one writer and ascend, and returns up to
	// which sequence number the control plane has committed them, also beside an
	// error. Sending some of them again changes nothing.
	Send(ctx context.Context, writer string, recs []Record) (upTo uint64, err error)
}

const (
	// Bounds of what is sent at once. One record may be larger by itself.
	maxSendRecords = 512
	maxSendBytes   = 1 << 20

	// sendInterval is from one shipment that was not full to the next: each is a
	// transaction of the database, which costs about the same for one record as for
	// hundreds. What comes first after a quiet time goes at once.
	sendInterval = 100 * time.Millisecond

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
	var recs []Record
	pause := minSendPause
	for ctx.Err() == nil {
		if len(recs) == 0 {
			changed := w.change()
			var err error
			if recs, err = w.read(&c); err != nil {
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
		full := len(recs) >= maxSendRecords/2
		upTo, err := s.Send(ctx, w.id, recs)
		if last := recs[len(recs)-1].Seq; upTo > last {
			// Whoever says so has not committed what we sent.
			err, upTo = fmt.Errorf("it acknowledged record %d, and %d is the last one sent", upTo, last), 0
		}
		progress := false
		for len(recs) > 0 && recs[0].Seq <= upTo {
			recs, progress = recs[1:], true
		}
		if progress {
			w.acknowledge(upTo)
			pause = minSendPause
			if err == nil {
				if !full && len(recs) == 0 {
					rest(ctx, sendInterval)
				}
				continue
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		w.metrics.shipFailures.Inc()
		if err == nil {
			err = errors.New("it committed nothing")
		}
		wait := w.jitter(pause)
		w.c.Log.WarnContext(ctx, "the control plane does not take audit records", "err", err, "lag", w.lag(), "pause", wait)
		pause = min(2*pause, maxSendPause)
		rest(ctx, wait)
	}
	return nil
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

// acknowledge takes note that the control plane has everything up to upTo, and
// removes the segments that end there or before. Their unsettled decisions are in
// the head of the one after them.
func (w *Writer) acknowledge(upTo uint64) {
	w.mu.Lock()
	w.metrics.shipped.Add(float64(upTo - min(upTo, w.acked)))
	w.acked = max(w.acked, upTo)
	if w.acked >= w.durable {
		w.oldest = time.Time{}
	}
	var done []*segment
	for i := 0; i < len(w.segs)-1 && w.segs[i].last <= w.acked; i++ {
		done = append(done, w.segs[i])
	}
	w.tellLocked()
	w.mu.Unlock()
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
}

func (c *cursor) close() {
	if c.file != nil {
		_ = c.file.Close()
		c.file = nil
	}
}

// read returns the next durable records, as many as may be sent at once. None
// means that there are no more for now.
func (w *Writer) read(c *cursor) ([]Record, error) {
	var batch shipment
	for {
		w.mu.Lock()
		if c.seg == nil {
			c.seg = w.segs[0]
		}
		end, next := c.seg.end, w.nextLocked(c.seg)
		w.mu.Unlock()

		if c.file == nil && c.seg.start < end {
			f, err := os.Open(c.seg.path)
			if err != nil {
				return nil, err
			}
			c.file, c.offset = f, c.seg.start
		}
		if c.file != nil && c.offset < end {
			full, err := c.fill(&batch, end)
			if err != nil {
				return nil, err
			}
			if full {
				break
			}
		}
		if next == nil {
			break
		}
		c.close()
		c.seg = next
	}
	return w.noteOldest(batch.recs), nil
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
		if n := len(s.recs); n > 0 && (n == maxSendRecords || s.size+len(f.body) > maxSendBytes) {
			return true, nil // the next call reads it again
		}
		s.recs = append(s.recs, Record{Seq: f.seq, Org: f.name, Entry: slices.Clone(f.body)})
		s.size += len(f.body)
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
