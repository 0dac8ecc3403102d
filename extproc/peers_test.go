package extproc_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit"
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

// repeats counts the rejections that equal a recorded one.
type repeats struct {
	mu   sync.Mutex
	seen map[audit.Rejection]int
}

func (r *repeats) Rejected(j audit.Rejection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen[j] = 0
}

func (r *repeats) Repeated(j audit.Rejection, _ netip.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, ok := r.seen[j]
	if ok {
		r.seen[j] = n + 1
	}
	return ok
}

// A key that may not be used buys one entry, whatever its agent requires, and its response
// says nothing about the agent.
func TestInactiveKeysAreCounted(t *testing.T) {
	for code, change := range map[string]func(*identity.Key){
		"key_revoked": func(k *identity.Key) { k.RevokedAt = k.CreatedAt.Add(time.Second) },
		"key_expired": func(k *identity.Key) { k.ExpiresAt = k.CreatedAt.Add(time.Second) },
	} {
		counts := &repeats{seen: map[audit.Rejection]int{}}
		w := serve(t, options{
			caller: change, config: func(c *extproc.Config) { c.Repeats = counts },
			agent: func(a *identity.Agent) {
				a.RequiredIdentities = []identity.CredentialKind{identity.KindKey, identity.KindKubernetes}
			},
		})
		const requests = 50
		for range requests {
			answer, pieces := ok()
			w.play(t.Context(), w.chat("small"), answer, pieces)
		}
		w.idle()
		decided := 0
		for _, e := range w.entries() {
			if d, ok := e.val.(audit.Decided); ok {
				if decided++; len(d.Reasons) != 1 || d.Reasons[0].Code != code {
					t.Errorf("%s: the reasons are %v", code, d.Reasons)
				}
			}
		}
		if decided != 1 || len(counts.seen) != 1 {
			t.Errorf("%s: %d entries of %d requests, and %d kinds are counted", code, decided, requests, len(counts.seen))
		}
		for j, n := range counts.seen {
			if n != requests-1 || j.Cause != code {
				t.Errorf("%s: %d rejections are counted for %s", code, n, j.Cause)
			}
		}
	}
}

// A key is rejected in every header, also in an encoding that a receiver would decode, and the
// entry does not have it.
func TestEncodedKeysInHeaders(t *testing.T) {
	w := serve(t, options{})
	wrapped := base64.StdEncoding.EncodeToString([]byte("key=" + w.key))
	for _, h := range [][2]string{
		{"user-agent", strings.Replace(w.key, "_", "%5F", 1)}, {"user-agent", strings.Replace(w.key, "_", "%255f", 2) + "%zz"}, {"cookie", "a=" + wrapped},
		{"x-note", strings.Replace(w.key, "_", `\u005f`, 1)}, {":method", w.key}, {":path", "/v1/" + strings.Replace(w.key, "_", "%5F", 1) + "/%zz"},
		{":path", "/v1/chat/completions?a=" + wrapped},
	} {
		m := w.chat("small")
		m.headers = append(slices.DeleteFunc(m.headers, func(x [2]string) bool { return x[0] == h[0] }), h)
		before := len(w.entries())
		answer, pieces := ok()
		out := w.play(t.Context(), m, answer, pieces)
		entries := w.entries()[before:]
		if len(entries) == 0 || out.err != nil {
			t.Errorf("%s: %d entries, %v", h[0], len(entries), out.err)
		}
		for _, e := range entries {
			if d, ok := e.val.(audit.Decided); ok && (len(d.Reasons) != 1 || d.Reasons[0].Code != "misplaced_credential") {
				t.Errorf("%s: the reasons are %v", h[0], d.Reasons)
			}
			if strings.Contains(e.json, w.key[12:40]) || strings.Contains(e.json, wrapped[20:60]) {
				t.Errorf("%s: the entry has the key", h[0])
			}
		}
	}
}
