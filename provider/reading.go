package provider

import (
	"bytes"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Usage is the usage in a response. Input tokens include those read from a cache and
// written to a cache, in every API. Output tokens include those of reasoning.
type Usage struct {
	InputTokens      int64
	OutputTokens     int64
	CachedTokens     int64  // input read from a cache
	CacheWriteTokens int64  // input written to a cache
	ReasoningTokens  int64  // part of the output
	Source           string // "provider", or "absent": then the other fields are not known

	// Further values that prices may depend on, as far as the API returns them.
	LongWriteTokens int64  // part of CacheWriteTokens: kept for an hour
	InputMedia      Media  // in the input
	CachedMedia     Media  // in CachedTokens
	OutputMedia     Media  // in the output
	Service         string // the service tier, in lower case: "flex", "priority", …; "" if not known
	Billed          Billed // what is charged, if the API returns that separately
	Coarse          bool   // these further values were not read

	// Contradicts means that the figures contradict each other, so no cost is known.
	Contradicts bool
}

// Billed is what a provider charges for, if that differs from the usage.
type Billed struct {
	Said                      bool // false: the usage is charged
	InputTokens, OutputTokens int64
	More                      bool // something that is not counted in tokens is also charged: images, searches
}

// Media counts tokens by kind. A kind that is not in the response is 0.
type Media struct{ Text, Audio, Image, Video int64 }

// reading is where an API's responses have usage and model. A whole response and an event
// of a stream are read alike, since each API has the names in one place only.
type reading struct {
	root   place
	marked [][]byte                        // an event without any of these has no usage
	usage  func(raw []byte, u *Usage) bool // adds the figures of a usage object; false: it has none
	types  []string                        // types of events that end a stream
	ends   bool                            // a stream has a final event; without it the stream broke off
}

// finishes is the member that ends a choice, under the name that an API has for it.
func finishes(list, name string) member {
	return member{name: list, in: place{{name: name, want: wantFinish}}}
}

// settle compares the figures with the total, if there is one. Some servers count reasoning
// separately from the output: then the total is the sum of all three. Any other difference
// is a contradiction.
func (u *Usage) settle(total int64) {
	switch sum := u.InputTokens + u.OutputTokens; {
	case total == 0 || total == sum:
	case u.ReasoningTokens > 0 && total == sum+u.ReasoningTokens:
		u.OutputTokens += u.ReasoningTokens
	default:
		u.Contradicts = true
	}
	if u.ReasoningTokens > u.OutputTokens || u.CachedTokens+u.CacheWriteTokens > u.InputTokens {
		u.Contradicts = true
	}
}

// says reports whether v may have usage, or the end of the response. A null does not count:
// OpenAI sends it with every event before the last, if the client requests usage.
func (r *reading) says(v []byte) bool {
	for _, m := range r.marked {
		for rest := v; ; {
			i := bytes.Index(rest, m)
			if i < 0 {
				break
			}
			rest = rest[i+len(m):]
			value, ok := bytes.CutPrefix(bytes.TrimLeft(rest, " "), []byte(":"))
			if !ok || !bytes.HasPrefix(bytes.TrimLeft(value, " "), []byte("null")) {
				return true
			}
		}
	}
	return false
}

// lenient are the options for a provider's JSON. It is not the client's, and no decision
// depends on it.
var lenient = json.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))

// figure is a count. Some servers write 12.0.
type figure float64

func (f figure) count() int64 {
	if f > 0 && f < maxNumber {
		return int64(f)
	}
	return 0
}

// clean returns the service tier in a provider's response, or "".
func clean(word any) string {
	s, _ := word.(string)
	return Clip(strings.ToLower(s), 64)
}

var nothingReading reading

// https://platform.openai.com/docs/api-reference/chat/object, …/chat-streaming,
// …/completions/object and …/embeddings/create; Mistral's are the same. A stream has usage
// once, at the end, or cumulative with every event: the last counts. x_groq is the place in
// Groq's streams.
var openAIReading = reading{
	root: place{{name: "model", want: wantModel}, {name: "usage", want: wantUsage}, {name: "service_tier", want: wantService},
		{name: "x_groq", in: place{{name: "usage", want: wantUsage}}},
		{name: "error", want: wantError}, finishes("choices", "finish_reason")},
	marked: [][]byte{[]byte(`"usage"`), []byte(`"error"`), []byte(`"finish_reason"`), []byte("[DONE]")},
	ends:   true,
	usage: func(raw []byte, u *Usage) bool {
		var x struct {
			Prompt     figure `json:"prompt_tokens"`
			Completion figure `json:"completion_tokens"`
			Total      figure `json:"total_tokens"`
			PromptMore struct {
				Cached figure `json:"cached_tokens"`
				Write  figure `json:"cache_write_tokens"`
				Audio  figure `json:"audio_tokens"`
				Image  figure `json:"image_tokens"`
			} `json:"prompt_tokens_details"`
			CompletionMore struct {
				Reasoning figure `json:"reasoning_tokens"`
				Audio     figure `json:"audio_tokens"`
				Image     figure `json:"image_tokens"`
			} `json:"completion_tokens_details"`
			CacheHit figure `json:"prompt_cache_hit_tokens"` // DeepSeek
			Cached   figure `json:"num_cached_tokens"`       // Mistral
		}
		if json.Unmarshal(raw, &x, lenient) != nil {
			return false
		}
		*u = Usage{InputTokens: x.Prompt.count(), OutputTokens: x.Completion.count(), CachedTokens: max(x.PromptMore.Cached, x.CacheHit, x.Cached).count(),
			CacheWriteTokens: x.PromptMore.Write.count(), ReasoningTokens: x.CompletionMore.Reasoning.count(), Source: "provider",
			InputMedia:  Media{Audio: x.PromptMore.Audio.count(), Image: x.PromptMore.Image.count()},
			OutputMedia: Media{Audio: x.CompletionMore.Audio.count(), Image: x.CompletionMore.Image.count()}}
		u.settle(x.Total.count())
		return true
	},
}

