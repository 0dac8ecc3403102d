// Package provider knows the wire formats of LLM APIs: what a request asks for,
// where it goes and as whom, and what an answer says it used.
//
//	Match     method and path        → Endpoint, or nothing: what is not in the table is refused
//	Decode    content-encoding, body → the plain body, bounded
//	Parse     endpoint, plain body   → Call: what is judged
//	Resolve   Call                   → Provider, of a Registry
//	Forward   Provider, Call         → cluster, path, headers: what is sent
//	NewResponseReader Call, Provider         → reads usage from the answer as it passes by
//
// Where the provider has another format than the caller, Forward says the request in
// its words, and Forward.NewResponseReader its answer in the caller's: see translated.go and
// package translate.
//
// # What is judged is what is sent
//
// Call.Body is the very slice that was parsed, and nothing is serialised again:
// key order of schemas and the digits of numbers survive. So the parser has to
// see what every other parser would see. It takes strict JSON only (RFC 8259 with
// the uniqueness of RFC 7493; see parse.go for the whole list) and, in each object
// that holds a field which is judged, no key that another parser might take for
// that field: not "Model", not "model\u0000", not in other letters that look or
// normalise alike. In those objects every name is plain ASCII, as in every API
// here; elsewhere (schemas, arguments, metadata) anything goes that is JSON.
//
// Two things change the body. A translation is made of the same bytes and of nothing
// else. And one setting of a provider's, off unless somebody turns it on, asks for
// usage: inject_usage. See Settings and Forward.
//
// # What is not here
//
// No lookups, no clocks, no environment: everything is a function of its
// arguments, but for postgres.go, whose functions take a transaction.
package provider
