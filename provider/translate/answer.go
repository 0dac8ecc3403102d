package translate

import (
	"bytes"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ai-identity/ai-identity/provider/sse"
)

const (
	maxEvent = 16 << 20 // for one streamed event
	maxWhole = 64 << 20 // for a response that is not streamed
	maxError = 1 << 20  // for a provider's error; the rest is not read
)

// Limits for the parts of a response, far above what models return. They bound the cost of
// linear searches.
const (
	maxReplies = 1024
	maxCalls   = 4096
	maxBlocks  = 4096 // open at the same time
)

// Response translates a provider's response to OpenAI's format. It belongs to one
// goroutine.
type Response struct {
	req    Request
	status int
	now    func() time.Time
	id     func() string

	form  form
	lines bool                        // of a stream: each line is a value
	at    []string                    // the place of error messages, if the provider has its own place
	none  func(message string) []byte // from ErrorOf
	w     writer                      // the output of this Chunk
	whole []byte                      // the body so far, unless it is streamed
	ended bool                        // the last byte came, and the output is complete

	// For a stream.
	stream sse.Reader
	data   []byte // of the event that has not ended
	done   bool   // [DONE] or an error was written
	broken bool   // an error was written

	// Values for the whole response.
	answerID   raw
	model      raw
	created    raw
	tier       string
	usage      usage
	retryAfter time.Duration
	lost       []string

	replies []*reply // OpenAI's choices
	head    []byte   // of every chunk, up to the choices
	tail    []byte
	blocks  []block // Anthropic's open blocks
	calls   int     // number of call ids that were made here
	made    string  // the beginning of those ids
	odds    raw     // log probabilities for the next text
	excess  bool    // a limit was exceeded
}

// form is the framing of the response.
type form uint8

const (
	wholeForm  form = iota // one JSON value
	streamForm             // server-sent events
	errorForm              // not a 2xx
)

// usage is in OpenAI's terms: input includes cached and written tokens, output includes
// reasoning.
type usage struct {
	input, output, cached, written, reasoning int64
	known                                     bool
}

// reply is one of OpenAI's choices. For a stream it has only what later events need.
type reply struct {
	index     int64
	begun     bool // its role was written
	content   []raw
	reasoning []raw
	thinking  []raw // Anthropic's blocks
	refusal   string
	signature raw // of the text (Gemini) or the reasoning (Mistral)
	calls     []replyCall
	ids       map[string]bool // of the calls
	chars     int             // characters of content
	odds      []raw           // arrays of OpenAI's log probabilities
	finish    string
}

type replyCall struct {
	id        raw
	name      raw
	arguments []raw // chunks, as JSON strings
	signature raw
	argued    bool  // a chunk of its arguments was written
	index     int64 // the provider's index for its chunks; -1: none
}

// Answer returns a reader of the response to r. The clock is read once. id makes an id like
// "chatcmpl-…". It is called only if the provider sent none.
func (r Request) Answer(status int, contentType string, now func() time.Time, id func() string) *Response {
	a := &Response{req: r, status: status, now: now, id: id, stream: sse.New(maxEvent, maxEvent)}
	switch {
	case status < 200 || status > 299:
		a.form = errorForm
	case r.Stream && sse.Is(contentType): // without a request for a stream, the caller could not read one
		a.form = streamForm
	}
	return a
}

// ContentType is the type of Chunk's output.
func (a *Response) ContentType() string {
	if a.form == streamForm {
		return "text/event-stream"
	}
	return "application/json"
}

// Status is the status of the response. It is the provider's, except for a status that
// OpenAI's clients do not know. It is 502 for a response that cannot be read.
func (a *Response) Status() int {
	if a.none != nil {
		return a.status // the caller's client is the provider's own
	}
	switch a.status {
	case 498: // Cohere: the model's input or output was blocked
		return 400
	case 499, 529: // Cohere: cancelled; Anthropic: overloaded
		return 503
	}
	if a.status < 200 || a.status >= 300 && a.status < 400 {
		return 502 // the caller must not follow the redirect
	}
	return a.status
}

