package provider

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Kinds of provider: the API that it has.
const (
	KindOpenAI    = "openai" // and compatible servers: Azure's v1 API, vLLM, …
	KindAnthropic = "anthropic"
	KindGemini    = "gemini"
	KindCohere    = "cohere"
	KindMistral   = "mistral"
	KindCustom    = "custom" // any server that accepts OpenAI's formats; see Settings
)

// Kinds are all kinds, in the order of lists for people.
func Kinds() []string {
	return []string{KindOpenAI, KindAnthropic, KindGemini, KindCohere, KindMistral, KindCustom}
}

// Endpoint is one row of the table of endpoints.
type Endpoint struct {
	Method    string
	Path      string // a template: {version} is one of v1, v1beta, v1alpha; {model} is a model's name
	Operation string // as in policy and in the audit log: "chat.completions"
	Scope     string // which a key must have: "chat:completions"
	Format    Format // of its requests, responses and errors

	// Kinds are the kinds of provider that have this format. Empty: the gateway responds
	// itself.
	Kinds []string

	// Translated are the kinds that serve the endpoint by translation of request and
	// response (see package translate). No kind is in both lists.
	Translated []string

	// Bills reports whether a provider charges for a call. See Charges.
	Bills bool

	model string   // the model of a request without one; "": a model is required
	free  []string // kinds that do not charge although others do
	query []string // the only query parameters, as "name=value"

	// listQuery are query parameters that are accepted with any value and have no effect.
	// Only an endpoint that the gateway answers has them. A forwarded endpoint has query.
	listQuery []string

	body   *shape   // the evaluated members of the body; nil: there is no body
	stream bool     // the response is a stream for every body
	reads  *reading // where the response has usage and model
}

// Charges reports whether a provider of the kind charges for a call. OpenAI does not charge
// for moderation; Mistral does.
func (e Endpoint) Charges(kind string) bool { return e.Bills && !slices.Contains(e.free, kind) }

// ScopeOf is the scope that a key needs for an operation, or "" for an unknown one. All
// endpoints of one operation need the same scope.
func ScopeOf(operation string) string {
	for i := range endpoints {
		if endpoints[i].Operation == operation {
			return endpoints[i].Scope
		}
	}
	return ""
}

// Params are the variable parts of a path.
type Params struct {
	Version string // "v1beta"; "" if the template has none
	Model   string // "" if the template has none
}

