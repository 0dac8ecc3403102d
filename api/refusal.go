package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/validation"
	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
)

// problem is every response that is not a success.
type problem struct {
	Status  int
	Code    string // a value of a fixed set, for programs
	Message string // a sentence, for people
	Field   string // the field that is wrong, if it is only one: "allowed_models[2]", "limit"
	Fix     string // what to do
	Fields  []fieldProblem
	Header  http.Header
}

// refusalBody is the body of an error response.
type refusalBody struct {
	Error refusalDetail `json:"error" doc:"What is wrong."`
}

type refusalDetail struct {
	Code      string         `json:"code" doc:"The error's code, for programs." example:"invalid"`
	Message   string         `json:"message" doc:"What is wrong, for people." example:"name is missing."`
	Field     string         `json:"field,omitempty" doc:"The field of the body (allowed_models[2]), the parameter or the header that is wrong, if it is only one." example:"name"`
	Fix       string         `json:"fix,omitempty" doc:"How to fix the error." example:"Give it a string (1 to 100 characters)."`
	RequestID string         `json:"request_id" doc:"The request's id in the log and in the audit log. Quote it when you ask for help." example:"req_01k0000000abcdefghjkmnpqrs"`
	Errors    []fieldProblem `json:"errors,omitempty" nullable:"false" doc:"All fields that are wrong, if there are several."`
}

type fieldProblem struct {
	Field   string `json:"field" doc:"The field, the parameter or the header." example:"name"`
	Message string `json:"message" doc:"What is wrong with it." example:"name is missing."`
	Fix     string `json:"fix,omitempty" doc:"How to fix the error." example:"Give it a string (1 to 100 characters)."`
}

func (p *problem) Error() string           { return p.Message }
func (p *problem) GetStatus() int          { return p.Status }
func (p *problem) GetHeaders() http.Header { return p.Header }

func (p *problem) body(requestID string) refusalBody {
	d := refusalDetail{Code: p.Code, Message: p.Message, Field: p.Field, Fix: p.Fix, RequestID: requestID}
	switch len(p.Fields) {
	case 0:
	case 1:
		d.Field, d.Message, d.Fix = p.Fields[0].Field, p.Fields[0].Message, p.Fields[0].Fix
	default:
		d.Field, d.Fix, d.Errors = p.Fields[0].Field, p.Fields[0].Fix, p.Fields
		d.Message = fmt.Sprintf("%s (and %d more)", strings.TrimSuffix(p.Fields[0].Message, "."), len(p.Fields)-1)
	}
	return refusalBody{d}
}

