package translate_test

import (
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/provider/translate"
)

// A response with more choices, calls or open blocks than any model returns is rejected at
// once. Otherwise the search through them for each new one would take too long.
func TestExcess(t *testing.T) {
	many := func(n int, s string) string { return strings.TrimSuffix(strings.Repeat(s+",", n), ",") }
	calls := many(5000, `{"function":{"name":"f","arguments":"{}"}}`)
	blocks := ""
	for range 5000 {
		blocks += `data: {"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}` + "\n\n"
	}
	for _, c := range []struct{ name, kind, contentType, body string }{
		{"candidates", translate.Gemini, "application/json", `{"candidates":[` + many(5000, "{}") + `]}`},
		{"candidates of an event", translate.Gemini, "text/event-stream", `data: {"candidates":[` + many(5000, "{}") + "]}\n\n"},
		{"choices", translate.Mistral, "application/json", `{"choices":[` + many(5000, "{}") + `]}`},
		{"calls", translate.Mistral, "application/json", `{"choices":[{"message":{"tool_calls":[` + calls + `]},"finish_reason":"tool_calls"}]}`},
		{"calls of an event", translate.Mistral, "text/event-stream", `data: {"choices":[{"delta":{"tool_calls":[` + calls + "]}}]}\n\n"},
		{"blocks", translate.Anthropic, "text/event-stream", `data: {"type":"message_start","message":{}}` + "\n\n" + blocks},
	} {
		r, err := translate.Chat(c.kind, []byte(`{"model":"gemini-2.5-pro","messages":[{"role":"user","content":"x"}],"stream":true}`), translate.Options{})
		if err != nil {
			t.Fatal(err)
		}
		a := r.Answer(200, c.contentType, time.Now, func() string { return "id" })
		got := string(a.Chunk([]byte(c.body), false))
		got += string(a.Chunk(nil, true))
		if !a.Failed() || !strings.Contains(got, "unreadable_answer") || strings.Contains(got, "[DONE]") {
			t.Errorf("%s: failed %v, ends in %.200s", c.name, a.Failed(), got[max(0, len(got)-200):])
		}
	}
}
