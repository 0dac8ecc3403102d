package provider

import (
	"bytes"

	"github.com/go-json-experiment/json"
)

// Usage is what an answer says it used. Tokens of the input include those that were
// read from and written to a cache, whatever the API calls which; tokens of the
// output include those of reasoning.
type Usage struct {
	InputTokens      int64
	OutputTokens     int64
	CachedTokens     int64  // of the input: read from a cache
	CacheWriteTokens int64  // of the input: written to one
	ReasoningTokens  int64  // of the output
	Source           string // "provider", or "absent": then the rest is not known, which is not 0
}

// reading says where an API's answers hold usage and model. A whole answer and an
// event of a stream are both one JSON value.
type reading struct {
	marked [][]byte // a value without any of these says nothing about usage
	read   func(v []byte, u *Usage, model *string)
}

func quoted(words ...string) (out [][]byte) {
	for _, w := range words {
		out = append(out, []byte(`"`+w+`"`))
	}
	return out
}

// says is whether v may hold usage.
func (r *reading) says(v []byte) bool {
	for _, m := range r.marked {
		if bytes.Contains(v, m) {
			return true
		}
	}
	return false
}

var nothingReading = reading{read: func([]byte, *Usage, *string) {}}

func set(into *string, s string) {
	if s != "" {
		*into = s
	}
}

// https://platform.openai.com/docs/api-reference/chat/object and …/chat-streaming,
// …/completions/object, …/embeddings/create.
var openAIReading = reading{marked: quoted("usage"), read: func(v []byte, u *Usage, model *string) {
	var x struct {
		Model string       `json:"model"`
		Usage *openAIUsage `json:"usage"`
	}
	if json.Unmarshal(v, &x, lenient) != nil {
		return
	}
	set(model, x.Model)
	if x.Usage != nil {
		*u = x.Usage.usage()
	}
}}

type openAIUsage struct {
	Prompt     int64 `json:"prompt_tokens"`
	Completion int64 `json:"completion_tokens"`
	PromptMore struct {
		Cached int64 `json:"cached_tokens"`
	} `json:"prompt_tokens_details"`
	CompletionMore struct {
		Reasoning int64 `json:"reasoning_tokens"`
	} `json:"completion_tokens_details"`
}

func (x openAIUsage) usage() Usage {
	return Usage{InputTokens: x.Prompt, OutputTokens: x.Completion, CachedTokens: x.PromptMore.Cached, ReasoningTokens: x.CompletionMore.Reasoning, Source: "provider"}
}

// https://platform.openai.com/docs/api-reference/responses/object and
// …/responses-streaming: the last event holds the whole response.
var responsesReading = reading{marked: quoted("usage"), read: func(v []byte, u *Usage, model *string) {
	type response struct {
		Model string `json:"model"`
		Usage *struct {
			Input     int64 `json:"input_tokens"`
			Output    int64 `json:"output_tokens"`
			InputMore struct {
				Cached int64 `json:"cached_tokens"`
			} `json:"input_tokens_details"`
			OutputMore struct {
				Reasoning int64 `json:"reasoning_tokens"`
			} `json:"output_tokens_details"`
		} `json:"usage"`
	}
	var x struct {
		response
		Response *response `json:"response"`
	}
	if json.Unmarshal(v, &x, lenient) != nil {
		return
	}
	r := &x.response
	if x.Response != nil {
		r = x.Response
	}
	set(model, r.Model)
	if r.Usage != nil {
		*u = Usage{InputTokens: r.Usage.Input, OutputTokens: r.Usage.Output, CachedTokens: r.Usage.InputMore.Cached,
			ReasoningTokens: r.Usage.OutputMore.Reasoning, Source: "provider"}
	}
}}

