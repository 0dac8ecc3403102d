// Package tieout compares Envoy's access log with the decisions in the sidecar's segments, by
// request id. It shows requests without an entry, and entries without a request. It guards
// against loss and faults, and not against a node that writes both.
//
// Once a second it reads new lines of the log, then the records that are durable. A decision is
// durable before its request is forwarded or answered, so the entry is known when the line is
// compared. Exceptions wait for a short time (hold). The result of each hour is an entry in the
// audit log of the node's home, and metrics.
package tieout

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/envoy"
)

const (
	interval     = time.Second
	saveInterval = 5 * time.Second
	countPause   = 15 * time.Second // between two looks at Envoy's counters
	minute       = time.Minute      // of what is reported together

	// hold is how long a line without an entry waits. The entry of a request that ended before
	// its decision is written after the line, within the time limits of the sidecar.
	hold = 10 * time.Second
	// unseenAfter is how long after a completion the line must be there. Envoy writes the line
	// when the client has the response, and a client may delay that by HTTP/2's flow control.
	// So it is above the idle timeout of streams, 600 s (xds). Envoy's interval of writing adds
	// 10 s if it is not set. A client that reads slowly takes longer still: see unseen.
	unseenAfter = 11 * time.Minute
	// endedAfter is how long lines of a process of Envoy may come after those of the next one.
	endedAfter = 15 * time.Second
	// closeAfter is how long after an hour its first part is written.
	closeAfter = 2 * time.Minute
	// forgetAfter is how long an hour gets further parts under the same count.
	forgetAfter = 48 * time.Hour
	// stuckAfter is how long nothing may be compared before Stuck reports it. If Envoy writes
	// nothing, it is unseenAfter.
	stuckAfter = 5 * time.Minute

	// Limits of what is in memory, and in the state.
	maxPending     = 1 << 18
	maxHeld        = 1 << 16
	maxPossible    = 1 << 13 // lines that a client can cause without a key
	maxUnseen      = 1 << 14
	maxHours       = 256
	maxProcesses   = 64
	maxConnections = 64
	maxNames       = 20
)

// Segments are the sidecar's records; *audit.Writer has them.
type Segments interface {
	Follow(after uint64) *audit.Follower
	Durable() uint64
	Enqueue(org string, e audit.Entry)
}

// Config configures a TieOut.
type Config struct {
	Path     string // Envoy's access log
	Segments Segments
	Home     func() string // the org of the entries; "": only the metrics have the result
	// Counts returns Envoy's counters. Nil: they are not compared.
	Counts func(ctx context.Context) (envoy.Counters, error)

	Now        func() time.Time // nil: time.Now
	Log        *slog.Logger     // nil: nothing is logged
	Registerer prometheus.Registerer
	// Period is the length of what one entry is about. 0: an hour.
	Period time.Duration
}

// TieOut compares. Only one goroutine calls Pass, or Run.
type TieOut struct {
	c       Config
	metrics *metrics
	log     logFile
	follow  *audit.Follower
	s       state
	saved   time.Time
	held    map[string]*heldLine // by id, of s.Held and s.Possible
	unseen  map[string]*unseen   // by id, of s.Unseen
	hours   map[hourKey]*hour    // of s.Hours
	warned  bool

	counted time.Time // the last look at Envoy's counters
	base    *sample   // nil: none yet
	last    *sample

	mu       sync.Mutex // guards the following
	ok       time.Time  // the last pass without an error
	problem  error      // of the last pass
	waits    time.Time  // the oldest completion without a line; zero: none
	lastLine time.Time
}

type hourKey struct {
	start   int64
	process string
}

// hour counts what is not written yet of one hour and process.
type hour struct {
	Start   time.Time
	Process string
	Parts   int64
	Written int64 // Writes when Counts began
	Counts  audit.TieOutHour
}

// pending is a decision whose line has not come.
type pending struct {
	At        time.Time // of the decision
	Allowed   bool
	Settled   time.Time // when the completion was read; zero: it was not
	Abandoned bool      // the process of Envoy is gone
	Lost      string    // why its line may be lost; empty: it may not be
}

