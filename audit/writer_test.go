package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// open opens a writer on dir and runs it until the test, or stop, ends it.
func open(t testing.TB, dir string, change func(*WriterConfig)) (w *Writer, stop func()) {
	t.Helper()
	c := WriterConfig{Dir: dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	if change != nil {
		change(&c)
	}
	w, err := OpenWriter(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			_ = w.Close()
		})
	}
	t.Cleanup(stop)
	return w, stop
}

func decided(request, effect string) Decided {
	return Decided{RequestID: request, AgentID: "ag_1", KeyID: "key_1", Effect: effect, Provider: "one", Model: "small", Time: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)}
}

// shipped is a Shipper that keeps the batches.
type shipped struct {
	mu     sync.Mutex
	writer string
	recs   []Record
	fail   func() error
}

func (s *shipped) Send(_ context.Context, b Batch) (uint64, error) {
	writer, recs := b.Writer, b.Records
	if len(recs) == 0 {
		return 0, nil // a watermark
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		if err := s.fail(); err != nil {
			return 0, err
		}
	}
	s.writer = writer
	for _, r := range recs {
		// A resend is dropped, as the chain drops it.
		if n := len(s.recs); n > 0 && r.Seq <= s.recs[n-1].Seq {
			continue
		}
		s.recs = append(s.recs, Record{r.Seq, r.Prev, r.Org, append([]byte(nil), r.Entry...)})
	}
	return recs[len(recs)-1].Seq, nil
}

// drain ships all durable records and returns them.
func drain(t testing.TB, w *Writer) []Record {
	t.Helper()
	s := &shipped{}
	shipWhile(t, w, s, func() {})
	return apart(s.recs)
}

// apart leaves out the records of KindStarted.
func apart(recs []Record) []Record {
	return slices.DeleteFunc(recs, func(r Record) bool { return bytes.Contains(r.Entry, []byte(`"kind":"writer.started"`)) })
}

// shipWhile ships to s while do runs, and then until all durable records have arrived.
func shipWhile(t testing.TB, w *Writer, s Shipper, do func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Ship(ctx, s) }()
	do()
	wait, over := context.WithTimeout(context.Background(), 30*time.Second)
	defer over()
	if err := w.WaitShipped(wait); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestShipInterval: a shipment is a transaction of the database, so the rate of small ones is
// limited. A slower machine may have fewer.
func TestShipInterval(t *testing.T) {
	w, _ := open(t, t.TempDir(), nil)
	sends := 0
	s := &shipped{fail: func() error { sends++; return nil }}
	began := time.Now()
	const n = 400
	shipWhile(t, w, s, func() {
		for i := range n {
			if _, err := w.Append(context.Background(), "org_1", decided(fmt.Sprint(i), "deny")); err != nil {
				t.Fatal(err)
			}
		}
	})
	full := n / (maxSendRecords / 2) // these do not wait
	if most := 1 + full + int(time.Since(began)/sendInterval); sends < 1 || sends > most || len(apart(s.recs)) != n {
		t.Errorf("%d records in %d shipments, at most %d in this time", len(s.recs), sends, most)
	}
}

func check(t testing.TB, recs []Record) (unsettled map[string]bool) {
	t.Helper()
	unsettled = map[string]bool{}
	settled := map[string]int{}
	for i, r := range recs {
		// Numbers of a batch that could not be written are never used again.
		if i > 0 && r.Seq <= recs[i-1].Seq {
			t.Errorf("record %d follows %d", r.Seq, recs[i-1].Seq)
		}
		e, err := Parse(r.Entry)
		if err != nil {
			t.Fatalf("record %d: %v", r.Seq, err)
		}
		switch e := e.(type) {
		case Decided:
			if e.Effect == "allow" {
				unsettled[e.RequestID] = true
			}
		case Settled:
			delete(unsettled, e.RequestID)
			settled[e.RequestID]++
		}
	}
	for id, n := range settled {
		if n != 1 {
			t.Errorf("%s has %d settlements", id, n)
		}
	}
	return unsettled
}

