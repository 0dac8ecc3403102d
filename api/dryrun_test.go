package api_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
)

// record puts decided entries into the org's log, as a sidecar would.
func (w *world) record(decided ...audit.Decided) {
	w.t.Helper()
	for len(decided) > 0 {
		n := min(len(decided), 500)
		b := audit.Batch{Org: w.org, Node: "node_dryrun", Writer: "w_dryrun"}
		for _, d := range decided[:n] {
			w.recorded++
			e := audit.Stamp(d, w.org, "w_dryrun", time.Now())
			b.Records = append(b.Records, audit.Record{Seq: w.recorded, Prev: w.recorded - 1, Org: w.org, Entry: e.Encode()})
		}
		if _, err := w.chain.Append(context.Background(), b); err != nil {
			w.t.Fatal(err)
		}
		decided = decided[n:]
	}
}

// decided is an allowed request of an agent of the team support.
func decided(i int, at time.Time, version string) audit.Decided {
	return audit.Decided{
		Time: at, RequestID: fmt.Sprintf("req-dryrun-%06d", i), AgentID: fmt.Sprint("ag_", i%3), AgentName: fmt.Sprint("bot", i%3), KeyID: "key_1",
		Mode: "gateway", Method: "POST", Path: "/v1/chat/completions", Operation: "chat.completions", Model: []string{"small", "big"}[i%2], Provider: "one",
		Effect: "allow", PolicyVersion: version, InputVersion: 1, AgentTeam: "support", AgentAllowedModels: []string{"*"}, KeyScopes: []string{"*"},
	}
}

