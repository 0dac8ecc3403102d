package translate

import (
	"math"
	"strconv"
)

// bound is the limit of a field at a provider. It is the range of a number, the number of
// stop sequences, or the number of input texts.
type bound struct {
	kind, field string
	from, to    float64
}

// bounds are the fields for which a provider accepts less than OpenAI. Other values are
// rejected here, with the range, before the provider rejects them.
//
// Sources: https://docs.anthropic.com/en/api/messages, https://ai.google.dev/api/generate-content,
// https://ai.google.dev/api/embeddings, https://docs.cohere.com/reference/chat,
// https://docs.cohere.com/reference/embed, https://docs.mistral.ai/api.
var bounds = []bound{
	{Anthropic, "temperature", 0, 1},
	{Gemini, "stop", 0, 5},
	{Gemini, "n", 1, 8},
	{Gemini, "seed", math.MinInt32, math.MaxInt32},
	{Gemini, "input", 1, 100},
	{Cohere, "frequency_penalty", 0, 1},
	{Cohere, "presence_penalty", 0, 1},
	{Cohere, "stop", 0, 5},
	{Cohere, "seed", 0, math.MaxInt64},
	{Cohere, "input", 1, 96},
	{Mistral, "temperature", 0, 1.5},
	{Mistral, "seed", 0, math.MaxInt64},
}

func boundOf(kind, field string) (bound, bool) {
	for _, b := range bounds {
		if b.kind == kind && b.field == field {
			return b, true
		}
	}
	return bound{}, false
}