// endpoints is the table. It is never changed.
var endpoints = closeEndpoints(vocabularies, withOwn([]Endpoint{
	// OpenAI. Mistral and many servers have some of these endpoints too.
	{Method: "POST", Path: "/v1/chat/completions", Operation: "chat.completions", Scope: "chat:completions", Format: FormatOpenAI,
		Kinds: []string{KindOpenAI, KindCustom}, Translated: []string{KindAnthropic, KindGemini, KindCohere, KindMistral},
		Bills: true, body: &chatBody, reads: &openAIReading},
	{Method: "POST", Path: "/v1/completions", Operation: "completions", Scope: "completions", Format: FormatOpenAI,
		Kinds: []string{KindOpenAI, KindCustom}, Bills: true, body: &completionsBody, reads: &openAIReading},
	{Method: "POST", Path: "/v1/embeddings", Operation: "embeddings", Scope: "embeddings", Format: FormatOpenAI,
		Kinds: []string{KindOpenAI, KindCustom}, Translated: []string{KindGemini, KindCohere, KindMistral},
		Bills: true, body: &embeddingsBody, reads: &openAIReading},
	{Method: "POST", Path: "/v1/responses", Operation: "responses", Scope: "responses", Format: FormatOpenAI,
		Kinds: []string{KindOpenAI, KindCustom}, Bills: true, body: &responsesBody, reads: &responsesReading},
	{Method: "POST", Path: "/v1/moderations", Operation: "moderations", Scope: "moderations", Format: FormatOpenAI,
		Kinds: []string{KindOpenAI, KindMistral, KindCustom}, Bills: true, free: []string{KindOpenAI}, model: "omni-moderation-latest", body: &moderationsBody, reads: &openAIReading},
	{Method: "GET", Path: "/v1/models", Operation: "models.list", Scope: "models", Format: FormatOpenAI,
		query: []string{"alt=json", "beta=true"}, listQuery: modelsQuery},
	{Method: "GET", Path: "/v1/models/{model}", Operation: "models.get", Scope: "models", Format: FormatOpenAI, query: []string{"alt=json", "beta=true"}},

	{Method: "GET", Path: "/{version}/models", Operation: "models.list", Scope: "models", Format: FormatGemini, query: []string{"alt=json"}, listQuery: modelsQuery},
	{Method: "GET", Path: geminiModelPath, Operation: "models.get", Scope: "models", Format: FormatGemini, query: []string{"alt=json"}},

	// Anthropic. Its SDK adds beta=true for features in beta.
	{Method: "POST", Path: "/v1/messages", Operation: "messages", Scope: "messages", Format: FormatAnthropic,
		Kinds: []string{KindAnthropic}, Bills: true, query: anthropicBeta, body: &messagesBody, reads: &anthropicReading},
	{Method: "POST", Path: "/v1/messages/count_tokens", Operation: "messages.count_tokens", Scope: "messages", Format: FormatAnthropic,
		Kinds: []string{KindAnthropic}, query: anthropicBeta, body: &messagesBody, reads: &nothingReading},

	// Gemini. The path has the model, and the method decides whether the response is a
	// stream.
	{Method: "POST", Path: "/{version}/models/{model}:generateContent", Operation: "generate_content", Scope: "generate", Format: FormatGemini,
		Kinds: []string{KindGemini}, Bills: true, query: []string{"alt=json"}, body: &generateBody, reads: &geminiReading},
	{Method: "POST", Path: "/{version}/models/{model}:streamGenerateContent", Operation: "generate_content", Scope: "generate", Format: FormatGemini,
		Kinds: []string{KindGemini}, Bills: true, query: []string{"alt=json", "alt=sse"}, body: &generateBody, stream: true, reads: &geminiReading},
	{Method: "POST", Path: "/{version}/models/{model}:embedContent", Operation: "embed_content", Scope: "embeddings", Format: FormatGemini,
		Kinds: []string{KindGemini}, Bills: true, query: []string{"alt=json"}, body: &embedContentBody, reads: &geminiReading},
	{Method: "POST", Path: "/{version}/models/{model}:batchEmbedContents", Operation: "batch_embed_contents", Scope: "embeddings", Format: FormatGemini,
		Kinds: []string{KindGemini}, Bills: true, query: []string{"alt=json"}, body: &batchEmbedBody, reads: &geminiReading},
	{Method: "POST", Path: "/{version}/models/{model}:countTokens", Operation: "count_tokens", Scope: "generate", Format: FormatGemini,
		Kinds: []string{KindGemini}, query: []string{"alt=json"}, body: &countTokensBody, reads: &nothingReading},

	// Cohere, version 2.
	{Method: "POST", Path: "/v2/chat", Operation: "chat", Scope: "chat:completions", Format: FormatCohere,
		Kinds: []string{KindCohere}, Bills: true, body: &chatBody, reads: &cohereReading},
	{Method: "POST", Path: "/v2/embed", Operation: "embed", Scope: "embeddings", Format: FormatCohere,
		Kinds: []string{KindCohere}, Bills: true, body: &cohereEmbedBody, reads: &cohereReading},
	{Method: "POST", Path: "/v2/rerank", Operation: "rerank", Scope: "rerank", Format: FormatCohere,
		Kinds: []string{KindCohere}, Bills: true, body: &rerankBody, reads: &cohereReading},

	// Mistral, where it differs from OpenAI.
	{Method: "POST", Path: "/v1/fim/completions", Operation: "fim.completions", Scope: "completions", Format: FormatMistral,
		Kinds: []string{KindMistral}, Bills: true, body: &completionsBody, reads: &openAIReading},
	{Method: "POST", Path: "/v1/ocr", Operation: "ocr", Scope: "ocr", Format: FormatMistral,
		Kinds: []string{KindMistral}, Bills: true, body: &ocrBody, reads: &nothingReading},
}))

// ownMistral is the prefix of the paths of Mistral's own format. Mistral's API has some of
// OpenAI's paths, and a user agent is only a hint. So the client's base URL selects the
// format.
const ownMistral = "/mistral"

