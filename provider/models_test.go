package provider_test

import (
	"testing"

	"github.com/ai-identity/ai-identity/provider"
)

func TestEncodeModels(t *testing.T) {
	models := []provider.Model{{ID: "a", OwnedBy: "one"}, {ID: "b/c", OwnedBy: "two"}}
	for _, c := range []struct {
		format           provider.Format
		list, none, only string
	}{
		{provider.FormatOpenAI,
			`{"object":"list","data":[{"id":"a","object":"model","created":0,"owned_by":"one","type":"base","capabilities":{}},{"id":"b/c","object":"model","created":0,"owned_by":"two","type":"base","capabilities":{}}]}`,
			`{"object":"list","data":[]}`,
			`{"id":"a","object":"model","created":0,"owned_by":"one","type":"base","capabilities":{}}`},
		{provider.FormatAnthropic,
			`{"data":[{"type":"model","id":"a","display_name":"a","created_at":"1970-01-01T00:00:00Z","lifecycle":"active"},{"type":"model","id":"b/c","display_name":"b/c","created_at":"1970-01-01T00:00:00Z","lifecycle":"active"}],"has_more":false,"first_id":"a","last_id":"b/c"}`,
			`{"data":[],"has_more":false,"first_id":null,"last_id":null}`,
			`{"type":"model","id":"a","display_name":"a","created_at":"1970-01-01T00:00:00Z","lifecycle":"active"}`},
		{provider.FormatMistral,
			`{"object":"list","data":[{"id":"a","object":"model","created":0,"owned_by":"one","type":"base","capabilities":{}},{"id":"b/c","object":"model","created":0,"owned_by":"two","type":"base","capabilities":{}}]}`,
			`{"object":"list","data":[]}`,
			`{"id":"a","object":"model","created":0,"owned_by":"one","type":"base","capabilities":{}}`},
		{provider.FormatCohere,
			`{"models":[{"name":"a"},{"name":"b/c"}]}`,
			`{"models":[]}`,
			`{"name":"a"}`},
		{provider.FormatGemini,
			`{"models":[{"name":"models/a","displayName":"a"},{"name":"models/b/c","displayName":"b/c"}]}`,
			`{"models":[]}`,
			`{"name":"models/a","displayName":"a"}`},
	} {
		list, err := c.format.EncodeModels(models)
		if err != nil || string(list) != c.list {
			t.Errorf("%s: %v\n got %s\nwant %s", c.format, err, list, c.list)
		}
		none, err := c.format.EncodeModels(nil)
		if err != nil || string(none) != c.none {
			t.Errorf("%s: %v\n got %s\nwant %s", c.format, err, none, c.none)
		}
		only, err := c.format.EncodeModel(models[0])
		if err != nil || string(only) != c.only {
			t.Errorf("%s: %v\n got %s\nwant %s", c.format, err, only, c.only)
		}
	}
}

func TestModelsFormat(t *testing.T) {
	for _, c := range []struct {
		path, header string
		want         provider.Format
	}{
		{"/v1/models", "", provider.FormatOpenAI}, {"/v1/models", "anthropic-version", provider.FormatAnthropic}, {"/v1/models", "x-goog-api-key", provider.FormatGemini},
		{"/v1/models/a", "", provider.FormatOpenAI}, {"/v1/models/a", "anthropic-version", provider.FormatAnthropic}, {"/v1/models/a", "x-goog-api-key", provider.FormatGemini},
		{"/mistral/v1/models", "anthropic-version", provider.FormatMistral}, {"/mistral/v1/models/org%2Fa", "", provider.FormatMistral},
		{"/v1beta/models", "", provider.FormatGemini}, {"/v1alpha/models/a", "anthropic-version", provider.FormatGemini},
	} {
		ep, _, ok := provider.Match("GET", c.path)
		if !ok {
			t.Fatal(c.path)
		}
		if got := provider.ModelsFormat(ep, func(h string) bool { return h == c.header }, ""); got != c.want {
			t.Errorf("%s with %q: %s, want %s", c.path, c.header, got, c.want)
		}
	}
	ep, _, _ := provider.Match("GET", "/v1/models")
	for agent, want := range map[string]provider.Format{
		"mistral-client-python/3.7.0": provider.FormatOpenAI, "cohere/7.3.1": provider.FormatCohere, "cohere-ai/8.1.0": provider.FormatCohere,
		"OpenAI/Python 3.54.0": provider.FormatOpenAI, "coherence/1": provider.FormatOpenAI,
	} {
		if got := provider.ModelsFormat(ep, func(string) bool { return false }, agent); got != want {
			t.Errorf("%s: %s, want %s", agent, got, want)
		}
	}
}
