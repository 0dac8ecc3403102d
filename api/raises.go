package api

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
)

const raiseID = "rse_"

// Raise is a raise of a USD cap in responses.
type Raise struct {
	ID         string    `json:"id" doc:"The raise's id." example:"rse_01k0000000abcdefghjkmnpqrs"`
	PolicyID   string    `json:"policy_id" doc:"The policy whose cap is raised." example:"pol_01k0000000abcdefghjkmnpqrs"`
	Limit      string    `json:"limit" enum:"daily_usd_cap,monthly_usd_cap" doc:"The cap." example:"monthly_usd_cap"`
	Per        string    `json:"per" doc:"What the cap counts for; two names are joined with +." example:"agent"`
	Subject    string    `json:"subject" doc:"The value of per whose count is raised. Empty for policy and org." example:"ag_01k0000000abcdefghjkmnpqrs"`
	Period     string    `json:"period" doc:"The day or month of the count, in the organization's time zone." example:"2026-01"`
	AddNanoUSD int64     `json:"add_nano_usd" doc:"What is added to the cap, in nano-dollars." example:"50000000000"`
	CapNanoUSD int64     `json:"cap_nano_usd" doc:"The cap with all raises in force when this one was made, in nano-dollars." example:"550000000000"`
	Reason     string    `json:"reason" doc:"Why, as the administrator wrote it." example:"Launch week"`
	CreatedAt  time.Time `json:"created_at" doc:"When it was made, UTC." example:"2026-01-31T12:00:00Z"`
	CreatedBy  string    `json:"created_by" doc:"The organization key that made it." example:"okey_01k0000000abcdefghjkmnpqrs"`
	EndsAt     time.Time `json:"ends_at" doc:"When it ends, UTC." example:"2026-02-01T00:00:00Z"`
}

// NewRaise is the body that raises a USD cap.
type NewRaise struct {
	PolicyID string    `json:"policy_id" minLength:"1" maxLength:"64" doc:"The policy whose cap is raised." example:"pol_01k0000000abcdefghjkmnpqrs"`
	Limit    string    `json:"limit" enum:"daily_usd_cap,monthly_usd_cap" doc:"The cap." example:"monthly_usd_cap"`
	Per      string    `json:"per,omitzero" maxLength:"300" doc:"What the cap counts for, if the policy has several of this name; two names are joined with +." example:"agent"`
	Subjects []string  `json:"subjects,omitzero" maxItems:"2" doc:"The count that is raised: a value for each name of per, such as the id of an agent. Leave it out for a cap that counts for the policy or the org." example:"ag_01k0000000abcdefghjkmnpqrs"`
	AddUSD   usdAmount `json:"add_usd" doc:"What is added to the cap, in US dollars."`
	Reason   string    `json:"reason" minLength:"1" maxLength:"500" doc:"Why. It is stored with the raise." example:"Launch week"`
	EndsAt   time.Time `json:"ends_at,omitzero" doc:"When the raise ends, within the current day or month. The default is the end of it." example:"2026-01-31T18:00:00Z"`
}

// usdAmount is a JSON number as it was written, since money is exact.
type usdAmount string

func (u *usdAmount) UnmarshalJSON(b []byte) error {
	*u = usdAmount(bytes.TrimSpace(b))
	return nil
}

func (u usdAmount) Schema(huma.Registry) *huma.Schema {
	most, least := float64(policy.MaxUSD), 0.0
	return &huma.Schema{Type: huma.TypeNumber, ExclusiveMinimum: &least, Maximum: &most, Description: "US dollars, with at most 9 digits after the point.", Examples: []any{50}}
}

func raiseShown(r policy.Raise) Raise {
	return Raise{
		ID: r.ID, PolicyID: r.PolicyID, Limit: r.Limit, Per: r.Per, Subject: r.Subject, Period: r.Period, AddNanoUSD: r.NanoUSD, CapNanoUSD: r.Capped,
		Reason: r.Reason, CreatedAt: r.CreatedAt, CreatedBy: r.ActorID, EndsAt: r.EndsAt,
	}
}

