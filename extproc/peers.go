package extproc

import (
	"github.com/ai-identity/ai-identity/audit"
	"net/netip"

	"github.com/ai-identity/ai-identity/provider"
)

// A request without a known caller belongs to no organization, so it has no audit entry.
// Otherwise a client without a key could cause an fsync with each request. It is counted
// instead, by cause.

// Causes that share one code. For every other rejection the cause is its code.
const (
	causeMalformed = "malformed_api_key" // not a whole key, or a key of another kind
	causeUnknown   = "unknown_api_key"   // a well-formed key that no agent of the node's organizations has
)

// countUnknown counts a request that was rejected before its caller was known.
func (x *exchange) countUnknown(refused *provider.Error) {
	if x.s.c.Unknown == nil {
		return
	}
	cause := refused.Code
	if cause == "invalid_api_key" {
		if cause = causeUnknown; x.presented == "" {
			cause = causeMalformed
		}
	}
	x.s.c.Unknown(cause, x.peer())
}

// peer is the other end of the client's connection, as Envoy authenticated it. It is
// invalid if Envoy did not send an address, as over a Unix socket.
func (x *exchange) peer() netip.Addr {
	a, _ := netip.ParseAddr(x.req.ClientIP)
	return a
}

// Repeats counts rejections of keys that may not be used, so that a revoked key buys no
// fsync for each request. *audit.Writer is one.
type Repeats interface {
	// Rejected notes that a rejection was recorded.
	Rejected(audit.Rejection)
	// Repeated counts a rejection if an equal one was recorded lately. False: it must be
	// recorded.
	Repeated(r audit.Rejection, peer netip.Addr) bool
}

// rejection is what equal rejections of an inactive caller have in common.
func (x *exchange) rejection(e *provider.Error) audit.Rejection {
	return audit.Rejection{Org: x.caller.Agent.OrgID, AgentID: x.caller.Agent.ID, KeyID: x.caller.Key.ID, Cause: e.Code}
}

// repeated counts the rejection of an inactive caller, if an equal one was recorded.
func (x *exchange) repeated(e *provider.Error) bool {
	x.counted = x.inactive && x.s.c.Repeats != nil && x.s.c.Repeats.Repeated(x.rejection(e), x.peer())
	return x.counted
}

// rejected notes that the rejection of an inactive caller is recorded.
func (x *exchange) rejected() {
	if x.inactive && x.s.c.Repeats != nil && x.verdict.Refusal != nil {
		x.s.c.Repeats.Rejected(x.rejection(x.verdict.Refusal))
	}
}
