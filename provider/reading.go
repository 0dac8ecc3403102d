package provider

import (
	"bytes"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
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

	// What prices may depend on besides, as far as the API says it.
	LongWriteTokens int64  // of CacheWriteTokens: kept for an hour
	InputMedia      Media  // of the input
	CachedMedia     Media  // of CachedTokens
	OutputMedia     Media  // of the output
	Service         string // how it was processed, in lower case: "flex", "priority", …; "" is not said
	Billed          Billed // what is charged, where the API says that apart
	Coarse          bool   // whoever read the usage does not read these

	// Contradicts says that the figures contradict each other, so that no cost is known.
	Contradicts bool
}

// Billed is what a provider charges for, where that is not what was used.
type Billed struct {
	Said                      bool // false: what was used is charged
	InputTokens, OutputTokens int64
	More                      bool // and something that is not counted in tokens: images, searches
}

// Media says how many of some tokens are of what kind. What is not said is 0.
type Media struct{ Text, Audio, Image, Video int64 }

// reading says where an API's answers hold usage and model. A whole answer and an
// event of a stream are read alike: each API has the names in one place only.
type reading struct {
	root   place
	marked [][]byte                        // an event without any of these says nothing of usage
	usage  func(raw []byte, u *Usage) bool // adds what a usage object says; false: nothing
	types  []string                        // of events that end a stream
	ends   bool                            // a stream has an end of its own, without which it broke off
}

// finishes is what ends a choice, under the name that an API has for it.
func finishes(list, name string) member {
	return member{name: list, in: place{{name: name, want: wantFinish}}}
}

// settle holds the figures against the total that was said with them, if one was.
// Some servers count reasoning apart from the output: then only the sum of all three is
// the total. Any other difference is a contradiction.
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

// says is whether v may hold usage, or end the answer. A null says nothing: a client
// that requests usage from OpenAI gets that with every event before the last.
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

// lenient is how a provider's words are read: it is not our client, and what it
// says decides nothing.
var lenient = json.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))

// figure is a count, which some write as 12.0.
type figure float64

func (f figure) count() int64 {
	if f > 0 && f < maxNumber {
		return int64(f)
	}
	return 0
}

// clean is a provider's word for how it processed a request, or "".
func clean(word any) string {
	s, _ := word.(string)
	return Clip(strings.ToLower(s), 64)
}

var nothingReading reading

// https://platform.openai.com/docs/api-reference/chat/object, …/chat-streaming,
// …/completions/object and …/embeddings/create; Mistral's are the same. A stream
// has usage once, at the end, or with every event, cumulative: the last counts.
// x_groq is where Groq has it in a stream.
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
// …/responses-streaming: events hold the whole response, the last one with usage.
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

// https://docs.anthropic.com/en/api/messages and …/messages-streaming. Figures of a
// stream are cumulative: message_start has the input's, message_delta the output's
// and perhaps the input's again, so the last of each counts and none is added up.
// input_tokens leaves out what was read from or written to a cache. A request that was
// sped up, or processed in one country, costs more: that is in Service.
var anthropicReading = reading{
	root: place{{name: "model", want: wantModel}, {name: "usage", want: wantUsage},
		{name: "message", in: place{{name: "model", want: wantModel}, {name: "usage", want: wantUsage}}},
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
			Tier  any `json:"service_tier"` // a string; anything, so that no other type costs us the figures
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
				// A compaction is charged, and left out of the figures.
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
// cumulative, and the last event has them all. Candidates leave out thoughts. Pages of
// documents are counted, and charged, as images.
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
			u.Contradicts = true // thoughts are always counted apart
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
// …/rerank. tokens is what the model saw, billed_units what is paid for, which is far
// less of a short prompt; usage is the first where it is there. A rerank is paid by the
// search and has no tokens.
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
