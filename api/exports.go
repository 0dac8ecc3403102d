package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
)

// ExportIn orders an export.
type ExportIn struct {
	AgentID   string    `json:"agent_id,omitempty" maxLength:"128" doc:"Only entries of this agent." example:"ag_01k0000000abcdefghjkmnpqrs"`
	SessionID string    `json:"session_id,omitempty" maxLength:"256" doc:"Only entries of this session." example:"sess_01k0000000abcdefghjkmnpqrs"`
	RequestID string    `json:"request_id,omitempty" maxLength:"128" doc:"Only entries of this request." example:"req_01k0000000abcdefghjkmnpqrs"`
	Kind      string    `json:"kind,omitempty" maxLength:"64" doc:"Only entries of this kind." example:"request.decided"`
	Since     time.Time `json:"since,omitzero" doc:"Only entries with this time or a later one." example:"2026-01-01T00:00:00Z"`
	Until     time.Time `json:"until,omitzero" doc:"Only entries with an earlier time." example:"2026-02-01T00:00:00Z"`
	After     string    `json:"after,omitempty" maxLength:"64" doc:"The id of an export with the same filter. This one begins behind its end, and marks entries that arrived late."`
	AsOf      time.Time `json:"as_of,omitzero" doc:"Up to the first checkpoint at this time or later. The default is the newest checkpoint." example:"2026-02-01T01:00:00Z"`
	Newest    bool      `json:"newest_entry,omitempty" doc:"The checkpoint must cover the newest entry. If none does yet, the response is 409, and Retry-After says when to send the order again."`
}

// AuditExport is an export on the wire.
type AuditExport struct {
	ID         string      `json:"id" doc:"The export's id. Equal orders have equal ids." example:"exp_0123456789abcdef0123456789abcdef"`
	State      string      `json:"state" enum:"making,complete,failed" doc:"making: get it again in a second. failed: see problem; getting it tries again." example:"complete"`
	Problem    string      `json:"problem,omitempty" doc:"Why it failed." example:"signing: the key is not available"`
	Filter     ExportMatch `json:"filter" doc:"What the entries match."`
	After      string      `json:"after,omitempty" doc:"The export that it continues."`
	FirstSeq   int64       `json:"first_seq" doc:"The number of the first entry in the range." example:"1"`
	LastSeq    int64       `json:"last_seq" doc:"The number of the last entry in the range. The range is empty if it is less than first_seq." example:"6500"`
	Entries    int64       `json:"entries" doc:"Entries that match, when it is complete." example:"412"`
	Size       int64       `json:"size" doc:"Bytes of the file, when it is complete." example:"1925000"`
	SHA256     string      `json:"sha256" doc:"Digest of the file in hex, when it is complete." example:"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"`
	CreatedAt  time.Time   `json:"created_at" doc:"When it was ordered, UTC." example:"2026-02-01T01:00:05Z"`
	Checkpoint string      `json:"checkpoint" doc:"The signed checkpoint up to which it is complete. Keep it: later exports must agree with it."`
	File       string      `json:"file" doc:"The path of the file." example:"/v1/audit/exports/exp_0123456789abcdef0123456789abcdef/file"`
}

// ExportMatch is the filter of an export.
type ExportMatch struct {
	AgentID   string     `json:"agent_id,omitempty" doc:"Entries of this agent."`
	SessionID string     `json:"session_id,omitempty" doc:"Entries of this session."`
	RequestID string     `json:"request_id,omitempty" doc:"Entries of this request."`
	Kind      string     `json:"kind,omitempty" doc:"Entries of this kind."`
	Since     *time.Time `json:"since,omitempty" doc:"Entries from this time on, UTC."`
	Until     *time.Time `json:"until,omitempty" doc:"Entries before this time, UTC."`
}

func exportShown(e audit.Export) AuditExport {
	out := AuditExport{
		ID: e.ID, State: "making", Problem: e.Problem, After: e.After, FirstSeq: e.FirstEntry, LastSeq: e.LastEntry, Entries: e.Entries, Size: e.Size, SHA256: e.SHA256,
		CreatedAt: e.CreatedAt, Checkpoint: e.ExportHeader.End, File: "/v1/audit/exports/" + e.ID + "/file",
		Filter: ExportMatch{AgentID: e.Filter.AgentID, SessionID: e.Filter.SessionID, RequestID: e.Filter.RequestID, Kind: e.Filter.Kind},
	}
	if e.Complete {
		out.State = "complete"
	} else if e.Problem != "" {
		out.State = "failed"
	}
	at := func(micros int64) *time.Time {
		if micros == 0 {
			return nil
		}
		t := time.UnixMicro(micros).UTC()
		return &t
	}
	out.Filter.Since, out.Filter.Until = at(e.Filter.Since), at(e.Filter.Until)
	return out
}

