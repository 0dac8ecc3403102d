package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// The kinds of a report's subject.
const (
	SubjectRequest = "request_id"
	SubjectSession = "session_id" // of one agent
)

// maxReportEntries limits the entries of one report.
const maxReportEntries = 2000

// ErrReportTooLong means that a story has too many entries for a report.
var ErrReportTooLong = fmt.Errorf("the story has more than %d entries", maxReportEntries)

// A Story selects the entries of a report. Its fields combine. Either Request or both
// Session and Agent are required.
type Story struct{ Request, Session, Agent string }

// MakeReport returns the story of a request or session of the org, which tx has set. It has every
// entry about it, in order, with the proof that a signed checkpoint has it. ErrNoEntry means
// that the log has no such entry. ErrCheckpointBehind: no checkpoint has its newest entries yet.
func MakeReport(ctx context.Context, tx pgx.Tx, org string, of Story, now time.Time) (evidence.Report, error) {
	subject := evidence.ReportSubject{Kind: SubjectRequest, ID: of.Request}
	if of.Request == "" {
		subject = evidence.ReportSubject{Kind: SubjectSession, ID: of.Session}
	}
	r := evidence.Report{
		Format: evidence.ReportFormat, Org: org, Subject: subject, CreatedAt: now.UTC().Format(timeLayout),
		Summary:  evidence.ReportSummary{Agents: []string{}, Models: []string{}, Policies: []string{}},
		Timeline: []evidence.ReportStep{}, Attestation: jsontext.Value("null"),
		Bundle: evidence.Bundle{Format: evidence.BundleFormat, Org: org, Checkpoints: []string{}, Consistency: []evidence.BundleConsistency{}, Entries: []evidence.BundleEntry{}},
	}
	if of.Request == "" && (of.Session == "" || of.Agent == "") {
		return r, ErrNoEntry
	}
	rows, err := tx.Query(ctx, `SELECT incarnation, seq, appended_at, time, kind, agent_id, session_id, request_id, writer, writer_seq, prev_writer_seq, entry
		FROM audit_entries WHERE org_id = $1 AND ($2 = '' OR request_id = $2) AND ($3 = '' OR session_id = $3) AND ($4 = '' OR agent_id = $4) ORDER BY seq LIMIT $5`,
		org, of.Request, of.Session, of.Agent, maxReportEntries+1)
	if err != nil {
		return r, fmt.Errorf("reading entries: %w", err)
	}
	type found struct {
		link  evidence.Link
		entry []byte
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f found, err error) {
		l := &f.link
		err = row.Scan(&l.Incarnation, &l.Seq, &l.AppendedAt, &l.Time, &l.Kind, &l.AgentID, &l.SessionID, &l.RequestID, &l.Writer, &l.WriterSeq, &l.PrevWriterSeq, &f.entry)
		l.Org, l.Entry = org, LeafHash(f.entry)
		return f, err
	})
	switch {
	case err != nil:
		return r, fmt.Errorf("reading entries: %w", err)
	case len(all) == 0:
		return r, ErrNoEntry
	case len(all) > maxReportEntries:
		return r, ErrReportTooLong
	}
	begin, err := trimmed(ctx, tx, org)
	if err != nil {
		return r, err
	}
	// One checkpoint for each incarnation: the newest one, which must have all entries.
	checkpoints := make(map[int64]StoredCheckpoint)
	s := story{r: &r, open: make(map[string]bool)}
	for _, f := range all {
		l := f.link
		c, ok := checkpoints[l.Incarnation]
		if !ok {
			if c, err = scanCheckpoint(tx.QueryRow(ctx, selectCheckpoint+"AND c.incarnation = $2 ORDER BY c.size DESC LIMIT 1", org, l.Incarnation)); err != nil {
				return r, err
			}
			checkpoints[l.Incarnation] = c
			r.Bundle.Checkpoints = append(r.Bundle.Checkpoints, string(c.Note))
		}
		if l.Seq > c.LastSeq() {
			return r, ErrCheckpointBehind
		}
		index := l.Seq - c.FirstSeq
		proof, err := Inclusion(ctx, tx, org, l.Incarnation, index, c.Size)
		if err != nil {
			return r, err
		}
		if err := tlog.CheckRecord(proof, c.Size, c.Root, index, l.Leaf()); err != nil {
			return r, fmt.Errorf("%w: entry %d is not the one under checkpoint %d", ErrTree, l.Seq, c.Size)
		}
		r.Bundle.Entries = append(r.Bundle.Entries, evidence.NewBundleEntry(l, f.entry, index, c.Size, proof))
		if len(r.Bundle.Entries) == 1 && begin.UpTo > 0 {
			s.step(l, "audit", fmt.Sprintf("Entries up to %d, which were appended until %s, left the database. If the story began before, the archive has its beginning.",
				begin.UpTo, begin.AppendedAt.Format(timeLayout)), "archive: "+begin.Archive)
		}
		s.tell(l, f.entry)
		s.step(l, "audit", fmt.Sprintf("Entry %d was appended at %s, and is in the signed checkpoint with %d entries.", l.Seq, l.AppendedAt.UTC().Format(timeLayout), c.Size))
	}
	if r.Attestation, err = attestationOf(ctx, tx, org, all[0].link); err != nil {
		return r, err
	}
	r.Summary.Open = int64(len(s.open))
	slices.SortStableFunc(r.Timeline, func(a, b evidence.ReportStep) int { return strings.Compare(a.Time, b.Time) })
	r.ID = "rep_" + evidence.ReportID(r)
	return r, nil
}

