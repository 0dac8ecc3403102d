package provider

import (
	"regexp"
	"slices"
	"strconv"
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

// headers adds to f the chosen headers of the call, and the values of such headers, that p
// does not get.
func (p Provider) headers(c Call, s Settings, f *Forward) *Error {
	translated := p.translates(c)
	for _, name := range c.Headers {
		of := useOf(name)
		switch passes := slices.Contains(s.PassHeaders, name); {
		case of != strayHeader && passes:
		case of == unknownHeader || of != headerUseOf(c.Endpoint.Format) || translated:
			f.Remove = append(f.Remove, name)
		case betas[name] != nil:
			if e := c.betas(name, s, f); e != nil {
				return e
			}
		}
	}
	return nil
}

// maxBetas is the limit for the values of headers that request beta features.
const maxBetas = 64

// betas adds to f the values of a header that p does not get. p gets the rest.
func (c Call) betas(name string, s Settings, f *Forward) *Error {
	if len(c.Betas) > maxBetas {
		return bad("too_many_betas", "", "The header "+name+" has more than "+strconv.Itoa(maxBetas)+" values. So many are not recorded, and what is not recorded is not forwarded.")
	}
	var kept []string
	dropped := len(f.betas)
	for _, beta := range c.Betas {
		value, ok := strings.CutPrefix(beta, name+"=")
		switch {
		case !ok:
		case slices.Contains(betas[name], value) || slices.Contains(s.PassHeaders, beta):
			kept = append(kept, value)
		default:
			f.betas = append(f.betas, beta)
		}
	}
	switch {
	case len(kept) == 0:
		f.Remove = append(f.Remove, name)
	case len(f.betas) > dropped:
		f.Set[name] = strings.Join(kept, ",")
	}
	return nil
}

// betas are the headers that request beta features, with the values that are forwarded.
// Their features are in the request's body, which is evaluated. Other values can select
// another model, an account or a stored object. They pass only with settings.pass_headers.
//
// Sources: anthropic 2.14 (types/anthropic_beta_param.py), the beta headers of
// https://docs.anthropic.com/en/api/beta-headers and of Claude Code; openai 3.54, Codex.
var betas = map[string][]string{
	"anthropic-beta": strings.Fields("computer-use-2024-10-22 computer-use-2025-01-24 computer-use-2025-11-24 output-128k-2025-02-19 output-300k-2026-03-24 " +
		"max-tokens-3-5-sonnet-2024-07-15 mcp-client-2025-04-04 mcp-client-2025-11-20 mcp-client-2026-09-15 dev-full-thinking-2025-05-14 " +
		"interleaved-thinking-2025-05-14 redact-thinking-2026-02-12 adaptive-thinking-2026-01-28 thinking-token-count-2026-05-13 " +
		"thinking-display-updates-2026-08-18 thinking-binding-controls-2026-08-01 code-execution-2025-05-22 code-execution-2025-08-25 " +
		"context-1m-2025-08-07 context-management-2025-06-27 model-context-window-exceeded-2025-08-26 fast-mode-2026-02-01 " +
		"mid-conversation-tool-changes-2026-07-01 mid-conversation-output-config-2026-07-01 mid-conversation-system-clear-at-2026-08-21 " +
		"inline-tools-2026-09-15 compact-2026-01-12 compact-2026-09-04 structured-outputs-2025-11-13 task-budgets-2026-03-13 effort-2025-11-24 " +
		"prompt-caching-2024-07-31 prompt-caching-scope-2026-01-05 extended-cache-ttl-2025-04-11 cache-diagnosis-2026-04-07 pdfs-2024-09-25 " +
		"token-counting-2024-11-01 token-efficient-tools-2025-02-19 fine-grained-tool-streaming-2025-05-14 tool-search-tool-2025-10-19 " +
		"tool-examples-2025-10-29 advanced-tool-use-2025-11-20 web-fetch-2025-09-10 web-search-2025-03-05 search-results-2025-06-09 " +
		"claude-code-20250219 tools-2024-04-04 tools-2024-05-16"),
	"openai-beta": strings.Fields("responses=v1 responses=experimental assistants=v1 assistants=v2"),
}

// Betas returns the values of a header that requests beta features, as "name=value", and
// nil for any other header. name is in lower case.
func Betas(name, line string) (out []string) {
	if betas[name] == nil {
		return nil
	}
	for value := range strings.SplitSeq(line, ",") {
		if value = strings.Trim(value, " \t"); value != "" {
			out = append(out, name+"="+value)
		}
	}
	return out
}

// betaValue is the form of such a value in settings and in the audit log.
var betaValue = regexp.MustCompile(`^(anthropic|openai)-beta=[A-Za-z0-9][A-Za-z0-9._=-]{0,95}$`)

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
// "". Cookies, credentials, redirects, instructions to browsers and the provider's rate limits
// never pass.
func passableResponseHeader(name string) string {
	switch {
	case !headerName.MatchString(name) || len(name) > 64:
		return "it must be a header's name in lower case: letters, digits and hyphens, at most 64"
	case reservedHeader(name):
		return "this header is reserved for Envoy, HTTP or the gateway"
	case credentialHeader(name), secretName(name):
		return "this header carries credentials, and never leaves"
	case rateHeader(name):
		return "this header is about the limits of the provider's account, which all callers share, and never passes. Callers get headers about their own limits with settings.rate_headers"
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

// rateHeader reports whether a response header is about limits of the provider's account:
// x-ratelimit-remaining-tokens, anthropic-priority-input-tokens-limit,
// x-ratelimitbysize-reset, x-endpoint-monthly-call-limit. SDKs would read it as the caller's
// own limit. Retry-After is not one: it is about the request.
func rateHeader(name string) bool {
	words := strings.Split(strings.ToLower(name), "-")
	joined := strings.Join(words, "")
	return strings.Contains(joined, "ratelimit") || strings.Contains(joined, "quota") || slices.ContainsFunc(words, func(w string) bool {
		switch w {
		case "rate", "limit", "limits", "remaining", "reset", "resets", "throttle", "throttled", "throttling":
			return true
		}
		return false
	})
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
	case betaValue.MatchString(name):
		return ""
	case !headerName.MatchString(name) && name != "session_id" && name != "conversation_id":
		return "it must be a header's name in lower case: letters, digits and hyphens; or a value of one, such as anthropic-beta=files-api-2025-04-14"
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
