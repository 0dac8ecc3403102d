package provider

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ai-identity/ai-identity/provider/internal/strict"
)

// Provider is a destination of an org's requests.
type Provider struct {
	ID    string // "prov_…"
	OrgID string
	Name  string // unique in the org; used by policies and the audit log
	Kind  string // one of Kinds

	// BaseURL is the beginning of the provider's API. For kinds openai and custom it has the
	// same meaning as base_url in OpenAI's SDKs. If it has a path, it includes the version,
	// as in https://api.openai.com/v1 (see upstreamPath).
	BaseURL string

	Models []string // names, or globs in which "*" matches any text
	Hosts  []string // names under which applications connect to it directly (egress)

	Headers  map[string]Header // sent with every request; names in lower case
	Settings json.RawMessage   // a Settings; empty for none

	Cluster       string // ClusterName of this provider
	Credential    Secret // set only where requests are forwarded
	HasCredential bool

	Version   int64 // counts changes; used for the ETag
	CreatedAt time.Time
	UpdatedAt time.Time
	Place     int64 `json:"-"` // its position in lists: Postgres sets it, in the order of the commits

	ready *ready // set by NewRegistry
}

// ready is what every request needs of a provider, computed once.
type ready struct {
	settings Settings
	upstream Upstream
	reading  *reading // with settings.answer: where its responses have usage and model
	errorAt  []string // the place of an error's message
	dialects dialects // the members of bodies that it accepts beside its API's own
	err      *Error   // the reason why it cannot be used
}

// prepared returns p.ready, or computes it.
func (p Provider) prepared() (Settings, Upstream, *Error) {
	r := p.ready
	if r == nil {
		r = p.prepare()
	}
	return r.settings, r.upstream, r.err
}

// needsNone reports whether the provider is called without a credential.
func (p Provider) needsNone() bool {
	s, err := ParseSettings(p.Settings)
	return err == nil && s.Auth != nil && s.Auth.Type == "none"
}

func (p Provider) prepare() *ready {
	r := &ready{}
	var err error
	if r.settings, err = ParseSettings(p.Settings); err != nil {
		r.err = misconfigured("its settings cannot be read")
		return r
	}
	if a := r.settings.Answer; a != nil {
		if err = a.validate(); err != nil {
			r.settings.Answer = nil
			r.err = misconfigured("its settings cannot be read")
			return r
		}
		r.reading, _ = a.reading() // it was validated
		if a.Error != "" {
			r.errorAt, _ = pointer("", a.Error)
		}
	}
	if r.upstream, err = p.Upstream(); err != nil {
		r.err = misconfigured("its base URL cannot be read")
		return r
	}
	r.dialects = dialectsOf(p.Kind, r.settings.Flavor, r.upstream.Host)
	if p.Cluster == "" || p.Cluster != ClusterName(p) {
		r.err = misconfigured("its credential is for another address")
	}
	return r
}

