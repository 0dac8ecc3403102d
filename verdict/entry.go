package verdict

import (
	"cmp"
	"slices"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
)

// Decided is the first entry of a request: the caller, the request and the decision.
func (v *Verdict) Decided(o *Org, c identity.Caller, r *Request) audit.Decided {
	a, k := c.Agent, c.Key
	d := audit.Decided{
		Time: v.Time, RequestID: r.ID, TraceID: r.TraceID,
		AgentID: a.ID, AgentName: a.Name, AgentFingerprint: a.Fingerprint, KeyID: k.ID, CredentialKind: credentialKind(k), Workload: r.Workload,
		Mode: r.Mode, Method: r.Method, Host: r.Host, HostVerified: r.HostVerified, Path: r.Path, ClientIP: r.ClientIP, UserAgent: r.UserAgent,
		Operation: cmp.Or(v.Call.Endpoint.Operation, r.Endpoint.Operation), Model: v.Call.Model, ModelUnlisted: v.unlisted(), Stream: v.Call.Stream, Tools: v.Call.Tools,
		MaxTokens: v.Call.MaxTokens, InputTokensEstimate: v.Call.InputTokensEstimate, RequestBytes: v.BodyBytes, BodyDigest: v.Digest,
		Provider: v.Provider.Name, ProviderID: v.Provider.ID, Cluster: v.Provider.Cluster, Hosts: v.Call.Hosts,
		AgentTeam: a.Team, AgentEnvironment: a.Environment, AgentTier: a.Tier, AgentAllowedModels: a.AllowedModels, AgentMetadata: audit.Scalars(a.Metadata),
		KeyScopes: k.Scopes, KeyAllowedModels: k.AllowedModels, KeyRateLimit: k.RateLimit, KeyExpiresAt: k.ExpiresAt,
		OrgTier: o.Tier, SessionID: r.Session, OwnSession: r.OwnSession, BodyBytes: int64(len(v.Call.Body)),
		Effect: policy.Deny.String(), PolicyIDs: v.Decision.PolicyIDs, PolicyVersion: v.Decision.PolicyVersion, PolicyVersions: v.Decision.Versions, Day: v.dayUnless(v.Time),
	}
	if v.Decision.PolicyVersion != "" {
		d.InputVersion = inputVersion
	}
	for _, text := range [...]struct {
		name string
		s    *string
	}{{"method", &d.Method}, {"host", &d.Host}, {"path", &d.Path}, {"user_agent", &d.UserAgent}, {"model", &d.Model}, {"session_id", &d.SessionID}} {
		if identity.FindSecrets([]byte(*text.s)) || o.Tokens != nil && o.Tokens([]byte(*text.s)) {
			*text.s = redacted
			d.Clipped = append(d.Clipped, text.name)
		}
	}
	refused := v.Rejection()
	if refused == nil {
		d.Effect = policy.Allow.String()
		d.ForwardedDigest, d.Dropped, d.Added = v.ForwardedDigest, v.Forward.Dropped(), v.Forward.Added()
	} else {
		d.Status = refused.Status
	}
	d.Reasons = reasons(v.Decision.Reasons)
	if v.Shadow.PolicyVersion != "" {
		d.ShadowEffect, d.ShadowReasons, d.ShadowPolicyIDs = v.Shadow.Effect.String(), reasons(v.Shadow.Reasons), v.Shadow.PolicyIDs
	}
	if refused != nil && !slices.ContainsFunc(d.Reasons, func(r audit.Reason) bool { return r.Code == refused.Code }) {
		// The code only: a message may quote the request.
		d.Reasons = append(d.Reasons, audit.Reason{Code: refused.Code})
	}
	d.Limits, d.Spend = v.limits(), v.spend
	if refused == nil && v.capped() {
		d.ReservedNanoUSD, d.PriceVersion = v.worst, v.PriceVersion
	}
	return d
}

// dayUnless is the day of the decision in the org's time zone, or "" if it is the day of t in
// UTC.
func (v *Verdict) dayUnless(t time.Time) string {
	if v.day == t.UTC().Format(time.DateOnly) {
		return ""
	}
	return v.day
}

