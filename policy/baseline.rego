# The baseline: what binds every request of every agent, whatever policies say.
#
# Each rule is written so that what is missing refuses: "not" holds for a
# condition that is undefined as well as for one that is false.
package aid.baseline

# refused holds what stands against the request: the order in which to tell it, a
# code (docs/policy.md), and a message for the caller.

refused contains [10, "agent_suspended", "This agent is suspended."] if {
	input.agent.status == "suspended"
}

refused contains [11, "agent_inactive", "This agent is not active."] if {
	not input.agent.status in {"active", "suspended"}
}

refused contains [12, "key_revoked", "This API key was revoked."] if {
	input.caller.key_status == "revoked"
}

refused contains [13, "key_inactive", "This API key is not active."] if {
	not input.caller.key_status in {"active", "revoked"}
}

refused contains [14, "key_expired", "This API key has expired."] if not unexpired

refused contains [20, "scope_missing", "This API key does not have the scope that this operation needs."] if not scoped

refused contains [30, "model_not_allowed", "The agent's allowed_models do not include this model."] if not agent_model

refused contains [31, "model_not_allowed", "The API key's allowed_models do not include this model."] if not key_model

# Times are of fixed width and in UTC: their order as text is their order.
unexpired if not input.caller.key_expires_at

unexpired if input.request.time < input.caller.key_expires_at

scoped if input.request.scope in input.caller.key_scopes

scoped if {
	input.request.scope
	"*" in input.caller.key_scopes
}

# What models there are is answered here, with those that the caller may use.
lists if input.request.operation in {"models.list", "models.get"}

# A request that names no model has the model "", which only "*" matches.
model := object.get(input.request, "model", "")

agent_model if lists

agent_model if aid.glob(input.agent.allowed_models, model)

key_model if lists

key_model if not input.caller.key_allowed_models

key_model if aid.glob(input.caller.key_allowed_models, model)

# limits holds what is to be counted for this request beside policies' limits.
limits contains {"source": "key", "name": "rpm", "value": input.caller.key_rate_limit} if {
	input.caller.key_rate_limit != 0
}
