package audit

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A segment is a file of records. Its name is the sequence number of its first record. Its
// parts are
//
//	magic    "AIDSEG2\n"
//	head     one frame: the writer, where this file begins, the last durable record before
//	open     one frame for each allowed decision without a completion at that time
//	prev     one frame for each org: the writer's last durable number in it
//	records  frames, appended batch by batch
//
// Magic, head and open are complete before the file gets its name. A batch is written in one
// write, and is durable before the next one is written. A frame is
//
//	4 bytes  length of all that follows the sum, big endian, as all numbers are
//	4        CRC-32C of all that follows
//	1        kind
//	8        seq
//	8        mark
//	8        ref
//	1        length of name
//	…        name
//	…        body
//
// with these fields:
//
//	kind      seq             mark                  ref              name    body
//	head      of the 1st      the last that was     open frames      writer  —
//	          record here     durable before
//	          (body: how many prev frames there are, 8 bytes; in AIDSEG3 also
//	          the last number of its range, 8 bytes)
//	prev      the number          0                     0                org     —
//	open      the decision's  0                     0                org     the completion to write after a crash
//	record    its own         of its batch's 1st    0                org     entry
//	allowed   its own         of its batch's 1st    0                org     entry, a decision to allow
//	settled   its own         of its batch's 1st    the decision's   org     entry, its completion
//
// The mark distinguishes damage from a write that a crash interrupted. If a record's batch
// begins at M, everything before M was durable. The mark of a head is the end of the files
// before it. Records after that end could not be made durable, and their callers got an error.
type frame struct {
	kind byte
	seq  uint64
	mark uint64
	ref  uint64
	name string
	body []byte
}

const (
	magic    = "AIDSEG2\n"
	magicOld = "AIDSEG1\n" // has no prev frames
	// magicSparse begins a segment that was written again with only some of its records. Its
	// numbers have holes, and its head has the number at the end of its range.
	magicSparse = "AIDSEG3\n"

	kindHead    = 'H'
	kindOpen    = 'O'
	kindPrev    = 'P'
	kindRecord  = 'R'
	kindAllowed = 'D'
	kindSettled = 'S'

	frameSum   = 8           // length and sum
	frameFixed = 1 + 3*8 + 1 // kind to length of name
	maxFrame   = frameFixed + maxID + MaxEntryBytes

	segmentSuffix = ".seg"
)

func segmentName(first uint64) string { return fmt.Sprintf("%020d%s", first, segmentSuffix) }

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func appendFrame(b []byte, f frame) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, f.kind)
	b = binary.BigEndian.AppendUint64(b, f.seq)
	b = binary.BigEndian.AppendUint64(b, f.mark)
	b = binary.BigEndian.AppendUint64(b, f.ref)
	b = append(b, byte(len(f.name)))
	b = append(b, f.name...)
	b = append(b, f.body...)
	p := b[start+frameSum:]
	binary.BigEndian.PutUint32(b[start:], uint32(len(p)))
	binary.BigEndian.PutUint32(b[start+4:], checksum(p))
	return b
}

// parseFrame parses the bytes after the checksum, which is correct.
func parseFrame(p []byte) (frame, bool) {
	f := frame{
		kind: p[0],
		seq:  binary.BigEndian.Uint64(p[1:]),
		mark: binary.BigEndian.Uint64(p[9:]),
		ref:  binary.BigEndian.Uint64(p[17:]),
	}
	n := int(p[25])
	if len(p) < frameFixed+n {
		return frame{}, false
	}
	f.name = string(p[frameFixed : frameFixed+n])
	f.body = p[frameFixed+n:]
	return f, true
}

// damage is an error about bytes at an offset that are not valid.
type damage struct {
	path   string
	offset int64
	what   string
}

func (d *damage) Error() string {
	return fmt.Sprintf("audit segment %s is damaged at byte %d: %s", d.path, d.offset, d.what)
}

// frames reads frames from a file, one after the other.
type frames struct {
	path   string
	file   io.ReaderAt
	r      *bufio.Reader
	offset int64 // offset of the next frame
	end    int64
	buf    []byte
}

