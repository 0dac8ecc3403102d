package verdict

import (
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
	// HostVerified means that Host is one of the gateway's configured domains. Policy gets
	// only a verified host, since without domains the client chooses Host.
	HostVerified  bool
	ContentType   string
	Encodings     []string // of Content-Encoding, in order
	ContentLength int64    // -1: not stated
	UserAgent     string
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
	ep, params, ok := provider.Match(r.Method, r.Path)
	if !ok {
		return provider.Unserved(r.Method, r.Path)
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

// listsModels reports that the request is answered here.
func (r *Request) listsModels() bool {
	return r.Endpoint.Operation == opModels || r.Endpoint.Operation == opModel
}
