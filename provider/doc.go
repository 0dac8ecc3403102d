// Package provider implements the wire formats of LLM APIs: the content of a request, its
// destination and credential, and the usage in a response.
//
//	Match     method and path        → Endpoint; a path that is not in the table is rejected
//	Decode    content-encoding, body → the plain body, bounded
//	Parse     endpoint, plain body   → Call: the input of the decision
//	Resolve   Call                   → Provider, of a Registry
//	Forward   Provider, Call         → cluster, path, headers: what is sent
//	NewResponseReader Call, Provider         → reads usage from the response as it passes
//
// If the provider has another format than the caller, Forward translates the request, and
// Forward.NewResponseReader translates the response back: see translated.go and package
// translate.
//
// # The bytes evaluated are the bytes sent
//
// Call.Body is the slice that was parsed. It is never serialized again, so the order of
// keys in schemas and the digits of numbers are kept. Therefore the parser must read a body
// as every other parser would. It accepts strict JSON only: RFC 8259 with the uniqueness of
// RFC 7493 (see parse.go for the whole list).
//
// Objects with an evaluated field may not have a key that another parser could take for
// that field. Examples are "Model", "model\u0000", and letters that look or normalize
// alike. In those objects every name is plain ASCII, as in every API here. Other objects
// (schemas, arguments, metadata) may be any JSON.
//
// Two things change the body. A translation is made from the same bytes and from nothing
// else. The setting inject_usage, which is off by default, requests usage. See Settings and
// Forward.
//
// # Dependencies
//
// The package has no lookups, clocks or environment. Every function depends only on its
// arguments. The functions in postgres.go take a transaction.
package provider
