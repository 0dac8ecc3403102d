package provider_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/provider"
)

// customProvider is a provider whose responses differ from OpenAI's in some places.
func customProvider(t testing.TB, settings string) provider.Provider {
	t.Helper()
	p := prov("a", "custom", "*")
	p.Settings = []byte(settings)
	if err := provider.Validate(p); err != nil {
		t.Fatal(err)
	}
	return registry(t, p).Providers()[0]
}

// TestCustomAnswer: usage and model are read in the places of the settings, for whole and
// streamed responses and every split.
func TestCustomAnswer(t *testing.T) {
	const places = `"model":"/meta/served~1by","usage":{"input":"/meta/tokens/in","output":"/meta/tokens/out","cached":"/meta/tokens/cached","reasoning":"/thought"}`
	const event1, event2 = `{"choices":[{"delta":{"content":"hi"}}],"meta":{"served/by":"m-7","tokens":{"in":9,"out":1}}}`,
		`{"choices":[],"meta":{"tokens":{"in":9,"out":5, "cached":4}},"thought":2.0,"in":77}`
	want := provider.Usage{InputTokens: 9, OutputTokens: 5, CachedTokens: 4, ReasoningTokens: 2, Source: "provider"}
	for _, c := range []struct {
		name, stream, contentType, body, out string // out: what the client gets, if it differs
	}{
		{"whole", "", "application/json", `{"meta":{"x":[{"in":5}],"served/by":"m-7","tokens":{"in":9,"out":5,"cached":4}},"thought":2,"choices":[]}`, ""},
		{"events", "", "text/event-stream", "data: " + event1 + "\n\ndata: " + event2 + "\n\ndata: [DONE]\n\n", ""},
		{"events by another type", "sse", "text/plain", "data: " + event1 + "\n\ndata: " + event2 + "\n\ndata: [DONE]\n\n", ""},
		{"lines", "ndjson", "application/x-ndjson", event1 + "\n\r\n" + event2 + "\n", "data: " + event1 + "\n\ndata: " + event2 + "\n\ndata: [DONE]\n\n"},
		{"lines without the last end", "ndjson", "text/plain", event1 + "\n" + event2, "data: " + event1 + "\n\ndata: " + event2 + "\n\ndata: [DONE]\n\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := customProvider(t, `{"answer":{`+places+`,"stream":"`+c.stream+`"}}`)
			call := parsed(t, chat, `{"model":"m","stream":`+map[bool]string{true: "false", false: "true"}[c.name == "whole"]+`,"messages":[]}`)
			for i := range len(c.body) + 1 {
				a := provider.NewResponseReader(call, p, 200, c.contentType)
				out, replaced := a.Chunk([]byte(c.body[:i]), false)
				rest, _ := a.Chunk([]byte(c.body[i:]), true)
				if replaced != (c.out != "") || replaced && string(out)+string(rest) != c.out {
					t.Fatalf("cut at %d: %s%s", i, out, rest)
				}
				if a.Usage() != want || a.Model() != "m-7" || a.Failed() {
					t.Fatalf("cut at %d: %+v %q", i, a.Usage(), a.Model())
				}
			}
		})
	}
}

// TestCustomDefaults: fields without settings are as in OpenAI's API.
func TestCustomDefaults(t *testing.T) {
	p := customProvider(t, `{"answer":{"error":"/fault/reason"}}`)
	a := provider.NewResponseReader(parsed(t, chat, `{"model":"m","messages":[]}`), p, 200, "application/json")
	a.Chunk([]byte(`{"model":"m-7","usage":{"prompt_tokens":3,"completion_tokens":4}}`), true)
	if u := a.Usage(); u.InputTokens != 3 || u.OutputTokens != 4 || a.Model() != "m-7" {
		t.Errorf("%+v %q", u, a.Model())
	}
}

