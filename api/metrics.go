package api

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts requests. Values of labels come from the table, never from a request.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	unknown  *prometheus.CounterVec
	panics   prometheus.Counter
	replays  prometheus.Counter
	missing  prometheus.Counter
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "aid_api_requests_total", Help: "Requests, by route, method and class of status.",
		}, []string{"route", "method", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "aid_api_request_seconds", Help: "Time from the request's headers to the complete response, by route and method.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 15},
		}, []string{"route", "method"}),
		unknown: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "aid_api_unidentified_total", Help: "Requests rejected with 401, by reason.",
		}, []string{"reason"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "aid_api_panics_total", Help: "Requests that ended in a panic. Each one is a bug.",
		}),
		replays: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "aid_api_replays_total", Help: "Responses that were replayed for an idempotency key.",
		}),
		missing: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "aid_api_missing_receipts_total", Help: "Presented receipts that a sidecar signed and that the audit log lacks. Above 0: entries were lost or removed.",
		}),
	}
	// Alerts are on rates of these metrics, so they exist from the start.
	for _, reason := range []string{"missing", "malformed", "wrong_kind", "unknown", "revoked", "expired"} {
		m.unknown.WithLabelValues(reason)
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.requests, m.seconds, m.unknown, m.panics, m.replays, m.missing} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) answered(r *http.Request, status int, took time.Duration) {
	route, method := "none", "other"
	if verb, path, ok := strings.Cut(r.Pattern, " "); ok {
		route, method = path, verb
	}
	m.requests.WithLabelValues(route, method, strconv.Itoa(status/100)+"xx").Inc()
	m.seconds.WithLabelValues(route, method).Observe(took.Seconds())
}