// withOwn adds the endpoints of Mistral's API under ownMistral. Only providers of kind
// mistral serve them, without translation.
func withOwn(table []Endpoint) []Endpoint {
	for _, e := range slices.Clone(table) {
		lists := e.Kinds == nil && e.Format == FormatOpenAI
		if !lists && !slices.Contains(e.Kinds, KindMistral) && !slices.Contains(e.Translated, KindMistral) {
			continue
		}
		e.Path, e.Format, e.Translated = ownMistral+e.Path, FormatMistral, nil
		if !lists {
			e.Kinds = []string{KindMistral}
		}
		table = append(table, e)
	}
	return table
}

// modelsQuery are the documented parameters of each client's list of models. The list
// is always complete, on one page.
//
// Sources: https://docs.anthropic.com/en/api/models-list, https://ai.google.dev/api/models,
// https://docs.cohere.com/reference/list-models, and the Mistral SDK's models.list.
var modelsQuery = []string{"limit", "before_id", "after_id", "pageSize", "pageToken", "page_size", "page_token", "endpoint", "default_only", "provider", "model",
	"queryBase", "filter"}

// anthropicBeta are the query parameters that versions of Anthropic's SDK send for beta
// features. Versions before 0.42 name the feature. The header anthropic-beta names it in
// all versions.
var anthropicBeta = []string{"beta=true", "beta=prompt_caching", "beta=tools"}

// versions are the values of {version}.
var versions = []string{"v1", "v1beta", "v1alpha"}

// Scopes are the scopes that a key may have, sorted. They do not include "*", which stands
// for all of them.
func Scopes() []string {
	var out []string
	for _, e := range endpoints {
		if !slices.Contains(out, e.Scope) {
			out = append(out, e.Scope)
		}
	}
	slices.Sort(out)
	return out
}

// Endpoints is a copy of the table, for docs and tests.
func Endpoints() []Endpoint { return slices.Clone(endpoints) }

// Match finds the endpoint of a request. path is as received, without the query. It must be
// in the one form that has no other spelling: see pathProblem. Without an endpoint,
// Unserved returns the reason.
//
// One other spelling is accepted: a model's name in GET /v1/models/{model} may be
// percent-encoded, as the SDKs of OpenAI and Anthropic write "meta-llama%2FLlama-3". That
// request is answered here, so no other server reads its path.
func Match(method, path string) (Endpoint, Params, bool) {
	for _, models := range []string{"/v1/models/", ownMistral + "/v1/models/"} {
		if encoded, ok := strings.CutPrefix(path, models); ok && method == http.MethodGet && strings.Contains(encoded, "%") {
			if name, err := url.PathUnescape(encoded); err == nil {
				path = models + name // pathProblem rejects a path that is encoded twice
			}
		}
	}
	if pathProblem(path) != "" {
		return Endpoint{}, Params{}, false
	}
	for i := range endpoints {
		if endpoints[i].Method != method {
			continue
		}
		if p, ok := endpoints[i].match(path); ok {
			return endpoints[i], p, true
		}
	}
	return Endpoint{}, Params{}, false
}

// match matches a path with the endpoint's.
func (e Endpoint) match(path string) (Params, bool) {
	p, ok := matchPath(e.Path, path)
	if ok && e.Path == geminiModelPath && strings.ContainsAny(p.Model, ":/") {
		return Params{}, false // an operation on a model that is not in the table
	}
	return p, ok
}

// geminiModelPath is the beginning of every path of Gemini's.
const geminiModelPath = "/{version}/models/{model}"

// matchPath matches a path with a template.
func matchPath(template, path string) (Params, bool) {
	var p Params
	for {
		literal, rest, variable := strings.Cut(template, "{")
		if !variable {
			return p, template == path
		}
		var ok bool
		if path, ok = strings.CutPrefix(path, literal); !ok {
			return p, false
		}
		name, after, _ := strings.Cut(rest, "}")
		value := path
		switch {
		case after == "":
			path = ""
		case name == "version":
			value, _, _ = strings.Cut(path, "/")
			path = path[len(value):]
		default: // the rest is literal
			if value, ok = strings.CutSuffix(path, after); !ok || strings.Contains(value, "/") {
				return p, false
			}
			path = after
		}
		switch name {
		case "version":
			if !slices.Contains(versions, value) {
				return p, false
			}
			p.Version = value
		case "model":
			if modelProblem(value) != "" {
				return p, false
			}
			p.Model = value
		}
		template = after
	}
}

