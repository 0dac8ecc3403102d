package api

import (
	"context"
	"encoding/csv"
	"slices"
	"strings"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
)

// UsageIn are the parameters of the org's usage.
type UsageIn struct {
	Since time.Time `query:"since" doc:"The first day is the day of this time. The default is 30 days ago." example:"2026-01-01T00:00:00Z"`
	Until time.Time `query:"until" doc:"The last day is the day of this time. The default is today." example:"2026-01-31T00:00:00Z"`
	By    []string  `query:"by" minItems:"1" maxItems:"6" uniqueItems:"true" enum:"day,agent,team,model,provider,policy" default:"day" doc:"What the sums are grouped by, separated by commas." example:"[\"day\",\"team\"]"`
}

func usageDefaults(since, until, now time.Time) (time.Time, time.Time) {
	if until.IsZero() {
		until = now
	}
	if since.IsZero() {
		since = until.AddDate(0, 0, -30)
	}
	return since, until
}

func usageSpan(since, until, now time.Time) (time.Time, time.Time, error) {
	since, until = usageDefaults(since, until, now)
	if since.After(until) || until.Sub(since) > usageDays*24*time.Hour {
		return since, until, invalid(fieldProblem{"since", "since is after until, or more than " + itoa(usageDays) + " days before it.", "Request a shorter span."})
	}
	return since, until, nil
}

// UsageGroup is a sum over the requests of one group.
type UsageGroup struct {
	Day      string     `json:"day,omitempty" doc:"The day of the decisions, in the organization's time zone." example:"2026-01-31"`
	AgentID  string     `json:"agent_id,omitempty" doc:"The agent's id." example:"ag_01k0000000abcdefghjkmnpqrs"`
	Team     string     `json:"team,omitempty" doc:"The agent's team at the time of the request." example:"support"`
	Model    string     `json:"model,omitempty" doc:"The model that the client requested. (other) stands for all models that are in no list." example:"gpt-4o"`
	Provider string     `json:"provider,omitempty" doc:"The provider's name." example:"openai"`
	PolicyID string     `json:"policy_id,omitempty" doc:"A policy that decided about the requests. A request counts for each of its policies." example:"pol_01k0000000abcdefghjkmnpqrs"`
	Caps     []UsageCap `json:"caps,omitempty" doc:"With by=policy: the daily and monthly USD caps of the policy as it is now."`
	UsageSum
}

// UsageCap is a USD cap of a policy, and its raises in force.
type UsageCap struct {
	Limit      string     `json:"limit" enum:"daily_usd_cap,monthly_usd_cap" doc:"The cap." example:"monthly_usd_cap"`
	Per        string     `json:"per" doc:"What it counts for; two names are joined with +." example:"policy"`
	CapNanoUSD int64      `json:"cap_nano_usd" doc:"The cap as the policy has it, in nano-dollars." example:"500000000000"`
	Raises     []CapRaise `json:"raises" nullable:"false" doc:"What is added to it now."`
}

// CapRaise is what raises in force add to one count of a cap.
type CapRaise struct {
	Subject    string `json:"subject" doc:"The value of per whose count is raised. Empty for policy and org." example:""`
	AddNanoUSD int64  `json:"add_nano_usd" doc:"The sum of the raises, in nano-dollars." example:"50000000000"`
	CapNanoUSD int64  `json:"cap_nano_usd" doc:"The cap of this count with them, in nano-dollars." example:"550000000000"`
}

// usageCaps are the caps of policies, by policy.
func usageCaps(ctx context.Context, x *call) (map[string][]UsageCap, error) {
	ps, err := policy.All(ctx, x.tx)
	if err != nil {
		return nil, err
	}
	raises, err := policy.RaisesAt(ctx, x.tx, x.now)
	if err != nil {
		return nil, err
	}
	out := map[string][]UsageCap{}
	for _, p := range ps {
		for _, l := range policy.Caps(p) {
			c := UsageCap{Limit: l.Name, Per: l.Per, CapNanoUSD: l.Value, Raises: []CapRaise{}}
			for _, r := range raises {
				if r.PolicyID != p.ID || r.Limit != l.Name || r.Per != l.Per {
					continue
				}
				at := slices.IndexFunc(c.Raises, func(of CapRaise) bool { return of.Subject == r.Subject })
				if at < 0 {
					at = len(c.Raises)
					c.Raises = append(c.Raises, CapRaise{Subject: r.Subject, CapNanoUSD: l.Value})
				}
				c.Raises[at].AddNanoUSD += r.NanoUSD
				c.Raises[at].CapNanoUSD += r.NanoUSD
			}
			out[p.ID] = append(out[p.ID], c)
		}
	}
	return out, nil
}

