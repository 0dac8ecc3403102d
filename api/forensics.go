package api

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"html/template"
	"net/http"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
)

// ReportIn orders a forensics report. Its fields combine.
type ReportIn struct {
	RequestID     string `json:"request_id,omitempty" maxLength:"128" doc:"The request: the value of its header X-Request-ID." example:"req_01k0000000abcdefghjkmnpqrs"`
	CorrelationID string `json:"correlation_id,omitempty" maxLength:"128" doc:"The same: X-Request-ID correlates gateway, policy, provider and audit log."`
	SessionID     string `json:"session_id,omitempty" maxLength:"256" doc:"The session. Send its agent_id too."`
	AgentID       string `json:"agent_id,omitempty" maxLength:"128" doc:"The agent of the session."`
	Format        string `json:"format,omitempty" enum:"json,html" default:"json" doc:"json: signed. html: a page to read, which is not signed." example:"json"`
}

// document is a file in a response.
type document struct {
	ContentType string `header:"Content-Type" doc:"application/json, or text/html; charset=utf-8"`
	Disposition string `header:"Content-Disposition" doc:"The name of the file."`
	CSP         string `header:"Content-Security-Policy" doc:"The page may load nothing and run no script."`
	Replayed    string `header:"Idempotency-Replayed" doc:"true if this response was replayed for the same Idempotency-Key."`
	Body        []byte
}

func (d *document) replayed() { d.Replayed = "true" }

func createReport(ctx context.Context, x *call, in *struct{ Body ReportIn }) (*document, error) {
	b := in.Body
	of := audit.Story{Request: cmp.Or(b.RequestID, b.CorrelationID), Session: b.SessionID, Agent: b.AgentID}
	if b.CorrelationID != "" && b.CorrelationID != of.Request {
		return nil, noStory()
	}
	s, err := x.signer()
	if err != nil && b.Format != "html" {
		return nil, err
	}
	r, err := audit.MakeReport(ctx, x.tx, x.org, of, x.now)
	switch {
	case errors.Is(err, audit.ErrNoEntry):
		p := noStory()
		if begin, err := audit.BeginOf(ctx, x.tx, x.org); err != nil {
			return nil, err
		} else if begin.UpTo > 0 {
			p.Fix = "Entries until " + begin.AppendedAt.Format(time.RFC3339) + " left the database: look into the archive. " + p.Fix
		}
		return nil, p
	case errors.Is(err, audit.ErrNoCheckpoint), errors.Is(err, audit.ErrCheckpointBehind):
		return nil, &problem{
			Status: http.StatusConflict, Code: "checkpoint_behind", Message: "No checkpoint covers its newest entries yet.", Fix: "Send it again in a few seconds.",
			Header: http.Header{"Retry-After": {"3"}},
		}
	case errors.Is(err, audit.ErrReportTooLong):
		return nil, &problem{Status: http.StatusConflict, Code: "too_many", Message: "The story has more entries than a report may have.", Fix: "Order an export: POST /v1/audit/exports"}
	case err != nil:
		return nil, err
	}
	const csp = "default-src 'none'; frame-ancestors 'none'"
	if b.Format == "html" {
		var page bytes.Buffer
		if err := reportPage.Execute(&page, reportShown{r, r.Attestation.Kind() == '{'}); err != nil {
			return nil, err
		}
		return &document{
			ContentType: "text/html; charset=utf-8", Disposition: `inline; filename="forensics_report.html"`,
			CSP: "style-src 'sha256-" + reportStyleHash + "'; " + csp, Body: page.Bytes(),
		}, nil
	}
	signed, err := audit.SignReport(ctx, r, s)
	if err != nil {
		return nil, err
	}
	return &document{ContentType: "application/json", Disposition: `attachment; filename="forensics_report.json"`, CSP: csp, Body: signed}, nil
}

func noStory() *problem {
	return &problem{
		Status: http.StatusNotFound, Code: "not_found", Message: "The audit log has no entry about it.",
		Fix: "Send request_id, or session_id with agent_id, and check them. A sidecar ships entries within seconds.",
	}
}

const reportStyle = `body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.35rem .6rem;border-bottom:1px solid #d5dae0}
ul{margin:.2rem 0;padding-left:1.2rem;color:#4a525c}pre{background:#f4f6f8;padding:.7rem;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.8rem}
.stage{font-weight:600;white-space:nowrap}`

var reportStyleHash = func() string {
	sum := sha256.Sum256([]byte(reportStyle))
	return base64.StdEncoding.EncodeToString(sum[:])
}()

// reportShown is what the page is made of.
type reportShown struct {
	evidence.Report
	Attested bool
}

// reportPage escapes every value for its place.
var reportPage = template.Must(template.New("report").Parse(`<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Forensics report {{.ID}}</title><style>` + reportStyle + `</style></head>
<body>
<h1>Forensics report</h1>
<p>{{if eq .Subject.Kind "session_id"}}Session{{else}}Request{{end}} <b>{{.Subject.ID}}</b> of organization {{.Org}}, made at {{.CreatedAt}}. Report {{.ID}}.</p>
<p>This page is for reading and has no signature. Order the report with <code>"format":"json"</code> and check it with <code>ai_identity_verify report forensics_report.json</code>.</p>
<h2>Summary</h2>
<table>
<tr><th>Requests</th><td>{{.Summary.Requests}}: {{.Summary.Allowed}} allowed, {{.Summary.Denied}} denied, {{.Summary.Open}} without an end yet</td></tr>
<tr><th>Agents</th><td>{{range .Summary.Agents}}{{.}} {{end}}</td></tr>
<tr><th>Models</th><td>{{range .Summary.Models}}{{.}} {{end}}</td></tr>
<tr><th>Policies</th><td>{{range .Summary.Policies}}{{.}} {{end}}</td></tr>
<tr><th>Known cost</th><td>{{.Summary.CostNanoUSD}} nano-dollars; {{.Summary.Unpriced}} completions with unknown cost</td></tr>
</table>
<h2>What happened</h2>
<table>
<tr><th>Time (UTC)</th><th>Stage</th><th>Step</th><th>Entry</th></tr>
{{range .Timeline}}<tr><td>{{.Time}}</td><td class="stage">{{.Stage}}</td><td>{{.Text}}{{if .Detail}}<ul>{{range .Detail}}<li>{{.}}</li>{{end}}</ul>{{end}}</td><td>{{.Seq}}</td></tr>
{{end}}</table>
<h2>Attestation</h2>
<p>{{if .Attested}}The session has a signed attestation, which is in the signed form of this report.{{else}}The session has no attestation yet.{{end}}</p>
<h2>Checkpoints</h2>
<p>Each entry was proved to be in the log of its checkpoint before this page was made.</p>
{{range .Bundle.Checkpoints}}<pre>{{.}}</pre>
{{end}}</body>
</html>
`))
