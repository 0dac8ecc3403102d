# How the baseline and an org's policies compose. The order of policies has no effect.
package aid.decision

import data.aid.baseline
import data.aid.policies

decision := {
	"effect": "allow",
	"allow": policies.allow,

	# The key's own rate limit; 0 is no limit.
	"key_rpm": object.get(input.caller, "key_rate_limit", 0),
} if {
	baseline.ok == true

	# Any deny denies.
	count(policies.deny) == 0
	permitted == true

	# A request that requires approval is denied.
	count(policies.approval) == 0
} else := {
	"effect": "deny",
	"refused": refused,
	"deny": policies.deny,
	"governs": governs,
	"approval": approval,
}

# An agent that no allow policy selects may do what the baseline allows.
permitted if count(policies.governs) == 0

# An agent that allow policies select may do only what one of them permits.
permitted if count(policies.allow) != 0

default refused := set()

refused := baseline.refused if not baseline.ok

default governs := set()

governs := policies.governs if not permitted

default approval := set()

# Only if there is no other reason to deny, since an approval would not help then.
approval := policies.approval if {
	baseline.ok == true
	count(policies.deny) == 0
	permitted == true
}
