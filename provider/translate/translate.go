// Package translate translates chat and embeddings requests from OpenAI's format to other
// formats, and the responses back. The formats are Anthropic's messages, Gemini's
// generateContent, Cohere's v2/chat and Mistral's chat. Responses may be complete or
// streamed. The package has no side effects: bytes in, bytes out.
//
// Three rules hold everywhere.
//
//   - Nothing is dropped silently. A field that a provider does not support is an
//     *Unsupported that names it. Options.Drop allows fields to be left out: by default
//     hints. Request.Dropped lists them. The translator takes every member of an object by
//     name, so an unknown field is rejected and not lost. Null counts as absent, as in
//     OpenAI's API.
//   - The bytes of values are kept: the order of a schema's keys, the digits of a number,
//     the escapes of a text.
//   - The output does not depend on how a response is split into chunks.
//
// Fields returns how each field of a request is supported. FIELDS.md is generated from it.
//
// # Reasoning that must come back
//
// Anthropic signs its thinking and Gemini signs its function calls. Both require the
// signatures back in a conversation with tools. OpenAI's format has no place for them, so a
// response has additional fields. The official SDKs keep these fields. They work if the
// client sends the assistant's message back unchanged:
//
//	message.reasoning_content                                the text of the reasoning
//	message.thinking_blocks                                  Anthropic's blocks with their signatures
//	message.tool_calls[].extra_content.google.thought_signature  Gemini's, of a call (Google's own form)
//	message.extra_content.google.thought_signature           Gemini's, of the text
//	message.extra_content.mistral.signature                  Mistral's, of the reasoning
//
// A block of thinking_blocks has "after": its position, as a number of characters of
// content and a number of tool calls. When the blocks are sent back, they get these
// positions again.
//
// A signature is valid only for the provider that made it. For another provider it is left
// out and listed. A client that drops signatures loses reasoning. Anthropic then responds
// with 400 if thinking by budget is on and the turn is in the middle of tool use; otherwise
// it thinks again. Gemini 3 and later get the placeholder that Google documents for a call
// without a signature.
package translate

import (
	"fmt"
	"slices"
	"strings"
)

// The kinds of provider with a translation.
const (
	Anthropic = "anthropic"
	Gemini    = "gemini"
	Cohere    = "cohere"
	Mistral   = "mistral"
)

// Kinds lists the kinds in the order of the table of fields.
func Kinds() []string { return []string{Anthropic, Gemini, Cohere, Mistral} }

// Options are the settings of a translation. The zero value leaves out hints only.
type Options struct {
	// Drop selects the unsupported fields that are left out and listed in Request.Dropped,
	// instead of an *Unsupported. At most a hundred fields are left out; one more is an
	// error.
	Drop Drop

	// DefaultMaxTokens is Anthropic's max_tokens if the request has none, since Anthropic
	// requires it. 0 means 8192.
	DefaultMaxTokens int64

	// GeminiVersion is the version in Gemini's path, "v1" or "v1beta". Empty means v1beta,
	// which has JSON schemas, tools and thinking.
	GeminiVersion string

	// EmbeddingInputType is a field that Cohere requires and OpenAI does not have:
	// search_document, search_query, classification or clustering. The request's own
	// input_type (an extension) comes first. Empty means search_document.
	EmbeddingInputType string
}

// Drop selects the fields that may be left out of a request.
type Drop uint8

// The values of Drop. A hint changes no response. Hints are labels (a file's name), cache
// markers, the name of a user, and reasoning that another provider signed.
const (
	DropHints   Drop = iota // hints only
	DropNothing             // every field that the provider does not support is an error
	DropAll                 // every field that the provider does not support
)

// maxRefused is the maximum number of fields in one error.
const maxRefused = 16

// maxDropped is the maximum length of Request.Dropped, which goes into a header and the
// audit log. A request with a longer list is rejected.
const maxDropped = 100

// Request is a translated request, and what is needed to read its response.
type Request struct {
	Kind    string
	Path    string // relative to the API's root, with the query: "/v1/messages"
	Body    []byte
	Header  map[string]string // without the credential; names in lower case
	Dropped []string          // the fields left out, without duplicates; nil if there are none
	Stream  bool              // the request is for a stream
	Model   string            // as requested

	includeUsage bool
	embeddings   bool
	inputs       int  // number of embeddings
	base64       bool // embeddings as base64 of float32, little-endian
	asJSON       bool // the response is the arguments of JSONTool
}

