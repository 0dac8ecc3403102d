package verdict

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
)

// Reject is the error of a rejected request. The status selects the exception that
// an official SDK raises.
func Refuse(status int, code, message string) *provider.Error {
	return &provider.Error{Status: status, Type: errorType(status), Code: code, Message: message}
}

func errorType(status int) string {
	switch {
	case status == http.StatusUnauthorized:
		return "authentication_error"
	case status == http.StatusForbidden:
		return "permission_error"
	case status == http.StatusTooManyRequests:
		return "rate_limit_error"
	case status >= 500:
		return "api_error"
	default:
		return "invalid_request_error"
	}
}

// Unavailable is an error on our side. SDKs retry it.
func Unavailable(code, message string) *provider.Error {
	e := Refuse(http.StatusServiceUnavailable, code, message)
	e.RetryAfter = time.Second
	return e
}

// Misplaced rejects a request with an AI Identity key in a wrong place.
func Misplaced(where string) *provider.Error {
	return Refuse(http.StatusBadRequest, "misplaced_credential", "An AI Identity key was found in "+where+
		". Send it as \"Authorization: Bearer …\" only, and rotate it: URLs, bodies and other headers are kept in logs.")
}

// MisplacedToken rejects a request with a workload's token in a wrong place.
func MisplacedToken(where string) *provider.Error {
	return Refuse(http.StatusBadRequest, "misplaced_credential", "A workload's token was found in "+where+
		". Send it as \"Authorization: Bearer …\" or in X-AID-Workload-Token only: URLs, bodies and other headers are kept in logs.")
}

func tooLarge(limit int64) *provider.Error {
	return Refuse(http.StatusRequestEntityTooLarge, "request_too_large", fmt.Sprintf("The request is larger than %d bytes.", limit))
}

// Inactive rejects a caller with a key or an agent that is inactive at that time. For an
// active caller it returns nil.
func Inactive(c identity.Caller, at time.Time) *provider.Error {
	err := c.ActiveAt(at)
	if err == nil {
		return nil
	}
	return Revoked(InactiveReason(err))
}

// InactiveReason returns the reason of an identity.Inactive error. It is from a fixed set,
// since it is a label of metrics.
func InactiveReason(err error) string {
	var inactive *identity.Inactive
	if errors.As(err, &inactive) && inactive.Reason != "" {
		return inactive.Reason
	}
	return "inactive"
}

// Revoked rejects a caller for a reason of InactiveReason, or for the reason of a cut.
func Revoked(reason string) *provider.Error {
	switch reason {
	case "key_expired":
		return Refuse(http.StatusUnauthorized, reason, "This API key has expired. Create or rotate to a new one.")
	case "identity_expired":
		return Refuse(http.StatusUnauthorized, reason, "The identity of this workload has expired. Bind it again.")
	case "identity_revoked":
		return Refuse(http.StatusUnauthorized, reason, "The identity of this workload was revoked.")
	case "key_revoked", "key_unknown":
		return Refuse(http.StatusUnauthorized, reason, "This API key was revoked.")
	case "overloaded":
		return Unavailable(reason, "Too many request bodies are still arriving at the gateway. Try again shortly.")
	case "shutdown":
		return Unavailable("shutting_down", "The gateway is shutting down. Try again shortly.")
	default:
		return Refuse(http.StatusForbidden, reason, "This agent may not make requests: "+strings.ReplaceAll(reason, "_", " ")+".")
	}
}

// denied is the error for a decision that does not allow. It has the first reason, which
// policy sorts first for this, and the model, which policy leaves out.
func denied(d policy.Decision, model string) *provider.Error {
	if len(d.Reasons) == 0 {
		return Refuse(http.StatusForbidden, "not_permitted", "No policy permits this request.")
	}
	r := d.Reasons[0]
	message := r.Message
	if message == "" {
		message = "The request is denied by policy: " + strings.ReplaceAll(r.Code, "_", " ") + "."
	}
	switch r.Code {
	case "model_not_allowed":
		message += " Asked for: " + strconv.Quote(provider.Clip(model, 128)) + "."
	case "key_revoked", "key_expired":
		return Refuse(http.StatusUnauthorized, r.Code, message)
	case "policy_error", "policy_timeout":
		return Unavailable(r.Code, message) // there was no decision, so a retry may succeed
	}
	return Refuse(http.StatusForbidden, r.Code, message)
}

// Seconds is d in whole seconds, rounded up, for Retry-After.
func Seconds(d time.Duration) int64 {
	n := int64(d / time.Second)
	if d%time.Second > 0 {
		n++
	}
	return n
}