// Usage is the provider's usage in OpenAI's terms: input includes cached and cacheWrite,
// output includes reasoning.
func (a *Response) Usage() (input, output, cached, cacheWrite, reasoning int64, known bool) {
	u := a.usage
	return u.input, u.output, u.cached, u.written, u.reasoning, u.known
}

// Model is the provider's name of the model, or the requested model.
func (a *Response) Model() string {
	if said := a.ModelSaid(); said != "" {
		return said
	}
	return a.req.Model
}

// ModelSaid is the provider's name of the model, or "".
func (a *Response) ModelSaid() string { return a.model.string() }

// RetryAfter is the wait that the provider's error requests. Most send it in a header,
// Gemini in the body. 0: not known.
func (a *Response) RetryAfter() time.Duration { return a.retryAfter }

// Lost lists the parts of the response that OpenAI's format does not support, such as
// "citations". The output of Chunk does not have them.
func (a *Response) Lost() []string { return a.lost }

// Failed reports an error instead of the response, or in the middle of it.
func (a *Response) Failed() bool { return a.broken }

// Complete reports that the whole response came and was written, without an error.
func (a *Response) Complete() bool { return !a.broken && (a.done || a.ended) }

// Streamed reports that the response is a stream, whose output comes with each event. The
// output for other responses comes at the end, when Status and RetryAfter are known.
func (a *Response) Streamed() bool { return a.form == streamForm }

// isName reports whether s looks like a name in an API.
func isName(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	})
}

// lose adds a part to lost. A text that does not look like a name is "other", since the
// list goes into the audit log.
func (a *Response) lose(what string) {
	if !isName(what) {
		what = "other"
	}
	for _, l := range a.lost {
		if l == what {
			return
		}
	}
	if len(a.lost) < 16 {
		a.lost = append(a.lost, what)
	}
}

// Chunk processes the next bytes of the provider's response, for every split. It returns
// the bytes of OpenAI's format that they complete. end marks the last bytes. The caller
// owns the result.
func (a *Response) Chunk(b []byte, end bool) []byte {
	if a.ended {
		return nil
	}
	a.w.b = nil
	switch a.form {
	case streamForm:
		a.feed(b)
		if end {
			a.feedEnd()
		}
	default:
		most := maxWhole
		if a.form == errorForm {
			most = maxError
		}
		if room := most + 1 - len(a.whole); len(b) > room {
			b = b[:room]
		}
		a.whole = append(a.whole, b...)
		if end {
			a.wholeEnd(len(a.whole) > most)
			a.whole = nil
		}
	}
	a.ended = end
	return a.w.b
}

func (a *Response) wholeEnd(tooLong bool) {
	if a.form == errorForm {
		if a.req.Kind == OpenAI {
			a.w.b, a.broken = a.ownError(a.whole), true
			return
		}
		a.failed(a.providerError(a.whole))
		return
	}
	v, ok := raw(nil), false
	if !tooLong {
		v, ok = parseLoosely(a.whole)
	}
	if !ok || v.kind() != '{' {
		a.status = 502
		a.failed(unreadable(a.req.Kind))
		return
	}
	if a.req.embeddings {
		a.w.b = a.embedded(v)
		return
	}
	if e, is := a.errorOf(v); is {
		a.status = 502
		a.failed(e)
		return
	}
	if a.req.Stream {
		a.status = 502 // a client that expects events could not read it
		a.failed(unreadable(a.req.Kind))
		return
	}
	switch a.req.Kind {
	case Anthropic:
		a.anthropicWhole(v)
	case Gemini:
		a.geminiEvent(v)
	case Cohere:
		a.cohereWhole(v)
	case Mistral:
		a.mistralEvent(v)
	}
	if len(a.replies) == 0 || a.excess {
		a.status = 502
		a.failed(unreadable(a.req.Kind))
		return
	}
	a.completion()
}

// feed processes the next bytes of a stream.
func (a *Response) feed(b []byte) {
	for len(b) > 0 {
		p, n := a.stream.Next(b)
		b = b[n:]
		switch p.Kind {
		case sse.Data:
			a.data = append(a.data, p.Text...)
		case sse.Comment:
			a.comment(p.Text)
		case sse.End: // the event's type is in its data too
			a.take(a.data)
			a.data = a.data[:0]
		case sse.TooLong:
			a.fail(unreadable(a.req.Kind))
			a.data = nil
		}
	}
}

