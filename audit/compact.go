package audit

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"time"
)

// What one org's chain does not take must not hold up, or fill the disk of, the other
// orgs. A segment is passed once all orgs without a lane have all of it. Of a passed
// segment only the records that a lane still has to ship count as waiting; the rest is
// kept like any acknowledged record. When what is kept must go, the segment is written
// again with the waiting records alone.

// holdLocked notes which bytes of a passed segment a lane still has to ship.
func (w *Writer) holdLocked(s *segment, l *lane) {
	switch n, ok := s.orgs[l.org]; {
	case s.last > w.passed:
		// Not passed: all of it waits.
	case s.last <= l.pos || s.orgs != nil && !ok:
		delete(s.waiting, l.org)
	default:
		if s.last <= l.had {
			n = 0 // sent again: it must stay, and requests are not rejected for it
		}
		if s.waiting == nil {
			s.waiting = make(map[string]int64)
		}
		s.waiting[l.org] = n
	}
}

// heldLocked notes anew what an org's lane still has to ship.
func (w *Writer) heldLocked(l *lane) {
	for _, s := range w.segs {
		w.holdLocked(s, l)
	}
}

// releasedLocked is for a lane that has ended: all it had to ship has arrived, or is
// shipped by the common cursor.
func (w *Writer) releasedLocked(org string) {
	for _, s := range w.segs {
		delete(s.waiting, org)
	}
}

// passLocked notes that the orgs without a lane have everything up to upTo. It may be
// less than before.
func (w *Writer) passLocked(upTo uint64) {
	before := w.passed
	w.passed = upTo
	for _, s := range w.segs {
		if s.last > upTo {
			s.waiting, s.ackedAt = nil, time.Time{}
		} else if s.last > before {
			for _, l := range w.lanes {
				w.holdLocked(s, l)
			}
		}
	}
}

// waitingLocked counts the bytes of a segment that the control plane does not have.
func (w *Writer) waitingLocked(i int) (n int64) {
	s := w.segs[i]
	if i == len(w.segs)-1 || s.last > w.passed {
		return s.size
	}
	for _, bytes := range s.waiting {
		n += bytes
	}
	return n
}

// orgBytesLocked counts the bytes of an org that the control plane does not have.
func (w *Writer) orgBytesLocked(org string) (n int64) {
	for i, s := range w.segs {
		if i == len(w.segs)-1 || s.last > w.passed {
			n += s.orgs[org]
		} else {
			n += s.waiting[org]
		}
	}
	return n
}

// orgShare bounds what one org may have waiting: so many times what is free of
// MaxBacklogBytes. One org alone gets four fifths of it, and n stuck orgs leave
// 1/(4n+1) of it to the others.
const orgShare = 4

// orgFullLocked returns why an org's entry is not accepted, while those of others are.
func (w *Writer) orgFullLocked(org string) error {
	left := w.c.MaxBacklogBytes - w.bytesLocked()
	if orgShare*left >= w.c.MaxBacklogBytes {
		return nil // all that waits is less than what is left for one org
	}
	if n := w.orgBytesLocked(org); n >= orgShare*left {
		return fmt.Errorf("%d bytes of org %s wait for the control plane, and one org may have at most %d times the %d bytes that are left of the limit: "+
			"/readyz and aid_audit_stuck_orgs say why", n, org, orgShare, left)
	}
	return nil
}

// due says whether what is kept of a segment must go.
func (w *Writer) dueLocked(s *segment, kept int64) bool {
	return kept > w.c.KeepAckedBytes || w.c.Now().Sub(s.ackedAt) > keepAcked || w.full != nil
}

