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

// ResponseReader reads usage and model from a provider's response as it passes, for every
// split into chunks. It stores almost nothing of the response: its memory does not grow
// with the size of a response or an event. It is for one goroutine.
type ResponseReader struct {
	translated *translate.Response // nil: the response passes unchanged. The other fields read the provider's format

	scan  scanner
	usage Usage
	model string

	service string // as in Usage, where it is beside the usage and not in it

	complete bool   // the end that the format defines came
	choices  int64  // the number of choices that have not ended
	failed   bool   // an error came instead of the end
	start    []byte // the first bytes of an event's data

	form   form
	stream sse.Reader // of events

	// With inject_usage, an event is held until its end. Only then it is clear whether it
	// is the one that only the gateway requested.
	drop  bool
	held  []byte
	loose bool // the event is too long to be that one, and passes as it arrives
	found bool // it has usage

	meter *meter // nil: the output is not counted
	out   bool   // the last event was removed
}

// form is the framing of a response.
type form uint8

const (
	unclear form = iota // no content-type names it: the first byte decides
	whole               // one JSON value, or several one after another
	events              // server-sent events
	closed              // it is not read
)

// maxHeld is the maximum length of an event with nothing but usage in it.
const maxHeld = 64 << 10

// NewResponseReader returns a reader of the response to a call. status and contentType are
// the response's. Figures are read only from responses that are not errors.
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
		a.drop = err == nil && p.asksUsage(c, s)
	}
	return a
}

// reader returns a reader for the responses of an API.
func reader(reads *reading, status int, contentType string) *ResponseReader {
	a := &ResponseReader{usage: Usage{Source: "absent"}, stream: sse.New(maxStart, sse.Unlimited)} // the stream passes, and only the first bytes of each event are kept
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

// Usage returns what has been read so far.
func (a *ResponseReader) Usage() Usage {
	u := a.usage
	if u.Service == "" && u.Source != "absent" {
		u.Service = a.service
	}
	return u
}

// CountOutput counts the output from here on: see OutputSeen. Each event is then taken apart.
func (a *ResponseReader) CountOutput() { a.meter = &meter{} }

// OutputSeen returns how many tokens of output have passed: those of the last usage that the
// response reported, and an estimate of those after it. It returns 0 without CountOutput.
func (a *ResponseReader) OutputSeen() int64 {
	if a.meter == nil {
		return 0
	}
	m := *a.meter
	m.end() // what is there of an event that has not ended
	return m.reported + m.tokens
}

// Complete reports whether the response reached the end that its format defines. That is
// "[DONE]" or a finish reason, message_stop, or the last bracket of JSON. A response whose
// connection ends earlier broke off. A format without such an end is always complete.
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

// Ended reports whether the end that the format defines in its text was read. It is false
// for a format whose end is the connection's end.
func (a *ResponseReader) Ended() bool {
	if a.translated != nil {
		return a.translated.Complete()
	}
	return a.form == events && a.complete || a.form == whole && a.scan.whole
}

// Streamed reports whether the response is a stream of events. A client stops reading such a
// stream at its last event. It reads any other response to the end of its HTTP framing.
func (a *ResponseReader) Streamed() bool { return a.form == events }

func isDone(data []byte) bool { return string(bytes.TrimSpace(data)) == "[DONE]" }

// maxStart is the number of bytes that are kept of an event's type and data, to identify
// the event.
const maxStart = 16

// Model is the first model that the response names, or "" if it names no model.
func (a *ResponseReader) Model() string { return a.model }

// Chunk processes the next chunk. end marks the last one. If replaced is true, the client
// gets out instead of b. b is not kept and not changed.
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

// read processes the next chunk in the provider's format.
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
		if a.meter == nil {
			a.scan.feed(b)
			return
		}
		for len(b) > 0 { // usage covers what stands before its last bracket
			n := bytes.IndexByte(b, '}') + 1
			if n == 0 {
				n = len(b)
			}
			a.scan.feed(b[:n])
			a.meter.feed(b[:n])
			if a.meter.covered && !a.meter.quoted {
				a.meter.end()
			}
			b = b[n:]
		}
	case events:
		for len(b) > 0 {
			n, _ := a.event(b)
			b = b[n:]
		}
	}
}

// event reads b up to the end of an event, or to the end of b. It returns the number of
// bytes read and what is there. An event in which the stream breaks off is read too: the
// client's parser may drop it, but the provider has charged for it.
func (a *ResponseReader) event(b []byte) (n int, at sse.Kind) {
	if data, n := a.stream.Whole(b); n > 0 && a.model != "" && !a.scan.reads.says(data) && firstByte(data) != '[' { // it may be "[DONE]"
		if a.meter != nil {
			a.meter.feed(data)
			a.meter.end()
		}
		return n, sse.End // it has nothing new, so it is not parsed
	}
	for n < len(b) {
		p, read := a.stream.Next(b[n:])
		n += read
		switch p.Kind {
		case sse.Data:
			a.scan.feed(p.Text)
			if a.meter != nil {
				a.meter.feed(p.Text)
			}
			a.start = append(a.start, p.Text[:min(len(p.Text), maxStart-len(a.start))]...)
		case sse.Type:
			a.failed = a.failed || string(bytes.TrimSpace(p.Text)) == "error"
		case sse.End:
			a.complete = a.complete || isDone(a.start)
			a.scan.reset()
			if a.meter != nil {
				a.meter.end()
			}
			a.start = a.start[:0]
			return n, sse.End
		case sse.EndLF:
			return n, sse.EndLF
		}
	}
	return n, sse.More
}

// filter passes complete events, except the event with only usage in it, which the client
// did not request.
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

// onlyUsage reports whether an event is a chunk of a chat completion without choices.
func onlyUsage(event []byte) bool {
	var x struct {
		Choices []jsontext.Value `json:"choices"`
		Usage   *struct{}        `json:"usage"`
	}
	_, data, ok := bytes.Cut(event, []byte("data:"))
	return ok && json.Unmarshal(bytes.TrimSpace(data), &x, lenient) == nil && x.Usage != nil && len(x.Choices) == 0
}

// took is called by the scanner for each value that it was configured to find.
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
			a.service = clean(string(b)) // the last value counts: "auto" comes first in a stream
		}
	case wantType: // compared without unescaping, as names are
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
		// Mistral's finish reason is "error"; Cohere's are "ERROR" and "ERROR_TOXIC".
		a.failed = a.failed || strings.HasPrefix(strings.ToLower(string(b)), "error")
	case wantUsage, wantFirstUsage:
		if a.scan.reads.usage(raw, &a.usage) {
			a.found = true
			if w == wantUsage {
				a.meter.cover(a.usage.OutputTokens)
			}
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
		if w == wantOutput {
			a.meter.cover(a.usage.OutputTokens)
		}
	}
}