func newFrames(path string, r io.ReaderAt, from, to int64) *frames {
	return &frames{path: path, file: r, end: to, r: bufio.NewReaderSize(io.NewSectionReader(r, from, to-from), 256<<10), offset: from}
}

func (r *frames) damage(format string, args ...any) error {
	return &damage{path: r.path, offset: r.offset, what: fmt.Sprintf(format, args...)}
}

// next returns the next frame. Its body is valid until the next call. The error is io.EOF at
// the end, and a *damage if the bytes are not a frame. Other errors are from reading.
func (r *frames) next() (frame, error) {
	if r.unused() {
		return frame{}, io.EOF
	}
	var head [frameSum]byte
	switch n, err := io.ReadFull(r.r, head[:]); {
	case err == io.EOF:
		return frame{}, io.EOF
	case err == io.ErrUnexpectedEOF:
		return frame{}, r.damage("%d bytes are left, which is too short for a frame", n)
	case err != nil:
		return frame{}, fmt.Errorf("reading %s: %w", r.path, err)
	}
	size := binary.BigEndian.Uint32(head[:])
	if size < frameFixed || size > maxFrame {
		return frame{}, r.damage("a frame of %d bytes is not valid", size)
	}
	r.buf = slices.Grow(r.buf[:0], int(size))[:size]
	switch _, err := io.ReadFull(r.r, r.buf); {
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		return frame{}, r.damage("the file ends within a frame")
	case err != nil:
		return frame{}, fmt.Errorf("reading %s: %w", r.path, err)
	}
	if checksum(r.buf) != binary.BigEndian.Uint32(head[4:]) {
		return frame{}, r.damage("the checksum is wrong")
	}
	f, ok := parseFrame(r.buf)
	if !ok {
		return frame{}, r.damage("a name is longer than its frame")
	}
	r.offset += frameSum + int64(size)
	return f, nil
}

