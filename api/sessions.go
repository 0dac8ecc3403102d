package api

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/ai-identity/ai-identity/audit"
)

// Session is a session of an agent.
type Session struct {
	ID         string     `json:"id" doc:"The caller's X-Session-ID, or the sidecar's id." example:"sess_8f2a4c71b9"`
	AgentID    string     `json:"agent_id" doc:"The agent. Agents never share a session." example:"ag_01k0000000abcdefghjkmnpqrs"`
	Generation int        `json:"generation" doc:"From 1. An id that is used again after its session was closed begins the next one." example:"1"`
	Status     string     `json:"status" enum:"open,closed" doc:"Whether requests with the id still belong to it."`
	OpenedAt   time.Time  `json:"opened_at" doc:"The time of its first decision, UTC." example:"2026-01-31T12:00:00Z"`
	LastAt     time.Time  `json:"last_at" doc:"The time of its last entry, UTC." example:"2026-01-31T12:05:00Z"`
	ClosedAt   *time.Time `json:"closed_at" doc:"Decisions up to this time belong to it; null: it is open."`
	ClosedBy   string     `json:"closed_by,omitempty" doc:"The key that closed it, or idle." example:"idle"`
	Entries    int64      `json:"entries" doc:"Its entries in the audit log so far." example:"6"`
}

func sessionOf(s audit.SessionRow) Session {
	out := Session{
		ID: s.SessionID, AgentID: s.AgentID, Generation: s.Generation, Status: "open", OpenedAt: s.OpenedAt, LastAt: s.LastAt, ClosedAt: at(s.ClosedAt),
		ClosedBy: s.ClosedBy, Entries: s.Entries,
	}
	if out.ClosedAt != nil {
		out.Status = "closed"
	}
	return out
}

