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

// An org with a chain that accepts no records must not block the other orgs, or fill their
// disk. A segment is passed once all orgs without a lane have all of it. In a passed segment,
// only the records that a lane still has to ship count as waiting. The others are kept like
// any acknowledged record. When the kept records must be removed, the segment is written again
// with only the waiting records.

// holdLocked stores how many bytes of a passed segment a lane still has to ship.
func (w *Writer) holdLocked(s *segment, l *lane) {
	switch n, ok := s.orgs[l.org]; {
	case s.last > w.passed:
		// Not passed, so all of it waits.
	case s.last <= l.pos || s.orgs != nil && !ok:
		delete(s.waiting, l.org)
	default:
		if s.last <= l.had {
			n = 0 // the records are sent again: they stay, and cause no rejections
		}
		if s.waiting == nil {
			s.waiting = make(map[string]int64)
		}
		s.waiting[l.org] = n
	}
}

// heldLocked updates the bytes that an org's lane still has to ship.
func (w *Writer) heldLocked(l *lane) {
	for _, s := range w.segs {
		w.holdLocked(s, l)
	}
}

// releasedLocked is called for a lane that has ended: its records have arrived, or the common
// cursor ships them.
func (w *Writer) releasedLocked(org string) {
	for _, s := range w.segs {
		delete(s.waiting, org)
	}
}

// passLocked stores that the orgs without a lane have all records up to upTo. upTo may be less
// than before.
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

// waitingLocked returns the bytes of a segment that the control plane does not have.
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

// orgBytesLocked returns the bytes of an org that the control plane does not have.
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

// orgShare limits the waiting bytes of one org to this multiple of the free part of
// MaxBacklogBytes. A single org may use four fifths of MaxBacklogBytes, and n stuck orgs leave
// 1/(4n+1) of it to the others.
const orgShare = 4

// orgFullLocked returns an error if an org's entries are rejected, while those of others are accepted.
func (w *Writer) orgFullLocked(org string) error {
	left := w.c.MaxBacklogBytes - w.bytesLocked()
	if orgShare*left >= w.c.MaxBacklogBytes {
		return nil // all waiting bytes together are within the limit of one org
	}
	if n := w.orgBytesLocked(org); n >= orgShare*left {
		return fmt.Errorf("%d bytes of org %s wait for the control plane. One org may have at most %d times the free bytes, which are %d: "+
			"see /readyz and aid_audit_stuck_orgs", n, org, orgShare, left)
	}
	return nil
}

// dueLocked reports whether the kept records of a segment must be removed.
func (w *Writer) dueLocked(s *segment, kept int64) bool {
	return kept > w.c.KeepAckedBytes || w.c.Now().Sub(s.ackedAt) > keepAcked || w.full != nil
}

// tidy removes passed segments without waiting records, the oldest first. It writes passed
// segments with some waiting records again. The caller holds ackMu.
func (w *Writer) tidy() error {
	for at := 0; ; {
		w.mu.Lock()
		kept := w.keptLocked()
		for at < len(w.segs)-1 && w.segs[at].sparse && len(w.segs[at].waiting) > 0 && w.segs[at].last <= w.passed {
			at++ // all of its records are waiting
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
		// In order, since a crash could otherwise leave a hole, which looks like a segment
		// that was removed by hand.
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

// joins reports whether a sparse segment and n bytes of the next one may be one file.
func (s *segment) joins(next *segment, n, limit int64) bool {
	return s.sparse && s.writer == next.writer && s.size+n <= limit
}

// compact writes a segment again with only the records of orgs. It writes them into the sparse
// segment before it if both fit into one file.
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
	// A cursor opens a segment while it holds mu, so it never mixes one file with the offsets
	// of the other.
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
		// If the process dies before this, the next start detects that the file before has
		// all of it.
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
