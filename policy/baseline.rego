# The baseline applies to every request of every agent, in addition to policies.
#
# ok is the complete rule. A missing attribute denies, since each line needs a condition
# that holds. refused has the same conditions with messages. It is evaluated only if ok does
# not hold. (For speed, ok has few references to rules, each with "== true": a rule costs
# 2 µs, a line less than 1 µs, and an equality is the cheapest line.)
package aid.baseline

ok if {
	input.agent.status == "active"
	input.caller.key_status == "active"

	# Times have a fixed width and are in UTC, so they sort as text.
	input.request.time < input.caller.key_expires_at

	scoped == true
	model_allowed == true
}

scoped if input.request.scope in input.caller.key_scopes

# The scope "*" is every scope. No other scope is a pattern.
scoped if {
	input.request.scope
	"*" in input.caller.key_scopes
}

model_allowed if {
	aid.glob(input.agent.allowed_models, input.request.model)
	aid.glob(input.caller.key_allowed_models, input.request.model)
}

# This product lists the models itself, and lists only those that the caller may use.
model_allowed if input.request.operation in {"models.list", "models.get"}

# refused has the reasons to deny the request: a position in their order, a code
# (docs/policy.md lists them), and a message for the caller.

refused contains [10, "agent_suspended", "This agent is suspended."] if input.agent.status == "suspended"

refused contains [11, "agent_inactive", "This agent is not active."] if not agent_known

refused contains [12, "key_revoked", "This API key was revoked."] if input.caller.key_status == "revoked"

refused contains [13, "key_inactive", "This API key is not active."] if not key_known

refused contains [14, "key_expired", "This API key has expired."] if not unexpired

refused contains [20, "scope_missing", "This API key does not have the scope that this operation needs."] if not scoped

refused contains [30, "model_not_allowed", "The agent's allowed_models do not include this model."] if {
	not model_allowed
	not agent_model
}

refused contains [31, "model_not_allowed", "The API key's allowed_models do not include this model."] if {
	not model_allowed
	not key_model
}

# "not" before a rule holds if the rule is undefined. "not" before a function does not hold
# if an argument is undefined. So each condition is a rule with a name.

agent_known if input.agent.status in {"active", "suspended"}

key_known if input.caller.key_status in {"active", "revoked"}

unexpired if input.request.time < input.caller.key_expires_at

agent_model if aid.glob(input.agent.allowed_models, input.request.model)

key_model if aid.glob(input.caller.key_allowed_models, input.request.model)