// AsJSON reports that the request offers JSONTool, which the translation added.
func (r *Request) AsJSON() bool { return r.asJSON }

// Unsupported is a field that the provider does not support: a 422.
type Unsupported struct {
	Field  string // as a path in the request: "messages[2].content[0].input_audio"
	Kind   string
	Why    string   // a sentence without its full stop
	Others []string // more unsupported fields of the same request
	Always bool     // it cannot be left out, for any value of Options.Drop
}

func (u *Unsupported) Error() string {
	s := fmt.Sprintf("%s is not supported by %s: %s", u.Field, Name(u.Kind), u.Why)
	if len(u.Others) > 0 {
		s += ". Other unsupported fields: " + strings.Join(u.Others, ", ")
	}
	return s
}

// Invalid is a request that OpenAI would also reject: a 400.
type Invalid struct {
	Field   string // as a path in the request; empty: the whole request
	Problem string
}

func (i *Invalid) Error() string {
	if i.Field == "" {
		return i.Problem
	}
	return i.Field + ": " + i.Problem
}

// Name is the kind as people write it: "Anthropic".
func Name(kind string) string {
	if kind == "" {
		return ""
	}
	return strings.ToUpper(kind[:1]) + kind[1:]
}

// Chat translates an OpenAI chat completion request into kind's own request.
// The error is an *Unsupported or an *Invalid. Body is neither kept nor changed.
func Chat(kind string, body []byte, o Options) (Request, error) {
	t, err := begin(kind, body, o)
	if err != nil {
		return Request{}, err
	}
	c := t.readChat()
	if t.err == nil {
		switch kind {
		case Anthropic:
			t.anthropicChat(c)
		case Gemini:
			t.geminiChat(c)
		case Cohere:
			t.cohereChat(c)
		case Mistral:
			t.mistralChat(c)
		}
		t.leftoverTop(chatFields)
	}
	return t.done()
}

// Embeddings translates an OpenAI embeddings request. Anthropic has no embeddings.
func Embeddings(kind string, body []byte, o Options) (Request, error) {
	t, err := begin(kind, body, o)
	if err != nil {
		return Request{}, err
	}
	t.req.embeddings = true
	t.embed()
	t.leftoverTop(embeddingFields)
	return t.done()
}

// translation is a request during its translation. The first error is kept and ends the
// work.
type translation struct {
	o       Options
	kind    string
	top     object
	w       writer
	req     Request
	err     error
	dropped []string
	refused []string     // unsupported fields, in strict mode
	first   *Unsupported // the first of them
}

func begin(kind string, body []byte, o Options) (*translation, error) {
	if !slices.Contains(Kinds(), kind) {
		return nil, &Invalid{Problem: fmt.Sprintf("no translation to %q", kind)}
	}
	v, ok := parse(body)
	if !ok {
		return nil, &Invalid{Problem: "the body is not JSON, or has a repeated name"}
	}
	if v.kind() != '{' {
		return nil, &Invalid{Problem: "the body is not a JSON object"}
	}
	t := &translation{o: o, kind: kind, req: Request{Kind: kind, Header: map[string]string{"content-type": "application/json"}}}
	t.top = objectOf("", v)
	t.w.b = make([]byte, 0, len(body)+len(body)/8+512)
	return t, nil
}

func (t *translation) done() (Request, error) {
	if t.first != nil {
		t.first.Others = t.refused[1:]
		return Request{}, t.first
	}
	if t.err != nil {
		return Request{}, t.err
	}
	t.req.Body = t.w.b
	t.req.Dropped = t.dropped
	return t.req, nil
}

// refuse records that the provider does not support field.
func (t *translation) refuse(field, why string) {
	if t.o.Drop == DropAll {
		t.drop(field, why)
		return
	}
	if t.err != nil || len(t.refused) >= maxRefused || slices.Contains(t.refused, field) {
		return
	}
	if t.first == nil {
		t.first = &Unsupported{Field: field, Kind: t.kind, Why: why}
	}
	t.refused = append(t.refused, field)
}