// TestCustomError: the error message is read in the place of the settings, and becomes an
// error of OpenAI's format.
func TestCustomError(t *testing.T) {
	p := customProvider(t, `{"answer":{"error":"/fault/reason","stream":"ndjson"}}`)
	a := p.NewError(provider.FormatOpenAI, 429, "")
	out, _ := a.Chunk([]byte(`{"fault":{"reason":"slow down, says 10.0.0.7"}}`), true)
	if string(out) != `{"error":{"message":"slow down, says [host]","type":"rate_limit_error","param":null,"code":null}}` || !a.Failed() || a.Usage().Source != "absent" {
		t.Errorf("%s %+v", out, a.Usage())
	}
	// An error ends a stream, without [DONE].
	a = provider.NewResponseReader(parsed(t, chat, `{"model":"m","stream":true,"messages":[]}`), p, 200, "application/x-ndjson")
	out, _ = a.Chunk([]byte("{\"choices\":[]}\n{\"fault\":{\"reason\":\"gone\"}}\n{\"choices\":[]}\n"), true)
	if want := "data: {\"choices\":[]}\n\ndata: {\"error\":{\"message\":\"gone\",\"type\":\"server_error\",\"param\":null,\"code\":null}}\n\n"; string(out) != want || !a.Failed() {
		t.Errorf("%s", out)
	}
	a = provider.NewResponseReader(parsed(t, chat, `{"model":"m","stream":true,"messages":[]}`), p, 200, "application/x-ndjson")
	if out, _ = a.Chunk([]byte("{\"choices\":[]}\n{\"choi"), true); bytes.Contains(out, []byte("[DONE]")) || !a.Failed() {
		t.Errorf("broken off: %s", out)
	}
}

func TestCustomForward(t *testing.T) {
	p := customProvider(t, `{"paths":{"/v1/chat/completions":"/models/{model}/chat"},"answer":{"stream":"none"}}`)
	p.Models = []string{"*", "org/m-7"}
	f, e := p.Forward(parsed(t, chat, `{"model":"org/m-7","messages":[]}`), chat, "")
	if e != nil || f.Path != "/v1/models/org/m-7/chat" || f.Body != nil {
		t.Errorf("%+v %v", f, e)
	}
	for _, model := range []string{"a/../b", "a?b", "a#b", "a%2fb", "/", "a//b", "org/m-8", "org/m-7/cancel"} {
		if f, e := p.Forward(parsed(t, chat, `{"model":"`+model+`","messages":[]}`), chat, ""); e == nil || e.Status != 400 {
			t.Errorf("%s: %+v", model, f)
		}
	}
	if _, e := p.Forward(parsed(t, chat, `{"model":"m","stream":true,"messages":[]}`), chat, ""); e == nil || e.Status != 422 || e.Param != "stream" {
		t.Errorf("%+v", e)
	}
	ep, _, _ := provider.Match("POST", chat)
	if !p.Reads(ep) || prov("b", "custom", "*").Reads(ep) || prov("b", "openai", "*").Reads(ep) || !prov("b", "cohere", "*").Reads(ep) {
		t.Error("whose answers are read here")
	}
	own, _, _ := provider.Match("POST", "/v2/chat")
	if prov("b", "cohere", "*").Reads(own) {
		t.Error("in its own format it passes")
	}
}

// FuzzCustomAnswer: the split of a response changes nothing.
func FuzzCustomAnswer(f *testing.F) {
	f.Add([]byte("{\"m\":\"x\",\"n\":{\"in\":3,\"out\":4}}\n{\"n\":{\"in\":5}}\n"), uint16(9))
	f.Add([]byte("{\"e\":\"bad\"}\n\n[1]\n"), uint16(3))
	p := customProvider(f, `{"answer":{"model":"/m","usage":{"input":"/n/in","output":"/n/out"},"error":"/e","stream":"ndjson"}}`)
	call := parsed(f, chat, `{"model":"m","stream":true,"messages":[]}`)
	f.Fuzz(func(t *testing.T, b []byte, at uint16) {
		i := int(at) % (len(b) + 1)
		whole, cut := provider.NewResponseReader(call, p, 200, ""), provider.NewResponseReader(call, p, 200, "")
		want, _ := whole.Chunk(b, true)
		one, _ := cut.Chunk(b[:i], false)
		two, _ := cut.Chunk(b[i:], true)
		if got := string(one) + string(two); got != string(want) || cut.Usage() != whole.Usage() || cut.Model() != whole.Model() {
			t.Fatalf("cut at %d:\n%s\n%+v\nwhole:\n%s\n%+v", i, got, cut.Usage(), want, whole.Usage())
		}
		if strings.Count(string(want), "[DONE]") > 1+strings.Count(string(b), "[DONE]") {
			t.Fatalf("%s", want)
		}
	})
}
