package identity_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

var discard = slog.New(slog.DiscardHandler)

// world is two orgs in one database, so that each test sees that the other org
// sees nothing.
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

// in runs fn in org, and its error is fatal.
func (w *world) in(org string, fn func(ctx context.Context, tx pgx.Tx) error) {
	w.t.Helper()
	if err := w.try(org, fn); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) try(org string, fn func(ctx context.Context, tx pgx.Tx) error) error {
	w.t.Helper()
	return w.db.InOrg(w.t.Context(), org, func(tx pgx.Tx) error { return fn(w.t.Context(), tx) })
}

// both runs fn in org A, where it must return want, and in org B, where it finds
// nothing.
func (w *world) both(what string, want error, fn func(ctx context.Context, tx pgx.Tx) error) {
	w.t.Helper()
	if err := w.try(w.b, fn); !errors.Is(err, identity.ErrNotFound) {
		w.t.Errorf("%s, for another org: %v", what, err)
	}
	if err := w.try(w.a, fn); !errors.Is(err, want) {
		w.t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func agent(org, id string) identity.Agent {
	return identity.Agent{
		ID: id, OrgID: org, Name: "support-bot", Description: "ünïcode ✓ 'quotes' \"too\"", Team: "support", Environment: "prod", Tier: "gold", Status: identity.Active,
		AllowedModels: []string{"gpt-4o", `a,{"b"} \c`, ""}, Metadata: identity.Metadata{"n": json.Number("12345678901234567890.10"), "s": `"`, "t": true},
		Fingerprint: identity.Fingerprint(org, id, "support-bot", noon), CreatedAt: noon, UpdatedAt: noon.Add(time.Microsecond), Version: 1,
	}
}

func key(t *testing.T, org, agent, id string) (identity.Key, string) {
	t.Helper()
	secret, hash, err := identity.Mint(identity.AgentKey, seeded(org+id))
	if err != nil {
		t.Fatal(err)
	}
	return identity.Key{
		ID: id, Kind: identity.KindKey, OrgID: org, AgentID: agent, Name: "production", Hint: identity.Hint(secret), Hash: hash, Scopes: []string{"chat:completions", "embeddings"},
		AllowedModels: []string{"gpt-4o"}, RateLimit: 100, CreatedAt: noon, ExpiresAt: noon.Add(90 * 24 * time.Hour),
	}, secret
}

var same = cmp.Options{cmpopts.EquateEmpty(), placed}

// placed leaves out the place in lists, which Postgres gives.
var placed = cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Place" }, cmp.Ignore())

func TestAgents(t *testing.T) {
	w := open(t)
	a := agent(w.a, "ag_1")
	bare := identity.Agent{ID: "ag_2", OrgID: w.a, Name: "bare", Status: identity.Suspended, Fingerprint: "sha256:2", CreatedAt: noon, UpdatedAt: noon, Version: 1}
	w.in(w.a, func(ctx context.Context, tx pgx.Tx) error {
		return errors.Join(identity.InsertAgent(ctx, tx, a), identity.InsertAgent(ctx, tx, bare))
	})
	for _, want := range []identity.Agent{a, bare} {
		w.both("reading", nil, func(ctx context.Context, tx pgx.Tx) error {
			got, err := identity.AgentByID(ctx, tx, want.ID)
			if err == nil {
				if d := cmp.Diff(want, got, same); d != "" {
					t.Error(d)
				}
			}
			return err
		})
	}

	// Of two callers that change the same version, one gets an error.
	next := a
	next.Name, next.Status, next.AllowedModels, next.Metadata, next.UpdatedAt = "renamed", identity.Suspended, nil, identity.Metadata{"n": 1.5}, noon.Add(time.Hour)
	next.Fingerprint, next.CreatedAt = "sha256:forged", noon.Add(time.Hour) // never change
	want := next
	want.Version, want.Fingerprint, want.CreatedAt, want.Metadata = 2, a.Fingerprint, a.CreatedAt, identity.Metadata{"n": json.Number("1.5")}
	change := func(ctx context.Context, tx pgx.Tx) error {
		got, err := identity.UpdateAgent(ctx, tx, next)
		if err == nil {
			if d := cmp.Diff(want, got, same); d != "" {
				t.Error(d)
			}
		}
		return err
	}
	w.both("changing", nil, change)
	w.both("changing it again from the old version", identity.ErrConflict, change)
	next.ID = "ag_none"
	w.both("changing what is not there", identity.ErrNotFound, change)

	w.both("deleting", nil, func(ctx context.Context, tx pgx.Tx) error { return identity.DeleteAgent(ctx, tx, "ag_1") })
	w.both("deleting it again", identity.ErrNotFound, func(ctx context.Context, tx pgx.Tx) error { return identity.DeleteAgent(ctx, tx, "ag_1") })
	w.both("reading what was deleted", identity.ErrNotFound, func(ctx context.Context, tx pgx.Tx) error {
		_, err := identity.AgentByID(ctx, tx, "ag_1")
		return err
	})

	// What must not be stored is not.
	for what, change := range map[string]func(*identity.Agent){
		"for another org": func(a *identity.Agent) { a.OrgID = w.b }, "a status that is none": func(a *identity.Agent) { a.Status = "on" },
		"metadata that is nested": func(a *identity.Agent) { a.Metadata = identity.Metadata{"a": []string{}} }, "an id that is there": func(a *identity.Agent) { a.ID = "ag_2" },
		"NUL": func(a *identity.Agent) { a.Name = "a\x00b" },
	} {
		bad := agent(w.a, "ag_bad")
		change(&bad)
		if err := w.try(w.a, func(ctx context.Context, tx pgx.Tx) error { return identity.InsertAgent(ctx, tx, bad) }); err == nil {
			t.Errorf("%s is stored", what)
		}
	}
}

func TestListAgents(t *testing.T) {
	w := open(t)
	src := seeded("list")
	var ids []string
	w.in(w.a, func(ctx context.Context, tx pgx.Tx) error {
		for i := range 25 {
			id, err := identity.NewID(identity.AgentID, noon.Add(time.Duration(i)*time.Second), src)
			if err != nil {
				return err
			}
			ids = append(ids, id)
			a := agent(w.a, id)
			a.Name = fmt.Sprint("bot ", i)
			a.Team, a.Environment = []string{"x", "y"}[i%2], []string{"prod", "dev", "test"}[i%3]
			if i >= 20 {
				a.Status = identity.Suspended
			}
			if err := identity.InsertAgent(ctx, tx, a); err != nil {
				return err
			}
		}
		return nil
	})
	var place int64 // of the last agent that was listed
	list := func(org, after string, limit int, f identity.AgentFilter) (got []string) {
		if after == "" {
			place = 0
		}
		w.in(org, func(ctx context.Context, tx pgx.Tx) error {
			agents, err := identity.ListAgents(ctx, tx, place, after, limit, f)
			for _, a := range agents {
				got, place = append(got, a.ID), a.Place
			}
			return err
		})
		return got
	}
	var paged []string
	for after := ""; ; after = paged[len(paged)-1] {
		page := list(w.a, after, 10, identity.AgentFilter{})
		if len(page) == 0 {
			break
		}
		paged = append(paged, page...)
	}
	if d := cmp.Diff(ids, paged); d != "" {
		t.Error(d)
	}
	for _, tc := range []struct {
		f    identity.AgentFilter
		want int
	}{
		{identity.AgentFilter{Name: "bot 7"}, 1}, {identity.AgentFilter{Name: "bot"}, 0}, {identity.AgentFilter{Name: "%"}, 0}, {identity.AgentFilter{Team: "x"}, 13},
		{identity.AgentFilter{Environment: "dev"}, 8}, {identity.AgentFilter{Status: identity.Suspended}, 5}, {identity.AgentFilter{Team: "x", Environment: "dev", Status: identity.Active}, 3},
	} {
		if got := list(w.a, "", 100, tc.f); len(got) != tc.want {
			t.Errorf("%+v: %d agents, want %d", tc.f, len(got), tc.want)
		}
	}
	if got := list(w.b, "", 100, identity.AgentFilter{}); len(got) != 0 {
		t.Errorf("another org sees %v", got)
	}
}

func TestKeys(t *testing.T) {
	w := open(t)
	k, secret := key(t, w.a, "ag_1", "key_1")
	forever := identity.Key{ID: "key_2", Kind: identity.KindKey, OrgID: w.a, AgentID: "ag_1", Name: "forever", Hash: [32]byte{2}, CreatedAt: noon}
	w.in(w.a, func(ctx context.Context, tx pgx.Tx) error {
		return errors.Join(identity.InsertAgent(ctx, tx, agent(w.a, "ag_1")), identity.InsertKey(ctx, tx, k), identity.InsertKey(ctx, tx, forever))
	})
	keys := func(agent string) (got []identity.Key) {
		w.in(w.a, func(ctx context.Context, tx pgx.Tx) (err error) {
			got, err = identity.Keys(ctx, tx, agent)
			return err
		})
		return got
	}
	if d := cmp.Diff([]identity.Key{k, forever}, keys("ag_1"), same); d != "" {
		t.Error(d)
	}
	if got := keys("ag_2"); len(got) != 0 {
		t.Errorf("another agent has %v", got)
	}

	_, hash, err := identity.Parse(secret)
	if err != nil {
		t.Fatal(err)
	}
	look := func(hash [32]byte, want identity.Caller) func(context.Context, pgx.Tx) error {
		return func(ctx context.Context, tx pgx.Tx) error {
			got, err := identity.CallerByHash(ctx, tx, hash)
			if err == nil {
				want.Key.Line = want.Key.ID
				if d := cmp.Diff(want, got, same); d != "" {
					t.Error(d)
				}
			}
			return err
		}
	}
	w.both("looking up", nil, look(hash, identity.Caller{Agent: agent(w.a, "ag_1"), Key: k}))
	w.both("looking up what nobody has", identity.ErrNotFound, look([32]byte{9}, identity.Caller{}))

	revoke := func(agent, id string, at time.Time) func(context.Context, pgx.Tx) error {
		return func(ctx context.Context, tx pgx.Tx) error { return identity.RevokeKey(ctx, tx, agent, id, at) }
	}
	w.both("revoking another agent's", identity.ErrNotFound, revoke("ag_2", "key_1", noon))
	w.both("revoking what is not there", identity.ErrNotFound, revoke("ag_1", "key_9", noon))
	w.both("revoking", nil, revoke("ag_1", "key_1", noon.Add(time.Minute)))
	w.both("revoking again", nil, revoke("ag_1", "key_1", noon.Add(time.Hour)))
	k.RevokedAt = noon.Add(time.Minute)
	w.both("looking up what was revoked", nil, look(hash, identity.Caller{Agent: agent(w.a, "ag_1"), Key: k}))
	if got := reason(t, identity.Caller{Agent: agent(w.a, "ag_1"), Key: keys("ag_1")[0]}.ActiveAt(noon)); got != "key_revoked" {
		t.Errorf("a revoked key is %q", got)
	}

	for what, change := range map[string]func(*identity.Key){
		"of no agent": func(k *identity.Key) { k.AgentID = "ag_9" }, "for another org": func(k *identity.Key) { k.OrgID = w.b }, "a hash twice": func(k *identity.Key) { k.Hash = forever.Hash },
		"a limit below 0": func(k *identity.Key) { k.RateLimit = -1 },
	} {
		bad, _ := key(t, w.a, "ag_1", "key_bad")
		change(&bad)
		if err := w.try(w.a, func(ctx context.Context, tx pgx.Tx) error { return identity.InsertKey(ctx, tx, bad) }); err == nil {
			t.Errorf("a key %s is stored", what)
		}
	}
	w.in(w.a, func(ctx context.Context, tx pgx.Tx) error { return identity.DeleteAgent(ctx, tx, "ag_1") })
	w.both("looking up a key of a deleted agent", identity.ErrNotFound, look(hash, identity.Caller{}))
}

// A caller's key has the first key of its line, whatever has become of the keys between.
func TestKeyLine(t *testing.T) {
	w := open(t)
	w.in(w.a, func(ctx context.Context, tx pgx.Tx) error {
		if err := identity.InsertAgent(ctx, tx, agent(w.a, "ag_1")); err != nil {
			return err
		}
		for _, c := range []struct{ id, from, line string }{
			{"key_1", "", "key_1"}, {"key_2", "key_1", "key_1"}, {"key_3", "key_2", "key_1"}, {"key_4", "", "key_4"}, {"key_6", "key_5", "key_5"},
		} {
			k, _ := key(t, w.a, "ag_1", c.id)
			k.RotatedFrom = c.from
			if err := identity.InsertKey(ctx, tx, k); err != nil {
				return err
			}
			got, err := identity.CallerByHash(ctx, tx, k.Hash)
			if err != nil || got.Key.Line != c.line {
				t.Errorf("%s from %q: line %q %v, want %q", c.id, c.from, got.Key.Line, err, c.line)
			}
		}
		return nil
	})
}

func TestRotateKey(t *testing.T) {
	w := open(t)
	old, _ := key(t, w.a, "ag_1", "key_1")
	soon, _ := key(t, w.a, "ag_1", "key_2")
	soon.ExpiresAt = noon.Add(time.Minute)
	dead, _ := key(t, w.a, "ag_1", "key_3")
	dead.RevokedAt = noon
	expired, _ := key(t, w.a, "ag_1", "key_4")
	expired.ExpiresAt = noon
	forever, _ := key(t, w.a, "ag_1", "key_5")
	forever.ExpiresAt = time.Time{}
	w.in(w.a, func(ctx context.Context, tx pgx.Tx) error {
		if err := errors.Join(identity.InsertAgent(ctx, tx, agent(w.a, "ag_1")), identity.InsertAgent(ctx, tx, agent(w.a, "ag_2"))); err != nil {
			return err
		}
		for _, k := range []identity.Key{old, soon, dead, expired, forever} {
			if err := identity.InsertKey(ctx, tx, k); err != nil {
				return err
			}
		}
		return nil
	})
	n := 0
	rotate := func(of string) func(context.Context, pgx.Tx) error {
		n++
		next, _ := key(t, w.a, "ag_1", fmt.Sprint("key_n", n))
		return func(ctx context.Context, tx pgx.Tx) error {
			return identity.RotateKey(ctx, tx, of, next, noon.Add(24*time.Hour))
		}
	}
	w.both("rotating", nil, rotate("key_1"))
	w.both("rotating again", identity.ErrConflict, rotate("key_1"))
	w.both("rotating one that expires sooner", nil, rotate("key_2"))
	w.both("rotating a revoked one", identity.ErrConflict, rotate("key_3"))
	w.both("rotating an expired one", identity.ErrConflict, rotate("key_4"))
	w.both("rotating one without an end", nil, rotate("key_5"))
	w.both("rotating what is not there", identity.ErrNotFound, rotate("key_9"))
	stranger, _ := key(t, w.a, "ag_2", "key_x")
	w.both("rotating into another agent's", identity.ErrNotFound, func(ctx context.Context, tx pgx.Tx) error {
		return identity.RotateKey(ctx, tx, "key_n1", stranger, noon)
	})

	var got []string
	w.in(w.a, func(ctx context.Context, tx pgx.Tx) error {
		keys, err := identity.Keys(ctx, tx, "ag_1")
		for _, k := range keys {
			got = append(got, fmt.Sprintf("%s from %q expires %v, works %v", k.ID, k.RotatedFrom, k.ExpiresAt.Sub(noon), identity.Caller{Agent: agent(w.a, "ag_1"), Key: k}.ActiveAt(noon.Add(time.Second)) == nil))
		}
		return err
	})
	if d := cmp.Diff([]string{
		`key_1 from "" expires 24h0m0s, works true`, `key_2 from "" expires 1m0s, works true`, `key_3 from "" expires 2160h0m0s, works false`, `key_4 from "" expires 0s, works false`,
		`key_5 from "" expires 24h0m0s, works true`, `key_n1 from "key_1" expires 2160h0m0s, works true`, `key_n3 from "key_2" expires 2160h0m0s, works true`, `key_n6 from "key_5" expires 2160h0m0s, works true`,
	}, got, placed); d != "" {
		t.Error(d)
	}

	// Many at once: one wins.
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for i := range 8 {
		next, _ := key(t, w.a, "ag_1", fmt.Sprint("key_race", i))
		wg.Go(func() {
			err := w.try(w.a, func(ctx context.Context, tx pgx.Tx) error {
				return identity.RotateKey(ctx, tx, "key_n1", next, noon.Add(time.Hour))
			})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !errors.Is(err, identity.ErrConflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d of 8 rotations won", won)
	}
}

func TestOrgKeys(t *testing.T) {
	w := open(t)
	secret, hash, err := identity.Mint(identity.OrgKey, seeded("org key"))
	if err != nil {
		t.Fatal(err)
	}
	k := identity.OrgKeyRecord{ID: "okey_1", OrgID: w.a, Name: "first", Role: identity.Admin, Hash: hash, CreatedAt: noon, ExpiresAt: noon.Add(time.Hour)}
	other := identity.OrgKeyRecord{ID: "okey_1", OrgID: w.b, Name: "theirs", Role: identity.Auditor, Hash: [32]byte{1}, CreatedAt: noon}
	w.in(w.a, func(ctx context.Context, tx pgx.Tx) error { return identity.InsertOrgKey(ctx, tx, k) })
	w.in(w.b, func(ctx context.Context, tx pgx.Tx) error { return identity.InsertOrgKey(ctx, tx, other) })

	presented := func(hash [32]byte) (got identity.OrgKeyRecord, err error) {
		err = w.db.Presenting(t.Context(), identity.HexHash(hash), func(tx pgx.Tx) (err error) {
			got, err = identity.OrgKeyPresented(t.Context(), tx, hash)
			return err
		})
		return got, err
	}
	_, hash, err = identity.Parse(secret)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := presented(hash); err != nil || !cmp.Equal(k, got, placed) {
		t.Errorf("presented: %+v, %v", got, err)
	}
	if got, err := presented([32]byte{9}); !errors.Is(err, identity.ErrNotFound) {
		t.Errorf("what nobody has: %+v, %v", got, err)
	}
	// Asking for another hash than the one presented finds nothing.
	err = w.db.Presenting(t.Context(), identity.HexHash(hash), func(tx pgx.Tx) error {
		_, err := identity.OrgKeyPresented(t.Context(), tx, other.Hash)
		return err
	})
	if !errors.Is(err, identity.ErrNotFound) {
		t.Errorf("another's: %v", err)
	}
	w.in(w.b, func(ctx context.Context, tx pgx.Tx) error {
		got, err := identity.ListOrgKeys(ctx, tx)
		if d := cmp.Diff([]identity.OrgKeyRecord{other}, got, placed); d != "" {
			t.Error(d)
		}
		return err
	})
	revoke := func(id string) func(context.Context, pgx.Tx) error {
		return func(ctx context.Context, tx pgx.Tx) error {
			return identity.RevokeOrgKey(ctx, tx, id, noon.Add(time.Minute))
		}
	}
	w.in(w.a, revoke("okey_1"))
	w.in(w.a, revoke("okey_1"))
	w.both("revoking what is not there", identity.ErrNotFound, revoke("okey_9"))
	got, err := presented(hash)
	if err != nil || reason(t, got.ActiveAt(noon)) != "key_revoked" {
		t.Errorf("revoked: %+v, %v", got, err)
	}
	if got, err := presented(other.Hash); err != nil || got.ActiveAt(noon) != nil {
		t.Errorf("the other org's key of the same id: %+v, %v", got, err)
	}
	for what, bad := range map[string]identity.OrgKeyRecord{
		"role": {ID: "okey_2", OrgID: w.a, Role: "root", Hash: [32]byte{2}}, "hash of another org's": {ID: "okey_2", OrgID: w.a, Role: identity.Admin, Hash: other.Hash}, "org": {ID: "okey_2", OrgID: w.b, Role: identity.Admin, Hash: [32]byte{2}},
	} {
		if err := w.try(w.a, func(ctx context.Context, tx pgx.Tx) error { return identity.InsertOrgKey(ctx, tx, bad) }); err == nil {
			t.Errorf("a key with a wrong %s is stored", what)
		}
	}
}

func TestNodes(t *testing.T) {
	w := open(t)
	token, hash, err := identity.Mint(identity.NodeToken, seeded("node"))
	if err != nil {
		t.Fatal(err)
	}
	const spiffe = "spiffe://cluster.local/ns/ai/sa/gateway"
	both := []identity.NodeRole{identity.NodeEnvoy, identity.NodeExtproc}
	byToken := identity.Node{ID: "node_1", Roles: both, Orgs: []string{w.a}, Home: true, HomeID: w.a, OrgID: w.a, Name: "up", TokenHash: hash, CreatedAt: noon}
	gone := identity.Node{ID: "node_2", Roles: []identity.NodeRole{}, OrgID: w.a, Name: "old", SPIFFEID: spiffe, CreatedAt: noon, RevokedAt: noon}
	byCertificate := identity.Node{ID: "node_3", Roles: []identity.NodeRole{identity.NodeEnvoy}, ByOperator: true, Orgs: []string{w.b}, OrgID: w.b, Name: "gateway", SPIFFEID: spiffe, CreatedAt: noon, ExpiresAt: noon.Add(time.Hour)}
	w.in(w.a, func(ctx context.Context, tx pgx.Tx) error {
		return errors.Join(identity.InsertNode(ctx, tx, byToken), identity.InsertNode(ctx, tx, gone))
	})
	presented := func(s string) (got identity.Node, err error) {
		err = w.db.Presenting(t.Context(), s, func(tx pgx.Tx) (err error) {
			got, err = identity.NodePresented(t.Context(), tx, s, noon)
			return err
		})
		return got, err
	}
	if got, err := presented(spiffe); err != nil || !cmp.Equal(gone, got, placed) {
		t.Errorf("the revoked one: %+v, %v", got, err)
	}
	w.in(w.b, func(ctx context.Context, tx pgx.Tx) error { return identity.InsertNode(ctx, tx, byCertificate) })
	_, hash, err = identity.Parse(token)
	if err != nil {
		t.Fatal(err)
	}
	for s, want := range map[string]identity.Node{identity.HexHash(hash): byToken, spiffe: byCertificate} {
		if got, err := presented(s); err != nil || !cmp.Equal(want, got, placed) {
			t.Errorf("%.20s: %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{token, strings.ToUpper(identity.HexHash(hash)), spiffe + "x", "spiffe://%", strings.Repeat("0", 64)} {
		if got, err := presented(s); !errors.Is(err, identity.ErrNotFound) {
			t.Errorf("%.20s: %+v, %v", s, got, err)
		}
	}
	w.in(w.a, func(ctx context.Context, tx pgx.Tx) error {
		got, err := identity.ListNodes(ctx, tx)
		listed := byToken
		listed.Orgs, listed.HomeID = nil, "" // NodePresented sets them
		if d := cmp.Diff([]identity.Node{listed, gone}, got, placed); d != "" {
			t.Error(d)
		}
		return err
	})
	revoke := func(ctx context.Context, tx pgx.Tx) error {
		return identity.RevokeNode(ctx, tx, "node_1", noon.Add(time.Minute))
	}
	w.both("revoking", nil, revoke)
	w.both("revoking again", nil, revoke)
	if got, err := presented(identity.HexHash(hash)); err != nil || reason(t, got.ActiveAt(noon)) != "key_revoked" {
		t.Errorf("revoked: %+v, %v", got, err)
	}
	for what, bad := range map[string]identity.Node{
		"nothing to present": {ID: "node_9", OrgID: w.a}, "a role that there is not": {ID: "node_9", OrgID: w.a, TokenHash: [32]byte{9}, Roles: []identity.NodeRole{"admin"}}, "another org": {ID: "node_9", OrgID: w.b, TokenHash: [32]byte{9}},
	} {
		if err := w.try(w.a, func(ctx context.Context, tx pgx.Tx) error { return identity.InsertNode(ctx, tx, bad) }); err == nil {
			t.Errorf("a node with %s is stored", what)
		}
	}
}

func TestOrgs(t *testing.T) {
	w := open(t)
	want := identity.Org{ID: "org_new", Name: "Acme", Tier: "pro", CreatedAt: noon, Timezone: "UTC", TimezoneBefore: "UTC"}
	if err := w.try(want.ID, func(ctx context.Context, tx pgx.Tx) error { return identity.InsertOrg(ctx, tx, want) }); err == nil {
		t.Error("a serving role makes an organization")
	}
	owner, err := store.Open(t.Context(), store.Config{URL: storetest.OwnerURL(t), Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close()
	if err := owner.InOrg(t.Context(), want.ID, func(tx pgx.Tx) error { return identity.InsertOrg(t.Context(), tx, want) }); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "acme", "org_", "org_ä", "org_" + strings.Repeat("x", 61), "org_a b"} {
		o := want
		o.ID = bad
		if err := owner.InOrg(t.Context(), "x"+bad, func(tx pgx.Tx) error { return identity.InsertOrg(t.Context(), tx, o) }); err == nil {
			t.Errorf("an organization %q is made", bad)
		}
	}
	w.in(want.ID, func(ctx context.Context, tx pgx.Tx) error {
		got, err := identity.OrgByID(ctx, tx, want.ID)
		if d := cmp.Diff(want, got, placed); d != "" {
			t.Error(d)
		}
		return err
	})
	if err := w.try(w.a, func(ctx context.Context, tx pgx.Tx) error { _, err := identity.OrgByID(ctx, tx, want.ID); return err }); !errors.Is(err, identity.ErrNotFound) {
		t.Errorf("another org reads it: %v", err)
	}
}

// A node of several orgs has one row in each. The operator's rows prevail, and two
// nodes with one SPIFFE id are no node.
func TestNodesOfSeveralOrgs(t *testing.T) {
	w := open(t)
	const spiffe = "spiffe://cluster.local/ns/shared/sa/gateway"
	at := func(when time.Time) (got identity.Node, err error) {
		err = w.db.Presenting(t.Context(), spiffe, func(tx pgx.Tx) (err error) {
			got, err = identity.NodePresented(t.Context(), tx, spiffe, when)
			return err
		})
		return got, err
	}
	add := func(org string, n identity.Node) {
		t.Helper()
		n.OrgID, n.SPIFFEID, n.Name, n.CreatedAt = org, spiffe, "n", noon
		w.in(org, func(ctx context.Context, tx pgx.Tx) error { return identity.InsertNode(ctx, tx, n) })
	}
	both := []identity.NodeRole{identity.NodeEnvoy, identity.NodeExtproc}
	add(w.a, identity.Node{ID: "node_made", Roles: both}) // by an org
	add(w.b, identity.Node{ID: "node_shared", Roles: both, ByOperator: true, Home: true})
	if got, err := at(noon); err != nil || got.ID != "node_shared" || !slices.Equal(got.Orgs, []string{w.b}) {
		t.Errorf("the operator's does not prevail: %+v, %v", got, err)
	}
	w.in(w.a, func(ctx context.Context, tx pgx.Tx) error { return identity.RevokeNode(ctx, tx, "node_made", noon) })
	add(w.a, identity.Node{ID: "node_shared", Roles: both[:1], ByOperator: true, ExpiresAt: noon.Add(time.Hour)})
	if got, err := at(noon); err != nil || got.HomeID != w.b {
		t.Errorf("the home: %+v, %v", got, err)
	}
	want := []string{w.a, w.b}
	slices.Sort(want)
	if got, err := at(noon); err != nil || !slices.Equal(got.Orgs, want) || !slices.Equal(got.Roles, both[:1]) {
		t.Errorf("of two orgs: %+v, %v", got, err)
	}
	if got, err := at(noon.Add(2 * time.Hour)); err != nil || !slices.Equal(got.Orgs, []string{w.b}) {
		t.Errorf("after it has expired in one: %+v, %v", got, err)
	}
	// Its own row is an org's to revoke, and no other.
	w.in(w.a, func(ctx context.Context, tx pgx.Tx) error { return identity.RevokeNode(ctx, tx, "node_shared", noon) })
	if got, err := at(noon); err != nil || !slices.Equal(got.Orgs, []string{w.b}) {
		t.Errorf("after one org revoked it: %+v, %v", got, err)
	}
	// Without its home a node has none: the orgs that are left do not inherit it.
	c := storetest.Org(t, w.db)
	add(c, identity.Node{ID: "node_shared", Roles: both, ByOperator: true})
	w.in(w.b, func(ctx context.Context, tx pgx.Tx) error { return identity.RevokeNode(ctx, tx, "node_shared", noon) })
	if got, err := at(noon); err != nil || !slices.Equal(got.Orgs, []string{c}) || got.HomeID != "" {
		t.Errorf("after its home revoked it: %+v, %v", got, err)
	}
	add(w.a, identity.Node{ID: "node_other", Roles: both, ByOperator: true})
	if got, err := at(noon); !errors.Is(err, identity.ErrNotFound) {
		t.Errorf("two nodes with one id: %+v, %v", got, err)
	}
}

// The operator gives orgs what is below a prefix, by whole segments, and never the
// same to two.
func TestTrustPrefixes(t *testing.T) {
	w := open(t)
	owner, err := store.Open(t.Context(), store.Config{URL: storetest.OwnerURL(t), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close()
	grant := func(db *store.DB, org, prefix string) error {
		return db.InOrg(t.Context(), org, func(tx pgx.Tx) error { return identity.GrantPrefix(t.Context(), tx, org, prefix) })
	}
	domain := "spiffe://" + strings.ToLower(strings.ReplaceAll(w.a, "_", "-")) + ".example"
	if err := grant(w.db, w.a, domain+"/ns/a"); err == nil {
		t.Error("a server granted a prefix")
	}
	for _, prefix := range []string{"spiffe://", "https://x", domain + "/", domain + "/a//b", domain + "/a%2fb", "spiffe://X/a"} {
		if err := grant(owner, w.a, prefix); err == nil {
			t.Errorf("%q was granted", prefix)
		}
	}
	if err := errors.Join(grant(owner, w.a, domain+"/ns/a"), grant(owner, w.b, domain+"/ns/ab"), grant(owner, w.b, domain+"/ns/a-b")); err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{domain, domain + "/ns", domain + "/ns/a", domain + "/ns/a/sa/x"} {
		if err := grant(owner, w.b, prefix); !errors.Is(err, identity.ErrConflict) {
			t.Errorf("%s overlaps with another org's: %v", prefix, err)
		}
	}
	for id, want := range map[string]bool{
		domain + "/ns/a": true, domain + "/ns/a/sa/g": true, domain + "/ns/ab/sa/g": false, domain + "/ns/a-b": false, domain + "/ns": false,
		domain: false, "spiffe://other/ns/a/x": false, domain + "/ns/%/x": false,
	} {
		w.in(w.a, func(ctx context.Context, tx pgx.Tx) error {
			got, err := identity.MayName(ctx, tx, id)
			if got != want {
				t.Errorf("%s: %v", id, got)
			}
			return err
		})
	}
}
