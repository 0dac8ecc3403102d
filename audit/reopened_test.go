package audit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// A database is restored to an older state. Nothing is appended until its owner accepts the
// loss. Then numbers go on behind the signed ones, checkpoints are signed again, and the
// verifier names the loss. No size is signed with two roots.
func TestReopenAfterRestore(t *testing.T) {
	ctx := context.Background()
	n := newNotaries(t)
	org := storetest.Org(t, n.db)
	guard := n.guard(t, n.db.Pool())
	newChain := func(db *store.DB, g *audit.Guard) *audit.Chain {
		t.Helper()
		c, err := audit.NewChain(audit.ChainConfig{DB: db, Keys: keys(t, 1), Guard: g})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	appendMany(t, newChain(n.db, guard), org, "w_1", 1, 50)
	roots := make(map[string]string) // by origin and size: what was published
	work := func(notary *audit.Notary) error {
		err := errors.Join(notary.Round(ctx), notary.Tick(ctx))
		notary.Publish(ctx)
		n.later(11 * time.Second)
		for _, origin := range []string{evidence.DirectoryOrigin(logName), evidence.OrgOrigin(logName, org, 1), evidence.OrgOrigin(logName, org, 2)} {
			note, e := n.anchors[0].Newest(ctx, origin)
			if e != nil {
				t.Fatal(e)
			}
			if note == nil {
				continue
			}
			c, e := n.keys.Open(note, origin)
			if e != nil {
				t.Fatal(e)
			}
			key := fmt.Sprintf("%s %d", origin, c.Size)
			if was, ok := roots[key]; ok && was != c.Root.String() {
				t.Errorf("%s has two roots", key)
			}
			roots[key] = c.Root.String()
		}
		return err
	}
	if err := work(n.start(t, n.db, n.clock)); err != nil {
		t.Fatal(err)
	}
	exec, restore := backUp(t)
	appendMany(t, newChain(n.db, guard), org, "w_1", 51, 30)
	for range 3 {
		if err := work(n.start(t, n.db, n.clock)); err != nil {
			t.Fatal(err)
		}
	}
	restore()
	after := n.guard(t, n.db.Pool())
	if err := after.Check(ctx); !errors.Is(err, audit.ErrRolledBack) {
		t.Fatalf("the guard: %v", err)
	}
	c := newChain(n.db, after)
	try := func(from int) error {
		_, err := c.Append(ctx, audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: records(org, "w_1", from, 30)})
		return err
	}
	if err := try(51); !errors.Is(err, audit.ErrRolledBack) {
		t.Fatalf("it appends: %v", err)
	}

	owner, err := store.Open(ctx, store.Config{URL: storetest.OwnerURL(t), MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close()
	r := audit.Reopening{Org: org, LogName: logName, Actor: audit.Actor{Kind: "operator", ID: "me@here"}, Reason: "a disk failed", Keys: n.keys, Newest: n.anchors[0].Newest}
	if _, err := newChain(n.db, nil).Reopen(ctx, r); err == nil {
		t.Error("the application's role reopened the log")
	}
	done, err := newChain(owner, nil).Reopen(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	if done != (audit.ReopenResult{Directory: 3, Incarnation: 2, First: 81, LostFrom: 51, LostTo: 80}) {
		t.Errorf("%+v", done)
	}
	if _, err := newChain(owner, nil).Reopen(ctx, r); !errors.Is(err, audit.ErrNothingLost) {
		t.Errorf("a second time: %v", err)
	}
	if err := after.Check(ctx); err != nil {
		t.Fatalf("the guard: %v", err)
	}
	if err := try(51); err != nil { // the node ships its records again
		t.Fatal(err)
	}
	for range 2 {
		if err := work(n.start(t, n.db, n.clock)); err != nil {
			t.Error(err)
		}
	}
	newest, err := n.newest(t, org)
	if err != nil || newest.Incarnation != 2 || newest.FirstSeq != 81 || newest.Size != 31 {
		t.Errorf("%+v %v", newest, err)
	}
	// Both verifiers follow the link to the incarnation before. They never say that a log is
	// complete over the range that was lost. A part behind it is complete.
	if err := audit.UseSigningKeys(ctx, n.db.Pool(), n.clock(), n.signers...); err != nil {
		t.Fatal(err)
	}
	set, jwks := orgJWKS(t, n, org)
	lastOfFirst, err := n.anchors[0].Newest(ctx, evidence.OrgOrigin(logName, org, 1))
	if err != nil {
		t.Fatal(err)
	}
	export := exported(t, n, org, n.signers[0], audit.ExportOrder{})
	for _, held := range [][]string{nil, {string(lastOfFirst)}, {string(newest.Note)}} {
		if v := bothVerify(t, set, jwks, export, held...); v.Exit != evidence.Incomplete || v.Problem != "entries 51 to 80 were lost before the log was reopened" {
			t.Errorf("%+v", v)
		}
	}
	appendMany(t, c, org, "w_1", 81, 3)
	if err := work(n.start(t, n.db, n.clock)); err != nil {
		t.Fatal(err)
	}
	part := exported(t, n, org, n.signers[0], audit.ExportOrder{After: exportID(t, export)})
	if v := bothVerify(t, set, jwks, part); v.Exit != evidence.Intact || !strings.Contains(v.Complete, "entries 112 to 114") {
		t.Errorf("%+v", v)
	}
	report := verify(t, n.db, org, 1)
	if report.FirstBad != nil || report.Reopened != 1 || report.Entries != 50+34 || report.To != 114 {
		t.Errorf("%+v", report)
	}
	if !strings.Contains(strings.Join(report.Findings, "\n"), "entry 81: the chain was reopened after a restore; entries 51 to 80 are lost") {
		t.Errorf("%q", report.Findings)
	}
	// An entry that is missing without a reopening is still found.
	exec("DELETE FROM audit_entries WHERE seq = 81")
	if report := verify(t, n.db, org, 1); report.FirstBad == nil || report.FirstBad.Seq != 51 {
		t.Errorf("%+v", report.FirstBad)
	}
}

// backUp copies what a database has of the audit log, and returns the way back. exec may change
// every row.
func backUp(t *testing.T) (exec func(string), restore func()) {
	t.Helper()
	admin := storetest.Connect(t, storetest.URL(t, "postgres"))
	exec = func(statement string) {
		t.Helper()
		if _, err := admin.Exec(context.Background(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	exec("SET session_replication_role = replica")
	tables := []string{"audit_heads", "audit_entries", "audit_writers", "audit_trees", "audit_tiles", "audit_checkpoints", "audit_slots", "audit_paths",
		"directory_tree", "directory_tiles", "directory_leaves", "directory_checkpoints"}
	for _, table := range tables {
		exec("CREATE TABLE backup_" + table + " AS SELECT * FROM " + table)
	}
	return exec, func() {
		t.Helper()
		for _, table := range tables {
			exec("DELETE FROM " + table)
			exec("INSERT INTO " + table + " OVERRIDING SYSTEM VALUE SELECT * FROM backup_" + table)
		}
	}
}

// An org's keys verify its entries and are not those of another org.
func TestOrgKeys(t *testing.T) {
	k := parsed(t, "1 "+secretOf(1), "2 "+secretOf(2)+" from=2030-01-01T00:00:00Z")
	one, err := k.OrgKeys("org_1")
	if err != nil {
		t.Fatal(err)
	}
	two, err := k.OrgKeys("org_2")
	if err != nil {
		t.Fatal(err)
	}
	part := strings.Split(one, ",")
	if len(part) != 2 || len(part[0]) != 2+64 || !strings.HasPrefix(part[0], "1:") || !strings.HasPrefix(part[1], "2:") || one == two || strings.Contains(one, secretOf(1)) {
		t.Errorf("%s %s", one, two)
	}
}
