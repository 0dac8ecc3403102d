package identity_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/store/storetest"
)

const cluster = "https://kubernetes.default.svc.cluster.local"

func sa(issuer, namespace, name string) identity.Workload {
	return identity.Workload{Kind: identity.KindKubernetes, Issuer: issuer, Namespace: namespace, ServiceAccount: name}
}

func spiffe(id string) identity.Workload {
	return identity.Workload{Kind: identity.KindSPIFFE, SPIFFEID: id}
}

// Two workloads have different names and lookups, and none has that of a key.
func TestWorkloadNames(t *testing.T) {
	seen := map[identity.Presented]string{}
	for _, w := range []identity.Workload{
		sa(cluster, "ai", "bot"), sa(cluster+"/a", "ai", "bot"), sa(cluster, "ai-bot", "bot"), sa(cluster, "ai", "bot.x"),
		spiffe("spiffe://corp.example/ns/ai/sa/bot"), spiffe("spiffe://corp.example/ns/ai/sa/bot2"),
		{Kind: identity.KindKubernetes, SPIFFEID: "spiffe://corp.example/ns/ai/sa/bot"},
	} {
		p := w.Presented()
		if other, twice := seen[p]; twice {
			t.Errorf("%s and %s are one", w, other)
		}
		seen[p] = w.String()
		if hash, ok := p.WorkloadHash(); !ok || identity.PresentedHash(hash) != p {
			t.Errorf("%s: %s", w, p)
		}
		if _, ok := p.KeyHash(); ok {
			t.Errorf("%s is a key", w)
		}
	}
	for _, p := range []identity.Presented{"", "workload:", "workload:x", identity.PresentedKey([32]byte{1}), "workload:" + identity.Presented(strings.Repeat("A", 64))} {
		if _, ok := p.WorkloadHash(); ok {
			t.Errorf("%q is a workload", p)
		}
	}
	for _, id := range []string{
		"", "spiffe://", "spiffe://corp.example", "spiffe://corp.example/", "spiffe://corp.example/a/", "spiffe://corp.example//a", "spiffe://corp.example/a/../b", "spiffe://corp.example/.",
		"spiffe://Corp.example/a", "SPIFFE://corp.example/a", "spiffe://corp.example:8080/a", "spiffe://u@corp.example/a", "spiffe://corp.example/a?b", "spiffe://corp.example/a#b", "spiffe://corp.example/a%2fb",
		"spiffe://corp.example/a,spiffe://corp.example/b", "spiffe://corp.example/ä", "spiffe://corp.example/a\n", "spiffe://corp.example/" + strings.Repeat("a", 2048),
	} {
		if identity.CheckSPIFFEID(id) == nil {
			t.Errorf("%q is a SPIFFE id", id)
		}
	}
	for _, issuer := range []string{"", "http://a", "https://", "https://a?b", "https://a#b", "https://u@a", "https://a b", "https://a/%20", "kubernetes/serviceaccount", "https://a\n"} {
		if identity.CheckIssuer(issuer) == nil {
			t.Errorf("%q is an issuer", issuer)
		}
	}
}

