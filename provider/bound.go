package provider

import (
	"slices"
	"strconv"
)

// This file is what a call may use at most, and how its output is capped where the caller
// does not cap it. USD caps reserve by it before anything is forwarded.

// Bound is the most that a call may use.
type Bound struct {
	// Input is the most tokens that the text of the input has: one for each byte, and what
	// the provider adds around it. A tokenizer makes at most one token of a byte.
	Input int64
	// Opaque says that the input has parts whose tokens are not bounded by their bytes:
	// images, documents, audio, and what the provider fetches. The bound is the context window.
	Opaque bool
	// Output is the most tokens of all choices.
	Output int64
}

// What a provider adds to the text: marks around messages, and a prompt for tools.
const (
	frameTokens = 256
	toolsTokens = 4096
)

// Bound is the most that the call may use as f forwards it, if its output is capped at
// maxTokens for each choice.
func (c Call) Bound(f Forward, maxTokens int64) Bound {
	b := Bound{Input: int64(max(len(c.Body), len(f.Body))) + frameTokens, Opaque: c.opaque || len(c.Hosts) > 0}
	if len(c.Tools) > 0 {
		b.Input += toolsTokens
	}
	if c.Endpoint.Writes() {
		b.Output = multiplied(maxTokens, max(1, c.Choices))
	}
	return b
}

// multiplied is a product that does not overflow.
func multiplied(a, b int64) int64 {
	if a > 0 && b > maxNumber/a {
		return maxNumber
	}
	return a * b
}

// Hosted is a tool that the provider runs itself, or "": no figure in the request bounds how
// often it is called and what it reads.
func (c Call) Hosted() string { return c.hosted }

// Capped returns whether the caller limits the output: 0 is such a limit, null is not.
func (c Call) Capped() bool { return c.capped }

// callerRuns are the tools that a provider defines and the caller runs.
var callerRuns = []string{"computer", "computer_use", "computer_use_preview", "bash", "text_editor", "memory", "local_shell", "apply_patch"}

// runs notes a tool of the provider's own.
func (p *walker) runs(name string) {
	if p.call.hosted == "" && !slices.Contains(callerRuns, name) {
		p.call.hosted = name
	}
}

// Writes reports whether the response has text that the model writes.
func (e Endpoint) Writes() bool {
	switch e.Operation {
	case "chat.completions", "completions", "fim.completions", "responses", "messages", "chat", "generate_content":
		return true
	}
	return false
}

// Metered says whether what a provider charges for a call depends on tokens only. OCR is
// charged by the page, and rerank by the search.
func (e Endpoint) Metered() bool { return e.Operation != "ocr" && e.Operation != "rerank" }

// MaxTokens is settings.max_tokens, 0 without.
func (p Provider) MaxTokens() int64 {
	s, _, _ := p.prepared()
	return s.MaxTokens
}

// capField is the field that caps the output of the call at p.
func (p Provider) capField(c Call) string {
	switch c.Endpoint.Operation {
	case "chat.completions":
		r := p.ready
		if r == nil {
			r = p.prepare()
		}
		if p.translates(c) || p.Kind == KindOpenAI && r.dialects == 0 {
			return "max_completion_tokens"
		}
		return "max_tokens" // every server that is compatible with OpenAI's takes it
	case "completions", "fim.completions", "messages", "chat":
		return "max_tokens"
	case "responses":
		return "max_output_tokens"
	case "generate_content":
		return "maxOutputTokens"
	}
	return ""
}

// asksUsage says whether usage is requested for a streamed chat completion that does not
// mention it.
func (p Provider) asksUsage(c Call, s Settings) bool {
	own := s.Answer != nil && (s.Answer.Usage != nil || s.Answer.Stream == "ndjson")
	wanted := c.WantUsage && (p.Kind == KindOpenAI || p.Kind == KindCustom) && !own
	return (s.InjectUsage || wanted) && c.wantsInjection()
}

// null is a member of the body whose value is null.
type null struct {
	field string
	at    int // where null begins
}

// edit replaces n bytes of the body.
type edit struct {
	at, n int
	text  string
}

// edited is the body with the output capped at c.Cap under the field, and with a request for
// usage. Not a byte of the rest is changed. Not ok: the body has no place for the field.
func (c Call) edited(field string, usage bool) (_ []byte, ok bool) {
	var edits []edit
	var root string // new members of the whole body
	if c.Cap > 0 {
		value := strconv.FormatInt(c.Cap, 10)
		member := `"` + field + `":` + value
		at := slices.IndexFunc(c.nulls, func(n null) bool { return snake(n.field) == snake(field) })
		switch {
		case at >= 0:
			edits = append(edits, edit{c.nulls[at].at, len("null"), value})
		case field != "maxOutputTokens":
			root = member
		case c.configEnd == 0:
			root = `"generationConfig":{` + member + "}"
		case c.Body[c.configAt] == '{':
			edits = append(edits, c.inserted(c.configAt, member))
		case c.Body[c.configAt] == 'n':
			edits = append(edits, edit{c.configAt, len("null"), "{" + member + "}"})
		default:
			return nil, false
		}
	}
	if usage {
		const member = `"include_usage":true`
		switch {
		case c.optionsAt > 0:
			edits = append(edits, c.inserted(c.optionsAt, member))
		case root != "":
			root += `,"stream_options":{` + member + "}"
		default:
			root = `"stream_options":{` + member + "}"
		}
	}
	if root != "" {
		edits = append(edits, c.inserted(slices.Index(c.Body, '{'), root))
	}
	slices.SortFunc(edits, func(a, b edit) int { return a.at - b.at })
	out := make([]byte, 0, len(c.Body)+128)
	from := 0
	for _, e := range edits {
		out = append(append(out, c.Body[from:e.at]...), e.text...)
		from = e.at + e.n
	}
	return append(out, c.Body[from:]...), true
}

// inserted puts members first into the object that begins at at.
func (c Call) inserted(at int, members string) edit {
	if firstByte(c.Body[at+1:]) != '}' {
		members += ","
	}
	return edit{at + 1, 0, members}
}
