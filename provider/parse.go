package provider

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
)

// Call is the part of a request that policy evaluates.
type Call struct {
	Endpoint Endpoint
	Params   Params

	Model  string // as the client wrote it, without "models/" before it
	Stream bool   // the client requests a stream

	// MaxTokens is the client's limit for the tokens of the response; 0: no limit. If
	// several fields have a limit, the largest counts.
	MaxTokens int64

	// Choices is the number of responses in one that the client requests; 0: not given.
	Choices int64

	// InputTokensEstimate is an estimate of the input's tokens that is seldom too low. It
	// has one token for every 3 bytes of the body, and 1,600 for each image, audio file or
	// document of any size. English has 4 bytes to a token; code and other alphabets have
	// about 3.
	InputTokensEstimate int64

	// Tools are the tools of the request, sorted and without duplicates: those offered to
	// the model, and those already called in the conversation. A function has its own name.
	// A tool that the provider runs has its type without the date ("web_search"; for
	// Gemini, "google_search"). An MCP server has "mcp:" and its label.
	Tools []string

	// Hosts are the hosts of the URLs that the provider fetches or calls: images, files,
	// MCP servers. They are in lower case, sorted and without duplicates. A host that is
	// not certain is "unknown".
	Hosts []string

	// Body is the bytes that were parsed, which are forwarded or translated; nil: no body.
	Body []byte

	// Headers are the names of the request's headers that are forwarded only to a provider
	// that accepts them: see HeaderOf. The caller of Parse sets it.
	Headers []string

	// Betas are the values of headers that request beta features, as
	// "anthropic-beta=VALUE": see the function Betas. The caller of Parse sets it.
	Betas []string

	// extras are the members of the body that not every provider accepts: see takes.
	extras []extra

	// foldered: the body has "models/" before the model's name, which Gemini's API removes.
	// Model is the name without it.
	foldered bool

	// Cap is the limit that is put on the output of each choice where the client sets none,
	// and WantUsage requests usage in a stream. The caller of Parse sets both.
	Cap       int64
	WantUsage bool

	capped bool   // the client limits the output
	opaque bool   // the input has images, documents or audio
	hosted string // see Hosted
	nulls  []null // of fields that would limit the output

	// configAt and configEnd are where generationConfig's value is in Body, 0 without one.
	configAt, configEnd int

	// usageSaid: the client decided whether the stream has usage. optionsAt is the offset
	// in Body of the object of stream_options, or 0.
	usageSaid bool
	optionsAt int
}

const (
	maxDepth = 64   // of nested arrays and objects
	maxURLs  = 4096 // in one request

	// Everything evaluated is recorded completely, so a tool cannot be hidden behind
	// others. These limits are those of an audit entry. TestRecordedWhole compares them.
	maxTool  = 128 // bytes of a tool's name
	maxTools = 512 // different tools in one request
	maxHosts = 256 // different hosts of URLs in one request

	bytesToken = 3
	blobTokens = 1600
	maxNumber  = 1 << 53 // integers are exact up to here in every parser
)

