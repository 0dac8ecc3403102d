package xds

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// serverMetrics are the server's metrics. No label has a value from a node.
type serverMetrics struct {
	acks, nacks, pushed, unpublished *prometheus.CounterVec
	refused, silent, flooded         prometheus.Counter
	size                             *prometheus.GaugeVec
	apply                            prometheus.Histogram
	records                          *prometheus.CounterVec
}

func newServerMetrics(r prometheus.Registerer, nodes, unopened func() int) (*serverMetrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "aid_xds_" + name, Help: help}, labels)
	}
	plain := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "aid_xds_" + name, Help: help})
	}
	m := &serverMetrics{
		acks:        counter("acks_total", "Responses that nodes accepted, by type.", "type"),
		nacks:       counter("nacks_total", "Responses that nodes rejected, by type. The node keeps its older configuration.", "type"),
		pushed:      counter("resources_pushed_total", "Resources sent, including removals, by type.", "type"),
		unpublished: counter("unpublished_total", "Configuration that was not published, by what it was. The last valid one stays.", "what"),
		refused:     plain("refused_total", "Nodes that were rejected because they did not authenticate."),
		silent:      plain("heartbeats_missed_total", "Heartbeats that were not sent because the database did not respond."),
		flooded:     plain("notification_floods_total", "Readings of everything because more changes were notified than may wait. Rising: look who sends NOTIFY aid_changed."),
		size: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "aid_xds_snapshot_resources", Help: "Resources in the last snapshot, by type.",
		}, []string{"type"}),
		apply: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "aid_xds_apply_seconds", Help: "Time from the notification of a change until the nodes' streams have it.", Buckets: prometheus.ExponentialBuckets(.0001, 4, 9),
		}),
		records: counter("ingest_records_total", "Audit records that nodes sent, by result.", "result"),
	}
	for _, what := range []string{"policies", "envoy", "provider", "credential"} {
		m.unpublished.WithLabelValues(what)
	}
	for _, k := range kinds {
		m.nacks.WithLabelValues(k.short)
	}
	connected := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "aid_xds_nodes", Help: "Connected nodes; Envoys and sidecars are counted separately.",
	}, func() float64 { return float64(nodes()) })
	sealed := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "aid_xds_unopened", Help: "Credentials and headers of connected orgs that cannot be opened. Not 0: nodes keep the last good ones, and /readyz names them.",
	}, func() float64 { return float64(unopened()) })
	return m, register(r, m.acks, m.nacks, m.pushed, m.unpublished, m.refused, m.silent, m.flooded, m.size, m.apply, m.records, connected, sealed)
}

// clientMetrics are the metrics of a sidecar's configuration and its age.
type clientMetrics struct {
	lookups  *prometheus.CounterVec
	rejected *prometheus.CounterVec
	received *prometheus.CounterVec
	evicted  prometheus.Counter
	first    prometheus.Histogram
}

func newClientMetrics(r prometheus.Registerer, callers, lookups func() int, age func() time.Duration, up func() bool) (*clientMetrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "aid_xds_client_" + name, Help: help}, labels)
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "aid_xds_client_" + name, Help: help}, value)
	}
	m := &clientMetrics{
		lookups:  counter("lookups_total", "Lookups of callers, by result.", "result"),
		rejected: counter("rejected_total", "Responses of the control plane that were rejected, by type. The last accepted ones stay.", "type"),
		received: counter("resources_total", "Resources received, including removals, by type.", "type"),
		evicted:  prometheus.NewCounter(prometheus.CounterOpts{Name: "aid_xds_client_evicted_total", Help: "Callers that were evicted from memory."}),
		first: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "aid_xds_client_first_lookup_seconds", Help: "Time of the first lookup of a key, at the control plane.", Buckets: prometheus.ExponentialBuckets(.0005, 2, 13),
		}),
	}
	for _, k := range kinds {
		m.rejected.WithLabelValues(k.short) // alerts need the metric from the start
	}
	return m, register(r, m.lookups, m.rejected, m.received, m.evicted, m.first,
		gauge("callers", "Callers in memory.", func() float64 { return float64(callers()) }),
		gauge("lookups_waiting", "Lookups of keys that wait or are in flight to the control plane.", func() float64 { return float64(lookups()) }),
		gauge("staleness_seconds", "Time since the last heartbeat of the control plane, which means that its database responds.", func() float64 { return age().Seconds() }),
		gauge("connected", "1 while there is a stream to the control plane.", func() float64 {
			if up() {
				return 1
			}
			return 0
		}))
}

func register(r prometheus.Registerer, cs ...prometheus.Collector) error {
	if r == nil {
		return nil
	}
	for _, c := range cs {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}
