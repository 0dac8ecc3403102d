package translate

import (
	"bytes"
	"fmt"
	"strconv"
)

// chat is what an OpenAI chat request says, apart from the plain parameters,
// which stay in translation.top until the kind takes them.
type chat struct {
	model    string
	messages []message
	tools    []tool
	choice   choice
	parallel raw // true or false; nil: not said
	format   format
	stops    []raw
	max      int64 // tokens; 0: not said
	effort   string
}

// message is one of the conversation. Developer is system by now.
type message struct {
	path      string // "messages[2]."
	role      string
	plain     bool   // the content was one string
	parts     []part // nil: no content
	calls     []call
	callID    string // of the call that a tool's message answers
	tool      string // the name of that call's function
	name      raw
	reasoning raw   // reasoning_content
	thinking  []raw // thinking_blocks, objects
	signature raw   // extra_content's, of the text
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
	cache    raw    // what Anthropic's cache_control is to be
}

// field is the part as errors name it: by what it holds.
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
}

type tool struct {
	path        string // "tools[0]."
	name        raw
	description raw
	parameters  raw // an object; nil: none
	strict      raw // true or false; nil: not said
	cache       raw
}

// choice is of the tools: "", auto, none, required, or named.
type choice struct {
	mode string
	name raw
}

// format is of the answer: "", json_object or json_schema.
type format struct {
	kind                      string
	name, description, schema raw
	strict                    raw
}

// readChat reads what takes reading, and leaves the rest in t.top.
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
		if len(c.tools) > 0 { // without tools it asks for nothing
			c.parallel = v
		}
	}
	if v := t.top.peek("top_logprobs"); v.given() && !t.top.peek("logprobs").isTrue() && string(v) != "0" {
		t.invalid("top_logprobs", "is only allowed when logprobs is true")
	}
	c.format = t.readFormat()
	c.stops = t.readStops()
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
		t.invalid("stream_options", "is only allowed when stream is true")
	}
	o := t.object("stream_options", v)
	t.req.includeUsage, _ = t.takeBool(&o, "include_usage")
	if o.peek("include_obfuscation").kind() == 'f' {
		o.take("include_obfuscation") // there is none
	}
	t.leftover(&o, map[string]fate{"include_obfuscation": {Note: "translated streams are not padded"}})
}

func (t *translation) readMessages() []message {
	v, ok := t.takeArray(&t.top, "messages")
	if !ok {
		t.invalid("messages", "is missing")
	}
	var ms []message
	names := map[string]string{} // of functions, by call id; the latest counts
	for i, v := range v.elements() {
		path := "messages[" + strconv.Itoa(i) + "]"
		if v.kind() != '{' {
			t.invalid(path, "is not an object")
			return nil
		}
		m := t.readMessage(path+".", v)
		if m.role == "function" {
			continue // left out, and listed
		}
		for j := range m.calls {
			names[m.calls[j].id] = m.calls[j].name.string()
		}
		t.req.calls += len(m.calls)
		if m.role == "tool" {
			m.tool, ok = names[m.callID]
			if !ok {
				t.invalid(m.path+"tool_call_id", "answers no call of an earlier message")
			}
			// A name that only repeats the call's says nothing new.
			if m.name != nil && m.name.string() != m.tool {
				t.refuse(m.path+"name", "it is not the name of the function that was called")
			}
			m.name = nil
		}
		ms = append(ms, m)
	}
	if ok && len(ms) == 0 && t.err == nil {
		t.invalid("messages", "is empty")
	}
	return ms
}

// Why the parts of a message that no kind carries are refused.
func messageFates() map[string]fate {
	return map[string]fate{
		"annotations":   {Note: "where the words of an answer came from is not said back there"},
		"audio":         {Note: "an audio answer of before is kept at OpenAI under its id"},
		"function_call": {Note: "it is OpenAI's older form; use tool_calls"},
		"name":          {Note: "messages have no names there"},
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
		if v, ok := t.takeString(&o, "refusal"); ok { // it is what the assistant said
			m.parts = append(m.parts, part{path: path + "refusal", kind: "text", text: v})
			m.plain = len(m.parts) == 1
		}
		t.readReasoning(&m, &o)
		for _, name := range []string{"annotations", "tool_calls"} { // as answers have them when there are none
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
	t.leftover(&o, messageFates())
	return m
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
			if p, ok := t.readPart(path, v); ok {
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
		image := t.object(path+".image_url", o.take("image_url"))
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
	case "input_audio":
		p.kind = "audio"
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
			t.leftover(&file, map[string]fate{"file_id": {Note: "a stored file is not part of the request, so it cannot be judged"}})
			return p, false
		}
		t.leftover(&file, nil)
	default:
		t.refuse(path+".type", "content of type "+strconv.Quote(k)+" is not one that this gateway knows")
		return p, false
	}
	p.cache = t.readCache(&o)
	t.leftover(&o, map[string]fate{
		"cache_control":           {Note: "it is Anthropic's"},
		"prompt_cache_breakpoint": {Note: "prompts are not cached at marks there"},
	})
	return p, true
}

// readCache takes a mark in the prompt up to which it is worth caching: OpenAI's
// own, or Anthropic's under its own name. Only Anthropic has them.
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
		t.refuse(mark.path+"ttl", "Anthropic keeps a prompt for an hour at most")
		return nil
	}
	t.leftover(&mark, nil)
	return raw(`{"type":"ephemeral","ttl":"1h"}`) // at least 30 minutes is what was asked
}

