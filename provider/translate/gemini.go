package translate

import (
	"bytes"
	"slices"
	"strings"
)

// Gemini's generateContent, v1beta, as of the google-genai Python SDK 3.4.

func (t *translation) geminiChat(c chat) {
	t.geminiPath(c.model)
	old := budgetsGemini(c.model)
	w := &t.w
	w.open('{')
	system, contents := t.geminiContents(c.messages, old)
	w.keyRaw("contents", contents)
	if len(system) > 0 {
		w.keyRaw("systemInstruction", system)
	}
	t.geminiTools(c)

	w.key("generationConfig")
	w.open('{')
	at := len(w.b)
	t.carry("temperature", "temperature", "top_p", "topP", "seed", "seed",
		"presence_penalty", "presencePenalty", "frequency_penalty", "frequencyPenalty", "n", "candidateCount")
	if c.max > 0 {
		w.keyInt("maxOutputTokens", c.max)
	}
	if len(c.stops) > 0 {
		w.key("stopSequences")
		w.list(c.stops)
	}
	if on, _ := t.takeBool(&t.top, "logprobs"); on {
		w.key("responseLogprobs")
		w.bool(true)
		if top, ok := t.takeNumber(&t.top, "top_logprobs"); ok {
			w.keyRaw("logprobs", top)
		}
	}
	t.geminiFormat(c.format)
	t.geminiThinking(c.effort, old)
	if len(w.b) == at { // no content
		w.b = w.b[:at-len(`"generationConfig":{`)]
		w.b = bytes.TrimSuffix(w.b, []byte(","))
	} else {
		w.close('}')
	}

	if v, ok := t.takeString(&t.top, "service_tier"); ok {
		switch tier := v.string(); tier {
		case "auto":
		case "default":
			w.keyString("serviceTier", "standard")
		case "flex", "priority":
			w.keyString("serviceTier", tier)
		case "fast": // OpenAI's other name for priority
			w.keyString("serviceTier", "priority")
		default:
			t.refuse("service_tier", "its tiers are standard, flex and priority")
		}
	}
	if c.parallel.kind() == 'f' {
		t.refuse("parallel_tool_calls", "the model decides how many tools it calls at once")
	}
	w.close('}')
}

func (t *translation) geminiPath(model string) {
	name, ok := t.geminiModel(model)
	if !ok {
		return
	}
	t.req.Path = "/" + t.geminiVersion() + "/" + name + ":generateContent"
	if t.req.Stream {
		t.req.Path = "/" + t.geminiVersion() + "/" + name + ":streamGenerateContent?alt=sse"
	}
}

func (t *translation) geminiVersion() string {
	if t.o.GeminiVersion == "" {
		return "v1beta"
	}
	return t.o.GeminiVersion
}

// geminiModel is the model as a path: "models/gemini-2.5-pro".
func (t *translation) geminiModel(model string) (string, bool) {
	folder, name, ok := strings.Cut(model, "/")
	if !ok {
		folder, name = "models", model
	}
	// The name becomes part of a path, so it must be only a name.
	odd := strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	})
	if folder != "models" && folder != "tunedModels" || name == "" || odd || strings.Trim(name, ".") == "" {
		t.invalid("model", "is not the name of a Gemini model")
		return "", false
	}
	return folder + "/" + name, true
}

// budgetsGemini reports whether the model is older than Gemini 3. A model without a version
// counts as new.
func budgetsGemini(model string) bool {
	_, rest, ok := strings.Cut(model, "gemini-")
	if !ok || rest == "" {
		return false
	}
	return rest[0] == '1' || rest[0] == '2'
}

// noSignature is the documented placeholder for a call without a signature: one that Gemini
// did not make, or whose signature is lost. Gemini 3 and later reject a call without any.
// See https://ai.google.dev/gemini-api/docs/thought-signatures for its use.
const noSignature = `"skip_thought_signature_validator"`