// write writes a problem for errors outside huma.
func write(w http.ResponseWriter, requestID string, p *problem) {
	for name, values := range p.Header {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(p.Status)
	_ = marshal(w, p.body(requestID)) // into memory
}

// reworded is huma's transformer: it replaces huma's errors with this package's. Values that
// huma quotes are left out, since one may be a secret.
func (s *Server) reworded(ctx huma.Context, _ string, v any) (any, error) {
	var p *problem
	switch e := v.(type) {
	case *problem:
		p = e
	case *huma.ErrorModel:
		p = s.fromHuma(ctx.Operation(), e)
	default:
		return v, nil
	}
	ctx.SetHeader("Content-Type", "application/json")
	return p.body(requestIDOf(ctx.Context())), nil
}

func (s *Server) fromHuma(op *huma.Operation, e *huma.ErrorModel) *problem {
	p := &problem{Status: e.Status, Code: "invalid", Message: sentence(e.Detail)}
	switch e.Status {
	case http.StatusBadRequest:
		p.Code = "bad_request"
		p.Fix = "Send one JSON object as the body."
	case http.StatusUnsupportedMediaType:
		return unsupportedMedia()
	case http.StatusInternalServerError:
		return internal()
	}
	for _, d := range e.Errors {
		if d == nil {
			continue
		}
		p.Fields = append(p.Fields, s.fieldProblem(op, d))
	}
	slices.SortStableFunc(p.Fields, func(a, b fieldProblem) int { return strings.Compare(a.Field, b.Field) })
	return p
}

// fieldProblem converts an error of huma to a message and a fix of this API.
func (s *Server) fieldProblem(op *huma.Operation, d *huma.ErrorDetail) fieldProblem {
	in, field, _ := strings.Cut(d.Location, ".")
	if f, ok := unpack(d.Message); ok {
		return f
	}
	before, after, _ := strings.Cut(validation.MsgExpectedRequiredProperty, "%s")
	if name, ok := strings.CutPrefix(d.Message, before); ok {
		if name, ok := strings.CutSuffix(name, after); ok {
			field = strings.TrimPrefix(field+"."+name, ".")
			return fieldProblem{field, field + " is missing.", s.wanted(op, in, field)}
		}
	}
	switch {
	case d.Message == validation.MsgUnexpectedProperty:
		return fieldProblem{field, "There is no field " + quoted(field) + ".", s.siblings(op, field)}
	case d.Message == "unknown query parameter":
		return fieldProblem{field, "There is no parameter " + quoted(field) + ".", parameters(op)}
	case d.Message == validation.MsgExpectedNotMatchSchema && in == "body":
		if not := s.at(op, field).Not; not != nil && len(not.Required) > 1 {
			return fieldProblem{not.Required[0], strings.Join(not.Required, " and ") + " exclude each other.", "Send one of them."}
		}
		return fieldProblem{field, quoted(field) + " has a value that is not valid.", ""}
	case strings.Contains(d.Message, "schema") && in == "body" && field == "" && len(s.at(op, "").OneOf) > 0:
		var names []string
		for _, one := range s.at(op, "").OneOf {
			names = append(names, one.Required...)
		}
		return fieldProblem{names[0], "Exactly one of " + strings.Join(names, " and ") + " is required.", "Send one of them."}
	case strings.Contains(d.Message, "schema"):
		return fieldProblem{field, quoted(field) + " has a value that is not valid.", s.wanted(op, in, field)}
	case in == "body" && field == "":
		return fieldProblem{"", "The body is not valid: " + sentence(d.Message), "Send one JSON object; /docs shows each field."}
	}
	return fieldProblem{field, field + ": " + sentence(d.Message), s.wanted(op, in, field)}
}

// sentence gives a message a full stop.
func sentence(s string) string {
	if s == "" || strings.HasSuffix(s, ".") {
		return s
	}
	return s + "."
}

// quoted returns a name that a client sent, shortened and printable.
func quoted(s string) string {
	if len(s) > 64 {
		s = strings.ToValidUTF8(s[:64], "") + "…"
	}
	return fmt.Sprintf("%q", s)
}

// at walks a body's schema to a field like "a.b[2].c".
func (s *Server) at(op *huma.Operation, field string) *huma.Schema {
	schema := s.bodies[op.OperationID]
	for _, name := range strings.FieldsFunc(field, func(r rune) bool { return r == '.' || r == '[' }) {
		if schema = s.resolved(schema); schema == nil {
			return nil
		}
		switch {
		case strings.HasSuffix(name, "]"):
			schema = schema.Items
		case schema.Properties[name] != nil:
			schema = schema.Properties[name]
		default:
			schema, _ = schema.AdditionalProperties.(*huma.Schema)
		}
	}
	return s.resolved(schema)
}

func (s *Server) resolved(schema *huma.Schema) *huma.Schema {
	for schema != nil && schema.Ref != "" {
		schema = s.huma.OpenAPI().Components.Schemas.SchemaFromRef(schema.Ref)
	}
	return schema
}

// wanted describes the valid values of a field or a parameter.
func (s *Server) wanted(op *huma.Operation, in, field string) string {
	schema := (*huma.Schema)(nil)
	if in == "body" {
		schema = s.at(op, field)
	} else {
		for _, p := range op.Parameters {
			if p.In == in && p.Name == field {
				schema = p.Schema
			}
		}
	}
	if schema == nil {
		return ""
	}
	return "Give it " + describe(schema) + "."
}

func describe(s *huma.Schema) string {
	var b strings.Builder
	between := func(lo, hi any, hasLo, hasHi bool, unit string) {
		switch {
		case hasLo && hasHi:
			fmt.Fprintf(&b, " (%v to %v%s)", lo, hi, unit)
		case hasLo:
			fmt.Fprintf(&b, " (at least %v%s)", lo, unit)
		case hasHi:
			fmt.Fprintf(&b, " (at most %v%s)", hi, unit)
		}
	}
	switch s.Type {
	case huma.TypeString:
		switch {
		case len(s.Enum) > 0:
			words := make([]string, len(s.Enum))
			for i, v := range s.Enum {
				words[i] = fmt.Sprint(v)
			}
			return "one of " + strings.Join(words, ", ")
		case s.Format == "date-time":
			return "a time such as 2026-01-31T12:00:00Z"
		case s.PatternDescription != "":
			b.WriteString(s.PatternDescription)
		default:
			b.WriteString("a string")
		}
		between(deref(s.MinLength), deref(s.MaxLength), s.MinLength != nil, s.MaxLength != nil, " characters")
	case huma.TypeInteger, huma.TypeNumber:
		b.WriteString(map[string]string{huma.TypeInteger: "a whole number", huma.TypeNumber: "a number"}[s.Type])
		between(deref(s.Minimum), deref(s.Maximum), s.Minimum != nil, s.Maximum != nil, "")
	case huma.TypeBoolean:
		b.WriteString("true or false")
	case huma.TypeArray:
		b.WriteString("a list")
		between(deref(s.MinItems), deref(s.MaxItems), s.MinItems != nil, s.MaxItems != nil, " elements")
	case huma.TypeObject:
		b.WriteString("an object")
	default:
		words := make([]string, len(s.OneOf))
		for i, one := range s.OneOf {
			words[i] = describe(one)
		}
		b.WriteString(strings.Join(words, ", or "))
	}
	return b.String()
}

func deref[T any](p *T) T {
	if p == nil {
		return *new(T)
	}
	return *p
}

// siblings lists the valid fields beside an unknown one.
func (s *Server) siblings(op *huma.Operation, field string) string {
	parent := ""
	if i := strings.LastIndexByte(field, '.'); i >= 0 {
		parent = field[:i]
	}
	schema := s.at(op, parent)
	if schema == nil || len(schema.Properties) == 0 {
		return "Leave it out."
	}
	names := make([]string, 0, len(schema.Properties))
	for name := range schema.Properties {
		names = append(names, name)
	}
	slices.Sort(names)
	return "Leave it out. The fields are " + strings.Join(names, ", ") + "."
}

func parameters(op *huma.Operation) string {
	var names []string
	for _, p := range op.Parameters {
		if p.In == "query" {
			names = append(names, p.Name)
		}
	}
	if len(names) == 0 {
		return "Leave it out. This operation has no parameters."
	}
	return "Leave it out. The parameters are " + strings.Join(names, ", ") + "."
}

// pack and unpack encode a field's problem in the text of an error. If a body does not
// parse, huma passes on only the text of the error.
func pack(f fieldProblem) error {
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return errors.New(packed + string(b))
}

const packed = "\x00field\x00"

func unpack(message string) (f fieldProblem, ok bool) {
	text, ok := strings.CutPrefix(message, packed)
	if !ok || json.Unmarshal([]byte(text), &f) != nil {
		return fieldProblem{}, false
	}
	return f, true
}

// invalid returns a rejection for rules that a schema cannot express.
func invalid(fields ...fieldProblem) *problem {
	return &problem{Status: http.StatusUnprocessableEntity, Code: "invalid", Message: "The request is not valid.", Fields: fields}
}

func nameTaken() *problem {
	return &problem{Status: http.StatusConflict, Code: "conflict", Message: "Another object has this name already.", Field: "name", Fix: "Choose another name, or update the existing object."}
}

func internal() *problem {
	return &problem{Status: http.StatusInternalServerError, Code: "internal", Message: "The control plane has an internal error.", Fix: "Try again. If the error stays, look for the request id in the control plane's log."}
}

func unavailable() *problem {
	return &problem{
		Status: http.StatusServiceUnavailable, Code: "unavailable", Message: "The database is not available. Nothing was changed.",
		Fix: "Try again in a few seconds.", Header: http.Header{"Retry-After": {"2"}},
	}
}

func unsupportedMedia() *problem {
	return &problem{Status: http.StatusUnsupportedMediaType, Code: "unsupported_media_type", Message: "The body must be JSON in UTF-8.", Field: "Content-Type", Fix: "Send the header Content-Type: application/json."}
}

func notFound(kind, id string) *problem {
	message := "This organization has no such " + kind + "."
	if sane(id) {
		message = "This organization has no " + kind + " " + id + "."
	}
	return &problem{Status: http.StatusNotFound, Code: "not_found", Message: message, Fix: "Check the id, and that your key belongs to the same organization."}
}

// refused converts every error of a handler to a response. An unknown error is logged, and
// its text is not sent.
func (s *Server) refused(ctx context.Context, err error) error {
	var (
		p          *problem
		bad        *policy.Invalid
		inProvider *provider.Invalid
		pg         *pgconn.PgError
		connect    *pgconn.ConnectError
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &p):
		return p
	case errors.As(err, &bad):
		return invalid(fieldProblem{bad.Field, sentence(bad.Problem), sentence(bad.Fix)})
	case errors.As(err, &inProvider):
		return invalid(fieldProblem{inProvider.Field, sentence(inProvider.Problem), ""})
	case errors.Is(err, identity.ErrNotFound), errors.Is(err, provider.ErrNotFound), errors.Is(err, policy.ErrNotFound), errors.Is(err, pgx.ErrNoRows):
		return notFound("object", "")
	case errors.Is(err, policy.ErrNameTaken), errors.Is(err, provider.ErrNameTaken):
		return nameTaken()
	case errors.Is(err, audit.ErrKeyMissing), errors.Is(err, audit.ErrKeyDiffers):
		s.c.Log.ErrorContext(ctx, "the change cannot be recorded", "request", requestIDOf(ctx), "err", err)
		return &problem{
			Status: http.StatusServiceUnavailable, Code: "unavailable", Message: "This control plane does not have the current key of the audit log. Nothing was changed.",
			Fix: "Try again: other replicas may have it. The operator must copy --hmac-keys to all replicas.", Header: http.Header{"Retry-After": {"2"}},
		}
	case errors.Is(err, audit.ErrRolledBack):
		s.c.Log.ErrorContext(ctx, "the change cannot be recorded", "request", requestIDOf(ctx), "err", err)
		return &problem{
			Status: http.StatusServiceUnavailable, Code: "unavailable", Message: "The database was restored to an older state, so changes cannot be recorded. Nothing was changed.",
			Fix: "The operator must follow docs/restore.md.", Header: http.Header{"Retry-After": {"60"}},
		}
	case errors.Is(err, identity.ErrConflict), conflict(err):
		return &problem{Status: http.StatusConflict, Code: "changed", Message: "Another request is changing this object.", Fix: "Try again."}
	case errors.As(err, &pg):
		switch pg.Code {
		case "23505": // unique_violation
			return nameTaken()
		case "55P03", "57014", "40001", "40P01", "57P01", "57P03", "53300": // locked, timed out, conflicts, shutting down, full
			s.c.Log.WarnContext(ctx, "database busy", "request", requestIDOf(ctx), "sqlstate", pg.Code)
			return unavailable()
		}
	case errors.As(err, &connect), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), pgconn.SafeToRetry(err):
		s.c.Log.WarnContext(ctx, "database not available", "request", requestIDOf(ctx), "err", err)
		return unavailable()
	}
	s.c.Log.ErrorContext(ctx, "request failed", "request", requestIDOf(ctx), "err", err)
	return internal()
}
