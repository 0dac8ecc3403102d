package provider_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/provider"
)

// endings are responses in each format, with the way in which each one ended.
var endings = []struct {
	name, path, request, contentType, body string
	want                                   string // complete, failed, or "": it broke off
}{
	{"done", chat, `{"model":"m","stream":true,"messages":[]}`, "text/event-stream", "data: {\"model\":\"m\",\"choices\":[{\"delta\":{}}]}\n\ndata: [DONE]\n\n", "complete"},
	{"finish reason", chat, `{"model":"m","stream":true,"messages":[]}`, "text/event-stream", "data: {\"model\":\"m\"}\n\ndata: {\"choices\":[{\"finish_reason\":\"stop\"}]}\n\n", "complete"},
	{"one of two", chat, `{"model":"m","n":2,"stream":true,"messages":[]}`, "text/event-stream", "data: {\"choices\":[{\"index\":0,\"finish_reason\":\"stop\"}]}\n\ndata: {\"choices\":[{\"index\":1,\"finish_reason\":null}]}\n\n", ""},
	{"two of two", chat, `{"model":"m","n":2,"stream":true,"messages":[]}`, "text/event-stream", "data: {\"choices\":[{\"index\":0,\"finish_reason\":\"stop\"}]}\n\ndata: {\"choices\":[{\"index\":1,\"finish_reason\":\"length\"}]}\n\n", "complete"},
	{"two at once", chat, `{"model":"m","n":2,"stream":true,"messages":[]}`, "text/event-stream", "data: {\"choices\":[{\"finish_reason\":\"stop\"},{\"index\":1,\"finish_reason\":\"length\"}]}\n\n", "complete"},
	{"one of two and done", chat, `{"model":"m","n":2,"stream":true,"messages":[]}`, "text/event-stream", "data: {\"choices\":[{\"index\":0,\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n", "complete"},
	{"one candidate of two", "/v1beta/models/m:streamGenerateContent", `{"contents":[],"generationConfig":{"candidateCount":2}}`, "text/event-stream", "data: {\"candidates\":[{\"finishReason\":\"STOP\"}]}\n\n", ""},
	{"two candidates, blocked", "/v1beta/models/m:streamGenerateContent", `{"contents":[],"generation_config":{"candidate_count":2}}`, "text/event-stream", "data: {\"promptFeedback\":{\"blockReason\":\"SAFETY\"}}\n\n", "complete"},
	{"no finish reason", chat, `{"model":"m","stream":true,"messages":[]}`, "text/event-stream", "data: {\"model\":\"m\",\"choices\":[{\"finish_reason\": null}]}\n\n", ""},
	{"a text that says it", chat, `{"model":"m","stream":true,"messages":[]}`, "text/event-stream", "data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"[DONE] \\\"finish_reason\\\":\\\"stop\\\"\",\"finish_reason\":\"x\"}}]}\n\n", ""},
	{"error in a stream", chat, `{"model":"m","stream":true,"messages":[]}`, "text/event-stream", "data: {\"model\":\"m\"}\n\ndata: {\"error\":{\"message\":\"x\"}}\n\n", "failed"},
	{"no error in a stream", chat, `{"model":"m","stream":true,"messages":[]}`, "text/event-stream", "data: {\"error\":null,\"choices\":[{\"finish_reason\":\"stop\"}]}\n\n", "complete"},
	{"finished by an error", chat, `{"model":"m","stream":true,"messages":[]}`, "text/event-stream", "data: {\"choices\":[{\"finish_reason\":\"error\"}]}\n\n", "complete failed"},
	{"JSON", chat, `{"model":"m","messages":[]}`, "application/json", `{"model":"m","choices":[{"message":{"content":"]}"}}]}`, "complete"},
	{"JSON, cut", chat, `{"model":"m","messages":[]}`, "application/json", `{"model":"m","choices":[{"message":{"content":"a"}}]`, ""},
	{"JSON, cut in a text", chat, `{"model":"m","messages":[]}`, "application/json", `{"model":"m","choices":[{"message":{"content":"}]}`, ""},
	{"nothing", chat, `{"model":"m","messages":[]}`, "application/json", ``, ""},
	{"error with 200", chat, `{"model":"m","messages":[]}`, "application/json", `{"error":"overloaded"}`, "complete failed"},
	{"message_stop", "/v1/messages", `{"model":"m","max_tokens":1,"stream":true,"messages":[]}`, "text/event-stream", "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", "complete"},
	{"no message_stop", "/v1/messages", `{"model":"m","max_tokens":1,"stream":true,"messages":[]}`, "text/event-stream", "data: {\"type\":\"message_start\",\"message\":{\"model\":\"m\",\"usage\":{\"input_tokens\":1,\"output_tokens\":1}}}\n\n", ""},
	{"event: error", "/v1/messages", `{"model":"m","max_tokens":1,"stream":true,"messages":[]}`, "text/event-stream", "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n", "failed"},
	{"event: error, by its name only", "/v1/messages", `{"model":"m","max_tokens":1,"stream":true,"messages":[]}`, "text/event-stream", "event:error\ndata: overloaded\n\n", "failed"},
	{"response.completed", "/v1/responses", `{"model":"m","stream":true,"input":"x"}`, "text/event-stream", "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"error\":null}}\n\n", "complete"},
	{"response.incomplete", "/v1/responses", `{"model":"m","stream":true,"input":"x"}`, "text/event-stream", "data: {\"type\":\"response.incomplete\",\"response\":{}}\n\n", "complete"},
	{"response.failed", "/v1/responses", `{"model":"m","stream":true,"input":"x"}`, "text/event-stream", "data: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"x\"}}}\n\n", "complete failed"},
	{"a delta only", "/v1/responses", `{"model":"m","stream":true,"input":"x"}`, "text/event-stream", "data: {\"type\":\"response.output_text.delta\",\"delta\":\"response.completed\"}\n\n", ""},
	{"type error", "/v1/responses", `{"model":"m","stream":true,"input":"x"}`, "text/event-stream", "data: {\"type\":\"error\",\"code\":\"x\"}\n\n", "failed"},
	{"finishReason", "/v1beta/models/m:streamGenerateContent", `{"contents":[]}`, "text/event-stream", "data: {\"modelVersion\":\"m\"}\n\ndata: {\"candidates\":[{\"content\":{},\"finishReason\":\"STOP\"}]}\n\n", "complete"},
	{"blockReason", "/v1beta/models/m:streamGenerateContent", `{"contents":[]}`, "text/event-stream", "data: {\"promptFeedback\":{\"blockReason\":\"SAFETY\"}}\n\n", "complete"},
	{"no finishReason", "/v1beta/models/m:streamGenerateContent", `{"contents":[]}`, "text/event-stream", "data: {\"modelVersion\":\"m\",\"candidates\":[{\"content\":{}}]}\n\n", ""},
	{"array", "/v1beta/models/m:streamGenerateContent", `{"contents":[]}`, "application/json", `[{"candidates":[{"content":{}}]},` + "\n" + `{"candidates":[{"finishReason":"STOP"}]}]`, "complete"},
	{"array, cut", "/v1beta/models/m:streamGenerateContent", `{"contents":[]}`, "application/json", `[{"candidates":[{"content":{}}]},` + "\n" + `{"candidates":[]}`, ""},
	{"message-end", "/v2/chat", `{"model":"m","stream":true,"messages":[]}`, "text/event-stream", "event: message-end\ndata: {\"type\":\"message-end\",\"delta\":{\"usage\":{}}}\n\n", "complete"},
	{"no message-end", "/v2/chat", `{"model":"m","stream":true,"messages":[]}`, "text/event-stream", "data: {\"type\":\"content-delta\",\"delta\":{}}\n\n", ""},
	{"message-end of an error", "/v2/chat", `{"model":"m","stream":true,"messages":[]}`, "text/event-stream", "data: {\"type\":\"message-end\",\"delta\":{\"finish_reason\":\"ERROR\"}}\n\n", "complete failed"},
}

