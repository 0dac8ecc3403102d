// Package translate says what was said to one API's chat and embeddings in the
// words of another: OpenAI's chat completions to Anthropic's messages, Gemini's
// generateContent, Cohere's v2/chat and Mistral's chat, and their answers,
// whole or streamed, back. It is pure: bytes in, bytes out.
//
// Three rules hold everywhere.
//
//   - Nothing is dropped in silence. A field that a provider does not support is an
//     *Unsupported that names it. What Options.Drop allows is left out, and
//     Request.Dropped names it: hints by default. Every object is used up name by name,
//     so an unknown field is refused and not lost. Null is as absent, as at OpenAI.
//   - Values are carried as the bytes they came in: the order of a schema's
//     keys, the digits of a number, the escapes of a text.
//   - An answer's bytes may be cut anywhere: what comes out is the same.
//
// Fields says what becomes of each field of a request; FIELDS.md is made of it.
//
// # Reasoning that must come back
//
// Anthropic signs its thinking and Gemini its function calls, and both want
// them back in a conversation with tools. OpenAI's format has no place for
// either, so an answer has fields beside its own, which the official SDKs keep,
// and which work if the client sends the assistant's message back as it came:
//
//	message.reasoning_content                                the text of the reasoning
//	message.thinking_blocks                                  Anthropic's blocks with their signatures
//	message.tool_calls[].extra_content.google.thought_signature  Gemini's, of a call (Google's own form)
//	message.extra_content.google.thought_signature           Gemini's, of the text
//	message.extra_content.mistral.signature                  Mistral's, of the thinking
//
// A block of thinking_blocks has "after": how many characters of the content and how many
// tool calls stood before it. Sent back, the blocks stand there again.
//
// A signature is its maker's: for another provider it is left out and listed.
// A client that drops signatures loses reasoning: Anthropic then answers 400 if thinking
// by budget is on and the turn is in the middle of tool use, and thinks afresh
// otherwise; to Gemini 3 and later we send, for a call without a signature, the
// placeholder that Google documents for calls that Gemini did not make.
package translate

import (
	"fmt"
	"slices"
	"strings"
)

// The kinds of provider that are translated to.
const (
	Anthropic = "anthropic"
	Gemini    = "gemini"
	Cohere    = "cohere"
	Mistral   = "mistral"
)

// Kinds lists them in the order of the table of fields.
func Kinds() []string { return []string{Anthropic, Gemini, Cohere, Mistral} }

// Options are the org's choices. The zero value is strict.
type Options struct {
	// Drop says what is left out and listed in Request.Dropped, where it would otherwise
	// be an *Unsupported. At most a hundred fields are left out; one more is an error.
	Drop Drop

	// DefaultMaxTokens is Anthropic's max_tokens if the request has none, which
	// Anthropic requires. 0 means 8192.
	DefaultMaxTokens int64

	// GeminiVersion is the version in Gemini's path, "v1" or "v1beta". Empty
	// means v1beta, the one with JSON schemas, tools and thinking.
	GeminiVersion string

	// EmbeddingInputType is what Cohere requires and OpenAI does not say:
	// search_document, search_query, classification or clustering, if the
	// request's own input_type (an extension) does not. Empty means search_document.
	EmbeddingInputType string
}

// Drop is what may be left out of a request.
type Drop uint8

// The values of Drop. A hint changes no response: a label (a file's name), a mark for a
// cache, the name of a user, or reasoning that another provider signed.
const (
	DropHints   Drop = iota // hints only
	DropNothing             // every field that the provider does not support is an error
	DropAll                 // every field that the provider does not support
)

// maxRefused bounds the fields that one error names.
const maxRefused = 16

// maxDropped bounds the list of what was left out, which goes into a header and
// the record. A request that would make it longer is refused.
const maxDropped = 100

// Request is what to send, and what reading its answer takes.
type Request struct {
	Kind    string
	Path    string // after the API's root, query included: "/v1/messages"
	Body    []byte
	Header  map[string]string // besides the credential; names in lower case
	Dropped []string          // fields left out, each once; nil if none
	Stream  bool              // the answer is to be streamed
	Model   string            // as asked for

	includeUsage bool
	embeddings   bool
	inputs       int  // of embeddings
	base64       bool // embeddings are to be base64 of float32, little-endian
	asJSON       bool // the response is the arguments of JSONTool
}

// AsJSON says that the request offers JSONTool, which is of the translation and not of
// the caller.
func (r *Request) AsJSON() bool { return r.asJSON }

// Unsupported is a field that the provider cannot carry: a 422.
type Unsupported struct {
	Field  string // as a path in the request: "messages[2].content[0].input_audio"
	Kind   string
	Why    string   // a sentence without its full stop
	Others []string // more fields of the same request that are not supported
	Always bool     // it cannot be left out either, whatever Options.Drop is
}

func (u *Unsupported) Error() string {
	s := fmt.Sprintf("%s cannot be carried to %s: %s", u.Field, Name(u.Kind), u.Why)
	if len(u.Others) > 0 {
		s += ". Other fields that cannot be carried: " + strings.Join(u.Others, ", ")
	}
	return s
}

// Invalid is a request that OpenAI would not take either: a 400.
type Invalid struct {
	Field   string // as a path in the request; empty: all of it
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

// Embeddings translates an OpenAI embeddings request. Anthropic has none.
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

// translation is one request on its way. The first error stays, and
// ends the work.
type translation struct {
	o       Options
	kind    string
	top     object
	w       writer
	req     Request
	err     error
	dropped []string
	refused []string     // fields that are not supported, in strict mode
	first   *Unsupported // of them
}

func begin(kind string, body []byte, o Options) (*translation, error) {
	if !slices.Contains(Kinds(), kind) {
		return nil, &Invalid{Problem: fmt.Sprintf("no translation to %q", kind)}
	}
	v, ok := parse(body)
	if !ok {
		return nil, &Invalid{Problem: "the body is not JSON in which every name occurs once"}
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

// refuse notes that the provider does not support field.
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

// hint notes that a field which changes no response is not supported.
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

// cannot is refuse for what cannot be left out: without it the request is another one, or none.
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

// object is a JSON object being used up.
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

// object reads a value that must be an object. Absent is an empty one.
func (t *translation) object(path string, v raw) object {
	if v.given() && v.kind() != '{' {
		t.invalid(path, "is not an object")
	}
	return objectOf(path+".", v)
}

// peek is the value of name, which stays.
func (o *object) peek(name string) raw {
	if i := slices.Index(o.names, name); i >= 0 {
		return o.values[i]
	}
	return nil
}

// take is the value of name, which is used up. Null and absent are nil.
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
		t.leftover(&t.top, fates(table, t.kind))
	}
}

// leftover refuses what of o nobody used, for the reason that fates knows.
func (t *translation) leftover(o *object, known map[string]fate) {
	for i, name := range o.names {
		f, ok := known[name]
		if ok && f.idle(o.values[i]) {
			continue
		}
		why := "it is not a field that this gateway knows"
		if ok && f.Note != "" {
			why = f.Note
		}
		if ok && f.Verdict == Hint {
			t.hint(o.path+name, why)
			continue
		}
		t.refuse(o.path+name, why)
	}
}
