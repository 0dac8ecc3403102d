package extproc

import (
	"context"
	"sync"
	"time"

	logdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	logv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
)

// The client may leave, or the provider may break off in the middle of a response. Envoy
// 1.40 closes the ext_proc stream in the same way in both cases, and sends no message.
// Its access log has the difference. The log comes to the same socket, only for requests
// that ended abnormally. envoy.EndLog configures it.

// end is how Envoy reports the end of a request that ended abnormally.
type end struct {
	upstream   bool // the provider reset the connection, or broke HTTP's rules, or a limit on it was reached
	downstream bool // the client closed or reset the connection
	status     int  // what the client got, 0 if no headers reached it
}

// ends delivers Envoy's reports to the exchanges they are about.
type ends struct {
	mu      sync.Mutex
	pending map[string]chan end // by request id, for forwarded exchanges
}

func newEnds() *ends { return &ends{pending: make(map[string]chan end)} }

// expect keeps a report on the request, until forget.
func (e *ends) expect(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pending[id] = make(chan end, 1)
}

func (e *ends) forget(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.pending, id)
}

func (e *ends) report(id string, how end) {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case e.pending[id] <- how:
	default: // not expected, or reported twice
	}
}

// wait returns Envoy's report on the request. It returns the zero end if no report comes in
// time.
func (e *ends) wait(ctx context.Context, id string, timeout time.Duration) end {
	e.mu.Lock()
	c := e.pending[id]
	e.mu.Unlock()
	if c == nil || timeout <= 0 {
		return end{}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	select {
	case how := <-c:
		return how
	case <-ctx.Done():
		return end{}
	}
}

// StreamAccessLogs receives Envoy's access log of the requests that ended abnormally. It
// reads only the request's id, the flags and the status of an entry. It ends when the
// server has drained.
func (s *Server) StreamAccessLogs(stream logv3.AccessLogService_StreamAccessLogsServer) error {
	ended := make(chan error, 1)
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			for _, entry := range m.GetHttpLogs().GetLogEntry() {
				if id := entry.GetRequest().GetRequestId(); id != "" {
					s.ends.report(id, endOf(entry))
				}
			}
		}
	}()
	select {
	case err := <-ended:
		return err
	case <-s.live.empty:
		return nil
	}
}

func endOf(entry *logdatav3.HTTPAccessLogEntry) end {
	f := entry.GetCommonProperties().GetResponseFlags()
	return end{
		upstream: f.GetUpstreamRemoteReset() || f.GetUpstreamConnectionTermination() || f.GetUpstreamConnectionFailure() ||
			f.GetUpstreamProtocolError() || f.GetUpstreamRequestTimeout() || f.GetUpstreamMaxStreamDurationReached() ||
			f.GetLocalReset() || f.GetStreamIdleTimeout(),
		downstream: f.GetDownstreamConnectionTermination() || f.GetDownstreamRemoteReset() || f.GetDownstreamProtocolError(),
		status:     int(entry.GetResponse().GetResponseCode().GetValue()),
	}
}
