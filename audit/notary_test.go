package audit_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/anchor"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// keyInMemory signs as evidence.Signer describes.
type keyInMemory struct{ crypto.Signer }

func (k keyInMemory) Sign(_ context.Context, message []byte) ([]byte, error) {
	if _, ok := k.Public().(ed25519.PublicKey); ok {
		return k.Signer.Sign(rand.Reader, message, crypto.Hash(0))
	}
	sum := sha256.Sum256(message)
	return k.Signer.Sign(rand.Reader, sum[:], crypto.SHA256)
}

func signingKeys(t testing.TB) ([]evidence.Signer, evidence.KeySet) {
	t.Helper()
	p, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, e, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signers := []evidence.Signer{keyInMemory{p}, keyInMemory{e}}
	var set evidence.KeySet
	for _, s := range signers {
		k, err := evidence.NewKey(s.Public())
		if err != nil {
			t.Fatal(err)
		}
		set.Keys = append(set.Keys, k)
	}
	return signers, set
}

const logName = "aid-test"

// notaries make notaries of one installation with a clock that the test sets.
type notaries struct {
	db      *store.DB
	signers []evidence.Signer
	keys    evidence.KeySet
	anchors []audit.Anchor
	dir     string
	now     atomic.Int64 // nanoseconds
}

func newNotaries(t testing.TB) *notaries {
	t.Helper()
	n := &notaries{db: storetest.Open(t), dir: t.TempDir()}
	n.signers, n.keys = signingKeys(t)
	file, err := anchor.NewFile(n.dir)
	if err != nil {
		t.Fatal(err)
	}
	n.anchors = []audit.Anchor{file}
	n.now.Store(time.Date(2026, 11, 27, 15, 0, 0, 0, time.UTC).UnixNano())
	return n
}

func (n *notaries) clock() time.Time { return time.Unix(0, n.now.Load()) }

func (n *notaries) later(d time.Duration) { n.now.Add(int64(d)) }

