package main

import (
	"bytes"
	"fmt"
	"slices"
	"time"
)

// load is one measurement. Each connection sends the next request after the last response (a
// closed loop), or one request only. It uses raw HTTP/1.1, so that the client costs little, and
// the same on every path.
type load struct {
	addr     string
	requests [][]byte // whole, head and body; connections take turns
	conns    int
	duration time.Duration
	once     bool // one request on each connection, for streams
}

// patience is how long a response may take after the load's duration.
func (l load) patience() time.Duration {
	if l.once {
		return 5 * time.Minute
	}
	return 30 * time.Second
}

type result struct {
	took     []time.Duration // until the end of each response
	firsts   []time.Duration // until the first event of each stream
	events   int
	rejected int    // responses that are not 200
	why      string // the first of these
	elapsed  time.Duration
	requests int
	p50, p99 time.Duration
	first    time.Duration // the median
}

func (r result) rate() float64 { return float64(r.requests) / r.elapsed.Seconds() }

// sum returns r with its medians, and without its parts.
func (r result) sum() result {
	slices.Sort(r.took)
	slices.Sort(r.firsts)
	if n := len(r.took); n > 0 {
		r.requests, r.p50, r.p99 = n, r.took[n/2], r.took[n*99/100]
	}
	if n := len(r.firsts); n > 0 {
		r.first = r.firsts[n/2]
	}
	r.took, r.firsts = nil, nil
	return r
}

// Models of the test provider: one with its own API, and one with translation.
const (
	modelPassed     = "bench-model"
	modelTranslated = "bench-translated"
)

// chats are chat completion requests of about size bytes, one for each key.
func (p *path) chats(model string, size int, stream bool) (all [][]byte) {
	for _, key := range p.keys {
		all = append(all, chat(p.addr, key, model, size, stream))
	}
	return all
}

// chat is a chat completion request of about size bytes.
func chat(host, key, model string, size int, stream bool) []byte {
	var body bytes.Buffer
	fmt.Fprintf(&body, `{"model":%q,"stream":%t,"max_tokens":100,"messages":[{"role":"user","content":"`, model, stream)
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
