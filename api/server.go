package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
)

// A Database runs transactions; *store.DB is one.
type Database interface {
	// InOrg runs fn in a transaction that sees the rows of one org and no others.
	// It may run fn again after a serialization failure.
	InOrg(ctx context.Context, org string, fn func(pgx.Tx) error) error
	// Presenting runs fn in a transaction that sees only the row of the secret with this
	// hash (hex).
	Presenting(ctx context.Context, presented string, fn func(pgx.Tx) error) error
}

// A Recorder appends a change to the org's audit log, in the transaction of the change.
// *audit.Chain is one.
type Recorder interface {
	Record(ctx context.Context, tx pgx.Tx, org string, e audit.Changed) (audit.Position, error)
}

// Config configures a Server.
type Config struct {
	DB     Database
	Chain  Recorder
	Sealer *provider.Sealer // encrypts credentials and stored responses
	// Signer signs documents with a P-256 key. Nil: requests for them are rejected.
	Signer evidence.Signer

	Targets provider.Targets // the addresses that providers may have

	Tiers policy.Tiers // no raise exceeds a tier's caps; nil: tiers have none

	// PublicKeys returns the keys that have ever signed evidence. Nil: no key has.
	PublicKeys func(ctx context.Context) (evidence.KeySet, error)
	// OrgKeys returns the same keys, with the key changes of the logs of the org, which tx has set.
	// Nil: no key has signed.
	OrgKeys func(ctx context.Context, tx pgx.Tx, org string) (evidence.KeySet, error)

	Now  func() time.Time // nil: time.Now
	Rand io.Reader        // for ids and secrets; nil: crypto/rand
	Log  *slog.Logger     // nil: slog.Default()
	// Registerer registers the metrics. Nil: they are counted and not exported.
	Registerer prometheus.Registerer

	// PublicURL is the URL of the API in the description. Empty: the address that the
	// description is fetched from.
	PublicURL string
	// Version is this build's, for the description. Empty: "dev".
	Version string
	// Timeout limits the database work of one request. 0: 15 s.
	Timeout time.Duration
}

// Server serves the management API as an http.Handler. Serve it with a http.Server that has
// a ReadTimeout, since a body is read before the request is handled. Run must be running.
type Server struct {
	c       Config
	mux     *http.ServeMux
	huma    huma.API
	metrics *metrics
	bodies  map[string]*huma.Schema // of requests, by operation id
	methods map[string]string       // the Allow header of each path without a parameter
	json    []byte                  // the encoded description
	dryRuns chan *dryRunJob         // for Run
	exports chan exportJob          // for Run
	yaml    []byte
	keys    keptKeys
	log     publicLog
}

// New returns a handler that serves every row of the table.
func New(c Config) (*Server, error) {
	if c.DB == nil || c.Chain == nil || c.Sealer == nil {
		return nil, errors.New("the api requires a DB, a Chain and a Sealer")
	}
	if c.PublicKeys == nil {
		c.PublicKeys = func(context.Context) (evidence.KeySet, error) { return evidence.KeySet{}, nil }
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Version == "" {
		c.Version = "dev"
	}
	if c.Timeout == 0 {
		c.Timeout = 15 * time.Second
	}
	s := &Server{c: c, mux: http.NewServeMux(), bodies: make(map[string]*huma.Schema), methods: make(map[string]string), dryRuns: make(chan *dryRunJob, dryRunQueue), exports: make(chan exportJob, exportQueue)}
	s.log.tiles = make(chan struct{}, publicTiles)
	var err error
	if s.metrics, err = newMetrics(c.Registerer); err != nil {
		return nil, fmt.Errorf("registering the api's metrics: %w", err)
	}
	s.huma = humago.New(s.mux, s.description())
	for _, r := range routes() {
		r.mount(s, r)
		if !strings.Contains(r.Path, "{") {
			s.methods[r.Path] = allowing(s.methods[r.Path], r.Method)
		}
	}
	if err := s.publish(); err != nil {
		return nil, fmt.Errorf("describing the api: %w", err)
	}
	return s, nil
}

// ServeHTTP serves one request. Nothing is sent before the response is complete, so a late
// failure is a complete 500 and not half a response. Files are streamed: their connection is
// closed before their end if they fail.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := s.c.Now()
	id := s.idFor(r)
	whole := context.WithValue(r.Context(), requestIDKey{}, id)
	ctx, cancel := context.WithTimeout(whole, s.c.Timeout)
	defer cancel()
	r = r.WithContext(ctx)

	a := &answer{header: make(http.Header)}
	func() {
		defer func() {
			if p := recover(); p != nil {
				s.panicked(ctx, p)
				a.reset()
				write(a, id, internal())
			}
		}()
		s.dispatch(a, r)
	}()

	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store") // some responses have a secret
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	for name, values := range a.header {
		h[name] = values
	}
	h.Set("X-Request-ID", id)
	status := a.status
	if status == 0 {
		status = http.StatusOK
	}
	if a.stream != nil && r.Method != http.MethodHead {
		s.stream(whole, w, r, a, status)
		s.metrics.answered(r, status, s.c.Now().Sub(began))
		return
	}
	if a.stream == nil && status != http.StatusNoContent && status != http.StatusNotModified {
		h.Set("Content-Length", strconv.Itoa(a.body.Len()))
	}
	w.WriteHeader(status)
	_, _ = w.Write(a.body.Bytes()) // an error means that the client has closed the connection

	s.metrics.answered(r, status, s.c.Now().Sub(began))
	s.c.Log.DebugContext(ctx, "answered", "request", id, "route", r.Pattern, "status", status)
}

