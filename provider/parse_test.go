package provider_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/ai-identity/ai-identity/provider"
)

// parsed returns the call of a body.
func parsed(t testing.TB, path, body string) provider.Call {
	t.Helper()
	c, e := parse(t, path, body)
	if e != nil {
		t.Fatalf("%s: %v", body, e)
	}
	return c
}

func parse(t testing.TB, path, body string) (provider.Call, *provider.Error) {
	t.Helper()
	ep, params, ok := provider.Match("POST", path)
	if !ok {
		t.Fatalf("no endpoint %s", path)
	}
	return provider.Parse(ep, params, "application/json", "", []byte(body))
}

const (
	chat      = "/v1/chat/completions"
	responses = "/v1/responses"
	messages  = "/v1/messages"
	generate  = "/v1beta/models/gemini-2.5-pro:generateContent"
)

// TestParse shows the calls of requests from the documentation of each API.
func TestParse(t *testing.T) {
	type want struct {
		Model     string
		Stream    bool
		MaxTokens int64
		Tools     []string
		Hosts     []string
	}
	for _, c := range []struct {
		name, path, body string
		want             want
	}{
		{"the least", chat, `{"model":"gpt-4o","messages":[]}`, want{Model: "gpt-4o"}},
		{"nulls", chat, `{"model":"m","stream":null,"max_tokens":null,"tools":null,"messages":[{"role":"assistant","content":null,"tool_calls":null}]}`, want{Model: "m"}},
		{"white space", chat, " \r\n\t{ \"model\" : \"m\" , \"stream\" : true } \n", want{Model: "m", Stream: true}},
		{"an escape", chat, `{"mo\u0064el":"gpt\u002d4o"}`, want{Model: "gpt-4o"}},
		{"limits", chat, `{"model":"m","max_tokens":10,"max_completion_tokens":20}`, want{Model: "m", MaxTokens: 20}},
		{"the largest limit", chat, `{"model":"m","max_tokens":9007199254740992}`, want{Model: "m", MaxTokens: 1 << 53}},
		{"fine-tuned", chat, `{"model":"ft:gpt-4o-2024-08-06:acme::BdQ9xYz"}`, want{Model: "ft:gpt-4o-2024-08-06:acme::BdQ9xYz"}},
		{"any name in what is not judged", chat, `{"model":"m","metadata":{"Model":"x","ｍodel":"y","":"z","model\u0000":1},"logit_bias":{"50256":-100}}`, want{Model: "m"}},
		{"tools", chat, `{"model":"m","tools":[{"type":"function","function":{"name":"b","parameters":{"name":"no"}}},{"function":{"name":"a"},"type":"function"},{"type":"custom","custom":{"name":"c"}}],"tool_choice":"auto"}`,
			want{Model: "m", Tools: []string{"a", "b", "c"}}},
		{"functions", chat, `{"model":"m","functions":[{"name":"old"}],"messages":[{"role":"assistant","function_call":{"name":"older","arguments":"{}"}},{"role":"function","name":"oldest","content":"1"}]}`,
			want{Model: "m", Tools: []string{"old", "older", "oldest"}}},
		{"history", chat, `{"model":"m","messages":[{"role":"user","name":"carla","content":"x"},{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}},{"type":"custom","custom":{"name":"g"}}]},{"name":"h","role":"tool","tool_call_id":"1","content":"y"}]}`,
			want{Model: "m", Tools: []string{"f", "g", "h"}}},
		{"search", chat, `{"model":"m","web_search_options":{}}`, want{Model: "m", Tools: []string{"web_search"}}},
		{"images", chat, `{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://Cats.Example:8443/1.png"}},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}},{"type":"image_url","image_url":"http://user@dogs.example/x"}]}]}`,
			want{Model: "m", Hosts: []string{"cats.example", "unknown"}}},
		{"tricks with URLs", chat, `{"model":"m","messages":[{"role":"user","content":[{"image_url":{"url":"https://good.example@evil.example/"}},{"image_url":{"url":"https:\\\\back.example\\x"}},{"image_url":{"url":"ht\ntps://new\nline.example"}},{"image_url":{"url":"https://[::1]:80/"}},{"image_url":{"url":"gs://bucket/x"}},{"image_url":{"url":"https://exa%6dple.com"}},{"image_url":{"url":"file:/etc/passwd"}}]}]}`,
			want{Model: "m", Hosts: []string{"::1", "unknown"}}},
		{"a long URL with escapes", chat, `{"model":"m","messages":[{"role":"user","content":[{"image_url":{"url":"https:\/\/long.example\/` + strings.Repeat("a", 5000) + `"}}]}]}`,
			want{Model: "m", Hosts: []string{"long.example"}}},
		{"long text that is no URL", chat, `{"model":"m","messages":[{"role":"user","content":[{"image_url":"` + strings.Repeat("a", 5000) + `"}]}]}`,
			want{Model: "m", Hosts: []string{"unknown"}}},
		{"data in escapes", chat, `{"model":"m","messages":[{"role":"user","content":[{"image_url":" d\u0061ta:image\/png;base64,AAAA"}]}]}`, want{Model: "m"}},
		{"a file that is a URL", chat, `{"model":"m","messages":[{"role":"user","content":[{"type":"file","file":{"file_data":"https://evil.example/x.pdf"}}]}]}`,
			want{Model: "m", Hosts: []string{"evil.example"}}},
		{"a file that is base64", chat, `{"model":"m","messages":[{"role":"user","content":[{"type":"file","file":{"file_data":"JVBERi0x\n\/w=="}}]}]}`, want{Model: "m"}},
		{"audio in a string", chat, `{"model":"m","messages":[{"role":"user","content":[{"type":"input_audio","input_audio":"https://a.example/x.mp3"},{"type":"input_audio","input_audio":"UklGRg=="}]}]}`,
			want{Model: "m", Hosts: []string{"a.example"}}},
		{"inline data that is a URL", generate, `{"contents":[{"parts":[{"inlineData":{"mimeType":"image/png","data":"https://d.example/"}}]}]}`,
			want{Model: "gemini-2.5-pro", Hosts: []string{"d.example"}}},

		{"completion", "/v1/completions", `{"model":"m","prompt":["a","b"],"max_tokens":5,"stream":true}`, want{Model: "m", Stream: true, MaxTokens: 5}},
		{"embeddings", "/v1/embeddings", `{"model":"e","input":[[1,2],[3]],"dimensions":8}`, want{Model: "e"}},
		{"moderations", "/v1/moderations", `{"model":"omni-moderation-latest","input":[{"type":"image_url","image_url":{"url":"https://h.example/"}}]}`, want{Model: "omni-moderation-latest", Hosts: []string{"h.example"}}},

		{"responses", responses, `{"model":"m","input":"hi","max_output_tokens":7,"stream":true,"store":false,"background":false,"previous_response_id":null,"conversation":null,"prompt":null}`, want{Model: "m", Stream: true, MaxTokens: 7}},
		{"responses, tools", responses, `{"model":"m","input":"x","tools":[{"type":"function","name":"f","parameters":{}},{"type":"web_search_preview_2025_03_11"},{"type":"web_search"},{"type":"mcp","server_label":"dice","server_url":"https://dice.example/sse","require_approval":"never"},{"type":"code_interpreter","container":{"type":"auto"}},{"type":"namespace","name":"crm","tools":[{"type":"function","name":"g"}]}]}`,
			want{Model: "m", Tools: []string{"code_interpreter", "crm", "f", "g", "mcp:dice", "web_search", "web_search_preview"}, Hosts: []string{"dice.example"}}},
		{"responses, items", responses, `{"model":"m","input":[{"role":"user","content":[{"type":"input_image","image_url":"https://i.example/a"},{"type":"input_file","file_url":"https://f.example/b"}]},{"type":"function_call","name":"f","arguments":"{}","call_id":"1"},{"type":"function_call_output","call_id":"1","output":"x"},{"type":"web_search_call","id":"ws_1","action":{"type":"search","query":"q"}},{"type":"reasoning","summary":[]},{"type":"mcp_call","server_label":"s","name":"t"}]}`,
			want{Model: "m", Tools: []string{"f", "mcp:s", "t", "web_search"}, Hosts: []string{"f.example", "i.example"}}},

		{"responses, tools that come later", responses, `{"model":"m","input":[{"type":"additional_tools","role":"developer","tools":[{"type":"namespace","name":"crm","tools":[{"type":"function","name":"delete"}]},{"type":"mcp","server_label":"t","tunnel_id":"tunnel_1"}]},{"type":"tool_search_output","tools":[{"type":"namespace","name":"ns","tools":[{"type":"custom","name":"found"}]}]}]}`,
			want{Model: "m", Tools: []string{"crm", "delete", "found", "mcp:t", "ns", "tunnel_1"}}},
		{"messages, tools that come later", messages, `{"model":"c","max_tokens":1,"messages":[{"role":"system","content":[{"type":"tool_addition","tool":{"type":"tool_definition","definition":{"name":"f","input_schema":{}}}},{"type":"tool_addition","tool":{"type":"mcp_tool_reference","server_name":"s","name":"g"}}]},{"role":"user","content":[{"type":"compaction","content":"x","tool_changes":[{"type":"tool_addition","tool":{"type":"tool_definition","definition":{"type":"bash_20250124","name":"bash"}}}]},{"type":"mcp_tool_listing","server_name":"l","tools":[{"name":"h"}]}]}]}`,
			want{Model: "c", MaxTokens: 1, Tools: []string{"bash", "f", "g", "h", "mcp:l", "mcp:s"}}},
		{"an image of before", responses, `{"model":"m","input":[{"type":"image_generation_call","id":"ig_1","status":"completed","result":"AAAA"}]}`, want{Model: "m", Tools: []string{"image_generation"}}},
		{"messages", messages, `{"model":"claude-sonnet-4-5","max_tokens":1024,"stream":true,"messages":[{"role":"user","content":"Hello"}],"system":[{"type":"text","text":"x","cache_control":{"type":"ephemeral"}}]}`, want{Model: "claude-sonnet-4-5", Stream: true, MaxTokens: 1024}},
		{"messages, tools", messages, `{"model":"c","max_tokens":1,"tools":[{"name":"f","input_schema":{}},{"type":"custom","name":"g"},{"type":"web_search_20250305","name":"web_search"},{"type":"text_editor_20250728","name":"str_replace_based_edit_tool"},{"type":"mcp_toolset","mcp_server_name":"s"}],"mcp_servers":[{"type":"url","name":"s","url":"https://mcp.example/sse"}],"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"1","name":"h","input":{"name":"no"}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"1","content":[{"type":"image","source":{"type":"url","url":"https://pics.example/1"}},{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAAA"}}]}]}]}`,
			want{Model: "c", MaxTokens: 1, Tools: []string{"f", "g", "h", "mcp:s", "str_replace_based_edit_tool", "text_editor", "web_search"}, Hosts: []string{"mcp.example", "pics.example"}}},
		{"count tokens", "/v1/messages/count_tokens", `{"model":"c","messages":[]}`, want{Model: "c"}},

		{"generate", generate, `{"contents":[{"role":"user","parts":[{"text":"hi"}]}],"generationConfig":{"maxOutputTokens":9}}`, want{Model: "gemini-2.5-pro", MaxTokens: 9}},
		{"generate, as in .proto", generate, `{"contents":[],"generation_config":{"max_output_tokens":9},"system_instruction":{"parts":[]}}`, want{Model: "gemini-2.5-pro", MaxTokens: 9}},
		{"generate, streamed", "/v1/models/g:streamGenerateContent", `{"contents":[]}`, want{Model: "g", Stream: true}},
		{"generate, tools", generate, `{"tools":[{"functionDeclarations":[{"name":"f"}]},{"googleSearch":{}},{"code_execution":{}}],"contents":[{"parts":[{"functionCall":{"name":"g","args":{}}},{"function_response":{"name":"h","response":{}}},{"fileData":{"fileUri":"https://files.example/x"}},{"inlineData":{"mimeType":"image/png","data":"AAAA"}}]}]}`,
			want{Model: "gemini-2.5-pro", Tools: []string{"code_execution", "f", "g", "google_search", "h"}, Hosts: []string{"files.example"}}},
		{"embed", "/v1beta/models/e:embedContent", `{"model":"models/e","content":{"parts":[{"text":"x"}]}}`, want{Model: "e"}},
		{"embed many", "/v1beta/models/e:batchEmbedContents", `{"requests":[{"model":"models/e","content":{"parts":[]}},{"model":"models/e"}]}`, want{Model: "e"}},
		{"count", "/v1beta/models/e:countTokens", `{"generateContentRequest":{"model":"models/e","contents":[]}}`, want{Model: "e"}},

		{"Cohere chat", "/v2/chat", `{"model":"command-a","stream":true,"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f"}}]}],"tools":[{"type":"function","function":{"name":"f"}}]}`, want{Model: "command-a", Stream: true, Tools: []string{"f"}}},
		{"Cohere embed", "/v2/embed", `{"model":"embed-v4.0","texts":["a"],"input_type":"search_query","images":["data:image/png;base64,AA"]}`, want{Model: "embed-v4.0"}},
		{"Cohere rerank", "/v2/rerank", `{"model":"rerank-v3.5","query":"q","documents":["a"],"top_n":1}`, want{Model: "rerank-v3.5"}},
		{"fill in the middle", "/v1/fim/completions", `{"model":"codestral-latest","prompt":"def","suffix":"return","max_tokens":3}`, want{Model: "codestral-latest", MaxTokens: 3}},
		{"OCR", "/v1/ocr", `{"model":"mistral-ocr-latest","document":{"type":"document_url","document_url":"https://arxiv.example/x.pdf"}}`, want{Model: "mistral-ocr-latest", Hosts: []string{"arxiv.example"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			call := parsed(t, c.path, c.body)
			got := want{call.Model, call.Stream, call.MaxTokens, call.Tools, call.Hosts}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			if string(call.Body) != c.body {
				t.Error("the body is not the one that was judged")
			}
			if call.InputTokensEstimate <= 0 {
				t.Errorf("estimate is %d", call.InputTokensEstimate)
			}
		})
	}
}

// TestParseRefuses has a line for each way in which a body may have two meanings, or avoid
// the evaluation.
func TestParseRefuses(t *testing.T) {
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for _, c := range []struct {
		name, path, body, code string
	}{
		{"nothing", chat, ``, "invalid_json"},
		{"white space", chat, "  \n", "invalid_json"},
		{"an array", chat, `[{"model":"m"}]`, "invalid_json"},
		{"a string", chat, `"model"`, "invalid_json"},
		{"null", chat, `null`, "invalid_json"},
		{"a number", chat, `1`, "invalid_json"},
		{"cut short", chat, `{"model":"m"`, "invalid_json"},
		{"cut in a string", chat, `{"model":"m`, "invalid_json"},
		{"two objects", chat, `{"model":"m"}{"model":"n"}`, "invalid_json"},
		{"something after it", chat, `{"model":"m"} x`, "invalid_json"},
		{"a comma too many", chat, `{"model":"m",}`, "invalid_json"},
		{"a comment", chat, `{"model":"m"/* */}`, "invalid_json"},
		{"a line comment", chat, "{\"model\":\"m\"//\n}", "invalid_json"},
		{"single quotes", chat, `{'model':'m'}`, "invalid_json"},
		{"no quotes", chat, `{model:"m"}`, "invalid_json"},
		{"NaN", chat, `{"model":"m","temperature":NaN}`, "invalid_json"},
		{"Infinity", chat, `{"model":"m","temperature":-Infinity}`, "invalid_json"},
		{"a leading zero", chat, `{"model":"m","max_tokens":010}`, "invalid_json"},
		{"a byte order mark", chat, "\xef\xbb\xbf{\"model\":\"m\"}", "invalid_json"},
		{"UTF-16", chat, "{\x00\"\x00m\x00", "invalid_json"},
		{"invalid UTF-8", chat, "{\"model\":\"m\",\"x\":\"\xff\"}", "invalid_json"},
		{"overlong UTF-8", chat, "{\"model\":\"m\",\"x\":\"\xc0\xaf\"}", "invalid_json"},
		{"invalid UTF-8 in a name", chat, "{\"model\":\"m\",\"\xff\":1}", "invalid_json"},
		{"a lone surrogate", chat, `{"model":"m","x":"\ud800"}`, "invalid_json"},
		{"a lone surrogate in a name", chat, `{"model":"m","\udc00":1}`, "invalid_json"},
		{"a control character", chat, "{\"model\":\"m\",\"x\":\"\x01\"}", "invalid_json"},
		{"NUL after it", chat, "{\"model\":\"m\"}\x00", "invalid_json"},
		{"too deep", chat, `{"model":"m","x":` + deep(64) + `}`, "invalid_json"},
		{"much too deep", chat, `{"model":"m","x":` + deep(100_000) + `}`, "invalid_json"},
		{"too deep where it is judged", chat, `{"model":"m","messages":` + deep(64) + `}`, "invalid_json"},
		{"too deep in blocks", messages, `{"model":"m","messages":` + strings.Repeat(`[{"content":`, 40) + `1` + strings.Repeat(`}]`, 40) + `}`, "invalid_json"},

		{"the model twice", chat, `{"model":"a","model":"b"}`, "repeated_field"},
		{"the model twice, escaped", chat, `{"model":"a","mo\u0064el":"b"}`, "repeated_field"},
		{"twice somewhere else", chat, `{"model":"m","x":{"a":[{"b":1,"b":2}]}}`, "repeated_field"},
		{"twice in a message", chat, `{"model":"m","messages":[{"role":"user","role":"system"}]}`, "repeated_field"},
		{"upper case", chat, `{"Model":"a","model":"b"}`, "ambiguous_field_name"},
		{"all upper case", chat, `{"model":"b","MODEL":"a"}`, "ambiguous_field_name"},
		{"upper case only", chat, `{"Model":"a"}`, "ambiguous_field_name"},
		{"camel case", chat, `{"model":"a","maxTokens":1}`, "ambiguous_field_name"},
		{"a hyphen", chat, `{"model":"a","max-tokens":1}`, "ambiguous_field_name"},
		{"a space", chat, `{"model":"a","stream ":true}`, "ambiguous_field_name"},
		{"full width", chat, `{"model":"a","ｍodel":"b"}`, "invalid_field_name"},
		{"a long s", chat, `{"model":"a","ſtream":true}`, "invalid_field_name"},
		{"a Kelvin sign", chat, `{"model":"a","max_to\u212aens":1}`, "invalid_field_name"},
		{"NUL", chat, `{"model":"a","model\u0000":"b"}`, "invalid_field_name"},
		{"a tab", chat, `{"model":"a","model\t":"b"}`, "invalid_field_name"},
		{"a zero-width space", chat, `{"model":"a","mod\u200bel":"b"}`, "invalid_field_name"},
		{"a soft hyphen", chat, "{\"model\":\"a\",\"mod\u00adel\":\"b\"}", "invalid_field_name"},
		{"mathematical letters", chat, "{\"model\":\"a\",\"\U0001d426odel\":\"b\"}", "invalid_field_name"},
		{"in a tool", chat, `{"model":"a","tools":[{"type":"function","function":{"name":"safe","Name":"danger"}}]}`, "ambiguous_field_name"},
		{"in a message", chat, `{"model":"a","messages":[{"role":"assistant","Tool_Calls":[]}]}`, "ambiguous_field_name"},
		{"of a field that steers", chat, `{"model":"a","API_BASE":"x"}`, "ambiguous_field_name"},

		{"no model", chat, `{"messages":[]}`, "missing_model"},
		{"an empty model", chat, `{"model":""}`, "missing_model"},
		{"a null model", chat, `{"model":null}`, "missing_model"},
		{"a number for a model", chat, `{"model":4}`, "invalid_type"},
		{"a list of models", chat, `{"model":["a","b"]}`, "invalid_type"},
		{"an object for a model", chat, `{"model":{"a":1}}`, "invalid_type"},
		{"a space before", chat, `{"model":" gpt-4o"}`, "invalid_model"},
		{"a line break after", chat, `{"model":"gpt-4o\n"}`, "invalid_model"},
		{"NUL in the model", chat, `{"model":"gpt-4o\u0000"}`, "invalid_model"},
		{"letters that look alike", chat, `{"model":"gpt-4о"}`, "invalid_model"},
		{"a long model", chat, `{"model":"` + strings.Repeat("m", 257) + `"}`, "invalid_model"},
		{"a string for stream", chat, `{"model":"m","stream":"true"}`, "invalid_type"},
		{"a number for stream", chat, `{"model":"m","stream":1}`, "invalid_type"},
		{"a string of digits", chat, `{"model":"m","max_tokens":"10"}`, "invalid_type"},
		{"a fraction", chat, `{"model":"m","max_tokens":1.5}`, "invalid_type"},
		{"a whole fraction", chat, `{"model":"m","max_tokens":10.0}`, "invalid_type"},
		{"an exponent", chat, `{"model":"m","max_tokens":1e2}`, "invalid_type"},
		{"a large exponent", chat, `{"model":"m","max_tokens":1e400}`, "invalid_type"},
		{"a negative limit", chat, `{"model":"m","max_tokens":-1}`, "invalid_type"},
		{"minus zero", chat, `{"model":"m","max_tokens":-0}`, "invalid_type"},
		{"not exact", chat, `{"model":"m","max_tokens":9007199254740993}`, "invalid_type"},
		{"too many digits", chat, `{"model":"m","max_tokens":18446744073709551626}`, "invalid_type"},
		{"a list for a limit", chat, `{"model":"m","max_tokens":[1]}`, "invalid_type"},
		{"another API's limit", chat, `{"model":"m","max_output_tokens":1}`, "unsupported_parameter"},
		{"a tool's name that is none", chat, `{"model":"m","tools":[{"function":{"name":1}}]}`, "invalid_type"},
		{"a long tool's name", chat, `{"model":"m","tools":[{"function":{"name":"` + strings.Repeat("n", 257) + `"}}]}`, "invalid_type"},
		{"a URL that is none", chat, `{"model":"m","messages":[{"content":[{"image_url":{"url":1}}]}]}`, "invalid_type"},

		{"another server", chat, `{"model":"m","api_base":"http://evil.example"}`, "unsupported_parameter"},
		{"another server, null", chat, `{"model":"m","base_url":null}`, "unsupported_parameter"},
		{"another credential", chat, `{"model":"m","api_key":"x"}`, "unsupported_parameter"},
		{"another provider", chat, `{"model":"m","custom_llm_provider":"openai"}`, "unsupported_parameter"},
		{"other headers", chat, `{"model":"m","extra_headers":{"authorization":"x"}}`, "unsupported_parameter"},
		{"other models", chat, `{"model":"m","fallbacks":["n"]}`, "unsupported_parameter"},
		{"other models, too", chat, `{"model":"m","models":["n"]}`, "unsupported_parameter"},
		{"a route", chat, `{"model":"m","route":"fallback"}`, "unsupported_parameter"},
		{"an engine", chat, `{"model":"m","engine":"n"}`, "unsupported_parameter"},
		{"a model of a tool's", responses, `{"model":"m","tools":[{"type":"image_generation","model":"n"}]}`, "unsupported_parameter"},

		{"a model of a part of a tool's", responses, `{"model":"m","tools":[{"type":"image_generation","output_format":"svg","svg":{"model":"n"}}]}`, "unsupported_parameter"},
		{"a model of a tool that comes later", responses, `{"model":"m","input":[{"type":"additional_tools","role":"developer","tools":[{"type":"image_generation","model":"n"}]}]}`, "unsupported_parameter"},
		{"a model that moderates", responses, `{"model":"m","moderation":{"model":"n"}}`, "unsupported_parameter"},
		{"a model that moderates a chat", chat, `{"model":"m","moderation":{"model":"n"}}`, "unsupported_parameter"},
		{"a model of Together's that moderates", chat, `{"model":"m","safety_model":"n"}`, "unsupported_parameter"},
		{"models of Groq's compound", chat, `{"model":"groq/compound","compound_custom":{"models":{"answering_model":"n"}}}`, "unsupported_parameter"},
		{"a preset of OpenRouter's", chat, `{"model":"m","preset":"p"}`, "unsupported_parameter"},
		{"a tool's model in a block", messages, `{"model":"m","max_tokens":1,"messages":[{"role":"system","content":[{"type":"tool_addition","tool":{"type":"tool_definition","definition":{"type":"advisor_20260301","name":"advisor","model":"n"}}}]}]}`, "unsupported_parameter"},
		{"an MCP server without a label", responses, `{"model":"m","tools":[{"type":"mcp","server_url":"https://mcp.example/"}]}`, "missing_label"},
		{"an MCP server whose label is null", responses, `{"model":"m","tools":[{"server_label":null,"server_url":"https://mcp.example/","type":"mcp"}]}`, "missing_label"},
		{"an MCP server without a name", messages, `{"model":"m","max_tokens":1,"messages":[],"mcp_servers":[{"type":"url","url":"https://mcp.example/"}]}`, "missing_label"},
		{"an MCP server of Gemini's without a name", generate, `{"contents":[],"tools":[{"mcpServers":[{"streamableHttpTransport":{"url":"https://mcp.example/"}}]}]}`, "missing_label"},

		{"a search index of Azure's", chat, `{"model":"m","data_sources":[{"type":"azure_search","parameters":{"endpoint":"https://s.example","index_name":"i"}}]}`, "stored_object"},
		{"an answer that is fetched later", chat, `{"model":"m","deferred":true}`, "stored_object"},
		{"a container of a tool that comes later", responses, `{"model":"m","input":[{"type":"additional_tools","role":"developer","tools":[{"type":"code_interpreter","container":"cntr_1"}]}]}`, "stored_object"},
		{"a container of a call", responses, `{"model":"m","input":[{"type":"shell_call","call_id":"1","action":{"commands":[]},"environment":{"type":"container_reference","container_id":"cntr_1"}}]}`, "stored_object"},
		{"an image by its id", responses, `{"model":"m","input":[{"type":"image_generation_call","id":"ig_1"}]}`, "stored_object"},
		{"an image by its id and nothing", responses, `{"model":"m","input":[{"result":"","type":"image_generation_call","id":"ig_1"}]}`, "stored_object"},
		{"an uploaded file by its name", generate, `{"contents":[{"parts":[{"fileData":{"fileUri":"files/1"}}]}]}`, "stored_object"},
		{"a file in a bucket", generate, `{"contents":[{"parts":[{"fileData":{"fileUri":"gs://bucket/x"}}]}]}`, "stored_object"},
		{"an item that is a string", responses, `{"model":"m","input":["msg_1"]}`, "stored_object"},
		{"an uploaded file by another host", generate, `{"contents":[{"parts":[{"file_data":{"file_uri":"https://generativelanguage.mtls.googleapis.com/v1beta/files/1"}}]}]}`, "stored_object"},
		{"a response before", responses, `{"model":"m","previous_response_id":"resp_1"}`, "stored_object"},
		{"in the background", responses, `{"model":"m","background":true}`, "stored_object"},
		{"background of another type", responses, `{"model":"m","background":"true"}`, "invalid_type"},
		{"a conversation", responses, `{"model":"m","conversation":{"id":"conv_1"}}`, "stored_object"},
		{"a prompt", responses, `{"model":"m","prompt":{"id":"pmpt_1"}}`, "stored_object"},
		{"a prompt instead of a model", responses, `{"prompt":{"id":"pmpt_1"}}`, "stored_object"},
		{"an item", responses, `{"model":"m","input":[{"type":"item_reference","id":"msg_1"}]}`, "stored_object"},
		{"an item without a type", responses, `{"model":"m","input":[{"id":"msg_1"}]}`, "stored_object"},
		{"a file", responses, `{"model":"m","input":[{"role":"user","content":[{"type":"input_file","file_id":"file-1"}]}]}`, "stored_object"},
		{"a vector store", responses, `{"model":"m","tools":[{"type":"file_search","vector_store_ids":["vs_1"]}]}`, "stored_object"},
		{"a container", responses, `{"model":"m","tools":[{"type":"code_interpreter","container":{"type":"auto","file_ids":["file-1"]}}]}`, "stored_object"},
		{"a container by id", responses, `{"model":"m","tools":[{"type":"code_interpreter","container":"cntr_1"}]}`, "stored_object"},
		{"a file in chat", chat, `{"model":"m","messages":[{"role":"user","content":[{"type":"file","file":{"file_id":"file-1"}}]}]}`, "stored_object"},
		{"a sound", chat, `{"model":"m","messages":[{"role":"assistant","audio":{"id":"audio_1"}}]}`, "stored_object"},
		{"a file in messages", messages, `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[{"type":"document","source":{"type":"file","file_id":"file_1"}}]}]}`, "stored_object"},
		{"a container in messages", messages, `{"model":"m","max_tokens":1,"messages":[],"container":"container_1"}`, "stored_object"},
		{"a thread in messages", messages, `{"model":"m","max_tokens":1,"messages":[],"thread":{"type":"create"}}`, "stored_object"},
		{"a thread that goes on", messages, `{"model":"m","max_tokens":1,"messages":[],"thread":{"type":"continue","previous_message_id":"msg_1"}}`, "stored_object"},
		{"somebody else's bill", messages, `{"model":"m","max_tokens":1,"messages":[],"billing_policy":{"type":"billing_policy","bill_to":"user_profile"}}`, "unsupported_parameter"},
		{"another model, by Vertex's router", generate, `{"contents":[],"generationConfig":{"routingConfig":{"manualMode":{"modelName":"gemini-ultra"}}}}`, "unsupported_parameter"},
		{"another model, by its router, as in .proto", generate, `{"contents":[],"generation_config":{"routing_config":{"auto_mode":{}}}}`, "unsupported_parameter"},
		{"an answer into a bucket", generate, `{"contents":[],"outputConfig":{"outputUriPrefix":"gs://b/"}}`, "unsupported_parameter"},
		{"a template for screening", generate, `{"contents":[],"modelArmorConfig":{"promptTemplateName":"projects/p/locations/l/templates/t"}}`, "stored_object"},
		{"a cache", generate, `{"contents":[],"cachedContent":"cachedContents/1"}`, "stored_object"},
		{"a cache, as in .proto", generate, `{"contents":[],"cached_content":"cachedContents/1"}`, "stored_object"},
		{"an uploaded file", generate, `{"contents":[{"parts":[{"fileData":{"fileUri":"https://generativelanguage.googleapis.com/v1beta/files/1"}}]}]}`, "stored_object"},
		{"a file in OCR", "/v1/ocr", `{"model":"m","document":{"type":"file","file_id":"1"}}`, "stored_object"},

		{"another model in the body", generate, `{"model":"models/other","contents":[]}`, "model_mismatch"},
		{"another model in a part", "/v1beta/models/e:batchEmbedContents", `{"requests":[{"model":"models/e"},{"model":"models/other"}]}`, "model_mismatch"},
		{"both spellings", generate, `{"contents":[],"generationConfig":{"maxOutputTokens":1},"generation_config":{"maxOutputTokens":2}}`, "repeated_field"},
		{"both spellings, inside", generate, `{"generationConfig":{"maxOutputTokens":1,"max_output_tokens":2}}`, "repeated_field"},
		{"a third spelling", generate, `{"GenerationConfig":{"maxOutputTokens":1}}`, "ambiguous_field_name"},
		{"stream in the body", generate, `{"contents":[],"stream":true}`, "unsupported_parameter"},
	} {
		t.Run(c.name, func(t *testing.T) {
			call, e := parse(t, c.path, c.body)
			if e == nil {
				t.Fatalf("accepted as %+v", call)
			}
			if e.Code != c.code || e.Status != 400 {
				t.Errorf("%d %s, want %s: %s", e.Status, e.Code, c.code, e.Message)
			}
			if call.Body != nil || call.Model != "" {
				t.Errorf("a call beside the error: %+v", call)
			}
			if e.Type == "" || e.Message == "" {
				t.Errorf("not said what is wrong: %+v", e)
			}
		})
	}
}

// TestSteering: every field that changes the destination is rejected in every body with
// every value, and the error names the field.
func TestSteering(t *testing.T) {
	fields := strings.Fields(`api_base base_url api_key api_type api_version custom_llm_provider extra_headers extra_body headers fallbacks
		models model_list model_id engine deployment_id provider route proxy mock_response litellm_params azure_ad_token aws_access_key_id vertex_project organization lora_path kv_transfer_params bootstrap_host`)
	for _, ep := range provider.Endpoints() {
		if ep.Method == "GET" {
			continue
		}
		path := strings.NewReplacer("{version}", "v1beta", "{model}", "m").Replace(ep.Path)
		for _, f := range fields {
			for _, v := range []string{`"x"`, `null`, `{}`, `[1]`, `false`} {
				_, e := parse(t, path, `{"model":"m",`+strconv.Quote(f)+`:`+v+`}`)
				if e == nil || e.Status != 400 || e.Param != f || !strings.Contains(e.Message, f) {
					t.Errorf("%s: %s = %s: %v", path, f, v, e)
				}
			}
		}
	}
}

func TestDepth(t *testing.T) {
	// 63 arrays in the root object are 64 levels.
	parsed(t, chat, `{"model":"m","x":`+strings.Repeat("[", 63)+strings.Repeat("]", 63)+`}`)
	parsed(t, chat, `{"model":"m","x":"`+strings.Repeat("[", 100)+`\"\\","y":["[[[\"{{"]}`)
}

func TestContentType(t *testing.T) {
	ep, params, _ := provider.Match("POST", chat)
	for ct, ok := range map[string]bool{
		"application/json": true, "application/json; charset=utf-8": true, "application/json;charset=UTF-8": true, `application/json; charset="utf-8"`: true,
		"": false, "text/plain": false, "application/JSON": true, "Application/Json; Charset=UTF-8": true, "application/jsonl": false, "application/json-seq": false, "application": false, "application/json; charset=utf-16": false, "application/json; charset=latin1": false,
		"application/jsonp": false, "application/json, text/plain": false, "multipart/form-data; application/json": false, "application/json; charset=utf-8; x=y": false,
		"application/json; boundary=x": false, "application/x-www-form-urlencoded": false, "application/vnd.api+json": false, "application/grpc": false, " application/json": false,
	} {
		_, e := provider.Parse(ep, params, ct, "", []byte(`{"model":"m"}`))
		if (e == nil) != ok {
			t.Errorf("%q: %v", ct, e)
		}
		if e != nil && (e.Status != 415 || e.Code != "unsupported_media_type") {
			t.Errorf("%q: %v", ct, e)
		}
	}
}

func TestQuery(t *testing.T) {
	for _, c := range []struct{ path, query, code string }{
		{chat, "", ""},
		{messages, "beta=true", ""},
		{"/v1beta/models/m:streamGenerateContent", "alt=sse", ""},
		{generate, "alt=json", ""},

		{chat, "key=x", "misplaced_credential"},
		{chat, "api_key=x", "misplaced_credential"},
		{chat, "api-key=x", "misplaced_credential"},
		{generate, "key=AIza", "misplaced_credential"},
		{generate, "KEY=AIza", "misplaced_credential"},
		{generate, "alt=sse", "unknown_query_parameter"}, // only a stream has events
		{"/v1beta/models/m:streamGenerateContent", "alt=sse&access_token=x", "misplaced_credential"},
		{"/v1beta/models/m:streamGenerateContent", "alt=sse&alt=json", "repeated_query_parameter"},
		{"/v1beta/models/m:streamGenerateContent", "alt=sse&alt=sse", "repeated_query_parameter"},
		{"/v1beta/models/m:streamGenerateContent", "alt=%73se", "unknown_query_parameter"},
		{"/v1beta/models/m:streamGenerateContent", "ALT=sse", "unknown_query_parameter"},
		{"/v1beta/models/m:streamGenerateContent", "alt=sse&", "unknown_query_parameter"},
		{messages, "beta=false", "unknown_query_parameter"}, {messages, "beta=prompt_caching", ""}, {messages, "beta=tools&beta=true", "repeated_query_parameter"},
		{chat, "model=other", "unknown_query_parameter"},
		{chat, "api-version=2024-10-21", "unknown_query_parameter"},
		{chat, "x", "unknown_query_parameter"},
		{chat, "&", "unknown_query_parameter"},
		{chat, "a;b=c", "unknown_query_parameter"},
	} {
		ep, params, ok := provider.Match("POST", c.path)
		if !ok {
			t.Fatal(c.path)
		}
		code := ""
		if _, e := provider.Parse(ep, params, "application/json", c.query, []byte(`{"model":"m","contents":[]}`)); e != nil {
			code = e.Code
		}
		if strings.HasPrefix(c.path, "/v1beta/models/gemini") && code == "model_mismatch" {
			code = "" // the query was fine
		}
		if code != c.code {
			t.Errorf("%s?%s: %q, want %q", c.path, c.query, code, c.code)
		}
	}
	for _, c := range []struct{ path, body, model, message string }{
		{"/v1/moderations", `{"input":"a"}`, "omni-moderation-latest", ""}, // OpenAI's documented default
		{"/v1/moderations", `{"input":"a","model":"m"}`, "m", ""},
		{"/v1/chat/completions", `{"messages":[]}`, "", `Set "model"`},
		{"/v1/responses", `{"model":"m","input":[{"type":"item_reference","id":"rs_1"}]}`, "", `Send "store": false`},
	} {
		ep, params, _ := provider.Match("POST", c.path)
		call, e := provider.Parse(ep, params, "application/json", "", []byte(c.body))
		if e == nil != (c.message == "") || e != nil && !strings.Contains(e.Message, c.message) || call.Model != c.model {
			t.Errorf("%s %s: model %q, %v", c.path, c.body, call.Model, e)
		}
	}
	for _, c := range []struct{ path, query, code string }{
		{"/v1/models", "limit=1000", ""}, {"/v1/models", "limit=20&after_id=claude-x&beta=true", ""}, {"/v1/models", "page_size=100&endpoint=chat&default_only=true", ""},
		{"/v1beta/models", "pageSize=50&pageToken=&alt=json", ""}, {"/v1/models", "limit=1&limit=2", "repeated_query_parameter"},
		{"/v1/models", "key=AIzaSy123", "misplaced_credential"}, {"/v1/models", "other=1", "unknown_query_parameter"}, {"/v1/models/gpt-4o", "limit=1", "unknown_query_parameter"},
	} {
		ep, params, _ := provider.Match("GET", c.path)
		code := ""
		if _, e := provider.Parse(ep, params, "", c.query, nil); e != nil {
			code = e.Code
		}
		if code != c.code {
			t.Errorf("%s?%s: %q, want %q", c.path, c.query, code, c.code)
		}
	}
	ep, params, _ := provider.Match("GET", "/v1/models")
	if _, e := provider.Parse(ep, params, "", "", []byte("x")); e == nil || e.Code != "unexpected_body" {
		t.Errorf("a GET with a body: %v", e)
	}
	if c, e := provider.Parse(ep, params, "", "", nil); e != nil || c.Body != nil {
		t.Errorf("a GET: %v", e)
	}
}

// TestEstimate: content that is not text does not count as text.
func TestEstimate(t *testing.T) {
	text := strings.Repeat("a", 30_000)
	if got := parsed(t, chat, `{"model":"m","messages":[{"role":"user","content":"`+text+`"}]}`).InputTokensEstimate; got < 10_000 || got > 10_100 {
		t.Errorf("30,000 letters are %d tokens", got)
	}
	blob := strings.Repeat("A", 300_000)
	for path, body := range map[string]string{
		chat:      `{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,` + blob + `"}}]}]}`,
		messages:  `{"model":"m","messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","data":"` + blob + `"}}]}]}`,
		generate:  `{"contents":[{"parts":[{"inlineData":{"data":"` + blob + `"}}]}]}`,
		responses: `{"model":"m","input":[{"role":"user","content":[{"type":"input_file","file_data":"` + blob + `"}]}]}`,
		"/v1/ocr": `{"model":"m","document":{"type":"document_url","document_url":"data:application/pdf;base64,` + blob + `"}}`,
	} {
		if got := parsed(t, path, body).InputTokensEstimate; got < 1600 || got > 1750 {
			t.Errorf("%s: an image is %d tokens", path, got)
		}
	}
}

// TestNothingIsKept: a walker from the pool has no data of its last request.
func TestNothingIsKept(t *testing.T) {
	for range 100 {
		a := parsed(t, chat, `{"model":"a","max_tokens":5,"stream":true,"tools":[{"function":{"name":"x"}}],"messages":[{"role":"user","content":[{"image_url":{"url":"https://h.example"}}]}]}`)
		b := parsed(t, chat, `{"model":"b"}`)
		if b.Tools != nil || b.Hosts != nil || b.MaxTokens != 0 || b.Stream || b.Model != "b" {
			t.Fatalf("%+v", b)
		}
		if !slices.Equal(a.Tools, []string{"x"}) || !slices.Equal(a.Hosts, []string{"h.example"}) {
			t.Fatalf("%+v", a)
		}
	}
}

// TestErrorsDoNotQuote: a body may have a secret anywhere, and errors are copied to many
// places.
func TestErrorsDoNotQuote(t *testing.T) {
	const secret = "hunter2hunter2"
	for _, body := range []string{
		`{"model":"` + secret + ` "}`, `{"model":"m","stream":"` + secret + `"}`, `{"model":"m",` + secret + `}`, `{"model":"m","x":"` + secret + "\x01\"}",
		`{"model":"m","api_base":"` + secret + `"}`, `{"model":"m","max_tokens":"` + secret + `"}`, `{"model":"m"}` + secret, `{"model":"m","Model":"` + secret + `"}`,
	} {
		if _, e := parse(t, chat, body); e == nil || strings.Contains(e.Message+e.Param+e.Code, secret) {
			t.Errorf("%s: %v", body, e)
		}
	}
}

// FuzzParse compares accepted bodies with encoding/json, and checks their invariants.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{"model":"m","stream":true,"max_tokens":5,"messages":[{"role":"user","content":"x"}],"tools":[{"function":{"name":"f"}}]}`,
		`{"Model":"m"}`, `{"model":"a","model":"b"}`, `{"mo\u0064el":"a"}`, `{"model":"m","x":[1e400,-0,{"a":"\ud83d\ude00"}]}`, `{"model":"m","max_tokens":1e2}`, "{}",
		`{"model":"m","messages":[{"role":"tool","name":"n"}],"stream_options":{"include_usage":true}}`, "\xef\xbb\xbf{}", `{"model":"m"} `, `{"model":"m","a":{"b":{"c":[[[]]]}}}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		c, e := parse(t, chat, body)
		if e != nil {
			if e.Status < 400 || e.Status > 499 || e.Code == "" {
				t.Fatalf("%+v", e)
			}
			return
		}
		if string(c.Body) != body || !utf8.ValidString(body) {
			t.Fatal("other bytes than were judged")
		}
		var m map[string]any
		d := json.NewDecoder(strings.NewReader(body))
		d.UseNumber()
		if err := d.Decode(&m); err != nil {
			t.Fatalf("accepted what encoding/json does not: %v", err)
		}
		// encoding/json matches names without case and uses the last one. That must make no
		// difference.
		var s struct {
			Model     string
			Stream    *bool
			MaxTokens *json.Number `json:"max_tokens"`
			MaxMore   *json.Number `json:"max_completion_tokens"`
			Tools     []struct{ Function, Custom struct{ Name string } }
		}
		if err := json.Unmarshal([]byte(body), &s); err != nil {
			if !strings.Contains(err.Error(), "tools") { // an object instead of a list is rejected by the provider
				t.Fatalf("%v", err)
			}
		}
		if s.Model != c.Model || m["model"] != any(c.Model) {
			t.Fatalf("model %q, encoding/json says %q and %v", c.Model, s.Model, m["model"])
		}
		if (s.Stream != nil && *s.Stream) != c.Stream {
			t.Fatalf("stream %v, encoding/json says %v", c.Stream, s.Stream)
		}
		limit := int64(0)
		for _, n := range []*json.Number{s.MaxTokens, s.MaxMore} {
			if n != nil {
				v, err := n.Int64()
				if err != nil || v < 0 || v > 1<<53 {
					t.Fatalf("accepted a limit of %s", *n)
				}
				limit = max(limit, v)
			}
		}
		if limit != c.MaxTokens {
			t.Fatalf("limit %d, encoding/json says %d", c.MaxTokens, limit)
		}
		for _, tool := range s.Tools {
			for _, name := range []string{tool.Function.Name, tool.Custom.Name} {
				if name != "" && !slices.Contains(c.Tools, name) {
					t.Fatalf("tool %q is not in %q", name, c.Tools)
				}
			}
		}
		for name := range m {
			for _, judged := range []string{"model", "stream", "max_tokens", "tools", "messages", "api_base"} {
				if name != judged && strings.EqualFold(name, judged) {
					t.Fatalf("accepted %q beside %s", name, judged)
				}
			}
		}
		if !slices.IsSorted(c.Tools) || fmt.Sprint(slices.Compact(slices.Clone(c.Tools))) != fmt.Sprint(c.Tools) {
			t.Fatalf("tools %q", c.Tools)
		}
	})
}

// TestTypes puts a value of each JSON type at each evaluated place. The value is rejected,
// or something is added to the call, unless the place accepts text or a file.
func TestTypes(t *testing.T) {
	message := func(part string) string { return `{"model":"m","messages":[{"role":"user","content":[` + part + `]}]}` }
	turn := func(block string) string {
		return `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[` + block + `]}]}`
	}
	part := func(part string) string { return `{"contents":[{"parts":[` + part + `]}]}` }
	item := func(item string) string { return `{"model":"m","input":[` + item + `]}` }
	for _, c := range []struct{ path, body, quiet string }{ // quiet are the types without an effect there: string, array, object
		{chat, `{"model":"m","messages":?}`, "[]{}"},
		{chat, `{"model":"m","messages":[{"role":"user","content":?}]}`, `"[]{}`},
		{chat, message(`{"image_url":?}`), "[]{}"},
		{chat, message(`{"image_url":{"url":?}}`), "[]{}"},
		{chat, message(`{"video_url":?}`), "[]{}"},
		{chat, message(`{"file":?}`), "[]{}"},
		{chat, message(`{"file":{"file_data":?}}`), ""},
		{chat, message(`{"file":{"file_id":?}}`), "[]{}"},
		{chat, message(`{"input_audio":?}`), "[]{}"},
		{chat, message(`{"input_audio":{"data":?}}`), ""},
		{chat, `{"model":"m","messages":[{"role":"assistant","tool_calls":?}]}`, "[]{}"},
		{chat, `{"model":"m","messages":[{"role":"assistant","tool_calls":[{"function":?}]}]}`, "[]{}"},
		{chat, `{"model":"m","messages":[{"role":"assistant","tool_calls":[{"function":{"name":?}}]}]}`, ""},
		{chat, `{"model":"m","messages":[{"role":"assistant","function_call":?}]}`, "[]{}"},
		{chat, `{"model":"m","messages":[{"role":"assistant","audio":?}]}`, "[]{}"},
		{chat, `{"model":"m","messages":[{"role":?}]}`, `"`},
		{chat, `{"model":"m","messages":[{"role":"tool","name":?}]}`, ""},
		{chat, `{"model":"m","tools":?}`, "[]{}"},
		{chat, `{"model":"m","tools":[{"type":?}]}`, ""},
		{chat, `{"model":"m","tools":[{"function":?}]}`, "[]{}"},
		{chat, `{"model":"m","tools":[{"function":{"name":?}}]}`, ""},
		{chat, `{"model":"m","functions":?}`, "[]{}"},
		{chat, `{"model":"m","tool_choice":?}`, "[]{}"},
		{chat, `{"model":"m","tool_choice":{"type":?}}`, ""},
		{chat, `{"model":"m","tool_choice":{"function":?}}`, "[]{}"},
		{chat, `{"model":?}`, `"`},
		{chat, `{"model":"m","moderation":?}`, "[]{}"},
		{responses, `{"model":"m","input":?}`, `"[]`},
		{responses, item(`{"type":?}`), `"`},
		{responses, item(`{"role":"user","content":[{"image_url":?}]}`), "[]{}"},
		{responses, item(`{"role":"user","content":[{"file_url":?}]}`), "[]{}"},
		{responses, item(`{"role":"user","content":[{"file_data":?}]}`), ""},
		{responses, item(`{"type":"mcp_call","server_label":?}`), ""},
		{responses, item(`{"type":"x","tools":?}`), "[]{}"},
		{responses, item(`{"type":"x","environment":?}`), "[]{}"},
		{responses, `{"model":"m","tools":[{"type":"mcp","server_label":"l","server_url":?}]}`, "[]{}"},
		{responses, `{"model":"m","tools":[{"type":"mcp","server_label":?}]}`, ""},
		{responses, `{"model":"m","tools":[{"type":"code_interpreter","container":?}]}`, "[]{}"},
		{responses, `{"model":"m","tool_choice":{"type":"allowed_tools","tools":?}}`, "[]{}"},
		{messages, turn(`{"source":?}`), "[]{}"},
		{messages, turn(`{"source":{"url":?}}`), "[]{}"},
		{messages, turn(`{"source":{"data":?}}`), ""},
		{messages, turn(`{"type":"tool_use","name":?}`), ""},
		{messages, turn(`{"type":"tool_result","content":?}`), `"[]{}`},
		{messages, `{"model":"m","max_tokens":1,"messages":[],"mcp_servers":?}`, "[]"},
		{messages, `{"model":"m","max_tokens":1,"messages":[],"mcp_servers":[{"name":"s","url":?}]}`, "[]{}"},
		{messages, `{"model":"m","max_tokens":1,"messages":[],"tools":?}`, "[]{}"},
		{messages, `{"model":"m","max_tokens":1,"messages":[],"container":?}`, "[]{}"},
		{messages, `{"model":"m","max_tokens":1,"messages":[],"tool_choice":?}`, "[]{}"},
		{messages, `{"model":"m","max_tokens":1,"messages":[],"tool_choice":{"type":"tool","name":?}}`, ""},
		{chat, `{"model":"m","tool_choice":{"allowed_tools":?}}`, "[]{}"},
		{chat, `{"model":"m","tool_choice":{"allowed_tools":{"tools":?}}}`, "[]{}"},
		{"/v2/chat", `{"model":"m","messages":[],"tool_choice":?}`, "[]{}"},
		{"/mistral" + chat, `{"model":"m","tool_choice":{"function":{"name":?}}}`, ""},
		{generate, `{"contents":[],"toolConfig":?}`, "[]{}"},
		{generate, `{"contents":[],"toolConfig":{"functionCallingConfig":?}}`, "[]{}"},
		{generate, `{"contents":[],"tool_config":{"function_calling_config":{"allowed_function_names":?}}}`, "[]"},
		{generate, `{"contents":?}`, "[]{}"},
		{generate, `{"contents":[{"parts":?}]}`, "[]{}"},
		{generate, part(`{"inlineData":?}`), "[]{}"},
		{generate, part(`{"inlineData":{"data":?}}`), ""},
		{generate, part(`{"fileData":{"fileUri":?}}`), "[]{}"},
		{generate, part(`{"functionCall":?}`), "[]{}"},
		{generate, part(`{"functionCall":{"name":?}}`), ""},
		{generate, `{"contents":[],"tools":?}`, "[]{}"},
		{generate, `{"contents":[],"tools":[{"functionDeclarations":?}]}`, "[]{}"},
		{generate, `{"contents":[],"systemInstruction":?}`, "[]{}"},
		{"/v2/embed", `{"model":"m","images":?}`, "[]{}"},
		{"/v1/ocr", `{"model":"m","document":?}`, "[]{}"},
		{"/v1/ocr", `{"model":"m","document":{"document_url":?}}`, "[]{}"},
	} {
		for _, value := range []string{`"x.y"`, "1", "1.5", "true", "false", "[1]", `[["x.y",2]]`, "[]", "{}"} {
			body := strings.Replace(c.body, "?", value, 1)
			ep, params, _ := provider.Match("POST", c.path)
			call, e := provider.Parse(ep, params, "application/json", "", []byte(body))
			noted := len(call.Tools) > 0 || len(call.Hosts) > 0
			empty := value == "[]" && strings.Contains(c.quiet, "[") || value == "{}" && strings.Contains(c.quiet, "{") || value[0] == '"' && strings.Contains(c.quiet, `"`)
			if e == nil && !noted && !empty {
				t.Errorf("%s: %s holds nothing that is judged", c.path, body)
			}
			if e != nil && (e.Status != 400 || e.Code == "invalid_json") {
				t.Errorf("%s: %s: %v", c.path, body, e)
			}
		}
	}
}

