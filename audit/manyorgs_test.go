package audit_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

var (
	manyOrgs = flag.Int("orgs", 40, "organizations of TestThousandsOfOrgs")
	orgsRate = flag.Float64("orgsrate", 100, "signatures a second in TestThousandsOfOrgs")
)

// All organizations of a large installation get checkpoints in turns, and the directory has
// them. With -orgs 5000 -v it is a measurement.
func TestThousandsOfOrgs(t *testing.T) {
	ctx := t.Context()
	n := newNotaries(t)
	db, err := store.Open(ctx, store.Config{URL: storetest.URL(t, store.AppRole), MaxConns: 10})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	su := superuser(t, n.db)
	if _, err := su.Exec(ctx, "INSERT INTO orgs (org_id, name) SELECT 'org_many' || i, '' FROM generate_series(1, $1) i", *manyOrgs); err != nil {
		t.Fatal(err)
	}
	c := chain(t, db, 1)
	began := time.Now()
	for i := 1; i <= *manyOrgs; i++ {
		org := fmt.Sprintf("org_many%d", i)
		if _, err := c.Append(ctx, audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: records(org, "w_1", 1, 2)}); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d chains were begun in %v", *manyOrgs, time.Since(began))
	guard := n.guard(t, db.Pool())
	notary, err := audit.NewNotary(audit.NotaryConfig{DB: db, Pool: db.Pool(), LogName: logName, Signers: n.signing, Guard: guard, Anchors: n.anchors, Rate: *orgsRate})
	if err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	unsigned := func() (left int) {
		t.Helper()
		if err := su.QueryRow(ctx, "SELECT count(*) FROM audit_heads h WHERE NOT EXISTS (SELECT FROM audit_checkpoints c WHERE c.org_id = h.org_id)").Scan(&left); err != nil {
			t.Fatal(err)
		}
		return left
	}
	var slowestRound, slowestTick time.Duration
	rounds := 0
	for left := *manyOrgs; left > 0; left = unsigned() {
		at := time.Now()
		if err := notary.Round(ctx); err != nil {
			t.Fatal(err)
		}
		slowestRound = max(slowestRound, time.Since(at))
		at = time.Now()
		if err := errors.Join(notary.Tick(ctx), guard.Check(ctx)); err != nil {
			t.Fatal(err)
		}
		slowestTick = max(slowestTick, time.Since(at))
		if rounds++; rounds > 100+*manyOrgs {
			t.Fatalf("after %d rounds %d organizations have no checkpoint", rounds, left)
		}
	}
	signed := time.Since(began)
	at := time.Now()
	if err := notary.Round(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("all are signed after %v in %d rounds; the slowest round took %v, a round without work %v, the slowest tick with the guard %v",
		signed, rounds, slowestRound, time.Since(at), slowestTick)
	at = time.Now()
	fresh := chain(t, db, 1)
	for i := range min(*manyOrgs, 200) {
		if err := audit.VerifyHead(context.Background(), db, fmt.Sprintf("org_many%d", i+1), keys(t, 1)); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d heads were checked in %v", min(*manyOrgs, 200), time.Since(at))
	if err := fresh.InspectTails(ctx); err != nil {
		t.Fatal(err)
	}
}

func (n *notaries) signing() []evidence.Signer { return n.signers }
