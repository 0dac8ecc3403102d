package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/ai-identity/ai-identity/e2e"
	"github.com/ai-identity/ai-identity/extproc"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/verdict"
)

// translators is a harness whose org can be switched between providers, which have every
// model.
type translators struct {
	*harness
	serve atomic.Pointer[http.HandlerFunc] // the current provider
	org   atomic.Pointer[verdict.Org]
	orgs  map[string]verdict.Org // by kind
}

func (x *translators) Org(string) (verdict.Org, error) { return *x.org.Load(), nil }

// swapped is a directory whose org can be replaced.
type swapped struct {
	extproc.Directory
	x *translators
}

func (s swapped) Org(id string) (verdict.Org, error) { return s.x.Org(id) }

// translating starts a harness with a provider of each kind at one address.
func translating(t *testing.T, usage string) *translators {
	t.Helper()
	x := &translators{orgs: map[string]verdict.Org{}}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*x.serve.Load())(w, r) })
	var ps []provider.Provider
	for _, kind := range append([]string{"openai"}, translatedKinds...) {
		ps = append(ps, provider.Provider{Name: kind, Kind: kind, Models: []string{"*"}, Settings: []byte(`{"pass_response_headers":["x-named"]}`)})
	}
	ps = append(ps, provider.Provider{Name: "custom", Kind: "custom", Models: []string{"*"},
		Settings: []byte(`{"paths":{"/v1/chat/completions":"/serve/{model}"},"answer":{"usage":{"input":"/meta/in"},"error":"/fault","stream":"ndjson"}}`)})
	x.harness = inProcessWith(t, h, usage, ps, func(c *extproc.Config) {
		base, err := c.Directory.Org(inOrg)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range ps {
			org := base
			if org.Providers, err = provider.NewRegistry([]provider.Provider{p}, policy.Matches); err != nil {
				t.Fatal(err)
			}
			x.orgs[p.Kind] = org
		}
		c.Directory = swapped{c.Directory, x}
		c.Now = func() time.Time { return time.Unix(1_700_000_000, 0) }
	}, nil)
	return x
}

// use makes the provider of the kind the org's only one. h is its server.
func (x *translators) use(kind string, h http.HandlerFunc) {
	org := x.orgs[kind]
	x.org.Store(&org)
	x.serve.Store(&h)
}

func (x *translators) post(t *testing.T, path, body string) (*http.Response, []byte, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", x.gateway+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+x.key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, b, err
}

var (
	madeID   = regexp.MustCompile(`chatcmpl-[0-9a-f]{32}`)
	madeCall = regexp.MustCompile(`aid_call_[0-9A-Za-z]{22}_`) // made from the response's id
)

