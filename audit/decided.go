package audit

import (
	"cmp"
	"time"
)

// Decided is the first entry of a request: the caller, the request and the decision. It is
// durable before anything is forwarded. It never has the text of a prompt. BodyDigest is
// keyed, so that a short body cannot be guessed from it.
type Decided struct {
	Time   time.Time `json:"time"`
	Org    string    `json:"org"`    // set by the Writer
	Writer string    `json:"writer"` // set by the Writer

	RequestID        string `json:"request_id"`
	AgentID          string `json:"agent_id"`
	AgentName        string `json:"agent_name"`
	AgentFingerprint string `json:"agent_fingerprint"`
	KeyID            string `json:"key_id"` // of the credential
	// CredentialKind is the kind of a credential that is not a key; "": it is a key.
	CredentialKind string `json:"credential_kind"`
	// Workload is the verified name of the workload that the caller presented, also one that is
	// bound to no agent beside a key that counts.
	Workload string `json:"workload"`

	Mode                string   `json:"mode"` // "gateway" or "egress"
	Method              string   `json:"method"`
	Host                string   `json:"host"`
	HostVerified        bool     `json:"host_verified"` // Host is one of the gateway's domains, and policies could use it
	Path                string   `json:"path"`
	Operation           string   `json:"operation"`
	Model               string   `json:"model"`          // as the client requested it
	ModelUnlisted       bool     `json:"model_unlisted"` // the name is in no list, so limits and usage count it as UnlistedModel
	Provider            string   `json:"provider"`
	ProviderID          string   `json:"provider_id"`
	Cluster             string   `json:"cluster"`
	Stream              bool     `json:"stream"`
	Tools               []string `json:"tools"`
	MaxTokens           int64    `json:"max_tokens"`
	InputTokensEstimate int64    `json:"input_tokens_estimate"`
	RequestBytes        int64    `json:"request_bytes"`
	BodyDigest          string   `json:"body_digest"` // "hmac-sha256:" + hex, of the body that was evaluated
	ClientIP            string   `json:"client_ip"`
	UserAgent           string   `json:"user_agent"`

	Effect        string   `json:"effect"` // "allow" or "deny"
	Status        int      `json:"status"` // the status for a rejected caller; 0 if forwarded
	Reasons       []Reason `json:"reasons"`
	PolicyIDs     []string `json:"policy_ids"`
	PolicyVersion string   `json:"policy_version"`
	// PolicyVersions has the version of each of PolicyIDs.
	PolicyVersions []int64 `json:"policy_versions"`
	Limits         []Limit `json:"limits"`
	TraceID        string  `json:"trace_id"`
	// Day is the day of the decision in the org's time zone, if that differs from Time's in
	// UTC. Usage counts on it.
	Day string `json:"day"`

	// ForwardedDigest is the digest of the forwarded bytes, if they differ from the
	// evaluated ones: after a translation, or with inject_usage. Dropped are the fields
	// that a translation left out.
	ForwardedDigest string   `json:"forwarded_digest"`
	Dropped         []string `json:"dropped"`

	// Added are the fields that were added to the request, such as
	// "max_completion_tokens=16384".
	Added []string `json:"added"`

	// Hosts are the hosts that the provider would fetch from or call, for images, files and
	// MCP servers.
	Hosts []string `json:"hosts"`

	// What else policy saw, so that the request can be evaluated again (see package
	// decision, InputOf). Absent in entries of builds before 2026-11-27.
	// InputVersion is the version of policy's input document; 0: policy was not asked,
	// or the entry is of such a build.
	InputVersion       int64     `json:"input_version"`
	AgentTeam          string    `json:"agent_team"`
	AgentEnvironment   string    `json:"agent_environment"`
	AgentTier          string    `json:"agent_tier"`
	AgentAllowedModels []string  `json:"agent_allowed_models"`
	AgentMetadata      Scalars   `json:"agent_metadata"`
	KeyScopes          []string  `json:"key_scopes"`
	KeyAllowedModels   []string  `json:"key_allowed_models"`
	KeyRateLimit       int64     `json:"key_rate_limit"` // requests per minute; 0: none
	KeyExpiresAt       time.Time `json:"key_expires_at"` // zero: never
	OrgTier            string    `json:"org_tier"`
	SessionID          string    `json:"session_id"`  // set by the caller
	OwnSession         string    `json:"own_session"` // the sidecar's id of the session, if the caller set none
	BodyBytes          int64     `json:"body_bytes"`  // size of the decoded body; RequestBytes is the size as received

	// What is held under USD caps until the request is completed: one amount, held in the
	// count of each cap in Limits. 0: no cap applies, or the request costs nothing.
	ReservedNanoUSD int64  `json:"reserved_nano_usd"`
	PriceVersion    string `json:"price_version"` // names the price lists that the amount was made from

	// What the agent had spent, as policy saw it. Nil: no policy reads it, or it was not known.
	Spend *Spend `json:"spend"`

	// The decision if the policies in shadow were enforced. ShadowEffect is "" if the org has
	// none, or if no policy was evaluated.
	ShadowEffect    string   `json:"shadow_effect"`
	ShadowReasons   []Reason `json:"shadow_reasons"`
	ShadowPolicyIDs []string `json:"shadow_policy_ids"`

	// Clipped names the fields that are not complete: text that was cut or redacted, and
	// lists and objects with elements left out.
	Clipped []string `json:"clipped"`

	// Omitted counts the elements that were left out because the entry would have been too
	// long. They are of Tools, Reasons, PolicyIDs, Limits, Dropped, Hosts, ShadowReasons and
	// ShadowPolicyIDs.
	Omitted int64 `json:"omitted"`
}

