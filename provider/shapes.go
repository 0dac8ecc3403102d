package provider

import "strings"

// A shape defines which members of an object are evaluated, and how. The shapes below name
// the evaluated members. fields.go adds the known members and rejects the rest.
type shape struct {
	fields map[string]rule
	folded map[string]string // folded evaluated names → the names

	keysAreTools bool // each member is a tool of the provider, by its name (Gemini)
	needsKind    bool // an object without "type" and "role" is a reference to a stored object (Responses)
	needsLabel   bool // it is an MCP server, which policy knows by its name only
	items        bool // it is an item of Responses: its type defines when it is complete

	closed bool   // other members are collected, and rejected unless the provider accepts them
	where  string // its path in the body, for messages
}

// rule is how the value of a member is evaluated.
type rule struct {
	do   action
	in   *shape   // for walk, and for the object that link may find
	is   uint64   // a bit: two members with the same one are the same field (Gemini accepts two spellings)
	str  str      // for walk: the meaning of a string
	name string   // the member's name; set by newShape
	of   dialects // the dialects that have the member; 0: every provider accepts it
}

// str is the meaning of a string where an object is expected. The zero str is rejected.
type str uint8

const (
	isText str = iota + 1 // text, which is not evaluated
	isURL                 // a URL that the provider fetches
	isData                // a file: base64, a data: URL, or a URL that the provider fetches
	isFree                // not evaluated, nor is a number or boolean: the member is walked only to check its own members
)

type action uint8

const (
	pass      action = iota // known and not evaluated
	refuse                  // it could change the destination, the credential, or what is evaluated
	stored                  // it refers to an object that is stored at the provider
	second                  // a second model, which policy does not evaluate
	noTrue                  // true is rejected like stored; false and null are not
	model                   // the model
	pathModel               // must be the model of the path, if it is present
	stream                  // whether the response is a stream
	tokens                  // the maximum number of tokens in the response
	choices                 // the number of responses
	walk                    // an object, or an array of objects, evaluated by in; str defines a string
	inline                  // like walk; a string would be the id of a stored object
	tool                    // a string: the name of a tool
	toolNames               // a list of strings: names of tools
	toolType                // a string: the type of a tool; built-in ones are known by it
	callType                // a string: the type of an item, "web_search_call"
	label                   // a string: the name of an MCP server, which must have one
	image                   // a string of base64; without it, an item of type image_generation_call is the id of an image
	role                    // a string: the role of the author
	speaker                 // a string: the name of the author, which is a tool if role is a tool
	link                    // a URL that the provider fetches: a string, or an object with "url"
	blob                    // a file in a string: base64 or a data: URL; otherwise it is evaluated as a link
	marks                   // if the member is present, it offers the tool with the member's name
	options                 // stream_options
	switches                // any value except null and false offers the tool web_search
	choice                  // of the tools: a keyword for all or none of them, or like walk
)

func newShape(fields map[string]rule) shape {
	s := shape{fields: make(map[string]rule, len(fields)), folded: map[string]string{}}
	for name, r := range fields {
		r.name = name
		s.fields[name] = r
		if r.do != pass {
			s.folded[string(appendFolded(nil, []byte(name)))] = name
		}
	}
	return s
}

// with returns a copy with more fields.
func with(fields map[string]rule, more ...map[string]rule) map[string]rule {
	out := map[string]rule{}
	for _, m := range append([]map[string]rule{fields}, more...) {
		for name, r := range m {
			out[name] = r
		}
	}
	return out
}

// appendFolded appends the form in which a lenient parser may read a plain ASCII name: in
// lower case, and without the marks between words.
func appendFolded(b, name []byte) []byte {
	for _, c := range name {
		switch {
		case 'A' <= c && c <= 'Z':
			b = append(b, c+'a'-'A')
		case c == '_' || c == '-' || c == '.' || c == ' ':
		default:
			b = append(b, c)
		}
	}
	return b
}

