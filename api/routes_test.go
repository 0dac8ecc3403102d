package api_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/api"
	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/audit/signer"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// world is the API on a real database, with an org and a key of each role.
type world struct {
	t      *testing.T
	server *api.Server
	chain  *audit.Chain
	db     *store.DB
	org    string
	keys   map[identity.Role]string
	sealer *provider.Sealer
	signer evidence.Signer // of documents and checkpoints
	logs   *safeBuffer

	recorded uint64 // entries of record
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func serve(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, db: storetest.Open(t), keys: map[identity.Role]string{}, logs: &safeBuffer{}}
	sealer, err := provider.NewSealer([]string{"cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="})
	if err != nil {
		t.Fatal(err)
	}
	w.sealer = sealer
	keys, err := audit.ParseKeys([]string{"1 " + strings.Repeat("ab", 32)})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if w.chain, err = audit.NewChain(audit.ChainConfig{DB: w.db, Keys: keys, Log: log}); err != nil {
		t.Fatal(err)
	}
	w.signer = newKey(t, signer.P256)
	if w.server, err = api.New(api.Config{DB: w.db, Chain: w.chain, Sealer: sealer, Signer: w.signer, Log: log}); err != nil {
		t.Fatal(err)
	}
	w.org = storetest.Org(t, w.db)
	for _, role := range []identity.Role{identity.Admin, identity.Auditor, identity.Reviewer} {
		w.keys[role] = w.orgKey(w.org, role)
	}
	return w
}

