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

// recover reads the segments of an earlier process, and prepares the Writer for writing.
func (w *Writer) recover() error {
	if err := w.removeTemporary(); err != nil {
		return err
	}
	segs, err := listSegments(w.c.Dir)
	if err != nil {
		return err
	}
	// A writer id belongs to one process. So a folder that was copied, or restored to
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
	if err := w.settleAll(); err != nil {
		return err
	}
	w.noteEarlier()
	return nil
}

// removeTemporary removes files that were not completed.
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
	segs, joined := splitJoined(segs)
	for _, s := range joined {
		if err := w.disk.remove(s.path); err != nil {
			return nil, err
		}
	}
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
		seg.take(h)
		switch {
		case h.first != seg.first:
			return nil, &damage{seg.path, int64(len(magic)), fmt.Sprintf("it begins with record %d, which is not the number in its name", h.first)}
		case i > 0 && h.durable < heads[i-1].durable:
			return nil, &damage{seg.path, int64(len(magic)), fmt.Sprintf("its head has %d as the last durable record, and the head of the segment before has %d", h.durable, heads[i-1].durable)}
		}
	}

	noted := w.readAcked()
	acked := noted.acked
	durable := heads[0].durable // the last durable record so far
	for i, seg := range segs[:len(segs)-1] {
		until := heads[i+1].durable
		if until <= acked && until+1 == heads[i+1].first && until >= seg.first {
			// The control plane has this segment. It is read only when it is needed.
			seg.last, seg.end, durable = until, seg.size, until
			seg.ackedAt = w.c.Now()
			continue
		}
		if seg.sparse && until < seg.last && until >= seg.first {
			return nil, &damage{seg.path, int64(len(magic)), fmt.Sprintf("its range ends with %d, but according to the next segment the last record is %d", seg.last, until)}
		}
		if err := scan(seg, files[i], until, seg.add); err != nil {
			return nil, err
		}
		if !seg.empty() {
			durable = seg.last
		}
		if durable != until {
			return nil, &damage{seg.path, seg.end, fmt.Sprintf("record %d is the last one here, but according to the next segment it is %d", durable, until)}
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
	w.passed = max(w.acked, min(noted.passed, durable))
	w.behind = noted.behind
	for org, pos := range w.behind {
		w.heldLocked(&lane{org: org, pos: pos})
	}
	// Numbers that the last head took back stay used.
	w.next = last.last + 1
	if w.durable > w.acked {
		w.oldest = w.c.Now()
	}
	return open, nil
}

const noLimit = 1<<64 - 1

// take copies the fields of a segment's head.
func (s *segment) take(h head) {
	s.start, s.writer, s.prevs, s.before, s.sparse = h.start, h.writer, h.prevs, h.durable, h.sparse
	if h.sparse {
		s.last = h.last
	}
}

// splitJoined removes from the list the segments whose records are in the sparse segment before
// them: the process died before it removed their files.
func splitJoined(segs []*segment) (kept, joined []*segment) {
	var covered uint64 // up to the end of the last sparse one
	for _, s := range segs {
		if s.first <= covered {
			joined = append(joined, s)
			continue
		}
		kept = append(kept, s)
		if b := make([]byte, len(magicSparse)); peek(s.path, b) == nil && string(b) == magicSparse {
			if h, err := headOf(s); err == nil { // reading the segment later reports damage
				covered = h.last
			}
		}
	}
	return kept, joined
}

// peek reads the beginning of a file.
func peek(path string, b []byte) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.ReadFull(f, b)
	return err
}

// ackedName is the file with the last number that the control plane has. Without it, records
// would be sent again. If the number is wrong, the chain's reply corrects it.
const ackedName = "acked"

func (w *Writer) readAcked() acked {
	if w.c.Resend {
		return acked{}
	}
	b, err := os.ReadFile(w.disk.path(ackedName))
	if err != nil {
		return acked{}
	}
	return parseAcked(b)
}

