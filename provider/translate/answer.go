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
	maxEvent = 16 << 20 // of one streamed event
	maxWhole = 64 << 20 // of an answer that is not streamed
	maxError = 1 << 20  // of a provider's error; what follows is not read
)

// What an answer may have of each, far above what models give: they are looked through
// one by one.
const (
	maxReplies = 1024
	maxCalls   = 4096
	maxBlocks  = 4096 // open at once
)

// Response is a provider's answer on its way to OpenAI's form. It belongs to one
// goroutine.
type Response struct {
	req    Request
	status int
	now    func() time.Time
	id     func() string

	form  form
	lines bool                        // of a stream: each line is a value
	at    []string                    // where errors have their words, if their provider has its own place
	none  func(message string) []byte // of ErrorOf
	w     writer                      // what goes out with this Chunk
	whole []byte                      // what came, unless it is streamed
	ended bool                        // the last byte came, and everything is said

	// Of a stream.
	stream sse.Reader
	data   []byte // of the event that has not ended
	done   bool   // [DONE] is said, or an error
	broken bool   // an error is

	// What the provider said of the answer as a whole.
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
	blocks  []block // Anthropic's that are open
	calls   int     // ids of calls that were made here
	made    string  // what they begin with
	odds    raw     // log probabilities that the next text takes with it
	excess  bool    // there is more of something than there may be
}

// form is how the answer comes.
type form uint8

const (
	wholeForm  form = iota // one JSON value
	streamForm             // server-sent events
	errorForm              // not a 2xx
)

// usage is in OpenAI's terms: input has cached and written in it, output has
// reasoning in it.
type usage struct {
	input, output, cached, written, reasoning int64
	known                                     bool
}

// reply is one of OpenAI's choices. Of a streamed one only what later events
// depend on is kept.
type reply struct {
	index     int64
	begun     bool // its role is said
	content   []raw
	reasoning []raw
	thinking  []raw // Anthropic's blocks
	refusal   string
	signature raw // of the text (Gemini) or the thinking (Mistral)
	calls     []replyCall
	ids       map[string]bool // of the calls
	chars     int             // characters of content
	odds      []raw           // arrays of OpenAI's log probabilities
	finish    string
}

type replyCall struct {
	id        raw
	name      raw
	arguments []raw // pieces, strings
	signature raw
	argued    bool  // a piece of its arguments was said
	index     int64 // under which the provider sends the pieces of it; -1: none
}

// Answer makes a reader of the answer to r. The clock is asked once, and id,
// which makes an id like "chatcmpl-…", only if the provider gave none.
func (r Request) Answer(status int, contentType string, now func() time.Time, id func() string) *Response {
	a := &Response{req: r, status: status, now: now, id: id, stream: sse.New(maxEvent, maxEvent)}
	switch {
	case status < 200 || status > 299:
		a.form = errorForm
	case r.Stream && sse.Is(contentType): // unasked, it is not what the caller could read
		a.form = streamForm
	}
	return a
}

// ContentType is of what Chunk gives.
func (a *Response) ContentType() string {
	if a.form == streamForm {
		return "text/event-stream"
	}
	return "application/json"
}

// Status is what to answer with. It is the provider's, but for those that
// OpenAI's clients do not know, and 502 once an answer has come that cannot be
// read.
func (a *Response) Status() int {
	if a.none != nil {
		return a.status // the caller's client is the provider's own, and knows it
	}
	switch a.status {
	case 498: // Cohere: the model's input or output was blocked
		return 400
	case 499, 529: // Cohere: cancelled; Anthropic: overloaded
		return 503
	}
	if a.status < 200 || a.status >= 300 && a.status < 400 {
		return 502 // where to go instead is not for the caller
	}
	return a.status
}

// Usage is what the provider said that it counted, in OpenAI's terms: input
// holds cached and cacheWrite, output holds reasoning.
func (a *Response) Usage() (input, output, cached, cacheWrite, reasoning int64, known bool) {
	u := a.usage
	return u.input, u.output, u.cached, u.written, u.reasoning, u.known
}

// Model is what the provider said that answered, or what was asked for.
func (a *Response) Model() string {
	if said := a.ModelSaid(); said != "" {
		return said
	}
	return a.req.Model
}

// ModelSaid is what the provider said that answered, "" if it did not.
func (a *Response) ModelSaid() string { return a.model.string() }

// RetryAfter is when the provider's error said to come back. Most say it in a
// header, Gemini in the body. 0: it did not.
func (a *Response) RetryAfter() time.Duration { return a.retryAfter }

// Lost names the parts of the answer that OpenAI's format has no place for:
// "citations". They are not in what Chunk gave.
func (a *Response) Lost() []string { return a.lost }

// Failed says that an error was said in the answer's place or in the middle of it.
func (a *Response) Failed() bool { return a.broken }

