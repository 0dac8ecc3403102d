package audit

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// The kinds of the entries of the tie-out, which compares Envoy's access log with the segments
// (package extproc/tieout). The node's home has them.
const (
	KindTieOutHour         = "tieout.hour"
	KindTieOutUnknown      = "tieout.unknown"
	KindRefusedConnections = "connections.refused"
)

// MaxTieOutIDs limits each list of request ids in a TieOutHour.
const MaxTieOutIDs = 100

// TieOutHour has the requests that began in one hour at one process of Envoy, and that have
// ended. A request that ends later is in a further part: the counts of all parts add up.
//
//	Seen = Decided + Unrecorded + Own + Management + Tunnels + Unknown + Missing
type TieOutHour struct {
	Time   time.Time `json:"time"`
	Org    string    `json:"org"`    // set by the Writer
	Writer string    `json:"writer"` // set by the Writer

	Hour    time.Time `json:"hour"`
	Process string    `json:"process"` // of Envoy
	Part    int64     `json:"part"`    // from 1

	Seen       int64 `json:"seen"`       // requests in Envoy's access log
	Decided    int64 `json:"decided"`    // with an entry
	Unrecorded int64 `json:"unrecorded"` // rejected by the sidecar without an entry of their own, or of the readiness check
	Own        int64 `json:"own"`        // Envoy responded, or the client left, before a decision
	Management int64 `json:"management"` // of the management API
	Tunnels    int64 `json:"tunnels"`    // CONNECT, whose requests are counted apart
	Unknown    int64 `json:"unknown"`    // cannot be compared, such as those that began before the comparison did
	Forwarded  int64 `json:"forwarded"`  // of Decided: sent to a provider

	// Differences. Each is 0 unless something was lost, or has a fault.
	Missing       int64    `json:"missing"` // need an entry, and have none
	MissingIDs    []string `json:"missing_ids"`
	Unseen        int64    `json:"unseen"` // entries whose request is not in the access log
	UnseenIDs     []string `json:"unseen_ids"`
	NotAllowed    int64    `json:"not_allowed"` // sent to a provider with another decision than allow
	NotAllowedIDs []string `json:"not_allowed_ids"`
	Unlogged      int64    `json:"unlogged"` // Envoy's counters have more requests than its access log
	Excess        int64    `json:"excess"`   // Envoy sent more requests to providers than its access log has

	// Entries that an earlier part has as unseen, and whose request came later.
	Late    int64    `json:"late"`
	LateIDs []string `json:"late_ids"`

	Open int64 `json:"open"` // entries of requests that have not ended, of any hour
}

// Differing counts the entries with a difference that no other of the entries takes back.
func Differing(entries []Entry) (n int) {
	late := map[string]bool{}
	for _, e := range entries {
		if h, ok := e.(TieOutHour); ok {
			for _, id := range h.LateIDs {
				late[id] = true
			}
		}
	}
	for _, e := range entries {
		if h, ok := e.(TieOutHour); ok {
			for _, id := range h.UnseenIDs {
				if late[id] {
					h.Unseen--
				}
			}
			if h.Differs() {
				n++
			}
		}
	}
	return n
}

// Differs reports whether the hour has a difference.
func (e TieOutHour) Differs() bool {
	return e.Missing+e.Unseen+e.NotAllowed+e.Unlogged+e.Excess > 0
}

func (e TieOutHour) Head() Head {
	return Head{Kind: KindTieOutHour, Time: e.Time, Org: e.Org, Writer: e.Writer}
}

func (e TieOutHour) stamped(org, writer string, now time.Time) Entry {
	e.Org, e.Writer, e.Time = org, writer, or(e.Time, now)
	return e
}

func (e TieOutHour) Encode() []byte {
	o := begin(512, KindTieOutHour, e.Time, e.Org, e.Writer, "")
	o.must("hour", clampYear(e.Hour.UTC()).Format(timeLayout), maxWord)
	o.must("process", e.Process, maxWord)
	o.always("part", e.Part)
	for _, n := range []struct {
		name string
		n    int64
	}{
		{"seen", e.Seen}, {"decided", e.Decided}, {"unrecorded", e.Unrecorded}, {"own", e.Own}, {"management", e.Management}, {"tunnels", e.Tunnels},
		{"unknown", e.Unknown}, {"forwarded", e.Forwarded}, {"missing", e.Missing}, {"unseen", e.Unseen}, {"not_allowed", e.NotAllowed},
		{"unlogged", e.Unlogged}, {"excess", e.Excess}, {"open", e.Open},
	} {
		o.always(n.name, n.n)
	}
	o.strs("missing_ids", e.MissingIDs, MaxTieOutIDs, maxWord)
	o.strs("unseen_ids", e.UnseenIDs, MaxTieOutIDs, maxWord)
	o.strs("not_allowed_ids", e.NotAllowedIDs, MaxTieOutIDs, maxWord)
	o.num("late", e.Late)
	o.strs("late_ids", e.LateIDs, MaxTieOutIDs, maxWord)
	return o.end()
}

