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

// maxBody bounds a request's body. The largest that makes sense is a policy.
const maxBody = 1 << 20

// caller is who asks, and what they sent.
type caller struct {
	org            string
	key            identity.OrgKeyRecord
	requestID      string
	method, target string // as sent: part of what an idempotency key stands for
	idempotencyKey string
	ifMatch        []string
	body           []byte
}

type callerKey struct{}

// guard is what every row goes through before its handler.
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

// identify finds whose key was sent. What cannot be one of our keys is rejected for
// its form: it never reaches the database.
func (s *Server) identify(ctx context.Context, r *http.Request, _ route, c *caller) *problem {
	headers := r.Header["Authorization"]
	if len(headers) == 0 || headers[0] == "" {
		return s.unidentified(ctx, r, "missing", "There is no key in the request.", "Send the header Authorization: Bearer aid_org_…, with a key of your organization.")
	}
	if len(headers) > 1 {
		return s.unidentified(ctx, r, "malformed", "The header Authorization is there more than once.", "Send it once.")
	}
	scheme, secret, _ := strings.Cut(headers[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return s.unidentified(ctx, r, "malformed", "The header Authorization does not hold a bearer key.", "Send Authorization: Bearer aid_org_…")
	}
	kind, hash, err := identity.Parse(secret)
	switch {
	case err != nil:
		return s.unidentified(ctx, r, "malformed", "This is not one of our keys: its form or its checksum is wrong.", "Check that all of it was copied. Management takes an organization key, aid_org_…")
	case kind == identity.AgentKey:
		return s.unidentified(ctx, r, "wrong_kind", "This is an agent's key, which is for calling models. Management takes an organization key.", "Send Authorization: Bearer aid_org_…")
	case kind != identity.OrgKey:
		return s.unidentified(ctx, r, "wrong_kind", "This is a node's token, which is for fetching configuration. Management takes an organization key.", "Send Authorization: Bearer aid_org_…")
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
	// The caller has the secret, so it may learn the key's state.
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

// permit says whether the key's role may do what the row does.
func permit(_ context.Context, _ *http.Request, r route, c *caller) *problem {
	if slices.Contains(r.Roles, c.key.Role) {
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

// readQuery rejects what two readers could understand in two ways.
func readQuery(_ context.Context, r *http.Request, _ route, c *caller) *problem {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return &problem{Status: http.StatusBadRequest, Code: "bad_request", Message: "The query string is not well formed.", Fix: "Percent-encode what is in it."}
	}
	for name, values := range q {
		switch {
		case !plain(name) || slices.ContainsFunc(values, func(v string) bool { return !plain(v) }):
			return &problem{Status: http.StatusBadRequest, Code: "bad_request", Message: "The query string holds what is not text.", Fix: "Send UTF-8 without NUL, percent-encoded."}
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

// readBody takes the whole body, and gives it back to be read once more.
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
		return &problem{Status: http.StatusBadRequest, Code: "bad_request", Message: "The body ended before its end.", Fix: "Send it again."}
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

// noNulls rejects null where the description has a value. Validation takes a field
// that is null for one that is absent.
func (s *Server) noNulls(_ context.Context, _ *http.Request, row route, c *caller) *problem {
	schema := s.bodies[row.ID]
	if row.Raw || schema == nil || len(c.body) == 0 {
		return nil
	}
	var v any
	if json.Unmarshal(c.body, &v) != nil {
		return nil // what is wrong with it is found when it is read for good
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

// null finds the first field that is null and may not be.
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
	now time.Time // of the whole transaction, as Postgres keeps it
}

// act runs a handler in a transaction of the caller's org.
func act[I, O any](ctx context.Context, s *Server, r route, in *I, fn func(context.Context, *call, *I) (*O, error)) (*O, error) {
	c, ok := ctx.Value(callerKey{}).(*caller)
	if !ok {
		return nil, internal() // a row without its guard: deny
	}
	var out *O
	err := s.c.DB.InOrg(ctx, c.org, func(tx pgx.Tx) error {
		x := &call{Server: s, caller: c, tx: tx, now: s.c.Now().UTC().Truncate(time.Microsecond)}
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
		return out, nil
	}
	var model *huma.ErrorModel
	if errors.As(err, &model) {
		return nil, model // of a patch's validation; reworded knows it
	}
	return nil, s.refused(ctx, err)
}

// record puts a change into the org's record. Before and after are the object as
// the API shows it, nil where there is none.
func (x *call) record(ctx context.Context, kind, objectKind, objectID, agentID string, before, after any) error {
	fields, err := changed(before, after)
	if err != nil {
		return err
	}
	return x.recordFields(ctx, kind, objectKind, objectID, agentID, fields, before, after)
}

// recordFields is record for a change that does not show in the object.
func (x *call) recordFields(ctx context.Context, kind, objectKind, objectID, agentID string, fields []string, before, after any) error {
	e := audit.Changed{
		Kind: kind, Time: x.now, Actor: audit.Actor{Kind: "org_key", ID: x.key.ID, Role: string(x.key.Role)},
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

// expiry is when something ends that is to last for days; never for 0.
func (x *call) expiry(days int64) time.Time {
	if days == 0 {
		return time.Time{}
	}
	return x.now.AddDate(0, 0, int(days))
}

// isID says whether s can be an id of that kind. What cannot is not looked up.
func isID(prefix, s string) bool {
	rest, ok := strings.CutPrefix(s, prefix)
	return ok && rest != "" && len(s) <= 64 && strings.Trim(rest, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == ""
}
