package api_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Usage is summed by what the request names, in JSON and in CSV. It is the org's only.
func TestUsage(t *testing.T) {
	w := serve(t)
	err := w.db.InOrg(t.Context(), w.org, func(tx pgx.Tx) error {
		const more = `, requests, refused, input_tokens, output_tokens, cost_nano_usd, charged_nano_usd, unpriced) VALUES (aid_org(), `
		for _, row := range []string{
			`usage_daily (org_id, agent_id, day, provider, model, team` + more + `'ag_1', '2026-01-30', 'openai', 'gpt-4o', 'support', 3, 1, 10, 20, 100, 110, 0)`,
			`usage_daily (org_id, agent_id, day, provider, model, team` + more + `'ag_1', '2026-01-31', 'openai', '=cmd("x")', 'support', 1, 0, 1, 2, 5, 5, 0)`,
			`usage_daily (org_id, agent_id, day, provider, model, team` + more + `'ag_2', '2026-01-31', 'openai', 'gpt-4o', '', 2, 0, 7, 7, 0, 50, 2)`,
			`usage_policies (org_id, policy_id, agent_id, day, provider, model, team` + more + `'pol_1', 'ag_1', '2026-01-31', 'openai', 'gpt-4o', '', 4, 0, 1, 1, 6, 7, 0)`,
		} {
			if _, err := tx.Exec(t.Context(), "INSERT INTO "+row); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	const span = "?since=2026-01-01T00:00:00Z&until=2026-01-31T00:00:00Z&by="
	for by, want := range map[string]string{
		"team":     `{"data":[{"requests":2,"refused":0,"input_tokens":7,"output_tokens":7,"cached_tokens":0,"cache_write_tokens":0,"reasoning_tokens":0,"cost_nano_usd":0,"charged_nano_usd":50,"unpriced":2},{"team":"support","requests":4,"refused":1,"input_tokens":11,"output_tokens":22,"cached_tokens":0,"cache_write_tokens":0,"reasoning_tokens":0,"cost_nano_usd":105,"charged_nano_usd":115,"unpriced":0}],"has_more":false,"next":null}`,
		"policy":   `{"data":[{"policy_id":"pol_1","requests":4,"refused":0,"input_tokens":1,"output_tokens":1,"cached_tokens":0,"cache_write_tokens":0,"reasoning_tokens":0,"cost_nano_usd":6,"charged_nano_usd":7,"unpriced":0}],"has_more":false,"next":null}`,
		"provider": `{"data":[{"provider":"openai","requests":6,"refused":1,"input_tokens":18,"output_tokens":29,"cached_tokens":0,"cache_write_tokens":0,"reasoning_tokens":0,"cost_nano_usd":105,"charged_nano_usd":165,"unpriced":2}],"has_more":false,"next":null}`,
	} {
		if got := w.want(200, "GET", "/v1/usage"+span+by, ""); strings.TrimSpace(got.body) != want {
			t.Errorf("by %s: %s\nwant %s", by, got.body, want)
		}
	}
	page := w.want(200, "GET", "/v1/usage"+span+"day,agent&limit=2", "")
	if page.field("next") != "2" || page.field("has_more") != true {
		t.Errorf("the first page: %s", page.body)
	}
	if rest := w.want(200, "GET", "/v1/usage"+span+"day,agent&limit=2&after=2", ""); len(rest.field("data").([]any)) != 1 || rest.field("has_more") != false {
		t.Errorf("the second page: %s", rest.body)
	}
	for _, bad := range []string{"?by=nothing", "?by=day,day", "?by="} {
		for _, path := range []string{"/v1/usage", "/v1/usage.csv"} {
			if got := w.call(w.keys["admin"], "GET", path+bad, ""); got.status != 422 && got.status != 400 {
				t.Errorf("%s%s: %d %s", path, bad, got.status, got.body)
			}
		}
	}
	for _, span := range []string{"?since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", "?since=0749-09-12T00:10:40.024157%2B10:41&until=5489-05-23T11:07:25Z"} {
		w.want(200, "GET", "/v1/usage"+span, "")
		w.want(200, "GET", "/v1/usage.csv"+span, "")
	}
	const csv = `day,model,requests,refused,input_tokens,output_tokens,cached_tokens,cache_write_tokens,reasoning_tokens,cost_nano_usd,charged_nano_usd,unpriced
2026-01-30,gpt-4o,3,1,10,20,0,0,0,100,110,0
2026-01-31,"'=cmd(""x"")",1,0,1,2,0,0,0,5,5,0
2026-01-31,gpt-4o,2,0,7,7,0,0,0,0,50,2
`
	if got := w.want(200, "GET", "/v1/usage.csv"+span+"day,model", ""); got.body != csv {
		t.Errorf("%s\nwant %s", got.body, csv)
	}
}

// The response to a change of a policy has the agents that it selects, and what its limits
// add up to.
func TestPolicyScope(t *testing.T) {
	w := serve(t)
	for _, body := range []string{`{"name":"a","team":"support"}`, `{"name":"b","team":"support"}`, `{"name":"c","team":"sales"}`} {
		id := w.want(201, "POST", "/v1/agents", body).field("id").(string)
		w.want(201, "POST", "/v1/agents/"+id+"/keys", `{"name":"k","scopes":["*"]}`)
	}
	scope := func(r reply) string {
		b, err := json.Marshal(r.field("scope"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	made := w.want(201, "POST", "/v1/policies", `{"name":"p","effect":"allow","conditions":{"agent.team":"support"},"limits":{"monthly_usd_cap":500}}`)
	want := `{"agents":2,"limits":[{"counts":1,"limit":"monthly_usd_cap","most":500000000000,"per":"policy","unit":"nano_usd","value":500000000000}],"more":false}`
	if got := scope(made); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	path := "/v1/policies/" + made.field("id").(string)
	want = `{"agents":2,"limits":[{"counts":2,"limit":"monthly_usd_cap","most":1000000000000,"per":"agent","unit":"nano_usd","value":500000000000}],"more":false}`
	for range 2 { // the second one changes nothing
		if got := scope(w.want(200, "PATCH", path, `{"limits":{"monthly_usd_cap":{"limit":500,"per":"agent"}}}`)); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
	if got := scope(w.want(200, "GET", path, "")); got != "null" {
		t.Errorf("a GET has %s", got)
	}
	w.want(422, "PATCH", path, `{"limits":{"monthly_usd_cap":{"limit":500,"per":"caller.user_agent"}}}`)
}
