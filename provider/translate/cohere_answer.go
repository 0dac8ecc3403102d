package translate

import "strconv"

func cohereReason(v raw) (finish string, broken bool) {
	switch v.string() {
	case "MAX_TOKENS":
		return "length", false
	case "TOOL_CALL":
		return "tool_calls", false
	case "ERROR", "ERROR_TOXIC", "ERROR_LIMIT", "TIMEOUT", "USER_CANCEL":
		return "content_filter", true
	}
	return "stop", false // COMPLETE, STOP_SEQUENCE
}

func (a *Response) cohereUsage(u raw) {
	for _, name := range []string{"tokens", "billed_units"} {
		in, ok := u.get(name, "input_tokens").whole()
		out, also := u.get(name, "output_tokens").whole()
		if ok || also {
			a.usage.input, a.usage.output, a.usage.known = in, out, true
			break
		}
	}
	if n, ok := u.get("cached_tokens").whole(); ok {
		a.usage.cached = n
	}
}

func (a *Response) cohereWhole(v raw) {
	m := v.get("message")
	if m.kind() != '{' {
		return
	}
	a.setID(v.get("id"))
	a.cohereUsage(v.get("usage"))
	r := a.reply(0)
	a.think(r, m.get("tool_plan"))
	content := m.get("content")
	a.text(r, content) // a string, from older models
	for _, c := range content.elements() {
		switch kind := c.get("type").string(); kind {
		case "text":
			a.text(r, c.get("text"))
		case "thinking":
			a.think(r, c.get("thinking"))
		default:
			a.lose(kind)
		}
	}
	for _, c := range m.get("tool_calls").elements() {
		a.call(r, a.toolID(c.get("id")), c.get("function", "name"), nil, c.get("function", "arguments"))
	}
	if c := m.get("citations"); c.kind() == '[' && len(c.compact()) > 2 {
		a.lose("citations")
	}
	for _, l := range v.get("logprobs").elements() {
		r.odds = append(r.odds, cohereOdds(l))
	}
	finish, broken := cohereReason(v.get("finish_reason"))
	if broken {
		a.refuse(r, "Cohere did not finish its response: "+v.get("finish_reason").string()+".")
	}
	a.finish(r, finish)
}

// cohereOdds turns a chunk of text and the probability of all its tokens into one of
// OpenAI's tokens. Cohere returns text by the chunk and probabilities by the token.
func cohereOdds(l raw) raw {
	ps := l.get("logprobs")
	if ps.kind() != '[' {
		return nil
	}
	var w writer
	w.b = append(w.b, '[')
	w.open('{')
	text := l.get("text")
	if text.kind() != '"' {
		text = raw(`""`)
	}
	w.keyRaw("token", text)
	var sum float64
	var one raw
	n := 0
	for _, p := range ps.elements() {
		f, _ := p.number()
		sum += f
		one = p
		n++
	}
	if n != 1 || !one.isNumber() {
		one = strconv.AppendFloat(nil, sum, 'g', -1, 64)
	}
	w.keyRaw("logprob", one)
	w.keyRaw("bytes", []byte("null"))
	w.keyRaw("top_logprobs", []byte("[]"))
	w.b = append(w.b, "}]"...)
	return w.b
}

func (a *Response) cohereEvent(v raw) {
	var kind, delta raw
	for name, x := range v.members() {
		switch string(name) {
		case "type":
			kind = x
		case "delta":
			delta = x
		}
	}
	message := delta.get("message")
	switch string(kind) {
	case `"content-delta"`, `"content-start"`:
		r := a.reply(0)
		if l := v.get("logprobs"); l.given() {
			a.odds = cohereOdds(l)
		}
		content := message.get("content")
		a.think(r, content.get("thinking"))
		a.text(r, content.get("text"))
		if a.odds != nil {
			a.open(r)
			a.shut("")
		}
	case `"message-start"`:
		a.setID(v.get("id"))
		a.begin(a.reply(0))
	case `"tool-plan-delta"`:
		a.think(a.reply(0), message.get("tool_plan"))
	case `"tool-call-start"`:
		r := a.reply(0)
		c := message.get("tool_calls")
		if n := a.call(r, a.toolID(c.get("id")), c.get("function", "name"), nil, c.get("function", "arguments")); n >= 0 {
			if i, ok := v.get("index").whole(); ok {
				r.calls[n].index = i
			}
		}
	case `"tool-call-delta"`:
		r := a.reply(0)
		a.arguments(r, r.cohereCall(v), message.get("tool_calls", "function", "arguments"))
	case `"tool-call-end"`:
		r := a.reply(0)
		a.endCall(r, r.cohereCall(v))
	case `"citation-start"`:
		a.lose("citations")
	case `"message-end"`:
		a.cohereUsage(delta.get("usage"))
		finish, broken := cohereReason(delta.get("finish_reason"))
		if said := delta.get("error"); broken || said.given() {
			why := said.string()
			if why == "" {
				why = "Cohere did not finish its response: " + delta.get("finish_reason").string() + "."
			}
			a.fail(failure{message: scrub(why), kind: "server_error", code: delta.get("finish_reason").string()})
			return
		}
		a.finish(a.reply(0), finish)
		a.finishStream()
	default:
		// An event without a known type and with a message is an error.
		if kind == nil && (v.get("message").kind() == '"' || v.get("error").given()) {
			f := a.words(v)
			f.kind = "server_error"
			a.fail(f)
		}
	}
}

// cohereCall is the call that an event belongs to: by its index, or the last.
func (r *reply) cohereCall(v raw) int {
	if i, ok := v.get("index").whole(); ok {
		return r.callAt(i)
	}
	return len(r.calls) - 1
}
