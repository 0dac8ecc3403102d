package policy_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/policy"
)

func TestCheckTakes(t *testing.T) {
	for _, doc := range []string{
		`{"name": "x", "effect": "allow", "conditions": {}}`,
		` {"effect":"deny","name":"x","conditions":{"agent.team":"a"}}` + "\n",
		`{"name": "x", "effect": "allow", "conditions": {}, "limits": {}}`,
		`{"name": "x", "effect": "allow", "conditions": {}, "limits": {"rpm": 1}}`,
		`{"name": "x", "effect": "allow", "conditions": {}, "limits": {"rpm": 1000000000}}`,
		`{"name": "x", "effect": "allow", "conditions": {}, "limits": {"rpm": 1e3, "tpm": {"limit": 5, "per": "key"}, "concurrent": 2.0, "max_tokens": {"limit": 9, "per": "agent"}}}`,
		`{"name": "x", "effect": "allow", "conditions": {}, "limits": {"monthly_usd_cap": [500, {"limit": 0.000000001, "per": ["agent.metadata.cost centre", "request.model"]}], "daily_usd_cap": 1e-09}}`,
		`{"name": "Ünïcode 名前 😀", "effect": "allow", "conditions": {}}`,
		`{"name": "x", "effect": "allow", "conditions": {"agent.metadata.a b.c": {"in": ["x", 1, true, "x"]}}}`,
		`{"name": "x", "effect": "allow", "conditions": {"caller.ip": {"in": ["203.0.113.9", "2001:db8::1"]}}}`,
		`{"name": "x", "effect": "allow", "conditions": {"request.bytes": {"between": [0, 9007199254740991]}}}`,
		// The example of the product's description, without the cap, which is not built.
		`{"name": "support-agents-read-only-crm", "effect": "allow", "conditions": {"agent.team": "support", "agent.environment": "prod",
		  "request.tool": {"in": ["crm.read", "kb.search"]}, "request.hour_utc": {"between": [13, 23]}}, "limits": {"rpm": 60}}`,
	} {
		if err := policy.Check([]byte(doc)); err != nil {
			t.Errorf("%s: %v", doc, err)
		}
	}
}

