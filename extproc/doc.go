// Package extproc is the request path: it serves Envoy's external processing filter, with
// one gRPC stream for each HTTP exchange. It depends on Envoy's API and on no database.
//
//	request headers    identify   the caller: one agent key, in one of four headers
//	request body       parse      the operation, the model and the exact bytes
//	                   decide     key and agent, policy, limits; the zero decision denies
//	                   record     the decision is on disk before anything is enforced
//	                   enforce    route, credential, headers, body; or a rejection
//	response headers   follow     add the decision; remove the provider's private headers
//	response body      inspect    read usage, translate if needed, redact our credential
//	stream end         complete   cost and outcome: the second audit entry
//
// exchange.go is in that order, with one function for each phase. reply.go builds every
// message for Envoy. request.go reads the headers. server.go admits, cuts and drains
// exchanges.
//
// # What holds for every exchange
//
// Nothing is enforced before it is durably recorded, and a phase that fails denies. The
// rejection of a known caller is also recorded before it is sent. A request without a known
// caller belongs to no org, so it has no audit log and is only counted. If the audit log
// cannot be written, the response is 503 and nothing is forwarded.
//
// Envoy continues without ext_proc when a stream is closed cleanly, for every value of
// failure_mode_allow. So [Server.Process] returns nil in one place: for an exchange that
// was answered to its end. Before that point, an end of stream, a cancelled context and a
// panic are errors. Package xds has the other half of this rule: a request without a
// decision has no route.
//
// # Ownership
//
// All state of an exchange is in one struct, owned by one goroutine. That goroutine reads
// the stream, replies, and completes the exchange. Process only waits for that goroutine,
// or for the order to cut the exchange. A handler that is blocked in Recv cannot be
// interrupted in another way. This costs one goroutine for each exchange, and nothing for
// each message. Only the registry of live exchanges (live.go) is shared, and its mutex
// guards only membership.
//
// # When headers are enough
//
// Some errors are in the headers: no known caller, two credentials, an upgrade, an unknown
// endpoint, a revoked key, a content-length over the limit. Such requests are rejected at
// once, so that Envoy does not buffer a body that will not be used. A request is allowed
// only at its end. That is in the headers phase if it has no body, and otherwise on the
// one message with the whole body. The latter needs request_body_mode BUFFERED, and
// Process verifies that mode.
//
// # Translation
//
// A request for a provider with another format is translated after the decision, and the
// response is translated back (package provider/translate). A stream is translated as it
// arrives. For any other response, the reply to its headers changes Envoy's mode to
// BUFFERED. The response may turn out to be an error, and then its status must still be
// changeable.
//
// Envoy may be configured to read usage itself. Then the reply to the request headers
// requests the response body, if the org has a provider for which the endpoint is
// translated. At that time the model is not known yet.
//
// # The canary
//
// /readyz must show that traffic passes through this process. The readiness check gets a
// nonce from [Server.Canary], sends a request with "x-aid-canary: nonce" to Envoy's own
// listener, and waits. An exchange with a registered nonce gets 204 from this package, and
// the nonce is marked as seen. A nonce is secret. An unknown one is removed, like any other
// internal header from outside.
package extproc
