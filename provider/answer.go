package provider

import (
	"bytes"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/ai-identity/ai-identity/provider/sse"
	"github.com/ai-identity/ai-identity/provider/translate"
)

// ResponseReader reads usage and model from a provider's answer as it passes by, in
// whatever pieces it comes, and holds next to nothing of it: a whole answer of 20 MB
// and an event of 20 MB cost as much memory as small ones. It is for one goroutine.
type ResponseReader struct {
	translated *translate.Response // nil: the answer passes as it is. The rest is how the provider's words are read

	scan  scanner
	usage Usage
	model string

	service string // as Usage has it, where it is beside the usage and not in it

	complete bool   // the format's own end came
	choices  int64  // that have not ended
	failed   bool   // or an error in its place
	start    []byte // the beginning of an event's data

	form   form
	stream sse.Reader // of events

	// With inject_usage, an event is held until its end, when it is clear whether
	// it is the one that only we asked for.
	drop  bool
	held  []byte
	loose bool // the event is too long to be that one, and passes as it comes
	found bool // it has usage
	out   bool // the event before was taken out
}

// form is how an answer is written.
type form uint8

const (
	unclear form = iota // no content-type says it: the first byte does
	whole               // one JSON value, or several one after another
	events              // server-sent events
	closed              // nothing is read
)

// maxHeld is the longest an event with nothing but usage in it can be.
const maxHeld = 64 << 10

// NewResponseReader reads the answer to a call. status and contentType are the answer's.
// Figures are read from answers that are not errors.
func NewResponseReader(c Call, p Provider, status int, contentType string) *ResponseReader {
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
func reader(reads *reading, status int, contentType string) *ResponseReader {
	a := &ResponseReader{usage: Usage{Source: "absent"}, stream: sse.New(maxStart, sse.Unlimited)} // it passes, and only its beginning is kept
	if reads == nil || reads.root == nil || status < 200 || status > 299 {
		a.form = closed
		return a
	}
	a.scan.begin(reads, a)
	kind, _, _ := strings.Cut(contentType, ";")
	switch kind = strings.ToLower(strings.TrimSpace(kind)); {
	case sse.Is(contentType):
		a.form = events
	case kind == "application/json", strings.HasSuffix(kind, "+json"), strings.HasSuffix(kind, "ndjson"):
		a.form = whole
	}
	return a
}

// Usage is what has been read so far.
func (a *ResponseReader) Usage() Usage {
	u := a.usage
	if u.Service == "" && u.Source != "absent" {
		u.Service = a.service
	}
	return u
}

// Complete says whether the answer came to the end that its format has: "[DONE]" or a
// reason to finish, message_stop, the last bracket of JSON. A connection that ends
// before that broke off, however it ended. A format without one is always complete.
func (a *ResponseReader) Complete() bool {
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
func (a *ResponseReader) Ended() bool {
	if a.translated != nil {
		return a.translated.Complete()
	}
	return a.form == events && a.complete || a.form == whole && a.scan.whole
}

func isDone(data []byte) bool { return string(bytes.TrimSpace(data)) == "[DONE]" }

// maxStart is how much is kept of an event's type, and of its data, to know what it is.
const maxStart = 16

// Model is the first model that the answer names, "" if it names none.
func (a *ResponseReader) Model() string { return a.model }

// Chunk takes the next piece; end says that it is the last. If replaced, out goes
// to the client in its place. b is not kept and not changed.
func (a *ResponseReader) Chunk(b []byte, end bool) (out []byte, replaced bool) {
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
func (a *ResponseReader) read(b []byte) {
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

// event reads b up to the end of an event, or to its own end. It returns how far that
// is and what is there. An event that the stream breaks off in is read too: the client's
// parser may drop it, and the provider has charged for it.
func (a *ResponseReader) event(b []byte) (n int, at sse.Kind) {
	if data, n := a.stream.Whole(b); n > 0 && a.model != "" && !a.scan.reads.says(data) && firstByte(data) != '[' { // it may be "[DONE]"
		return n, sse.End // it is not taken apart: it says nothing new
	}
	for n < len(b) {
		p, read := a.stream.Next(b[n:])
		n += read
		switch p.Kind {
		case sse.Data:
			a.scan.feed(p.Text)
			a.start = append(a.start, p.Text[:min(len(p.Text), maxStart-len(a.start))]...)
		case sse.Type:
			a.failed = a.failed || string(bytes.TrimSpace(p.Text)) == "error"
		case sse.End:
			a.complete = a.complete || isDone(a.start)
			a.scan.reset()
			a.start = a.start[:0]
			return n, sse.End
		case sse.EndLF:
			return n, sse.EndLF
		}
	}
	return n, sse.More
}

// filter passes whole events on, all but the one with nothing but usage in it, for
// which the client did not ask.
func (a *ResponseReader) filter(b []byte, end bool) []byte {
	out := make([]byte, 0, len(a.held)+len(b))
	for len(b) > 0 {
		n, at := a.event(b)
		if at == sse.EndLF {
			if !a.out {
				out = append(out, b[:n]...)
			}
			b = b[n:]
			continue
		}
		a.held = append(a.held, b[:n]...)
		b = b[n:]
		if at == sse.More {
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
func (a *ResponseReader) took(w want, raw []byte) {
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
