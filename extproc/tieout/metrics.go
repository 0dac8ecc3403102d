package tieout

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests, differences, unknown, connections *prometheus.CounterVec
	malformed                                   prometheus.Counter
}

func newMetrics(t *TieOut, r prometheus.Registerer) (*metrics, error) {
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "aid_tieout_" + name, Help: help}, []string{label})
	}
	m := &metrics{
		requests:    vec("requests_total", "Requests in Envoy's access log, by what they are in the audit log.", "class"),
		differences: vec("differences_total", "Differences between Envoy's access log and the audit log. Above 0: see aid audit tieout.", "kind"),
		unknown:     vec("unknown_total", "Times for which Envoy's access log cannot be compared.", "reason"),
		connections: vec("refused_connections_total", "Intercepted connections that ended before a request.", "cause"),
		malformed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "aid_tieout_malformed_total", Help: "Lines of Envoy's access log that cannot be read.",
		}),
	}
	for _, c := range classes {
		m.requests.WithLabelValues(string(c))
	}
	for _, kind := range []string{"missing", "unseen", "not_allowed", "unlogged", "excess"} {
		m.differences.WithLabelValues(kind) // alerts read it from the start
	}
	if r == nil {
		return m, nil
	}
	gauge := func(name, help string, f func() float64) prometheus.GaugeFunc {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "aid_tieout_" + name, Help: help}, f)
	}
	for _, c := range []prometheus.Collector{
		m.requests, m.differences, m.unknown, m.connections, m.malformed,
		gauge("stuck", "1 if the access log is not compared with the audit log. /readyz names the reason.", func() float64 {
			if t.Stuck() != nil {
				return 1
			}
			return 0
		}),
		gauge("log_bytes", "Bytes of Envoy's access log on the disk. -1: unknown.", t.log.bytes),
	} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("registering the metrics of the tie-out: %w", err)
		}
	}
	return m, nil
}
