package provider

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/ai-identity/ai-identity/provider/translate"
)

// CustomAnswer describes how the responses of a provider of kind custom differ from
// OpenAI's. Its JSON pointers (RFC 6901), such as "/meta/tokens/in", apply to a response
// that is not streamed, and to each event of a stream.
type CustomAnswer struct {
	Model string       `json:"model,omitempty" yaml:"model"` // the model that responded; absent: /model
	Usage *CustomUsage `json:"usage,omitempty" yaml:"usage"` // absent: as in OpenAI's API
	Error string       `json:"error,omitempty" yaml:"error"` // the error message; absent: as in OpenAI's and other APIs

	// Stream is the framing of a streamed response. "sse" and "ndjson" count more than its
	// content-type. With "none" requests for a stream are rejected. NDJSON becomes
	// server-sent events, as the caller requested. Absent: as the content-type declares,
	// and unchanged.
	Stream string `json:"stream,omitempty" yaml:"stream"`
}

// CustomUsage has the places of the counts. An absent count is not known. In a stream, the
// last value of each count is used.
type CustomUsage struct {
	Input      string `json:"input,omitempty" yaml:"input"`
	Output     string `json:"output,omitempty" yaml:"output"`
	Cached     string `json:"cached,omitempty" yaml:"cached"`
	CacheWrite string `json:"cache_write,omitempty" yaml:"cache_write"`
	Reasoning  string `json:"reasoning,omitempty" yaml:"reasoning"`
}

// pointer splits a JSON pointer. It may lead through objects only, at most as deep as a
// scanner can search.
func pointer(field, s string) ([]string, error) {
	rest, ok := strings.CutPrefix(s, "/")
	if !ok {
		return nil, &Invalid{field, `it must be a JSON pointer, such as "/usage/input"`}
	}
	names := strings.Split(rest, "/")
	if len(names) > maxPlaces {
		return nil, &Invalid{field, fmt.Sprintf("it must not be more than %d names deep", maxPlaces)}
	}
	for i, name := range names {
		bare := strings.NewReplacer("~0", "", "~1", "").Replace(name)
		name = strings.NewReplacer("~1", "/", "~0", "~").Replace(name)
		names[i] = name
		odd := func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '"' || r == '\\' }
		if name == "" || len(name) > maxWanted || strings.Contains(bare, "~") || strings.ContainsFunc(name, odd) {
			return nil, &Invalid{field, fmt.Sprintf("its names must be 1 to %d characters of visible ASCII, without quotes and backslashes", maxWanted)}
		}
	}
	return names, nil
}

// reading returns where the responses have usage and model. The error names the field.
func (c *CustomAnswer) reading() (*reading, error) {
	r := &reading{usage: openAIReading.usage}
	add := func(field, at string, w want) error {
		if at == "" {
			return nil
		}
		names, err := pointer("settings.answer."+field, at)
		if err != nil {
			return err
		}
		if !r.root.add(names, w) {
			return &Invalid{"settings.answer." + field, "another pointer leads to the same value, or into it"}
		}
		if w != wantModel {
			r.marked = append(r.marked, strconv.AppendQuote(nil, names[len(names)-1]))
		}
		return nil
	}
	if u := c.Usage; u != nil {
		for _, f := range []struct {
			field, at string
			want      want
		}{
			{"usage.input", u.Input, wantInput}, {"usage.output", u.Output, wantOutput}, {"usage.cached", u.Cached, wantCached},
			{"usage.cache_write", u.CacheWrite, wantCacheWrite}, {"usage.reasoning", u.Reasoning, wantReasoning},
		} {
			if err := add(f.field, f.at, f.want); err != nil {
				return nil, err
			}
		}
		if len(r.marked) == 0 {
			return nil, &Invalid{"settings.answer.usage", "it must have the place of at least one count"}
		}
	} else if err := add("usage", "/usage", wantUsage); err != nil {
		return nil, err
	}
	model := c.Model
	if model == "" {
		model = "/model"
	}
	if err := add("model", model, wantModel); err != nil {
		return nil, err
	}
	return r, nil
}

// add adds a value to find under the names. It reports whether there was room.
func (p *place) add(names []string, w want) bool {
	i := slices.IndexFunc(*p, func(m member) bool { return m.name == names[0] })
	switch {
	case i < 0 && len(names) == 1:
		*p = append(*p, member{name: names[0], want: w})
		return true
	case i < 0:
		*p = append(*p, member{name: names[0]})
		i = len(*p) - 1
	case len(names) == 1 || (*p)[i].want != wantInside:
		return false
	}
	return (*p)[i].in.add(names[1:], w)
}

func (c *CustomAnswer) validate() error {
	if _, err := c.reading(); err != nil {
		return err
	}
	if c.Error != "" {
		if _, err := pointer("settings.answer.error", c.Error); err != nil {
			return err
		}
	}
	switch c.Stream {
	case "", "sse", "ndjson", "none":
		return nil
	}
	return &Invalid{"settings.answer.stream", "it must be sse, ndjson or none"}
}

// custom returns how p's responses differ from OpenAI's, or nil.
func (p Provider) custom() *ready {
	r := p.ready
	if r == nil {
		r = p.prepare()
	}
	if r.settings.Answer == nil {
		return nil
	}
	return r
}

// Reads reports whether the response to a call of p must be read here. That is so if it may
// have to be translated, or has its usage in a place that Envoy does not read.
func (p Provider) Reads(ep Endpoint) bool {
	return slices.Contains(ep.Translated, p.Kind) || slices.Contains(ep.Kinds, p.Kind) && p.custom() != nil
}

// noStream rejects a request for a stream, which the provider does not support.
func noStream() *Error {
	return &Error{Status: http.StatusUnprocessableEntity, Type: invalidRequest, Code: "unsupported_by_provider", Param: "stream",
		Message: "This model's provider does not support stream. Send the request without it."}
}

// NewError reads an error of a provider with the caller's own format. It removes what must
// not leave the gateway, and replaces a body in another format by an error. The error has
// the gateway's request id.
func (p Provider) NewError(f Format, status int, requestID string) *ResponseReader {
	if f != FormatOpenAI {
		return &ResponseReader{usage: Usage{Source: "absent"}, form: closed, translated: translate.ErrorOf(status, func(message string) []byte {
			return f.Encode(&Error{Status: status, Type: "api_error", Code: "provider_error", Message: message}, requestID, "")
		})}
	}
	var at []string
	if r := p.custom(); r != nil {
		at = r.errorAt
	}
	return &ResponseReader{usage: Usage{Source: "absent"}, form: closed, translated: translate.Error(status, at)}
}