// unseen is an entry whose line did not come in time. If the line comes later, the difference
// is taken back.
type unseen struct {
	ID, Process string
	At          time.Time // of the decision
	Allowed     bool
	Written     int64 // Writes when it was counted
	Excused     bool  // it was counted as not known
	done        bool
}

// early is a time in which lines were classified before hold had passed: there were too many.
// Their entries may come later, and then have no line.
type early struct {
	From, Until time.Time // From is zero if all of it is in the audit log
}

// heldLine is a line whose entry has not come.
type heldLine struct {
	ID, Process, Route string
	Start, At          time.Time
	Class              class
	done               bool
}

// ended is a process of Envoy that is gone.
type ended struct {
	Process  string
	From, To time.Time
	Due      time.Time // until then its last requests may still be matched
}

// sample has Envoy's counters beside ours.
type sample struct {
	envoy.Counters
	lines, forwarded int64
	when             time.Time
}

// class says what a line without an entry is.
type class string

const (
	decided    class = "decided" // it has an entry
	unrecorded class = "unrecorded"
	own        class = "own"
	management class = "management"
	tunnel     class = "tunnel"
	unknown    class = "unknown"
	missing    class = "missing" // it needs an entry
)

var classes = []class{decided, unrecorded, own, management, tunnel, unknown, missing}

// New returns a TieOut that continues where the last one stopped. The access log is created if
// it does not exist, so that only this user can read it.
func New(c Config) (*TieOut, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Period == 0 {
		c.Period = time.Hour
	}
	if err := envoy.CheckLogPath(c.Path); err != nil || c.Path == "" {
		return nil, cmp.Or(err, errors.New("the tie-out needs the path of Envoy's access log"))
	}
	t := &TieOut{c: c, log: logFile{path: c.Path}, held: make(map[string]*heldLine), unseen: make(map[string]*unseen), hours: make(map[hourKey]*hour)}
	t.ok = c.Now()
	if err := t.log.create(); err != nil {
		return nil, fmt.Errorf("access log: %w", err)
	}
	if err := t.load(); err != nil {
		return nil, err
	}
	var err error
	if t.metrics, err = newMetrics(t, c.Registerer); err != nil {
		return nil, err
	}
	return t, nil
}

// Run compares until ctx is done, and then once more. What it has then of the current hours is
// written as a part of each.
func (t *TieOut) Run(ctx context.Context) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for ctx.Err() == nil {
		t.pass(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	t.pass(context.WithoutCancel(ctx))
	t.write(t.c.Now(), true)
	t.writeConnections(t.c.Now(), true)
	t.Close()
	return nil
}

// Close saves the state. Run calls it.
func (t *TieOut) Close() {
	if err := t.save(t.c.Now()); err != nil {
		t.c.Log.Error("the state of the tie-out is not saved", "err", err)
	}
	t.follow.Close()
	t.log.close()
}

func (t *TieOut) pass(ctx context.Context) {
	err := t.Pass(ctx)
	if err != nil && ctx.Err() == nil {
		t.c.Log.WarnContext(ctx, "the access log is not compared with the audit log; it is tried again", "err", err)
	}
}

// Stuck returns why nothing is compared, or nil.
func (t *TieOut) Stuck() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.c.Now()
	switch {
	case t.problem != nil && now.Sub(t.ok) > stuckAfter:
		return fmt.Errorf("tie-out: nothing was compared for %v: %w", now.Sub(t.ok).Round(time.Second), t.problem)
	case !t.waits.IsZero() && now.Sub(t.waits) > unseenAfter && now.Sub(t.lastLine) > unseenAfter:
		return fmt.Errorf("tie-out: Envoy has written nothing to %s for %v, and requests have ended: check its disk, and --access-log of the control plane",
			t.c.Path, now.Sub(cmp.Or(t.lastLine, t.waits)).Round(time.Second))
	}
	return nil
}

