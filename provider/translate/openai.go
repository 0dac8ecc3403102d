package translate

import (
	"bytes"

	"github.com/ai-identity/ai-identity/provider/sse"
)

// OpenAI is the kind whose requests and responses pass unchanged. Only its errors are read:
// see Error.
const OpenAI = "openai"

// Error reads the error of a provider with OpenAI's format. An error in that format keeps
// every field. Only text that looks like a key, an address or an internal host is removed.
// Other text, such as a proxy's page, is replaced by an error. at is the path of the
// message, name by name; nil: the places of the known APIs.
func Error(status int, at []string) *Response {
	a := Request{Kind: OpenAI}.Answer(status, "", nil, nil)
	a.at = at
	return a
}

// ErrorOf is Error for the other APIs. JSON is kept and scrubbed alike. Other text is
// replaced by the result of none.
func ErrorOf(status int, none func(message string) []byte) *Response {
	a := Error(status, nil)
	a.none = none
	return a
}

// Lines turns a stream of OpenAI's chunks with one value a line (NDJSON) into server-sent
// events. A value with a message at the place of errors ends it.
func Lines(errorAt []string) *Response {
	a := Request{Kind: OpenAI, Stream: true}.Answer(200, "text/event-stream", nil, nil)
	a.lines, a.at, a.stream = true, errorAt, sse.NewLines(maxEvent)
	return a
}

// takeValue processes a line of such a stream.
func (a *Response) takeValue(line []byte) {
	line = bytes.TrimSpace(line)
	if len(line) == 0 || a.done {
		return
	}
	v, ok := parseLoosely(line)
	if !ok || v.kind() != '{' {
		a.fail(failure{message: "The provider's response could not be read.", kind: "server_error", code: "unreadable_answer"})
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

// ownError is the error of a provider with OpenAI's format, as it goes to the caller.
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

const noReason = "The provider responded with an error without a reason."

// scrubbed returns v, whose bytes are body, with its strings scrubbed.
func scrubbed(v raw, body []byte) []byte {
	var w writer
	if !w.scrubbed(v) {
		return body
	}
	return w.b
}

// scrubbed writes v with its strings scrubbed, and reports whether one of them was changed.
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
