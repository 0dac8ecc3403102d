package audit_test

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/audit/signer"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

func newSigner(t *testing.T, kind signer.Kind) evidence.Signer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key.pem")
	if _, err := signer.Create(path, kind); err != nil {
		t.Fatal(err)
	}
	s, err := signer.Open(t.Context(), "file:"+path, os.ReadFile)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func kid(t *testing.T, s evidence.Signer) string {
	t.Helper()
	k, err := evidence.NewKey(s.Public())
	if err != nil {
		t.Fatal(err)
	}
	return k.ID
}

// Of replicas that start with different keys, one is first. The keys of the others are rejected,
// also later, and the published set has only what signs.
func TestSigningKeysAreTheInstallations(t *testing.T) {
	db := storetest.Open(t)
	ctx, now := t.Context(), time.Now()
	type pair [2]evidence.Signer
	var pairs []pair
	for range 4 {
		pairs = append(pairs, pair{newSigner(t, signer.P256), newSigner(t, signer.Ed25519)})
	}
	errs := make([]error, len(pairs))
	var wg sync.WaitGroup
	for i, p := range pairs {
		wg.Go(func() { errs[i] = audit.UseSigningKeys(ctx, db.Pool(), now, p[0]) })
	}
	wg.Wait()
	first := -1
	for i, err := range errs {
		switch {
		case err == nil && first < 0:
			first = i
		case err == nil:
			t.Error("two replicas sign with different keys")
		case !errors.Is(err, audit.ErrSigningKey):
			t.Error(err)
		}
	}
	if first < 0 {
		t.Fatal("no key was accepted")
	}
	ours := pairs[first]
	for range 2 {
		if err := audit.UseSigningKeys(ctx, db.Pool(), now, ours[0], ours[1]); err != nil {
			t.Fatal(err)
		}
	}
	set, err := audit.PublicKeys(ctx, db.Pool(), logName)
	if err != nil || len(set.Keys) != 2 {
		t.Fatalf("%d keys, %v", len(set.Keys), err)
	}
	for _, s := range ours {
		if k, ok := set.Find(kid(t, s)); !ok || k.From != 0 || k.To != 0 {
			t.Errorf("%+v %v", k, ok)
		}
	}

	// Neither the application nor the owner can change or remove a key.
	for _, role := range []string{store.AppRole, store.OwnerRole} {
		conn := storetest.Connect(t, storetest.URL(t, role))
		for _, statement := range []string{
			"DELETE FROM signing_keys", "TRUNCATE signing_keys", "UPDATE signing_keys SET from_size = 7", "UPDATE signing_keys SET spki = '\\x00'",
			"UPDATE signing_keys SET kid = 'x'", "UPDATE signing_keys SET role = 'p256'",
		} {
			if _, err := conn.Exec(ctx, statement); err == nil {
				t.Errorf("%s: %s is permitted", role, statement)
			}
		}
	}
	// The end of a key is set once.
	retire := now.Add(time.Hour)
	for _, c := range []struct {
		sql  string
		ok   bool
		args []any
	}{
		{"UPDATE signing_keys SET retire_at = $1 WHERE role = 'p256'", true, []any{retire}},
		{"UPDATE signing_keys SET retire_at = NULL", false, nil},
		{"UPDATE signing_keys SET to_size = 10 WHERE role = 'p256'", true, nil},
		{"UPDATE signing_keys SET to_size = 11 WHERE role = 'p256'", false, nil},
	} {
		if _, err := db.Pool().Exec(ctx, c.sql, c.args...); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.sql, err)
		}
	}
	if err := audit.UseSigningKeys(ctx, db.Pool(), now, ours[0]); !errors.Is(err, audit.ErrSigningKey) {
		t.Errorf("a key that has ended signs: %v", err)
	}
}
