package extproc

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"github.com/ai-identity/ai-identity/envoy"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/verdict"
)

// request is what was read from the headers.
type request struct {
	verdict.Request

	target      string // the path with its query, as received
	traceparent string
	canary      string
	endOfStream bool
	// secret is the one credential. secrets is the number of different credentials.
	secret  string
	secrets int
	// token is the content of headerWorkload.
	token string
	// remove lists the headers that no provider must receive.
	remove []string
	// wrong is the first error in the headers, for any caller, or nil. unidentified is the
	// first error in the credentials: it rejects the request before a caller is looked up.
	wrong        *provider.Error
	unidentified *provider.Error
}

// How a request arrived: the caller addressed the gateway, or the provider's own host, and was
// intercepted.
const (
	modeGateway = "gateway"
	modeEgress  = "egress"
)

// carrier reports whether an agent may send its key in the header. Each SDK has its own:
// OpenAI and most others, Anthropic, Azure, Gemini.
func carrier(name string) bool {
	switch name {
	case "authorization", "x-api-key", "api-key", "x-goog-api-key":
		return true
	}
	return false
}

// single reports whether a header must not be repeated, and whether a comma in it counts as
// a repetition. Envoy joins the lines of some headers before they come here.
func single(name string) (single, comma bool) {
	switch name {
	case ":method", ":path", ":authority", ":scheme", "host", "content-length", "transfer-encoding", envoy.HeaderRequestID, envoy.HeaderCanary, envoy.HeaderPeer, envoy.HeaderProtocol,
		envoy.HeaderEgress, envoy.HeaderConnect:
		return true, true
	case "content-type", headerSession, headerWorkload:
		return true, true
	case "content-encoding", "traceparent", "upgrade":
		return true, false // "gzip, gzip" is rejected by Decode
	}
	return carrier(name), carrier(name)
}

// headerWorkload has the token of a workload, beside a key or another credential.
const headerWorkload = "x-aid-workload-token"

// headerSession has the caller's id of its session.
const headerSession = "x-session-id"

// maxSession limits the length of a caller's session id.
const maxSession = 128

// sessionForm reports whether s can be a session's id. It is part of a path of the
// management API.
func sessionForm(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("._:@+=-", c) >= 0:
		default:
			return false
		}
	}
	return s != "" && len(s) <= maxSession && s != "." && s != ".."
}

// Limits of a request's headers. Envoy accepts somewhat more (package xds), so that the
// response has a body and a request id. Envoy closes the connection above its own limits.
const (
	maxHeaderBytes = 60 << 10 // names and values
	maxHeaders     = 100      // lines of the client
)

// ofEnvoy reports whether Envoy adds the header, or makes it from the request line.
func ofEnvoy(name string) bool {
	return strings.HasPrefix(name, ":") || strings.HasPrefix(name, "x-forwarded-") || strings.HasPrefix(name, "x-envoy-") ||
		name == envoy.HeaderRequestID || name == envoy.HeaderPeer || name == envoy.HeaderProtocol || name == envoy.HeaderEgress || name == envoy.HeaderConnect
}

