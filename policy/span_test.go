package policy_test

import (
	"context"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/policy"
)

// TestTime: the parts of request.time are the local time in the zone, also on days with 23
// or 25 hours.
func TestTime(t *testing.T) {
	for _, c := range []struct {
		span, at string
		holds    bool
	}{
		{`{"between": ["22:00", "06:00"]}`, "2026-07-01T21:59:59.999999999Z", false},
		{`{"between": ["22:00", "06:00"]}`, "2026-07-01T22:00:00Z", true},
		{`{"between": ["22:00", "06:00"]}`, "2026-07-01T05:59:59.999999999Z", true},
		{`{"between": ["22:00", "06:00"]}`, "2026-07-01T06:00:00Z", false},
		{`{"between": ["08:00", "24:00"]}`, "2026-07-01T23:59:59.999999999Z", true},
		{`{"between": ["08:00", "24:00"]}`, "2026-07-01T00:00:00Z", false},
		{`{"between": ["22:00", "06:00"], "zone": "Europe/Berlin"}`, "2026-07-01T20:00:00Z", true},
		{`{"between": ["22:00", "06:00"], "zone": "Europe/Berlin"}`, "2026-12-01T20:00:00Z", false},
		// The nights in which 02:00 to 03:00 is missing and is repeated.
		{`{"between": ["02:00", "03:00"], "zone": "Europe/Berlin"}`, "2026-03-29T00:59:59Z", false},
		{`{"between": ["02:00", "03:00"], "zone": "Europe/Berlin"}`, "2026-03-29T01:00:00Z", false},
		{`{"between": ["02:00", "03:00"], "zone": "Europe/Berlin"}`, "2026-10-25T00:30:00Z", true},
		{`{"between": ["02:00", "03:00"], "zone": "Europe/Berlin"}`, "2026-10-25T01:30:00Z", true},
		{`{"between": ["02:00", "03:00"], "zone": "Europe/Berlin"}`, "2026-10-25T02:00:00Z", false},
		// Weekdays and dates are those of the instant, in the zone: 2026-07-03 is a Friday.
		{`{"weekdays": [1, 5]}`, "2026-07-03T23:59:59Z", true},
		{`{"weekdays": [1, 5]}`, "2026-07-04T00:00:00Z", false},
		{`{"weekdays": [1, 5], "zone": "Asia/Tokyo"}`, "2026-07-03T15:00:00Z", false},
		{`{"weekdays": [7, 7], "zone": "America/Los_Angeles"}`, "2026-07-06T06:59:59Z", true},
		{`{"dates": ["2026-12-24", "2026-12-26"], "zone": "Asia/Kathmandu"}`, "2026-12-23T18:15:00Z", true},
		{`{"dates": ["2026-12-24", "2026-12-26"], "zone": "Asia/Kathmandu"}`, "2026-12-23T18:14:59Z", false},
		{`{"dates": ["2026-12-24", "2026-12-26"]}`, "2026-12-26T23:59:59Z", true},
		{`{"dates": ["2028-02-29", "2028-02-29"], "between": ["00:00", "12:00"], "weekdays": [2, 2]}`, "2028-02-29T11:00:00Z", true},
	} {
		at, err := time.Parse(time.RFC3339Nano, c.at)
		if err != nil {
			t.Fatal(err)
		}
		for _, effect := range []string{"plain", "not"} {
			condition := `"request.time": ` + c.span
			if effect == "not" {
				condition = `"not": {` + condition + `}`
			}
			b := compiled(t, []policy.Policy{{ID: "pol_1", OrgID: "org_1", Document: []byte(`{"name": "x", "effect": "deny", "conditions": {` + condition + `}}`)}})
			in := request()
			in.Request.Time = at
			if denied := b.Decide(context.Background(), in).Effect == policy.Deny; denied != (c.holds != (effect == "not")) {
				t.Errorf("%s %s at %s: denied %v", effect, c.span, c.at, denied)
			}
		}
		in := request()
		in.Request.Time = time.Time{}
		b := compiled(t, []policy.Policy{{ID: "pol_1", OrgID: "org_1", Document: []byte(`{"name": "x", "effect": "allow", "conditions": {"request.time": ` + c.span + `}}`)}})
		if d := b.Decide(context.Background(), in); d.Effect != policy.Deny {
			t.Errorf("%s holds without a time", c.span)
		}
	}
}