// Settings is the content of a provider's Settings. Every field may be absent. An unknown
// field is rejected, never ignored.
type Settings struct {
	// Auth is how the credential is sent; absent: the kind's way.
	Auth *Auth `json:"auth,omitempty" yaml:"auth"`

	// Query is added to every request's query: {"api-version": "2026-01-01"}.
	Query map[string]string `json:"query,omitempty" yaml:"query"`

	// Paths maps an endpoint to its path at a provider of kind custom, if it differs from
	// OpenAI's: {"/v1/chat/completions": "/api/chat"}. The path is appended to the base
	// URL's path. {model} in it is replaced by the model's name.
	Paths map[string]string `json:"paths,omitempty" yaml:"paths"`

	// Answer describes how the responses of a provider of kind custom differ from OpenAI's.
	Answer *CustomAnswer `json:"answer,omitempty" yaml:"answer"`

	// InjectUsage requests usage in streamed chat completions where the client does not
	// decide, and removes the event with the usage from the response. Of all settings only
	// this one changes a body that was evaluated, so it is off by default. Without it, such
	// a response has the usage "absent" in the audit log. Where Envoy reads usage, the
	// event is not removed: clients get one more event, without choices.
	InjectUsage bool `json:"inject_usage,omitempty" yaml:"inject_usage"`

	// Drop selects the fields that a translated request leaves out if this provider does not
	// support them. "hints" are fields that change no response; "all" and "none" are the
	// other values. The response's
	// x-aid-dropped and the audit log list them. Other unsupported fields are rejected with
	// 422. Empty: hints.
	Drop string `json:"drop,omitempty" yaml:"drop"`

	// DropUnsupported is the older spelling of drop: all.
	DropUnsupported bool `json:"drop_unsupported,omitempty" yaml:"drop_unsupported"`

	// MaxTokens is max_tokens for a translated request that has none, where the provider
	// requires it (kind anthropic). 0: 8192.
	MaxTokens int64 `json:"max_tokens,omitempty" yaml:"max_tokens"`

	// InputType is input_type for translated embeddings that have none, where the provider
	// requires it (kind cohere). Empty: search_document.
	InputType string `json:"input_type,omitempty" yaml:"input_type"`

	// Flavor is the software of a server with OpenAI's API (kinds openai and custom): one
	// of Flavors. Its documented fields pass. Empty: OpenAI's own if base_url is OpenAI's
	// or Azure's, and those of all flavors for other servers.
	Flavor string `json:"flavor,omitempty" yaml:"flavor"`

	// PassFields are further fields of request bodies that pass, by their path as an error
	// shows it: "top_k", "messages.frames". Their values are not inspected.
	PassFields []string `json:"pass_fields,omitempty" yaml:"pass_fields"`

	// PassHeaders are further request headers that pass, in lower case, or further values
	// of a header for beta features, such as "anthropic-beta=files-api-2025-04-14".
	// Others that no API has are dropped, and named in the audit log.
	PassHeaders []string `json:"pass_headers,omitempty" yaml:"pass_headers"`

	// PassResponseHeaders are further headers of responses that reach the caller, in
	// lower case, such as "cf-ray".
	PassResponseHeaders []string `json:"pass_response_headers,omitempty" yaml:"pass_response_headers"`

	// RateHeaders selects the responses with headers about limits, beside each 429: RatesOff or
	// empty, RatesRefusals, or RatesAll.
	RateHeaders string `json:"rate_headers,omitempty" yaml:"rate_headers"`

	// PublicHeaders are the headers of the provider whose values are no secrets, in lower
	// case. The value of any other is overwritten in responses.
	PublicHeaders []string `json:"public_headers,omitempty" yaml:"public_headers"`
}

// Auth describes how a credential is sent.
type Auth struct {
	Type string `json:"type" yaml:"type"`                     // bearer, header, query, basic or none
	Name string `json:"name,omitempty" yaml:"name"`           // of the header or query parameter
	User string `json:"user,omitempty" yaml:"user,omitempty"` // of basic; the credential is the password
}

// ParseSettings reads a provider's Settings. For nil and "{}" they are empty.
func ParseSettings(b []byte) (Settings, error) {
	var s Settings
	if len(b) == 0 {
		return s, nil
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return Settings{}, &Invalid{"settings", strings.TrimPrefix(err.Error(), "json: ")}
	}
	if d.More() {
		return Settings{}, &Invalid{"settings", "there is text after the object"}
	}
	return s, nil
}

// ClusterName is the name of a provider's Envoy cluster: "provider-" and 32 hex digits, a
// digest of org, id and base URL. A credential is bound to it. So a change of the URL
// requires the credential again.
func ClusterName(p Provider) string {
	h := sha256.New()
	for _, s := range []string{"ai-identity provider cluster 1", p.OrgID, p.ID, p.BaseURL} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	return "provider-" + hex.EncodeToString(h.Sum(nil)[:16])
}

