package provider

import (
	"bytes"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// lenient is how a provider's words are read: it is not our client, and what it
// says decides nothing.
var lenient = json.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))

// maxRemembered bounds what of an answer is kept to be read: a whole answer, or one
// event of a stream. What is longer passes, and its usage stays unknown.
const maxRemembered = 32 << 20

// Answer reads a provider's answer as it passes by, in whatever pieces it comes.
// It is for one goroutine.
type Answer struct {
	reads *reading
	usage Usage
	model string

	sse   bool
	kept  []byte // of a whole answer: all so far; of a stream: the data of this event
	over  bool   // there was too much to keep
	line  []byte // of a stream: the beginning of a line
	cr    bool   // the last byte was a CR, which a LF may belong to
	drop  bool   // take the event that we asked for out again
	event []byte // with drop: the event so far, as it came
	took  bool   // with drop: it was taken out
}

// NewAnswer reads the answer to a call. status and contentType are the answer's.
// Figures are read from answers that are not errors.
func NewAnswer(c Call, p Provider, status int, contentType string) *Answer {
	a := &Answer{reads: c.Endpoint.reads, usage: Usage{Source: "absent"}}
	if a.reads == nil || status < 200 || status > 299 {
		a.reads = &nothingReading
		return a
	}
	kind, _, _ := strings.Cut(contentType, ";")
	a.sse = strings.EqualFold(strings.TrimSpace(kind), "text/event-stream")
	if a.sse && c.wantsInjection() {
		if s, err := ParseSettings(p.Settings); err == nil {
			a.drop = s.InjectUsage
		}
	}
	return a
}

// Usage is what has been read so far.
func (a *Answer) Usage() Usage { return a.usage }

// Model is the model that the answer names, "" if it names none.
func (a *Answer) Model() string { return a.model }

// Chunk takes the next piece; end says that it is the last. If replaced, out goes
// to the client in its place.
func (a *Answer) Chunk(b []byte, end bool) (out []byte, replaced bool) {
	switch {
	case len(a.reads.marked) == 0:
	case a.drop:
		return a.filter(b, end), true
	case a.sse:
		a.stream(b, end)
	default:
		a.whole(b, end)
	}
	return nil, false
}

func (a *Answer) whole(b []byte, end bool) {
	if a.over = a.over || len(a.kept)+len(b) > maxRemembered; a.over {
		a.kept = nil
		return
	}
	if !end {
		a.kept = append(a.kept, b...)
		return
	}
	if len(a.kept) > 0 {
		b = append(a.kept, b...)
		a.kept = nil
	}
	a.reads.read(b, &a.usage, &a.model)
}

// stream takes server-sent events apart
// (https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream).
func (a *Answer) stream(b []byte, end bool) {
	if a.cr && len(b) > 0 {
		a.cr = false
		if b[0] == '\n' {
			b = b[1:]
		}
	}
	anyCR := bytes.IndexByte(b, '\r') >= 0
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		if anyCR {
			i = bytes.IndexAny(b, "\r\n")
		}
		if i < 0 {
			a.keepLine(b)
			break
		}
		line := b[:i]
		next := i + 1
		if b[i] == '\r' {
			if next == len(b) {
				a.cr = true
			} else if b[next] == '\n' {
				next++
			}
		}
		b = b[next:]
		if len(a.line) > 0 {
			a.keepLine(line)
			line = a.line
		}
		a.lineEnds(line)
		a.line = a.line[:0]
	}
	if end {
		// An event at the end that no empty line closes is read too: the client's
		// parser may drop it, and the provider has charged for it.
		if len(a.line) > 0 {
			a.lineEnds(a.line)
		}
		a.dispatch()
	}
}

func (a *Answer) keepLine(b []byte) {
	if len(a.line)+len(b) > maxRemembered {
		a.over = true
		return
	}
	a.line = append(a.line, b...)
}

func (a *Answer) lineEnds(line []byte) {
	if len(line) == 0 {
		a.dispatch()
		return
	}
	data, ok := bytes.CutPrefix(line, []byte("data:"))
	if !ok {
		return
	}
	data = bytes.TrimPrefix(data, []byte(" "))
	if len(a.kept) > 0 {
		a.kept = append(a.kept, '\n')
	}
	if len(a.kept)+len(data) > maxRemembered {
		a.over = true
		return
	}
	a.kept = append(a.kept, data...)
}

// dispatch reads one event. Most say nothing of usage, and cost a search.
func (a *Answer) dispatch() {
	data, over := a.kept, a.over
	a.kept, a.over = a.kept[:0], false
	if over || len(data) == 0 || data[0] != '{' {
		return
	}
	if a.model == "" || a.reads.says(data) {
		a.reads.read(data, &a.usage, &a.model)
	}
	if cap(a.kept) > 1<<20 {
		a.kept = nil
	}
}

// filter passes whole events on, all but the one with nothing but usage in it, for
// which the client did not ask.
func (a *Answer) filter(b []byte, end bool) []byte {
	out := []byte{}
	for _, c := range b {
		a.event = append(a.event, c)
		if c != '\n' && c != '\r' || !endsEvent(a.event) {
			continue
		}
		out = append(out, a.passed()...)
	}
	if end && len(a.event) > 0 {
		out = append(out, a.passed()...)
	}
	return out
}

// endsEvent says whether b, whose last byte ends a line, ends with an empty line.
func endsEvent(b []byte) bool {
	for _, e := range []string{"\n\n", "\r\n\r\n", "\r\r"} {
		if bytes.HasSuffix(b, []byte(e)) {
			return true
		}
	}
	return false
}

// passed is the event so far, or nothing if it is the one that we asked for.
func (a *Answer) passed() []byte {
	e := a.event
	a.event = nil
	a.stream(e, true)
	if a.took || !bytes.Contains(e, []byte(`"usage"`)) {
		return e
	}
	var x struct {
		Choices []jsontext.Value `json:"choices"`
		Usage   *struct{}        `json:"usage"`
	}
	_, data, ok := bytes.Cut(e, []byte("data:"))
	if !ok || json.Unmarshal(bytes.TrimSpace(data), &x, lenient) != nil || x.Usage == nil || len(x.Choices) != 0 {
		return e
	}
	a.took = true
	return nil
}
