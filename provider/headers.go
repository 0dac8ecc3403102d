package provider

import (
	"slices"
	"strings"
)

// headerUse is the rule for a header of a request.
type headerUse uint8

const (
	unknownHeader headerUse = iota // dropped and listed, unless pass_headers has it
	neverHeader                    // dropped: a caller's key, a header of the connection or of a proxy, or an internal one
	strayHeader                    // dropped and listed: it has a credential or selects something
	anyHeader                      // passes in every API
	openAIHeader                   // passes in OpenAI's format
	anthropicHeader
	geminiHeader
	cohereHeader
	mistralHeader
)

// headerUses are the rules for known headers; prefixes are in useOf. docs/providers.md
// shows them (see What passes).
var headerUses = map[string]headerUse{
	// HTTP, and headers that Envoy needs. extproc replaces some of them.
	":method": anyHeader, ":path": anyHeader, ":authority": anyHeader, ":scheme": anyHeader, "host": anyHeader,
	"accept": anyHeader, "accept-language": anyHeader, "accept-encoding": anyHeader, "content-type": anyHeader, "content-length": anyHeader, "content-encoding": anyHeader,
	"transfer-encoding": anyHeader, "user-agent": anyHeader, "x-request-id": anyHeader, "traceparent": anyHeader, "x-forwarded-proto": anyHeader,
	// The attribution of an application (OpenRouter's documentation).
	"http-referer": anyHeader, "x-title": anyHeader, "x-openrouter-title": anyHeader, "x-openrouter-categories": anyHeader,

	"openai-beta": openAIHeader, "x-client-request-id": openAIHeader, "originator": openAIHeader, "session_id": openAIHeader, "session-id": openAIHeader,
	"conversation_id": openAIHeader, "thread-id": openAIHeader, "version": openAIHeader, "x-session-affinity": openAIHeader, "x-grok-conv-id": openAIHeader,
	"anthropic-version": anthropicHeader, "anthropic-beta": anthropicHeader, "x-app": anthropicHeader, "x-claude-code-session-id": anthropicHeader,
	"x-goog-api-client": geminiHeader, "x-server-timeout": geminiHeader, "x-goog-ext-timeout": geminiHeader,
	"x-client-name": cohereHeader,

	// Credentials, and headers that select the account to bill.
	"authorization": neverHeader, "x-api-key": neverHeader, "api-key": neverHeader, "x-goog-api-key": neverHeader, "xi-api-key": neverHeader,
	"x-auth-token": strayHeader, "x-amz-security-token": strayHeader, "private-token": strayHeader, "job-token": strayHeader, "deploy-token": strayHeader,
	"cookie": neverHeader, "cookie2": neverHeader,
	"openai-organization": strayHeader, "openai-project": strayHeader, "anthropic-workspace-id": strayHeader, "anthropic-user-profile-id": strayHeader,
	"x-goog-user-project": strayHeader, "x-hf-bill-to": strayHeader,
	// Headers that select a model or server.
	"x-vertex-ai-llm-request-type": strayHeader, "x-vertex-ai-llm-shared-request-type": strayHeader, "azureml-model-deployment": strayHeader,
	"x-ai-eg-model": strayHeader, "x-goog-request-params": strayHeader, "x-model": strayHeader, "x-model-provider-id": strayHeader, "x-target-url": strayHeader,
	"anthropic-dangerous-direct-browser-access": neverHeader,
	// Headers that select a part of a response, or make it conditional.
	"x-goog-fieldmask": strayHeader, "x-goog-field-mask": strayHeader, "if-none-match": strayHeader, "if-match": strayHeader, "if-modified-since": strayHeader,
	"if-unmodified-since": strayHeader, "if-range": strayHeader, "range": strayHeader, "prefer": strayHeader, "idempotency-key": strayHeader,
	"x-idempotency-key": strayHeader, "cache-control": neverHeader, "pragma": neverHeader,
	// Headers of the connection and of proxies.
	"connection": neverHeader, "proxy-connection": neverHeader, "keep-alive": neverHeader, "te": neverHeader, "trailer": neverHeader, "upgrade": neverHeader,
	"expect": neverHeader, "http2-settings": neverHeader, "forwarded": neverHeader, "via": neverHeader, "x-real-ip": neverHeader, "x-client-ip": neverHeader,
	"x-cluster-client-ip": neverHeader, "true-client-ip": neverHeader, "fastly-client-ip": neverHeader, "x-original-url": neverHeader, "x-original-uri": neverHeader,
	"x-rewrite-url": neverHeader, "x-original-host": neverHeader, "x-host": neverHeader, "x-http-method": neverHeader, "x-http-method-override": neverHeader,
	"x-method-override": neverHeader, "tracestate": neverHeader, "baggage": neverHeader, "b3": neverHeader, "origin": neverHeader, "referer": neverHeader, "dnt": neverHeader,
	"priority": neverHeader,
}

// neverPrefixes are the prefixes of internal headers and of proxies' headers. strayPrefixes
// are those of headers that control clouds and other gateways.
var (
	neverPrefixes = []string{"x-aid-", "x-agent-", "x-envoy-", "x-forwarded-", "x-b3-", "cf-", "sec-", "proxy-", "x-ms-client-", "access-control-"}
	strayPrefixes = []string{"x-ms-oai-", "x-goog-iam-", "x-goog-authenticated-", "x-litellm-", "x-portkey-", "helicone-", "x-ai-eg-"}
)