// acked is the content of that file. It is one number if all orgs have the same. If some orgs
// are behind, lines "passed NUMBER" and "ORG NUMBER" follow.
type acked struct {
	acked  uint64            // all orgs have all records up to here
	passed uint64            // orgs that are not in behind have all records up to here
	behind map[string]uint64 // by org
}

func parseAcked(b []byte) (a acked) {
	first, rest, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	var err error
	if a.acked, err = strconv.ParseUint(first, 10, 63); err != nil {
		return acked{}
	}
	a.passed = a.acked
	for line := range strings.Lines(rest) {
		org, number, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.ParseUint(number, 10, 63)
		switch {
		case err != nil || !validID(org):
			return acked{acked: a.acked, passed: a.acked}
		case a.behind == nil: // the first of them
			a.passed, a.behind = n, make(map[string]uint64)
		default:
			a.behind[org] = n
		}
	}
	return a
}

func (a acked) bytes() []byte {
	b := strconv.AppendUint(nil, a.acked, 10)
	if len(a.behind) == 0 {
		return b
	}
	b = fmt.Appendf(b, "\npassed %d", a.passed)
	for _, org := range slices.Sorted(maps.Keys(a.behind)) {
		b = fmt.Appendf(b, "\n%s %d", org, a.behind[org])
	}
	return b
}

// notedLocked returns the current content for the file.
func (w *Writer) notedLocked() acked {
	a := acked{acked: w.acked, passed: w.passed, behind: maps.Clone(w.behind)}
	if w.lanes != nil {
		a.behind = make(map[string]uint64)
		for org, l := range w.lanes {
			a.behind[org] = l.pos
		}
	}
	return a
}

func (w *Writer) writeAcked(a acked) {
	path := w.disk.path(ackedName)
	err := os.WriteFile(path+temporarySuffix, a.bytes(), 0o600)
	if err == nil {
		err = os.Rename(path+temporarySuffix, path)
	}
	if err != nil {
		w.c.Log.Warn("the number of the last shipped record cannot be stored; records are sent again after a restart", "err", err)
	}
}

// cutShort decides whether damage in the last segment is a write that a crash interrupted.
// Only such a write may be dropped, because its callers got an error. It is the last batch,
// since a batch is written only after the one before is durable. Suppose that a record of a
// later batch can be read after the damage. Then the damaged part was durable once, and the
// disk has lost it.
//
// One case is not detected: the last batch before a crash was durable, and the disk damaged
// it later, with nothing after it. A closed segment, or one with a successor, has no such
// batch, since the next head has its end.
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
	w.c.Log.Warn("an audit segment ends in an interrupted write, which was never reported as durable",
		"path", last.path, "end", last.end, "bytes", last.size-last.end, "err", found)
	return nil
}

// rewrite makes the content of the last segment durable, in a new file with the same name. A
// file that can be read is not always on the disk. If the earlier process died after a failed
// fsync, the pages may be only in memory and marked clean. Another fsync of the same file
// would not write them.
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

// readBook returns the completions to write for decisions without a completion.
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
			return book{}, fmt.Errorf("record %d is marked as a decision, and its entry is not a decision", f.seq)
		}
		if s.DecidedWriter == "" {
			s.DecidedWriter = s.Writer
		}
		s.Org, s.DecidedSeq = f.name, f.seq
		b.open(s)
	}
	return b, nil
}

// frames returns the frames of the book for the head of a segment.
func (b *book) frames() []frame {
	fs := make([]frame, 0, len(b.bySeq))
	for seq, s := range b.bySeq {
		fs = append(fs, frame{kind: kindOpen, seq: seq, name: s.Org, body: s.Encode()})
	}
	slices.SortFunc(fs, func(a, b frame) int { return cmp.Compare(a.seq, b.seq) })
	return fs
}

// settleAll completes each decision in the book as unknown.
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
	w.c.Log.Warn("requests were in flight when the process ended; they are completed as unknown", "count", len(b.items))
	return nil
}