// steering are members of a body that servers between the gateway and the model act on.
// They name another server, another credential, another model, or headers (LiteLLM,
// OpenRouter and others; CVE-2024-6587).
var steering = map[string]rule{
	"api_base": {do: refuse}, "base_url": {do: refuse}, "api_key": {do: refuse}, "api_type": {do: refuse}, "api_version": {do: refuse},
	"endpoint_url": {do: refuse}, "organization": {do: refuse}, "custom_llm_provider": {do: refuse}, "llm_provider": {do: refuse}, "provider": {do: refuse},
	"extra_headers": {do: refuse}, "headers": {do: refuse}, "default_headers": {do: refuse}, "extra_body": {do: refuse}, "extra_query": {do: refuse},
	"fallbacks": {do: refuse}, "context_window_fallbacks": {do: refuse}, "content_policy_fallbacks": {do: refuse}, "default_fallbacks": {do: refuse},
	"models": {do: refuse}, "model_list": {do: refuse}, "model_id": {do: refuse}, "model_name": {do: refuse}, "model_info": {do: refuse}, "route": {do: refuse}, "router": {do: refuse},
	"engine": {do: refuse}, "engine_id": {do: refuse}, "deployment": {do: refuse}, "deployment_id": {do: refuse}, "deployment_name": {do: refuse},
	"proxy": {do: refuse}, "proxies": {do: refuse}, "mock_response": {do: refuse}, "mock_tool_calls": {do: refuse}, "litellm_params": {do: refuse}, "litellm_metadata": {do: refuse},
	"litellm_credential_name": {do: refuse}, "litellm_logging_obj": {do: refuse}, "litellm_session_id": {do: refuse},
	"azure_ad_token": {do: refuse}, "aws_access_key_id": {do: refuse}, "aws_secret_access_key": {do: refuse}, "aws_session_token": {do: refuse},
	"aws_region_name": {do: refuse}, "aws_role_name": {do: refuse}, "aws_bedrock_runtime_endpoint": {do: refuse},
	"vertex_project": {do: refuse}, "vertex_location": {do: refuse}, "vertex_credentials": {do: refuse}, "vertex_ai_project": {do: refuse}, "vertex_ai_location": {do: refuse},
	"plugins": {do: refuse}, "no_log": {do: refuse},
	"user_config": {do: refuse}, "draft_model": {do: refuse}, "speculative_model": {do: refuse}, "router_settings_override": {do: refuse}, "base_model": {do: refuse},
	"logits_processors": {do: refuse}, "custom_logit_processor": {do: refuse}, // code that the server runs
	"enable_search": {do: switches}, "search_options": {do: switches}, "search_settings": {do: switches}, "search_mode": {do: switches}, // they search the web
	"preset": {do: refuse}, "compound_custom": {do: refuse}, "safety_model": {do: second}, // other models, by name or stored (OpenRouter, Groq, Together)
	"data_sources": {do: stored},                                                           // indexes and servers that Azure calls with other credentials
	"lora_path":    {do: refuse}, "lora_request": {do: refuse}, "adapter_id": {do: refuse}, // these select another model (SGLang, TGI)
	"kv_transfer_params": {do: refuse}, "bootstrap_host": {do: refuse}, "bootstrap_port": {do: refuse}, "bootstrap_room": {do: refuse}, // another server (vLLM, SGLang)
}

// ---- OpenAI, Mistral and Cohere: chat completions ----

// functionShape is the inner object of a tool or of a tool call.
var functionShape = newShape(map[string]rule{"name": {do: tool}})

// toolShape is an element of "tools" in several APIs. In Responses and Anthropic's API the
// name is not in an inner object. It is also an element that adds tools in the middle of a
// conversation. Some tools contain tools. A tool with a model would run a model that policy
// does not evaluate.
var toolShape = func() shape {
	tools := &shape{}
	*tools = newShape(map[string]rule{
		"type": {do: toolType}, "name": {do: tool}, "function": {do: walk, in: &functionShape}, "custom": {do: walk, in: &functionShape},
		"tools": {do: walk, in: tools}, "model": {do: second}, "svg": {do: walk, in: &modelShape},
		"server_label": {do: label}, "mcp_server_name": {do: label}, "server_url": {do: link}, "connector_id": {do: tool}, "tunnel_id": {do: tool},
		"vector_store_ids": {do: stored}, "container": {do: inline, in: &containerShape}, "input_image_mask": {do: walk, in: &partShape},
		"skills": {do: stored}, "environment": {do: inline, in: &containerShape}, "library_ids": {do: stored},
		"api_key": {do: refuse}, "base_url": {do: refuse},
	})
	return *tools
}()

// modelShape is a part of a request that may have a second model.
var modelShape = newShape(map[string]rule{"model": {do: second}})

var containerShape = newShape(map[string]rule{"file_ids": {do: stored}, "container_id": {do: stored}, "id": {do: stored}, "skills": {do: stored}})

