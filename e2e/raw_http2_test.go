package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestRawHTTP2 is TestRaw for frames, and for the floods of them that HTTP/2 allows.
func TestRawHTTP2(t *testing.T) {
	w := newRawWorld(t)
	all := w.cases(t, "testdata/raw/http2.txt")
	if len(all) < 150 {
		t.Errorf("there are only %d cases", len(all))
	}
	w.each(len(all), func(i int) { w.http2(t, all[i]) })
	all = append(all, w.rapidReset(t, 2000)...)
	w.check(t, all)
}

// frames is a connection that sends the frames of a case.
type frames struct {
	conn   net.Conn
	framer *http2.Framer
	block  bytes.Buffer
	enc    *hpack.Encoder
	stream uint32
}

func (w *rawWorld) frames(t *testing.T) *frames {
	t.Helper()
	conn, err := net.Dial("tcp", w.address())
	if err != nil {
		t.Error(err)
		return nil
	}
	f := &frames{conn: conn, framer: http2.NewFramer(conn, conn), stream: 1}
	f.framer.AllowIllegalWrites = true
	f.enc = hpack.NewEncoder(&f.block)
	io.WriteString(conn, http2.ClientPreface)
	f.framer.WriteSettings()
	return f
}

func (f *frames) header(name, value string) {
	f.enc.WriteField(hpack.HeaderField{Name: name, Value: value})
}

// good adds the headers of a valid request, without those that are named.
func (f *frames) good(key string, without ...string) {
	for _, h := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", "/v1/chat/completions"}, {":authority", rawHost},
		{"authorization", "Bearer " + key}, {"content-type", "application/json"},
	} {
		if !slices.Contains(without, h[0]) {
			f.header(h[0], h[1])
		}
	}
}

// headers sends the added headers as one block.
func (f *frames) headers(how string, n int) {
	b := bytes.Clone(f.block.Bytes())
	f.block.Reset()
	const most = 16 << 10 // SETTINGS_MAX_FRAME_SIZE, until it is changed
	first := b
	var rest [][]byte
	if how == "split" {
		first, rest = b[:3], [][]byte{b[3:7], nil, b[7:]}
	} else if len(b) > most {
		first = b[:most]
		for b = b[most:]; len(b) > 0; b = b[min(most, len(b)):] {
			rest = append(rest, b[:min(most, len(b))])
		}
	}
	for range n {
		rest = append(rest, nil)
	}
	f.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: f.stream, BlockFragment: first, EndStream: how == "end", EndHeaders: len(rest) == 0 && how != "open"})
	for i, part := range rest {
		if f.framer.WriteContinuation(f.stream, i == len(rest)-1, part) != nil {
			return
		}
	}
}

// run executes one command of a case.
func (f *frames) run(t *testing.T, w *rawWorld, c rawCase, line string) {
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "good":
		without := strings.Fields(strings.TrimPrefix(rest, "without"))
		f.good(w.key, without...)
	case "hidden":
		f.good(w.key)
	case "h":
		name, value, _ := strings.Cut(rest, " ")
		f.header(rawBytes(name), rawBytes(value))
	case "many":
		n, _ := strconv.Atoi(rest)
		for i := range n {
			f.header(fmt.Sprintf("x-a%d", i), "b")
		}
	case "headers":
		how, number, _ := strings.Cut(rest, " ")
		n, _ := strconv.Atoi(number)
		f.headers(how, n)
	case "data", "data-end":
		f.framer.WriteData(f.stream, word == "data-end", []byte(rawBytes(rest)))
	case "stream":
		n, _ := strconv.Atoi(rest)
		f.stream = uint32(n)
	case "reset":
		f.framer.WriteRSTStream(f.stream, http2.ErrCodeCancel)
	case "frame":
		kind, rest, _ := strings.Cut(rest, " ")
		flags, payload, _ := strings.Cut(rest, " ")
		n, _ := strconv.Atoi(flags)
		of, ok := map[string]http2.FrameType{"DATA": 0, "HEADERS": 1, "PRIORITY": 2, "RST_STREAM": 3, "SETTINGS": 4, "PUSH_PROMISE": 5, "PING": 6, "WINDOW_UPDATE": 8, "CONTINUATION": 9}[kind]
		if !ok {
			t.Errorf("%s: %q", c.name, line)
		}
		f.framer.WriteRawFrame(of, http2.Flags(n), f.stream, []byte(rawBytes(payload)))
	default:
		t.Errorf("%s: %q", c.name, line)
	}
}