// TieOutUnknown is a time for which nothing can be compared. An Envoy that is killed loses the
// lines in its memory.
type TieOutUnknown struct {
	Time   time.Time `json:"time"`
	Org    string    `json:"org"`    // set by the Writer
	Writer string    `json:"writer"` // set by the Writer

	Reason  string    `json:"reason"` // "started", "process_ended", "log_truncated", "log_skipped", "segments_removed", "too_many"
	Process string    `json:"process"`
	From    time.Time `json:"from"`
	To      time.Time `json:"to"`
	Entries int64     `json:"entries"` // of requests that are not in the access log
}

func (e TieOutUnknown) Head() Head {
	return Head{Kind: KindTieOutUnknown, Time: e.Time, Org: e.Org, Writer: e.Writer}
}

func (e TieOutUnknown) stamped(org, writer string, now time.Time) Entry {
	e.Org, e.Writer, e.Time = org, writer, or(e.Time, now)
	return e
}

func (e TieOutUnknown) Encode() []byte {
	o := begin(384, KindTieOutUnknown, e.Time, e.Org, e.Writer, "")
	o.must("reason", e.Reason, maxWord)
	o.str("process", e.Process, maxWord)
	o.must("from", clampYear(e.From.UTC()).Format(timeLayout), maxWord)
	o.must("to", clampYear(e.To.UTC()).Format(timeLayout), maxWord)
	o.always("entries", e.Entries)
	return o.end()
}

// RefusedConnections counts the connections that ended before a request, for one listener and
// cause and about a minute.
type RefusedConnections struct {
	Time   time.Time `json:"time"`
	Org    string    `json:"org"`    // set by the Writer
	Writer string    `json:"writer"` // set by the Writer

	Listener string    `json:"listener"` // aid_egress, aid_inner (through the proxy) or aid_proxy
	Cause    string    `json:"cause"`    // no_server_name, host_not_governed, handshake_failed, connect_rejected
	Count    int64     `json:"count"`
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"`
	Samples  []string  `json:"samples"` // up to 20 prefixes of peers: /24 of IPv4, /48 of IPv6
	Names    []string  `json:"names"`   // up to 20 server names that clients sent
}

func (e RefusedConnections) Head() Head {
	return Head{Kind: KindRefusedConnections, Time: e.Time, Org: e.Org, Writer: e.Writer}
}

func (e RefusedConnections) stamped(org, writer string, now time.Time) Entry {
	e.Org, e.Writer, e.Time = org, writer, or(e.Time, now)
	return e
}

func (e RefusedConnections) Encode() []byte {
	o := begin(512, KindRefusedConnections, e.Time, e.Org, e.Writer, "")
	o.must("listener", e.Listener, maxWord)
	o.must("cause", e.Cause, maxWord)
	o.always("count", e.Count)
	o.must("first", clampYear(e.First.UTC()).Format(timeLayout), maxWord)
	o.must("last", clampYear(e.Last.UTC()).Format(timeLayout), maxWord)
	o.strs("samples", e.Samples, maxSamples, maxWord)
	o.strs("names", e.Names, maxSamples, maxName)
	return o.end()
}

// TieOuts returns the entries of the tie-out in an org's chain since a time, oldest first.
func TieOuts(ctx context.Context, tx pgx.Tx, org string, since time.Time) ([]Entry, error) {
	rows, err := tx.Query(ctx, "SELECT entry FROM audit_entries WHERE org_id = $1 AND appended_at >= $2 AND kind = ANY($3) ORDER BY seq LIMIT 100000",
		org, since, []string{KindTieOutHour, KindTieOutUnknown})
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (Entry, error) {
		var b []byte
		if err := row.Scan(&b); err != nil {
			return nil, err
		}
		return Parse(b)
	})
}
