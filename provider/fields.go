package provider

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// The members that a request body may have are an allow-list. It has three sources:
//
//   - fields.json: the members in the types of the official SDKs. tools/fields.py
//     writes it, and a test compares it with the SDKs that are installed.
//   - flavors: the documented additions of servers that speak OpenAI's API.
//   - the shapes (shapes.go): the members that are evaluated.
//
// A member in none of the sources is rejected by its name, unless the provider's
// settings.pass_fields lists it. A value of null counts as absent.
//
//go:embed fields.json
var fieldsJSON []byte

// dialects is a set of APIs, as bits: those that have a member.
type dialects uint64

// extra is a member of a body that not every provider accepts.
type extra struct {
	path string   // "top_k", "messages.content.frames", "input.type=new_call"
	of   dialects // the dialects that document it; 0: no dialect
}

// flavor is a server with OpenAI's API that documents members of its own.
type flavor struct {
	name   string
	fields string // of chat completions, completions and responses; nested ones with dots
}

// sampling are the members that most self-hosted servers accept beside OpenAI's.
const sampling = "top_k min_p repetition_penalty length_penalty stop_token_ids ignore_eos min_tokens skip_special_tokens " +
	"include_stop_str_in_output spaces_between_special_tokens chat_template_kwargs continue_final_message add_generation_prompt echo stream_options.continuous_usage_stats "

// flavors are the values of settings.flavor with their members. Members that select a
// model, a server, a tool or a stored object are not here, but in the file shapes.go
// instead.
var flavors = []flavor{
	{"openai", ""},
	{"mistral", "random_seed safe_prompt prompt_mode min_tokens repetition_penalty top_k messages.prefix " +
		"messages.content.thinking messages.content.reference_ids document_image_limit document_page_limit"},
	{"vllm", sampling + "use_beam_search best_of truncate_prompt_tokens truncation_side prompt_logprobs allowed_token_ids bad_words add_special_tokens documents " +
		"chat_template mm_processor_kwargs media_io_kwargs guided_json guided_regex guided_choice guided_grammar guided_decoding_backend guided_whitespace_pattern " +
		"structural_tag structured_outputs priority request_id return_tokens_as_token_ids return_token_ids cache_salt include_reasoning thinking_token_budget " +
		"vllm_xargs prompt_embeds logprob_token_ids repetition_detection return_mm_hashes normalize embed_dtype endianness mm_encoder_kwargs"},
	{"sglang", sampling + "regex ebnf no_stop_trim stop_regex separate_reasoning stream_reasoning custom_params rid priority return_hidden_states structural_tag"},
	{"llamacpp", sampling + "cache_prompt typical_p tfs_z top_n_sigma mirostat mirostat_tau mirostat_eta grammar json_schema repeat_penalty repeat_last_n " +
		"penalize_nl dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers xtc_probability xtc_threshold dynatemp_range dynatemp_exponent " +
		"n_probs n_keep n_predict min_keep samplers timings_per_token reasoning_format thinking_forced_open parse_tool_calls post_sampling_probs return_progress return_tokens"},
	{"ollama", "options keep_alive think format top_k min_p repeat_penalty num_ctx num_predict"},
	{"lmstudio", "top_k min_p repeat_penalty ttl"},
	{"openrouter", "top_k top_a min_p repetition_penalty transforms include_reasoning reasoning usage structured_outputs session_id image_config trace"},
	{"groq", "reasoning_format include_reasoning citation_options disable_tool_validation documents"},
	{"xai", ""},
	{"deepseek", "thinking messages.prefix"},
	{"together", sampling + "context_length_exceeded_behavior reasoning compliance"},
	{"fireworks", sampling + "mirostat_target mirostat_lr mirostat_tau mirostat_eta typical_p prompt_truncate_len context_length_exceeded_behavior echo_last raw_output " +
		"perf_metrics_in_response prompt_cache_isolation_key reasoning_history return_token_ids thinking speculation prompt_cache_max_len"},
	{"litellm", sampling + "thinking drop_params allowed_openai_params additional_drop_params timeout request_timeout num_retries max_retries caching cache"},
	{"dashscope", "top_k enable_thinking thinking_budget incremental_output vl_high_resolution_images repetition_penalty preserve_thinking " +
		"messages.content.min_pixels messages.content.max_pixels messages.content.total_pixels messages.content.fps messages.content.nframes"},
	{"moonshot", "thinking partial messages.partial"},
	{"zai", "thinking do_sample tool_stream request_id user_id"},
	{"cerebras", "disable_reasoning clear_thinking min_completion_tokens min_tokens"},
	{"deepinfra", "top_k min_p repetition_penalty"},
	{"tgi", "top_k repetition_penalty typical_p do_sample truncate watermark decoder_input_details"},
}

