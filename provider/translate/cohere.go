package translate

import "slices"

// Cohere's v2/chat, as of its Python SDK 7.3.

func (t *translation) cohereChat(c chat) {
	t.req.Path = "/v2/chat"
	w := &t.w
	w.open('{')
	w.keyString("model", c.model)
	w.key("messages")
	w.open('[')
	for i := range c.messages {
		if m := &c.messages[i]; m.role != "assistant" || m.says() { // Cohere rejects an empty message
			t.cohereMessage(m)
		}
	}
	w.close(']')
	w.key("stream")
	w.bool(t.req.Stream)
	t.cohereTools(c)
	t.carry("temperature", "temperature", "top_p", "p", "seed", "seed",
		"frequency_penalty", "frequency_penalty", "presence_penalty", "presence_penalty")
	if c.max > 0 {
		w.keyInt("max_tokens", c.max)
	}
	if len(c.stops) > 0 {
		w.key("stop_sequences")
		w.list(c.stops)
	}
	if on, _ := t.takeBool(&t.top, "logprobs"); on {
		w.key("logprobs")
		w.bool(true)
	}
	if c.format.kind != "" {
		w.key("response_format")
		w.open('{')
		w.keyString("type", "json_object")
		if c.format.schema != nil {
			w.keyRaw("json_schema", c.format.schema)
		}
		w.close('}')
		if c.format.description != nil {
			t.refuse("response_format.json_schema.description", "its schemas have no separate description; write it into the schema")
		}
	}
	if c.effort != "" {
		w.key("thinking")
		w.open('{')
		if c.effort == "none" {
			w.keyString("type", "disabled")
		} else {
			w.keyString("type", "enabled")
			if budget := map[string]int64{"minimal": 512, "low": 2048, "medium": 8192, "high": 24576}[c.effort]; budget > 0 {
				w.keyInt("token_budget", budget)
			}
		}
		w.close('}')
	}
	w.close('}')
}

func (t *translation) cohereMessage(m *message) {
	w := &t.w
	w.open('{')
	w.keyString("role", m.role)
	if m.role == "tool" {
		w.keyString("tool_call_id", m.callID)
	}
	thinks := m.reasoning != nil && len(m.calls) == 0
	switch {
	case m.parts == nil && m.role == "tool":
		w.keyString("content", "")
	case m.parts == nil && !thinks:
	case m.plain && !thinks:
		if len(m.parts[0].text) > 2 || len(m.calls) == 0 {
			w.keyRaw("content", m.parts[0].text)
		}
	default:
		w.key("content")
		w.open('[')
		if thinks {
			w.open('{')
			w.keyString("type", "thinking")
			w.keyRaw("thinking", m.reasoning)
			w.close('}')
		}
		for i := range m.parts {
			t.coherePart(m, &m.parts[i])
		}
		w.close(']')
	}
	if len(m.calls) > 0 {
		if m.reasoning != nil {
			w.keyRaw("tool_plan", m.reasoning)
		}
		t.openaiCalls(m)
	}
	w.close('}')
}

// openaiCalls writes calls in OpenAI's format, which Cohere and Mistral share.
func (t *translation) openaiCalls(m *message) {
	w := &t.w
	w.key("tool_calls")
	w.open('[')
	for _, c := range m.calls {
		w.open('{')
		w.keyString("id", fitID(t.kind, c.id))
		w.keyString("type", "function")
		w.key("function")
		w.open('{')
		w.keyRaw("name", c.name)
		w.keyRaw("arguments", c.arguments)
		w.b = append(w.b, "}}"...)
	}
	w.close(']')
}

func (t *translation) coherePart(m *message, p *part) {
	w := &t.w
	switch p.kind {
	case "text":
		w.open('{')
		w.keyString("type", "text")
		w.keyRaw("text", p.text)
		w.close('}')
	case "image":
		if m.role != "user" {
			t.refuse(p.field(), "it accepts only text in the "+m.role+"'s messages")
			return
		}
		t.openaiImage(p)
	case "audio":
		t.refuse(p.field(), "it accepts no audio")
	case "file":
		t.refuse(p.field(), "it accepts no files in a message")
	}
}

// openaiImage writes an image in OpenAI's format, which Cohere and Mistral share.
func (t *translation) openaiImage(p *part) {
	w := &t.w
	w.open('{')
	w.keyString("type", "image_url")
	w.key("image_url")
	w.open('{')
	w.key("url")
	w.dataURL(p.url)
	switch p.detail {
	case "":
	case "low", "high":
		w.keyString("detail", p.detail)
	default:
		t.refuse(p.path+"image_url.detail", "its levels are low and high")
	}
	w.b = append(w.b, "}}"...)
}

func (w *writer) dataURL(u url) {
	if u.address != nil {
		w.raw(u.address)
		return
	}
	w.due()
	head := quote(nil, []byte("data:"+u.media+";base64,"))
	w.b = append(w.b, head[:len(head)-1]...)
	w.b = append(w.b, u.data[1:]...)
}

func (t *translation) cohereTools(c chat) {
	w := &t.w
	if c.choice.mode == "named" { // it is the only tool offered
		c.tools = slices.DeleteFunc(c.tools, func(x tool) bool { return x.name.string() != c.choice.name.string() })
	}
	strict := 0
	if len(c.tools) > 0 {
		w.key("tools")
		w.open('[')
		for _, x := range c.tools {
			if x.strict.isTrue() {
				strict++
			}
			w.open('{')
			w.keyString("type", "function")
			w.key("function")
			w.open('{')
			w.keyRaw("name", x.name)
			if x.description != nil {
				w.keyRaw("description", x.description)
			}
			w.key("parameters")
			if x.parameters == nil {
				w.raw([]byte(emptySchema))
			} else {
				w.raw(x.parameters)
			}
			w.b = append(w.b, "}}"...)
		}
		w.close(']')
	}
	switch {
	case strict == 0:
	case strict == len(c.tools):
		w.key("strict_tools")
		w.bool(true)
	default:
		for _, x := range c.tools {
			if x.strict.isTrue() {
				t.refuse(x.path+"function.strict", "it must be the same for all tools")
			}
		}
	}
	switch c.choice.mode {
	case "none":
		w.keyString("tool_choice", "NONE")
	case "required", "named":
		w.keyString("tool_choice", "REQUIRED")
	}
	if c.parallel.kind() == 'f' {
		t.refuse("parallel_tool_calls", "the model decides how many tools it calls at once")
	}
}