// credentialKind is the kind of a credential that is not a key. Entries of keys have none, as
// before there were other kinds.
func credentialKind(k identity.Key) string {
	if k.Kind == identity.KindKey {
		return ""
	}
	return string(k.Kind)
}

// unlisted reports whether the request names a model that is in no list.
func (v *Verdict) unlisted() bool { return v.Call.Model != "" && !v.listed }

func reasons(rs []policy.Reason) (out []audit.Reason) {
	for _, r := range rs {
		out = append(out, audit.Reason{Code: r.Code, Message: r.Message, PolicyID: r.PolicyID})
	}
	return out
}

// The outcomes of audit.Settled. A request of an unknown outcome has
// audit.OutcomeUnknown.
const (
	OutcomeCompleted     = "completed"
	OutcomeRefused       = "refused"
	OutcomeProviderError = "provider_error"
	OutcomeClientClosed  = "client_closed"
	OutcomeUpstreamReset = "upstream_reset"
	OutcomeBrokenOff     = "broken_off"
	OutcomeCut           = "cut"
	OutcomeFailed        = "failed"
)

// Ending is how a request ended.
type Ending struct {
	Time, Began time.Time
	DecidedSeq  uint64 // the writer's number of the first entry
	Outcome     string // of audit.Settled
	Status      int

	Usage             provider.Usage
	ResponseModel     string
	Service           string // the service tier in a header of the response
	ResponseBytes     int64
	ProviderStatus    int   // of the provider's response; 0: none came
	OutputSeen        int64 // tokens of the output that passed, at an estimate
	NotSent           bool  // it is certain that the provider received nothing
	FirstByte         time.Duration
	ProviderRequestID string
	Lost              []string
}

// Settled is the second entry of a request. pricer may be nil: then no cost is known.
// forwarded reports that the recorded decision allowed the request.
func (v *Verdict) Settled(c identity.Caller, r *Request, e Ending, forwarded bool, pricer Pricer) audit.Settled {
	u := e.Usage
	if u.Source == "" {
		u.Source = absent
	}
	cost, priced := v.cost(e, u, forwarded, pricer)
	charged, basis := v.charge(e, u, forwarded, cost, priced, pricer)
	return audit.Settled{
		Time: e.Time, RequestID: r.ID, DecidedSeq: e.DecidedSeq, AgentID: c.Agent.ID, AgentTeam: c.Agent.Team, KeyID: c.Key.ID,
		Provider: v.Provider.Name, Model: provider.Clip(v.Call.Model, 256), ModelUnlisted: v.unlisted(), ResponseModel: e.ResponseModel,
		Outcome: e.Outcome, Status: e.Status,
		Usage: audit.Usage{
			InputTokens: u.InputTokens, OutputTokens: u.OutputTokens, CachedTokens: u.CachedTokens,
			CacheWriteTokens: u.CacheWriteTokens, ReasoningTokens: u.ReasoningTokens, Source: u.Source,
		},
		ResponseBytes: e.ResponseBytes, DurationUS: e.Time.Sub(e.Began).Microseconds(), FirstByteUS: e.FirstByte.Microseconds(),
		ProviderRequestID: e.ProviderRequestID, Lost: e.Lost, CostNanoUSD: cost, Priced: priced,
		ChargedNanoUSD: charged, ChargeBasis: basis, Overrun: charged > v.worst && basis != "", PolicyIDs: v.Decision.PolicyIDs, Day: v.dayUnless(e.Time), SessionID: cmp.Or(r.Session, r.OwnSession),
	}
}

// cost returns the provider's charge for the request, or false if it is not known. A
// request without a charge costs 0, which is known. A response that broke off has figures
// up to some event only.
func (v *Verdict) cost(e Ending, u provider.Usage, forwarded bool, pricer Pricer) (nanoUSD int64, known bool) {
	switch {
	case forwarded && !v.Call.Endpoint.Charges(v.Provider.Kind):
		return 0, true
	case pricer == nil, u.Contradicts, e.Outcome != OutcomeCompleted, v.empty(e, u):
		return 0, false
	case u.Service == "":
		u.Service = e.Service
	}
	return pricer.Cost(v.Provider, v.Call.Model, e.ResponseModel, u, e.Began)
}

// redacted replaces text that contains one of our secrets.
const redacted = "[redacted]"
