package translate

import "bytes"

func mistralReason(v raw) (finish string, broken bool) {
	switch v.string() {
	case "length", "model_length":
		return "length", false
	case "tool_calls":
		return "tool_calls", false
	case "content_filter":
		return "content_filter", false
	case "error":
		return "content_filter", true
	}
	return "stop", false
}

// openaiUsage reads usage in OpenAI's format.
func (a *Response) openaiUsage(u raw) {
	for name, v := range u.members() {
		n, ok := v.whole()
		switch string(name) {
		case "prompt_tokens":
			if ok {
				a.usage.input, a.usage.known = n, true
			}
		case "completion_tokens":
			if ok {
				a.usage.output, a.usage.known = n, true
			}
		case "num_cached_tokens":
			if ok {
				a.usage.cached = n
			}
		case "prompt_tokens_details", "prompt_token_details":
			if n, ok := v.get("cached_tokens").whole(); ok {
				a.usage.cached = n
			}
		case "completion_tokens_details":
			if n, ok := v.get("reasoning_tokens").whole(); ok {
				a.usage.reasoning = n
			}
		case "service_tier":
			a.setTier(v)
		}
	}
}

// mistralEvent reads a complete response or a chunk of one. They differ in one name:
// message or delta.
func (a *Response) mistralEvent(v raw) {
	var choices raw
	for name, x := range v.members() {
		switch string(name) {
		case "id":
			a.setID(x)
		case "model":
			a.setModel(x)
		case "created":
			if a.created == nil && x.isNumber() {
				a.created = bytes.Clone(x)
			}
		case "usage":
			a.openaiUsage(x)
		case "choices":
			choices = x
		}
	}
	for i, c := range choices.elements() {
		if a.excess {
			return
		}
		a.mistralChoice(i, c)
	}
}

func (a *Response) mistralChoice(i int, c raw) {
	index := int64(i)
	var said, reason, odds raw
	for name, x := range c.members() {
		switch string(name) {
		case "index":
			if n, ok := x.whole(); ok && n >= 0 && n < 1024 {
				index = n
			}
		case "delta", "message":
			said = x
		case "finish_reason":
			reason = x
		case "logprobs":
			odds = mistralOdds(x)
		}
	}
	r := a.reply(index)
	a.begin(r)
	if odds != nil {
		if a.form == streamForm {
			a.odds = odds
		} else {
			r.odds = append(r.odds, odds)
		}
	}
	for name, x := range said.members() {
		switch string(name) {
		case "content":
			a.mistralContent(r, x)
		case "reasoning_content": // from servers that mix Mistral's and OpenAI's formats
			a.think(r, x)
		case "tool_calls":
			for _, c := range x.elements() {
				if a.excess {
					return
				}
				a.mistralCall(r, c)
			}
		}
	}
	if a.odds != nil {
		a.open(r)
		a.shut("")
	}
	if !reason.given() {
		return
	}
	finish, broken := mistralReason(reason)
	if broken {
		if a.form == streamForm {
			a.fail(failure{message: "Mistral did not finish its response.", kind: "server_error", code: "error"})
			return
		}
		a.refuse(r, "Mistral did not finish its response.")
	}
	a.finish(r, finish)
}

func (a *Response) mistralContent(r *reply, v raw) {
	a.text(r, v)
	for _, c := range v.elements() {
		switch kind := c.get("type").string(); kind {
		case "text", "":
			a.text(r, c.get("text"))
		case "thinking":
			thinking := c.get("thinking")
			a.think(r, thinking) // a string, from some servers
			for _, x := range thinking.elements() {
				a.think(r, x.get("text"))
			}
			a.sign(r, c.get("signature"))
		default:
			a.lose(kind)
		}
	}
}

// mistralCall reads a tool call, which comes complete or in chunks. Chunks are joined by
// their id, or by their index. A chunk with neither belongs to the last call. With a name
// it begins a call.
func (a *Response) mistralCall(r *reply, c raw) {
	id := c.get("id")
	f := c.get("function")
	index, indexed := c.get("index").whole()
	n := -1
	switch {
	case len(id) > 2 && id.kind() == '"' && string(id) != `"null"`:
		for i := range r.calls {
			if bytes.Equal(r.calls[i].id, id) {
				n = i
			}
		}
	case indexed && a.form == streamForm:
		id, n = nil, r.callAt(index)
	default:
		id = nil
		if name := f.get("name"); len(name) < 3 {
			n = len(r.calls) - 1
		}
	}
	args := f.get("arguments")
	if args.kind() == '{' { // their SDK accepts objects too
		args = quote(nil, args.compact())
	}
	if n >= 0 {
		a.arguments(r, n, args)
		return
	}
	if n = a.call(r, a.toolID(id), f.get("name"), nil, args); n >= 0 && indexed {
		r.calls[n].index = index
	}
}

func mistralOdds(v raw) raw {
	list := v.get("content")
	if list.kind() != '[' {
		return nil
	}
	var w writer
	w.open('[')
	for _, x := range list.elements() {
		w.open('{')
		mistralToken(&w, x)
		w.key("top_logprobs")
		w.open('[')
		for _, t := range x.get("top_logprobs").elements() {
			w.open('{')
			mistralToken(&w, t)
			w.close('}')
		}
		w.b = append(w.b, "]}"...)
	}
	if len(w.b) == 1 {
		return nil
	}
	w.close(']')
	return w.b
}

func mistralToken(w *writer, x raw) {
	token, p, b := x.get("token"), x.get("logprob"), x.get("bytes")
	if token.kind() != '"' {
		token = raw(`""`)
	}
	if !p.isNumber() {
		p = raw("0")
	}
	if b.kind() != '[' {
		b = raw("null")
	}
	w.keyRaw("token", token)
	w.keyRaw("logprob", p)
	w.keyRaw("bytes", b)
}