// url is of an image or a file: to fetch, or the data itself.
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
	media, _, _ = bytes.Cut(media, []byte(";")) // parameters, as of a charset
	if len(media) == 0 {
		t.invalid(path, "is a data URL without a media type")
	}
	return url{media: string(bytes.ToLower(media)), data: quoted(data)}
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
			continue
		}
		if n, ok := o.peek("index").whole(); ok && n == int64(i) {
			o.take("index") // streams have it; some clients keep it
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
		if c.arguments, ok = t.takeString(&f, "arguments"); !ok {
			c.arguments = raw(`""`)
		}
		t.leftover(&f, nil)
		c.signature = t.readExtra(&o, "google", "thought_signature")
		t.leftover(&o, nil)
		m.calls = append(m.calls, c)
	}
}

func (t *translation) readReasoning(m *message, o *object) {
	m.reasoning, _ = t.takeString(o, "reasoning_content")
	if len(m.reasoning) == 2 {
		m.reasoning = nil
	}
	blocks, _ := t.takeArray(o, "thinking_blocks")
	for i, v := range blocks.elements() {
		if v.kind() != '{' {
			t.invalid(m.path+"thinking_blocks["+strconv.Itoa(i)+"]", "is not an object")
			return
		}
		m.thinking = append(m.thinking, v)
	}
	if t.kind == Mistral {
		m.signature = t.readExtra(o, "mistral", "signature")
	} else {
		m.signature = t.readExtra(o, "google", "thought_signature")
	}
}

// readExtra takes a signature that an answer had beside OpenAI's fields. That
// of another provider cannot be carried: it would be no proof of anything.
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
	t.leftover(&extra, map[string]fate{
		"google":  {Note: "it is Gemini's signature"},
		"mistral": {Note: "it is Mistral's signature"},
	})
	return signature
}

// argumentsObject is the arguments of a call as an object, which they are a string of.
func (t *translation) argumentsObject(c call) raw {
	text := c.arguments.text()
	if len(bytes.TrimSpace(text)) == 0 {
		return raw("{}")
	}
	v, ok := parse(text)
	if !ok || v.kind() != '{' {
		t.invalid(c.path+"function.arguments", "is not the text of a JSON object, which "+Name(t.kind)+" needs")
		return raw("{}")
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
		if v := f.take("strict"); v != nil {
			if x.strict = v; !v.isBool() {
				t.invalid(path+".function.strict", "is neither true nor false")
			}
		}
		t.leftover(&f, nil)
		x.cache = t.readCache(&o)
		t.leftover(&o, map[string]fate{"cache_control": {Note: "it is Anthropic's"}})
		ts = append(ts, x)
	}
	return ts
}

// readChoice reads tool_choice. allowed_tools needs no word of the provider's:
// the tools that are not allowed are not offered.
func (t *translation) readChoice(c *chat) choice {
	v := t.top.take("tool_choice")
	switch v.kind() {
	case 0:
		return choice{}
	case '"':
		switch mode := v.string(); mode {
		case "auto", "none", "required":
			if len(c.tools) == 0 && mode != "required" {
				return choice{} // nothing to choose from
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
	names := map[string]bool{} // of the tools, and whether they are allowed
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

// readMax reads both names of the bound on the answer's tokens.
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

// carry copies numbers under the names that the kind has for them, each name of
// OpenAI's followed by the kind's. What asks for nothing is not sent: some models
// refuse a penalty of 0.
func (t *translation) carry(pairs ...string) {
	for i := 0; i < len(pairs); i += 2 {
		v, ok := t.takeNumber(&t.top, pairs[i])
		if !ok {
			continue
		}
		n, _ := v.number()
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

// emptySchema is the parameters of a function that takes none.
const emptySchema = `{"type":"object","properties":{}}`
