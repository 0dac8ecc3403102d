package audit_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// If the connections of the database become silent, shipping stops, and readiness turns red.
// Once new connections work, shipping continues without a restart, and readiness is green.
func TestSilentDatabase(t *testing.T) {
	url, hush, dropped := storetest.Silent(t, store.AppRole)
	plain := storetest.Open(t)
	org := storetest.Org(t, plain)
	db, err := store.Open(t.Context(), store.Config{URL: url, TransactionTimeout: 300 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	var later atomic.Int64 // how far the writer's clock is ahead
	w := sidecar(t, t.TempDir(), audit.WriterConfig{Now: func() time.Time { return time.Now().Add(time.Duration(later.Load())) }})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Ship(ctx, direct{chain(t, db, 1), "node_1"}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	shipped := func() {
		t.Helper()
		wait, over := context.WithTimeout(context.Background(), 60*time.Second)
		defer over()
		if err := w.WaitShipped(wait); err != nil {
			t.Fatal(err)
		}
	}
	receipts := write(t, w, org, "before", 10)
	shipped()
	if err := w.Shipping(); err != nil {
		t.Errorf("red before anything happened: %v", err)
	}

	hush(true)
	receipts = append(receipts, write(t, w, org, "silent", 10)...)
	for began := time.Now(); dropped() == 0; {
		if time.Since(began) > 30*time.Second {
			t.Fatal("nothing was sent into the silence")
		}
		<-time.After(10 * time.Millisecond)
	}
	// The org may get a lane of its own in between, which counts its own minutes.
	var red error
	for began := time.Now(); red == nil; {
		later.Add(int64(5 * time.Minute))
		if red = w.Shipping(); red == nil && time.Since(began) > 30*time.Second {
			t.Fatal("green although no record reached the database for minutes")
		}
		<-time.After(10 * time.Millisecond)
	}
	t.Logf("red: %v", red)

	hush(false)
	receipts = append(receipts, write(t, w, org, "after", 10)...)
	shipped()
	if err := w.Shipping(); err != nil {
		t.Errorf("still red: %v", err)
	}
	if n := hasAll(t, plain, org, receipts); n != 0 {
		t.Errorf("%d records are missing", n)
	}
	if r, err := audit.Verify(context.Background(), plain, org, keys(t, 1), nil); err != nil || r.FirstBad != nil {
		t.Error(fmt.Errorf("the chain: %+v, %w", r, err))
	}
}
