# How the baseline and an org's policies compose. Order never matters.
package aid.decision

import data.aid.baseline
import data.aid.policies

# Deny is what is left when nothing else holds.
default effect := "deny"

# Any deny denies.
effect := "allow" if {
	count(baseline.refused) == 0
	count(policies.deny) == 0
	permitted
}

# An agent that no allow policy selects may do what the baseline lets it.
permitted if not policies.governed

# One that some select may do only what one of them permits.
permitted if count(policies.allow) != 0

default governs := set()

governs := policies.governs if not permitted

decision := {
	"effect": effect,
	"refused": baseline.refused,
	"deny": policies.deny,
	"allow": policies.allow,
	"governs": governs,
	"limits": baseline.limits,
}
