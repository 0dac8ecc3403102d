package audit

import (
	"strconv"
	"time"
)

// KindStarted is the kind of a writer's first record in an org.
const KindStarted = "writer.started"

// Started is the first record of a writer in an org. Each start of a process has a new writer
// id.
type Started struct {
	Time   time.Time `json:"time"`
	Org    string    `json:"org"`    // set by the Writer
	Writer string    `json:"writer"` // set by the Writer

	Node        string `json:"node"`         // the process's own name; the chain also stores the authenticated node
	Previous    string `json:"previous"`     // the writer before it in the same folder; empty: the folder was new
	PreviousSeq uint64 `json:"previous_seq"` // that writer's last durable number in this org; 0: none is known
	ReceiptKey  string `json:"receipt_key"`  // Ed25519 key that verifies the writer's receipts, in base64url; empty: they are not signed
}

func (e Started) Head() Head {
	return Head{Kind: KindStarted, Time: e.Time, Org: e.Org, Writer: e.Writer}
}

func (e Started) stamped(org, writer string, now time.Time) Entry {
	e.Org, e.Writer, e.Time = org, writer, or(e.Time, now)
	return e
}

func (e Started) Encode() []byte {
	o := begin(256, KindStarted, e.Time, e.Org, e.Writer, "")
	o.str("node", e.Node, maxName)
	o.str("previous", e.Previous, maxID)
	o.unsigned("previous_seq", e.PreviousSeq)
	o.str("receipt_key", e.ReceiptKey, maxWord)
	return o.end()
}

// unsigned writes n, unless it is 0.
func (o *object) unsigned(name string, n uint64) {
	if n != 0 {
		o.key(name)
		o.b = strconv.AppendUint(o.b, n, 10)
	}
}