// Parse validates the form of a request and returns what policy evaluates. body is plain:
// see Decode. query is without the question mark.
//
// The body must be one JSON object in UTF-8, with only white space around it. It has no
// repeated names in an object, no lone surrogates, no byte order mark, and at most 64
// levels. Evaluated members must have the right type. max_tokens is an integer without
// fraction and exponent, up to 2^53. stream is true, false or null. In objects with an
// evaluated member, names are printable ASCII and do not resemble an evaluated name.
//
// Members that change the request's destination are rejected: see steering. So are
// references to objects that are stored at the provider, since their owner is not known.
func Parse(ep Endpoint, params Params, contentType, query string, body []byte) (Call, *Error) {
	c := Call{Endpoint: ep, Params: params, Model: params.Model, Stream: ep.stream}
	if e := checkQuery(ep, query); e != nil {
		return Call{}, e
	}
	if ep.body == nil {
		if len(body) > 0 {
			return Call{}, bad("unexpected_body", "", "A "+ep.Method+" request has no body.")
		}
		return c, nil
	}
	if !jsonType(contentType) {
		return Call{}, &Error{Status: http.StatusUnsupportedMediaType, Type: invalidRequest, Code: "unsupported_media_type",
			Message: "The content-type must be application/json, with no charset or with charset=utf-8."}
	}
	if len(body) == 0 {
		return Call{}, bad("invalid_json", "", "The request has no body. Send a JSON object.")
	}
	p := walkers.Get().(*walker)
	defer p.release()
	p.begin(body, &c)
	if e := p.root(ep.body); e != nil {
		return Call{}, e
	}
	if c.Model == "" {
		c.Model = ep.model
	}
	if c.Model == "" {
		return Call{}, bad("missing_model", "model", "The request names no model. Set \"model\".")
	}
	c.Body = body
	if len(p.tools) > 0 {
		c.Tools = slices.Sorted(maps.Keys(p.tools))
	}
	if len(p.hosts) > 0 {
		slices.Sort(p.hosts)
		c.Hosts = slices.Clone(slices.Compact(p.hosts)) // p's slice is reused
		if len(c.Hosts) > maxHosts {
			return Call{}, bad("too_many_urls", "", "The request has URLs of more than "+strconv.Itoa(maxHosts)+" different hosts. That is more than an audit entry can hold, so the request is not forwarded.")
		}
	}
	c.extras = slices.Clone(p.extras)
	c.opaque = p.blobs > 0
	c.InputTokensEstimate = (int64(len(body))-p.blobBytes+bytesToken-1)/bytesToken + p.blobs*blobTokens
	return c, nil
}

// jsonType accepts application/json in any case, alone or with charset=utf-8, and no other
// media type.
func jsonType(s string) bool {
	const media = "application/json"
	if len(s) < len(media) || !strings.EqualFold(s[:len(media)], media) {
		return false
	}
	rest, ok := strings.TrimLeft(s[len(media):], " \t"), false
	if rest == "" {
		return true
	}
	if rest, ok = strings.CutPrefix(rest, ";"); !ok {
		return false
	}
	switch strings.ToLower(strings.Trim(rest, " \t")) {
	case "charset=utf-8", `charset="utf-8"`:
		return true
	}
	return false
}

// checkQuery accepts only the parameters of the endpoint. They are forwarded unchanged.
func checkQuery(ep Endpoint, query string) *Error {
	if query == "" {
		return nil
	}
	var seen [8]string
	n := 0
	for pair := range strings.SplitSeq(query, "&") {
		name, _, _ := strings.Cut(pair, "=")
		if slices.Contains(ep.query, pair) || slices.Contains(ep.listQuery, name) {
			if n == len(seen) || slices.Contains(seen[:n], name) {
				return bad("repeated_query_parameter", name, "The query has a parameter twice.")
			}
			seen[n] = name
			n++
			continue
		}
		switch shown := Clip(name, 64); {
		case credentialQuery(name):
			return bad("misplaced_credential", shown, "The query carries a credential. Send it as \"Authorization: Bearer …\" only, and rotate it: URLs are kept in logs.")
		default:
			return bad("unknown_query_parameter", shown, "This endpoint does not accept this query parameter, or not with this value.")
		}
	}
	return nil
}

// walker reads one body once.
type walker struct {
	buf  bytes.Buffer // the decoder reads from it in place
	d    *jsontext.Decoder
	call *Call

	tools     map[string]struct{}
	hosts     []string
	blobs     int64  // images and other files
	blobBytes int64  // the bytes of the blobs
	text      []byte // a string without its escapes
	body      []byte
	extras    []extra
}

// walkers are reused: a decoder has 1 KB, and its tables of names grow.
var walkers = sync.Pool{New: func() any { return &walker{d: new(jsontext.Decoder), tools: map[string]struct{}{}} }}

