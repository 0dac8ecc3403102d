package api

import (
	"context"
	"errors"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/verdict"
)

// ExplainIn selects a recorded request.
type ExplainIn struct {
	RequestID string `json:"request_id" minLength:"1" maxLength:"128" doc:"The request's X-Request-ID." example:"req_01k0000000abcdefghjkmnpqrs"`
	Policies  string `json:"policies,omitzero" enum:"recorded,current" doc:"The set of policies: recorded is the set that decided the request, current the set of now. recorded if left out."`
}

// Explanation is a decision on the wire, with what each policy says.
type Explanation struct {
	RequestID string           `json:"request_id" doc:"The request." example:"req_01k0000000abcdefghjkmnpqrs"`
	Seq       int64            `json:"seq" doc:"The number of its audit entry." example:"412"`
	Time      time.Time        `json:"time" doc:"When it was decided, UTC." example:"2026-01-31T12:00:00Z"`
	AgentID   string           `json:"agent_id" doc:"Its agent." example:"ag_01k0000000abcdefghjkmnpqrs"`
	Recorded  RecordedDecision `json:"recorded" doc:"What was decided then, limits and providers included."`
	Decision  PolicyDecision   `json:"decision" doc:"What the policies say of the recorded input."`
	Unknown   []string         `json:"unknown" nullable:"false" doc:"Attributes that the entry does not hold as they were. A condition on one of them may have been otherwise."`
	Policies  []ExplainedRow   `json:"policies" nullable:"false" doc:"The policies that govern the agent or match the request."`
	Input     rawObject        `json:"input" doc:"The input that was evaluated."`
}

// RecordedDecision is a decision as its entry has it.
type RecordedDecision struct {
	Effect        string   `json:"effect" enum:"allow,deny" doc:"The effect."`
	Reasons       []string `json:"reasons" nullable:"false" doc:"The codes of the reasons."`
	PolicyVersion string   `json:"policy_version" doc:"The set of policies."`
}

// PolicyDecision is a decision of policy on the wire.
type PolicyDecision struct {
	Effect    string         `json:"effect" enum:"allow,deny" doc:"The effect."`
	Reasons   []PolicyReason `json:"reasons" nullable:"false" doc:"Why not."`
	PolicyIDs []string       `json:"policy_ids" nullable:"false" doc:"The policies that the effect rests on."`
}

// PolicyReason is one reason of a decision.
type PolicyReason struct {
	Reason   string `json:"code" doc:"docs/errors.md explains it." example:"not_permitted"`
	Message  string `json:"message" doc:"The message for the caller."`
	PolicyID string `json:"policy_id,omitzero" doc:"The policy, if it is one policy's reason."`
}

// ExplainedRow is what one policy says.
type ExplainedRow struct {
	PolicyID string            `json:"policy_id" doc:"The policy." example:"pol_01k0000000abcdefghjkmnpqrs"`
	Name     string            `json:"name" doc:"What it is called."`
	Version  int64             `json:"version" doc:"The version that was evaluated." example:"2"`
	Effect   string            `json:"effect" enum:"allow,deny,require_approval" doc:"Its effect."`
	State    string            `json:"state" enum:"enabled,shadow" doc:"Its state."`
	Governs  bool              `json:"governs" doc:"An allow policy that selects the agent and its key."`
	Matches  bool              `json:"matches" doc:"Whether all of its conditions hold."`
	Failed   []FailedCondition `json:"failed" nullable:"false" doc:"The conditions that do not hold."`
}

// FailedCondition is a condition that does not hold.
type FailedCondition struct {
	Condition string   `json:"condition" doc:"Where it is in the policy." example:"conditions.any[0].agent.team"`
	Attribute string   `json:"attribute" doc:"What it is about." example:"agent.team"`
	Unknown   bool     `json:"unknown" doc:"The attribute is missing, or of another type."`
	Value     anyValue `json:"value" doc:"The attribute's value; null: it is missing."`
}

// anyValue is any JSON value.
type anyValue struct{ v any }