// take processes the data of an event. Where each line is a value, that is one line.
func (a *Response) take(data []byte) {
	if a.lines {
		a.takeValue(data)
		return
	}
	a.dispatch(data)
}

// comment forwards the provider's keep-alive to the client.
func (a *Response) comment(text []byte) {
	if a.done {
		return
	}
	a.w.b = append(a.w.b, ':')
	a.w.b = append(a.w.b, bytes.ToValidUTF8(text, []byte("\uFFFD"))...)
	a.w.b = append(a.w.b, '\n', '\n')
}

// feedEnd processes an event without an empty line after it, and ends the stream.
func (a *Response) feedEnd() {
	if a.lines {
		a.takeValue(a.data)
		// Only its end shows that it is complete.
		if !a.done {
			a.w.b = append(a.w.b, "data: [DONE]\n\n"...)
			a.done = true
		}
		return
	}
	if _, whole := parseLoosely(a.data); whole || string(bytes.TrimSpace(a.data)) == "[DONE]" {
		a.dispatch(a.data)
	}
	a.finishStream() // an event that is cut off means that the response is
}

func (a *Response) dispatch(data []byte) {
	if a.done {
		return
	}
	data = bytes.TrimSpace(data)
	if len(data) == 0 {
		return
	}
	if string(data) == "[DONE]" {
		a.finishStream()
		return
	}
	v, ok := parseLoosely(data)
	if !ok || v.kind() != '{' {
		a.fail(unreadable(a.req.Kind))
		return
	}
	switch a.req.Kind {
	case Anthropic:
		a.anthropicEvent(v)
	case Gemini:
		if !a.failsWith(v) {
			a.geminiEvent(v)
		}
	case Cohere:
		a.cohereEvent(v)
	case Mistral:
		if !a.failsWith(v) {
			a.mistralEvent(v)
		}
	}
	if a.excess {
		a.fail(unreadable(a.req.Kind))
	}
}

// failsWith ends the stream if the event is an error.
func (a *Response) failsWith(v raw) bool {
	e, is := a.errorOf(v)
	if is {
		a.fail(e)
	}
	return is
}

// finishStream writes the rest and [DONE], once.
func (a *Response) finishStream() {
	if a.done {
		return
	}
	complete := len(a.replies) > 0
	for _, r := range a.replies {
		complete = complete && r.finish != ""
	}
	if !complete {
		a.fail(failure{message: Name(a.req.Kind) + "'s response ended before it was complete.", kind: "server_error", code: "incomplete_answer"})
		return
	}
	if a.req.includeUsage && a.usage.known {
		a.header()
		a.w.b = append(a.w.b, a.head...)
		a.w.b = append(a.w.b, `"choices":[],"usage":`...)
		a.writeUsage(&a.w)
		a.w.b = append(a.w.b, "}\n\n"...)
	}
	a.w.b = append(a.w.b, "data: [DONE]\n\n"...)
	a.done = true
}

// fail writes an error in the middle of a stream. Nothing follows it, not even [DONE]: a
// client that looks only for [DONE] must not take the response for a complete one.
func (a *Response) fail(e failure) {
	if a.done {
		return
	}
	a.w.b = append(a.w.b, "data: "...)
	a.w.b = append(a.w.b, e.encode()...)
	a.w.b = append(a.w.b, "\n\n"...)
	a.done, a.broken = true, true
}

func (a *Response) failed(e failure) {
	a.w.b = e.encode()
	a.broken = true
}

// reply returns the choice of this index. It creates a new one.
func (a *Response) reply(index int64) *reply {
	for _, r := range a.replies {
		if r.index == index {
			return r
		}
	}
	if len(a.replies) >= maxReplies {
		a.excess = true
		return a.replies[0]
	}
	r := &reply{index: index}
	a.replies = append(a.replies, r)
	return r
}

// header builds the beginning of every chunk.
func (a *Response) header() {
	if a.head != nil {
		return
	}
	w := writer{b: []byte("data: ")}
	w.b = append(w.b, '{')
	a.identify(&w, "chat.completion.chunk")
	w.b = append(w.b, ',')
	a.head = w.b
	a.tail = []byte(`]`)
	if a.req.includeUsage {
		a.tail = append(a.tail, `,"usage":null`...)
	}
	a.tail = append(a.tail, "}\n\n"...)
}

