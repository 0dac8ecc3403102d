package main

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/stats"
)

// serveOn waits for --lame-duck. It returns early if Envoy has closed its connections, since
// no request can arrive then, and when hurry is done.
func (s *sidecar) serveOn(hurry context.Context, envoys *connections) {
	s.log.Info("stopping: /readyz is red", "lame_duck", s.lameDuck, "drain", s.drain)
	timer := time.NewTimer(s.lameDuck)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-envoys.gone():
		s.log.Info("Envoy has closed its connections: not waiting for --lame-duck")
	case <-hurry.Done():
		s.log.Info("a second signal: not waiting for --lame-duck and --drain; a third ends the process at once")
	}
}

// nextSignal returns a context that ends with the next stop signal. The signal after that
// ends the process.
func nextSignal(ctx context.Context) (context.Context, func()) {
	ctx, stop := signal.NotifyContext(context.WithoutCancel(ctx), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// connections counts those of a gRPC server, as its stats handler.
type connections struct {
	mu    sync.Mutex
	open  int
	ended chan struct{} // closed while no connection of the earlier ones is left; nil: there was none yet
}

var _ stats.Handler = (*connections)(nil)

// gone returns a channel that is closed once all connections have ended.
func (c *connections) gone() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended == nil {
		c.ended = make(chan struct{})
	}
	return c.ended
}

func (c *connections) HandleConn(_ context.Context, s stats.ConnStats) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch s.(type) {
	case *stats.ConnBegin:
		if c.open++; c.ended != nil {
			select {
			case <-c.ended:
				c.ended = make(chan struct{}) // Envoy is back
			default:
			}
		}
	case *stats.ConnEnd:
		if c.open--; c.open > 0 {
			return
		}
		if c.ended == nil {
			c.ended = make(chan struct{})
		}
		close(c.ended)
	}
}

func (*connections) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (*connections) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (*connections) HandleRPC(context.Context, stats.RPCStats)                         {}
