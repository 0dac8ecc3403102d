package provider_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/provider"
)

// ask parses a body and forwards it to a provider of the kind with the settings.
func ask(t *testing.T, kind, base, settings, path, body string, headers ...string) (provider.Forward, *provider.Error) {
	t.Helper()
	p := provider.Provider{ID: "prov_1", OrgID: "org_1", Name: "one", Kind: kind, BaseURL: base, Models: []string{"*"}}
	if settings != "" {
		p.Settings = []byte(settings)
	}
	p.Cluster = provider.ClusterName(p)
	if err := provider.Validate(p); err != nil {
		t.Fatal(err)
	}
	ep, params, ok := provider.Match("POST", path)
	if !ok {
		t.Fatalf("no endpoint %s", path)
	}
	c, e := provider.Parse(ep, params, "application/json", "", []byte(body))
	if e != nil {
		return provider.Forward{}, e
	}
	for _, h := range headers {
		name, line, _ := strings.Cut(h, ": ")
		if !slices.Contains(c.Headers, name) {
			c.Headers = append(c.Headers, name)
		}
		c.Betas = append(c.Betas, provider.Betas(name, line)...)
	}
	return p.Forward(c, path, "")
}

const (
	chatPath      = "/v1/chat/completions"
	responsesPath = "/v1/responses"
	near          = "http://10.0.0.1:8000/v1"
	openAI        = "https://api.openai.com/v1"
)