// clients are members that SDKs and agents send to every server: members of a response that
// they send back, cache markers, and notes about themselves.
var clients = map[string]string{
	"/v1/chat/completions": "messages.parsed messages.reasoning_content messages.reasoning messages.reasoning_text messages.reasoning_opaque messages.reasoning_details " +
		"messages.thinking_blocks messages.extra_content messages.provider_specific_fields messages.cache_control messages.images messages.id messages.weight messages.phase " +
		"messages.annotations messages.refusal messages.content.cache_control messages.content.annotations messages.content.citations messages.content.id messages.content.index " +
		"messages.content.thinking messages.content.signature messages.content.data messages.content.extra_content messages.content.filename messages.content.detail " +
		"messages.content.format messages.content.video_url.detail messages.content.video_url.uuid messages.content.audio_url.uuid messages.content.image_url.uuid messages.content.uuid " +
		"messages.tool_calls.index messages.tool_calls.extra_content messages.tool_calls.provider_specific_fields messages.tool_calls.function.parsed_arguments " +
		"tools.cache_control tools.function.cache_control tools.strict cache_control metadata prompt_cache_key thinking_config extra_content " +
		"tools.name tools.description tools.parameters tools.input_schema tools.function.type functions.strict messages.function_call.id moderation.type",
	"/v1/responses": "client_metadata input.parsed_arguments input.content.parsed input.content.filename input.metadata input.status input.phase input.end_turn " +
		"input.cache_control input.content.cache_control input.content.input_audio.format tools.parameters tools.strict tools.description tools.format tools.sources cache_control " +
		"input.content.text input.output.text input.internal_chat_message_metadata_passthrough",
	"/v1/moderations":           "user",
	"/v1/embeddings":            "input_type truncate truncate_dim dimensions priority task output_dtype output_dimension",
	"/v1/messages":              "anthropic_version temperature top_p top_k messages.id messages.content.index",
	"/v1/messages/count_tokens": "anthropic_version",
	"/v2/chat":                  "raw_prompting messages.name messages.tool_calls.index tools.function.strict return_prompt tool_choice",
	"/v2/rerank":                "return_documents rank_fields max_chunks_per_doc",
	"/v1/fim/completions":       "temperature top_p max_tokens",
	"/{version}/models/{model}:generateContent":       geminiClients,
	"/{version}/models/{model}:streamGenerateContent": geminiClients,
	"/v1/ocr": "id",
}

const geminiClients = "generationConfig._responseJsonSchema"

// opaque are members whose value is a separate document. It is not inspected, and may have
// any content.
var opaque = []string{"cache_control", "metadata", "labels", "responseSchema", "_responseJsonSchema", "parameters", "response", "user_location", "location", "logprobs", "annotations", "citations", "tool_choice"}

// native are the dialects that do not depend on settings: the endpoint's own API, and what
// clients send to all APIs.
var native = []string{"openai", "anthropic", "gemini", "cohere", "clients"}

// bitOf returns the bit of a flavor's name. Native dialects have 0.
func bitOf(name string) dialects {
	if slices.Contains(native, name) {
		return 0
	}
	return 1 << slices.IndexFunc(flavors, func(f flavor) bool { return f.name == name })
}

