package translate

import (
	"encoding/base64"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Anthropic's messages API, version 2023-06-01, as of its Python SDK 2.12.

const defaultMaxTokens = 8192

func (t *translation) anthropicChat(c chat) {
	t.req.Path = "/v1/messages"
	t.req.Header["anthropic-version"] = "2023-06-01"
	w := &t.w
	w.open('{')
	w.keyString("model", c.model)

	t.anthropicOrder(c)
	system, turns := t.anthropicTurns(c.messages)
	limit := c.max
	if limit == 0 {
		if limit = t.o.DefaultMaxTokens; limit <= 0 {
			limit = defaultMaxTokens
		}
	}
	if c.effort != "" && c.effort != "none" && (c.choice.mode == "required" || c.choice.mode == "named") {
		t.refuse("reasoning_effort", "reasoning is not available if tool_choice forces a tool")
		c.effort = ""
	}
	thinking, effort, limit := t.anthropicThinking(c, limit)
	w.keyInt("max_tokens", limit)
	if len(system) > 0 {
		w.keyRaw("system", system)
	}
	w.keyRaw("messages", turns)
	t.anthropicSampling(c.model, thinking != "" && c.effort != "none")
	t.anthropicJSON(&c)
	if len(c.stops) > 0 {
		w.key("stop_sequences")
		w.list(c.stops)
	}
	if t.req.Stream {
		w.key("stream")
		w.bool(true)
	}
	t.anthropicTools(c)
	if thinking != "" {
		w.keyRaw("thinking", []byte(thinking))
	}
	t.anthropicFormat(c.format, effort)
	t.anthropicUser()
	switch tier := t.top.peek("service_tier").string(); tier {
	case "":
	case "auto":
		t.top.take("service_tier")
		w.keyString("service_tier", "auto")
	case "default":
		t.top.take("service_tier")
		w.keyString("service_tier", "standard_only")
	default:
		t.top.take("service_tier")
		t.refuse("service_tier", "its tiers are auto and standard_only")
	}
	t.anthropicCache()
	w.close('}')
}

func (w *writer) list(vs []raw) {
	w.open('[')
	for _, v := range vs {
		w.raw(v)
	}
	w.close(']')
}

// anthropicOrder rejects conversations whose end the model does not accept.
func (t *translation) anthropicOrder(c chat) {
	last := message{}
	for _, m := range c.messages {
		if m.role != "system" && (m.says() || m.role == "tool") {
			last = m
		}
	}
	if _, _, claude := claudeVersion(c.model); last.role == "assistant" && claude && !claudeBefore(c.model, 4, 6) {
		t.cannot(last.path+"role", "Claude 4.6 and later do not continue an assistant's message; end with a user's or a tool's message")
	}
}

// anthropicTurns writes the system's blocks and the turns. Turns alternate. All results of
// one turn's tools are together at the beginning of the next. A message without content in
// Anthropic's format is left out.
func (t *translation) anthropicTurns(ms []message) (system, turns []byte) {
	var sys, out writer
	sys.b = append(sys.b, '[')
	out.b = append(out.b, '[')
	role := ""
	for i := range ms {
		m := &ms[i]
		if m.role == "system" {
			for j := range m.parts {
				t.anthropicPart(&sys, m, &m.parts[j])
			}
			continue
		}
		as := m.role
		if as == "tool" {
			as = "user"
		}
		var blocks writer
		switch m.role {
		case "tool":
			t.anthropicResult(&blocks, m)
		case "assistant":
			t.anthropicAssistant(&blocks, m)
		default:
			for j := range m.parts {
				t.anthropicPart(&blocks, m, &m.parts[j])
			}
		}
		if len(blocks.b) == 0 {
			continue
		}
		if as != role {
			if role != "" {
				out.b = append(out.b, "]}"...)
			}
			role = as
			out.open('{')
			out.keyString("role", role)
			out.key("content")
			out.open('[')
		}
		out.raw(blocks.b)
	}
	if role == "" {
		t.cannot("messages", "it requires a message that is not the system's, and that is not empty")
		return nil, []byte("[]")
	}
	out.b = append(out.b, "]}]"...)
	if len(sys.b) > 1 {
		sys.close(']')
		system = sys.b
	}
	return system, out.b
}

// anthropicAssistant writes the blocks of a message in their original order: each block of
// thinking has its position. Thinking at the end is left out, since Anthropic rejects it as
// a turn's last block.
func (t *translation) anthropicAssistant(w *writer, m *message) {
	parts, calls := m.parts, m.calls
	said, solid := int64(0), 0 // characters of text; bytes written up to the last block that is not thinking
	text := func(upTo int64) {
		for len(parts) > 0 && said < upTo {
			p := parts[0]
			n := int64(utf8.RuneCount(p.text.text()))
			if said+n <= upTo {
				parts = parts[1:]
				said += n
			} else {
				whole := p.text.string()
				cut := 0
				for range upTo - said {
					_, size := utf8.DecodeRuneInString(whole[cut:])
					cut += size
				}
				rest := p
				rest.text = quote(nil, []byte(whole[cut:]))
				parts = append([]part{rest}, parts[1:]...)
				p.text, p.cache = quote(nil, []byte(whole[:cut])), nil
				said = upTo
			}
			before := len(w.b)
			if t.anthropicPart(w, m, &p); len(w.b) > before {
				solid = len(w.b)
			}
		}
	}
	call := func(upTo int64) {
		for len(calls) > 0 && int64(len(m.calls)-len(calls)) < upTo {
			c := calls[0]
			calls = calls[1:]
			w.open('{')
			w.keyString("type", "tool_use")
			w.keyString("id", fitID(t.kind, c.id))
			w.keyRaw("name", c.name)
			w.keyRaw("input", t.argumentsObject(c))
			if c.cache != nil {
				w.keyRaw("cache_control", c.cache)
			}
			w.close('}')
			solid = len(w.b)
		}
	}
	for i, b := range m.thinking {
		// The block is sent as Anthropic made it, without our index and order.
		o := objectOf(m.path+"thinking_blocks["+strconv.Itoa(i)+"].", b)
		o.take("index")
		after := t.object(o.path+"after", o.take("after"))
		chars, _, _ := t.takeWhole(&after, "content")
		before, _, _ := t.takeWhole(&after, "tool_calls")
		t.leftover(&after, nil)
		text(chars)
		call(before)
		kind := o.take("type").string()
		w.open('{')
		w.keyString("type", kind)
		names := []string{"thinking", "signature"}
		if kind == "redacted_thinking" {
			names = []string{"data"}
		} else if kind != "thinking" {
			t.invalid(o.path+"type", "is neither thinking nor redacted_thinking")
		}
		for _, name := range names {
			v, ok := t.takeString(&o, name)
			if !ok {
				t.invalid(o.path+name, "is missing")
				v = raw(`""`)
			}
			w.keyRaw(name, v)
		}
		w.close('}')
		t.leftover(&o, nil)
	}
	if m.reasoning != nil && len(m.thinking) == 0 {
		t.hint(m.path+"reasoning_content", "thinking must be signed; send thinking_blocks back unchanged")
	}
	text(math.MaxInt64)
	call(math.MaxInt64)
	w.b = w.b[:solid]
}

func (t *translation) anthropicPart(w *writer, m *message, p *part) {
	switch p.kind {
	case "text":
		if blank(p.text) {
			return // Anthropic rejects a text of white space only
		}
		w.open('{')
		w.keyString("type", "text")
		w.keyRaw("text", p.text)
	case "image":
		if m.role == "system" || m.role == "assistant" {
			t.refuse(p.field(), "it accepts only text in the "+m.role+"'s messages")
			return
		}
		if p.detail != "" {
			t.refuse(p.path+"image_url.detail", "its images have no level of detail")
		}
		if p.url.address == nil && !slices.Contains([]string{"image/jpeg", "image/png", "image/gif", "image/webp"}, p.url.media) {
			t.refuse(p.path+"image_url.url", "its images are jpeg, png, gif or webp, not "+p.url.media)
			return
		}
		w.open('{')
		w.keyString("type", "image")
		t.anthropicSource(w, p)
	case "file":
		if m.role != "user" {
			t.refuse(p.field(), "it accepts only text in the "+m.role+"'s messages")
			return
		}
		var text []byte
		switch {
		case p.url.address != nil || p.url.media == "application/pdf":
		case p.url.media == "text/plain":
			text, _ = base64.StdEncoding.AppendDecode([]byte{}, p.url.data.text())
			if !utf8.Valid(text) {
				t.refuse(p.path+"file.file_data", "its texts are UTF-8")
				return
			}
		default:
			t.refuse(p.path+"file.file_data", "its documents are PDF and plain text, not "+p.url.media)
			return
		}
		w.open('{')
		w.keyString("type", "document")
		if text == nil {
			t.anthropicSource(w, p)
		} else {
			w.key("source")
			w.open('{')
			w.keyString("type", "text")
			w.keyString("media_type", "text/plain")
			w.key("data")
			w.text(text)
			w.close('}')
		}
		if p.filename != nil {
			w.keyRaw("title", p.filename)
		}
	default:
		t.refuse(p.field(), "it accepts no audio")
		return
	}
	if p.cache != nil {
		w.keyRaw("cache_control", p.cache)
	}
	w.close('}')
}

func (t *translation) anthropicSource(w *writer, p *part) {
	w.key("source")
	w.open('{')
	if p.url.address != nil {
		w.keyString("type", "url")
		w.keyRaw("url", p.url.address)
	} else {
		w.keyString("type", "base64")
		w.keyString("media_type", p.url.media)
		w.keyRaw("data", p.url.data)
	}
	w.close('}')
}

func (t *translation) anthropicResult(w *writer, m *message) {
	w.open('{')
	w.keyString("type", "tool_result")
	w.keyString("tool_use_id", fitID(t.kind, m.callID))
	switch {
	case m.parts == nil: // null: the tool returned nothing
	case m.plain && blank(m.parts[0].text):
	case m.plain:
		w.keyRaw("content", m.parts[0].text)
	default:
		w.key("content")
		w.open('[')
		for i := range m.parts {
			t.anthropicPart(w, m, &m.parts[i])
		}
		w.close(']')
	}
	if m.cache != nil {
		w.keyRaw("cache_control", m.cache)
	}
	w.close('}')
}

func (t *translation) anthropicTools(c chat) {
	w := &t.w
	if len(c.tools) > 0 {
		w.key("tools")
		w.open('[')
		for _, x := range c.tools {
			w.open('{')
			w.keyRaw("name", x.name)
			if x.description != nil {
				w.keyRaw("description", x.description)
			}
			w.key("input_schema")
			if x.parameters == nil {
				x.parameters = raw(emptySchema)
			}
			t.anthropicSchema(x)
			w.raw(x.parameters)
			if x.strict != nil {
				w.keyRaw("strict", x.strict)
			}
			if x.cache != nil {
				w.keyRaw("cache_control", x.cache)
			}
			w.close('}')
		}
		w.close(']')
	}
	mode := map[string]string{"auto": "auto", "none": "none", "required": "any", "named": "tool"}[c.choice.mode]
	single := c.parallel.kind() == 'f' && mode != "none"
	if mode == "" && single {
		mode = "auto"
	}
	if mode == "" {
		return
	}
	w.key("tool_choice")
	w.open('{')
	w.keyString("type", mode)
	if mode == "tool" {
		w.keyRaw("name", c.choice.name)
	}
	if single {
		w.key("disable_parallel_tool_use")
		w.bool(true)
	}
	w.close('}')
}

// anthropicSchema rejects parameters that Anthropic is known to reject.
func (t *translation) anthropicSchema(x tool) {
	path := x.path + "function.parameters."
	if x.parameters.get("type").string() != "object" {
		t.cannot(path+"type", "the parameters of a function must be an object")
	}
	for _, name := range []string{"anyOf", "oneOf", "allOf"} {
		if x.parameters.get(name).given() {
			t.cannot(path+name, "it is not accepted at the root of a function's parameters")
		}
	}
}

// JSONTool is the tool with which Claude returns JSON without a schema. It must call the
// tool, and the arguments are the response.
const JSONTool = "aid_json_response"

func (t *translation) anthropicJSON(c *chat) {
	if c.format.kind != "json_object" {
		return
	}
	c.format = format{}
	if len(c.tools) > 0 || c.effort != "" && c.effort != "none" {
		t.refuse("response_format", "it returns json_object by a tool, so tools and reasoning_effort must be absent; use json_schema")
		return
	}
	t.req.asJSON = true
	c.tools = []tool{{name: raw(`"` + JSONTool + `"`), description: raw(`"Give the whole response, as the members of one JSON object."`),
		parameters: raw(`{"type":"object","additionalProperties":true}`)}}
	c.choice = choice{mode: "named", name: c.tools[0].name}
	c.parallel = raw("false")
}

// anthropicThinking returns the thinking and effort settings. Claude 4.6 and later choose
// the length of their thinking, and accept an effort. Earlier models accept a budget of
// tokens, which counts towards max_tokens and is at least 1024.
func (t *translation) anthropicThinking(c chat, limit int64) (thinking, effort string, total int64) {
	switch c.effort {
	case "":
		return "", "", limit
	case "none":
		return `{"type":"disabled"}`, "", limit
	}
	if !budgetsThinking(c.model) {
		if c.effort == "minimal" {
			t.refuse("reasoning_effort", "its lowest effort is low")
			return "", "", limit
		}
		return `{"type":"adaptive","display":"summarized"}`, c.effort, limit
	}
	budget := map[string]int64{"minimal": 1024, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 24576, "max": 32000}[c.effort]
	switch {
	case c.max == 0:
		limit += budget // the default is for the response
	case limit <= 1024:
		t.refuse("reasoning_effort", "reasoning needs at least 1024 tokens, and max_tokens leaves fewer")
		return "", "", limit
	case budget >= limit:
		budget = max(1024, limit/2)
	}
	return `{"type":"enabled","budget_tokens":` + strconv.FormatInt(budget, 10) + `}`, "", limit
}

// anthropicSampling sends temperature and top_p to models before Claude 4.7. Later models
// accept neither and respond with 400. The default of both is 1. Models that think accept
// no temperature, and those from 4.1 on accept one of the two.
func (t *translation) anthropicSampling(model string, thinks bool) {
	_, _, claude := claudeVersion(model)
	warm := false
	for _, name := range []string{"temperature", "top_p"} {
		n, v, ok := t.takeBounded(name)
		switch {
		case !ok || n == 1:
		case claude && !claudeBefore(model, 4, 7):
			t.refuse(name, "Claude 4.7 and later do not accept it; use reasoning_effort")
		case name == "temperature" && thinks:
			t.refuse(name, "it is not accepted with reasoning_effort")
		case name == "top_p" && thinks && n < 0.95:
			t.refuse(name, "with reasoning_effort it must be at least 0.95")
		case warm && claude && !claudeBefore(model, 4, 1):
			t.refuse(name, "Claude 4.1 and later accept one of temperature and top_p")
		default:
			warm = true
			t.w.keyRaw(name, v)
		}
	}
}

// budgetsThinking reports whether the model is a Claude before 4.6.
func budgetsThinking(model string) bool { return claudeBefore(model, 4, 6) }

// claudeVersion reads the version in a name. It is after the family
// (claude-opus-4-5-20251101) or, in older names, before it (claude-3-7-sonnet-20250219). A
// Claude without a version counts as new: 0, 0, true.
func claudeVersion(model string) (major, minor int, claude bool) {
	_, name, claude := strings.Cut(model, "claude")
	var version []int
	for _, p := range strings.FieldsFunc(name, func(r rune) bool { return strings.ContainsRune("-.@/:", r) }) {
		if n, err := strconv.Atoi(p); err == nil && n >= 0 && n < 100 && len(version) < 2 {
			version = append(version, n)
		} else if len(version) > 0 {
			break
		}
	}
	version = append(version, 0, 0)
	return version[0], version[1], claude
}

// claudeBefore reports whether the model is a Claude before a version.
func claudeBefore(model string, major, minor int) bool {
	m, n, claude := claudeVersion(model)
	return claude && m > 0 && (m < major || m == major && n < minor)
}

func (t *translation) anthropicFormat(f format, effort string) {
	if f.description != nil {
		t.refuse("response_format.json_schema.description", "its schemas have no separate description; write it into the schema")
	}
	if f.kind == "json_schema" && f.schema == nil {
		t.refuse("response_format.json_schema", "it returns JSON only with a schema; add one")
		f = format{}
	}
	if f.kind == "" && effort == "" {
		return
	}
	w := &t.w
	w.key("output_config")
	w.open('{')
	if effort != "" {
		w.keyString("effort", effort)
	}
	if f.kind != "" {
		w.key("format")
		w.open('{')
		w.keyString("type", "json_schema")
		w.keyRaw("schema", f.schema)
		w.close('}')
	}
	w.close('}')
}

// anthropicUser writes user_id, the only member of Anthropic's metadata.
func (t *translation) anthropicUser() {
	var id raw
	for _, name := range []string{"safety_identifier", "user"} {
		v, ok := t.takeString(&t.top, name)
		switch {
		case !ok:
		case id == nil:
			id = v
		case v.string() != id.string():
			t.hint(name, "safety_identifier is already sent as the user")
		}
	}
	if v := t.top.peek("metadata"); v != nil {
		o := t.object("metadata", t.top.take("metadata"))
		u, ok := t.takeString(&o, "user_id")
		switch {
		case !ok:
		case id == nil:
			id = u
		case u.string() != id.string():
			t.hint("metadata.user_id", "safety_identifier or user has another value")
		}
		for _, name := range o.names {
			t.hint("metadata."+name, "its metadata has user_id only")
		}
	}
	if id != nil {
		t.w.key("metadata")
		t.w.open('{')
		t.w.keyRaw("user_id", id)
		t.w.close('}')
	}
}

// anthropicCache writes the cache marker at the end of the prompt, which OpenAI sets
// automatically.
func (t *translation) anthropicCache() {
	v := t.top.take("prompt_cache_options")
	if v == nil {
		return
	}
	o := t.object("prompt_cache_options", v)
	mode, _ := t.takeString(&o, "mode")
	if ttl, ok := t.takeString(&o, "ttl"); ok && ttl.string() != "30m" {
		t.hint("prompt_cache_options.ttl", "30m is the only lifetime")
		return
	}
	t.leftover(&o, nil)
	switch mode.string() {
	case "explicit":
	case "", "implicit":
		t.w.keyRaw("cache_control", []byte(`{"type":"ephemeral","ttl":"1h"}`))
	default:
		t.invalid("prompt_cache_options.mode", "is neither implicit nor explicit")
	}
}