var urlShape = newShape(map[string]rule{"url": {do: link}, "file_id": {do: stored}})

var dataShape = newShape(map[string]rule{"data": {do: blob}, "file_data": {do: blob}, "file_id": {do: stored}, "url": {do: link}})

// partShape is a part of a message's content: text, image, file, audio.
var partShape = newShape(map[string]rule{
	"image_url": {do: link, in: &urlShape}, "video_url": {do: link, in: &urlShape}, "audio_url": {do: link, in: &urlShape},
	"document_url": {do: link, in: &urlShape}, "file_url": {do: link, in: &urlShape}, "video": {do: link, in: &urlShape}, "image": {do: link, in: &urlShape},
	"file": {do: walk, in: &dataShape, str: isData}, "input_audio": {do: walk, in: &dataShape, str: isData}, "file_data": {do: blob}, "file_id": {do: stored},
})

var callShape = newShape(map[string]rule{"function": {do: walk, in: &functionShape}, "custom": {do: walk, in: &functionShape}, "name": {do: tool}})

var messageShape = newShape(map[string]rule{
	"role": {do: role}, "name": {do: speaker}, "content": {do: walk, in: &partShape, str: isText},
	"tool_calls": {do: walk, in: &callShape}, "function_call": {do: walk, in: &functionShape}, "audio": {do: walk, in: &spokenShape},
})

// spokenShape is an earlier audio response of the provider, by its id.
var spokenShape = newShape(map[string]rule{"id": {do: stored}})

// choiceShape is tool_choice as an object: one tool, or several. Its type is the type of a
// tool, or a keyword (see walker.toolType). It is the same in all formats. Any other member
// is rejected (see vocabulary.shape), since it could name a tool.
var choiceShape = func() shape {
	function, custom := newShape(map[string]rule{"name": {do: tool}}), newShape(map[string]rule{"name": {do: tool}})
	s := &shape{}
	*s = newShape(map[string]rule{
		"type": {do: toolType}, "name": {do: tool}, "function": {do: walk, in: &function}, "custom": {do: walk, in: &custom},
		"server_label": {do: label}, "tools": {do: walk, in: s}, "allowed_tools": {do: walk, in: s},
		"mode": {}, "disable_parallel_tool_use": {},
	})
	return *s
}()

var chatBody = newShape(with(steering, map[string]rule{
	"model": {do: model}, "stream": {do: stream}, "n": {do: choices}, "best_of": {do: choices}, "stream_options": {do: options}, "max_tokens": {do: tokens}, "max_completion_tokens": {do: tokens},
	"messages": {do: walk, in: &messageShape}, "tools": {do: walk, in: &toolShape}, "functions": {do: walk, in: &functionShape},
	"tool_choice": {do: choice, in: &choiceShape}, "web_search_options": {do: marks}, "search_parameters": {do: marks}, "max_output_tokens": {do: refuse},
	"moderation": {do: walk, in: &modelShape}, "deferred": {do: noTrue}, "guardrails": {do: second}, "mcp_servers": {do: refuse}, "audio": {do: walk, in: &voiceShape},
}))

// voiceShape configures an audio response. A custom voice is a stored object.
var voiceShape = newShape(map[string]rule{"voice": {do: walk, in: &spokenShape, str: isText}})

var completionsBody = newShape(with(steering, map[string]rule{
	"model": {do: model}, "stream": {do: stream}, "n": {do: choices}, "best_of": {do: choices}, "stream_options": {do: pass}, "max_tokens": {do: tokens},
	"max_completion_tokens": {do: refuse}, "max_output_tokens": {do: refuse},
}))

var embeddingsBody = newShape(with(steering, map[string]rule{"model": {do: model}, "stream": {do: stream}}))

var moderationsBody = newShape(with(steering, map[string]rule{
	"model": {do: model}, "stream": {do: stream}, "input": {do: walk, in: &partShape, str: isText},
}))

// ---- OpenAI: responses ----

// itemShape is an element of "input": a message, a call, a call's result.
var itemShape = func() shape {
	s := newShape(map[string]rule{
		"type": {do: callType}, "role": {do: role}, "name": {do: tool}, "content": {do: walk, in: &partShape, str: isText}, "output": {do: walk, in: &partShape, str: isText},
		"server_label": {do: label}, "server_url": {do: link}, "tools": {do: walk, in: &toolShape}, "container_id": {do: stored}, "file_id": {do: stored},
		"environment": {do: inline, in: &containerShape}, "result": {do: image},
	})
	s.needsKind, s.items = true, true
	return s
}()