// Pass reads what is new, and compares it.
func (t *TieOut) Pass(ctx context.Context) (err error) {
	now := t.c.Now()
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.problem = err; err == nil {
			t.ok = now
		}
		t.lastLine, t.waits = t.s.LastRead, time.Time{}
		if len(t.s.Order) > 0 {
			t.waits = t.s.Order[0].At
		}
	}()
	for more := true; more; {
		var lines []byte
		var change string
		if lines, change, more, err = t.log.read(&t.s.Log); err != nil {
			return err
		}
		if change != "" {
			t.s.Change = change
			t.cannotTell(now, audit.TieOutUnknown{Reason: change, Process: t.s.Process, From: t.s.LastRead, To: now})
		}
		if err := t.entries(now); err != nil {
			return err // the lines are read again
		}
		if t.s.Change != "" {
			for _, p := range t.s.Pending {
				p.Lost = t.s.Change
			}
			t.s.Change = ""
		}
		t.lines(now, lines)
		t.s.Log.Offset += int64(len(lines))
		more = more && ctx.Err() == nil
	}
	t.release(now)
	t.reportEarly(now)
	t.judge(now)
	t.compareCounts(ctx, now)
	t.write(now, false)
	t.writeConnections(now, false)
	if now.Sub(t.saved) >= saveInterval {
		if err := t.save(now); err != nil {
			return err
		}
		t.log.free(&t.s.Log, t.c.Log)
	}
	return nil
}

// entries reads the records that are durable.
func (t *TieOut) entries(now time.Time) error {
	for {
		found, lost, more, err := t.follow.Next()
		if err != nil {
			return err
		}
		if lost > 0 {
			t.cannotTell(now, audit.TieOutUnknown{Reason: "segments_removed", From: t.s.LastEntry, To: now, Entries: int64(lost)})
		}
		for _, f := range found {
			t.s.LastEntry = f.Time
			if f.Completed {
				if p := t.s.Pending[f.RequestID]; p != nil && p.Settled.IsZero() {
					p.Settled = now
					t.s.Order = append(t.s.Order, settled{f.RequestID, now})
				}
				continue
			}
			t.decided(now, f)
		}
		t.s.After = t.follow.At()
		if !more {
			return nil
		}
	}
}

func (t *TieOut) decided(now time.Time, f audit.Followed) {
	if h := t.held[f.RequestID]; h != nil {
		h.done = true
		delete(t.held, f.RequestID)
		t.count(h.Start, h.Process, h.Route, f.RequestID, decided, f.Allowed)
		return
	}
	if len(t.s.Pending) >= maxPending {
		// Envoy writes no lines, or far later than it should.
		t.cannotTell(now, audit.TieOutUnknown{Reason: "too_many", Process: t.s.Process, From: t.s.LastRead, To: now, Entries: int64(len(t.s.Pending))})
		t.s.Pending, t.s.Order, t.s.Since = map[string]*pending{}, nil, now
	}
	p := &pending{At: f.Time, Allowed: f.Allowed}
	if now.Before(t.s.Early.Until) {
		p.Lost = "too_many"
	}
	t.s.Pending[f.RequestID] = p
}

// lines compares the lines of the access log.
func (t *TieOut) lines(now time.Time, b []byte) {
	for len(b) > 0 {
		line, rest := cutLine(b)
		b = rest
		if len(line) == 0 {
			continue
		}
		l, err := envoy.ParseLogged(line)
		if err != nil {
			t.metrics.malformed.Inc()
			continue
		}
		t.process(now, l)
		if l.Listener != "" {
			t.connection(l)
			continue
		}
		t.s.Lines++
		if l.Route == envoy.RouteRefused {
			t.refuse(proxyListener, "connect_rejected", l)
		}
		t.request(now, l)
	}
}