// unused reports whether the rest is zeros: space that was reserved and not written. A frame
// never begins with zeros.
func (r *frames) unused() bool {
	if b, err := r.r.Peek(frameSum); err != nil || !zero(b) {
		return false
	}
	b := make([]byte, 64<<10)
	for offset := r.offset; offset < r.end; {
		n, err := r.file.ReadAt(b[:min(int64(len(b)), r.end-offset)], offset)
		if err != nil || !zero(b[:n]) {
			return false
		}
		offset += int64(n)
	}
	return true
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// segment is the state of one of a Writer's files after its last durable write. Bytes after
// end are not valid.
type segment struct {
	path    string
	writer  string
	prevs   map[string]uint64 // by org: the writer's last number before first
	ackedAt time.Time         // since when all orgs without a lane have all of it; zero: they have not
	before  uint64            // the last valid record before it
	first   uint64            // sequence number of its first record, or of the next one
	last    uint64            // sequence number of its last record; first-1: it has none
	start   int64             // offset of the first record
	end     int64             // offset after the last record
	size    int64             // size of the file, if it has not changed
	counts  int64             // bytes of entries of counts
	orgs    map[string]int64  // bytes of its records by org; nil: not read, since it was acknowledged before this process
	waiting map[string]int64  // for a passed segment: the bytes that lanes still have to ship, by org
	sparse  bool              // written again with only some of its records; last is the end of its range
}

func (s *segment) empty() bool { return s.last < s.first }

// head is the beginning of a segment.
type head struct {
	writer  string
	first   uint64
	durable uint64 // the last valid record of the segments before
	open    []frame
	prevs   map[string]uint64
	start   int64
	version int    // of the format
	sparse  bool   // it was written again: see magicSparse
	last    uint64 // for a sparse segment: the end of its range
}

func appendHead(b []byte, h head) []byte {
	body := binary.BigEndian.AppendUint64(nil, uint64(len(h.prevs)))
	if h.sparse {
		b = append(b, magicSparse...)
		body = binary.BigEndian.AppendUint64(body, h.last)
	} else {
		b = append(b, magic...)
	}
	b = appendFrame(b, frame{kind: kindHead, seq: h.first, mark: h.durable, ref: uint64(len(h.open)), name: h.writer, body: body})
	for _, f := range h.open {
		b = appendFrame(b, f)
	}
	for _, org := range slices.Sorted(maps.Keys(h.prevs)) {
		b = appendFrame(b, frame{kind: kindPrev, seq: h.prevs[org], name: org})
	}
	return b
}

// readHead reads the beginning of a file. The file got its name after that was durable, so
// every error here is damage.
func readHead(path string, f io.ReaderAt, size int64) (head, error) {
	var got [len(magic)]byte
	if size < int64(len(magic)) {
		return head{}, &damage{path, 0, "it is shorter than its head"}
	}
	if _, err := f.ReadAt(got[:], 0); err != nil {
		return head{}, fmt.Errorf("reading %s: %w", path, err)
	}
	if s := string(got[:]); s != magic && s != magicOld && s != magicSparse {
		return head{}, &damage{path, 0, "it does not begin like a segment of this version (AIDSEG2 or AIDSEG3)"}
	}
	r := newFrames(path, f, int64(len(magic)), size)
	next := func(kind byte) (frame, error) {
		at := r.offset
		f, err := r.next()
		switch {
		case err == io.EOF:
			return frame{}, r.damage("the head is not complete")
		case err != nil:
			return frame{}, err
		case f.kind != kind:
			return frame{}, &damage{path, at, fmt.Sprintf("a frame has kind %q and must have kind %q", f.kind, kind)}
		}
		return f, nil
	}
	hf, err := next(kindHead)
	if err != nil {
		return head{}, err
	}
	h := head{writer: hf.name, first: hf.seq, durable: hf.mark, prevs: make(map[string]uint64), version: 2}
	if string(got[:]) == magicOld {
		h.version = 1
	}
	count := uint64(0)
	if len(hf.body) >= 8 {
		count = binary.BigEndian.Uint64(hf.body)
	}
	if string(got[:]) == magicSparse {
		if len(hf.body) != 16 {
			return head{}, &damage{path, int64(len(magic)), "the head does not have the end of its range"}
		}
		h.version, h.sparse, h.last = 3, true, binary.BigEndian.Uint64(hf.body[8:])
		if h.last < h.first || h.last > math.MaxInt64 {
			return head{}, &damage{path, int64(len(magic)), "the head has values that no writer writes"}
		}
	}
	if !validID(h.writer) || h.first == 0 || h.first > math.MaxInt64 || h.durable >= h.first {
		return head{}, &damage{path, int64(len(magic)), "the head has values that no writer writes"}
	}
	for range hf.ref {
		f, err := next(kindOpen)
		if err != nil {
			return head{}, err
		}
		f.body = slices.Clone(f.body)
		h.open = append(h.open, f)
	}
	for range count {
		f, err := next(kindPrev)
		if err != nil {
			return head{}, err
		}
		h.prevs[f.name] = f.seq
	}
	h.start = r.offset
	return h, nil
}

// scan reads records up to sequence number until, or to the end of the file. It calls fn for
// each. The frame's body is valid until fn returns.
//
// The error is a *damage at the offset of the first wrong frame. seg.end is then the end of
// the records before it.
func scan(seg *segment, f io.ReaderAt, until uint64, fn func(frame)) error {
	if seg.sparse {
		return seg.scanSparse(f, fn)
	}
	r := newFrames(seg.path, f, seg.start, seg.size)
	seg.last, seg.end = seg.first-1, seg.start
	batch := seg.first // the first record of the current batch
	for seg.last < until {
		at := r.offset
		f, err := r.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if problem := wrongRecord(f, seg.last+1, batch); problem != "" {
			return &damage{seg.path, at, problem}
		}
		batch = f.mark
		seg.last, seg.end = f.seq, r.offset
		fn(f)
	}
	return nil
}

// scanSparse is scan for a segment with holes. The segment was complete when it got its name, so
// it is read to its end, and last stays the number in its head.
func (s *segment) scanSparse(f io.ReaderAt, fn func(frame)) error {
	r := newFrames(s.path, f, s.start, s.size)
	s.end = s.start
	for before := s.first - 1; ; {
		at := r.offset
		f, err := r.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		problem := wrongRecord(f, f.seq, f.mark)
		if problem == "" && (f.seq <= before || f.seq > s.last) {
			problem = fmt.Sprintf("record %d is not between %d and %d", f.seq, before, s.last)
		}
		if problem != "" {
			return &damage{s.path, at, problem}
		}
		before, s.end = f.seq, r.offset
		fn(f)
	}
}

// add counts a record of the segment's file.
func (s *segment) add(f frame) {
	if s.orgs == nil {
		s.orgs = make(map[string]int64)
	}
	n := frameSum + frameFixed + int64(len(f.name)+len(f.body))
	s.orgs[f.name] += n
	if isCount(f.body) {
		s.counts += n
	}
}

// wrongRecord returns what is wrong with a frame at the place of record seq, or "".
func wrongRecord(f frame, seq, batch uint64) string {
	switch {
	case f.kind != kindRecord && f.kind != kindAllowed && f.kind != kindSettled:
		return fmt.Sprintf("a frame of kind %q is at the place of a record", f.kind)
	case f.seq != seq:
		return fmt.Sprintf("record %d is at the place of record %d", f.seq, seq)
	case f.mark != batch && f.mark != seq:
		return fmt.Sprintf("record %d has a batch that begins with %d", f.seq, f.mark)
	case (f.kind == kindSettled) != (f.ref != 0) || f.ref >= f.seq:
		return fmt.Sprintf("record %d completes a decision that does not exist", f.seq)
	case !validID(f.name) || len(f.body) == 0:
		return fmt.Sprintf("record %d has no org or no entry", f.seq)
	}
	return ""
}

// acknowledged searches the last segment after the damage at record lost, for proof that it was
// durable once. The proof is a record of a later batch. Without proof, record lost belongs to
// the batch that was in flight when the process or the machine died. Only one batch is in
// flight at a time, and the next one is written only after it is durable.
//
// Entries are ASCII and a frame is not, so no entry can look like a frame.
func acknowledged(path string, f io.ReaderAt, from, size int64, lost uint64) (proof int64, found bool, err error) {
	b := make([]byte, size-from)
	if _, err := f.ReadAt(b, from); err != nil && err != io.EOF {
		return 0, false, fmt.Errorf("reading %s: %w", path, err)
	}
	for i := 0; i+frameSum+frameFixed <= len(b); i++ {
		n := int64(binary.BigEndian.Uint32(b[i:]))
		if n < frameFixed || n > maxFrame || int64(i)+frameSum+n > int64(len(b)) {
			continue
		}
		p := b[i+frameSum : int64(i)+frameSum+n]
		g, ok := parseFrame(p)
		if !ok || g.mark <= lost || g.mark > g.seq || wrongRecord(g, g.seq, g.mark) != "" {
			continue
		}
		if checksum(p) == binary.BigEndian.Uint32(b[i+4:]) {
			return from + int64(i), true, nil
		}
	}
	return 0, false, nil
}

// listSegments returns the segments of a directory, oldest first, with only path, first and
// size set.
func listSegments(dir string) ([]*segment, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var segs []*segment
	for _, f := range files { // sorted by name, which is by first
		digits, ok := strings.CutSuffix(f.Name(), segmentSuffix)
		if !ok {
			continue
		}
		path := filepath.Join(dir, f.Name())
		first, err := strconv.ParseUint(digits, 10, 64)
		if err != nil || segmentName(first) != f.Name() {
			return nil, fmt.Errorf("%s has the name of an audit segment, and is not a segment", path)
		}
		info, err := f.Info()
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s has the name of an audit segment, and is not a file", path)
		}
		segs = append(segs, &segment{path: path, first: first, size: info.Size()})
	}
	return segs, nil
}

func isDamage(err error) bool {
	var d *damage
	return errors.As(err, &d)
}