func TestFields(t *testing.T) {
	for _, row := range []struct {
		kind, base, settings, path, body string
		code, param                      string // "": it is forwarded
	}{
		// Members that servers with OpenAI's API document.
		{"custom", near, "", chatPath, `"top_k":1,"min_p":0.1,"repetition_penalty":1.1,"guided_json":{"x":1},"chat_template_kwargs":{"a":{"url":"b"}}`, "", ""},
		{"openai", near, `{"flavor":"vllm"}`, chatPath, `"top_k":1,"min_p":0.1,"structured_outputs":{"json":{}}`, "", ""},
		{"openai", near, `{"flavor":"groq"}`, chatPath, `"top_k":1`, "unknown_field", "top_k"},
		{"openai", openAI, "", chatPath, `"top_k":1`, "unknown_field", "top_k"},
		{"openai", openAI, `{"pass_fields":["top_k"]}`, chatPath, `"top_k":1`, "", ""},
		{"openai", openAI, `{"flavor":"vllm"}`, chatPath, `"top_\u006b":1`, "", ""},
		{"mistral", "https://api.mistral.ai", "", "/mistral" + chatPath, `"safe_prompt":true,"random_seed":1`, "", ""},
		{"openai", openAI, "", chatPath, `"safe_prompt":true`, "unknown_field", "safe_prompt"},

		// Unknown members, at every depth; null counts as absent.
		{"openai", near, "", chatPath, `"brand_new":1`, "unknown_field", "brand_new"},
		{"openai", near, "", chatPath, `"brand_new":null`, "", ""},
		{"openai", near, `{"pass_fields":["brand_new"]}`, chatPath, `"brand_new":{"model":"x"}`, "", ""},
		{"openai", near, "", chatPath, `"messages":[{"role":"user","content":[{"type":"clip","clip":{"url":"https://x.example"}}]}]`, "unknown_field", "messages.content.clip"},
		{"openai", near, `{"pass_fields":["messages.content.clip"]}`, chatPath, `"messages":[{"role":"user","content":[{"type":"clip","clip":1}]}]`, "", ""},
		{"openai", near, "", chatPath, `"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"anything":{"model":"free"}}}}`, "", ""},
		{"openai", near, "", chatPath, `"response_format":{"type":"json_schema","server":"x"}`, "unknown_field", "response_format.server"},
		{"openai", near, "", chatPath, `"tools":[{"type":"function","function":{"name":"f","parameters":{"any":1}},"endpoint":"x"}]`, "unknown_field", "tools.endpoint"},
		{"openai", near, "", chatPath, `"metadata":{"whatever":"x"},"stream_options":{"include_usage":true}`, "", ""},

		// Members that select a model, server, tool or stored object.
		{"openai", near, "", chatPath, `"user_config":{"model_list":[]}`, "unsupported_parameter", "user_config"},
		{"openai", near, "", chatPath, `"draft_model":"x"`, "unsupported_parameter", "draft_model"},
		{"mistral", "https://api.mistral.ai", "", chatPath, `"guardrails":[{"moderation_llm_v1":{"model_name":"x"}}]`, "unsupported_parameter", "guardrails"},
		{"openai", near, "", chatPath, `"mcp_servers":[]`, "unsupported_parameter", "mcp_servers"},
		{"openai", near, "", chatPath, `"audio":{"format":"wav","voice":{"id":"voice_1"}}`, "stored_object", "id"},
		{"openai", near, "", chatPath, `"audio":{"format":"wav","voice":"alloy"},"modalities":["audio"]`, "", ""},
		{"openai", near, "", responsesPath, `"prompt_cache_options":{"comparison_response_id":"resp_1"}`, "stored_object", "comparison_response_id"},
		{"anthropic", "https://api.anthropic.com", "", "/v1/messages", `"workspace_id":"w"`, "unsupported_parameter", "workspace_id"},
		{"anthropic", "https://api.anthropic.com", "", "/v1/messages", `"diagnostics":{"previous_message_id":"msg_1"}`, "stored_object", "previous_message_id"},
		{"anthropic", "https://api.anthropic.com", "", "/v1/messages", `"thinking":{"type":"adaptive","server":"x"}`, "unknown_field", "thinking.server"},
		{"anthropic", "https://api.anthropic.com", "", "/v1/messages", `"system":[{"type":"text","text":"x","cache_control":{"type":"ephemeral","scope":"global"}}],"output_config":{"effort":"low"}`, "", ""},
		{"gemini", "https://generativelanguage.googleapis.com", "", "/v1beta/models/g:generateContent", `"tools":[{"exaAiSearch":{"apiKey":"k"}}]`, "unsupported_parameter", "apiKey"},
		{"gemini", "https://generativelanguage.googleapis.com", "", "/v1beta/models/g:generateContent", `"generation_config":{"response_schema":{"type":"OBJECT","$defs":{}},"top_k":1}`, "", ""},
		{"gemini", "https://generativelanguage.googleapis.com", "", "/v1beta/models/g:generateContent", `"tools":[{"newSearch":{}}]`, "unknown_field", "tools.newSearch"},
		{"cohere", "https://api.cohere.com", "", "/v2/chat", `"stream_options":{"x":1}`, "unknown_field", "stream_options.x"},
		{"openai", near, "", "/v1/completions", `"stream_options":{"include_usage":true}`, "", ""},
		{"openai", near, "", "/v1/completions", `"stream_options":{"x":1}`, "unknown_field", "stream_options.x"},
		{"cohere", "https://api.cohere.com", "", "/v2/chat", `"connectors":[{"id":"web"}]`, "unknown_field", "connectors"},

		// Items of Responses that only refer to a stored object, and kinds of items.
		{"openai", openAI, "", responsesPath, `"input":[{"type":"reasoning","id":"rs_x","summary":[]}]`, "stored_object", "input"},
		{"openai", openAI, "", responsesPath, `"input":[{"type":"reasoning","id":"rs_x","summary":[],"encrypted_content":""}]`, "stored_object", "input"},
		{"openai", openAI, "", responsesPath, `"input":[{"type":"reasoning","id":"rs_x","summary":[],"encrypted_content":"gAAA"}]`, "", ""},
		{"openai", openAI, "", responsesPath, `"input":[{"id":"msg_1","type":"message","role":"assistant","content":[ ]}]`, "stored_object", "input"},
		{"openai", openAI, "", responsesPath, `"input":[{"id":"msg_1","type":"message","role":"assistant","status":"completed","content":[{"type":"output_text","text":"x","annotations":[]}]}]`, "", ""},
		{"openai", openAI, "", responsesPath, `"input":[{"id":"msg_1","role":"assistant","content":[]}]`, "stored_object", "input"},
		{"openai", openAI, "", responsesPath, `"input":[{"id":"msg_1","role":"assistant","content":"x"}]`, "", ""},
		{"openai", openAI, "", responsesPath, `"input":[{"type":"reasoning","id":"rs_x","summary":[],"content":[{}]}]`, "stored_object", "input"},
		{"openai", openAI, "", responsesPath, `"input":[{"type":"reasoning","id":"rs_x","summary":[],"content":[{"type":"reasoning_text","text":""}]}]`, "stored_object", "input"},
		{"openai", openAI, "", responsesPath, `"input":[{"type":"reasoning","id":"rs_x","summary":[],"content" : [ {"type":"reasoning_text","text":"so"}]}]`, "", ""},
		{"openai", openAI, "", responsesPath, `"input":[{"role":"user","content":""},{"role":"assistant","content":[]}]`, "", ""},
		{"openai", openAI, "", responsesPath, `"input":[{"type":"compaction","id":"cmp_1"}]`, "stored_object", "input"},
		{"openai", openAI, "", responsesPath, `"input":[{"type":"future_call","id":"f_1","content":"x"}]`, "unknown_field", "input.type=future_call"},
		{"openai", openAI, `{"pass_fields":["input.type=future_call"]}`, responsesPath, `"input":[{"type":"future_call","id":"f_1","content":"x"}]`, "", ""},
	} {
		body := `{"model":"m",` + row.body + `}`
		if strings.Contains(row.path, "generateContent") {
			body = `{` + row.body + `}`
		}
		_, e := ask(t, row.kind, row.base, row.settings, row.path, body)
		code, param := "", ""
		if e != nil {
			code, param = e.Code, e.Param
		}
		if code != row.code || param != row.param {
			t.Errorf("%s %s %s: %q %q, want %q %q (%v)", row.kind, row.settings, body, code, param, row.code, row.param, e)
		}
		if code == "unknown_field" && !strings.Contains(e.Message, "settings.pass_fields") {
			t.Errorf("%s: the message names no setting: %s", body, e.Message)
		}
	}
}