// attestationOf returns the newest signed attestation of a link's session, or null.
func attestationOf(ctx context.Context, tx pgx.Tx, org string, l evidence.Link) (jsontext.Value, error) {
	none := jsontext.Value("null")
	if l.SessionID == "" || l.AgentID == "" {
		return none, nil
	}
	generations, err := generationsOf(ctx, tx, org, l.AgentID, l.SessionID)
	if err != nil {
		return none, err
	}
	for _, g := range slices.Backward(generations) {
		switch a, err := GetAttestation(ctx, tx, org, g, 0); {
		case errors.Is(err, ErrNotAttested) || err == nil && a.Envelope == nil:
		case err != nil:
			return none, err
		default:
			v := jsontext.Value(a.Envelope)
			return v, v.Compact()
		}
	}
	return none, nil
}

// A story makes steps of entries.
type story struct {
	r    *evidence.Report
	open map[string]bool // requests without an end
}

func (s *story) step(l evidence.Link, stage, text string, detail ...string) {
	at := l.Time
	if stage == "audit" {
		at = l.AppendedAt
	}
	s.r.Timeline = append(s.r.Timeline, evidence.ReportStep{Seq: l.Seq, Time: at.UTC().Format(timeLayout), Stage: stage, Text: text, Detail: append([]string{}, detail...)})
}

func add(list *[]string, names ...string) {
	for _, name := range names {
		if name != "" && !slices.Contains(*list, name) {
			*list = append(*list, name)
		}
	}
}

func (s *story) tell(l evidence.Link, entry []byte) {
	sum := &s.r.Summary
	add(&sum.Agents, l.AgentID)
	e, err := Parse(entry)
	if err != nil || l.Kind == KindMalformed {
		s.step(l, "audit", "The entry could not be read when it arrived, and is in the log unchanged.")
		return
	}
	switch e := e.(type) {
	case Decided:
		sum.Requests++
		s.open[l.RequestID] = true
		add(&sum.Models, e.Model)
		add(&sum.Policies, e.PolicyIDs...)
		s.step(l, "gateway", fmt.Sprintf("Agent %s asked for %s.", named(e.AgentName, e.AgentID), first(e.Operation, e.Path)),
			fields("request", l.RequestID, "model", e.Model, "provider", e.Provider, "key", e.KeyID, "session", e.Session(), "client", e.ClientIP, "trace", e.TraceID, "body", e.BodyDigest)...)
		var detail []string
		if e.Effect == "allow" {
			sum.Allowed++
		} else {
			sum.Denied++
		}
		for _, reason := range e.Reasons {
			detail = append(detail, strings.TrimSuffix("reason "+reason.Code+": "+reason.Message, ": "))
		}
		detail = append(detail, fields("policies", strings.Join(e.PolicyIDs, ", "), "version", e.PolicyVersion)...)
		for _, limit := range e.Limits {
			detail = append(detail, fmt.Sprintf("limit %s of %s: %d", limit.Limit, first(limit.PolicyID, limit.Source), limit.Max))
		}
		s.step(l, "policy", "The decision: "+e.Effect+".", detail...)
	case Settled:
		delete(s.open, l.RequestID)
		if e.Priced {
			sum.CostNanoUSD += e.CostNanoUSD
		} else {
			sum.Unpriced++
		}
		cost := "not known"
		if e.Priced {
			cost = strconv.FormatInt(e.CostNanoUSD, 10) + " nano-dollars"
		}
		s.step(l, "upstream", "The request ended: "+e.Outcome+".",
			fields("status", number(int64(e.Status)), "model", e.ResponseModel, "provider", e.Provider, "provider request", e.ProviderRequestID, "input tokens", number(e.Usage.InputTokens),
				"output tokens", number(e.Usage.OutputTokens), "duration (µs)", number(e.DurationUS), "cost", cost)...)
	default:
		s.step(l, "audit", "The audit log records "+e.Head().Kind+".")
	}
}

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func named(name, id string) string {
	if name == "" {
		return first(id, "(unknown)")
	}
	return name + " (" + id + ")"
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// fields returns "name: value" of each pair that has a value.
func fields(pairs ...string) (out []string) {
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			out = append(out, pairs[i]+": "+pairs[i+1])
		}
	}
	return out
}

// SignReport returns the report as a signed envelope in JSON.
func SignReport(ctx context.Context, r evidence.Report, s evidence.Signer) ([]byte, error) {
	payload, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	e, err := evidence.SignEnvelope(ctx, evidence.ReportType, payload, s)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(e)
	return append(b, '\n'), err
}
