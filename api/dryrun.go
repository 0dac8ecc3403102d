package api

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/verdict"
)

const dryRunID = "dry_"

// Bounds of a dry-run.
const (
	dryRunInline  = 5_000               // entries that are evaluated before the response; more are a job
	dryRunQueue   = 8                   // jobs that wait, of all organizations
	dryRunLongest = 90 * 24 * time.Hour // the window
	dryRunRows    = 20_000              // rows of requests that would change, which are kept
	dryRunOthers  = 2_000               // rows of other requests
	dryRunAgents  = 1_000
	dryRunRaises  = 10_000
	dryRunKept    = 7 * 24 * time.Hour
	dryRunSilent  = time.Minute // a job that reports nothing for so long has ended
)

// DryRunIn is a candidate and the traffic that it is tried on.
type DryRunIn struct {
	Policy   policyBody `json:"policy" doc:"The same body as POST /v1/policies."`
	Replaces *string    `json:"replaces,omitzero" nullable:"true" doc:"The id of the policy that it takes the place of. Without it, a policy with the same name is replaced." example:"pol_01k0000000abcdefghjkmnpqrs"`
	Window   windowIn   `json:"window" doc:"How far back: hours or days like 24h and 7d, or a start and an end."`
}

// windowIn is a span of time: "24h", "7d", or {"start": …, "end": …}.
type windowIn struct{ raw jsontext.Value }

func (w *windowIn) UnmarshalJSON(b []byte) error {
	w.raw = slices.Clone(b)
	return nil
}

func (w windowIn) Schema(huma.Registry) *huma.Schema {
	instant := &huma.Schema{Type: huma.TypeString, Format: "date-time"}
	return &huma.Schema{OneOf: []*huma.Schema{
		{Type: huma.TypeString, Pattern: windowForm.String()},
		{Type: huma.TypeObject, Properties: map[string]*huma.Schema{"start": instant, "end": instant}, Required: []string{"start", "end"}, AdditionalProperties: false},
	}}
}

var windowForm = regexp.MustCompile(`^[1-9][0-9]{0,3}[hd]$`)

// span is the window's start and end.
func (w windowIn) span(now time.Time) (since, until time.Time, err error) {
	wrong := func(message string) (time.Time, time.Time, error) {
		return since, until, invalid(fieldProblem{"window", message, `Write "24h", "7d", or {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"}; at most 90 days.`})
	}
	var text string
	var ends struct {
		Start time.Time `json:"start"`
		End   time.Time `json:"end"`
	}
	switch {
	case len(w.raw) == 0:
		return wrong("window is missing.")
	case json.Unmarshal(w.raw, &text) == nil:
		if !windowForm.MatchString(text) {
			return wrong("window is not a number of hours or days.")
		}
		n, _ := strconv.Atoi(text[:len(text)-1])
		unit := time.Hour
		if text[len(text)-1] == 'd' {
			unit = 24 * time.Hour
		}
		since, until = now.Add(-time.Duration(n)*unit), now
	case json.Unmarshal(w.raw, &ends, json.RejectUnknownMembers(true)) == nil:
		since, until = ends.Start.UTC(), ends.End.UTC()
		if since.IsZero() || until.IsZero() || !since.Before(until) {
			return wrong("window has no start that is before its end.")
		}
	default:
		return wrong("window is neither a text nor an object with start and end.")
	}
	if until.Sub(since) > dryRunLongest {
		return wrong("window is longer than 90 days.")
	}
	return since, until, nil
}

// DryRun is what a candidate would do, on the wire.
type DryRun struct {
	ID       string        `json:"id" doc:"The dry-run's id." example:"dry_01k0000000abcdefghjkmnpqrs"`
	State    string        `json:"state" enum:"running,done,failed" doc:"running: get it again later. failed: see error."`
	Error    string        `json:"error,omitzero" doc:"Why it failed, and what to do."`
	Start    time.Time     `json:"start" doc:"From when, UTC." example:"2026-01-30T12:00:00Z"`
	End      time.Time     `json:"end" doc:"Until when, UTC." example:"2026-01-31T12:00:00Z"`
	Replaces *string       `json:"replaces" doc:"The policy that the candidate takes the place of; null: it is a new one."`
	Done     int64         `json:"done" doc:"Entries that were read." example:"1200"`
	Total    int64         `json:"total" doc:"Entries to read, about." example:"1200"`
	Counts   DryRunCounts  `json:"counts" doc:"The requests, counted."`
	ByAgent  []DryRunAgent `json:"by_agent" nullable:"false" doc:"By agent, those with the most changes first; at most 1,000."`
	Limits   []string      `json:"cannot_know" nullable:"false" doc:"What this dry-run cannot know, in sentences."`
	Data     []DryRunRow   `json:"data" nullable:"false" doc:"Requests, oldest first: of those that would change the first 20,000, of others the first 2,000."`
	HasMore  bool          `json:"has_more" doc:"Whether there is another page after this one."`
	Next     *string       `json:"next" doc:"What to send as after to GET /v1/policy-dry-runs/{id} for the next page; null on the last one."`
}

