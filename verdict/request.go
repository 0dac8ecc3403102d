package verdict

import (
	"net/http"
	"slices"
	"time"

	"github.com/ai-identity/ai-identity/provider"
)

// Request is a caller's request, as plain values. Its text is as received: unbounded, and
// not yet suitable for an entry.
type Request struct {
	ID      string // made by Envoy or extproc, never by the client
	TraceID string
	Session string // chosen by the caller, never trusted; "" if absent
	// OwnSession is the sidecar's id of the session, if the caller chose none.
	OwnSession string
	Mode       string // "gateway" or "egress"

	Method, Path, Query string
	Host                string // lower case, without a port
	// Egress is the governed host that an intercepted connection is for; "": the caller
	// addressed the gateway. Envoy sets it from its own configuration.
	Egress string
	// own is the gateway's path of an intercepted request. Locate sets it.
	own string
	// HostVerified means that Host is one of the gateway's configured domains. Policy gets
	// only a verified host, since without domains the client chooses Host.
	HostVerified  bool
	ContentType   string
	Encodings     []string // of Content-Encoding, in order
	ContentLength int64    // -1: not stated
	UserAgent     string
	Workload      string // the verified name of the caller's workload, bound to an agent or not; "" if it presented none
	ClientIP      string // from the connection, never from a client's header; "" if unknown
	// Dialect are the names of headers in the request that only one provider's SDKs send.
	Dialect []string
	// Headers are the names of headers that are forwarded only to a provider that accepts
	// them (provider.HeaderChosen), without duplicates.
	Headers []string
	// Betas are the values of headers that ask for features in beta (provider.Betas).
	Betas []string

	// Match fills these.
	Endpoint provider.Endpoint
	Params   provider.Params
	Format   provider.Format // of the API that was called, for errors

	// The other fields are known when the request is complete.

	Body    []byte // still encoded
	MaxBody int64  // the largest body in bytes, encoded and decoded
	// ReadsAnswer means that the response will be read here, so that it can be translated
	// back.
	ReadsAnswer bool
	// Cut is the reason why the caller's running requests were cut, or "".
	Cut string
	// Time is the instant of the decision, in UTC and whole microseconds (see Instant).
	Time time.Time
}

// Instant is t as an entry stores it. Policy gets the same value, so that a recorded
// request is evaluated again with exactly the same time.
func Instant(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// The operations that are answered here. Both are about models.
const (
	opModels = "models.list"
	opModel  = "models.get"
)

// Match finds the endpoint. It returns the error that the headers show for every body, or
// nil.
func (r *Request) Match() *provider.Error {
	path := r.ownPath()
	if path == "" {
		return Unavailable("internal_error", "The request could not be evaluated, so it was not forwarded. Try again shortly.")
	}
	ep, params, ok := provider.Match(r.Method, path)
	if !ok {
		return provider.Unserved(r.Method, path)
	}
	r.Endpoint, r.Params, r.Format = ep, params, ep.Format
	if r.listsModels() {
		r.Format = provider.ModelsFormat(ep, func(header string) bool { return slices.Contains(r.Dialect, header) }, r.UserAgent)
	}
	if r.ContentLength > r.MaxBody {
		return tooLarge(r.MaxBody)
	}
	return nil
}

// ownPath is the path of the request in the gateway's API, or "" if Locate has not set it.
func (r *Request) ownPath() string {
	if r.Egress == "" {
		return r.Path
	}
	return r.own
}

// Locate finds the provider of an intercepted request's host, and the request's path in the
// gateway's API. The host picks the provider and the format: nothing is translated. It does
// nothing for a request to the gateway.
func (r *Request) Locate(providers *provider.Registry) *provider.Error {
	if r.Egress == "" {
		return nil
	}
	r.own = ""
	p, ok := providers.ByHost(r.Egress)
	if !ok {
		return Refuse(http.StatusForbidden, "host_not_governed", "No provider of this organization has the host "+r.Egress+
			". An administrator can add it to hosts of the provider: PATCH /v1/providers/{id}.")
	}
	r.Format = provider.FormatOfKind(p.Kind)
	path, ok := p.OwnPath(r.Egress, r.Path)
	if !ok {
		return provider.Unserved(r.Method, r.Path)
	}
	if ep, _, served := provider.Match(r.Method, path); served && !p.Native(ep) && len(ep.Kinds) > 0 {
		return provider.Unserved(r.Method, r.Path) // the endpoint of another provider's API
	}
	r.own = path
	return nil
}

// listsModels reports that the request is answered here.
func (r *Request) listsModels() bool {
	return r.Endpoint.Operation == opModels || r.Endpoint.Operation == opModel
}
