package main

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"

	aidv1 "github.com/ai-identity/ai-identity/proto/aid/v1"
)

// hushed forwards TCP connections. Once it is silent, nothing is forwarded any more and
// nothing is closed, as when a firewall forgets connections.
type hushed struct {
	to     string
	silent chan struct{}
	mu     sync.Mutex
	conns  []net.Conn
}

func (h *hushed) serve(l net.Listener) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", h.to)
		if err != nil {
			in.Close()
			continue
		}
		h.mu.Lock()
		h.conns = append(h.conns, in, out)
		h.mu.Unlock()
		for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
			go func() {
				b := make([]byte, 32<<10)
				for {
					n, err := way[0].Read(b)
					select {
					case <-h.silent:
						return // and both stay open
					default:
					}
					if err != nil {
						way[1].Close()
						return
					}
					if _, err := way[1].Write(b[:n]); err != nil {
						return
					}
				}
			}()
		}
	}
}

// silentPlane has streams that tell when they end.
type silentPlane struct {
	opened, ended chan struct{}
}

func (p *silentPlane) stream(_ any, s grpc.ServerStream) error {
	if err := s.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	p.opened <- struct{}{}
	<-s.Context().Done()
	p.ended <- struct{}{}
	return s.Context().Err()
}

// A connection between sidecar and control plane can go silent, without a FIN and without
// a byte. The sidecar notices it within 15 s, the control plane within 30 s
// (docs/operations.md). Both ends have the options that they are run with.
func TestSilentConnection(t *testing.T) {
	t.Parallel()
	p := &silentPlane{opened: make(chan struct{}, 1), ended: make(chan struct{}, 1)}
	g := grpc.NewServer(slices.Concat((&control{xds: "127.0.0.1:0"}).xdsOptions(nil), []grpc.ServerOption{grpc.UnknownServiceHandler(p.stream)})...)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go g.Serve(l) //nolint:errcheck // it ends with Stop
	t.Cleanup(g.Stop)
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hushed{to: l.Addr().String(), silent: make(chan struct{})}
	go h.serve(front)
	t.Cleanup(func() {
		front.Close()
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, c := range h.conns {
			c.Close()
		}
	})
	log := slog.New(slog.DiscardHandler)
	conn, err := (&sidecar{xds: front.Addr().String(), log: log}).dial(newReloads(prometheus.NewRegistry(), log))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/aid.test/Stream")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	<-p.opened
	close(h.silent)
	began := time.Now()
	if err := stream.RecvMsg(new(aidv1.AppendReply)); grpcstatus.Code(err) != codes.Unavailable {
		t.Errorf("the sidecar's stream ends with %v", err)
	}
	// Some seconds more: the machine may be busy, and a test must not fail for that.
	if took := time.Since(began); took > 25*time.Second {
		t.Errorf("the sidecar noticed it after %v", took)
	} else {
		t.Logf("the sidecar noticed it after %v", took)
	}
	select {
	case <-p.ended:
		t.Logf("the control plane noticed it after %v", time.Since(began))
	case <-time.After(50*time.Second - time.Since(began)):
		t.Error("the control plane has not noticed it")
	}
}
