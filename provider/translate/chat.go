package translate

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
)

// chat is the content of an OpenAI chat request, without the plain parameters. These stay
// in translation.top until they are taken.
type chat struct {
	model    string
	messages []message
	tools    []tool
	choice   choice
	parallel raw // true or false; nil: not given
	format   format
	stops    []raw
	max      int64 // tokens; 0: not given
	effort   string
}

// message is one message of the conversation. Developer has become system.
type message struct {
	path      string // "messages[2]."
	role      string
	plain     bool   // the content was one string
	parts     []part // nil: no content
	calls     []call
	callID    string // of the call with this result
	tool      string // the name of that call's function
	name      raw
	reasoning raw      // reasoning_content
	thinking  []raw    // thinking_blocks, objects
	signature raw      // extra_content's, of the text
	prefix    bool     // the response continues this message: Mistral's
	cache     raw      // for a tool's message: the value of Anthropic's cache_control
	left      []string // ids of calls that were left out
}

// part is a piece of content.
type part struct {
	path     string // "messages[2].content[0]."
	kind     string // text, image, audio, file
	text     raw    // a string; text's
	url      url    // image's, or file's data
	detail   string // image's
	data     raw    // audio's base64, a string
	format   string // audio's
	filename raw    // file's
	cache    raw    // the value of Anthropic's cache_control
}

// field is the part's name in errors, by its content.
func (p *part) field() string {
	switch p.kind {
	case "image":
		return p.path + "image_url"
	case "audio":
		return p.path + "input_audio"
	}
	return p.path + p.kind
}

// call is a tool call of the assistant in the history.
type call struct {
	path      string // "messages[2].tool_calls[0]."
	id        string
	name      raw
	arguments raw // a string
	signature raw
	cache     raw // the value of Anthropic's cache_control
}

type tool struct {
	path        string // "tools[0]."
	name        raw
	description raw
	parameters  raw // an object; nil: none
	strict      raw // true or false; nil: not given
	cache       raw
}

// choice is the choice of tools: "", auto, none, required, or named.
type choice struct {
	mode string
	name raw
}

// format is the response's format: "", json_object or json_schema.
type format struct {
	kind                      string
	name, description, schema raw
	strict                    raw
}

// readChat reads the structured fields, and leaves the rest in t.top.
func (t *translation) readChat() chat {
	var c chat
	c.model = t.readModel()
	if stream, _ := t.takeBool(&t.top, "stream"); stream {
		t.req.Stream = true
	}
	t.readStreamOptions()
	c.messages = t.readMessages()
	c.tools = t.readTools()
	c.choice = t.readChoice(&c)
	if v := t.top.take("parallel_tool_calls"); v != nil {
		if !v.isBool() {
			t.invalid("parallel_tool_calls", "is neither true nor false")
		}
		// Without a choice of tools it has no effect.
		if c.choice.mode != "none" && c.choice.mode != "named" && len(c.tools) > 1 || len(c.tools) > 0 && (t.kind == Anthropic || t.kind == Mistral) {
			c.parallel = v
		}
	}
	if v := t.top.peek("top_logprobs"); v.given() && !t.top.peek("logprobs").isTrue() && string(v) != "0" {
		t.invalid("top_logprobs", "is allowed only if logprobs is true")
	}
	c.format = t.readFormat()
	c.stops = t.readStops()
	t.checkStops(&c)
	c.max = t.readMax()
	if v, ok := t.takeString(&t.top, "reasoning_effort"); ok {
		switch c.effort = v.string(); c.effort {
		case "none", "minimal", "low", "medium", "high", "xhigh", "max":
		default:
			t.invalid("reasoning_effort", "is not one of none, minimal, low, medium, high, xhigh, max")
		}
	}
	return c
}

func (t *translation) readModel() string {
	v, ok := t.takeString(&t.top, "model")
	if !ok || len(v) == 2 {
		t.invalid("model", "is missing")
	}
	t.req.Model = v.string()
	return t.req.Model
}

func (t *translation) readStreamOptions() {
	v := t.top.take("stream_options")
	if v == nil {
		return
	}
	if !t.req.Stream {
		t.invalid("stream_options", "is allowed only if stream is true")
	}
	o := t.object("stream_options", v)
	t.req.includeUsage, _ = t.takeBool(&o, "include_usage")
	if o.peek("include_obfuscation").kind() == 'f' {
		o.take("include_obfuscation") // it has no effect here
	}
	t.leftover(&o, map[string]support{"include_obfuscation": {Note: "translated streams are not padded"}})
}

