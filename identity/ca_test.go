package identity_test

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// plain is a CASealer for tests: what is stored is readable.
type plain struct{}

func (plain) Seal(b []byte) (string, error) { return hex.EncodeToString(b), nil }
func (plain) Open(sealed string) ([]byte, error) {
	return hex.DecodeString(strings.TrimPrefix(sealed, "00"))
}

// newer has a newer key than plain, and reads both.
type newer struct{ plain }

func (newer) Seal(b []byte) (string, error) { return "00" + hex.EncodeToString(b), nil }
func (newer) Newest(sealed string) bool     { return strings.HasPrefix(sealed, "00") }

func TestEgressCA(t *testing.T) {
	db := storetest.Open(t)
	owner := storetest.Connect(t, storetest.URL(t, store.OwnerRole))
	execute := func(sql string) {
		if _, err := owner.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	execute("DELETE FROM egress_cas WHERE kind = 'intermediate'")
	execute("DELETE FROM egress_cas")
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	authority := func(now time.Time, hosts ...string) (*identity.Authority, error) {
		return identity.NewAuthority(t.Context(), db.Pool(), plain{}, hosts, now, rand.Reader)
	}
	roots := func() *x509.CertPool {
		pool := x509.NewCertPool()
		err := pgx.BeginFunc(t.Context(), db.Pool(), func(tx pgx.Tx) error {
			all, err := identity.EgressRoots(t.Context(), tx)
			if !pool.AppendCertsFromPEM(all) {
				t.Error("there are no roots")
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return pool
	}
	verify := func(chain []byte, host string, now time.Time) error {
		t.Helper()
		first, rest := pem.Decode(chain)
		leaf, err := x509.ParseCertificate(first.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if len(leaf.DNSNames) != 1 || leaf.Subject.CommonName != "" || len(leaf.IPAddresses) > 0 || leaf.NotAfter.Sub(leaf.NotBefore) > 25*time.Hour {
			t.Errorf("the leaf has %v, %q, %v", leaf.DNSNames, leaf.Subject.CommonName, leaf.NotAfter.Sub(leaf.NotBefore))
		}
		others := x509.NewCertPool()
		others.AppendCertsFromPEM(rest)
		_, err = leaf.Verify(x509.VerifyOptions{Roots: roots(), Intermediates: others, DNSName: host, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		return err
	}
	a, err := authority(now, "b.example", "a.example")
	if err != nil {
		t.Fatal(err)
	}
	chain, key, notAfter, err := a.Leaf(t.Context(), "a.example", now)
	if err != nil || !notAfter.Equal(now.Add(identity.LeafLife)) {
		t.Fatal(notAfter, err)
	}
	if err := verify(chain, "a.example", now.Add(time.Hour)); err != nil {
		t.Error(err)
	}
	if err := verify(chain, "b.example", now); err == nil {
		t.Error("the leaf is valid for another host")
	}
	if block, _ := pem.Decode(key); block.Type != "PRIVATE KEY" {
		t.Error(block.Type)
	}
	if _, _, _, err := a.Leaf(t.Context(), "c.example", now); !errors.Is(err, identity.ErrCAHosts) {
		t.Errorf("a leaf for another host: %v", err)
	}

	// Another replica, and the next start, use the same root and intermediate.
	count := func() (n int) {
		if err := owner.QueryRow(t.Context(), "SELECT count(*) FROM egress_cas").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if _, err := authority(now.Add(time.Minute), "a.example", "b.example"); err != nil || count() != 2 {
		t.Errorf("%v, %d certificates", err, count())
	}
	// A shorter list has a new intermediate, and applications need no new root.
	b, err := authority(now.Add(time.Minute), "a.example")
	if err != nil || count() != 3 {
		t.Fatalf("%v, %d certificates", err, count())
	}
	if _, _, _, err := b.Leaf(t.Context(), "b.example", now); !errors.Is(err, identity.ErrCAHosts) {
		t.Errorf("a leaf for a host that was removed: %v", err)
	}
	if chain, _, _, err = b.Leaf(t.Context(), "a.example", now); err != nil || verify(chain, "a.example", now) != nil {
		t.Error(err)
	}
	// The root does not permit more than it was made for.
	if _, err := authority(now, "a.example", "new.example"); !errors.Is(err, identity.ErrCAHosts) {
		t.Errorf("a host that the root does not permit: %v", err)
	}
	// At half of its life the intermediate is replaced, while the process runs.
	later := now.Add(50 * 24 * time.Hour)
	if chain, _, _, err = b.Leaf(t.Context(), "a.example", later); err != nil || verify(chain, "a.example", later.Add(time.Hour)) != nil || count() != 4 {
		t.Errorf("%v, %d certificates", err, count())
	}
	// The keys are encrypted again with the newest key, once.
	for _, want := range []int{2, 0} {
		err := pgx.BeginFunc(t.Context(), db.Pool(), func(tx pgx.Tx) error {
			n, err := identity.ResealCA(t.Context(), tx, newer{})
			if n != want {
				t.Errorf("%d keys were encrypted again, want %d", n, want)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// A new root: spread, sign, withdraw. Each step is rejected before its time.
	step := func(step string, now time.Time) error {
		return pgx.BeginFunc(t.Context(), db.Pool(), func(tx pgx.Tx) error {
			return identity.RotateCA(t.Context(), tx, plain{}, step, []string{"a.example", "new.example"}, now, rand.Reader)
		})
	}
	for _, early := range []string{identity.RotateSign, identity.RotateWithdraw, "x"} {
		if err := step(early, later); !errors.Is(err, identity.ErrRotation) {
			t.Errorf("%s before spread: %v", early, err)
		}
	}
	if err := step(identity.RotateSpread, later); err != nil {
		t.Fatal(err)
	}
	if err := step(identity.RotateSpread, later); !errors.Is(err, identity.ErrRotation) {
		t.Errorf("a second root: %v", err)
	}
	before, _, _, err := b.Leaf(t.Context(), "a.example", later.Add(time.Hour))
	if err != nil || verify(before, "a.example", later.Add(2*time.Hour)) != nil {
		t.Error(err)
	}
	if err := step(identity.RotateSign, later.Add(3*time.Hour)); err != nil {
		t.Fatal(err)
	}
	after, _, _, err := b.Leaf(t.Context(), "a.example", later.Add(4*time.Hour)) // the same process
	if err != nil || verify(after, "a.example", later.Add(4*time.Hour)) != nil || verify(before, "a.example", later.Add(4*time.Hour)) != nil {
		t.Error("while both roots are trusted, a leaf is not", err)
	}
	if err := step(identity.RotateWithdraw, later.Add(4*time.Hour)); !errors.Is(err, identity.ErrRotation) {
		t.Errorf("leaves of the old root are in use: %v", err)
	}
	if err := step(identity.RotateWithdraw, later.Add(28*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if verify(before, "a.example", later.Add(4*time.Hour)) == nil || verify(after, "a.example", later.Add(4*time.Hour)) != nil {
		t.Error("the old root is still trusted, or the new one is not")
	}
	if _, err := authority(later.Add(29*time.Hour), "a.example", "new.example"); err != nil {
		t.Errorf("a host of the new root: %v", err)
	}
	var sealed int
	if err := owner.QueryRow(t.Context(), "SELECT count(*) FROM egress_cas WHERE kind = 'intermediate' AND sealed <> ''").Scan(&sealed); err != nil || sealed != 1 {
		t.Errorf("%d keys of intermediates are kept: %v", sealed, err)
	}
}
