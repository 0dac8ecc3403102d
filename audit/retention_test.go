package audit_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

var (
	trimRate = flag.Int("trimrate", 50, "entries a second that TestTrimUnderLoad appends meanwhile")
	trimRows = flag.Int("trimrows", 2000, "entries in the months that TestTrimUnderLoad removes")
)

// archive is an installation whose months go by, with its owner.
type archive struct {
	*notaries
	t      testing.TB
	owner  *store.DB
	chain  *audit.Chain
	notary *audit.Notary
	folder string
	first  time.Time // the first of its months
}

// newArchive begins in the first of the months for which the database has partitions.
func newArchive(t testing.TB) *archive {
	t.Helper()
	a := &archive{notaries: newNotaries(t), t: t, folder: t.TempDir()}
	owner, err := store.Open(t.Context(), store.Config{URL: storetest.OwnerURL(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(owner.Close)
	a.owner = owner
	now := time.Now().UTC()
	a.first = time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC)
	a.at(a.first.Add(time.Hour))
	if a.chain, err = audit.NewChain(audit.ChainConfig{DB: a.db, Keys: keys(t, 1), Now: a.clock}); err != nil {
		t.Fatal(err)
	}
	a.notary = a.start(t, a.db, a.clock)
	if err := audit.UseSigningKeys(t.Context(), a.db.Pool(), now, a.signers...); err != nil {
		t.Fatal(err)
	}
	if err := audit.SetRetention(t.Context(), owner.Pool(), 1, audit.Actor{Kind: "operator", ID: "test"}); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *archive) at(t time.Time) { a.now.Store(t.UnixNano()) }

// month is the n-th month.
func (a *archive) month(n int) time.Time { return a.first.AddDate(0, n, 0) }

// work does what a control plane does behind the chain.
func (a *archive) work(orgs ...string) {
	a.t.Helper()
	a.later(11 * time.Second)
	if err := errors.Join(a.notary.Round(a.t.Context()), a.notary.Tick(a.t.Context())); err != nil {
		a.t.Fatal(err)
	}
	for _, org := range orgs {
		inOrg(a.t, a.db, org, func(tx pgx.Tx) error { return audit.CatchUpSessions(a.t.Context(), tx, org) })
	}
}

func (a *archive) retention() *audit.Retention {
	a.t.Helper()
	c, err := audit.NewChain(audit.ChainConfig{DB: a.owner, Keys: keys(a.t, 1), Now: a.clock})
	if err != nil {
		a.t.Fatal(err)
	}
	r, err := audit.NewRetention(audit.RetentionConfig{DB: a.owner, Pool: a.owner.Pool(), Chain: c, Now: a.clock})
	if err != nil {
		a.t.Fatal(err)
	}
	return r
}

func (a *archive) options() audit.TrimOptions {
	return audit.TrimOptions{Archive: []string{a.folder}, Reason: "retention", Actor: audit.Actor{Kind: "operator", ID: "test"}, LeaveSessions: true}
}

func (a *archive) archive() (int, error) {
	return a.retention().Archive(a.t.Context(), audit.ArchiveOptions{Folder: a.folder, Signer: a.signers[0], Keys: a.keys, Actor: audit.Actor{Kind: "operator", ID: "test"}})
}

func (a *archive) trim() ([]audit.Month, error) {
	return a.retention().Trim(a.t.Context(), a.options())
}

// table is the name of a month's table.
func (a *archive) table(n int) string { return "audit_entries_" + a.month(n).Format("2006_01") }

func (a *archive) exists(table string) (there bool) {
	a.t.Helper()
	if err := a.owner.Pool().QueryRow(a.t.Context(), "SELECT to_regclass('public.' || $1) IS NOT NULL", table).Scan(&there); err != nil {
		a.t.Fatal(err)
	}
	return there
}

// A month leaves only if checkpoints and the archive have it, and no hold keeps it. What stays
// is verified from there: the chain, the tree, exports and proofs. The numbers go on.
func TestRetention(t *testing.T) {
	ctx := t.Context()
	a := newArchive(t)
	org, other := storetest.Org(t, a.db), storetest.Org(t, a.db)
	appendMany(t, a.chain, org, "w_1", 1, 300)
	appendMany(t, a.chain, other, "w_2", 1, 5)
	kept := "" // why org's month stays
	refused := func(want string) {
		t.Helper()
		gone, err := a.trim()
		if !errors.Is(err, audit.ErrKept) || !strings.Contains(err.Error(), want) || len(gone) != 0 || !a.exists(a.table(0)) {
			t.Fatalf("%s: gone %v: %v", want, gone, err)
		}
		plans, err := a.retention().Plan(ctx, a.options())
		if err != nil || len(plans) == 0 || plans[0].Blocked() == 0 {
			t.Fatalf("the plan: %+v %v", plans, err)
		}
		if i := slices.IndexFunc(plans[0].Orgs, func(o audit.OrgMonth) bool { return strings.Contains(o.Why, want) }); i < 0 {
			t.Fatalf("the plan lacks %q: %+v", want, plans[0])
		} else {
			kept = plans[0].Orgs[i].Why
		}
	}
	if gone, err := a.trim(); err != nil || len(gone) != 0 {
		t.Fatalf("within the retention: %v %v", gone, err)
	}
	a.at(a.month(1).Add(time.Hour))
	appendMany(t, a.chain, org, "w_1", 301, 50)
	a.at(a.month(2).Add(time.Hour))
	refused("sessions are known up to entry 0")
	for _, o := range []string{org, other} {
		inOrg(t, a.db, o, func(tx pgx.Tx) error { return audit.CatchUpSessions(ctx, tx, o) })
	}
	refused("no signed checkpoint has entry")
	if _, err := a.archive(); err != nil {
		t.Fatalf("archived without a checkpoint: %v", err)
	}
	a.work(org, other)
	refused("is not archived")
	// With another key nothing is signed, and the right one can archive later.
	wrong, _ := signingKeys(t)
	if n, err := a.retention().Archive(ctx, audit.ArchiveOptions{Folder: a.folder, Signer: wrong[0], Keys: a.keys, Actor: audit.Actor{Kind: "operator", ID: "test"}}); n != 0 || !errors.Is(err, audit.ErrSigningKey) {
		t.Fatalf("archived %d with another key: %v", n, err)
	}
	if n, err := a.archive(); err != nil || n != 2 {
		t.Fatalf("archived %d: %v", n, err)
	}
	if n, err := a.archive(); err != nil || n != 0 {
		t.Fatalf("archived again %d: %v", n, err)
	}
	// Each file is an export that the verifiers accept.
	files, err := filepath.Glob(filepath.Join(a.folder, "*", "*.json"))
	if err != nil || len(files) != 2 {
		t.Fatalf("%v %v", files, err)
	}
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, damage := range []func() error{
		func() error { return os.WriteFile(files[0], append(slices.Clone(whole[:len(whole)-1]), ' '), 0o600) },
		func() error { return os.Remove(files[0]) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		refused("the archive")
	}
	if err := os.WriteFile(files[0], whole, 0o600); err != nil {
		t.Fatal(err)
	}
	hold := audit.Hold{Org: other, ID: "hold_1", Reason: "case 1"}
	actor := audit.Actor{Kind: "operator", ID: "test"}
	ownerChain, err := audit.NewChain(audit.ChainConfig{DB: a.owner, Keys: keys(t, 1), Now: a.clock})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.chain.PlaceHold(ctx, hold, actor); err == nil {
		t.Error("the app placed a hold")
	}
	if before, err := ownerChain.PlaceHold(ctx, hold, actor); err != nil || before.UpTo != 0 {
		t.Fatalf("%+v %v", before, err)
	}
	refused("the hold hold_1 keeps it")
	t.Log(kept)
	if err := a.chain.ReleaseHold(ctx, other, hold.ID, "mine", actor); err == nil {
		t.Error("the app released a hold")
	}
	if err := errors.Join(ownerChain.ReleaseHold(ctx, other, hold.ID, "closed", actor)); err != nil {
		t.Fatal(err)
	}
	if err := ownerChain.ReleaseHold(ctx, other, hold.ID, "closed", actor); !errors.Is(err, audit.ErrNoHold) {
		t.Errorf("released twice: %v", err)
	}

	// The month leaves. Both orgs go on.
	head := verify(t, a.db, org, 1)
	gone, err := a.trim()
	if err != nil || len(gone) != 1 || a.exists(a.table(0)) || !a.exists(a.table(1)) {
		t.Fatalf("gone %v: %v", gone, err)
	}
	report := verify(t, a.db, org, 1)
	if report.FirstBad != nil || report.Trimmed != 300 || report.From != 301 || report.To != 351 || !strings.HasPrefix(report.Archive, "sha256:") || report.Broken != 0 {
		t.Errorf("before: %+v\nafter: %+v", head, report)
	}
	if report := verify(t, a.db, other, 1); report.FirstBad != nil || report.Trimmed != 5 || report.From != 6 {
		t.Errorf("an org whose entries all left: %+v", report)
	}
	if err := audit.VerifyHead(ctx, a.db, org, keys(t, 1)); err != nil {
		t.Error(err)
	}
	fresh := chain(t, a.db, 1)
	if err := fresh.InspectAll(ctx, a.db.Pool()); err != nil || fresh.Bad() != nil {
		t.Errorf("the nightly check: %v %v", err, fresh.Bad())
	}
	appendMany(t, a.chain, org, "w_1", 351, 10)
	// An idle sidecar sends its last record again. It is no fork.
	if _, err := a.chain.Append(ctx, audit.Batch{Org: other, Node: "node_1", Writer: "w_2", Records: records(other, "w_2", 5, 1)}); err != nil {
		t.Errorf("the last record again: %v", err)
	}
	changed := records(other, "w_2", 5, 1)
	changed[0].Entry = slices.Concat(changed[0].Entry[:len(changed[0].Entry)-1], []byte(`,"x":1}`))
	if _, err := a.chain.Append(ctx, audit.Batch{Org: other, Node: "node_1", Writer: "w_2", Records: changed}); !errors.Is(err, audit.ErrFork) {
		t.Errorf("another record with its number: %v", err)
	}
	a.work(org, other)
	fresh = chain(t, a.db, 1)
	appendMany(t, fresh, org, "w_1", 361, 2)
	if err := fresh.InspectTails(ctx); err != nil || fresh.Bad() != nil {
		t.Errorf("the end of the chain: %v %v", err, fresh.Bad())
	}

	// Exports begin at the trim. Those that would begin before have a clear error.
	l := &signedLog{t: t, db: a.db, org: org}
	e, err := l.order(audit.ExportOrder{})
	if err != nil || e.FirstEntry != 351 {
		t.Fatalf("an export of all: %+v %v", e, err)
	}
	if made, err := audit.MakeExport(ctx, a.db, org, e.ID, a.signers[0], time.Now); !made || err != nil {
		t.Fatal(err)
	}
	inOrg(t, a.db, org, func(tx pgx.Tx) (err error) {
		e, err = audit.GetExport(ctx, tx, org, e.ID)
		return err
	})
	var file strings.Builder
	if err := e.Write(ctx, a.db, &file, 0); err != nil {
		t.Fatal(err)
	}
	if v := evidence.VerifyChain(strings.NewReader(file.String()), evidence.ChainOptions{Keys: a.keys}); v.Exit != evidence.Intact {
		t.Errorf("%+v", v)
	}
	for name, o := range map[string]audit.ExportOrder{
		"since": {Filter: evidence.ExportFilter{Since: a.month(0).UnixMicro()}},
	} {
		if _, err := l.order(o); !errors.Is(err, audit.ErrArchived) && !errors.Is(err, audit.ErrNoCheckpoint) {
			t.Errorf("%s: %v", name, err)
		}
	}

	// Proofs.
	inOrg(t, a.db, org, func(tx pgx.Tx) error {
		for seq, status := range map[int64]string{1: audit.ProofArchived, 300: audit.ProofArchived, 301: audit.ProofIncluded} {
			p, err := audit.ProveEntry(ctx, tx, org, seq)
			if err != nil || p.Status != status || status == audit.ProofArchived && (len(p.Archive) != 1 || p.Archive[0].LastSeq != 350) {
				t.Errorf("entry %d: %+v %v", seq, p, err)
			}
		}
		if _, err := audit.ProveEntry(ctx, tx, org, 1000); !errors.Is(err, audit.ErrNoEntry) {
			t.Errorf("an entry that never was: %v", err)
		}
		for n, status := range map[int]string{1: audit.ProofArchived, 300: audit.ProofArchived, 301: audit.ProofIncluded} {
			r := records(org, "w_1", n, 1)[0]
			p, err := audit.ProveReceipt(ctx, tx, org, audit.Receipt{Writer: "w_1", Seq: r.Seq, Leaf: audit.LeafHash(r.Entry)})
			if err != nil || p.Status != status {
				t.Errorf("receipt %d: %+v %v", n, p, err)
			}
		}
		p, err := audit.ProveReceipt(ctx, tx, org, audit.Receipt{Writer: "w_1", Seq: 310, Leaf: [32]byte{1}})
		if err != nil || p.Status != audit.ProofMissing {
			t.Errorf("a receipt that the log contradicts: %+v %v", p, err)
		}
		after, last, err := audit.Since(ctx, tx, a.month(0))
		if err != nil || after != 300 || last != 364 { // with clock.regressed, of the chain whose clock is ours
			t.Errorf("since: %d to %d: %v", after, last, err)
		}
		return nil
	})

	// The next month leaves too, in a later run, and its archive continues the first one's.
	a.at(a.month(3).Add(time.Hour))
	a.work(org, other)
	if n, err := a.archive(); err != nil || n != 0 {
		t.Errorf("month 1 is in the first files: %d %v", n, err)
	}
	if gone, err := a.trim(); err != nil || len(gone) != 1 {
		t.Fatalf("gone %v: %v", gone, err)
	}
	if report := verify(t, a.db, org, 1); report.FirstBad != nil || report.Trimmed != 350 || report.From != 351 {
		t.Errorf("%+v", report)
	}
}

// A command that is killed between any two of its steps loses nothing, and goes on when it is
// run again. A hold that is placed at any step keeps the entries as long as they are there.
func TestTrimKilled(t *testing.T) {
	ctx := t.Context()
	a := newArchive(t)
	org, other := storetest.Org(t, a.db), storetest.Org(t, a.db)
	// Months 0, 1 and 2 have entries.
	for n := range 3 {
		a.at(a.month(n).Add(time.Hour))
		appendMany(t, a.chain, org, "w_1", 1+20*n, 20)
		appendMany(t, a.chain, other, "w_2", 1+20*n, 20)
	}
	a.at(a.month(3).Add(time.Hour))
	a.work(org, other)
	intact := func(step string) {
		t.Helper()
		for _, o := range []string{org, other} {
			if report := verify(t, a.db, o, 1); report.FirstBad != nil {
				t.Fatalf("killed at %q: %s: %v", step, o, report.FirstBad)
			}
		}
		if strings.Contains(step, org) || strings.Contains(step, other) {
			return // the table is as it was
		}
		fresh := chain(t, a.db, 1)
		if err := fresh.InspectAll(ctx, a.db.Pool()); err != nil || fresh.Bad() != nil {
			t.Fatalf("killed at %q: %v %v", step, err, fresh.Bad())
		}
	}
	killed := errors.New("killed")
	// until runs fn, and kills it at each of its steps in turn.
	until := func(fn func(r *audit.Retention) error) (steps []string) {
		t.Helper()
		done := make(map[string]bool)
		for {
			r := a.retention()
			r.SetFault(func(step string) error {
				if done[step] {
					return nil
				}
				done[step] = true
				steps = append(steps, step)
				return killed
			})
			err := fn(r)
			if err == nil {
				return steps
			}
			if !errors.Is(err, killed) {
				t.Fatal(err)
			}
			intact(steps[len(steps)-1])
		}
	}
	steps := until(func(r *audit.Retention) error {
		_, err := r.Archive(ctx, audit.ArchiveOptions{Folder: a.folder, Signer: a.signers[0], Keys: a.keys, Actor: audit.Actor{Kind: "operator", ID: "test"}})
		return err
	})
	if len(steps) != 2 {
		t.Errorf("the steps of archive: %v", steps)
	}
	steps = until(func(r *audit.Retention) error {
		_, err := r.Trim(ctx, a.options())
		return err
	})
	if len(steps) != 2*3+5 {
		t.Errorf("%d steps of trim: %v", len(steps), steps)
	}
	for n, there := range []bool{false, false, true} {
		if a.exists(a.table(n)) != there {
			t.Errorf("month %d is there: %v", n, !there)
		}
	}
	intact("the end")
}

// A hold that is placed while a trim works keeps what is still there.
func TestHoldDuringTrim(t *testing.T) {
	ctx := t.Context()
	a := newArchive(t)
	org := storetest.Org(t, a.db)
	appendMany(t, a.chain, org, "w_1", 1, 20)
	a.at(a.month(2).Add(time.Hour))
	a.work(org)
	if _, err := a.archive(); err != nil {
		t.Fatal(err)
	}
	ownerChain, err := audit.NewChain(audit.ChainConfig{DB: a.owner, Keys: keys(t, 1), Now: a.clock})
	if err != nil {
		t.Fatal(err)
	}
	actor := audit.Actor{Kind: "operator", ID: "test"}
	for i, step := range []string{"checked " + org, "recorded " + org, "detached", "counted"} {
		hold := audit.Hold{Org: org, ID: fmt.Sprintf("hold_%d", i), Reason: "case"}
		r := a.retention()
		r.SetFault(func(at string) error {
			if at != step {
				return nil
			}
			_, err := ownerChain.PlaceHold(ctx, hold, actor)
			return err
		})
		if _, err := r.Trim(ctx, a.options()); !errors.Is(err, audit.ErrKept) {
			t.Fatalf("a hold at %q: %v", step, err)
		}
		if !a.exists(a.table(0)) {
			t.Fatalf("a hold at %q did not keep the table", step)
		}
		if err := ownerChain.ReleaseHold(ctx, org, hold.ID, "closed", actor); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.trim(); err != nil || a.exists(a.table(0)) {
		t.Fatal(err)
	}
}

// Rows that vanish in another way are noticed, also with a row in audit_trims. Rows that no trim
// covers keep a detached table.
func TestTrimForged(t *testing.T) {
	ctx := t.Context()
	a := newArchive(t)
	org, other := storetest.Org(t, a.db), storetest.Org(t, a.db)
	appendMany(t, a.chain, org, "w_1", 1, 20)
	appendMany(t, a.chain, other, "w_2", 1, 20)
	a.at(a.month(1).Add(time.Hour))
	appendMany(t, a.chain, org, "w_1", 21, 20)
	a.work(org, other)
	// A superuser without the HMAC keys removes the first entries and makes it look like a trim.
	su := superuser(t, a.db)
	for _, sql := range []string{
		`SET session_replication_role = replica`,
		`INSERT INTO audit_trims (org_id, up_to, from_seq, entries, month, incarnation, mac, mac_version, epoch, appended_at, size, checkpoint, archive, entry_seq, actor, reason)
			SELECT org_id, seq, 1, seq, '2026-01-01', incarnation, mac, mac_version, epoch, appended_at, 40, 'x', sha256('x'), seq + 1, 'x', 'x' FROM audit_entries WHERE org_id = '` + org + `' AND seq = 10`,
		`DELETE FROM audit_entries WHERE org_id = '` + org + `' AND seq <= 10`,
	} {
		if _, err := su.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	if report := verify(t, a.db, org, 1); report.FirstBad == nil || report.FirstBad.Seq != 10 {
		t.Errorf("a forged trim: %+v", report)
	}
	// The month has rows of orgs without a head.
	if _, err := su.Exec(ctx, `INSERT INTO `+a.table(0)+` SELECT * FROM audit_entries WHERE org_id = '`+other+`' AND seq = 1`); err == nil {
		t.Error("a row twice")
	}
	if _, err := su.Exec(ctx, `DELETE FROM audit_heads WHERE org_id = '`+other+`'`); err != nil {
		t.Fatal(err)
	}
	if _, err := su.Exec(ctx, `DELETE FROM audit_slots WHERE org_id = '`+other+`'`); err != nil {
		t.Fatal(err)
	}
	a.at(a.month(2).Add(time.Hour))
	if _, err := su.Exec(ctx, `DELETE FROM audit_heads WHERE org_id = '`+org+`'`); err != nil {
		t.Fatal(err)
	}
	if _, err := a.trim(); !errors.Is(err, audit.ErrKept) || !strings.Contains(err.Error(), "that no trim covers") || !a.exists(a.table(0)) {
		t.Errorf("rows of unknown organizations: %v", err)
	}
}

// Only the owner removes entries. What is recorded about it cannot be changed.
func TestOnlyTheOwnerTrims(t *testing.T) {
	a := newArchive(t)
	org := storetest.Org(t, a.db)
	appendMany(t, a.chain, org, "w_1", 1, 5)
	for role, statements := range map[string][]string{
		store.AppRole: {
			`DROP TABLE ` + a.table(0), `ALTER TABLE audit_entries DETACH PARTITION ` + a.table(0), `INSERT INTO audit_retention (months, actor) VALUES (1, 'x')`,
			`INSERT INTO audit_holds (org_id, id, reason, actor) VALUES ('` + org + `', 'x', 'x', 'x')`, `UPDATE audit_holds SET released_at = now()`, `DELETE FROM audit_holds`,
			`INSERT INTO audit_archives SELECT * FROM audit_archives`, `INSERT INTO audit_trims SELECT * FROM audit_trims`, `ALTER TABLE ` + a.table(0) + ` NO FORCE ROW LEVEL SECURITY`,
		},
		store.OwnerRole: {`UPDATE audit_retention SET months = 2`, `DELETE FROM audit_retention`, `TRUNCATE audit_holds`, `TRUNCATE audit_trims`},
	} {
		conn := storetest.Connect(t, storetest.URL(t, role))
		if _, err := conn.Exec(t.Context(), `SELECT set_config('aid.org', $1, false)`, org); err != nil {
			t.Fatal(err)
		}
		for _, sql := range statements {
			var pg interface{ SQLState() string }
			if _, err := conn.Exec(t.Context(), sql); !errors.As(err, &pg) || pg.SQLState() != "42501" {
				t.Errorf("%s: %s: %v", role, sql, err)
			}
		}
	}
}

// Appending goes on while months leave. With -trimrate 500 -trimrows 200000 it is a measurement.
func TestTrimUnderLoad(t *testing.T) {
	a := newArchive(t)
	org := storetest.Org(t, a.db)
	appendMany(t, a.chain, org, "w_1", 1, *trimRows)
	a.at(a.month(2).Add(time.Hour))
	a.work(org)
	if _, err := a.archive(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var appending sync.WaitGroup
	var slowest time.Duration
	var count atomic.Int64
	appended := make(chan struct{})
	appending.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(*trimRate))
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			began, n := time.Now(), int(count.Load())
			if _, err := a.chain.Append(context.Background(), audit.Batch{Org: org, Node: "node_1", Writer: "w_9", Records: records(org, "w_9", n+1, 1)}); err != nil {
				t.Errorf("record %d: %v", n+1, err)
				cancel()
			}
			if count.Add(1) == 3 {
				close(appended)
			}
			slowest = max(slowest, time.Since(began))
		}
	})
	<-appended
	began := time.Now()
	gone, err := a.trim()
	took := time.Since(began)
	before := count.Load()
	cancel()
	appending.Wait()
	if err != nil || len(gone) != 1 || a.exists(a.table(0)) {
		t.Fatalf("gone %v: %v", gone, err)
	}
	report := verify(t, a.db, org, 1)
	if n := count.Load(); report.FirstBad != nil || report.Entries != n+1 {
		t.Errorf("%d were appended: %+v", n, report)
	}
	t.Logf("%d entries left in %v, %d were appended meanwhile at %d a second, the slowest took %v", *trimRows, took, before, *trimRate, slowest)
}