func (n *notaries) guard(t testing.TB, db audit.RowQuerier) *audit.Guard {
	t.Helper()
	g, err := audit.NewGuard(audit.GuardConfig{DB: db, LogName: logName, Anchors: n.anchors, Now: n.clock,
		Keys: func(context.Context) (evidence.KeySet, error) { return n.keys, nil }})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func (n *notaries) start(t testing.TB, db *store.DB, now func() time.Time) *audit.Notary {
	t.Helper()
	notary, err := audit.NewNotary(audit.NotaryConfig{
		DB: db, Pool: db.Pool(), LogName: logName, Signers: func() []evidence.Signer { return n.signers }, Guard: n.guard(t, db.Pool()), Anchors: n.anchors, Now: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return notary
}

func (n *notaries) newest(t testing.TB, org string) (c audit.StoredCheckpoint, err error) {
	t.Helper()
	err = n.db.InOrg(context.Background(), org, func(tx pgx.Tx) error {
		c, err = audit.NewestCheckpoint(context.Background(), tx, org)
		return err
	})
	return c, err
}

// A chain gets checkpoints, at most every 10 s, and the directory has them at its next tick.
// The directory is signed every 10 s also when nothing happens.
func TestNotary(t *testing.T) {
	ctx := context.Background()
	n := newNotaries(t)
	org, other := storetest.Org(t, n.db), storetest.Org(t, n.db)
	c := chain(t, n.db, 1)
	appendMany(t, c, org, "w_1", 1, 300)
	notary := n.start(t, n.db, n.clock)
	round := func() {
		t.Helper()
		if err := notary.Round(ctx); err != nil {
			t.Fatal(err)
		}
	}
	tick := func() {
		t.Helper()
		if err := notary.Tick(ctx); err != nil {
			t.Fatal(err)
		}
	}
	round()
	first, err := n.newest(t, org)
	if err != nil || first.Size != 300 || first.FirstSeq != 1 || first.LastSeq() != 300 {
		t.Fatalf("the first checkpoint is %+v, %v", first, err)
	}
	leaves := links(t, n.db, org)
	var r evidence.Range
	for _, h := range leaves {
		r.Append(h)
	}
	signed, err := n.keys.Open(first.Note, evidence.OrgOrigin(logName, org, 1))
	if err != nil || signed.Size != 300 || signed.Root != r.Root() || !signed.Time.Equal(first.Time) || first.Root != r.Root() {
		t.Fatalf("it is %+v, %v", signed, err)
	}
	appendMany(t, c, org, "w_1", 301, 10)
	round()
	if now, _ := n.newest(t, org); now.Size != 300 {
		t.Errorf("after no time at all it has %d leaves", now.Size)
	}
	proof := func(org string, at audit.StoredCheckpoint) (evidence.Tick, evidence.Checkpoint, error) {
		var p evidence.DirectoryProof
		err := n.db.InOrg(ctx, org, func(tx pgx.Tx) (err error) {
			p, err = audit.DirectoryProof(ctx, tx, org, at.Incarnation, at.Size)
			return err
		})
		if err != nil {
			return evidence.Tick{}, evidence.Checkpoint{}, err
		}
		text, _, _ := strings.Cut(string(at.Note), "\n\n")
		for what, wrong := range map[string]func(*evidence.DirectoryProof){
			"slot": func(p *evidence.DirectoryProof) { p.Slot ^= 1 }, "nonce": func(p *evidence.DirectoryProof) { p.Nonce = make([]byte, 32) },
			"tick": func(p *evidence.DirectoryProof) { p.Tick.Number++ }, "root": func(p *evidence.DirectoryProof) { p.Tick.Root = make([]byte, 32) },
			"slots": func(p *evidence.DirectoryProof) { p.Slots *= 2 }, "checkpoint": func(p *evidence.DirectoryProof) { p.Checkpoint = string(at.Note) },
			"time": func(p *evidence.DirectoryProof) { p.Tick.Time = "2026-11-27T15:00:00.000001Z" },
		} {
			bad := p
			wrong(&bad)
			if _, _, err := bad.Verify(n.keys, logName, text+"\n"); err == nil {
				t.Errorf("a proof with another %s is accepted", what)
			}
		}
		if _, _, err := p.Verify(n.keys, logName, text); err == nil {
			t.Error("a proof of another checkpoint is accepted")
		}
		return p.Verify(n.keys, logName, text+"\n")
	}
	if _, _, err := proof(org, first); !errors.Is(err, audit.ErrNoCheckpoint) {
		t.Errorf("before the tick: %v", err)
	}
	tick()
	if at, dir, err := proof(org, first); err != nil || at.Number != 0 || dir.Size != 1 || at.Slots != 1 {
		t.Errorf("the first tick: %+v %+v %v", at, dir, err)
	}
	tick()             // too early
	for i := range 3 { // nothing has happened
		n.later(11 * time.Second)
		tick()
		if at, dir, err := proof(org, first); err != nil || dir.Size != int64(i+2) || at.Number != int64(i+1) {
			t.Errorf("tick %d: %+v %+v %v", i+1, at, dir, err)
		}
	}
	appendMany(t, c, other, "w_1", 1, 2)
	round()
	n.later(11 * time.Second)
	tick()
	second, err := n.newest(t, org)
	if err != nil || second.Size != 310 {
		t.Fatalf("the second checkpoint: %+v %v", second, err)
	}
	// An earlier one is in the first tick that had it, and the newest one in the newest.
	for _, want := range []struct {
		org  string
		c    audit.StoredCheckpoint
		tick int64
	}{{org, first, 0}, {org, second, 4}} {
		if at, dir, err := proof(want.org, want.c); err != nil || at.Number != want.tick || dir.Size != 5 {
			t.Errorf("size %d: %+v %+v %v", want.c.Size, at, dir, err)
		}
	}
	if theirs, err := n.newest(t, other); err != nil {
		t.Error(err)
	} else if at, _, err := proof(other, theirs); err != nil || at.Slots != 2 {
		t.Errorf("the other org: %+v %v", at, err)
	}

	// The anchor has what is stored.
	if !notary.Publish(ctx) {
		t.Error("the anchor failed")
	}
	for origin, size := range map[string]int64{evidence.OrgOrigin(logName, org, 1): 310, evidence.DirectoryOrigin(logName): 5} {
		note, err := n.anchors[0].Newest(ctx, origin)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := n.keys.Open(note, origin); err != nil || c.Size != size {
			t.Errorf("%s in the anchor: %+v %v", origin, c, err)
		}
	}
	if err := notary.Ready(); err != nil {
		t.Error(err)
	}
}

// Without keys trees grow and nothing is signed.
func TestNotaryWithoutKeys(t *testing.T) {
	n := newNotaries(t)
	n.signers = nil
	org := storetest.Org(t, n.db)
	appendMany(t, chain(t, n.db, 1), org, "w_1", 1, 20)
	notary := n.start(t, n.db, n.clock)
	if err := errors.Join(notary.Round(t.Context()), notary.Tick(t.Context())); err != nil {
		t.Fatal(err)
	}
	if c, err := n.newest(t, org); !errors.Is(err, audit.ErrNoCheckpoint) {
		t.Errorf("a checkpoint: %+v, %v", c, err)
	}
	err := n.db.InOrg(t.Context(), org, func(tx pgx.Tx) error {
		_, err := audit.Inclusion(t.Context(), tx, org, 1, 19, 20)
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

var errKilled = errors.New("killed")

// Eight control planes with clocks that differ sign the same trees, and each is killed at any
// step, again and again. There are never two roots for a size, times ascend, and what is
// stored and published verifies.
func TestEightSigners(t *testing.T) {
	ctx := context.Background()
	n := newNotaries(t)
	org, other := storetest.Org(t, n.db), storetest.Org(t, n.db)
	c := chain(t, n.db, 1)
	admin := storetest.Connect(t, storetest.URL(t, "postgres"))
	seed := mathrand.Uint64()
	var published sync.Map // origin and size: note
	file := n.anchors[0]
	n.anchors = []audit.Anchor{recording{file, func(origin string, note []byte) {
		size := strings.SplitN(string(note), "\n", 3)[1]
		if had, loaded := published.LoadOrStore(origin+" "+size, string(note)); loaded && had != string(note) {
			t.Errorf("two notes of %s with size %s were published", origin, size)
		}
	}}}
	var kills, signed atomic.Int64
	ended := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 8 {
		db := n.db
		if i > 0 {
			db = storetest.Open(t)
		}
		wg.Go(func() {
			dice := mathrand.New(mathrand.NewPCG(seed, uint64(i)))
			skew := time.Duration(dice.IntN(40)-20) * time.Second
			for {
				select {
				case <-ended:
					return
				default:
				}
				notary := n.start(t, db, func() time.Time { return n.clock().Add(skew) }) // a new process
				var after atomic.Int64                                                    // several trees are signed at once
				after.Store(dice.Int64N(25))
				notary.SetFault(func(context.Context, string) error {
					if after.Add(-1) == 0 {
						kills.Add(1)
						return errKilled
					}
					return nil
				})
				for range 4 {
					n.later(3 * time.Second)
					err := notary.Tick(ctx)
					if err == nil {
						err = notary.Round(ctx)
					}
					if errors.Is(err, errKilled) {
						break // what it had in memory is lost
					}
					notary.Publish(ctx)
				}
			}
		})
	}
	dice := mathrand.New(mathrand.NewPCG(seed, 99))
	for i := range 40 {
		for _, b := range []audit.Batch{{Org: org, Records: records(org, "w_1", 1+i*20, 20)}, {Org: other, Records: records(other, "w_1", 1+i*7, 7)}} {
			b.Node, b.Writer = "node_1", "w_1"
			for try := 1; ; try++ { // its connection may be one that was ended below
				_, err := c.Append(ctx, b)
				if err == nil {
					break
				}
				if try == 100 {
					t.Fatal(err)
				}
			}
		}
		if dice.IntN(3) == 0 { // Postgres loses a connection, at any step
			if _, err := admin.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
				AND state LIKE 'idle in%' ORDER BY random() LIMIT 1`); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(ended)
	wg.Wait()
	last := n.start(t, n.db, func() time.Time { return n.clock().Add(time.Hour) })
	if err := errors.Join(last.Round(ctx), last.Tick(ctx)); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	last.Publish(ctx)

	check := func(origin, query string, leaves []tlog.Hash, args ...any) (notes int) {
		t.Helper()
		rows, err := admin.Query(ctx, query, args...)
		if err != nil {
			t.Fatal(err)
		}
		var r evidence.Range
		var before time.Time
		var note []byte
		_, err = pgx.ForEachRow(rows, []any{&note}, func() error {
			notes++
			c, err := n.keys.Open(note, origin)
			if err != nil {
				return err
			}
			for r.Size() < c.Size {
				r.Append(leaves[r.Size()])
			}
			if r.Size() != c.Size || r.Root() != c.Root {
				t.Errorf("seed %d: the checkpoint %s %d has another root", seed, origin, c.Size)
			}
			if !c.Time.After(before) {
				t.Errorf("seed %d: the time of %s %d is %v, and before was %v", seed, origin, c.Size, c.Time, before)
			}
			before = c.Time
			published.Delete(fmt.Sprint(origin, " ", c.Size))
			return nil
		})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		return notes
	}
	published.Range(func(key, value any) bool {
		origin, size, _ := strings.Cut(key.(string), " ")
		var stored string
		query, args := "SELECT convert_from(note, 'UTF8') FROM directory_checkpoints WHERE size::text = $1", []any{size}
		if part := strings.Split(origin, "/"); len(part) > 2 {
			query, args = "SELECT convert_from(note, 'UTF8') FROM audit_checkpoints WHERE size::text = $1 AND org_id = $2", append(args, part[2])
		}
		if err := admin.QueryRow(ctx, query, args...).Scan(&stored); err != nil || stored != value {
			t.Errorf("seed %d: %s was published and is not stored: %v", seed, key, err)
		}
		signed.Add(1)
		return true
	})
	for _, o := range []string{org, other} {
		if notes := check(evidence.OrgOrigin(logName, o, 1), "SELECT note FROM audit_checkpoints WHERE org_id = $1 ORDER BY size", links(t, n.db, o), o); notes < 3 {
			t.Errorf("only %d checkpoints of %s", notes, o)
		}
		if at, err := n.newest(t, o); err != nil || at.Size != int64(len(links(t, n.db, o))) {
			t.Errorf("seed %d: the last checkpoint of %s is %+v, %v", seed, o, at, err)
		}
	}
	var dir []tlog.Hash
	rows, err := admin.Query(ctx, "SELECT data FROM directory_leaves ORDER BY n")
	if err != nil {
		t.Fatal(err)
	}
	var data []byte
	if _, err := pgx.ForEachRow(rows, []any{&data}, func() error { dir = append(dir, tlog.RecordHash(data)); return nil }); err != nil {
		t.Fatal(err)
	}
	if notes := check(evidence.DirectoryOrigin(logName), "SELECT note FROM directory_checkpoints ORDER BY size", dir); notes < 3 {
		t.Errorf("only %d ticks", notes)
	}
	if kills.Load() < 10 || signed.Load() == 0 {
		t.Errorf("only %d kills, %d published", kills.Load(), signed.Load())
	}
	t.Logf("seed %d: %d kills, %d checkpoints published", seed, kills.Load(), signed.Load())
}

// recording notes what is published.
type recording struct {
	audit.Anchor
	see func(origin string, note []byte)
}

func (r recording) Publish(ctx context.Context, origin string, note []byte) error {
	r.see(origin, note)
	return r.Anchor.Publish(ctx, origin, note)
}

// A database that is restored to an older state, or that has another history, is not appended
// to. An anchor that is away stops nothing.
func TestRolledBack(t *testing.T) {
	ctx := context.Background()
	n := newNotaries(t)
	org, other := storetest.Org(t, n.db), storetest.Org(t, n.db)
	guard := n.guard(t, n.db.Pool())
	newChain := func(g *audit.Guard) *audit.Chain {
		c, err := audit.NewChain(audit.ChainConfig{DB: n.db, Keys: keys(t, 1), Guard: g})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := newChain(guard)
	appendMany(t, c, org, "w_1", 1, 50)
	notary := n.start(t, n.db, n.clock)
	work := func() {
		t.Helper()
		if err := errors.Join(notary.Round(ctx), notary.Tick(ctx)); err != nil {
			t.Fatal(err)
		}
		notary.Publish(ctx)
		n.later(11 * time.Second)
	}
	work()
	appendMany(t, c, org, "w_1", 51, 50)
	work()
	// A process without anchors that signs nothing itself.
	bystander, err := audit.NewGuard(audit.GuardConfig{DB: n.db.Pool(), LogName: logName, Now: n.clock, Keys: func(context.Context) (evidence.KeySet, error) { return n.keys, nil }})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(guard.Check(ctx), bystander.Check(ctx)); err != nil {
		t.Fatal(err)
	}
	admin := storetest.Connect(t, storetest.URL(t, "postgres"))
	exec := func(statement string, args ...any) {
		t.Helper()
		if _, err := admin.Exec(ctx, statement, args...); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	exec("SET session_replication_role = replica")
	next := 101
	try := func(c *audit.Chain, org string) error {
		_, err := c.Append(ctx, audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: records(org, "w_1", next, 1)})
		if err == nil {
			next++
		}
		return err
	}
	// The newest tick is lost.
	exec("CREATE TABLE lost AS SELECT * FROM directory_checkpoints WHERE size = 2")
	exec("DELETE FROM directory_checkpoints WHERE size = 2")
	guard.Connected(ctx, n.db.Pool()) // a new connection, to a server that lags
	if err := try(c, org); !errors.Is(err, audit.ErrRolledBack) || !strings.Contains(err.Error(), "restore.md") {
		t.Errorf("after the loss of a tick: %v", err)
	}
	if err := bystander.Check(ctx); !errors.Is(err, audit.ErrRolledBack) {
		t.Errorf("a process without anchors: %v", err)
	}
	err = n.db.InOrg(ctx, other, func(tx pgx.Tx) error {
		_, err := c.Record(ctx, tx, other, audit.Changed{Kind: "agent.created", Actor: audit.Actor{Kind: "operator", ID: "x"}, ObjectKind: "agent", ObjectID: "ag_1"})
		return err
	})
	if !errors.Is(err, audit.ErrRolledBack) {
		t.Errorf("a change: %v", err)
	}
	if err := guard.Ready(); !errors.Is(err, audit.ErrRolledBack) {
		t.Errorf("ready: %v", err)
	}
	fresh := n.guard(t, n.db.Pool()) // another process starts
	if err := fresh.Check(ctx); !errors.Is(err, audit.ErrRolledBack) {
		t.Errorf("at the start: %v", err)
	}
	if err := errors.Join(notary.Round(ctx), notary.Tick(ctx)); !errors.Is(err, audit.ErrRolledBack) {
		t.Errorf("the notary signs: %v", err)
	}
	// The same size has another root.
	exec("INSERT INTO directory_checkpoints SELECT size, sha256('x'), time, note FROM lost")
	if err := guard.Check(ctx); !errors.Is(err, audit.ErrRolledBack) {
		t.Errorf("with another root: %v", err)
	}
	// The right server is back.
	exec("UPDATE directory_checkpoints d SET root = l.root FROM lost l WHERE l.size = d.size")
	if err := errors.Join(guard.Check(ctx), try(c, org)); err != nil {
		t.Errorf("with the right database: %v", err)
	}

	// One org's newest checkpoint is lost, between two ticks.
	exec("CREATE TABLE lost2 AS SELECT * FROM audit_checkpoints WHERE org_id = $1 AND size = 100", org)
	exec("DELETE FROM audit_checkpoints WHERE size = 100")
	fresh = n.guard(t, n.db.Pool())
	if err := errors.Join(fresh.Check(ctx), try(newChain(fresh), org)); !errors.Is(err, audit.ErrRolledBack) {
		t.Errorf("the first append of a process to an org that was rolled back: %v", err)
	}
	notary = n.start(t, n.db, n.clock)
	if err := notary.Round(ctx); !errors.Is(err, audit.ErrRolledBack) {
		t.Errorf("the notary signs an org that was rolled back: %v", err)
	}
	exec("INSERT INTO audit_checkpoints SELECT * FROM lost2")
	if err := notary.Round(ctx); err != nil {
		t.Errorf("with the right database: %v", err)
	}
	if c, err := n.newest(t, org); err != nil || c.Size != 101 {
		t.Errorf("then it has signed %+v, %v", c, err)
	}

	// Anchors that do not answer, or have what is not ours, stop nothing.
	n.anchors = []audit.Anchor{away{}, forged{n}}
	for _, g := range []*audit.Guard{n.guard(t, n.db.Pool()), nil} {
		if err := errors.Join(g.Check(ctx), try(newChain(g), org)); err != nil {
			t.Errorf("without an anchor: %v", err)
		}
	}
}

type away struct{}

func (away) Publish(context.Context, string, []byte) error  { return errors.New("away") }
func (away) Newest(context.Context, string) ([]byte, error) { return nil, errors.New("away") }

// forged has a newer checkpoint, signed with keys that are not the installation's.
type forged struct{ n *notaries }

func (forged) Publish(context.Context, string, []byte) error { return nil }
func (f forged) Newest(ctx context.Context, origin string) ([]byte, error) {
	p, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	_, e, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return evidence.Sign(ctx, evidence.Checkpoint{Origin: origin, Size: 1 << 40, Time: f.n.clock()}, keyInMemory{p}, keyInMemory{e})
}
