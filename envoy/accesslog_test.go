package envoy_test

import (
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/envoy"
)

// The lines are those of a real Envoy 1.40 (e2e.TestTieOut compares them with the audit log).
// The id of a request that Envoy rejected before it made one is the client's, and is not read.
func TestParseLogged(t *testing.T) {
	const forged = "11111111-1111-4111-8111-111111111111 provider-x 200 -,via_upstream "
	for line, want := range map[string]envoy.Logged{
		"r 1795804774.740232 wokt provider-ce4b 200 -,via_upstream d6d83ce5": {Process: "wokt", Route: "provider-ce4b", Status: 200, Details: "via_upstream", ID: "d6d83ce5"},
		"r 1795804774.740232 wokt - 400 -,missing_host_header " + forged:     {Process: "wokt", Status: 400, Details: "missing_host_header"},
		"r 1795804774.740232 - - 400 DPE,http1.codec_error -":                {Process: "-", Status: 400, Flags: "DPE", Details: "http1.codec_error"},
		"r 1795804774.740232 wokt - 401 -,aid_unrecorded_x ee9d":             {Process: "wokt", Status: 401, Details: "aid_unrecorded_x", ID: "ee9d"},
		"r 1795804774.740232 wokt undecided 0 DC,downstream_remote 4b6c":     {Process: "wokt", Route: "undecided", Flags: "DC", Details: "downstream_remote", ID: "4b6c"},
		"c 1795804774.740232 wokt aid_egress - NR 127.0.0.1 x.example.com -": {Process: "wokt", Listener: "aid_egress", Flags: "NR", Peer: "127.0.0.1", Name: "x.example.com"},
		"c 1795804774.740232 wokt aid_egress h - 127.0.0.1 h TLS_error:|2 x": {Process: "wokt", Listener: "aid_egress", Chain: "h", Peer: "127.0.0.1", Name: "h", Failure: "TLS_error:|2 x"},
	} {
		got, err := envoy.ParseLogged([]byte(line))
		want.Start = time.UnixMicro(1795804774740232).UTC()
		if err != nil || got != want {
			t.Errorf("%s\n got %+v %v\nwant %+v", line, got, err, want)
		}
	}
	for _, line := range []string{"", "r", "x 1.2", "r 1795804774 w a 200 -,- i", "r x.1 w a 200 -,- i", "r 1.1000000 w a 200 -,- i", "r 1.000000 w a 2000 -,- i", "r 1.000000 w a b -,- i", "c 1.000000 w a b"} {
		if got, err := envoy.ParseLogged([]byte(line)); err == nil {
			t.Errorf("%q: %+v", line, got)
		}
	}
	for _, path := range []string{"x", "../x", "/a/../b", "/a\nb", "/a/"} {
		if envoy.CheckLogPath(path) == nil {
			t.Errorf("%q", path)
		}
	}
	// No header except our id, no path, no host, no query.
	format := envoy.RequestLog("/x").GetLogFormat().GetTextFormatSource().GetInlineString()
	if n := strings.Count(format, "%REQ"); n != 1 || strings.Contains(format, "PATH") || strings.Contains(format, "RESP(") || strings.Contains(format, "TRAILER") {
		t.Error(format)
	}
}
