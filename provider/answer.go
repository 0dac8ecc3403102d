package provider

import (
	"bytes"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/ai-identity/ai-identity/provider/translate"
)

// Answer reads usage and model from a provider's answer as it passes by, in
// whatever pieces it comes, and holds next to nothing of it: a whole answer of 20 MB
// and an event of 20 MB cost as much memory as small ones. It is for one goroutine.
type Answer struct {
	translated *translate.Answer // nil: the answer passes as it is. The rest is how the provider's words are read

	scan  scanner
	usage Usage
	model string

	service string // as Usage has it, where it is beside the usage and not in it

	complete bool   // the format's own end came
	choices  int64  // that have not ended
	failed   bool   // or an error in its place
	name     []byte // the beginning of a line that is not data
	start    []byte // and of an event's data

	form form
	line lineState
	data int  // bytes of "data:" that have matched at the beginning of the line
	cr   bool // the last byte was a CR, to which a LF may belong
	more bool // the event has data already, which goes on in another line

	// With inject_usage, an event is held until its end, when it is clear whether
	// it is the one that only we asked for.
	drop  bool
	held  []byte
	loose bool // the event is too long to be that one, and passes as it comes
	found bool // it has usage
	ended bool // the last byte ended an event,
	out   bool // which was taken out
}

// form is how an answer is written.
type form uint8

const (
	unclear form = iota // no content-type says it: the first byte does
	whole               // one JSON value, or several one after another
	events              // server-sent events
	closed              // nothing is read
)

// lineState is where in a line of an event stream the next byte is.
type lineState uint8

const (
	lineBegins lineState = iota
	dataBegins           // after "data:", where one space is not data
	inData
	inOther // a comment, or a field that is not data
)

// maxHeld is the longest an event with nothing but usage in it can be.
const maxHeld = 64 << 10

// NewAnswer reads the answer to a call. status and contentType are the answer's.
// Figures are read from answers that are not errors.
func NewAnswer(c Call, p Provider, status int, contentType string) *Answer {
	reads := c.Endpoint.reads
	custom := p.custom()
	if custom != nil && reads != nil && reads.root != nil {
		reads = custom.reading
	}
	a := reader(reads, status, contentType)
	a.choices = c.Choices
	if a.form == closed {
		return a
	}
	if custom != nil && c.Stream {
		switch custom.settings.Answer.Stream {
		case "sse":
			a.form = events
		case "ndjson":
			a.form = whole
			a.translated = translate.Lines(custom.errorAt)
		}
	}
	if a.form == events && c.wantsInjection() {
		s, _, err := p.prepared()
		a.drop = err == nil && s.InjectUsage
	}
	return a
}

// reader reads an answer in the words of an API.
func reader(reads *reading, status int, contentType string) *Answer {
	a := &Answer{usage: Usage{Source: "absent"}}
	if reads == nil || reads.root == nil || status < 200 || status > 299 {
		a.form = closed
		return a
	}
	a.scan.begin(reads, a)
	kind, _, _ := strings.Cut(contentType, ";")
	switch kind = strings.ToLower(strings.TrimSpace(kind)); {
	case kind == "text/event-stream":
		a.form = events
	case kind == "application/json", strings.HasSuffix(kind, "+json"), strings.HasSuffix(kind, "ndjson"):
		a.form = whole
	}
	return a
}

// Usage is what has been read so far.
func (a *Answer) Usage() Usage {
	u := a.usage
	if u.Service == "" && u.Source != "absent" {
		u.Service = a.service
	}
	return u
}

// Complete says whether the answer came to the end that its format has: "[DONE]" or a
// reason to finish, message_stop, the last bracket of JSON. A connection that ends
// before that broke off, however it ended. A format without one is always complete.
func (a *Answer) Complete() bool {
	switch {
	case a.translated != nil:
		return a.translated.Complete()
	case a.form == closed:
		return true
	case a.form == whole:
		return a.scan.whole || a.scan.state == inPlain && a.scan.depth == 0 && !a.scan.outer
	case a.form == events:
		return a.complete || !a.scan.reads.ends || isDone(a.start)
	}
	return false
}