// TestToolNames: a tool has one name, and a deny on its family matches it.
func TestToolNames(t *testing.T) {
	for _, c := range []struct{ path, body, families string }{
		{responses, `{"model":"m","input":"x","tools":[{"type":"web_search_preview"}]}`, "[web_search]"},
		{responses, `{"model":"m","input":"x","tools":[{"type":"web_search_2025_08_26"}]}`, "[web_search]"},
		{responses, `{"model":"m","input":"x","tools":[{"type":"web_search_preview_2025_03_11"}]}`, "[web_search]"},
		{responses, `{"model":"m","input":"x","tools":[{"type":"openrouter:web_search"}]}`, "[web_search]"},
		{responses, `{"model":"m","input":"x","tool_choice":{"type":"web_search_preview"}}`, "[web_search]"},
		{responses, `{"model":"m","input":[{"type":"web_search_call","id":"1","status":"completed","action":{"type":"search","query":"q"}}]}`, "[web_search]"},
		{responses, `{"model":"m","input":"x","tools":[{"type":"code_interpreter","container":{"type":"auto"}},{"type":"computer_use_preview"},{"type":"local_shell"}]}`,
			"[code_execution computer_use shell]"},
		{chat, `{"model":"m","search_parameters":{"mode":"auto"}}`, "[web_search]"},
		{chat, `{"model":"m","web_search_options":{}}`, "[web_search]"},
		{messages, `{"model":"m","max_tokens":1,"messages":[],"tools":[{"type":"web_search_20250305","name":"web_search"}]}`, "[web_search]"},
		{generate, `{"contents":[],"tools":[{"googleSearch":{}},{"urlContext":{}}]}`, "[web_fetch web_search]"},
		{chat, `{"model":"m","tools":[{"function":{"name":"crm.read"}},{"function":{"name":"bashful"}}]}`, "[]"},
	} {
		families, other := provider.ToolFamilies(parsed(t, c.path, c.body).Tools)
		if got := fmt.Sprint(families); got != c.families || other != (got == "[]") {
			t.Errorf("%s: %s, others %v, and not %s", c.body, got, other, c.families)
		}
	}
	for _, body := range []string{`{"model":"m","input":"x","tools":[{"type":"WEB_SEARCH"}]}`, `{"model":"m","input":"x","tools":[{"type":"web_search "}]}`,
		`{"model":"m","input":"x","tools":[{"type":"MCP","server_url":"https://x.example"}]}`, `{"model":"m","input":[{"type":"Web_Search_Call"}]}`} {
		ep, params, _ := provider.Match("POST", responses)
		if _, e := provider.Parse(ep, params, "application/json", "", []byte(body)); e == nil || e.Code != "invalid_type" {
			t.Errorf("%s: %v", body, e)
		}
	}
}

