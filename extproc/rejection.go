package extproc

import (
	"log/slog"
	"net/http"
	"strconv"

	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/verdict"
)

func unauthenticated(code, message string) *provider.Error {
	return verdict.Refuse(http.StatusUnauthorized, code, message)
}

// policyID is the policy that caused a rejection, or "".
func (x *exchange) policyID() string {
	if x.effect == policy.Allow {
		return ""
	}
	return x.verdict.PolicyID()
}

// listed joins names for a header. A long list is cut, and ends with the number of omitted
// names.
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

// levelOf returns the log level of an outcome. Only failures are errors. A failure that was
// already logged as an error when it happened is not logged as an error again.
func (x *exchange) levelOf(outcome string) slog.Level {
	switch outcome {
	case verdict.OutcomeFailed:
		if x.logged {
			return slog.LevelDebug
		}
		return slog.LevelError
	case verdict.OutcomeCut:
		return slog.LevelInfo
	default:
		return slog.LevelDebug
	}
}
