package extproc_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ai-identity/ai-identity/extproc"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/xds"
)

// A request without a known caller is counted by its cause and its connection's address,
// and has no audit entry. A request of a known caller has its entries and is not counted,
// for every error in it.
func TestUnknownCallers(t *testing.T) {
	var mu sync.Mutex
	var counted []string
	w := serve(t, options{config: func(c *extproc.Config) {
		c.Unknown = func(cause string, peer netip.Addr) {
			mu.Lock()
			defer mu.Unlock()
			counted = append(counted, fmt.Sprintf("%s %v", cause, peer))
		}
	}})
	agent, _, err := identity.Mint(identity.AgentKey, strings.NewReader(strings.Repeat("x", 64)))
	if err != nil {
		t.Fatal(err)
	}
	node, _, err := identity.Mint(identity.NodeToken, strings.NewReader(strings.Repeat("y", 64)))
	if err != nil {
		t.Fatal(err)
	}
	request := func(path string, headers ...string) message {
		m := w.chat("small")
		m.headers = slices.DeleteFunc(m.headers, func(h [2]string) bool {
			return h[0] == "authorization" || h[0] == "x-aid-peer" || path != "" && h[0] == ":path"
		})
		if path != "" {
			m.headers = append(m.headers, [2]string{":path", path})
		}
		m.headers = append(m.headers, [2]string{"x-aid-peer", "192.0.2.9"}, [2]string{"x-forwarded-for", "203.0.113.1"})
		for i := 0; i < len(headers); i += 2 {
			m.headers = append(m.headers, [2]string{headers[i], headers[i+1]})
		}
		return m
	}
	for _, c := range []struct {
		name string
		m    message
		want string
		edit func()
	}{
		{"no key", request(""), "missing_api_key", nil},
		{"an empty key", request("", "authorization", "Bearer "), "missing_api_key", nil},
		{"no key, and no such path", request("/wp-login.php"), "missing_api_key", nil},
		{"junk", request("", "authorization", "Bearer sk-123"), "malformed_api_key", nil},
		{"half a key", request("", "x-api-key", w.key[:30]), "malformed_api_key", nil},
		{"a node's token", request("", "authorization", "Bearer "+node), "malformed_api_key", nil},
		{"an org key", request("", "authorization", "Bearer "+w.orgKey), "org_key_on_model_path", nil},
		{"a key of no agent", request("", "authorization", "Bearer "+agent), "unknown_api_key", nil},
		{"two keys", request("", "authorization", "Bearer "+w.key, "x-api-key", agent), "ambiguous_credentials", nil},
		{"no directory", request("", "authorization", "Bearer "+w.key), "identity_unavailable", func() { w.dir.err = xds.ErrUnavailable }},
		{"a known caller", request("", "authorization", "Bearer "+w.key), "", nil},
		{"a known caller, and no such path", request("/wp-login.php", "authorization", "Bearer "+w.key), "", nil},
		{"a revoked key", request("", "authorization", "Bearer "+w.key), "", func() {
			w.dir.edit(func(c *identity.Caller) { c.Key.RevokedAt = w.clock.Now() })
		}},
	} {
		mu.Lock()
		counted = nil
		mu.Unlock()
		before := len(w.record.all())
		w.dir.mu.Lock()
		if w.dir.err = nil; c.edit != nil {
			c.edit()
		}
		w.dir.mu.Unlock()
		answer, pieces := ok()
		w.play(context.Background(), c.m, answer, pieces)
		mu.Lock()
		got := strings.Join(counted, ", ")
		mu.Unlock()
		want := ""
		if c.want != "" {
			want = c.want + " 192.0.2.9"
		}
		if entries := len(w.record.all()) - before; got != want || (entries == 0) != (c.want != "") {
			t.Errorf("%s: counted %q, want %q; %d entries", c.name, got, want, entries)
		}
	}
}
