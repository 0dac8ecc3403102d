package provider

import "strings"

// headerUse says when a header of a request goes on to the provider.
type headerUse uint8

const (
	unknownHeader headerUse = iota // dropped and named, unless pass_headers lists it
	neverHeader                    // dropped: a credential, the connection's, a proxy's, ours, or it chooses something
	anyHeader                      // goes on whatever the API
	openAIHeader                   // goes on in OpenAI's format
	anthropicHeader
	geminiHeader
	cohereHeader
	mistralHeader
)

// headerUses is what is known of headers; prefixes are in useOf. docs/providers.md
// shows it (see What passes), and a test compares the two.
var headerUses = map[string]headerUse{
	// HTTP, and what Envoy needs. extproc replaces some of them.
	":method": anyHeader, ":path": anyHeader, ":authority": anyHeader, ":scheme": anyHeader, "host": anyHeader,
	"accept": anyHeader, "accept-language": anyHeader, "accept-encoding": anyHeader, "content-type": anyHeader, "content-length": anyHeader, "content-encoding": anyHeader,
	"transfer-encoding": anyHeader, "user-agent": anyHeader, "x-request-id": anyHeader, "traceparent": anyHeader, "x-forwarded-proto": anyHeader,
	// The attribution of an application (OpenRouter's documentation).
	"http-referer": anyHeader, "x-title": anyHeader, "x-openrouter-title": anyHeader, "x-openrouter-categories": anyHeader,

	"openai-beta": openAIHeader, "x-client-request-id": openAIHeader, "originator": openAIHeader, "session_id": openAIHeader, "session-id": openAIHeader,
	"conversation_id": openAIHeader, "thread-id": openAIHeader, "version": openAIHeader, "x-session-affinity": openAIHeader, "x-grok-conv-id": openAIHeader,
	"anthropic-version": anthropicHeader, "anthropic-beta": anthropicHeader, "x-app": anthropicHeader, "x-claude-code-session-id": anthropicHeader,
	"x-goog-api-client": geminiHeader, "x-server-timeout": geminiHeader, "x-goog-ext-timeout": geminiHeader,
	"x-client-name": cohereHeader, "x-fern-language": cohereHeader, "x-fern-sdk-name": cohereHeader, "x-fern-sdk-version": cohereHeader, "x-fern-runtime": cohereHeader,
	"x-fern-platform": cohereHeader,

	// Credentials, and what chooses whose bill it is.
	"authorization": neverHeader, "x-api-key": neverHeader, "api-key": neverHeader, "x-goog-api-key": neverHeader, "xi-api-key": neverHeader,
	"x-auth-token": neverHeader, "x-amz-security-token": neverHeader, "private-token": neverHeader, "job-token": neverHeader, "deploy-token": neverHeader,
	"cookie": neverHeader, "cookie2": neverHeader,
	"openai-organization": neverHeader, "openai-project": neverHeader, "anthropic-workspace-id": neverHeader, "anthropic-user-profile-id": neverHeader,
	"x-goog-user-project": neverHeader, "x-hf-bill-to": neverHeader,
	// What chooses a model or server.
	"x-vertex-ai-llm-request-type": neverHeader, "x-vertex-ai-llm-shared-request-type": neverHeader, "azureml-model-deployment": neverHeader,
	"x-ai-eg-model": neverHeader, "x-goog-request-params": neverHeader, "x-model": neverHeader, "x-model-provider-id": neverHeader, "x-target-url": neverHeader,
	"anthropic-dangerous-direct-browser-access": neverHeader,
	// What changes which part of an answer comes, or whether one comes at all.
	"x-goog-fieldmask": neverHeader, "x-goog-field-mask": neverHeader, "if-none-match": neverHeader, "if-match": neverHeader, "if-modified-since": neverHeader,
	"if-unmodified-since": neverHeader, "if-range": neverHeader, "range": neverHeader, "prefer": neverHeader, "idempotency-key": neverHeader,
	"x-idempotency-key": neverHeader, "cache-control": neverHeader, "pragma": neverHeader,
	// Of the connection and of proxies.
	"connection": neverHeader, "proxy-connection": neverHeader, "keep-alive": neverHeader, "te": neverHeader, "trailer": neverHeader, "upgrade": neverHeader,
	"expect": neverHeader, "http2-settings": neverHeader, "forwarded": neverHeader, "via": neverHeader, "x-real-ip": neverHeader, "x-client-ip": neverHeader,
	"x-cluster-client-ip": neverHeader, "true-client-ip": neverHeader, "fastly-client-ip": neverHeader, "x-original-url": neverHeader, "x-original-uri": neverHeader,
	"x-rewrite-url": neverHeader, "x-original-host": neverHeader, "x-host": neverHeader, "x-http-method": neverHeader, "x-http-method-override": neverHeader,
	"x-method-override": neverHeader, "tracestate": neverHeader, "baggage": neverHeader, "b3": neverHeader, "origin": neverHeader, "referer": neverHeader, "dnt": neverHeader,
	"priority": neverHeader,
}

