package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// The load and the test provider share the cores with what is measured. So each is one thread
// with epoll(7), as wrk is, without a goroutine for each connection.

// poller waits for sockets.
type poller struct {
	fd     int
	events [512]syscall.EpollEvent
}

func newPoller() (*poller, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return &poller{fd: fd}, nil
}

func (p *poller) close() { syscall.Close(p.fd) }

// add waits for input on a socket, and for room for output too if out is set.
func (p *poller) add(fd int, out bool) error  { return p.control(syscall.EPOLL_CTL_ADD, fd, out) }
func (p *poller) want(fd int, out bool) error { return p.control(syscall.EPOLL_CTL_MOD, fd, out) }

func (p *poller) control(op, fd int, out bool) error {
	e := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(fd)}
	if out {
		e.Events |= syscall.EPOLLOUT
	}
	if err := syscall.EpollCtl(p.fd, op, fd, &e); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	return nil
}

// wait returns the sockets that are ready. It waits for at most d, in whole milliseconds,
// rounded up.
func (p *poller) wait(d time.Duration) ([]syscall.EpollEvent, error) {
	n, err := syscall.EpollWait(p.fd, p.events[:], int((max(d, 0)+time.Millisecond-1)/time.Millisecond))
	if errors.Is(err, syscall.EINTR) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return p.events[:n], nil
}

// write writes without waiting. It returns what is left.
func write(fd int, b []byte) ([]byte, error) {
	for len(b) > 0 {
		n, err := syscall.Write(fd, b)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			return b, nil
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return nil, fmt.Errorf("writing: %w", err)
		default:
			b = b[n:]
		}
	}
	return nil, nil
}

// read reads what is there. eof is set at the end of the connection.
func read(fd int, b []byte) (got []byte, eof bool, err error) {
	n, err := syscall.Read(fd, b)
	switch {
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EINTR):
		return nil, false, nil
	case err != nil:
		return nil, false, fmt.Errorf("reading: %w", err)
	}
	return b[:n], n == 0, nil
}

// connect opens a connection. Its socket does not block afterwards.
func connect(addr *net.TCPAddr) (int, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("connecting: %w", err)
	}
	to := &syscall.SockaddrInet4{Port: addr.Port, Addr: [4]byte(addr.IP.To4())}
	err = errors.Join(syscall.Connect(fd, to), syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1), syscall.SetNonblock(fd, true))
	if err != nil {
		syscall.Close(fd)
		return -1, fmt.Errorf("connecting to %s: %w", addr, err)
	}
	return fd, nil
}

// answer reads one HTTP/1.1 response.
type answer struct {
	head    []byte // until it is whole
	whole   bool
	status  int
	left    int    // bytes of the body that are still to come
	chunked bool   // then its end is the last chunk
	tail    []byte // the last bytes of a body in chunks
	events  int    // lines of data
}

// lastChunk ends a body in chunks.
var (
	lastChunk = []byte("\r\n0\r\n\r\n")
	dataLine  = []byte("data:")
)

// feed reads the next bytes and reports whether the response ends with them.
func (a *answer) feed(b []byte) (end bool, err error) {
	if !a.whole {
		a.head = append(a.head, b...)
		i := bytes.Index(a.head, []byte("\r\n\r\n"))
		if i < 0 {
			return false, nil
		}
		// The end of the last line stays: it begins the first chunk's search.
		b = a.head[i+2:]
		if err := a.read(a.head[:i+2]); err != nil {
			return false, err
		}
		a.whole = true
		if !a.chunked {
			b = b[2:]
		}
	}
	if !a.chunked {
		if a.left -= len(b); a.left < 0 {
			return false, errors.New("bytes after the response")
		}
		return a.left == 0, nil
	}
	const keep = 6 // the longest part of lastChunk without its end
	old := len(a.tail)
	a.tail = append(a.tail, b...)
	a.events += bytes.Count(a.tail[max(0, old-len(dataLine)+1):], dataLine)
	end = bytes.HasSuffix(a.tail, lastChunk)
	if n := len(a.tail); n > keep {
		a.tail = append(a.tail[:0], a.tail[n-keep:]...)
	}
	return end, nil
}

func (a *answer) read(head []byte) error {
	if len(head) < 12 {
		return fmt.Errorf("status line %q", head)
	}
	var err error
	if a.status, err = strconv.Atoi(string(head[9:12])); err != nil {
		return fmt.Errorf("status line %q", head)
	}
	a.left, a.chunked, err = framing(head)
	return err
}

