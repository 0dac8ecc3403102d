package provider_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

var noon = time.Date(2026, 7, 1, 12, 0, 0, 123000, time.UTC)

// world is two orgs in one database: one org can neither read nor change the rows of the
// other.
type world struct {
	t    *testing.T
	db   *store.DB
	a, b string
}

func open(t *testing.T) *world {
	t.Helper()
	db := storetest.Open(t)
	return &world{t: t, db: db, a: storetest.Org(t, db), b: storetest.Org(t, db)}
}

func (w *world) try(org string, fn func(ctx context.Context, tx pgx.Tx) error) error {
	w.t.Helper()
	return w.db.InOrg(w.t.Context(), org, func(tx pgx.Tx) error { return fn(w.t.Context(), tx) })
}

// in runs fn in org, where it must return want.
func (w *world) in(org string, want error, fn func(ctx context.Context, tx pgx.Tx) error) {
	w.t.Helper()
	if err := w.try(org, fn); !errors.Is(err, want) {
		w.t.Fatalf("in %s: %v, want %v", org, err, want)
	}
}

// both runs fn in the other org, where it must find nothing, and then in the first org,
// where it must succeed.
func (w *world) both(what string, fn func(ctx context.Context, tx pgx.Tx) error) {
	w.t.Helper()
	if err := w.try(w.b, fn); !errors.Is(err, provider.ErrNotFound) {
		w.t.Errorf("%s, in another org: %v", what, err)
	}
	if err := w.try(w.a, fn); err != nil {
		w.t.Errorf("%s: %v", what, err)
	}
}

func stored(org, id, name string) provider.Provider {
	return provider.Provider{
		ID: id, OrgID: org, Name: name, Kind: "openai", BaseURL: "https://api.openai.com/v1", Models: []string{"gpt-*", `a,{"b"}'c`}, Hosts: []string{"api.openai.com"},
		Headers: provider.Headers(map[string]string{"x-team": `a "quoted", 'value'`}), Settings: []byte(`{"inject_usage": true}`), Version: 1, CreatedAt: noon, UpdatedAt: noon,
	}
}

var testSealer, _ = provider.NewSealer([]string{fernetKey(1)})

// same compares stored providers. Secrets are compared by their values.
func same(t *testing.T, want, got provider.Provider) {
	t.Helper()
	want.Cluster = provider.ClusterName(want)
	got, err := got.OpenHeaders(testSealer)
	if err != nil || !maps.Equal(want.HeaderValues(), got.HeaderValues()) {
		t.Error(got.HeaderValues(), err)
	}
	want.Headers, got.Headers = nil, nil
	if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(provider.Provider{}), cmpopts.IgnoreFields(provider.Provider{}, "Place"), cmpopts.EquateEmpty(), cmp.Comparer(func(a, b provider.Secret) bool { return a.Reveal() == b.Reveal() })); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestPostgres(t *testing.T) {
	w := open(t)
	want := stored(w.a, "prov_1", "one")
	w.in(w.a, nil, func(ctx context.Context, tx pgx.Tx) error { return provider.Insert(ctx, tx, testSealer, want) })

	// Another org may have the same id and name. No org can write into another.
	w.in(w.b, nil, func(ctx context.Context, tx pgx.Tx) error {
		p := stored(w.b, "prov_2", "one")
		p.Models, p.Hosts, p.Headers, p.Settings = nil, nil, nil, nil
		if err := provider.Insert(ctx, tx, testSealer, p); err != nil {
			return err
		}
		got, err := provider.ByID(ctx, tx, "prov_2")
		same(t, p, got)
		return err
	})
	if err := w.try(w.b, func(ctx context.Context, tx pgx.Tx) error {
		return provider.Insert(ctx, tx, testSealer, stored(w.a, "prov_3", "three"))
	}); err == nil {
		t.Error("wrote into another org")
	}

	w.both("ByID", func(ctx context.Context, tx pgx.Tx) error {
		got, err := provider.ByID(ctx, tx, "prov_1")
		if err == nil {
			same(t, want, got)
		}
		return err
	})
	w.in(w.a, provider.ErrNameTaken, func(ctx context.Context, tx pgx.Tx) error {
		return provider.Insert(ctx, tx, testSealer, stored(w.a, "prov_4", "one"))
	})

	// An update needs the version that was read.
	change := want
	change.Name, change.Models, change.Settings, change.UpdatedAt = "renamed", []string{"o1"}, nil, noon.Add(time.Hour)
	w.both("Update", func(ctx context.Context, tx pgx.Tx) error {
		got, err := provider.Update(ctx, tx, testSealer, change)
		if err == nil {
			after := change
			after.Version = 2
			same(t, after, got)
		}
		return err
	})
	w.in(w.a, provider.ErrConflict, func(ctx context.Context, tx pgx.Tx) error {
		_, err := provider.Update(ctx, tx, testSealer, change)
		return err
	})
	w.in(w.a, nil, func(ctx context.Context, tx pgx.Tx) error {
		if err := provider.Insert(ctx, tx, testSealer, stored(w.a, "prov_0", "zero")); err != nil {
			return err
		}
		ps, err := provider.List(ctx, tx)
		if len(ps) != 2 || ps[0].Name != "renamed" || ps[1].ID != "prov_0" {
			t.Errorf("%+v", ps)
		}
		return err
	})
	w.in(w.a, provider.ErrNameTaken, func(ctx context.Context, tx pgx.Tx) error {
		p := change
		p.Version, p.Name = 2, "zero"
		_, err := provider.Update(ctx, tx, testSealer, p)
		return err
	})

	w.both("Delete", func(ctx context.Context, tx pgx.Tx) error { return provider.Delete(ctx, tx, "prov_1") })
	w.in(w.a, provider.ErrNotFound, func(ctx context.Context, tx pgx.Tx) error { return provider.Delete(ctx, tx, "prov_1") })
	w.in(w.b, nil, func(ctx context.Context, tx pgx.Tx) error {
		ps, err := provider.List(ctx, tx)
		if len(ps) != 1 || ps[0].ID != "prov_2" {
			t.Errorf("%+v", ps)
		}
		return err
	})
}