// Flavors are the values of settings.flavor, in the order in which docs list them.
func Flavors() []string {
	out := make([]string, len(flavors))
	for i, f := range flavors {
		out[i] = f.name
	}
	return out
}

// vocabulary is the allow-list: fields.json, and the tables above in its form.
type vocabulary struct {
	Items []string                     `json:"items"` // the types of items of Responses
	Roots map[string]map[string]string `json:"roots"` // endpoint, API: the type of the body
	Types map[string]map[string]string `json:"types"` // type, member: the member's type, "" for a value that is not inspected

	shapes map[string]*shape // the shapes that were made, by their parts
	judged map[string]action // evaluated members, by their path
}

// readVocabulary reads the tables. They are part of the program: it panics.
func readVocabulary() *vocabulary {
	v := &vocabulary{shapes: map[string]*shape{}, judged: map[string]action{}}
	if err := json.Unmarshal(fieldsJSON, v); err != nil {
		panic("provider: fields.json: " + err.Error())
	}
	for path, fields := range clients {
		v.add("clients", path, fields)
	}
	for _, f := range flavors {
		for _, path := range []string{"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"} {
			v.add(f.name, path, f.fields)
		}
	}
	return v
}

// add adds members to an endpoint.
func (v *vocabulary) add(api, endpoint, fields string) {
	for field := range strings.FieldsSeq(fields) {
		name := api + "+" + endpoint
		if v.Roots[endpoint] == nil {
			v.Roots[endpoint] = map[string]string{}
		}
		v.Roots[endpoint][api+"+"] = name
		for {
			if v.Types[name] == nil {
				v.Types[name] = map[string]string{}
			}
			member, rest, nested := strings.Cut(field, ".")
			if !nested {
				if _, ok := v.Types[name][member]; !ok {
					v.Types[name][member] = ""
				}
				break
			}
			v.Types[name][member] = name + "." + member
			name, field = name+"."+member, rest
		}
	}
}

// closeEndpoints gives each endpoint the members that its body may have.
func closeEndpoints(v *vocabulary, table []Endpoint) []Endpoint {
	for i, e := range table {
		if e.body == nil {
			continue
		}
		var types []string
		path := strings.TrimPrefix(e.Path, ownMistral)
		for _, api := range slices.Sorted(maps.Keys(v.Roots[path])) {
			types = append(types, v.Roots[path][api])
		}
		clear(v.shapes) // a path in a message is relative to the endpoint
		table[i].body = v.shape(e.body, types, "", e.Format == FormatGemini)
	}
	return table
}

// shape returns hand's rules with the members of types, and nothing else. where is its
// path. With both, members have two spellings: see the function both.
func (v *vocabulary) shape(hand *shape, types []string, where string, both bool) *shape {
	key := fmt.Sprintf("%p %q", hand, types)
	if s := v.shapes[key]; s != nil {
		return s
	}
	out := &shape{}
	v.shapes[key] = out
	fields := map[string]rule{}
	if hand != nil {
		maps.Copy(fields, hand.fields)
	}
	kinds := map[string][]string{} // the types of each member
	of := map[string]dialects{}
	always := map[string]bool{}
	for _, t := range types {
		api, _, _ := strings.Cut(t, ":")
		api, _, _ = strings.Cut(api, "+")
		for member, in := range v.Types[t] {
			spellings := []string{member}
			if other := snake(member); both && other != member {
				spellings = append(spellings, other)
			}
			for _, name := range spellings {
				if in != "" && !slices.Contains(opaque, member) {
					kinds[name] = append(kinds[name], in)
				}
				if b := bitOf(api); b == 0 {
					always[name] = true
				} else {
					of[name] |= b
				}
				if _, ok := fields[name]; !ok {
					fields[name] = rule{}
				}
			}
		}
	}
	for name, r := range fields {
		path := join2(where, name)
		judged := hand != nil && hand.fields[name].name != ""
		if judged && r.do != pass {
			v.judged[path] = r.do
		} else if !always[name] && !judged {
			r.of = of[name]
		}
		slices.Sort(kinds[name])
		switch r.do {
		case pass:
			if !judged && hand != nil && hand.keysAreTools {
				r.do = marks
			} else if len(kinds[name]) > 0 {
				r.do, r.str = walk, isFree
			}
			if len(kinds[name]) > 0 {
				r.in = v.shape(nil, kinds[name], path, both)
			}
		case marks, options:
			if r.do == options || r.in != nil || len(kinds[name]) > 0 {
				r.in = v.shape(r.in, kinds[name], path, both)
			}
		case walk, inline, choice:
			r.in = v.shape(r.in, kinds[name], path, both)
		case link:
			if r.in == nil {
				r.in = &urlShape
			}
			r.in = v.shape(r.in, kinds[name], path, both)
		}
		fields[name] = r
	}
	*out = newShape(fields)
	out.where, out.closed = where, true
	if hand != nil {
		out.keysAreTools, out.needsKind, out.needsLabel, out.items = hand.keysAreTools, hand.needsKind, hand.needsLabel, hand.items
	}
	return out
}