func (a anyValue) MarshalJSON() ([]byte, error) { return json.Marshal(a.v, json.Deterministic(true)) }

func (a *anyValue) UnmarshalJSON(b []byte) error { return json.Unmarshal(b, &a.v) }

func (a anyValue) Schema(huma.Registry) *huma.Schema { return &huma.Schema{} }

func policyDecision(d policy.Decision) PolicyDecision {
	out := PolicyDecision{Effect: d.Effect.String(), Reasons: []PolicyReason{}, PolicyIDs: strs(d.PolicyIDs)}
	for _, r := range d.Reasons {
		out.Reasons = append(out.Reasons, PolicyReason{Reason: r.Code, Message: r.Message, PolicyID: r.PolicyID})
	}
	return out
}

func codesOf(rs []audit.Reason) []string {
	return strs(each(rs, func(r audit.Reason) string { return r.Code }))
}

// explaining is the response to an explanation. It survives being stored for its
// idempotency key.
type explaining struct {
	Replayed string `header:"Idempotency-Replayed" doc:"true if this response was sent before, to the same Idempotency-Key."`
	Body     Explanation
}

func (e *explaining) replayed() { e.Replayed = "true" }

func explainRequest(ctx context.Context, x *call, in *struct{ Body ExplainIn }) (*explaining, error) {
	entries, err := audit.Entries(ctx, x.tx, audit.Filter{Kind: audit.KindDecided, RequestID: in.Body.RequestID, Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, notFound("request", in.Body.RequestID)
	}
	entry, err := entries[0].Parse()
	d, ok := entry.(audit.Decided)
	if err != nil || !ok {
		return nil, notEvaluated("The entry of this request cannot be read.")
	}
	input, unknown, ok := verdict.InputOf(d)
	if !ok {
		return nil, notEvaluated("No policy was evaluated for this request, or its entry is older than 2026-11-27.")
	}
	ps, err := x.policiesFor(ctx, in.Body.Policies, d)
	if err != nil {
		return nil, err
	}
	e, err := policy.Explain(ctx, ps, input)
	if err != nil {
		return nil, err
	}
	document, err := input.Document()
	if err != nil {
		return nil, err
	}
	out := Explanation{
		RequestID: d.RequestID, Seq: entries[0].Seq, Time: d.Time.UTC(), AgentID: d.AgentID,
		Recorded: RecordedDecision{Effect: d.Effect, Reasons: codesOf(d.Reasons), PolicyVersion: d.PolicyVersion},
		Decision: policyDecision(e.Decision), Unknown: strs(unknown), Policies: []ExplainedRow{}, Input: rawObject(jsontext.Value(document)),
	}
	for _, p := range e.Policies {
		row := ExplainedRow{PolicyID: p.ID, Name: p.Name, Version: p.Version, Effect: p.Effect, State: string(p.State), Governs: p.Governs, Matches: p.Matches, Failed: []FailedCondition{}}
		for _, f := range p.Failed {
			row.Failed = append(row.Failed, FailedCondition{Condition: f.Path, Attribute: f.Attribute, Unknown: f.Unknown, Value: anyValue{f.Value}})
		}
		out.Policies = append(out.Policies, row)
	}
	return &explaining{Body: out}, nil
}

// policiesFor is the set of policies that decided a request, or the current set.
func (x *call) policiesFor(ctx context.Context, which string, d audit.Decided) ([]policy.Policy, error) {
	if which == "current" {
		return policy.All(ctx, x.tx)
	}
	ps, err := policy.SetOf(ctx, x.tx, x.org, d.PolicyVersion, d.Time)
	if errors.Is(err, policy.ErrNotFound) {
		return nil, &problem{
			Status: 409, Code: "policies_not_kept", Message: "The set of policies that decided this request is not kept: it is older than the versions of policies.",
			Fix: `Send "policies": "current" to evaluate the request by the current policies.`,
		}
	}
	return ps, err
}

func notEvaluated(why string) *problem {
	return &problem{Status: 409, Code: "not_evaluated", Message: why, Field: "request_id", Fix: "Read its entry: GET /v1/audit/entries?request_id=…"}
}