func (t *translation) readMessages() []message {
	v, ok := t.takeArray(&t.top, "messages")
	if !ok {
		t.invalid("messages", "is missing")
	}
	var ms []message
	for i, v := range v.elements() {
		path := "messages[" + strconv.Itoa(i) + "]"
		if v.kind() != '{' {
			t.invalid(path, "is not an object")
			return nil
		}
		if m := t.readMessage(path+".", v); m.role != "function" { // it is left out, and listed
			ms = append(ms, m)
		}
	}
	if ok && len(ms) == 0 {
		t.invalid("messages", "is empty")
	}
	return t.paired(ms)
}

// paired puts tool results in the order of their calls. A provider whose calls have no ids
// assigns them by position. As in OpenAI's API, the results of all calls of a message
// follow it directly, one for each.
func (t *translation) paired(ms []message) []message {
	used := map[string]int{} // ids of calls, and how often they occurred
	for i := 0; i < len(ms); i++ {
		m := &ms[i]
		if m.role == "tool" {
			t.invalid(m.path+"tool_call_id", "answers no call of the message before")
			return nil
		}
		if len(m.calls)+len(m.left) == 0 {
			continue
		}
		end := i + 1
		for end < len(ms) && ms[end].role == "tool" {
			end++
		}
		byID := map[string]int{}
		for n, c := range m.calls {
			if _, twice := byID[c.id]; twice {
				t.invalid(c.path+"id", "is the id of another call of this message")
				return nil
			}
			byID[c.id] = n
		}
		results := make([]message, len(m.calls))
		for j := i + 1; j < end; j++ {
			r := ms[j]
			n, known := byID[r.callID]
			switch {
			case known && results[n].role != "":
				t.invalid(r.path+"tool_call_id", "answers a call that another message answers")
				return nil
			case known:
				// A name that repeats the call's adds nothing.
				if r.tool = m.calls[n].name.string(); r.name != nil && r.name.string() != r.tool {
					t.refuse(r.path+"name", "it is not the name of the function that was called")
				}
				results[n] = r
			case slices.Contains(m.left, r.callID):
				t.refuse(r.path+"tool_call_id", "the call that it answers is not supported")
			default:
				t.invalid(r.path+"tool_call_id", "answers no call of the message before")
				return nil
			}
		}
		for n := range m.calls {
			c := &m.calls[n]
			if results[n].role == "" {
				t.invalid(c.path+"id", "is answered by no message of the role tool")
				return nil
			}
			// Anthropic and Mistral require ids that no two calls of the conversation
			// share.
			if used[c.id]++; used[c.id] > 1 && (t.kind == Anthropic || t.kind == Mistral) {
				c.id += "\x00" + strconv.Itoa(used[c.id]) // fitID makes an id from it
				results[n].callID = c.id
			}
		}
		rest := ms[end:]
		ms = append(append(ms[:i+1:i+1], results...), rest...)
		i += len(results)
	}
	return ms
}

// messageSupport are the reasons why fields of a message are not supported by any kind.
func messageSupport(role string) map[string]support {
	name := support{Note: "its messages have no names"}
	if role == "assistant" {
		name = left("its messages have no names")
	}
	return map[string]support{
		"annotations":   left("its requests have no annotations"),
		"audio":         {Note: "an earlier audio response is stored at OpenAI"},
		"cache_control": left("only Anthropic has it"),
		"function_call": {Note: "it is OpenAI's older form; use tool_calls"},
		"name":          name,
		"prefix":        {Note: "it is Mistral's"},
	}
}