func emptySet(t *testing.T) string {
	t.Helper()
	b, err := policy.Compile(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return b.Version()
}

func TestDryRun(t *testing.T) {
	w := serve(t)
	now := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	var entries []audit.Decided
	for i := range 30 {
		entries = append(entries, decided(i, now.Add(time.Duration(i)*time.Second), emptySet(t)))
	}
	entries[4].Clipped = []string{"user_agent"}
	entries[5].InputVersion = 0                                                // policy was not evaluated
	entries = append(entries, decided(99, now.AddDate(0, 0, -3), emptySet(t))) // before the window
	w.record(entries...)

	// The body of the documentation.
	got := w.want(200, "POST", "/v1/policies/dry-run", `{"policy":{"name":"no-big","effect":"deny","conditions":{"request.model":"big"}},"window":"24h"}`)
	if got.field("state") != "done" || fmt.Sprint(got.field("counts")) != "map[allow:15 deny:14 not_evaluated:1 requests:29 uncertain:1 would_change:14]" || got.field("replaces") != nil {
		t.Error(got.body)
	}
	rows := got.field("data").([]any)
	if len(rows) != 29 {
		t.Fatalf("%d rows", len(rows))
	}
	row := rows[1].(map[string]any)
	if row["decision"] != "deny" || row["would_change"] != true || row["current"] != "allow" || row["recorded"] != "allow" || row["request_id"] != "req-dryrun-000001" ||
		row["reasons"].([]any)[0].(map[string]any)["code"] != "policy_denied" {
		t.Errorf("%v", row)
	}
	if agents := got.field("by_agent").([]any); len(agents) != 3 || agents[0].(map[string]any)["would_change"] != 5.0 {
		t.Errorf("%v", agents)
	}
	if notes := fmt.Sprint(got.field("cannot_know")); len(got.field("cannot_know").([]any)) < 4 {
		t.Error(notes)
	}

	// Page by page, and only what would change.
	id, seen := got.field("id").(string), 0
	for after := ""; ; {
		page := w.want(200, "GET", "/v1/policy-dry-runs/"+id+"?limit=5&only=changes"+after, "")
		seen += len(page.field("data").([]any))
		if page.field("has_more") == false {
			break
		}
		after = "&after=" + page.field("next").(string)
	}
	if seen != 14 {
		t.Errorf("%d rows that would change", seen)
	}

	// A candidate replaces the policy of its name, or the one that is named. Rates are counted.
	made := w.want(201, "POST", "/v1/policies", `{"name":"no-big","effect":"deny","conditions":{"request.model":"big"}}`).field("id").(string)
	for _, replaces := range []string{"", `,"replaces":"` + made + `"`} {
		got = w.want(200, "POST", "/v1/policies/dry-run", `{"policy":{"name":"no-big","effect":"allow","state":"shadow","conditions":{},"limits":{"rpm":2}},"window":{"start":"`+
			now.Add(-time.Minute).Format(time.RFC3339)+`","end":"`+now.Add(time.Minute).Format(time.RFC3339)+`"}`+replaces+`}`)
		if got.field("replaces") != made || got.field("counts", "allow") != 6.0 { // two of each of three agents
			t.Error(got.body)
		}
	}

	// Raises hold as they did at the times of the requests.
	capped := `{"policy":{"name":"no-big","effect":"allow","conditions":{},"limits":{"monthly_usd_cap":0.000000001}},"window":"24h"}`
	if got = w.want(200, "POST", "/v1/policies/dry-run", capped); got.field("counts", "allow") != 1.0 {
		t.Error(got.body)
	}
	if err := w.db.InOrg(t.Context(), w.org, func(tx pgx.Tx) error {
		return policy.InsertRaise(t.Context(), tx, policy.Raise{ID: "raise_1", OrgID: w.org, PolicyID: made, Limit: "monthly_usd_cap", Per: "policy", Counter: "policy:" + made + ":monthly_usd_cap:policy:",
			Period: now.Format("2006-01"), NanoUSD: 3, Capped: 4, Reason: "r", ActorID: "a", CreatedAt: now.Add(10 * time.Second), EndsAt: now.Add(12 * time.Second)})
	}); err != nil {
		t.Fatal(err)
	}
	if got = w.want(200, "POST", "/v1/policies/dry-run", capped); got.field("counts", "allow") != 3.0 { // one before it, and two while it holds
		t.Error(got.body)
	}

	for body, field := range map[string]string{
		`{"window":"24h"}`: "policy",
		`{"policy":{"name":"x","effect":"deny","conditions":{}}}`:                                 "window",
		`{"policy":{"name":"x","effect":"deny","conditions":{}},"window":"a day"}`:                "window",
		`{"policy":{"name":"x","effect":"deny","conditions":{}},"window":"9999d"}`:                "window",
		`{"policy":{"name":"x","effect":"deny","conditions":{}},"window":{"start":"2026-01-01"}}`: "window",
		`{"policy":{"name":"x","effect":"deny","conditions":{"agent.teem":"a"}},"window":"24h"}`:  "policy.conditions.agent.teem",
		`{"policy":{"name":"x","effect":"deny","conditions":{}},"window":"24h","dry":true}`:       "dry",
	} {
		if r := w.want(422, "POST", "/v1/policies/dry-run", body); fmt.Sprint(r.field("error", "field")) != field {
			t.Errorf("%s: %s", body, r.body)
		}
	}
	w.want(404, "POST", "/v1/policies/dry-run", `{"policy":{"name":"x","effect":"deny","conditions":{}},"window":"24h","replaces":"pol_none"}`)
	w.want(404, "GET", "/v1/policy-dry-runs/dry_none", "")
}

var dryRunEntries = flag.Int("dry-run-entries", 6_000, "how many entries TestDryRunJob evaluates, an even number above 5000")

// A long window is a job, which ends with all of it.
func TestDryRunJob(t *testing.T) {
	w := serve(t)
	now := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	n, version := *dryRunEntries, emptySet(t)
	for i := 0; i < n; {
		var entries []audit.Decided
		for ; len(entries) < 5_000 && i < n; i++ {
			d := decided(i, now.Add(time.Duration(i)*time.Millisecond), version)
			d.AgentID, d.AgentName, d.KeyID = fmt.Sprint("ag_", i%200), fmt.Sprint("bot", i%200), fmt.Sprint("key_", i%400)
			d.SessionID, d.UserAgent, d.ClientIP = fmt.Sprint("sess_", i/10), "OpenAI/Python 1.99.9", fmt.Sprintf("10.0.%d.%d", i/250%250, i%250)
			d.InputTokensEstimate, d.Tools = int64(i%4000), [][]string{nil, {"crm.read"}, {"kb.search", "crm.read"}}[i%3]
			entries = append(entries, d)
		}
		w.record(entries...)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.server.Run(ctx) }()
	began := time.Now()
	got := w.want(202, "POST", "/v1/policies/dry-run", `{"policy":{"name":"no-big","effect":"deny","conditions":{"request.model":"big"}},"window":"24h"}`)
	if got.field("state") != "running" || got.field("total") != float64(n) {
		t.Error(got.body)
	}
	location := got.header.Get("Location")
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute + time.Duration(n)*time.Millisecond); got.field("state") == "running"; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("the job does not end")
		}
		got = w.want(200, "GET", location, "")
	}
	t.Logf("%d entries in %v", n, time.Since(began).Round(time.Millisecond))
	if fmt.Sprint(got.field("counts")) != fmt.Sprintf("map[allow:%d deny:%d not_evaluated:0 requests:%d uncertain:0 would_change:%d]", n/2, n/2, n, n/2) || got.field("done") != float64(n) {
		t.Errorf("%v: %v", got.field("state"), got.field("counts"))
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestExplainRequest(t *testing.T) {
	w := serve(t)
	made := w.want(201, "POST", "/v1/policies", `{"name":"support","effect":"allow","conditions":{"agent.team":"support","request.model":"small"}}`).field("id").(string)
	var version string
	if err := w.db.InOrg(t.Context(), w.org, func(tx pgx.Tx) error {
		ps, err := policy.All(t.Context(), tx)
		if err != nil {
			return err
		}
		b, err := policy.Compile(t.Context(), ps)
		version = b.Version()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	d := decided(1, time.Now().UTC(), version) // asks for big
	d.Effect, d.Reasons = "deny", []audit.Reason{{Code: "not_permitted"}}
	rejected := decided(2, time.Now().UTC(), "")
	rejected.InputVersion = 0
	old := decided(3, time.Now().UTC(), "sha256:forgotten")
	w.record(d, rejected, old)

	// Later the policy is changed: the recorded set still explains the request.
	w.want(200, "PATCH", "/v1/policies/"+made, `{"conditions":{"request.model":null}}`)
	body := `{"request_id":"` + d.RequestID + `"}`
	got := w.call(w.keys[identity.Auditor], "POST", "/v1/policies/explain", body)
	if got.status != 200 || got.field("decision", "effect") != "deny" || got.field("recorded", "policy_version") != version {
		t.Fatal(got.body)
	}
	rows := got.field("policies").([]any)
	b, err := json.Marshal(rows[0].(map[string]any)["failed"])
	if err != nil {
		t.Fatal(err)
	}
	if want := `[{"attribute":"request.model","condition":"conditions.request.model","unknown":false,"value":"big"}]`; len(rows) != 1 || string(b) != want {
		t.Error(got.body)
	}
	if got := w.want(200, "POST", "/v1/policies/explain", `{"request_id":"`+d.RequestID+`","policies":"current"}`); got.field("decision", "effect") != "allow" {
		t.Error(got.body)
	}
	w.want(409, "POST", "/v1/policies/explain", `{"request_id":"`+rejected.RequestID+`"}`)
	w.want(409, "POST", "/v1/policies/explain", `{"request_id":"`+old.RequestID+`"}`)
	w.want(404, "POST", "/v1/policies/explain", `{"request_id":"req-unknown"}`)
	if got := w.call(w.keys[identity.Reviewer], "POST", "/v1/policies/explain", body); got.status != 403 {
		t.Error(got.body)
	}
}

// A policy in Rego is stored when its tests pass, is tried in a dry-run, explains itself, and
// is shown as it was written.
func TestRegoPolicy(t *testing.T) {
	w := serve(t)
	body := func(denies string) string {
		return `{"name":"no-big-prod","effect":"deny","rego":{"module":"package policy\n\ndeny if {\n\tinput.agent.team == \"support\"\n\tinput.request.model == \"big\"\n}\n","tests":[` +
			`{"name":"support and big","input":{"agent":{"team":"support"},"request":{"model":"big"}},"denies":` + denies + `},{"name":"others","input":{},"denies":false}]}}`
	}
	if r := w.want(422, "POST", "/v1/policies", body("false")); r.field("error", "field") != "rego.tests[0]" || !strings.Contains(r.body, `support and big`) {
		t.Error(r.body)
	}
	if r := w.want(422, "POST", "/v1/policies/dry-run", `{"policy":`+body("false")+`,"window":"24h"}`); r.field("error", "field") != "policy.rego.tests[0]" {
		t.Error(r.body)
	}
	entry := decided(1, time.Now().Add(-time.Minute).UTC(), emptySet(t)) // asks for big
	w.record(entry)
	got := w.want(200, "POST", "/v1/policies/dry-run", `{"policy":`+body("true")+`,"window":"24h"}`)
	if fmt.Sprint(got.field("counts")) != "map[allow:0 deny:1 not_evaluated:0 requests:1 uncertain:0 would_change:1]" {
		t.Error(got.body)
	}
	made := w.want(201, "POST", "/v1/policies", body("true"))
	id := made.field("id").(string)
	if fmt.Sprint(made.field("conditions")) != "map[]" || made.field("rego", "module") == nil {
		t.Error(made.body)
	}
	if r := w.want(200, "GET", "/v1/policies/"+id+"/rego", ""); !strings.HasPrefix(r.field("rego").(string), "package policy\n") {
		t.Error(r.body)
	}
	r := w.want(200, "POST", "/v1/policies/explain", `{"request_id":"`+entry.RequestID+`","policies":"current"}`)
	if fmt.Sprint(r.field("decision", "policy_ids")) != "["+id+"]" || !strings.Contains(r.body, `"name":"no-big-prod","version":1,"effect":"deny","state":"enabled","governs":false,"matches":true`) {
		t.Error(r.body)
	}
	if r := w.want(422, "PATCH", "/v1/policies/"+id, `{"rego":{"module":"package policy\n\ndeny if http.send({})"}}`); r.field("error", "field") != "rego.module" || !strings.Contains(r.body, "http.send") {
		t.Error(r.body)
	}
	w.want(200, "PATCH", "/v1/policies/"+id, `{"state":"shadow"}`)
}
