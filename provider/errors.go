package provider

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

// Error is a rejection, as the caller of an API gets it.
type Error struct {
	Status  int    // the HTTP status
	Type    string // OpenAI's: "invalid_request_error", …
	Code    string // our identifier for programs: "model_not_found"
	Message string // for people. It may quote a name from the request, never a secret.
	Param   string // the field with the error, as "messages[2].content"; may be empty

	// RetryAfter is the time after which to try again; 0: not known.
	RetryAfter time.Duration
	// Hopeless says that no retry within minutes can pass, whatever the status says.
	Hopeless bool
}

// Error is for logs.
func (e *Error) Error() string { return strconv.Itoa(e.Status) + " " + e.Code + ": " + e.Message }

// Final reports whether the same request would be rejected again. The SDKs of OpenAI and
// Anthropic, and Claude Code, stop their retries at "x-should-retry: false".
func (e *Error) Final() bool {
	if e.Hopeless {
		return true
	}
	switch e.Status {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed,
		http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusMisdirectedRequest, http.StatusUnprocessableEntity,
		http.StatusUpgradeRequired, http.StatusRequestHeaderFieldsTooLarge:
		return e.RetryAfter == 0
	}
	return false
}

// UnusableStatus is a class of a provider's responses that must not reach a caller. The
// error replaces them.
type UnusableStatus struct {
	From, To int // the statuses, inclusive
	Except   int // a status in between that may pass; 0: none
	Error    Error
}

// UnusableStatuses are all of them. extproc replaces these responses, and Envoy does on
// routes where extproc does not receive responses.
var UnusableStatuses = []UnusableStatus{
	// The caller's key is valid. The provider rejects the gateway's, and its error may quote it.
	{From: http.StatusUnauthorized, To: http.StatusUnauthorized, Error: Error{Status: http.StatusBadGateway, Type: "api_error", Code: "provider_unauthorized",
		Message: "The provider rejected the gateway's credential. Your key is valid. An administrator must renew the provider's credential."}},
	// A client that follows a redirect leaves the gateway with the prompt and its key: HTTP
	// clients remove only "authorization".
	{From: 300, To: 399, Except: http.StatusNotModified, Error: Error{Status: http.StatusBadGateway, Type: "api_error", Code: "provider_redirects",
		Message: "The provider sent a redirect, which the gateway does not follow. An administrator must correct the provider's base URL."}},
	// Only 101 comes here, which was not requested: the bytes after it would be in another
	// protocol. Envoy keeps the other 1xx.
	{From: 100, To: 199, Error: Error{Status: http.StatusBadGateway, Type: "api_error", Code: "provider_protocol",
		Message: "The provider did not respond in HTTP. Try again, or contact an administrator."}},
}

// Unusable returns the error that replaces a provider's response with the status, or nil.
func Unusable(status int) *Error {
	for _, u := range UnusableStatuses {
		if u.From <= status && status <= u.To && status != u.Except {
			e := u.Error
			return &e
		}
	}
	return nil
}

const invalidRequest = "invalid_request_error"

// bad returns an error with status 400.
func bad(code, param, message string) *Error {
	return &Error{Status: http.StatusBadRequest, Type: invalidRequest, Code: code, Param: param, Message: message}
}

// Format is a family of requests, answers and errors.
type Format uint8

// The formats. The zero value is the one that most clients understand.
const (
	FormatOpenAI Format = iota
	FormatAnthropic
	FormatGemini
	FormatCohere
	FormatMistral
)

func (f Format) String() string {
	names := [...]string{"openai", "anthropic", "gemini", "cohere", "mistral"}
	if int(f) < len(names) {
		return names[f]
	}
	return "unknown"
}

