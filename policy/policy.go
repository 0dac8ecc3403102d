package policy

import (
	"strconv"
	"time"
)

// Policy is one policy of an org, as it is stored and served.
type Policy struct {
	ID        string // "pol_…"
	OrgID     string
	Name      string // the document's name; unique in the org
	Version   int64  // counts the changes, from 1
	Document  []byte // JSON: the body of POST /v1/policies, as it was written
	CreatedAt time.Time
	UpdatedAt time.Time
	Place     int64 // where it stands in lists: Postgres gives it, in the order of the commits
}

// Effect is what a decision says. The zero value denies.
type Effect uint8

const (
	Deny Effect = iota
	Allow

	requireApproval // of a document only: until a person can approve, it denies
)

// State says whether a policy is enforced. Enabled is what a document without a state has.
type State string

const (
	Enabled  State = "enabled"
	Disabled State = "disabled" // stored, and neither evaluated nor enforced
	Shadow   State = "shadow"   // evaluated and recorded, and not enforced
)

// String is the effect as documents, records and headers spell it.
func (e Effect) String() string {
	if e == Allow {
		return "allow"
	}
	return "deny"
}

// Input is what a decision is made from: the input document of docs/policy.md, in
// Go. A zero field is an attribute that is missing, and no condition on a missing
// attribute is true. Bools, and numbers other than MaxTokens, are never missing.
type Input struct {
	Agent   AgentAttrs
	Request RequestAttrs
	Caller  CallerAttrs
	Org     OrgAttrs
}

// AgentAttrs says who asks.
type AgentAttrs struct {
	ID            string
	Name          string
	Team          string
	Environment   string
	Tier          string
	Status        string         // "active", or the request is rejected
	AllowedModels []string       // exact, or with "*" for anything; none: no model
	Metadata      map[string]any // strings, numbers and bools; anything else is missing
}

// RequestAttrs says what is asked for.
type RequestAttrs struct {
	Operation           string // "chat.completions", …
	Scope               string // that a key needs for it: "chat:completions", …
	Provider            string // its name
	Model               string // as asked for
	Mode                string // "gateway" or "egress"
	Host                string
	Path                string
	Stream              bool
	MaxTokens           int64 // 0: the request sets none
	InputTokensEstimate int64
	Bytes               int64
	Tools               []string  // every tool that the exchange involves
	ToolFamilies        []string  // the families of Tools, which a deny on a tool may name
	ToolsOther          bool      // some of Tools has no family
	SessionID           string    // as the caller states it
	URLHosts            []string  // every host of a URL that the provider is to fetch or to call
	Time                time.Time // when it is decided
}

// CallerAttrs says with what, and from where.
type CallerAttrs struct {
	KeyID            string
	KeyScopes        []string // "*" is every scope; none: no scope
	KeyAllowedModels []string // none: as the agent's
	KeyExpiresAt     time.Time
	KeyStatus        string // "active", or the request is rejected
	KeyRateLimit     int64  // requests per minute; 0: none of the key's own
	IP               string
	UserAgent        string
}

// OrgAttrs says for whom.
type OrgAttrs struct {
	ID   string
	Tier string
}

// Decision is what Decide says. The zero value denies.
type Decision struct {
	Effect Effect

	// Reasons says why not, the one to tell the caller first; empty for Allow.
	// At most maxReasons.
	Reasons []Reason

	// PolicyIDs names the policies that the effect rests on:
	//
	//   - of an allowed request, those that permit it
	//   - of a rejected request, those that deny it
	//   - of a rejected request that no policy permits, then those that govern the agent
	//
	// Each list is in the order of ids, and there are at most maxPolicyIDs.
	PolicyIDs []string

	// PolicyVersion names the set of policies that was asked: "sha256:" + hex.
	PolicyVersion string

	// Limits holds all that apply to an allowed request: the key's, then those of
	// the policies that permit it, in the order of ids. All of them are to be taken,
	// or the request rejected.
	Limits []Limit

	// Err is why there is no decision, where the reason is policy_error or
	// policy_timeout. It is for a log, and not for the caller.
	Err error
}

const (
	maxReasons   = 16
	maxPolicyIDs = 32
)

// Reason is one thing that stands against a request.
type Reason struct {
	Code     string // docs/policy.md lists them
	Message  string // for the caller; it quotes nothing of the request
	PolicyID string // if a policy is the reason
}

// Limit is a limit that applies to a request.
type Limit struct {
	Source string // "key", or the id of the policy that sets it
	Name   string // "rpm"
	Value  int64  // requests per minute
	Key    string // what is counted: "key:KEY" or "policy:POLICY:agent:AGENT"
}

// Invalid says what is wrong with a document, and what to do about it.
type Invalid struct {
	Field   string // "conditions.request.tool.in[2]"; empty: the document as a whole
	Problem string // "is a number, and the attribute is text"
	Fix     string // "write \"7\""; may be empty
}

func (e *Invalid) Error() string {
	s := e.Problem
	if e.Field != "" {
		s = e.Field + " " + s
	} else {
		s = "the document " + s
	}
	if e.Fix != "" {
		s += ": " + e.Fix
	}
	return s
}

func quote(s string) string { return strconv.QuoteToGraphic(s) }
