package api

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
)

// maxBody limits a request's body. The largest useful body is a policy.
const maxBody = 1 << 20

// caller is the caller's key, and the request.
type caller struct {
	org            string
	key            identity.OrgKeyRecord // of an agent's key: only its ID
	asAgent        string                // the agent of an agent's key; empty: an org key
	requestID      string
	method, target string // as sent; an idempotency key stands for them and the body
	idempotencyKey string
	ifMatch        []string
	body           []byte
}

type callerKey struct{}

// guard returns the checks that run before every row's handler.
func (s *Server) guard(r route) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		req, w := humago.Unwrap(ctx)
		c := &caller{
			requestID: requestIDOf(ctx.Context()), method: req.Method, target: req.URL.RequestURI(),
			ifMatch: req.Header.Values("If-Match"),
		}
		steps := []func(context.Context, *http.Request, route, *caller) *problem{s.identify, permit, readQuery, readBody, s.noNulls}
		if r.Public {
			steps = steps[2:]
		}
		for _, step := range steps {
			if p := step(ctx.Context(), req, r, c); p != nil {
				write(w, c.requestID, p)
				return
			}
		}
		next(huma.WithValue(ctx, callerKey{}, c))
	}
}

// identify looks the key up. A string without the form of a key is rejected without a
// database query.
func (s *Server) identify(ctx context.Context, r *http.Request, row route, c *caller) *problem {
	headers := r.Header["Authorization"]
	if len(headers) == 0 || headers[0] == "" {
		return s.unidentified(ctx, r, "missing", "The request has no key.", "Send the header Authorization: Bearer aid_org_…, with a key of your organization.")
	}
	if len(headers) > 1 {
		return s.unidentified(ctx, r, "malformed", "The request has more than one Authorization header.", "Send it once.")
	}
	scheme, secret, _ := strings.Cut(headers[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return s.unidentified(ctx, r, "malformed", "The header Authorization has no bearer key.", "Send Authorization: Bearer aid_org_…")
	}
	kind, hash, err := identity.Parse(secret)
	switch {
	case err != nil:
		return s.unidentified(ctx, r, "malformed", "This is not a key of this product: its form or its checksum is wrong.", "Check that the whole key was copied. The management API accepts organization keys, aid_org_…")
	case kind == identity.AgentKey && row.Agents:
		return s.identifyAgent(ctx, r, hash, c)
	case kind == identity.AgentKey:
		return s.unidentified(ctx, r, "wrong_kind", "This is an agent's key, which is for calling models. The management API accepts organization keys.", "Send Authorization: Bearer aid_org_…")
	case kind != identity.OrgKey:
		return s.unidentified(ctx, r, "wrong_kind", "This is a node's token, which is for fetching configuration. The management API accepts organization keys.", "Send Authorization: Bearer aid_org_…")
	}
	err = s.c.DB.Presenting(ctx, hex.EncodeToString(hash[:]), func(tx pgx.Tx) error {
		c.key, err = identity.OrgKeyPresented(ctx, tx, hash)
		return err
	})
	if errors.Is(err, identity.ErrNotFound) {
		return s.unidentified(ctx, r, "unknown", "This key does not exist.", "Ask an admin of your organization for a new one.")
	}
	if err != nil {
		var p *problem
		if errors.As(s.refused(ctx, err), &p) {
			return p
		}
		return internal()
	}
	// The caller has the secret, so the response may include the key's state.
	var inactive *identity.Inactive
	switch err := c.key.ActiveAt(s.c.Now()); {
	case err == nil:
		c.org = c.key.OrgID
		return nil
	case errors.As(err, &inactive) && inactive.Reason == "key_expired":
		return s.unidentified(ctx, r, "expired", "This key has expired.", "Ask an admin of your organization for a new one.")
	default:
		return s.unidentified(ctx, r, "revoked", "This key was revoked.", "Ask an admin of your organization for a new one.")
	}
}

// identifyAgent looks up an agent's key, for rows that accept one.
func (s *Server) identifyAgent(ctx context.Context, r *http.Request, hash [32]byte, c *caller) *problem {
	presented := hex.EncodeToString(hash[:])
	var found identity.Caller
	err := s.c.DB.Presenting(ctx, presented, func(tx pgx.Tx) error {
		orgs, err := identity.OrgsOfKeys(ctx, tx, []string{presented})
		if c.org = orgs[presented]; err == nil && c.org == "" {
			err = identity.ErrNotFound
		}
		return err
	})
	if err == nil {
		err = s.c.DB.InOrg(ctx, c.org, func(tx pgx.Tx) (err error) {
			found, err = identity.CallerByHash(ctx, tx, hash)
			return err
		})
	}
	if errors.Is(err, identity.ErrNotFound) {
		return s.unidentified(ctx, r, "unknown", "This key does not exist.", "Ask an admin of your organization for a new one.")
	}
	if err != nil {
		var p *problem
		if errors.As(s.refused(ctx, err), &p) {
			return p
		}
		return internal()
	}
	var inactive *identity.Inactive
	switch err := found.ActiveAt(s.c.Now()); {
	case err == nil && found.Agent.OrgID == c.org:
		c.asAgent, c.key.ID = found.Agent.ID, found.Key.ID
		return nil
	case errors.As(err, &inactive) && inactive.Reason == "key_expired":
		return s.unidentified(ctx, r, "expired", "This key has expired.", "Ask an admin of your organization for a new one.")
	default:
		return s.unidentified(ctx, r, "revoked", "This key was revoked, or its agent may not make requests.", "Ask an admin of your organization for a new one.")
	}
}

func (s *Server) unidentified(ctx context.Context, r *http.Request, reason, message, fix string) *problem {
	s.metrics.unknown.WithLabelValues(reason).Inc()
	s.c.Log.InfoContext(ctx, "not identified", "request", requestIDOf(ctx), "reason", reason, "route", r.Pattern, "remote", r.RemoteAddr)
	code := "unauthenticated"
	if reason != "missing" {
		code = "key_" + reason
	}
	return &problem{
		Status: http.StatusUnauthorized, Code: code, Message: message, Field: "Authorization", Fix: fix,
		Header: http.Header{"Www-Authenticate": {`Bearer realm="AI Identity management"`}},
	}
}

// permit reports whether the key's role may do what the row does.
func permit(_ context.Context, _ *http.Request, r route, c *caller) *problem {
	if slices.Contains(r.Roles, c.key.Role) || r.Agents && c.asAgent != "" {
		return nil
	}
	roles := make([]string, len(r.Roles))
	for i, role := range r.Roles {
		roles[i] = string(role)
	}
	return &problem{
		Status: http.StatusForbidden, Code: "role", Message: "A key with the role " + string(c.key.Role) + " may not do this.",
		Fix: "Use a key with the role " + strings.Join(roles, " or ") + ".",
	}
}

// readQuery rejects a query that parsers could read in different ways.
func readQuery(_ context.Context, r *http.Request, _ route, c *caller) *problem {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return &problem{Status: http.StatusBadRequest, Code: "bad_request", Message: "The query string is not well formed.", Fix: "Percent-encode its names and values."}
	}
	for name, values := range q {
		switch {
		case !plain(name) || slices.ContainsFunc(values, func(v string) bool { return !plain(v) }):
			return &problem{Status: http.StatusBadRequest, Code: "bad_request", Message: "The query string is not valid text.", Fix: "Send UTF-8 without NUL, percent-encoded."}
		case len(values) > 1:
			return invalid(fieldProblem{name, quoted(name) + " is in the query twice.", "Send it once."})
		case values[0] == "":
			return invalid(fieldProblem{name, quoted(name) + " has no value.", "Give it a value, or leave it out."})
		}
	}
	if keys := r.Header.Values("Idempotency-Key"); len(keys) > 0 {
		if len(keys) > 1 || keys[0] == "" || len(keys[0]) > 255 || strings.ContainsFunc(keys[0], func(r rune) bool { return r <= ' ' || r > '~' }) {
			return invalid(fieldProblem{"Idempotency-Key", "Idempotency-Key is not one word of 1 to 255 visible ASCII characters.", "Send a UUID, for example."})
		}
		c.idempotencyKey = keys[0]
	}
	return nil
}

