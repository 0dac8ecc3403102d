package audit_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// A leaf is changed in the stored edge before it is signed, with the root that fits it. Nothing is
// signed: not by the process that has made the edge, and not by one that finds it.
func TestEdgeChangedBeforeSigning(t *testing.T) {
	ctx := context.Background()
	n := newNotaries(t)
	admin := storetest.Connect(t, storetest.URL(t, "postgres"))
	c := chain(t, n.db, 1)
	for signed, ways := range map[int][]bool{0: {false}, 100: {true, false}} { // what a checkpoint covers already
		for _, grown := range ways {
			org := storetest.Org(t, n.db)
			notary := n.start(t, n.db, n.clock)
			if signed > 0 {
				appendMany(t, c, org, "w_1", 1, signed)
				if err := notary.Round(ctx); err != nil {
					t.Fatal(err)
				}
			}
			appendMany(t, c, org, "w_1", signed+1, 50)
			if grown {
				// It grows the tree now, and signs it 10 s later.
				if err := notary.Round(ctx); err != nil {
					t.Fatal(err)
				}
			} else if _, err := growTree(ctx, n, org); err != nil {
				t.Fatal(err)
			}
			size := int64(signed + 50)
			var edge []byte
			if err := admin.QueryRow(ctx, "SELECT edge FROM audit_trees WHERE org_id = $1", org).Scan(&edge); err != nil {
				t.Fatal(err)
			}
			edge[int(size-1)*tlog.HashSize] ^= 1 // the last leaf
			root := rootOf(edge)
			if _, err := admin.Exec(ctx, "UPDATE audit_trees SET edge = $2, root = $3 WHERE org_id = $1", org, edge, root[:]); err != nil {
				t.Fatal(err)
			}
			n.later(11 * time.Second)
			for range 2 {
				if err := notary.Round(ctx); !errors.Is(err, audit.ErrTree) {
					t.Errorf("%d signed, grown here %v: %v", signed, grown, err)
				}
			}
			if notary.Ready() == nil {
				t.Error("the process is ready")
			}
			if c, err := n.newest(t, org); c.Size != int64(signed) || (err != nil) != (signed == 0) {
				t.Errorf("signed: %+v %v", c, err)
			}
			if _, err := admin.Exec(ctx, "SELECT set_config('session_replication_role', 'replica', false)"); err != nil {
				t.Fatal(err)
			}
			for _, table := range []string{"audit_trees", "audit_heads"} { // the next case has its own org
				if _, err := admin.Exec(ctx, "DELETE FROM "+table+" WHERE org_id = $1", org); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

func growTree(ctx context.Context, n *notaries, org string) (size int64, err error) {
	err = n.db.InOrg(ctx, org, func(tx pgx.Tx) (err error) {
		size, err = audit.GrowTree(ctx, tx, org, 1000)
		return err
	})
	return size, err
}

// rootOf returns the root of a tree with less than 256 leaves.
func rootOf(edge []byte) tlog.Hash {
	var r evidence.Range
	for ; len(edge) > 0; edge = edge[tlog.HashSize:] {
		r.Append(tlog.Hash(edge[:tlog.HashSize]))
	}
	return r.Root()
}
