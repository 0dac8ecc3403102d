// Package policy decides whether an agent may do what it asks for.
//
// OPA decides, and nothing else does: the baseline (baseline.rego), how policies
// compose (decision.rego) and the policies themselves, which Compile turns from
// documents into Rego, are evaluated together, once for each request. This package
// writes the input, reads the decision, and denies whenever there is none.
//
//	Check     is this document one that we understand, whole?
//	Compile   an org's policies → Bundle, immutable
//	Decide    Input → Decision; Deny is the zero value
//
// What is here is a published contract: docs/policy.md. It is the only package
// that imports OPA.
package policy
