package verdict_test

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/verdict"
)

var noon = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC) // a Wednesday

// world is one org, one caller and one request, which are allowed as they are.
type world struct {
	t       testing.TB
	org     verdict.Org
	caller  identity.Caller
	request verdict.Request
	limiter *counter
}

func newWorld(t testing.TB, policies ...string) *world {
	t.Helper()
	p := provider.Provider{
		ID: "prov_one", OrgID: "org_1", Name: "one", Kind: "openai", BaseURL: "http://127.0.0.1:1/v1",
		Models: []string{"small", "big-*"}, Credential: provider.NewSecret("sk-one"), HasCredential: true,
	}
	p.Cluster = provider.ClusterName(p)
	providers, err := provider.NewRegistry([]provider.Provider{p}, policy.Matches)
	if err != nil {
		t.Fatal(err)
	}
	var ps []policy.Policy
	for i, doc := range policies {
		ps = append(ps, policy.Policy{ID: "pol_" + strings.Repeat("z", i/26) + string(rune('a'+i%26)), OrgID: "org_1", Version: 1, Document: []byte(doc)})
	}
	bundle, err := policy.Compile(t.Context(), ps)
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{left: 1 << 30}
	return &world{
		t: t, limiter: c,
		org: verdict.Org{ID: "org_1", Tier: "pro", DigestKey: []byte("digest"), Policies: bundle, Providers: providers, Limiter: c},
		caller: identity.Caller{
			Agent: identity.Agent{ID: "ag_1", OrgID: "org_1", Name: "bot", Team: "support", Environment: "prod", Tier: "gold", Status: identity.Active,
				AllowedModels: []string{"small", "big-*"}, Metadata: identity.Metadata{"region": "eu"}, Fingerprint: "sha256:feed"},
			Key: identity.Key{ID: "key_1", Kind: identity.KindKey, OrgID: "org_1", AgentID: "ag_1", Scopes: []string{"chat:completions", "models"}},
		},
		request: verdict.Request{
			ID: "req-1", Mode: "gateway", Method: "POST", Path: "/v1/chat/completions", Host: "gateway.test", ContentType: "application/json",
			ContentLength: -1, UserAgent: "curl/8", ClientIP: "203.0.113.9", MaxBody: 1 << 20, ReadsAnswer: true, Time: noon,
			Body: []byte(`{"model":"small","messages":[{"role":"user","content":"hello"}]}`),
		},
	}
}

// counter is a limiter that admits a number of requests and stores its calls.
type counter struct {
	left               int
	err                error
	reserved, released int
}

func (c *counter) Reserve(_ context.Context, _, _ string, limits []budget.Limit) (budget.Result, error) {
	if c.err != nil {
		return budget.Result{}, c.err
	}
	if c.left == 0 {
		return budget.Result{Limit: limits[0].Max, RetryAfter: 20 * time.Second}, nil
	}
	c.left--
	c.reserved++
	return budget.Result{OK: true, Limit: limits[0].Max}, nil
}

func (c *counter) Full(limits []budget.Limit) (budget.Result, bool) {
	return budget.Result{Limit: limits[0].Max, RetryAfter: 20 * time.Second}, c.left == 0
}

func (c *counter) Release(context.Context, string) { c.released++ }

func (c *counter) Recorded(string)                             {}
func (c *counter) Settle(context.Context, string, budget.Used) {}

type change func(*world)

func (w *world) judge(changes ...change) verdict.Verdict {
	x := *w
	for _, c := range changes {
		c(&x)
	}
	return x.org.Judge(x.t.Context(), x.caller, x.request)
}

func (w *world) allow(changes ...change) verdict.Verdict {
	w.t.Helper()
	v := w.judge(changes...)
	if !v.Allowed() || v.Rejection() != nil {
		w.t.Errorf("rejected: %+v %v", v.Rejection(), v.Err)
	}
	return v
}