// ending returns how a response ended that arrived in these chunks.
func ending(c provider.Call, contentType string, pieces ...[]byte) string {
	a := provider.NewResponseReader(c, provider.Provider{}, 200, contentType)
	for i, p := range pieces {
		a.Chunk(p, i == len(pieces)-1)
	}
	var words []string
	if a.Complete() {
		words = append(words, "complete")
	}
	if a.Failed() {
		words = append(words, "failed")
	}
	return strings.Join(words, " ")
}

// TestAnswerEnds: each format has its own end. The split into chunks and the line endings
// change nothing.
func TestAnswerEnds(t *testing.T) {
	for _, c := range endings {
		t.Run(c.name, func(t *testing.T) {
			call := parsed(t, c.path, c.request)
			for _, line := range []string{"\n", "\r\n", "\r"} {
				body := []byte(c.body)
				if c.contentType == "text/event-stream" {
					body = bytes.ReplaceAll(body, []byte("\n"), []byte(line))
				}
				if got := ending(call, c.contentType, body); got != c.want {
					t.Fatalf("%q, want %q", got, c.want)
				}
				for i := range body {
					if got := ending(call, c.contentType, body[:i], body[i:]); got != c.want {
						t.Fatalf("cut at %d: %q, want %q", i, got, c.want)
					}
				}
			}
		})
	}
}