// Upstream is the server behind a base URL, as Envoy needs it.
type Upstream struct {
	Host       string // a name or an IP address, without brackets
	Port       uint16
	TLS        bool   // the certificate must be for Host
	PathPrefix string // from the base URL: "" or "/openai/v1", never with a slash at the end
}

// Upstream parses the base URL. The error names the field.
func (p Provider) Upstream() (Upstream, error) {
	u, err := parseBaseURL(p.BaseURL)
	if err != nil {
		return Upstream{}, err
	}
	up := Upstream{Host: strings.ToLower(u.Hostname()), TLS: u.Scheme == "https", PathPrefix: strings.TrimSuffix(u.Path, "/"), Port: 80}
	if up.TLS {
		up.Port = 443
	}
	if s := u.Port(); s != "" {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || n == 0 {
			return Upstream{}, &Invalid{"base_url", "the port is not between 1 and 65535"}
		}
		up.Port = uint16(n)
	}
	return up, nil
}

func parseBaseURL(s string) (*url.URL, error) {
	const field = "base_url"
	if s == "" {
		return nil, &Invalid{field, "it is missing; an example is https://api.openai.com/v1"}
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, &Invalid{field, "it is not a URL"} // the library's error would quote it, and it may contain a password
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, &Invalid{field, "it must begin with https:// or http://"}
	case u.User != nil:
		return nil, &Invalid{field, "it must not have a user or password. Set them as the credential"}
	case u.RawQuery != "" || u.ForceQuery:
		return nil, &Invalid{field, "it must not have a query; see settings.query"}
	case u.Fragment != "" || strings.Contains(s, "#"):
		return nil, &Invalid{field, "it must not have a fragment"}
	case u.Opaque != "" || !hostName(u.Hostname()):
		return nil, &Invalid{field, "it has no valid host"}
	}
	if a, err := netip.ParseAddr(u.Hostname()); err != nil && numericHost(u.Hostname()) {
		return nil, &Invalid{field, "its host is an address in an unusual spelling. Write it as four decimal numbers, such as 192.0.2.1"}
	} else if err == nil && a.Is4In6() {
		return nil, &Invalid{field, "its host is an IPv4 address in IPv6 form. Write " + a.Unmap().String()}
	}
	if p := strings.TrimSuffix(u.EscapedPath(), "/"); p != "" {
		if problem := pathProblem(p); problem != "" {
			return nil, &Invalid{field, "its path is not in normal form: " + problem}
		}
	}
	return u, nil
}

// hostName reports whether s is a DNS name or an IP address.
func hostName(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return !strings.Contains(s, "%")
	}
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !hostLabel.MatchString(label) {
			return false
		}
	}
	return true
}

var (
	hostLabel    = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$`)
	providerName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	headerName   = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,127}$`)
	fieldName    = regexp.MustCompile(`^[A-Za-z0-9_$-]{1,64}(\.[A-Za-z0-9_$-]{1,64}){0,8}(=[A-Za-z0-9_.:-]{1,64})?$`)
	queryName    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	queryValue   = regexp.MustCompile(`^[A-Za-z0-9._~:-]{0,256}$`)
)

// Invalid is an error in a provider that a user sets.
type Invalid struct {
	Field   string // as in the API and the file: "base_url", "headers.x-team", "models[2]"
	Problem string // begins in lower case and has the action to take
}

func (e *Invalid) Error() string { return e.Field + ": " + e.Problem }