var responsesBody = newShape(with(steering, map[string]rule{
	"model": {do: model}, "stream": {do: stream}, "stream_options": {do: pass}, "max_output_tokens": {do: tokens}, "max_tokens": {do: refuse}, "max_completion_tokens": {do: refuse},
	"input": {do: walk, in: &itemShape, str: isText}, "tools": {do: walk, in: &toolShape}, "tool_choice": {do: choice, in: &choiceShape},
	"previous_response_id": {do: stored}, "conversation": {do: stored}, "prompt": {do: stored}, "background": {do: noTrue},
	"moderation": {do: walk, in: &modelShape}, "background_options": {do: refuse}, "access_programs": {do: refuse}, "mcp_servers": {do: refuse},
	"prompt_cache_options": {do: walk, in: &comparedShape},
}))

// comparedShape is a part that may refer to an earlier response.
var comparedShape = newShape(map[string]rule{"comparison_response_id": {do: stored}, "previous_message_id": {do: stored}})

// ---- Anthropic: messages ----

// blockShape is a block of content. Blocks with a name are tool calls. Some contain blocks.
var blockShape = func() *shape {
	block := &shape{}
	source := newShape(map[string]rule{"url": {do: link}, "data": {do: blob}, "file_id": {do: stored}, "content": {do: walk, in: block, str: isText}})
	*block = newShape(map[string]rule{
		"name": {do: tool}, "server_name": {do: label}, "source": {do: walk, in: &source, str: isURL}, "content": {do: walk, in: block, str: isText}, "file_id": {do: stored},
		"tool": {do: walk, in: &changeShape}, "tool_changes": {do: walk, in: block}, "mcp_server_name": {do: label}, "tools": {do: walk, in: &toolShape},
	})
	return block
}()

// changeShape adds or removes a tool, beginning with a block.
var changeShape = newShape(map[string]rule{"name": {do: tool}, "server_name": {do: label}, "definition": {do: walk, in: &toolShape}})

var turnShape = newShape(map[string]rule{"role": {do: role}, "content": {do: walk, in: blockShape, str: isText}})

var mcpServerShape = func() shape {
	s := newShape(map[string]rule{"name": {do: label}, "url": {do: link}})
	s.needsLabel = true
	return s
}()

var messagesBody = newShape(with(steering, map[string]rule{
	"model": {do: model}, "stream": {do: stream}, "max_tokens": {do: tokens}, "max_tokens_to_sample": {do: refuse},
	"messages": {do: walk, in: &turnShape}, "system": {do: walk, in: blockShape, str: isText}, "tools": {do: walk, in: &toolShape}, "tool_choice": {do: walk, in: &choiceShape},
	"mcp_servers": {do: walk, in: &mcpServerShape}, "container": {do: stored}, "thread": {do: stored}, "billing_policy": {do: refuse},
	"fallback_credit_token": {do: refuse}, "user_profile_id": {do: refuse}, "workspace_id": {do: refuse}, "diagnostics": {do: walk, in: &comparedShape},
}))

// ---- Gemini ----

// both gives each field its two spellings: Google's JSON accepts lowerCamelCase and the
// names of the .proto (https://protobuf.dev/programming-guides/json/).
func both(fields map[string]rule) map[string]rule {
	out := map[string]rule{}
	bit := uint64(1)
	for name, r := range fields {
		if other := snake(name); other != name {
			r.is = bit
			bit <<= 1
			out[other] = r
		}
		out[name] = r
	}
	return out
}

