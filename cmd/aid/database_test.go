package main

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// The control plane waits for a database that is not available, logs that, and continues
// when it is available. A permanent error ends the wait.
func TestControlWaitsForTheDatabase(t *testing.T) {
	var log strings.Builder
	ctx, cancel := context.WithCancel(t.Context())
	heard := slog.New(slog.NewTextHandler(writerFunc(func(b []byte) { log.Write(b); cancel() }), nil))
	if db, err := waitForStore(ctx, "postgres://aid_app:hunter2@127.0.0.1:1/aid", 1, nil, heard); db != nil || err != nil {
		t.Errorf("%v %v", db, err)
	}
	if !strings.Contains(log.String(), "waiting for the database") || strings.Contains(log.String(), "hunter2") {
		t.Errorf("the log: %s", log.String())
	}
	if _, err := waitForStore(t.Context(), storetest.URL(t, "postgres"), 1, nil, quiet); err == nil || !strings.Contains(err.Error(), "aid_app") {
		t.Errorf("a superuser: %v", err)
	}
	db, err := waitForStore(t.Context(), storetest.URL(t, store.AppRole), 1, nil, quiet)
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

// A failure to create the partitions of the next months is in the log and in /readyz. A
// metric counts it, and exists from the start.
func TestPartitionsFailLoudly(t *testing.T) {
	db := storetest.Open(t)
	var log strings.Builder
	ctx, cancel := context.WithCancel(t.Context())
	h := newHousekeeping(db, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(writerFunc(func(b []byte) { log.Write(b); cancel() }), nil)))
	if err := h.failed(); err != nil || sample(t, h.failures) != 0 {
		t.Errorf("before: %v", err)
	}
	owner := storetest.Connect(t, storetest.OwnerURL(t))
	if _, err := owner.Exec(t.Context(), `DROP FUNCTION aid_audit_partitions`); err != nil {
		t.Fatal(err)
	}
	if err := h.run(ctx); err != nil {
		t.Fatal(err)
	}
	if err := h.failed(); err == nil || sample(t, h.failures) != 1 || !strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("%v, %s", err, log.String())
	}
}