// Complete says that all of the answer came and was said, and no error.
func (a *Response) Complete() bool { return !a.broken && (a.done || a.ended) }

// Streamed says that the answer is one of events, which are given as they come.
// Another is given at its end, when Status and RetryAfter are known.
func (a *Response) Streamed() bool { return a.form == streamForm }

// isName says whether s is made as names in APIs are.
func isName(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	})
}

// lose notes a part. What is no name, and could be anything, is "other": it goes into
// the record.
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

// Chunk takes the next bytes of the provider's answer, cut anywhere, and gives
// the bytes of OpenAI's that they complete. end says that these are the last.
// What it gives is the caller's.
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
		a.status = 502 // whoever waits for events would read nothing from it
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

// feed takes the next bytes of a stream.
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

// take takes the data of an event, which is a line where lines are values.
func (a *Response) take(data []byte) {
	if a.lines {
		a.takeValue(data)
		return
	}
	a.dispatch(data)
}

// comment keeps the connection alive on our side as it does on the provider's.
func (a *Response) comment(text []byte) {
	if a.done {
		return
	}
	a.w.b = append(a.w.b, ':')
	a.w.b = append(a.w.b, bytes.ToValidUTF8(text, []byte("\uFFFD"))...)
	a.w.b = append(a.w.b, '\n', '\n')
}

// feedEnd takes what stands without an empty line after it, and ends the stream.
func (a *Response) feedEnd() {
	if a.lines {
		a.takeValue(a.data)
		// Nothing in it says that it is whole but its end.
		if !a.done {
			a.w.b = append(a.w.b, "data: [DONE]\n\n"...)
			a.done = true
		}
		return
	}
	if _, whole := parseLoosely(a.data); whole || string(bytes.TrimSpace(a.data)) == "[DONE]" {
		a.dispatch(a.data)
	}
	a.finishStream() // an event that is cut off is an answer that is
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

// finishStream says what remains and [DONE], once.
func (a *Response) finishStream() {
	if a.done {
		return
	}
	complete := len(a.replies) > 0
	for _, r := range a.replies {
		complete = complete && r.finish != ""
	}
	if !complete {
		a.fail(failure{message: Name(a.req.Kind) + "'s answer ended before it was complete.", kind: "server_error", code: "incomplete_answer"})
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

// fail says an error in the middle of a stream. Nothing follows it, not even [DONE]:
// who looks for that only must not take the answer for a whole one.
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

// reply is the choice of this index, which begins if it is new.
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

// header makes what every chunk begins with.
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

// identify writes what chunks and completions share.
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

// open begins a chunk, up to its delta's fields; shut ends it.
func (a *Response) open(r *reply) *writer {
	a.begin(r)
	a.start(r)
	return &a.w
}

// begin says the role, which OpenAI says first and alone.
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
		a.w.b = make([]byte, 0, len(a.head)+256) // one short piece
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
		// Mistral gives usage unasked, on the last chunk, and its clients read it there.
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

// text adds to what the assistant says. s is a JSON string.
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

// call begins a tool call and is its index. Strings are JSON. args are what came of its
// arguments with it, nil for nothing: a call that came whole leaves whole, because some
// clients run what the first chunk of a call has.
func (a *Response) call(r *reply, id, name, signature, args raw) int {
	n := len(r.calls)
	if n >= maxCalls || len(name) < 3 || name.kind() != '"' { // a call without a name is none
		a.excess = true
		return -1
	}
	if r.ids[id.string()] { // results could not be told apart
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

// callAt is the latest call whose pieces come under index, or -1.
func (r *reply) callAt(index int64) int {
	for n := len(r.calls) - 1; n >= 0; n-- {
		if r.calls[n].index == index {
			return n
		}
	}
	return -1
}

// arguments adds to a call's. s is a JSON string.
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

// endCall gives a call without arguments an empty object of them: clients parse
// what they get.
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

// sign keeps what must come back with the text or the thinking.
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

// refuse says that the answer was not given, or not all of it.
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

// completion writes OpenAI's answer that is not streamed.
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

// ownID begins the ids of calls that are made here. It marks them: no other id leaves
// with it, so one that comes back with it is ours.
const ownID = "aid_call_"

// toolID is a call's id as the provider gave it, or one that is made here.
func (a *Response) toolID(id raw) raw {
	if len(id) > 2 && id.kind() == '"' && !bytes.HasPrefix(id.text(), []byte(ownID)) {
		return id
	}
	return a.ownID()
}

// ownID makes an id that no other call of any response has: it is made of the response's
// own id, which is new for each. It has at most 40 characters, as OpenAI demands.
func (a *Response) ownID() raw {
	if a.made == "" {
		a.made = ownID + short([]byte(a.id()), 22) + "_"
	}
	id := strconv.AppendInt([]byte(`"`+a.made), int64(a.calls), 10)
	a.calls++
	return append(id, '"')
}
