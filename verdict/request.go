package verdict

import (
	"slices"
	"time"

	"github.com/ai-identity/ai-identity/provider"
)

// Request is what a caller asks, as plain values. Its text is as received:
// unbounded, and not yet fit for an entry.
type Request struct {
	ID      string // ours, never the client's
	TraceID string
	Session string // of the caller's choice, never trusted; "" if absent
	Mode    string // "gateway" or "egress"

	Method, Path, Query string
	Host                string // lower case, without a port
	// HostVerified says that Host is one of the gateway's configured domains. Policy
	// sees no other: without domains the client chooses Host.
	HostVerified  bool
	ContentType   string
	Encodings     []string // of Content-Encoding, in order
	ContentLength int64    // -1: not stated
	UserAgent     string
	ClientIP      string // of the peer, never of a header of the client's; "" if unknown
	// Dialect are the names of those headers that only one provider's SDKs send.
	Dialect []string
	// Headers are the names of those headers that go on only to a provider that takes
	// them (provider.HeaderChosen), none twice.
	Headers []string

	// Match fills these.
	Endpoint provider.Endpoint
	Params   provider.Params
	Format   provider.Format // of the API that was called, for errors

	// The rest is known when the request is complete.

	Body    []byte // still encoded
	MaxBody int64  // the largest body in bytes, encoded and decoded
	// ReadsAnswer says that the response will be read here, so that a translated
	// one can be turned back.
	ReadsAnswer bool
	// Cut is why the caller's running requests were ordered to end; "" if they were not.
	Cut string
	// Time is the instant of the decision, in UTC and whole microseconds (see Instant).
	Time time.Time
}

// Instant is t as an entry stores it. Policy sees the same, so that a recorded
// request is evaluated again with exactly the time that it was decided with.
func Instant(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// The operations that are answered here: both are about models.
const (
	opModels = "models.list"
	opModel  = "models.get"
)

// Match finds the endpoint, and returns what the headers alone show to be wrong,
// whatever the body holds.
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

// listsModels says that the request is answered here.
func (r *Request) listsModels() bool {
	return r.Endpoint.Operation == opModels || r.Endpoint.Operation == opModel
}
