package translate_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/provider/translate"
)

// The code and the parameter of a provider's error are scrubbed like its message.
func TestErrorsAreScrubbed(t *testing.T) {
	for _, c := range []struct{ kind, body string }{
		{translate.Mistral, `{"object":"error","message":"no","type":"bad","param":"sk-abcdefgh0123456789","code":"1"}`},
		{translate.Mistral, `{"object":"error","message":"no","type":"see http://gpu-7.internal:8000/","param":null,"code":"1"}`},
		{translate.Anthropic, `{"type":"error","error":{"type":"sk-abcdefgh0123456789","message":"no"}}`},
		{translate.Gemini, `{"error":{"code":400,"message":"no","status":"` + strings.Repeat("x", 100_000) + `"}}`},
	} {
		r, err := translate.Chat(c.kind, []byte(`{"model":"gemini-2.5-pro","messages":[{"role":"user","content":"x"}]}`), translate.Options{})
		if err != nil {
			t.Fatal(err)
		}
		a := r.Answer(400, "application/json", time.Now, func() string { return "id" })
		got := a.Chunk([]byte(c.body), true)
		if bytes.Contains(got, []byte("0123456789")) || bytes.Contains(got, []byte("internal:8000")) || len(got) > 1024 {
			t.Errorf("%.300s", got)
		}
	}
}
