package policy_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// placed leaves out the place in lists, which Postgres assigns.
var placed = cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Place" }, cmp.Ignore())

func TestPostgres(t *testing.T) {
	db := storetest.Open(t)
	org, other := storetest.Org(t, db), storetest.Org(t, db)
	in := func(org string, want error, fn func(ctx context.Context, tx pgx.Tx) error) {
		t.Helper()
		err := db.InOrg(t.Context(), org, func(tx pgx.Tx) error { return fn(t.Context(), tx) })
		if !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	now := time.Date(2026, 7, 1, 14, 30, 0, 123456000, time.UTC)
	// Spaces and escapes are kept, since the version is a digest of the bytes.
	document := []byte(" {\"name\": \"a\", \"effect\": \"deny\",\n\"conditions\": {\"agent.team\": \"\\u0000\\u00e9\"}}\n")
	a := policy.Policy{ID: "pol_a", OrgID: org, Name: "a", Version: 1, Document: document, CreatedAt: now, UpdatedAt: now}
	b := policy.Policy{ID: "pol_b", OrgID: org, Name: "b", Version: 1, Document: []byte(`{"name": "b", "effect": "allow", "conditions": {}}`), CreatedAt: now, UpdatedAt: now}

	ann, bob := policy.By{Kind: "org_key", ID: "okey_ann", Role: "admin"}, policy.By{Kind: "org_key", ID: "okey_bob", Role: "admin"}
	insert := func(p policy.Policy) func(context.Context, pgx.Tx) error {
		return func(ctx context.Context, tx pgx.Tx) error { return policy.Insert(ctx, tx, p, ann) }
	}
	in(org, nil, insert(b))
	in(org, nil, insert(a))
	twin := a
	twin.ID = "pol_c"
	in(org, policy.ErrNameTaken, insert(twin))
	// The other org may have the name, and may not write into this one.
	twin.OrgID = other
	in(other, nil, insert(twin))
	twin.OrgID, twin.ID, twin.Name = org, "pol_d", "d"
	if err := db.InOrg(t.Context(), other, func(tx pgx.Tx) error { return policy.Insert(t.Context(), tx, twin, ann) }); err == nil {
		t.Error("a policy was written into another org")
	}

	byID := func(want policy.Policy) func(context.Context, pgx.Tx) error {
		return func(ctx context.Context, tx pgx.Tx) error {
			got, err := policy.ByID(ctx, tx, want.ID)
			if err != nil {
				return err
			}
			if d := cmp.Diff(want, got, placed); d != "" {
				t.Error(d)
			}
			return nil
		}
	}
	in(org, nil, byID(a))
	in(other, policy.ErrNotFound, byID(a))
	in(org, policy.ErrNotFound, byID(policy.Policy{ID: "pol_none"}))

	list := func(org, after string, limit int, want ...policy.Policy) {
		t.Helper()
		in(org, nil, func(ctx context.Context, tx pgx.Tx) error {
			place := int64(0)
			if after != "" {
				p, err := policy.ByID(ctx, tx, after)
				if err != nil {
					return err
				}
				place = p.Place
			}
			got, err := policy.List(ctx, tx, place, after, limit)
			if d := cmp.Diff(want, got, placed); err == nil && len(want)+len(got) > 0 && d != "" {
				t.Error(d)
			}
			return err
		})
	}
	list(org, "", 10, b, a) // in the order of the commits, not of the ids
	list(org, "", 1, b)
	list(org, "pol_b", 10, a)
	list(org, "pol_a", 10)

	// A change to another version than the stored one is rejected.
	later := now.Add(time.Hour)
	update := func(p policy.Policy, want policy.Policy) func(context.Context, pgx.Tx) error {
		return func(ctx context.Context, tx pgx.Tx) error {
			got, err := policy.Update(ctx, tx, p, bob)
			if err != nil {
				return err
			}
			if d := cmp.Diff(want, got, placed); d != "" {
				t.Error(d)
			}
			return nil
		}
	}
	changed := a
	changed.Name, changed.Document, changed.UpdatedAt, changed.CreatedAt = "a2", []byte(`{"name": "a2", "effect": "deny", "conditions": {}}`), later, later
	stored := changed
	stored.Version, stored.CreatedAt = 2, now // when it was created does not change
	in(other, policy.ErrNotFound, update(changed, stored))
	in(org, nil, update(changed, stored))
	in(org, nil, byID(stored))
	in(org, policy.ErrConflict, update(changed, stored))
	in(org, nil, byID(stored))
	taken := stored
	taken.Name = "b"
	in(org, policy.ErrNameTaken, update(taken, taken))
	in(org, policy.ErrNotFound, update(policy.Policy{ID: "pol_none", Version: 1}, a))

	// The stored policies decide.
	in(org, nil, func(ctx context.Context, tx pgx.Tx) error {
		all, err := policy.All(ctx, tx)
		if err != nil {
			return err
		}
		bundle, err := policy.Compile(ctx, all)
		if err != nil {
			return err
		}
		r := request()
		r.Org.ID = org
		if d := bundle.Decide(ctx, r); len(d.Reasons) != 1 || d.Reasons[0].PolicyID != "pol_a" {
			t.Errorf("%+v", d)
		}
		return nil
	})

	remove := func(id string) func(context.Context, pgx.Tx) error {
		return func(ctx context.Context, tx pgx.Tx) error {
			return policy.Delete(ctx, tx, id, later.Add(time.Hour), bob)
		}
	}
	in(other, policy.ErrNotFound, remove("pol_a"))
	in(org, nil, remove("pol_a"))
	in(org, policy.ErrNotFound, remove("pol_a"))
	list(org, "", 10, b)
	list(other, "", 10, policy.Policy{ID: "pol_c", OrgID: other, Name: "a", Version: 1, Document: document, CreatedAt: now, UpdatedAt: now})

	// Each version is kept, with its author, after the policy is gone.
	in(org, nil, func(ctx context.Context, tx pgx.Tx) error {
		want := []policy.Version{
			{PolicyID: "pol_a", Version: 3, Change: "deleted", Name: "a2", Document: changed.Document, By: bob, At: later.Add(time.Hour)},
			{PolicyID: "pol_a", Version: 2, Change: "updated", Name: "a2", Document: changed.Document, By: bob, At: later},
			{PolicyID: "pol_a", Version: 1, Change: "created", Name: "a", Document: document, By: ann, At: now},
		}
		for _, page := range []struct {
			before int64
			limit  int
			want   []policy.Version
		}{{0, 10, want}, {0, 1, want[:1]}, {3, 10, want[1:]}, {1, 10, nil}} {
			got, err := policy.Versions(ctx, tx, "pol_a", page.before, page.limit)
			if d := cmp.Diff(page.want, got, cmpopts.EquateEmpty()); err != nil || d != "" {
				t.Errorf("before %d: %v %s", page.before, err, d)
			}
		}
		return nil
	})
	in(other, policy.ErrNotFound, func(ctx context.Context, tx pgx.Tx) error {
		_, err := policy.Versions(ctx, tx, "pol_a", 0, 10)
		return err
	})
	// A set of the past is found by its version, at whatever time it was used after it was made.
	for _, ps := range [][]policy.Policy{nil, {b}, {b, a}, {b, stored}} {
		bundle, err := policy.Compile(t.Context(), ps)
		if err != nil {
			t.Fatal(err)
		}
		in(org, nil, func(ctx context.Context, tx pgx.Tx) error {
			set, err := policy.SetOf(ctx, tx, org, bundle.Version(), later.Add(2*time.Hour))
			if err == nil && !bundle.Of(set) {
				t.Errorf("%+v is not the set of %+v", set, ps)
			}
			return err
		})
	}
	in(org, policy.ErrNotFound, func(ctx context.Context, tx pgx.Tx) error {
		_, err := policy.SetOf(ctx, tx, org, "sha256:unknown", later)
		return err
	})
	in(org, policy.ErrNotFound, func(ctx context.Context, tx pgx.Tx) error {
		bundle, err := policy.Compile(ctx, []policy.Policy{b, stored}) // made an hour later
		if err != nil {
			return err
		}
		_, err = policy.SetOf(ctx, tx, org, bundle.Version(), now)
		return err
	})
}