// hint records an unsupported field that changes no response.
func (t *translation) hint(field, why string) {
	if t.o.Drop == DropNothing {
		t.refuse(field, why)
		return
	}
	t.drop(field, why)
}

func (t *translation) drop(field, why string) {
	switch {
	case t.err != nil || slices.Contains(t.dropped, field):
	case len(t.dropped) < maxDropped:
		t.dropped = append(t.dropped, field)
	default:
		t.err = &Unsupported{Field: field, Kind: t.kind, Why: why}
	}
}

// cannot records an unsupported field that cannot be left out: without it the request would
// have another meaning, or be invalid.
func (t *translation) cannot(field, why string) {
	if t.err == nil {
		t.err = &Unsupported{Field: field, Kind: t.kind, Why: why, Always: true}
	}
}

func (t *translation) invalid(field, problem string) {
	if t.err == nil {
		t.err = &Invalid{Field: field, Problem: problem}
	}
}

// object is a JSON object whose members are taken one by one.
type object struct {
	path    string // "" or with its last dot: "messages[2]."
	names   []string
	values  []raw
	present bool
}

func objectOf(path string, v raw) object {
	o := object{path: path, present: v.kind() == '{'}
	for name, value := range v.members() {
		if value.given() {
			o.names = append(o.names, string(name))
			o.values = append(o.values, value)
		}
	}
	return o
}

// object reads a value that must be an object. An absent value is an empty object.
func (t *translation) object(path string, v raw) object {
	if v.given() && v.kind() != '{' {
		t.invalid(path, "is not an object")
	}
	return objectOf(path+".", v)
}

// peek returns the value of name and keeps it.
func (o *object) peek(name string) raw {
	if i := slices.Index(o.names, name); i >= 0 {
		return o.values[i]
	}
	return nil
}

// take returns the value of name and removes it. Null and absent are nil.
func (o *object) take(name string) raw {
	i := slices.Index(o.names, name)
	if i < 0 {
		return nil
	}
	v := o.values[i]
	o.names = slices.Delete(o.names, i, i+1)
	o.values = slices.Delete(o.values, i, i+1)
	return v
}

func (t *translation) takeString(o *object, name string) (raw, bool) {
	v := o.take(name)
	if v == nil {
		return nil, false
	}
	if v.kind() != '"' {
		t.invalid(o.path+name, "is not a string")
		return nil, false
	}
	return v, true
}

func (t *translation) takeNumber(o *object, name string) (raw, bool) {
	v := o.take(name)
	if v == nil {
		return nil, false
	}
	if !v.isNumber() {
		t.invalid(o.path+name, "is not a number")
		return nil, false
	}
	return v, true
}

func (t *translation) takeWhole(o *object, name string) (int64, raw, bool) {
	v, ok := t.takeNumber(o, name)
	if !ok {
		return 0, nil, false
	}
	n, ok := v.whole()
	if !ok {
		t.invalid(o.path+name, "is not a whole number")
	}
	return n, v, ok
}

func (t *translation) takeBool(o *object, name string) (value, given bool) {
	v := o.take(name)
	if v == nil {
		return false, false
	}
	if !v.isBool() {
		t.invalid(o.path+name, "is neither true nor false")
		return false, false
	}
	return v.isTrue(), true
}

func (t *translation) takeArray(o *object, name string) (raw, bool) {
	v := o.take(name)
	if v == nil {
		return nil, false
	}
	if v.kind() != '[' {
		t.invalid(o.path+name, "is not an array")
		return nil, false
	}
	return v, true
}

// leftoverTop is leftover for the fields of a table.
func (t *translation) leftoverTop(table func() []row) {
	if len(t.top.names) > 0 {
		t.leftover(&t.top, supports(table, t.kind))
	}
}

// leftover rejects the members of o that were not taken, for the reason in supports.
func (t *translation) leftover(o *object, known map[string]support) {
	for i, name := range o.names {
		f, ok := known[name]
		if ok && f.idle(o.values[i]) {
			continue
		}
		why := "this gateway does not know the field"
		if ok && f.Note != "" {
			why = f.Note
		}
		if ok && f.Level == Hint {
			t.hint(o.path+name, why)
			continue
		}
		t.refuse(o.path+name, why)
	}
}