func listSessions(ctx context.Context, x *call, in *struct {
	AgentID string `query:"agent_id" maxLength:"128" doc:"Return only sessions of this agent." example:"ag_01k0000000abcdefghjkmnpqrs"`
	Status  string `query:"status" enum:"open,closed" doc:"Return only open or only closed sessions."`
	Limit   int    `query:"limit" minimum:"1" maximum:"100" default:"20" doc:"The most sessions to return."`
	After   string `query:"after" pattern:"^[1-9][0-9]{0,17}$" patternDescription:"the next of the page before" doc:"The value of next in the page before. The list continues after it." example:"412"`
}) (*paged[Session], error) {
	after, _ := strconv.ParseInt(in.After, 10, 64) // validation has checked the form
	if err := audit.CatchUpSessions(ctx, x.tx, x.org); err != nil {
		return nil, err
	}
	rows, err := audit.ListSessions(ctx, x.tx, in.AgentID, in.Status, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	next := ""
	if len(rows) > in.Limit {
		next = itoa(rows[in.Limit-1].OpenedSeq)
	}
	return listed(each(rows, sessionOf), in.Limit, func(Session) string { return next }), nil
}

// OfSession selects a session. Two agents may have sessions with the same id.
type OfSession struct {
	SessionID string `path:"session_id" maxLength:"256" doc:"The session's id." example:"sess_8f2a4c71b9"`
	AgentID   string `query:"agent_id" maxLength:"128" doc:"The agent. It is required if several agents have a session with this id." example:"ag_01k0000000abcdefghjkmnpqrs"`
}

// wrongSession returns the response for an error about a session.
func wrongSession(err error, id string) error {
	var ambiguous *audit.ErrAmbiguous
	switch {
	case errors.Is(err, audit.ErrNoSession):
		return &problem{Status: http.StatusNotFound, Code: "not_found", Message: "The audit log has no session with this id.", Fix: "List them: GET /v1/sessions. Entries reach the log about a second after the response."}
	case errors.As(err, &ambiguous):
		return &problem{
			Status: http.StatusConflict, Code: "ambiguous_session", Message: strconv.Itoa(len(ambiguous.Agents)) + " agents have a session with this id: " +
				strings.Join(ambiguous.Agents[:min(len(ambiguous.Agents), 20)], ", ") + ".", Field: "agent_id", Fix: "Add ?agent_id=… with one of them.",
		}
	}
	return err
}

type closing struct {
	Replayed string `header:"Idempotency-Replayed" doc:"true if this response was sent before, to the same Idempotency-Key."`
	Body     Session
}

func (c *closing) replayed() { c.Replayed = "true" }

func closeSession(ctx context.Context, x *call, in *struct{ OfSession }) (*closing, error) {
	agent := in.AgentID
	if x.asAgent != "" {
		if agent != "" && agent != x.asAgent {
			return nil, wrongSession(audit.ErrNoSession, in.SessionID)
		}
		agent = x.asAgent
	}
	s, closed, err := audit.CloseSession(ctx, x.tx, x.org, agent, in.SessionID, x.key.ID, x.now)
	if err != nil {
		return nil, wrongSession(err, in.SessionID)
	}
	if closed {
		if _, err := x.c.Chain.Record(ctx, x.tx, x.org, audit.SessionClosed(s, x.actor(), x.now, x.requestID)); err != nil {
			return nil, err
		}
	}
	return &closing{Body: sessionOf(s)}, nil
}

// signedDocument is a DSSE envelope in responses.
type signedDocument struct{ raw jsontext.Value }

func (d signedDocument) MarshalJSON() ([]byte, error) { return d.raw, nil }

// Schema describes an envelope; docs/evidence.md describes the statement in it.
func (signedDocument) Schema(huma.Registry) *huma.Schema {
	text := func(doc string) *huma.Schema { return &huma.Schema{Type: huma.TypeString, Description: doc} }
	return &huma.Schema{
		Type: huma.TypeObject, Description: "A DSSE envelope.", Required: []string{"payloadType", "payload", "signatures"},
		Properties: map[string]*huma.Schema{
			"payloadType": text("application/vnd.in-toto+json."), "payload": text("The statement, in base64."),
			"signatures": {Type: huma.TypeArray, Items: &huma.Schema{
				Type: huma.TypeObject, Required: []string{"keyid", "sig"},
				Properties: map[string]*huma.Schema{"keyid": text("The key's id in the JWKS."), "sig": text("ECDSA P-256, ASN.1 DER, in base64.")},
			}},
		},
	}
}

func sessionOpen(message, fix string) *problem {
	return &problem{Status: http.StatusConflict, Code: "session_open", Message: message, Fix: fix}
}

func getAttestation(ctx context.Context, x *call, in *struct {
	OfSession
	Generation int `query:"generation" minimum:"1" maximum:"1000000000" doc:"The generation. The newest one if left out." example:"1"`
	Revision   int `query:"revision" minimum:"1" maximum:"1000000000" doc:"The revision. The newest one if left out." example:"1"`
}) (*one[signedDocument], error) {
	if err := audit.CatchUpSessions(ctx, x.tx, x.org); err != nil {
		return nil, err
	}
	all, err := audit.SessionGenerations(ctx, x.tx, x.org, in.AgentID, in.SessionID)
	if err != nil {
		return nil, wrongSession(err, in.SessionID)
	}
	s := all[len(all)-1]
	if in.Generation != 0 {
		found := false
		for _, g := range all {
			if g.Generation == in.Generation {
				s, found = g, true
			}
		}
		if !found {
			return nil, wrongSession(audit.ErrNoSession, in.SessionID)
		}
	}
	if s.ClosedAt.IsZero() {
		return nil, sessionOpen("Generation "+strconv.Itoa(s.Generation)+" of the session is open.", "Close it: POST /v1/sessions/{session_id}/close. Without requests for 30 minutes it is closed.")
	}
	if _, err := x.signer(); err != nil {
		return nil, err
	}
	a, err := audit.GetAttestation(ctx, x.tx, x.org, s, in.Revision)
	switch {
	case errors.Is(err, audit.ErrNotAttested) && in.Revision != 0:
		return nil, &problem{Status: http.StatusNotFound, Code: "not_found", Message: "The session has no attestation with this revision.", Field: "revision", Fix: "Leave revision out to get the newest one."}
	case errors.Is(err, audit.ErrNotAttested):
		return nil, sessionOpen("The session is closed and not attested yet: requests are not completed, or sidecars have not confirmed that all of their records are shipped.", "Try again in some seconds.")
	case err != nil:
		return nil, err
	case a.Envelope == nil:
		return nil, &problem{
			Status: http.StatusServiceUnavailable, Code: "signing_unavailable", Message: "The attestation waits for its signature: the signing key is not available.", Fix: "Try again later.",
			Header: http.Header{"Retry-After": {"5"}},
		}
	}
	return &one[signedDocument]{Body: signedDocument{jsontext.Value(a.Envelope)}}, nil
}
