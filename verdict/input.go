package verdict

import (
	"cmp"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
)

// input is the data that policy reads. It is a published contract: see docs/policy.md.
func (o *Org) input(c identity.Caller, r *Request, v *Verdict) policy.Input {
	a, k := c.Agent, c.Key
	families, other := provider.ToolFamilies(v.Call.Tools)
	return policy.Input{
		Agent: policy.AgentAttrs{
			ID: a.ID, Name: a.Name, Team: a.Team, Environment: a.Environment, Tier: a.Tier, Status: string(a.Status),
			AllowedModels: a.AllowedModels, Metadata: a.Metadata,
		},
		Request: policy.RequestAttrs{
			Operation: r.Endpoint.Operation, Scope: r.Endpoint.Scope, Provider: v.Provider.Name, Model: v.Call.Model, Counted: countedModel(v.Call.Model, v.listed),
			Mode: r.Mode, Host: verified(r.Host, r.HostVerified), Path: r.Path, Stream: v.Call.Stream,
			MaxTokens: v.Call.MaxTokens, InputTokensEstimate: v.Call.InputTokensEstimate, Bytes: int64(len(v.Call.Body)),
			Tools: v.Call.Tools, ToolFamilies: families, ToolsOther: other, SessionID: r.Session, URLHosts: v.Call.Hosts, Time: v.Time,
		},
		Caller: policy.CallerAttrs{
			Kind: string(k.Kind), KeyID: k.ID, KeyScopes: k.Scopes, KeyAllowedModels: k.AllowedModels, KeyExpiresAt: k.ExpiresAt,
			KeyStatus: active, // an inactive key is rejected before policy
			IP:        r.ClientIP, UserAgent: r.UserAgent, KeyRateLimit: k.RateLimit, KeyLine: cmp.Or(k.Line, k.ID), Session: v.session.Name,
		},
		Spend: spendOf(v.spend),
		Org:   policy.OrgAttrs{ID: o.ID, Tier: o.Tier},
	}
}

func spendOf(s *audit.Spend) policy.SpendAttrs {
	if s == nil {
		return policy.SpendAttrs{}
	}
	return policy.SpendAttrs{Day: s.DayNanoUSD, Month: s.MonthNanoUSD}
}

// countedModel is the model that limits count for.
func countedModel(model string, listed bool) string {
	if model != "" && !listed {
		return policy.Unlisted
	}
	return model
}

// verified returns the host for policy.
func verified(host string, ok bool) string {
	if !ok {
		return ""
	}
	return host
}

// active is the status of each key and agent in a policy input.
const active = string(identity.Active)

// inputVersion is the version of the input document. An entry has the version that its
// request was decided with.
const inputVersion = 1

// attributes are the attributes of the input document that an entry may have cut or left
// out, by the entry's field.
var attributes = map[string]string{
	"agent_id": "agent.id", "agent_name": "agent.name", "agent_team": "agent.team", "agent_environment": "agent.environment", "agent_tier": "agent.tier",
	"agent_allowed_models": "agent.allowed_models", "agent_metadata": "agent.metadata",
	"operation": "request.operation", "provider": "request.provider", "model": "request.model", "mode": "request.mode", "host": "request.host",
	"path": "request.path", "tools": "request.tools", "hosts": "request.url_hosts", "session_id": "request.session_id",
	"key_id": "caller.key_id", "key_scopes": "caller.key_scopes", "key_allowed_models": "caller.key_allowed_models",
	"client_ip": "caller.ip", "user_agent": "caller.user_agent", "org_tier": "org.tier",
}

// InputOf returns the policy input of a recorded request. unknown lists the attributes that
// differ in the entry. A policy that reads one of these may decide otherwise now. ok is
// false for an entry that cannot be evaluated again: policy was not evaluated, or an
// earlier build recorded too little.
//
// If unknown is empty, a Bundle gives the same decision for this input as for the input of
// Judge.
func InputOf(d audit.Decided) (in policy.Input, unknown []string, ok bool) {
	if d.InputVersion != inputVersion {
		return policy.Input{}, nil, false
	}
	for _, field := range d.Clipped {
		if a, relevant := attributes[field]; relevant {
			unknown = append(unknown, a)
		}
	}
	families, other := provider.ToolFamilies(d.Tools)
	return policy.Input{
		Agent: policy.AgentAttrs{
			ID: d.AgentID, Name: d.AgentName, Team: d.AgentTeam, Environment: d.AgentEnvironment, Tier: d.AgentTier, Status: active,
			AllowedModels: d.AgentAllowedModels, Metadata: d.AgentMetadata,
		},
		Request: policy.RequestAttrs{
			Operation: d.Operation, Scope: provider.ScopeOf(d.Operation), Provider: d.Provider, Model: d.Model, Counted: countedModel(d.Model, !d.ModelUnlisted),
			Mode: d.Mode, Host: verified(d.Host, d.HostVerified), Path: d.Path, Stream: d.Stream,
			MaxTokens: d.MaxTokens, InputTokensEstimate: d.InputTokensEstimate, Bytes: d.BodyBytes,
			Tools: d.Tools, ToolFamilies: families, ToolsOther: other, SessionID: d.SessionID, URLHosts: d.Hosts, Time: d.Time,
		},
		Caller: policy.CallerAttrs{
			Kind: cmp.Or(d.CredentialKind, string(identity.KindKey)), KeyID: d.KeyID, KeyScopes: d.KeyScopes, KeyAllowedModels: d.KeyAllowedModels, KeyExpiresAt: d.KeyExpiresAt,
			KeyStatus: active, IP: d.ClientIP, UserAgent: d.UserAgent, KeyRateLimit: d.KeyRateLimit, KeyLine: lineOf(d), Session: sessionOf(d),
		},
		Spend: spendOf(d.Spend),
		Org:   policy.OrgAttrs{ID: d.Org, Tier: d.OrgTier},
	}, unknown, true
}

// sessionOf is the session that a recorded request counted for, as far as the entry holds it.
func sessionOf(d audit.Decided) string {
	for _, l := range d.Limits {
		if l.Per == "session" {
			return l.Subject
		}
	}
	return ""
}

// lineOf is the line of keys that a recorded request counted for, as far as the entry holds it.
func lineOf(d audit.Decided) string {
	for _, l := range d.Limits {
		if l.PolicyID != "" && l.Per == "key" {
			return l.Subject
		}
	}
	return d.KeyID
}