// DryRunCounts counts requests.
type DryRunCounts struct {
	Requests    int64 `json:"requests" doc:"Requests that were evaluated again." example:"1180"`
	Allow       int64 `json:"allow" doc:"Those that the candidate allows." example:"1100"`
	Deny        int64 `json:"deny" doc:"Those that it denies." example:"80"`
	WouldChange int64 `json:"would_change" doc:"Those that the current policies decide otherwise." example:"12"`
	Uncertain   int64 `json:"uncertain" doc:"Those whose entry lacks an attribute as it was." example:"3"`
	Skipped     int64 `json:"not_evaluated" doc:"Entries that cannot be evaluated again: no policy was evaluated, or they are older than 2026-11-27." example:"20"`
}

// DryRunAgent counts an agent's requests.
type DryRunAgent struct {
	AgentID     string `json:"agent_id" doc:"The agent." example:"ag_01k0000000abcdefghjkmnpqrs"`
	AgentName   string `json:"agent_name" doc:"Its name when it asked last." example:"support-bot"`
	Requests    int64  `json:"requests" doc:"Its requests." example:"120"`
	Allow       int64  `json:"allow" doc:"Those that the candidate allows." example:"118"`
	Deny        int64  `json:"deny" doc:"Those that it denies." example:"2"`
	WouldChange int64  `json:"would_change" doc:"Those that the current policies decide otherwise." example:"2"`
}

// DryRunRow is one request.
type DryRunRow struct {
	Seq         int64          `json:"seq" doc:"The number of its audit entry." example:"412"`
	RequestID   string         `json:"request_id" doc:"The request." example:"req_01k0000000abcdefghjkmnpqrs"`
	Time        time.Time      `json:"time" doc:"When it was decided, UTC." example:"2026-01-31T12:00:00Z"`
	AgentID     string         `json:"agent_id" doc:"Its agent." example:"ag_01k0000000abcdefghjkmnpqrs"`
	Operation   string         `json:"operation" doc:"What was asked for." example:"chat.completions"`
	Model       string         `json:"model" doc:"As asked for." example:"gpt-4o"`
	Decision    string         `json:"decision" enum:"allow,deny" doc:"What the candidate decides."`
	WouldChange bool           `json:"would_change" doc:"Whether the current policies decide otherwise."`
	Reasons     []PolicyReason `json:"reasons" nullable:"false" doc:"Why the candidate denies it."`
	Current     string         `json:"current" enum:"allow,deny" doc:"What the current policies decide."`
	Recorded    string         `json:"recorded" enum:"allow,deny" doc:"What was decided then, by the policies and limits of then."`
	RecordedFor []string       `json:"recorded_reasons" nullable:"false" doc:"The codes of the reasons of then."`
	Unknown     []string       `json:"unknown" nullable:"false" doc:"Attributes that the entry does not hold as they were."`
}

// dryRunning is the response that starts or shows a dry-run.
type dryRunning struct {
	Status   int
	Location string `header:"Location" doc:"Where it is."`
	Replayed string `header:"Idempotency-Replayed" doc:"true if this response was sent before, to the same Idempotency-Key."`
	Body     DryRun
}

func (d *dryRunning) replayed() { d.Replayed = "true" }

// dryRunJob is a dry-run in work. It belongs to one goroutine.
type dryRunJob struct {
	org    string
	result DryRun
	replay *verdict.Replay
	after  int64 // the last entry that was read
	last   int64 // the last one to read
	others int
	agents map[string]*DryRunAgent
	notes  map[string]bool
}