// process notes which process of Envoy writes. A new one means that the one before is gone.
func (t *TieOut) process(now time.Time, l envoy.Logged) {
	if l.Process == "-" && !t.warned {
		t.warned = true
		t.c.Log.Warn("Envoy's process has no name, so that its restarts are not noticed", "variable", envoy.ProcessVariable)
	}
	switch {
	case l.Process == t.s.Process:
		t.s.LastRead, t.s.LastStart = now, l.Start
	case slices.Contains(t.s.Former, l.Process): // the last lines of a process that ends
	default:
		if t.s.Process != "" {
			t.s.Ended = append(t.s.Ended, ended{Process: t.s.Process, From: t.s.LastStart, To: l.Start, Due: now.Add(endedAfter)})
			for _, p := range t.s.Pending {
				p.Abandoned = true
			}
			t.s.Former = append(t.s.Former, t.s.Process)
			t.s.Former = t.s.Former[max(0, len(t.s.Former)-maxProcesses):]
			t.base, t.last = nil, nil
		}
		t.s.Process, t.s.LastRead, t.s.LastStart = l.Process, now, l.Start
	}
}

// request compares one request.
func (t *TieOut) request(now time.Time, l envoy.Logged) {
	if p := t.s.Pending[l.ID]; p != nil && l.ID != "" {
		delete(t.s.Pending, l.ID)
		t.count(l.Start, l.Process, l.Route, l.ID, decided, p.Allowed)
		return
	}
	if u := t.unseen[l.ID]; u != nil && l.ID != "" {
		t.takeBack(u)
		t.count(l.Start, l.Process, l.Route, l.ID, decided, u.Allowed)
		return
	}
	c := classOf(l)
	if c == missing && l.Start.Before(t.s.Since) {
		c = unknown
	}
	mayFollow := c == missing || c == own && l.Route == envoy.RouteUndecided || c == unrecorded && l.Status == 503
	if l.ID == "" || !mayFollow {
		t.count(l.Start, l.Process, l.Route, l.ID, c, false)
		return
	}
	held, limit := &t.s.Held, maxHeld
	if c != missing {
		held, limit = &t.s.Possible, maxPossible
	}
	for len(*held) >= limit {
		t.releaseFirst(now, held)
	}
	h := &heldLine{ID: l.ID, Process: l.Process, Route: l.Route, Start: l.Start, At: now, Class: c}
	if before := t.held[l.ID]; before != nil {
		before.done = true
		t.count(before.Start, before.Process, before.Route, before.ID, before.Class, false)
	}
	t.held[l.ID] = h
	*held = append(*held, h)
}

// classOf returns what a line is that has no entry.
func classOf(l envoy.Logged) class {
	switch {
	case strings.HasPrefix(l.Details, envoy.UnrecordedPrefix):
		return unrecorded
	case strings.HasPrefix(l.Details, envoy.DetailsPrefix):
		return missing // the sidecar responded with a decision
	case l.Route == envoy.RouteManagement:
		return management
	case l.Route == envoy.RouteTunnel:
		return tunnel
	case l.Route == "", l.Route == envoy.RouteUndecided, l.Route == envoy.RouteRefused:
		return own
	}
	return missing // it was routed to a provider
}

// release classifies the lines whose entries did not come.
func (t *TieOut) release(now time.Time) {
	for _, held := range []*[]*heldLine{&t.s.Held, &t.s.Possible} {
		for len(*held) > 0 && ((*held)[0].done || now.Sub((*held)[0].At) >= hold) {
			t.releaseFirst(now, held)
		}
	}
}

func (t *TieOut) releaseFirst(now time.Time, held *[]*heldLine) {
	h := (*held)[0]
	*held = (*held)[1:]
	if h.done {
		return
	}
	c := h.Class
	if now.Sub(h.At) < hold {
		if t.s.Early.From.IsZero() {
			t.s.Early.From = h.At
		}
		t.s.Early.Until = now.Add(hold)
		if c == missing {
			c = unknown // its entry may still come
		}
	}
	delete(t.held, h.ID)
	t.count(h.Start, h.Process, h.Route, h.ID, c, false)
}

// reportEarly records a time of early releases when it ends, and each minute while it lasts.
func (t *TieOut) reportEarly(now time.Time) {
	e := &t.s.Early
	over := !now.Before(e.Until)
	if e.From.IsZero() || !over && now.Sub(e.From) < minute {
		return
	}
	t.cannotTell(now, audit.TieOutUnknown{Reason: "too_many", Process: t.s.Process, From: e.From, To: now})
	if e.From = now; over {
		e.From = time.Time{}
	}
}

