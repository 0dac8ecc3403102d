package extproc

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

func newHandle() *handle { return &handle{cutCh: make(chan struct{})} }

func TestGuard(t *testing.T) {
	g := newGuard(WaitLimits{Bytes: 100, AgentBytes: 60, KeyBytes: 40, Requests: 10, PerAgent: 4, PerKey: 3})
	enter := func(key, agent string, bytes int64, want string) (*place, *handle) {
		t.Helper()
		h := newHandle()
		p, got := g.enter(h, key, agent, bytes)
		if got != want {
			t.Errorf("%s of %s with %d bytes: %q, want %q", key, agent, bytes, got, want)
		}
		return p, h
	}
	_, first := enter("k1", "a1", 40, admitted)
	enter("k1", "a1", 1, tooMany) // the key's bytes
	second, _ := enter("k2", "a1", 20, admitted)
	enter("k2", "a1", 1, tooMany)   // the agent's bytes
	enter("k3", "a3", 41, tooMany)  // one body larger than a key may have
	enter("k3", "a3", 30, admitted) // 90 in all
	if _, h := enter("k4", "a4", 20, admitted); h.cutReason() != "" || first.cutReason() != noRoom {
		t.Errorf("the heaviest agent's largest place was not taken: %q", first.cutReason())
	}
	if n, bytes := g.held(); n != 3 || bytes != 70 {
		t.Errorf("%d places of %d bytes", n, bytes)
	}
	g.arrived(second, 5)
	g.arrived(second, 50) // more than declared: Envoy never passes that on
	g.leave(second)
	g.leave(second)
	if n, bytes := g.held(); n != 2 || bytes != 50 {
		t.Errorf("%d places of %d bytes", n, bytes)
	}
	for range 3 {
		enter("k5", "a5", 0, admitted)
	}
	enter("k5", "a5", 0, tooMany) // the key's requests
	enter("k6", "a5", 0, admitted)
	enter("k7", "a5", 0, tooMany) // the agent's requests
}

// The agent that holds the most gets nothing by eviction of others.
func TestGuardHeaviestGetsNothing(t *testing.T) {
	g := newGuard(WaitLimits{Bytes: 100, AgentBytes: 90, KeyBytes: 90})
	light := newHandle()
	g.enter(light, "light", "light", 30)
	g.enter(newHandle(), "heavy", "heavy", 60)
	if _, why := g.enter(newHandle(), "heavy", "heavy", 20); why != noRoom || light.cutReason() != "" {
		t.Errorf("%q, and the light one was cut for %q", why, light.cutReason())
	}
}

// For every sequence of events, no limit is exceeded, and no place is lost or counted
// twice.
func TestGuardAddsUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := WaitLimits{Bytes: 100, AgentBytes: 60, KeyBytes: 40, Requests: 8, PerAgent: 5, PerKey: 3}
		g := newGuard(l)
		var places []*place
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if len(places) > 0 && rapid.Bool().Draw(t, "go") {
				i := rapid.IntRange(0, len(places)-1).Draw(t, "which")
				if rapid.Bool().Draw(t, "arrive") {
					g.arrived(places[i], rapid.Int64Range(0, 50).Draw(t, "came"))
				} else {
					g.leave(places[i])
				}
				continue
			}
			agent := rapid.IntRange(0, 3).Draw(t, "agent")
			key := fmt.Sprint(agent, rapid.IntRange(0, 1).Draw(t, "key"))
			if p, why := g.enter(newHandle(), key, fmt.Sprint(agent), rapid.Int64Range(0, 45).Draw(t, "bytes")); why == admitted {
				places = append(places, p)
			}
		}
		var all load
		keys, agents := map[string]load{}, map[string]load{}
		for _, p := range places {
			if p.gone {
				continue
			}
			k, a := keys[p.key], agents[p.agent]
			k.requests, k.bytes = k.requests+1, k.bytes+p.bytes
			a.requests, a.bytes = a.requests+1, a.bytes+p.bytes
			keys[p.key], agents[p.agent] = k, a
			all.requests, all.bytes = all.requests+1, all.bytes+p.bytes
		}
		if n, bytes := g.held(); n != all.requests || bytes != all.bytes || n > l.Requests || bytes > l.Bytes {
			t.Fatalf("%d places of %d bytes, counted %d of %d", n, bytes, all.requests, all.bytes)
		}
		if len(g.keys) != len(keys) || len(g.agents) != len(agents) {
			t.Fatalf("%d keys, %d agents are kept", len(g.keys), len(g.agents))
		}
		for name, k := range keys {
			if got := g.keys[name]; got.requests != k.requests || got.bytes != k.bytes || k.requests > l.PerKey || k.bytes > l.KeyBytes {
				t.Fatalf("key %s: %+v, counted %+v", name, got, k)
			}
		}
		for name, a := range agents {
			if got := g.agents[name]; got.requests != a.requests || got.bytes != a.bytes || a.requests > l.PerAgent || a.bytes > l.AgentBytes {
				t.Fatalf("agent %s: %+v, counted %+v", name, got, a)
			}
		}
	})
}
