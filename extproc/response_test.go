package extproc

import (
	"testing"

	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
)

// TestReading: two things decide where a response is read. They are Envoy's configuration,
// and whether the organization has a provider for which the endpoint is translated.
func TestReading(t *testing.T) {
	registry := func(kind string) *provider.Registry {
		p := provider.Provider{ID: "prov_1", OrgID: "org_1", Name: "one", Kind: kind, BaseURL: "https://h.example", Models: []string{"m"}}
		p.Cluster = provider.ClusterName(p)
		r, err := provider.NewRegistry([]provider.Provider{p}, policy.Matches)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	chat, _, _ := provider.Match("POST", "/v1/chat/completions")
	responses, _, _ := provider.Match("POST", "/v1/responses")
	mode := func(m filterv3.ProcessingMode_BodySendMode) *extprocv3.ProtocolConfiguration {
		return &extprocv3.ProtocolConfiguration{ResponseBodyMode: m}
	}
	for _, c := range []struct {
		name     string
		envoy    *extprocv3.ProtocolConfiguration
		kind     string
		endpoint provider.Endpoint
		want     reading
	}{
		{"Envoy said nothing", nil, "openai", chat, byEnvoy},
		{"Envoy reads, nothing to translate", mode(filterv3.ProcessingMode_NONE), "openai", chat, byEnvoy},
		{"Envoy reads, to be translated", mode(filterv3.ProcessingMode_NONE), "anthropic", chat, requested},
		{"Envoy reads, an endpoint that is never translated", mode(filterv3.ProcessingMode_NONE), "anthropic", responses, byEnvoy},
		{"Envoy sends, nothing to translate", mode(filterv3.ProcessingMode_STREAMED), "openai", chat, configured},
		{"Envoy sends, to be translated", mode(filterv3.ProcessingMode_STREAMED), "anthropic", chat, configured},
		{"Envoy said nothing, to be translated", nil, "gemini", chat, requested},
	} {
		r := readingOf(c.envoy).forEndpoint(registry(c.kind), c.endpoint)
		if r != c.want || r.here() != (c.want != byEnvoy) {
			t.Errorf("%s: %d, want %d", c.name, r, c.want)
		}
	}
	var zero reading
	if zero.here() {
		t.Error("the zero value reads a response that may not come")
	}
}