// https://platform.openai.com/docs/api-reference/responses/object and
// …/responses-streaming: events have the whole response, the last one with usage.
var responsesReading = reading{
	root: place{{name: "model", want: wantModel}, {name: "usage", want: wantUsage}, {name: "service_tier", want: wantService},
		{name: "type", want: wantType}, {name: "error", want: wantError},
		{name: "response", in: place{{name: "model", want: wantModel}, {name: "usage", want: wantUsage}, {name: "service_tier", want: wantService},
			{name: "error", want: wantError}}}},
	marked: [][]byte{[]byte(`"usage"`), []byte(`"error"`), []byte(`"response.completed"`), []byte(`"response.failed"`), []byte(`"response.incomplete"`)},
	types:  []string{"response.completed", "response.failed", "response.incomplete"},
	ends:   true,
	usage: func(raw []byte, u *Usage) bool {
		var x struct {
			Input     figure `json:"input_tokens"`
			Output    figure `json:"output_tokens"`
			Total     figure `json:"total_tokens"`
			InputMore struct {
				Cached figure `json:"cached_tokens"`
				Write  figure `json:"cache_write_tokens"`
			} `json:"input_tokens_details"`
			OutputMore struct {
				Reasoning figure `json:"reasoning_tokens"`
			} `json:"output_tokens_details"`
		}
		if json.Unmarshal(raw, &x, lenient) != nil {
			return false
		}
		*u = Usage{InputTokens: x.Input.count(), OutputTokens: x.Output.count(), CachedTokens: x.InputMore.Cached.count(),
			CacheWriteTokens: x.InputMore.Write.count(), ReasoningTokens: x.OutputMore.Reasoning.count(), Source: "provider"}
		u.settle(x.Total.count())
		return true
	},
}

// https://docs.anthropic.com/en/api/messages and …/messages-streaming. Figures of a stream
// are cumulative. message_start has the input's, and message_delta has the output's and
// sometimes the input's again. So the last value of each counts and none is added up.
// input_tokens does not include tokens read from or written to a cache. A faster request,
// or one processed in one country, costs more: Service has that.
var anthropicReading = reading{
	root: place{{name: "model", want: wantModel}, {name: "usage", want: wantUsage},
		{name: "message", in: place{{name: "model", want: wantModel}, {name: "usage", want: wantFirstUsage}}},
		{name: "type", want: wantType}, {name: "error", want: wantError}},
	marked: [][]byte{[]byte(`"usage"`), []byte(`"error"`), []byte(`"message_stop"`)},
	types:  []string{"message_stop"},
	ends:   true,
	usage: func(raw []byte, u *Usage) bool {
		var x struct {
			Input  *figure `json:"input_tokens"`
			Output *figure `json:"output_tokens"`
			Read   *figure `json:"cache_read_input_tokens"`
			Write  *figure `json:"cache_creation_input_tokens"`
			Writes struct {
				Hour *figure `json:"ephemeral_1h_input_tokens"`
			} `json:"cache_creation"`
			OutputMore struct {
				Thinking *figure `json:"thinking_tokens"`
			} `json:"output_tokens_details"`
			Tier  any `json:"service_tier"` // a string; another type must not lose the figures
			Speed any `json:"speed"`
			Geo   any `json:"inference_geo"`
			Parts any `json:"iterations"`
		}
		if json.Unmarshal(raw, &x, lenient) != nil {
			return false
		}
		plain := u.InputTokens - u.CachedTokens - u.CacheWriteTokens
		for _, f := range []struct {
			to   *int64
			from *figure
		}{{&plain, x.Input}, {&u.OutputTokens, x.Output}, {&u.CachedTokens, x.Read}, {&u.CacheWriteTokens, x.Write},
			{&u.LongWriteTokens, x.Writes.Hour}, {&u.ReasoningTokens, x.OutputMore.Thinking}} {
			if f.from != nil {
				*f.to = f.from.count()
			}
		}
		u.InputTokens = plain + u.CachedTokens + u.CacheWriteTokens
		u.Source = "provider"
		if parts, ok := x.Parts.([]any); ok {
			for _, part := range parts {
				// A compaction is charged, and is not in the figures.
				one, _ := part.(map[string]any)
				u.Billed.More = u.Billed.More || one["type"] != "message"
			}
		}
		geo, speed, tier := clean(x.Geo), clean(x.Speed), clean(x.Tier)
		switch {
		case geo != "" && geo != "global" && geo != "not_available":
			u.Service = "in " + geo
		case speed != "" && speed != "standard":
			u.Service = speed
		case tier != "" && u.Service == "":
			u.Service = tier
		}
		return true
	},
}

