package api

import (
	"crypto/sha256"
	"encoding/hex"
	stdjson "encoding/json"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/ai-identity/ai-identity/identity"
)

// marshal writes a response. Its last byte is a newline, for terminals.
func marshal(w io.Writer, v any) error {
	if err := json.MarshalWrite(w, v, json.Deterministic(true)); err != nil {
		return err
	}
	_, err := w.Write([]byte{'\n'})
	return err
}

// unmarshal reads a body strictly: one value, valid UTF-8, no name twice, no NUL (which
// Postgres cannot hold). Each name must be one of v's, in exactly that case. The error is a
// packed fieldProblem and never quotes a value.
func unmarshal(b []byte, v any) error {
	err := json.Unmarshal(b, v, json.RejectUnknownMembers(true))
	if err == nil {
		if p, ok := v.(*any); ok && holdsNUL(*p) {
			return pack(fieldProblem{"", "A string in the body contains the character NUL (\\u0000).", "Leave it out."})
		}
		return nil
	}
	var (
		syntactic *jsontext.SyntacticError
		semantic  *json.SemanticError
		own       fieldError
	)
	switch {
	case errors.As(err, &own):
		return pack(fieldProblem(own))
	case errors.As(err, &syntactic):
		field := pointed(syntactic.JSONPointer)
		if errors.Is(err, jsontext.ErrDuplicateName) {
			return pack(fieldProblem{field, quoted(field) + " is in the body twice.", "Send it once."})
		}
		return pack(fieldProblem{field, "The body is not valid JSON.", "Send one JSON object in UTF-8. The mistake is at or after byte " + itoa(syntactic.ByteOffset) + "."})
	case errors.As(err, &semantic):
		field := pointed(semantic.JSONPointer)
		if errors.Is(err, json.ErrUnknownName) {
			return pack(fieldProblem{field, "There is no field " + quoted(field) + ".", "Leave it out, or check its spelling. Names are case-sensitive."})
		}
		return pack(fieldProblem{field, quoted(field) + " has a value of the wrong type.", "/docs shows the type of each field."})
	}
	return pack(fieldProblem{"", "The body is not valid JSON.", "Send one JSON object in UTF-8."})
}

// fieldError is the error of this package's UnmarshalJSON methods.
type fieldError fieldProblem

func (e fieldError) Error() string { return e.Field + ": " + e.Message }

func itoa(n int64) string { b, _ := stdjson.Marshal(n); return string(b) }

// pointed returns a JSON pointer as a field's name: "/a/b/2" becomes "a.b[2]".
func pointed(p jsontext.Pointer) string {
	var b strings.Builder
	for token := range p.Tokens() {
		switch {
		case token != "" && strings.Trim(token, "0123456789") == "":
			b.WriteString("[" + token + "]")
		case b.Len() > 0:
			b.WriteString("." + token)
		default:
			b.WriteString(token)
		}
	}
	return b.String()
}

func holdsNUL(v any) bool {
	switch v := v.(type) {
	case string:
		return strings.IndexByte(v, 0) >= 0
	case []any:
		return slices.ContainsFunc(v, holdsNUL)
	case map[string]any:
		for name, e := range v {
			if strings.IndexByte(name, 0) >= 0 || holdsNUL(e) {
				return true
			}
		}
	}
	return false
}

// object is a JSON object with its values as they were sent.
type object map[string]jsontext.Value

func objectOf(v any) (object, error) {
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	var o object
	err = json.Unmarshal(b, &o)
	return o, err
}

// digest returns a digest of an object as the API shows it. The audit log has only this
// digest, because it may be kept longer than the object's data.
func digest(v any) (string, error) {
	if v == nil {
		return "", nil
	}
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}

// changed returns the names of the fields that differ, without those that change with every
// update.
func changed(before, after any) ([]string, error) {
	if before == nil || after == nil {
		return nil, nil
	}
	a, err := objectOf(before)
	if err != nil {
		return nil, err
	}
	b, err := objectOf(after)
	if err != nil {
		return nil, err
	}
	var names []string
	for name := range a {
		if string(a[name]) != string(b[name]) {
			names = append(names, name)
		}
	}
	for name := range b {
		if _, both := a[name]; !both {
			names = append(names, name)
		}
	}
	names = slices.DeleteFunc(names, func(n string) bool { return n == "version" || n == "updated_at" || n == "warnings" })
	slices.Sort(names)
	return names, nil
}

// merge applies a JSON merge patch, RFC 7396 section 2.
func merge(target, patch jsontext.Value) (jsontext.Value, error) {
	if patch.Kind() != '{' {
		return patch, nil
	}
	var t, p object
	if target.Kind() == '{' {
		if err := json.Unmarshal(target, &t); err != nil {
			return nil, err
		}
	}
	if t == nil {
		t = object{}
	}
	if err := json.Unmarshal(patch, &p); err != nil {
		return nil, err
	}
	for name, v := range p {
		if v.Kind() == 'n' {
			delete(t, name)
			continue
		}
		merged, err := merge(t[name], v)
		if err != nil {
			return nil, err
		}
		t[name] = merged
	}
	return json.Marshal(t, json.Deterministic(true))
}