func plain(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

// readBody reads the whole body, and makes it readable again.
func readBody(_ context.Context, r *http.Request, row route, c *caller) *problem {
	if !row.takesBody() {
		return nil
	}
	tooLarge := &problem{Status: http.StatusRequestEntityTooLarge, Code: "too_large", Message: "The body is larger than 1 MiB.", Fix: "Send less."}
	if r.ContentLength > maxBody {
		return tooLarge
	}
	if r.Header.Get("Content-Encoding") != "" {
		return &problem{Status: http.StatusUnsupportedMediaType, Code: "unsupported_media_type", Message: "The body must not be compressed.", Field: "Content-Encoding", Fix: "Leave the header out."}
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return &problem{Status: http.StatusBadRequest, Code: "bad_request", Message: "The body ended before it was complete.", Fix: "Send it again."}
	}
	if len(b) > maxBody {
		return tooLarge
	}
	if ct := r.Header.Values("Content-Type"); len(b) > 0 {
		if len(ct) != 1 || !jsonType(ct[0], r.Method == http.MethodPatch) {
			return unsupportedMedia()
		}
	}
	c.body = b
	r.Body = io.NopCloser(bytes.NewReader(b))
	return nil
}

// noNulls rejects null for a field that the description requires to have a value. huma's
// validation treats such a null as an absent field.
func (s *Server) noNulls(_ context.Context, _ *http.Request, row route, c *caller) *problem {
	schema := s.bodies[row.ID]
	if row.Raw || schema == nil || len(c.body) == 0 {
		return nil
	}
	var v any
	if json.Unmarshal(c.body, &v) != nil {
		return nil // reading the body later reports what is wrong
	}
	if field, found := s.null(schema, v, ""); found {
		what := quoted(field)
		if field == "" {
			what = "The body"
		}
		return invalid(fieldProblem{field, what + " is null.", "Give it a value, or leave it out."})
	}
	return nil
}

// null returns the first field that is null and must not be.
func (s *Server) null(schema *huma.Schema, v any, field string) (string, bool) {
	if schema = s.resolved(schema); schema == nil {
		return "", false
	}
	switch v := v.(type) {
	case nil:
		return field, !schema.Nullable && schema.Type != ""
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			inner := schema.Properties[name]
			if inner == nil {
				inner, _ = schema.AdditionalProperties.(*huma.Schema)
			}
			if f, found := s.null(inner, v[name], strings.TrimPrefix(field+"."+name, ".")); found {
				return f, true
			}
		}
	case []any:
		for i, e := range v {
			if f, found := s.null(schema.Items, e, field+"["+itoa(int64(i))+"]"); found {
				return f, true
			}
		}
	}
	return "", false
}

