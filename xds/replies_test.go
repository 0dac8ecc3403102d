package xds_test

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ai-identity/ai-identity/envoy/envoytest"
	"github.com/ai-identity/ai-identity/provider"
)

// Without extproc, a real Envoy responds. On each path it must choose the same format as
// provider.FormatOf, and write the same body as Encode.
func TestRepliesOfEnvoy(t *testing.T) {
	dir := envoytest.SocketDir(t)
	in := input("stream", providers()...)
	in.Gateway = fmt.Sprintf("127.0.0.1:%d", envoytest.Port(t))
	static, err := build(t, in).Static()
	if err != nil {
		t.Fatal(err)
	}
	bootstrap, err := os.ReadFile(writeBootstrap(t, dir, static))
	if err != nil {
		t.Fatal(err)
	}
	e := envoytest.Start(t, envoytest.Config{Bootstrap: bootstrap, Admin: filepath.Join(dir, "admin.sock")})
	e.WaitLive(t)

	type reply struct {
		status int
		header http.Header
		body   []byte
	}
	ask := func(path string) reply {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+in.Gateway+"/", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Opaque = "//" + in.Gateway + path // unchanged by Go
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return reply{resp.StatusCode, resp.Header, b}
	}
	decode := func(b []byte) (v any) {
		t.Helper()
		if err := json.Unmarshal(b, &v); err != nil {
			t.Errorf("%v in %s", err, b)
		}
		return v
	}
	want := func(path string, e provider.Error) {
		t.Helper()
		got := ask(path)
		id := got.header.Get("X-Request-Id")
		if got.status != e.Status || got.header.Get("Content-Type") != "application/json" || id == "" {
			t.Errorf("%s: %d, %v", path, got.status, got.header)
		}
		format := provider.FormatOf(strings.Split(path, "?")[0])
		if d := cmp.Diff(decode(format.Encode(&e, id, "")), decode(got.body)); d != "" {
			t.Errorf("%s, in the format of %s (-want +got):\n%s", path, format, d)
		}
	}
	failed := provider.Error{Status: 503, Type: "api_error", Code: "decision_unavailable", Message: "The gateway's sidecar does not respond, so the request was not evaluated and not forwarded. Try again shortly.", RetryAfter: time.Second}

	for _, ep := range provider.Endpoints() {
		path := strings.NewReplacer("{version}", "v1beta", "{model}", "some-model").Replace(ep.Path)
		want(path, failed)
		want(path+"?alt=sse&x=/v1/messages:y", failed)
	}
	for _, path := range []string{"/", "/v1", "/v1/messages/", "/v1/messagesx", "/v1/complete/x", "/v1/models/", "/v1/models/g:generateContent", "/v1/models/g:Generate", "/v1/models/g:countTokens2", "/v1/models/ft:gpt:aB", "/v1/models/a:b:cD", "/v1/modelsx/g:y", "/v1beta", "/v1alpha/x", "/v2", "/v2/", "/v1/ocr/x", "/v1/fim", "/v1/fim/x", "/mistral", "/mistral/x", "/mistralx/v1/ocr", "/v1/mistral/x"} {
		want(path, failed)
	}
	// Also on other combinations of the words in the conditions.
	words := []string{"/", "/v1", "/v2", "/v1beta", "/v1alpha", "/messages", "/complete", "/models", "/fim", "/ocr", "/x", ":", "?", "x"}
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		path := "/v1"
		for range 1 + random.IntN(4) {
			path += words[random.IntN(len(words))]
		}
		if strings.Contains(path, "//") {
			continue // Envoy merges slashes first
		}
		want(path, failed)
	}
}
