package translate

// Mistral's v1/chat/completions, as of its Python SDK 3.7. It rejects unknown fields, so
// only its own fields are sent.

func (t *translation) mistralChat(c chat) {
	t.req.Path = "/v1/chat/completions"
	w := &t.w
	w.open('{')
	w.keyString("model", c.model)
	w.key("messages")
	w.open('[')
	last := message{}
	for i := range c.messages {
		m := &c.messages[i]
		if m.role == "assistant" && !m.says() {
			continue // Mistral rejects an empty message
		}
		if last.role == "tool" && m.role != "tool" && m.role != "assistant" {
			t.cannot(m.path+"role", "after a tool's message an assistant's message must follow")
		}
		t.mistralMessage(m)
		last = *m
	}
	w.close(']')
	if last.role != "user" && last.role != "tool" && !last.prefix {
		t.cannot(last.path+"role", "a conversation must end with a user's or a tool's message; with \"prefix\": true the response continues the assistant's")
	}
	if t.req.Stream {
		w.key("stream")
		w.bool(true)
	}
	t.mistralTools(c)
	if v, ok := t.takeNumber(&t.top, "random_seed"); ok {
		if t.top.peek("seed") != nil {
			t.invalid("random_seed", "is given beside seed, which is the same")
		}
		w.keyRaw("random_seed", v)
	}
	if on, given := t.takeBool(&t.top, "safe_prompt"); given {
		w.key("safe_prompt")
		w.bool(on)
	}
	if v, ok := t.takeString(&t.top, "prompt_mode"); ok {
		w.keyRaw("prompt_mode", v)
	}
	t.carry("temperature", "temperature", "top_p", "top_p", "seed", "random_seed", "n", "n",
		"frequency_penalty", "frequency_penalty", "presence_penalty", "presence_penalty", "top_logprobs", "top_logprobs")
	if on, given := t.takeBool(&t.top, "logprobs"); given {
		w.key("logprobs")
		w.bool(on)
	}
	if c.max > 0 {
		w.keyInt("max_tokens", c.max)
	}
	if len(c.stops) > 0 {
		w.key("stop")
		w.list(c.stops)
	}
	t.mistralFormat(c.format)
	if c.effort != "" {
		w.keyString("reasoning_effort", c.effort)
	}
	if v := t.top.take("metadata"); v != nil && string(v) != "{}" {
		if v.kind() != '{' {
			t.invalid("metadata", "is not an object")
		}
		w.keyRaw("metadata", v)
	}
	if v, ok := t.takeString(&t.top, "prompt_cache_key"); ok {
		w.keyRaw("prompt_cache_key", v)
	}
	if v, ok := t.takeString(&t.top, "service_tier"); ok {
		switch v.string() {
		case "auto":
			w.keyString("service_tier", "auto")
		case "default":
			w.keyString("service_tier", "standard_only")
		default:
			t.refuse("service_tier", "its tiers are auto and standard_only")
		}
	}
	t.mistralPrediction()
	w.close('}')
}

func (t *translation) mistralMessage(m *message) {
	w := &t.w
	w.open('{')
	w.keyString("role", m.role)
	if m.prefix {
		w.key("prefix")
		w.bool(true)
	}
	switch {
	case m.parts == nil && m.reasoning == nil:
		if m.role == "tool" {
			w.keyRaw("content", []byte("null"))
		}
	case m.plain && m.reasoning == nil:
		w.keyRaw("content", m.parts[0].text)
	default:
		w.key("content")
		w.open('[')
		if m.reasoning != nil {
			w.open('{')
			w.keyString("type", "thinking")
			w.key("thinking")
			w.b = append(w.b, `[{"type":"text","text":`...)
			w.b = append(w.b, m.reasoning...)
			w.b = append(w.b, "}]"...)
			if m.signature.kind() == '"' {
				w.keyRaw("signature", m.signature)
			}
			w.close('}')
		}
		for i := range m.parts {
			t.mistralPart(m, &m.parts[i])
		}
		w.close(']')
	}
	if len(m.calls) > 0 {
		t.openaiCalls(m)
	}
	if m.role == "tool" {
		w.keyString("tool_call_id", fitID(t.kind, m.callID))
		w.keyString("name", m.tool)
	}
	w.close('}')
}

func (t *translation) mistralPart(m *message, p *part) {
	w := &t.w
	if p.kind != "text" && m.role != "user" {
		t.refuse(p.field(), "it accepts only text in the "+m.role+"'s messages")
		return
	}
	switch p.kind {
	case "text":
		if len(p.text) == 2 && m.reasoning != nil {
			return
		}
		w.open('{')
		w.keyString("type", "text")
		w.keyRaw("text", p.text)
		w.close('}')
	case "image":
		t.openaiImage(p)
	case "audio":
		w.open('{')
		w.keyString("type", "input_audio")
		w.keyRaw("input_audio", p.data)
		w.close('}')
	case "file":
		if p.url.address == nil && p.url.media != "application/pdf" {
			t.refuse(p.path+"file.file_data", "its documents are PDF, not "+p.url.media)
			return
		}
		w.open('{')
		w.keyString("type", "document_url")
		w.key("document_url")
		w.dataURL(p.url)
		if p.filename != nil {
			w.keyRaw("document_name", p.filename)
		}
		w.close('}')
	}
}

func (t *translation) mistralTools(c chat) {
	w := &t.w
	if len(c.tools) > 0 {
		w.key("tools")
		w.open('[')
		for _, x := range c.tools {
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
			if x.strict != nil {
				w.keyRaw("strict", x.strict)
			}
			w.b = append(w.b, "}}"...)
		}
		w.close(']')
	}
	switch c.choice.mode {
	case "":
	case "required":
		w.keyString("tool_choice", "any")
	case "named":
		w.key("tool_choice")
		w.b = append(w.b, `{"type":"function","function":{"name":`...)
		w.b = append(w.b, c.choice.name...)
		w.b = append(w.b, "}}"...)
	default:
		w.keyString("tool_choice", c.choice.mode)
	}
	if c.parallel != nil {
		w.keyRaw("parallel_tool_calls", c.parallel)
	}
}

func (t *translation) mistralFormat(f format) {
	if f.kind == "" {
		return
	}
	w := &t.w
	w.key("response_format")
	w.open('{')
	if f.kind == "json_schema" && f.schema == nil {
		t.refuse("response_format.json_schema", "it must have a schema")
		f.kind = "text"
	}
	w.keyString("type", f.kind)
	if f.kind == "json_schema" {
		w.key("json_schema")
		w.open('{')
		w.keyRaw("name", f.name)
		if f.description != nil {
			w.keyRaw("description", f.description)
		}
		w.keyRaw("schema", f.schema)
		if f.strict != nil {
			w.keyRaw("strict", f.strict)
		}
		w.close('}')
	}
	w.close('}')
}

// mistralPrediction sends a prediction of one text.
func (t *translation) mistralPrediction() {
	v := t.top.take("prediction")
	if v == nil {
		return
	}
	o := t.object("prediction", v)
	o.take("type")
	content := o.take("content")
	t.leftover(&o, nil)
	if content.kind() == '[' {
		var texts []raw
		for _, p := range content.elements() {
			texts = append(texts, p.get("text"))
		}
		if len(texts) != 1 {
			t.refuse("prediction.content", "it must be one text")
			return
		}
		content = texts[0]
	}
	if content.kind() != '"' {
		t.invalid("prediction.content", "is neither a string nor an array of texts")
		return
	}
	t.w.key("prediction")
	t.w.open('{')
	t.w.keyString("type", "content")
	t.w.keyRaw("content", content)
	t.w.close('}')
}