// Appended entries are there after a restart, in order. Decisions without a completion are
// completed as unknown, once.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	w, stop := open(t, dir, nil)
	var last Receipt
	for i := range 20 {
		d := decided(fmt.Sprintf("r%d", i), "allow")
		d.ReservedNanoUSD = 500
		r, err := w.Append(context.Background(), "org_1", d)
		if err != nil {
			t.Fatal(err)
		}
		if r.Seq <= last.Seq {
			t.Errorf("receipt %s after %s", r, last)
		}
		if back, err := ParseReceipt(r.String()); err != nil || back != r {
			t.Errorf("receipt %s: %v", r, err)
		}
		last = r
		if i%2 == 0 {
			w.Enqueue("org_1", Settled{RequestID: fmt.Sprintf("r%d", i), DecidedSeq: r.Seq, Outcome: "completed"})
		}
	}
	stop()
	w, stop = open(t, dir, nil)
	id := w.ID()
	if id == last.Writer {
		t.Error("another process has the same writer id")
	}
	recs := drain(t, w)
	if left := check(t, recs); len(left) != 0 || len(recs) != 40 {
		t.Errorf("%d records, unsettled: %v", len(recs), left)
	}
	unknown := 0
	for _, r := range recs {
		if strings.Contains(string(r.Entry), `"outcome":"unknown"`) {
			unknown++
		}
		// An entry that was shipped late is unchanged, and a recovered completion names its decision.
		want := last.Writer
		if strings.Contains(string(r.Entry), `"outcome":"unknown"`) {
			want = id
			if !strings.Contains(string(r.Entry), `"decided_writer":"`+last.Writer+`"`) {
				t.Errorf("it does not name the writer of its decision: %s", r.Entry)
			}
			if !strings.Contains(string(r.Entry), `"charged_nano_usd":500,"charge_basis":"reservation"`) {
				t.Errorf("it does not charge what its decision reserved: %s", r.Entry)
			}
		}
		if !strings.Contains(string(r.Entry), `"writer":"`+want+`"`) {
			t.Errorf("another writer: %s", r.Entry)
		}
	}
	if unknown != 10 {
		t.Errorf("%d are unknown", unknown)
	}
	stop()
	// A third start adds nothing. The segment that was written last may be sent again.
	w, _ = open(t, dir, nil)
	if _, err := w.Append(context.Background(), "org_1", decided("third", "deny")); err != nil {
		t.Fatal(err)
	}
	// The last record that was acknowledged may be sent to see whether the chain has it.
	if recs := drain(t, w); len(recs) > 2 || !strings.Contains(string(recs[len(recs)-1].Entry), "third") {
		t.Errorf("%d records are sent after a third start, want the new one", len(recs))
	}
}

func TestOneProcessADirectory(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, nil)
	if _, err := OpenWriter(WriterConfig{Dir: dir}); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("the second: %v", err)
	}
}