// deny requires that code and status, and nothing that could be enforced.
func (w *world) deny(status int, code string, changes ...change) verdict.Verdict {
	w.t.Helper()
	v := w.judge(changes...)
	e := v.Rejection()
	switch {
	case v.Allowed() || e == nil:
		w.t.Fatalf("allowed, want %s", code)
	case e.Code != code || e.Status != status || e.Message == "":
		w.t.Errorf("%d %s %q, want %d %s", e.Status, e.Code, e.Message, status, code)
	}
	if v.Forward.Cluster != "" || v.Forward.Set != nil || v.Local != nil {
		w.t.Errorf("%s: a rejected request has somewhere to go: %+v", code, v.Forward)
	}
	return v
}

func body(s string) change { return func(w *world) { w.request.Body = []byte(s) } }
func path(s string) change { return func(w *world) { w.request.Path = s } }
func scopes(s ...string) change {
	return func(w *world) { w.caller.Key.Scopes = s }
}

func TestJudge(t *testing.T) {
	w := newWorld(t)
	v := w.allow()
	if v.Provider.Name != "one" || v.Forward.Cluster != v.Provider.Cluster || string(v.Call.Body) != string(w.request.Body) || !v.Time.Equal(noon) {
		t.Errorf("%+v", v)
	}
	if !strings.HasPrefix(v.Digest, "hmac-sha256:") || v.ForwardedDigest != "" {
		t.Errorf("digests %q, %q", v.Digest, v.ForwardedDigest)
	}

	// parse
	w.deny(404, "unknown_endpoint", path("/v1/nothing"))
	w.deny(400, "invalid_json", body(""))
	w.deny(400, "repeated_field", body(`{"model":"small","model":"big-1","messages":[]}`))
	w.deny(413, "request_too_large", func(w *world) { w.request.MaxBody = 10 })
	w.deny(413, "request_too_large", func(w *world) { w.request.ContentLength = 1 << 21 })
	w.deny(415, "unsupported_encoding", func(w *world) { w.request.Encodings = []string{"compress"} })
	secret, _, err := identity.Mint(identity.AgentKey, strings.NewReader(strings.Repeat("x", 100)))
	if err != nil {
		t.Fatal(err)
	}
	w.deny(400, "misplaced_credential", body(`{"model":"small","messages":[{"role":"user","content":"`+secret+`"}]}`))

	// decide
	w.deny(403, "scope_missing", scopes("embeddings"))
	w.deny(403, "model_not_allowed", func(w *world) { w.caller.Agent.AllowedModels = []string{"other"} })
	w.deny(404, "model_not_found", body(`{"model":"unheard-of","messages":[]}`))
	w.deny(403, "agent_suspended", func(w *world) { w.caller.Agent.Status = identity.Suspended })
	w.deny(401, "key_revoked", func(w *world) { w.caller.Key.RevokedAt = noon })
	w.deny(401, "key_expired", func(w *world) { w.caller.Key.ExpiresAt = noon }) // the instant itself is too late
	w.allow(func(w *world) { w.caller.Key.ExpiresAt = noon.Add(time.Microsecond) })
	w.deny(401, "key_revoked", func(w *world) { w.request.Cut = "key_revoked" })
	w.deny(403, "agent_suspended", func(w *world) { w.request.Cut = "agent_suspended" })
	w.deny(503, "shutting_down", func(w *world) { w.request.Cut = "shutdown" })
	w.deny(503, "identity_unavailable", func(w *world) { w.org.ID = "org_2" })
	w.deny(503, "policy_unavailable", func(w *world) { w.org.Policies = nil })
	w.deny(503, "policy_unavailable", func(w *world) { w.org.Providers = nil })
	w.deny(503, "policy_error", func(w *world) { w.org.Policies = new(policy.Bundle) })
	w.deny(403, "agent_inactive", func(w *world) { w.caller = identity.Caller{} })
}

