package audit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"syscall"
)

// Folder is a segment folder that no process uses, opened for reading. It is locked until
// Close, so no sidecar can start with it.
type Folder struct {
	Dir      string           `json:"folder"`
	Acked    uint64           `json:"acked"` // as recorded by the sidecar: the control plane has all records up to this number
	Records  int64            `json:"records"`
	Unacked  int64            `json:"unacked"` // records above Acked
	Damaged  int              `json:"damaged"` // segments
	Segments []*FolderSegment `json:"segments"`

	lock *os.File
}

// FolderSegment describes one segment.
type FolderSegment struct {
	File    string           `json:"file"`
	Version int              `json:"version"` // version of the format: 1, 2, or 3 for a segment with only some of its records
	Writer  string           `json:"writer"`
	First   uint64           `json:"first"` // number of the first record; 0: the segment is empty
	Last    uint64           `json:"last"`  // number of the last record
	Records int64            `json:"records"`
	Bytes   int64            `json:"bytes"`
	Orgs    map[string]int64 `json:"orgs"`              // records by org
	Kinds   map[string]int64 `json:"kinds"`             // records by kind
	Open    int              `json:"open"`              // decisions without an end at its beginning
	Acked   bool             `json:"acked"`             // the control plane has all of it
	Torn    int64            `json:"torn_bytes"`        // bytes of a write that a crash interrupted; it was never reported as durable
	Taken   int64            `json:"taken_back"`        // records that could not be made durable, according to the next segment
	Problem string           `json:"problem,omitempty"` // damage that no crash explains

	seg   *segment
	until uint64
}

// OpenFolder reads all heads and records of a segment folder. It returns an error if a process
// uses the folder. Damage is reported in its segment; the records before it can be read.
func OpenFolder(dir string) (*Folder, error) {
	f, err := openFolder(dir)
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, fmt.Errorf("opening audit segments: %w", err)
	}
	return f, nil
}

// Close unlocks the folder.
func (f *Folder) Close() {
	if f.lock != nil {
		_ = f.lock.Close() // closing releases the lock; nothing was written
	}
}

func openFolder(dir string) (f *Folder, err error) {
	f = &Folder{Dir: dir, Segments: []*FolderSegment{}}
	if info, err := os.Stat(dir); err != nil {
		return f, err
	} else if !info.IsDir() {
		return f, fmt.Errorf("%s is not a folder", dir)
	}
	if f.lock, err = readLock(dir); err != nil {
		return f, err
	}
	segs, err := listSegments(dir)
	if err != nil {
		return f, err
	}
	if b, err := os.ReadFile(filepath.Join(dir, ackedName)); err == nil {
		f.Acked = parseAcked(b).acked // 0 if it cannot be read: then all records count as not shipped
	}
	segs, _ = splitJoined(segs)
	for _, seg := range segs {
		s := &FolderSegment{File: filepath.Base(seg.path), Bytes: seg.size, Version: 2, Orgs: map[string]int64{}, Kinds: map[string]int64{}, seg: seg, until: noLimit}
		f.Segments = append(f.Segments, s)
		h, err := headOf(seg)
		if err != nil {
			s.Problem = err.Error()
			continue
		}
		seg.take(h)
		s.Version, s.Writer, s.Open = h.version, h.writer, len(h.open)
		if n := len(f.Segments); n > 1 && f.Segments[n-2].Problem == "" {
			f.Segments[n-2].until = h.durable
		}
	}
	for i, s := range f.Segments {
		if s.Problem == "" {
			if err := f.look(s, i == len(f.Segments)-1); err != nil {
				return f, err
			}
		}
		if s.Problem != "" {
			f.Damaged++
		}
		s.Acked = s.Problem == "" && s.seg.last <= f.Acked
		f.Records += s.Records
	}
	return f, nil
}

// readLock locks the folder as a sidecar does, also on a read-only disk.
func readLock(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the folder is a copy that no sidecar has used
	}
	if err != nil {
		return nil, err
	}
	return held(file, dir, syscall.LOCK_SH)
}

func headOf(seg *segment) (head, error) {
	file, err := os.Open(seg.path)
	if err != nil {
		return head{}, err
	}
	defer file.Close()
	h, err := readHead(seg.path, file, seg.size)
	if err == nil && h.first != seg.first {
		err = &damage{seg.path, int64(len(magic)), fmt.Sprintf("it begins with record %d, not with that of its name", h.first)}
	}
	return h, err
}

// look counts the records of a segment.
func (f *Folder) look(s *FolderSegment, last bool) error {
	file, err := os.Open(s.seg.path)
	if err != nil {
		return err
	}
	defer file.Close()
	err = scan(s.seg, file, s.until, func(r frame) {
		if s.Records == 0 {
			s.First = r.seq
		}
		s.Last = r.seq
		s.Records++
		s.Orgs[r.name]++
		kind := "unreadable"
		if e, err := Parse(r.body); err == nil {
			kind = bounded(e.Head().Kind, maxWord)
		}
		s.Kinds[kind]++
		if r.seq > f.Acked {
			f.Unacked++
		}
	})
	switch {
	case err != nil && !isDamage(err):
		return err
	case err != nil && last:
		proof, found, e := acknowledged(s.seg.path, file, s.seg.end, s.seg.size, s.seg.last+1)
		if e != nil {
			return e
		}
		if found {
			s.Problem = fmt.Sprintf("%v; a later record at byte %d shows that it was durable once", err, proof)
		} else {
			s.Torn = s.seg.size - s.seg.end
		}
	case err != nil:
		s.Problem = err.Error()
	case !last && s.until != noLimit && s.seg.last != s.until && s.until >= s.seg.first:
		s.Problem = fmt.Sprintf("record %d is the last one in %s, but according to the next segment it is %d", s.seg.last, s.seg.path, s.until)
	case !last:
		// The bytes after the end belong to a failed write.
		r := newFrames(s.seg.path, file, s.seg.end, s.seg.size)
		for {
			if _, err := r.next(); err != nil {
				break
			}
			s.Taken++
		}
	}
	return nil
}

// FolderRecord is a record in a folder.
type FolderRecord struct {
	Record
	Writer string
	File   string
	Acked  bool
}

// Receipt returns the receipt that the caller of the request received.
func (r FolderRecord) Receipt() Receipt {
	return Receipt{Writer: r.Writer, Seq: r.Seq, Leaf: LeafHash(r.Entry)}
}

// Each calls fn for each record, oldest first, up to the first damage of each
// segment. The entry is valid until fn returns.
func (f *Folder) Each(fn func(FolderRecord) error) error {
	for _, s := range f.Segments {
		if s.Records == 0 {
			continue
		}
		if err := f.each(s, fn); err != nil {
			return err
		}
	}
	return nil
}

func (f *Folder) each(s *FolderSegment, fn func(FolderRecord) error) error {
	file, err := os.Open(s.seg.path)
	if err != nil {
		return err
	}
	defer file.Close()
	prevs := maps.Clone(s.seg.prevs)
	r := newFrames(s.seg.path, file, s.seg.start, s.seg.end)
	for {
		fr, err := r.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		rec := FolderRecord{Record: Record{Seq: fr.seq, Prev: prevs[fr.name], Org: fr.name, Entry: fr.body}, Writer: s.Writer, File: s.File, Acked: fr.seq <= f.Acked}
		prevs[fr.name] = fr.seq
		if err := fn(rec); err != nil {
			return err
		}
	}
}