// snake turns "googleSearch" into "google_search".
func snake(name string) string {
	var b strings.Builder
	for _, r := range name {
		if 'A' <= r && r <= 'Z' {
			b.WriteByte('_')
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}

var (
	geminiBlobShape = newShape(both(map[string]rule{"data": {do: blob}, "fileUri": {do: link}, "mimeType": {do: pass}}))
	geminiPartShape = newShape(both(map[string]rule{
		"functionCall": {do: walk, in: &functionShape}, "functionResponse": {do: walk, in: &geminiResponseShape},
		"inlineData": {do: walk, in: &geminiBlobShape}, "fileData": {do: walk, in: &geminiBlobShape},
		"toolCall": {do: walk, in: &callShape}, "executableCode": {do: marks}, "text": {do: pass},
	}))
	geminiResponseShape = newShape(both(map[string]rule{"name": {do: tool}, "parts": {do: walk, in: &geminiDataShape}}))
	geminiDataShape     = newShape(both(map[string]rule{"inlineData": {do: walk, in: &geminiBlobShape}, "fileData": {do: walk, in: &geminiBlobShape}}))
	contentShape        = newShape(both(map[string]rule{"role": {do: role}, "parts": {do: walk, in: &geminiPartShape}}))

	geminiTransportShape = newShape(both(map[string]rule{"url": {do: link}}))
	geminiMCPShape       = func() shape {
		s := newShape(both(map[string]rule{"name": {do: label}, "streamableHttpTransport": {do: walk, in: &geminiTransportShape}}))
		s.needsLabel = true
		return s
	}()
	geminiSearchShape = newShape(both(map[string]rule{"fileSearchStoreNames": {do: stored}, "ragResources": {do: stored}}))

	// geminiAuthShape is a tool that may have its own credential.
	geminiAuthShape = newShape(both(map[string]rule{"authConfig": {do: refuse}, "apiKey": {do: refuse}, "customConfigs": {do: refuse}}))

	// geminiToolShape: a tool that is not declared here is run by Google. Its name is the
	// member's: "google_search" for googleSearch.
	geminiToolShape = func() shape {
		s := newShape(both(map[string]rule{
			"functionDeclarations": {do: walk, in: &functionShape}, "mcpServers": {do: walk, in: &geminiMCPShape},
			"fileSearch": {do: walk, in: &geminiSearchShape}, "retrieval": {do: stored}, "googleMaps": {do: marks, in: &geminiAuthShape},
			"exaAiSearch": {do: marks, in: &geminiAuthShape}, "parallelAiSearch": {do: marks, in: &geminiAuthShape},
		}))
		s.keysAreTools = true
		return s
	}()

	// toolConfigShape is Gemini's choice among tools.
	toolConfigShape = newShape(both(map[string]rule{"functionCallingConfig": {do: walk, in: &callingConfigShape}}))

	callingConfigShape = newShape(both(map[string]rule{"allowedFunctionNames": {do: toolNames}}))

	// The configs are Vertex AI's: they select another model.
	generationShape = newShape(both(map[string]rule{"maxOutputTokens": {do: tokens}, "candidateCount": {do: choices},
		"routingConfig": {do: refuse}, "modelConfig": {do: refuse}, "modelSelectionConfig": {do: refuse}}))

	generateFields = map[string]rule{
		"model": {do: pathModel}, "contents": {do: walk, in: &contentShape}, "systemInstruction": {do: walk, in: &contentShape}, "tools": {do: walk, in: &geminiToolShape},
		"generationConfig": {do: walk, in: &generationShape}, "cachedContent": {do: stored}, "stream": {do: refuse},
		"toolConfig": {do: walk, in: &toolConfigShape}, "modelArmorConfig": {do: stored}, "outputConfig": {do: refuse}, "continuationToken": {do: stored},
	}
	generateBody     = newShape(with(steering, both(generateFields)))
	innerGenerate    = newShape(both(generateFields))
	embedFields      = map[string]rule{"model": {do: pathModel}, "content": {do: walk, in: &contentShape}}
	embedContentBody = newShape(with(steering, both(embedFields)))
	innerEmbed       = newShape(both(embedFields))
	batchEmbedBody   = newShape(with(steering, both(map[string]rule{"requests": {do: walk, in: &innerEmbed}, "model": {do: pathModel}})))
	countTokensBody  = newShape(with(steering, both(map[string]rule{
		"contents": {do: walk, in: &contentShape}, "generateContentRequest": {do: walk, in: &innerGenerate}, "model": {do: pathModel},
	})))
)

// ---- Cohere, Mistral ----

var cohereEmbedBody = newShape(with(steering, map[string]rule{
	"model": {do: model}, "stream": {do: stream}, "max_tokens": {do: pass}, "images": {do: link}, "inputs": {do: walk, in: &messageShape},
}))

var rerankBody = newShape(with(steering, map[string]rule{"model": {do: model}, "stream": {do: stream}}))

var ocrBody = newShape(with(steering, map[string]rule{
	"model": {do: model}, "stream": {do: stream}, "document": {do: walk, in: &partShape, str: isURL}, "id": {do: pass},
}))