// FuzzAnswerEnds: the split into chunks does not change what is read.
func FuzzAnswerEnds(f *testing.F) {
	for i, c := range endings {
		f.Add(uint8(i), []byte(c.body), uint8(i))
	}
	for _, v := range vectors(f) {
		f.Add(uint8(0), v.body, uint8(5))
	}
	f.Fuzz(func(t *testing.T, which uint8, body []byte, size uint8) {
		c := endings[int(which)%len(endings)]
		call := parsed(t, c.path, c.request)
		var pieces [][]byte
		for rest := body; len(rest) > 0; {
			n := min(int(size)+1, len(rest))
			pieces, rest = append(pieces, rest[:n]), rest[n:]
		}
		read := func(pieces ...[]byte) string {
			a := provider.NewResponseReader(call, provider.Provider{}, 200, c.contentType)
			for _, p := range pieces {
				a.Chunk(p, false)
			}
			a.Chunk(nil, true)
			return fmt.Sprint(said(a), " ", a.Complete(), " ", a.Failed())
		}
		if whole, cut := read(body), read(pieces...); whole != cut {
			t.Fatalf("at once %s, in chunks of %d %s", whole, int(size)+1, cut)
		}
	})
}

// TestAnswerTotals: contradictory figures have no price, and reasoning that is counted
// separately is added.
func TestAnswerTotals(t *testing.T) {
	for _, c := range []struct {
		usage       string
		output      int64
		contradicts bool
	}{
		{`{"prompt_tokens":12,"completion_tokens":1,"total_tokens":13}`, 1, false},
		{`{"prompt_tokens":12,"completion_tokens":1}`, 1, false},
		{`{"prompt_tokens":12,"completion_tokens":1,"total_tokens":399,"completion_tokens_details":{"reasoning_tokens":386}}`, 387, false},
		{`{"prompt_tokens":12,"completion_tokens":387,"total_tokens":399,"completion_tokens_details":{"reasoning_tokens":386}}`, 387, false},
		{`{"prompt_tokens":12,"completion_tokens":1,"total_tokens":400,"completion_tokens_details":{"reasoning_tokens":386}}`, 1, true},
		{`{"prompt_tokens":12,"completion_tokens":1,"completion_tokens_details":{"reasoning_tokens":386}}`, 1, true},
		{`{"prompt_tokens":12,"completion_tokens":1,"total_tokens":13,"prompt_tokens_details":{"cached_tokens":13}}`, 1, true},
		{`{"prompt_tokens":12,"completion_tokens":1,"total_tokens":20}`, 1, true},
	} {
		a := provider.NewResponseReader(parsed(t, chat, `{"model":"m","messages":[]}`), provider.Provider{}, 200, "application/json")
		a.Chunk([]byte(`{"usage":`+c.usage+`}`), true)
		if u := a.Usage(); u.OutputTokens != c.output || u.Contradicts != c.contradicts {
			t.Errorf("%s: %+v", c.usage, u)
		}
	}
}
