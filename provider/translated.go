package provider

import (
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ai-identity/ai-identity/provider/translate"
)

// This file translates OpenAI's chat completions and embeddings for providers with other
// formats. Package translate implements the formats.

// translates reports whether p serves the call by translation.
func (p Provider) translates(c Call) bool { return slices.Contains(c.Endpoint.Translated, p.Kind) }

// translated is the request in p's format, made from the evaluated bytes.
func (p Provider) translated(c Call, s Settings, up Upstream) (*translate.Request, *Error) {
	o := translate.Options{Drop: s.drop(), DefaultMaxTokens: s.MaxTokens, EmbeddingInputType: s.InputType}
	if last := lastSegment(up.PathPrefix); p.Kind == KindGemini && isVersion(last) {
		o.GeminiVersion = last
	}
	into := translate.Chat
	if c.Endpoint.Operation == "embeddings" {
		into = translate.Embeddings
	}
	r, err := into(p.Kind, c.Body, o)
	var cannot *translate.Unsupported
	var invalid *translate.Invalid
	switch {
	case err == nil:
		return &r, nil
	case errors.As(err, &cannot):
		return nil, &Error{Status: http.StatusUnprocessableEntity, Type: invalidRequest, Code: "unsupported_by_provider", Param: Clip(cannot.Field, 256),
			Message: Clip(cannot.Error(), 1024) + "."}
	case errors.As(err, &invalid):
		return nil, bad("invalid_request", Clip(invalid.Field, 256), Clip(invalid.Error(), 1024)+".")
	default:
		return nil, bad("invalid_request", "", "The request cannot be translated for the model's provider.")
	}
}

// drop is the set of fields that a translated request may leave out.
func (s Settings) drop() translate.Drop {
	switch {
	case s.Drop == "all" || s.DropUnsupported:
		return translate.DropAll
	case s.Drop == "none":
		return translate.DropNothing
	}
	return translate.DropHints
}

// covers rejects a translated request that asks for something that was not evaluated. The
// request is parsed again, with the parser of the provider's endpoint. So a difference
// between the translator and the first parser is found here, and not at the provider. This
// costs a second pass over the body.
func (c Call) covers(path, query string, r *translate.Request) *Error {
	ep, params, ok := Match(http.MethodPost, path)
	if !ok {
		return misconfigured("its base URL has a version that is not known here")
	}
	sent, e := Parse(ep, params, "application/json", query, r.Body)
	if e != nil {
		e.Message = "In the format of the model's provider: " + e.Message
		return e
	}
	if r.AsJSON() && slices.Equal(sent.Tools, []string{translate.JSONTool}) {
		sent.Tools = nil // the caller has no tools: the translation uses one to request JSON
	}
	what := ""
	switch {
	case sent.foldered:
		return unfolded()
	case sent.Model != c.Model:
		what = "another model"
	case sent.Stream != c.Stream:
		what = "another kind of response"
	case c.MaxTokens > 0 && sent.MaxTokens > c.MaxTokens:
		what = "more tokens"
	case !within(sent.Tools, c.Tools):
		what = "another tool"
	case !within(sent.Hosts, c.Hosts):
		what = "another host"
	default:
		return nil
	}
	return bad("ambiguous_request", "", "In the format of the model's provider this request would ask for "+what+" than the one that was evaluated. It is not forwarded.")
}

// unfolded rejects "models/" before the name of a model that would be forwarded. Some
// servers remove it and others do not, so the evaluated model and the called one could
// differ.
func unfolded() *Error {
	return bad("invalid_model", "model", "Write the model's name without \"models/\" before it. If the server has the model under that name, an administrator adds it to the models of its provider.")
}

// within reports whether all of some are in all, which is sorted.
func within(some, all []string) bool {
	for _, s := range some {
		if _, ok := slices.BinarySearch(all, s); !ok {
			return false
		}
	}
	return true
}

// lastSegment returns the text after the last slash of a path.
func lastSegment(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// Translated reports whether the provider's format differs from the caller's. Then the
// response must be read with NewResponseReader of f.
func (f Forward) Translated() bool { return f.translation != nil }

// Dropped lists the parts of the request that are not forwarded. These are fields that the
// provider does not support (see Settings.Drop), and headers that it does not accept, as
// "header:NAME". A name with unusual characters is only counted, since the list goes into a header and
// into the audit log.
func (f Forward) Dropped() []string {
	var out []string
	odd := 0
	if f.translation != nil {
		for _, field := range f.translation.Dropped {
			if !fieldPath.MatchString(field) {
				odd++
				continue
			}
			out = append(out, field)
		}
	}
	for _, beta := range f.betas {
		if !betaValue.MatchString(beta) {
			odd++
			continue
		}
		out = append(out, "header:"+beta)
	}
	for _, name := range f.Remove {
		if useOf(name) == unknownHeader && (!headerName.MatchString(name) || len(name) > 64) {
			odd++
			continue
		}
		out = append(out, "header:"+name)
	}
	if odd > 0 {
		out = append(out, "other:"+strconv.Itoa(odd))
	}
	return out
}

// fieldPath matches the path of a field: "messages[2].content[0].input_audio".
var fieldPath = regexp.MustCompile(`^[A-Za-z0-9_.\[\]-]{1,120}$`)

// NewResponseReader returns a reader that translates the response to a translated request.
// status and contentType are the provider's. now and id supply the time and the id if the
// response has none. Usage is read from the provider's format, as for its own clients: it
// has more billing details than the caller's format.
func (f Forward) NewResponseReader(status int, contentType string, now func() time.Time, id func() string) *ResponseReader {
	path, _, _ := strings.Cut(f.translation.Path, "?")
	own, _, _ := Match(http.MethodPost, path) // TestForwardTranslated: there is one
	a := reader(own.reads, status, contentType)
	a.translated = f.translation.Answer(status, contentType, now, id)
	return a
}

// Failed reports whether a response is an error, or ends in one, for every status.
func (a *ResponseReader) Failed() bool {
	return a.failed || a.translated != nil && a.translated.Failed()
}

// Lost lists the parts of a translated response that the caller's format does not support.
func (a *ResponseReader) Lost() []string {
	if a.translated == nil {
		return nil
	}
	return a.translated.Lost()
}

// Translated returns the translator of the response, or nil if the response passes
// unchanged.
func (a *ResponseReader) Translated() *translate.Response { return a.translated }
