package verdict

import (
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
)

// input is what policy sees. It is a published contract: see docs/policy.md.
func (o *Org) input(c identity.Caller, r *Request, v *Verdict) policy.Input {
	a, k := c.Agent, c.Key
	return policy.Input{
		Agent: policy.AgentAttrs{
			ID: a.ID, Name: a.Name, Team: a.Team, Environment: a.Environment, Tier: a.Tier, Status: string(a.Status),
			AllowedModels: a.AllowedModels, Metadata: a.Metadata,
		},
		Request: policy.RequestAttrs{
			Operation: r.Endpoint.Operation, Scope: r.Endpoint.Scope, Provider: v.Provider.Name, Model: v.Call.Model,
			Mode: r.Mode, Host: r.Host, Path: r.Path, Stream: v.Call.Stream,
			MaxTokens: v.Call.MaxTokens, InputTokensEstimate: v.Call.InputTokensEstimate, Bytes: int64(len(v.Call.Body)),
			Tools: v.Call.Tools, URLHosts: v.Call.Hosts, Time: v.Time,
		},
		Caller: policy.CallerAttrs{
			KeyID: k.ID, KeyScopes: k.Scopes, KeyAllowedModels: k.AllowedModels, KeyExpiresAt: k.ExpiresAt,
			KeyStatus: active, // a key that is not is rejected before policy
			IP:        r.ClientIP, UserAgent: r.UserAgent, KeyRateLimit: k.RateLimit,
		},
		Org: policy.OrgAttrs{ID: o.ID, Tier: o.Tier},
	}
}

// active is the status of each key and agent that policy gets to see.
const active = string(identity.Active)
