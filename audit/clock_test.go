package audit_test

import (
	"context"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// The clock of a control plane steps and stands still. Times of appending ascend, and each time
// that it is far behind is recorded once.
func TestClockSteps(t *testing.T) {
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	c, err := audit.NewChain(audit.ChainConfig{DB: db, Keys: keys(t, 1), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, step := range []struct {
		by       time.Duration
		recorded int // so far
	}{
		{0, 0}, {0, 0}, {time.Second, 0}, {-3 * time.Second, 0}, {-time.Hour, 1}, {time.Second, 1}, {-time.Minute, 1}, {2 * time.Hour, 1}, {-time.Hour, 2}, {0, 2}, {time.Hour, 2},
	} {
		now = now.Add(step.by)
		n++
		if _, err := c.Append(context.Background(), audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: records(org, "w_1", n, 1)}); err != nil {
			t.Fatal(err)
		}
		recorded := 0
		var before time.Time
		for _, e := range entries(t, db, org) {
			if !e.AppendedAt.After(before) {
				t.Errorf("entry %d was appended at %v, after %v", e.Seq, e.AppendedAt, before)
			}
			before = e.AppendedAt
			if e.Kind != audit.KindClock {
				continue
			}
			recorded++
			if got, err := e.Parse(); err != nil {
				t.Error(err)
			} else if r, ok := got.(audit.ClockRegressed); !ok || r.BehindUS < 5_000_000 || r.Last.Sub(r.Clock).Microseconds() != r.BehindUS {
				t.Errorf("%+v", got)
			}
		}
		if recorded != step.recorded {
			t.Errorf("after a step by %v: %d are recorded, want %d", step.by, recorded, step.recorded)
		}
	}
	if r := verify(t, db, org, 1); r.FirstBad != nil || r.Entries != int64(n)+2 {
		t.Errorf("%+v", r)
	}
}
