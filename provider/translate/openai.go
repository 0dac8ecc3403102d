package translate

import "bytes"

// OpenAI is the kind whose requests and answers pass as they are. Its errors are
// read all the same: see Error.
const OpenAI = "openai"

// Error reads the error of a provider that speaks OpenAI's format itself, which many
// do only as long as all goes well. What is such an error stays as it is, every field
// of it, but for what is shaped like a key, an address or an internal host. What is
// none (a page of a proxy, another framework's JSON) becomes one.
func Error(status int) *Answer { return Request{Kind: OpenAI}.Answer(status, "", nil, nil) }

// ownError is the error of an OpenAI-format provider, as it goes to the caller.
func (a *Answer) ownError(body []byte) []byte {
	v, ok := parseLoosely(body)
	if !ok || v.get("error").kind() != '{' || v.get("error", "message").kind() != '"' {
		f := failure{}
		if ok && v.kind() == '{' {
			f = a.words(v)
		}
		if f.message == "" {
			f.message = "The provider answered with an error and gave no reason."
		}
		f.kind = typeOf(a.status)
		return f.encode()
	}
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
