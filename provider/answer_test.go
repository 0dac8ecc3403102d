package provider_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/ai-identity/ai-identity/provider"
)

// vector is a file of testdata/answers: a request, a provider's response, and the values to
// read from it.
type vector struct {
	call        provider.Call
	contentType string
	body        []byte
	want        string
}

func vectors(t testing.TB) map[string]vector {
	t.Helper()
	files, err := filepath.Glob("testdata/answers/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	all := map[string]vector{}
	for _, file := range files {
		ar, err := txtar.ParseFile(file)
		if err != nil || len(ar.Files) != 3 {
			t.Fatalf("%s: %v", file, err)
		}
		path, body, _ := strings.Cut(strings.TrimSpace(string(ar.Files[0].Data)), " ")
		v := vector{call: parsed(t, path, body), body: ar.Files[1].Data, want: strings.TrimRight(string(ar.Files[2].Data), "\n")}
		v.contentType = strings.TrimPrefix(ar.Files[1].Name, "answer ")
		if plain, ok := strings.CutSuffix(v.contentType, " crlf"); ok {
			v.contentType, v.body = plain, bytes.ReplaceAll(v.body, []byte("\n"), []byte("\r\n"))
		}
		all[strings.TrimSuffix(filepath.Base(file), ".txt")] = v
	}
	return all
}

func said(a *provider.ResponseReader) string {
	u := a.Usage()
	out := fmt.Sprintf("%s in %d out %d cached %d written %d reasoning %d %s", a.Model(), u.InputTokens, u.OutputTokens, u.CachedTokens, u.CacheWriteTokens, u.ReasoningTokens, u.Source)
	for _, m := range []struct {
		name  string
		media provider.Media
	}{{"input", u.InputMedia}, {"cached", u.CachedMedia}, {"output", u.OutputMedia}} {
		if m.media != (provider.Media{}) {
			out += fmt.Sprintf("; %s: %+v", m.name, m.media)
		}
	}
	if u.LongWriteTokens != 0 {
		out += fmt.Sprintf("; written for an hour: %d", u.LongWriteTokens)
	}
	if u.Billed != (provider.Billed{}) {
		out += fmt.Sprintf("; billed: %d and %d", u.Billed.InputTokens, u.Billed.OutputTokens)
		if u.Billed.More {
			out += " and more"
		}
	}
	if u.Service != "" {
		out += "; service: " + u.Service
	}
	return out
}

// in reads a response that arrives in these chunks.
func in(t testing.TB, v vector, pieces ...[]byte) string {
	t.Helper()
	a := provider.NewResponseReader(v.call, provider.Provider{}, 200, v.contentType)
	for i, p := range pieces {
		if out, replaced := a.Chunk(p, i == len(pieces)-1); replaced || out != nil {
			t.Fatalf("the answer was changed: %q", out)
		}
	}
	a.Chunk(nil, true) // trailers
	return said(a)
}

// TestAnswers splits every vector at every byte, and into single bytes.
func TestAnswers(t *testing.T) {
	for name, v := range vectors(t) {
		t.Run(name, func(t *testing.T) {
			if got := in(t, v, v.body); got != v.want {
				t.Fatalf("got  %s\nwant %s", got, v.want)
			}
			for i := range v.body {
				if got := in(t, v, v.body[:i], v.body[i:]); got != v.want {
					t.Fatalf("split at %d, before %q: %s", i, v.body[i:min(len(v.body), i+20)], got)
				}
			}
			var single [][]byte
			for i := range v.body {
				single = append(single, v.body[i:i+1])
			}
			if got := in(t, v, single...); got != v.want {
				t.Errorf("byte by byte: %s", got)
			}
		})
	}
}

// TestAnswerLines: LF, CR LF and CR end lines. A byte order mark is skipped. A content-type
// is not needed.
func TestAnswerLines(t *testing.T) {
	for name, v := range vectors(t) {
		if !strings.HasPrefix(v.contentType, "text/event-stream") {
			v.contentType = ""
			if got := in(t, v, v.body); got != v.want {
				t.Errorf("%s without a content-type: %s", name, got)
			}
			continue
		}
		lf := bytes.ReplaceAll(v.body, []byte("\r\n"), []byte("\n"))
		for _, end := range []string{"\n", "\r\n", "\r"} {
			w := v
			w.body = bytes.ReplaceAll(lf, []byte("\n"), []byte(end))
			w.contentType = []string{"text/event-stream", "", "Text/Event-Stream;charset=utf-8"}[len(name)%3]
			if got := in(t, w, w.body); got != w.want {
				t.Errorf("%s with lines that end in %q: %s", name, end, got)
			}
			w.body = append([]byte("\ufeff"), w.body...)
			for i := range w.body {
				if got := in(t, w, w.body[:i], w.body[i:]); got != w.want {
					t.Fatalf("%s with a byte order mark, and lines that end in %q, split at %d: %s", name, end, i, got)
				}
			}
		}
	}
}

func TestAnswerErrors(t *testing.T) {
	v := vectors(t)["openai_chat"]
	for status, want := range map[int]string{200: "provider", 201: "provider", 400: "absent", 500: "absent", 302: "absent", 0: "absent"} {
		a := provider.NewResponseReader(v.call, provider.Provider{}, status, v.contentType)
		a.Chunk(v.body, true)
		if a.Usage().Source != want {
			t.Errorf("%d: %s", status, a.Usage().Source)
		}
	}
	// Without a call and an endpoint nothing is read, and there is no panic.
	a := provider.NewResponseReader(provider.Call{}, provider.Provider{}, 200, v.contentType)
	a.Chunk(v.body, true)
	if a.Usage() != (provider.Usage{Source: "absent"}) || a.Model() != "" {
		t.Errorf("%+v", a.Usage())
	}
}

// TestAnswerMemory: large values pass and are not kept, and values after them are read.
func TestAnswerMemory(t *testing.T) {
	call := parsed(t, chat, `{"model":"m","stream":true,"messages":[]}`)
	piece := bytes.Repeat([]byte("iVBORw0KGgo="), 1<<20/12)
	for name, c := range map[string][3]string{
		"one event":  {"text/event-stream", `data: {"model":"m","data":"`, `","usage":{"prompt_tokens":5,"completion_tokens":6}}` + "\n\n"},
		"one answer": {"application/json", `{"model":"m","data":"`, `","usage":{"prompt_tokens":5,"completion_tokens":6}}`},
		"one name":   {"application/json", `{"model":"m","`, `":1,"usage":{"prompt_tokens":5,"completion_tokens":6}}`},
		"a comment":  {"text/event-stream", `:`, "\n" + `data: {"model":"m","usage":{"prompt_tokens":5,"completion_tokens":6}}` + "\n\n"},
		"one usage":  {"application/json", `{"model":"m","usage":{"prompt_tokens":1,"x":"`, `"},"usage":{"prompt_tokens":5,"completion_tokens":6}}`},
	} {
		a := provider.NewResponseReader(call, provider.Provider{}, 200, c[0])
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		a.Chunk([]byte(c[1]), false)
		for range 20 {
			a.Chunk(piece, false)
		}
		a.Chunk([]byte(c[2]), true)
		runtime.ReadMemStats(&after)
		if got := said(a); got != "m in 5 out 6 cached 0 written 0 reasoning 0 provider" {
			t.Errorf("%s: %s", name, got)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 256<<10 {
			t.Errorf("%s: %d KB were allocated", name, n>>10)
		}
	}
}

// TestInjectedUsage: with inject_usage, usage is requested if the client did not request
// it. The client does not get the event with it, for every split.
func TestInjectedUsage(t *testing.T) {
	p := provider.Provider{ID: "prov_1", OrgID: "org_1", Name: "one", Kind: "openai", BaseURL: "http://h.example/v1", Models: []string{"m"}, Settings: []byte(`{"inject_usage":true}`)}
	p.Cluster = provider.ClusterName(p)
	const text = `: hello

data: {"model":"m-1","choices":[{"delta":{"content":"a"}}],"usage":null}

data: {"choices":[{"delta":{"content":"b"}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}

event: x
`
	const own = `data: {"choices": [],"usage":{"prompt_tokens":3,"completion_tokens":4}}

`
	const rest = `data: [DONE]

`
	for _, c := range []struct {
		name, options string
		asked         bool // by the client
	}{{"nothing", ``, false}, {"other options", `"stream_options":{"include_obfuscation":false},`, false}, {"no options", `"stream_options":{},`, false},
		{"usage", `"stream_options":{"include_usage":true},`, true}, {"no usage", `"stream_options":{"include_usage":false},`, true}, {"null", `"stream_options":null,`, true}} {
		t.Run(c.name, func(t *testing.T) {
			body := ` {` + c.options + `"model":"m","stream":true,"messages":[{"role":"user","content":"\u00e9 1.0"}]}`
			call := parsed(t, chat, body)
			f, e := p.Forward(call, chat, "")
			if e != nil {
				t.Fatal(e)
			}
			if (f.Body == nil) != c.asked {
				t.Fatalf("forwarded %s", f.Body)
			}
			if f.Body != nil {
				// The request that is sent asks for usage. Otherwise it has the evaluated
				// content.
				again := parsed(t, chat, string(f.Body))
				if !bytes.Contains(f.Body, []byte(`"include_usage":true`)) || again.Model != call.Model || !again.Stream {
					t.Errorf("%s", f.Body)
				}
				for _, s := range []string{`"stream_options":{"include_usage":true},`, `"include_usage":true,`, `"include_usage":true`} {
					if cut := strings.Replace(string(f.Body), s, "", 1); cut == body {
						body = ""
					}
				}
				if body != "" {
					t.Errorf("something else was changed: %s", f.Body)
				}
			}
			all := text + own + rest
			want := all
			if !c.asked {
				want = strings.TrimSuffix(text, "event: x\n") + rest
			}
			for i := range len(all) {
				for _, end := range []string{"\n", "\r\n"} {
					all, want := strings.ReplaceAll(all, "\n", end), strings.ReplaceAll(want, "\n", end)
					a := provider.NewResponseReader(call, p, 200, "text/event-stream")
					var got []byte
					for j, piece := range []string{all[:i], all[i:]} {
						out, replaced := a.Chunk([]byte(piece), j == 1)
						if !replaced {
							out = []byte(piece)
						}
						got = append(got, out...)
					}
					if string(got) != want {
						t.Fatalf("split at %d:\n%q\nwant\n%q", i, got, want)
					}
					if said(a) != "m-1 in 3 out 4 cached 0 written 0 reasoning 0 provider" {
						t.Fatalf("split at %d: %s", i, said(a))
					}
				}
			}
		})
	}
	// A stream without an end, and one event that is too long to hold.
	call := parsed(t, chat, `{"model":"m","stream":true}`)
	a := provider.NewResponseReader(call, p, 200, "text/event-stream")
	long := `data: {"usage":{"prompt_tokens":1},"choices":[],"x":"` + strings.Repeat("y", 1<<20)
	got := 0
	for i := range 10 {
		out, _ := a.Chunk([]byte(long[i*len(long)/10:(i+1)*len(long)/10]), i == 9)
		got += len(out)
	}
	if got != len(long) {
		t.Errorf("%d bytes of %d passed", got, len(long))
	}
	// A response that is not streamed is not changed.
	a = provider.NewResponseReader(call, p, 200, "application/json")
	if out, replaced := a.Chunk([]byte(`{"choices":[],"usage":{"prompt_tokens":1}}`), true); replaced || a.Usage().InputTokens != 1 {
		t.Errorf("%q", out)
	}
}

// FuzzAnswer: the split of a response changes neither what is read nor what is passed on.
func FuzzAnswer(f *testing.F) {
	endpoints := []string{chat, responses, messages, generate, "/v2/chat"}
	bodies := []string{`{"model":"m","stream":true}`, `{"model":"m","stream":true}`, `{"model":"m","stream":true}`, `{"contents":[]}`, `{"model":"m","stream":true}`}
	for _, v := range vectors(f) {
		for i := range endpoints {
			f.Add(i, strings.HasPrefix(v.contentType, "text/"), v.body, len(v.body)/2, len(v.body)/3)
		}
	}
	f.Add(0, true, []byte("\xef\xbb\xbfdata: {}\r\r\n\n"), 3, 4)
	f.Add(0, false, []byte(`{"usage":{"a":"\\\"","b":[{}]}}`), 5, 13)
	p := provider.Provider{ID: "prov_1", OrgID: "org_1", Name: "one", Kind: "openai", BaseURL: "http://h.example/v1", Settings: []byte(`{"inject_usage":true}`)}
	p.Cluster = provider.ClusterName(p)
	f.Fuzz(func(t *testing.T, which int, sse bool, body []byte, i, j int) {
		at := uint(which) % uint(len(endpoints))
		call := parsed(t, endpoints[at], bodies[at])
		contentType := "application/json"
		if sse {
			contentType = "text/event-stream"
		}
		read := func(pieces ...[]byte) (string, string) {
			a := provider.NewResponseReader(call, p, 200, contentType)
			var passed []byte
			for k, piece := range pieces {
				out, replaced := a.Chunk(piece, k == len(pieces)-1)
				if !replaced {
					out = piece
				}
				passed = append(passed, out...)
			}
			return said(a), string(passed)
		}
		n := uint(len(body) + 1)
		x, y := uint(i)%n, uint(j)%n
		x, y = min(x, y), max(x, y)
		kept := bytes.Clone(body)
		one, passed := read(body)
		three, passed3 := read(body[:x], body[x:y], body[y:])
		if one != three || passed != passed3 {
			t.Fatalf("%s %q\nwhole %s\nsplit at %d, %d: %s\n%q\n%q", contentType, body, one, x, y, three, passed, passed3)
		}
		if !bytes.Equal(body, kept) {
			t.Fatal("the piece was changed")
		}
		if figures := one[max(strings.LastIndex(one, " in "), 0):]; strings.Contains(figures, "-") {
			t.Fatalf("a negative figure: %s", one)
		}
	})
}

// Anthropic charges compaction in addition to the figures. So the charge differs from the
// figures.
func TestCompactionIsCharged(t *testing.T) {
	ep, params, _ := provider.Match("POST", messages)
	for iterations, want := range map[string]bool{
		`[{"type":"message","input_tokens":1,"output_tokens":1}]`: false, `null`: false, `[]`: false,
		`[{"type":"compaction","input_tokens":150000,"output_tokens":900},{"type":"message","input_tokens":1,"output_tokens":1}]`: true,
	} {
		usage := `"usage":{"input_tokens":1,"output_tokens":1,"iterations":` + iterations + `}`
		for contentType, body := range map[string]string{
			"application/json":  `{"type":"message","model":"claude-sonnet-4-5",` + usage + `}`,
			"text/event-stream": `data: {"type":"message_start","message":{"model":"claude-sonnet-4-5","usage":{"input_tokens":1}}}` + "\n\n" + `data: {"type":"message_delta",` + usage + "}\n\n",
		} {
			a := provider.NewResponseReader(provider.Call{Endpoint: ep, Params: params, Stream: true}, provider.Provider{Kind: provider.KindAnthropic}, 200, contentType)
			a.Chunk([]byte(body), true)
			if u := a.Usage(); u.Billed.More != want || u.InputTokens != 1 || u.Source != "provider" {
				t.Errorf("%s: %+v", body, u)
			}
		}
	}
}
