package audit

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the metrics of a Writer.
type metrics struct {
	append, sync, batch             prometheus.Histogram
	failures, dropped               prometheus.Counter
	recovered, truncated            prometheus.Counter
	shipped, shipFailures           prometheus.Counter
	changes, gaps, unknownCallers   prometheus.Counter
	orgFull, repeated               prometheus.Counter
	shipping                        prometheus.GaugeFunc
	bytes, lagRecords, lagAge, free prometheus.GaugeFunc
	unsettled, writable, stuck      prometheus.GaugeFunc
	quarantined                     prometheus.GaugeFunc
}

func newMetrics(w *Writer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "aid_audit_" + name, Help: help})
	}
	seconds := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: "aid_audit_" + name, Help: help, Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16)})
	}
	gauge := func(name, help string, f func() float64) prometheus.GaugeFunc {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "aid_audit_" + name, Help: help}, f)
	}
	locked := func(f func() float64) func() float64 {
		return func() float64 {
			w.mu.Lock()
			defer w.mu.Unlock()
			return f()
		}
	}
	return &metrics{
		append: seconds("append_seconds", "Time until an entry is durable."),
		sync:   seconds("sync_seconds", "Time to write one batch and to make it durable."),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "aid_audit_batch_records", Help: "Records in a batch that becomes durable together.", Buckets: prometheus.ExponentialBuckets(1, 2, 13),
		}),
		failures:     counter("write_failures_total", "Segments that could not be written or made durable. Above 0: check the disk."),
		dropped:      counter("dropped_total", "Entries without a waiting request that could not be stored. Above 0: requests are completed as unknown."),
		recovered:    counter("recovered_total", "Requests that were in flight at a crash, completed as unknown at the start."),
		truncated:    counter("truncated_bytes_total", "Bytes of writes that a crash interrupted, dropped at the start."),
		shipped:      counter("shipped_records_total", "Records that the control plane has committed."),
		shipFailures: counter("ship_failures_total", "Batches that the control plane did not accept."),
		changes:      counter("writer_changes_total", "New writer ids while running. Above 0: a segment folder was copied, or another node uses this node's id."),
		gaps:         counter("gaps_total", "Recorded gaps: records that the control plane lost and that the segments no longer have."),

		orgFull: counter("org_full_total", "Entries that were rejected because too many bytes of their org wait for the control plane. See stuck_orgs."),

		repeated: counter("repeated_rejections_total", "Requests with a key that may not be used, counted together after the first of a minute."),

		unknownCallers: counter("unknown_callers_total", "Requests without a known caller."),
		shipping: gauge("shipping", "1 if records reach the control plane or none wait. 0 if shipping is stuck.", func() float64 {
			if w.Shipping() != nil {
				return 0
			}
			return 1
		}),
		quarantined: gauge("quarantined_records", "Records in quarantine/, which the control plane rejects for their form. Above 0: see docs/restore.md. -1: unknown.", func() float64 {
			n, err := w.quarantined()
			if err != nil {
				return -1
			}
			return float64(n)
		}),
		stuck: gauge("stuck_orgs", "Orgs with records that the control plane rejects, or has not accepted for 2 minutes. /readyz names them.",
			locked(func() (n float64) {
				for _, l := range w.lanes {
					if l.stuck(w.c.Now()) {
						n++
					}
				}
				return n
			})),
		bytes: gauge("segment_bytes", "Bytes of segments that are not shipped. They count against --max-backlog.", locked(func() float64 {
			return float64(w.bytesLocked())
		})),
		lagRecords: gauge("lag_records", "Durable records that the control plane does not have.", locked(func() float64 {
			return float64(w.lagLocked())
		})),
		lagAge: gauge("lag_seconds", "Age of the oldest durable record that the control plane does not have.", locked(func() float64 {
			oldest := w.oldestLocked()
			if oldest.IsZero() {
				return 0
			}
			return max(0, w.c.Now().Sub(oldest).Seconds())
		})),
		free: gauge("free_bytes", "Free bytes on the disk of the segments. -1: unknown.", func() float64 {
			n, err := w.disk.free()
			if err != nil {
				return -1
			}
			return float64(n)
		}),
		unsettled: gauge("unsettled", "Allowed decisions that have no completion yet.", func() float64 { return float64(w.unsettled.Load()) }),
		writable: gauge("writable", "1 if entries are accepted, 0 if requests are rejected because they cannot be recorded.", func() float64 {
			if w.Ready() != nil {
				return 0
			}
			return 1
		}),
	}
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	return registerAll(r, m.append, m.sync, m.batch, m.failures, m.dropped, m.recovered, m.truncated, m.shipped, m.shipFailures,
		m.bytes, m.lagRecords, m.lagAge, m.free, m.unsettled, m.writable, m.changes, m.gaps, m.unknownCallers, m.orgFull, m.repeated, m.shipping, m.stuck, m.quarantined)
}

