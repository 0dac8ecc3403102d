package audit

import "time"

// KindThreshold is the kind of a Threshold.
const KindThreshold = "budget.threshold"

// Threshold says that the charges to a count have reached a share of its cap. The control
// plane records it once for each share, count and period, together with the charge.
type Threshold struct {
	Time   time.Time `json:"time"`
	Org    string    `json:"org"`    // set by the Chain
	Writer string    `json:"writer"` // set by the Chain

	RequestID string `json:"request_id"` // always empty
	AgentID   string `json:"agent_id"`   // whose charge it was

	// As Limit has them.
	PolicyID string `json:"policy_id"`
	Limit    string `json:"limit"`
	Per      string `json:"per"`
	Subject  string `json:"subject"`
	Counter  string `json:"counter"`
	Period   string `json:"period"`

	Threshold      int64 `json:"threshold"` // per cent of MaxNanoUSD: 50, 80 or 100
	MaxNanoUSD     int64 `json:"max_nano_usd"`
	ChargedNanoUSD int64 `json:"charged_nano_usd"` // with the charge that reached it
}

func (e Threshold) Head() Head {
	return Head{Kind: KindThreshold, Time: e.Time, Org: e.Org, Writer: e.Writer, RequestID: e.RequestID, AgentID: e.AgentID}
}

func (e Threshold) stamped(org, writer string, now time.Time) Entry {
	e.Org, e.Writer, e.Time = org, writer, or(e.Time, now)
	return e
}

func (e Threshold) Encode() []byte {
	o := begin(640, KindThreshold, e.Time, e.Org, e.Writer, e.RequestID)
	o.str("agent_id", e.AgentID, maxID)
	o.str("policy_id", e.PolicyID, maxID)
	o.must("limit", e.Limit, maxWord)
	o.str("per", e.Per, maxName)
	o.str("subject", e.Subject, maxName)
	o.must("counter", e.Counter, maxCounter)
	o.must("period", e.Period, maxWord)
	o.always("threshold", e.Threshold)
	o.always("max_nano_usd", e.MaxNanoUSD)
	o.always("charged_nano_usd", e.ChargedNanoUSD)
	return o.end()
}