// usageGroups reads the groups: at most most of them, after the first skip.
func usageGroups(ctx context.Context, x *call, in UsageIn, skip, most int) ([]audit.UsageGroup, error) {
	since, until := usageDefaults(in.Since, in.Until, x.now) // sums of any span are few, so none is too long
	since, until, err := x.days(ctx, since, until)
	if err != nil {
		return nil, err
	}
	return audit.SumUsage(ctx, x.tx, since, until, in.By, skip, most)
}

// days are the dates of two times in the org's time zone, each at 00:00 UTC.
func (x *call) days(ctx context.Context, since, until time.Time) (first, last time.Time, err error) {
	org, err := identity.OrgByID(ctx, x.tx, x.org)
	if err != nil {
		return first, last, err
	}
	for _, d := range []struct {
		at   time.Time
		into *time.Time
	}{{since, &first}, {until, &last}} {
		name, _, err := periodOf(org, "daily_usd_cap", d.at)
		if err != nil {
			return first, last, err
		}
		if *d.into, err = time.Parse(time.DateOnly, name); err != nil {
			return first, last, err
		}
	}
	return first, last, nil
}

func (g *UsageGroup) set(name, value string) {
	switch name {
	case "day":
		g.Day = value
	case "agent":
		g.AgentID = value
	case "team":
		g.Team = value
	case "model":
		g.Model = value
	case "provider":
		g.Provider = value
	case "policy":
		g.PolicyID = value
	}
}

func sumOf(d audit.UsageDay) UsageSum {
	return UsageSum{
		Requests: d.Requests, Refused: d.Refused, InputTokens: d.InputTokens, OutputTokens: d.OutputTokens, CachedTokens: d.CachedTokens,
		CacheWriteTokens: d.CacheWriteTokens, ReasoningTokens: d.ReasoningTokens, CostNanoUSD: d.CostNanoUSD, ChargedNanoUSD: d.ChargedNanoUSD, Unpriced: d.Unpriced,
	}
}

func orgUsage(ctx context.Context, x *call, in *struct {
	UsageIn
	Limit int `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"The most groups to return."`
	After int `query:"after" minimum:"0" maximum:"1000000" default:"0" doc:"The value of next in the page before. The list continues after it." example:"0"`
}) (*paged[UsageGroup], error) {
	groups, err := usageGroups(ctx, x, in.UsageIn, in.After, in.Limit+1)
	if err != nil {
		return nil, err
	}
	var caps map[string][]UsageCap
	if slices.Contains(in.By, "policy") {
		if caps, err = usageCaps(ctx, x); err != nil {
			return nil, err
		}
	}
	rows := each(groups, func(g audit.UsageGroup) UsageGroup {
		out := UsageGroup{UsageSum: sumOf(g.UsageDay)}
		for i, name := range in.By {
			out.set(name, g.Key[i])
		}
		out.Caps = caps[out.PolicyID]
		return out
	})
	return listed(rows, in.Limit, func(UsageGroup) string { return itoa(int64(in.After + in.Limit)) }), nil
}

// maxUsageLines is the most lines of one CSV.
const maxUsageLines = 100_000

// csvFile is a response in CSV.
type csvFile struct {
	ContentType string `header:"Content-Type" doc:"text/csv; charset=utf-8"`
	Body        []byte
}

func orgUsageCSV(ctx context.Context, x *call, in *UsageIn) (*csvFile, error) {
	groups, err := usageGroups(ctx, x, *in, 0, maxUsageLines+1)
	if err != nil {
		return nil, err
	}
	if len(groups) > maxUsageLines {
		return nil, invalid(fieldProblem{"by", "The file would have more than " + itoa(maxUsageLines) + " lines.", "Request a shorter span, or fewer names in by."})
	}
	var b strings.Builder
	w := csv.NewWriter(&b)
	names := map[string]string{"agent": "agent_id", "policy": "policy_id"}
	head := make([]string, len(in.By))
	for i, name := range in.By {
		if head[i] = names[name]; head[i] == "" {
			head[i] = name
		}
	}
	w.Write(append(head, "requests", "refused", "input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens",
		"cost_nano_usd", "charged_nano_usd", "unpriced"))
	for _, g := range groups {
		line := each(g.Key, inert)
		for _, n := range []int64{g.Requests, g.Refused, g.InputTokens, g.OutputTokens, g.CachedTokens, g.CacheWriteTokens, g.ReasoningTokens,
			g.CostNanoUSD, g.ChargedNanoUSD, g.Unpriced} {
			line = append(line, itoa(n))
		}
		w.Write(line)
	}
	w.Flush()
	return &csvFile{ContentType: "text/csv; charset=utf-8", Body: []byte(b.String())}, w.Error()
}

// inert is a cell that no spreadsheet takes for a formula. Clients choose the names of models.
func inert(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t\r", rune(s[0])) {
		return "'" + s
	}
	return s
}
