package translate_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/ai-identity/ai-identity/provider/translate"
)

// TestComesBack takes what a provider answered, whole or streamed, as a client
// that keeps the message as it is, sends it back in the next request, and looks
// at what the provider gets of it: what it said.
func TestComesBack(t *testing.T) {
	thinking := `{"type":"thinking","thinking":"Look it \"up\".","signature":"EqQBCg=="},{"type":"redacted_thinking","data":"cmVk"}`
	for _, c := range []struct{ kind, file, want string }{
		{"anthropic", "whole_tools", `{"role":"assistant","content":[{"type":"thinking","thinking":"Look it up.","signature":"EqQBCg=="},{"type":"redacted_thinking","data":"cmVk"},{"type":"text","text":"I'll look."},
			{"type":"tool_use","id":"toolu_01A","name":"weather","input":{"zulu":1.50,"city":"Oslo","n":12345678901234567890}},{"type":"tool_use","id":"toolu_01B","name":"now","input":{}}]}`},
		{"anthropic", "stream_tools", `{"role":"assistant","content":[` + thinking + `,{"type":"tool_use","id":"toolu_01A","name":"weather","input":{"city":"Oslo","n":1.50}},{"type":"tool_use","id":"toolu_01B","name":"now","input":{}}]}`},
		{"anthropic", "stream", `{"role":"assistant","content":[{"type":"text","text":"Héllo\n😀 😀"}]}`},
		{"gemini", "whole_tools", `{"role":"model","parts":[{"functionCall":{"name":"weather","args":{"zulu":1.50,"city":"Os\"lo","n":12345678901234567890}},"thoughtSignature":"c2ln"},{"functionCall":{"name":"now","args":{}}},{"functionCall":{"id":"fc-own","name":"now","args":{}}}]}`},
		{"gemini", "stream_tools", `{"role":"model","parts":[{"functionCall":{"name":"weather","args":{"city":"Oslo","n":1.50}},"thoughtSignature":"c2ln"},{"functionCall":{"name":"now","args":{}}}]}`},
		{"gemini", "whole", `{"role":"model","parts":[{"text":"**Greeting**\n","thought":true},{"text":"Hello there","thoughtSignature":"dGV4dA=="}]}`},
		{"gemini", "stream", `{"role":"model","parts":[{"text":"Thinking","thought":true},{"text":"Héllo 😀","thoughtSignature":"dGV4dA=="}]}`},
		{"cohere", "whole", `{"role":"assistant","content":[{"type":"thinking","thinking":"Greet."},{"type":"text","text":"Hello"}]}`},
		{"cohere", "whole_tools", `{"role":"assistant","tool_plan":"I will look.","tool_calls":[{"id":"weather_x1","type":"function","function":{"name":"weather","arguments":"{\"city\":\"Oslo\",\"n\":1.50}"}},{"id":"now_x2","type":"function","function":{"name":"now","arguments":"{}"}}]}`},
		{"cohere", "stream_tools", `{"role":"assistant","tool_plan":"I will look.","tool_calls":[{"id":"weather_x1","type":"function","function":{"name":"weather","arguments":"{\"city\": \"Oslo\"}"}},{"id":"now_x2","type":"function","function":{"name":"now","arguments":"{}"}}]}`},
		{"mistral", "whole_thinking", `{"role":"assistant","content":[{"type":"thinking","thinking":[{"type":"text","text":"Greet them."}],"signature":"c2ln"},{"type":"text","text":"Hello"}]}`},
		{"mistral", "whole_tools", `{"role":"assistant","tool_calls":[{"id":"D681PevKs","type":"function","function":{"name":"weather","arguments":"{\"city\": \"Oslo\", \"n\": 1.50}"}},{"id":"E792QfwLt","type":"function","function":{"name":"now","arguments":"{\"at\":1.50}"}}]}`},
		{"mistral", "stream_tools", `{"role":"assistant","content":"","tool_calls":[{"id":"D681PevKs","type":"function","function":{"name":"weather","arguments":"{\"city\": \"Oslo\"}"}},{"id":"E792QfwLt","type":"function","function":{"name":"now","arguments":"{}"}},{"id":"F8a3RgxMu","type":"function","function":{"name":"then","arguments":"{\"a\": 1}"}}]}`},
	} {
		t.Run(c.kind+"/"+c.file, func(t *testing.T) {
			v := vector(t, c.kind, open(t, "testdata/answers/"+c.kind+"/"+c.file+".txt"))
			out, _ := v.play(v.body)
			request := `{"model":"gemini-3-pro","messages":[{"role":"user","content":"x"},` + kept(t, out) + `]}`
			r, err := translate.Chat(c.kind, []byte(request), translate.Options{})
			if err != nil {
				t.Fatalf("%v\n%s", err, request)
			}
			var sent struct{ Messages, Contents []jsontext.Value }
			if err := json.Unmarshal(r.Body, &sent); err != nil {
				t.Fatal(err)
			}
			turns := append(sent.Messages, sent.Contents...)
			if diff := cmp.Diff(plain(t, []byte(c.want)), plain(t, turns[len(turns)-1])); diff != "" {
				t.Errorf("(-said +comes back):\n%s", diff)
			}
		})
	}
}

// plain is JSON with its keys in order and its numbers as they were.
func plain(t *testing.T, b []byte) string {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	out, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// kept is the assistant's message of an answer, as a client keeps it that adds
// deltas up as the official SDK does (openai/lib/streaming/_deltas.py).
func kept(t *testing.T, out []byte) string {
	t.Helper()
	if out[0] == '{' {
		var whole struct {
			Choices []struct{ Message jsontext.Value }
		}
		if err := json.Unmarshal(out, &whole); err != nil {
			t.Fatal(err)
		}
		return string(whole.Choices[0].Message)
	}
	message := map[string]any{}
	for line := range strings.Lines(string(out)) {
		data, ok := strings.CutPrefix(strings.TrimSpace(line), "data: ")
		if !ok || data == "[DONE]" {
			continue
		}
		var chunk struct {
			Choices []struct{ Delta map[string]any }
		}
		if err := json.Unmarshal([]byte(data), &chunk); err != nil {
			t.Fatal(err)
		}
		for _, c := range chunk.Choices {
			add(message, c.Delta)
		}
	}
	b, err := json.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func add(sum, delta map[string]any) {
	for name, v := range delta {
		switch old := sum[name].(type) {
		case string:
			if s, ok := v.(string); ok && name != "type" {
				v = old + s
			}
		case map[string]any:
			add(old, v.(map[string]any))
			v = old
		case []any:
			for _, e := range v.([]any) {
				e := e.(map[string]any)
				if i := int(e["index"].(float64)); i < len(old) {
					add(old[i].(map[string]any), e)
				} else {
					old = append(old, e)
				}
			}
			v = old
		}
		sum[name] = v
	}
}
