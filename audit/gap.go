package audit

import "time"

// KindGap is the kind of a record that replaces lost records.
const KindGap = "record.gap"

// Gap replaces records that the chain lacks and the sidecar no longer has. The sidecar writes
// it, with the number of the last lost record. The control plane never writes a Gap.
type Gap struct {
	Time   time.Time `json:"time"` // of the first record after the gap, so that a resend has equal bytes
	Org    string    `json:"org"`
	Writer string    `json:"writer"` // the writer whose records are lost

	After uint64 `json:"after"` // the chain's last number before the gap; 0: the gap begins with the writer
	Last  uint64 `json:"last"`  // the number of the last lost record

	// Reason is GapRejected if the control plane rejected a record for its form, and the node
	// keeps it in quarantine. It is empty for a lost record.
	Reason string `json:"reason"`
}

// GapRejected is the reason of a gap for a record that is in quarantine on its node.
const GapRejected = "rejected"

func (e Gap) Head() Head { return Head{Kind: KindGap, Time: e.Time, Org: e.Org, Writer: e.Writer} }

func (e Gap) stamped(org, writer string, now time.Time) Entry {
	e.Org, e.Writer, e.Time = org, writer, or(e.Time, now)
	return e
}

func (e Gap) Encode() []byte {
	o := begin(192, KindGap, e.Time, e.Org, e.Writer, "")
	o.unsigned("after", e.After)
	o.unsigned("last", e.Last)
	o.str("reason", e.Reason, maxWord)
	return o.end()
}