func raiseLimit(ctx context.Context, x *call, in *struct{ Body NewRaise }) (*made[Raise], error) {
	b := in.Body
	add, wrong := policy.NanoUSD(string(b.AddUSD))
	if wrong != "" {
		return nil, invalid(fieldProblem{"add_usd", "The amount " + wrong + ".", "Write a number of US dollars, such as 50 or 0.25."})
	}
	p, err := x.policy(ctx, b.PolicyID)
	if err != nil {
		return nil, err
	}
	if err := x.inTurn(ctx, "limit_raises"); err != nil {
		return nil, err
	}
	l, err := policy.CapOf(p, x.org, b.Limit, b.Per, b.Subjects)
	if err != nil {
		return nil, err
	}
	if l.Per == "agent" || l.Per == "agent.id" {
		var missing *problem
		if _, err := x.agent(ctx, b.Subjects[0]); errors.As(err, &missing) {
			return nil, invalid(fieldProblem{"subjects[0]", "There is no such agent.", "Write the id of an agent."})
		} else if err != nil {
			return nil, err
		}
	}
	org, err := identity.OrgByID(ctx, x.tx, x.org)
	if err != nil {
		return nil, err
	}
	period, end, err := periodOf(org, b.Limit, x.now)
	if err != nil {
		return nil, err
	}
	switch {
	case b.EndsAt.IsZero():
		b.EndsAt = end
	case !b.EndsAt.After(x.now) || b.EndsAt.After(end):
		return nil, invalid(fieldProblem{"ends_at", "A raise ends within the cap's current period, which ends at " + end.UTC().Format(time.RFC3339) + ".", "Write a time until then, or leave it out."})
	}
	inForce, err := policy.RaisesAt(ctx, x.tx, x.now)
	if err != nil {
		return nil, err
	}
	if len(inForce) >= policy.MaxRaises {
		return nil, &problem{Status: 409, Code: "too_many", Message: "The org has " + itoa(policy.MaxRaises) + " raises in force, which is the limit.", Fix: "Wait until some have ended, or change the policies."}
	}
	capped := l.Value + add // both are far below the largest integer
	for _, r := range inForce {
		if r.Counter == l.Key && r.Period == period {
			capped += r.NanoUSD
		}
	}
	if capped > policy.MaxUSD*1_000_000_000 {
		return nil, invalid(fieldProblem{"add_usd", "The cap would be above " + itoa(policy.MaxUSD) + " US dollars.", "Add less."})
	}
	if most, ok := x.c.Tiers[org.Tier].Max(b.Limit); ok && capped > most {
		return nil, &problem{Status: 409, Code: "above_tier", Message: "The cap would be above the " + b.Limit + " of the organization's tier, which no raise exceeds.", Field: "add_usd",
			Fix: "Add less, or have the operator change the organization's tier."}
	}
	id, err := x.newID(raiseID)
	if err != nil {
		return nil, err
	}
	r := policy.Raise{
		ID: id, OrgID: x.org, PolicyID: p.ID, Limit: b.Limit, Per: l.Per, Subject: l.Subject, Counter: l.Key, Period: period, NanoUSD: add, Capped: capped,
		Reason: b.Reason, ActorID: x.key.ID, CreatedAt: x.now, EndsAt: b.EndsAt.UTC(),
	}
	if err := policy.InsertRaise(ctx, x.tx, r); err != nil {
		return nil, err
	}
	shown := raiseShown(r)
	if err := x.record(ctx, "limit.raised", "limit_raise", r.ID, "", nil, shown); err != nil {
		return nil, err
	}
	return &made[Raise]{Location: "/v1/limits/raises/" + r.ID, Body: shown}, nil
}

// periodOf is the current period of a cap, and its end.
func periodOf(org identity.Org, limit string, now time.Time) (name string, end time.Time, err error) {
	c, err := budget.NewCalendar(org.Timezone, org.TimezoneBefore, org.TimezoneFrom)
	if err != nil {
		return "", end, err
	}
	if limit == "daily_usd_cap" {
		name, end = c.Day(now)
	} else {
		name, end = c.Month(now)
	}
	return name, end, nil
}

func listRaises(ctx context.Context, x *call, in *Pages) (*paged[Raise], error) {
	after := in.after()
	rs, err := policy.ListRaises(ctx, x.tx, after.at, after.id, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return pageOf(*in, rs, func(r policy.Raise) place { return place{r.Place, r.ID} }, raiseShown), nil
}

func getRaise(ctx context.Context, x *call, in *ByID) (*one[Raise], error) {
	if !isID(raiseID, in.ID) {
		return nil, notFound("raise", in.ID)
	}
	r, err := policy.RaiseByID(ctx, x.tx, in.ID)
	if errors.Is(err, policy.ErrNotFound) {
		return nil, notFound("raise", in.ID)
	}
	return &one[Raise]{Body: raiseShown(r)}, err
}