// takeBack takes back that an entry has no line.
func (t *TieOut) takeBack(u *unseen) {
	u.done = true
	delete(t.unseen, u.ID)
	if u.Excused {
		return
	}
	h := t.hour(u.At, u.Process)
	if h.Written > u.Written { // the difference is in the audit log
		h.Counts.Late++
		if len(h.Counts.LateIDs) < audit.MaxTieOutIDs {
			h.Counts.LateIDs = append(h.Counts.LateIDs, u.ID)
		}
		return
	}
	h.Counts.Unseen--
	h.Counts.UnseenIDs = slices.DeleteFunc(h.Counts.UnseenIDs, func(id string) bool { return id == u.ID })
}

// forgetUnseen forgets what is too old or too much. A line of a request that is forgotten has an
// unknown class.
func (t *TieOut) forgetUnseen(now time.Time) {
	for len(t.s.Unseen) > 0 {
		u := t.s.Unseen[0]
		if !u.done {
			if len(t.s.Unseen) <= maxUnseen && now.Sub(u.At) < forgetAfter {
				return
			}
			delete(t.unseen, u.ID)
			if u.At.After(t.s.Since) {
				t.s.Since = u.At
			}
		}
		t.s.Unseen = t.s.Unseen[1:]
	}
}

// count counts a request whose class is known.
func (t *TieOut) count(start time.Time, process, route, id string, c class, allowed bool) {
	h := &t.hour(start, process).Counts
	h.Seen++
	t.metrics.requests.WithLabelValues(string(c)).Inc()
	switch c {
	case decided:
		h.Decided++
		if toProvider(route) {
			t.s.Forwarded++
			h.Forwarded++
			if !allowed {
				h.NotAllowed++
				h.NotAllowedIDs = t.differs(h.NotAllowedIDs, id, "not_allowed")
			}
		}
	case unrecorded:
		h.Unrecorded++
	case own:
		h.Own++
	case management:
		h.Management++
	case tunnel:
		h.Tunnels++
	case unknown:
		h.Unknown++
	default:
		if toProvider(route) {
			t.s.Forwarded++
		}
		h.Missing++
		h.MissingIDs = t.differs(h.MissingIDs, id, "missing")
	}
}

func toProvider(route string) bool {
	switch route {
	case "", envoy.RouteUndecided, envoy.RouteManagement, envoy.RouteTunnel, envoy.RouteRefused:
		return false
	}
	return true
}

// differs notes a difference.
func (t *TieOut) differs(ids []string, id, kind string) []string {
	t.metrics.differences.WithLabelValues(kind).Inc()
	if len(ids) >= audit.MaxTieOutIDs {
		return ids
	}
	t.c.Log.Error("the access log and the audit log differ", "kind", kind, "exchange", id)
	return append(ids, id)
}

