// Package extproc is the request path: it answers Envoy's external processing
// filter, one gRPC stream for each HTTP exchange. It knows Envoy and no database.
//
//	request headers    identify   who is asking: one agent key, in one of four headers
//	request body       parse      which operation, of which model, exactly these bytes
//	                   decide     may they: key and agent, policy, limits; deny is zero
//	                   record     the decision is on disk before anything is enforced
//	                   enforce    route, credential, headers, body; or a refusal
//	response headers   follow     say who decided; hide what is the provider's business
//	response body      inspect    read usage as it passes, or say it in the caller's words; keep our credential inside
//	stream end         settle     what it cost and how it ended; the second entry
//
// exchange.go is in that order, one function a phase; reply.go builds every
// message for Envoy; request.go reads the headers; server.go admits, cuts and
// drains exchanges.
//
// # What holds for every exchange
//
// Nothing is enforced before it is durably recorded, and a phase that fails
// denies. A refusal of a known caller is recorded too, before it is sent; a
// request that names no known caller belongs to no org, has no record to be
// written to, and is only counted. If the record cannot be written, the answer is
// 503 and nothing is forwarded.
//
// Envoy takes a cleanly closed stream for "go on without me", whatever its
// failure_mode_allow says. So [Server.Process] returns nil in one place, and only
// for an exchange that has been answered to its end: an end of stream, a
// cancelled context and a panic before that are all errors. (That a request
// without a verdict has no route is xds's half of the same rule.)
//
// # Who owns what
//
// All state of an exchange is in one struct that one goroutine owns: the one that
// reads the stream, answers, and settles. Process itself only waits, for that
// goroutine or for the order to cut: a handler that is blocked in Recv cannot be
// interrupted otherwise, and this costs a goroutine per exchange but nothing per
// message. The registry of live exchanges (live.go) is the only thing shared, and
// its mutex guards only membership.
//
// # When headers are enough
//
// What the headers alone show to be wrong (no known caller, two credentials, an
// upgrade, an unknown endpoint, a revoked key, a content-length over the cap) is
// refused at once, so that nobody makes Envoy buffer a body that will not be used.
// What is allowed is allowed only at the end of the request: in the headers phase
// if the request has no body, else on the one message that carries the whole of
// it. That needs request_body_mode BUFFERED, and Process checks that it is.
//
// # Answers in other words
//
// A request for a provider with a format of its own is translated after the
// decision on it, and its answer back (package provider/translate). A stream is
// translated as it comes. Any other answer has Envoy's mode changed to BUFFERED in
// the reply to its headers: what was to be an answer may turn out to be an error,
// and its status must not be gone by then. Where Envoy is configured to read usage
// itself, the reply to the request's headers asks for the answer, if the org has a
// provider for which the endpoint is translated: the model is not known yet.
//
// # The canary
//
// /readyz must show that traffic really passes through us. The readiness check
// asks [Server.Canary] for a nonce, sends a request with "x-aid-canary: nonce" to
// Envoy's own listener, and waits: an exchange that carries a registered nonce is
// answered 204 by us, and the nonce is marked seen. Nobody else can know a nonce;
// an unknown one is treated like any other header of ours from outside: removed.
package extproc