// framing returns the length of a body, or that it is in chunks.
func framing(head []byte) (length int, chunked bool, err error) {
	for line := range bytes.Lines(head) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.EqualFold(name, []byte("content-length")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return 0, false, fmt.Errorf("content-length %q", value)
			}
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			chunked = true
		}
	}
	return length, chunked, nil
}

func (a *answer) reset() {
	*a = answer{head: a.head[:0], tail: a.tail[:0]}
}

// client is one connection of the load.
type client struct {
	fd      int
	request []byte
	out     []byte // what is left of it
	began   time.Time
	first   time.Duration // until the first event
	answer
}

// run sends requests until the load's duration has passed, or one on each connection.
func (l load) run(ctx context.Context) (result, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	addr, err := net.ResolveTCPAddr("tcp4", l.addr)
	if err != nil {
		return result{}, err
	}
	p, err := newPoller()
	if err != nil {
		return result{}, err
	}
	defer p.close()
	clients := make(map[int]*client, l.conns)
	defer func() {
		for fd := range clients {
			syscall.Close(fd)
		}
	}()
	start := time.Now()
	stop := start.Add(l.duration)
	r := result{took: make([]time.Duration, 0, 1<<16)}
	send := func(c *client) error {
		c.reset()
		c.began, c.first = time.Now(), 0
		c.out, err = write(c.fd, c.request)
		if err == nil && len(c.out) > 0 {
			err = p.want(c.fd, true)
		}
		return err
	}
	for i := range l.conns {
		fd, err := connect(addr)
		if err != nil {
			return r, fmt.Errorf("driving %s: %w", l.addr, err)
		}
		c := &client{fd: fd, request: l.requests[i%len(l.requests)]}
		clients[fd] = c
		if err := errors.Join(p.add(fd, false), send(c)); err != nil {
			return r, fmt.Errorf("driving %s: %w", l.addr, err)
		}
	}
	buf := make([]byte, 256<<10)
	for deadline := stop.Add(l.patience()); len(clients) > 0; {
		if ctx.Err() != nil {
			return r, ctx.Err()
		}
		if time.Now().After(deadline) {
			return r, fmt.Errorf("driving %s: %d connections wait for a response", l.addr, len(clients))
		}
		ready, err := p.wait(time.Second)
		if err != nil {
			return r, err
		}
		for _, e := range ready {
			c := clients[int(e.Fd)]
			more, err := l.step(p, c, buf, &r)
			if err != nil {
				return r, fmt.Errorf("driving %s: %w", l.addr, err)
			}
			switch now := time.Now(); {
			case more:
			case !l.once && now.Before(stop):
				if err := send(c); err != nil {
					return r, fmt.Errorf("driving %s: %w", l.addr, err)
				}
			default:
				syscall.Close(c.fd)
				delete(clients, c.fd)
			}
		}
	}
	r.elapsed = time.Since(start)
	// On a busy machine a store may take more than its 100 ms now and then.
	if r.rejected > len(r.took)/20 {
		return r, fmt.Errorf("driving %s: %d of %d responses are not 200, the first: %s", l.addr, r.rejected, r.rejected+len(r.took), r.why)
	}
	return r.sum(), nil
}

// step reads and writes what is possible on a connection. more is false at the response's end.
func (l load) step(p *poller, c *client, buf []byte, r *result) (more bool, err error) {
	if len(c.out) > 0 {
		if c.out, err = write(c.fd, c.out); err != nil {
			return false, err
		}
		if len(c.out) == 0 {
			if err := p.want(c.fd, false); err != nil {
				return false, err
			}
		}
	}
	got, eof, err := read(c.fd, buf)
	if err != nil || got == nil && !eof {
		return true, err
	}
	if eof {
		return false, errors.New("the connection was closed")
	}
	before := c.events
	end, err := c.feed(got)
	if err != nil {
		return false, err
	}
	if before == 0 && c.events > 0 {
		c.first = time.Since(c.began)
	}
	if !end {
		return true, nil
	}
	if c.status != 200 {
		if r.rejected++; r.rejected == 1 {
			r.why = string(got[:min(len(got), 1000)])
		}
		return false, nil
	}
	r.took = append(r.took, time.Since(c.began))
	r.events += c.events
	if c.first > 0 {
		r.firsts = append(r.firsts, c.first)
	}
	return false, nil
}