func registerAll(r prometheus.Registerer, cs ...prometheus.Collector) error {
	for _, c := range cs {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

// chainMetrics are the metrics of a Chain.
type chainMetrics struct {
	chained, resent, malformed, refused, behind prometheus.Counter
	append                                      prometheus.Histogram

	reserved, charged, corrected, lapsed, overruns, unmatched prometheus.Counter
	thresholds                                                *prometheus.CounterVec
}

func newChainMetrics(r prometheus.Registerer, signing, missing, bad func() int32) (*chainMetrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "aid_audit_chain_" + name, Help: help})
	}
	m := &chainMetrics{
		chained:   counter("entries_total", "Entries appended to the chains of orgs."),
		resent:    counter("resent_total", "Records that were sent again and were in the chain already."),
		malformed: counter("malformed_total", "Records with an entry that cannot be parsed. The chain stores them unchanged. Above 0: a writer has a fault."),
		behind:    counter("behind_total", "Batches that did not follow the chain. Above 0: the database was restored, or a sidecar lost records."),
		refused:   counter("refused_total", "Rejected batches that no correct writer sends. Above 0: see the log."),
		append: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "aid_audit_chain_append_seconds", Help: "Time to append one batch of one org.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
	}
	money := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "aid_budget_" + name, Help: help})
	}
	m.reserved = money("reserved_usd_total", "US dollars that recorded decisions reserved under USD caps.")
	m.charged = money("charged_usd_total", "US dollars charged to the reservations of decisions.")
	m.corrected = money("corrected_usd_total", "US dollars taken back: a request charged in full, because its end was not known, completed after all.")
	m.lapsed = money("lapsed_total", "Reservations charged in full because their sidecar is gone. Not 0: a sidecar was lost with its segments, or is cut off.")
	m.overruns = money("overruns_total", "Charges above their reservation. Not 0: an estimate was too low, or a price is wrong.")
	m.unmatched = money("unmatched_total", "Charges whose decision reserved nothing that the database knows; no count has them. Not 0: records were lost.")
	m.thresholds = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "aid_budget_thresholds_total", Help: "USD caps whose charges have reached so many per cent, each once in a period.",
	}, []string{"percent"})
	for _, percent := range thresholds {
		m.thresholds.WithLabelValues(strconv.FormatInt(percent, 10)) // alerts read it from the start
	}
	if r == nil {
		return m, nil
	}
	number := func(name, help string, f func() int32) prometheus.GaugeFunc {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "aid_audit_chain_" + name, Help: help}, func() float64 { return float64(f()) })
	}
	return m, registerAll(r, number("key_epoch", "The epoch of the HMAC key that signs now.", signing),
		number("missing_epoch", "The epoch of a chain without a key in --hmac-keys. Above 0: this replica cannot append.", missing),
		number("bad", "Orgs with a chain or tree that a check found to be invalid. Above 0: see /readyz and docs/restore.md.", bad), m.chained, m.resent, m.malformed, m.refused, m.behind, m.append,
		m.reserved, m.charged, m.corrected, m.lapsed, m.overruns, m.unmatched, m.thresholds)
}
