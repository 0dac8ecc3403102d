// Package verdict evaluates one request of one caller in one org. It joins the
// leaves (identity, provider, policy, budget, audit) and knows neither Envoy nor
// Postgres, so a decision can be made and tested without a stream.
//
//	org.go      what an org decides with, and the roles that others fill: Limiter, Pricer
//	request.go  what is asked, as plain values
//	judge.go    Judge: parse, decide, limit; the zero Verdict rejects
//	input.go    the policy input, from a request and back from a recorded entry
//	models.go   the lists of models, which are answered here
//	entry.go    the two audit entries of a request
//	refusal.go  the errors that a rejected caller gets
//
// # What holds
//
// A Verdict allows only if it says so in three places: its Effect is Allow, it has
// no Refusal and it has no Err. The zero Verdict therefore rejects. Limits are
// taken last: a request that is rejected for another reason takes nothing from
// them. The instant of a decision is a parameter (Request.Time), and it is the one
// that policy sees and that the entry states.
package verdict
