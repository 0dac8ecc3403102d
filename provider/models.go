package provider

import (
	"encoding/json"
	"strings"
)

// ModelsFormat returns the format in which a client expects the list of models. Four APIs
// have it at /v1/models. The SDKs of three of them always send headers that identify them.
// Mistral's SDK accepts OpenAI's format here (see openAIModel). has reports whether the request has a header.
func ModelsFormat(ep Endpoint, has func(header string) bool, userAgent string) Format {
	switch {
	case ep.Format != FormatOpenAI: // the path decides
		return ep.Format
	case has("anthropic-version"):
		return FormatAnthropic
	case has("x-goog-api-key"):
		return FormatGemini
	case strings.HasPrefix(userAgent, "cohere/"), strings.HasPrefix(userAgent, "cohere-ai/"): // Python, JavaScript
		return FormatCohere
	default:
		return FormatOpenAI
	}
}

// EncodeModels writes a list of models in the format. Only the ids and the owners of models
// are known here. So times are zero, and the names are the ids.
//
// Sources: https://platform.openai.com/docs/api-reference/models,
// https://docs.anthropic.com/en/api/models-list, https://ai.google.dev/api/models,
// https://docs.mistral.ai/api/endpoint/models, https://docs.cohere.com/reference/list-models.
func (f Format) EncodeModels(models []Model) ([]byte, error) {
	list := make([]any, len(models)) // an empty list, not null
	for i, m := range models {
		list[i] = f.model(m)
	}
	var v any
	switch f {
	case FormatAnthropic:
		page := anthropicModels{Data: list}
		if n := len(models); n > 0 {
			page.First, page.Last = &models[0].ID, &models[n-1].ID
		}
		v = page
	case FormatGemini, FormatCohere:
		v = struct {
			Models []any `json:"models"`
		}{list}
	default:
		v = struct {
			Object string `json:"object"`
			Data   []any  `json:"data"`
		}{"list", list}
	}
	return json.Marshal(v)
}

// EncodeModel writes one model.
func (f Format) EncodeModel(m Model) ([]byte, error) { return json.Marshal(f.model(m)) }

func (f Format) model(m Model) any {
	switch f {
	case FormatAnthropic:
		return anthropicModel{Type: "model", ID: m.ID, DisplayName: m.ID, CreatedAt: "1970-01-01T00:00:00Z", Lifecycle: "active"}
	case FormatGemini:
		return geminiModel{Name: "models/" + m.ID, DisplayName: m.ID}
	case FormatCohere:
		return cohereModel{Name: m.ID}
	default:
		return openAIModel{ID: m.ID, Object: "model", OwnedBy: m.OwnedBy, Type: "base"}
	}
}

// openAIModel is a model for OpenAI's clients and Mistral's. Mistral's SDK requires the
// last two members, and OpenAI's ignores them.
type openAIModel struct {
	ID           string   `json:"id"`
	Object       string   `json:"object"`
	Created      int64    `json:"created"`
	OwnedBy      string   `json:"owned_by"`
	Type         string   `json:"type"`
	Capabilities struct{} `json:"capabilities"`
}

type anthropicModel struct {
	Type        string `json:"type"`
	ID          string `json:"id"`
	DisplayName string `json:"display_name"`
	CreatedAt   string `json:"created_at"` // the epoch, as the API's reference defines for an unknown time
	Lifecycle   string `json:"lifecycle"`
}

type anthropicModels struct {
	Data  []any   `json:"data"`
	More  bool    `json:"has_more"`
	First *string `json:"first_id"`
	Last  *string `json:"last_id"`
}

type cohereModel struct {
	Name string `json:"name"`
}

type geminiModel struct {
	Name        string `json:"name"`
	DisplayName string `json:"displayName"`
}
