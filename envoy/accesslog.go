package envoy

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
)

// Envoy's access log is a file that the sidecar compares with the audit log (package
// extproc/tieout). A line has values that the gateway or Envoy chose, and no path and no header.
// The id comes last: a request that Envoy rejects before it has made the id may show the
// client's own. Such a request has no route, and no response of the sidecar.
//
//	request      "r" time process route status flags,details id
//	connection   "c" time process listener chain flags address name failure

// ProcessVariable is the environment variable that names a process of Envoy in its access log.
// systemd sets it to another value for each start.
const ProcessVariable = "INVOCATION_ID"

// The names of routes, for the access log. A route to a provider has its cluster's name.
const (
	RouteUndecided  = "undecided"  // leads nowhere: every request has it before its decision
	RouteManagement = "management" // to the management API, without extproc
	RouteTunnel     = "tunnel"     // of the forward proxy, to the inner listener
	RouteRefused    = "refused"    // of the forward proxy, for everything else
)

// UnrecordedPrefix begins the details of responses from extproc without an entry of their own.
// These have no known caller, are counted, could not be recorded, or are readiness checks.
const UnrecordedPrefix = DetailsPrefix + "unrecorded_"

// MaxLogLine is the length of the longest line of the access log that is read.
const MaxLogLine = 4096

const (
	logTime     = "%START_TIME(%s.%6f)%"
	logProcess  = "%ENVIRONMENT(" + ProcessVariable + ")%"
	requestLine = "r " + logTime + " " + logProcess + " %ROUTE_NAME% %RESPONSE_CODE% %RESPONSE_FLAGS%,%RESPONSE_CODE_DETAILS% %REQ(X-REQUEST-ID):64%\n"
)

// connectionLine is the line of a connection. One through the forward proxy has the address
// that the proxy saw.
func connectionLine(listener string, tunneled bool) string {
	peer := PeerFormat
	if tunneled {
		peer = TunnelPeerFormat
	}
	return "c " + logTime + " " + logProcess + " " + listener +
		" %FILTER_CHAIN_NAME% %RESPONSE_FLAGS% " + peer + " %REQUESTED_SERVER_NAME% %DOWNSTREAM_TRANSPORT_FAILURE_REASON%\n"
}

// RequestLog writes a line for each request.
func RequestLog(path string) *filelogv3.FileAccessLog { return fileLog(path, requestLine) }

// ConnectionLog writes a line for each connection of a listener.
func ConnectionLog(path, listener string, tunneled bool) *filelogv3.FileAccessLog {
	return fileLog(path, connectionLine(listener, tunneled))
}

func fileLog(path, line string) *filelogv3.FileAccessLog {
	return &filelogv3.FileAccessLog{Path: path, AccessLogFormat: &filelogv3.FileAccessLog_LogFormat{LogFormat: &corev3.SubstitutionFormatString{
		Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
			Specifier: &corev3.DataSource_InlineString{InlineString: line},
		}},
	}}}
}

// CheckLogPath returns what is wrong with the path of an access log, or nil.
func CheckLogPath(path string) error {
	if path != "" && (!filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f })) {
		return fmt.Errorf("access log %q: set the absolute path of a file, such as /var/lib/aid/access.log", path)
	}
	return nil
}

// Logged is a line of the access log.
type Logged struct {
	Start   time.Time
	Process string // ProcessVariable of the Envoy that wrote it; "-": it has none

	// Of a request:
	Route   string // empty: it ended before it had a route
	Status  int    // 0: no response began
	Flags   string // Envoy's response flags; empty: none
	Details string // Envoy's reason for the response
	ID      string // the request id; empty: it has none that Envoy made

	// Of a connection; Listener is empty for a request.
	Listener string
	Chain    string // the filter chain; empty: no chain matched
	Peer     string // the client's address
	Name     string // the server name that the client sent; empty: none
	Failure  string // why the handshake failed; empty: it did not
}

// ErrLogLine is wrapped by the errors of ParseLogged.
var ErrLogLine = errors.New("this is not a line of the access log")

// ParseLogged reads a line of the access log, without its end.
func ParseLogged(line []byte) (Logged, error) {
	kind, rest, _ := bytes.Cut(line, []byte{' '})
	var l Logged
	var f []string
	switch string(kind) {
	case "r":
		if f = strings.SplitN(string(rest), " ", 6); len(f) != 6 {
			return l, fmt.Errorf("%w: a request has 6 fields", ErrLogLine)
		}
		l.Route = value(f[2])
		l.Flags, l.Details, _ = strings.Cut(f[4], ",")
		l.Flags, l.Details = value(l.Flags), value(l.Details)
		if l.Route != "" || strings.HasPrefix(l.Details, DetailsPrefix) {
			l.ID = value(f[5]) // otherwise the id may be the client's
		}
	case "c":
		if f = strings.SplitN(string(rest), " ", 8); len(f) != 8 {
			return l, fmt.Errorf("%w: a connection has 8 fields", ErrLogLine)
		}
		l.Listener, l.Chain, l.Flags, l.Peer, l.Name, l.Failure = f[2], value(f[3]), value(f[4]), value(f[5]), value(f[6]), value(f[7])
	default:
		return l, fmt.Errorf("%w: it begins with neither r nor c", ErrLogLine)
	}
	seconds, micros, ok := strings.Cut(f[0], ".")
	s, err := strconv.ParseInt(seconds, 10, 40)
	us, bad := strconv.ParseUint(micros, 10, 32)
	if !ok || err != nil || bad != nil || s < 0 || us >= 1e6 {
		return Logged{}, fmt.Errorf("%w: its time is not valid", ErrLogLine)
	}
	l.Start, l.Process = time.Unix(s, int64(us)*1000).UTC(), f[1]
	if kind[0] == 'r' {
		if l.Status, err = strconv.Atoi(f[3]); err != nil || l.Status < 0 || l.Status > 999 {
			return Logged{}, fmt.Errorf("%w: its status is not a number", ErrLogLine)
		}
	}
	return l, nil
}

// value returns "" for the sign that Envoy writes for a missing value.
func value(s string) string {
	if s == "-" {
		return ""
	}
	return s
}
