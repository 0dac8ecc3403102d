package extproc

import (
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
)

// TestHosts: policies and the audit log get one spelling of a host. A request without a
// host, or with more than a host, is rejected.
func TestHosts(t *testing.T) {
	for sent, want := range map[string]string{
		"gateway.test": "gateway.test", "Gateway.TEST": "gateway.test", "10.0.0.1": "10.0.0.1", "localhost": "localhost",
		"a_b.svc-1.cluster.local": "a_b.svc-1.cluster.local", "[::1]": "[::1]", "[2001:DB8::1]": "[2001:db8::1]", "xn--bcher-kva.test": "xn--bcher-kva.test",

		"": "", "user@gateway.test": "", "gateway.test:8080": "", "gateway.test:": "", ":80": "", "gateway.test/v1": "", "gateway.test?x": "", "gateway.test#x": "",
		"gateway.test,other.test": "", "gateway.test other.test": "", "gateway..test": "", ".gateway.test": "", "gateway.test.": "", "gateway.test;x": "",
		"b\u00fccher.test": "", "gateway\x00.test": "", "%67ateway.test": "", "[::1]:80": "", "[::1%25lo]": "", "[::1%lo]": "", "[10.0.0.1]": "", "[]": "", "[": "", "::1": "",
	} {
		r := readRequest(&extprocv3.HttpHeaders{Headers: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
			{Key: ":method", RawValue: []byte("POST")}, {Key: ":path", RawValue: []byte("/v1/chat/completions")}, {Key: ":authority", RawValue: []byte(sent)},
		}}})
		switch {
		case want != "" && (r.wrong != nil || r.Host != want):
			t.Errorf("%q is %q, %+v", sent, r.Host, r.wrong)
		case want == "" && r.wrong == nil:
			t.Errorf("%q is taken as %q", sent, r.Host)
		}
	}
}