// https://docs.anthropic.com/en/api/messages and …/messages-streaming. Figures of a
// stream are cumulative: message_start has the input's, message_delta the output's
// and perhaps the input's again, so the last of each counts and none is added up.
// input_tokens leaves cached ones out.
var anthropicReading = reading{marked: quoted("usage"), read: func(v []byte, u *Usage, model *string) {
	type usage struct {
		Input  *int64 `json:"input_tokens"`
		Output *int64 `json:"output_tokens"`
		Read   *int64 `json:"cache_read_input_tokens"`
		Write  *int64 `json:"cache_creation_input_tokens"`
	}
	var x struct {
		Model   string `json:"model"`
		Usage   *usage `json:"usage"`
		Message *struct {
			Model string `json:"model"`
			Usage *usage `json:"usage"`
		} `json:"message"`
	}
	if json.Unmarshal(v, &x, lenient) != nil {
		return
	}
	m, now := x.Model, x.Usage
	if x.Message != nil {
		m, now = x.Message.Model, x.Message.Usage
	}
	set(model, m)
	if now == nil {
		return
	}
	plain := u.InputTokens - u.CachedTokens - u.CacheWriteTokens
	for _, f := range []struct {
		to   *int64
		from *int64
	}{{&plain, now.Input}, {&u.OutputTokens, now.Output}, {&u.CachedTokens, now.Read}, {&u.CacheWriteTokens, now.Write}} {
		if f.from != nil {
			*f.to = *f.from
		}
	}
	u.InputTokens = plain + u.CachedTokens + u.CacheWriteTokens
	u.Source = "provider"
}}

// https://ai.google.dev/api/generate-content#UsageMetadata. Figures of a stream are
// cumulative. A stream without alt=sse is one array.
var geminiReading = reading{marked: quoted("usageMetadata"), read: func(v []byte, u *Usage, model *string) {
	type response struct {
		Model string `json:"modelVersion"`
		Usage *struct {
			Prompt     int64 `json:"promptTokenCount"`
			Candidates int64 `json:"candidatesTokenCount"`
			Cached     int64 `json:"cachedContentTokenCount"`
			Thoughts   int64 `json:"thoughtsTokenCount"`
			ToolPrompt int64 `json:"toolUsePromptTokenCount"`
		} `json:"usageMetadata"`
	}
	var xs []response
	if t := bytes.TrimLeft(v, " \t\r\n"); len(t) > 0 && t[0] == '[' {
		if json.Unmarshal(v, &xs, lenient) != nil {
			return
		}
	} else {
		xs = make([]response, 1)
		if json.Unmarshal(v, &xs[0], lenient) != nil {
			return
		}
	}
	for _, x := range xs {
		set(model, x.Model)
		if x.Usage != nil {
			*u = Usage{InputTokens: x.Usage.Prompt + x.Usage.ToolPrompt, OutputTokens: x.Usage.Candidates + x.Usage.Thoughts,
				CachedTokens: x.Usage.Cached, ReasoningTokens: x.Usage.Thoughts, Source: "provider"}
		}
	}
}}

// https://docs.cohere.com/v2/reference/chat, …/chat-stream (message-end), …/embed and
// …/rerank. tokens is what the model saw, billed_units what is paid for; the first
// where it is there.
var cohereReading = reading{marked: quoted("usage", "meta"), read: func(v []byte, u *Usage, model *string) {
	type figures struct {
		Input  float64 `json:"input_tokens"` // whole numbers, written as 12.0
		Output float64 `json:"output_tokens"`
	}
	type usage struct {
		Tokens *figures `json:"tokens"`
		Billed *figures `json:"billed_units"`
		Cached float64  `json:"cached_tokens"`
	}
	var x struct {
		Usage *usage `json:"usage"`
		Meta  *usage `json:"meta"`
		Delta *struct {
			Usage *usage `json:"usage"`
		} `json:"delta"`
	}
	if json.Unmarshal(v, &x, lenient) != nil {
		return
	}
	now := x.Usage
	if x.Delta != nil && x.Delta.Usage != nil {
		now = x.Delta.Usage
	}
	if now == nil {
		now = x.Meta
	}
	if now == nil || now.Tokens == nil && now.Billed == nil {
		return
	}
	f := now.Tokens
	if f == nil {
		f = now.Billed
	}
	*u = Usage{InputTokens: int64(f.Input), OutputTokens: int64(f.Output), CachedTokens: int64(now.Cached), Source: "provider"}
}}
