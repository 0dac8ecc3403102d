package provider

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/ai-identity/ai-identity/provider/translate"
)

// Forward is how an allowed request is sent.
type Forward struct {
	Cluster string            // the only destination
	Path    string            // with the query
	Set     map[string]string // headers, names in lower case; the credential is among them
	Body    []byte            // nil: the call's own, as it was evaluated
	Sent    []string          // values that must not come back: forms of the credential, and headers and parameters that may be secret

	// Remove are headers of the request that this provider does not get: see HeaderOf.
	Remove []string

	betas []string // header values that are not forwarded, as "anthropic-beta=VALUE"
	added string   // the field that caps the output, if the client sets none
	cap   int64    // and its value

	translation *translate.Request // nil: the provider has the caller's format
}

// serves reports whether p can serve the endpoint, natively or by translation.
func (p Provider) serves(ep Endpoint) bool {
	return slices.Contains(ep.Kinds, p.Kind) || slices.Contains(ep.Translated, p.Kind)
}

// Forward returns a call's destination and credential. path and query are as received. The
// path that is sent is made from the endpoint and the call's parameters, which were
// evaluated. The credential is bound to the cluster: a provider whose Cluster is not its
// ClusterName gets no credential.
func (p Provider) Forward(c Call, path, query string) (Forward, *Error) {
	if !p.serves(c.Endpoint) {
		return Forward{}, bad("unsupported_endpoint", "model", "This model's provider is of kind "+p.Kind+", which does not serve "+c.Endpoint.Operation+".")
	}
	if c.Params.fill(c.Endpoint.Path) != path {
		return Forward{}, bad("invalid_path", "", "The path is not the one that was evaluated.")
	}
	s, up, e := p.prepared()
	if e != nil {
		return Forward{}, e
	}
	if !p.translates(c) { // a translation has its own list: see FIELDS.md
		r := p.ready
		if r == nil {
			r = p.prepare()
		}
		if e := r.takes(p, c); e != nil {
			return Forward{}, e
		}
	}
	f := Forward{Cluster: p.Cluster, Set: make(map[string]string, len(p.Headers)+5)}
	if e := p.edit(&c, &f, s); e != nil {
		return Forward{}, e
	}
	if e := p.headers(c, s, &f); e != nil {
		return Forward{}, e
	}
	q := query
	if p.translates(c) {
		if f.translation, e = p.translated(c, s, up); e != nil {
			return Forward{}, e
		}
		f.Body = f.translation.Body
		path, q, _ = strings.Cut(f.translation.Path, "?") // the caller's query is empty: OpenAI's endpoints have no parameters
		if e := c.covers(path, q, f.translation); e != nil {
			return Forward{}, e
		}
		for name, value := range f.translation.Header {
			f.Set[name] = value
		}
		f.Set["accept"] = "application/json"
		if f.translation.Stream {
			f.Set["accept"] = "text/event-stream"
		}
	}
	if c.foldered && f.translation == nil {
		return Forward{}, unfolded()
	}
	if c.Stream && s.Answer != nil && s.Answer.Stream == "none" {
		return Forward{}, noStream()
	}
	prefix := up.PathPrefix
	if last := lastSegment(prefix); f.translation != nil && isVersion(last) && p.Kind != KindGemini {
		prefix = strings.TrimSuffix(prefix, "/"+last) // the format is the one of the translation's version
	}
	f.Path = upstreamPath(p.Kind, prefix, c.Endpoint.Path, strings.TrimPrefix(path, ownMistral), s.Paths)
	if strings.Contains(f.Path, "{model}") {
		// From settings.paths: other paths have no braces. A slash changes the segments of
		// the path. So the provider's list must have the exact name, and not a pattern that
		// matches it.
		astray := strings.Contains(c.Model, "/") && !slices.Contains(p.Models, c.Model)
		if f.Path = strings.ReplaceAll(f.Path, "{model}", c.Model); astray || pathProblem(f.Path) != "" {
			return Forward{}, bad("invalid_model", "model", "The model's name cannot be part of its provider's path.")
		}
	}
	for name, h := range p.Headers {
		value := h.value.Reveal()
		if value == "" && h.sealed != "" {
			return Forward{}, misconfigured("its header " + name + " cannot be read")
		}
		f.Set[name] = value
		if !harmlessHeaders[name] && !slices.Contains(s.PublicHeaders, name) {
			f.Sent = append(f.Sent, secretsIn(value)...)
		}
	}
	for _, name := range sortedKeys(s.Query) {
		q = join(q, name, s.Query[name])
		if !PublicQuery(name) {
			f.Sent = append(f.Sent, s.Query[name])
		}
	}
	auth := s.Auth
	if auth == nil {
		auth = defaultAuth(p.Kind)
	}
	secret := p.Credential.Reveal()
	if auth.Type != "none" && secret != "" {
		if !headerValue(secret) {
			return Forward{}, misconfigured("its credential has characters that are not allowed in a header")
		}
		switch auth.Type {
		case "bearer":
			f.Set["authorization"] = "Bearer " + secret
		case "header":
			f.Set[auth.Name] = secret
		case "basic":
			basic := base64.StdEncoding.EncodeToString([]byte(auth.User + ":" + secret))
			f.Sent = append(f.Sent, basic)
			f.Set["authorization"] = "Basic " + basic
		case "query":
			q = join(q, auth.Name, secret)
			f.Sent = append(f.Sent, url.QueryEscape(secret))
		}
	} else if p.HasCredential && auth.Type != "none" {
		return Forward{}, misconfigured("its credential has not arrived yet")
	}
	if q != "" {
		f.Path += "?" + q
	}
	return f, nil
}