// Ended says that the end came that the format has in the text itself. It is false
// for a format that only the connection ends.
func (a *Answer) Ended() bool {
	if a.translated != nil {
		return a.translated.Complete()
	}
	return a.form == events && a.complete || a.form == whole && a.scan.whole
}

func isDone(data []byte) bool { return string(bytes.TrimSpace(data)) == "[DONE]" }

// maxStart is how much of a line is kept to know what it is.
const maxStart = 16

// Model is the first model that the answer names, "" if it names none.
func (a *Answer) Model() string { return a.model }

// Chunk takes the next piece; end says that it is the last. If replaced, out goes
// to the client in its place. b is not kept and not changed.
func (a *Answer) Chunk(b []byte, end bool) (out []byte, replaced bool) {
	if a.translated == nil && a.form == events && a.drop {
		return a.filter(b, end), true
	}
	a.read(b)
	if a.translated != nil {
		return a.translated.Chunk(b, end), true
	}
	return nil, false
}

// read takes the next piece as the provider wrote it.
func (a *Answer) read(b []byte) {
	if a.form == unclear {
		switch firstByte(b) {
		case 0:
			return
		case '{', '[':
			a.form = whole
		default:
			a.form = events
		}
	}
	switch a.form {
	case whole:
		a.scan.feed(b)
	case events:
		for len(b) > 0 {
			n, _ := a.event(b)
			b = b[n:]
		}
	}
}

// event reads b up to the end of an event, or to its own end, and says how far
// that is and which of both. Lines are as in
// https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream:
// they end with LF, CR or both, and what is not "data:" is none of ours. An event
// that the stream breaks off in is read too: the client's parser may drop it, and
// the provider has charged for it.
func (a *Answer) event(b []byte) (n int, ended bool) {
	if n := a.pass(b); n > 0 {
		return n, true
	}
	for i := 0; i < len(b); {
		if a.cr {
			a.cr = false
			if b[i] == '\n' {
				i++
				continue
			}
		}
		switch c := b[i]; {
		case a.line == lineBegins && c != '\n' && c != '\r':
			if c != "data:"[a.data] {
				a.line = inOther
				continue
			}
			i++
			if a.data++; a.data == len("data:") {
				a.line = dataBegins
			}
		case a.line == dataBegins && c != '\n' && c != '\r':
			if a.more {
				a.scan.feed([]byte{'\n'})
			}
			a.more = true
			if c == ' ' {
				i++
			}
			a.line = inData
		default:
			end := lineEnd(b[i:])
			switch a.line {
			case inData:
				a.scan.feed(b[i : i+end])
				a.start = append(a.start, b[i:i+min(end, maxStart-len(a.start))]...)
			case inOther:
				a.name = append(a.name, b[i:i+min(end, maxStart-len(a.name))]...)
			}
			i += end
			if i == len(b) {
				return i, false
			}
			a.cr = b[i] == '\r'
			i++
			if name, ok := bytes.CutPrefix(a.name, []byte("event:")); ok && string(bytes.TrimSpace(name)) == "error" {
				a.failed = true
			}
			a.name = a.name[:0]
			blank := a.line == lineBegins && a.data == 0
			a.line, a.data = lineBegins, 0
			if blank {
				a.complete = a.complete || isDone(a.start)
				a.scan.reset()
				a.more, a.start = false, a.start[:0]
				if a.cr && i < len(b) && b[i] == '\n' {
					a.cr = false
					i++
				}
				return i, true
			}
		}
	}
	return len(b), false
}

