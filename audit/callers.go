package audit

import (
	"bytes"
	"net/netip"
	"slices"
	"time"
)

// KindUnknownCallers is the kind of an entry that counts requests without a known caller.
const KindUnknownCallers = "callers.unknown"

// UnknownCallers counts the requests without a known caller, for one cause and about a
// minute.
type UnknownCallers struct {
	Time   time.Time `json:"time"`
	Org    string    `json:"org"`    // set by the Writer
	Writer string    `json:"writer"` // set by the Writer

	Cause   string    `json:"cause"` // such as missing_api_key or unknown_api_key
	Count   int64     `json:"count"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Samples []string  `json:"samples"` // up to 20 prefixes of peers: /24 of IPv4, /48 of IPv6
}

func (e UnknownCallers) Head() Head {
	return Head{Kind: KindUnknownCallers, Time: e.Time, Org: e.Org, Writer: e.Writer}
}

func (e UnknownCallers) stamped(org, writer string, now time.Time) Entry {
	e.Org, e.Writer, e.Time = org, writer, or(e.Time, now)
	return e
}

func (e UnknownCallers) Encode() []byte {
	o := begin(512, KindUnknownCallers, e.Time, e.Org, e.Writer, "")
	o.must("cause", e.Cause, maxWord)
	o.always("count", e.Count)
	o.must("first", clampYear(e.First.UTC()).Format(timeLayout), maxWord)
	o.must("last", clampYear(e.Last.UTC()).Format(timeLayout), maxWord)
	o.strs("samples", e.Samples, maxSamples, maxWord)
	return o.end()
}

const (
	maxSamples = 20
	// maxCounts limits the pairs of org and cause that are counted at once. More pairs are
	// counted under the cause "other". Beyond twice the limit only the metric counts.
	maxCounts = 256
	// countInterval is how often a count becomes an entry.
	countInterval = time.Minute
	// maxCountBytes limits the entries of counts that wait for the control plane. This
	// space is separate from WriterConfig.MaxBacklogBytes.
	maxCountBytes = 16 << 20
)

type countKey struct{ org, cause string }

// Count counts a request without a known caller. It writes nothing: Run writes at most one
// entry per minute for each org and cause. These entries have separate space and never use
// the space of decisions. While that space is full or the disk fails, counts stay in memory.
// The org is the home of the node. For an empty org only the metric counts.
func (w *Writer) Count(org, cause string, peer netip.Addr) {
	w.metrics.unknownCallers.Inc()
	if !validID(org) {
		return
	}
	now := w.c.Now().UTC()
	k := countKey{org, bounded(cause, maxWord)}
	w.countMu.Lock()
	defer w.countMu.Unlock()
	c := w.counts[k]
	if c == nil && len(w.counts) >= maxCounts {
		k.cause = "other"
		c = w.counts[k]
	}
	if c == nil {
		if len(w.counts) >= 2*maxCounts {
			return
		}
		c = &UnknownCallers{Cause: k.cause, First: now}
		w.counts[k] = c
	}
	c.Count++
	c.Last = now
	if s := PeerPrefix(peer); s != "" && len(c.Samples) < maxSamples && !slices.Contains(c.Samples, s) {
		c.Samples = append(c.Samples, s)
	}
}

// PeerPrefix returns the prefix of an address that entries have: a /24 or a /48.
func PeerPrefix(a netip.Addr) string {
	if a = a.Unmap(); !a.IsValid() {
		return ""
	}
	bits := 48
	if a.Is4() {
		bits = 24
	}
	p, err := a.WithZone("").Prefix(bits)
	if err != nil {
		return ""
	}
	return p.String()
}

// writeCounts enqueues the counts, unless their space is full.
func (w *Writer) writeCounts() {
	w.mu.Lock()
	full := w.failed != nil || w.countBytesLocked() >= maxCountBytes || w.diskLocked() != nil
	w.mu.Unlock()
	if full {
		return
	}
	w.countMu.Lock()
	counts, repeated := w.counts, w.repeats
	w.counts, w.repeats = make(map[countKey]*UnknownCallers), newRepeats()
	w.countMu.Unlock()
	for r, c := range repeated.of {
		if c.Count > 0 {
			w.Enqueue(r.Org, *c)
		}
	}
	for k, c := range counts {
		w.Enqueue(k.org, *c)
	}
}

// countBytesLocked returns the bytes of entries of counts in bytesLocked's segments.
func (w *Writer) countBytesLocked() (n int64) {
	for i, s := range w.segs {
		if i == len(w.segs)-1 || s.last > w.passed {
			n += s.counts
		}
	}
	return n
}

// countPrefixes begin the encoded entries of counts: fields have a fixed order.
var countPrefixes = func() (all [][]byte) {
	for _, kind := range []string{KindUnknownCallers, KindRepeated, KindTieOutHour, KindTieOutUnknown, KindRefusedConnections} {
		all = append(all, []byte(`{"v":1,"kind":"`+kind+`",`))
	}
	return all
}()

// isCount says whether an encoded entry is one of counts, which has space of its own.
func isCount(entry []byte) bool {
	return slices.ContainsFunc(countPrefixes, func(p []byte) bool { return bytes.HasPrefix(entry, p) })
}
