package translate_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/ai-identity/ai-identity/provider/translate"
)

// TestComesBack takes a response, complete or streamed, as a client that keeps the message
// unchanged. It sends the message back in the next request, and checks that the provider
// gets its own content.
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
			request := sentBack(t, "gemini-3-pro", out)
			r, err := translate.Chat(c.kind, []byte(request), translate.Options{})
			if err != nil {
				t.Fatalf("%v\n%s", err, request)
			}
			var sent struct{ Messages, Contents []jsontext.Value }
			if err := json.Unmarshal(r.Body, &sent); err != nil {
				t.Fatal(err)
			}
			turns := append(sent.Messages, sent.Contents...)
			if diff := cmp.Diff(plain(t, []byte(c.want)), plain(t, turns[1])); diff != "" {
				t.Errorf("(-said +comes back):\n%s", diff)
			}
		})
	}
}

// sentBack is the request after a response. It has the message as the client keeps it, the
// results of its calls in reverse order, and the next message of the user.
func sentBack(t *testing.T, model string, out []byte) string {
	t.Helper()
	message := kept(t, out)
	var m struct {
		Calls []struct{ ID string } `json:"tool_calls"`
	}
	if err := json.Unmarshal([]byte(message), &m); err != nil {
		t.Fatal(err)
	}
	next := `,{"role":"user","content":"y"}`
	for i, c := range m.Calls {
		if i == 0 {
			next = ""
		}
		next = fmt.Sprintf(`,{"role":"tool","tool_call_id":%q,"content":"%d"}`, c.ID, i) + next
	}
	return `{"model":"` + model + `","messages":[{"role":"user","content":"x"},` + message + next + `]}`
}

// TestSentBack: each response of each kind, sent back as its client keeps it, is a valid
// request for every kind, without a setting.
func TestSentBack(t *testing.T) {
	models := map[string]string{translate.Anthropic: "claude-opus-4-6", translate.Gemini: "gemini-3-pro", translate.Cohere: "command-a-03-2025", translate.Mistral: "mistral-large-2512"}
	n := 0
	for _, from := range translate.Kinds() {
		for _, file := range files(t, "testdata/answers/"+from+"/*.txt") {
			v := vector(t, from, open(t, file))
			out, told := v.play(v.body)
			if !strings.HasPrefix(told, "200 ") || strings.Contains(string(out), `"error":`) || strings.Contains(string(out), `"embedding"`) {
				continue
			}
			for to, model := range models {
				n++
				request := sentBack(t, model, out)
				r, err := translate.Chat(to, []byte(request), translate.Options{})
				if err != nil {
					t.Errorf("%s to %s: %v\n%s", file, to, err, request)
					continue
				}
				if p := problem(t, to, r.Body); p != "" {
					t.Errorf("%s to %s: %s\n%s", file, to, p, r.Body)
				}
			}
		}
	}
	if n < 60 {
		t.Errorf("%d requests", n)
	}
}

// problem returns why the provider's server would reject a request for more than a type
// error.
func problem(t *testing.T, kind string, b []byte) string {
	t.Helper()
	var r struct {
		Messages []struct {
			Role    string
			Content any
			Calls   []struct{ ID string } `json:"tool_calls"`
		}
		Contents []struct {
			Role  string
			Parts []map[string]any
		}
	}
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for _, m := range r.Messages {
		blocks, list := m.Content.([]any)
		text, isText := m.Content.(string)
		if m.Role == "assistant" && len(m.Calls) == 0 && (list && len(blocks) == 0 || isText && text == "" || m.Content == nil) {
			return "an empty message of the assistant"
		}
		last := ""
		for _, x := range blocks {
			x := x.(map[string]any)
			last = x["type"].(string)
			if kind == translate.Anthropic && last == "text" && strings.TrimSpace(x["text"].(string)) == "" {
				return "an empty text"
			}
			if last == "tool_use" {
				if id := x["id"].(string); ids[id] {
					return "an id twice"
				} else {
					ids[id] = true
				}
			}
		}
		if kind == translate.Anthropic && (last == "thinking" || last == "redacted_thinking" || len(blocks) == 0) {
			return "a turn that ends in " + last
		}
	}
	for _, c := range r.Contents {
		for _, p := range c.Parts {
			if text, ok := p["text"].(string); ok && text == "" && p["thoughtSignature"] == nil {
				return "an empty text"
			}
		}
		if len(c.Parts) == 0 {
			return "a turn without parts"
		}
	}
	if kind == translate.Mistral && r.Messages[len(r.Messages)-1].Role == "assistant" {
		return "an assistant's message at the end"
	}
	return ""
}

// plain is JSON with sorted keys and unchanged numbers.
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

// kept is the assistant's message of a response, as a client keeps it. The client joins
// deltas like the official SDK (openai/lib/streaming/_deltas.py).
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
			Choices []struct {
				Index int
				Delta map[string]any
			}
		}
		if err := json.Unmarshal([]byte(data), &chunk); err != nil {
			t.Fatal(err)
		}
		for _, c := range chunk.Choices {
			if c.Index == 0 {
				add(message, c.Delta)
			}
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

// Ids of calls that a provider sends without one are new in each response, so a
// conversation never has one twice.
func TestMadeUpIDs(t *testing.T) {
	const answer = `{"candidates":[{"content":{"role":"model","parts":[{"functionCall":{"name":"f","args":{}}},{"functionCall":{"name":"f","args":{}}}]},"finishReason":"STOP","index":0}]}`
	seen := map[string]bool{}
	for _, id := range []string{"chatcmpl-1", "chatcmpl-2", "chatcmpl-3"} {
		r, err := translate.Chat(translate.Gemini, []byte(plainRequest), translate.Options{})
		if err != nil {
			t.Fatal(err)
		}
		a := r.Answer(200, "application/json", time.Now, func() string { return id })
		out := append(a.Chunk([]byte(answer), false), a.Chunk(nil, true)...)
		var m struct {
			Choices []struct {
				Message struct {
					Calls []struct{ ID string } `json:"tool_calls"`
				}
			}
		}
		if err := json.Unmarshal(out, &m); err != nil || len(m.Choices) != 1 || len(m.Choices[0].Message.Calls) != 2 {
			t.Fatalf("%v %s", err, out)
		}
		for _, c := range m.Choices[0].Message.Calls {
			if seen[c.ID] || c.ID == "" {
				t.Errorf("the id %q of a call is there twice", c.ID)
			}
			seen[c.ID] = true
		}
	}
}