// useOf returns the rule for a header. name is in lower case.
func useOf(name string) headerUse {
	if u, ok := headerUses[name]; ok {
		return u
	}
	if strings.HasPrefix(name, "x-stainless-") || strings.HasPrefix(name, ":") {
		return anyHeader // OpenAI's and Anthropic's SDKs describe themselves with it
	}
	if strings.HasPrefix(name, "x-fern-") {
		return cohereHeader // Cohere's SDK describes itself with it
	}
	for _, p := range neverPrefixes {
		if strings.HasPrefix(name, p) {
			return neverHeader
		}
	}
	for _, p := range strayPrefixes {
		if strings.HasPrefix(name, p) {
			return strayHeader
		}
	}
	if secretName(name) {
		return strayHeader
	}
	return unknownHeader
}

// secretName reports whether the name of a header means a credential. Some server may use
// it as one.
func secretName(name string) bool {
	for _, s := range []string{"authorization", "-api-key", "-apikey", "-auth-token", "-access-token", "-token", "-secret", "-credential", "-credentials", "-password", "-session-key"} {
		if strings.HasSuffix(name, s) {
			return true
		}
	}
	return strings.Contains(name, "secret") || strings.Contains(name, "password") || name == "apikey" || name == "token"
}

// A HeaderHandling is how a request's header is processed.
type HeaderHandling uint8

const (
	// HeaderChosen is forwarded if the provider's settings.pass_headers lists it. It is also
	// forwarded if it belongs to the endpoint's format and the request is not translated.
	HeaderChosen HeaderHandling = iota
	HeaderHidden                // it is never forwarded
	HeaderKept                  // it is forwarded
)

// HeaderOf returns how a request's header is processed. name is in lower case. Three kinds
// of header are special:
//
//   - x-envoy-* is kept, since Envoy's mutation rules do not allow its removal here. The
//     listener removes the client's, and the route removes what Envoy has added (see xds).
//   - x-forwarded-proto is kept, since Envoy finds no route without it. The route removes it.
//   - x-request-id and traceparent are replaced.
func HeaderOf(name string) HeaderHandling {
	switch useOf(name) {
	case anyHeader:
		return HeaderKept
	case neverHeader:
		if strings.HasPrefix(name, "x-envoy-") {
			return HeaderKept
		}
		return HeaderHidden
	default:
		return HeaderChosen
	}
}

// drops returns the chosen headers of a call that p does not get.
func (p Provider) drops(c Call, s Settings) []string {
	if len(c.Headers) == 0 {
		return nil
	}
	translated := p.translates(c)
	var out []string
	for _, name := range c.Headers {
		of := useOf(name)
		if of != unknownHeader && of == headerUseOf(c.Endpoint.Format) && !translated || of != strayHeader && slices.Contains(s.PassHeaders, name) {
			continue
		}
		out = append(out, name)
	}
	return out
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

// passableResponseHeader returns why a name cannot be in settings.pass_response_headers, or
// "". Cookies, credentials, redirects and instructions to browsers never pass.
func passableResponseHeader(name string) string {
	switch {
	case !headerName.MatchString(name) || len(name) > 64:
		return "it must be a header's name in lower case: letters, digits and hyphens, at most 64"
	case reservedHeader(name):
		return "this header is reserved for Envoy, HTTP or the gateway"
	case credentialHeader(name), secretName(name):
		return "this header carries credentials, and never leaves"
	}
	switch name {
	case "set-cookie", "set-cookie2", "location", "content-location", "refresh", "link", "alt-svc", "www-authenticate", "strict-transport-security",
		"clear-site-data", "report-to", "reporting-endpoints", "nel", "server", "content-security-policy", "content-md5", "digest", "content-range",
		"authentication-info", "service-worker-allowed", "sourcemap", "x-frame-options":
		return "this header is a cookie, a redirect or an instruction to browsers, and never passes"
	}
	if strings.HasPrefix(name, "access-control-") || strings.HasPrefix(name, "cross-origin-") {
		return "this header is an instruction to browsers, and never passes"
	}
	return ""
}

// publicHeader returns why a name cannot be in settings.public_headers, or "".
func publicHeader(name string) string {
	if !headerName.MatchString(name) {
		return "it must be a header's name in lower case: letters, digits and hyphens"
	}
	return ""
}

// passableHeader returns why a name cannot be in settings.pass_headers, or "".
func passableHeader(name string) string {
	switch {
	case !headerName.MatchString(name) && name != "session_id" && name != "conversation_id":
		return "it must be a header's name in lower case: letters, digits and hyphens"
	case reservedHeader(name):
		return "this header is reserved for Envoy, HTTP or the gateway"
	case credentialHeader(name), secretName(name):
		return "this header carries credentials. Set the provider's with its credential; callers' credentials are never forwarded"
	case useOf(name) == neverHeader, useOf(name) == strayHeader:
		return "this header chooses a server, a model, an account or the format of the response, and never passes"
	case useOf(name) == anyHeader:
		return "this header passes already"
	}
	return ""
}