func (t *translation) readMessage(path string, v raw) message {
	o := objectOf(path, v)
	m := message{path: path}
	role, ok := t.takeString(&o, "role")
	if !ok {
		t.invalid(path+"role", "is missing")
	}
	m.role = role.string()
	switch m.role {
	case "developer":
		m.role = "system"
	case "system", "user", "assistant", "tool":
	case "function":
		t.refuse(path+"role", "function is OpenAI's older form; use tool")
		return m
	default:
		t.invalid(path+"role", "is not one of developer, system, user, assistant, tool")
		return m
	}
	t.readContent(&m, o.take("content"))
	switch m.role {
	case "assistant":
		t.readCalls(&m, &o)
		if v, ok := t.takeString(&o, "refusal"); ok { // the assistant's text
			m.parts = append(m.parts, part{path: path + "refusal", kind: "text", text: v})
			m.plain = len(m.parts) == 1
		}
		t.readReasoning(&m, &o)
		if t.kind == Mistral {
			m.prefix, _ = t.takeBool(&o, "prefix")
		}
		if v := o.peek("prefix"); v.kind() == 'f' { // the default
			o.take("prefix")
		}
		for _, name := range []string{"annotations", "tool_calls"} { // empty, as in responses
			if v := o.peek(name); v.kind() == '[' && len(v.compact()) == 2 {
				o.take(name)
			}
		}
	case "tool":
		id, ok := t.takeString(&o, "tool_call_id")
		if !ok {
			t.invalid(path+"tool_call_id", "is missing")
		}
		m.callID = id.string()
		m.name, _ = t.takeString(&o, "name")
	}
	if cache := t.readCache(&o); cache != nil {
		m.mark(cache)
	}
	t.leftover(&o, messageSupport(m.role))
	return m
}

// mark moves a cache marker of the message to Anthropic's place, the last block. The
// block's own marker is kept.
func (m *message) mark(cache raw) {
	switch {
	case m.role == "tool":
		m.cache = cache
	case len(m.calls) > 0:
		m.calls[len(m.calls)-1].cache = cache
	case len(m.parts) > 0 && m.parts[len(m.parts)-1].cache == nil:
		m.parts[len(m.parts)-1].cache = cache
	}
}

// says reports whether the message has any content for a provider.
func (m *message) says() bool {
	return len(m.calls) > 0 || m.reasoning != nil || slices.ContainsFunc(m.parts, func(p part) bool { return p.kind != "text" || len(p.text) > 2 })
}

func (t *translation) readContent(m *message, v raw) {
	switch v.kind() {
	case 0:
	case '"':
		m.plain = true
		m.parts = []part{{path: m.path + "content", kind: "text", text: v}}
	case '[':
		m.parts = []part{}
		for i, v := range v.elements() {
			path := m.path + "content[" + strconv.Itoa(i) + "]"
			if m.role == "assistant" && v.get("type").string() == "thinking" {
				t.readThinking(m, path, v)
			} else if p, ok := t.readPart(path, v); ok {
				m.parts = append(m.parts, p)
			}
		}
	default:
		t.invalid(m.path+"content", "is neither a string nor an array")
	}
	if v == nil && (m.role == "user" || m.role == "system") {
		t.invalid(m.path+"content", "is missing")
	}
}

func (t *translation) readPart(path string, v raw) (part, bool) {
	o := t.object(path, v)
	p := part{path: path + "."}
	kind, ok := t.takeString(&o, "type")
	if !ok {
		t.invalid(path+".type", "is missing")
		return p, false
	}
	switch k := kind.string(); k {
	case "text":
		p.kind = "text"
		if p.text, ok = t.takeString(&o, "text"); !ok {
			t.invalid(path+".text", "is missing")
		}
	case "refusal":
		p.kind = "text"
		if p.text, ok = t.takeString(&o, "refusal"); !ok {
			t.invalid(path+".refusal", "is missing")
		}
	case "image_url":
		p.kind = "image"
		v := o.take("image_url")
		if v.kind() == '"' { // Mistral's shorter form
			p.url = t.readURL(path+".image_url", v)
			break
		}
		image := t.object(path+".image_url", v)
		u, ok := t.takeString(&image, "url")
		if !ok {
			t.invalid(path+".image_url.url", "is missing")
		}
		p.url = t.readURL(path+".image_url.url", u)
		if d, ok := t.takeString(&image, "detail"); ok {
			p.detail = d.string()
			if p.detail == "auto" {
				p.detail = ""
			}
		}
		t.leftover(&image, nil)
	case "document_url": // Mistral's form of a file
		p.kind = "file"
		u, ok := t.takeString(&o, "document_url")
		if !ok {
			t.invalid(path+".document_url", "is missing")
		}
		p.url = t.readURL(path+".document_url", u)
		p.filename, _ = t.takeString(&o, "document_name")
	case "input_audio":
		p.kind = "audio"
		if v := o.peek("input_audio"); v.kind() == '"' && t.kind == Mistral { // its own form
			if p.data = o.take("input_audio"); !isBase64(p.data.text()) {
				t.invalid(path+".input_audio", "is not base64")
			}
			break
		}
		audio := t.object(path+".input_audio", o.take("input_audio"))
		p.data, ok = t.takeString(&audio, "data")
		if !ok || !isBase64(p.data.text()) {
			t.invalid(path+".input_audio.data", "is not base64")
		}
		f, _ := t.takeString(&audio, "format")
		if p.format = f.string(); p.format != "wav" && p.format != "mp3" {
			t.invalid(path+".input_audio.format", "is neither wav nor mp3")
		}
		t.leftover(&audio, nil)
	case "file":
		p.kind = "file"
		file := t.object(path+".file", o.take("file"))
		if u, ok := t.takeString(&file, "file_data"); ok {
			p.url = t.readURL(path+".file.file_data", u)
		} else if file.peek("file_id") == nil {
			t.invalid(path+".file.file_data", "is missing")
		}
		p.filename, _ = t.takeString(&file, "filename")
		if file.peek("file_id") != nil {
			t.leftover(&file, map[string]support{"file_id": {Note: "a stored file is not part of the request, so policy cannot evaluate it"}})
			return p, false
		}
		t.leftover(&file, nil)
	default:
		t.refuse(path+".type", "content of type "+strconv.Quote(k)+" is not known to this gateway")
		return p, false
	}
	p.cache = t.readCache(&o)
	t.leftover(&o, map[string]support{
		"cache_control":           left("only Anthropic has it"),
		"prompt_cache_breakpoint": left("its prompts have no cache markers"),
	})
	return p, true
}

