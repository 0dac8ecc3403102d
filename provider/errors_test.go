package provider_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ai-identity/ai-identity/provider"
)

// TestEncode shows one error in each API's format.
func TestEncode(t *testing.T) {
	e := &provider.Error{Status: 403, Type: "permission_error", Code: "model_not_allowed", Message: `No "x" </script>` + "\n", Param: "model", RetryAfter: 1500 * time.Millisecond}
	for _, c := range []struct {
		format provider.Format
		want   string
	}{
		{provider.FormatOpenAI, `{"error":{"message":"No \"x\" </script>\n","type":"permission_error","param":"model","code":"model_not_allowed","request_id":"req-1","policy_id":"pol_1"}}`},
		{provider.FormatAnthropic, `{"type":"error","error":{"type":"permission_error","message":"No \"x\" </script>\n","code":"model_not_allowed","param":"model","policy_id":"pol_1"},"request_id":"req-1"}`},
		{provider.FormatGemini, `{"error":{"code":403,"message":"No \"x\" </script>\n","status":"PERMISSION_DENIED","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"model_not_allowed","domain":"ai-identity","metadata":{"param":"model","policy_id":"pol_1","request_id":"req-1"}},{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"2s"}]}}`},
		{provider.FormatCohere, `{"id":"req-1","message":"No \"x\" </script>\n","code":"model_not_allowed","policy_id":"pol_1"}`},
		{provider.FormatMistral, `{"object":"error","message":"No \"x\" </script>\n","type":"permission_error","param":"model","code":"model_not_allowed","request_id":"req-1","policy_id":"pol_1"}`},
		{provider.Format(99), `{"error":{"message":"No \"x\" </script>\n","type":"permission_error","param":"model","code":"model_not_allowed","request_id":"req-1","policy_id":"pol_1"}}`},
	} {
		if d := cmp.Diff(c.want, string(c.format.Encode(e, "req-1", "pol_1"))); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.format, d)
		}
	}
	if got := string(provider.FormatOpenAI.Encode(&provider.Error{Status: 400, Type: "t", Code: "c", Message: "m"}, "", "")); got != `{"error":{"message":"m","type":"t","param":null,"code":"c"}}` {
		t.Error(got)
	}
}

// The SDKs must not repeat a request that would be rejected again.
func TestFinal(t *testing.T) {
	for _, status := range []int{400, 401, 403, 404, 405, 413, 415, 422} {
		if e := (&provider.Error{Status: status}); !e.Final() {
			t.Errorf("%d may be repeated", status)
		}
	}
	for _, status := range []int{402, 408, 409, 429, 500, 502, 503, 504} {
		if e := (&provider.Error{Status: status}); e.Final() {
			t.Errorf("%d is final", status)
		}
	}
	if e := (&provider.Error{Status: 403, RetryAfter: time.Second}); e.Final() {
		t.Error("a rejection that names a time to come back is final")
	}
}

// TestEncodeNoThread: Anthropic's SDKs read error.details, and then send the whole
// conversation.
func TestEncodeNoThread(t *testing.T) {
	ep, params, _ := provider.Match("POST", "/v1/messages")
	_, e := provider.Parse(ep, params, "application/json", "beta=true", []byte(`{"model":"m","max_tokens":1,"messages":[],"thread":{"type":"create"}}`))
	if e == nil {
		t.Fatal("a thread is accepted")
	}
	var v struct {
		Error struct {
			Details struct {
				ErrorCode   string   `json:"error_code"`
				Unsupported []string `json:"unsupported"`
			}
		}
	}
	if err := json.Unmarshal(provider.FormatAnthropic.Encode(e, "req-1", ""), &v); err != nil {
		t.Fatal(err)
	}
	if d := v.Error.Details; d.ErrorCode != "thread_unsupported_request" || !slices.Equal(d.Unsupported, []string{"thread"}) {
		t.Errorf("%+v", d)
	}
}

// TestEncodeStatuses: each status has the error type that the API defines for it, and every
// message is a string.
func TestEncodeStatuses(t *testing.T) {
	anthropic := map[int]string{400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error", 404: "not_found_error", 405: "invalid_request_error",
		413: "request_too_large", 415: "invalid_request_error", 429: "rate_limit_error", 500: "api_error", 502: "api_error", 503: "overloaded_error", 504: "timeout_error", 529: "overloaded_error"}
	gemini := map[int]string{400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 402: "PERMISSION_DENIED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 405: "UNIMPLEMENTED", 409: "ABORTED", 413: "INVALID_ARGUMENT", 415: "INVALID_ARGUMENT",
		429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 501: "UNIMPLEMENTED", 502: "UNAVAILABLE", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
	for _, message := range []string{"x", `"`, "\\", "\x00\x1b[2J", "\xff", "{}", "\u202e", strings.Repeat("y", 1000)} {
		for status := range gemini {
			for f := provider.FormatOpenAI; f <= provider.FormatMistral; f++ {
				b := f.Encode(&provider.Error{Status: status, Type: "t", Code: "c", Message: message}, message, message)
				var v struct {
					Error struct {
						Type   string
						Status string
						Code   any
					}
				}
				if err := json.Unmarshal(b, &v); err != nil || strings.ContainsAny(string(b), "\n\x1b\x00") {
					t.Fatalf("%s: %s: %v", f, b, err)
				}
				if f == provider.FormatAnthropic && v.Error.Type != anthropic[status] && anthropic[status] != "" {
					t.Errorf("%d is %s", status, v.Error.Type)
				}
				if f == provider.FormatGemini && (v.Error.Status != gemini[status] || v.Error.Code != float64(status)) {
					t.Errorf("%d is %s", status, v.Error.Status)
				}
			}
		}
	}
}

func TestFormatOf(t *testing.T) {
	for path, want := range map[string]provider.Format{
		"": 0, "/": 0, "/v1/chat/completions": 0, "/v1/models/gpt-4o": 0, "/v1/whatever": 0,
		"/v1/messages": provider.FormatAnthropic, "/v1/messages/batches": provider.FormatAnthropic, "/v1/messagesx": 0,
		"/v1beta/models": provider.FormatGemini, "/v1/models/g:generateContent": provider.FormatGemini, "/v1alpha/x": provider.FormatGemini,
		"/v2/chat": provider.FormatCohere, "/v1/ocr": provider.FormatMistral, "/v1/fim/completions": provider.FormatMistral,
	} {
		if got := provider.FormatOf(path); got != want {
			t.Errorf("%q is %s, want %s", path, got, want)
		}
	}
}