// TestPostgresCredentials: a credential is valid only for the address for which it was set.
func TestPostgresCredentials(t *testing.T) {
	w := open(t)
	p := stored(w.a, "prov_1", "one")
	c := provider.Credential{ProviderID: p.ID, Cluster: provider.ClusterName(p), Sealed: "gAAAA-1", UpdatedAt: noon}
	has := func(want bool) {
		t.Helper()
		w.in(w.a, nil, func(ctx context.Context, tx pgx.Tx) error {
			got, err := provider.ByID(ctx, tx, p.ID)
			if got.HasCredential != want {
				t.Errorf("has a credential: %v", got.HasCredential)
			}
			return err
		})
	}
	w.in(w.a, nil, func(ctx context.Context, tx pgx.Tx) error { return provider.Insert(ctx, tx, testSealer, p) })
	has(false)
	if err := w.try(w.b, func(ctx context.Context, tx pgx.Tx) error { return provider.PutCredential(ctx, tx, c) }); err == nil {
		t.Error("a credential for another org's provider")
	}
	w.in(w.a, nil, func(ctx context.Context, tx pgx.Tx) error { return provider.PutCredential(ctx, tx, c) })
	has(true)
	c.Sealed, c.UpdatedAt = "gAAAA-2", noon.Add(time.Hour)
	w.in(w.a, nil, func(ctx context.Context, tx pgx.Tx) error { return provider.PutCredential(ctx, tx, c) })

	all := func(org string) (cs []provider.Credential) {
		t.Helper()
		w.in(org, nil, func(ctx context.Context, tx pgx.Tx) (err error) {
			cs, err = provider.Credentials(ctx, tx)
			for i := range cs {
				cs[i].UpdatedAt = cs[i].UpdatedAt.UTC()
			}
			return err
		})
		return cs
	}
	if got := all(w.a); !slices.Equal(got, []provider.Credential{c}) {
		t.Errorf("%+v", got)
	}
	if got := all(w.b); len(got) != 0 {
		t.Errorf("another org sees %+v", got)
	}

	// The provider gets another address: it has no credential there.
	moved := p
	moved.BaseURL = "https://evil.example/v1"
	w.in(w.a, nil, func(ctx context.Context, tx pgx.Tx) error {
		got, err := provider.Update(ctx, tx, testSealer, moved)
		if got.Cluster == c.Cluster || got.HasCredential {
			t.Errorf("%+v", got)
		}
		return err
	})
	has(false)

	w.both("DeleteCredential", func(ctx context.Context, tx pgx.Tx) error { return provider.DeleteCredential(ctx, tx, p.ID) })
	w.in(w.a, provider.ErrNotFound, func(ctx context.Context, tx pgx.Tx) error { return provider.DeleteCredential(ctx, tx, p.ID) })

	// It is deleted with its provider.
	w.in(w.a, nil, func(ctx context.Context, tx pgx.Tx) error {
		if err := provider.PutCredential(ctx, tx, c); err != nil {
			return err
		}
		return provider.Delete(ctx, tx, p.ID)
	})
	if got := all(w.a); len(got) != 0 {
		t.Errorf("left behind: %+v", got)
	}
	// Names are query parameters, for every content.
	for _, id := range []string{"' OR 1=1 --", "$1", strings.Repeat("x", 10_000), "\u202e"} {
		w.in(w.a, provider.ErrNotFound, func(ctx context.Context, tx pgx.Tx) error { _, err := provider.ByID(ctx, tx, id); return err })
	}
}
