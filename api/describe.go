package api

import (
	"bytes"
	"compress/gzip"
	"embed"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"
	"github.com/swaggest/swgui/v5emb"
)

// The description of the API, and the two pages that show it. All assets are embedded, so
// the pages work in a network without Internet access.

//go:embed assets/redoc.standalone.js.gz
var assets embed.FS

const about = `Agents, their keys, policies, providers and the audit log.

Send an organization key as ` + "`Authorization: Bearer aid_org_…`" + `. Lists take ` + "`limit`" + ` and ` + "`after`" + ` and return
` + "`{\"data\": […], \"has_more\": …, \"next\": …}`" + `. You can repeat a POST with an ` + "`Idempotency-Key`" + `: for 24 hours it returns
the first response. Errors are ` + "`{\"error\": {\"code\", \"message\", \"field\", \"fix\", \"request_id\"}}`" + `.

Call models through the gateway, with an agent's key (` + "`aid_sk_…`" + `) and the paths of the provider's own API.`

// description returns huma's configuration: strict JSON, this package's errors, and no pages.
func (s *Server) description() huma.Config {
	c := huma.DefaultConfig("AI Identity", s.c.Version)
	c.Info.Description = about
	c.Info.License = &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"}
	c.OpenAPIPath, c.DocsPath, c.SchemasPath = "", "", ""
	c.CreateHooks = nil // no $schema in responses
	c.Formats = map[string]huma.Format{"application/json": {Marshal: marshal, Unmarshal: unmarshal}, "json": {Marshal: marshal, Unmarshal: unmarshal}}
	c.DefaultFormat = "application/json"
	c.Transformers = []huma.Transformer{s.reworded}
	c.RejectUnknownQueryParameters = true
	c.Servers = []*huma.Server{{URL: "/", Description: "The address of this description."}}
	if s.c.PublicURL != "" {
		c.Servers = []*huma.Server{{URL: strings.TrimSuffix(s.c.PublicURL, "/")}}
	}
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"org_key":   {Type: "http", Scheme: "bearer", BearerFormat: "aid_org_…", Description: "An organization key."},
		"agent_key": {Type: "http", Scheme: "bearer", BearerFormat: "aid_sk_…", Description: "An agent's key, for what is the agent's own."},
	}
	for _, t := range []string{tagAgents, tagKeys, tagPolicies, tagProviders, tagRecord, tagOrg, tagApprovals, tagShadow, tagCompliance} {
		c.Tags = append(c.Tags, &huma.Tag{Name: t})
	}
	return c
}

// operation returns a row as an operation of huma.
func (s *Server) operation(r route) huma.Operation {
	op := huma.Operation{
		OperationID: r.ID, Method: r.Method, Path: r.Path, Summary: r.Summary, Description: r.Description, Tags: []string{r.Tag},
		DefaultStatus: r.Status, Middlewares: huma.Middlewares{s.guard(r)}, SkipValidateBody: r.Raw,
		MaxBodyBytes: maxBody + 1, // the guard has checked the size, with a better message
		Responses:    make(map[string]*huma.Response),
	}
	problem := map[string]*huma.MediaType{"application/json": {Schema: s.huma.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[refusalBody](), true, "Error")}}
	for _, status := range r.problems() {
		response := &huma.Response{Description: problems[status], Content: problem}
		switch status {
		case http.StatusUnauthorized:
			response.Headers = map[string]*huma.Param{"WWW-Authenticate": {Description: "The kind of key that is missing.", Schema: &huma.Schema{Type: huma.TypeString}}}
		case http.StatusServiceUnavailable:
			response.Headers = map[string]*huma.Param{"Retry-After": {Description: "Wait this many seconds, then try again.", Schema: &huma.Schema{Type: huma.TypeString}}}
		}
		op.Responses[strconv.Itoa(status)] = response
	}
	if r.MIME != "" {
		op.Responses["200"] = &huma.Response{Description: "OK", Content: map[string]*huma.MediaType{r.MIME: {Schema: &huma.Schema{Type: huma.TypeString}}}}
	}
	if !r.Public {
		op.Security = []map[string][]string{{"org_key": {}}}
		if r.Agents {
			op.Security = append(op.Security, map[string][]string{"agent_key": {}})
		}
		var roles []string
		for _, role := range r.Roles {
			roles = append(roles, string(role))
		}
		op.Description += "\n\nRoles: " + strings.Join(roles, ", ") + "."
		if r.Agents {
			op.Description += " An agent's key is also accepted."
		}
	}
	if r.Method == http.MethodPost && r.Unbuilt == "" {
		op.Parameters = append(op.Parameters, &huma.Param{
			Name: "Idempotency-Key", In: "header", Schema: &huma.Schema{Type: huma.TypeString, Pattern: "^[!-~]{1,255}$"},
			Description: "A value that you choose, such as a UUID. Requests with the same value within 24 hours are executed only once.",
		})
	}
	return op
}

