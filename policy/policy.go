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
	Place     int64 // its position in lists; Postgres assigns it, in the order of the commits
}

// Effect is the effect of a decision or a policy. The zero value denies.
type Effect uint8

const (
	Deny Effect = iota
	Allow

	requireApproval // only in documents; this version denies such a request
)

// State sets whether a policy is enforced. A document without a state is Enabled.
type State string

const (
	Enabled  State = "enabled"
	Disabled State = "disabled" // stored, and neither evaluated nor enforced
	Shadow   State = "shadow"   // evaluated and recorded, and not enforced
)

// String returns the effect as documents, audit entries and headers spell it.
func (e Effect) String() string {
	if e == Allow {
		return "allow"
	}
	return "deny"
}

// Input is the input document of docs/policy.md in Go. A zero field is a missing attribute,
// and no condition on a missing attribute is true. Booleans, and numbers other than
// MaxTokens, are never missing.
type Input struct {
	Agent   AgentAttrs
	Request RequestAttrs
	Caller  CallerAttrs
	Spend   SpendAttrs
	Org     OrgAttrs
}

// AgentAttrs are the attributes of the agent that sends the request.
type AgentAttrs struct {
	ID            string
	Name          string
	Team          string
	Environment   string
	Tier          string
	Status        string         // any other than "active" is rejected
	AllowedModels []string       // exact names, or patterns with "*"; empty: no model
	Metadata      map[string]any // strings, numbers and booleans; other values count as missing
}

// RequestAttrs are the attributes of the request.
type RequestAttrs struct {
	Operation           string // "chat.completions", …
	Scope               string // the scope that the key must have: "chat:completions", …
	Provider            string // its name
	Model               string // as the client requests it
	Counted             string // the model that limits count for: Model, or Unlisted for one that is in no list
	Mode                string // "gateway" or "egress"
	Host                string
	Path                string
	Stream              bool
	MaxTokens           int64 // 0: the request sets none
	InputTokensEstimate int64
	Bytes               int64
	Tools               []string  // every tool that the request involves
	ToolFamilies        []string  // the families of Tools; a deny on a tool may name a family
	ToolsOther          bool      // a tool has no family
	SessionID           string    // as the caller states it
	URLHosts            []string  // every host of a URL that the provider would fetch or call
	Time                time.Time // the time of the decision
}

// CallerAttrs are the attributes of the credential, a key or an identity, and of the connection.
type CallerAttrs struct {
	Kind             string   // of the credential: "key", or of an identity without a key
	KeyID            string   // of the credential
	KeyScopes        []string // "*" is every scope; empty: no scope
	KeyAllowedModels []string // empty: the agent's
	KeyExpiresAt     time.Time
	KeyStatus        string // any other than "active" is rejected
	KeyRateLimit     int64  // requests per minute; 0: the key has no limit
	KeyLine          string // the first key of those that KeyID was rotated from; only limits use it
	Session          string // names the caller's session; only limits use it
	IP               string
	UserAgent        string
}

// SpendAttrs are what the agent has spent so far, in nano-dollars, as far as it is known. They
// steer decisions. They cap nothing, since they are some seconds old.
type SpendAttrs struct {
	Day, Month *int64 // nil: not known
}

// OrgAttrs are the attributes of the org.
type OrgAttrs struct {
	ID   string
	Tier string
}

// Decision is the result of Decide. The zero value denies.
type Decision struct {
	Effect Effect

	// Reasons are why the request is denied; empty for Allow. The first one goes to the
	// caller. There are at most maxReasons.
	Reasons []Reason

	// PolicyIDs names the policies that decided:
	//
	//   - of an allowed request, those that permit it
	//   - of a rejected request, those that deny it
	//   - of a rejected request that no policy permits, then those that govern the agent
	//
	// Each list is in the order of ids, and there are at most maxPolicyIDs.
	PolicyIDs []string

	// Versions has the version of each of PolicyIDs.
	Versions []int64

	// PolicyVersion names the set of policies that was evaluated: "sha256:" + hex.
	PolicyVersion string

	// Limits are the limits of an allowed request: the key's, then those of the policies
	// that permit it, in the order of ids. If one of them is used up, the caller must
	// reject the request.
	Limits []Limit

	// Err is the cause of policy_error or policy_timeout. It is for the log only, and does
	// not go to the caller.
	Err error
}

const (
	maxReasons   = 16
	maxPolicyIDs = 32
)

// Reason is one reason why a request is denied.
type Reason struct {
	Code     string // docs/policy.md lists them
	Message  string // for the caller; it does not quote the request
	PolicyID string // the policy that denies; empty for the baseline
}

// Limit is a limit that applies to a request.
type Limit struct {
	Source  string // "key", or the id of the policy that sets it
	Name    string // "rpm", "tpm", "concurrent", "max_tokens", "daily_usd_cap", "monthly_usd_cap", or one of a session
	Value   int64  // requests, tokens, or the nano-dollars of a cap
	Raised  int64  // of Value: what raises have added
	Per     string // what it counts for: "agent", "key", "policy", "org", an attribute, or two joined with "+"
	Subject string // the value of that for this request; "" if it has none
	Key     string // names the count, without a period: "key:KEY" or "policy:POLICY:rpm:agent:AGENT"
}

// Invalid is what is wrong with a document, and how to fix it.
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
