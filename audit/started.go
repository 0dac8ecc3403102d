package audit

import (
	"strconv"
	"time"
)

// KindStarted is the kind of a writer's first record in an org.
const KindStarted = "writer.started"

// Started is the first record of a writer in an org. A writer id lives as long as
// its process: each start begins another.
type Started struct {
	Time   time.Time `json:"time"`
	Org    string    `json:"org"`    // set by the Writer
	Writer string    `json:"writer"` // set by the Writer

	Node        string `json:"node"`         // as the process names itself; the chain stores the authenticated node beside it
	Previous    string `json:"previous"`     // the writer before it in the same folder; empty: the folder was new
	PreviousSeq uint64 `json:"previous_seq"` // that writer's last durable number in this org; 0: none is known
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
	return o.end()
}

// unsigned leaves 0 out.
func (o *object) unsigned(name string, n uint64) {
	if n != 0 {
		o.key(name)
		o.b = strconv.AppendUint(o.b, n, 10)
	}
}