// http2 sends a case and checks the responses.
func (w *rawWorld) http2(t *testing.T, c rawCase) {
	f := w.frames(t)
	if f == nil {
		return
	}
	defer f.conn.Close()
	// A ping follows everything. Its reply shows that everything was read, if the
	// connection is still open.
	go func() {
		for _, line := range c.lines {
			f.run(t, w, c, line)
		}
		f.framer.WritePing(false, [8]byte{'d', 'o', 'n', 'e'})
	}()
	own, hidden := c.forwarded()
	good, ended := f.answers(t, c, own+hidden)
	if c.want != "any" && good != own+hidden {
		t.Errorf("%s: %d streams were answered with success, want %s (%s)", c.name, good, c.want, ended)
	}
}

// answers reads frames until no more can come: each stream that ends has ended, or the
// connection has. It counts the streams that succeeded.
func (f *frames) answers(t *testing.T, c rawCase, want int) (good int, how string) {
	const hung, quiet = 20 * time.Second, 300 * time.Millisecond
	status, over := map[uint32]string{}, map[uint32]bool{}
	pinged := false
	dec := hpack.NewDecoder(4096, nil)
	f.framer.SetMaxReadFrameSize(1 << 20)
	for {
		wait := hung
		if len(over) >= max(1, want) || pinged && want == 0 {
			wait = quiet
		}
		f.conn.SetReadDeadline(time.Now().Add(wait))
		fr, err := f.framer.ReadFrame()
		if err != nil {
			if wait == hung && errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: nothing was answered", c.name)
			}
			how += " " + err.Error()
			break
		}
		id := fr.Header().StreamID
		switch fr := fr.(type) {
		case *http2.PingFrame:
			pinged = pinged || fr.IsAck()
		case *http2.HeadersFrame:
			fields, err := dec.DecodeFull(fr.HeaderBlockFragment())
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			for _, h := range fields {
				if h.Name == ":status" && status[id] == "" {
					status[id] = h.Value
					how += " " + h.Value
				}
			}
			over[id] = over[id] || fr.StreamEnded()
		case *http2.DataFrame:
			over[id] = over[id] || fr.StreamEnded()
		case *http2.RSTStreamFrame:
			over[id] = true
			how += " " + fr.ErrCode.String()
		case *http2.GoAwayFrame:
			how += " GOAWAY " + fr.ErrCode.String()
		case *http2.SettingsFrame:
		}
	}
	for _, s := range status {
		if strings.HasPrefix(s, "2") {
			good++
		}
	}
	return good, how
}

// rapidReset sends n valid requests and resets each at once (CVE-2023-44487), on as many
// connections as needed. Envoy may end connections. Every request that reached the provider
// had a decision, and other clients are served meanwhile.
func (w *rawWorld) rapidReset(t *testing.T, n int) (cases []rawCase) {
	t.Helper()
	for i := range n {
		cases = append(cases, rawCase{name: "rapid reset", model: fmt.Sprintf("%sreset-%d", w.prefix, i), want: "any"})
	}
	const perConnection = 500
	w.each(n/perConnection, func(i int) {
		f := w.frames(t)
		if f == nil {
			return
		}
		defer f.conn.Close()
		go io.Copy(io.Discard, f.conn)
		for _, c := range cases[i*perConnection : (i+1)*perConnection] {
			f.good(w.key)
			f.headers("", 0)
			f.framer.WriteData(f.stream, true, []byte(rawBody(c.model)))
			if f.framer.WriteRSTStream(f.stream, http2.ErrCodeCancel) != nil {
				return
			}
			f.stream += 2
		}
	})
	if r := w.up.Chat(t, w.key, rawBody("other")); r.Status != 404 {
		t.Errorf("after resets: %d %s", r.Status, r.Body)
	}
	return cases
}
