package translate_test

import (
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/provider/translate"
)

// TestOwnErrors: errors of providers with OpenAI's format are kept byte for byte, without
// text that must not leave. Other text is replaced by an error.
func TestOwnErrors(t *testing.T) {
	const azure = `{"error": {"message": "filtered", "type": null, "param": "prompt", "code": "content_filter", "status": 400, "innererror": {"code": "ResponsibleAIPolicyViolation", "n": 1.50}}}`
	for _, c := range []struct {
		status     int
		body, want string
	}{
		{400, azure, azure},
		{429, `{"error":{"message":"You exceeded your quota: https://platform.openai.com/docs","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}`,
			`{"error":{"message":"You exceeded your quota: https://platform.openai.com/docs","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}`},
		{500, `{"error":{"message":"no route to gpu-7.internal:8000 (10.0.3.4)","type":"server_error","trace":["at http://10.0.3.4:99/x", "a\u00e9b"]}, "n": 1.50}`,
			`{"error":{"message":"no route to [host] ([host])","type":"server_error","trace":["at [url]","a\u00e9b"]},"n":1.50}`},
		{400, `{"object":"error","message":"too long","type":"BadRequestError","code":400}`, `{"error":{"message":"too long","type":"invalid_request_error","param":null,"code":"BadRequestError"}}`},
		{422, `{"detail":[{"loc":["body","model"],"msg":"field required"}]}`, `{"error":{"message":"body.model: field required","type":"invalid_request_error","param":null,"code":null}}`},
		{404, `{"error":"model 'llama' not found"}`, `{"error":{"message":"model 'llama' not found","type":"not_found_error","param":null,"code":null}}`},
		{502, `<html>proxy-3.internal</html>`, `{"error":{"message":"The provider responded with an error without a reason.","type":"server_error","param":null,"code":null}}`},
		{503, ``, `{"error":{"message":"The provider responded with an error without a reason.","type":"server_error","param":null,"code":null}}`},
		{500, `{"error":{"message":"` + strings.Repeat("x", 2<<20) + `"}}`, `{"error":{"message":"The provider responded with an error without a reason.","type":"server_error","param":null,"code":null}}`},
	} {
		for i := range min(len(c.body)+1, 20) {
			a := translate.Error(c.status, nil)
			got := string(a.Chunk([]byte(c.body[:i]), false)) + string(a.Chunk([]byte(c.body[i:]), true))
			if got != c.want || a.Status() != c.status || a.ContentType() != "application/json" || !a.Failed() {
				t.Fatalf("%d %.100s, cut at %d:\n%.300s\nwant\n%s", c.status, c.body, i, got, c.want)
			}
		}
	}
}
