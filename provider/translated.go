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

// This file is where OpenAI's chat completions and embeddings are said in another
// provider's words; package translate knows the words.

// translates says whether p serves the call by translation. Mistral's own client
// has the same path for its own format, which passes as it is.
func (p Provider) translates(c Call) bool {
	return slices.Contains(c.Endpoint.Translated, p.Kind) && !(c.Own && slices.Contains(c.Endpoint.Kinds, p.Kind))
}

// OwnClient says whether a request comes from the client that speaks a provider's
// own format under a path that OpenAI has too: Mistral's. It decides in which words
// the request is read at the provider, and nothing else: both are judged alike.
func OwnClient(userAgent string) bool { return strings.HasPrefix(userAgent, "mistral-client-") }

// translated is the request in p's own words, made of the bytes that were judged.
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
		return nil, bad("invalid_request", "", "The request cannot be said to the model's provider.")
	}
}

// drop is what may be left out of a translated request.
func (s Settings) drop() translate.Drop {
	switch {
	case s.Drop == "all" || s.DropUnsupported:
		return translate.DropAll
	case s.Drop == "none":
		return translate.DropNothing
	}
	return translate.DropHints
}

// covers rejects a translated request that asks for something that was not judged. It
// is read again, with the parser of the endpoint that it goes to: what a translator
// understands differently from the parser of the caller's format shows here, and
// not at the provider. This costs a second pass over the body.
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
		sent.Tools = nil // the caller has none: it is how JSON is asked for
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

// unfolded rejects "models/" before the name of a model where it would be sent: some
// servers take it off and others do not, so that the name that was evaluated and the one
// that is called could differ.
func unfolded() *Error {
	return bad("invalid_model", "model", "Write the model's name without \"models/\" before it.")
}

// within says whether all of some are in all, which is sorted.
func within(some, all []string) bool {
	for _, s := range some {
		if _, ok := slices.BinarySearch(all, s); !ok {
			return false
		}
	}
	return true
}

// lastSegment is what follows the last slash of a path.
func lastSegment(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// Translated says whether the body and the answer are in other words than the
// caller's. Then the answer has to be read with NewResponseReader of f.
func (f Forward) Translated() bool { return f.translation != nil }

// Dropped are the parts of the request that are left out on the way: fields that the
// provider cannot carry (settings.drop), and headers that it does not take, as
// "header:NAME". A name that is not made as names are is only counted: this goes
// into a header and into the audit log.
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

// fieldPath is how the way to a field is written: "messages[2].content[0].input_audio".
var fieldPath = regexp.MustCompile(`^[A-Za-z0-9_.\[\]-]{1,120}$`)

// NewResponseReader reads the answer to a request that was translated and says it in the
// caller's words. status and contentType are the provider's; now and id are asked
// for what the provider does not say: when, and an id for the answer. What was used
// is read from the provider's own words, as for its own clients: they say more of
// what is billed than the caller's format has a place for.
func (f Forward) NewResponseReader(status int, contentType string, now func() time.Time, id func() string) *ResponseReader {
	path, _, _ := strings.Cut(f.translation.Path, "?")
	own, _, _ := Match(http.MethodPost, path) // TestForwardTranslated: there is one
	a := reader(own.reads, status, contentType)
	a.translated = f.translation.Answer(status, contentType, now, id)
	return a
}

// Failed says that an answer is an error, or ends in one, whatever its status is.
func (a *ResponseReader) Failed() bool {
	return a.failed || a.translated != nil && a.translated.Failed()
}

// Lost names what a translated answer had that the caller's format has no place for.
func (a *ResponseReader) Lost() []string {
	if a.translated == nil {
		return nil
	}
	return a.translated.Lost()
}

// Translated is the translator of the answer, nil if it passes in the words that
// it came in.
func (a *ResponseReader) Translated() *translate.Response { return a.translated }