func (t *translation) geminiContents(ms []message, old bool) (system, contents []byte) {
	var sys, out writer
	out.b = append(out.b, '[')
	role := ""
	for i := range ms {
		m := &ms[i]
		if m.role == "system" {
			for j := range m.parts {
				t.geminiPart(&sys, m, &m.parts[j], old)
			}
			continue
		}
		as := "user"
		if m.role == "assistant" {
			as = "model"
		}
		var parts writer
		switch m.role {
		case "tool":
			t.geminiResult(&parts, m)
		case "assistant":
			t.geminiAssistant(&parts, m, old)
		default:
			for j := range m.parts {
				t.geminiPart(&parts, m, &m.parts[j], old)
			}
		}
		if len(parts.b) == 0 {
			continue // a message without content is left out, since a turn without parts is rejected
		}
		if as != role {
			if role != "" {
				out.b = append(out.b, "]}"...)
			}
			role = as
			out.open('{')
			out.keyString("role", role)
			out.key("parts")
			out.open('[')
		}
		out.raw(parts.b)
	}
	if role == "" {
		t.cannot("messages", "it requires a message that is not the system's, and that is not empty")
		return nil, []byte("[]")
	}
	out.b = append(out.b, "]}]"...)
	if len(sys.b) > 0 {
		system = slices.Concat([]byte(`{"parts":[`), sys.b, []byte("]}"))
	}
	return system, out.b
}

func (t *translation) geminiAssistant(w *writer, m *message, old bool) {
	if m.reasoning != nil {
		w.open('{')
		w.keyRaw("text", m.reasoning)
		w.key("thought")
		w.bool(true)
		w.close('}')
	}
	signed := m.signature
	for i := range m.parts {
		p := &m.parts[i]
		if p.kind != "text" || i < len(m.parts)-1 || signed == nil {
			t.geminiPart(w, m, p, old)
			continue
		}
		w.open('{')
		w.keyRaw("text", p.text)
		w.keyRaw("thoughtSignature", signed)
		w.close('}')
		signed = nil
	}
	if signed != nil { // from a text that is empty
		w.open('{')
		w.keyString("text", "")
		w.keyRaw("thoughtSignature", signed)
		w.close('}')
	}
	for i, c := range m.calls {
		w.open('{')
		w.key("functionCall")
		w.open('{')
		if id := geminiID(c.id); id != "" {
			w.keyString("id", id)
		}
		w.keyRaw("name", c.name)
		w.keyRaw("args", t.argumentsObject(c))
		w.close('}')
		switch {
		case c.signature.kind() == '"':
			w.keyRaw("thoughtSignature", c.signature)
		case i == 0 && !old: // of parallel calls only the first is signed
			w.keyRaw("thoughtSignature", []byte(noSignature))
		}
		w.close('}')
	}
}

// geminiID is a call's id. It is empty for an id that was made here because Gemini sent
// none. Gemini assigns such results by their order: see paired.
func geminiID(id string) string {
	if strings.HasPrefix(id, ownID) {
		return ""
	}
	return id
}

func (t *translation) geminiResult(w *writer, m *message) {
	w.open('{')
	w.key("functionResponse")
	w.open('{')
	if id := geminiID(m.callID); id != "" {
		w.keyString("id", id)
	}
	w.keyString("name", m.tool)
	w.key("response")
	if m.plain {
		if v, ok := parse(m.parts[0].text.text()); ok && v.kind() == '{' {
			w.raw(v)
			w.b = append(w.b, "}}"...)
			return
		}
	}
	// output is Google's name for the result of a function.
	w.open('{')
	w.key("output")
	var texts []raw
	for _, p := range m.parts {
		if p.kind != "text" {
			t.refuse(p.field(), "it accepts only text as the result of a function")
			continue
		}
		texts = append(texts, p.text)
	}
	switch {
	case m.parts == nil:
		w.raw([]byte("null"))
	case len(texts) == 1:
		w.raw(texts[0])
	default:
		w.list(texts)
	}
	w.b = append(w.b, "}}}"...)
}

func (t *translation) geminiPart(w *writer, m *message, p *part, old bool) {
	if p.kind != "text" && m.role != "user" {
		t.refuse(p.field(), "it accepts only text in the "+m.role+"'s messages")
		return
	}
	switch p.kind {
	case "text":
		if len(p.text) == 2 {
			return // Gemini rejects an empty text
		}
		w.open('{')
		w.keyRaw("text", p.text)
	case "image":
		w.open('{')
		t.geminiData(w, p)
		switch {
		case p.detail == "":
		case old:
			t.refuse(p.path+"image_url.detail", "images have no level of detail before Gemini 3")
		case p.detail == "low", p.detail == "high":
			w.key("mediaResolution")
			w.open('{')
			w.keyString("level", "MEDIA_RESOLUTION_"+strings.ToUpper(p.detail))
			w.close('}')
		default:
			t.refuse(p.path+"image_url.detail", "its levels are low and high")
		}
	case "audio":
		w.open('{')
		w.key("inlineData")
		w.open('{')
		w.keyString("mimeType", "audio/"+p.format)
		w.keyRaw("data", p.data)
		w.close('}')
	case "file":
		w.open('{')
		t.geminiData(w, p)
		if p.filename != nil {
			t.hint(p.path+"file.filename", "its files have no names")
		}
	}
	w.close('}')
}