// signer returns the key that signs documents.
func (x *call) signer() (evidence.Signer, error) {
	if x.c.Signer == nil {
		return nil, &problem{
			Status: http.StatusServiceUnavailable, Code: "signing_unavailable", Message: "This control plane has no signing key, so it cannot sign documents.",
			Fix: "Start aid control with --signing-key and --witness-key. `aid keys signing create` creates the keys.",
		}
	}
	return x.c.Signer, nil
}

func createExport(ctx context.Context, x *call, in *struct{ Body ExportIn }) (*made[AuditExport], error) {
	if _, err := x.signer(); err != nil {
		return nil, err
	}
	b := in.Body
	o := audit.ExportOrder{After: b.After, AsOf: b.AsOf, Newest: b.Newest, Filter: evidence.ExportFilter{AgentID: b.AgentID, SessionID: b.SessionID, RequestID: b.RequestID, Kind: b.Kind}}
	for _, t := range []struct {
		name string
		from time.Time
		to   *int64
	}{{"since", b.Since, &o.Filter.Since}, {"until", b.Until, &o.Filter.Until}} {
		if t.from.IsZero() {
			continue
		}
		if *t.to = t.from.UnixMicro(); *t.to <= 0 {
			*t.to = 1 // the first microsecond of 1970: no entry is older
		}
	}
	if o.Filter.Until != 0 && o.Filter.Until <= o.Filter.Since {
		return nil, &problem{Status: http.StatusConflict, Code: "empty_range", Message: "until is not after since, so no entry could match.", Field: "until", Fix: "Send a later time."}
	}
	e, err := audit.OrderExport(ctx, x.tx, x.org, o, x.now)
	switch {
	case errors.Is(err, audit.ErrNoCheckpoint):
		return nil, &problem{
			Status: http.StatusConflict, Code: "no_checkpoint", Message: "No checkpoint of your audit log was signed yet.",
			Fix: "Wait ten seconds after the first entry. If it stays so, start aid control with --signing-key and --witness-key.",
		}
	case errors.Is(err, audit.ErrCheckpointBehind):
		return nil, &problem{
			Status: http.StatusConflict, Code: "checkpoint_behind", Message: "No checkpoint covers what you ordered yet.", Fix: "Send the order again in a few seconds.",
			Header: http.Header{"Retry-After": {"3"}},
		}
	case errors.Is(err, audit.ErrNoExport):
		return nil, &problem{Status: http.StatusNotFound, Code: "not_found", Message: "There is no export with this id.", Field: "after", Fix: "List them: GET /v1/audit/exports"}
	case errors.Is(err, audit.ErrOtherFilter):
		return nil, &problem{Status: http.StatusConflict, Code: "other_filter", Message: "The export to continue has another filter.", Field: "after", Fix: "Send the same filter, or leave after out."}
	case errors.Is(err, audit.ErrArchived):
		begin, err := audit.BeginOf(ctx, x.tx, x.org)
		if err != nil {
			return nil, err
		}
		return nil, archived(begin)
	case err != nil:
		return nil, err
	}
	if e.CreatedAt.Equal(x.now) {
		if err := x.record(ctx, "export.created", "export", e.ID, b.AgentID, nil, exportShown(e)); err != nil {
			return nil, err
		}
	}
	x.makeExport(e)
	return &made[AuditExport]{Location: "/v1/audit/exports/" + e.ID, Body: exportShown(e)}, nil
}

// archived is the response for a range that begins before the log does.
func archived(begin audit.Trim) *problem {
	p := &problem{
		Status: http.StatusConflict, Code: "archived", Message: "Entries of the range are not in the database any more.",
		Fix: "Order without since, or with a later one. The archive has the entries before.",
	}
	if begin.UpTo > 0 {
		p.Message = fmt.Sprintf("Entries of the range are not in the database any more: those up to %d, appended until %s, left it.", begin.UpTo, begin.AppendedAt.Format(time.RFC3339))
	}
	return p
}

// exportJob is an export to make.
type exportJob struct{ org, id string }

