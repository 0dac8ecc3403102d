package tieout_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/envoy"
	"github.com/ai-identity/ai-identity/extproc/tieout"
)

// node has a real Writer with its segments, and a file that the test writes as Envoy does.
type node struct {
	t        *testing.T
	dir, log string
	now      time.Time
	process  string
	w        *audit.Writer
	stop     func()
	tie      *tieout.TieOut
	reg      *prometheus.Registry
	counts   envoy.Counters

	mu      sync.Mutex
	entries []audit.Entry
}

// kept keeps the entries of the tie-out for the test, beside the segments.
type kept struct {
	*audit.Writer
	n *node
}

func (k kept) Enqueue(org string, e audit.Entry) {
	k.n.mu.Lock()
	k.n.entries = append(k.n.entries, e)
	k.n.mu.Unlock()
	k.Writer.Enqueue(org, e)
}

func start(t *testing.T) *node {
	dir := t.TempDir()
	n := &node{t: t, dir: dir, log: filepath.Join(dir, "access.log"), now: time.Date(2026, 11, 27, 10, 0, 0, 0, time.UTC), process: "one"}
	n.open()
	t.Cleanup(func() { n.close() })
	return n
}

func (n *node) open() {
	n.t.Helper()
	w, err := audit.OpenWriter(audit.WriterConfig{Dir: filepath.Join(n.dir, "segments"), Now: n.clock})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	n.w, n.stop = w, sync.OnceFunc(func() {
		_ = w.Close()
		cancel()
		<-done
	})
	n.compare()
}

// compare begins as after a start of the sidecar.
func (n *node) compare() {
	n.t.Helper()
	n.reg = prometheus.NewRegistry()
	var err error
	n.tie, err = tieout.New(tieout.Config{
		Path: n.log, Segments: kept{n.w, n}, Home: func() string { return "org_1" }, Now: n.clock, Registerer: n.reg,
		Counts: func(context.Context) (envoy.Counters, error) { return n.counts, nil },
	})
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) close() {
	if n.stop != nil {
		n.tie.Close()
		n.stop()
		n.stop = nil
	}
}

func (n *node) clock() time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.now
}

func (n *node) pass(later time.Duration) {
	n.t.Helper()
	n.mu.Lock()
	n.now = n.now.Add(later)
	n.mu.Unlock()
	if err := n.tie.Pass(context.Background()); err != nil {
		n.t.Fatal(err)
	}
}