// What is answered here goes to no provider, and is evaluated all the same.
func TestModels(t *testing.T) {
	w := newWorld(t)
	list := func(w *world) {
		w.request.Method, w.request.Path, w.request.Body, w.request.ContentType = "GET", "/v1/models", nil, ""
	}
	one := func(name string) change {
		return func(w *world) { list(w); w.request.Path = "/v1/models/" + name }
	}
	if v := w.allow(list); !strings.Contains(string(v.Local), `"small"`) || v.Forward.Cluster != "" || v.Provider.Name != "" {
		t.Errorf("%s %+v", v.Local, v.Forward)
	}
	if v := w.allow(one("big-9")); !strings.Contains(string(v.Local), `"big-9"`) {
		t.Errorf("%s", v.Local)
	}
	w.deny(404, "model_not_found", one("unheard-of"))
	w.deny(404, "model_not_found", one("big-9"), func(w *world) { w.caller.Key.AllowedModels = []string{"small"} })
	w.deny(403, "scope_missing", list, scopes("chat:completions"))
}

func TestLimits(t *testing.T) {
	w := newWorld(t, `{"name":"p","effect":"allow","conditions":{},"limits":{"rpm":2}}`)
	w.limiter.left = 2
	for range 2 {
		if v := w.allow(); !v.Reserved || len(v.Counts) != 1 || !v.Taken.OK {
			t.Errorf("%+v", v.Counts)
		}
	}
	v := w.deny(http.StatusTooManyRequests, "rate_limit_exceeded")
	if v.Reserved || v.Taken.Limit != 2 || v.Rejection().RetryAfter != 20*time.Second {
		t.Errorf("%+v", v)
	}
	w.limiter.left = 1
	w.deny(503, "limits_unavailable", func(w *world) { w.org.Limiter = nil })
	w.limiter.err = errors.New("the store is away")
	if v := w.deny(503, "limits_unavailable"); v.Decision.Err == nil || v.Decision.Effect != policy.Deny {
		t.Errorf("%+v", v.Decision)
	}
	if w.limiter.reserved != 2 {
		t.Errorf("%d reservations", w.limiter.reserved)
	}
}

// A phase that fails leaves no decision, and keeps the results of earlier phases.
func TestPhaseFails(t *testing.T) {
	w := newWorld(t)
	for _, phase := range []string{"parse", "decide", ""} {
		for name, fail := range map[string]func() error{
			"error": func() error { return errors.New("broken") },
			"panic": func() error { panic("the text of a prompt") },
		} {
			v := w.judge(func(w *world) {
				w.org.Phase = func(p string) error {
					if p == phase {
						return fail()
					}
					return nil
				}
			})
			if v.Err == nil || v.Allowed() || v.Rejection() == nil || v.Forward.Cluster != "" {
				t.Errorf("%s at %q: %+v", name, phase, v)
			}
			if strings.Contains(v.Err.Error(), "prompt") {
				t.Errorf("the panic's value is in the error: %v", v.Err)
			}
			if phase != "parse" && v.Call.Model != "small" {
				t.Errorf("%s at %q: the model was forgotten", name, phase)
			}
		}
	}
}

func TestZeroVerdictRejects(t *testing.T) {
	var v verdict.Verdict
	if v.Allowed() || v.Rejection() == nil || v.Decided(new(verdict.Org), identity.Caller{}, &verdict.Request{}).Effect != "deny" {
		t.Error("the zero Verdict allows")
	}
	for _, v := range []verdict.Verdict{
		{Effect: policy.Allow, Err: errors.New("x")},
		{Effect: policy.Allow, Refusal: verdict.Refuse(403, "x", "x")},
		{Decision: policy.Decision{Effect: policy.Allow}},
		verdict.Reject(noon, verdict.Refuse(403, "x", "x")),
	} {
		if v.Allowed() || v.Rejection() == nil {
			t.Errorf("%+v allows", v)
		}
	}
	if v := new(verdict.Org).Judge(t.Context(), identity.Caller{}, verdict.Request{}); v.Allowed() {
		t.Error("the zero Org allows")
	}
	w := newWorld(t)
	if v := new(verdict.Org).Judge(t.Context(), w.caller, w.request); v.Allowed() {
		t.Error("the zero Org allows a good request")
	}
}

