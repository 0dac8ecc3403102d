package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// ship ships until the test ends.
func ship(t *testing.T, w *audit.Writer, s audit.Shipper) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Ship(ctx, s) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// arrive waits until the chain of org has all receipts.
func arrive(t *testing.T, db *store.DB, org string, receipts []audit.Receipt) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for hasAll(t, db, org, receipts) > 0 {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %d of %d receipts are missing", org, hasAll(t, db, org, receipts), len(receipts))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// An org with a batch that the chain does not accept blocks no other org: if it is rejected,
// fails, or takes long. /readyz names the org, and its records arrive later.
func TestOrgsShipApart(t *testing.T) {
	for _, c := range []struct {
		name string
		harm func(t *testing.T, db *store.DB, org string, s *gate) (mend func())
		red  string // in Shipping's error as long as it lasts
	}{
		{"the chain is locked", func(t *testing.T, db *store.DB, org string, _ *gate) func() {
			conn := superuser(t, db)
			tx, err := conn.Begin(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(context.Background(), `SELECT 1 FROM audit_heads WHERE org_id = $1 FOR UPDATE`, org); err != nil {
				t.Fatal(err)
			}
			return func() { _ = tx.Rollback(context.Background()) }
		}, ""},
		{"the chain cannot be written", func(t *testing.T, db *store.DB, org string, _ *gate) func() {
			conn := superuser(t, db)
			exec := func(sql string) {
				if _, err := conn.Exec(context.Background(), sql); err != nil {
					t.Fatal(err)
				}
			}
			exec(fmt.Sprintf(`CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$
				BEGIN IF NEW.org_id = '%s' THEN RAISE 'not this org'; END IF; RETURN NEW; END $$`, org))
			exec(`CREATE TRIGGER no BEFORE UPDATE ON audit_heads FOR EACH ROW EXECUTE FUNCTION no()`)
			return func() { exec(`DROP TRIGGER no ON audit_heads`) }
		}, ""},
		{"the writer is another node's", func(t *testing.T, db *store.DB, org string, s *gate) func() {
			s.refuse(org, fmt.Errorf("%w: writer w_1 belongs to another node", audit.ErrFork))
			return func() { s.refuse(org, nil) }
		}, "belongs to another node"},
	} {
		t.Run(c.name, func(t *testing.T) {
			db := storetest.Open(t)
			bad, good := storetest.Org(t, db), storetest.Org(t, db)
			s := &gate{next: direct{chain(t, db, 1), "node_1"}}
			w := sidecar(t, t.TempDir(), audit.WriterConfig{})
			// The heads exist, so that a row lock is one.
			first := append(write(t, w, bad, "first", 1), write(t, w, good, "first", 1)...)
			ship(t, w, s)
			arrive(t, db, bad, first[:1])
			arrive(t, db, good, first[1:])

			mend := c.harm(t, db, bad, s)
			// More than one batch, so that the other org's records are far behind.
			stuck := write(t, w, bad, "stuck", 700)
			for range 3 {
				stuck = append(stuck, write(t, w, bad, "between", 1)...)
				arrive(t, db, good, write(t, w, good, "good", 5))
			}
			if n := hasAll(t, db, bad, stuck); n != len(stuck) {
				t.Errorf("%d of %d records of the org that cannot be shipped arrived", len(stuck)-n, len(stuck))
			}
			if c.red != "" {
				err := w.Shipping()
				if err == nil || !strings.Contains(err.Error(), c.red) || !strings.Contains(err.Error(), bad) || strings.Contains(err.Error(), good) {
					t.Errorf("readiness says %v", err)
				}
			}
			mend()
			arrive(t, db, bad, stuck)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if err := w.WaitShipped(ctx); err != nil {
				t.Error(err)
			}
			if err := w.Shipping(); err != nil {
				t.Error(err)
			}
			for _, org := range []string{bad, good} {
				if r := verify(t, db, org, 1); r.FirstBad != nil || r.Broken+r.Gaps != 0 {
					t.Errorf("%+v", r)
				}
			}
		})
	}
}

// gate lets a test reject the batches of orgs.
type gate struct {
	next   audit.Shipper
	poison string // batches with it are rejected for their form

	mu      sync.Mutex
	refused map[string]error
	calls   map[string]int // in flight, by org
	most    int            // in flight at once
	taken   map[string]int // by org
}

func (g *gate) refuse(org string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refused == nil {
		g.refused = make(map[string]error)
	}
	g.refused[org] = err
}

func (g *gate) Send(ctx context.Context, b audit.Batch) (uint64, error) {
	g.mu.Lock()
	if g.calls == nil {
		g.calls = make(map[string]int)
	}
	g.calls[b.Org]++
	g.most = max(g.most, len(g.calls))
	err := g.refused[b.Org]
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.calls[b.Org]--; g.calls[b.Org] == 0 {
			delete(g.calls, b.Org)
		}
	}()
	if err != nil {
		return 0, err
	}
	for _, r := range b.Records {
		if g.poison != "" && bytes.Contains(r.Entry, []byte(g.poison)) {
			return 0, fmt.Errorf("%w: record %d is poison", audit.ErrRefused, r.Seq)
		}
	}
	upTo, err := g.next.Send(ctx, b)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.taken == nil {
		g.taken = make(map[string]int)
	}
	if err == nil {
		g.taken[b.Org]++
	}
	return upTo, err
}

// Many orgs may fail, separately or together. The others continue, and all records arrive.
func TestManyOrgsFail(t *testing.T) {
	db := storetest.Open(t)
	s := &gate{next: direct{chain(t, db, 1), "node_1"}}
	reg := prometheus.NewRegistry()
	w := sidecar(t, t.TempDir(), audit.WriterConfig{Registerer: reg})
	away := errors.New("the database is away")
	var orgs []string
	receipts := map[string][]audit.Receipt{}
	for range 40 {
		org := storetest.Org(t, db)
		orgs = append(orgs, org)
		s.refuse(org, away)
	}
	for round := range 3 {
		for _, org := range orgs {
			receipts[org] = append(receipts[org], write(t, w, org, fmt.Sprint("r", round), 2)...)
		}
	}
	ship(t, w, s)
	good := storetest.Org(t, db)
	arrive(t, db, good, write(t, w, good, "good", 3))
	arrive(t, db, good, write(t, w, good, "later", 3))
	// All fail together, and then separately again.
	s.refuse(good, away)
	others := write(t, w, good, "away", 3)
	for _, org := range orgs {
		receipts[org] = append(receipts[org], write(t, w, org, "meanwhile", 1)...)
	}
	s.refuse(good, nil)
	arrive(t, db, good, others)
	for _, org := range orgs {
		s.refuse(org, nil)
	}
	for _, org := range orgs {
		arrive(t, db, org, receipts[org])
	}
	waitFor(t, func() bool { return w.Shipping() == nil })
	if s.most > 2*16+1 {
		t.Errorf("%d batches were in flight at once", s.most)
	}
}

func waitFor(t *testing.T, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not happen within 30 s")
		}
	}
}

