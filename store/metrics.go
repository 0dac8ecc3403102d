package store

import (
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// poolCollector returns the state of a pool on each scrape.
type poolCollector struct{ pool *pgxpool.Pool }

func (c poolCollector) describe() (connections, limit, acquired, waited, waiting *prometheus.Desc) {
	return prometheus.NewDesc("aid_store_connections", "Connections to the database, by state.", []string{"state"}, nil),
		prometheus.NewDesc("aid_store_connections_max", "The maximum number of concurrent connections.", nil, nil),
		prometheus.NewDesc("aid_store_acquires_total", "How often a connection was taken from the pool.", nil, nil),
		prometheus.NewDesc("aid_store_acquires_waited_total", "How often no connection was free, so that a caller waited.", nil, nil),
		prometheus.NewDesc("aid_store_acquire_wait_seconds_total", "The sum of these waiting times.", nil, nil)
}

func (c poolCollector) Describe(ch chan<- *prometheus.Desc) {
	connections, limit, acquired, waited, waiting := c.describe()
	for _, d := range []*prometheus.Desc{connections, limit, acquired, waited, waiting} {
		ch <- d
	}
}

func (c poolCollector) Collect(ch chan<- prometheus.Metric) {
	connections, limit, acquired, waited, waiting := c.describe()
	s := c.pool.Stat()
	ch <- prometheus.MustNewConstMetric(connections, prometheus.GaugeValue, float64(s.AcquiredConns()), "used")
	ch <- prometheus.MustNewConstMetric(connections, prometheus.GaugeValue, float64(s.IdleConns()), "idle")
	ch <- prometheus.MustNewConstMetric(limit, prometheus.GaugeValue, float64(s.MaxConns()))
	ch <- prometheus.MustNewConstMetric(acquired, prometheus.CounterValue, float64(s.AcquireCount()))
	ch <- prometheus.MustNewConstMetric(waited, prometheus.CounterValue, float64(s.EmptyAcquireCount()))
	ch <- prometheus.MustNewConstMetric(waiting, prometheus.CounterValue, s.EmptyAcquireWaitTime().Seconds())
}
