package extproc_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/extproc"
)

// Policy uses a host only if it is one of the configured domains. If there are domains,
// other hosts are rejected.
func TestDomains(t *testing.T) {
	policies := []string{`{"name":"one-host","effect":"allow","conditions":{"request.host":{"in":["gateway.test","a.corp.test"]}}}`}
	for _, c := range []struct {
		domains      []string
		host, status string
	}{
		{nil, "gateway.test", "403"}, // the client chose it
		{[]string{"gateway.test"}, "gateway.test", "200"}, {[]string{"gateway.test"}, "GATEWAY.test", "200"},
		{[]string{"gateway.test"}, "other.test", "421"}, {[]string{"gateway.test"}, "x.gateway.test", "421"}, {[]string{"gateway.test"}, "gateway.test.evil.test", "421"},
		{[]string{"other.test", "*.corp.test"}, "a.corp.test", "200"}, {[]string{"*.corp.test"}, "b.a.corp.test", "403"},
		{[]string{"*.corp.test"}, "corp.test", "421"}, {[]string{"*.corp.test"}, "xcorp.test", "421"}, {[]string{"*.corp.test"}, ".corp.test", "400"},
		{[]string{"gateway.test"}, "", "400"}, {[]string{"gateway.test"}, "127.0.0.1", "421"},
	} {
		w := serve(t, options{policies: policies, config: func(conf *extproc.Config) { conf.Domains = c.domains }})
		answer, pieces := ok()
		out := w.play(t.Context(), w.chat("small").with(":authority", c.host), answer, pieces)
		if out.client.get(":status") != c.status || (out.upstream != nil) != (c.status == "200") {
			t.Errorf("%v, %s: %v", c.domains, c.host, out.client)
		}
		entries := fmt.Sprintf("%s", w.entries())
		if !strings.Contains(entries, `"kind":"request.decided"`) || strings.Contains(entries, `"host_verified":true`) != (c.status == "200" || c.host == "b.a.corp.test") {
			t.Errorf("%v, %s: recorded %s", c.domains, c.host, entries)
		}
	}
	for _, bad := range []string{"", "*", "*.", "gateway.test:443", "https://gateway.test", "GATEWAY.test", "a.*.test", "x/y"} {
		if extproc.CheckDomains([]string{bad}) == nil {
			t.Errorf("%q is a domain", bad)
		}
	}
}
