package storetest

import (
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
)

// Silent returns the URL of the test's database for a role, through a proxy. hush makes
// every connection that the proxy has silent for good. Nothing is forwarded any more, and
// nothing is closed, as when a firewall forgets connections. New connections work, unless
// hush was called with all set.
func Silent(t testing.TB, role string) (through string, hush func(all bool), hushed func() int) {
	t.Helper()
	u, err := url.Parse(URL(t, role))
	if err != nil {
		t.Fatal(err)
	}
	network, address := "tcp", u.Host
	if dir := u.Query().Get("host"); dir != "" {
		port := u.Query().Get("port")
		if port == "" {
			port = u.Port()
		}
		if port == "" {
			port = "5432"
		}
		network, address = "unix", dir+"/.s.PGSQL."+port
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &silencer{}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { p.forward(in, network, address) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		for _, c := range p.conns {
			c.Close()
		}
		p.mu.Unlock()
		conns.Wait()
	})
	q := u.Query()
	q.Del("host")
	q.Del("port")
	u.Host, u.RawQuery = l.Addr().String(), q.Encode()
	return u.String(), p.hush, func() int { return int(p.dropped.Load()) }
}

// silencer is the proxy's connections. A generation of them is silent once a later
// one has begun.
type silencer struct {
	generation atomic.Int64
	dropped    atomic.Int64 // messages that were not forwarded
	mu         sync.Mutex
	all        bool
	conns      []net.Conn
}

func (p *silencer) hush(all bool) {
	p.mu.Lock()
	p.all = all
	p.mu.Unlock()
	p.generation.Add(1)
}

func (p *silencer) forward(in net.Conn, network, address string) {
	out, err := net.Dial(network, address)
	if err != nil {
		in.Close()
		return
	}
	p.mu.Lock()
	p.conns = append(p.conns, in, out)
	generation := p.generation.Load()
	if p.all {
		generation = -1
	}
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.copy(out, in, generation) })
	both.Go(func() { p.copy(in, out, generation) })
	both.Wait()
	in.Close()
	out.Close()
}

// copy ends when either end is closed. What comes on a silent connection is dropped.
func (p *silencer) copy(to, from net.Conn, generation int64) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		silent := generation != p.generation.Load()
		if n > 0 && silent {
			p.dropped.Add(1)
		} else if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if err == io.EOF && !silent {
				if w, ok := to.(interface{ CloseWrite() error }); ok {
					w.CloseWrite()
				}
			}
			return
		}
	}
}