func (b bound) why() string {
	number := func(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
	switch {
	case b.field == "stop":
		return "it accepts at most " + number(b.to) + " stop sequences"
	case b.field == "input":
		return "it accepts at most " + number(b.to) + " texts in one request; send more requests"
	case b.to == math.MaxInt64:
		return "it must be at least " + number(b.from)
	}
	return "it must be from " + number(b.from) + " to " + number(b.to)
}

// within is a field that the kind accepts within bounds.
func within(kind, field, as string) support {
	b, _ := boundOf(kind, field)
	return partly(as, b.why())
}

// chatFields is the table of what the code does. TestFields compares both.
func chatFields() []row {
	noMark := "its prompts have no cache markers"
	files := "it accepts no files in a message"
	return []row{
		all("model", same()),
		{name: "messages", anthropic: same("consecutive messages of one role become one"), gemini: as("contents", "consecutive messages of one role become one"), cohere: same(), mistral: same()},
		{name: "messages[].role", anthropic: partly("", "developer is system; system messages go to `system`, in order, from every position; tool's become `tool_result` blocks"),
			gemini: partly("", "developer is system; system messages go to `systemInstruction`, in order, from every position; tool's become `functionResponse` parts"),
			cohere: partly("", "developer is system"), mistral: partly("", "developer is system")},
		{name: "messages[].name", why: "its messages have no names; on a tool's message the name of the function that was called is accepted"},
		{name: "messages[].name (assistant)", hint: true, why: "its messages have no names"},
		{name: "messages (order)", anthropic: partly("", "at least one message that is not the system's; Claude 4.6 and later do not continue an assistant's message"),
			gemini: partly("", "at least one message that is not the system's"), cohere: same(),
			mistral: partly("", "a user's or a tool's message at the end, or an assistant's with `prefix`; after a tool's message an assistant's or a tool's")},
		{name: "messages[].prefix", neutral: []string{"false"}, why: "only Mistral has it", mistral: same("an extension: Mistral's field")},
		all("messages[].content (text)", same()),
		{name: "messages[].content[].image_url", anthropic: partly("source", "http(s) URLs, and data of jpeg, png, gif and webp"), gemini: as("inlineData, fileData"), cohere: same(), mistral: same()},
		{name: "messages[].content[].image_url.detail", neutral: []string{`"auto"`}, anthropic: not("its images have no level of detail"),
			gemini: partly("mediaResolution", "low and high, from Gemini 3 on"), cohere: partly("", "low and high"), mistral: partly("", "low and high")},
		{name: "messages[].content[].input_audio", why: "it accepts no audio", gemini: as("inlineData"), mistral: same("the format is the data's own")},
		{name: "messages[].content[].file.file_data", anthropic: partly("document", "PDF and plain text"), gemini: as("inlineData"), cohere: not(files), mistral: partly("document_url", "PDF")},
		{name: "messages[].content[].file.filename", anthropic: as("title"), gemini: left("its files have no names"), cohere: not(files), mistral: as("document_name")},
		{name: "messages[].content[].file.file_id", why: "a stored file is not part of the request, so policy cannot evaluate it"},
		{name: "messages[].content[].prompt_cache_breakpoint", hint: true, why: noMark, anthropic: partly("cache_control", "cached for an hour; not for 12h")},
		{name: "messages[].cache_control", hint: true, why: "only Anthropic has it", anthropic: as("cache_control", "an extension; on the message's last block")},
		{name: "messages[].content[].cache_control", hint: true, why: "only Anthropic has it", anthropic: same("an extension: not OpenAI's field")},
		{name: "messages[].tool_calls", anthropic: as("tool_use"), gemini: as("functionCall"), cohere: same(), mistral: same("ids become nine letters and digits")},
		{name: "messages[].tool_calls[] (custom)", why: "only functions can be called"},
		{name: "messages[] of role tool", anthropic: as("tool_result", "text and images"), gemini: as("functionResponse", "a JSON object as it is, anything else under `output`"), cohere: same(), mistral: same()},
		all("messages[].refusal", as("text", "it is the assistant's text")),
		{name: "messages[].audio", why: "an earlier audio response is stored at OpenAI"},
		{name: "messages[].annotations", hint: true, neutral: []string{"[]"}, why: "its requests have no annotations"},
		{name: "messages[].function_call", why: "it is OpenAI's older form; use tool_calls"},
		{name: "messages[].reasoning_content", anthropic: partly("thinking", "with its thinking_blocks; without a signature it is left out"), gemini: as("thought"), cohere: as("thinking, tool_plan"), mistral: as("thinking")},
		{name: "messages[].thinking_blocks", hint: true, why: "only Anthropic has them", anthropic: as("thinking, redacted_thinking", "in the order that they came in, between texts and calls; not as the last block")},
		{name: "messages[].extra_content.google.thought_signature", hint: true, why: "it is Gemini's signature", gemini: as("thoughtSignature", "of the text")},
		{name: "messages[].tool_calls[].extra_content.google.thought_signature", hint: true, why: "it is Gemini's signature", gemini: as("thoughtSignature", "a call without one gets Google's documented placeholder, from Gemini 3 on")},
		{name: "messages[].extra_content.mistral.signature", hint: true, why: "it is Mistral's signature", mistral: as("signature")},
		{name: "audio", why: "it responds in text only"},
		{name: "frequency_penalty", neutral: []string{"0"}, anthropic: not("it has no penalties"), gemini: as("frequencyPenalty"), cohere: within(Cohere, "frequency_penalty", ""), mistral: same()},
		{name: "function_call", why: "it is OpenAI's older form; use tool_choice"},
		{name: "functions", why: "it is OpenAI's older form; use tools"},
		{name: "logit_bias", neutral: []string{"{}"}, why: "token ids depend on OpenAI's tokenizers"},
		{name: "logprobs", neutral: []string{"false"}, anthropic: not("it returns no log probabilities"), gemini: as("responseLogprobs"), cohere: same("of chunks of text, which may have several tokens"), mistral: same()},
		{name: "max_completion_tokens", anthropic: as("max_tokens", "required by the provider: Options.DefaultMaxTokens if absent"), gemini: as("maxOutputTokens"), cohere: as("max_tokens"), mistral: as("max_tokens")},
		{name: "max_tokens", anthropic: same(), gemini: as("maxOutputTokens"), cohere: same(), mistral: same()},
		{name: "metadata", neutral: []string{"{}"}, hint: true, why: "its requests have no metadata", anthropic: partly("metadata", "user_id only"), mistral: same()},
		{name: "modalities", neutral: []string{`["text"]`}, why: "it responds in text only"},
		{name: "moderation", why: "only OpenAI moderates with the response"},
		{name: "n", neutral: []string{"1"}, why: "it returns one response to a request", gemini: within(Gemini, "n", "candidateCount"), mistral: same()},
		{name: "parallel_tool_calls", neutral: []string{"true"}, gemini: partly("", "false only where there is no choice of tools"), cohere: partly("", "false only where there is no choice of tools"), anthropic: as("tool_choice.disable_parallel_tool_use"), mistral: same()},
		{name: "prediction", hint: true, why: "it supports no predictions", mistral: partly("", "one text")},
		{name: "presence_penalty", neutral: []string{"0"}, anthropic: not("it has no penalties"), gemini: as("presencePenalty"), cohere: within(Cohere, "presence_penalty", ""), mistral: same()},
		{name: "prompt_cache_key", hint: true, why: "its caches have no keys", mistral: same()},
		{name: "prompt_cache_options", hint: true, why: "its requests cannot configure the cache", anthropic: partly("cache_control", "implicit and explicit; cached for an hour")},
		{name: "prompt_cache_retention", hint: true, why: "its requests cannot configure how long a prompt is cached"},
		{name: "reasoning_effort", anthropic: partly("output_config.effort, thinking", "not with a tool_choice that forces a tool; not minimal from Claude 4.6 on. Earlier models get a budget of tokens, from minimal to max: 1024, 2048, 8192, 16384, 24576, 32000. none turns thinking off"),
			gemini: partly("thinkingConfig", "a level from Gemini 3 on, not max. Earlier models get a budget: minimal 512, low 1024, medium 8192, high 24576, not more. none is a budget of 0"),
			cohere: as("thinking", "a budget: minimal 512, low 2048, medium 8192, high 24576; xhigh and max have no limit; none turns thinking off"), mistral: same()},
		{name: "response_format", neutral: []string{`{"type":"text"}`}, anthropic: partly("output_config.format", "json_schema: its name is a label and not sent, strict is always set. json_object is a tool that the model must call, so not with tools or reasoning_effort"), gemini: as("responseMimeType, responseJsonSchema", "the schema's name is a label and not sent, strict is always set"),
			cohere: as("response_format", "the schema's name is a label and not sent, strict is always set"), mistral: same()},
		{name: "response_format.json_schema.description", why: "its schemas have no separate description; write it into the schema", mistral: same()},
		{name: "safety_identifier", hint: true, why: "its requests have no user", anthropic: as("metadata.user_id")},
		{name: "seed", anthropic: not("it has no seed"), gemini: within(Gemini, "seed", ""), cohere: within(Cohere, "seed", ""), mistral: within(Mistral, "seed", "random_seed")},
		{name: "service_tier", neutral: []string{`"auto"`}, anthropic: partly("", "auto; default is standard_only"), gemini: partly("serviceTier", "default is standard; flex; priority and fast are priority"), cohere: not("it has no tiers"), mistral: partly("", "auto; default is standard_only")},
		{name: "stop", anthropic: partly("stop_sequences", "not white space only"), gemini: within(Gemini, "stop", "stopSequences"), cohere: within(Cohere, "stop", "stop_sequences"), mistral: same()},
		{name: "store", neutral: []string{"false"}, why: "it does not store responses"},
		all("stream", same()),
		all("stream_options.include_usage", same("by the gateway")),
		all("stream_options.include_obfuscation", not("translated streams are not padded"), "false"),
		{name: "temperature", neutral: []string{"1"}, anthropic: partly("", "0 to 1; not with reasoning_effort; Claude 4.7 and later accept none"), gemini: same(), cohere: same(), mistral: within(Mistral, "temperature", "")},
		{name: "random_seed", why: "only Mistral has it; use seed", mistral: same("an extension: Mistral's name of seed")},
		{name: "safe_prompt", neutral: []string{"false"}, why: "only Mistral has it", mistral: same("an extension: Mistral's field")},
		{name: "prompt_mode", why: "only Mistral has it", mistral: same("an extension: Mistral's field")},
		{name: "tool_choice", anthropic: same("required is any"), gemini: as("toolConfig.functionCallingConfig"), cohere: same("auto sends nothing; for a named function, only that function is offered"), mistral: same("required is any")},
		all("tool_choice.allowed_tools", same("the other tools are not offered")),
		{name: "tools", anthropic: partly("", "parameters whose type is object, without anyOf, oneOf or allOf at the root"), gemini: as("functionDeclarations"), cohere: same(), mistral: same()},
		{name: "tools[] (custom)", why: "only functions can be declared"},
		{name: "tools[].function.strict", neutral: []string{"false"}, anthropic: same(), gemini: as("functionCallingConfig.mode VALIDATED", "for all tools, if it is so for one"), cohere: partly("strict_tools", "the same for all tools"), mistral: same()},
		{name: "tools[].cache_control", hint: true, why: "only Anthropic has it", anthropic: same("an extension: not OpenAI's field")},
		{name: "top_logprobs", neutral: []string{"0"}, why: "it returns no log probabilities", gemini: as("logprobs"), cohere: not("it returns log probabilities of the chosen tokens only"), mistral: same()},
		{name: "top_p", neutral: []string{"1"}, anthropic: partly("", "not with temperature from Claude 4.1 on; from 0.95 on with reasoning_effort; Claude 4.7 and later accept none"), gemini: as("topP"), cohere: as("p"), mistral: same()},
		{name: "user", hint: true, why: "its requests have no user", anthropic: as("metadata.user_id")},
		{name: "verbosity", neutral: []string{`"medium"`}, why: "its requests have no verbosity; write it into the prompt"},
		{name: "web_search_options", why: "only OpenAI searches the web here; give the model a search tool"},
	}
}

func embeddingFields() []row {
	return []row{
		all("model", same()),
		{name: "input", why: "it has no embeddings", gemini: partly("requests", "text, not tokens; at most 100 texts"), cohere: partly("texts", "text, not tokens; at most 96 texts"), mistral: partly("", "text; not tokens"), anthropic: not("it has no embeddings")},
		{name: "dimensions", anthropic: not("it has no embeddings"), gemini: as("outputDimensionality"), cohere: as("output_dimension"), mistral: as("output_dimension")},
		{name: "encoding_format", anthropic: not("it has no embeddings"), gemini: same("by the gateway"), cohere: same("by the gateway"), mistral: same("by the gateway")},
		{name: "input_type", anthropic: not("it has no embeddings"), gemini: as("taskType", "an extension: search_document, search_query, classification, clustering, or a taskType of Gemini's"),
			cohere: same("an extension; required by the provider: Options.EmbeddingInputType if absent"), mistral: not("its inputs have no types")},
		{name: "user", hint: true, why: "its requests have no user"},
	}
}
