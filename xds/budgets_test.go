package xds_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/store/storetest"
	"github.com/ai-identity/ai-identity/xds"
)

// charged inserts a sum into the database.
func (p *plane) charged(org, counter string, nanoUSD int64) {
	p.t.Helper()
	p.in(org, func(tx pgx.Tx) error {
		_, err := tx.Exec(context.Background(), "INSERT INTO budget_counts (org_id, counter, period, charged_nano_usd, charges) VALUES ($1, $2, '2026-11', $3, 1)", org, counter, nanoUSD)
		return err
	})
}

// A sidecar receives the sums that it names, in its order, and the number of sidecars of the org.
func TestCounts(t *testing.T) {
	p := newPlane(t)
	org := storetest.Org(t, p.db)
	p.charged(org, "b", 7)
	p.charged(org, "a", 5)
	token, id := p.node(org)
	b := xds.NewBudgets(p.conn(), token)
	ask := func(r audit.CountsRequest) audit.Counts {
		t.Helper()
		r.Org = org
		got, err := b.Counts(ctx(t), r)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	name := func(s string) audit.CountName { return audit.CountName{Counter: s, Period: "2026-11"} }
	before := time.Now().Add(-time.Minute)
	got := ask(audit.CountsRequest{Writer: "w_1", Names: []audit.CountName{name("a"), name("none"), name("b"), {Counter: "a", Period: "2026-12"}}})
	want := []audit.Count{{CountName: name("a"), ChargedNanoUSD: 5, Charges: 1}, {CountName: name("none")}, {CountName: name("b"), ChargedNanoUSD: 7, Charges: 1},
		{CountName: audit.CountName{Counter: "a", Period: "2026-12"}}}
	if diff := cmp.Diff(want, got.Counts); diff != "" {
		t.Error(diff)
	}
	if got.Sidecars != 1 || got.Lease != audit.SidecarLease || got.WriterSeq != 0 || got.AsOf.Before(before) || got.AsOf.After(time.Now().Add(time.Minute)) {
		t.Errorf("%+v", got)
	}

	// Two processes of one node are two sidecars. A process that leaves or has ended is not
	// counted.
	for _, step := range []struct {
		r    audit.CountsRequest
		want int
	}{
		{audit.CountsRequest{Writer: "w_2"}, 2},
		{audit.CountsRequest{Writer: "w_1"}, 2},
		{audit.CountsRequest{Writer: "w_1", Leaving: true}, 1},
		{audit.CountsRequest{Writer: "w_2"}, 1},
		{audit.CountsRequest{Writer: "w_3", Ended: []string{"w_2"}}, 1},
	} {
		if got := ask(step.r); got.Sidecars != step.want || len(got.Counts) != 0 {
			t.Errorf("%+v: %+v, want %d sidecars", step.r, got, step.want)
		}
	}
	// A node cannot end another node's process.
	other, _ := p.node(org)
	if got, err := xds.NewBudgets(p.conn(), other).Counts(ctx(t), audit.CountsRequest{Org: org, Writer: "w_4", Ended: []string{"w_3"}}); err != nil || got.Sidecars != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	// A silent one is not counted after its lease.
	p.in(org, func(tx pgx.Tx) error {
		_, err := tx.Exec(context.Background(), "UPDATE sidecars SET seen_at = seen_at - $1::interval WHERE writer = 'w_3'", audit.SidecarLease)
		return err
	})
	if got := ask(audit.CountsRequest{Writer: "w_4"}); got.Sidecars != 2 { // of the other node, and of this one
		t.Errorf("%d sidecars after a lease", got.Sidecars)
	}

	for what, r := range map[string]audit.CountsRequest{
		"no writer":       {Org: org},
		"a bad writer":    {Org: org, Writer: "control"},
		"a bad ended one": {Org: org, Writer: "w_1", Ended: []string{"w_'"}},
		"too many":        {Org: org, Writer: "w_1", Names: make([]audit.CountName, audit.MaxCounts+1)},
		"a long name":     {Org: org, Writer: "w_1", Names: []audit.CountName{name(strings.Repeat("x", 1025))}},
		"a NUL":           {Org: org, Writer: "w_1", Names: []audit.CountName{name("a\x00")}},
	} {
		if _, err := b.Counts(ctx(t), r); !errors.Is(err, audit.ErrRefused) {
			t.Errorf("%s: %v", what, err)
		}
	}

	p.in(org, func(tx pgx.Tx) error { return identity.RevokeNode(context.Background(), tx, id, time.Now()) })
	if _, err := b.Counts(ctx(t), audit.CountsRequest{Org: org, Writer: "w_1"}); !errors.Is(err, xds.ErrDenied) {
		t.Errorf("a revoked node: %v", err)
	}
	envoy, _ := p.nodeOf(identity.Node{Roles: []identity.NodeRole{identity.NodeEnvoy}}, org)
	for what, token := range map[string]string{"no role": envoy, "no token": "", "an unknown token": "aid_node_x"} {
		if _, err := xds.NewBudgets(p.conn(), token).Counts(ctx(t), audit.CountsRequest{Org: org, Writer: "w_1"}); !errors.Is(err, xds.ErrDenied) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// If sidecars start at the same moment, at most one may find that it is alone.
func TestSidecarsStartTogether(t *testing.T) {
	p := newPlane(t)
	for range 5 {
		org := storetest.Org(t, p.db)
		token, _ := p.node(org)
		const n = 4
		alone := make([]int, n)
		var mu sync.Mutex
		var ready, done sync.WaitGroup
		start := make(chan struct{})
		for i := range n {
			b := xds.NewBudgets(p.conn(), token)
			ready.Add(1)
			done.Go(func() {
				ready.Done()
				<-start
				got, err := b.Counts(ctx(t), audit.CountsRequest{Org: org, Writer: fmt.Sprintf("w_%d", i)})
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				if got.Sidecars > 0 {
					alone[got.Sidecars-1]++
				}
			})
		}
		ready.Wait()
		close(start)
		done.Wait()
		if diff := cmp.Diff([]int{1, 1, 1, 1}, alone); diff != "" {
			t.Error(diff)
		}
	}
}
