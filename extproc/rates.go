package extproc

import (
	"strconv"
	"time"

	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/verdict"
)

// rateHeaders sets the headers about the limits on requests and tokens: those of the caller's
// SDK, and RateLimit (draft-ietf-httpapi-ratelimit-headers-10). USD caps have no header,
// since others share them.
func (x *exchange) rateHeaders(m *mutation) {
	policies, figures := "", ""
	for _, of := range []struct {
		kind        budget.Kind
		name, words string
	}{{budget.Requests, "rpm", "requests"}, {budget.Tokens, "tpm", "tokens"}} {
		l, ok := tightest(x.verdict.Counts, of.kind)
		if !ok {
			continue
		}
		left := max(0, l.Left)
		limit, remaining := strconv.FormatInt(l.Max, 10), strconv.FormatInt(left, 10)
		if x.req.Format == provider.FormatAnthropic {
			m.header("anthropic-ratelimit-"+of.words+"-limit", limit)
			m.header("anthropic-ratelimit-"+of.words+"-remaining", remaining)
			m.header("anthropic-ratelimit-"+of.words+"-reset", x.verdict.Time.Add(l.Reset).UTC().Format(time.RFC3339))
		} else {
			m.header("x-ratelimit-limit-"+of.words, limit)
			m.header("x-ratelimit-remaining-"+of.words, remaining)
			m.header("x-ratelimit-reset-"+of.words, l.Reset.Round(time.Millisecond).String())
		}
		if policies != "" {
			policies, figures = policies+", ", figures+", "
		}
		policies += `"` + of.name + `";q=` + limit + ";w=60"
		figures += `"` + of.name + `";r=` + remaining + ";t=" + strconv.FormatInt(verdict.Seconds(l.Reset), 10)
	}
	if policies != "" {
		m.header("ratelimit-policy", policies)
		m.header("ratelimit", figures)
	}
}

// tightest is the limit of a kind with the least left.
func tightest(limits []budget.Limit, k budget.Kind) (least budget.Limit, ok bool) {
	for _, l := range limits {
		if l.Kind == k && (!ok || l.Left < least.Left) {
			least, ok = l, true
		}
	}
	return least, ok
}