// TestChosenTools: a tool that is only chosen, and not declared, is evaluated as one, in
// every format and spelling. Nothing beside it can name one.
func TestChosenTools(t *testing.T) {
	const contents = `{"contents":[],`
	for _, c := range []struct{ path, body string }{
		{chat, `{"model":"m","tool_choice":"wipe"}`},
		{chat, `{"model":"m","tool_choice":{"type":"function","function":{"name":"wipe"}}}`},
		{chat, `{"model":"m","tool_choice":{"type":"function","name":"wipe"}}`},
		{chat, `{"model":"m","tool_choice":{"type":"custom","custom":{"name":"wipe"}}}`},
		{chat, `{"model":"m","tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"required","tools":[{"type":"function","function":{"name":"wipe"}}]}}}`},
		{"/mistral" + chat, `{"model":"m","tool_choice":{"type":"function","function":{"name":"wipe"}}}`},
		{responses, `{"model":"m","input":"x","tool_choice":{"type":"function","name":"wipe"}}`},
		{responses, `{"model":"m","input":"x","tool_choice":{"type":"allowed_tools","mode":"auto","tools":[{"type":"function","name":"wipe"}]}}`},
		{messages, `{"model":"m","max_tokens":1,"messages":[],"tool_choice":{"type":"tool","name":"wipe","disable_parallel_tool_use":true}}`},
		{messages + "/count_tokens", `{"model":"m","messages":[],"tool_choice":{"type":"tool","name":"wipe"}}`},
		{"/v2/chat", `{"model":"m","messages":[],"tool_choice":{"name":"wipe"}}`},
		{generate, contents + `"toolConfig":{"functionCallingConfig":{"mode":"ANY","allowedFunctionNames":["wipe"]}}}`},
		{generate, contents + `"tool_config":{"function_calling_config":{"mode":"ANY","allowed_function_names":["wipe"]}}}`},
		{generate, contents + `"toolConfig":{"functionCallingConfig":{"allowedFunctionNames":"wipe"}}}`},
		{generate, contents + `"toolConfig":[{"functionCallingConfig":{"allowedFunctionNames":[["wi\u0070e"]]}}]}`},
		{"/v1beta/models/g:countTokens", `{"generateContentRequest":{"model":"models/g","contents":[],"toolConfig":{"functionCallingConfig":{"allowedFunctionNames":["wipe"]}}}}`},
	} {
		if got := fmt.Sprint(parsed(t, c.path, c.body).Tools); got != "[wipe]" {
			t.Errorf("%s %s: %s", c.path, c.body, got)
		}
	}
	for _, c := range []struct{ path, body string }{
		{chat, `{"model":"m","tool_choice":{"type":"function","names":["wipe"]}}`},
		{chat, `{"model":"m","tool_choice":{"type":"function","function":{"name":"a","names":["wipe"]}}}`},
		{chat, `{"model":"m","tool_choice":{"type":"allowed_tools","allowed_tools":{"tools":[{"tool":"wipe"}]}}}`},
		{responses, `{"model":"m","input":"x","tool_choice":{"type":"allowed_tools","tool_names":["wipe"]}}`},
		{messages, `{"model":"m","max_tokens":1,"messages":[],"tool_choice":{"type":"tool","tool_name":"wipe"}}`},
		{generate, contents + `"toolConfig":{"functionCallingConfig":{"allowedTools":["wipe"]}}}`},
	} {
		ep, params, _ := provider.Match("POST", c.path)
		call, e := provider.Parse(ep, params, "application/json", "", []byte(c.body))
		if e == nil {
			kind := ep.Kinds[0]
			p := prov("a", kind, "*")
			_, e = p.Forward(call, c.path, "")
		}
		if e == nil || e.Code != "unknown_field" {
			t.Errorf("%s %s: %v", c.path, c.body, e)
		}
	}
	for _, body := range []string{contents + `"toolConfig":{"functionCallingConfig":{"AllowedFunctionNames":["wipe"]}}}`, contents + `"ToolConfig":{}}`,
		contents + `"toolConfig":{"functionCallingConfig":{"allowedFunctionNames":["a"],"allowed_function_names":["wipe"]}}}`} {
		ep, params, _ := provider.Match("POST", generate)
		if _, e := provider.Parse(ep, params, "application/json", "", []byte(body)); e == nil || e.Status != 400 {
			t.Errorf("%s: %v", body, e)
		}
	}
}