// tidy removes passed segments of which nothing waits, the oldest first, and writes
// those again of which a part does. The caller holds ackMu.
func (w *Writer) tidy() error {
	for at := 0; ; {
		w.mu.Lock()
		kept := w.keptLocked()
		for at < len(w.segs)-1 && w.segs[at].sparse && len(w.segs[at].waiting) > 0 && w.segs[at].last <= w.passed {
			at++ // it has nothing else
		}
		if at >= len(w.segs)-1 || w.segs[at].last > w.passed || !w.dueLocked(w.segs[at], kept) {
			w.mu.Unlock()
			return nil
		}
		s := w.segs[at]
		var before *segment
		if at > 0 {
			before = w.segs[at-1]
		}
		orgs := maps.Clone(s.waiting)
		w.mu.Unlock()
		if before == nil && len(orgs) == 0 {
			if err := w.removeFirst(s); err != nil {
				return err
			}
			continue
		}
		if s.sparse && len(orgs) == 0 && !before.joins(s, 0, w.c.SegmentBytes) {
			at++ // an empty one between two of different writers
			continue
		}
		joined, err := w.compact(before, s, orgs)
		if err != nil {
			return err
		}
		if !joined {
			at++
		}
	}
}

// removeFirst removes the oldest segment.
func (w *Writer) removeFirst(s *segment) error {
	err := w.disk.remove(s.path)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		// One after the other, or a crash could leave a hole in the middle, which
		// looks as if somebody had taken a segment away.
		err = w.disk.syncDir()
	}
	if err != nil {
		return fmt.Errorf("removing %s: %w", s.path, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.segs) > 1 && w.segs[0] == s {
		w.segs = w.segs[1:]
	}
	return nil
}

// joins says whether a sparse segment and n bytes of the next one may be one file.
func (s *segment) joins(next *segment, n, limit int64) bool {
	return s.sparse && s.writer == next.writer && s.size+n <= limit
}

// compact writes a segment again with the records of orgs alone, into the sparse one
// before it if both fit into one file.
func (w *Writer) compact(before, s *segment, orgs map[string]int64) (joined bool, err error) {
	var size int64
	for org := range orgs {
		size += s.orgs[org]
	}
	joined = before != nil && before.joins(s, size, w.c.SegmentBytes)
	next := &segment{path: s.path, writer: s.writer, prevs: s.prevs, before: s.before, first: s.first, last: s.last, ackedAt: s.ackedAt, sparse: true, orgs: make(map[string]int64)}
	parts := []*segment{s}
	keep := [](map[string]int64){orgs}
	if joined {
		next.path, next.first, next.before, next.prevs = before.path, before.first, before.before, before.prevs
		parts, keep = []*segment{before, s}, append([]map[string]int64{before.orgs}, orgs)
	}
	b := appendHead(nil, head{writer: next.writer, first: next.first, durable: next.before, prevs: next.prevs, last: next.last, sparse: true})
	next.start = int64(len(b))
	for i, part := range parts {
		if b, err = part.collect(b, keep[i], next); err != nil {
			return false, fmt.Errorf("writing %s again: %w", part.path, err)
		}
	}
	next.end, next.size = int64(len(b)), int64(len(b))

	tmp := next.path + temporarySuffix
	f, err := w.disk.create(tmp)
	if err != nil {
		return false, err
	}
	err = w.disk.write(f, b)
	if err == nil {
		err = w.disk.sync(f)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return false, err
	}
	// A cursor opens a segment while it holds mu, so it never has the one with the
	// other's offsets.
	w.mu.Lock()
	if err = w.disk.rename(tmp, next.path); err == nil {
		i := slices.Index(w.segs, s)
		w.segs[i] = next
		if joined {
			w.segs = slices.Delete(w.segs, i-1, i)
		}
		for _, l := range w.lanes {
			w.holdLocked(next, l)
		}
	}
	w.mu.Unlock()
	if err == nil {
		err = w.disk.syncDir()
	}
	if err == nil && joined {
		// If the process dies before this, the next start sees that the file before
		// has all of it.
		err = w.disk.remove(s.path)
	}
	return joined, err
}

// collect appends the records of orgs to b, and counts them in into.
func (s *segment) collect(b []byte, orgs map[string]int64, into *segment) ([]byte, error) {
	if len(orgs) == 0 {
		return b, nil
	}
	f, err := os.Open(s.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for r := newFrames(s.path, f, s.start, s.end); ; {
		f, err := r.next()
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return nil, err
		}
		if _, ok := orgs[f.name]; ok {
			b = appendFrame(b, f)
			into.add(f)
		}
	}
}
