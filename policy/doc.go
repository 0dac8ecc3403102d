// Package policy decides whether an agent may send a request.
//
// OPA makes every decision. Once for each request, it evaluates three modules together:
//
//   - The baseline is baseline.rego.
//   - The composition of policies is decision.rego.
//   - The policies are documents, which Compile converts to Rego.
//
// This package writes the input and reads the decision. If a decision is missing, it denies.
//
//	Check     validates a document
//	Compile   an org's policies → Bundle, immutable
//	Decide    Input → Decision; Deny is the zero value
//
// The published contract is docs/policy.md. No other package imports OPA.
package policy