func (w *world) orgKey(org string, role identity.Role) string {
	w.t.Helper()
	secret, hash, err := identity.Mint(identity.OrgKey, rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	id, err := identity.NewID(identity.OrgKeyID, time.Now(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	err = w.db.InOrg(context.Background(), org, func(tx pgx.Tx) error {
		return identity.InsertOrgKey(context.Background(), tx, identity.OrgKeyRecord{ID: id, OrgID: org, Name: "k", Role: role, Hash: hash, CreatedAt: time.Now()})
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return secret
}

type reply struct {
	status int
	header http.Header
	body   string
}

func (r reply) field(path ...string) any {
	var v any
	if json.Unmarshal([]byte(r.body), &v) != nil {
		return nil
	}
	for _, p := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[p]
	}
	return v
}

func (w *world) call(key, method, path, body string, headers ...string) reply {
	w.t.Helper()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	r := httptest.NewRequest(method, path, in)
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	rec := httptest.NewRecorder()
	w.server.ServeHTTP(rec, r)
	return reply{rec.Code, rec.Header(), rec.Body.String()}
}

// want sends a request as an admin, and checks the status.
func (w *world) want(status int, method, path, body string, headers ...string) reply {
	w.t.Helper()
	got := w.call(w.keys[identity.Admin], method, path, body, headers...)
	if got.status != status {
		w.t.Fatalf("%s %s: %d, want %d: %s", method, path, got.status, status, got.body)
	}
	return got
}

// TestRoutes: each row of the table rejects a request without a key and with a string that
// is not a key. It rejects a role that does not suffice, and an object of another org.
func TestRoutes(t *testing.T) {
	w := serve(t)
	other := serve2(w)
	agentKey, _, err := identity.Mint(identity.AgentKey, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stranger, _, err := identity.Mint(identity.OrgKey, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rows := api.Table()
	if len(rows) < 45 {
		t.Fatalf("%d rows", len(rows))
	}
	for _, r := range rows {
		path := strings.NewReplacer("{id}", or(other.ids[tagOf(r.Path)], "x_1"), "{key_id}", other.ids["key"], "{identity_id}", other.ids["identity"], "{session_id}", "sess_1", "{level}", "0", "{index...}", "000").Replace(r.Path)
		body := r.Example
		if body == "" && r.Method != http.MethodGet && r.Method != http.MethodDelete {
			body = "{}"
		}
		if r.Public {
			if got := w.call("", r.Method, strings.TrimSuffix(path, "{$}"), ""); got.status == 401 || got.status == 403 || got.status == 404 && !strings.Contains(path, "/tile/") {
				t.Errorf("%s %s is public and answers %d", r.Method, r.Path, got.status)
			}
			continue
		}
		if len(r.Roles) == 0 {
			t.Errorf("%s %s may be called by nobody", r.Method, r.Path)
		}
		for name, key := range map[string]string{"no key": "", "junk": "aid_org_junk", "an agent's key": agentKey, "a stranger's key": stranger} {
			got := w.call(key, r.Method, path, body)
			if got.status != 401 || got.field("error", "code") == nil || got.header.Get("X-Request-Id") == "" {
				t.Errorf("%s %s with %s: %d %s", r.Method, r.Path, name, got.status, got.body)
			}
		}
		for role, key := range w.keys {
			may := false
			for _, ok := range r.Roles {
				may = may || ok == role
			}
			if got := w.call(key, r.Method, path, body); !may && got.status != 403 {
				t.Errorf("%s %s as %s: %d %s", r.Method, r.Path, role, got.status, got.body)
			}
		}
		if strings.Contains(r.Path, "{") && !r.Unbuilt {
			if got := w.call(w.keys[identity.Admin], r.Method, path, body); got.status != 404 {
				t.Errorf("%s %s of another org: %d %s", r.Method, r.Path, got.status, got.body)
			}
		}
	}
	for _, key := range []string{agentKey, stranger} {
		if strings.Contains(w.logs.String(), key) {
			t.Error("a key is in the log")
		}
	}
}

// second is another org with one object of each kind.
type second struct{ ids map[string]string }

func serve2(w *world) second {
	w.t.Helper()
	org := storetest.Org(w.t, w.db)
	key := w.orgKey(org, identity.Admin)
	s := second{ids: map[string]string{}}
	make := func(kind, path, body string) {
		got := w.call(key, "POST", path, body)
		if got.status != 201 {
			w.t.Fatalf("%s: %d %s", path, got.status, got.body)
		}
		s.ids[kind] = got.field("id").(string)
	}
	make("agents", "/v1/agents", `{"name":"theirs"}`)
	make("key", "/v1/agents/"+s.ids["agents"]+"/keys", `{"name":"theirs","scopes":["*"]}`)
	storetest.InOrgAsOwner(w.t, org, func(tx pgx.Tx) error { return identity.GrantPrefix(w.t.Context(), tx, org, "spiffe://theirs.example") })
	make("identity", "/v1/agents/"+s.ids["agents"]+"/identities", `{"name":"theirs","scopes":["*"],"spiffe_id":"spiffe://theirs.example/bot"}`)
	make("policies", "/v1/policies", `{"name":"theirs","effect":"deny","conditions":{}}`)
	make("providers", "/v1/providers", `{"name":"theirs","kind":"openai","base_url":"https://api.openai.com/v1"}`)
	make("org-keys", "/v1/org-keys", `{"name":"theirs","role":"auditor"}`)
	make("nodes", "/v1/nodes", `{"name":"theirs"}`)
	return s
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

func tagOf(path string) string {
	parts := strings.Split(path, "/")
	if len(parts) < 3 {
		return ""
	}
	return parts[2]
}

// An agent and its keys from creation to deletion, and their audit entries.
func TestAgents(t *testing.T) {
	w := serve(t)
	made := w.want(201, "POST", "/v1/agents", `{"name":"support-bot","allowed_models":["gpt-4o"],"metadata":{"n":12345678901234567890,"pii":true}}`)
	id := made.field("id").(string)
	if !strings.HasPrefix(id, "ag_") || !strings.HasPrefix(made.field("fingerprint").(string), "sha256:") || made.header.Get("Etag") != `"1"` || !strings.Contains(made.body, "12345678901234567890") {
		t.Errorf("made: %v %s", made.header, made.body)
	}
	// A change with an older ETag is rejected, and changes nothing.
	w.want(200, "PATCH", "/v1/agents/"+id, `{"team":"support","metadata":{"pii":null}}`, "If-Match", `"1"`)
	w.want(412, "PATCH", "/v1/agents/"+id, `{"team":"x"}`, "If-Match", `"1"`)
	got := w.want(200, "GET", "/v1/agents/"+id, "")
	if got.field("team") != "support" || got.field("metadata", "pii") != nil || got.field("name") != "support-bot" {
		t.Errorf("after the patch: %s", got.body)
	}
	key := w.want(201, "POST", "/v1/agents/"+id+"/keys", `{"name":"k","scopes":["chat:completions"],"rate_limit":100,"expires_in_days":90}`)
	secret := key.field("key").(string)
	if kind, _, err := identity.Parse(secret); err != nil || kind != identity.AgentKey {
		t.Errorf("the key: %v", err)
	}
	rotated := w.want(201, "POST", "/v1/agents/"+id+"/keys/"+key.field("id").(string)+"/rotate", `{"overlap_seconds":3600}`)
	list := w.want(200, "GET", "/v1/agents/"+id+"/keys", "")
	if strings.Contains(list.body, secret) || strings.Contains(list.body, rotated.field("key").(string)) || strings.Count(list.body, `"status":"active"`) != 2 {
		t.Errorf("keys: %s", list.body)
	}
	w.want(204, "DELETE", "/v1/agents/"+id+"/keys/"+key.field("id").(string), "")
	w.want(204, "DELETE", "/v1/agents/"+id+"/keys/"+key.field("id").(string), "")
	w.want(204, "DELETE", "/v1/agents/"+id, "")
	w.want(404, "GET", "/v1/agents/"+id, "")

	logs := w.want(200, "GET", "/v1/agents/"+id+"/logs?order=asc", "")
	for _, kind := range []string{"agent.created", "agent.updated", "key.created", "key.rotated", "key.revoked", "agent.deleted"} {
		if strings.Count(logs.body, `"kind":"`+kind+`"`) < 1 {
			t.Errorf("the record does not say %s: %s", kind, logs.body)
		}
	}
	for _, s := range []string{secret, rotated.field("key").(string), w.keys[identity.Admin]} {
		if strings.Contains(logs.body, s) || strings.Contains(w.logs.String(), s) {
			t.Error("a key is in the record or the log")
		}
	}
}

// An error names the field, the fix and the request's id.
func TestRefusals(t *testing.T) {
	w := serve(t)
	for _, c := range []struct {
		method, path, body string
		status             int
		field              string
	}{
		{"POST", "/v1/agents", `{}`, 422, "name"},
		{"POST", "/v1/agents", `{"name":"a","colour":"red"}`, 422, "colour"},
		{"POST", "/v1/agents", `{"name":"a","Name":"b"}`, 422, "Name"},
		{"POST", "/v1/agents", `{"name":7}`, 422, "name"},
		{"POST", "/v1/agents", `{"name":"a","status":"gone"}`, 422, "status"},
		{"POST", "/v1/agents", `{"name":"a","metadata":{"x":[1]}}`, 422, "metadata.x"},
		{"GET", "/v1/agents?limit=0", "", 422, "limit"},
		{"GET", "/v1/agents?limit=5&limit=6", "", 422, "limit"},
		{"GET", "/v1/agents?colour=red", "", 422, "colour"},
		{"GET", "/v1/agents?after=junk", "", 422, "after"},
		{"POST", "/v1/policies", `{"name":"p","effect":"allow","conditions":{"agent.colour":"red"}}`, 422, "conditions.agent.colour"},
		{"POST", "/v1/policies", `{"name":"p","effect":"allow","conditions":{},"limits":{"weekly_usd_cap":500}}`, 422, "limits.weekly_usd_cap"},
		{"POST", "/v1/policies", `{"name":"p","effect":"require_approval","conditions":{}}`, 422, "approval"},
		{"POST", "/v1/providers", `{"name":"p","kind":"openai","base_url":"https://user:pass@x/v1"}`, 422, "base_url"},
		{"POST", "/v1/providers", `{"name":"p","kind":"openai","base_url":"https://x/v1","headers":{"authorization":"x"}}`, 422, "headers.authorization"},
	} {
		got := w.call(w.keys[identity.Admin], c.method, c.path, c.body)
		if got.status != c.status || got.field("error", "field") != c.field || got.field("error", "request_id") != got.header.Get("X-Request-Id") || got.field("error", "message") == "" {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, got.status, got.body)
		}
		if strings.Contains(got.body, "pass@") {
			t.Errorf("%s quotes a password: %s", c.path, got.body)
		}
	}
	for _, c := range []struct {
		method, path string
		status       int
	}{{"GET", "/nothing", 404}, {"GET", "/v1/agents/", 404}, {"GET", "//v1/agents", 404}, {"PUT", "/v1/agents", 405}, {"GET", "/v1/approvals", 501}} {
		if got := w.call(w.keys[identity.Admin], c.method, c.path, ""); got.status != c.status || got.field("error", "code") == nil {
			t.Errorf("%s %s: %d %s", c.method, c.path, got.status, got.body)
		}
	}
}

// A repeated POST is executed once, also if many are sent at the same moment.
func TestIdempotency(t *testing.T) {
	w := serve(t)
	var wg sync.WaitGroup
	bodies := make([]reply, 8)
	for i := range bodies {
		wg.Go(func() {
			bodies[i] = w.call(w.keys[identity.Admin], "POST", "/v1/org-keys", `{"name":"ci","role":"auditor"}`, "Idempotency-Key", "once")
		})
	}
	wg.Wait()
	replayed := 0
	for _, b := range bodies {
		if b.status != 201 || b.field("key") != bodies[0].field("key") {
			t.Errorf("%d %s", b.status, b.body)
		}
		if b.header.Get("Idempotency-Replayed") == "true" {
			replayed++
		}
	}
	if replayed != len(bodies)-1 {
		t.Errorf("%d were replays", replayed)
	}
	if got := w.want(200, "GET", "/v1/org-keys", ""); strings.Count(got.body, `"name":"ci"`) != 1 {
		t.Errorf("made more than one: %s", got.body)
	}
	w.want(422, "POST", "/v1/org-keys", `{"name":"other","role":"auditor"}`, "Idempotency-Key", "once")
}

// A client reads all pages without a duplicate or a gap while others add objects.
func TestPages(t *testing.T) {
	w := serve(t)
	want := map[string]bool{}
	for i := range 12 {
		want[w.want(201, "POST", "/v1/agents", fmt.Sprintf(`{"name":"a%d"}`, i)).field("id").(string)] = true
	}
	seen := map[string]bool{}
	for after := ""; ; {
		page := w.want(200, "GET", "/v1/agents?limit=5"+after, "")
		for _, v := range page.field("data").([]any) {
			id := v.(map[string]any)["id"].(string)
			if seen[id] {
				t.Errorf("%s twice", id)
			}
			seen[id] = true
		}
		w.want(201, "POST", "/v1/agents", `{"name":"later"}`)
		if len(seen) > 40 || page.field("has_more") != true {
			break
		}
		after = "&after=" + page.field("next").(string)
	}
	for id := range want {
		if !seen[id] {
			t.Errorf("%s is missing", id)
		}
	}
}

// A credential is never in a response, and a new address removes it.
func TestProviders(t *testing.T) {
	w := serve(t)
	made := w.want(201, "POST", "/v1/providers", `{"name":"openai","kind":"openai","base_url":"https://api.openai.com/v1","models":["gpt-4o","gpt-*"]}`)
	id := made.field("id").(string)
	if got := w.want(200, "PUT", "/v1/providers/"+id+"/credential", `{"secret":"sk-canary-0123456789"}`); got.field("has_credential") != true {
		t.Error(got.body)
	}
	w.want(409, "POST", "/v1/providers", `{"name":"openai","kind":"openai","base_url":"https://api.openai.com/v1"}`)
	if got := w.want(200, "GET", "/v1/models", ""); !strings.Contains(got.body, "gpt-4o") {
		t.Error(got.body)
	}
	moved := w.want(200, "PATCH", "/v1/providers/"+id, `{"base_url":"https://elsewhere.example/v1"}`)
	if moved.field("has_credential") != false || !strings.Contains(moved.body, "warnings") {
		t.Error(moved.body)
	}
	// A control plane without the key of the credential shows that in the response.
	w.want(200, "PUT", "/v1/providers/"+id+"/credential", `{"secret":"sk-canary-0123456789"}`)
	plain := w.want(201, "POST", "/v1/providers", `{"name":"plain","kind":"openai","base_url":"http://api.example.com/v1","models":["plain"]}`)
	if !strings.Contains(plain.body, "unencrypted") || !strings.Contains(w.want(200, "GET", "/v1/providers/"+plain.field("id").(string), "").body, "unencrypted") {
		t.Errorf("no word of plain http: %s", plain.body)
	}
	w.want(204, "DELETE", "/v1/providers/"+plain.field("id").(string), "")
	if got := w.want(200, "GET", "/v1/providers/"+id, ""); strings.Contains(got.body, "warnings") {
		t.Error(got.body)
	}
	if err := w.sealer.Replace([]string{"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="}); err != nil {
		t.Fatal(err)
	}
	if got := w.want(200, "GET", "/v1/providers/"+id, ""); !strings.Contains(got.body, "fernet-keys") {
		t.Error(got.body)
	}
	for _, path := range []string{"/v1/providers", "/v1/providers/" + id, "/v1/audit/entries?limit=100"} {
		if got := w.want(200, "GET", path, ""); strings.Contains(got.body, "sk-canary") {
			t.Errorf("%s shows the credential", path)
		}
	}
	if strings.Contains(w.logs.String(), "sk-canary") {
		t.Error("the credential is in the log")
	}
	w.want(204, "DELETE", "/v1/providers/"+id, "")
}

func TestPolicies(t *testing.T) {
	w := serve(t)
	made := w.want(201, "POST", "/v1/policies", `{"name":"p","effect":"allow","conditions":{"agent.team":"support","request.hour_utc":{"between":[13,23]}},"limits":{"rpm":60}}`)
	id := made.field("id").(string)
	got := w.want(200, "PATCH", "/v1/policies/"+id, `{"limits":{"rpm":120},"conditions":{"request.hour_utc":null}}`)
	if got.field("limits", "rpm") != 120.0 || got.field("conditions", "request.hour_utc") != nil || got.field("conditions", "agent.team") != "support" {
		t.Error(got.body)
	}
	w.want(422, "PATCH", "/v1/policies/"+id, `{"conditions":{"agent.team":7}}`)
	w.want(409, "POST", "/v1/policies", `{"name":"p","effect":"deny","conditions":{}}`)
	if r := w.want(200, "GET", "/v1/policies/"+id+"/rego", ""); !strings.Contains(r.field("rego").(string), `input.agent.team == "support"`) || r.field("version") != 2.0 {
		t.Error(r.body)
	}
	w.want(204, "DELETE", "/v1/policies/"+id, "")
	w.want(404, "GET", "/v1/policies/"+id, "")
	w.want(404, "GET", "/v1/policies/"+id+"/rego", "")

	// Who changed what, and when; also after the policy is gone, page by page.
	var changes []string
	for after := ""; ; {
		r := w.want(200, "GET", "/v1/policies/"+id+"/versions?limit=2"+after, "")
		for _, v := range r.field("data").([]any) {
			v := v.(map[string]any)
			changes = append(changes, fmt.Sprint(v["version"], v["change"], v["document"].(map[string]any)["limits"]))
			if by, ok := v["changed_by"].(map[string]any); !ok || by["kind"] != "org_key" || by["role"] != "admin" || v["changed_at"] == "" {
				t.Errorf("%v", v)
			}
		}
		if r.field("has_more") == false {
			break
		}
		after = "&after=" + r.field("next").(string)
	}
	if want := []string{"3deletedmap[rpm:120]", "2updatedmap[rpm:120]", "1createdmap[rpm:60]"}; !slices.Equal(changes, want) {
		t.Errorf("%q", changes)
	}
	w.want(404, "GET", "/v1/policies/pol_none/versions", "")
}

// The last admin key cannot be revoked.
func TestLastAdmin(t *testing.T) {
	w := serve(t)
	id := w.want(200, "GET", "/v1/me", "").field("key_id").(string)
	w.want(409, "DELETE", "/v1/org-keys/"+id, "")
	w.want(201, "POST", "/v1/org-keys", `{"name":"next","role":"admin"}`)
	w.want(204, "DELETE", "/v1/org-keys/"+id, "")
	if got := w.call(w.keys[identity.Admin], "GET", "/v1/me", ""); got.status != 401 {
		t.Errorf("revoked: %d", got.status)
	}
}

// Policies compare names and people read them: names are normalized, and invisible
// characters are rejected.
func TestNamesHaveOneSpelling(t *testing.T) {
	w := serve(t)
	for _, name := range []string{"a\u202eb", "a\u200bb", "a\u0085b", " a", "a ", "a  b", "a\u00a0b", "a\tb", "\ue000"} {
		b, _ := json.Marshal(map[string]any{"name": "x" + name + "x", "team": name})
		if r := w.call(w.keys[identity.Admin], "POST", "/v1/agents", string(b)); r.status != 422 || r.field("error", "field") == nil {
			t.Errorf("%q: %d %s", name, r.status, r.body)
		}
	}
	r := w.want(201, "POST", "/v1/agents", `{"name":"bo\u0308t","team":"e\u0301quipe"}`)
	if r.field("name") != "b\u00f6t" || r.field("team") != "\u00e9quipe" {
		t.Errorf("not in NFC: %s", r.body)
	}
}

// A reader of the list can join a completion to its decision: decided_writer and decided_seq
// are the decision's writer and writer_seq. The same number is in the caller's receipt.
func TestCompletionJoinsItsDecision(t *testing.T) {
	w := serve(t)
	agent := w.want(201, "POST", "/v1/agents", `{"name":"a"}`).field("id").(string)
	at := time.Now()
	batch := func(writer string, seqs []uint64, entries ...audit.Entry) {
		t.Helper()
		b := audit.Batch{Org: w.org, Node: "node_1", Writer: writer}
		prev := uint64(0)
		for i, e := range entries {
			b.Records = append(b.Records, audit.Record{Seq: seqs[i], Prev: prev, Org: w.org, Entry: audit.Stamp(e, w.org, writer, at).Encode()})
			prev = seqs[i]
		}
		if _, err := w.chain.Append(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	// Writers skip numbers, so that no writer_seq is the seq. The second completion is of another process.
	batch("w_one", []uint64{7, 9, 11}, audit.Decided{Time: at, RequestID: "r1", AgentID: agent, Effect: "allow"},
		audit.Decided{Time: at, RequestID: "r2", AgentID: agent, Effect: "allow"},
		audit.Settled{Time: at, RequestID: "r1", AgentID: agent, DecidedSeq: 7, Outcome: "completed"})
	batch("w_two", []uint64{5}, audit.Settled{Time: at, RequestID: "r2", AgentID: agent, DecidedWriter: "w_one", DecidedSeq: 9, Outcome: "unknown"})

	decisions, completions := map[string]string{}, 0
	list := w.want(200, "GET", "/v1/agents/"+agent+"/logs?limit=100", "").field("data").([]any)
	place := func(writer, seq any) string { return fmt.Sprint(writer, "/", seq) }
	for _, row := range list {
		e := row.(map[string]any)
		if e["kind"] == "request.decided" {
			decisions[place(e["writer"], e["writer_seq"])] = e["request_id"].(string)
		}
	}
	for _, row := range list {
		e := row.(map[string]any)
		if e["kind"] != "request.settled" {
			continue
		}
		completions++
		writer := e["decided_writer"]
		if writer == nil || writer == "" {
			writer = e["writer"]
		}
		if got := decisions[place(writer, e["decided_seq"])]; got != e["request_id"] {
			t.Errorf("the completion %v joins %q in %v", e, got, decisions)
		}
	}
	if len(decisions) != 2 || completions != 2 {
		t.Errorf("%d decisions, %d completions: %v", len(decisions), completions, list)
	}
}

// A node cannot give its entry another position in the list than the chain's.
func TestEntriesHaveTheirPosition(t *testing.T) {
	w := serve(t)
	agent := w.want(201, "POST", "/v1/agents", `{"name":"a"}`).field("id").(string)
	b := audit.Batch{Org: w.org, Node: "node_1", Writer: "w_one"}
	for i, extra := range []string{`"seq":1`, `"writer_seq":99`, `"mac":"00"`, `"appended_at":"2001-01-01T00:00:00Z"`, `"seq":null`} {
		e := audit.Stamp(audit.Decided{Time: time.Now(), RequestID: "r", AgentID: agent, Effect: "allow"}, w.org, "w_one", time.Now()).Encode()
		e = append(e[:len(e)-1:len(e)-1], ","+extra+"}"...)
		b.Records = append(b.Records, audit.Record{Seq: uint64(i) + 7, Prev: uint64(max(0, i+6)) * uint64(min(i, 1)), Org: w.org, Entry: e})
	}
	if _, err := w.chain.Append(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	list := w.want(200, "GET", "/v1/agents/"+agent+"/logs?order=asc&kind=request.decided", "")
	rows := list.field("data").([]any)
	if len(rows) != len(b.Records) {
		t.Fatal(list.body)
	}
	for i, row := range rows {
		e := row.(map[string]any)
		if e["writer_seq"] != float64(i+7) || e["entry_base64"] == nil || e["mac"] != nil {
			t.Errorf("%v", e)
		}
	}
}

// Two agents may have one name, and policies can select by it. So the response has a warning.
func TestSameName(t *testing.T) {
	w := serve(t)
	create := func(name string) (id string, warnings any) {
		t.Helper()
		r := w.want(201, "POST", "/v1/agents", `{"name":"`+name+`"}`)
		return r.field("id").(string), r.field("warnings")
	}
	first, warnings := create("bo\u0308t")
	if warnings != nil {
		t.Errorf("the first: %v", warnings)
	}
	second, warnings := create("b\u00f6t")
	if !strings.Contains(fmt.Sprint(warnings), first) || strings.Contains(fmt.Sprint(warnings), second) {
		t.Errorf("the second: %v", warnings)
	}
	third, warnings := create("other")
	if warnings != nil {
		t.Errorf("another name: %v", warnings)
	}
	if r := w.want(200, "PATCH", "/v1/agents/"+third, `{"name":"böt"}`); !strings.Contains(fmt.Sprint(r.field("warnings")), first) {
		t.Errorf("renamed: %s", r.body)
	}
	if r := w.want(200, "PATCH", "/v1/agents/"+third, `{"team":"x"}`); r.field("warnings") != nil {
		t.Errorf("its name did not change: %s", r.body)
	}
	// Another org's agent is not mentioned.
	if r := serve(t).want(201, "POST", "/v1/agents", `{"name":"other"}`); r.field("warnings") != nil {
		t.Errorf("in another org: %s", r.body)
	}
}

func TestDeletionIsConditional(t *testing.T) {
	w := serve(t)
	id := w.want(201, "POST", "/v1/agents", `{"name":"a"}`).field("id").(string)
	w.want(200, "PATCH", "/v1/agents/"+id, `{"team":"x"}`)
	w.want(412, "DELETE", "/v1/agents/"+id, "", "If-Match", `"1"`)
	w.want(204, "DELETE", "/v1/agents/"+id, "", "If-Match", `"2"`)
	w.want(404, "GET", "/v1/agents/"+id, "")
	// The agent's entries and its usage stay readable.
	w.want(200, "GET", "/v1/agents/"+id+"/logs", "")
	w.want(200, "GET", "/v1/agents/"+id+"/usage", "")
	w.want(404, "GET", "/v1/agents/ag_01k0000000abcdefghjkmnpqrs/usage", "")
}

// A client's X-Request-ID is not used, since it would be recorded.
func TestRequestIDIsOurs(t *testing.T) {
	w := serve(t)
	r := w.want(201, "POST", "/v1/agents", `{"name":"a"}`, "X-Request-Id", "forged-by-the-client")
	if got := r.header.Get("X-Request-Id"); got == "" || got == "forged-by-the-client" {
		t.Errorf("the request's id is %q", got)
	}
	if logs := w.want(200, "GET", "/v1/audit/entries", ""); strings.Contains(logs.body, "forged-by-the-client") {
		t.Error("the client's id is recorded")
	}
}

// A literal with * is rejected, since it would match only itself.
func TestWildcardsInPoliciesAreRejected(t *testing.T) {
	w := serve(t)
	r := w.want(422, "POST", "/v1/policies", `{"name":"p","effect":"deny","conditions":{"request.model":"gpt-*"}}`)
	if !strings.Contains(r.body, "glob") || r.field("error", "field") != "conditions.request.model" {
		t.Errorf("%s", r.body)
	}
	w.want(422, "POST", "/v1/org-keys", `{"name":"k","role":"admin","expires_in_days":0}`)
	agent := w.want(201, "POST", "/v1/agents", `{"name":"a"}`).field("id").(string)
	w.want(422, "POST", "/v1/agents/"+agent+"/keys", `{"name":"k","scopes":["*"],"expires_in_days":0}`)
	key := w.want(201, "POST", "/v1/agents/"+agent+"/keys", `{"name":"k","scopes":["*"]}`)
	w.want(200, "GET", key.header.Get("Location"), "")
}

// Values of a provider's headers and query may be secrets. No role can read them. A PATCH
// keeps the values that it does not name. A new address removes them.
func TestHeaderValuesAreNotShown(t *testing.T) {
	w := serve(t)
	const header, query = "glpat-canary-0123", "sig-canary-4567"
	made := w.want(201, "POST", "/v1/providers", `{"name":"p","kind":"openai","base_url":"https://a.example/v1","models":["m"],
		"headers":{"private-token":"`+header+`","x-team":"blue"},"settings":{"query":{"sig":"`+query+`","api-version":"2026-01-01"}}}`)
	path := "/v1/providers/" + made.field("id").(string)
	patch := func(body string) reply { t.Helper(); return w.want(200, "PATCH", path, body) }

	// The body of a response can be sent back.
	read := w.want(200, "GET", path, "")
	if read.field("headers", "private-token") != "[redacted]" || read.field("settings", "query", "sig") != "[redacted]" || read.field("settings", "query", "api-version") != "2026-01-01" {
		t.Error(read.body)
	}
	if got := patch(`{"headers":{"private-token":"[redacted]"},"settings":{"query":{"sig":"[redacted]"}}}`); got.field("version") != 1. {
		t.Error("nothing was changed: " + got.body)
	}
	stored := func() map[string]string {
		t.Helper()
		var p provider.Provider
		err := w.db.InOrg(t.Context(), w.org, func(tx pgx.Tx) (err error) {
			p, err = provider.ByID(t.Context(), tx, made.field("id").(string))
			return err
		})
		if err == nil {
			p, err = p.OpenHeaders(w.sealer)
		}
		if err != nil {
			t.Fatal(err)
		}
		return p.HeaderValues()
	}
	patch(`{"models":["m","n"],"headers":{"x-team":"red"}}`)
	if got := stored(); got["private-token"] != header || got["x-team"] != "red" {
		t.Error(got)
	}
	entries := w.want(200, "GET", "/v1/audit/entries?limit=100", "")
	if !strings.Contains(entries.body, `\"fields\":[\"headers\",\"models\"]`) {
		t.Error("the record does not say that a value was changed: " + entries.body)
	}
	patch(`{"headers":{"x-team":null}}`)
	if got := stored(); len(got) != 1 {
		t.Error(got)
	}
	w.want(422, "PATCH", path, `{"headers":{"x-new":"[redacted]"}}`)
	w.want(422, "POST", "/v1/providers", `{"name":"q","kind":"openai","base_url":"https://a.example/v1","headers":{"x-new":"[redacted]"}}`)
	w.want(422, "PATCH", path, `{"settings":{"query":{"new":"[redacted]"}}}`)

	// Neither the API nor a role of the database shows a value, with any name.
	for role, key := range w.keys {
		for _, path := range []string{"/v1/providers", path, "/v1/audit/entries?limit=100"} {
			if got := w.call(key, "GET", path, ""); strings.Contains(got.body, "canary") || got.status == 500 {
				t.Errorf("%s, %s: %s", role, path, got.body)
			}
		}
	}
	err := w.db.InOrg(t.Context(), w.org, func(tx pgx.Tx) error {
		var row string
		err := tx.QueryRow(t.Context(), `SELECT headers::text FROM providers`).Scan(&row)
		if strings.Contains(row, "canary") || !strings.Contains(row, "private-token") {
			t.Error(row)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}

	moved := patch(`{"base_url":"https://evil.example/v1"}`)
	if got := stored(); len(got) != 0 || !strings.Contains(moved.body, "private-token, sig") || strings.Contains(moved.body, `"sig":"`) {
		t.Error(got, moved.body)
	}
	if strings.Contains(w.logs.String(), "canary") {
		t.Error("a value is in the log")
	}
}

// Reading pages while others create objects misses nothing. An object comes after those of
// transactions that began later and committed earlier.
func TestListsMissNoCommit(t *testing.T) {
	w := serve(t)
	var seen []string
	walk := func(after string) (next string) {
		page := w.want(200, "GET", "/v1/agents?limit=1"+after, "")
		for _, a := range page.field("data").([]any) {
			seen = append(seen, a.(map[string]any)["name"].(string))
		}
		if n, ok := page.field("next").(string); ok {
			next = "&after=" + n
		}
		return next
	}
	next, late := "", make(chan reply, 2)
	err := w.db.InOrg(t.Context(), w.org, func(tx pgx.Tx) error { // open until this function returns
		id, err := identity.NewID(identity.AgentID, time.Now().Add(-time.Minute), rand.Reader)
		if err != nil {
			return err
		}
		err = identity.InsertAgent(t.Context(), tx, identity.Agent{ID: id, OrgID: w.org, Name: "early", Status: identity.Active, Version: 1, CreatedAt: time.Now(), UpdatedAt: time.Now()})
		if err != nil {
			return err
		}
		for _, name := range []string{"late-1", "late-2"} {
			go func() { late <- w.call(w.keys[identity.Admin], "POST", "/v1/agents", `{"name":"`+name+`"}`) }()
		}
		// The others commit first, or wait in Postgres for this transaction.
		for waiting := 0; waiting == 0 && len(late) < 2; {
			err := tx.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))`).Scan(&waiting)
			if err != nil {
				return err
			}
		}
		next = walk("")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if r := <-late; r.status != 201 {
			t.Fatalf("%d %s", r.status, r.body)
		}
	}
	for {
		if next = walk(next); next == "" || len(seen) > 9 {
			break
		}
	}
	for _, name := range []string{"early", "late-1", "late-2"} {
		if !slices.Contains(seen, name) {
			t.Errorf("%s is missing: the walk saw %v", name, seen)
		}
	}
}

// A created object is at its Location, and can be changed again.
func TestLocations(t *testing.T) {
	w := serve(t)
	agent := w.want(201, "POST", "/v1/agents", `{"name":"a","metadata":{"n":1e60}}`)
	paths := map[string]string{
		"/v1/agents": `{"name":"b"}`, agent.header.Get("Location") + "/keys": `{"name":"k","scopes":["*"]}`,
		"/v1/policies": `{"name":"p","effect":"deny","conditions":{}}`, "/v1/providers": `{"name":"p","kind":"openai","base_url":"https://api.example.com/v1"}`,
		"/v1/org-keys": `{"name":"k","role":"auditor"}`, "/v1/nodes": `{"name":"n"}`,
	}
	for path, body := range paths {
		made := w.want(201, "POST", path, body)
		if got := w.want(200, "GET", made.header.Get("Location"), ""); got.field("id") != made.field("id") {
			t.Errorf("%s: %s", path, got.body)
		}
	}
	w.want(200, "PATCH", agent.header.Get("Location"), `{"team":"x"}`)
	for _, n := range []string{"1e64", "1e300", "1e-300000", "0.1e-70"} {
		w.want(422, "POST", "/v1/agents", `{"name":"a","metadata":{"n":`+n+`}}`)
	}
}

// A request that does not fit the description is rejected. It has null for a value, an
// empty parameter, two fields that exclude each other, or a method of another path.
func TestDescriptionIsEnforced(t *testing.T) {
	w := serve(t)
	for _, c := range []struct{ method, path, body, field string }{
		{"POST", "/v1/agents", `{"name":"a","team":null}`, "team"},
		{"POST", "/v1/agents", `{"name":"a","allowed_models":[null]}`, "allowed_models[0]"},
		{"POST", "/v1/agents", `null`, ""},
		{"POST", "/v1/providers", `{"name":"p","kind":"openai","base_url":"https://x.example/v1","settings":null}`, "settings"},
		{"GET", "/v1/agents?team=", "", "team"},
		{"GET", "/v1/audit/entries?until=", "", "until"},
		{"GET", "/v1/agents?after=ag_01k0000000abcdefghjkmnpqrs", "", "after"},
		{"POST", "/v1/agents/ag_1/keys/key_1/rotate", `{"overlap_hours":1,"overlap_seconds":1}`, "overlap_hours"},
	} {
		r := w.want(422, c.method, c.path, c.body)
		if field, _ := r.field("error", "field").(string); field != c.field {
			t.Errorf("%s %s: %s", c.path, c.body, r.body)
		}
	}
	for method, allow := range map[string]string{"GET": "POST", "DELETE": "POST", "OPTIONS": "POST"} {
		if r := w.want(405, method, "/v1/policies/dry-run", ""); r.header.Get("Allow") != allow {
			t.Errorf("%s: Allow is %q", method, r.header.Get("Allow"))
		}
	}
}