// fill returns a template's path with its parameters. It reverses matchPath.
func (p Params) fill(template string) string {
	if !strings.Contains(template, "{") {
		return template
	}
	return strings.NewReplacer("{version}", p.Version, "{model}", p.Model).Replace(template)
}

// pathProblem returns what is wrong with the spelling of a path, or "". Every server reads
// a path without problems alike: no part of it can be decoded, merged, resolved or cut off.
// Percent-encoding is rejected completely, since every path of the table and every model's
// name can be written without it.
func pathProblem(path string) string {
	if path == "" || path[0] != '/' {
		return "it must begin with a slash"
	}
	if len(path) > 1024 {
		return "it is too long"
	}
	for i := range len(path) {
		switch c := path[i]; {
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9':
		case c == '/':
			rest := path[i+1:]
			if rest == "" && i > 0 {
				return "it must not end with a slash"
			}
			segment, _, _ := strings.Cut(rest, "/")
			switch segment {
			case "":
				if rest != "" {
					return "it has an empty segment"
				}
			case ".", "..":
				return "it has a dot segment"
			}
		case c == '%':
			return "it must not be percent-encoded"
		case strings.IndexByte("-._~:@!$&'()*+,=", c) >= 0: // pchar of RFC 3986, without ";"
		default:
			return "it has a character that no endpoint has"
		}
	}
	return ""
}

// geminiMethod reports whether a path ends in one of Google's methods, such as
// ":generateContent". A method has letters only, begins with a lower-case letter and has an
// upper-case one. A colon alone is not enough: OpenAI's fine-tuned models have one, as
// "ft:gpt-4o:acme::7p4lURel".
func geminiMethod(path string) bool {
	i := strings.LastIndexByte(path, ':')
	if i < 0 || strings.HasPrefix(path, "/v1/models/ft:") {
		return false
	}
	upper := false
	for j, c := range []byte(path[i+1:]) {
		switch {
		case 'a' <= c && c <= 'z':
		case 'A' <= c && c <= 'Z' && j > 0:
			upper = true
		default:
			return false
		}
	}
	return upper
}

// FormatOf returns the format in which a client of the path expects an error, even if there
// is no such endpoint.
func FormatOf(path string) Format {
	switch {
	case path == "/v1/messages", strings.HasPrefix(path, "/v1/messages/"), path == "/v1/complete":
		return FormatAnthropic
	case strings.HasPrefix(path, "/v1beta/"), strings.HasPrefix(path, "/v1alpha/"),
		strings.HasPrefix(path, "/v1/models/") && geminiMethod(path):
		return FormatGemini
	case strings.HasPrefix(path, "/v2/"):
		return FormatCohere
	case strings.HasPrefix(path, "/v1/fim/"), path == "/v1/ocr", strings.HasPrefix(path, ownMistral+"/"):
		return FormatMistral
	default:
		return FormatOpenAI
	}
}

