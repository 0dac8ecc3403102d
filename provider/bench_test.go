package provider_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
)

// conversation is a chat request of about n bytes, as an agent sends it: many
// turns, tools with schemas, calls and their results.
func conversation(n int) []byte {
	var b bytes.Buffer
	b.WriteString(`{"model":"gpt-4o","stream":true,"stream_options":{"include_usage":true},"temperature":0.2,"tools":[`)
	for i := range 20 {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"type":"function","function":{"name":"tool_%d","description":"Does the thing that number %d does","parameters":{"type":"object","properties":{"path":{"type":"string","description":"Where"},"lines":{"type":"array","items":{"type":"integer"}}},"required":["path"],"additionalProperties":false}}}`, i, i)
	}
	b.WriteString(`],"messages":[{"role":"system","content":"You are a careful engineer."}`)
	text := strings.Repeat(`func main() {\n\tfmt.Println(\"hello\")\n}\n`, 40)
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, `,{"role":"user","content":[{"type":"text","text":"What does this do?"}]},{"role":"assistant","content":null,"tool_calls":[{"id":"call_%d","type":"function","function":{"name":"tool_%d","arguments":"{\"path\":\"main.go\"}"}}]},{"role":"tool","tool_call_id":"call_%d","content":"%s"}`, i, i%20, i, text)
	}
	b.WriteString(`]}`)
	return b.Bytes()
}

func BenchmarkParse(b *testing.B) {
	ep, params, _ := provider.Match("POST", "/v1/chat/completions")
	for _, n := range []int{1 << 10, 100 << 10, 2 << 20} {
		body := conversation(n)
		b.Run(fmt.Sprintf("%dKB", len(body)>>10), func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, e := provider.Parse(ep, params, "application/json", "", body); e != nil {
					b.Fatal(e)
				}
			}
		})
	}
	text := []byte(`{"model":"gpt-4o","messages":[{"role":"user","content":"` + strings.Repeat("All work and no play makes a dull token. ", 50<<10) + `"}]}`)
	b.Run("2MB of text", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		b.ReportAllocs()
		for b.Loop() {
			if _, e := provider.Parse(ep, params, "application/json", "", text); e != nil {
				b.Fatal(e)
			}
		}
	})
}

// BenchmarkForwardTranslated is the second half of a translated request: the translation,
// and the parsing of its result.
func BenchmarkForwardTranslated(b *testing.B) {
	ep, params, _ := provider.Match("POST", "/v1/chat/completions")
	for _, n := range []int{1 << 10, 100 << 10, 2 << 20} {
		call, e := provider.Parse(ep, params, "application/json", "", conversation(n))
		if e != nil {
			b.Fatal(e)
		}
		p := prov("a", "anthropic", "*")
		p.Settings = []byte(`{"drop_unsupported":true}`)
		b.Run(fmt.Sprintf("%dKB", len(call.Body)>>10), func(b *testing.B) {
			b.SetBytes(int64(len(call.Body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, e := p.Forward(call, "/v1/chat/completions", ""); e != nil {
					b.Fatal(e)
				}
			}
		})
	}
}

func BenchmarkMatch(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, _, ok := provider.Match("POST", "/v1beta/models/gemini-2.5-pro:streamGenerateContent"); !ok {
			b.Fatal("no match")
		}
	}
}

func BenchmarkForward(b *testing.B) {
	p := provider.Provider{ID: "prov_1", OrgID: "org_1", Name: "one", Kind: "openai", BaseURL: "https://api.openai.com/v1", Models: []string{"gpt-*"},
		Credential: provider.NewSecret("sk-0123456789"), HasCredential: true}
	p.Cluster = provider.ClusterName(p)
	reg, err := provider.NewRegistry([]provider.Provider{p}, policy.Matches)
	if err != nil {
		b.Fatal(err)
	}
	call := parsed(b, "/v1/chat/completions", `{"model":"gpt-4o","messages":[]}`)
	b.ReportAllocs()
	for b.Loop() {
		p, e := reg.Resolve(call)
		if e != nil {
			b.Fatal(e)
		}
		if _, e := p.Forward(call, "/v1/chat/completions", ""); e != nil {
			b.Fatal(e)
		}
	}
}

// BenchmarkAnswer is the cost of one event of a stream.
func BenchmarkAnswer(b *testing.B) {
	call := parsed(b, "/v1/chat/completions", `{"model":"gpt-4o","stream":true,"stream_options":{"include_usage":true},"messages":[]}`)
	for name, event := range map[string]string{
		"event":               `data: {"id":"chatcmpl-123","object":"chat.completion.chunk","created":1694268190,"model":"gpt-4o-mini","system_fingerprint":"fp_44709d6fcb","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}` + "\n\n",
		"event, usage: null":  `data: {"id":"chatcmpl-123","object":"chat.completion.chunk","created":1694268190,"model":"gpt-4o-mini","system_fingerprint":"fp_44709d6fcb","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}],"usage":null}` + "\n\n",
		"event in two pieces": `data: {"id":"chatcmpl-123","object":"chat.completion.chunk","created":1694268190,"model":"gpt-4o-mini","system_fingerprint":"fp_44709d6fcb","choices":[{"index":0,"delta":{"content":" token|"},"logprobs":null,"finish_reason":null}]}` + "\n\n",
		"event of 1 MB":       `data: {"id":"1","model":"gpt-4o-mini","image":"` + strings.Repeat("iVBORw0KGgo", 1<<20/11) + `|","usage":{"prompt_tokens":1}}` + "\n\n",
	} {
		b.Run(name, func(b *testing.B) {
			var pieces [][]byte
			for p := range strings.SplitSeq(event, "|") {
				pieces = append(pieces, []byte(p))
			}
			a := provider.NewResponseReader(call, provider.Provider{}, 200, "text/event-stream")
			b.SetBytes(int64(len(event)))
			b.ReportAllocs()
			for b.Loop() {
				for _, p := range pieces {
					a.Chunk(p, false)
				}
			}
		})
	}
	whole := []byte(`{"object":"list","data":[{"embedding":[` + strings.TrimSuffix(strings.Repeat("-0.0123456,", 100<<10), ",") + `]}],"model":"e","usage":{"prompt_tokens":8}}`)
	b.Run("embeddings of 1 MB", func(b *testing.B) {
		b.SetBytes(int64(len(whole)))
		b.ReportAllocs()
		for b.Loop() {
			a := provider.NewResponseReader(call, provider.Provider{}, 200, "application/json")
			a.Chunk(whole, true)
			if a.Usage().InputTokens != 8 {
				b.Fatal("not read")
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		b.Fatal(err)
	}
	plain := conversation(1 << 20)
	packed := enc.EncodeAll(plain, nil)
	b.SetBytes(int64(len(plain)))
	b.ReportAllocs()
	for b.Loop() {
		if _, e := provider.Decode([]string{"zstd"}, packed, 16<<20); e != nil {
			b.Fatal(e)
		}
	}
}