// streamPause is how long a client may read nothing of a file.
const streamPause = time.Minute

// stream sends a file. The status is sent already when it fails, so only the end of the
// connection shows that the file is not complete.
func (s *Server) stream(ctx context.Context, w http.ResponseWriter, r *http.Request, a *answer, status int) {
	w.WriteHeader(status)
	if err := a.stream(ctx, patient{w, http.NewResponseController(w)}); err != nil {
		s.c.Log.WarnContext(ctx, "a file was not sent to its end", "request", requestIDOf(ctx), "route", r.Pattern, "err", err)
		panic(http.ErrAbortHandler)
	}
}

// patient gives each part of a file its own time.
type patient struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

func (p patient) Write(b []byte) (int, error) {
	// A writer without deadlines is one of a test.
	if err := p.control.SetWriteDeadline(time.Now().Add(streamPause)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return p.w.Write(b)
}

// dispatch finds the row, or returns an error as JSON if no row matches. The same mux finds
// and serves the row, so a path has only one meaning.
func (s *Server) dispatch(w *answer, r *http.Request) {
	// The mux would redirect these paths. No well-behaved client sends them.
	if p := r.URL.Path; p != path.Clean(p) && p != path.Clean(p)+"/" {
		write(w, requestIDOf(r.Context()), noSuchPath())
		return
	}
	h, pattern := s.mux.Handler(r)
	// A path with its own rows has only their methods: /v1/policies/dry-run is not a policy
	// with the id dry-run.
	allow, own := s.methods[r.URL.Path]
	if pattern != "" && (!own || slices.Contains(strings.Split(allow, ", "), r.Method)) {
		s.mux.ServeHTTP(w, r)
		return
	}
	p := noSuchPath()
	if !own && pattern == "" {
		none := &answer{header: make(http.Header)}
		h.ServeHTTP(none, r)
		allow = none.header.Get("Allow")
	}
	if allow != "" {
		w.header.Set("Allow", allow)
		p = &problem{Status: http.StatusMethodNotAllowed, Code: "method_not_allowed", Message: "This path does not accept " + word(r.Method) + ".", Fix: "Use " + strings.ReplaceAll(allow, ", ", " or ") + "."}
	}
	write(w, requestIDOf(r.Context()), p)
}

// allowing returns the header Allow with one more method. GET adds HEAD.
func allowing(allow, method string) string {
	methods := []string{method}
	if method == http.MethodGet {
		methods = append(methods, http.MethodHead)
	}
	if allow != "" {
		methods = append(methods, strings.Split(allow, ", ")...)
	}
	slices.Sort(methods)
	return strings.Join(methods, ", ")
}

func noSuchPath() *problem {
	return &problem{Status: http.StatusNotFound, Code: "no_such_path", Message: "The API does not have this path.", Fix: "See /docs for the paths. A path has no slash at its end. Call models at the gateway, not here."}
}

// word returns s if it is short and safe to show in a response.
func word(s string) string {
	if len(s) > 20 || strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return "this method"
	}
	return s
}

// panicked logs a panic. It logs the value only if it is a runtime error, since another
// value could be a secret.
func (s *Server) panicked(ctx context.Context, p any) {
	what := fmt.Sprintf("%T", p)
	if re, ok := p.(runtime.Error); ok {
		what = re.Error()
	}
	stack := make([]byte, 16<<10)
	stack = stack[:runtime.Stack(stack, false)]
	s.metrics.panics.Inc()
	s.c.Log.ErrorContext(ctx, "request panicked", "request", requestIDOf(ctx), "err", what, "stack", string(stack))
}

type requestIDKey struct{}

func requestIDOf(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

// idFor returns the request id. Envoy's id is used for a request over the Unix socket, and a
// new one otherwise. A client's own id is never used, because the id is recorded.
func (s *Server) idFor(r *http.Request) string {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if ids := r.Header["X-Request-Id"]; local != nil && local.Network() == "unix" && len(ids) == 1 && sane(ids[0]) {
		return ids[0]
	}
	id, err := identity.NewID("req_", s.c.Now(), s.c.Rand)
	if err != nil {
		return "req_none"
	}
	return id
}

func sane(id string) bool {
	return len(id) >= 8 && len(id) <= 64 && strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
}

// answer is a buffered response.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
	stream func(context.Context, io.Writer) error // writes the body of a file instead
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) Write(b []byte) (int, error) { return a.body.Write(b) }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

func (a *answer) reset() {
	a.header, a.status, a.stream = make(http.Header), 0, nil
	a.body.Reset()
}