// pass is for the event that most events are: one line that is all here and says
// nothing new. It is passed over without being taken apart. 0: it is not such a
// one.
func (a *Answer) pass(b []byte) int {
	if a.line != lineBegins || a.data != 0 || a.cr || a.more || a.model == "" || !bytes.HasPrefix(b, []byte("data:")) {
		return 0
	}
	end := bytes.IndexByte(b, '\n')
	if end < 0 || end+1 == len(b) || b[end+1] != '\n' || bytes.IndexByte(b[:end], '\r') >= 0 || a.scan.reads.says(b[:end]) || firstByte(b[len("data:"):end]) == '[' {
		return 0 // or it may be "[DONE]"
	}
	return end + 2
}

// lineEnd is where the line ends, or the length of b.
func lineEnd(b []byte) int {
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		b = b[:i]
	}
	if i := bytes.IndexByte(b, '\r'); i >= 0 {
		return i
	}
	return len(b)
}

// filter passes whole events on, all but the one with nothing but usage in it, for
// which the client did not ask.
func (a *Answer) filter(b []byte, end bool) []byte {
	out := make([]byte, 0, len(a.held)+len(b))
	if a.ended && a.cr && len(b) > 0 && b[0] == '\n' {
		// It belongs to the event before.
		if a.cr = false; !a.out {
			out = append(out, '\n')
		}
		b = b[1:]
	}
	for len(b) > 0 {
		var n int
		n, a.ended = a.event(b)
		a.held = append(a.held, b[:n]...)
		b = b[n:]
		if !a.ended {
			if len(a.held) > maxHeld {
				a.loose = true
			}
			if a.loose {
				out = append(out, a.held...)
				a.held = a.held[:0]
			}
			continue
		}
		if a.out = !a.loose && a.found && onlyUsage(a.held); !a.out {
			out = append(out, a.held...)
		}
		a.held, a.loose, a.found = a.held[:0], false, false
	}
	if end {
		out = append(out, a.held...)
		a.held = nil
	}
	return out
}

// onlyUsage says whether an event is a chunk of a chat completion without choices.
func onlyUsage(event []byte) bool {
	var x struct {
		Choices []jsontext.Value `json:"choices"`
		Usage   *struct{}        `json:"usage"`
	}
	_, data, ok := bytes.Cut(event, []byte("data:"))
	return ok && json.Unmarshal(bytes.TrimSpace(data), &x, lenient) == nil && x.Usage != nil && len(x.Choices) == 0
}

// took is called by the scanner for each value that is looked for.
func (a *Answer) took(w want, raw []byte) {
	switch w {
	case wantModel:
		if a.model != "" {
			return
		}
		if b, err := jsontext.AppendUnquote(nil, raw); err == nil {
			a.model = string(b)
		}
	case wantService:
		if b, err := jsontext.AppendUnquote(nil, raw); err == nil {
			a.service = clean(string(b)) // the last one: "auto" comes first in a stream
		}
	case wantType: // compared as written, as names are
		word := string(bytes.Trim(raw, `"`))
		a.complete = a.complete || slices.Contains(a.scan.reads.types, word)
		a.failed = a.failed || word == "error" || word == "response.failed"
	case wantBlock:
		a.complete = true
	case wantFinish:
		b, err := jsontext.AppendUnquote(nil, raw)
		if err != nil {
			return
		}
		if a.choices--; a.choices <= 0 {
			a.complete = true
		}
		// Mistral finishes with "error", Cohere with "ERROR" or "ERROR_TOXIC".
		a.failed = a.failed || strings.HasPrefix(strings.ToLower(string(b)), "error")
	case wantUsage:
		if a.scan.reads.usage(raw, &a.usage) {
			a.found = true
		}
	default:
		var f figure
		if json.Unmarshal(raw, &f) != nil {
			return
		}
		to := map[want]*int64{wantInput: &a.usage.InputTokens, wantOutput: &a.usage.OutputTokens, wantCached: &a.usage.CachedTokens,
			wantCacheWrite: &a.usage.CacheWriteTokens, wantReasoning: &a.usage.ReasoningTokens}[w]
		*to = f.count()
		a.usage.Source, a.found = "provider", true
	}
}