// Validate returns what is wrong with p, as an *Invalid, or nil. It checks the fields that
// users set: name, kind, base_url, models, hosts, headers and settings.
//
// http is allowed, for servers on the same machine or private network and for test servers.
// With http:// to a public host, the credential is sent in the clear.
func Validate(p Provider) error {
	if !providerName.MatchString(p.Name) {
		return &Invalid{"name", "it must be 1 to 64 letters, digits, dots, underscores and hyphens, and begin with a letter or digit"}
	}
	if !slices.Contains(Kinds(), p.Kind) {
		return &Invalid{"kind", "it must be one of " + strings.Join(Kinds(), ", ")}
	}
	if _, err := p.Upstream(); err != nil {
		return err
	}
	seen := map[string]bool{}
	for i, m := range p.Models {
		field := fmt.Sprintf("models[%d]", i)
		if problem := modelProblem(m); problem != "" {
			return &Invalid{field, problem}
		}
		if seen[m] {
			return &Invalid{field, "it is repeated"}
		}
		seen[m] = true
	}
	seen = map[string]bool{}
	for i, h := range p.Hosts {
		field := fmt.Sprintf("hosts[%d]", i)
		if h != strings.ToLower(h) || !hostName(strings.TrimPrefix(h, "*.")) {
			return &Invalid{field, "it must be a host name in lower case, without scheme, port or path"}
		}
		if seen[h] {
			return &Invalid{field, "it is repeated"}
		}
		seen[h] = true
	}
	for name, h := range p.Headers {
		field, value := "headers", h.value.Reveal()
		if strict.Nameable.MatchString(name) {
			field += "." + name
		}
		switch {
		case !headerName.MatchString(name):
			return &Invalid{field, "the name must be in lower case: letters, digits and hyphens"}
		case credentialHeader(name):
			return &Invalid{field, "this header carries credentials; give it as the credential, with settings.auth if need be"}
		case reservedHeader(name):
			return &Invalid{field, "a provider cannot set this header"}
		case value == redacted:
			return &Invalid{field, "it has no stored value to keep. Set its value"}
		case len(value) > 4096 || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f || r > 0x7e }):
			return &Invalid{field, "the value must be at most 4096 characters of printable ASCII"}
		}
	}
	s, err := ParseSettings(p.Settings)
	if err != nil {
		return err
	}
	return s.validate(p.Kind)
}