// decide writes an entry, and its completion.
func (n *node) decide(id, effect string, complete bool) {
	n.t.Helper()
	d := audit.Decided{RequestID: id, AgentID: "ag_1", Effect: effect, Path: `/v1/x","effect":"allow"`, Time: n.clock()}
	r, err := n.w.Append(n.t.Context(), "org_1", d)
	if err == nil && complete {
		_, err = n.w.Append(n.t.Context(), "org_1", audit.Settled{RequestID: id, AgentID: "ag_1", Outcome: "completed", DecidedSeq: r.Seq, DecidedWriter: r.Writer})
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// line writes a line of the access log: route, status, reason, id.
func (n *node) line(route, status, details, id string) {
	n.t.Helper()
	n.raw(fmt.Sprintf("r %d.%06d %s %s %s -,%s %s\n", n.clock().Unix(), n.clock().Nanosecond()/1000, n.process, route, status, details, id))
}

func (n *node) raw(s string) {
	n.t.Helper()
	f, err := os.OpenFile(n.log, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		_, err = f.WriteString(s)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	f.Close()
}

func (n *node) request(id string) {
	n.decide(id, "allow", true)
	n.line("provider-a", "200", "via_upstream", id)
}

// hours adds up the parts of all hours.
func (n *node) hours() (sum audit.TieOutHour) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.entries {
		h, ok := e.(audit.TieOutHour)
		if !ok {
			continue
		}
		if parsed, err := audit.Parse(audit.Stamp(h, "org_1", "w_1", n.now).Encode()); err != nil || parsed.(audit.TieOutHour).Seen != h.Seen {
			n.t.Errorf("%+v: %v", parsed, err)
		}
		sum.Seen += h.Seen
		sum.Decided += h.Decided
		sum.Unrecorded += h.Unrecorded
		sum.Own += h.Own
		sum.Management += h.Management
		sum.Tunnels += h.Tunnels
		sum.Unknown += h.Unknown
		sum.Forwarded += h.Forwarded
		sum.Missing += h.Missing
		sum.MissingIDs = append(sum.MissingIDs, h.MissingIDs...)
		sum.Unseen += h.Unseen
		sum.UnseenIDs = append(sum.UnseenIDs, h.UnseenIDs...)
		sum.NotAllowed += h.NotAllowed
		sum.NotAllowedIDs = append(sum.NotAllowedIDs, h.NotAllowedIDs...)
		sum.Unlogged += h.Unlogged
		sum.Excess += h.Excess
		sum.Late += h.Late
		sum.LateIDs = append(sum.LateIDs, h.LateIDs...)
	}
	return sum
}

func (n *node) unknowns() (all []audit.TieOutUnknown) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.entries {
		if u, ok := e.(audit.TieOutUnknown); ok {
			all = append(all, u)
		}
	}
	return all
}

// metric adds up the series of a metric.
func (n *node) metric(name string) (sum float64) {
	n.t.Helper()
	all, err := n.reg.Gather()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, f := range all {
		for _, m := range f.GetMetric() {
			if f.GetName() == name {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func (n *node) check(want audit.TieOutHour) {
	n.t.Helper()
	if got := n.hours(); fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		n.t.Errorf("\n got %+v\nwant %+v", got, want)
	}
}

// Each class of request is counted once, whatever the order of its line and its entry.
func TestClasses(t *testing.T) {
	n := start(t)
	n.request("a1")
	n.request("a2")
	n.decide("denied", "deny", true)
	n.line("undecided", "403", "aid_policy_denied", "denied")
	n.line("undecided", "401", "aid_unrecorded_missing_api_key", "u1")
	n.line("-", "401", "aid_unrecorded_missing_api_key", "u2")
	n.line("undecided", "503", "aid_unrecorded_audit_unavailable", "doubt") // becomes durable after all
	n.line("-", "400", "http1.codec_error", "-")
	n.line("-", "400", "missing_host_header", "a1") // a client's id
	n.line("undecided", "413", "request_payload_too_large", "o1")
	n.line("undecided", "0", "downstream_remote_disconnect", "early") // its entry comes later
	n.line("management", "200", "via_upstream", "m1")
	n.line("tunnel", "200", "via_upstream", "t1")
	n.line("refused", "403", "direct_response", "t2")
	n.raw("nonsense\n" + strings.Repeat("x", 5000) + "\n")
	n.decide("open", "allow", false)
	n.pass(0)
	n.decide("early", "deny", true)
	n.decide("doubt", "deny", true)
	n.pass(time.Second)
	n.pass(31 * time.Second)
	n.pass(2 * time.Hour)
	n.check(audit.TieOutHour{Seen: 13, Decided: 5, Unrecorded: 2, Own: 4, Management: 1, Tunnels: 1, Forwarded: 2})
	if v := n.metric("aid_tieout_malformed_total"); v != 2 {
		t.Error(v)
	}
	// It ends in the next hour, and belongs to the hour in which it began.
	began := n.now.Add(-2 * time.Hour).Add(-32 * time.Second)
	n.raw(fmt.Sprintf("r %d.000000 one provider-a 200 -,via_upstream open\n", began.Unix()))
	n.pass(time.Minute)
	n.pass(time.Minute)
	n.mu.Lock()
	last := n.entries[len(n.entries)-1].(audit.TieOutHour)
	n.mu.Unlock()
	if last.Part != 2 || last.Decided != 1 || !last.Hour.Equal(began.Truncate(time.Hour)) {
		t.Errorf("%+v", last)
	}
}

// Each kind of difference is named, and counted for the alert.
func TestDifferences(t *testing.T) {
	n := start(t)
	n.request("a1")
	n.decide("d1", "deny", true)
	n.line("provider-a", "200", "via_upstream", "d1") // sent although it was denied
	n.line("provider-a", "200", "via_upstream", "nobody")
	n.line("undecided", "403", "aid_policy_denied", "unwritten")
	n.decide("lost", "allow", true) // its line does not come
	for i := range 150 {
		n.line("provider-a", "200", "via_upstream", fmt.Sprint("many", i))
	}
	n.pass(0)
	n.pass(31 * time.Second)
	n.pass(12 * time.Minute)
	if got := n.hours(); got.Unseen != 0 {
		t.Errorf("without a later line nothing shows that one was lost: %+v", got)
	}
	n.request("a2")
	n.pass(5 * time.Minute)
	n.pass(2 * time.Hour)
	got := n.hours()
	if got.Seen != 155 || got.Decided != 3 || got.Forwarded != 3 || got.Missing != 152 || got.Unseen != 1 || got.NotAllowed != 1 {
		t.Errorf("%+v", got)
	}
	if len(got.MissingIDs) != 100 || !slices.Contains(got.MissingIDs, "nobody") || !slices.Contains(got.MissingIDs, "unwritten") ||
		!slices.Equal(got.UnseenIDs, []string{"lost"}) || !slices.Equal(got.NotAllowedIDs, []string{"d1"}) {
		t.Errorf("%v %v %v", got.MissingIDs, got.UnseenIDs, got.NotAllowedIDs)
	}
	if v := n.metric("aid_tieout_differences_total"); v != 154 {
		t.Error(v)
	}
}

// A record that was cut off a segment before it was compared is named: Envoy saw its request.
func TestRemovedEntry(t *testing.T) {
	n := start(t)
	n.request("a1")
	n.request("removed")
	n.stop()
	segments, err := filepath.Glob(filepath.Join(n.dir, "segments", "*.seg"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	for _, empty := range segments[1:] {
		if err := os.Remove(empty); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	var ends []int
	for at := len("AIDSEG2\n"); at+4 <= len(b) && binary.BigEndian.Uint32(b[at:]) != 0; {
		at += 8 + int(binary.BigEndian.Uint32(b[at:]))
		ends = append(ends, at)
	}
	if err := os.Truncate(segments[0], int64(ends[len(ends)-3])); err != nil { // the decision and its completion
		t.Fatal(err)
	}
	n.open()
	n.pass(0)
	n.pass(31 * time.Second)
	n.pass(2 * time.Hour)
	if got := n.hours(); got.Decided != 1 || got.Missing != 1 || !slices.Equal(got.MissingIDs, []string{"removed"}) {
		t.Errorf("%+v", got)
	}
}

// An Envoy that was killed had lines in its memory. That is no difference: the time is named.
func TestProcessEnds(t *testing.T) {
	n := start(t)
	n.request("a1")
	n.pass(0)
	n.decide("lost", "allow", true)
	n.decide("cut", "allow", false)
	n.pass(10 * time.Second)
	n.process = "two"
	n.request("b1")
	n.decide("stream", "allow", false) // of the new process, and still running
	n.pass(time.Second)
	n.raw(fmt.Sprintf("r %d.000000 one provider-a 200 -,via_upstream cut\n", n.now.Unix())) // the old one wrote it before it ended
	n.pass(time.Second)
	n.pass(2 * time.Minute)
	u := n.unknowns()
	if len(u) != 1 || u[0].Reason != "process_ended" || u[0].Process != "one" || u[0].Entries != 1 || u[0].To.Before(u[0].From) || u[0].To.Sub(u[0].From) > time.Minute {
		t.Errorf("%+v", u)
	}
	n.line("provider-a", "200", "via_upstream", "stream")
	n.pass(time.Second)
	n.pass(2 * time.Hour)
	n.check(audit.TieOutHour{Seen: 4, Decided: 4, Forwarded: 4})
}

// A sidecar that was killed reads again what it had not saved, and counts nothing twice.
func TestSidecarKilled(t *testing.T) {
	n := start(t)
	for i := range 200 {
		id := fmt.Sprint("r", i)
		n.decide(id, "allow", true)
		if i%7 == 0 {
			n.line("undecided", "413", "request_payload_too_large", fmt.Sprint("o", i))
		}
		if i%3 == 0 {
			n.pass(2 * time.Second) // it saves every 5 s
		}
		if i%10 == 0 {
			n.compare() // without Close, as after SIGKILL
		}
		n.line("provider-a", "200", "via_upstream", id)
	}
	n.pass(time.Second)
	n.pass(31 * time.Second)
	n.pass(5 * time.Second)
	n.compare()
	n.pass(2 * time.Hour)
	n.check(audit.TieOutHour{Seen: 229, Decided: 200, Own: 29, Forwarded: 200})
}

// The log may be rotated by name, and what was read is given back to the disk. A log that was
// cut is a time for which nothing is known.
func TestLogFile(t *testing.T) {
	n := start(t)
	n.request("a1")
	n.pass(0)
	moved, err := os.OpenFile(n.log, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(n.log, n.log+".1"); err != nil {
		t.Fatal(err)
	}
	n.decide("a2", "allow", true)
	fmt.Fprintf(moved, "r %d.000000 one provider-a 200 -,via_upstream a2\n", n.now.Unix()) // Envoy has not opened it again
	moved.Close()
	n.pass(time.Second)
	n.request("a3")
	n.pass(time.Second)
	n.pass(time.Second)
	if d, u := n.metric("aid_tieout_requests_total"), n.unknowns(); d != 3 || len(u) != 0 {
		t.Errorf("%v %+v", d, u)
	}
	for i := range 4 {
		n.raw(strings.Repeat(fmt.Sprintf("r %d.000000 one - 400 DPE,http1.codec_error -\n", n.now.Unix()), 40_000)) // 2 MB
		n.pass(6 * time.Second)
		if v := n.metric("aid_tieout_log_bytes"); v > 1<<20 {
			t.Errorf("%d: %v bytes on the disk", i, v)
		}
	}
	if err := os.Truncate(n.log, 0); err != nil {
		t.Fatal(err)
	}
	n.request("a4")
	n.pass(time.Second)
	if u := n.unknowns(); len(u) != 1 || u[0].Reason != "log_truncated" {
		t.Errorf("%+v", u)
	}
	n.pass(2 * time.Hour)
	n.check(audit.TieOutHour{Seen: 160_004, Decided: 4, Forwarded: 4, Own: 160_000})
	info, err := os.Stat(n.log)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info, err)
	}
}

// Envoy's counters have a request that the log has not, and a request to a provider that no line
// has. Requests in flight and lines on their way are no difference.
func TestCounters(t *testing.T) {
	n := start(t)
	n.counts = envoy.Counters{Uptime: 10, Requests: 100, Active: 3, Upstream: 50}
	n.request("a1")
	n.pass(0)
	n.pass(16 * time.Second)
	n.counts = envoy.Counters{Uptime: 30, Requests: 105, Active: 4, Upstream: 55}
	n.request("a2")
	n.pass(16 * time.Second)
	n.pass(16 * time.Second)
	if v := n.metric("aid_tieout_differences_total"); v != 0 {
		t.Errorf("%v differences", v)
	}
	n.counts = envoy.Counters{Uptime: 60, Requests: 108, Active: 0, Upstream: 60}
	n.pass(16 * time.Second)
	n.pass(16 * time.Second)
	n.pass(16 * time.Second)
	n.pass(2 * time.Hour)
	if got := n.hours(); got.Unlogged != 7 || got.Excess != 9 || got.Decided != 2 {
		t.Errorf("%+v", got)
	}
	n.counts = envoy.Counters{Uptime: 1, Requests: 1} // it was started again
	n.pass(16 * time.Second)
	n.pass(16 * time.Second)
	if v := n.metric("aid_tieout_differences_total"); v != 16 {
		t.Errorf("%v differences", v)
	}
}

// Requests end and Envoy writes nothing: nothing is compared, and /readyz shows it.
func TestStuck(t *testing.T) {
	n := start(t)
	n.decide("a1", "allow", true)
	n.pass(0)
	n.pass(10 * time.Minute) // a client may delay the line
	if err := n.tie.Stuck(); err != nil {
		t.Error(err)
	}
	n.pass(2 * time.Minute)
	if err := n.tie.Stuck(); err == nil || n.metric("aid_tieout_stuck") != 1 {
		t.Error(err)
	}
	n.line("provider-a", "200", "via_upstream", "a1")
	n.pass(time.Second)
	if err := n.tie.Stuck(); err != nil {
		t.Error(err)
	}
}

// Connections that end before a request are one entry a minute for each listener and cause. A
// client chooses only the server name, which Envoy has cleaned.
func TestConnections(t *testing.T) {
	n := start(t)
	for i := range 30 {
		n.raw(fmt.Sprintf("c %d.000000 one aid_egress - NR 10.1.%d.7 host-%d.example.com -\n", n.now.Unix(), i, i))
	}
	n.raw(fmt.Sprintf("c %d.000000 one aid_egress - NR 10.1.0.7 - TLS_error|error:1000009c:SSL_routines\n", n.now.Unix()))
	n.raw(fmt.Sprintf("c %d.000000 one aid_inner api.openai.com - 10.1.0.7 api.openai.com TLS_error:|x\n", n.now.Unix()))
	n.raw(fmt.Sprintf("c %d.000000 one aid_inner api.openai.com - 10.1.0.7 api.openai.com -\n", n.now.Unix())) // it had requests
	n.raw(fmt.Sprintf("c %d.000000 one aid_proxy - - 10.1.0.7 - -\n", n.now.Unix()))
	n.line("refused", "403", "direct_response", "x1")
	n.pass(time.Second)
	n.pass(time.Minute)
	n.pass(time.Minute)
	got := map[string]audit.RefusedConnections{}
	n.mu.Lock()
	for _, e := range n.entries {
		if r, ok := e.(audit.RefusedConnections); ok {
			got[r.Listener+" "+r.Cause] = r
			if parsed, err := audit.Parse(audit.Stamp(r, "org_1", "w_1", n.now).Encode()); err != nil || parsed.(audit.RefusedConnections).Count != r.Count {
				t.Errorf("%+v: %v", parsed, err)
			}
		}
	}
	n.mu.Unlock()
	if r := got["aid_egress host_not_governed"]; len(got) != 4 || r.Count != 30 || len(r.Names) != 20 || len(r.Samples) != 20 || r.Samples[1] != "10.1.1.0/24" ||
		got["aid_egress no_server_name"].Count != 1 || got["aid_inner handshake_failed"].Count != 1 || got["aid_proxy connect_rejected"].Count != 1 {
		t.Errorf("%+v", got)
	}
}

// A client delays its line with HTTP/2's flow control. That is no difference while Envoy waits
// for the client, and one that was noted is taken back.
func TestLateLines(t *testing.T) {
	n := start(t)
	began := n.now
	late := func(id string) {
		n.raw(fmt.Sprintf("r %d.000000 one undecided 403 -,aid_policy_denied %s\n", began.Unix(), id))
	}
	n.pass(time.Second)
	for _, id := range []string{"idle", "slow", "slower", "lost"} {
		n.decide(id, "deny", true)
	}
	n.pass(0)
	for range 10 { // other lines come
		n.pass(time.Minute)
		n.request(fmt.Sprint("other", n.now.Unix()))
	}
	n.pass(10 * time.Second)
	late("idle") // Envoy's idle timeout ended it
	n.pass(time.Second)
	if v := n.metric("aid_tieout_differences_total"); v != 0 {
		t.Errorf("%v differences", v)
	}
	n.pass(3 * time.Minute)
	n.request("last")
	n.pass(time.Second)
	if v := n.metric("aid_tieout_differences_total"); v != 3 {
		t.Errorf("%v differences", v)
	}
	late("slow") // before its hour is written
	n.pass(time.Second)
	n.pass(time.Hour)
	if got := n.hours(); got.Unseen != 2 || got.Late != 0 || got.Missing != 0 || !slices.Equal(got.UnseenIDs, []string{"slower", "lost"}) {
		t.Errorf("%+v", got)
	}
	n.tie.Close()
	n.compare() // the sidecar starts again
	late("slower")
	n.pass(time.Second)
	n.pass(time.Minute)
	n.pass(time.Minute)
	n.check(audit.TieOutHour{Seen: 14, Decided: 14, Forwarded: 11, Unseen: 2, UnseenIDs: []string{"slower", "lost"}, Late: 1, LateIDs: []string{"slower"}})
	if got := audit.Differing(n.entries); got != 1 {
		t.Errorf("%d differ", got)
	}
	n.request("x") // "lost" is forgotten after two days
	n.pass(49 * time.Hour)
	late("lost")
	n.pass(time.Second)
	n.pass(12 * time.Second)
	n.pass(3 * time.Hour)
	if got := n.hours(); got.Missing != 0 || got.Unknown != 1 {
		t.Errorf("%+v", got)
	}
}

// Clients without a key cause more lines than are held. The state stays small, no request is a
// false difference, and no real one is hidden without a name.
func TestFlood(t *testing.T) {
	n := start(t)
	n.line("undecided", "0", "downstream_remote_disconnect", "early")
	var flood strings.Builder
	for i := range 70_000 {
		fmt.Fprintf(&flood, "r %d.000000 one undecided 0 DC,downstream_remote_disconnect %032d\n", n.now.Unix(), i)
	}
	n.raw(flood.String())
	n.pass(6 * time.Second)
	if info, err := os.Stat(n.log + ".state"); err != nil || info.Size() > 4<<20 {
		t.Errorf("%d bytes of state, %v", info.Size(), err)
	}
	n.decide("early", "deny", true)
	n.pass(time.Second)
	n.pass(time.Minute)
	n.decide("lost", "deny", true) // after the flood
	for range 13 {
		n.request(fmt.Sprint("other", n.now.Unix()))
		n.pass(time.Minute)
	}
	n.pass(2 * time.Hour)
	if got := n.hours(); got.Missing != 0 || got.Own != 70_001 || got.Decided != 13 || !slices.Equal(got.UnseenIDs, []string{"lost"}) {
		t.Errorf("%+v", got)
	}
	u := n.unknowns()
	if len(u) != 2 || u[0].Reason != "too_many" || u[0].Entries != 0 || u[1].Reason != "too_many" || u[1].Entries != 1 {
		t.Errorf("%+v", u)
	}
}

// After a jump, reading begins with a whole line. What is left of a cut one could read as any.
func TestBeginsWithALine(t *testing.T) {
	n := start(t)
	forged := fmt.Sprintf("r %d.000000 one provider-a 200 -,via_upstream forged", n.now.Unix())
	write := func(s string, at int64) {
		t.Helper()
		f, err := os.OpenFile(n.log, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt([]byte(s), at)
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	// More than 256 MiB are unread, most of them a hole, and the place to go on is in a line.
	write("\n", 300<<20)
	n.request("a1")
	info, err := os.Stat(n.log)
	if err != nil {
		t.Fatal(err)
	}
	write("x "+forged+"\n", info.Size()-128<<20-2)
	n.pass(time.Second)
	if u := n.unknowns(); len(u) != 1 || u[0].Reason != "log_skipped" {
		t.Errorf("%+v", u)
	}
	// A line that is too long is skipped to its end.
	n.raw(strings.Repeat("x", 1<<20) + forged + "\n")
	n.request("a2")
	n.pass(time.Second)
	n.pass(12 * time.Second)
	if all, d := n.metric("aid_tieout_requests_total"), n.metric("aid_tieout_differences_total"); all != 2 || d != 0 {
		t.Errorf("%v requests, %v differences", all, d)
	}
	// Comparing begins while Envoy is within a line.
	n.raw("x ")
	n.tie.Close()
	if err := os.Remove(n.log + ".state"); err != nil {
		t.Fatal(err)
	}
	n.compare()
	n.raw(forged + "\n")
	n.request("a3")
	n.pass(time.Second)
	n.pass(12 * time.Second)
	n.pass(2 * time.Hour)
	if got := n.hours(); got.Missing+got.Unknown != 0 || got.Decided != 1 {
		t.Errorf("%+v", got)
	}
}