func dryRunPolicy(ctx context.Context, x *call, in *struct{ Body DryRunIn }) (*dryRunning, error) {
	since, until, err := in.Body.Window.span(x.now)
	if err != nil {
		return nil, err
	}
	if len(in.Body.Policy.rawObject) == 0 {
		return nil, invalid(fieldProblem{"policy", "policy is missing.", "Send the body of POST /v1/policies as policy."})
	}
	name, err := checked(in.Body.Policy.rawObject)
	if err != nil {
		var bad *policy.Invalid
		if errors.As(err, &bad) {
			field := "policy"
			if bad.Field != "" {
				field += "." + bad.Field
			}
			return nil, &policy.Invalid{Field: field, Problem: bad.Problem, Fix: bad.Fix}
		}
		return nil, err
	}
	all, err := policy.All(ctx, x.tx)
	if err != nil {
		return nil, err
	}
	// A candidate is tried as it would be when it is enabled; one that is disabled is tried
	// as that.
	document, err := merge(jsontext.Value(in.Body.Policy.rawObject), jsontext.Value(`{"state":null}`))
	if err != nil {
		return nil, err
	}
	var state struct {
		State policy.State `json:"state"`
	}
	if err := json.Unmarshal(in.Body.Policy.rawObject, &state); err != nil {
		return nil, err
	}
	if state.State == policy.Disabled {
		document = jsontext.Value(in.Body.Policy.rawObject)
	}
	candidate := policy.Policy{ID: "pol_candidate", OrgID: x.org, Name: name, Version: 1, Document: document}
	set := slices.Clone(all)
	var replaces *string
	i := slices.IndexFunc(set, func(p policy.Policy) bool {
		if in.Body.Replaces != nil {
			return p.ID == *in.Body.Replaces
		}
		return p.Name == name
	})
	switch {
	case i >= 0:
		candidate.ID, candidate.Version = set[i].ID, set[i].Version+1
		replaces = &candidate.ID
		set[i] = candidate
	case in.Body.Replaces != nil:
		return nil, notFound("policy", *in.Body.Replaces)
	default:
		set = append(set, candidate)
	}
	if err := regoFits(set); err != nil {
		return nil, err
	}
	would, err := policy.Compile(ctx, set)
	if err != nil {
		return nil, err
	}
	current, err := policy.Compile(ctx, all)
	if err != nil {
		return nil, err
	}
	org, err := identity.OrgByID(ctx, x.tx, x.org)
	if err != nil {
		return nil, err
	}
	calendar, err := budget.NewCalendar(org.Timezone, org.TimezoneBefore, org.TimezoneFrom)
	if err != nil {
		return nil, err
	}
	id, err := x.newID(dryRunID)
	if err != nil {
		return nil, err
	}
	raises, err := policy.RaisesSince(ctx, x.tx, since, dryRunRaises)
	if err != nil {
		return nil, err
	}
	j := &dryRunJob{org: x.org, replay: verdict.NewReplay(would, current, since, calendar, raisesOf(raises)), agents: map[string]*DryRunAgent{}, notes: map[string]bool{}}
	if len(raises) == dryRunRaises {
		j.notes["Of more than 10,000 raises in the window, those that ended first are left out."] = true
	}
	j.result = DryRun{ID: id, State: "running", Start: since, End: until, Replaces: replaces, ByAgent: []DryRunAgent{}, Limits: []string{}, Data: []DryRunRow{}}
	if j.after, j.last, err = audit.Since(ctx, x.tx, since); err != nil {
		return nil, err
	}
	j.result.Total = j.last - j.after
	if j.result.Total <= dryRunInline {
		for more := true; more; {
			entries, err := j.entries(ctx, x.tx)
			if err != nil {
				return nil, err
			}
			more = j.evaluate(ctx, entries)
		}
		j.finish()
	}
	if err := x.keepDryRun(ctx, j); err != nil {
		return nil, err
	}
	status := 200
	if j.result.State == "running" {
		if len(x.dryRuns) == cap(x.dryRuns) {
			return nil, &problem{Status: 409, Code: "too_many", Message: "Other dry-runs wait already.", Fix: "Wait for them, or choose a shorter window."}
		}
		status = 202
		x.committed = append(x.committed, func() {
			select {
			case x.dryRuns <- j:
			default: // another one took the place; the row says that it ended
			}
		})
	}
	return &dryRunning{Status: status, Location: "/v1/policy-dry-runs/" + id, Body: j.result.page(100, 0, false)}, nil
}

// raisesOf are raises by the counts that they add to.
func raisesOf(rs []policy.Raise) map[string][]verdict.Raise {
	out := make(map[string][]verdict.Raise, len(rs))
	for _, r := range rs {
		out[r.Counter] = append(out[r.Counter], verdict.Raise{Period: r.Period, NanoUSD: r.NanoUSD, Begins: r.CreatedAt, Ends: r.EndsAt})
	}
	return out
}