// problems describes the statuses of rejected requests.
var problems = map[int]string{
	http.StatusBadRequest:            "The request is not well formed.",
	http.StatusUnauthorized:          "The request has no valid organization key.",
	http.StatusForbidden:             "The role of the key does not permit this operation.",
	http.StatusNotFound:              "The organization has no such object.",
	http.StatusConflict:              "The state of this object, or of another, does not permit this operation.",
	http.StatusPreconditionFailed:    "The object was changed since the version in If-Match.",
	http.StatusRequestEntityTooLarge: "The body is larger than 1 MiB.",
	http.StatusUnsupportedMediaType:  "The body is not JSON in UTF-8, or it is compressed.",
	http.StatusUnprocessableEntity:   "A field, a parameter or a header is not valid. The error names it.",
	http.StatusInternalServerError:   "An internal error. Nothing was changed.",
	http.StatusNotImplemented:        "This version does not support the operation. Nothing was changed.",
	http.StatusServiceUnavailable:    "The database is not available. Nothing was changed.",
}

// problems returns the statuses of the row's rejected requests.
func (r route) problems() []int {
	out := []int{http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusInternalServerError}
	if !r.Public {
		out = append(out, http.StatusUnauthorized, http.StatusForbidden, http.StatusServiceUnavailable)
	}
	if r.takesBody() {
		out = append(out, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType)
	}
	if r.Unbuilt != "" {
		return append(out, http.StatusNotImplemented)
	}
	if r.Names || strings.Contains(r.Path, "{") {
		out = append(out, http.StatusNotFound)
	}
	if r.Method != http.MethodGet || r.Conflicts {
		out = append(out, http.StatusConflict)
	}
	if r.Conditional {
		out = append(out, http.StatusPreconditionFailed)
	}
	return out
}

// publish adds examples to the description, and encodes it.
func (s *Server) publish() error {
	api := s.huma.OpenAPI()
	for _, item := range api.Paths {
		for _, op := range []*huma.Operation{item.Get, item.Post, item.Patch, item.Put, item.Delete} {
			if op == nil {
				continue
			}
			// readQuery rejects a parameter without a value.
			for _, p := range op.Parameters {
				if p.In == "query" && p.Schema.Type == huma.TypeString && p.Schema.MinLength == nil && p.Schema.Enum == nil && p.Schema.Format == "" {
					one := 1
					p.Schema.MinLength = &one
				}
			}
		}
	}
	for _, r := range routes() {
		item := api.Paths[r.Path]
		if item == nil || r.Example == "" {
			continue
		}
		op := map[string]*huma.Operation{"POST": item.Post, "PATCH": item.Patch, "PUT": item.Put}[r.Method]
		if op == nil || op.RequestBody == nil {
			return fmt.Errorf("%s %s has an example and no body", r.Method, r.Path)
		}
		var v any
		if err := json.Unmarshal([]byte(r.Example), &v); err != nil {
			return fmt.Errorf("example of %s: %w", r.ID, err)
		}
		for _, m := range op.RequestBody.Content {
			m.Example = v
		}
	}
	// Types of huma's own errors, which this API does not use.
	for _, name := range []string{"ErrorModel", "ErrorDetail"} {
		delete(api.Components.Schemas.Map(), name)
	}
	b, err := json.Marshal(api, json.Deterministic(true))
	if err != nil {
		return err
	}
	v := jsontext.Value(b)
	if err := v.Indent(jsontext.WithIndent("  ")); err != nil {
		return err
	}
	s.json = append(v, '\n')
	s.yaml, err = api.YAML()
	return err
}

func specJSON(s *Server, w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(s.json)
}

func specYAML(s *Server, w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(s.yaml)
}

// start redirects browsers to the documentation.
func start(_ *Server, w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Location", "/docs")
	w.WriteHeader(http.StatusFound)
}

// readyz reports to load balancers whether this replica can serve.
func readyz(s *Server, w http.ResponseWriter, r *http.Request) {
	if err := s.c.DB.Presenting(r.Context(), "readyz", func(pgx.Tx) error { return nil }); err != nil {
		write(w, requestIDOf(r.Context()), unavailable())
		return
	}
	_, _ = io.WriteString(w, "ready\n")
}

const pageCSP = "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; worker-src blob:; frame-ancestors 'none'"

func swagger(_ *Server, w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Security-Policy", pageCSP)
	page := &answer{header: w.Header()}
	v5emb.New("AI Identity", "/openapi.json", "/docs").ServeHTTP(page, r)
	if page.status != 0 {
		w.WriteHeader(page.status)
	}
	// The page has no viewport, so phones would show it at desktop width.
	_, _ = w.Write(bytes.Replace(page.body.Bytes(), []byte("<head>"), []byte(`<head><meta name="viewport" content="width=device-width, initial-scale=1">`), 1))
}

func redoc(_ *Server, w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Security-Policy", pageCSP)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = io.WriteString(w, `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>AI Identity</title><style>body{margin:0}</style></head>
<body><redoc spec-url="/openapi.json" hide-hostname></redoc><script src="/redoc/redoc.standalone.js"></script></body></html>
`)
}

func redocScript(_ *Server, w http.ResponseWriter, r *http.Request) {
	f, err := assets.Open("assets/redoc.standalone.js.gz")
	if err != nil {
		write(w, requestIDOf(r.Context()), internal())
		return
	}
	defer f.Close()
	h := w.Header()
	h.Set("Content-Type", "text/javascript; charset=utf-8")
	h.Set("Cache-Control", "public, max-age=86400")
	var script io.Reader = f
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
	} else if script, err = gzip.NewReader(f); err != nil {
		write(w, requestIDOf(r.Context()), internal())
		return
	}
	_, _ = io.Copy(w, script)
}
