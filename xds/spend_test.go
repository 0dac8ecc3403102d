package xds_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/xds"
)

// sumsOf is a control plane with sums.
type sumsOf struct {
	mu       sync.Mutex
	sums     map[string]audit.Count
	sidecars int
	err      error
	requests []audit.CountsRequest
	seq      uint64 // the last record of the writer
}

func (l *sumsOf) Counts(_ context.Context, r audit.CountsRequest) (audit.Counts, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests = append(l.requests, r)
	if l.err != nil {
		return audit.Counts{}, l.err
	}
	out := audit.Counts{Sidecars: l.sidecars, Lease: 30 * time.Second, WriterSeq: l.seq}
	for _, n := range r.Names {
		c := l.sums[n.Counter+" "+n.Period]
		c.CountName = n
		out.Counts = append(out.Counts, c)
	}
	return out, nil
}

func (l *sumsOf) set(sidecars int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sidecars, l.err = sidecars, err
}

// records is the audit log of a sidecar.
type records struct {
	id      string
	earlier error // WaitEarlier's
}

func (r *records) ID() string                                { return r.id }
func (r *records) Earlier() []string                         { return []string{"w_before"} }
func (r *records) WaitEarlier(context.Context, string) error { return r.earlier }
func (r *records) WaitOrg(context.Context, string) error     { return r.earlier }
func (r *records) Waiting() uint64                           { return 0 }

// A sidecar that is not alone, or has no lease, admits nothing under a cap.
func TestSpendAlone(t *testing.T) {
	now := time.Unix(0, 0)
	l, r := &sumsOf{sidecars: 1}, &records{id: "w_1"}
	s := xds.NewSpend(l, r, func() time.Time { return now }, slog.New(slog.DiscardHandler))
	alone := func(want error) {
		t.Helper()
		if err := s.Alone(t.Context(), "org_1"); !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("at %v: %v, want %v", now, err, want)
		}
	}
	alone(nil)
	now = now.Add(29 * time.Second)
	l.set(1, errors.New("away"))
	alone(nil) // its lease holds
	now = now.Add(time.Second)
	alone(budget.ErrUnknownSums)
	l.set(2, nil)
	alone(budget.ErrStoreRequired)
	l.set(1, nil)
	now = now.Add(30 * time.Second)
	alone(nil)
	if first := l.requests[0]; first.Writer != "w_1" || first.Org != "org_1" || len(first.Ended) != 1 || first.Ended[0] != "w_before" {
		t.Errorf("%+v", first)
	}
	// Another writer id of the same process is the same sidecar.
	r.id = "w_2"
	now = now.Add(30 * time.Second)
	alone(nil)
	if last := l.requests[len(l.requests)-1]; last.Writer != "w_2" || last.Ended[len(last.Ended)-1] != "w_1" {
		t.Errorf("%+v", last)
	}
}

func TestSpendCharged(t *testing.T) {
	l := &sumsOf{sidecars: 1, sums: map[string]audit.Count{"cap:a@2026-11 2026-11": {ChargedNanoUSD: 40, ReservedNanoUSD: 2}}}
	r := &records{id: "w_1"}
	s := xds.NewSpend(l, r, time.Now, slog.New(slog.DiscardHandler))
	got, err := s.Charged(t.Context(), "org_1", []string{"cap:b@2026-11-27", "cap:a@2026-11"})
	if err != nil || len(got) != 2 || got[0] != 0 || got[1] != 42 {
		t.Errorf("%v %v", got, err)
	}
	r.earlier = context.DeadlineExceeded
	if _, err := s.Charged(t.Context(), "org_1", []string{"cap:a@2026-11"}); !errors.Is(err, budget.ErrUnknownSums) {
		t.Errorf("while records of an earlier process are not shipped: %v", err)
	}
	r.earlier = nil
	l.set(2, nil)
	if _, err := s.Charged(t.Context(), "org_1", []string{"cap:a@2026-11"}); !errors.Is(err, budget.ErrStoreRequired) {
		t.Errorf("beside another: %v", err)
	}
	l.set(1, errors.New("away"))
	if _, err := s.Charged(t.Context(), "org_1", []string{"cap:a@2026-11"}); !errors.Is(err, budget.ErrUnknownSums) {
		t.Errorf("away: %v", err)
	}
	l.set(1, nil)
	l.sums["cap:a@2026-11 2026-11"] = audit.Count{ChargedNanoUSD: 1<<63 - 1, ReservedNanoUSD: 1}
	if _, err := s.Charged(t.Context(), "org_1", []string{"cap:a@2026-11"}); !errors.Is(err, budget.ErrUnknownSums) {
		t.Errorf("a sum that overflows: %v", err)
	}
}