func (s Settings) validate(kind string) error {
	if a := s.Auth; a != nil {
		switch a.Type {
		case "bearer", "none":
			if a.Name != "" || a.User != "" {
				return &Invalid{"settings.auth", a.Type + " has neither name nor user"}
			}
		case "header":
			if !headerName.MatchString(a.Name) || reservedHeader(a.Name) || a.User != "" {
				return &Invalid{"settings.auth.name", "it must be the name of a header, in lower case, that is not reserved"}
			}
		case "query":
			if !queryName.MatchString(a.Name) || a.User != "" {
				return &Invalid{"settings.auth.name", "it must be the name of a query parameter"}
			}
		case "basic":
			if a.Name != "" || a.User == "" || strings.ContainsAny(a.User, ":\r\n\x00") {
				return &Invalid{"settings.auth.user", "it must be the user's name, without a colon"}
			}
		default:
			return &Invalid{"settings.auth.type", "it must be bearer, header, query, basic or none"}
		}
	}
	for name, value := range s.Query {
		if !queryName.MatchString(name) || !queryValue.MatchString(value) {
			return &Invalid{"settings.query", "names and values must be letters, digits and . _ ~ : -"}
		}
		if credentialQuery(name) {
			return &Invalid{"settings.query", "this parameter carries credentials; see settings.auth"}
		}
	}
	if len(s.Paths) > 0 && kind != KindCustom {
		return &Invalid{"settings.paths", "only kind custom has it"}
	}
	for from, to := range s.Paths {
		if !slices.ContainsFunc(endpoints, func(e Endpoint) bool { return e.Path == from && slices.Contains(e.Kinds, KindCustom) }) {
			return &Invalid{"settings.paths", "the names must be endpoints of OpenAI's that are served, such as /v1/chat/completions"}
		}
		if pathProblem(strings.ReplaceAll(to, "{model}", "m")) != "" {
			return &Invalid{"settings.paths", "the values must be paths that begin with a slash, without a query"}
		}
	}
	if s.Answer != nil {
		if kind != KindCustom {
			return &Invalid{"settings.answer", "only kind custom has it"}
		}
		if err := s.Answer.validate(); err != nil {
			return err
		}
		if s.InjectUsage && (s.Answer.Usage != nil || s.Answer.Stream == "ndjson") {
			return &Invalid{"settings.inject_usage", "it needs OpenAI's responses, and settings.answer declares others"}
		}
	}
	if s.InjectUsage && kind != KindOpenAI && kind != KindCustom {
		return &Invalid{"settings.inject_usage", "kind " + kind + " always sends usage"}
	}
	if !slices.Contains([]string{"", "none", "hints", "all"}, s.Drop) || s.DropUnsupported && s.Drop != "" {
		return &Invalid{"settings.drop", "it must be none, hints or all. Remove drop_unsupported, which is the older spelling of all"}
	}
	if s.Drop != "" && (kind == KindOpenAI || kind == KindCustom) {
		return &Invalid{"settings.drop", "nothing is translated for kind " + kind}
	}
	if s.DropUnsupported && (kind == KindOpenAI || kind == KindCustom) {
		return &Invalid{"settings.drop_unsupported", "nothing is translated for kind " + kind}
	}
	if s.MaxTokens != 0 && (kind != KindAnthropic || s.MaxTokens < 1 || s.MaxTokens > 1<<31-1) {
		return &Invalid{"settings.max_tokens", "only kind anthropic has it, from 1 to 2147483647"}
	}
	if !slices.Contains([]string{"", RatesOff, RatesRefusals, RatesAll}, s.RateHeaders) {
		return &Invalid{"settings.rate_headers", "it must be off, " + RatesRefusals + " or all"}
	}
	if s.Flavor != "" {
		if kind != KindOpenAI && kind != KindCustom {
			return &Invalid{"settings.flavor", "only the kinds openai and custom have it"}
		}
		if !slices.Contains(Flavors(), s.Flavor) {
			return &Invalid{"settings.flavor", "it must be one of " + strings.Join(Flavors(), ", ")}
		}
	}
	if err := passList("settings.pass_fields", s.PassFields, passable); err != nil {
		return err
	}
	if err := passList("settings.pass_headers", s.PassHeaders, passableHeader); err != nil {
		return err
	}
	if len(s.PassResponseHeaders) > maxPassResponse {
		return &Invalid{"settings.pass_response_headers", "it has more than 16 names"}
	}
	if err := passList("settings.pass_response_headers", s.PassResponseHeaders, passableResponseHeader); err != nil {
		return err
	}
	if err := passList("settings.public_headers", s.PublicHeaders, publicHeader); err != nil {
		return err
	}
	if s.InputType != "" && (kind != KindCohere || !slices.Contains([]string{"search_document", "search_query", "classification", "clustering"}, s.InputType)) {
		return &Invalid{"settings.input_type", "only kind cohere has it: search_document, search_query, classification or clustering"}
	}
	return nil
}

// The values of settings.rate_headers.
const (
	RatesOff      = "off"
	RatesRefusals = "refusals"
	RatesAll      = "all"
)

// RateHeaders returns settings.rate_headers, RatesOff if it is not set.
func (p Provider) RateHeaders() string {
	if p.ID == "" {
		return RatesOff // the zero Provider
	}
	s, _, _ := p.prepared()
	if s.RateHeaders == "" {
		return RatesOff
	}
	return s.RateHeaders
}

// maxPass bounds pass_fields and pass_headers.
const maxPass = 64

// maxPassResponse bounds pass_response_headers, which Envoy gets as one expression.
const maxPassResponse = 16

// PassesToCaller returns the names in settings.pass_response_headers. Settings that were
// stored by an earlier version may have names that no longer pass. They are left out.
func (p Provider) PassesToCaller() []string {
	s, _, _ := p.prepared()
	if !slices.ContainsFunc(s.PassResponseHeaders, rateHeader) {
		return s.PassResponseHeaders
	}
	return slices.DeleteFunc(slices.Clone(s.PassResponseHeaders), rateHeader)
}

