package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"
)

// load is one measurement. Each connection sends the next request after the last response (a
// closed loop). It uses raw HTTP/1.1, so that the client costs little, and the same on every
// path.
type load struct {
	addr     string
	request  []byte // the whole request, head and body
	conns    int
	duration time.Duration
}

type result struct {
	requests int
	elapsed  time.Duration
	p50, p99 time.Duration
}

func (r result) rate() float64 { return float64(r.requests) / r.elapsed.Seconds() }

func (l load) run(ctx context.Context) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, l.duration+30*time.Second)
	defer cancel()
	var (
		mu   sync.Mutex // guards all and errs
		all  []time.Duration
		errs []error
		wg   sync.WaitGroup
	)
	start := time.Now()
	stop := start.Add(l.duration)
	for range l.conns {
		wg.Go(func() {
			took, err := l.connection(ctx, stop)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			if err != nil {
				errs = append(errs, err)
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(start)
	if err := errors.Join(errs...); err != nil {
		return result{}, fmt.Errorf("driving %s: %w", l.addr, err)
	}
	slices.Sort(all)
	if len(all) == 0 {
		return result{}, fmt.Errorf("driving %s: no request was answered", l.addr)
	}
	return result{len(all), elapsed, all[len(all)/2], all[len(all)*99/100]}, nil
}

func (l load) connection(ctx context.Context, stop time.Time) ([]time.Duration, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if d, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(d); err != nil {
			return nil, err
		}
	}
	r := bufio.NewReaderSize(conn, 64<<10)
	took := make([]time.Duration, 0, 1<<16)
	for {
		begin := time.Now()
		if begin.After(stop) && len(took) > 0 { // at least one request, for every duration
			return took, nil
		}
		if _, err := conn.Write(l.request); err != nil {
			return took, err
		}
		status, err := discardAnswer(r, nil)
		if err != nil {
			return took, err
		}
		if status != 200 {
			return took, fmt.Errorf("answered %d, want 200", status)
		}
		took = append(took, time.Since(begin))
	}
}

// discardAnswer reads one HTTP/1.1 response and returns its status. event, if not nil, is
// called for each "data:" line of the body.
func discardAnswer(r *bufio.Reader, event func()) (int, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < 12 {
		return 0, fmt.Errorf("status line %q", line)
	}
	status, err := strconv.Atoi(string(line[9:12]))
	if err != nil {
		return 0, fmt.Errorf("status line %q", line)
	}
	length, chunked := int64(0), false
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, []byte("content-length")):
			if length, err = strconv.ParseInt(string(value), 10, 64); err != nil {
				return 0, fmt.Errorf("content-length %q", value)
			}
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			chunked = true
		}
	}
	if !chunked {
		_, err := io.CopyN(io.Discard, r, length)
		return status, err
	}
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		size, err := strconv.ParseInt(string(bytes.TrimRight(line, "\r\n")), 16, 64)
		if err != nil {
			return 0, fmt.Errorf("chunk size %q", line)
		}
		if event == nil || size == 0 {
			if _, err := r.Discard(int(size) + 2); err != nil {
				return 0, err
			}
		} else {
			chunk := make([]byte, size+2)
			if _, err := io.ReadFull(r, chunk); err != nil {
				return 0, err
			}
			for range bytes.Count(chunk, []byte("data:")) {
				event()
			}
		}
		if size == 0 {
			return status, nil
		}
	}
}

// Models of the test provider: one with its own API, and one with translation.
const (
	modelPassed     = "bench-model"
	modelTranslated = "bench-translated"
)

// chat is a chat completion request of about size bytes.
func chat(host, key, model string, size int, stream bool) []byte {
	var body bytes.Buffer
	fmt.Fprintf(&body, `{"model":%q,"stream":%t,"messages":[{"role":"user","content":"`, model, stream)
	for body.Len() < size-4 {
		body.WriteString("abcdefghij klmnopqrst uvwxyz ")
	}
	body.WriteString(`"}]}`)
	var req bytes.Buffer
	fmt.Fprintf(&req, "POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
		host, key, body.Len())
	req.Write(body.Bytes())
	return req.Bytes()
}
