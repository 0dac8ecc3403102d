package store_test

import (
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// A database that is one of several primaries is rejected, and the error names how.
func TestOnePrimary(t *testing.T) {
	db := storetest.Open(t)
	if err := store.OnePrimary(t.Context(), db.Pool()); err != nil {
		t.Fatal(err)
	}
	admin := storetest.Connect(t, storetest.URL(t, "postgres"))
	execute(t, admin, `SET allow_system_table_mods = on`)
	execute(t, admin, `CREATE SUBSCRIPTION other_primary CONNECTION 'host=/nowhere' PUBLICATION p WITH (connect = false)`)
	if err := store.OnePrimary(t.Context(), db.Pool()); err != nil {
		t.Errorf("a subscription to other tables: %v", err)
	}
	// What `REFRESH PUBLICATION` does once it is connected.
	execute(t, admin, `INSERT INTO pg_subscription_rel SELECT s.oid, 'audit_heads'::regclass, 'r', NULL FROM pg_subscription s WHERE subname = 'other_primary'`)
	if err := store.OnePrimary(t.Context(), db.Pool()); err == nil || !strings.Contains(err.Error(), "audit_heads") || !strings.Contains(err.Error(), "other_primary") {
		t.Errorf("a subscription that writes the audit log: %v", err)
	}
	execute(t, admin, `DELETE FROM pg_subscription_rel`)
	execute(t, admin, `ALTER SUBSCRIPTION other_primary SET (slot_name = NONE)`)
	execute(t, admin, `DROP SUBSCRIPTION other_primary`)
	execute(t, admin, `UPDATE pg_extension SET extname = 'spock' WHERE extname = 'plpgsql'`)
	if err := store.OnePrimary(t.Context(), db.Pool()); err == nil || !strings.Contains(err.Error(), "Spock") {
		t.Errorf("the extension spock: %v", err)
	}
	for version, name := range map[string]string{
		"CockroachDB CCL v24.3.0 (x86_64-pc-linux-gnu)": "CockroachDB", "PostgreSQL 15.2-YB-2.25.0.0-b0 on x86_64-pc-linux-gnu": "YugabyteDB",
		"PostgreSQL 18.3 on x86_64-pc-linux-gnu": "",
	} {
		if got := store.Primaries(version, []string{"plpgsql"}); got != name {
			t.Errorf("%s is %q", version, got)
		}
	}
}
