package audit_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// links returns the leaves that an org's tree must have, from the rows.
func links(t testing.TB, db *store.DB, org string) (leaves []tlog.Hash) {
	t.Helper()
	err := db.InOrg(context.Background(), org, func(tx pgx.Tx) error {
		rows, err := tx.Query(context.Background(), `SELECT incarnation, seq, appended_at, time, kind, agent_id, session_id, request_id, writer, writer_seq, prev_writer_seq, entry
			FROM audit_entries ORDER BY seq`)
		if err != nil {
			return err
		}
		leaves = nil
		l := evidence.Link{Org: org}
		var entry []byte
		_, err = pgx.ForEachRow(rows, []any{&l.Incarnation, &l.Seq, &l.AppendedAt, &l.Time, &l.Kind, &l.AgentID, &l.SessionID, &l.RequestID, &l.Writer, &l.WriterSeq, &l.PrevWriterSeq, &entry}, func() error {
			l.Entry = evidence.EntryHash(entry)
			leaves = append(leaves, l.Leaf())
			return nil
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return leaves
}

func appendMany(t testing.TB, c *audit.Chain, org, writer string, from, n int) {
	t.Helper()
	for n > 0 {
		k := min(n, 500)
		if _, err := c.Append(context.Background(), audit.Batch{Org: org, Node: "node_1", Writer: writer, Records: records(org, writer, from, k)}); err != nil {
			t.Fatal(err)
		}
		from, n = from+k, n-k
	}
}

func growAll(t testing.TB, db *store.DB, org string, limit int64) (size int64) {
	t.Helper()
	for {
		before := size
		err := db.InOrg(context.Background(), org, func(tx pgx.Tx) (err error) {
			size, err = audit.GrowTree(context.Background(), tx, org, limit)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if size == before {
			return size
		}
	}
}

// The tree behind the chain has the links of its rows, in chunks of any size, and its proofs
// are valid.
func TestTreeBehindTheChain(t *testing.T) {
	db := storetest.Open(t)
	org, other := storetest.Org(t, db), storetest.Org(t, db)
	c := chain(t, db, 1)
	const n = 1100
	appendMany(t, c, org, "w_1", 1, n)
	appendMany(t, c, other, "w_1", 1, 300)
	if got := growAll(t, db, org, 1+rand.Int64N(400)); got != n {
		t.Fatalf("the tree has %d leaves", got)
	}
	growAll(t, db, other, 1000)
	leaves := links(t, db, org)
	states := make([]*evidence.Range, 0, n+1)
	var r evidence.Range
	for i := 0; ; i++ {
		state, err := evidence.NewRange(r.Size(), r.Hashes())
		if err != nil {
			t.Fatal(err)
		}
		if states = append(states, state); i == n {
			break
		}
		r.Append(leaves[i])
	}
	in := func(fn func(tx pgx.Tx) error) error { return db.InOrg(context.Background(), org, fn) }
	ctx := context.Background()
	for range 25 {
		size := 1 + rand.Int64N(n)
		index, old := rand.Int64N(size), 1+rand.Int64N(size)
		err := in(func(tx pgx.Tx) error {
			p, err := audit.Inclusion(ctx, tx, org, 1, index, size)
			if err != nil {
				return err
			}
			if err := tlog.CheckRecord(p, size, states[size].Root(), index, leaves[index]); err != nil {
				t.Errorf("leaf %d of %d: %v", index, size, err)
			}
			q, err := audit.Consistency(ctx, tx, org, 1, old, size)
			if err != nil {
				return err
			}
			if err := tlog.CheckTree(q, size, states[size].Root(), old, states[old].Root()); err != nil {
				t.Errorf("%d of %d: %v", old, size, err)
			}
			before, err := audit.RangeBefore(ctx, tx, org, 1, size)
			if err == nil && (before.Size() != size || before.Root() != states[size].Root()) {
				t.Errorf("the tree before %d is %v", size, before)
			}
			return err
		})
		if err != nil {
			t.Fatalf("size %d, leaf %d, old %d: %v", size, index, old, err)
		}
	}
	for what, fn := range map[string]func(tx pgx.Tx) error{
		"a larger size": func(tx pgx.Tx) error { _, err := audit.Inclusion(ctx, tx, org, 1, 0, n+1); return err },
		"a leaf beyond": func(tx pgx.Tx) error { _, err := audit.Inclusion(ctx, tx, org, 1, n, n); return err },
		"no such tree":  func(tx pgx.Tx) error { _, err := audit.Consistency(ctx, tx, org, 2, 1, 1); return err },
		"another org's": func(tx pgx.Tx) error { _, err := audit.RangeBefore(ctx, tx, other, 1, 1); return err },
		"a negative":    func(tx pgx.Tx) error { _, err := audit.RangeBefore(ctx, tx, org, 1, -1); return err },
	} {
		if err := in(fn); !errors.Is(err, audit.ErrBeyond) {
			t.Errorf("%s: %v", what, err)
		}
	}
	err := in(func(tx pgx.Tx) error { _, err := audit.NewestCheckpoint(ctx, tx, org); return err })
	if !errors.Is(err, audit.ErrNoCheckpoint) {
		t.Errorf("a checkpoint of an unsigned tree: %v", err)
	}
}

// A tile, an edge, or a row that was changed behind the tree's back is an error.
func TestTreeDamaged(t *testing.T) {
	db := storetest.Open(t)
	c := chain(t, db, 1)
	admin := storetest.Connect(t, storetest.URL(t, "postgres"))
	execute := func(statement string, args ...any) {
		t.Helper()
		if _, err := admin.Exec(context.Background(), statement, args...); err != nil {
			t.Fatal(err)
		}
	}
	execute(`SET session_replication_role = replica`)
	ctx := context.Background()
	for what, how := range map[string]struct {
		statement string
		grows     bool // the fault is noticed when the tree grows
	}{
		"a tile":           {`UPDATE audit_tiles SET nodes = overlay(nodes PLACING '\x00' FROM 100) WHERE org_id = $1 AND level = 0 AND n = 0`, false},
		"a tile is gone":   {`DELETE FROM audit_tiles WHERE org_id = $1 AND n = 0`, false},
		"the edge":         {`UPDATE audit_trees SET edge = overlay(edge PLACING '\x00' FROM 5) WHERE org_id = $1`, true},
		"the root":         {`UPDATE audit_trees SET root = sha256('') WHERE org_id = $1`, true},
		"the size":         {`UPDATE audit_trees SET size = size - 1 WHERE org_id = $1`, true},
		"a missing row":    {`DELETE FROM audit_entries WHERE org_id = $1 AND seq = 610`, true},
		"the last rows":    {`DELETE FROM audit_entries WHERE org_id = $1 AND seq > 650`, true},
		"an incarnation":   {`UPDATE audit_entries SET incarnation = 2 WHERE org_id = $1 AND seq = 610`, true},
		"an infinite time": {`UPDATE audit_entries SET time = 'infinity' WHERE org_id = $1 AND seq = 610`, true},
	} {
		org := storetest.Org(t, db)
		appendMany(t, c, org, "w_1", 1, 600)
		growAll(t, db, org, 1000)
		appendMany(t, c, org, "w_1", 601, 100)
		execute(how.statement, org)
		err := db.InOrg(ctx, org, func(tx pgx.Tx) error {
			if how.grows {
				_, err := audit.GrowTree(ctx, tx, org, 1000)
				return err
			}
			_, err := audit.Inclusion(ctx, tx, org, 1, 7, 600)
			return err
		})
		if !errors.Is(err, audit.ErrTree) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