// free are members with any content: the content of a tool's schema, its arguments or notes
// selects nothing.
var free = []string{"schema", "parameters", "input_schema", "metadata", "args", "response", "input", "cache_control", "tool_choice", "chat_template_kwargs",
	"responseSchema", "logit_bias", "client_metadata", "user_location", "annotations", "citations"}

// An unknown member is found in every object of a body, except in free ones.
func TestUnknownEverywhere(t *testing.T) {
	for _, row := range []struct{ kind, base, path, body string }{
		{"custom", near, chatPath, `{"model":"m","metadata":{"a":"b"},"messages":[{"role":"user","content":[{"type":"text","text":"x","cache_control":{"type":"ephemeral"}},
			{"type":"image_url","image_url":{"url":"https://a.example/b"}},{"type":"video_url","video_url":{"url":"https://a.example/b"}},{"type":"file","file":{"file_data":"data:a","filename":"f"}},
			{"type":"input_audio","input_audio":{"data":"AA","format":"wav"}}]},{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}],
			"audio":{"id":""},"function_call":{"name":"f","arguments":"{}"}}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}},
			{"type":"custom","custom":{"name":"c","format":{"type":"grammar","grammar":{"syntax":"lark","definition":"x"}}}}],
			"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"object"}}},"prediction":{"type":"content","content":[{"type":"text","text":"x"}]},
			"web_search_options":{"search_context_size":"low"},"stream_options":{"include_usage":true},"chat_template_kwargs":{"a":1},"functions":[{"name":"f","parameters":{}}]}`},
		{"openai", openAI, responsesPath, `{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"x"},{"type":"input_image","image_url":"https://a.example"}]},
			{"type":"function_call","call_id":"1","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"1","output":[{"type":"input_text","text":"x"}]},
			{"type":"reasoning","summary":[{"type":"summary_text","text":"x"}],"encrypted_content":"x"},{"type":"web_search_call","action":{"type":"search","query":"x"}},
			{"type":"local_shell_call","action":{"type":"exec","command":["ls"]}}],"tools":[{"type":"function","name":"f","parameters":{"type":"object"}},
			{"type":"web_search","filters":{"allowed_domains":["a"]}},{"type":"mcp","server_label":"s","server_url":"https://m.example","allowed_tools":{"tool_names":["x"]}},
			{"type":"code_interpreter","container":{"type":"auto"}}],"text":{"format":{"type":"json_schema","name":"n","schema":{}},"verbosity":"low"},
			"reasoning":{"effort":"low"},"client_metadata":{"x":"y"}}`},
		{"anthropic", "https://api.anthropic.com", "/v1/messages", `{"model":"m","max_tokens":1,"system":[{"type":"text","text":"x"}],"metadata":{"user_id":"u"},
			"messages":[{"role":"user","content":[{"type":"image","source":{"type":"url","url":"https://a.example"}},{"type":"tool_result","tool_use_id":"1","content":[{"type":"text","text":"x"}]}]},
			{"role":"assistant","content":[{"type":"tool_use","id":"1","name":"f","input":{"x":1}},{"type":"thinking","thinking":"x","signature":"s"}]}],
			"tools":[{"name":"f","input_schema":{"type":"object"}},{"type":"web_search_20250305","name":"web_search","user_location":{"type":"approximate"}}],
			"thinking":{"type":"enabled","budget_tokens":1024},"mcp_servers":[{"type":"url","name":"s","url":"https://m.example"}],"output_config":{"format":{"type":"json_schema","schema":{}}},
			"context_management":{"edits":[{"type":"clear_tool_uses_20250919","keep":{"type":"tool_uses","value":1}}]}}`},
		{"gemini", "https://generativelanguage.googleapis.com", "/v1beta/models/m:generateContent", `{"contents":[{"role":"user","parts":[{"text":"x"},
			{"inlineData":{"mimeType":"image/png","data":"AA"}},{"functionCall":{"name":"f","args":{"x":1}}},{"functionResponse":{"name":"f","response":{"x":1}}}]}],
			"systemInstruction":{"parts":[{"text":"x"}]},"tools":[{"functionDeclarations":[{"name":"f","parameters":{"type":"OBJECT"}}]},{"googleSearch":{}}],
			"generationConfig":{"thinkingConfig":{"thinkingBudget":1},"responseSchema":{"type":"OBJECT"},"speechConfig":{"voiceConfig":{"prebuiltVoiceConfig":{"voiceName":"x"}}}},
			"safetySettings":[{"category":"x","threshold":"y"}],"toolConfig":{"functionCallingConfig":{"mode":"ANY"}}}`},
		{"cohere", "https://api.cohere.com", "/v2/chat", `{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"x"},{"type":"image_url","image_url":{"url":"https://a.example"}}]}],
			"tools":[{"type":"function","function":{"name":"f","parameters":{}}}],"citation_options":{"mode":"FAST"},"thinking":{"type":"enabled"}}`},
	} {
		if _, e := ask(t, row.kind, row.base, "", row.path, row.body); e != nil {
			t.Errorf("%s as it is: %v", row.path, e)
			continue
		}
		var body any
		if err := json.Unmarshal([]byte(row.body), &body); err != nil {
			t.Fatal(err)
		}
		var visit func(v any, path string, open bool)
		visit = func(v any, path string, open bool) {
			switch v := v.(type) {
			case []any:
				for _, x := range v {
					visit(x, path, open)
				}
			case map[string]any:
				v["zz_new"] = map[string]any{"model": "other"}
				changed, err := json.Marshal(body)
				delete(v, "zz_new")
				if err != nil {
					t.Fatal(err)
				}
				_, e := ask(t, row.kind, row.base, "", row.path, string(changed))
				if noticed := e != nil && e.Code == "unknown_field" && strings.HasSuffix(e.Param, "zz_new"); noticed == open {
					t.Errorf("%s: a new member of %q: %v", row.path, path, e)
				}
				for name, x := range v {
					inFree := slices.Contains(free, name) && !(name == "input" && path == "") && !(name == "parameters" && path == "")
					visit(x, path+"."+name, open || inFree)
				}
			}
		}
		visit(body, "", false)
	}
}

