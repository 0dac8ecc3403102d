package audit

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
)

// recover reads what an earlier process left, and makes the Writer ready to write.
func (w *Writer) recover() error {
	if err := w.removeTemporary(); err != nil {
		return err
	}
	segs, err := listSegments(w.c.Dir)
	if err != nil {
		return err
	}
	// A writer id lives as long as its process. So a folder that was copied, or restored to
	// an older state, never continues under an id that is in use.
	id, err := newWriterID(w.c.Now(), w.c.Rand)
	if err != nil {
		return err
	}
	w.id.Store(&id)
	if len(segs) == 0 {
		w.next = 1
		return w.begin()
	}
	open, err := w.readAll(segs)
	if err != nil {
		return err
	}
	if w.book, err = readBook(open); err != nil {
		return err
	}
	if last := w.last(); !last.empty() {
		if err := w.rewrite(last); err != nil {
			return err
		}
	}
	if err := w.begin(); err != nil {
		return err
	}
	return w.settleAll()
}

// removeTemporary removes files that never got their name.
func (w *Writer) removeTemporary() error {
	files, err := os.ReadDir(w.c.Dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), segmentSuffix+temporarySuffix) {
			if err := w.disk.remove(w.disk.path(f.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// readAll checks all segments, oldest first, and returns the decisions without a
// completion. The head of the last segment lists those from before it.
func (w *Writer) readAll(segs []*segment) (map[uint64]frame, error) {
	heads := make([]head, len(segs))
	files := make([]*os.File, len(segs))
	defer func() {
		for _, f := range files {
			if f != nil {
				_ = f.Close()
			}
		}
	}()
	for i, seg := range segs {
		var err error
		if files[i], err = os.Open(seg.path); err != nil {
			return nil, err
		}
		if heads[i], err = readHead(seg.path, files[i], seg.size); err != nil {
			return nil, err
		}
		h := heads[i]
		seg.start, seg.writer, seg.prevs = h.start, h.writer, h.prevs
		switch {
		case h.first != seg.first:
			return nil, &damage{seg.path, int64(len(magic)), fmt.Sprintf("it begins with record %d, not with that of its name", h.first)}
		case i > 0 && h.durable < heads[i-1].durable:
			return nil, &damage{seg.path, int64(len(magic)), fmt.Sprintf("it vouches for record %d, and the segment before for %d", h.durable, heads[i-1].durable)}
		}
	}

	acked := w.readAcked()
	durable := heads[0].durable // where what counts ends, so far
	for i, seg := range segs[:len(segs)-1] {
		until := heads[i+1].durable
		if until <= acked && until+1 == heads[i+1].first && until >= seg.first {
			// It is only kept: the control plane has it. It is read when it is needed.
			seg.last, seg.end, durable = until, seg.size, until
			seg.ackedAt = w.c.Now()
			continue
		}
		if err := scan(seg, files[i], until, seg.add); err != nil {
			return nil, err
		}
		if !seg.empty() {
			durable = seg.last
		}
		if durable != until {
			return nil, &damage{seg.path, seg.end, fmt.Sprintf("record %d is the last one here, and the next segment vouches for %d", durable, until)}
		}
	}

	i := len(segs) - 1
	last := segs[i]
	w.previous, w.previousSeqs = last.writer, maps.Clone(last.prevs)
	open := make(map[uint64]frame)
	for _, f := range heads[i].open {
		open[f.seq] = f
	}
	err := scan(last, files[i], noLimit, func(f frame) {
		last.add(f)
		w.previousSeqs[f.name] = f.seq
		switch f.kind {
		case kindAllowed:
			f.body = slices.Clone(f.body)
			open[f.seq] = f
		case kindSettled:
			delete(open, f.ref)
		}
	})
	if err != nil {
		if err := w.cutShort(last, files[i], err); err != nil {
			return nil, err
		}
	}
	if !last.empty() {
		durable = last.last
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.segs, w.durable, w.acked = segs, durable, max(segs[0].first-1, min(acked, durable))
	w.passed = w.acked
	// Behind what the last head took back, too: those numbers are used.
	w.next = last.last + 1
	if w.durable > w.acked {
		w.oldest = w.c.Now()
	}
	return open, nil
}

const noLimit = 1<<64 - 1

// ackedName is the file that holds the last number that the control plane had. It
// saves sending what is kept again. If it is wrong, the chain says what it has.
const ackedName = "acked"

func (w *Writer) readAcked() uint64 {
	if w.c.Resend {
		return 0
	}
	b, err := os.ReadFile(w.disk.path(ackedName))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 63)
	if err != nil {
		return 0
	}
	return n
}

func (w *Writer) writeAcked(n uint64) {
	path := w.disk.path(ackedName)
	err := os.WriteFile(path+temporarySuffix, strconv.AppendUint(nil, n, 10), 0o600)
	if err == nil {
		err = os.Rename(path+temporarySuffix, path)
	}
	if err != nil {
		w.c.Log.Warn("how far records are shipped cannot be noted; they are sent again after a restart", "err", err)
	}
}

// cutShort decides whether damage in the last segment is a write that a crash cut short.
// Only such a write may be dropped, because its callers got no success. It is the last
// batch, since a batch is written only once the one before is durable. So if any record of
// a later batch can be read behind the damage, the damaged part was durable once, and the
// disk has lost it.
//
// One case cannot be recognized: the very last batch before a crash was written,
// acknowledged, and then damaged on the disk, with nothing after it. A segment that was
// closed or followed by another has no such batch: the next head states where it ends.
func (w *Writer) cutShort(last *segment, f *os.File, found error) error {
	if !isDamage(found) {
		return found
	}
	proof, ok, err := acknowledged(last.path, f, last.end, last.size, last.last+1)
	if err != nil {
		return err
	}
	if ok {
		return fmt.Errorf("%w; the entry at byte %d shows that it was durable once", found, proof)
	}
	w.metrics.truncated.Add(float64(last.size - last.end))
	w.c.Log.Warn("audit segment ends in a write that was cut short; it was never reported as durable",
		"path", last.path, "end", last.end, "bytes", last.size-last.end, "err", found)
	return nil
}

// rewrite makes what was read from the last segment durable, in a new file under the same
// name. That we can read it does not mean that the disk has it. If the earlier process died
// of a failed fsync, the pages may be in memory only and marked clean. Another fsync of the
// same file would not write them.
func (w *Writer) rewrite(last *segment) error {
	old, err := os.Open(last.path)
	if err != nil {
		return err
	}
	defer old.Close()
	b := make([]byte, last.end)
	if _, err := io.ReadFull(old, b); err != nil {
		return fmt.Errorf("reading %s: %w", last.path, err)
	}
	f, err := w.disk.place(segmentName(last.first), func(f *os.File) error { return w.disk.write(f, b) })
	if err != nil {
		return fmt.Errorf("writing the last segment again: %w", err)
	}
	last.size = last.end
	return f.Close()
}

// readBook makes the completions to write for decisions that have none.
func readBook(open map[uint64]frame) (book, error) {
	b := newBook()
	for _, f := range open {
		e, err := Parse(f.body)
		if err != nil {
			return book{}, fmt.Errorf("reading the decision of record %d: %w", f.seq, err)
		}
		var s Settled
		switch e := e.(type) {
		case Decided:
			s = unknownSettlement(e)
		case Settled: // from a head
			s = e
		default:
			return book{}, fmt.Errorf("record %d is marked as a decision, and its entry is no decision", f.seq)
		}
		if s.DecidedWriter == "" {
			s.DecidedWriter = s.Writer
		}
		s.Org, s.DecidedSeq = f.name, f.seq
		b.open(s)
	}
	return b, nil
}

// frames returns the book as the head of a segment holds it.
func (b *book) frames() []frame {
	fs := make([]frame, 0, len(b.bySeq))
	for seq, s := range b.bySeq {
		fs = append(fs, frame{kind: kindOpen, seq: seq, name: s.Org, body: s.Encode()})
	}
	slices.SortFunc(fs, func(a, b frame) int { return cmp.Compare(a.seq, b.seq) })
	return fs
}

// settleAll writes for each decision in the book that its end is not known.
func (w *Writer) settleAll() error {
	b := &batch{done: make(chan struct{})}
	now := w.c.Now()
	for _, f := range w.book.frames() {
		s := w.book.bySeq[f.seq]
		s.Time, s.Writer = now, w.ID()
		b.items = append(b.items, item{org: s.Org, writer: s.Writer, source: s, entry: s.Encode(), waited: true, settled: &s})
	}
	if len(b.items) == 0 {
		return nil
	}
	if !w.commit(b) {
		return b.err
	}
	w.metrics.recovered.Add(float64(len(b.items)))
	w.c.Log.Warn("exchanges were in progress when the process ended; how they ended is not known", "count", len(b.items))
	return nil
}
