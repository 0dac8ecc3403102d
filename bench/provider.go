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

// message is the same response in Anthropic's format.
const message = `{"id":"msg_bench","type":"message","role":"assistant","model":"bench-model","content":[{"type":"text","text":"A short answer of a hundred or so characters, which is about what an agent's step is answered with."}],"stop_reason":"end_turn","usage":{"input_tokens":250,"output_tokens":24}}`

// provider is the test provider. It responds to a chat completion and to Anthropic's POST
// /v1/messages. A streamed response has events at an interval. It is raw HTTP/1.1, so that it
// costs little CPU on the shared machine.
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
			_ = p.connection(ctx, conn) // an error means that the peer has disconnected
		}()
	}
}

func (p provider) connection(ctx context.Context, conn net.Conn) error {
	r := bufio.NewReaderSize(conn, 128<<10)
	whole := func(body string) []byte {
		return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
	}
	answers := map[bool][]byte{false: whole(answer), true: whole(message)}
	var body []byte
	for {
		length, messages := 0, false
		for {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return err
			}
			line = bytes.TrimRight(line, "\r\n")
			if len(line) == 0 {
				break
			}
			messages = messages || bytes.HasPrefix(line, []byte("POST /v1/messages "))
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
		// It stands at the beginning of what we send, and at the end of what that becomes.
		asked := []byte(`"stream":true`)
		if !bytes.Contains(body[:min(len(body), 64)], asked) && !bytes.Contains(body[max(0, len(body)-64):], asked) {
			if _, err := conn.Write(answers[messages]); err != nil {
				return err
			}
			continue
		}
		if err := p.stream(ctx, conn, messages); err != nil {
			return err
		}
	}
}

func (p provider) stream(ctx context.Context, conn net.Conn, messages bool) error {
	if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"); err != nil {
		return err
	}
	event := func(data string) error {
		_, err := fmt.Fprintf(conn, "%x\r\ndata: %s\n\n\r\n", len(data)+8, data)
		return err
	}
	before := []string(nil)
	token := `{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench-model","choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}`
	after := []string{`{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench-model","choices":[],"usage":{"prompt_tokens":250,"completion_tokens":24,"total_tokens":274}}`, "[DONE]"}
	if messages {
		before = []string{`{"type":"message_start","message":{"id":"msg_bench","type":"message","role":"assistant","content":[],"model":"bench-model","stop_reason":null,"usage":{"input_tokens":250,"output_tokens":1}}}`,
			`{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`}
		token = `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" token"}}`
		after = []string{`{"type":"content_block_stop","index":0}`, `{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":24}}`, `{"type":"message_stop"}`}
	}
	tick := time.NewTicker(p.interval)
	defer tick.Stop()
	for range p.events {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		for _, e := range append(before, token) {
			if err := event(e); err != nil {
				return err
			}
		}
		before = nil
	}
	for _, e := range after {
		if err := event(e); err != nil {
			return err
		}
	}
	_, err := io.WriteString(conn, "0\r\n\r\n")
	return err
}