// join2 is the path of a member.
func join2(where, name string) string {
	if where == "" {
		return name
	}
	return where + "." + name
}

// maxExtras bounds the members of a body that not every provider accepts.
const maxExtras = 64

// extra adds a member that not every provider accepts.
func (p *walker) extra(path string, of dialects) *Error {
	if slices.ContainsFunc(p.extras, func(x extra) bool { return x.path == path }) {
		return nil
	}
	if len(p.extras) == maxExtras {
		return bad("too_many_unknown_fields", Clip(path, 128), "The body has more than 64 fields that this API does not have.")
	}
	p.extras = append(p.extras, extra{path, of})
	return nil
}

// takes returns an error for a part of a call's body that the provider does not accept, or
// nil.
func (r *ready) takes(p Provider, c Call) *Error {
	for _, x := range c.extras {
		if x.of&r.dialects != 0 || slices.Contains(r.settings.PassFields, x.path) {
			continue
		}
		shown := Clip(x.path, 128)
		e := &Error{Status: http.StatusBadRequest, Type: invalidRequest, Code: "unknown_field", Param: shown}
		e.Message = "The field \"" + shown + "\" is not known for provider \"" + p.Name + "\", so the request is not forwarded. Remove it"
		if passable(x.path) == "" && len(x.path) <= 128 {
			e.Message += ", or let an administrator add it to settings.pass_fields of the provider"
		}
		if names := namesOf(x.of); len(names) > 0 && (p.Kind == KindOpenAI || p.Kind == KindCustom) {
			e.Message += ", or set settings.flavor to the server's (this field: " + strings.Join(names, ", ") + ")"
		}
		e.Message += "."
		return e
	}
	return nil
}

func namesOf(of dialects) (names []string) {
	for i, f := range flavors {
		if of&(1<<i) != 0 {
			names = append(names, f.name)
		}
	}
	return names
}

// dialectsOf returns the dialects of a provider beside its endpoints' own. Without a
// flavor, a server that is not OpenAI's or Azure's own may have all of them. Their members
// are documented, and none of them selects a model, a server or a tool.
func dialectsOf(kind, flavor, host string) dialects {
	switch {
	case kind == KindMistral:
		return bitOf("mistral")
	case kind != KindOpenAI && kind != KindCustom:
		return 0
	case flavor != "":
		return bitOf(flavor)
	case kind == KindOpenAI && (host == "api.openai.com" || strings.HasSuffix(host, ".api.openai.com") || strings.HasSuffix(host, ".azure.com")):
		return 0
	default:
		return 1<<len(flavors) - 1
	}
}

