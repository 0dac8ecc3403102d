package audit_test

import (
	"context"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// What an earlier process left is waited for, and no more than that.
func TestWaitEarlier(t *testing.T) {
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	dir := t.TempDir()
	first, err := audit.OpenWriter(audit.WriterConfig{Dir: dir, MinFreeBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	if err := first.WaitEarlier(t.Context(), org); err != nil || len(first.Earlier()) != 0 {
		t.Errorf("a new folder: %v, %q", err, first.Earlier())
	}
	id := first.ID()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- first.Run(ctx) }()
	write(t, first, org, "r", 3)
	cancel()
	<-done
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	w := sidecar(t, dir, audit.WriterConfig{MinFreeBytes: -1})
	if got := w.Earlier(); len(got) != 1 || got[0] != id {
		t.Errorf("earlier writers %q, want %q", got, id)
	}
	short, over := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer over()
	if err := w.WaitEarlier(short, org); err == nil {
		t.Error("nothing is shipped, and it does not wait")
	}
	shipAll(t, w, direct{chain(t, db, 1), "node_1"})
	if err := w.WaitEarlier(t.Context(), org); err != nil {
		t.Error(err)
	}
	write(t, w, org, "later", 1)
	if err := w.WaitEarlier(t.Context(), org); err != nil {
		t.Errorf("it waits for what this process wrote: %v", err)
	}
	w.Enqueue(org, audit.Settled{RequestID: "later0", Outcome: "completed"})
	short, over = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer over()
	if err := w.WaitOrg(short, org); err == nil {
		t.Error("what this process wrote is not shipped, and WaitOrg does not wait")
	}
	shipAll(t, w, direct{chain(t, db, 1), "node_1"})
	if err := w.WaitOrg(t.Context(), org); err != nil || w.Waiting() != 0 {
		t.Errorf("%v, and %d records wait", err, w.Waiting())
	}
}
