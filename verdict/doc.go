// Package verdict evaluates one request of one caller in one org. It joins the leaves
// (identity, provider, policy, budget, audit). It uses neither Envoy nor Postgres, so a
// decision can be made and tested without a stream.
//
//	org.go      the configuration of an org, and the interfaces Limiter and Pricer
//	request.go  the request, as plain values
//	judge.go    Judge: parse, decide, limit; the zero Verdict rejects
//	input.go    the policy input, from a request and back from a recorded entry
//	models.go   the lists of models, which are answered here
//	entry.go    the two audit entries of a request
//	refusal.go  the errors that a rejected caller gets
//
// # What holds
//
// A Verdict allows only if three fields agree: its Effect is Allow, its Refusal is nil and
// its Err is nil. The zero Verdict therefore rejects. Limits are counted last: a request
// that is rejected for another reason is not counted. The instant of a decision is a
// parameter (Request.Time). Policy sees that instant, and the entry states it.
package verdict