func (p *walker) begin(body []byte, c *Call) {
	p.buf = *bytes.NewBuffer(body)
	p.d.Reset(&p.buf)
	p.call, p.body = c, body
}

// release removes all data of the request.
func (p *walker) release() {
	p.buf = bytes.Buffer{}
	p.d.Reset(&p.buf)
	clear(p.tools)
	clear(p.hosts)
	p.call, p.body, p.hosts, p.blobs, p.blobBytes = nil, nil, p.hosts[:0], 0, 0
	clear(p.extras)
	p.extras = p.extras[:0]
	if cap(p.text) > 64<<10 {
		p.text = nil
	}
	walkers.Put(p)
}

func (p *walker) root(s *shape) *Error {
	switch p.d.PeekKind() {
	case '{':
	case '[', '"', '0', 't', 'f', 'n':
		return bad("invalid_json", "", "The body must be a JSON object.")
	}
	if e := p.object(s, "", 1); e != nil {
		return e
	}
	if _, err := p.d.ReadToken(); !errors.Is(err, io.EOF) {
		return bad("invalid_json", "", "There is text after the JSON object.")
	}
	return nil
}

// object reads the next object. in is the name of the field with the object, for messages.
func (p *walker) object(s *shape, in string, depth int) *Error {
	if depth > maxDepth {
		return tooDeep()
	}
	if _, err := p.d.ReadToken(); err != nil {
		return syntax(err)
	}
	var o struct {
		seen   uint64 // bits of rules
		isTool bool   // the role is a tool
		name   string // of the author
		kind   bool   // it has a type or role

		isImage, hasImage bool // it is an image that was generated before; it contains the image
		mcp, labelled     bool // it is an MCP server or part of one; it has a name

		item string // its type, as an item of Responses
		held uint64 // the members in holds that are present and not empty

		content []byte // with the colon before it
	}
	o.mcp = s.needsLabel
	for p.d.PeekKind() == '"' {
		raw, err := p.d.ReadValue()
		if err != nil {
			return syntax(err)
		}
		r, known := s.fields[string(raw[1:len(raw)-1])]
		if !known {
			if r, err = p.unknown(s, raw); err != nil {
				return asError(err)
			}
		}
		field := r.name
		if r.of != 0 && p.d.PeekKind() != 'n' {
			if e := p.extra(join2(s.where, field), r.of); e != nil {
				return e
			}
		}
		from := int(p.d.InputOffset())
		if r.is != 0 {
			if o.seen&r.is != 0 {
				return bad("repeated_field", field, "The body has both spellings of \""+field+"\".")
			}
			o.seen |= r.is
		}
		switch r.do {
		case role:
			s, err := p.str()
			if err != nil {
				return mustBe(err, field, "a string")
			}
			o.kind = o.kind || len(s) > 0
			o.isTool = bytes.EqualFold(s, []byte("tool")) || bytes.EqualFold(s, []byte("function"))
		case speaker:
			s, err := p.str()
			if err != nil {
				return mustBe(err, field, "a string")
			}
			o.name = string(s)
		case callType:
			s, err := p.str()
			if err != nil {
				return mustBe(err, field, "a string")
			}
			o.kind = o.kind || len(s) > 0
			o.isImage = string(s) == "image_generation_call"
			o.item = string(s)
			if e := p.item(s, field); e != nil {
				return e
			}
		case image:
			s, err := p.d.ReadValue() // for other items it is text
			if err != nil {
				return syntax(err)
			}
			o.hasImage = len(s) > len(`""`) && s[0] == '"'
		case toolType:
			s, err := p.str()
			if err != nil {
				return mustBe(err, field, "a string")
			}
			o.mcp = o.mcp || string(s) == "mcp" || string(s) == "mcp_toolset"
			if e := p.toolType(s, field); e != nil {
				return e
			}
		case label:
			s, err := p.str()
			if err != nil {
				return mustBe(err, field, "a string")
			}
			if len(s) == 0 {
				continue
			}
			o.labelled = true
			p.runs("mcp:" + string(s))
			if e := p.tool([]byte("mcp:"+string(s)), field); e != nil {
				return e
			}
		default:
			if e := p.value(r, field, depth); e != nil {
				return e
			}
		}
		if depth == 1 && (field == "generationConfig" || field == "generation_config") {
			p.call.configEnd = int(p.d.InputOffset())
			p.call.configAt = p.call.configEnd - len(bytes.TrimLeft(p.body[from:p.call.configEnd], ": \t\r\n"))
		}
		if s.items && holds[field] != 0 {
			v := p.body[from:p.d.InputOffset()]
			if !emptyValue(v) {
				o.held |= holds[field]
			}
			if field == "content" {
				o.content = v
			}
		}
	}
	if _, err := p.d.ReadToken(); err != nil {
		return syntax(err)
	}
	if s.items {
		if o.item == "" {
			o.item = "message" // an item without a type is a message, by its role
		}
		if o.held&hasID != 0 && o.held&hasContent != 0 && !saysAnything(o.content) {
			o.held &^= hasContent
		}
		if e := p.wholeItem(o.item, o.held, in); e != nil {
			return e
		}
	}
	if o.isTool {
		if e := p.tool([]byte(o.name), "name"); e != nil {
			return e
		}
	}
	if s.needsKind && !o.kind || o.isImage && !o.hasImage {
		return isStored(in)
	}
	if o.mcp && !o.labelled {
		return bad("missing_label", in, "An MCP server has no name. Policies know it by its name: give it one.")
	}
	return nil
}