// TestModelName: "models/x" is the model x, which is evaluated and sent.
func TestModelName(t *testing.T) {
	call := parsed(t, chat, `{"model":"models/gemini-2.5-pro","messages":[{"role":"user","content":"x"}]}`)
	if call.Model != "gemini-2.5-pro" {
		t.Errorf("judged %q", call.Model)
	}
	if f, e := prov("a", "gemini", "*").Forward(call, chat, ""); e != nil || !strings.HasSuffix(f.Path, "/models/gemini-2.5-pro:generateContent") {
		t.Errorf("%s %v", f.Path, e)
	}
	for _, kind := range []string{"openai", "custom", "anthropic", "mistral", "cohere"} {
		if _, e := prov("a", kind, "*").Forward(call, chat, ""); e == nil || e.Code != "invalid_model" {
			t.Errorf("%s: %v", kind, e)
		}
	}
	// A server of OpenAI's API that has the model under the long name is listed with it, and
	// then that is the name. A pattern does not list it.
	for _, c := range []struct{ kind, models, want string }{
		{"openai", "models/gemini-2.5-pro", "models/gemini-2.5-pro"}, {"custom", "models/gemini-2.5-pro", "models/gemini-2.5-pro"},
		{"openai", "models/*", "gemini-2.5-pro"}, {"openai", "*", "gemini-2.5-pro"}, {"gemini", "models/gemini-2.5-pro", "gemini-2.5-pro"},
		{"mistral", "models/gemini-2.5-pro", "gemini-2.5-pro"},
	} {
		p := prov("a", c.kind, c.models)
		known := registry(t, p).Known(call)
		_, e := p.Forward(known, chat, "")
		if forwards := known.Model == c.want && (e == nil) == (c.kind == "gemini" || strings.HasPrefix(c.want, "models/")); !forwards {
			t.Errorf("%s %s: %q %v", c.kind, c.models, known.Model, e)
		}
	}
}