// judge finds the entries whose lines did not come.
func (t *TieOut) judge(now time.Time) {
	lost := map[string]*audit.TieOutUnknown{}
	for len(t.s.Order) > 0 {
		o := t.s.Order[0]
		p := t.s.Pending[o.ID]
		if p != nil && p.Settled.Equal(o.At) {
			// Only a later line of the same process shows that this one will not come.
			if p.Abandoned || t.s.LastRead.Sub(o.At) < unseenAfter {
				break
			}
			delete(t.s.Pending, o.ID)
			u := &unseen{ID: o.ID, Process: t.s.Process, At: p.At, Allowed: p.Allowed, Excused: p.Lost != ""}
			if u.Excused {
				e := lost[p.Lost]
				if e == nil {
					e = &audit.TieOutUnknown{Reason: p.Lost, Process: t.s.Process, From: p.At, To: o.At}
					lost[p.Lost] = e
				}
				e.Entries, e.To = e.Entries+1, o.At
			} else {
				h := t.hour(p.At, t.s.Process)
				h.Counts.Unseen++
				h.Counts.UnseenIDs = t.differs(h.Counts.UnseenIDs, o.ID, "unseen")
			}
			u.Written = t.s.Writes
			t.unseen[u.ID] = u
			t.s.Unseen = append(t.s.Unseen, u)
		}
		t.s.Order = t.s.Order[1:]
	}
	for _, reason := range slices.Sorted(maps.Keys(lost)) {
		t.cannotTell(now, *lost[reason])
	}
	t.forgetUnseen(now)
	for len(t.s.Ended) > 0 && !now.Before(t.s.Ended[0].Due) {
		e := t.s.Ended[0]
		t.s.Ended = t.s.Ended[1:]
		n := int64(0)
		for id, p := range t.s.Pending {
			if p.Abandoned && !p.Settled.IsZero() && p.Settled.Before(e.Due) {
				n++
				delete(t.s.Pending, id)
			}
			if len(t.s.Ended) == 0 {
				p.Abandoned = false // it belongs to the process that runs
			}
		}
		t.cannotTell(now, audit.TieOutUnknown{Reason: "process_ended", Process: e.Process, From: e.From, To: e.To, Entries: n})
	}
}

// cannotTell records a time for which nothing can be compared.
func (t *TieOut) cannotTell(now time.Time, e audit.TieOutUnknown) {
	if e.From.IsZero() {
		e.From = cmp.Or(t.s.Since, now)
	}
	t.metrics.unknown.WithLabelValues(e.Reason).Inc()
	t.c.Log.Warn("the access log cannot be compared for a time", "reason", e.Reason, "from", e.From, "to", e.To, "entries", e.Entries)
	t.enqueue(e)
}

func (t *TieOut) enqueue(e audit.Entry) bool {
	home := t.c.Home()
	if home != "" {
		t.c.Segments.Enqueue(home, e)
	}
	return home != ""
}

// hour returns the counts of an hour and process.
func (t *TieOut) hour(start time.Time, process string) *hour {
	start = start.UTC().Truncate(t.c.Period)
	k := hourKey{start.UnixNano(), process}
	h := t.hours[k]
	if h == nil {
		if len(t.hours) >= maxHours {
			first := t.s.Hours[0]
			t.writeHour(t.c.Now(), first)
			t.forget(first)
		}
		h = &hour{Start: start, Process: process, Written: t.s.Writes}
		t.hours[k] = h
		t.s.Hours = append(t.s.Hours, h)
	}
	return h
}

func (t *TieOut) forget(h *hour) {
	delete(t.hours, hourKey{h.Start.UnixNano(), h.Process})
	t.s.Hours = slices.DeleteFunc(t.s.Hours, func(o *hour) bool { return o == h })
}

// write writes the hours that have passed, or all.
func (t *TieOut) write(now time.Time, all bool) {
	for _, h := range slices.Clone(t.s.Hours) {
		over := h.Start.Add(t.c.Period)
		if all || now.Sub(over) >= closeAfter {
			t.writeHour(now, h)
		}
		if now.Sub(over) > forgetAfter {
			t.forget(h)
		}
	}
}

// writeHour writes what is new of an hour.
func (t *TieOut) writeHour(now time.Time, h *hour) {
	e := h.Counts
	if e.Seen == 0 && e.Late == 0 && !e.Differs() {
		return
	}
	e.Hour, e.Process, e.Part, e.Open = h.Start, h.Process, h.Parts+1, int64(len(t.s.Pending))
	if t.enqueue(e) {
		h.Parts++
	}
	t.s.Writes++
	h.Counts, h.Written = audit.TieOutHour{}, t.s.Writes
	if err := t.save(now); err != nil {
		t.c.Log.Error("the state of the tie-out is not saved", "err", err)
	}
}