// value evaluates the next value.
func (p *walker) value(r rule, field string, depth int) *Error {
	switch r.do {
	case pass:
		return p.skip(depth)
	case refuse:
		return bad("unsupported_parameter", field, "The parameter \""+field+"\" is not accepted here: it could change the request's destination, or the model or tools that policy evaluated.")
	case stored, noTrue, second:
		return p.notStored(r.do, field)
	case model, pathModel:
		s, err := p.str()
		if err != nil {
			return mustBe(err, field, "a string")
		}
		return p.model(r.do, string(s))
	case stream:
		switch t, err := p.d.ReadToken(); {
		case err != nil:
			return syntax(err)
		case t.Kind() == 't':
			p.call.Stream = true
		case t.Kind() != 'f' && t.Kind() != 'n':
			return bad("invalid_type", field, "\""+field+"\" must be true or false.")
		}
		return nil
	case tokens:
		return p.tokens(field)
	case choices:
		return p.count(field, &p.call.Choices)
	case walk:
		return p.walk(r, field, depth)
	case inline:
		if k := p.d.PeekKind(); k != '{' && k != 'n' {
			return p.notStored(stored, field)
		}
		return p.walk(r, field, depth)
	case tool:
		s, err := p.str()
		if err != nil {
			return mustBe(err, field, "a string")
		}
		return p.tool(s, field)
	case toolNames:
		return p.toolNames(field, depth)
	case link:
		return p.link(r.in, field, depth)
	case blob:
		return p.data(field)
	case marks:
		if p.d.PeekKind() != 'n' {
			p.runs(snake(strings.TrimSuffix(field, "_options")))
			if e := p.tool([]byte(snake(strings.TrimSuffix(field, "_options"))), field); e != nil {
				return e
			}
		}
		if r.in != nil {
			return p.walk(r, field, depth)
		}
		return p.skip(depth)
	case switches:
		if k := p.d.PeekKind(); k != 'n' && k != 'f' {
			p.runs("web_search")
			if e := p.tool([]byte("web_search"), field); e != nil {
				return e
			}
		}
		return p.skip(depth)
	case options:
		return p.options(r.in, field, depth)
	case choice:
		return p.choice(r, field, depth)
	}
	return bad("invalid_json", field, "\""+field+"\" cannot be evaluated.")
}

