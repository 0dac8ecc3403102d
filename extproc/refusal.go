package extproc

import (
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
)

// The words of refusals: what the caller reads, and which status makes an
// official SDK raise which exception.

func (p refusal) error() *provider.Error {
	return &provider.Error{Status: p.status, Type: errorType(p.status), Code: p.code, Message: p.message}
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

func unauthenticated(code, message string) *provider.Error {
	return refusal{http.StatusUnauthorized, code, message}.error()
}

func forbidden(code, message string) *provider.Error {
	return refusal{http.StatusForbidden, code, message}.error()
}

// unavailable is ours to mend: SDKs try again by themselves.
func unavailable(code, message string) *provider.Error {
	e := refusal{http.StatusServiceUnavailable, code, message}.error()
	e.RetryAfter = time.Second
	return e
}

func tooLarge(limit int64) *provider.Error {
	return refusal{http.StatusRequestEntityTooLarge, "request_too_large", fmt.Sprintf("The request is larger than %d bytes.", limit)}.error()
}

// denied is what policy's decision is to the caller: its first reason, which is
// the one that policy puts first. It names the model, which policy does not.
func denied(d policy.Decision, model string) *provider.Error {
	if len(d.Reasons) == 0 {
		return forbidden("not_permitted", "No policy permits this request.")
	}
	r := d.Reasons[0]
	message := r.Message
	if message == "" {
		message = "The request is refused by policy: " + strings.ReplaceAll(r.Code, "_", " ") + "."
	}
	switch r.Code {
	case "model_not_allowed":
		message += " Asked for: " + strconv.Quote(clip(model, 128)) + "."
	case "key_revoked", "key_expired":
		return unauthenticated(r.Code, message)
	case "policy_error", "policy_timeout":
		return unavailable(r.Code, message) // not a no, but no answer: ours to mend
	}
	return forbidden(r.Code, message)
}

// policyID is the policy that the refusal rests on, if it rests on one.
func (x *exchange) policyID() string {
	if x.effect == policy.Allow || len(x.decision.Reasons) == 0 {
		return ""
	}
	return x.decision.Reasons[0].PolicyID
}

// recordable is s as it may stand in the record or a log: bounded, valid UTF-8,
// and nothing at all if it holds one of our secrets.
func recordable(s string, n int) string {
	if hasSecret(s) {
		return "[redacted]"
	}
	return clip(s, n)
}

// clip bounds what a client or a provider may put into the record.
func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// listed is a list for a header: bounded, and it says so.
func listed(names []string) string {
	const most = 2 << 10
	out := ""
	for i, name := range names {
		if len(out)+len(name) > most {
			return out + ", and " + strconv.Itoa(len(names)-i) + " more"
		}
		if i > 0 {
			out += ", "
		}
		out += name
	}
	return out
}

// seconds is d in whole seconds, rounded up: who waits that long waits enough.
func seconds(d time.Duration) int64 {
	n := int64(d / time.Second)
	if d%time.Second > 0 {
		n++
	}
	return n
}

// levelOf makes only what somebody should look at loud.
func levelOf(outcome string) slog.Level {
	switch outcome {
	case outcomeFailed, outcomeUnrecorded:
		return slog.LevelError
	case outcomeCut:
		return slog.LevelInfo
	default:
		return slog.LevelDebug
	}
}

// globbed says whether one of patterns, in which "*" stands for anything, matches
// the model. It is the rule of policy's baseline, for listing what it would allow.
func globbed(patterns []string, model string) bool {
	for _, p := range patterns {
		if policy.Matches(p, model) {
			return true
		}
	}
	return false
}

// mayUse says whether the caller's agent and key list the model.
func mayUse(c identity.Caller, model string) bool {
	return globbed(c.Agent.AllowedModels, model) && (len(c.Key.AllowedModels) == 0 || globbed(c.Key.AllowedModels, model))
}
