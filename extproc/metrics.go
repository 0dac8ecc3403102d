package extproc

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ai-identity/ai-identity/provider"
)

// metrics counts exchanges. No label takes a value from a request: models, paths and agents
// are in the audit log.
type metrics struct {
	exchanges  *prometheus.CounterVec // by how they ended
	refusals   *prometheus.CounterVec // by the code that the caller got
	turnedAway *prometheus.CounterVec // before they began
	cuts       *prometheus.CounterVec
	protocol   *prometheus.CounterVec // messages from Envoy that are out of order
	panics     prometheus.Counter
	audit      prometheus.Counter
	leaks      prometheus.Counter
	overruns   prometheus.Counter
	tokens     *prometheus.CounterVec
	decision   prometheus.Histogram
	phases     map[string]prometheus.Observer
}

// phaseBuckets cover a phase without work and a phase that reached its timeout.
var phaseBuckets = []float64{.00001, .000025, .00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .5, 1, 5}

func newMetrics(r prometheus.Registerer, live func() int, waiting func() (int, int64)) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "aid_extproc_" + name, Help: help}, labels)
	}
	exchanges := counter("exchanges_total", "Exchanges that ended, by outcome.", "outcome")
	refusals := counter("refusals_total", "Requests that were rejected, by code.", "code")
	turnedAway := counter("turned_away_total", "Exchanges that were not begun, by reason.", "reason")
	cuts := counter("cuts_total", "Exchanges that were cut off, by reason.", "reason")
	protocol := counter("protocol_errors_total", "Messages from Envoy that its configuration should not cause, by message.", "message")
	tokens := counter("tokens_total", "Tokens that providers reported, by kind.", "kind")
	panics := counter("panics_total", "Exchanges that ended in a panic. A value above 0 is a bug.")
	auditFailures := counter("record_failures_total", "Decisions that could not be recorded, each answered 503.")
	leaks := counter("credential_echoes_total", "Responses in which a provider's credential was found and overwritten.")
	overruns := counter("overruns_total", "Requests that were charged more than was reserved for them under a USD cap.")
	decision := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "aid_extproc_decision_seconds", Help: "Time from the complete request to the decision, including the durable audit entry.", Buckets: phaseBuckets,
	})
	phases := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "aid_extproc_phase_seconds", Help: "Time in each phase of the request.", Buckets: phaseBuckets,
	}, []string{"phase"})
	streams := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "aid_extproc_live_exchanges", Help: "Exchanges in progress.",
	}, func() float64 { return float64(live()) })
	waitingRequests := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "aid_extproc_waiting_requests", Help: "Requests whose bodies have not arrived.",
	}, func() float64 { n, _ := waiting(); return float64(n) })
	waitingBytes := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "aid_extproc_waiting_bytes", Help: "Bytes that those bodies may have, as declared.",
	}, func() float64 { _, n := waiting(); return float64(n) })

	m := &metrics{
		exchanges: exchanges, refusals: refusals, turnedAway: turnedAway, cuts: cuts, protocol: protocol, tokens: tokens,
		panics: panics.WithLabelValues(), audit: auditFailures.WithLabelValues(), leaks: leaks.WithLabelValues(), overruns: overruns.WithLabelValues(),
		decision: decision, phases: make(map[string]prometheus.Observer),
	}
	for _, p := range []string{"identify", "parse", "decide", "record"} {
		m.phases[p] = phases.WithLabelValues(p)
	}
	// Alerts are on rates of these series, so they must exist before the first event.
	for _, r := range []string{"draining", "full"} {
		turnedAway.WithLabelValues(r)
	}
	for _, message := range []string{
		"not_admitted", "observability_mode", "partial_request_body", "request_body", "request_body_mode", "request_headers", "request_trailers",
		"response_body", "response_headers", "response_trailers", "token_usage", "unknown",
	} {
		protocol.WithLabelValues(message)
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{exchanges, refusals, turnedAway, cuts, protocol, tokens, panics, auditFailures, leaks, overruns, decision, phases, streams, waitingRequests, waitingBytes} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) phase(name string, d time.Duration) { m.phases[name].Observe(d.Seconds()) }

func (m *metrics) count(u provider.Usage) {
	for kind, n := range map[string]int64{
		"input": u.InputTokens, "output": u.OutputTokens, "cached": u.CachedTokens, "cache_write": u.CacheWriteTokens, "reasoning": u.ReasoningTokens,
	} {
		if n > 0 {
			m.tokens.WithLabelValues(kind).Add(float64(n))
		}
	}
}