// choice evaluates the client's choice of tools: a keyword, a tool, or several tools.
func (p *walker) choice(r rule, field string, depth int) *Error {
	if p.d.PeekKind() != '"' {
		return p.walk(r, field, depth)
	}
	s, err := p.str()
	if err != nil {
		return mustBe(err, field, "a string")
	}
	switch strings.ToLower(string(s)) {
	case "auto", "none", "required", "any", "validated":
		return nil
	}
	return p.tool(s, field)
}

// toolNames adds each tool of a list of names. One name is accepted without a list.
func (p *walker) toolNames(field string, depth int) *Error {
	if p.d.PeekKind() == '[' {
		return p.each(depth, func() *Error { return p.toolNames(field, depth+1) })
	}
	s, err := p.str()
	if err != nil {
		return mustBe(err, field, "a list of tools' names")
	}
	return p.tool(s, field)
}

// toolType adds a tool that the provider runs. Other tools have a name or label.
func (p *walker) toolType(s []byte, field string) *Error {
	switch string(s) {
	case "", "function", "custom", "mcp", "mcp_toolset", "namespace",
		"auto", "none", "any", "required", "tool", "allowed_tools": // of tool_choice
		return nil
	}
	if !canonicalType(s) {
		return oddType(field)
	}
	p.runs(string(undated(s)))
	return p.tool(undated(s), field)
}

func oddType(field string) *Error {
	return bad("invalid_type", field, "\""+field+"\" has a type that is not in lower case, as in \"web_search\".")
}

// unknown processes a member that the shape does not name, or not in these bytes.
func (p *walker) unknown(s *shape, raw []byte) (rule, error) {
	name := raw[1 : len(raw)-1]
	if bytes.IndexByte(name, '\\') >= 0 {
		b, err := jsontext.AppendUnquote(p.text[:0], raw)
		if err != nil {
			return rule{}, err
		}
		p.text, name = b, b
		if r, ok := s.fields[string(name)]; ok {
			return r, nil // "mo\u0064el" is "model" for every parser
		}
	}
	for _, c := range name {
		if c < ' ' || c > '~' {
			return rule{}, bad("invalid_field_name", "", "A field's name has a character that is not allowed: the names of this API are plain ASCII.")
		}
	}
	var short [64]byte // longer than every evaluated name
	if len(name) <= len(short) {
		if known, ok := s.folded[string(appendFolded(short[:0], name))]; ok {
			return rule{}, bad("ambiguous_field_name", known, "A field's name is too similar to \""+known+"\": some servers would read it as that field. Use \""+known+"\".")
		}
	}
	if s.keysAreTools {
		p.runs(snake(string(name)))
		if e := p.tool([]byte(snake(string(name))), "tools"); e != nil {
			return rule{}, e
		}
	}
	if s.closed && p.d.PeekKind() != 'n' { // null counts as absent
		if e := p.extra(join2(s.where, string(name)), 0); e != nil {
			return rule{}, e
		}
	}
	return rule{}, nil
}

// wholeItem evaluates an item by its type. An item with an id must have its content:
// otherwise it only refers to an object that is stored at the provider.
func (p *walker) wholeItem(typ string, held uint64, in string) *Error {
	need, known := itemTypes[typ]
	switch {
	case !known:
		return p.extra("input.type="+typ, 0)
	case held&hasID != 0 && held&need == 0:
		e := isStored(in)
		e.Message += " This one is of type \"" + typ + "\" and has an id, but not its content. For reasoning, request it with \"include\": [\"reasoning.encrypted_content\"] and \"store\": false."
		return e
	}
	return nil
}

// skip reads a value, which must be JSON and not too deep.
func (p *walker) skip(depth int) *Error {
	if k := p.d.PeekKind(); k != '{' && k != '[' {
		if err := p.d.SkipValue(); err != nil {
			return syntax(err)
		}
		return nil
	}
	v, err := p.d.ReadValue()
	if err != nil {
		return syntax(err)
	}
	if depth+nesting(v) > maxDepth {
		return tooDeep()
	}
	return nil
}

