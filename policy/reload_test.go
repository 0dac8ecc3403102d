package policy_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ai-identity/ai-identity/policy"
)

// TestReloadUnderLoad: while bundles are replaced, every decision comes from exactly one of
// them, and its version names that one.
func TestReloadUnderLoad(t *testing.T) {
	const reloads, workers = 100, 4
	// Bundle i limits team support to i+1 requests, and denies the model "odd" if i is odd.
	build := func(i int) *policy.Bundle {
		docs := []string{fmt.Sprintf(`{"name": "rate", "effect": "allow", "conditions": {"agent.team": "support"}, "limits": {"rpm": %d}}`, i+1)}
		if i%2 == 1 {
			docs = append(docs, `{"name": "odd", "effect": "deny", "conditions": {"request.model": "odd"}}`)
		}
		return bundle(t, docs...)
	}
	// They are compiled before they are swapped: the swaps are what is tested.
	var bundles []*policy.Bundle
	for i := range reloads + 1 {
		bundles = append(bundles, build(i))
	}
	var current atomic.Pointer[policy.Bundle]
	var versions sync.Map // version → i
	publish := func(i int) {
		versions.Store(bundles[i].Version(), i)
		current.Store(bundles[i])
	}
	publish(0)

	var decided atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			in := request()
			in.Agent.AllowedModels = []string{"*"}
			if w%2 == 0 {
				in.Request.Model = "odd"
			}
			for {
				select {
				case <-stop:
					return
				default:
				}
				d := current.Load().Decide(context.Background(), in)
				v, known := versions.Load(d.PolicyVersion)
				i, _ := v.(int)
				denied := i%2 == 1 && in.Request.Model == "odd"
				switch {
				case !known:
					t.Errorf("version %q was never published", d.PolicyVersion)
				case denied && (d.Effect != policy.Deny || d.Reasons[0].Code != "policy_denied"):
					t.Errorf("bundle %d: %+v", i, d)
				case !denied && (d.Effect != policy.Allow || len(d.Limits) != 1 || d.Limits[0].Value != int64(i+1)):
					t.Errorf("bundle %d: %+v", i, d)
				}
				decided.Add(1)
			}
		})
	}
	for i := 1; i <= reloads; i++ {
		before := decided.Load()
		publish(i)
		for decided.Load() == before && !t.Failed() {
			// At least one decision follows each publication.
			current.Load().Decide(context.Background(), request())
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("%d decisions over %d reloads", decided.Load(), reloads)
}