// Spend is what an agent had spent, by the last response of the control plane.
type Spend struct {
	DayNanoUSD   *int64 `json:"day_nano_usd"` // nil: not known
	MonthNanoUSD *int64 `json:"month_nano_usd"`
	AgeMS        int64  `json:"age_ms"` // of these figures, at the decision
}

// Reason is a reason of a decision.
type Reason struct {
	Code     string `json:"code"`
	Message  string `json:"message,omitempty"`
	PolicyID string `json:"policy_id,omitempty"`
}

// Limit is a limit that applied. Entries of builds before 2026-11-27 have the first three
// members only.
type Limit struct {
	Source string `json:"source"` // "key" or a policy's id
	Name   string `json:"name"`   // Limit, as entries had it before
	Value  int64  `json:"value"`  // Max, as entries had it before

	PolicyID string `json:"policy_id"` // the policy that sets it; empty: the key does
	Limit    string `json:"limit"`     // "rpm", "tpm", "concurrent", "max_tokens", "daily_usd_cap", "monthly_usd_cap"
	Per      string `json:"per"`       // what it counts for: "agent", "key", "policy", "org", an attribute, or two joined with "+"
	Subject  string `json:"subject"`   // the value of Per for this request
	Counter  string `json:"counter"`   // the full name of the count, the period included; empty: it counts nothing
	Period   string `json:"period"`    // of a cap: "2026-11" or "2026-11-27", in the org's time zone
	Max      int64  `json:"max"`       // requests, tokens, or nano-dollars
	Raised   int64  `json:"raised"`    // of Max: nano-dollars that raises have added
	Left     int64  `json:"left"`      // what it had left after this decision; below 0: it is in debt
}

// Session is the id of the request's session.
func (e Decided) Session() string { return cmp.Or(e.SessionID, e.OwnSession) }

func (e Decided) Head() Head {
	return Head{Kind: KindDecided, Time: e.Time, Org: e.Org, Writer: e.Writer, RequestID: e.RequestID, AgentID: e.AgentID}
}

func (e Decided) stamped(org, writer string, now time.Time) Entry {
	e.Org, e.Writer, e.Time = org, writer, or(e.Time, now)
	return e
}

