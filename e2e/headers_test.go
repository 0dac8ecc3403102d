package e2e_test

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"testing"
)

// The same headers of a provider's response reach a caller, and the same statuses are
// replaced, for both sides that read usage.
func TestHeadersOfProviders(t *testing.T) {
	const chat, path = `{"model":"m","messages":[{"role":"user","content":"hi"}]}`, "/v1/chat/completions"
	secret := []string{
		"X-Aid-Dropped", "X-Aid-Anything", "X-Agent-Id", "X-Agent-Trust", "Access-Control-Allow-Origin", "Access-Control-Allow-Credentials", "Set-Cookie",
		"Refresh", "Link", "Location", "Strict-Transport-Security", "Clear-Site-Data", "X-Ratelimit-Remaining-Requests", "Anthropic-Ratelimit-Tokens-Limit",
		"Openai-Organization", "Cf-Ray", "X-Unknown", "Www-Authenticate", "Server-Timing", "Content-Typf", "Content-Type-X", "Dat", "Datee", "Retry-After-M",
	}
	for _, usage := range []string{"stream", "envoy"} {
		x := translating(t, usage)
		for _, status := range []int{200, 400, 401, 429, 500, 301, 302, 307, 308} {
			t.Run(usage+"/"+strconv.Itoa(status), func(t *testing.T) {
				x.use("openai", func(w http.ResponseWriter, _ *http.Request) {
					for _, name := range secret {
						w.Header().Set(name, "of-the-provider")
					}
					w.Header().Set("X-Aid-Decision", "of-the-provider")
					w.Header().Set("X-Aid-Receipt", "of-the-provider")
					w.Header().Set("Content-Type", "application/json")
					w.Header().Set("X-Named", "in-the-settings")
					w.Header().Set("Retry-After", "7")
					w.Header().Set("Openai-Processing-Ms", "12")
					w.WriteHeader(status)
					io.WriteString(w, `{"error":{"message":"words-of-the-provider"}}`)
				})
				resp, got, err := x.post(t, path, chat)
				if err != nil {
					t.Fatal(err)
				}
				want, code := status, ""
				switch {
				case status == 401:
					want, code = 502, "provider_unauthorized"
				case status/100 == 3:
					want, code = 502, "provider_redirects"
				}
				if resp.StatusCode != want || !bytes.Contains(got, []byte(code)) || code != "" && bytes.Contains(got, []byte("of-the-provider")) {
					t.Errorf("%d %s, want %d %s", resp.StatusCode, got, want, code)
				}
				for name, values := range resp.Header {
					for _, v := range values {
						if v == "of-the-provider" {
							t.Errorf("%s reaches the caller", name)
						}
					}
				}
				h := resp.Header
				if h.Get("X-Aid-Decision") != "allow" || h.Get("X-Aid-Receipt") == "" || h.Get("X-Request-Id") == "" || h.Get("Content-Type") != "application/json" {
					t.Errorf("%v", h)
				}
				if code == "" && (h.Get("Retry-After") != "7" || h.Get("X-Named") != "in-the-settings" || h.Get("Openai-Processing-Ms") != "12") {
					t.Errorf("what helps the caller is gone: %v", h)
				}
			})
		}
	}
}