// readRequest reads the headers message. It never fails. Errors are kept, so that the
// rejection of a caller who can be identified is recorded. findToken, if not nil, finds tokens
// of workloads.
func readRequest(m *extprocv3.HttpHeaders, findToken func([]byte) bool) request {
	r := request{Request: verdict.Request{Mode: modeGateway, ContentLength: -1}, endOfStream: m.GetEndOfStream()}
	headers := m.GetHeaders().GetHeaders()
	r.remove = make([]string, 0, 8)
	seen := make([]string, 0, 23) // the single headers so far; there are 23
	bytesOf, lines := 0, 0
	connect := ""
	for _, h := range headers {
		name := lower(h.GetKey())
		raw := h.GetRawValue()
		if len(raw) == 0 && h.GetValue() != "" {
			raw = []byte(h.GetValue()) // Envoys before 1.27
		}
		if bytesOf += len(name) + len(raw); !ofEnvoy(name) {
			lines++
		}
		if one, comma := single(name); one {
			again := comma && bytes.IndexByte(raw, ',') >= 0
			if slices.Contains(seen, name) {
				again = true
			} else {
				seen = append(seen, name)
			}
			switch {
			case !again:
			case name == headerWorkload:
				r.doubt(verdict.Refuse(400, "ambiguous_credentials", "The header "+name+" is repeated. Send one token, once."))
			case carrier(name):
				r.doubt(verdict.Refuse(400, "ambiguous_credentials", "The header "+name+" is repeated. Send one key, once."))
			default:
				r.problem(verdict.Refuse(400, "repeated_header", "The header "+name+" is repeated."))
			}
		}
		if carrier(name) {
			r.credential(name, raw)
		} else if identity.FindSecrets(raw) {
			where := "the URL"
			if name != ":path" {
				where = "a header other than Authorization, x-api-key, api-key or x-goog-api-key"
			}
			r.problem(verdict.Misplaced(where))
		} else if name != headerWorkload && findToken != nil && findToken(raw) {
			where := "the URL"
			if name != ":path" {
				where = "a header other than Authorization, x-api-key, api-key, x-goog-api-key or X-AID-Workload-Token"
			}
			r.problem(verdict.MisplacedToken(where))
		}
		switch provider.HeaderOf(name) {
		case provider.HeaderHidden:
			r.remove = append(r.remove, name)
		case provider.HeaderChosen: // by the format and the provider's settings
			if !slices.Contains(r.Headers, name) {
				r.Headers = append(r.Headers, name)
			}
			r.Betas = append(r.Betas, provider.Betas(name, string(raw))...)
		}
		switch name {
		case ":method":
			r.Method = string(raw)
		case ":path":
			r.target = string(raw)
			r.Path, r.Query, _ = strings.Cut(r.target, "?")
		case ":authority", "host":
			if r.Host != "" && r.Host != lower(string(raw)) {
				r.problem(verdict.Refuse(400, "repeated_header", "The request names two hosts."))
			}
			r.Host = lower(string(raw))
		case ":scheme":
			if s := string(raw); s != "http" && s != "https" {
				r.problem(verdict.Refuse(400, "invalid_scheme", "The request's scheme is neither http nor https."))
			}
		case ":protocol", "upgrade", "http2-settings":
			r.problem(verdict.Refuse(403, "upgrade_refused", "Upgrades (WebSocket, h2c, CONNECT) are not available here. Use a plain HTTP request."))
		case "content-type":
			r.ContentType = string(raw)
		case "content-encoding":
			for e := range strings.SplitSeq(string(raw), ",") {
				r.Encodings = append(r.Encodings, strings.TrimSpace(e))
			}
		case "content-length":
			n, err := strconv.ParseUint(string(raw), 10, 62)
			if err != nil {
				r.problem(verdict.Refuse(400, "invalid_content_length", "The content-length is not a number."))
				n = 0
			}
			r.ContentLength = int64(n)
		case headerSession:
			if r.Session = string(raw); !sessionForm(r.Session) {
				r.Session = ""
				r.problem(verdict.Refuse(400, "invalid_session_id",
					fmt.Sprintf("X-Session-ID must have from 1 to %d letters, digits and the characters . _ : @ + = - only.", maxSession)))
			}
		case headerWorkload:
			r.token = strings.Trim(string(raw), " \t")
		case "user-agent":
			r.UserAgent = string(raw)
		case envoy.HeaderRequestID:
			r.ID = string(raw)
		case envoy.HeaderPeer:
			r.ClientIP = string(raw)
		case envoy.HeaderEgress:
			r.Mode, r.Egress = modeEgress, string(raw)
		case envoy.HeaderConnect:
			connect = string(raw)
		case envoy.HeaderProtocol:
			if v := string(raw); v != "HTTP/1.1" && v != "HTTP/2" {
				r.problem(verdict.Refuse(http.StatusUpgradeRequired, "http_version_not_supported", "This version of HTTP is not supported. Use HTTP/1.1 or HTTP/2."))
			}
		case "traceparent":
			r.traceparent = string(raw)
		case envoy.HeaderCanary:
			r.canary = string(raw)
		case "anthropic-version", "x-goog-api-key":
			r.Dialect = append(r.Dialect, name)
		}
	}
	if bytesOf > maxHeaderBytes || lines > maxHeaders {
		r.wrong = verdict.Refuse(http.StatusRequestHeaderFieldsTooLarge, "headers_too_large",
			fmt.Sprintf("The request headers have more than %d KiB, or more than %d lines.", maxHeaderBytes>>10, maxHeaders))
	}
	if a, err := netip.ParseAddr(r.ClientIP); err == nil {
		r.ClientIP = a.Unmap().String()
	} else {
		r.ClientIP = ""
	}
	if r.Method == "CONNECT" {
		r.problem(verdict.Refuse(403, "upgrade_refused", "CONNECT is not available here."))
	}
	if r.Method == "" || !strings.HasPrefix(r.Path, "/") {
		r.problem(verdict.Refuse(400, "invalid_path", "The request target must be a path."))
	}
	if !hostForm(r.Host) {
		r.problem(verdict.Refuse(400, "invalid_host", "The request must name its host, as a name or an address and nothing else."))
	}
	if r.Mode == modeEgress && (r.Egress == "" || r.Host != r.Egress || connect != "" && connect != r.Egress+":443") {
		r.Egress = cmp.Or(r.Egress, "unknown") // so that it is never a request to the gateway
		r.problem(verdict.Refuse(http.StatusMisdirectedRequest, "misdirected_request",
			"The host of the request is not the host of the connection (SNI, CONNECT). Use one connection for each host."))
	}
	// A path that is rejected for an encoded character still belongs to that API.
	plain, _, _ := strings.Cut(r.Path, "%")
	r.Format = provider.FormatOf(plain)
	return r
}