// Every response in the vectors of package translate passes a real Envoy. The client gets
// the bytes, the status, the content type and the retry time of the vector. This holds for
// every split, and whether Envoy or the sidecar reads usage.
func TestTranslatedAnswers(t *testing.T) {
	const hello = `{"model":"m-1","messages":[{"role":"user","content":"hi"}]}`
	for _, usage := range []string{"stream", "envoy"} {
		x := translating(t, usage)
		for _, kind := range translatedKinds {
			files, err := filepath.Glob(filepath.Join(e2e.Root(), "provider", "translate", "testdata", "answers", kind, "*.txt"))
			if err != nil || len(files) == 0 {
				t.Fatalf("no vectors: %v", err)
			}
			for _, file := range files {
				t.Run(usage+"/"+kind+"/"+strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
					ar, err := txtar.ParseFile(file)
					if err != nil {
						t.Fatal(err)
					}
					section := map[string]string{}
					for _, f := range ar.Files {
						section[f.Name] = string(f.Data)
					}
					head, body, _ := strings.Cut(section["answer"], "\n\n")
					code, contentType, _ := strings.Cut(head, " ")
					status, _ := strconv.Atoi(code)
					request, path := section["request"], "/v1/chat/completions"
					if request == "" {
						request = hello
						if strings.Contains(head, "text/event-stream") {
							request = strings.TrimSuffix(hello, "}") + `,"stream":true,"stream_options":{"include_usage":true}}`
						}
					}
					if strings.Contains(request, `"input"`) {
						path = "/v1/embeddings"
					}
					x.use(kind, func(w http.ResponseWriter, _ *http.Request) {
						w.Header().Set("Content-Type", contentType)
						w.WriteHeader(status)
						for piece := range slices.Chunk([]byte(body), 97) {
							w.Write(piece)
							http.NewResponseController(w).Flush()
						}
					})
					if status == 401 {
						// This is not about the caller's key: extproc responds itself.
						if resp, got, _ := x.post(t, path, request); resp.StatusCode != 502 || !bytes.Contains(got, []byte("provider_unauthorized")) {
							t.Errorf("%d %s", resp.StatusCode, got)
						}
						return
					}
					resp, got, err := x.post(t, path, request)
					if err != nil {
						t.Fatal(err)
					}
					want := section["want"]
					got = madeID.ReplaceAll(got, []byte("chatcmpl-made"))
					got, want = madeCall.ReplaceAll(got, []byte("aid_call_")), madeCall.ReplaceAllString(want, "aid_call_")
					if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
						var a, b bytes.Buffer
						if json.Compact(&a, []byte(want)) == nil && json.Compact(&b, got) == nil {
							want, got = a.String(), b.Bytes()
						}
					}
					if d := cmp.Diff(strings.TrimSuffix(want, "\n"), strings.TrimSuffix(string(got), "\n")); d != "" {
						t.Errorf("(-want +got)\n%s", d)
					}
					told := fmt.Sprintf("%d %s\n", resp.StatusCode, resp.Header.Get("Content-Type"))
					if !strings.HasPrefix(section["want told"], told) {
						t.Errorf("told %swant %s", told, section["want told"])
					}
					if _, after, ok := strings.Cut(section["want told"], "retry after "); ok {
						if d, err := time.ParseDuration(strings.TrimSpace(after)); err != nil || resp.Header.Get("Retry-After") != strconv.Itoa(int(d.Seconds())) {
							t.Errorf("retry-after %q, want %s", resp.Header.Get("Retry-After"), after)
						}
					}
					if resp.Header.Get("X-Aid-Receipt") == "" || resp.Header.Get("X-Aid-Decision") != "allow" {
						t.Errorf("%v", resp.Header)
					}
				})
			}
		}
	}
}