// nesting is the depth of the arrays and objects in a valid value.
func nesting(v []byte) (deepest int) {
	depth := 0
	for i := 0; i < len(v); i++ {
		switch v[i] {
		case '{', '[':
			depth++
			deepest = max(deepest, depth)
		case '}', ']':
			depth--
		case '"':
			for {
				n := bytes.IndexByte(v[i+1:], '"')
				if n < 0 {
					return deepest // an invalid value is rejected elsewhere
				}
				end := i + 1 + n
				escaped := false
				for j := end - 1; j > i && v[j] == '\\'; j-- {
					escaped = !escaped
				}
				i = end
				if !escaped {
					break
				}
			}
		}
	}
	return deepest
}

// walk evaluates an object, or every object of an array. The rule defines the meaning of a
// string. Any other value is rejected, since it is not known how a server reads it.
func (p *walker) walk(r rule, field string, depth int) *Error {
	switch p.d.PeekKind() {
	case '{':
		return p.object(r.in, field, depth+1)
	case '[':
		return p.each(depth, func() *Error {
			if p.d.PeekKind() == '"' && r.in.needsKind {
				return isStored(field) // a string in the list could be the id of an item
			}
			return p.walk(r, field, depth+1)
		})
	case 'n', 0:
		return p.skip(depth)
	case '"':
		switch r.str {
		case isText, isFree:
			return p.skip(depth)
		case isData:
			return p.data(field)
		case isURL:
			return p.link(nil, field, depth)
		}
	}
	if r.str == isFree {
		return p.skip(depth)
	}
	what := "an object or a list of objects"
	if r.str != 0 {
		what += ", or a string"
	}
	return bad("invalid_type", field, "\""+field+"\" must be "+what+".")
}

// each reads the next array and calls element before each element.
func (p *walker) each(depth int, element func() *Error) *Error {
	if depth+1 > maxDepth {
		return tooDeep()
	}
	if _, err := p.d.ReadToken(); err != nil {
		return syntax(err)
	}
	for k := p.d.PeekKind(); k != ']' && k != 0; k = p.d.PeekKind() {
		if e := element(); e != nil {
			return e
		}
	}
	if _, err := p.d.ReadToken(); err != nil {
		return syntax(err)
	}
	return nil
}

// str reads a string, which is valid until the next read. null is empty. For any other type
// the error is errType.
func (p *walker) str() ([]byte, error) {
	switch p.d.PeekKind() {
	case '"':
		raw, err := p.d.ReadValue()
		if err != nil {
			return nil, err
		}
		if bytes.IndexByte(raw, '\\') < 0 {
			return raw[1 : len(raw)-1], nil
		}
		p.text, err = jsontext.AppendUnquote(p.text[:0], raw)
		return p.text, err
	case 'n':
		return nil, p.d.SkipValue()
	case 0:
		_, err := p.d.ReadToken()
		return nil, err
	default:
		return nil, errType
	}
}

var errType = errors.New("not a string")

func (p *walker) model(do action, s string) *Error {
	if do == pathModel {
		if s != "" && strings.TrimPrefix(s, "models/") != p.call.Params.Model {
			return bad("model_mismatch", "model", "The model in the body is not the model in the path.")
		}
		return nil
	}
	if s == "" {
		return nil // the error comes at the end
	}
	s, p.call.foldered = strings.CutPrefix(s, "models/")
	if problem := modelProblem(s); problem != "" {
		return bad("invalid_model", "model", "\"model\" is not a model's name: "+problem+".")
	}
	p.call.Model = s
	return nil
}

// tokens accepts digits only: some parsers read 100.0 and 1e2 as integers, and others do
// not.
func (p *walker) tokens(field string) *Error {
	if p.d.PeekKind() == 'n' {
		if e := p.skip(0); e != nil {
			return e
		}
		p.call.nulls = append(p.call.nulls, null{field, int(p.d.InputOffset()) - len("null")})
		return nil
	}
	p.call.capped = true
	return p.count(field, &p.call.MaxTokens)
}

