package store_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// openSilent opens the test's database by way of a proxy whose connections can go silent.
func openSilent(t *testing.T, limit time.Duration) (db *store.DB, hush func(all bool), dropped func() int) {
	t.Helper()
	url, hush, dropped := storetest.Silent(t, store.AppRole)
	db, err := store.Open(t.Context(), store.Config{URL: url, TransactionTimeout: limit, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db, hush, dropped
}

// A connection that goes silent ends its transaction, also where the statement's own
// context has no deadline. The next transaction gets another connection.
// (FAULTS P4)
func TestSilentTransaction(t *testing.T) {
	db, hush, _ := openSilent(t, 500*time.Millisecond)
	org := storetest.OrgAt(t, storetest.OwnerURL(t))
	for _, where := range []string{"statement", "commit", "begin"} {
		var once sync.Once
		if where == "begin" {
			hush(false)
		}
		err := db.InOrg(context.Background(), org, func(tx pgx.Tx) error {
			once.Do(func() { hush(false) })
			if where == "commit" {
				return nil
			}
			var n int
			return tx.QueryRow(context.Background(), "SELECT 1").Scan(&n)
		})
		if err == nil {
			t.Errorf("%s: a transaction on a silent connection succeeded", where)
		}
		// Other connections of the pool may be silent too; each is given up in turn.
		for try := 0; ; try++ {
			err := db.InOrg(context.Background(), org, func(tx pgx.Tx) error {
				_, err := tx.Exec(context.Background(), "SELECT 1")
				return err
			})
			if err == nil {
				break
			}
			if try == 20 {
				t.Fatalf("%s: still not served: %v", where, err)
			}
		}
	}
}

// A connection that listens and goes silent is replaced, and its owner reads again what
// it may have missed.
func TestSilentListen(t *testing.T) {
	db, hush, _ := openSilent(t, 5*time.Second)
	db.AskAfter(200 * time.Millisecond)
	connected, heard := make(chan struct{}, 8), make(chan string, 8)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- db.Listen(ctx, "aid_test", func(s string) { heard <- s }, func() { connected <- struct{}{} })
	}()
	<-connected
	hush(false)
	<-connected
	if _, err := storetest.Open(t).Pool().Exec(t.Context(), "SELECT pg_notify('aid_test', 'hello')"); err != nil {
		t.Fatal(err)
	}
	if s := <-heard; s != "hello" {
		t.Errorf("heard %q", s)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
