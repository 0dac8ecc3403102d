package translate

import "bytes"

// block is one of Anthropic's content blocks in a stream.
type block struct {
	index     int64
	kind      string
	call      int
	thinking  []byte // escaped, between quotes
	signature []byte
}

// anthropicReason returns OpenAI's finish reason for a stop reason.
func anthropicReason(v raw) string {
	switch v.string() {
	case "max_tokens", "model_context_window_exceeded":
		return "length"
	case "tool_use":
		return "tool_calls"
	case "refusal":
		return "content_filter"
	}
	return "stop" // end_turn, stop_sequence, pause_turn
}

func (a *Response) anthropicWhole(v raw) {
	if v.get("type").string() != "message" {
		return
	}
	a.anthropicHead(v)
	r := a.reply(0)
	for _, b := range v.get("content").elements() {
		a.anthropicBlock(r, b)
	}
	a.anthropicStop(r, v)
}

func (a *Response) anthropicHead(v raw) {
	a.setID(v.get("id"))
	a.setModel(v.get("model"))
	u := v.get("usage")
	a.setTier(u.get("service_tier"))
	a.anthropicUsage(u)
}

// anthropicUsage reads the usage. Streams send it at the start and again at the end, with
// or without the input's figures. The figures are totals.
func (a *Response) anthropicUsage(u raw) {
	fresh := a.usage.input - a.usage.cached - a.usage.written
	for name, v := range u.members() {
		n, ok := v.whole()
		switch string(name) {
		case "input_tokens":
			if ok {
				fresh = n
			}
		case "cache_read_input_tokens":
			if ok {
				a.usage.cached = n
			}
		case "cache_creation_input_tokens":
			if ok {
				a.usage.written = n
			}
		case "output_tokens":
			if ok {
				a.usage.output = n
			}
		case "output_tokens_details":
			if n, ok := v.get("thinking_tokens").whole(); ok {
				a.usage.reasoning = n
			}
		default:
			continue
		}
		a.usage.known = true
	}
	a.usage.input = fresh + a.usage.cached + a.usage.written
}

// anthropicBlock reads a complete block.
func (a *Response) anthropicBlock(r *reply, b raw) {
	switch kind := b.get("type").string(); kind {
	case "text":
		a.text(r, b.get("text"))
		if c := b.get("citations"); c.kind() == '[' && len(c) > 2 {
			a.lose("citations")
		}
	case "thinking":
		a.think(r, b.get("thinking"))
		a.thought(r, "thinking", b.get("thinking").inner(), b.get("signature").inner())
	case "redacted_thinking":
		a.thought(r, "redacted_thinking", b.get("data").inner(), nil)
	case "tool_use":
		var args raw
		if in := b.get("input"); in.kind() == '{' {
			args = quote(nil, in.compact())
		}
		if a.isJSON(b) {
			a.text(r, args)
			return
		}
		a.call(r, a.toolID(b.get("id")), b.get("name"), nil, args)
	default:
		a.lose(kind)
	}
}

// isJSON reports whether a block is the JSON response that was requested by a tool.
func (a *Response) isJSON(b raw) bool { return a.req.asJSON && b.get("name").string() == JSONTool }

// thought writes a complete block of thinking, as it must come back.
func (a *Response) thought(r *reply, kind string, text, signature []byte) {
	w := writer{b: make([]byte, 0, len(text)+len(signature)+80)}
	w.open('{')
	w.keyInt("index", int64(len(r.thinking))) // clients merge lists by it
	w.keyString("type", kind)
	if kind == "thinking" {
		w.keyRaw("thinking", quoted(text))
		w.keyRaw("signature", quoted(signature))
	} else {
		w.keyRaw("data", quoted(text))
	}
	if r.chars > 0 || len(r.calls) > 0 { // its position, counted in the other lists
		w.key("after")
		w.open('{')
		w.keyInt("content", int64(r.chars))
		w.keyInt("tool_calls", int64(len(r.calls)))
		w.close('}')
	}
	w.close('}')
	if a.form != streamForm {
		r.thinking = append(r.thinking, w.b)
		return
	}
	r.thinking = append(r.thinking, nil) // only their number is needed
	out := a.open(r)
	out.b = append(out.b, `"thinking_blocks":[`...)
	out.b = append(out.b, w.b...)
	out.b = append(out.b, ']')
	a.shut("")
}

