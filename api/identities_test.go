package api_test

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// An identity from binding to revocation, and its audit entries. What is not granted gets one
// response, whether another organization has it or not.
func TestIdentities(t *testing.T) {
	w := serve(t)
	const issuer = "https://kubernetes.default.svc.cluster.local"
	grant := func(org, namespace string) {
		t.Helper()
		storetest.InOrgAsOwner(t, org, func(tx pgx.Tx) error { return identity.GrantNamespace(t.Context(), tx, org, issuer, namespace) })
	}
	grant(w.org, "ai")
	grant(storetest.Org(t, w.db), "theirs")
	agent := w.want(201, "POST", "/v1/agents", `{"name":"bot"}`).field("id").(string)
	path := "/v1/agents/" + agent + "/identities"
	body := func(namespace string) string {
		return `{"name":"k","kubernetes":{"issuer":"` + issuer + `","namespace":"` + namespace + `","service_account":"bot"},"scopes":["*"],"rate_limit":5,"expires_in_days":9}`
	}
	theirs, nobodys := w.want(403, "POST", path, body("theirs")), w.want(403, "POST", path, body("nobodys"))
	if theirs.field("error", "message") != nobodys.field("error", "message") || theirs.field("error", "code") != "identity_not_granted" {
		t.Errorf("an oracle: %s, %s", theirs.body, nobodys.body)
	}
	w.want(403, "POST", path, `{"name":"k","spiffe_id":"spiffe://corp.example/a","scopes":["*"]}`)
	for _, bad := range []string{
		`{"name":"k","scopes":["*"]}`, `{"name":"k","scopes":["*"],"spiffe_id":"spiffe://a/b","kubernetes":{"issuer":"` + issuer + `","namespace":"ai","service_account":"bot"}}`,
		`{"name":"k","scopes":["*"],"spiffe_id":"spiffe://a"}`, `{"name":"k","scopes":["*"],"spiffe_id":""}`, `{"name":"k","scopes":["*"],"kubernetes":{"issuer":"http://a","namespace":"ai","service_account":"bot"}}`,
		`{"name":"k","scopes":["*"],"kubernetes":{"issuer":"` + issuer + `","namespace":"ai"}}`, `{"name":"k","scopes":["*"],"kubernetes":null}`, `{"name":"k","scopes":[],"spiffe_id":"spiffe://a/b"}`,
	} {
		if got := w.want(422, "POST", path, bad); got.field("error", "fix") == "" {
			t.Errorf("%s: %s", bad, got.body)
		}
	}
	made := w.want(201, "POST", path, body("ai"))
	id := made.field("id").(string)
	if !strings.HasPrefix(id, "idn_") || made.field("kind") != "kubernetes" || made.field("kubernetes", "namespace") != "ai" || made.field("spiffe_id") != nil || made.field("status") != "active" {
		t.Errorf("made: %s", made.body)
	}
	if got := w.want(409, "POST", path, body("ai")); got.field("error", "code") != "identity_bound" {
		t.Errorf("bound twice: %s", got.body)
	}
	if got := w.want(200, "GET", path+"/"+id, ""); got.field("rate_limit") != float64(5) {
		t.Errorf("read: %s", got.body)
	}
	w.want(204, "DELETE", path+"/"+id, "")
	w.want(204, "DELETE", path+"/"+id, "")
	w.want(201, "POST", path, body("ai"))
	if got := w.want(200, "GET", path, ""); strings.Count(got.body, `"status":"active"`) != 1 || strings.Count(got.body, `"status":"revoked"`) != 1 {
		t.Errorf("list: %s", got.body)
	}
	// What an agent requires is stored, and only kinds that exist.
	for _, bad := range []string{`[{}]`, `[[]]`, `[{},{}]`, `["badge"]`, `"key"`, `[""]`, `["Key"]`} {
		w.want(422, "PATCH", "/v1/agents/"+agent, `{"required_identities":`+bad+`}`)
	}
	w.want(200, "PATCH", "/v1/agents/"+agent, `{"required_identities":["spiffe","key","key"]}`)
	if got := w.want(200, "PATCH", "/v1/agents/"+agent, `{"team":"x"}`); !strings.Contains(got.body, `"required_identities":["key","spiffe"]`) {
		t.Errorf("another change loses what is required: %s", got.body)
	}
	if got := w.want(200, "PATCH", "/v1/agents/"+agent, `{"required_identities":null}`); !strings.Contains(got.body, `"required_identities":[]`) {
		t.Errorf("removed: %s", got.body)
	}
	logs := w.want(200, "GET", "/v1/agents/"+agent+"/logs", "")
	for kind, n := range map[string]int{"identity.created": 2, "identity.revoked": 1} {
		if got := strings.Count(logs.body, `"kind":"`+kind+`"`); got != n {
			t.Errorf("%d entries %s, want %d", got, kind, n)
		}
	}
}
