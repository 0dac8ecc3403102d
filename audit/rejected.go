package audit

import (
	"net/netip"
	"slices"
	"time"
)

// KindRepeated is the kind of an entry that counts equal rejections of one key.
const KindRepeated = "callers.rejected"

// RepeatedRejections counts the requests with a key that may not be used, such as a
// revoked one, for about a minute. The first of them has a request.decided of its own.
type RepeatedRejections struct {
	Time    time.Time `json:"time"`
	Org     string    `json:"org"`    // set by the Writer
	Writer  string    `json:"writer"` // set by the Writer
	AgentID string    `json:"agent_id"`

	KeyID   string    `json:"key_id"`
	Cause   string    `json:"cause"` // the error code, such as key_revoked
	Count   int64     `json:"count"` // without the first
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Samples []string  `json:"samples"` // up to 20 prefixes of peers: /24 of IPv4, /48 of IPv6
}

func (e RepeatedRejections) Head() Head {
	return Head{Kind: KindRepeated, Time: e.Time, Org: e.Org, Writer: e.Writer, AgentID: e.AgentID}
}

func (e RepeatedRejections) stamped(org, writer string, now time.Time) Entry {
	e.Org, e.Writer, e.Time = org, writer, or(e.Time, now)
	return e
}

func (e RepeatedRejections) Encode() []byte {
	o := begin(512, KindRepeated, e.Time, e.Org, e.Writer, "")
	o.str("agent_id", e.AgentID, maxID)
	o.str("key_id", e.KeyID, maxID)
	o.must("cause", e.Cause, maxWord)
	o.always("count", e.Count)
	o.must("first", clampYear(e.First.UTC()).Format(timeLayout), maxWord)
	o.must("last", clampYear(e.Last.UTC()).Format(timeLayout), maxWord)
	o.strs("samples", e.Samples, maxSamples, maxWord)
	return o.end()
}

const (
	// maxRepeats bounds the keys whose rejections are counted at once, and
	// maxRepeatsOfOrg those of one org. Requests with other keys are recorded each.
	maxRepeats      = 4096
	maxRepeatsOfOrg = 256
)

// Rejection is what equal rejections have in common.
type Rejection struct{ Org, AgentID, KeyID, Cause string }

// repeats counts rejections. Writer.countMu guards it.
type repeats struct {
	of   map[Rejection]*RepeatedRejections
	orgs map[string]int // of each org in of
}

func newRepeats() repeats {
	return repeats{make(map[Rejection]*RepeatedRejections), make(map[string]int)}
}

// Rejected notes that a rejection is durable as an entry of its own. For about a minute,
// Repeated counts equal ones.
func (w *Writer) Rejected(r Rejection) {
	if !validID(r.Org) || r.KeyID == "" {
		return
	}
	w.countMu.Lock()
	defer w.countMu.Unlock()
	if w.repeats.of[r] != nil || len(w.repeats.of) >= maxRepeats || w.repeats.orgs[r.Org] >= maxRepeatsOfOrg {
		return
	}
	w.repeats.of[r] = &RepeatedRejections{AgentID: r.AgentID, KeyID: r.KeyID, Cause: r.Cause}
	w.repeats.orgs[r.Org]++
}

// Repeated counts a rejection if an equal one was recorded less than about a minute ago.
// False: it is not counted, and must be recorded.
func (w *Writer) Repeated(r Rejection, peer netip.Addr) bool {
	now := w.c.Now().UTC()
	w.countMu.Lock()
	defer w.countMu.Unlock()
	c := w.repeats.of[r]
	if c == nil {
		return false
	}
	if c.Count == 0 {
		c.First = now
	}
	c.Count++
	c.Last = now
	if s := PeerPrefix(peer); s != "" && len(c.Samples) < maxSamples && !slices.Contains(c.Samples, s) {
		c.Samples = append(c.Samples, s)
	}
	w.metrics.repeated.Inc()
	return true
}
