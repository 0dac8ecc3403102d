package extproc

import (
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