// readThinking reads a chunk of reasoning, which Mistral's format has in the content.
func (t *translation) readThinking(m *message, path string, v raw) {
	o := t.object(path, v)
	o.take("type")
	o.take("closed") // the response's marker of complete reasoning
	thinking := o.take("thinking")
	texts := []raw{thinking}
	if thinking.kind() == '[' {
		texts = nil
		for _, x := range thinking.elements() {
			texts = append(texts, x.get("text"))
		}
	}
	for _, x := range texts {
		if x.kind() != '"' {
			t.invalid(path+".thinking", "is neither a string nor an array of texts")
			return
		}
	}
	if m.reasoning != nil {
		texts = append([]raw{m.reasoning}, texts...)
	}
	if m.reasoning = joined(texts); len(m.reasoning) == 2 {
		m.reasoning = nil
	}
	if signature, ok := t.takeString(&o, "signature"); ok {
		if m.signature = signature; t.kind != Mistral {
			m.signature = nil
			t.hint(path+".signature", "it is Mistral's signature")
		}
	}
	t.leftover(&o, nil)
}

// readCache reads a cache marker in the prompt: OpenAI's, or Anthropic's by its own name.
// Only Anthropic supports them.
func (t *translation) readCache(o *object) raw {
	if t.kind != Anthropic {
		return nil
	}
	if v := o.take("cache_control"); v != nil {
		if v.kind() != '{' {
			t.invalid(o.path+"cache_control", "is not an object")
		}
		return v
	}
	v := o.take("prompt_cache_breakpoint")
	if v == nil {
		return nil
	}
	mark := t.object(o.path+"prompt_cache_breakpoint", v)
	mark.take("mode")
	if ttl := mark.take("ttl"); ttl != nil && ttl.string() != "30m" {
		t.hint(mark.path+"ttl", "Anthropic keeps a prompt for an hour at most")
		return nil
	}
	t.leftover(&mark, nil)
	return raw(`{"type":"ephemeral","ttl":"1h"}`) // the request is for at least 30 minutes
}

// url is the place of an image or a file: an address, or the data.
type url struct {
	address raw    // a string; nil: data
	media   string // of the data
	data    raw    // a string of base64
}

func (t *translation) readURL(path string, v raw) url {
	text := v.text()
	rest, ok := bytes.CutPrefix(text, []byte("data:"))
	if !ok {
		lower := bytes.ToLower(text[:min(len(text), 8)])
		if !bytes.HasPrefix(lower, []byte("https://")) && !bytes.HasPrefix(lower, []byte("http://")) {
			t.invalid(path, "is neither an http nor a data URL")
		}
		return url{address: v}
	}
	head, data, ok := bytes.Cut(rest, []byte(","))
	media, found := bytes.CutSuffix(head, []byte(";base64"))
	if !ok || !found || !isBase64(data) {
		t.invalid(path, "is a data URL, but not of base64")
		return url{}
	}
	media, _, _ = bytes.Cut(media, []byte(";")) // parameters, such as a charset
	if len(media) == 0 {
		t.invalid(path, "is a data URL without a media type")
	}
	name := string(bytes.ToLower(media))
	if usual, ok := mediaNames[name]; ok {
		name = usual
	}
	return url{media: name, data: quoted(data)}
}