// passable returns why a path cannot be in settings.pass_fields, or "".
func passable(path string) string {
	if !fieldName.MatchString(path) {
		return "it must be the name of a field as an error shows it, such as top_k or messages.frames"
	}
	member, _, _ := strings.Cut(path, "=")
	name := member[strings.LastIndexByte(member, '.')+1:]
	if _, ok := steering[name]; ok || strings.HasPrefix(name, "litellm_") || strings.HasPrefix(name, "aws_") || strings.HasPrefix(name, "vertex_") {
		return "this field chooses a model, a server, a credential or something stored, and is never passed without being evaluated"
	}
	if _, ok := vocabularies.judged[member]; ok && member == path {
		return "this field is evaluated already, so it cannot be passed without that"
	}
	return ""
}

// The item types of Responses, and the members that make an item with an id complete.
// Without them the item only refers to an object that is stored at the provider.
var itemTypes = map[string]uint64{
	"message": hasContent, "function_call": hasName, "function_call_output": hasOutput, "custom_tool_call": hasName, "custom_tool_call_output": hasOutput,
	"reasoning": hasEncrypted | hasContent, "compaction": hasEncrypted, "compaction_trigger": hasType, "context_compaction": hasEncrypted, "compaction_summary": hasEncrypted,
	"computer_call": hasAction, "computer_call_output": hasOutput, "web_search_call": hasAction, "file_search_call": hasResults,
	"code_interpreter_call": hasCode, "image_generation_call": hasResult, "local_shell_call": hasAction, "local_shell_call_output": hasOutput,
	"shell_call": hasAction, "shell_call_output": hasOutput, "apply_patch_call": hasOperation, "apply_patch_call_output": hasOutput | hasStatus,
	"mcp_list_tools": hasTools, "mcp_call": hasName, "mcp_approval_request": hasName, "mcp_approval_response": hasApproval,
	"tool_search_call": hasArguments, "tool_search_output": hasTools, "additional_tools": hasTools,
	"program": hasCode, "program_output": hasResult | hasOutput, "configuration_update": hasType,
	"item_reference": 0, // it is rejected earlier
}

const (
	hasContent uint64 = 1 << iota
	hasName
	hasOutput
	hasEncrypted
	hasAction
	hasResults
	hasCode
	hasResult
	hasOperation
	hasTools
	hasApproval
	hasArguments
	hasStatus
	hasType
	hasID
)

// holds are the members that make an item complete.
var holds = map[string]uint64{
	"content": hasContent, "name": hasName, "output": hasOutput, "encrypted_content": hasEncrypted, "action": hasAction, "actions": hasAction,
	"results": hasResults, "code": hasCode, "result": hasResult, "operation": hasOperation, "tools": hasTools, "approve": hasApproval,
	"arguments": hasArguments, "status": hasStatus, "type": hasType, "id": hasID,
}

// emptyValue reports whether a JSON value has no content.
func emptyValue(raw []byte) bool {
	s := strings.Trim(string(raw[:min(len(raw), 256)]), " \t\r\n:")
	if len(raw) > 256 && strings.Trim(s, "[{ \t\r\n") != "" {
		return false
	}
	switch {
	case s == `""`, s == "null", s == "":
		return true
	case s[0] == '[', s[0] == '{':
		return strings.Trim(s[1:], " \t\r\n") == "]" || strings.Trim(s[1:], " \t\r\n") == "}"
	}
	return false
}

// saysAnything reports whether content has more than labels: a non-empty string that is not
// the type, the id or the status of a part. It stops at the first.
func saysAnything(raw []byte) bool {
	i := bytes.IndexByte(raw, ':') // between the name and the value
	d := jsontext.NewDecoder(bytes.NewReader(raw[i+1:]))
	label := false
	for {
		t, err := d.ReadToken()
		if err != nil {
			return false // the end
		}
		if kind, n := d.StackIndex(d.StackDepth()); t.Kind() == '"' && kind == '{' && n%2 == 1 {
			name := t.String()
			label = name == "type" || name == "id" || name == "status" || name == "detail"
			continue
		}
		if t.Kind() == '"' && !label && t.String() != "" {
			return true
		}
		label = false
	}
}

// vocabularies is the allow-list of this build.
var vocabularies = readVocabulary()