// A record that the control plane rejects for its form is kept, and a gap replaces it. The
// records before and after it arrive, also those of its own org. It can be sent later.
func TestRejectedRecord(t *testing.T) {
	db := storetest.Open(t)
	org, other := storetest.Org(t, db), storetest.Org(t, db)
	node := direct{chain(t, db, 1), "node_1"}
	s := &gate{next: node, poison: "poison"}
	dir := t.TempDir()
	w := sidecar(t, dir, audit.WriterConfig{})
	before := write(t, w, org, "before", 20)
	bad := append(write(t, w, org, "poison-a", 1), write(t, w, org, "poison-b", 1)...)
	after, others := write(t, w, org, "after", 20), write(t, w, other, "other", 5)
	ship(t, w, s)
	arrive(t, db, org, append(before, after...))
	arrive(t, db, other, others)
	waitFor(t, func() bool { return w.Waiting() == 0 })
	if err := w.Shipping(); err != nil {
		t.Error(err)
	}
	state := func(want string) {
		t.Helper()
		places, err := audit.Locate(t.Context(), db, org, bad)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range places {
			if p.State != want {
				t.Errorf("%+v, want %s", p, want)
			}
		}
	}
	state(audit.PlaceGap)
	if r := verify(t, db, org, 1); r.FirstBad != nil || r.Gaps != 2 || r.Broken+r.Forks != 0 {
		t.Errorf("%+v", r)
	}
	for _, r := range bad {
		apart := filepath.Join(dir, "quarantine", fmt.Sprintf("%s-%d", r.Writer, r.Seq))
		f, err := audit.OpenFolder(apart)
		if err != nil {
			t.Fatal(err)
		}
		var held []string
		err = f.Each(func(rec audit.FolderRecord) error { held = append(held, rec.Receipt().String()); return nil })
		f.Close()
		if err != nil || f.Damaged != 0 || len(held) != 1 || held[0] != r.String() {
			t.Errorf("in quarantine: %v %v, want %s", held, err, r)
		}
		shipAll(t, sidecar(t, apart, audit.WriterConfig{Resend: true, MinFreeBytes: -1}), node)
	}
	state(audit.PlaceChain)
	if r := verify(t, db, org, 1); r.FirstBad != nil || r.Gaps != 2 || r.Broken != 0 {
		t.Errorf("%+v", r)
	}
}

