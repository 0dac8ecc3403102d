package audit

import (
	"strconv"
	"time"
)

// Settled is the second entry of a request: its outcome and its usage.
type Settled struct {
	Time   time.Time `json:"time"`
	Org    string    `json:"org"`    // set by the Writer
	Writer string    `json:"writer"` // set by the Writer

	RequestID     string `json:"request_id"`
	DecidedWriter string `json:"decided_writer"` // the writer of the first entry; empty: this one
	DecidedSeq    uint64 `json:"decided_seq"`    // that writer's number of the first entry; 0: not known
	AgentID       string `json:"agent_id"`
	AgentTeam     string `json:"agent_team"` // at the time of the decision
	KeyID         string `json:"key_id"`
	Provider      string `json:"provider"`
	Model         string `json:"model"`          // as the client requested it
	ModelUnlisted bool   `json:"model_unlisted"` // as in the first entry
	ResponseModel string `json:"response_model"`

	// Outcome is `completed`, `refused`, `provider_error`, `client_closed`,
	// `upstream_reset`, `broken_off`, `cut`, `failed` or OutcomeUnknown.
	Outcome string `json:"outcome"`
	Status  int    `json:"status"`
	Usage   Usage  `json:"usage"`

	ResponseBytes     int64  `json:"response_bytes"`
	DurationUS        int64  `json:"duration_us"`
	FirstByteUS       int64  `json:"first_byte_us"`
	ProviderRequestID string `json:"provider_request_id"`
	CostNanoUSD       int64  `json:"cost_nano_usd"`
	Priced            bool   `json:"priced"` // false: the cost is not known

	// What is charged under USD caps, to the counts that the first entry names. It differs
	// from CostNanoUSD where the cost is not known. ChargeBasis is how the charge was
	// computed; it is empty if the first entry reserved nothing.
	ChargedNanoUSD int64  `json:"charged_nano_usd"`
	ChargeBasis    string `json:"charge_basis"`
	Overrun        bool   `json:"overrun"` // the charge is above what was reserved

	// Lost names the parts of a translated response that the caller's format does not
	// support: "citations".
	Lost []string `json:"lost"`

	// Day is the day of the decision in the org's time zone, if that differs from Time's in UTC.
	Day string `json:"day"`

	// PolicyIDs are the policies that decided about the request.
	PolicyIDs []string `json:"policy_ids"`

	SessionID string `json:"session_id"` // of the decision: the caller's, or the sidecar's
}

// The values of Settled.ChargeBasis.
const (
	BasisNothing     = "nothing_sent"   // the request was not sent to the provider
	BasisError       = "provider_error" // the provider answered with an error, and without usage
	BasisUsage       = "usage"          // the usage that the provider reports, at its price
	BasisSeen        = "seen"           // a response that broke off: what is known to have been used
	BasisReservation = "reservation"    // what was used is not known: all that was reserved
	BasisLapsed      = "lease_ended"    // the same, by the control plane: the sidecar is gone
)

// Usage is the usage that the provider reports.
type Usage struct {
	InputTokens      int64  `json:"input_tokens"`
	OutputTokens     int64  `json:"output_tokens"`
	CachedTokens     int64  `json:"cached_tokens"`
	CacheWriteTokens int64  `json:"cache_write_tokens"`
	ReasoningTokens  int64  `json:"reasoning_tokens"`
	Source           string `json:"source"` // "provider" or "absent"
}

func (e Settled) Head() Head {
	return Head{Kind: KindSettled, Time: e.Time, Org: e.Org, Writer: e.Writer, RequestID: e.RequestID, AgentID: e.AgentID}
}

func (e Settled) stamped(org, writer string, now time.Time) Entry {
	e.Org, e.Writer, e.Time = org, writer, or(e.Time, now)
	return e
}

func (e Settled) Encode() []byte {
	o := begin(640, KindSettled, e.Time, e.Org, e.Writer, e.RequestID)
	o.str("decided_writer", e.DecidedWriter, maxID)
	o.unsigned("decided_seq", e.DecidedSeq)
	o.str("agent_id", e.AgentID, maxID)
	o.str("agent_team", e.AgentTeam, maxName)
	o.str("key_id", e.KeyID, maxID)
	o.str("provider", e.Provider, maxName)
	o.str("model", e.Model, maxName)
	o.flag("model_unlisted", e.ModelUnlisted)
	o.str("response_model", e.ResponseModel, maxName)
	o.must("outcome", e.Outcome, maxWord)
	o.num("status", int64(e.Status))
	o.key("usage")
	o.open('{')
	o.num("input_tokens", e.Usage.InputTokens)
	o.num("output_tokens", e.Usage.OutputTokens)
	o.num("cached_tokens", e.Usage.CachedTokens)
	o.num("cache_write_tokens", e.Usage.CacheWriteTokens)
	o.num("reasoning_tokens", e.Usage.ReasoningTokens)
	o.must("source", e.Usage.Source, maxWord)
	o.close('}')
	o.num("response_bytes", e.ResponseBytes)
	o.num("duration_us", e.DurationUS)
	o.num("first_byte_us", e.FirstByteUS)
	o.str("provider_request_id", e.ProviderRequestID, maxID)
	o.num("cost_nano_usd", e.CostNanoUSD)
	o.key("priced")
	o.b = strconv.AppendBool(o.b, e.Priced)
	o.num("charged_nano_usd", e.ChargedNanoUSD)
	o.str("charge_basis", e.ChargeBasis, maxWord)
	o.flag("overrun", e.Overrun)
	o.strs("lost", e.Lost, maxIDs, maxWord)
	o.strs("policy_ids", e.PolicyIDs, maxIDs, maxID)
	o.str("day", e.Day, maxWord)
	o.str("session_id", e.SessionID, maxName)
	return o.end()
}

// unbelievable returns the name of a figure that no request can have, or "". The chain stores
// such an entry as malformed, and does not add it to the usage.
func (e Settled) unbelievable() string {
	for _, f := range []struct {
		name string
		n    int64
	}{
		{"input_tokens", e.Usage.InputTokens}, {"output_tokens", e.Usage.OutputTokens}, {"cached_tokens", e.Usage.CachedTokens},
		{"cache_write_tokens", e.Usage.CacheWriteTokens}, {"reasoning_tokens", e.Usage.ReasoningTokens}, {"cost_nano_usd", e.CostNanoUSD},
		{"charged_nano_usd", e.ChargedNanoUSD},
	} {
		if f.n < 0 || f.n > maxCount {
			return f.name
		}
	}
	return ""
}
