package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

const answer = `{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"bench-model","choices":[{"index":0,"message":{"role":"assistant","content":"A short answer of a hundred or so characters, which is about what an agent's step is answered with."},"finish_reason":"stop"}],"usage":{"prompt_tokens":250,"completion_tokens":24,"total_tokens":274}}`

// provider is the stand-in upstream: raw HTTP/1.1 that answers a chat
// completion whole, or as events one interval apart when the request asks for a
// stream. It is as cheap as it can be, because it shares the machine.
type provider struct {
	events   int
	interval time.Duration
}

func (p provider) serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		go func() {
			defer conn.Close()
			_ = p.connection(ctx, conn) // the peer hung up: nothing to tell anyone
		}()
	}
}

func (p provider) connection(ctx context.Context, conn net.Conn) error {
	r := bufio.NewReaderSize(conn, 128<<10)
	whole := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", len(answer), answer)
	var body []byte
	for {
		length := 0
		for {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return err
			}
			line = bytes.TrimRight(line, "\r\n")
			if len(line) == 0 {
				break
			}
			if name, value, _ := bytes.Cut(line, []byte(":")); bytes.EqualFold(name, []byte("content-length")) {
				if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
					return err
				}
			}
		}
		if cap(body) < length {
			body = make([]byte, length)
		}
		body = body[:length]
		if _, err := io.ReadFull(r, body); err != nil {
			return err
		}
		if !bytes.Contains(body[:min(len(body), 64)], []byte(`"stream":true`)) {
			if _, err := conn.Write(whole); err != nil {
				return err
			}
			continue
		}
		if err := p.stream(ctx, conn); err != nil {
			return err
		}
	}
}

func (p provider) stream(ctx context.Context, conn net.Conn) error {
	if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"); err != nil {
		return err
	}
	event := func(data string) error {
		_, err := fmt.Fprintf(conn, "%x\r\ndata: %s\n\n\r\n", len(data)+8, data)
		return err
	}
	tick := time.NewTicker(p.interval)
	defer tick.Stop()
	for range p.events {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if err := event(`{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench-model","choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}`); err != nil {
			return err
		}
	}
	if err := event(`{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench-model","choices":[],"usage":{"prompt_tokens":250,"completion_tokens":24,"total_tokens":274}}`); err != nil {
		return err
	}
	_, err := io.WriteString(conn, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
	return err
}
