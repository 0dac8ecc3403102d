package xds_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"

	"github.com/ai-identity/ai-identity/store/storetest"
	"github.com/ai-identity/ai-identity/xds"
)

// cuttable is a connection that can be cut, and counts attempts to open a stream.
type cuttable struct {
	grpc.ClientConnInterface
	mu       sync.Mutex
	cut      bool
	attempts int
}

func (b *cuttable) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cut {
		b.attempts++
		return nil, errors.New("cut")
	}
	return b.ClientConnInterface.NewStream(ctx, desc, method, opts...)
}

type heard struct {
	mu sync.Mutex
	b  strings.Builder
}

func (h *heard) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.b.Write(b)
}

func (h *heard) count(s string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Count(h.b.String(), s)
}

// A control plane that is not available is one line in the log, for all attempts to open the
// stream. Its return is also one line.
func TestOneLineForAChange(t *testing.T) {
	p := newPlane(t)
	token, _ := p.node(storetest.Org(t, p.db))
	conn, logs := &cuttable{ClientConnInterface: p.conn(), cut: true}, &heard{}
	x := p.client(token, func(c *xds.ClientConfig) { c.Conn, c.Log = conn, slog.New(slog.NewTextHandler(logs, nil)) })
	attempts := func(n int) {
		t.Helper()
		eventually(t, func() error {
			conn.mu.Lock()
			defer conn.mu.Unlock()
			if conn.attempts < n {
				return errors.New("not tried often enough")
			}
			return nil
		})
	}
	set := func(cut bool) {
		conn.mu.Lock()
		conn.cut, conn.attempts = cut, 0
		conn.mu.Unlock()
	}
	attempts(4)
	set(false)
	eventually(t, x.Ready)
	set(true)
	p.stop()
	attempts(4)
	p.serve()
	set(false)
	eventually(t, func() error {
		if logs.count("connected to the control plane") < 2 {
			return errors.New("not connected again")
		}
		return nil
	})
	if n := logs.count("no stream to the control plane"); n != 2 {
		t.Errorf("%d lines for two outages", n)
	}
}