// keepDryRun stores a new dry-run, and drops old ones.
func (x *call) keepDryRun(ctx context.Context, j *dryRunJob) error {
	if _, err := x.tx.Exec(ctx, `DELETE FROM policy_dry_runs WHERE org_id = aid_org() AND updated_at < $1`, x.now.Add(-dryRunKept)); err != nil {
		return err
	}
	b, err := json.Marshal(j.result)
	if err != nil {
		return err
	}
	_, err = x.tx.Exec(ctx, `INSERT INTO policy_dry_runs (org_id, id, updated_at, result) VALUES (aid_org(), $1, now(), $2)`, j.result.ID, string(b))
	return err
}

// entries reads the next entries of requests in the window.
func (j *dryRunJob) entries(ctx context.Context, tx pgx.Tx) ([]audit.Stored, error) {
	kind := audit.KindDecided
	if j.replay.ReadsEnds() {
		kind = "" // of all kinds
	}
	return audit.Entries(ctx, tx, audit.Filter{Kind: kind, Since: j.result.Start, Until: j.result.End, AfterSeq: j.after, Limit: audit.MaxEntries})
}

// evaluate evaluates entries, and says whether there may be more.
func (j *dryRunJob) evaluate(ctx context.Context, entries []audit.Stored) (more bool) {
	c := &j.result.Counts
	begin := j.after
	for _, s := range entries {
		j.after = s.Seq
		if s.Seq > j.last {
			break
		}
		if s.Kind != audit.KindDecided && s.Kind != audit.KindSettled {
			continue
		}
		e, err := s.Parse()
		if ended, ok := e.(audit.Settled); ok && err == nil {
			j.replay.Ended(ctx, ended)
			continue
		}
		d, ok := e.(audit.Decided)
		var again verdict.Again
		if err == nil && ok {
			again, ok = j.replay.Next(ctx, d)
		}
		if err != nil || !ok {
			c.Skipped++
			continue
		}
		a := j.agents[d.AgentID]
		if a == nil {
			a = &DryRunAgent{AgentID: d.AgentID}
			j.agents[d.AgentID] = a
		}
		a.AgentName = d.AgentName
		c.Requests++
		a.Requests++
		if again.Candidate.Effect == policy.Allow {
			c.Allow++
			a.Allow++
		} else {
			c.Deny++
			a.Deny++
		}
		if len(again.Unknown) > 0 {
			c.Uncertain++
		}
		for _, name := range again.Unsimulated {
			j.notes["The limit "+name+" is not counted: sessions are not in the audit log."] = true
		}
		if again.Changes() {
			c.WouldChange++
			a.WouldChange++
			if c.WouldChange > dryRunRows {
				continue
			}
		} else if j.others++; j.others > dryRunOthers {
			continue
		}
		decided := policyDecision(again.Candidate)
		j.result.Data = append(j.result.Data, DryRunRow{
			Seq: s.Seq, RequestID: d.RequestID, Time: d.Time.UTC(), AgentID: d.AgentID, Operation: d.Operation, Model: d.Model,
			Decision: decided.Effect, WouldChange: again.Changes(), Reasons: decided.Reasons, Current: again.Current.Effect.String(),
			Recorded: d.Effect, RecordedFor: codesOf(d.Reasons), Unknown: strs(again.Unknown),
		})
	}
	j.result.Done = min(j.after-begin+j.result.Done, j.result.Total)
	return len(entries) == audit.MaxEntries && j.after < j.last
}

// finish completes the result.
func (j *dryRunJob) finish() {
	r := &j.result
	r.State, r.Done = "done", r.Total
	for _, a := range j.agents {
		r.ByAgent = append(r.ByAgent, *a)
	}
	slices.SortFunc(r.ByAgent, func(a, b DryRunAgent) int {
		if a.WouldChange != b.WouldChange {
			return int(b.WouldChange - a.WouldChange)
		}
		return strings.Compare(a.AgentID, b.AgentID)
	})
	if len(r.ByAgent) > dryRunAgents {
		r.ByAgent = r.ByAgent[:dryRunAgents]
		j.notes["There are more agents than the 1,000 that are listed."] = true
	}
	if r.Counts.Uncertain > 0 {
		j.notes[itoa(r.Counts.Uncertain)+" entries lack an attribute as it was, because it was cut or redacted. Their decisions may differ; see unknown."] = true
	}
	if r.Counts.Skipped > 0 {
		j.notes[itoa(r.Counts.Skipped)+" entries cannot be evaluated again: the request was rejected before policy, or the entry is older than 2026-11-27."] = true
	}
	if r.Counts.WouldChange > dryRunRows {
		j.notes["More requests would change than the 20,000 that are listed."] = true
	}
	j.notes["Requests that clients would send because of another decision, such as retries, are not in the audit log."] = true
	j.notes["Counts of limits begin at zero at the start of the window. A request that was rejected, or that no USD cap applied to, reserves nothing under a new cap, and is charged its known cost."] = true
	for n := range j.notes {
		r.Limits = append(r.Limits, n)
	}
	slices.Sort(r.Limits)
}

