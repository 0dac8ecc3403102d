package audit_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// BenchmarkGrow adds rows of Postgres to a tree.
func BenchmarkGrow(b *testing.B) {
	db := storetest.Open(b)
	org := storetest.Org(b, db)
	const rows = 20_000
	appendMany(b, chain(b, db, 1), org, "w_1", 1, rows)
	admin := storetest.Connect(b, storetest.URL(b, "postgres"))
	if _, err := admin.Exec(b.Context(), "SET session_replication_role = replica"); err != nil {
		b.Fatal(err)
	}
	n := 0
	for b.Loop() {
		if _, err := admin.Exec(context.Background(), "DELETE FROM audit_trees; DELETE FROM audit_tiles"); err != nil {
			b.Fatal(err)
		}
		n += int(growAll(b, db, org, 10_000))
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "leaves/s")
}

// BenchmarkBehind appends to one org as fast as one control plane can, while a notary extends
// and signs its tree. It reports the longest time that an entry waited for the tree.
func BenchmarkBehind(b *testing.B) {
	db := storetest.Open(b)
	org := storetest.Org(b, db)
	signers, keys := signingKeys(b)
	guard, err := audit.NewGuard(audit.GuardConfig{DB: db.Pool(), LogName: logName, Keys: func(context.Context) (evidence.KeySet, error) { return keys, nil }})
	if err != nil {
		b.Fatal(err)
	}
	notary, err := audit.NewNotary(audit.NotaryConfig{DB: db, Pool: db.Pool(), LogName: logName, Signers: func() []evidence.Signer { return signers }, Guard: guard})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { notary.Run(ctx) }) //nolint:errcheck // it returns nil
	var worst time.Duration
	wg.Go(func() {
		for ctx.Err() == nil {
			time.Sleep(100 * time.Millisecond)
			var oldest *time.Time
			err := db.InOrg(ctx, org, func(tx pgx.Tx) error {
				return tx.QueryRow(ctx, `SELECT (SELECT appended_at FROM audit_entries e WHERE e.org_id = $1 AND e.seq = coalesce(max(t.size), 0) + 1)
					FROM audit_trees t WHERE t.org_id = $1`, org).Scan(&oldest)
			})
			if err == nil && oldest != nil {
				worst = max(worst, time.Since(*oldest))
			}
		}
	})
	c := chain(b, db, 1)
	n := 0
	began := time.Now()
	for b.Loop() {
		for time.Since(began) < 20*time.Second {
			appendMany(b, c, org, "w_1", 1+n, 500)
			n += 500
		}
	}
	b.ReportMetric(float64(n)/time.Since(began).Seconds(), "entries/s")
	time.Sleep(2500 * time.Millisecond) // one more round of the notary, which has the last entries
	stop()
	wg.Wait()
	b.ReportMetric(worst.Seconds(), "max-s-behind")
	err = db.InOrg(context.Background(), org, func(tx pgx.Tx) error {
		c, err := audit.NewestCheckpoint(context.Background(), tx, org)
		if err == nil && c.Size == 0 {
			err = fmt.Errorf("nothing is signed")
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
}
