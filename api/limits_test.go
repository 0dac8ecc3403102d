package api_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
)

// Requests at the same time do not exceed the limits on the number of policies and providers
// together.
func TestNumbersHold(t *testing.T) {
	w := serve(t)
	exec := func(sql string, args ...any) {
		t.Helper()
		err := w.db.InOrg(context.Background(), w.org, func(tx pgx.Tx) error {
			_, err := tx.Exec(context.Background(), sql, args...)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	fill := func(from, n int, document string) {
		exec(`INSERT INTO policies (id, org_id, name, version, document, created_at, updated_at)
			SELECT 'pol_' || lpad(i::text, 26, '0'), aid_org(), 'n' || i, 1, replace($1, 'NAME', 'n' || i), now(), now() FROM generate_series($2::int, $3::int) i`, document, from, from+n-1)
	}
	const plain = `{"name": "NAME", "effect": "allow", "conditions": {}}`
	const rego = `{"name": %q, "effect": "deny", "rego": {"module": "package policy\n\ndeny if input.request.model == \"x\"\n", "tests": [{"name": "a", "input": {"request": {"model": "x"}}, "denies": true}, {"name": "b", "input": {"request": {"model": "y"}}, "denies": false}]}}`
	const upstream = `{"name": %q, "kind": "openai", "base_url": "https://api.openai.com/v1", "models": ["m"]}`
	atOnce := func(what string, want, status int, send func(i int) reply) {
		t.Helper()
		var wg sync.WaitGroup
		got := make([]reply, 6)
		for i := range got {
			wg.Add(1)
			go func() { defer wg.Done(); got[i] = send(i) }()
		}
		wg.Wait()
		passed := 0
		for _, r := range got {
			switch {
			case r.status == status:
				passed++
			case r.status != 409:
				t.Errorf("%s: %d %s", what, r.status, r.body)
			}
		}
		if passed != want {
			t.Errorf("%s: %d passed, want %d", what, passed, want)
		}
	}
	admin := w.keys[identity.Admin]
	post := func(path, form string) func(i int) reply {
		return func(i int) reply { return w.call(admin, "POST", path, fmt.Sprintf(form, fmt.Sprint("made-", i))) }
	}
	fill(0, policy.MaxRego-1, fmt.Sprintf(rego, "NAME"))
	fill(1000, 6, plain)
	atOnce("PATCH to Rego", 1, 200, func(i int) reply {
		return w.call(admin, "PATCH", fmt.Sprintf("/v1/policies/pol_%026d", 1000+i), strings.Replace(fmt.Sprintf(rego, fmt.Sprint("n", 1000+i)), "{", `{"conditions": null, `, 1))
	})
	exec(`DELETE FROM policies WHERE name LIKE 'n100_'`)
	atOnce("POST in Rego", 1, 201, post("/v1/policies", rego))
	exec(`DELETE FROM policies`)
	fill(0, policy.MaxPolicies-2, plain)
	atOnce("POST", 2, 201, post("/v1/policies", `{"name": %q, "effect": "allow", "conditions": {}}`))
	exec(`INSERT INTO providers (id, org_id, name, kind, base_url, models, created_at, updated_at)
		SELECT 'prov_' || i, aid_org(), 'n' || i, 'openai', 'https://api.openai.com/v1', '{m}', now(), now() FROM generate_series(1, $1::int) i`, provider.MaxProviders-1)
	atOnce("POST of a provider", 1, 201, post("/v1/providers", upstream))
}
