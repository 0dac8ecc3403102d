package xds

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Callers returns the number of callers in a client's memory.
func Callers(x *Client) int { return x.size() }

// Appending is how many streams of audit records are open.
func (s *Server) Appending() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.appends)
}

// Applied is how many changes were read and handed to streams.
func (s *Server) Applied() float64 {
	var m dto.Metric
	if err := s.metrics.apply.(prometheus.Metric).Write(&m); err != nil {
		return -1
	}
	return float64(m.GetHistogram().GetSampleCount())
}