// exportQueue limits the exports that wait in one process. One that finds no place is made
// when it is fetched.
const exportQueue = 64

// makeExport makes the file after the transaction is committed, unless it is complete.
func (x *call) makeExport(e audit.Export) {
	if e.Complete {
		return
	}
	j := exportJob{x.org, e.ID}
	x.committed = append(x.committed, func() {
		select {
		case x.exports <- j:
		default:
		}
	})
}

// runExports makes the files of exports until ctx ends.
func (s *Server) runExports(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case j := <-s.exports:
			if s.c.Signer == nil {
				continue
			}
			if _, err := audit.MakeExport(ctx, s.c.DB, j.org, j.id, s.c.Signer, s.c.Now); err != nil && ctx.Err() == nil {
				s.c.Log.ErrorContext(ctx, "an export was not made", "org", j.org, "export", j.id, "err", err)
			}
		}
	}
}

func (x *call) export(ctx context.Context, id string) (audit.Export, error) {
	e, err := audit.GetExport(ctx, x.tx, x.org, id)
	if errors.Is(err, audit.ErrNoExport) {
		return e, &problem{Status: http.StatusNotFound, Code: "not_found", Message: "There is no export with this id.", Fix: "List them: GET /v1/audit/exports"}
	}
	return e, err
}

func getExport(ctx context.Context, x *call, in *ByID) (*one[AuditExport], error) {
	e, err := x.export(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	x.makeExport(e)
	return &one[AuditExport]{Body: exportShown(e)}, nil
}

func listExports(ctx context.Context, x *call, in *struct {
	Limit int    `query:"limit" minimum:"1" maximum:"100" default:"20" doc:"The most exports to return."`
	After string `query:"after" maxLength:"64" doc:"The value of next in the page before. The list continues after it." example:"exp_0123456789abcdef0123456789abcdef"`
}) (*paged[AuditExport], error) {
	all, err := audit.Exports(ctx, x.tx, x.org, in.After, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return listed(each(all, exportShown), in.Limit, func(e AuditExport) string { return e.ID }), nil
}

// getExportFile serves the file. With Range: bytes=OFFSET- it serves the rest of it. The header
// is not in the description: a client that never continues a download need not know it.
func getExportFile(ctx context.Context, x *call, in *ByID) (*huma.StreamResponse, error) {
	e, err := x.export(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	begin, err := audit.BeginOf(ctx, x.tx, x.org)
	if err != nil {
		return nil, err
	}
	if e.FirstEntry <= min(begin.UpTo, e.LastEntry) {
		return nil, archived(begin)
	}
	if !e.Complete {
		x.makeExport(e)
		return nil, &problem{
			Status: http.StatusConflict, Code: "not_complete", Message: "The file is being made.", Fix: "Get GET /v1/audit/exports/" + e.ID + " until its state is complete.",
			Header: http.Header{"Retry-After": {"1"}},
		}
	}
	return &huma.StreamResponse{Body: func(ctx huma.Context) {
		req, w := humago.Unwrap(ctx)
		from, status := offset(req.Header.Get("Range"))
		if from >= e.Size {
			write(w, x.requestID, &problem{
				Status: http.StatusRequestedRangeNotSatisfiable, Code: "range", Message: "The file has only " + itoa(e.Size) + " bytes.", Field: "Range", Fix: "Begin before its end.",
				Header: http.Header{"Content-Range": {"bytes */" + itoa(e.Size)}},
			})
			return
		}
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("Content-Disposition", `attachment; filename="audit_export.json"`)
		h.Set("Content-Length", itoa(e.Size-from))
		h.Set("Accept-Ranges", "bytes")
		h.Set("ETag", `"`+e.SHA256+`"`)
		if status == http.StatusPartialContent {
			h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, e.Size-1, e.Size))
		}
		w.WriteHeader(status)
		if a, ok := w.(*answer); ok {
			a.stream = func(ctx context.Context, w io.Writer) error { return e.Write(ctx, x.c.DB, w, from) }
		}
	}}, nil
}

// offset parses bytes=OFFSET-. Any other range is ignored, as HTTP permits.
func offset(header string) (from int64, status int) {
	if text, ok := strings.CutPrefix(header, "bytes="); ok {
		if text, ok = strings.CutSuffix(text, "-"); ok {
			if n, err := strconv.ParseInt(text, 10, 64); err == nil && n >= 0 {
				return n, http.StatusPartialContent
			}
		}
	}
	return 0, http.StatusOK
}
