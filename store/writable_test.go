package store_test

import (
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// A read-only database responds, and accepts no writes.
func TestWritable(t *testing.T) {
	db := storetest.Open(t)
	if err := db.Writable(t.Context()); err != nil {
		t.Fatal(err)
	}
	admin := storetest.Connect(t, storetest.AdminURL(t))
	execute(t, admin, `ALTER DATABASE `+pgx.Identifier{db.Pool().Config().ConnConfig.Database}.Sanitize()+` SET default_transaction_read_only = on`)
	db.Pool().Reset() // new sessions have it
	if err := db.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if err := db.Writable(t.Context()); err == nil {
		t.Error("a read-only database takes writes")
	}
}

// A server that is not there may come; a wrong password or role stays wrong.
func TestAway(t *testing.T) {
	url := storetest.URL(t, store.AppRole)
	for address, away := range map[string]bool{
		"postgres://aid_app:x@127.0.0.1:1/aid":                                    true,
		"postgres://aid_app:x@/aid?host=" + filepath.Join(t.TempDir(), "nowhere"): true,
		storetest.As(t, url, store.AppRole, "wrong"):                              false,
		storetest.URL(t, "postgres"):                                              false,
		"postgres://aid_app@db.example.com/aid":                                   false, // without TLS
		"not a URL":                                                               false,
	} {
		db, err := store.Open(t.Context(), store.Config{URL: address, Log: quiet})
		if err == nil {
			db.Close()
			t.Errorf("%s is opened", address)
		} else if store.Away(err) != away {
			t.Errorf("%v: away is %v", err, !away)
		}
	}
}
