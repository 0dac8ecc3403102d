package translate_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/provider/translate"
)

// BenchmarkEvent is the cost of one streamed chunk of text.
func BenchmarkEvent(b *testing.B) {
	for _, c := range []struct{ kind, head, event string }{
		{"anthropic", `data: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-opus-4-8","content":[],"usage":{"input_tokens":25,"output_tokens":1}}}`,
			"event: content_block_delta\n" + `data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" streamed word"}}`},
		{"gemini", ``, `data: {"candidates": [{"content": {"parts": [{"text": " streamed word"}],"role": "model"},"index": 0}],"usageMetadata": {"promptTokenCount": 7,"candidatesTokenCount": 2,"totalTokenCount": 19},"modelVersion": "gemini-3-pro","responseId": "r1"}`},
		{"cohere", ``, "event: content-delta\n" + `data: {"type":"content-delta","index":0,"delta":{"message":{"content":{"text":" streamed word"}}}}`},
		{"mistral", ``, `data: {"id":"c1","object":"chat.completion.chunk","created":1702256327,"model":"mistral-small-latest","choices":[{"index":0,"delta":{"content":" streamed word"},"finish_reason":null}]}`},
	} {
		b.Run(c.kind, func(b *testing.B) {
			r, err := translate.Chat(c.kind, []byte(strings.TrimSuffix(plainRequest, "}")+`,"stream":true}`), translate.Options{})
			if err != nil {
				b.Fatal(err)
			}
			a := newAnswer(r, 200, "text/event-stream")
			a.Chunk([]byte(c.head+"\n\n"), false)
			event := []byte(c.event + "\n\n")
			a.Chunk(event, false)
			b.ReportAllocs()
			b.SetBytes(int64(len(event)))
			for b.Loop() {
				if len(a.Chunk(event, false)) == 0 {
					b.Fatal("nothing")
				}
			}
		})
	}
}

// BenchmarkChat is the cost of a request: short, and long with an image of 1 MiB.
func BenchmarkChat(b *testing.B) {
	for _, size := range []struct {
		name string
		body []byte
	}{
		{"short", []byte(plainRequest)},
		{"1MiB", body(false, user(`[{"type":"image_url","image_url":{"url":"data:image/png;base64,`+strings.Repeat("AAAA", 1<<18)+`"}}]`))},
	} {
		for _, kind := range translate.Kinds() {
			b.Run(size.name+"/"+kind, func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(len(size.body)))
				for b.Loop() {
					if _, err := translate.Chat(kind, size.body, translate.Options{}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkWhole is the cost of a response of 64 KiB that is not streamed.
func BenchmarkWhole(b *testing.B) {
	r, err := translate.Chat(translate.Anthropic, []byte(plainRequest), translate.Options{})
	if err != nil {
		b.Fatal(err)
	}
	answer := []byte(`{"id":"msg_1","type":"message","role":"assistant","model":"claude","content":[{"type":"text","text":"` + strings.Repeat("word ", 13000) + `"}],"stop_reason":"end_turn","usage":{"input_tokens":1,"output_tokens":1}}`)
	b.SetBytes(int64(len(answer)))
	b.ReportAllocs()
	for b.Loop() {
		if out := newAnswer(r, 200, "application/json").Chunk(answer, true); !bytes.Contains(out, []byte("word")) {
			b.Fatal("nothing")
		}
	}
}