// identify writes the common members of chunks and completions.
func (a *Response) identify(w *writer, object string) {
	w.key("id")
	if len(a.answerID) > 2 && a.answerID.kind() == '"' {
		w.raw(a.answerID)
	} else {
		w.string(a.id())
	}
	w.keyString("object", object)
	if a.created.isNumber() {
		w.keyRaw("created", a.created)
	} else {
		w.keyInt("created", a.now().Unix())
	}
	w.keyString("model", a.Model())
	if a.tier != "" {
		w.keyString("service_tier", a.tier)
	}
}

func (a *Response) setModel(v raw) {
	if len(v) > 2 && v.kind() == '"' && a.model == nil {
		a.model = bytes.Clone(v)
	}
}

func (a *Response) setID(v raw) {
	if len(v) > 2 && v.kind() == '"' && a.answerID == nil {
		a.answerID = bytes.Clone(v)
	}
}

func (a *Response) setTier(v raw) {
	switch v.string() {
	case "standard", "default":
		a.tier = "default"
	case "priority":
		a.tier = "priority"
	}
}

// open begins a chunk, up to its delta's fields. shut ends it.
func (a *Response) open(r *reply) *writer {
	a.begin(r)
	a.start(r)
	return &a.w
}

// begin writes the role, which OpenAI sends first and separately.
func (a *Response) begin(r *reply) {
	if r.begun || a.form != streamForm {
		return
	}
	r.begun = true
	a.start(r)
	a.w.b = append(a.w.b, `"role":"assistant","content":""`...)
	a.shut("")
}

func (a *Response) start(r *reply) {
	a.header()
	if a.w.b == nil {
		a.w.b = make([]byte, 0, len(a.head)+256) // for one short chunk
	}
	a.w.b = append(a.w.b, a.head...)
	a.w.b = append(a.w.b, `"choices":[{"index":`...)
	a.w.int1(r.index)
	a.w.b = append(a.w.b, `,"delta":{`...)
}

func (a *Response) shut(finish string) {
	a.w.b = append(a.w.b, `},"logprobs":`...)
	if a.odds != nil {
		a.w.b = append(a.w.b, `{"content":`...)
		a.w.b = append(a.w.b, a.odds...)
		a.w.b = append(a.w.b, `,"refusal":null}`...)
		a.odds = nil
	} else {
		a.w.b = append(a.w.b, "null"...)
	}
	if finish == "" {
		a.w.b = append(a.w.b, `,"finish_reason":null}`...)
		a.w.b = append(a.w.b, a.tail...)
		return
	}
	a.w.b = append(a.w.b, `,"finish_reason":"`...)
	a.w.b = append(a.w.b, finish...)
	a.w.b = append(a.w.b, `"}`...)
	if a.req.Kind == Mistral && !a.req.includeUsage && a.usage.known {
		// Mistral always sends usage, on the last chunk, and its clients read it there.
		a.w.b = append(a.w.b, `],"usage":`...)
		a.writeUsage(&a.w)
		a.w.b = append(a.w.b, "}\n\n"...)
		return
	}
	a.w.b = append(a.w.b, a.tail...)
}

func (w *writer) int1(n int64) {
	if n >= 0 && n <= 9 {
		w.b = append(w.b, byte('0'+n))
		return
	}
	var d writer
	d.int(n)
	w.b = append(w.b, d.b...)
}

// text adds to the assistant's text. s is a JSON string.
func (a *Response) text(r *reply, s raw) {
	if s.kind() != '"' || len(s) == 2 {
		return
	}
	r.chars += utf8.RuneCount(s.text())
	if a.form != streamForm {
		r.content = append(r.content, s)
		return
	}
	w := a.open(r)
	w.b = append(w.b, `"content":`...)
	w.b = append(w.b, s...)
	a.shut("")
}

