package audit

import (
	"context"
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// gauges are the values of a writer's gauges and counters by name.
func gauges(t *testing.T, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range all {
		for _, m := range f.GetMetric() {
			out[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return out
}

// A process that is killed after a quiet time shows no lag at its next start. The number of the
// last shipped record is also stored after the end of a burst.
func TestNoFalseLag(t *testing.T) {
	dir, left := t.TempDir(), t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w, stop := open(t, dir, func(c *WriterConfig) { c.SegmentBytes = 4 << 10; c.MaxBacklogBytes = 1 << 20 })
		shipWhile(t, w, &shipped{}, func() {
			for range 60 {
				if _, err := w.Append(t.Context(), "org_a", decided("r", "deny")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(30 * time.Millisecond) // synctest's time: nothing waits
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := w.WaitShipped(ctx); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Hour) // synctest's time
			// After a kill, the folder has its current content.
			if err := os.CopyFS(left, os.DirFS(dir)); err != nil && !errors.Is(err, os.ErrExist) {
				t.Error(err)
			}
		})
		stop()
	})
	r := prometheus.NewRegistry()
	open(t, left, func(c *WriterConfig) { c.SegmentBytes, c.MaxBacklogBytes, c.Registerer = 4<<10, 1<<20, r })
	got := gauges(t, r)
	if got["aid_audit_lag_records"] != 0 || got["aid_audit_lag_seconds"] != 0 {
		t.Errorf("after a kill %v records lag by %v s, and all are acknowledged", got["aid_audit_lag_records"], got["aid_audit_lag_seconds"])
	}
}