func TestCheckRefuses(t *testing.T) {
	cond := func(c string) string { return `{"name": "x", "effect": "allow", "conditions": {` + c + `}}` }
	limits := func(l string) string {
		return `{"name": "x", "effect": "allow", "conditions": {}, "limits": ` + l + `}`
	}
	list := func(n int) string {
		return strings.TrimSuffix(strings.Repeat(`"a",`, n), ",")
	}
	many := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `"agent.metadata.k%d": 1,`, i)
		}
		return strings.TrimSuffix(b.String(), ",")
	}
	const notBuilt = "this version does not support it"
	for _, c := range []struct{ doc, field, says string }{
		// Not one JSON object, strictly.
		{``, "", "ends too early"},
		{`{`, "", ""},
		{`[]`, "", "is a list"},
		{`null`, "", "is null"},
		{`"x"`, "", "is text"},
		{`{"name": "x", "effect": "allow", "conditions": {}} {}`, "", "after its end"},
		{`{"name": "x", "effect": "allow", "conditions": {},}`, "", "strict JSON"},
		{`{"name": "x" /* */, "effect": "allow", "conditions": {}}`, "", "strict JSON"},
		{`{"name": "x", "name": "y", "effect": "allow", "conditions": {}}`, "name", "twice"},
		{cond(`"agent.team": "a", "agent.team": "b"`), "agent.team", "twice"},
		{cond(`"request.url_host": {"in": ["a.example", "unknown"]}`), "conditions.request.url_host", "unknown"},
		{cond(`"request.url_host": "A.example"`), "conditions.request.url_host", "not a host"},
		{cond(`"request.url_host": "https://a.example"`), "conditions.request.url_host", "not a host"},
		{cond(`"request.url_host": "::ffff:127.0.0.1"`), "conditions.request.url_host", "canonical"},
		{cond(`"agent.team": {"in": ["a"], "in": ["b"]}`), "in", "twice"},
		{"{\"name\": \"\xff\", \"effect\": \"allow\", \"conditions\": {}}", "", "strict JSON"},
		{`{"name": "\ud800", "effect": "allow", "conditions": {}}`, "", "strict JSON"},
		{"\ufeff" + cond(``), "", "strict JSON"},
		{strings.Repeat("[", 100_000), "", ""},
		{strings.Repeat(" ", 64<<10) + cond(``), "", "65"},

		// Its fields.
		{`{"effect": "allow", "conditions": {}}`, "name", "is missing"},
		{`{"name": "x", "conditions": {}}`, "effect", "is missing"},
		{`{"name": "x", "effect": "allow"}`, "conditions", "write {}"},
		{`{"Name": "x", "effect": "allow", "conditions": {}}`, "Name", "is not a field"},
		{`{"name": "x", "effect": "allow", "conditions": {}, "description": "y"}`, "description", "is not a field"},
		{`{"name": "x", "effect": "allow", "conditions": {}, "approval": {}}`, "approval.reviewer_team", "name the team"},
		{`{"name": "x", "effect": "allow", "conditions": {}, "approval": {"reviewer_team": "ops"}}`, "approval", "leave it out"},
		{`{"name": "x", "effect": "require_approval", "conditions": {}, "approval": {"reviewer_team": "ops", "timeout_seconds": 0}}`, "approval.timeout_seconds", "from 1"},
		{`{"name": "x", "effect": "require_approval", "conditions": {}, "approval": {"reviewer_team": "ops", "on_timeout": "allow"}}`, "approval.on_timeout", "write deny"},
		{`{"name": "x", "effect": "require_approval", "conditions": {}, "approval": {"reviewer": "ops"}}`, "approval.reviewer", "the fields are"},
		{`{"name": "x", "effect": "require_approval", "conditions": {}, "approval": {"reviewer_team": "ops"}, "limits": {"rpm": 1}}`, "limits", "leave them out"},
		{`{"name": "x", "effect": "allow", "conditions": {}, "rego": "package x"}`, "rego", "is text"},
		{`{"name": "x", "effect": "allow", "conditions": {}, "priority": 1}`, "priority", "leave it out"},
		{`{"name": 7, "effect": "allow", "conditions": {}}`, "name", "is a number"},
		{`{"name": " ", "effect": "allow", "conditions": {}}`, "name", "is empty"},
		{`{"name": "a\nb", "effect": "allow", "conditions": {}}`, "name", "not printable"},
		{`{"name": "a\u202eb", "effect": "allow", "conditions": {}}`, "name", "not printable"},
		{`{"name": "` + strings.Repeat("n", 129) + `", "effect": "allow", "conditions": {}}`, "name", "129 bytes"},
		{`{"name": "x", "effect": "require_approval", "conditions": {}}`, "approval", "is missing"},
		{`{"name": "x", "effect": "Allow", "conditions": {}}`, "effect", "write allow, deny"},
		{`{"name": "x", "effect": true, "conditions": {}}`, "effect", "is true or false"},
		{`{"name": "x", "effect": "allow", "conditions": {}, "state": "off"}`, "state", "write enabled, disabled or shadow"},
		{`{"name": "x", "effect": "allow", "conditions": {}, "state": "Shadow"}`, "state", `did you mean "shadow"?`},
		{`{"name": "x", "effect": "allow", "conditions": {}, "state": true}`, "state", "is true or false"},
		{`{"name": "x", "effect": "allow", "conditions": []}`, "conditions", "is a list"},
		{`{"name": "x", "effect": "allow", "conditions": null}`, "conditions", "is null"},

		// Limits.
		{limits(`[]`), "limits", "is a list"},
		{limits(`{"rpm": 0}`), "limits.rpm", "from 1"},
		{limits(`{"rpm": -1}`), "limits.rpm", "from 1"},
		{limits(`{"rpm": 1.5}`), "limits.rpm", "integer"},
		{limits(`{"rpm": 1000000001}`), "limits.rpm", "1000000000"},
		{limits(`{"rpm": "60"}`), "limits.rpm", "is text"},
		{limits(`{"rpm": {"in": [1]}}`), "limits.rpm.in", "is not a field of a limit"},
		{limits(`{"rpm": {"per": "agent"}}`), "limits.rpm.limit", "is missing"},
		{limits(`{"rps": 1}`), "limits.rps", `did you mean "rpm"?`},
		{limits(`{"monthly_usd": 1}`), "limits.monthly_usd", `did you mean "monthly_usd_cap"?`},
		{limits(`{"concurrent": 1000001}`), "limits.concurrent", "from 1 to 1000000"},
		{limits(`{"concurrent": null}`), "limits.concurrent", "is null"},
		{limits(`{"monthly_usd_cap": 0}`), "limits.monthly_usd_cap", "is not above 0"},
		{limits(`{"monthly_usd_cap": -0.5}`), "limits.monthly_usd_cap", "is not above 0"},
		{limits(`{"monthly_usd_cap": 1e-10}`), "limits.monthly_usd_cap", "less than a nano-dollar"},
		{limits(`{"monthly_usd_cap": 1.0000000001}`), "limits.monthly_usd_cap", "less than a nano-dollar"},
		{limits(`{"monthly_usd_cap": 1e999999999}`), "limits.monthly_usd_cap", "not an amount that is exact"},
		{limits(`{"monthly_usd_cap": 1e-999999999}`), "limits.monthly_usd_cap", "not an amount that is exact"},
		{limits(`{"monthly_usd_cap": 1000000000.000000001}`), "limits.monthly_usd_cap", "above 1000000000"},
		{limits(`{"monthly_usd_cap": "500"}`), "limits.monthly_usd_cap", "is text"},
		{limits(`{"daily_usd_cap": []}`), "limits.daily_usd_cap", "is empty"},
		{limits(`{"daily_usd_cap": [1, {"limit": 2, "per": "policy"}]}`), "limits.daily_usd_cap[1]", "counts for the same"},
		{limits(`{"daily_usd_cap": [{"limit": 2, "per": ["agent.team", "key"]}, {"limit": 2, "per": ["key", "agent.team"]}]}`), "limits.daily_usd_cap[1]", "counts for the same"},
		{limits(`{"rpm": [` + strings.Repeat(`{"limit": 1, "per": "org"},`, 9) + `1]}`), "limits.rpm[1]", "counts for the same"},
		{limits(`{"rpm": {"limit": 1, "per": "request.tool"}}`), "limits.rpm.per", "the client chooses freely"},
		{limits(`{"rpm": {"limit": 1, "per": "caller.user_agent"}}`), "limits.rpm.per", "the client chooses freely"},
		{limits(`{"rpm": {"limit": 1, "per": "request.session_id"}}`), "limits.rpm.per", "the client chooses freely"},
		{limits(`{"session_requests": {"limit": 1, "per": "agent"}}`), "limits.session_requests.per", "not for a limit of a session"},
		{limits(`{"session_usd_cap": {"limit": 1, "per": ["session", "agent.team"]}}`), "limits.session_usd_cap.per", "not for a limit of a session"},
		{limits(`{"sessions_per_hour": {"limit": 1, "per": "session"}}`), "limits.sessions_per_hour.per", "not for the number of sessions"},
		{limits(`{"session_seconds": 86401}`), "limits.session_seconds", "from 1 to 86400"},
		{limits(`{"rpm": {"limit": 1, "per": "agent.allowed_models"}}`), "limits.rpm.per", "not something that a limit can count for"},
		{limits(`{"rpm": {"limit": 1, "per": "agent.taem"}}`), "limits.rpm.per", `did you mean "agent.team"?`},
		{limits(`{"rpm": {"limit": 1, "per": ["agent", "policy"]}}`), "limits.rpm.per[1]", "adds nothing"},
		{limits(`{"rpm": {"limit": 1, "per": ["agent", "agent"]}}`), "limits.rpm.per", "twice"},
		{limits(`{"rpm": {"limit": 1, "per": ["agent", "key", "agent.team"]}}`), "limits.rpm.per[2]", "third name"},
		{limits(`{"rpm": {"limit": 1, "per": []}}`), "limits.rpm.per", "is empty"},
		{limits(`{"max_tokens": {"limit": 1, "per": "org"}}`), "limits.max_tokens.per", "leave it out"},
		{`{"name": "x", "effect": "deny", "conditions": {}, "limits": {"rpm": 1}}`, "limits", "leave them out"},
		{`{"name": "x", "limits": {}, "effect": "deny", "conditions": {}}`, "limits", "leave them out"},

		// Attributes.
		{cond(`"agent.colour": "red"`), "conditions.agent.colour", "is not an attribute"},
		{cond(`"Agent.team": "a"`), "conditions.Agent.team", "is not an attribute"},
		{cond(`"agent": "a"`), "conditions.agent", "is not an attribute"},
		{cond(`"request.tools": "a"`), "conditions.request.tools", "request.tool"},
		{cond(`"agent.metadata": "a"`), "conditions.agent.metadata", "is not an attribute"},
		{cond(`"agent.metadata.": "a"`), "conditions.agent.metadata.", "a key"},
		{cond(`"agent.metadata.` + strings.Repeat("k", 1025) + `": 1`), "conditions.agent.metadata." + strings.Repeat("k", 49) + "…", "1040 bytes"},
		{cond(`"agent.taem": "a"`), "conditions.agent.taem", `did you mean "agent.team"?`},
		{cond(`"any": []`), "conditions.any", "is empty"},
		{cond(`"any": {}`), "conditions.any", "is an object"},
		{cond(`"any": [{}]`), "conditions.any[0]", "is empty"},
		{cond(`"not": {}`), "conditions.not", "is empty"},
		{cond(`"not": [{"agent.team": "a"}]`), "conditions.not", `{"not": {"any"`},
		{cond(`"any": [{"agent.team": "a"}, {"agent.colour": "a"}]`), "conditions.any[1].agent.colour", "is not an attribute"},
		{cond(strings.Repeat(`"not": {`, 9) + `"agent.team": "a"` + strings.Repeat(`}`, 9)), "conditions" + strings.Repeat(".not", 9), "deeper than 8"},
		{cond(`"any": [{` + many(20) + `}, {` + many(20) + `}]`), "conditions.any[1].agent.metadata.k12", "more than 32"},
		{cond(`"spend.day_usd": -1`), "conditions.spend.day_usd", "a number from 0"},
		{cond(`"spend.month_usd": "1"`), "conditions.spend.month_usd", "write a number"},
		{cond(`"caller.spiffe_id": "spiffe://x"`), "conditions.caller.spiffe_id", notBuilt},
		{cond(many(33)), "conditions.agent.metadata.k32", "more than 32"},

		// Operators.
		{cond(`"agent.team": {}`), "conditions.agent.team", "has no operator"},
		{cond(`"agent.team": ["a"]`), "conditions.agent.team", `{"in": […]}`},
		{cond(`"agent.team": null`), "conditions.agent.team", "is null"},
		{cond(`"agent.team": {"in": ["a"], "between": [1, 2]}`), "conditions.agent.team", "more than one operator"},
		{cond(`"agent.team": {"prefix": 7}`), "conditions.agent.team.prefix", "is not text"},
		{cond(`"agent.team": {"prefix": ""}`), "conditions.agent.team.prefix", "is empty"},
		{cond(`"agent.team": {"glob": []}`), "conditions.agent.team.glob", "never true"},
		{cond(`"agent.team": {"not_in": []}`), "conditions.agent.team.not_in", "is empty"},
		{cond(`"agent.team": {"gt": 1}`), "conditions.agent.team.gt", "compares numbers"},
		{cond(`"agent.metadata.x": {"gt": "a"}`), "conditions.agent.metadata.x.gt", "is not a number"},
		{cond(`"request.bytes": {"prefix": "1"}`), "conditions.request.bytes.prefix", "compares text"},
		{cond(`"request.stream": {"gte": 1}`), "conditions.request.stream.gte", "compares numbers"},
		{cond(`"agent.team": {"exists": "yes"}`), "conditions.agent.team.exists", "write true"},
		{cond(`"agent.team": {"cidr": "10.0.0.0/8"}`), "conditions.agent.team.cidr", "caller.ip"},
		{cond(`"caller.ip": {"cidr": "10.0.0.1"}`), "conditions.caller.ip.cidr", "10.0.0.0/8"},
		{cond(`"caller.ip": {"cidr": "10.0.0.1/8"}`), "conditions.caller.ip.cidr", `write "10.0.0.0/8"`},
		{cond(`"caller.ip": {"cidr": "::ffff:10.0.0.0/104"}`), "conditions.caller.ip.cidr", "IPv4"},
		{cond(`"caller.ip": {"prefix": "10."}`), "conditions.caller.ip.prefix", "write cidr"},
		{cond(`"request.time": "22:00"`), "conditions.request.time", "is text"},
		{cond(`"request.time": {}`), "conditions.request.time", "has no hours"},
		{cond(`"request.time": {"zone": "Europe/Berlin"}`), "conditions.request.time", "has no hours"},
		{cond(`"request.time": {"between": ["22:00"]}`), "conditions.request.time.between", "two values"},
		{cond(`"request.time": {"between": ["22:00", "22:00"]}`), "conditions.request.time.between", "begins and ends"},
		{cond(`"request.time": {"between": ["24:00", "06:00"]}`), "conditions.request.time.between[0]", "time of day"},
		{cond(`"request.time": {"between": ["8:00", "18:00"]}`), "conditions.request.time.between[0]", "time of day"},
		{cond(`"request.time": {"between": [8, 18]}`), "conditions.request.time.between[0]", "time of day"},
		{cond(`"request.time": {"between": ["08:00", "24:01"]}`), "conditions.request.time.between[1]", "time of day"},
		{cond(`"request.time": {"weekdays": [6, 1]}`), "conditions.request.time.weekdays", "only hours"},
		{cond(`"request.time": {"weekdays": [0, 5]}`), "conditions.request.time.weekdays[0]", "1 (Monday)"},
		{cond(`"request.time": {"dates": ["2026-02-30", "2026-03-01"]}`), "conditions.request.time.dates[0]", "is not a date"},
		{cond(`"request.time": {"dates": ["2026-03-02", "2026-03-01"]}`), "conditions.request.time.dates", "earlier date"},
		{cond(`"request.time": {"between": ["08:00", "18:00"], "zone": "Berlin"}`), "conditions.request.time.zone", "IANA"},
		{cond(`"request.time": {"between": ["08:00", "18:00"], "zone": "Local"}`), "conditions.request.time.zone", "IANA"},
		{cond(`"request.time": {"weekday": [1, 5]}`), "conditions.request.time.weekday", `did you mean "weekdays"?`},
		{cond(`"agent.team": {"is": "a"}`), "conditions.agent.team.is", "is not an operator"},
		{cond(`"agent.team": {"In": ["a"]}`), "conditions.agent.team.In", "is not an operator"},
		{cond(`"agent.team": {"in": "a"}`), "conditions.agent.team.in", "write a list"},
		{cond(`"agent.team": {"in": []}`), "conditions.agent.team.in", "never true"},
		{cond(`"agent.team": {"in": ["a", 7]}`), "conditions.agent.team.in[1]", "write text"},
		{cond(`"agent.team": {"in": ["a", ["b"]]}`), "conditions.agent.team.in[1]", "is a list"},
		{cond(`"agent.team": {"in": ["a", null]}`), "conditions.agent.team.in[1]", "is null"},
		{cond(`"agent.team": {"in": [` + list(257) + `]}`), "conditions.agent.team.in[256]", "more than 256"},
		{cond(`"agent.team": {"between": [1, 2]}`), "conditions.agent.team.between", "compares numbers"},
		{cond(`"request.stream": {"in": [true]}`), "conditions.request.stream.in", "write true or false"},
		{cond(`"request.hour_utc": {"between": [1]}`), "conditions.request.hour_utc.between", "two values"},
		{cond(`"request.hour_utc": {"between": [1, 2, 3]}`), "conditions.request.hour_utc.between", "two values"},
		{cond(`"request.hour_utc": {"between": [22, 5]}`), "conditions.request.hour_utc.between", `{"in": [22, 23, 0, 1]}`},
		{cond(`"request.hour_utc": {"between": [13, 24]}`), "conditions.request.hour_utc.between[1]", "from 0 to 23"},
		{cond(`"request.hour_utc": {"between": ["13", 23]}`), "conditions.request.hour_utc.between[0]", "write a number"},
		{cond(`"agent.metadata.x": {"between": ["a", "b"]}`), "conditions.agent.metadata.x.between[0]", "is not a number"},
		{cond(`"agent.metadata.x": {"between": [2, 1]}`), "conditions.agent.metadata.x.between", "the lower one first"},

		// Literals.
		{cond(`"agent.team": ""`), "conditions.agent.team", "is missing"},
		{cond(`"agent.team": 7`), "conditions.agent.team", "write text"},
		{cond(`"agent.team": true`), "conditions.agent.team", "write text"},
		{cond(`"agent.team": "` + strings.Repeat("t", 1025) + `"`), "conditions.agent.team", "1025 bytes"},
		{cond(`"request.stream": "true"`), "conditions.request.stream", "write true or false"},
		{cond(`"request.stream": 1`), "conditions.request.stream", "write true or false"},
		{cond(`"request.bytes": "1"`), "conditions.request.bytes", "write a number"},
		{cond(`"request.bytes": -1`), "conditions.request.bytes", "from 0"},
		{cond(`"request.bytes": 0.5`), "conditions.request.bytes", "integer"},
		{cond(`"request.bytes": 9007199254740992`), "conditions.request.bytes", "digits"},
		{cond(`"request.bytes": 1e400`), "conditions.request.bytes", "digits"},
		{cond(`"agent.metadata.x": 9007199254740993`), "conditions.agent.metadata.x", "digits"},
		{cond(`"request.weekday_utc": 0`), "conditions.request.weekday_utc", "from 1 to 7"},
		{cond(`"request.mode": "sidecar"`), "conditions.request.mode", "gateway, egress"},
		{cond(`"agent.status": "paused"`), "conditions.agent.status", "active, suspended"},
		{cond(`"caller.ip": "10.0.0.0/8"`), "conditions.caller.ip", `{"cidr": "10.0.0.0/8"}`},
		{cond(`"caller.ip": "office"`), "conditions.caller.ip", "is not an IP address"},
		{cond(`"caller.ip": "2001:DB8:0::1"`), "conditions.caller.ip", "2001:db8::1"},
		{cond(`"caller.ip": "::ffff:10.0.0.1"`), "conditions.caller.ip", "10.0.0.1"},
		{cond(`"caller.ip": "fe80::1%eth0"`), "conditions.caller.ip", "is not an IP address"},
	} {
		err := policy.Check([]byte(c.doc))
		var invalid *policy.Invalid
		if !errors.As(err, &invalid) {
			t.Errorf("%.200s: %v, want an *Invalid", c.doc, err)
			continue
		}
		if invalid.Field != c.field || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%.200s:\n got %q: %q: %q\nwant %q: %q", c.doc, invalid.Field, invalid.Problem, invalid.Fix, c.field, c.says)
		}
		if len(err.Error()) > 500 {
			t.Errorf("%.200s: the message has %d bytes", c.doc, len(err.Error()))
		}
	}
}