// think adds to the reasoning.
func (a *Response) think(r *reply, s raw) {
	if s.kind() != '"' || len(s) == 2 {
		return
	}
	if a.form != streamForm {
		r.reasoning = append(r.reasoning, s)
		return
	}
	w := a.open(r)
	w.b = append(w.b, `"reasoning_content":`...)
	w.b = append(w.b, s...)
	a.shut("")
}

// call begins a tool call and returns its index. Strings are JSON. args are the first
// arguments, or nil. A call that came complete is written in one chunk, since some clients
// run the content of a call's first chunk.
func (a *Response) call(r *reply, id, name, signature, args raw) int {
	n := len(r.calls)
	if n >= maxCalls || len(name) < 3 || name.kind() != '"' { // a call without a name is invalid
		a.excess = true
		return -1
	}
	if r.ids[id.string()] { // results could not be assigned
		id = a.ownID()
	}
	if r.ids == nil {
		r.ids = map[string]bool{}
	}
	r.ids[id.string()] = true
	if args.kind() != '"' {
		args = raw(`""`)
	}
	c := replyCall{id: bytes.Clone(id), argued: len(args) > 2, index: -1}
	if a.form != streamForm {
		c.name, c.signature = name, signature
		if c.argued {
			c.arguments = []raw{args}
		}
		r.calls = append(r.calls, c)
		return n
	}
	r.calls = append(r.calls, c)
	w := a.open(r)
	w.b = append(w.b, `"tool_calls":[{"index":`...)
	w.int1(int64(n))
	w.b = append(w.b, `,"id":`...)
	w.b = append(w.b, id...)
	w.b = append(w.b, `,"type":"function","function":{"name":`...)
	w.b = append(w.b, name...)
	w.b = append(w.b, `,"arguments":`...)
	w.b = append(w.b, args...)
	w.b = append(w.b, '}')
	if signature.kind() == '"' {
		googleSignature(w, signature)
	}
	w.b = append(w.b, "}]"...)
	a.shut("")
	return n
}

// callAt is the latest call with chunks under index, or -1.
func (r *reply) callAt(index int64) int {
	for n := len(r.calls) - 1; n >= 0; n-- {
		if r.calls[n].index == index {
			return n
		}
	}
	return -1
}

// arguments adds to a call's arguments. s is a JSON string.
func (a *Response) arguments(r *reply, n int, s raw) {
	if s.kind() != '"' || len(s) == 2 || n < 0 || n >= len(r.calls) {
		return
	}
	r.calls[n].argued = true
	if a.form != streamForm {
		r.calls[n].arguments = append(r.calls[n].arguments, s)
		return
	}
	w := a.open(r)
	w.b = append(w.b, `"tool_calls":[{"index":`...)
	w.int1(int64(n))
	w.b = append(w.b, `,"function":{"arguments":`...)
	w.b = append(w.b, s...)
	w.b = append(w.b, "}}]"...)
	a.shut("")
}

// endCall writes an empty object for a call without arguments, since clients parse the
// arguments.
func (a *Response) endCall(r *reply, n int) {
	if n >= 0 && n < len(r.calls) && !r.calls[n].argued {
		a.arguments(r, n, raw(`"{}"`))
	}
}

func googleSignature(w *writer, signature raw) {
	w.key("extra_content")
	w.b = append(w.b, `{"google":{"thought_signature":`...)
	w.b = append(w.b, signature...)
	w.b = append(w.b, "}}"...)
}

// sign keeps a signature that must come back with the text or the reasoning.
func (a *Response) sign(r *reply, signature raw) {
	if signature.kind() != '"' || len(signature) == 2 {
		return
	}
	if a.form != streamForm {
		r.signature = signature
		return
	}
	w := a.open(r)
	a.extra(w, signature)
	a.shut("")
}

func (a *Response) extra(w *writer, signature raw) {
	if a.req.Kind == Gemini {
		googleSignature(w, signature)
		return
	}
	w.key("extra_content")
	w.b = append(w.b, `{"mistral":{"signature":`...)
	w.b = append(w.b, signature...)
	w.b = append(w.b, "}}"...)
}

// refuse writes that the response was withheld, or a part of it.
func (a *Response) refuse(r *reply, why string) {
	if why == "" {
		return
	}
	if a.form != streamForm {
		r.refusal = why
		return
	}
	w := a.open(r)
	w.keyString("refusal", why)
	a.shut("")
}