// mediaNames are other names that clients use for media types, with the registered ones.
var mediaNames = map[string]string{
	"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png", "image/x-webp": "image/webp",
	"application/x-pdf": "application/pdf", "text/txt": "text/plain",
}

func (t *translation) readCalls(m *message, o *object) {
	v, ok := t.takeArray(o, "tool_calls")
	if !ok {
		return
	}
	for i, v := range v.elements() {
		path := m.path + "tool_calls[" + strconv.Itoa(i) + "]"
		o := t.object(path, v)
		c := call{path: path + "."}
		if kind := o.take("type"); kind != nil && kind.string() != "function" {
			t.refuse(path+".type", "only functions can be called")
			if id := o.peek("id"); id.kind() == '"' {
				m.left = append(m.left, id.string())
			}
			continue
		}
		if n, ok := o.peek("index").whole(); ok && n == int64(i) {
			o.take("index") // streams have it, and some clients keep it
		}
		id, ok := t.takeString(&o, "id")
		if !ok {
			t.invalid(path+".id", "is missing")
		}
		c.id = id.string()
		f := t.object(path+".function", o.take("function"))
		if c.name, ok = t.takeString(&f, "name"); !ok {
			t.invalid(path+".function.name", "is missing")
		}
		if v := f.peek("arguments"); v.kind() == '{' { // Mistral's format also allows objects
			c.arguments = quote(nil, f.take("arguments"))
		} else if c.arguments, ok = t.takeString(&f, "arguments"); !ok {
			c.arguments = raw(`""`)
		}
		t.leftover(&f, nil)
		c.signature = t.readExtra(&o, "google", "thought_signature")
		t.leftover(&o, nil)
		m.calls = append(m.calls, c)
	}
}

func (t *translation) readReasoning(m *message, o *object) {
	if v, ok := t.takeString(o, "reasoning_content"); ok && len(v) > 2 {
		m.reasoning = v
	}
	blocks, _ := t.takeArray(o, "thinking_blocks")
	for i, v := range blocks.elements() {
		if v.kind() != '{' {
			t.invalid(m.path+"thinking_blocks["+strconv.Itoa(i)+"]", "is not an object")
			return
		}
		m.thinking = append(m.thinking, v)
	}
	if t.kind != Anthropic && len(m.thinking) > 0 {
		t.hint(m.path+"thinking_blocks", "they are Anthropic's")
		m.thinking = nil
	}
	whose, name := "google", "thought_signature"
	if t.kind == Mistral {
		whose, name = "mistral", "signature"
	}
	if v := t.readExtra(o, whose, name); v != nil {
		m.signature = v
	}
}

// readExtra reads a signature that a response had beside OpenAI's fields. A signature of
// another provider is not sent: it would not be valid there.
func (t *translation) readExtra(o *object, whose, name string) raw {
	v := o.take("extra_content")
	if v == nil {
		return nil
	}
	extra := t.object(o.path+"extra_content", v)
	var signature raw
	if whose == map[string]string{Gemini: "google", Mistral: "mistral"}[t.kind] {
		own := t.object(extra.path+whose, extra.take(whose))
		signature, _ = t.takeString(&own, name)
		t.leftover(&own, nil)
	}
	t.leftover(&extra, map[string]support{
		"google":  left("it is Gemini's signature"),
		"mistral": left("it is Mistral's signature"),
	})
	return signature
}

// argumentsObject returns the arguments of a call, a string, as an object. A model can
// write a text that is not an object, or stop inside it. Such a text is put into the object
// that Anthropic documents for it. See
// https://docs.anthropic.com/en/docs/agents-and-tools/tool-use/fine-grained-tool-streaming
// for its form.
func (t *translation) argumentsObject(c call) raw {
	text := c.arguments.text()
	if len(bytes.TrimSpace(text)) == 0 {
		return raw("{}")
	}
	v, ok := parse(text)
	if !ok || v.kind() != '{' {
		var w writer
		w.open('{')
		w.keyRaw("INVALID_JSON", c.arguments)
		w.close('}')
		return w.b
	}
	return v
}