// Many goroutines append at once, and each entry has its own number.
func TestConcurrent(t *testing.T) {
	w, _ := open(t, t.TempDir(), func(c *WriterConfig) { c.SegmentBytes = 32 << 10 })
	var mu sync.Mutex
	seen := map[uint64]bool{}
	var wg sync.WaitGroup
	for g := range 32 {
		wg.Go(func() {
			for i := range 20 {
				r, err := w.Append(context.Background(), "org_1", decided(fmt.Sprintf("g%d-%d", g, i), "deny"))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if seen[r.Seq] {
					t.Errorf("%d twice", r.Seq)
				}
				seen[r.Seq] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if recs := drain(t, w); len(recs) != 640 {
		t.Errorf("%d records", len(recs))
	}
}

// TestDiskFaults makes each operation on the disk fail, before and after it is done. After a
// successful Append, the entry is there after a restart. A sequence number is never used
// twice, and every decision has a completion.
func TestDiskFaults(t *testing.T) {
	broken := errors.New("input/output error")
	for _, name := range []string{"create", "write", "sync", "rename", "syncdir"} {
		for _, done := range []bool{false, true} {
			for _, nth := range []int{1, 2, 4} {
				t.Run(fmt.Sprintf("%s done=%v nth=%d", name, done, nth), func(t *testing.T) {
					dir := t.TempDir()
					var mu sync.Mutex
					armed, count := false, 0
					fault := func(o operation, do func() error) error {
						mu.Lock()
						hit := armed && o.name == name
						if hit {
							count++
							hit = count == nth
						}
						mu.Unlock()
						if !hit {
							return do()
						}
						if done {
							if err := do(); err != nil {
								return err
							}
						}
						return broken
					}
					w, stop := open(t, dir, func(c *WriterConfig) { c.fault, c.SegmentBytes = fault, 4<<10 })
					mu.Lock()
					armed = true
					mu.Unlock()
					promised := map[uint64][32]byte{}
					for i := range 40 {
						ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
						r, err := w.Append(ctx, "org_1", decided(fmt.Sprintf("r%d", i), "allow"))
						cancel()
						if err == nil {
							promised[r.Seq] = r.Leaf
						}
					}
					// The writer recovers without a call.
					for deadline := time.Now().Add(20 * time.Second); ; {
						r, err := w.Append(context.Background(), "org_1", decided("last", "allow"))
						if err == nil {
							promised[r.Seq] = r.Leaf
							break
						}
						if time.Now().After(deadline) {
							t.Fatalf("it does not come back: %v", err)
						}
						<-time.After(10 * time.Millisecond)
					}
					stop()
					w, _ = open(t, dir, nil)
					recs := drain(t, w)
					if left := check(t, recs); len(left) != 0 {
						t.Errorf("unsettled: %v", left)
					}
					found := map[uint64][32]byte{}
					for _, r := range recs {
						found[r.Seq] = LeafHash(r.Entry)
					}
					for seq, leaf := range promised {
						if found[seq] != leaf {
							t.Errorf("record %d was promised and is not there, or is another", seq)
						}
					}
				})
			}
		}
	}
}

// TestDamage changes a byte of a complete segment. That is an error that names the file, and is
// never skipped. An interrupted write at the end is cut off.
func TestDamage(t *testing.T) {
	fill := func(t *testing.T, size int64, atLeast int) (dir string, segments []string) {
		dir = t.TempDir()
		w, stop := open(t, dir, func(c *WriterConfig) { c.SegmentBytes = size })
		for i := range 20 {
			if _, err := w.Append(context.Background(), "org_1", decided(fmt.Sprintf("r%d", i), "deny")); err != nil {
				t.Fatal(err)
			}
		}
		stop()
		segments, err := filepath.Glob(filepath.Join(dir, "*.seg"))
		if err != nil || len(segments) < atLeast {
			t.Fatalf("segments: %v %v", segments, err)
		}
		return dir, segments
	}
	t.Run("a byte in the middle", func(t *testing.T) {
		dir, segs := fill(t, 2<<10, 3)
		b, err := os.ReadFile(segs[0])
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 1
		if err := os.WriteFile(segs[0], b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenWriter(WriterConfig{Dir: dir}); err == nil || !strings.Contains(err.Error(), filepath.Base(segs[0])) {
			t.Errorf("opened: %v", err)
		}
	})
	t.Run("a segment is missing", func(t *testing.T) {
		dir, segs := fill(t, 2<<10, 3)
		if err := os.Remove(segs[1]); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenWriter(WriterConfig{Dir: dir}); err == nil {
			t.Error("opened")
		}
	})
	t.Run("a torn end", func(t *testing.T) {
		// As after a crash: nothing was closed.
		live := t.TempDir()
		w, _ := open(t, live, nil)
		for i := range 20 {
			if _, err := w.Append(context.Background(), "org_1", decided(fmt.Sprintf("r%d", i), "deny")); err != nil {
				t.Fatal(err)
			}
		}
		segs, err := filepath.Glob(filepath.Join(live, "*.seg"))
		if err != nil || len(segs) != 1 {
			t.Fatalf("segments: %v %v", segs, err)
		}
		room, err := os.ReadFile(segs[0])
		if err != nil {
			t.Fatal(err)
		}
		written := len(bytes.TrimRight(room, "\x00"))
		for _, c := range []struct {
			name string
			end  []byte
			want int // records; -1: it is damage
		}{
			{"nothing is torn", room, 20},
			{"and there is no room", room[:written], 20},
			{"the last record is cut", room[:written-5], 19},
			{"the last record is half there", slices.Concat(room[:written-5], make([]byte, 5), room[written:]), 19},
			{"the last record is nearly gone", slices.Concat(room[:written-100], make([]byte, 100), room[written:]), 19},
			{"zeros in the middle", slices.Concat(room[:written/2], make([]byte, 2000), room[written/2+2000:]), -1},
			{"something behind the room", slices.Concat(room, []byte("x")), 20},
		} {
			t.Run(c.name, func(t *testing.T) {
				dir := t.TempDir()
				if err := os.WriteFile(filepath.Join(dir, filepath.Base(segs[0])), c.end, 0o600); err != nil {
					t.Fatal(err)
				}
				if c.want == -1 {
					if _, err := OpenWriter(WriterConfig{Dir: dir}); err == nil || !strings.Contains(err.Error(), filepath.Base(segs[0])) {
						t.Errorf("opened: %v", err)
					}
					return
				}
				w, _ := open(t, dir, nil)
				recs := drain(t, w)
				if len(recs) != c.want {
					t.Errorf("%d records, want %d", len(recs), c.want)
				}
				check(t, recs)
			})
		}
	})
}

// TestManyKept: when the disk fails, the entries without a waiting caller may fill more than
// one batch. All of them are written once the disk works again. A waiting caller does not wait
// for them.
func TestManyKept(t *testing.T) {
	var broken atomic.Bool
	begun, fails := make(chan struct{}), make(chan struct{})
	w, _ := open(t, t.TempDir(), func(c *WriterConfig) {
		c.fault = func(o operation, do func() error) error {
			if o.name == "write" && broken.CompareAndSwap(true, false) {
				close(begun)
				<-fails
				return errors.New("the disk is broken")
			}
			return do()
		}
	})
	broken.Store(true)
	failed := make(chan error, 1)
	go func() {
		_, err := w.Append(context.Background(), "org_1", decided("fails", "deny"))
		failed <- err
	}()
	<-begun
	n := 0
	for bytes := int64(0); bytes < 2*maxBatchBytes+maxBatchBytes/64; n++ {
		s := Settled{RequestID: fmt.Sprint(n), Outcome: "completed", Lost: slices.Repeat([]string{strings.Repeat("x", 64)}, 32)}
		w.Enqueue("org_1", s)
		bytes += int64(len(s.Encode()))
	}
	close(fails)
	if err := <-failed; err == nil {
		t.Fatal("it was accepted")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for w.Ready() != nil && ctx.Err() == nil {
		<-time.After(time.Millisecond)
	}
	if _, err := w.Append(ctx, "org_1", decided("last", "deny")); err != nil {
		t.Fatal(err)
	}
	if recs := drain(t, w); len(recs) != n+1 {
		t.Errorf("%d records, want %d", len(recs), n+1)
	}
}

// Entries are rejected before the disk is full.
func TestFull(t *testing.T) {
	w, _ := open(t, t.TempDir(), func(c *WriterConfig) { c.MinFreeBytes = 1 << 60 })
	if _, err := w.Append(context.Background(), "org_1", decided("r", "allow")); err == nil {
		t.Error("accepted")
	}
	if w.Ready() == nil {
		t.Error("ready")
	}
}

// TestKilled repeatedly kills a process that appends at full speed. Every entry with a
// successful Append is there afterwards.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("AID_TEST_KILLED"); dir != "" {
		victim(t, dir)
		return
	}
	dir := t.TempDir()
	rounds := 15
	if testing.Short() {
		rounds = 3
	}
	promised := map[string]bool{}
	for range rounds {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestKilled$")
		cmd.Env = append(os.Environ(), "AID_TEST_KILLED="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// The process prints each receipt once it has it, and is killed meanwhile.
		buf := make([]byte, 64<<10)
		var said strings.Builder
		for said.Len() < 40_000 {
			n, err := out.Read(buf)
			said.Write(buf[:n])
			if err != nil {
				break
			}
		}
		_ = cmd.Process.Signal(syscall.SIGKILL)
		for {
			n, err := out.Read(buf)
			said.Write(buf[:n])
			if err != nil {
				break
			}
		}
		_ = cmd.Wait()
		lines := strings.Split(said.String(), "\n")
		for _, line := range lines[:len(lines)-1] { // the last may be torn
			if strings.HasPrefix(line, "w_") {
				promised[line] = true
			}
		}
	}
	if len(promised) < 100 {
		t.Fatalf("only %d receipts", len(promised))
	}
	w, _ := open(t, dir, nil)
	recs := drain(t, w)
	if left := check(t, recs); len(left) != 0 {
		t.Errorf("%d decisions without an end", len(left))
	}
	for _, r := range recs {
		e, err := Parse(r.Entry)
		if err != nil {
			t.Fatal(err)
		}
		delete(promised, Receipt{Writer: e.Head().Writer, Seq: r.Seq, Leaf: LeafHash(r.Entry)}.String())
	}
	if len(promised) != 0 {
		t.Errorf("%d receipts are of records that are not there", len(promised))
	}
}

func victim(t *testing.T, dir string) {
	w, _ := open(t, dir, nil)
	var wg sync.WaitGroup
	var mu sync.Mutex
	for g := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%d-%d-%d", os.Getpid(), g, i)
				r, err := w.Append(context.Background(), "org_1", decided(id, "allow"))
				if err != nil {
					return
				}
				mu.Lock()
				fmt.Println(r.String())
				mu.Unlock()
				if i%3 != 0 {
					w.Enqueue("org_1", Settled{RequestID: id, DecidedSeq: r.Seq, Outcome: "completed"})
				}
			}
		})
	}
	wg.Wait()
}

// FuzzParse: an entry that is parsed and encoded again is unchanged, and parses the same. One
// that does not begin as Encode writes it is read in another way, and is the same too.
func FuzzParse(f *testing.F) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, e := range []Entry{decided("r", "allow"), Settled{RequestID: "r", Outcome: "completed"}, Changed{Kind: "agent.created", ObjectID: "ag_1"}} {
		whole := Stamp(e, "org_1", "w_1", now).Encode()
		f.Add(whole)
		for _, part := range []string{`"org":"org_1",`, `"writer":"w_1",`, `"time":"2026-01-02T03:04:05.000000Z",`} {
			f.Add(bytes.Replace(whole, []byte(part), nil, 1))
		}
		f.Add(bytes.Replace(whole, []byte("05.000000Z"), []byte("05Z"), 1))
		f.Add(bytes.Replace(whole, []byte(`"org":"org_1"`), []byte(`"org":1`), 1))
		f.Add(bytes.Replace(whole, []byte(`"org":`), []byte(`"org":"org_2","org":`), 1))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Parse(b)
		if spaced := append([]byte("{ "), bytes.TrimPrefix(b, []byte("{"))...); len(b) < MaxEntryBytes && bytes.HasPrefix(b, []byte(`{"v":1,`)) {
			if e1, err1 := Parse(spaced); errors.Is(err, ErrMalformed) != errors.Is(err1, ErrMalformed) || err == nil && !reflect.DeepEqual(e, e1) {
				t.Errorf("%s: %+v, %v\nspaced: %+v, %v", b, e, err, e1, err1)
			}
		}
		if err != nil {
			return
		}
		once := e.Encode()
		again, err := Parse(once)
		if err != nil {
			t.Fatalf("%s: %v", once, err)
		}
		if twice := again.Encode(); string(twice) != string(once) {
			t.Errorf("%s\nbecame\n%s", once, twice)
		}
	})
}