// edit makes the two changes to a body that was evaluated: a cap on the output, and a request
// for usage.
func (p Provider) edit(c *Call, f *Forward, s Settings) *Error {
	usage := !p.translates(*c) && p.asksUsage(*c, s)
	field := p.capField(*c)
	if field == "" {
		c.Cap = 0
	}
	if c.Cap == 0 && !usage {
		return nil
	}
	body, ok := c.edited(field, usage)
	if !ok {
		return bad("invalid_type", "generationConfig", "\"generationConfig\" must be an object.")
	}
	if c.Cap > 0 {
		f.added, f.cap = field, c.Cap
	}
	if !p.translates(*c) {
		f.Body = body
		return nil
	}
	c.Body, c.MaxTokens = body, c.Cap
	return nil
}

// Added names the fields that were added to the request, with their values; nil: none.
func (f Forward) Added() []string {
	if f.added == "" {
		return nil
	}
	return []string{f.added + "=" + strconv.FormatInt(f.cap, 10)}
}

// misconfigured is an error that an administrator must correct. It is 503, so that callers
// do not blame their key.
func misconfigured(why string) *Error {
	return &Error{Status: http.StatusServiceUnavailable, Type: "api_error", Code: "provider_misconfigured",
		Message: "The provider of this model cannot be used: " + why + ". An administrator must correct it."}
}

// defaultAuth is how each kind expects its credential.
func defaultAuth(kind string) *Auth {
	switch kind {
	case KindAnthropic:
		return &Auth{Type: "header", Name: "x-api-key"}
	case KindGemini:
		return &Auth{Type: "header", Name: "x-goog-api-key"}
	default:
		return &Auth{Type: "bearer"}
	}
}

// upstreamPath is the path of a request at the provider.
//
// For the kinds openai and custom a base URL has the same meaning as in OpenAI's SDKs. It
// includes the version, and the part of our path after "/v1" is appended to it.
//
//	https://api.openai.com/v1     /v1/chat/completions → /v1/chat/completions
//	https://x.example/openai/v1   /v1/chat/completions → /openai/v1/chat/completions
//	https://x.example             /v1/chat/completions → /v1/chat/completions
//
// For the other kinds it has the same meaning as in their SDKs. It ends before the version.
// A version at its end replaces the client's.
//
//	https://api.anthropic.com     /v1/messages         → /v1/messages
//	https://x.example/anthropic   /v1/messages         → /anthropic/v1/messages
//	https://api.mistral.ai/v1     /v1/chat/completions → /v1/chat/completions
func upstreamPath(kind, prefix, template, path string, paths map[string]string) string {
	if to, ok := paths[template]; ok {
		return prefix + to
	}
	_, rest, _ := strings.Cut(path[1:], "/")
	switch {
	case prefix == "":
		return path
	case kind == KindOpenAI, kind == KindCustom, isVersion(lastSegment(prefix)):
		return prefix + "/" + rest
	default:
		return prefix + path
	}
}

// isVersion reports whether a path's segment is a version: "v1", "v1beta", "v4".
func isVersion(s string) bool {
	return len(s) > 1 && len(s) < 10 && s[0] == 'v' && '0' <= s[1] && s[1] <= '9'
}

// PublicQuery reports whether a parameter of settings.query is known to be no secret. The
// value of any other, such as a signature, is not shown, and is overwritten in responses.
func PublicQuery(name string) bool {
	switch strings.ToLower(name) {
	case "api-version", "apiversion", "version", "v", "alt", "region", "location", "project", "deployment", "model":
		return true
	}
	return false
}

func join(query, name, value string) string {
	pair := url.QueryEscape(name) + "=" + url.QueryEscape(value)
	if query == "" {
		return pair
	}
	return query + "&" + pair
}

func headerValue(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// wantsInjection reports whether the usage of this call would stay unknown, although the
// client did not exclude it.
func (c Call) wantsInjection() bool {
	return c.Endpoint.Operation == "chat.completions" && c.Stream && !c.usageSaid
}

// firstByte returns the first byte of b that is not white space, or 0.
func firstByte(b []byte) byte {
	for _, c := range b {
		if c != ' ' && c != '\t' && c != '\r' && c != '\n' {
			return c
		}
	}
	return 0
}