func jsonType(ct string, patch bool) bool {
	t, params, err := mime.ParseMediaType(ct)
	if err != nil {
		return false
	}
	if charset, ok := params["charset"]; ok && !strings.EqualFold(charset, "utf-8") {
		return false
	}
	return t == "application/json" || patch && t == "application/merge-patch+json"
}

// call is one request inside its transaction.
type call struct {
	*Server
	*caller
	tx  pgx.Tx
	now time.Time // the time of the transaction, with Postgres's precision

	committed []func() // called when the transaction is committed
}

// act runs a handler in a transaction of the caller's org.
func act[I, O any](ctx context.Context, s *Server, r route, in *I, fn func(context.Context, *call, *I) (*O, error)) (*O, error) {
	c, ok := ctx.Value(callerKey{}).(*caller)
	if !ok {
		return nil, internal() // a row without its guard: deny
	}
	var out *O
	var x *call
	err := s.c.DB.InOrg(ctx, c.org, func(tx pgx.Tx) error {
		x = &call{Server: s, caller: c, tx: tx, now: s.c.Now().UTC().Truncate(time.Microsecond)}
		if r.Method != http.MethodPost || c.idempotencyKey == "" {
			o, err := fn(ctx, x, in)
			out = o
			return err
		}
		o, err := once(ctx, x, func() (*O, error) { return fn(ctx, x, in) })
		out = o
		return err
	})
	if err == nil {
		for _, f := range x.committed {
			f()
		}
		return out, nil
	}
	var model *huma.ErrorModel
	if errors.As(err, &model) {
		return nil, model // from the validation of a patch; reworded converts it
	}
	return nil, s.refused(ctx, err)
}

// record appends a change to the org's audit log. Before and after are the object as the API
// shows it. Before is nil for a new object, and after is nil for a deleted one.
func (x *call) record(ctx context.Context, kind, objectKind, objectID, agentID string, before, after any) error {
	fields, err := changed(before, after)
	if err != nil {
		return err
	}
	return x.recordFields(ctx, kind, objectKind, objectID, agentID, fields, before, after)
}

// actor is the key that sent the request, for the audit log.
func (x *call) actor() audit.Actor {
	if x.asAgent != "" {
		return audit.Actor{Kind: "agent_key", ID: x.key.ID}
	}
	return audit.Actor{Kind: "org_key", ID: x.key.ID, Role: string(x.key.Role)}
}

// recordFields is record for a change of fields that the API does not show.
func (x *call) recordFields(ctx context.Context, kind, objectKind, objectID, agentID string, fields []string, before, after any) error {
	e := audit.Changed{
		Kind: kind, Time: x.now, Actor: x.actor(),
		RequestID: x.requestID, ObjectKind: objectKind, ObjectID: objectID, AgentID: agentID, Fields: fields,
	}
	var err error
	if e.Before, err = digest(before); err != nil {
		return err
	}
	if e.After, err = digest(after); err != nil {
		return err
	}
	_, err = x.c.Chain.Record(ctx, x.tx, x.org, e)
	return err
}

// newID makes an id for a new object.
func (x *call) newID(prefix string) (string, error) {
	return identity.NewID(prefix, x.now, x.c.Rand)
}

// expiry returns the time after so many days. For 0 it returns the zero time, which is never.
func (x *call) expiry(days int64) time.Time {
	if days == 0 {
		return time.Time{}
	}
	return x.now.AddDate(0, 0, int(days))
}

// isID reports whether s has the form of an id of that kind. Other strings are not looked up.
func isID(prefix, s string) bool {
	rest, ok := strings.CutPrefix(s, prefix)
	return ok && rest != "" && len(s) <= 64 && strings.Trim(rest, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == ""
}
