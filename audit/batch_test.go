package audit_test

import (
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// direct ships into a chain as a node.
type direct struct {
	c    *audit.Chain
	node string
}

func (d direct) Send(ctx context.Context, b audit.Batch) (uint64, error) {
	b.Node = d.node
	return d.c.Append(ctx, b)
}

// sidecar runs a writer until the test ends.
func sidecar(t *testing.T, dir string, c audit.WriterConfig) *audit.Writer {
	t.Helper()
	c.Dir = dir
	w, err := audit.OpenWriter(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		_ = w.Close()
	})
	return w
}

func write(t *testing.T, w *audit.Writer, org, name string, n int) (receipts []audit.Receipt) {
	t.Helper()
	for i := range n {
		r, err := w.Append(context.Background(), org, audit.Decided{RequestID: fmt.Sprintf("%s-%d", name, i), AgentID: "ag_1", Effect: "deny"})
		if err != nil {
			t.Fatal(err)
		}
		receipts = append(receipts, r)
	}
	return receipts
}

func shipAll(t *testing.T, w *audit.Writer, s audit.Shipper) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Ship(ctx, s) }()
	wait, over := context.WithTimeout(context.Background(), 30*time.Second)
	defer over()
	err := w.WaitShipped(wait)
	cancel()
	if e := <-done; err != nil || e != nil {
		t.Fatal(err, e)
	}
}

// restore puts the org's chain back to the state in which seq was its last entry.
func restore(t *testing.T, db *store.DB, org string, seq int) {
	t.Helper()
	conn := superuser(t, db)
	for _, sql := range []string{
		`SET session_replication_role = replica`,
		fmt.Sprintf(`DELETE FROM audit_entries WHERE org_id = '%s' AND seq > %d`, org, seq),
		fmt.Sprintf(`UPDATE audit_heads h SET seq = e.seq, mac = e.mac, epoch = e.epoch, appended_at = e.appended_at
			FROM audit_entries e WHERE e.org_id = h.org_id AND h.org_id = '%s' AND e.seq = %d`, org, seq),
		fmt.Sprintf(`DELETE FROM audit_writers w WHERE org_id = '%s' AND NOT EXISTS (SELECT FROM audit_entries e
			WHERE e.org_id = w.org_id AND e.writer = w.writer)`, org),
		fmt.Sprintf(`UPDATE audit_writers w SET writer_seq = (SELECT max(writer_seq) FROM audit_entries e
			WHERE e.org_id = w.org_id AND e.writer = w.writer) WHERE org_id = '%s'`, org),
	} {
		if _, err := conn.Exec(context.Background(), sql); err != nil {
			t.Fatal(err)
		}
	}
}

func hasAll(t *testing.T, db *store.DB, org string, receipts []audit.Receipt) (missing int) {
	t.Helper()
	have := map[string]bool{}
	for _, s := range entries(t, db, org) {
		have[audit.Receipt{Writer: s.Writer, Seq: uint64(s.WriterSeq), Leaf: audit.LeafHash(s.Entry)}.String()] = true
	}
	for _, r := range receipts {
		if !have[r.String()] {
			missing++
		}
	}
	return missing
}

// The sidecar sends lost records again to a database that was restored to an older state. For
// records that it no longer has, it records a gap.
func TestRestoredDatabase(t *testing.T) {
	for _, c := range []struct {
		name   string
		keep   int64
		gaps   int64
		orLess bool
	}{{"kept", 0, 0, false}, {"not kept", -1, 1, true}} {
		t.Run(c.name, func(t *testing.T) {
			db := storetest.Open(t)
			org := storetest.Org(t, db)
			node := direct{chain(t, db, 1), "node_1"}
			w := sidecar(t, t.TempDir(), audit.WriterConfig{SegmentBytes: 2 << 10, KeepAckedBytes: c.keep})
			receipts := write(t, w, org, "before", 40)
			shipAll(t, w, node)
			restore(t, db, org, 5)
			receipts = append(receipts, write(t, w, org, "after", 1)...)
			shipAll(t, w, node)
			shipAll(t, w, node) // after a rewind, all records are there
			missing := hasAll(t, db, org, receipts)
			r := verify(t, db, org, 1)
			if r.FirstBad != nil || r.Broken != 0 || r.Forks != 0 || r.Gaps != c.gaps {
				t.Errorf("%+v", r)
			}
			if (missing > 0) != c.orLess {
				t.Errorf("%d of %d receipts are missing", missing, len(receipts))
			}
		})
	}
}

// Two processes have one writer id, as after a snapshot of a VM. The chain has the records of
// both, and the later process has a new id.
func TestClonedProcess(t *testing.T) {
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	same := func() audit.WriterConfig {
		return audit.WriterConfig{Rand: mathrand.NewChaCha8([32]byte{1}), Now: func() time.Time { return at }}
	}
	one, two := sidecar(t, t.TempDir(), same()), sidecar(t, t.TempDir(), same())
	if one.ID() != two.ID() {
		t.Fatal("the copies have different ids")
	}
	receipts := write(t, one, org, "same", 3)
	write(t, two, org, "same", 3)
	receipts = append(receipts, write(t, one, org, "one", 5)...)
	receipts = append(receipts, write(t, two, org, "two", 5)...)
	node := direct{chain(t, db, 1), "node_1"}
	shipAll(t, one, node)
	shipAll(t, two, node)
	if one.ID() == two.ID() {
		t.Error("the second copy kept its id")
	}
	receipts = append(receipts, write(t, two, org, "later", 3)...)
	shipAll(t, two, node)
	if n := hasAll(t, db, org, receipts); n != 0 {
		t.Errorf("%d receipts are missing", n)
	}
	if err := two.Shipping(); err != nil {
		t.Error(err)
	}
	if r := verify(t, db, org, 1); r.FirstBad != nil || r.Forks != 1 || r.Broken != 0 {
		t.Errorf("%+v", r)
	}
}