// patch is the body of a PATCH: a JSON merge patch for a value of type T, as bytes.
type patch[T any] struct{ raw jsontext.Value }

func (p *patch[T]) UnmarshalJSON(b []byte) error {
	p.raw = slices.Clone(jsontext.Value(b))
	return nil
}

func (p patch[T]) MarshalJSON() ([]byte, error) { return p.raw, nil }

// Schema returns T's schema with every field optional, and with null where a field may be removed.
func (p patch[T]) Schema(r huma.Registry) *huma.Schema {
	whole := r.Schema(reflect.TypeFor[T](), false, "")
	s := &huma.Schema{
		Type: huma.TypeObject, AdditionalProperties: whole.AdditionalProperties, Properties: make(map[string]*huma.Schema, len(whole.Properties)),
		Description: "A JSON merge patch (RFC 7396). A field that is not in it stays. null restores the default. Objects are merged by name; lists are replaced.",
	}
	for name, f := range whole.Properties {
		if !slices.Contains(whole.Required, name) {
			c := *f
			if f.Ref != "" {
				c = *r.SchemaFromRef(f.Ref) // a reference cannot be nullable
			}
			c.Nullable = true
			// A name in it may also be null, which removes it.
			if inner, ok := f.AdditionalProperties.(*huma.Schema); ok {
				c.AdditionalProperties = nullable(inner)
			}
			f = &c
		}
		s.Properties[name] = f
	}
	return s
}

func nullable(s *huma.Schema) *huma.Schema {
	c := *s
	if c.OneOf != nil {
		// One of the alternatives accepts null. Another one of type "null" would match every
		// value, since huma does not support that type.
		c.OneOf = slices.Clone(c.OneOf)
		c.OneOf[0] = nullable(c.OneOf[0])
	} else {
		c.Nullable = true
	}
	return &c
}

// onto returns base with the patch applied, validated like a new T.
func (p patch[T]) onto(s *Server, base T) (T, error) {
	var out T
	b, err := json.Marshal(base)
	if err != nil {
		return out, err
	}
	merged, err := merge(b, p.raw)
	if err != nil {
		return out, err
	}
	var loose any
	if err := json.Unmarshal(merged, &loose); err != nil {
		return out, err
	}
	registry := s.huma.OpenAPI().Components.Schemas
	schema := registry.Schema(reflect.TypeFor[T](), true, "")
	res := &huma.ValidateResult{}
	path := huma.NewPathBuffer(nil, 0)
	path.Push("body")
	huma.Validate(registry, schema, path, huma.ModeWriteToServer, loose, res)
	if len(res.Errors) > 0 {
		return out, &huma.ErrorModel{Status: 422, Detail: "validation failed", Errors: details(res.Errors)}
	}
	if err := unmarshal(merged, &out); err != nil {
		f, _ := unpack(err.Error())
		return out, invalid(f)
	}
	return out, nil
}

func details(errs []error) (out []*huma.ErrorDetail) {
	for _, err := range errs {
		var d *huma.ErrorDetail
		if errors.As(err, &d) {
			out = append(out, d)
		}
	}
	return out
}

// metadata is an identity.Metadata in requests and responses. Its numbers keep every digit.
type metadata identity.Metadata

func (m *metadata) UnmarshalJSON(b []byte) error {
	parsed, err := identity.ParseMetadata(b)
	if err != nil {
		return fieldError{"metadata", sentence(err.Error()), "Give each name a string, a number, or true or false, without nesting."}
	}
	*m = metadata(parsed)
	return nil
}

func (m metadata) MarshalJSON() ([]byte, error) {
	if m == nil {
		return []byte("{}"), nil
	}
	return stdjson.Marshal(map[string]any(m))
}

// Schema describes what identity.ParseMetadata accepts.
func (m metadata) Schema(huma.Registry) *huma.Schema {
	keys, length := identity.MaxMetadataKeys, identity.MaxMetadataValue
	return &huma.Schema{
		Type: huma.TypeObject, MaxProperties: &keys,
		Description: "Your own attributes of the agent: names with a string, a number, or true or false. A policy reads them as agent.metadata.NAME.",
		AdditionalProperties: &huma.Schema{OneOf: []*huma.Schema{
			{Type: huma.TypeString, MaxLength: &length}, {Type: huma.TypeNumber}, {Type: huma.TypeBoolean},
		}},
		Examples: []any{map[string]any{"cost_center": "cx-7", "pii": true, "level": 2}},
	}
}