// With a shared store, other sidecars are no reason to reject.
func TestSpendShared(t *testing.T) {
	l := &sumsOf{sidecars: 3, sums: map[string]audit.Count{"cap:a@2026-11 2026-11": {ChargedNanoUSD: 40, ReservedNanoUSD: 2}}}
	r := &records{id: "w_1"}
	s := xds.NewSpend(l, r, time.Now, slog.New(slog.DiscardHandler)).Shared()
	if got, err := s.Sums(t.Context(), "org_1", []string{"cap:a@2026-11"}); err != nil || len(got) != 1 || got[0] != (budget.Sum{Charged: 40, Reserved: 2}) {
		t.Errorf("%v %v", got, err)
	}
	if n, err := s.Sidecars(t.Context(), "org_1"); err != nil || n != 3 {
		t.Errorf("%d %v", n, err)
	}
	if err := s.Shipped(t.Context(), "org_1"); err != nil {
		t.Error(err)
	}
	r.earlier = context.DeadlineExceeded
	if err := s.Shipped(t.Context(), "org_1"); err == nil {
		t.Error("records are not shipped, and it returns no error")
	}
	l.set(3, errors.New("away"))
	if _, err := s.Sidecars(t.Context(), "org_1"); !errors.Is(err, budget.ErrUnknownSums) {
		t.Errorf("away: %v", err)
	}
}

// At its end a sidecar gives its leases back.
func TestSpendLeaves(t *testing.T) {
	l := &sumsOf{sidecars: 1}
	s := xds.NewSpend(l, &records{id: "w_1"}, time.Now, slog.New(slog.DiscardHandler))
	if err := s.Alone(t.Context(), "org_1"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Error(err)
	}
	if last := l.requests[len(l.requests)-1]; !last.Leaving || last.Org != "org_1" || last.Writer != "w_1" {
		t.Errorf("%+v", last)
	}
}

// What an agent has spent is missing until the control plane has answered. Requests never wait
// for it. An old answer stays while the control plane is away, and each amount is only of the
// day and month that it was asked for.
func TestAgentsSpend(t *testing.T) {
	l := &sumsOf{sums: map[string]audit.Count{
		"spent:agent:ag_1 2026-11-27": {ChargedNanoUSD: 7}, "spent:agent:ag_1 2026-11": {ChargedNanoUSD: 9},
	}}
	s := xds.NewSpend(l, &records{id: "w_1"}, time.Now, slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	defer func() { stop(); <-done }()
	day, month, at := s.Spent("org_1", "ag_1", "2026-11-27", "2026-11")
	if day != nil || month != nil || !at.IsZero() {
		t.Errorf("before an answer: %v %v %v", day, month, at)
	}
	for deadline := time.Now().Add(30 * time.Second); month == nil && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		day, month, at = s.Spent("org_1", "ag_1", "2026-11-27", "2026-11")
	}
	if day == nil || month == nil || *day != 7 || *month != 9 || time.Since(at) > 30*time.Second {
		t.Fatalf("%v %v %v", day, month, at)
	}
	l.set(1, errors.New("away"))
	if day, month, _ = s.Spent("org_1", "ag_1", "2026-11-28", "2026-11"); day != nil || month == nil {
		t.Errorf("after midnight: %v %v", day, month)
	}
	if day, month, _ = s.Spent("org_2", "ag_1", "2026-11-27", "2026-11"); day != nil || month != nil {
		t.Errorf("of another org: %v %v", day, month)
	}
}

// Sums of a database that was restored lack charges that the control plane had. They are
// rejected until it has this process's records again.
func TestSpendRestored(t *testing.T) {
	l, r := &sumsOf{sidecars: 1, sums: map[string]audit.Count{}}, &records{id: "w_1"}
	s := xds.NewSpend(l, r, time.Now, slog.New(slog.DiscardHandler))
	for i, c := range []struct {
		writer string
		seq    uint64
		bad    bool
	}{{"w_1", 0, false}, {"w_1", 7, false}, {"w_1", 7, false}, {"w_1", 6, true}, {"w_1", 0, true}, {"w_1", 7, false}, {"w_1", 9, false}, {"w_1", 8, true}, {"w_2", 0, false}, {"w_2", 3, false}, {"w_2", 2, true}} {
		r.id = c.writer
		l.mu.Lock()
		l.seq = c.seq
		l.mu.Unlock()
		if _, err := s.Books().Sums(t.Context(), "org_1", []string{"a@2026-11"}); errors.Is(err, budget.ErrUnknownSums) != c.bad {
			t.Errorf("%d: %+v: %v", i, c, err)
		}
	}
}