// For every request, and however it fails: a limit is counted exactly if the decision
// allows. A decision allows exactly if it names where the request goes.
func TestNothingTakenUnlessAllowed(t *testing.T) {
	base := newWorld(t,
		`{"name":"a","effect":"allow","limits":{"rpm":5},"conditions":{"agent.team":"support"}}`,
		`{"name":"d","effect":"deny","conditions":{"request.tool":"shell"}}`)
	rapid.Check(t, func(t *rapid.T) {
		w := *base
		w.limiter = &counter{left: rapid.IntRange(0, 1).Draw(t, "left")}
		if rapid.IntRange(0, 9).Draw(t, "store away") == 0 {
			w.limiter.err = errors.New("away")
		}
		w.org.Limiter = w.limiter
		pick := func(name string, options ...string) string { return rapid.SampledFrom(options).Draw(t, name) }
		w.request.Method = pick("method", "POST", "POST", "POST", "GET", "")
		w.request.Path = pick("path", "/v1/chat/completions", "/v1/chat/completions", "/v1/models", "/v1/embeddings", "/", "")
		w.request.Body = []byte(pick("body", string(w.request.Body), string(w.request.Body), "", "{", `{"model":"small","messages":[],"tools":[{"type":"function","function":{"name":"shell"}}]}`))
		w.request.Cut = pick("cut", "", "", "", "key_revoked", "shutdown")
		w.caller.Agent.Team = pick("team", "support", "other")
		w.caller.Agent.Status = identity.Status(pick("status", "active", "active", "suspended", ""))
		w.caller.Key.Scopes = strings.Fields(pick("scopes", "chat:completions models", "*", ""))
		if rapid.IntRange(0, 9).Draw(t, "expired") == 0 {
			w.caller.Key.ExpiresAt = noon.Add(-1)
		}
		if rapid.IntRange(0, 9).Draw(t, "no policies") == 0 {
			w.org.Policies = nil
		}
		failing := pick("failing", "none", "none", "none", "parse", "decide", "")
		w.org.Phase = func(p string) error {
			if p == failing {
				return errors.New("broken")
			}
			return nil
		}
		v := w.org.Judge(context.Background(), w.caller, w.request)
		if got := w.limiter.reserved > 0; got && !v.Allowed() {
			t.Fatalf("a rejected request took from a limit: %+v", v.Rejection())
		}
		if v.Allowed() && v.Reserved != (w.limiter.reserved == 1) {
			t.Fatalf("reserved %v, counted %d", v.Reserved, w.limiter.reserved)
		}
		if v.Allowed() != (v.Forward.Cluster != "" || v.Local != nil) {
			t.Fatalf("allowed is %v: %+v", v.Allowed(), v.Forward)
		}
		if slices.ContainsFunc(v.Decision.Reasons, func(r policy.Reason) bool { return r.Code == "policy_denied" }) && v.Allowed() {
			t.Fatal("a deny was not obeyed")
		}
	})
}