// Every request in the vectors of package translate passes a real Envoy. The provider gets
// the vector's request, or the client gets the vector's rejection and the provider gets
// nothing.
func TestTranslatedRequests(t *testing.T) {
	x := translating(t, "stream")
	for _, folder := range []string{"chat", "embeddings"} {
		files, err := filepath.Glob(filepath.Join(e2e.Root(), "provider", "translate", "testdata", folder, "*.txt"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no vectors: %v", err)
		}
		path := map[string]string{"chat": "/v1/chat/completions", "embeddings": "/v1/embeddings"}[folder]
		for _, file := range files {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			section := map[string]string{}
			for _, f := range ar.Files {
				section[f.Name] = string(f.Data)
			}
			if section["options"] != "" {
				continue // for a provider with other settings
			}
			for _, kind := range translatedKinds {
				t.Run(folder+"/"+strings.TrimSuffix(filepath.Base(file), ".txt")+"/"+kind, func(t *testing.T) {
					x.use(kind, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
					before := len(x.provider.Requests())
					resp, got, err := x.post(t, path, section["request"])
					if err != nil {
						t.Fatal(err)
					}
					reached := x.provider.Requests()[before:]
					head, body, sent := strings.Cut(section["want "+kind], "\n\n")
					if !sent {
						// References to stored objects are rejected before translation.
						code, _, _ := strings.Cut(head, " ")
						if len(reached) > 0 || strconv.Itoa(resp.StatusCode) != code && resp.StatusCode != 400 && !(folder == "embeddings" && kind == "anthropic") {
							t.Errorf("%d %s; %d requests were sent; want %s", resp.StatusCode, got, len(reached), head)
						}
						return
					}
					if resp.StatusCode != http.StatusTeapot || len(reached) != 1 {
						t.Fatalf("%d %s; %d requests were sent", resp.StatusCode, got, len(reached))
					}
					r := reached[0]
					var want, is bytes.Buffer
					if err := errors.Join(json.Compact(&want, []byte(body)), json.Compact(&is, r.Body)); err != nil {
						t.Fatal(err)
					}
					if d := cmp.Diff(want.String(), is.String()); d != "" {
						t.Errorf("(-want +got)\n%s", d)
					}
					for i, line := range strings.Split(head, "\n") {
						name, value, _ := strings.Cut(line, ": ")
						switch {
						case i == 0 && line != r.Method+" "+r.Path:
							t.Errorf("%s %s, want %s", r.Method, r.Path, line)
						case i > 0 && r.Header.Get(name) != value:
							t.Errorf("%s: %q, want %q", name, r.Header.Get(name), value)
						}
					}
				})
			}
		}
	}
}

// anthropicEvents are a response of Anthropic's, event by event.
var anthropicEvents = []string{
	`{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","content":[],"model":"m","stop_reason":null,"usage":{"input_tokens":7,"output_tokens":1}}}`,
	`{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`,
	`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hel"}}`,
	`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"lo"}}`,
	`{"type":"content_block_stop","index":0}`,
	`{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":5}}`,
	`{"type":"message_stop"}`,
}

func sse(w http.ResponseWriter, event string) error {
	fmt.Fprintf(w, "data: %s\n\n", event)
	return http.NewResponseController(w).Flush()
}

// A translated response in transit: nothing is held back. A response that breaks off does
// not look complete, and an error is an error for OpenAI's clients.
func TestTranslatedOnTheWay(t *testing.T) {
	const chat, path = `{"model":"m","messages":[{"role":"user","content":"hi"}]}`, "/v1/chat/completions"
	streamed := strings.Replace(chat, "{", `{"stream":true,`, 1)
	for _, usage := range []string{"stream", "envoy"} {
		x := translating(t, usage)
		idle := func(t *testing.T) {
			t.Helper()
			e2e.Eventually(t, 10*time.Second, func() error {
				if n := x.server.Live(); n > 0 {
					return fmt.Errorf("%d exchanges are live", n)
				}
				return nil
			})
		}
		t.Run(usage+"/each event as it comes", func(t *testing.T) {
			seen := make(chan struct{})
			x.use("anthropic", func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				for i, e := range anthropicEvents {
					if sse(w, e) != nil {
						return
					}
					if i == 2 || i == 3 {
						select {
						case <-seen: // the client has it, and only now the rest is sent
						case <-r.Context().Done():
							return
						}
					}
				}
			})
			got := reading(t, x, streamed)
			defer got.Close()
			for _, want := range []string{`"content":"Hel"`, `"content":"lo"`} {
				until(t, got, want)
				seen <- struct{}{}
			}
			rest, err := io.ReadAll(got)
			if err != nil || !bytes.HasSuffix(rest, []byte("data: [DONE]\n\n")) {
				t.Errorf("%v %s", err, rest)
			}
		})
		t.Run(usage+"/the client hangs up", func(t *testing.T) {
			gone := make(chan struct{})
			x.use("anthropic", func(w http.ResponseWriter, r *http.Request) {
				defer close(gone)
				w.Header().Set("Content-Type", "text/event-stream")
				for _, e := range anthropicEvents[:3] {
					sse(w, e)
				}
				<-r.Context().Done()
			})
			got := reading(t, x, streamed)
			if _, err := got.Read(make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			got.Close()
			select {
			case <-gone:
			case <-time.After(10 * time.Second):
				t.Error("the provider's answer was not cancelled")
			}
			idle(t)
		})
		t.Run(usage+"/the provider breaks off", func(t *testing.T) {
			seen := make(chan struct{})
			x.use("anthropic", func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				for _, e := range anthropicEvents[:4] {
					sse(w, e)
				}
				select {
				case <-seen:
				case <-r.Context().Done():
				}
				panic(http.ErrAbortHandler)
			})
			got := reading(t, x, streamed)
			defer got.Close()
			all := until(t, got, `"content":"lo"`)
			close(seen)
			rest, err := io.ReadAll(got)
			if err == nil || bytes.Contains(append(all, rest...), []byte("[DONE]")) {
				t.Errorf("%v %s%s", err, all, rest)
			}
			idle(t)
		})
		t.Run(usage+"/the provider ends too early", func(t *testing.T) {
			x.use("anthropic", func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				for _, e := range anthropicEvents[:4] {
					sse(w, e)
				}
			})
			_, got, _ := x.post(t, path, streamed)
			if bytes.Contains(got, []byte("[DONE]")) || !bytes.Contains(got, []byte(`"code":"incomplete_answer"`)) {
				t.Errorf("%s", got)
			}
		})
		t.Run(usage+"/overloaded", func(t *testing.T) {
			x.use("anthropic", func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", "7")
				w.Header().Set("Content-Type", "application/json")
				w.Header().Set("Request-Id", "req_of_theirs")
				w.WriteHeader(529)
				io.WriteString(w, `{"type":"error","error":{"type":"overloaded_error","message":"Overloaded at llm-7.internal, key `+credential+`"}}`)
			})
			resp, got, err := x.post(t, path, chat)
			if err != nil || resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "7" || !bytes.Contains(got, []byte(`"type":"server_error"`)) {
				t.Errorf("%v %d %v %s", err, resp.StatusCode, resp.Header, got)
			}
			for _, secret := range []string{"llm-7.internal", credential} {
				if bytes.Contains(got, []byte(secret)) {
					t.Errorf("%q is in %s", secret, got)
				}
			}
		})
		t.Run(usage+"/an error without a body", func(t *testing.T) {
			x.use("cohere", func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", "9")
				w.WriteHeader(429)
			})
			resp, got, err := x.post(t, path, chat)
			if err != nil || resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "9" || !bytes.Contains(got, []byte(`"rate_limit_error"`)) ||
				resp.Header.Get("X-Aid-Receipt") == "" || resp.Header.Get("Content-Type") != "application/json" {
				t.Errorf("%v %d %v %s", err, resp.StatusCode, resp.Header, got)
			}
		})
		t.Run(usage+"/not JSON", func(t *testing.T) {
			x.use("mistral", func(w http.ResponseWriter, _ *http.Request) {
				io.WriteString(w, "<html>hello from proxy-3.internal</html>")
			})
			resp, got, err := x.post(t, path, chat)
			if err != nil || resp.StatusCode != 502 || !json.Valid(got) || bytes.Contains(got, []byte("internal")) {
				t.Errorf("%v %d %s", err, resp.StatusCode, got)
			}
		})
		t.Run(usage+"/large", func(t *testing.T) {
			text := strings.Repeat("a long answer. ", 5<<20/15)
			x.use("anthropic", func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				fmt.Fprintf(w, `{"id":"m","type":"message","role":"assistant","model":"m","content":[{"type":"text","text":%q}],"stop_reason":"end_turn","usage":{"input_tokens":1,"output_tokens":2}}`, text)
			})
			resp, got, err := x.post(t, path, chat)
			if err != nil || resp.StatusCode != 200 || !bytes.Contains(got, []byte(text)) || resp.ContentLength != int64(len(got)) {
				t.Errorf("%v %d, %d bytes", err, resp.StatusCode, len(got))
			}
		})
		t.Run(usage+"/too large", func(t *testing.T) {
			x.use("anthropic", func(w http.ResponseWriter, _ *http.Request) {
				text := bytes.Repeat([]byte("a long answer. "), 2<<20)
				w.Header().Set("Content-Type", "application/json")
				w.Header().Set("Content-Length", strconv.Itoa(len(text)))
				w.Write(text)
			})
			resp, got, err := x.post(t, path, chat)
			if err != nil || resp.StatusCode != 502 || !bytes.Contains(got, []byte(`"code":"answer_too_large"`)) {
				t.Errorf("%v %d, %.200s", err, resp.StatusCode, got)
			}
			idle(t)
		})
		t.Run(usage+"/nothing is there", func(t *testing.T) {
			x.use("anthropic", func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) })
			resp, got, err := x.post(t, path, chat)
			var e struct{ Error struct{ Type string } }
			if err != nil || resp.StatusCode != 503 || json.Unmarshal(got, &e) != nil || e.Error.Type != "api_error" {
				t.Errorf("%v %d %s", err, resp.StatusCode, got)
			}
		})
		t.Run(usage+"/custom", func(t *testing.T) {
			x.use("custom", func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/v1/serve/m" {
					w.WriteHeader(404)
					io.WriteString(w, `{"fault":"nothing is at `+r.URL.Path+`"}`)
					return
				}
				w.Header().Set("Content-Type", "application/x-ndjson")
				for _, line := range []string{`{"choices":[{"delta":{"content":"Hel"}}]}`, `{"choices":[{"delta":{"content":"lo"}}],"meta":{"in":4}}`} {
					io.WriteString(w, line+"\n")
					http.NewResponseController(w).Flush()
				}
			})
			const want = `data: {"choices":[{"delta":{"content":"Hel"}}]}` + "\n\n" + `data: {"choices":[{"delta":{"content":"lo"}}],"meta":{"in":4}}` + "\n\ndata: [DONE]\n\n"
			resp, got, err := x.post(t, path, streamed)
			if err != nil || string(got) != want || resp.Header.Get("Content-Type") != "text/event-stream" {
				t.Errorf("%v %s", err, got)
			}
			resp, got, err = x.post(t, path, strings.Replace(streamed, `"m"`, `"other"`, 1))
			if err != nil || resp.StatusCode != 404 || !bytes.Contains(got, []byte(`"message":"nothing is at /v1/serve/other"`)) {
				t.Errorf("%v %d %s", err, resp.StatusCode, got)
			}
		})
		t.Run(usage+"/not translated", func(t *testing.T) {
			// The same endpoint with a provider of the same format: no byte is changed.
			const answer = `{"id":"c", "object":"chat.completion","model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}`
			x.use("openai", func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				io.WriteString(w, answer)
			})
			if _, got, err := x.post(t, path, chat); err != nil || string(got) != answer {
				t.Errorf("%v %s", err, got)
			}
		})
	}
}

// until reads until want has come, and returns everything read.
func until(t *testing.T, r io.Reader, want string) (all []byte) {
	t.Helper()
	b := make([]byte, 4096)
	for !bytes.Contains(all, []byte(want)) {
		n, err := r.Read(b)
		if all = append(all, b[:n]...); err != nil && !bytes.Contains(all, []byte(want)) {
			t.Fatalf("%v after %s", err, all)
		}
	}
	return all
}

// reading begins a streamed response on a separate connection, which Close breaks.
func reading(t *testing.T, x *translators, body string) io.ReadCloser {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "POST", x.gateway+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+x.key)
	req.Header.Set("Content-Type", "application/json")
	tr := &http.Transport{DialContext: (&net.Dialer{}).DialContext}
	t.Cleanup(tr.CloseIdleConnections)
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("%d %s", resp.StatusCode, b)
	}
	return resp.Body
}
