package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"
)

const completion = `{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"bench-model","choices":[{"index":0,"message":{"role":"assistant","content":"A short answer of a hundred or so characters, which is about what an agent's step is answered with."},"finish_reason":"stop"}],"usage":{"prompt_tokens":250,"completion_tokens":24,"total_tokens":274}}`

// message is the same response in Anthropic's format.
const message = `{"id":"msg_bench","type":"message","role":"assistant","model":"bench-model","content":[{"type":"text","text":"A short answer of a hundred or so characters, which is about what an agent's step is answered with."}],"stop_reason":"end_turn","usage":{"input_tokens":250,"output_tokens":24}}`

// provider is the test provider. It responds to a chat completion and to Anthropic's POST
// /v1/messages. A streamed response has events at an interval.
type provider struct {
	events   int
	interval time.Duration

	p     *poller
	conns map[int]*asked
	due   []due // all streams have the same interval, so the next one is first
}

// asked is one connection to the provider.
type asked struct {
	fd      int
	in, out []byte
	left    int      // events of the stream
	after   []string // and then these
	token   string
}

// due is when a stream gets its next event.
type due struct {
	c  *asked
	at time.Time
}

// serve responds on a listener until ctx is done.
func (p *provider) serve(ctx context.Context, l *net.TCPListener) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	f, err := l.File()
	if err != nil {
		return err
	}
	defer f.Close()
	listener := int(f.Fd())
	if p.p, err = newPoller(); err != nil {
		return err
	}
	defer p.p.close()
	if err := errors.Join(syscall.SetNonblock(listener, true), p.p.add(listener, false)); err != nil {
		return err
	}
	p.conns = map[int]*asked{}
	buf := make([]byte, 256<<10)
	for ctx.Err() == nil {
		wait := time.Second
		if len(p.due) > 0 {
			wait = min(wait, time.Until(p.due[0].at))
		}
		ready, err := p.p.wait(wait)
		if err != nil {
			return err
		}
		for _, e := range ready {
			if int(e.Fd) == listener {
				if err := p.accept(listener); err != nil {
					return err
				}
				continue
			}
			if c := p.conns[int(e.Fd)]; c != nil && !p.step(c, buf) {
				p.end(c)
			}
		}
		for now := time.Now(); len(p.due) > 0 && !p.due[0].at.After(now); {
			d := p.due[0]
			p.due = p.due[1:]
			if p.conns[d.c.fd] == d.c && !p.event(d.c, now) {
				p.end(d.c)
			}
		}
	}
	return nil
}

func (p *provider) accept(listener int) error {
	for {
		fd, _, err := syscall.Accept4(listener, syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC)
		if errors.Is(err, syscall.EAGAIN) {
			return nil
		} else if err != nil {
			return fmt.Errorf("accepting: %w", err)
		}
		if err := errors.Join(syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1), p.p.add(fd, false)); err != nil {
			return err
		}
		p.conns[fd] = &asked{fd: fd}
	}
}

func (p *provider) end(c *asked) {
	delete(p.conns, c.fd)
	syscall.Close(c.fd)
}

// send writes b, or keeps what the peer has no room for.
func (p *provider) send(c *asked, b []byte) bool {
	if len(c.out) > 0 {
		c.out = append(c.out, b...)
		return true
	}
	left, err := write(c.fd, b)
	if err == nil && len(left) > 0 {
		c.out = slices.Clone(left)
		err = p.p.want(c.fd, true)
	}
	return err == nil
}

// step reads and writes what is possible. It returns false at the connection's end.
func (p *provider) step(c *asked, buf []byte) bool {
	var err error
	if len(c.out) > 0 {
		if c.out, err = write(c.fd, c.out); err == nil && len(c.out) == 0 {
			err = p.p.want(c.fd, false)
		}
		if err != nil {
			return false
		}
	}
	got, eof, err := read(c.fd, buf)
	if err != nil || eof {
		return false
	}
	c.in = append(c.in, got...)
	i := bytes.Index(c.in, []byte("\r\n\r\n"))
	if i < 0 {
		return true
	}
	length, _, err := framing(c.in[:i+2])
	if err != nil {
		return false
	}
	body := c.in[i+4:]
	if len(body) < length {
		return true
	}
	messages := bytes.HasPrefix(c.in, []byte("POST /v1/messages "))
	// It stands near the beginning of what we send, or near the end of what that becomes.
	stream := []byte(`"stream":true`)
	streamed := bytes.Contains(body[:min(len(body), 200)], stream) || bytes.Contains(body[max(0, len(body)-200):], stream)
	c.in = c.in[:0]
	if streamed {
		return p.stream(c, messages)
	}
	return p.send(c, answers[messages])
}

// answers are the whole responses, by whether they are Anthropic's.
var answers = map[bool][]byte{false: whole(completion), true: whole(message)}

func whole(body string) []byte {
	return []byte("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body)
}

func chunk(b []byte, data string) []byte {
	b = strconv.AppendInt(b, int64(len(data)+8), 16)
	return append(append(append(b, "\r\ndata: "...), data...), "\n\n\r\n"...)
}

func (p *provider) stream(c *asked, messages bool) bool {
	b := []byte("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
	c.token = `{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench-model","choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}`
	c.after = []string{`{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench-model","choices":[],"usage":{"prompt_tokens":250,"completion_tokens":24,"total_tokens":274}}`, "[DONE]"}
	if messages {
		b = chunk(b, `{"type":"message_start","message":{"id":"msg_bench","type":"message","role":"assistant","content":[],"model":"bench-model","stop_reason":null,"usage":{"input_tokens":250,"output_tokens":1}}}`)
		b = chunk(b, `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`)
		c.token = `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" token"}}`
		c.after = []string{`{"type":"content_block_stop","index":0}`, `{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":24}}`, `{"type":"message_stop"}`}
	}
	c.left = p.events
	p.due = append(p.due, due{c, time.Now().Add(p.interval)})
	return p.send(c, b)
}

// event sends the next event of a stream.
func (p *provider) event(c *asked, now time.Time) bool {
	b := chunk(nil, c.token)
	if c.left--; c.left > 0 {
		p.due = append(p.due, due{c, now.Add(p.interval)})
		return p.send(c, b)
	}
	for _, e := range c.after {
		b = chunk(b, e)
	}
	return p.send(c, append(b, "0\r\n\r\n"...))
}
