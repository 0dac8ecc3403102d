# Tests of baseline.rego and decision.rego, for readers of Rego who do not read Go.
# `go test` runs them (TestRego) against the policies below.
package aid.baseline_test

import data.aid.baseline
import data.aid.decision

request := {
	"agent": {"id": "ag_1", "status": "active", "allowed_models": ["small", "big-*"]},
	"request": {
		"operation": "chat.completions", "scope": "chat:completions", "model": "small",
		"time": "2026-07-01T14:30:00.000000000Z",
	},
	"caller": {
		"key_id": "key_1", "key_status": "active", "key_scopes": ["chat:completions"],
		"key_allowed_models": ["*"], "key_expires_at": "9999-12-31T23:59:59.999999999Z",
	},
	"org": {"id": "org_1"},
}

# without removes a field, and changed sets one.
without(section, name) := object.union(request, {section: null}) if name == ""

without(section, name) := json.remove(request, [concat("/", [section, name])]) if name != ""

changed(section, name, value) := object.union(request, {section: {name: value}})

codes := {code | some [_, code, _] in baseline.refused}

test_ok if baseline.ok with input as request

test_nothing_stands_against_what_is_ok if count(baseline.refused) == 0 with input as request

# A missing attribute denies, with its reason.
test_missing if {
	every field in [
		["agent", "status"], ["agent", "allowed_models"], ["request", "scope"], ["request", "model"], ["request", "time"],
		["caller", "key_status"], ["caller", "key_scopes"], ["caller", "key_allowed_models"], ["caller", "key_expires_at"],
		["agent", ""], ["request", ""], ["caller", ""],
	] {
		not baseline.ok with input as without(field[0], field[1])
		count(baseline.refused) > 0 with input as without(field[0], field[1])
		decision.decision.effect == "deny" with input as without(field[0], field[1])
	}
}

test_no_input if {
	not baseline.ok with input as {}
	codes == {"agent_inactive", "key_inactive", "key_expired", "scope_missing", "model_not_allowed"} with input as {}
}

# An attribute of another type denies, too.
test_other_types if {
	every field in [
		["agent", "status"], ["agent", "allowed_models"], ["request", "scope"], ["request", "model"],
		["caller", "key_status"], ["caller", "key_scopes"], ["caller", "key_allowed_models"],
	] {
		every value in [true, false, null, 7, {}, {"*": "x"}, "*", [7], [["*"]]] {
			object.get(request, field, "") != value
			not baseline.ok with input as changed(field[0], field[1], value)
			decision.decision.effect == "deny" with input as changed(field[0], field[1], value)
		}
	}
}

test_suspended if codes == {"agent_suspended"} with input as changed("agent", "status", "suspended")

test_inactive if codes == {"agent_inactive"} with input as changed("agent", "status", "paused")

test_revoked if codes == {"key_revoked"} with input as changed("caller", "key_status", "revoked")

test_key_inactive if codes == {"key_inactive"} with input as changed("caller", "key_status", "paused")

test_expired if codes == {"key_expired"} with input as changed("caller", "key_expires_at", "2026-07-01T14:30:00.000000000Z")

test_not_yet_expired if baseline.ok with input as changed("caller", "key_expires_at", "2026-07-01T14:30:00.000000001Z")

test_scope if codes == {"scope_missing"} with input as changed("caller", "key_scopes", ["embeddings"])

test_every_scope if baseline.ok with input as changed("caller", "key_scopes", ["*"])

test_scopes_are_no_patterns if codes == {"scope_missing"} with input as changed("caller", "key_scopes", ["chat:*"])

test_agent_model if codes == {"model_not_allowed"} with input as changed("agent", "allowed_models", ["other"])

test_key_model if codes == {"model_not_allowed"} with input as changed("caller", "key_allowed_models", ["other"])

test_glob if baseline.ok with input as changed("request", "model", "big-7")

test_models_are_listed if {
	baseline.ok with input as changed("request", "operation", "models.list")
	baseline.ok with input as json.remove(changed("request", "operation", "models.list"), ["request/model"])
	baseline.ok with input as changed("agent", "allowed_models", []) with input.request.operation as "models.get"
}

# ---- composition ----

none := set()

composed(deny, allow, governs) := d if {
	d := decision.decision with input as request
		with data.aid.policies.deny as deny
		with data.aid.policies.allow as allow
		with data.aid.policies.governs as governs
}

test_no_policy_is_the_baseline if composed(none, none, none) == {"effect": "allow", "allow": none, "key_rpm": 0}

test_permitted if composed(none, {["pol_a", {}]}, {["pol_a"]}).effect == "allow"

test_governed_and_not_permitted if {
	composed(none, none, {["pol_a"]}) == {"effect": "deny", "refused": none, "deny": none, "governs": {["pol_a"]}, "approval": none}
}

test_any_deny_denies if {
	composed({"pol_b"}, {["pol_a", {}]}, {["pol_a"]}) == {"effect": "deny", "refused": none, "deny": {"pol_b"}, "governs": none, "approval": none}
}

test_a_permission_does_not_replace_the_baseline if {
	d := decision.decision with input as changed("caller", "key_scopes", [])
		with data.aid.policies.allow as {["pol_a", {}]}
		with data.aid.policies.governs as {["pol_a"]}
	d.effect == "deny"
	count(d.refused) == 1
}

test_rate_of_the_key if {
	d := decision.decision with input as changed("caller", "key_rate_limit", 60)
	d.key_rpm == 60
}

test_an_approval_is_required if {
	d := decision.decision with input as request
		with data.aid.policies.approval as {"pol_c"}
	d == {"effect": "deny", "refused": none, "deny": none, "governs": none, "approval": {"pol_c"}}
}

# An approval is not required if it could not help.
test_no_approval_of_what_is_denied if {
	d := decision.decision with input as request
		with data.aid.policies.approval as {"pol_c"}
		with data.aid.policies.deny as {"pol_b"}
	d.approval == none
}
