package xds_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"google.golang.org/grpc"

	"github.com/ai-identity/ai-identity/store/storetest"
	"github.com/ai-identity/ai-identity/xds"
)

// A client that is stopped while an answer arrives stops.
func TestStopsWhileAnswered(t *testing.T) {
	p := newPlane(t)
	org := storetest.Org(t, p.db)
	token, _ := p.node(org)
	conn := p.conn()
	for i := range 30 { // of those two that may happen then, each
		c, cancel := context.WithCancel(context.Background())
		x, err := xds.NewClient(xds.ClientConfig{Conn: stopping{conn, cancel}, NodeID: "test", Token: token, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- x.Run(c) }()
		select {
		case err := <-done:
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		case <-ctx(t).Done():
			t.Fatalf("client %d still runs", i)
		}
	}
}

// stopping is a connection whose user is stopped as soon as something arrives.
type stopping struct {
	grpc.ClientConnInterface
	stop context.CancelFunc
}

func (s stopping) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	g, err := s.ClientConnInterface.NewStream(ctx, desc, method, opts...)
	return stoppingStream{g, s.stop}, err
}

type stoppingStream struct {
	grpc.ClientStream
	stop context.CancelFunc
}

func (s stoppingStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	s.stop()
	return err
}