// enable_search and its like offer a tool, so that policies see it.
func TestFieldsThatSearch(t *testing.T) {
	ep, params, _ := provider.Match("POST", chatPath)
	for body, want := range map[string][]string{`"enable_search":true`: {"web_search"}, `"enable_search":false`: nil, `"search_settings":{}`: {"web_search"}} {
		c, e := provider.Parse(ep, params, "application/json", "", []byte(`{"model":"m",`+body+`}`))
		if e != nil || !slices.Equal(c.Tools, want) {
			t.Errorf("%s: %q %v, want %q", body, c.Tools, e, want)
		}
	}
}

// The installed SDKs have no field that is not in fields.json.
func TestFieldsAreTheSDKs(t *testing.T) {
	python := os.Getenv("AID_SDK_PYTHON")
	if python == "" {
		t.Skip("AID_SDK_PYTHON is not set")
	}
	var stderr bytes.Buffer
	cmd := exec.Command(python, "../tools/fields.py")
	cmd.Stderr = &stderr
	got, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.Bytes())
	}
	want, err := os.ReadFile("fields.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the SDKs' types have changed. Run tools/fields.py, and look at each new field: does it choose a model, a server, a tool or something stored?")
	}
	var v struct{ Items []string }
	if err := json.Unmarshal(want, &v); err != nil {
		t.Fatal(err)
	}
	for _, typ := range v.Items {
		if _, e := ask(t, "openai", openAI, "", responsesPath, `{"model":"m","input":[{"type":"`+typ+`"}]}`); e != nil && e.Code == "unknown_field" {
			t.Errorf("the item type %s is not known", typ)
		}
	}
}

