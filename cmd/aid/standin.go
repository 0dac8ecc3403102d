package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/ai-identity/ai-identity/provider"
)

// standInModel is the model that the stand-in of --stand-in serves.
const standInModel = "demo"

// standInCredential is the credential for the stand-in. It is valid for nothing else.
const standInCredential = "sk-demo-no-secret"

const standInSays = "Hello! I am the stand-in that --stand-in starts. I answer everything with this sentence; " +
	"your request reached me through Envoy, identified, decided and recorded."

// standInProvider is the stand-in as a provider of the default organization.
func standInProvider(address string) provider.FileProvider {
	return provider.FileProvider{
		Provider: provider.Provider{
			Name: "demo", Kind: "openai", BaseURL: "http://" + address + "/v1", Models: []string{standInModel, standInModel + "-*"}, Headers: map[string]provider.Header{},
		},
		Credential: provider.FileCredential{Secret: provider.NewSecret(standInCredential)},
	}
}

// standIn returns a provider for trying the product out. It responds to each chat completion
// with one sentence in OpenAI's format, also as a stream.
func standIn() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": []any{map[string]any{"id": standInModel, "object": "model", "owned_by": "stand-in"}}})
	})
	mux.HandleFunc("POST /v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
		var asked struct {
			Model         string
			Stream        bool
			StreamOptions struct {
				IncludeUsage bool `json:"include_usage"`
			} `json:"stream_options"`
		}
		if err := json.NewDecoder(io.LimitReader(r.Body, defaultMaxBody)).Decode(&asked); err != nil {
			standInError(w, http.StatusBadRequest, "The body is not a JSON object.")
			return
		}
		head := map[string]any{"id": "chatcmpl-stand-in", "created": time.Now().Unix(), "model": asked.Model}
		with := func(object string, more map[string]any) map[string]any {
			out := map[string]any{"object": object}
			for _, m := range []map[string]any{head, more} {
				for k, v := range m {
					out[k] = v
				}
			}
			return out
		}
		usage := map[string]any{"prompt_tokens": 12, "completion_tokens": 32, "total_tokens": 44}
		if !asked.Stream {
			writeJSON(w, http.StatusOK, with("chat.completion", map[string]any{
				"choices": []any{map[string]any{"index": 0, "finish_reason": "stop", "message": map[string]any{"role": "assistant", "content": standInSays}}},
				"usage":   usage,
			}))
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		chunk := func(more map[string]any) {
			b, err := json.Marshal(with("chat.completion.chunk", more))
			if err == nil {
				fmt.Fprintf(w, "data: %s\n\n", b)
			}
		}
		choice := func(delta map[string]any, finish any) map[string]any {
			return map[string]any{"choices": []any{map[string]any{"index": 0, "delta": delta, "finish_reason": finish}}}
		}
		chunk(choice(map[string]any{"role": "assistant", "content": standInSays}, nil))
		chunk(choice(map[string]any{}, "stop"))
		if asked.StreamOptions.IncludeUsage {
			chunk(map[string]any{"choices": []any{}, "usage": usage})
		}
		io.WriteString(w, "data: [DONE]\n\n") //nolint:errcheck // the client may have disconnected
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		standInError(w, http.StatusNotFound, "The stand-in serves chat completions only. Configure a provider with --providers.")
	})
	return mux
}

func standInError(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, map[string]any{"error": map[string]any{"message": message, "type": "invalid_request_error", "code": nil, "param": nil}})
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body) //nolint:errcheck // the client may have disconnected
}