// https://ai.google.dev/api/generate-content#UsageMetadata. Figures of a stream are
// cumulative, and the last event has them all. The figure of candidates does not include
// thoughts. Pages of documents are counted and charged as images.
var geminiReading = reading{
	root: place{{name: "modelVersion", want: wantModel}, {name: "usageMetadata", want: wantUsage}, {name: "error", want: wantError},
		finishes("candidates", "finishReason"), {name: "promptFeedback", in: place{{name: "blockReason", want: wantBlock}}}},
	marked: [][]byte{[]byte(`"usageMetadata"`), []byte(`"error"`), []byte(`"finishReason"`), []byte(`"blockReason"`)},
	ends:   true,
	usage: func(raw []byte, u *Usage) bool {
		var x struct {
			Prompt     figure `json:"promptTokenCount"`
			ToolPrompt figure `json:"toolUsePromptTokenCount"`
			Cached     figure `json:"cachedContentTokenCount"`
			Candidates figure `json:"candidatesTokenCount"`
			Thoughts   figure `json:"thoughtsTokenCount"`
			Total      figure `json:"totalTokenCount"`

			PromptBy     media `json:"promptTokensDetails"`
			CachedBy     media `json:"cacheTokensDetails"`
			CandidatesBy media `json:"candidatesTokensDetails"`
		}
		if json.Unmarshal(raw, &x, lenient) != nil {
			return false
		}
		*u = Usage{InputTokens: x.Prompt.count() + x.ToolPrompt.count(), OutputTokens: x.Candidates.count() + x.Thoughts.count(),
			CachedTokens: x.Cached.count(), ReasoningTokens: x.Thoughts.count(), Source: "provider",
			InputMedia: x.PromptBy.sum(), CachedMedia: x.CachedBy.sum(), OutputMedia: x.CandidatesBy.sum()}
		if total := x.Total.count(); total != 0 && total != u.InputTokens+u.OutputTokens {
			u.Contradicts = true // thoughts are always counted separately
		}
		return true
	},
}

// media is a list of Gemini's ModalityTokenCount.
type media []struct {
	Modality string `json:"modality"`
	Tokens   figure `json:"tokenCount"`
}

func (m media) sum() (out Media) {
	for _, part := range m {
		switch part.Modality {
		case "TEXT":
			out.Text += part.Tokens.count()
		case "AUDIO":
			out.Audio += part.Tokens.count()
		case "IMAGE", "DOCUMENT":
			out.Image += part.Tokens.count()
		case "VIDEO":
			out.Video += part.Tokens.count()
		}
	}
	return out
}

// https://docs.cohere.com/v2/reference/chat, …/chat-stream (message-end), …/embed and
// …/rerank. tokens counts what the model read. billed_units counts what is charged, which
// is far less for a short prompt. usage is taken from tokens if it is there. A rerank is
// charged by the search and has no tokens.
var cohereReading = reading{
	root: place{{name: "usage", want: wantUsage}, {name: "meta", want: wantUsage},
		{name: "delta", in: place{{name: "usage", want: wantUsage}, {name: "finish_reason", want: wantFinish}, {name: "error", want: wantError}}},
		{name: "type", want: wantType}, {name: "finish_reason", want: wantFinish}},
	marked: [][]byte{[]byte(`"usage"`), []byte(`"meta"`), []byte(`"error"`), []byte(`"message-end"`)},
	types:  []string{"message-end"},
	ends:   true,
	usage: func(raw []byte, u *Usage) bool {
		var x struct {
			Tokens struct {
				Input  *figure `json:"input_tokens"`
				Output *figure `json:"output_tokens"`
			} `json:"tokens"`
			Billed map[string]any `json:"billed_units"`
			Cached figure         `json:"cached_tokens"`
		}
		if json.Unmarshal(raw, &x, lenient) != nil {
			return false
		}
		now := Usage{CachedTokens: x.Cached.count(), Source: "provider"}
		for name, value := range x.Billed {
			n, _ := value.(float64)
			switch name {
			case "input_tokens":
				now.Billed.Said, now.Billed.InputTokens = true, figure(n).count()
			case "output_tokens":
				now.Billed.Said, now.Billed.OutputTokens = true, figure(n).count()
			default:
				now.Billed.More = now.Billed.More || n != 0
			}
		}
		switch in, out := x.Tokens.Input, x.Tokens.Output; {
		case in == nil && out == nil && !now.Billed.Said:
			return false
		case in == nil && out == nil:
			now.InputTokens, now.OutputTokens = now.Billed.InputTokens, now.Billed.OutputTokens
		default:
			if in != nil {
				now.InputTokens = in.count()
			}
			if out != nil {
				now.OutputTokens = out.count()
			}
		}
		*u = now
		return true
	},
}