// passList checks a list of names that pass. problem returns why a name cannot pass.
func passList(field string, names []string, problem func(string) string) error {
	if len(names) > maxPass {
		return &Invalid{field, "it has more than 64 names"}
	}
	for i, name := range names {
		field := fmt.Sprintf("%s[%d]", field, i)
		if p := problem(name); p != "" {
			return &Invalid{field, p}
		}
		if slices.Contains(names[:i], name) {
			return &Invalid{field, "it is repeated"}
		}
	}
	return nil
}

// credentialHeader reports whether a header carries credentials, by its name.
func credentialHeader(name string) bool {
	switch name {
	case "authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key", "xi-api-key", "x-auth-token", "x-amz-security-token", "cookie":
		return true
	}
	return false
}

// reservedHeader reports whether a header belongs to Envoy, HTTP or the gateway.
func reservedHeader(name string) bool {
	switch name {
	case "host", "content-length", "content-type", "content-encoding", "transfer-encoding", "te", "trailer", "connection", "keep-alive", "upgrade",
		"http2-settings", "proxy-connection", "expect", "accept-encoding", "x-request-id", "traceparent", "tracestate", "forwarded", "via",
		"x-http-method-override", "x-original-url", "x-rewrite-url":
		return true
	}
	for _, p := range []string{"x-aid-", "x-agent-", "x-envoy-", "x-forwarded-", "proxy-", "sec-"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// credentialQuery reports whether a query parameter carries credentials, by its name in
// lower case.
func credentialQuery(name string) bool {
	switch strings.Map(func(r rune) rune {
		if r == '-' || r == '_' || r == '.' {
			return -1
		}
		return r
	}, strings.ToLower(name)) {
	case "key", "apikey", "accesstoken", "token", "authtoken", "authorization", "auth", "secret", "subscriptionkey", "oauthtoken", "bearertoken":
		return true
	}
	return false
}

// modelProblem returns what is wrong with a model's name, or "". A name is visible ASCII.
// Other names could look like another name, or become one when they are trimmed.
func modelProblem(s string) string {
	switch {
	case s == "":
		return "it is empty"
	case len(s) > 256:
		return "it is longer than 256 characters"
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f || s[i] == '"' || s[i] == '\\' {
			return "it must be visible ASCII, without spaces, quotes and backslashes"
		}
	}
	return ""
}

// Secret is a credential that is never printed: not in logs, not in JSON, not with %v or
// %#v.
type Secret struct {
	// It is a function, since formatting by reflection does not read one.
	reveal func() string
}

// NewSecret hides s.
func NewSecret(s string) Secret {
	if s == "" {
		return Secret{}
	}
	return Secret{reveal: func() string { return s }}
}

// Reveal returns the secret, or "" without one.
func (s Secret) Reveal() string {
	if s.reveal == nil {
		return ""
	}
	return s.reveal()
}

const redacted = "[redacted]"

func (s Secret) String() string {
	if s.reveal == nil {
		return ""
	}
	return redacted
}

// GoString implements %#v.
func (s Secret) GoString() string { return "provider.Secret{" + s.String() + "}" }

// Format prints the same for every verb.
func (s Secret) Format(f fmt.State, verb rune) {
	text := s.String()
	if verb == 'v' && f.Flag('#') {
		text = s.GoString()
	}
	_, _ = f.Write([]byte(text)) // fmt ignores a writer's error
}

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText redacts in JSON, YAML and XML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalJSON redacts.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

// ErrUnreadable means that an encrypted secret cannot be decrypted.
var ErrUnreadable = errors.New("encrypted with another key, or altered")

// Clip shortens text of a client or a provider to n bytes of valid UTF-8.
func Clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
