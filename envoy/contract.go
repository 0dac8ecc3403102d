package envoy

import "slices"

// This file is the contract between extproc and Envoy's configuration: every name that both
// use. extproc reads and sets these names. Package xds writes them into listeners and
// routes. filter.go has the parts of a configuration that use them.

// Headers of a request. Envoy removes a client's own HeaderRoute, and overwrites
// its HeaderPeer and HeaderProtocol, before anything reads them. The routes remove HeaderRoute and
// HeaderAnswer before a request goes to a provider.
const (
	// HeaderRoute selects the route to a provider. extproc sets it to a cluster's name.
	HeaderRoute = "x-aid-route"
	// HeaderAnswer is set by extproc on a request whose response it reads, where
	// Envoy is configured to read usage.
	HeaderAnswer = "x-aid-answer"
	// HeaderPeer has the address of the connection's other end. An attribute would have it
	// too, at a tenth of the throughput (measured, 1.40). If the peer is on this machine,
	// x-forwarded-for has the machine's own address.
	HeaderPeer = "x-aid-peer"
	// HeaderProtocol has the client's version of HTTP. extproc rejects HTTP/1.0. Envoy's own
	// rejection would end the connection without a byte (measured, 1.40).
	HeaderProtocol = "x-aid-protocol"
	// HeaderEgress has the governed host that an intercepted connection is for. Envoy's chain
	// for that host sets it. The gateway's chain removes it, so that no client can send it.
	HeaderEgress = "x-aid-egress"
	// HeaderConnect has the authority of the CONNECT request through which an intercepted
	// connection came; empty: there was none. Both chains overwrite or remove a client's.
	HeaderConnect = "x-aid-connect"
	// HeaderCanary carries the nonce of a readiness check, both ways.
	HeaderCanary = "x-aid-canary"
	// HeaderRequestID is made by Envoy for each request. A client's own is dropped.
	HeaderRequestID = "x-request-id"
)

// Headers that identify the agent to a provider.
const (
	HeaderAgentID          = "x-agent-id"
	HeaderAgentFingerprint = "x-agent-fingerprint"
)

// Headers that only the gateway sets on a response.
const (
	HeaderDecision = "x-aid-decision"
	HeaderReceipt  = "x-aid-receipt"
	HeaderDropped  = "x-aid-dropped"
	HeaderAdded    = "x-aid-added"
)

// PrefixOwn and PrefixAgent are the beginnings of header names that are reserved
// for the gateway. No client and no provider can set such a header.
const (
	PrefixOwn   = "x-aid-"
	PrefixAgent = "x-agent-"
)

// MetadataNamespace is the dynamic metadata that extproc leaves for Envoy.
const (
	MetadataNamespace = "aid"
	// MetadataReceipt is the receipt. The routes put it on responses whose headers
	// extproc does not see.
	MetadataReceipt = "receipt"
	// MetadataFormat is the caller's error format, if the provider's path has another.
	MetadataFormat = "format"
	// UsageNamespace is the typed metadata in which Envoy publishes the usage it read.
	UsageNamespace = "envoy.ai.token_usage"
)

// DetailsPrefix begins the response code details of each response from extproc. Envoy's
// local replies pass these unchanged.
const DetailsPrefix = "aid_"

// Attributes of a response that Envoy sends to extproc.
const (
	AttributeDetails = "response.code_details"
	AttributeStatus  = "response.code"
)

// The values of xds.Input.Usage: the process that reads usage from responses.
const (
	UsageStream = "stream" // extproc, from the body
	UsageEnvoy  = "envoy"  // Envoy; extproc gets the result
)

// responseHeaders are the only headers of a provider's response that reach the caller. All
// others are removed. Examples are cookies, redirects, CORS, instructions to browsers, the
// provider's rate limits and account names, and names that are reserved for the gateway.
var responseHeaders = []string{
	"content-type", "content-length", "content-encoding", "content-language", "content-disposition", "transfer-encoding",
	"date", "cache-control", "etag", "vary", "deprecation", "sunset",
	"retry-after", "retry-after-ms", "x-should-retry",
	HeaderRequestID, "request-id", "apim-request-id", "x-amzn-requestid",
	"openai-processing-ms", "openai-version", "x-gemini-service-tier",
}

// PassesToCaller reports whether a header of a provider's response reaches the caller.
// further are the names that the provider's settings add. Names are in lower case.
func PassesToCaller(name string, further []string) bool {
	return slices.Contains(responseHeaders, name) || slices.Contains(further, name)
}