func (t *translation) geminiData(w *writer, p *part) {
	if p.url.address == nil {
		w.key("inlineData")
		w.open('{')
		w.keyString("mimeType", p.url.media)
		w.keyRaw("data", p.url.data)
		w.close('}')
		return
	}
	w.key("fileData")
	w.open('{')
	path, _, _ := strings.Cut(strings.ToLower(p.url.address.string()), "?")
	for _, x := range []struct{ end, media string }{{".png", "image/png"}, {".jpg", "image/jpeg"}, {".jpeg", "image/jpeg"},
		{".webp", "image/webp"}, {".heic", "image/heic"}, {".heif", "image/heif"}, {".gif", "image/gif"}, {".pdf", "application/pdf"}} {
		if strings.HasSuffix(path, x.end) {
			w.keyString("mimeType", x.media)
			break
		}
	}
	w.keyRaw("fileUri", p.url.address)
	w.close('}')
}

func (t *translation) geminiTools(c chat) {
	w := &t.w
	strict := false
	if len(c.tools) > 0 {
		w.key("tools")
		w.b = append(w.b, `[{"functionDeclarations":[`...)
		for _, x := range c.tools {
			strict = strict || x.strict.isTrue()
			w.open('{')
			w.keyRaw("name", x.name)
			if x.description != nil {
				w.keyRaw("description", x.description)
			}
			if x.parameters != nil {
				w.keyRaw("parametersJsonSchema", x.parameters)
			}
			w.close('}')
		}
		w.b = append(w.b, "]}]"...)
	}
	mode := map[string]string{"auto": "AUTO", "none": "NONE", "required": "ANY", "named": "ANY"}[c.choice.mode]
	if strict && (mode == "" || mode == "AUTO") { // ANY always follows the schema
		mode = "VALIDATED"
	}
	if mode == "" {
		return
	}
	w.key("toolConfig")
	w.open('{')
	w.key("functionCallingConfig")
	w.open('{')
	w.keyString("mode", mode)
	if c.choice.mode == "named" {
		w.key("allowedFunctionNames")
		w.list([]raw{c.choice.name})
	}
	w.b = append(w.b, "}}"...)
}

func (t *translation) geminiFormat(f format) {
	if f.kind == "" {
		return
	}
	t.w.keyString("responseMimeType", "application/json")
	if f.schema != nil {
		t.w.keyRaw("responseJsonSchema", f.schema)
	}
	if f.description != nil {
		t.refuse("response_format.json_schema.description", "its schemas have no separate description; write it into the schema")
	}
}

// geminiThinking sets the amount of thinking: a level from Gemini 3 on, a budget of tokens
// before. The budgets are those of Google's own translation, in
// https://ai.google.dev/gemini-api/docs/openai of its documentation.
func (t *translation) geminiThinking(effort string, old bool) {
	if effort == "" {
		return
	}
	budgets := map[string]int64{"none": 0, "minimal": 512, "low": 1024, "medium": 8192, "high": 24576}
	budget, ok := budgets[effort]
	switch {
	case effort == "none":
	case old && !ok:
		t.refuse("reasoning_effort", "before Gemini 3 its highest level is high")
		return
	case !old && !slices.Contains([]string{"minimal", "low", "medium", "high", "xhigh"}, effort):
		t.refuse("reasoning_effort", "its highest level is xhigh")
		return
	}
	w := &t.w
	w.key("thinkingConfig")
	w.open('{')
	if old || effort == "none" {
		w.keyInt("thinkingBudget", budget)
	} else {
		w.keyString("thinkingLevel", strings.ToUpper(effort))
	}
	if effort != "none" {
		w.key("includeThoughts")
		w.bool(true)
	}
	w.close('}')
}