func (e Decided) Encode() []byte {
	o := begin(1024, KindDecided, e.Time, e.Org, e.Writer, e.RequestID)
	o.str("agent_id", e.AgentID, maxID)
	o.str("agent_name", e.AgentName, maxName)
	o.str("agent_fingerprint", e.AgentFingerprint, maxID)
	o.str("key_id", e.KeyID, maxID)
	o.str("credential_kind", e.CredentialKind, maxWord)
	o.str("workload", e.Workload, maxPath)
	o.str("mode", e.Mode, maxWord)
	o.str("method", e.Method, maxWord)
	o.str("host", e.Host, maxName)
	o.flag("host_verified", e.HostVerified)
	o.str("path", e.Path, maxPath)
	o.str("operation", e.Operation, maxWord)
	o.str("model", e.Model, maxName)
	o.flag("model_unlisted", e.ModelUnlisted)
	o.str("provider", e.Provider, maxName)
	o.str("provider_id", e.ProviderID, maxID)
	o.str("cluster", e.Cluster, maxID)
	o.flag("stream", e.Stream)
	e.Omitted += o.strs("tools", e.Tools, maxTools, maxID)
	o.num("max_tokens", e.MaxTokens)
	o.num("input_tokens_estimate", e.InputTokensEstimate)
	o.num("request_bytes", e.RequestBytes)
	o.str("body_digest", e.BodyDigest, maxID)
	o.str("client_ip", e.ClientIP, maxID)
	o.str("user_agent", e.UserAgent, maxName)
	o.must("effect", e.Effect, maxWord)
	o.num("status", int64(e.Status))
	e.Omitted += o.reasons("reasons", e.Reasons)
	e.Omitted += o.strs("policy_ids", e.PolicyIDs, maxIDs, maxID)
	o.str("policy_version", e.PolicyVersion, maxID)
	o.nums("policy_versions", e.PolicyVersions, maxIDs)
	if n := len(e.Limits); n > 0 {
		o.key("limits")
		o.open('[')
		for _, l := range e.Limits[:min(n, maxLimits)] {
			o.open('{')
			o.must("source", l.Source, maxID)
			o.must("name", l.Name, maxWord)
			o.always("value", l.Value)
			o.str("policy_id", l.PolicyID, maxID)
			o.str("limit", l.Limit, maxWord)
			o.str("per", l.Per, maxName)
			o.str("subject", l.Subject, maxName)
			o.str("counter", l.Counter, maxCounter)
			o.str("period", l.Period, maxWord)
			o.always("max", l.Max)
			o.num("raised", l.Raised)
			o.always("left", l.Left)
			o.close('}')
		}
		o.close(']')
		e.Omitted += int64(max(0, n-maxLimits))
	}
	o.str("trace_id", e.TraceID, maxWord)
	o.str("day", e.Day, maxWord)
	o.str("forwarded_digest", e.ForwardedDigest, maxID)
	e.Omitted += o.strs("dropped", e.Dropped, maxDropped, maxID)
	e.Omitted += o.strs("added", e.Added, maxIDs, maxID)
	e.Omitted += o.strs("hosts", e.Hosts, maxHosts, maxName)
	o.num("input_version", e.InputVersion)
	o.str("agent_team", e.AgentTeam, maxName)
	o.str("agent_environment", e.AgentEnvironment, maxName)
	o.str("agent_tier", e.AgentTier, maxName)
	o.strs("agent_allowed_models", e.AgentAllowedModels, maxModels, maxName)
	o.scalars("agent_metadata", e.AgentMetadata)
	o.strs("key_scopes", e.KeyScopes, maxIDs, maxWord)
	o.strs("key_allowed_models", e.KeyAllowedModels, maxModels, maxName)
	o.num("key_rate_limit", e.KeyRateLimit)
	o.instant("key_expires_at", e.KeyExpiresAt)
	o.str("org_tier", e.OrgTier, maxName)
	o.str("session_id", e.SessionID, maxName)
	o.str("own_session", e.OwnSession, maxID)
	o.num("body_bytes", e.BodyBytes)
	o.num("reserved_nano_usd", e.ReservedNanoUSD)
	o.str("price_version", e.PriceVersion, maxID)
	if s := e.Spend; s != nil {
		o.key("spend")
		o.open('{')
		if s.DayNanoUSD != nil {
			o.always("day_nano_usd", *s.DayNanoUSD)
		}
		if s.MonthNanoUSD != nil {
			o.always("month_nano_usd", *s.MonthNanoUSD)
		}
		o.always("age_ms", s.AgeMS)
		o.close('}')
	}
	o.str("shadow_effect", e.ShadowEffect, maxWord)
	e.Omitted += o.reasons("shadow_reasons", e.ShadowReasons)
	e.Omitted += o.strs("shadow_policy_ids", e.ShadowPolicyIDs, maxIDs, maxID)
	o.clipped(e.Clipped)
	o.num("omitted", e.Omitted)
	return o.end()
}

// reasons writes a list of reasons and returns how many it left out.
func (o *object) reasons(name string, rs []Reason) (omitted int64) {
	n := len(rs)
	if n == 0 {
		return 0
	}
	o.key(name)
	o.open('[')
	for _, r := range rs[:min(n, maxReasons)] {
		o.open('{')
		o.must("code", r.Code, maxWord)
		o.str("message", r.Message, maxMessage)
		o.str("policy_id", r.PolicyID, maxID)
		o.close('}')
	}
	o.close(']')
	return int64(max(0, n-maxReasons))
}
