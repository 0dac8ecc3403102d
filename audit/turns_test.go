package audit_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// An org with many nodes does not take all connections to the database, also while its chain
// is locked. Another org's records are appended in the meantime.
func TestOrgDoesNotTakeAllConnections(t *testing.T) {
	const connections, nodes = 4, 12
	db := storetest.OpenWith(t, store.Config{MaxConns: connections})
	busy, other := storetest.Org(t, db), storetest.Org(t, db)
	c, err := audit.NewChain(audit.ChainConfig{DB: db, Keys: keys(t, 1), AtOnce: connections - 1})
	if err != nil {
		t.Fatal(err)
	}
	batch := func(org, writer string) audit.Batch {
		return audit.Batch{Org: org, Node: "node_1", Writer: writer, Records: records(org, writer, 1, 1)}
	}
	if _, err := c.Append(t.Context(), batch(busy, "w_first")); err != nil {
		t.Fatal(err)
	}

	lock := storetest.Connect(t, storetest.OwnerURL(t))
	tx, err := lock.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT set_config('aid.org', $1, true)", busy); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT 1 FROM audit_heads FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for i := range nodes {
		wg.Go(func() {
			_, _ = c.Append(ctx, batch(busy, "w_node"+string(rune('a'+i)))) // It fails or not, by the time of the lock.
		})
	}
	waitFor(t, func() bool { return db.Pool().Stat().AcquiredConns() >= 2 })
	wait, over := context.WithTimeout(t.Context(), 4*time.Second)
	defer over()
	if _, err := c.Append(wait, batch(other, "w_other")); err != nil {
		t.Errorf("another org: %v", err)
	}
	if n := db.Pool().Stat().AcquiredConns(); n > 2 {
		t.Errorf("the busy org has %d connections", n)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Error(err)
	}
	cancel()
	wg.Wait()
	// All turns are free again.
	if _, err := c.Append(t.Context(), batch(busy, "w_last")); err != nil {
		t.Error(err)
	}
	var n int
	if err := db.InOrg(t.Context(), other, func(tx pgx.Tx) error {
		return tx.QueryRow(t.Context(), "SELECT count(*) FROM audit_entries").Scan(&n)
	}); err != nil || n != 1 {
		t.Errorf("the other org has %d entries: %v", n, err)
	}
}
