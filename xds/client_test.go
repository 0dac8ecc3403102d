package xds_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/store/storetest"
	"github.com/ai-identity/ai-identity/xds"
)

// A key with a request in flight is never evicted, since the request must end when the key is
// revoked.
func TestInUseIsKept(t *testing.T) {
	p := newPlane(t)
	org := storetest.Org(t, p.db)
	token, _ := p.node(org)
	_, pinned := p.agent(org)
	var inUse atomic.Bool
	inUse.Store(true)
	ended := make(chan struct{}, 1)
	x := p.client(token, func(c *xds.ClientConfig) {
		c.MaxCallers = 2
		c.InUse = func(p identity.Presented) bool { return p == identity.PresentedKey(pinned.Hash) && inUse.Load() }
		c.Changed = func(p identity.Presented, caller identity.Caller, known bool) {
			if p == identity.PresentedKey(pinned.Hash) && (!known || caller.ActiveAt(time.Now()) != nil) {
				ended <- struct{}{}
			}
		}
	})
	eventually(t, x.Ready)
	if _, err := x.Caller(ctx(t), identity.PresentedKey(pinned.Hash), netip.Addr{}); err != nil {
		t.Fatal(err)
	}
	others := func() {
		t.Helper()
		for range 8 {
			_, k := p.agent(org)
			if _, err := x.Caller(ctx(t), identity.PresentedKey(k.Hash), netip.Addr{}); err != nil {
				t.Fatal(err)
			}
		}
		if n := xds.Callers(x); n > 2 {
			t.Errorf("%d callers are kept", n)
		}
	}
	others()
	p.in(org, func(tx pgx.Tx) error {
		return identity.RevokeKey(context.Background(), tx, pinned.AgentID, pinned.ID, time.Now())
	})
	select {
	case <-ended:
	case <-ctx(t).Done():
		t.Fatal("nobody was told that the key was revoked")
	}
	// Without a request in flight, it is evicted like any other.
	inUse.Store(false)
	others()
}

// A client also stops if a response arrives at the same time.
func TestStopsWhileAnswered(t *testing.T) {
	p := newPlane(t)
	org := storetest.Org(t, p.db)
	token, _ := p.node(org)
	conn := p.conn()
	for i := range 30 { // so that both orders happen
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

// stopping is a connection that stops the client as soon as a message arrives.
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