// count reads an integer into to, if it is larger. null is no value.
func (p *walker) count(field string, to *int64) *Error {
	if p.d.PeekKind() == 'n' {
		return p.skip(0)
	}
	raw, err := p.d.ReadValue()
	if err != nil {
		return syntax(err)
	}
	n, err := strconv.ParseUint(string(raw), 10, 63)
	if err != nil || n > maxNumber {
		return bad("invalid_type", field, "\""+field+"\" must be an integer from 0 to 2^53, written with digits only.")
	}
	*to = max(*to, int64(n))
	return nil
}

// tool adds a tool.
func (p *walker) tool(name []byte, field string) *Error {
	switch {
	case len(name) == 0:
		return nil
	case len(name) > maxTool:
		return bad("invalid_type", field, "A tool's name is longer than "+strconv.Itoa(maxTool)+" bytes.")
	}
	if _, ok := p.tools[string(name)]; ok {
		return nil
	}
	if len(p.tools) >= maxTools {
		return bad("too_many_tools", field, "The request involves more than "+strconv.Itoa(maxTools)+" different tools. That is more than an audit entry can hold, so the request is not forwarded.")
	}
	for _, c := range name {
		if c < ' ' || c == 0x7f {
			return bad("invalid_type", field, "A tool's name has a control character.")
		}
	}
	p.tools[string(name)] = struct{}{}
	return nil
}

// item evaluates the type of an item of a conversation. Some items are calls of tools that
// the provider runs. One type is a reference to a stored item.
func (p *walker) item(typ []byte, field string) *Error {
	if string(typ) == "item_reference" {
		e := isStored("item_reference")
		e.Message += " Send \"store\": false, so that the client sends whole items. In the AI SDK: providerOptions: {openai: {store: false}}."
		return e
	}
	if !canonicalType(typ) {
		return oddType(field)
	}
	name, ok := bytes.CutSuffix(typ, []byte("_call"))
	if !ok || string(name) == "function" || string(name) == "custom_tool" || string(name) == "mcp" {
		return nil
	}
	return p.tool(name, field)
}

// undated removes the date from the type of a tool: "web_search_20250305" and
// "web_search_2025_08_26" become "web_search".
func undated(s []byte) []byte {
	end := len(s)
	for end > 0 && (s[end-1] == '_' || '0' <= s[end-1] && s[end-1] <= '9') {
		end--
	}
	if len(s)-end < len("_20250305") {
		return s
	}
	return s[:end]
}

// notStored rejects a member that refers to a stored object, unless it is empty.
func (p *walker) notStored(do action, field string) *Error {
	switch k := p.d.PeekKind(); {
	case k == 'n', do == noTrue && k == 'f':
		return p.skip(0)
	case do != noTrue || k == 't':
		// An empty list is no reference.
		raw, err := p.d.ReadValue()
		if err != nil {
			return syntax(err)
		}
		if s := string(raw); s == "[]" || s == `""` || s == "{}" {
			return nil
		}
		if do == second {
			return bad("unsupported_parameter", field, "A second model beside the request's is not accepted, since policy does not evaluate it.")
		}
		return isStored(field)
	default:
		return bad("invalid_type", field, "\""+field+"\" must be true or false.")
	}
}

const codeStored = "stored_object"

func isStored(field string) *Error {
	return bad(codeStored, field, "\""+field+"\" refers to something that is stored or run at the provider apart from this request. Its owner and its effect are not known, so it is not accepted. Put everything into the request.")
}

// link adds the host of a URL: a string, an object with "url", or an array of these.
func (p *walker) link(s *shape, field string, depth int) *Error {
	switch p.d.PeekKind() {
	case '{':
		if s == nil {
			s = &urlShape
		}
		return p.object(s, field, depth+1)
	case '[':
		return p.each(depth, func() *Error { return p.link(s, field, depth+1) })
	case 'n':
		return p.skip(depth)
	}
	text, n, e := p.long(field, "a URL")
	if e != nil || len(text) == 0 {
		return e
	}
	p.blobs++ // the model reads what is fetched
	if isDataURL(text) {
		p.blobBytes += n
		return nil
	}
	return p.host(text, field)
}

