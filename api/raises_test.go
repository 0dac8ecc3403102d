package api_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/api"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// A raise is checked against the policy, the period and the tier, and recorded. Raises at the
// same time do not exceed the tier together.
func TestRaises(t *testing.T) {
	w := serve(t)
	agent := w.want(201, "POST", "/v1/agents", `{"name":"a"}`).field("id").(string)
	capped := w.want(201, "POST", "/v1/policies", `{"name":"p","effect":"allow","conditions":{},"limits":{"monthly_usd_cap":500,"daily_usd_cap":[10,{"limit":5,"per":["agent","request.model"]},{"limit":2,"per":"agent"}],"rpm":5}}`).field("id").(string)
	off := w.want(201, "POST", "/v1/policies", `{"name":"off","effect":"allow","state":"disabled","conditions":{},"limits":{"monthly_usd_cap":500}}`).field("id").(string)
	raise := func(policy, more string) string {
		return fmt.Sprintf(`{"policy_id":%q,"reason":"Launch week",%s}`, policy, more)
	}
	for _, c := range []struct {
		status     int
		body, want string
	}{
		{404, raise("pol_none", `"limit":"monthly_usd_cap","add_usd":1`), "not_found"},
		{422, raise(off, `"limit":"monthly_usd_cap","add_usd":1`), "not enabled"},
		{422, raise(capped, `"limit":"rpm","add_usd":1`), "limit"},
		{422, raise(capped, `"limit":"monthly_usd_cap","add_usd":0`), "add_usd"},
		{422, raise(capped, `"limit":"monthly_usd_cap","add_usd":-1`), "add_usd"},
		{422, raise(capped, `"limit":"monthly_usd_cap","add_usd":"1"`), "add_usd"},
		{422, raise(capped, `"limit":"monthly_usd_cap","add_usd":0.0000000001`), "9 digits"},
		{422, raise(capped, `"limit":"monthly_usd_cap","add_usd":999999999`), "above 1000000000"},
		{422, raise(capped, `"limit":"monthly_usd_cap","add_usd":1,"subjects":["x"]`), "subjects"},
		{422, raise(capped, `"limit":"daily_usd_cap","add_usd":1`), "several caps"},
		{422, raise(capped, `"limit":"daily_usd_cap","per":"org","add_usd":1`), "write one of policy, agent+request.model, agent"},
		{422, raise(capped, `"limit":"daily_usd_cap","per":"agent","add_usd":1`), "subjects"},
		{422, raise(capped, `"limit":"daily_usd_cap","per":"agent","subjects":["ag_none"],"add_usd":1`), "no such agent"},
		{422, raise(capped, `"limit":"monthly_usd_cap","add_usd":1,"ends_at":"2001-01-01T00:00:00Z"`), "current period"},
		{422, raise(capped, `"limit":"monthly_usd_cap","add_usd":1,"ends_at":"`+time.Now().AddDate(0, 1, 1).UTC().Format(time.RFC3339)+`"`), "current period"},
		{422, fmt.Sprintf(`{"policy_id":%q,"limit":"monthly_usd_cap","add_usd":1}`, capped), "reason"},
		{422, fmt.Sprintf(`{"policy_id":%q,"limit":"monthly_usd_cap","add_usd":1,"reason":""}`, capped), "reason"},
	} {
		if got := w.want(c.status, "POST", "/v1/limits/raises", c.body); !strings.Contains(got.body, c.want) {
			t.Errorf("%s: %s, want %q", c.body, got.body, c.want)
		}
	}
	if got := w.call(w.keys[identity.Auditor], "POST", "/v1/limits/raises", raise(capped, `"limit":"monthly_usd_cap","add_usd":1`)); got.status != 403 {
		t.Errorf("an auditor raises: %d", got.status)
	}
	first := w.want(201, "POST", "/v1/limits/raises", raise(capped, `"limit":"monthly_usd_cap","add_usd":50.25`))
	if first.field("add_nano_usd") != 50.25e9 || first.field("cap_nano_usd") != 550.25e9 || first.field("per") != "policy" || first.field("subject") != "" ||
		first.field("period") != time.Now().UTC().Format("2006-01") {
		t.Errorf("%s", first.body)
	}
	if got := w.want(200, "GET", "/v1/limits/raises/"+first.field("id").(string), ""); got.body != first.body {
		t.Errorf("%s, want %s", got.body, first.body)
	}
	w.want(404, "GET", "/v1/limits/raises/rse_none", "")
	pair := w.want(201, "POST", "/v1/limits/raises", raise(capped, `"limit":"daily_usd_cap","per":"agent+request.model","subjects":["`+agent+`","gpt-4o"],"add_usd":1`))
	if pair.field("subject") != agent+"+gpt-4o" || pair.field("cap_nano_usd") != 6e9 {
		t.Errorf("%s", pair.body)
	}
	if list := w.want(200, "GET", "/v1/limits/raises?limit=1", ""); !strings.Contains(list.body, first.field("id").(string)) || list.field("has_more") != true {
		t.Errorf("%s", list.body)
	}
	if log := w.want(200, "GET", "/v1/audit/entries?kind=limit.raised&limit=10", ""); strings.Count(log.body, `"limit.raised"`) != 2 {
		t.Errorf("%s", log.body)
	}

	// The tier's cap bounds the sum of all raises.
	tiers, err := policy.ParseTiers([]byte(`{"pro":{"monthly_usd_cap":600}}`))
	if err != nil {
		t.Fatal(err)
	}
	if w.server, err = api.New(api.Config{DB: w.db, Chain: w.chain, Sealer: w.sealer, Tiers: tiers}); err != nil {
		t.Fatal(err)
	}
	if _, err := storetest.Connect(t, storetest.URL(t, "postgres")).Exec(t.Context(), `UPDATE orgs SET tier = 'pro' WHERE org_id = $1`, w.org); err != nil {
		t.Fatal(err)
	}
	if got := w.want(409, "POST", "/v1/limits/raises", raise(capped, `"limit":"monthly_usd_cap","add_usd":49.76`)); got.field("error", "code") != "above_tier" {
		t.Errorf("%s", got.body)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	passed := 0
	for range 6 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if w.call(w.keys[identity.Admin], "POST", "/v1/limits/raises", raise(capped, `"limit":"monthly_usd_cap","add_usd":20`)).status == 201 {
				mu.Lock()
				defer mu.Unlock()
				passed++
			}
		}()
	}
	wg.Wait()
	if passed != 2 {
		t.Errorf("%d raises of $20 passed where $49.75 is left below the tier", passed)
	}
}