// neverPrefixes begin the names of headers that never go on: ours, proxies', clouds',
// and those from which other gateways take orders.
var neverPrefixes = []string{"x-aid-", "x-agent-", "x-envoy-", "x-forwarded-", "x-b3-", "cf-", "sec-", "proxy-", "x-ms-client-", "x-ms-oai-", "x-goog-iam-", "x-goog-authenticated-",
	"x-litellm-", "x-portkey-", "helicone-", "x-ai-eg-", "access-control-"}

// useOf is what is done with a header. name is in lower case.
func useOf(name string) headerUse {
	if u, ok := headerUses[name]; ok {
		return u
	}
	if strings.HasPrefix(name, "x-stainless-") {
		return anyHeader // what OpenAI's and Anthropic's SDKs say of themselves
	}
	for _, p := range neverPrefixes {
		if strings.HasPrefix(name, p) {
			return neverHeader
		}
	}
	if secretName(name) {
		return neverHeader
	}
	return unknownHeader
}

// secretName says that a header is called a credential. It is one to some server.
func secretName(name string) bool {
	for _, s := range []string{"authorization", "-api-key", "-apikey", "-auth-token", "-access-token", "-token", "-secret", "-credential", "-credentials", "-password", "-session-key"} {
		if strings.HasSuffix(name, s) {
			return true
		}
	}
	return strings.Contains(name, "secret") || strings.Contains(name, "password") || name == "apikey" || name == "token"
}

// HeaderGoes says whether a client's header goes on to the provider of an endpoint of
// the format, as far as it is known before the provider is. A header that does not go
// is hidden, which cannot be changed, or unknown, which pass_headers may list.
func HeaderGoes(f Format, name string) (goes, hidden bool) {
	switch u := useOf(name); u {
	case anyHeader:
		return true, false
	case neverHeader:
		// x-envoy-* cannot be removed here: the listener has removed the client's, and
		// the route removes what Envoy has added since (see xds).
		return strings.HasPrefix(name, "x-envoy-"), true
	case unknownHeader:
		return false, false
	default:
		return u == headerUseOf(f), false
	}
}

func headerUseOf(f Format) headerUse {
	switch f {
	case FormatOpenAI:
		return openAIHeader
	case FormatAnthropic:
		return anthropicHeader
	case FormatGemini:
		return geminiHeader
	case FormatCohere:
		return cohereHeader
	case FormatMistral:
		return mistralHeader
	default:
		return unknownHeader
	}
}

// passableHeader says why a name cannot be in settings.pass_headers, or "".
func passableHeader(name string) string {
	switch {
	case !headerName.MatchString(name) && name != "session_id" && name != "conversation_id":
		return "it must be a header's name in lower case: letters, digits and hyphens"
	case reservedHeader(name):
		return "this header is Envoy's, HTTP's or ours"
	case credentialHeader(name), secretName(name):
		return "this header carries credentials: the provider's is given as its credential, and callers' never leave"
	case useOf(name) == neverHeader:
		return "this header chooses a server, a model, an account or the form of the answer, and never passes"
	case useOf(name) == anyHeader:
		return "this header passes already"
	}
	return ""
}