// A writer belongs to the first node that used it, even if a batch names another.
func TestAnotherNodesWriter(t *testing.T) {
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	c := chain(t, db, 1)
	b := audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: records(org, "w_1", 1, 4)}
	if _, err := c.Append(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	b.Node, b.Records = "node_2", records(org, "w_1", 5, 2)
	for _, shipper := range []string{"", "w_2"} {
		b.Shipper = shipper
		if _, err := c.Append(context.Background(), b); !errors.Is(err, audit.ErrFork) {
			t.Errorf("shipped by %q: %v", shipper, err)
		}
	}
	b.Node = ""
	if _, err := c.Append(context.Background(), b); !errors.Is(err, audit.ErrRefused) {
		t.Errorf("no node: %v", err)
	}
	// A jump, and records that do not follow.
	b = audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: []audit.Record{{Seq: 9e18, Prev: 4, Org: org, Entry: []byte("{}")}}}
	if _, err := c.Append(context.Background(), b); !errors.Is(err, audit.ErrRefused) {
		t.Errorf("a jump: %v", err)
	}
	b.Records = records(org, "w_1", 8, 2)
	var behind *audit.Behind
	if _, err := c.Append(context.Background(), b); !errors.As(err, &behind) || behind.Have != 4 {
		t.Errorf("records that do not follow: %v", err)
	}
	if n := len(entries(t, db, org)); n != 4 {
		t.Errorf("%d entries", n)
	}
}

// A real completion replaces a recovered "unknown", and usage counts only one. Figures that no
// request can have are not counted.
func TestUsageCountsOnce(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	real := audit.Settled{RequestID: "r", AgentID: "ag_1", DecidedWriter: "w_1", DecidedSeq: 1, Outcome: "completed", Priced: true, CostNanoUSD: 7, Time: at}
	unknown := audit.Settled{RequestID: "r", AgentID: "ag_1", DecidedWriter: "w_1", DecidedSeq: 1, Outcome: audit.OutcomeUnknown, Time: at}
	negative, absurd := real, real
	negative.CostNanoUSD, absurd.Usage.InputTokens = -1, 1e16
	for name, c := range map[string]struct {
		batches  [][]audit.Settled
		requests int64
		cost     int64
	}{
		"unknown, then real":    {[][]audit.Settled{{unknown}, {real}}, 1, 7},
		"real, then unknown":    {[][]audit.Settled{{real}, {unknown}}, 1, 7},
		"in one batch":          {[][]audit.Settled{{unknown, real}}, 1, 7},
		"unknown twice":         {[][]audit.Settled{{unknown}, {unknown}}, 1, 0},
		"a negative cost":       {[][]audit.Settled{{negative}}, 0, 0},
		"more tokens than real": {[][]audit.Settled{{absurd}}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			db := storetest.Open(t)
			org := storetest.Org(t, db)
			ch := chain(t, db, 1)
			for i, batch := range c.batches {
				b := audit.Batch{Org: org, Node: "node_1", Writer: fmt.Sprintf("w_%d", i+1)}
				for j, s := range batch {
					b.Records = append(b.Records, audit.Record{Seq: uint64(j + 2), Prev: uint64(j), Org: org, Entry: audit.Stamp(s, org, b.Writer, at).Encode()})
					if j > 0 {
						b.Records[j].Prev = b.Records[j-1].Seq
					}
				}
				if _, err := ch.Append(context.Background(), b); err != nil {
					t.Fatal(err)
				}
			}
			var got audit.UsageDay
			err := db.InOrg(context.Background(), org, func(tx pgx.Tx) error {
				days, err := audit.DailyUsage(context.Background(), tx, "", at, at)
				if len(days) > 0 {
					got = days[0]
				}
				return err
			})
			if err != nil || got.Requests != c.requests || got.CostNanoUSD != c.cost {
				t.Errorf("%+v %v", got, err)
			}
		})
	}
}

// The chain may have lost records of an earlier process. A sidecar that starts with a restored
// chain sends these records again, also those of idle orgs.
func TestRestoredBeforeStart(t *testing.T) {
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	node := direct{chain(t, db, 1), "node_1"}
	dir := t.TempDir()
	var receipts []audit.Receipt
	process := func(run func(w *audit.Writer)) {
		w, err := audit.OpenWriter(audit.WriterConfig{Dir: dir, SegmentBytes: 2 << 10})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		run(w)
		cancel()
		<-done
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		process(func(w *audit.Writer) {
			receipts = append(receipts, write(t, w, org, fmt.Sprint("p", i), 15)...)
			shipAll(t, w, node)
		})
	}
	restore(t, db, org, 5)
	process(func(w *audit.Writer) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- w.Ship(ctx, node) }()
		arrive(t, db, org, receipts)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if r := verify(t, db, org, 1); r.FirstBad != nil || r.Broken+r.Gaps+r.Forks != 0 {
		t.Errorf("%+v", r)
	}
}