// verifyHost compares the request's host with the configured domains, if there are any.
func (r *request) verifyHost(domains []string) {
	if r.Mode == modeEgress {
		r.HostVerified = r.wrong == nil // it is the host of the connection
		return
	}
	r.HostVerified = slices.ContainsFunc(domains, func(d string) bool {
		below, wildcard := strings.CutPrefix(d, "*")
		return r.Host == d || wildcard && len(r.Host) > len(below) && strings.HasSuffix(r.Host, below)
	})
	if len(domains) > 0 && !r.HostVerified {
		r.problem(verdict.Refuse(http.StatusMisdirectedRequest, "unknown_host",
			"This gateway does not serve the host of the request. Use one of its domains, or have the operator add the host to --domains."))
	}
}

// headersAlone returns the error that the headers show for every body, or nil.
func (r *request) headersAlone(providers *provider.Registry) *provider.Error {
	if r.wrong != nil {
		return r.wrong
	}
	if refused := r.Locate(providers); refused != nil {
		return refused
	}
	return r.Match()
}

// unserved rejects a path that is not served for any key, or returns nil.
func (r *request) unserved() *provider.Error {
	if r.wrong != nil && r.wrong.Status == http.StatusUpgradeRequired {
		return r.wrong
	}
	if _, _, served := provider.Match(r.Method, r.Path); served || r.wrong != nil || r.Mode == modeEgress {
		return nil
	}
	return provider.Unserved(r.Method, r.Path)
}

func (r *request) problem(p *provider.Error) {
	if r.wrong == nil {
		r.wrong = p
	}
}

func (r *request) doubt(p *provider.Error) {
	if r.unidentified == nil {
		r.unidentified = p
	}
}

// credential adds the key in a carrier. An empty one is skipped: some SDKs always send
// their header.
func (r *request) credential(name string, raw []byte) {
	v := string(raw)
	if name == "authorization" {
		scheme, rest, _ := strings.Cut(v, " ")
		if strings.EqualFold(scheme, "bearer") {
			v = rest
		}
	}
	v = strings.Trim(v, " \t")
	switch {
	case v == "" || v == r.secret:
	case r.secrets == 0:
		r.secret, r.secrets = v, 1
	default:
		r.secrets++
		r.doubt(verdict.Refuse(400, "ambiguous_credentials", "The request carries two different keys. Send one key, once."))
	}
}

// hostForm reports whether s is a host and nothing more: no user, port or path. Policies
// compare it and the audit log has it, so it has one spelling. An IPv6 address is in
// brackets.
func hostForm(s string) bool {
	if a, ok := strings.CutPrefix(s, "["); ok {
		a, ok = strings.CutSuffix(a, "]")
		ip, err := netip.ParseAddr(a)
		return ok && err == nil && ip.Is6() && ip.Zone() == ""
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		case c == '.' && i > 0 && i < len(s)-1 && s[i-1] != '.':
		default:
			return false
		}
	}
	return s != "" && len(s) <= 253
}

// lower is strings.ToLower, fast for names that are lower-case already, as Envoy's are.
func lower(s string) string {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			return strings.ToLower(s)
		}
	}
	return s
}

// span is the position of an exchange in a trace, as in the header traceparent. The
// specification https://www.w3.org/TR/trace-context/#traceparent-header defines its fields.
type span struct {
	trace [16]byte
	id    [8]byte
	flags byte
}

// parseTraceparent accepts version 00, and the same prefix of later versions, as the
// specification requires.
func parseTraceparent(s string) (span, bool) {
	if len(s) < 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' || s[:2] == "ff" || (len(s) > 55 && (s[:2] == "00" || s[55] != '-')) || lower(s) != s {
		return span{}, false
	}
	var sp span
	var version, flags [1]byte
	for _, f := range []struct {
		dst []byte
		hex string
	}{{version[:], s[:2]}, {sp.trace[:], s[3:35]}, {sp.id[:], s[36:52]}, {flags[:], s[53:55]}} {
		if _, err := hex.Decode(f.dst, []byte(f.hex)); err != nil {
			return span{}, false
		}
	}
	sp.flags = flags[0]
	return sp, sp.trace != [16]byte{} && sp.id != [8]byte{}
}

// nextSpan returns a span below parent, in parent's trace or in a new one.
func nextSpan(parent span, known bool, rand io.Reader) (span, error) {
	sp := parent
	if !known {
		sp = span{}
		if _, err := io.ReadFull(rand, sp.trace[:]); err != nil {
			return span{}, err
		}
	}
	_, err := io.ReadFull(rand, sp.id[:])
	return sp, err
}

func (s span) traceID() string { return hex.EncodeToString(s.trace[:]) }

// String is the traceparent header.
func (s span) String() string {
	b := make([]byte, 0, 55)
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, s.trace[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, s.id[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, []byte{s.flags & 1}) // only "sampled" is defined
	return string(b)
}