// byOrg is a Shipper that accepts batches, except those of one org.
type byOrg struct {
	mu    sync.Mutex
	stuck string
	seqs  map[string][]uint64
}

func (s *byOrg) Send(_ context.Context, b Batch) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.Org == s.stuck {
		return 0, errors.New("not now")
	}
	for _, r := range b.Records {
		if have := s.seqs[b.Org]; len(have) == 0 || have[len(have)-1] == r.Prev {
			s.seqs[b.Org] = append(have, r.Seq)
		} else if !slices.Contains(have, r.Seq) {
			return 0, &Behind{Have: have[len(have)-1]}
		}
	}
	return b.Records[len(b.Records)-1].Seq, nil
}

// Segments that are written again for a stuck org survive a crash at every step, and
// lose and repeat nothing of it.
func TestCrashWhileWrittenAgain(t *testing.T) {
	steps := 0
	for crash := 0; crash <= steps; crash++ {
		dir, left := t.TempDir(), filepath.Join(t.TempDir(), "left")
		s := &byOrg{stuck: "org_bad", seqs: map[string][]uint64{}}
		n, copied := 0, false
		var shipping atomic.Bool
		// One after the other: all but the appends are of the goroutine that tidies.
		fault := func(o operation, do func() error) error {
			if shipping.Load() && (o.name == "rename" || o.name == "remove") {
				if n++; n == crash && !copied {
					copied = true
					if err := os.CopyFS(left, os.DirFS(dir)); err != nil {
						t.Error(err)
					}
				}
			}
			return do()
		}
		w, stop := open(t, dir, func(c *WriterConfig) {
			c.fault, c.SegmentBytes, c.MaxBacklogBytes, c.KeepAckedBytes, c.MinFreeBytes = fault, 1<<10, 1<<20, -1, -1
		})
		want := map[string]int{}
		for i := range 30 {
			org := []string{"org_good", "org_good", "org_bad"}[i%3]
			if _, err := w.Append(t.Context(), org, decided(fmt.Sprint("r", i), "deny")); err != nil {
				t.Fatal(err)
			}
			want[org]++
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		shipping.Store(true)
		go func() { done <- w.Ship(ctx, s) }()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			w.mu.Lock()
			passed := w.passed == w.durable && w.segs[0].sparse && w.lanes["org_bad"] != nil && w.lanes["org_bad"].err != nil
			w.mu.Unlock()
			if passed {
				break
			}
			if time.Now().After(end) {
				t.Fatal("nothing is written again")
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		shipping.Store(false)
		stop()
		if crash == 0 {
			if steps = n; steps < 10 {
				t.Fatalf("%d steps", steps)
			}
			continue
		}
		if !copied {
			continue
		}
		if f, err := OpenFolder(left); err != nil {
			t.Fatal(err)
		} else if f.Close(); f.Damaged > 0 {
			t.Errorf("step %d: %d segments are damaged", crash, f.Damaged)
		}
		s.stuck = ""
		w, stop = open(t, left, func(c *WriterConfig) { c.SegmentBytes, c.MaxBacklogBytes, c.MinFreeBytes = 1<<10, 1<<20, -1 })
		shipWhile(t, w, s, func() {})
		stop()
		for org, n := range want {
			if got := len(s.seqs[org]) - 1; got != n { // and writer.started
				t.Errorf("step %d: %d of %d records of %s arrived", crash, got, n, org)
			}
		}
	}
}
