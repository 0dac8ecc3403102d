package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
)

// A --lame-duck of an hour ends early when Envoy has closed its connections, and with a
// second signal. That signal does not end the process.
func TestLameDuckEndsEarly(t *testing.T) {
	logs := &heard{}
	s := &sidecar{lameDuck: time.Hour, log: slog.New(slog.NewTextHandler(logs, nil))}
	envoys := &connections{}
	g := grpc.NewServer(grpc.StatsHandler(envoys))
	l := bufconn.Listen(1 << 10)
	go g.Serve(l) //nolint:errcheck // returns after Stop
	defer g.Stop()
	dial := func() *grpc.ClientConn {
		conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		conn.Connect()
		for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
			if !conn.WaitForStateChange(t.Context(), state) {
				t.Fatal("not connected")
			}
		}
		return conn
	}

	// A client's connection is ready before the server has counted it.
	counted := func(n int) {
		for open := -1; open != n; runtime.Gosched() {
			envoys.mu.Lock()
			open = envoys.open
			envoys.mu.Unlock()
		}
	}

	select {
	case <-envoys.gone():
		t.Fatal("Envoy has not connected yet, and may still")
	default:
	}
	one, two := dial(), dial()
	counted(2)
	one.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.serveOn(t.Context(), envoys)
	}()
	for !strings.Contains(logs.String(), "stopping") {
		<-time.After(time.Millisecond)
	}
	select {
	case <-ended:
		t.Fatal("it ended with a connection open")
	default:
	}
	two.Close()
	<-ended
	if !strings.Contains(logs.String(), "Envoy has closed its connections") {
		t.Errorf("logged: %s", logs)
	}

	three := dial() // Envoy is back
	defer three.Close()
	counted(1)
	hurry, calm := nextSignal(t.Context())
	defer calm()
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.serveOn(hurry, envoys)
	if !strings.Contains(logs.String(), "a second signal") {
		t.Errorf("logged: %s", logs)
	}
}

// heard is a log that can be read while it is written.
type heard struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *heard) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *heard) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
