package audit

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var everyBit = flag.Bool("everybit", false, "TestDamagedAnywhere flips all bits of each byte, and not one of them")

// memoryDir is a folder in memory, where the file system has one: fsync is quick there.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "aid")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// The ways in which an operation on the disk ends badly.
type badEnd struct {
	name   string
	before bool  // the operation is not done
	half   bool  // of a write, a part is done
	err    error // nil: the process is killed
}

var badEnds = []badEnd{
	{name: "EIO", before: true, err: syscall.EIO}, {name: "EIO, and it was done", err: syscall.EIO},
	{name: "ENOSPC", before: true, err: syscall.ENOSPC}, {name: "ENOSPC, and it was done", err: syscall.ENOSPC},
	{name: "short write", half: true, err: io.ErrShortWrite},
	{name: "killed before", before: true}, {name: "killed within", half: true}, {name: "killed after"},
}

// Every operation on the disk in a process's life ends badly in every way. The process starts
// with the segments of an earlier one, begins others, and ends. After a
// successful Append, the next process has the entry. No number is used twice, and every
// decision has one completion.
func TestEveryOperation(t *testing.T) {
	const entries = 9
	before := memoryDir(t)
	promisedBefore := map[uint64][32]byte{}
	w, stop := open(t, before, func(c *WriterConfig) { c.SegmentBytes, c.MinFreeBytes = 1<<10, -1 })
	for i := range 3 {
		r, err := w.Append(t.Context(), "org_1", decided(fmt.Sprintf("before%d", i), "allow"))
		if err != nil {
			t.Fatal(err)
		}
		promisedBefore[r.Seq] = r.Leaf
	}
	kill := memoryDir(t)
	if err := os.CopyFS(kill, os.DirFS(before)); err != nil { // as a kill leaves it
		t.Fatal(err)
	}
	stop()

	// life is one process. It returns what it promised, and the folder as the next process finds it.
	life := func(t *testing.T, nth int, end badEnd) (promised map[uint64][32]byte, left string, done []string) {
		dir := memoryDir(t)
		if err := os.CopyFS(dir, os.DirFS(kill)); err != nil {
			t.Fatal(err)
		}
		left = dir
		promised = map[uint64][32]byte{}
		var mu sync.Mutex
		dead := false
		fault := func(o operation, do func() error) error {
			mu.Lock()
			defer mu.Unlock()
			done = append(done, o.name)
			if dead || len(done) != nth || end.half && o.name != "write" {
				return do()
			}
			switch {
			case end.half:
				if _, err := o.file.Write(o.data[:len(o.data)/2]); err != nil {
					return err
				}
			case !end.before:
				if err := do(); err != nil {
					return err
				}
			}
			if end.err != nil {
				return end.err
			}
			dead, left = true, memoryDir(t)
			if err := os.CopyFS(left, os.DirFS(dir)); err != nil {
				t.Error(err)
			}
			if end.half || !end.before {
				return errors.New("killed")
			}
			return do()
		}
		w, err := OpenWriter(WriterConfig{Dir: dir, fault: fault, SegmentBytes: 1 << 10, MinFreeBytes: -1, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			return promised, left, done // the next process tries again
		}
		ctx, cancel := context.WithCancel(context.Background())
		ran := make(chan error, 1)
		go func() { ran <- w.Run(ctx) }()
		for i := range entries {
			r, err := w.Append(context.Background(), "org_1", decided(fmt.Sprintf("r%d", i), "allow"))
			mu.Lock()
			if err == nil && !dead { // a killed process returns nothing
				promised[r.Seq] = r.Leaf
			}
			mu.Unlock()
		}
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		_ = w.Close()
		return promised, left, done
	}
	_, _, steps := life(t, 0, badEnd{})
	t.Logf("%d operations: %v", len(steps), steps)
	if len(steps) < 30 {
		t.Fatalf("only %d operations", len(steps))
	}
	var runs sync.WaitGroup
	places := make(chan struct{}, 8) // runs wait for the disk, mostly
	count := 0
	for nth := 1; nth <= len(steps); nth++ {
		for _, end := range badEnds {
			if end.half && steps[nth-1] != "write" {
				continue
			}
			count++
			places <- struct{}{}
			runs.Go(func() {
				defer func() { <-places }()
				name := fmt.Sprintf("%s %d: %s", steps[nth-1], nth, end.name)
				promised, left, _ := life(t, nth, end)
				for seq, leaf := range promisedBefore {
					promised[seq] = leaf
				}
				next, err := OpenWriter(WriterConfig{Dir: left, SegmentBytes: 1 << 10, MinFreeBytes: -1, Log: slog.New(slog.DiscardHandler)})
				if err != nil {
					t.Errorf("%s: the next process does not start: %v", name, err)
					return
				}
				recs := records(t, next)
				if err := next.Close(); err != nil {
					t.Error(err)
				}
				if unsettled := check(t, recs); len(unsettled) != 0 {
					t.Errorf("%s: unsettled: %v", name, unsettled)
				}
				found := map[uint64][32]byte{}
				for _, r := range recs {
					found[r.Seq] = LeafHash(r.Entry)
				}
				for seq, leaf := range promised {
					if found[seq] != leaf {
						t.Errorf("%s: record %d was promised and is not there, or is another", name, seq)
					}
				}
			})
		}
	}
	runs.Wait()
	t.Logf("%d ends", count)
}

// records are those in the segments of a writer that does not run.
func records(t testing.TB, w *Writer) (recs []Record) {
	t.Helper()
	for _, s := range w.segs {
		f, err := os.Open(s.path)
		if err != nil {
			t.Fatal(err)
		}
		r := newFrames(s.path, f, s.start, s.end)
		for {
			f, err := r.next()
			if err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			recs = append(recs, Record{Seq: f.seq, Org: f.name, Entry: append([]byte(nil), f.body...)})
		}
		f.Close()
	}
	return apart(recs)
}

// A segment is changed at each of its bytes: a bit is flipped, it ends there, or the rest is
// zeros. Only the last batch may be dropped, which is the one that a crash can interrupt. All
// other damage stops the start, and the error names the file.
func TestDamagedAnywhere(t *testing.T) {
	live := memoryDir(t)
	w, _ := open(t, live, func(c *WriterConfig) { c.SegmentBytes, c.MinFreeBytes = 2<<10, -1 })
	const n = 3
	for i := range n {
		if _, err := w.Append(t.Context(), "org_1", decided(fmt.Sprint("r", i), "deny")); err != nil {
			t.Fatal(err)
		}
	}
	last := *w.last()
	whole, err := os.ReadFile(last.path)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(last.path)
	closed := w.last().end
	// Where the records begin, and their content.
	var starts []int64
	var bodies []string
	r := newFrames(last.path, strings.NewReader(string(whole)), last.start, last.end)
	for {
		at := r.offset
		f, err := r.next()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		starts, bodies = append(starts, at), append(bodies, string(f.body))
	}
	lastBatch := starts[len(starts)-1]
	dir := memoryDir(t)
	// start reads a segment as a process does when it starts.
	start := func(b []byte) (got []string, err error) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		w := &Writer{c: WriterConfig{Dir: dir, Log: slog.New(slog.DiscardHandler), Now: time.Now}, disk: disk{dir: dir}}
		w.metrics = newMetrics(w)
		segs, err := listSegments(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.readAll(segs); err != nil {
			return nil, err
		}
		r := newFrames(path, strings.NewReader(string(b)), w.last().start, w.last().end)
		for {
			f, err := r.next()
			if err == io.EOF {
				return got, nil
			} else if err != nil {
				t.Fatal(err)
			}
			got = append(got, string(f.body))
		}
	}
	stopped, dropped := 0, 0
	// judge checks a start of a segment that is damaged at a byte.
	judge := func(what string, at int64, b []byte, most int) {
		got, err := start(b)
		if err != nil {
			stopped++
			if !isDamage(err) || !strings.Contains(err.Error(), name) {
				t.Errorf("%s at byte %d: %v", what, at, err)
			}
			return
		}
		if len(got) < len(bodies) {
			dropped++
		}
		if len(got) < len(bodies)-most {
			t.Errorf("%s at byte %d: %d of %d records are left, without an error", what, at, len(got), len(bodies))
		}
		for i, body := range got {
			if body != bodies[i] {
				t.Errorf("%s at byte %d: record %d was changed", what, at, i)
			}
		}
	}
	for at := range int64(len(whole)) {
		for bit := range 8 {
			if !*everyBit && bit != int(at)%8 {
				continue
			}
			b := append([]byte(nil), whole...)
			b[at] ^= 1 << bit
			most := 0
			if at >= lastBatch && at < closed {
				most = 1
			}
			judge("a flipped bit", at, b, most)
		}
		if at < lastBatch || at > closed {
			continue
		}
		judge("a cut", at, whole[:at], 1)
		zeros := append([]byte(nil), whole...)
		clear(zeros[at:])
		judge("zeros", at, zeros, 1)
	}
	// A page of zeros before the last batch is damage, wherever it is.
	for at := int64(0); at+100 <= lastBatch; at += 10 {
		zeros := append([]byte(nil), whole...)
		clear(zeros[at : at+100])
		judge("100 zeros", at, zeros, 0)
	}
	t.Logf("%d bytes, %d records: %d starts were stopped, %d dropped the last batch", len(whole), len(bodies), stopped, dropped)
	if stopped == 0 || dropped == 0 {
		t.Error("nothing was stopped, or nothing was dropped")
	}
}