// compareCounts compares Envoy's counters with the lines. A request that has ended is in both
// after a short time, and one that has not is in flight at that time.
func (t *TieOut) compareCounts(ctx context.Context, now time.Time) {
	if t.c.Counts == nil || t.s.Process == "" || now.Sub(t.counted) < countPause {
		return
	}
	t.counted = now
	if t.base != nil && t.last != nil {
		h := &t.hour(t.last.when, t.s.Process).Counts
		if n := (t.last.Requests - t.base.Requests) - (t.s.Lines - t.base.lines) - t.last.Active; n > 0 {
			t.base.Requests += n
			h.Unlogged += n
			t.metrics.differences.WithLabelValues("unlogged").Add(float64(n))
			t.c.Log.Error("requests are not in Envoy's access log", "requests", n)
		}
		if n := (t.last.Upstream - t.base.Upstream) - (t.s.Forwarded + t.heldForwarded() - t.base.forwarded) - t.last.Active; n > 0 {
			t.base.Upstream += n
			h.Excess += n
			t.metrics.differences.WithLabelValues("excess").Add(float64(n))
			t.c.Log.Error("Envoy sent more requests to providers than its access log has", "requests", n)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := t.c.Counts(ctx)
	if err != nil {
		t.last = nil
		return // Envoy's metrics and /readyz show that it does not respond
	}
	s := &sample{Counters: c, lines: t.s.Lines, forwarded: t.s.Forwarded, when: now}
	if t.base == nil || t.last != nil && (c.Uptime < t.last.Uptime || c.Requests < t.last.Requests) {
		t.base = s
	}
	if c.Upstream < t.base.Upstream { // the clusters of removed providers are gone
		t.base.Upstream, t.base.forwarded = c.Upstream, t.s.Forwarded
	}
	t.last = s
}

// heldForwarded counts the lines of requests to providers that wait for their entries.
func (t *TieOut) heldForwarded() (n int64) {
	for _, h := range t.s.Held {
		if !h.done && toProvider(h.Route) {
			n++
		}
	}
	return n
}

// ---- connections ----

// refused counts connections that ended before a request.
type refused struct {
	Listener, Cause string
	Of              audit.RefusedConnections
}

// connection counts a connection that had no request.
func (t *TieOut) connection(l envoy.Logged) {
	if cause := causeOf(l); cause != "" {
		t.refuse(l.Listener, cause, l)
	}
}

// proxyListener is the forward proxy, whose rejections are responses.
const proxyListener = "aid_proxy"

func (t *TieOut) refuse(listener, cause string, l envoy.Logged) {
	t.metrics.connections.WithLabelValues(cause).Inc()
	i := slices.IndexFunc(t.s.Refused, func(r *refused) bool { return r.Listener == listener && r.Cause == cause })
	if i < 0 {
		if len(t.s.Refused) >= maxConnections {
			return // there are fewer listeners and causes
		}
		t.s.Refused = append(t.s.Refused, &refused{Listener: listener, Cause: cause, Of: audit.RefusedConnections{First: l.Start}})
		i = len(t.s.Refused) - 1
	}
	r := &t.s.Refused[i].Of
	r.Count++
	r.Last = l.Start
	add := func(list *[]string, s string) {
		if s != "" && len(*list) < maxNames && !slices.Contains(*list, s) {
			*list = append(*list, s)
		}
	}
	if peer, err := netip.ParseAddr(l.Peer); err == nil {
		add(&r.Samples, audit.PeerPrefix(peer))
	}
	add(&r.Names, l.Name)
}

// causeOf returns why a connection ended before a request, or "".
func causeOf(l envoy.Logged) string {
	switch {
	case l.Listener == proxyListener:
		return "" // plain HTTP
	case l.Chain == "" && l.Name == "":
		return "no_server_name"
	case l.Chain == "":
		return "host_not_governed"
	case l.Failure != "":
		return "handshake_failed"
	}
	return ""
}

func (t *TieOut) writeConnections(now time.Time, all bool) {
	if len(t.s.Refused) == 0 || !all && now.Sub(t.s.RefusedAt) < minute {
		return
	}
	t.s.RefusedAt = now
	for _, r := range t.s.Refused {
		r.Of.Listener, r.Of.Cause = r.Listener, r.Cause
		t.enqueue(r.Of)
	}
	t.s.Refused = nil
}