// page is the result with one page of its rows.
func (d DryRun) page(limit, after int, changes bool) DryRun {
	rows := d.Data
	d.Data = []DryRunRow{}
	for i := after; i < len(rows); i++ {
		if changes && !rows[i].WouldChange {
			continue
		}
		if len(d.Data) == limit {
			d.HasMore = true
			next := strconv.Itoa(i)
			d.Next = &next
			break
		}
		d.Data = append(d.Data, rows[i])
	}
	return d
}

func getDryRun(ctx context.Context, x *call, in *struct {
	ByID
	Limit int    `query:"limit" minimum:"1" maximum:"100" default:"20" doc:"How many rows at most."`
	After string `query:"after" pattern:"^[1-9][0-9]{0,5}$" patternDescription:"the next of the page before" doc:"The next of the page before: what follows it is listed." example:"100"`
	Only  string `query:"only" enum:"changes,all" doc:"changes: only rows of requests that would change. all if left out."`
}) (*one[DryRun], error) {
	if !isID(dryRunID, in.ID) {
		return nil, notFound("dry-run", in.ID)
	}
	var text string
	var silent bool
	err := x.tx.QueryRow(ctx, `SELECT result, updated_at < now() - $2::interval FROM policy_dry_runs WHERE org_id = aid_org() AND id = $1`, in.ID, dryRunSilent).Scan(&text, &silent)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, notFound("dry-run", in.ID)
	}
	if err != nil {
		return nil, err
	}
	var d DryRun
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		return nil, err
	}
	if d.State == "running" && silent {
		d.State, d.Error = "failed", "The control plane that evaluated it has stopped. Send the dry-run again."
	}
	after, _ := strconv.Atoi(in.After) // its form was checked against the description
	return &one[DryRun]{Body: d.page(in.Limit, after, in.Only == "changes")}, nil
}

// Run evaluates dry-runs that are jobs and makes exports, one of each at a time, until ctx
// ends. Dry-runs use one
// processor at most, and both read in short transactions.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.runDryRuns(ctx) })
	g.Go(func() error { return s.runExports(ctx) })
	return g.Wait()
}

func (s *Server) runDryRuns(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case j := <-s.dryRuns:
			if err := s.runDryRun(ctx, j); err != nil && ctx.Err() == nil {
				s.c.Log.ErrorContext(ctx, "dry-run failed", "org", j.org, "dry_run", j.result.ID, "err", err)
				j.result.State, j.result.Error = "failed", "It could not be evaluated. Send it again; if it fails again, read the control plane's log."
				if err := s.progress(ctx, j); err != nil {
					s.c.Log.WarnContext(ctx, "the state of a dry-run was not stored", "org", j.org, "dry_run", j.result.ID, "err", err)
				}
			}
		}
	}
}

func (s *Server) runDryRun(ctx context.Context, j *dryRunJob) error {
	reported := s.c.Now()
	for more := true; more; {
		var entries []audit.Stored
		if err := s.c.DB.InOrg(ctx, j.org, func(tx pgx.Tx) (err error) {
			ctx, cancel := context.WithTimeout(ctx, s.c.Timeout)
			defer cancel()
			entries, err = j.entries(ctx, tx)
			return err
		}); err != nil {
			return err
		}
		more = j.evaluate(ctx, entries)
		if now := s.c.Now(); more && now.Sub(reported) > 2*time.Second {
			reported = now
			rows := j.result.Data
			j.result.Data = []DryRunRow{} // they are stored once, at the end
			err := s.progress(ctx, j)
			if j.result.Data = rows; err != nil {
				return err
			}
		}
	}
	j.finish()
	return s.progress(ctx, j)
}

// progress stores the state of a job.
func (s *Server) progress(ctx context.Context, j *dryRunJob) error {
	b, err := json.Marshal(j.result)
	if err != nil {
		return err
	}
	return s.c.DB.InOrg(ctx, j.org, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE policy_dry_runs SET updated_at = now(), result = $2 WHERE org_id = aid_org() AND id = $1`, j.result.ID, string(b))
		return err
	})
}
