package extproc

import (
	"strings"
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
		}}}, nil)
		switch {
		case want != "" && (r.wrong != nil || r.Host != want):
			t.Errorf("%q is %q, %+v", sent, r.Host, r.wrong)
		case want == "" && r.wrong == nil:
			t.Errorf("%q is taken as %q", sent, r.Host)
		}
	}
}

// Headers that Envoy passes and this sidecar does not are rejected with a response.
func TestHeaderLimits(t *testing.T) {
	header := func(name, value string) *corev3.HeaderValue {
		return &corev3.HeaderValue{Key: name, RawValue: []byte(value)}
	}
	lines := func(name string, n int) (all []*corev3.HeaderValue) {
		for range n {
			all = append(all, header(name, "x"))
		}
		return all
	}
	for _, c := range []struct {
		name    string
		headers []*corev3.HeaderValue
		status  int // 0: it is accepted
	}{
		{"100 lines", lines("x-a", 100), 0},
		{"101 lines", lines("x-a", 101), 431},
		{"100 lines and Envoy's", append(lines("x-a", 100), header("x-forwarded-for", "192.0.2.1"), header("x-forwarded-proto", "http"), header("x-request-id", "x")), 0},
		{"59 KiB", []*corev3.HeaderValue{header("x-a", strings.Repeat("x", 59<<10))}, 0},
		{"61 KiB", []*corev3.HeaderValue{header("x-a", strings.Repeat("x", 61<<10))}, 431},
		{"61 KiB of names", []*corev3.HeaderValue{header(strings.Repeat("x", 61<<10), "")}, 431},
		{"61 KiB in parts", []*corev3.HeaderValue{header("x-a", strings.Repeat("x", 31<<10)), header("x-b", strings.Repeat("x", 30<<10))}, 431},
	} {
		r := readRequest(&extprocv3.HttpHeaders{Headers: &corev3.HeaderMap{Headers: append([]*corev3.HeaderValue{
			header(":method", "POST"), header(":path", "/v1/chat/completions"), header(":authority", "gateway.test"),
		}, c.headers...)}}, nil)
		if got := r.wrong; (got == nil) != (c.status == 0) || got != nil && got.Status != c.status {
			t.Errorf("%s: %+v, want %d", c.name, got, c.status)
		}
	}
}