// TestShadow: what policies in shadow would do is recorded, and changes nothing for the
// request. What they count is counted apart.
func TestShadow(t *testing.T) {
	w := newWorld(t,
		`{"name":"tries a deny","effect":"deny","state":"shadow","conditions":{"request.model":"small"}}`,
		`{"name":"tries a limit","effect":"allow","state":"shadow","conditions":{"agent.team":"support"},"limits":{"rpm":7}}`,
		`{"name":"off","effect":"deny","state":"disabled","conditions":{}}`)
	v := w.allow()
	d := readBack(t, w, v)
	if d.Effect != "allow" || d.ShadowEffect != "deny" || len(d.ShadowReasons) != 1 || d.ShadowReasons[0] != (audit.Reason{Code: "policy_denied", Message: d.ShadowReasons[0].Message, PolicyID: "pol_a"}) ||
		!slices.Equal(d.ShadowPolicyIDs, []string{"pol_a"}) || len(d.PolicyIDs) > 0 {
		t.Errorf("%+v", d)
	}
	if w.limiter.reserved != 0 {
		t.Errorf("%d limits were taken for what is denied in shadow", w.limiter.reserved)
	}
	big := body(`{"model":"big-1","messages":[]}`)
	v = w.allow(big)
	if d := readBack(t, w, v); d.ShadowEffect != "allow" || len(d.Limits) != 0 || w.limiter.reserved != 1 || v.Reserved || len(v.ShadowIDs) != 1 {
		t.Errorf("%d reserved, %+v", w.limiter.reserved, d)
	}
	w.limiter.left = 0
	v = w.allow(big)
	if len(v.ShadowIDs) != 0 {
		t.Errorf("%v is given back, and was not taken", v.ShadowIDs)
	}
	if d := readBack(t, w, v); d.Effect != "allow" || d.ShadowEffect != "deny" || len(d.ShadowReasons) != 1 || d.ShadowReasons[0].Code != "rate_limit_exceeded" || d.ShadowReasons[0].PolicyID != "pol_b" {
		t.Errorf("%+v", d)
	}
	w.limiter.left, w.limiter.err = 1, errors.New("away")
	if d := readBack(t, w, w.allow(big)); d.Effect != "allow" || d.ShadowEffect != "deny" || d.ShadowReasons[0].Code != "limits_unavailable" {
		t.Errorf("%+v", d)
	}
	// A panic of the counter is no reason to reject either.
	w.org.Limiter = panics{}
	if d := readBack(t, w, w.allow(big)); d.Effect != "allow" || d.ShadowEffect != "deny" || d.ShadowReasons[0].Code != "policy_error" {
		t.Errorf("%+v", d)
	}
	// Without any in shadow there is nothing to record.
	if d := readBack(t, w, newWorld(t).allow()); d.ShadowEffect != "" {
		t.Errorf("%+v", d)
	}
}

type panics struct{ verdict.Limiter }

func (panics) Reserve(context.Context, string, string, []budget.Limit) (budget.Result, error) {
	panic("counting")
}

// A key in a body is rejected in every encoding that the provider would decode. No text of the
// client brings one into an entry.
func TestEncodedKeys(t *testing.T) {
	w := newWorld(t)
	key, _, err := identity.Mint(identity.AgentKey, strings.NewReader(strings.Repeat("k", 32)))
	if err != nil {
		t.Fatal(err)
	}
	coded := base64.StdEncoding.EncodeToString([]byte("export KEY=" + key + "\n"))
	escaped := strings.Replace(key, "_", "%5F", 1)
	for _, text := range []string{key, strings.Replace(key, "_", `\u005f`, 1), escaped, coded, coded[:76] + `\n` + coded[76:]} {
		w.request.Body = []byte(`{"model":"small","messages":[{"role":"user","content":"` + text + `"}]}`)
		v := w.judge()
		if refused := v.Rejection(); refused == nil || refused.Code != "misplaced_credential" {
			t.Errorf("%.20s: %v", text, refused)
		}
	}
	r := &w.request
	r.Method, r.Host, r.Path, r.UserAgent, r.Session = key, escaped, "/v1/"+escaped+"/%zz", coded, key
	d := new(verdict.Verdict).Decided(&w.org, w.caller, r)
	if want := []string{"method", "host", "path", "user_agent", "session_id"}; !slices.Equal(d.Clipped, want) {
		t.Errorf("clipped: %v, want %v", d.Clipped, want)
	}
}
