// Package policy decides whether an agent may send a request.
//
// OPA makes every decision. It evaluates three parts together, once for each request: the
// baseline (baseline.rego), how policies compose (decision.rego), and the policies, which
// Compile turns from documents into Rego. This package writes the input, reads the
// decision, and denies whenever a decision is missing.
//
//	Check     is this document one that we understand, whole?
//	Compile   an org's policies → Bundle, immutable
//	Decide    Input → Decision; Deny is the zero value
//
// What is here is a published contract: docs/policy.md. It is the only package that imports
// OPA.
package policy
