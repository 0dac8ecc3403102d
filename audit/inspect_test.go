package audit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// A process checks the head of a chain before its first append, and the last entries after
// that. Every night it checks all entries and the tree.
func TestInspect(t *testing.T) {
	ctx := context.Background()
	n := newNotaries(t)
	admin := storetest.Connect(t, storetest.URL(t, "postgres"))
	exec := func(statement string, args ...any) {
		t.Helper()
		if _, err := admin.Exec(ctx, statement, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec("SET session_replication_role = replica")
	for what, how := range map[string]struct {
		statement     string
		end           bool // the first append is rejected
		tail, nightly bool // found behind it; found at night
	}{
		"nothing":          {`SELECT $1::text`, false, false, false},
		"the head's MAC":   {`UPDATE audit_heads SET mac = sha256('x') WHERE org_id = $1`, true, true, true},
		"the last entry":   {`UPDATE audit_entries SET entry = entry || ' ' WHERE org_id = $1 AND seq = 600`, true, true, true},
		"an earlier entry": {`UPDATE audit_entries SET agent_id = 'ag_2' WHERE org_id = $1 AND seq = 40`, false, true, true},
		"a lost entry":     {`DELETE FROM audit_entries WHERE org_id = $1 AND seq = 41`, false, true, true},
		"a tile":           {`UPDATE audit_tiles SET nodes = overlay(nodes PLACING '\x00' FROM 40) WHERE org_id = $1 AND n = 1`, false, false, true},
		"the edge":         {`UPDATE audit_trees SET edge = overlay(edge PLACING '\x00' FROM 3) WHERE org_id = $1`, false, false, true},
	} {
		org := storetest.Org(t, n.db)
		appendMany(t, chain(t, n.db, 1), org, "w_1", 1, 600)
		growAll(t, n.db, org, 1000)
		exec(how.statement, org)
		c := chain(t, n.db, 1) // another process
		_, err := c.Append(ctx, audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: records(org, "w_1", 601, 2)})
		if how.end != errors.Is(err, audit.ErrChainBad) || !how.end && err != nil {
			t.Errorf("%s: the first append: %v", what, err)
		}
		if err := c.InspectTails(ctx); err != nil {
			t.Fatal(err)
		}
		if bad := c.Bad(); how.tail != (bad != nil) {
			t.Errorf("%s: the last entries: %v", what, bad)
		}
		c = chain(t, n.db, 1)
		if err := c.InspectAll(ctx, n.db.Pool()); err != nil {
			t.Fatal(err)
		}
		if bad := c.Bad(); how.nightly != (bad != nil) || bad != nil && !strings.Contains(bad.Error(), org) {
			t.Errorf("%s: at night: %v", what, bad)
		}
		exec(`DELETE FROM audit_heads WHERE org_id = $1`, org) // the next night does not see it
		exec(`DELETE FROM audit_entries WHERE org_id = $1`, org)
		exec(fmt.Sprintf(`DELETE FROM audit_trees WHERE org_id = '%s'`, org))
	}
}