// An organization binds only what lies below its grants, whole segments and exact issuers
// and namespaces. The error is the same whether another organization has the
// name or not.
func TestIdentities(t *testing.T) {
	w := open(t)
	w.in(w.a, func(ctx context.Context, tx pgx.Tx) error {
		return errors.Join(identity.InsertAgent(ctx, tx, agent(w.a, "ag_1")), identity.InsertAgent(ctx, tx, agent(w.a, "ag_2")))
	})
	w.in(w.b, func(ctx context.Context, tx pgx.Tx) error { return identity.InsertAgent(ctx, tx, agent(w.b, "ag_1")) })
	owner := func(org string, fn func(ctx context.Context, tx pgx.Tx) error) {
		t.Helper()
		storetest.InOrgAsOwner(t, org, func(tx pgx.Tx) error { return fn(t.Context(), tx) })
	}
	owner(w.a, func(ctx context.Context, tx pgx.Tx) error {
		return errors.Join(identity.GrantPrefix(ctx, tx, w.a, "spiffe://corp.example/ns/a"), identity.GrantNamespace(ctx, tx, w.a, cluster, "a"))
	})
	owner(w.b, func(ctx context.Context, tx pgx.Tx) error {
		return errors.Join(identity.GrantPrefix(ctx, tx, w.b, "spiffe://corp.example/ns/b"), identity.GrantNamespace(ctx, tx, w.b, cluster, "b"), identity.GrantNamespace(ctx, tx, w.b, "https://other", "a"))
	})
	n := 0
	bind := func(org, agent string, of identity.Workload) (identity.Identity, error) {
		n++
		i := identity.Identity{Workload: of, Key: identity.Key{
			ID: "idn_" + string(rune('a'+n)), Kind: of.Kind, OrgID: org, AgentID: agent, Name: "n", Scopes: []string{"embeddings"}, AllowedModels: []string{"m"}, RateLimit: 7, CreatedAt: noon,
		}}
		return i, w.try(org, func(ctx context.Context, tx pgx.Tx) error { return identity.InsertIdentity(ctx, tx, i) })
	}
	for _, of := range []identity.Workload{
		sa(cluster, "b", "bot"), sa("https://other", "a", "bot"), sa(cluster+"/", "a", "bot"), sa(cluster, "ab", "bot"), sa(cluster, "nobodys", "bot"),
		spiffe("spiffe://corp.example/ns/b/bot"), spiffe("spiffe://corp.example/ns/ab"), spiffe("spiffe://corp.example/ns"), spiffe("spiffe://corp.example.evil/ns/a/bot"), spiffe("spiffe://nobodys/x"),
	} {
		if _, err := bind(w.a, "ag_1", of); err == nil || err.Error() != "storing an identity: not granted" {
			t.Errorf("%s: %v", of, err)
		}
	}
	if err := storetest.TryAsOwner(t, w.a, func(tx pgx.Tx) error { return identity.GrantNamespace(t.Context(), tx, w.a, cluster, "b") }); !errors.Is(err, identity.ErrConflict) {
		t.Errorf("another organization's namespace: %v", err)
	}

	bot, pod := sa(cluster, "a", "bot"), spiffe("spiffe://corp.example/ns/a/bot")
	k, err := bind(w.a, "ag_1", bot)
	if err != nil {
		t.Fatal(err)
	}
	s, err := bind(w.a, "ag_1", pod)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bind(w.a, "ag_2", bot); !errors.Is(err, identity.ErrConflict) {
		t.Errorf("bound twice: %v", err)
	}
	hashes := func(of ...identity.Workload) (out []string) {
		for _, w := range of {
			hash, _ := w.Presented().WorkloadHash()
			out = append(out, hash)
		}
		return out
	}
	callers := func(org string) map[string]identity.Caller {
		var found map[string]identity.Caller
		w.in(org, func(ctx context.Context, tx pgx.Tx) (err error) {
			found, err = identity.CallersByWorkload(ctx, tx, hashes(bot, pod))
			return err
		})
		return found
	}
	orgs := func() (of map[string]string) {
		err := w.db.Presenting(t.Context(), strings.Join(hashes(bot, pod), ","), func(tx pgx.Tx) (err error) {
			of, err = identity.OrgsOfWorkloads(t.Context(), tx, hashes(bot, pod))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return of
	}
	if got := callers(w.a); len(got) != 2 || got[hashes(bot)[0]].Key.ID != k.ID || got[hashes(bot)[0]].Workload != bot || got[hashes(pod)[0]].Key.ID != s.ID ||
		got[hashes(pod)[0]].Agent.ID != "ag_1" || got[hashes(bot)[0]].ActiveAt(noon) != nil || got[hashes(bot)[0]].Key.RateLimit != 7 {
		t.Errorf("callers: %+v", got)
	}
	if got := callers(w.b); len(got) != 0 {
		t.Errorf("another organization finds %+v", got)
	}
	if got := orgs(); len(got) != 2 || got[hashes(bot)[0]] != w.a {
		t.Errorf("organizations: %v", got)
	}

	// Revoked, it may be bound again. The live row counts.
	w.both("revoking", nil, func(ctx context.Context, tx pgx.Tx) error {
		return identity.RevokeIdentity(ctx, tx, "ag_1", k.ID, noon)
	})
	if err := callers(w.a)[hashes(bot)[0]].ActiveAt(noon.Add(time.Hour)); err == nil || err.Error() != "caller is not active: identity_revoked" {
		t.Errorf("a revoked identity: %v", err)
	}
	again, err := bind(w.a, "ag_2", bot)
	if err != nil {
		t.Fatal(err)
	}
	if got := callers(w.a)[hashes(bot)[0]]; got.Key.ID != again.ID || got.Agent.ID != "ag_2" {
		t.Errorf("bound again: %+v", got)
	}

	// A withdrawn grant takes its identities with it, and nothing else. Another organization
	// may have it then.
	owner(w.a, func(ctx context.Context, tx pgx.Tx) error { return identity.WithdrawNamespace(ctx, tx, cluster, "a") })
	if err := storetest.TryAsOwner(t, w.a, func(tx pgx.Tx) error { return identity.WithdrawNamespace(t.Context(), tx, cluster, "b") }); !errors.Is(err, identity.ErrNotFound) {
		t.Errorf("withdrawing another organization's namespace: %v", err)
	}
	if got := callers(w.a); len(got) != 1 || got[hashes(pod)[0]].Key.ID != s.ID {
		t.Errorf("after withdrawing the namespace: %+v", got)
	}
	owner(w.a, func(ctx context.Context, tx pgx.Tx) error {
		return identity.WithdrawPrefix(ctx, tx, "spiffe://corp.example/ns/a")
	})
	if got := callers(w.a); len(got) != 0 {
		t.Errorf("after withdrawing the prefix: %+v", got)
	}
	owner(w.b, func(ctx context.Context, tx pgx.Tx) error { return identity.GrantNamespace(ctx, tx, w.b, cluster, "a") })
	if _, err := bind(w.b, "ag_1", bot); err != nil {
		t.Fatal(err)
	}
	if got := orgs(); len(got) != 1 || got[hashes(bot)[0]] != w.b {
		t.Errorf("organizations: %v", got)
	}
}