func (a *Response) finish(r *reply, reason string) {
	if r.finish != "" {
		return
	}
	if a.form == streamForm {
		for n := range r.calls {
			a.endCall(r, n)
		}
		a.open(r)
		a.shut(reason)
	}
	r.finish = reason
}

func (a *Response) writeUsage(w *writer) {
	u := a.usage
	w.b = append(w.b, '{')
	w.keyInt("prompt_tokens", u.input)
	w.keyInt("completion_tokens", u.output)
	w.keyInt("total_tokens", u.input+u.output)
	w.key("prompt_tokens_details")
	w.b = append(w.b, '{')
	w.keyInt("cached_tokens", u.cached)
	if u.written > 0 {
		w.keyInt("cache_write_tokens", u.written)
	}
	w.close('}')
	w.key("completion_tokens_details")
	w.b = append(w.b, '{')
	w.keyInt("reasoning_tokens", u.reasoning)
	w.b = append(w.b, "}}"...)
}

// completion writes OpenAI's response that is not streamed.
func (a *Response) completion() {
	w := &a.w
	w.open('{')
	a.identify(w, "chat.completion")
	w.key("choices")
	w.open('[')
	for _, r := range a.replies {
		w.open('{')
		w.keyInt("index", r.index)
		w.key("message")
		a.message(w, r)
		w.key("logprobs")
		if len(r.odds) > 0 {
			w.b = append(w.b, `{"content":[`...)
			for _, o := range r.odds {
				for _, x := range o.elements() {
					w.raw(x)
				}
			}
			w.b = append(w.b, `],"refusal":null}`...)
		} else {
			w.raw([]byte("null"))
		}
		if r.finish == "" {
			r.finish = "stop"
		}
		w.keyString("finish_reason", r.finish)
		w.close('}')
	}
	w.close(']')
	if a.usage.known {
		w.key("usage")
		a.writeUsage(w)
	}
	w.close('}')
}

func (a *Response) message(w *writer, r *reply) {
	w.open('{')
	w.keyString("role", "assistant")
	w.key("content")
	if len(r.content) == 0 && (len(r.calls) > 0 || r.refusal != "") {
		w.raw([]byte("null"))
	} else {
		w.raw(joined(r.content))
	}
	w.key("refusal")
	if r.refusal == "" {
		w.raw([]byte("null"))
	} else {
		w.string(r.refusal)
	}
	if len(r.reasoning) > 0 {
		w.keyRaw("reasoning_content", joined(r.reasoning))
	}
	if len(r.thinking) > 0 {
		w.key("thinking_blocks")
		w.list(r.thinking)
	}
	if len(r.calls) > 0 {
		w.key("tool_calls")
		w.open('[')
		for _, c := range r.calls {
			w.open('{')
			w.keyRaw("id", c.id)
			w.keyString("type", "function")
			w.key("function")
			w.open('{')
			w.keyRaw("name", c.name)
			if len(c.arguments) == 0 {
				c.arguments = []raw{raw(`"{}"`)}
			}
			w.keyRaw("arguments", joined(c.arguments))
			w.close('}')
			if c.signature.kind() == '"' {
				googleSignature(w, c.signature)
			}
			w.close('}')
		}
		w.close(']')
	}
	if r.signature != nil {
		a.extra(w, r.signature)
	}
	w.close('}')
}

// ownID is the beginning of call ids that are made here. No other id is sent with it, so an
// id that comes back with it was made here.
const ownID = "aid_call_"

// toolID is a call's id from the provider, or one that is made here.
func (a *Response) toolID(id raw) raw {
	if len(id) > 2 && id.kind() == '"' && !bytes.HasPrefix(id.text(), []byte(ownID)) {
		return id
	}
	return a.ownID()
}

// ownID makes a unique call id from the response's own id, which is new for each response.
// It has at most 40 characters, as OpenAI requires.
func (a *Response) ownID() raw {
	if a.made == "" {
		a.made = ownID + short([]byte(a.id()), 22) + "_"
	}
	id := strconv.AppendInt([]byte(`"`+a.made), int64(a.calls), 10)
	a.calls++
	return append(id, '"')
}