func TestHeaders(t *testing.T) {
	for name, want := range map[string]provider.HeaderHandling{
		"accept": provider.HeaderKept, "x-stainless-lang": provider.HeaderKept, ":path": provider.HeaderKept, "x-title": provider.HeaderKept,
		"authorization": provider.HeaderHidden, "x-forwarded-for": provider.HeaderHidden, "x-aid-route": provider.HeaderHidden, "cookie": provider.HeaderHidden,
		"openai-beta": provider.HeaderChosen, "if-none-match": provider.HeaderChosen, "x-new": provider.HeaderChosen, "private-token": provider.HeaderChosen,
	} {
		if got := provider.HeaderOf(name); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	body := `{"model":"m"}`
	sent := []string{"openai-beta: responses=experimental", "anthropic-beta: prompt-caching-2024-07-31", "x-new", "x-known", "private-token", "x-ai-eg-model", "x-goog-fieldmask", "idempotency-key"}
	f, e := ask(t, "openai", openAI, `{"pass_headers":["x-known"]}`, chatPath, body, sent...)
	if e != nil || !slices.Equal(f.Remove, []string{"anthropic-beta", "x-new", "private-token", "x-ai-eg-model", "x-goog-fieldmask", "idempotency-key"}) {
		t.Errorf("%q, %v", f.Remove, e)
	}
	if got := f.Dropped(); !slices.Contains(got, "header:x-new") || len(got) != len(f.Remove) {
		t.Errorf("%q", got)
	}
	f, e = ask(t, "anthropic", "https://api.anthropic.com", "", chatPath, `{"model":"m","messages":[{"role":"user","content":"x"}]}`, "openai-beta")
	if e != nil || !slices.Equal(f.Remove, []string{"openai-beta"}) {
		t.Errorf("translated: %q, %v", f.Remove, e)
	}
}

// Known values of a beta header are forwarded.
//
// Values in the provider's settings are too. Others are dropped by name.
func TestBetas(t *testing.T) {
	const anthropic = "https://api.anthropic.com"
	for _, c := range []struct {
		kind, base, settings, path string
		sent                       []string
		set, removed, dropped      string
	}{
		{"anthropic", anthropic, "", messages, []string{"anthropic-beta: context-1m-2025-08-07, interleaved-thinking-2025-05-14"}, "", "", ""},
		{"anthropic", anthropic, "", messages, []string{"anthropic-beta: context-1m-2025-08-07,server-side-fallback-2026-07-01 ,, pdfs-2024-09-25"},
			"context-1m-2025-08-07,pdfs-2024-09-25", "", "header:anthropic-beta=server-side-fallback-2026-07-01"},
		{"anthropic", anthropic, "", messages, []string{"anthropic-beta: pdfs-2024-09-25", "anthropic-beta: Managed-Agents-2026-04-01"},
			"pdfs-2024-09-25", "", "header:anthropic-beta=Managed-Agents-2026-04-01"},
		{"anthropic", anthropic, "", messages, []string{"anthropic-beta: PDFS-2024-09-25"}, "", "anthropic-beta", "header:anthropic-beta header:anthropic-beta=PDFS-2024-09-25"},
		{"anthropic", anthropic, "", messages, []string{"anthropic-beta: a b;c"}, "", "anthropic-beta", "header:anthropic-beta other:1"},
		{"anthropic", anthropic, "", messages, []string{"anthropic-beta: "}, "", "anthropic-beta", "header:anthropic-beta"},
		{"anthropic", anthropic, `{"pass_headers":["anthropic-beta=new-2027-01-01"]}`, messages, []string{"anthropic-beta: new-2027-01-01,newer-2027-01-01"},
			"new-2027-01-01", "", "header:anthropic-beta=newer-2027-01-01"},
		{"anthropic", anthropic, `{"pass_headers":["anthropic-beta"]}`, messages, []string{"anthropic-beta: new-2027-01-01"}, "", "", ""},
		{"openai", openAI, "", responsesPath, []string{"openai-beta: responses=experimental"}, "", "", ""},
		{"openai", openAI, "", responsesPath, []string{"openai-beta: realtime=v1"}, "", "openai-beta", "header:openai-beta header:openai-beta=realtime=v1"},
		{"openai", openAI, `{"pass_headers":["openai-beta=agents=v1"]}`, responsesPath, []string{"openai-beta: agents=v1"}, "", "", ""},
	} {
		f, e := ask(t, c.kind, c.base, c.settings, c.path, `{"model":"m"}`, c.sent...)
		if e != nil {
			t.Errorf("%q: %v", c.sent, e)
			continue
		}
		name, _, _ := strings.Cut(c.sent[0], ":")
		got := f.Dropped()
		slices.Sort(got)
		if f.Set[name] != c.set || strings.Join(f.Remove, " ") != c.removed || strings.Join(got, " ") != c.dropped {
			t.Errorf("%q %s: set %q, removed %q, dropped %q", c.sent, c.settings, f.Set[name], f.Remove, got)
		}
	}
	many := "anthropic-beta: " + strings.Repeat("x,", 65)
	if _, e := ask(t, "anthropic", anthropic, "", messages, `{"model":"m"}`, many); e == nil || e.Code != "too_many_betas" {
		t.Errorf("what is not recorded: %v", e)
	}
}

func TestPassSettings(t *testing.T) {
	for settings, field := range map[string]string{
		`{"flavor":"vllm","pass_fields":["x.y"],"pass_headers":["x-new"]}`: "",
		`{"flavor":"nonsense"}`:                          "settings.flavor",
		`{"pass_fields":["model"]}`:                      "settings.pass_fields[0]",
		`{"pass_fields":["ok","user_config"]}`:           "settings.pass_fields[1]",
		`{"pass_fields":["messages.content.image_url"]}`: "settings.pass_fields[0]",
		`{"pass_fields":["*"]}`:                          "settings.pass_fields[0]",
		`{"pass_fields":["a","a"]}`:                      "settings.pass_fields[1]",
		`{"pass_headers":["anthropic-beta=files-api-2025-04-14","openai-beta=agents=v1"]}`: "",
		`{"pass_headers":["x-new=1"]}`:                                                                    "settings.pass_headers[0]",
		`{"pass_headers":["anthropic-beta=a,b"]}`:                                                         "settings.pass_headers[0]",
		`{"pass_headers":["authorization"]}`:                                                              "settings.pass_headers[0]",
		`{"pass_response_headers":["x-accelerator","cf-ray","x-generated","x-limited-edition"]}`:          "",
		`{"pass_response_headers":["cf-ray","x-ratelimit-remaining-requests"]}`:                           "settings.pass_response_headers[1]",
		`{"pass_response_headers":["anthropic-ratelimit-tokens-reset"]}`:                                  "settings.pass_response_headers[0]",
		`{"pass_response_headers":["anthropic-priority-input-tokens-limit"]}`:                             "settings.pass_response_headers[0]",
		`{"pass_response_headers":["ratelimit-policy"]}`:                                                  "settings.pass_response_headers[0]",
		`{"pass_response_headers":["x-rate-limit-limit"]}`:                                                "settings.pass_response_headers[0]",
		`{"pass_response_headers":["x-ratelimitbysize-remaining-month"]}`:                                 "settings.pass_response_headers[0]",
		`{"pass_response_headers":["x-trial-endpoint-call-remaining"]}`:                                   "settings.pass_response_headers[0]",
		`{"pass_response_headers":["x-ms-user-quota-used"]}`:                                              "settings.pass_response_headers[0]",
		`{"pass_response_headers":["set-cookie"]}`:                                                        "settings.pass_response_headers[0]",
		`{"pass_response_headers":["x-a","location"]}`:                                                    "settings.pass_response_headers[1]",
		`{"pass_response_headers":["access-control-allow-origin"]}`:                                       "settings.pass_response_headers[0]",
		`{"pass_response_headers":["x-aid-receipt"]}`:                                                     "settings.pass_response_headers[0]",
		`{"pass_response_headers":["x-agent-id"]}`:                                                        "settings.pass_response_headers[0]",
		`{"pass_response_headers":["api-key"]}`:                                                           "settings.pass_response_headers[0]",
		`{"pass_response_headers":["X-More"]}`:                                                            "settings.pass_response_headers[0]",
		`{"pass_response_headers":["x-more","x-more"]}`:                                                   "settings.pass_response_headers[1]",
		`{"pass_response_headers":["a","b","c","d","e","f","g","h","i","j","k","l","m","n","o","p","q"]}`: "settings.pass_response_headers",
		`{"pass_headers":["private-token"]}`:                                                              "settings.pass_headers[0]",
		`{"pass_headers":["x-aid-route"]}`:                                                                "settings.pass_headers[0]",
		`{"pass_headers":["connection"]}`:                                                                 "settings.pass_headers[0]",
		`{"pass_headers":["host"]}`:                                                                       "settings.pass_headers[0]",
		`{"pass_headers":["content-length"]}`:                                                             "settings.pass_headers[0]",
		`{"pass_headers":["X-New"]}`:                                                                      "settings.pass_headers[0]",
		`{"pass_headers":["x-ai-eg-model"]}`:                                                              "settings.pass_headers[0]",
		`{"pass_headers":["accept"]}`:                                                                     "settings.pass_headers[0]",
	} {
		err := provider.Validate(provider.Provider{Name: "p", Kind: "openai", BaseURL: near, Settings: []byte(settings)})
		got := ""
		if err != nil {
			got, _, _ = strings.Cut(err.Error(), ":")
		}
		if got != field {
			t.Errorf("%s: %v, want %q", settings, err, field)
		}
	}
	if err := provider.Validate(provider.Provider{Name: "p", Kind: "gemini", BaseURL: "https://g.example", Settings: []byte(`{"flavor":"vllm"}`)}); err == nil {
		t.Error("kind gemini has a flavor")
	}
}

// The docs list all flavors.
func TestFlavorsInDocs(t *testing.T) {
	docs, err := os.ReadFile("../docs/providers.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := "`" + strings.Join(provider.Flavors(), "`, `") + "`"; !strings.Contains(strings.ReplaceAll(string(docs), "\n", " "), want) {
		t.Errorf("docs/providers.md does not have %s", want)
	}
}