// An org with a chain that accepts no records uses neither the backlog nor the disk of the
// others. Its waiting records are limited, and arrive later, also after a restart.
func TestStuckOrgLeavesRoom(t *testing.T) {
	const backlog = 256 << 10
	db := storetest.Open(t)
	s := &gate{next: direct{chain(t, db, 1), "node_1"}}
	reg := prometheus.NewRegistry()
	dir := t.TempDir()
	config := audit.WriterConfig{SegmentBytes: 4 << 10, MaxBacklogBytes: backlog, KeepAckedBytes: 32 << 10, MinFreeBytes: -1, Registerer: reg}
	w := sidecar(t, dir, config)
	bad, good := storetest.Org(t, db), storetest.Org(t, db)
	s.refuse(bad, errors.New("this chain cannot be written"))
	receipts := map[string][]audit.Receipt{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Ship(ctx, s) }()

	// One record waits, while several times the backlog is shipped.
	receipts[bad] = write(t, w, bad, "stuck", 1)
	for n := range 10 {
		receipts[good] = append(receipts[good], write(t, w, good, fmt.Sprint("good", n), 100)...)
		arrive(t, db, good, receipts[good][len(receipts[good])-1:])
	}
	if n := onDisk(t, dir); n > backlog {
		t.Errorf("%d bytes are on the disk", n)
	}
	if n := value(t, reg, "aid_audit_segment_bytes"); n > backlog/4 {
		t.Errorf("%v bytes count against the backlog", n)
	}
	// The org fills its share.
	var err error
	for i := 0; err == nil && i < 5000; i++ {
		var r audit.Receipt
		if r, err = w.Append(t.Context(), bad, audit.Decided{RequestID: fmt.Sprint("fill-", i), AgentID: "ag_1", Effect: "deny"}); err == nil {
			receipts[bad] = append(receipts[bad], r)
		}
	}
	if err == nil || !strings.Contains(err.Error(), bad) {
		t.Errorf("the stuck org's entries are accepted without end: %v", err)
	}
	if err := w.Ready(); err != nil {
		t.Error(err)
	}
	if n := value(t, reg, "aid_audit_org_full_total"); n != 1 {
		t.Errorf("%v entries were rejected", n)
	}
	receipts[good] = append(receipts[good], write(t, w, good, "still", 50)...)
	arrive(t, db, good, receipts[good])
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if f, err := audit.OpenFolder(dir); err != nil || f.Damaged > 0 {
		t.Errorf("the folder: %+v %v", f, err)
	} else {
		f.Close()
	}

	config.Registerer = nil
	w = sidecar(t, dir, config)
	waitFor(t, func() bool { return w.Ready() == nil })
	s.refuse(bad, nil)
	ship(t, w, s)
	arrive(t, db, bad, receipts[bad])
	receipts[good] = append(receipts[good], write(t, w, good, "again", 5)...)
	receipts[bad] = append(receipts[bad], write(t, w, bad, "again", 5)...)
	for _, org := range []string{bad, good} {
		arrive(t, db, org, receipts[org])
		if r := verify(t, db, org, 1); r.FirstBad != nil || r.Broken+r.Gaps+r.Forks != 0 {
			t.Errorf("%+v", r)
		}
	}
	waitFor(t, func() bool { return w.Waiting() == 0 })
}

func onDisk(t *testing.T, dir string) (n int64) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if info, err := f.Info(); err == nil {
			n += info.Size()
		}
	}
	return n
}

func value(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// The chain is restored after a process has checked that it is complete, and before that process
// ships its first record.
func TestRestoredBeforeFirstRecord(t *testing.T) {
	db := storetest.Open(t)
	org, other := storetest.Org(t, db), storetest.Org(t, db)
	s := &gate{next: direct{chain(t, db, 1), "node_1"}}
	dir := t.TempDir()
	var receipts []audit.Receipt
	for i := range 2 {
		w, err := audit.OpenWriter(audit.WriterConfig{Dir: dir, SegmentBytes: 2 << 10})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		if i == 0 {
			receipts = append(receipts, write(t, w, org, "first", 30)...)
		}
		write(t, w, other, "other", 1) // the last process wrote nothing in org
		shipAll(t, w, s.next)
		cancel()
		<-done
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	w := sidecar(t, dir, audit.WriterConfig{SegmentBytes: 2 << 10})
	ship(t, w, s)
	waitFor(t, func() bool { return s.sent(org) > 0 })
	restore(t, db, org, 5)
	receipts = append(receipts, write(t, w, org, "after", 1)...)
	arrive(t, db, org, receipts)
	if r := verify(t, db, org, 1); r.FirstBad != nil || r.Broken+r.Gaps+r.Forks != 0 {
		t.Errorf("%+v", r)
	}
}

// sent counts the batches of an org that were taken.
func (g *gate) sent(org string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.taken[org]
}