// quoted adds the quotes that inner removed.
func quoted(inner []byte) []byte {
	b := make([]byte, 0, len(inner)+2)
	b = append(b, '"')
	b = append(b, inner...)
	return append(b, '"')
}

func (a *Response) anthropicStop(r *reply, v raw) {
	reason := v.get("stop_reason")
	if !reason.given() {
		return
	}
	finish := anthropicReason(reason)
	if finish == "tool_calls" && a.req.asJSON && len(r.calls) == 0 {
		finish = "stop"
	}
	if finish == "content_filter" {
		a.refuse(r, scrub(v.get("stop_details", "explanation").string()))
	}
	a.finish(r, finish)
}

func (a *Response) anthropicEvent(v raw) {
	// One pass finds the members of every event.
	var kind, delta, index raw
	for name, x := range v.members() {
		switch string(name) {
		case "type":
			kind = x
		case "delta":
			delta = x
		case "index":
			index = x
		}
	}
	switch string(kind) {
	case `"content_block_delta"`:
		a.anthropicDelta(index, delta)
	case `"ping"`:
		a.comment([]byte(" ping"))
	case `"message_start"`:
		a.anthropicHead(v.get("message"))
		a.begin(a.reply(0))
	case `"content_block_start"`:
		a.anthropicOpen(index, v.get("content_block"))
	case `"content_block_stop"`:
		a.anthropicShut(index)
	case `"message_delta"`:
		a.anthropicUsage(v.get("usage"))
		a.anthropicStop(a.reply(0), delta)
	case `"message_stop"`:
		a.finishStream()
	case `"error"`:
		e, _ := a.errorOf(v)
		a.fail(e)
	}
	// Anthropic adds types of events, and its documentation requires clients to ignore
	// unknown ones.
}

func (a *Response) anthropicOpen(index, b raw) {
	if len(a.blocks) >= maxBlocks {
		a.excess = true
		return
	}
	r := a.reply(0)
	n, _ := index.whole()
	x := block{index: n, kind: b.get("type").string(), call: -1}
	switch x.kind {
	case "text":
		a.text(r, b.get("text"))
	case "thinking":
		a.think(r, b.get("thinking"))
		x.thinking = bytes.Clone(b.get("thinking").inner())
		x.signature = bytes.Clone(b.get("signature").inner())
	case "tool_use":
		var args raw
		if in := b.get("input"); in.kind() == '{' && len(in.compact()) > 2 {
			args = quote(nil, in.compact())
		}
		if a.isJSON(b) {
			x.kind = JSONTool
			a.text(r, args)
			break
		}
		x.call = a.call(r, a.toolID(b.get("id")), b.get("name"), nil, args)
	default:
		a.anthropicBlock(r, b)
	}
	a.blocks = append(a.blocks, x)
}

func (a *Response) anthropicDelta(index, delta raw) {
	var kind, said raw
	for name, x := range delta.members() {
		switch string(name) {
		case "type":
			kind = x
		case "text", "partial_json", "thinking", "signature":
			said = x
		}
	}
	r := a.reply(0)
	if string(kind) == `"text_delta"` {
		a.text(r, said)
		return
	}
	n, _ := index.whole()
	var b *block
	for i := range a.blocks {
		if a.blocks[i].index == n {
			b = &a.blocks[i]
		}
	}
	if b == nil {
		return
	}
	switch string(kind) {
	case `"input_json_delta"`:
		if b.kind == JSONTool {
			a.text(r, said)
			return
		}
		a.arguments(r, b.call, said)
	case `"thinking_delta"`:
		a.think(r, said)
		if len(b.thinking)+len(said) <= maxEvent {
			b.thinking = append(b.thinking, said.inner()...)
		}
	case `"signature_delta"`:
		if len(b.signature)+len(said) <= maxEvent {
			b.signature = append(b.signature, said.inner()...)
		}
	case `"citations_delta"`:
		a.lose("citations")
	}
}

func (a *Response) anthropicShut(index raw) {
	n, _ := index.whole()
	for i, b := range a.blocks {
		if b.index != n {
			continue
		}
		r := a.reply(0)
		switch b.kind {
		case "thinking":
			a.thought(r, "thinking", b.thinking, b.signature)
		case "tool_use":
			a.endCall(r, b.call)
		case JSONTool:
			if r.chars == 0 {
				a.text(r, raw(`"{}"`))
			}
		}
		a.blocks = append(a.blocks[:i], a.blocks[i+1:]...)
		return
	}
}