func (t *translation) readTools() []tool {
	v, ok := t.takeArray(&t.top, "tools")
	if !ok {
		return nil
	}
	var ts []tool
	for i, v := range v.elements() {
		path := "tools[" + strconv.Itoa(i) + "]"
		o := t.object(path, v)
		kind, _ := t.takeString(&o, "type")
		if k := kind.string(); k != "function" {
			t.refuse(path+".type", "only functions can be declared")
			continue
		}
		f := t.object(path+".function", o.take("function"))
		x := tool{path: path + "."}
		if x.name, ok = t.takeString(&f, "name"); !ok {
			t.invalid(path+".function.name", "is missing")
		}
		x.description, _ = t.takeString(&f, "description")
		x.parameters = f.take("parameters")
		if x.parameters != nil && x.parameters.kind() != '{' {
			t.invalid(path+".function.parameters", "is not an object")
		}
		x.parameters = objectSchema(x.parameters)
		if v := f.take("strict"); v != nil {
			if x.strict = v; !v.isBool() {
				t.invalid(path+".function.strict", "is neither true nor false")
			}
		}
		t.leftover(&f, nil)
		x.cache = t.readCache(&o)
		t.leftover(&o, map[string]support{"cache_control": left("only Anthropic has it")})
		ts = append(ts, x)
	}
	return ts
}

// objectSchema returns the schema of a function's parameters with a type. Providers require
// the type and OpenAI does not: arguments are always an object.
func objectSchema(schema raw) raw {
	if schema.kind() != '{' || schema.get("type").given() {
		return schema
	}
	if len(schema.compact()) == 2 {
		return raw(`{"type":"object"}`)
	}
	w := writer{b: make([]byte, 0, len(schema)+20)}
	w.open('{')
	w.keyString("type", "object")
	for name, v := range schema.members() {
		if string(name) != "type" { // null
			w.text(name)
			w.b = append(w.b, ':')
			w.raw(v)
		}
	}
	w.close('}')
	return w.b
}

// readChoice reads tool_choice. For allowed_tools, the other tools are not offered.
func (t *translation) readChoice(c *chat) choice {
	v := t.top.take("tool_choice")
	switch v.kind() {
	case 0:
		return choice{}
	case '"':
		switch mode := v.string(); mode {
		case "auto", "none", "required", "any":
			if mode == "any" { // Mistral's name
				mode = "required"
			}
			if len(c.tools) == 0 && mode != "required" {
				return choice{} // there are no tools
			}
			return choice{mode: mode}
		}
	case '{':
		o := objectOf("tool_choice.", v)
		kind := o.take("type").string()
		switch kind {
		case "function":
			f := t.object("tool_choice.function", o.take("function"))
			name, ok := t.takeString(&f, "name")
			if !ok {
				t.invalid("tool_choice.function.name", "is missing")
			} else if !declared(c.tools, name) {
				t.invalid("tool_choice.function.name", "is not one of the tools")
			}
			t.leftover(&f, nil)
			t.leftover(&o, nil)
			return choice{mode: "named", name: name}
		case "allowed_tools":
			return t.readAllowed(c, &o)
		case "custom":
			t.refuse("tool_choice.type", "only functions can be declared")
			return choice{}
		}
	}
	t.invalid("tool_choice", "is not one of auto, none, required, a function's name or allowed tools")
	return choice{}
}

func (t *translation) readAllowed(c *chat, o *object) choice {
	allowed := t.object("tool_choice.allowed_tools", o.take("allowed_tools"))
	mode, _ := t.takeString(&allowed, "mode")
	if m := mode.string(); m != "auto" && m != "required" {
		t.invalid("tool_choice.allowed_tools.mode", "is neither auto nor required")
	}
	list, _ := t.takeArray(&allowed, "tools")
	names := map[string]bool{} // the tools, and whether they are allowed
	for _, x := range c.tools {
		names[x.name.string()] = false
	}
	for i, v := range list.elements() {
		name := v.get("function", "name").string()
		if _, is := names[name]; !is {
			t.invalid(fmt.Sprintf("tool_choice.allowed_tools.tools[%d]", i), "is not one of the tools")
			return choice{}
		}
		names[name] = true
	}
	var kept []tool
	for _, x := range c.tools {
		if names[x.name.string()] {
			kept = append(kept, x)
		}
	}
	if len(kept) == 0 {
		t.invalid("tool_choice.allowed_tools.tools", "is empty")
	}
	c.tools = kept
	t.leftover(&allowed, nil)
	t.leftover(o, nil)
	return choice{mode: mode.string()}
}

