package xds_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// A node receives its home, the org with the audit log for requests without a known caller.
// It is the org that the operator chose, and no other org replaces it.
func TestHome(t *testing.T) {
	p := newPlane(t)
	alone, shared, other := storetest.Org(t, p.db), storetest.Org(t, p.db), storetest.Org(t, p.db)
	token, _ := p.nodeOf(identity.Node{Roles: bothRoles, Home: true}, alone)
	x := p.client(token, nil)
	if x.Home() != "" {
		t.Errorf("a home before it was received: %q", x.Home())
	}
	eventually(t, x.Ready)
	if x.Home() != alone {
		t.Errorf("the home is %q, want %q", x.Home(), alone)
	}

	token, id := p.nodeOf(identity.Node{Roles: bothRoles, ByOperator: true}, shared, other)
	x = p.client(token, nil)
	eventually(t, x.Ready)
	if x.Home() != "" {
		t.Errorf("a node that was given no home has %q", x.Home())
	}
	p.in(shared, func(tx pgx.Tx) error {
		_, err := tx.Exec(context.Background(), "UPDATE nodes SET home = true WHERE org_id = $1 AND id = $2", shared, id)
		return err
	})
	home := func(want string) func() error {
		return func() error {
			if got := x.Home(); got != want {
				return fmt.Errorf("the home is %q, want %q", got, want)
			}
			return nil
		}
	}
	eventually(t, home(shared))
	p.in(shared, func(tx pgx.Tx) error { return identity.RevokeNode(context.Background(), tx, id, time.Now()) })
	eventually(t, home(""))
	if err := x.Ready(); err != nil {
		t.Errorf("the other org: %v", err)
	}
}