// data evaluates a string that has a file: a data: URL, or base64. Any other string is a
// URL for some servers, so it is evaluated as a URL.
func (p *walker) data(field string) *Error {
	if p.d.PeekKind() == 'n' {
		return p.skip(0)
	}
	text, n, e := p.long(field, "a string of base64")
	if e != nil {
		return e
	}
	p.blobs++
	if isDataURL(text) || isBase64(text) {
		p.blobBytes += n
		return nil
	}
	return p.host(text, field)
}

// long reads a string that may have megabytes, and returns its length in the body. The
// string is valid until the next read.
func (p *walker) long(field, what string) (text []byte, n int64, e *Error) {
	if k := p.d.PeekKind(); k != '"' && k != 0 {
		return nil, 0, bad("invalid_type", field, "\""+field+"\" must be "+what+".")
	}
	raw, err := p.d.ReadValue()
	if err != nil {
		return nil, 0, syntax(err)
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1], int64(len(raw)), nil
	}
	if p.text, err = jsontext.AppendUnquote(p.text[:0], raw); err != nil {
		return nil, 0, syntax(err)
	}
	return p.text, int64(len(raw)), nil
}

// host adds the host of a URL that the provider fetches.
func (p *walker) host(url []byte, field string) *Error {
	h := hostOf(string(url))
	if strings.HasSuffix(h, "generativelanguage.googleapis.com") || strings.HasPrefix(h, "generativelanguage.") {
		return isStored(field) // an uploaded file
	}
	if h == unknownHost && snake(field) == "file_uri" {
		return isStored(field) // "files/…", "gs://…": an uploaded file, or possibly one
	}
	if len(p.hosts) >= maxURLs {
		return bad("too_many_urls", field, "The request has more than "+strconv.Itoa(maxURLs)+" URLs.")
	}
	p.hosts = append(p.hosts, h)
	return nil
}

// options searches stream_options for include_usage.
func (p *walker) options(s *shape, field string, depth int) *Error {
	if p.d.PeekKind() != '{' {
		p.call.usageSaid = true // null, or a value that the provider rejects
		return p.skip(depth)
	}
	from := int(p.d.InputOffset())
	if e := p.object(s, field, depth+1); e != nil {
		return e
	}
	v := p.body[from:p.d.InputOffset()]
	p.call.optionsAt = from + bytes.IndexByte(v, '{')
	p.call.usageSaid = bytes.Contains(v, []byte(`"include_usage"`)) || bytes.IndexByte(v, '\\') >= 0
	return nil
}

func tooDeep() *Error {
	return bad("invalid_json", "", "The body is nested more than "+strconv.Itoa(maxDepth)+" deep.")
}

// asError converts an error that is an *Error.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return syntax(err)
}

func mustBe(err error, field, what string) *Error {
	if errors.Is(err, errType) {
		return bad("invalid_type", field, "\""+field+"\" must be "+what+".")
	}
	return asError(err)
}

// syntax returns where the body is not strict JSON. It quotes nothing from the body except
// a repeated name.
func syntax(err error) *Error {
	var s *jsontext.SyntacticError
	if !errors.As(err, &s) {
		return bad("invalid_json", "", "The body ends inside its JSON object.")
	}
	at := " at byte " + strconv.FormatInt(s.ByteOffset, 10) + "."
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		name := Clip(s.JSONPointer.LastToken(), 64)
		return bad("repeated_field", name, "The body has the field "+strconv.Quote(name)+" twice"+at+" Parsers differ in the one that they use.")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return bad("invalid_json", "", "The body ends inside its JSON object.")
	case s.Err != nil && strings.Contains(s.Err.Error(), "UTF-8"):
		return bad("invalid_json", "", "The body is not valid UTF-8"+at)
	}
	return bad("invalid_json", "", "The body is not valid JSON"+at)
}