func declared(ts []tool, name raw) bool {
	for _, x := range ts {
		if x.name.string() == name.string() {
			return true
		}
	}
	return false
}

func (t *translation) readFormat() format {
	v := t.top.take("response_format")
	if v == nil {
		return format{}
	}
	o := t.object("response_format", v)
	kind, _ := t.takeString(&o, "type")
	var f format
	switch k := kind.string(); k {
	case "text":
	case "json_object":
		f.kind = k
	case "json_schema":
		f.kind = k
		s := t.object("response_format.json_schema", o.take("json_schema"))
		var ok bool
		if f.name, ok = t.takeString(&s, "name"); !ok {
			t.invalid("response_format.json_schema.name", "is missing")
		}
		f.description, _ = t.takeString(&s, "description")
		if f.schema = s.take("schema"); f.schema != nil && f.schema.kind() != '{' {
			t.invalid("response_format.json_schema.schema", "is not an object")
		}
		if v := s.take("strict"); v != nil {
			if f.strict = v; !v.isBool() {
				t.invalid("response_format.json_schema.strict", "is neither true nor false")
			}
		}
		t.leftover(&s, nil)
	default:
		t.invalid("response_format.type", "is not one of text, json_object, json_schema")
	}
	t.leftover(&o, nil)
	return f
}

func (t *translation) readStops() []raw {
	v := t.top.take("stop")
	switch v.kind() {
	case 0:
		return nil
	case '"':
		return []raw{v}
	case '[':
		var stops []raw
		for _, s := range v.elements() {
			if s.kind() != '"' {
				t.invalid("stop", "has an element that is not a string")
			}
			stops = append(stops, s)
		}
		return stops
	}
	t.invalid("stop", "is neither a string nor an array of strings")
	return nil
}

// readMax reads both names of the maximum number of tokens.
func (t *translation) readMax() int64 {
	n, _, has := t.takeWhole(&t.top, "max_completion_tokens")
	old, _, hasOld := t.takeWhole(&t.top, "max_tokens")
	switch {
	case has && hasOld && n != old:
		t.invalid("max_tokens", "differs from max_completion_tokens")
	case !has && !hasOld:
		return 0
	case !has:
		n = old
	}
	if n < 1 {
		t.invalid("max_completion_tokens", "is below 1")
	}
	return n
}

// carry copies numbers. Each of OpenAI's names is followed by the kind's name. Values
// without an effect are not sent: some models reject a penalty of 0.
func (t *translation) carry(pairs ...string) {
	for i := 0; i < len(pairs); i += 2 {
		n, v, ok := t.takeBounded(pairs[i])
		if !ok {
			continue
		}
		switch pairs[i] {
		case "frequency_penalty", "presence_penalty":
			ok = n != 0
		case "n":
			ok = n != 1
		}
		if ok {
			t.w.keyRaw(pairs[i+1], v)
		}
	}
}

// takeBounded takes a number for which the kind has bounds: see bounds.
func (t *translation) takeBounded(name string) (float64, raw, bool) {
	v, ok := t.takeNumber(&t.top, name)
	if !ok {
		return 0, nil, false
	}
	n, _ := v.number()
	if b, bounded := boundOf(t.kind, name); bounded && (n < b.from || n > b.to) {
		t.refuse(name, b.why())
		return 0, nil, false
	}
	return n, v, true
}

// checkStops compares the stop sequences with those that the kind accepts.
func (t *translation) checkStops(c *chat) {
	if b, ok := boundOf(t.kind, "stop"); ok && float64(len(c.stops)) > b.to {
		t.refuse("stop", b.why())
		c.stops = nil
	}
	if t.kind != Anthropic {
		return
	}
	c.stops = slices.DeleteFunc(c.stops, func(s raw) bool {
		if blank(s) {
			t.refuse("stop", "it accepts no stop sequence of white space only")
		}
		return blank(s)
	})
}

// blank reports whether a string has only white space.
func blank(s raw) bool { return len(bytes.TrimSpace(s.text())) == 0 }

// emptySchema is the parameters of a function without parameters.
const emptySchema = `{"type":"object","properties":{}}`