// Encode writes e in the format's own error type, so that its SDKs raise the matching
// exception. requestID and policyID may be empty.
//
// The shapes are those of the public documentation:
// https://platform.openai.com/docs/guides/error-codes,
// https://docs.anthropic.com/en/api/errors,
// https://cloud.google.com/apis/design/errors,
// https://docs.cohere.com/reference/errors, and what api.mistral.ai sends.
func (f Format) Encode(e *Error, requestID, policyID string) []byte {
	var v any
	switch f {
	case FormatAnthropic:
		v = anthropicError{Type: "error", RequestID: requestID,
			Error: anthropicDetail{Type: anthropicType(e.Status), Message: e.Message, Code: e.Code, Param: e.Param, PolicyID: policyID, Details: noThread(e)}}
	case FormatGemini:
		g := geminiError{}
		g.Error.Code, g.Error.Message, g.Error.Status = e.Status, e.Message, geminiStatus(e.Status)
		info := geminiDetail{Kind: "type.googleapis.com/google.rpc.ErrorInfo", Reason: e.Code, Domain: "ai-identity", Metadata: map[string]string{}}
		for name, value := range map[string]string{"request_id": requestID, "policy_id": policyID, "param": e.Param} {
			if value != "" {
				info.Metadata[name] = value
			}
		}
		g.Error.Details = append(g.Error.Details, info)
		if e.RetryAfter > 0 {
			g.Error.Details = append(g.Error.Details, geminiDetail{Kind: "type.googleapis.com/google.rpc.RetryInfo",
				RetryDelay: strconv.FormatInt(int64((e.RetryAfter+time.Second-1)/time.Second), 10) + "s"})
		}
		v = g
	case FormatCohere:
		v = cohereError{ID: requestID, Message: e.Message, Code: e.Code, PolicyID: policyID}
	case FormatMistral:
		v = mistralError{Object: "error", Message: e.Message, Type: e.Type, Param: orNull(e.Param), Code: e.Code, RequestID: requestID, PolicyID: policyID}
	default:
		v = openAIError{openAIDetail{Message: e.Message, Type: e.Type, Param: orNull(e.Param), Code: e.Code, RequestID: requestID, PolicyID: policyID}}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil { // strings and numbers only: no error is possible
		return []byte(`{"error":{"message":"internal error","type":"api_error","code":"internal_error","param":null}}`)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

type openAIError struct {
	Error openAIDetail `json:"error"`
}

type openAIDetail struct {
	Message   string  `json:"message"`
	Type      string  `json:"type"`
	Param     *string `json:"param"`
	Code      string  `json:"code"`
	RequestID string  `json:"request_id,omitempty"`
	PolicyID  string  `json:"policy_id,omitempty"`
}

type anthropicError struct {
	Type      string          `json:"type"`
	Error     anthropicDetail `json:"error"`
	RequestID string          `json:"request_id,omitempty"`
}

type anthropicDetail struct {
	Type     string `json:"type"`
	Message  string `json:"message"`
	Code     string `json:"code,omitempty"`
	Param    string `json:"param,omitempty"`
	PolicyID string `json:"policy_id,omitempty"`

	Details *anthropicDetails `json:"details,omitempty"`
}

type anthropicDetails struct {
	ErrorCode   string   `json:"error_code"`
	Unsupported []string `json:"unsupported"`
}

// noThread is the error on which Anthropic's SDKs continue without a thread. Their tool
// runners ask the provider to keep the conversation. On this error they send the whole
// conversation instead, which policy can evaluate (anthropic 2.14, lib/threads).
func noThread(e *Error) *anthropicDetails {
	if e.Code != codeStored || e.Param != "thread" {
		return nil
	}
	return &anthropicDetails{ErrorCode: "thread_unsupported_request", Unsupported: []string{"thread"}}
}

type geminiError struct {
	Error struct {
		Code    int            `json:"code"`
		Message string         `json:"message"`
		Status  string         `json:"status"`
		Details []geminiDetail `json:"details"`
	} `json:"error"`
}

type geminiDetail struct {
	Kind       string            `json:"@type"`
	Reason     string            `json:"reason,omitempty"`
	Domain     string            `json:"domain,omitempty"`
	Metadata   map[string]string `json:"metadata,omitempty"`
	RetryDelay string            `json:"retryDelay,omitempty"`
}

type cohereError struct {
	ID       string `json:"id,omitempty"`
	Message  string `json:"message"`
	Code     string `json:"code,omitempty"`
	PolicyID string `json:"policy_id,omitempty"`
}

type mistralError struct {
	Object    string  `json:"object"`
	Message   string  `json:"message"`
	Type      string  `json:"type"`
	Param     *string `json:"param"`
	Code      string  `json:"code"`
	RequestID string  `json:"request_id,omitempty"`
	PolicyID  string  `json:"policy_id,omitempty"`
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// anthropicType is the error type that Anthropic documents for a status.
func anthropicType(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "authentication_error"
	case http.StatusPaymentRequired:
		return "billing_error"
	case http.StatusForbidden:
		return "permission_error"
	case http.StatusNotFound:
		return "not_found_error"
	case http.StatusRequestEntityTooLarge:
		return "request_too_large"
	case http.StatusTooManyRequests:
		return "rate_limit_error"
	case http.StatusServiceUnavailable, 529:
		return "overloaded_error"
	case http.StatusGatewayTimeout:
		return "timeout_error"
	}
	if status >= 500 {
		return "api_error"
	}
	return invalidRequest
}

// geminiStatus is the google.rpc.Code for a status.
func geminiStatus(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "UNAUTHENTICATED"
	case http.StatusForbidden, http.StatusPaymentRequired:
		return "PERMISSION_DENIED"
	case http.StatusNotFound:
		return "NOT_FOUND"
	case http.StatusConflict:
		return "ABORTED"
	case http.StatusTooManyRequests:
		return "RESOURCE_EXHAUSTED"
	case http.StatusNotImplemented, http.StatusMethodNotAllowed:
		return "UNIMPLEMENTED"
	case http.StatusServiceUnavailable, http.StatusBadGateway:
		return "UNAVAILABLE"
	case http.StatusGatewayTimeout:
		return "DEADLINE_EXCEEDED"
	}
	if status >= 500 {
		return "INTERNAL"
	}
	return "INVALID_ARGUMENT"
}
