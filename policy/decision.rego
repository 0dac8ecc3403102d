# How the baseline and an org's policies compose. Order never matters.
package aid.decision

import data.aid.baseline
import data.aid.policies

decision := {
	"effect": "allow",
	"allow": policies.allow,

	# What is counted for the key itself; 0 is nothing.
	"key_rpm": object.get(input.caller, "key_rate_limit", 0),
} if {
	baseline.ok == true

	# Any deny denies.
	count(policies.deny) == 0
	permitted == true

	# What a person must approve waits for that person.
	count(policies.approval) == 0
} else := {
	"effect": "deny",
	"refused": refused,
	"deny": policies.deny,
	"governs": governs,
	"approval": approval,
}

# An agent that no allow policy selects may do what the baseline lets it.
permitted if count(policies.governs) == 0

# One that some select may do only what one of them permits.
permitted if count(policies.allow) != 0

default refused := set()

refused := baseline.refused if not baseline.ok

default governs := set()

governs := policies.governs if not permitted

default approval := set()

# Asked only if nothing else stands against the request: an approval would not help.
approval := policies.approval if {
	baseline.ok == true
	count(policies.deny) == 0
	permitted == true
}
