package translate

import (
	"bytes"

	"github.com/ai-identity/ai-identity/provider/sse"
)

// OpenAI is the kind whose requests and answers pass as they are. Its errors are
// read all the same: see Error.
const OpenAI = "openai"

// Error reads the error of a provider that speaks OpenAI's format itself, which many
// do only as long as all goes well. What is such an error stays as it is, every field
// of it, but for what is shaped like a key, an address or an internal host. What is
// none (a page of a proxy, another framework's JSON) becomes one. at is where the
// words are, name by name; nil: where one of the known APIs has them.
func Error(status int, at []string) *Response {
	a := Request{Kind: OpenAI}.Answer(status, "", nil, nil)
	a.at = at
	return a
}

// ErrorOf is Error for the other APIs: whatever JSON it is stays as it is, scrubbed
// alike, and what is none becomes what none says with these words.
func ErrorOf(status int, none func(message string) []byte) *Response {
	a := Error(status, nil)
	a.none = none
	return a
}

// Lines makes server-sent events of a stream of OpenAI's chunks that is written one
// value a line (NDJSON). A value with words at the place of errors ends it.
func Lines(errorAt []string) *Response {
	a := Request{Kind: OpenAI, Stream: true}.Answer(200, "text/event-stream", nil, nil)
	a.lines, a.at, a.stream = true, errorAt, sse.NewLines(maxEvent)
	return a
}

// takeValue takes a line of such a stream.
func (a *Response) takeValue(line []byte) {
	line = bytes.TrimSpace(line)
	if len(line) == 0 || a.done {
		return
	}
	v, ok := parseLoosely(line)
	if !ok || v.kind() != '{' {
		a.fail(failure{message: "The provider's answer could not be read.", kind: "server_error", code: "unreadable_answer"})
		return
	}
	if v.get("error").kind() == '{' || len(a.at) > 0 && v.get(a.at...).given() {
		f := a.words(v)
		if m := v.get(a.at...); len(a.at) > 0 && m.kind() == '"' {
			f.message = scrub(m.string())
		}
		f.kind = "server_error"
		a.fail(f)
		return
	}
	a.w.b = append(a.w.b, "data: "...)
	a.w.b = append(a.w.b, v...)
	a.w.b = append(a.w.b, "\n\n"...)
}

// ownError is the error of an OpenAI-format provider, as it goes to the caller.
func (a *Response) ownError(body []byte) []byte {
	v, ok := parseLoosely(body)
	if a.none != nil {
		if !ok || v.kind() != '{' && v.kind() != '[' {
			return a.none(noReason)
		}
		return scrubbed(v, body)
	}
	if m := v.get(a.at...); ok && len(a.at) > 0 && m.kind() == '"' {
		return failure{message: scrub(m.string()), kind: typeOf(a.status)}.encode()
	}
	if !ok || v.get("error").kind() != '{' || v.get("error", "message").kind() != '"' {
		f := failure{}
		if ok && v.kind() == '{' {
			f = a.words(v)
		}
		if f.message == "" {
			f.message = noReason
		}
		f.kind = typeOf(a.status)
		return f.encode()
	}
	return scrubbed(v, body)
}

const noReason = "The provider answered with an error and gave no reason."

// scrubbed is v, which is written as body, with its strings scrubbed.
func scrubbed(v raw, body []byte) []byte {
	var w writer
	if !w.scrubbed(v) {
		return body
	}
	return w.b
}

// scrubbed writes v with its strings scrubbed, and says whether one of them was.
func (w *writer) scrubbed(v raw) (changed bool) {
	switch v.kind() {
	case '{':
		w.open('{')
		for name, value := range v.members() {
			w.text(name)
			w.b = append(w.b, ':')
			changed = w.scrubbed(value) || changed
		}
		w.close('}')
	case '[':
		w.open('[')
		for _, value := range v.elements() {
			changed = w.scrubbed(value) || changed
		}
		w.close(']')
	case '"':
		s := v.string()
		if t := scrub(s); t != s {
			w.string(t)
			return true
		}
		w.raw(v)
	default:
		w.raw(bytes.Clone(v))
	}
	return changed
}