// Unserved returns the error for a request that Match does not find. The status is 400 for a
// path that is not in normal form, 405 for a wrong method, and 404 for an unknown endpoint.
// Endpoints that callers often expect have reasons of their own. The error names the path
// and the nearest served path. The table is public, so a caller without a key may get this
// error too.
func Unserved(method, path string) *Error {
	hint := ""
	if near := nearest(method, path); near != "" {
		hint = " Use " + near + ": check the base URL of your client."
	}
	if p := pathProblem(path); p != "" {
		return &Error{Status: http.StatusBadRequest, Type: invalidRequest, Code: "invalid_path",
			Message: "The path " + quoted(path) + " is not in its normal form: " + p + "." + hint}
	}
	for _, e := range endpoints {
		if _, ok := e.match(path); ok && e.Method != method {
			return &Error{Status: http.StatusMethodNotAllowed, Type: invalidRequest, Code: "method_not_allowed",
				Message: "The path " + quoted(path) + " is available with " + e.Method + " only." + preflight(method)}
		}
	}
	e := &Error{Status: http.StatusNotFound, Type: invalidRequest, Code: "unknown_endpoint"}
	_, rest, _ := strings.Cut(path[1:], "/")
	first, after, _ := strings.Cut(rest, "/")
	switch {
	case first == "batches", strings.HasPrefix(after, "batches"), strings.HasSuffix(path, ":batchGenerateContent"), strings.HasSuffix(path, ":asyncBatchEmbedContent"), first == "embed-jobs":
		e.Message = "Batches are not available here, since policy cannot evaluate the requests in their file. Send each request separately."
	case first == "responses" && (after == "input_tokens" || after == "compact"):
		e.Message = "Counting tokens and compacting are not available for responses. Send the request to /v1/responses."
	case first == "files", first == "uploads", first == "datasets":
		e.Message = "Files are not available here, since content that is stored at the provider is not governed. Put the content into the request."
	case first == "realtime", first == "live", strings.HasSuffix(path, ":bidiGenerateContent"):
		e.Message = "Realtime sessions are not available here: the model can change in the middle of one. Use a plain HTTP request."
	case slices.Contains([]string{"assistants", "threads", "vector_stores", "conversations", "containers", "prompts", "evals", "agents", "cachedContents", "fileSearchStores", "tunedModels", "skills"}, first),
		first == "responses" && after != "", first == "chat" && strings.HasPrefix(after, "completions/"):
		e.Message = "Objects that are stored at the provider are not available here: their owner is not known. Send the whole conversation with each request."
	case first == "fine_tuning", first == "fine-tunes", first == "finetuning":
		e.Message = "Fine-tuning is not available here."
	case first == "audio", first == "images", first == "videos":
		e.Message = "Audio, image and video endpoints are not available here yet."
	case hint != "":
		e.Message = "The path " + quoted(path) + " is not available here." + hint
	default:
		e.Message = "The path " + quoted(path) + " is not available here. Only known endpoints are forwarded, since others cannot be governed."
	}
	e.Message += preflight(method)
	return e
}

// preflight returns advice for the scripts of a web page.
func preflight(method string) string {
	if method != http.MethodOptions {
		return ""
	}
	return " Scripts of web pages may call this gateway only from the origins in its setting --cors-origins."
}

// quoted returns a path for a message: at most 100 bytes of it, and in ASCII.
func quoted(path string) string {
	const most = 100
	if len(path) > most {
		path = path[:most] + "…"
	}
	return strconv.QuoteToASCII(path)
}

// nearest returns the method and path that a caller most likely meant, or "". It finds
// these mistakes:
//
//   - a base URL without /v1, with /v1 twice or with the path of another gateway
//   - another version
//   - one letter too many or too few
func nearest(method, path string) string {
	if len(path) > 1024 || strings.ContainsAny(path, "%\\;") {
		return ""
	}
	segments := slices.DeleteFunc(strings.Split(path, "/"), func(s string) bool { return s == "" || s == "." || s == ".." })
	versioned := []string{"/", "/v1/", "/v1beta/", "/v2/"}
	if len(segments) > 0 && "/"+segments[0] == ownMistral {
		segments, versioned = segments[1:], []string{ownMistral + "/", ownMistral + "/v1/"}
	}
	for i := range segments {
		for _, version := range versioned {
			if near := servedAt(method, version+strings.Join(segments[i:], "/")); near != "" {
				return near
			}
		}
	}
	cleaned := "/" + strings.Join(segments, "/")
	for i := range endpoints {
		if e := &endpoints[i]; !strings.Contains(e.Path, "{") && (oneEdit(cleaned, e.Path) || len(segments) > 1 && strings.HasPrefix(e.Path, cleaned+"/")) {
			return e.Method + " " + e.Path
		}
	}
	return ""
}

// servedAt returns a path with the method for which it is served, or "". The caller's own
// method is preferred.
func servedAt(method, path string) string {
	if pathProblem(path) != "" {
		return ""
	}
	with := ""
	for i := range endpoints {
		if _, ok := endpoints[i].match(path); ok && (with == "" || endpoints[i].Method == method) {
			with = endpoints[i].Method
		}
	}
	if with == "" {
		return ""
	}
	return with + " " + strings.Trim(quoted(path), `"`)
}

// oneEdit reports whether a becomes b by one letter that is added, removed or changed.
func oneEdit(a, b string) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	if len(b)-len(a) > 1 {
		return false
	}
	i := 0
	for i < len(a) && a[i] == b[i] {
		i++
	}
	return a[i:] == b[i+1:] || len(a) == len(b) && i < len(a) && a[i+1:] == b[i+1:]
}
