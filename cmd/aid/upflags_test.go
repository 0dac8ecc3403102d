package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A wrong flag is the only thing that aid up reports: it has taken no lock, no port and no
// folder.
func TestUpChecksFlagsFirst(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // a port that is taken would be reported, if it came first
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, c := range []struct{ flag, value string }{
		{"usage", "sometimes"}, {"max-body", "0"}, {"max-body", "-1"}, {"max-body", "2000000000"}, {"max-body", "much"}, {"cors-origins", "*"}, {"cors-origins", "app.example.com"},
		{"domains", "https://x.example"}, {"private-targets", "10.0.0.1/8"}, {"private-targets", "x"}, {"max-staleness", "0"}, {"max-staleness", "soon"}, {"drain", "-1s"},
		{"envoy-concurrency", "-1"}, {"api", "8081"}, {"api", ""}, {"metrics", "unix:/x"}, {"api", "127.0.0.1:http"}, {"metrics", "127.0.0.1:70000"},
		{"stand-in", "0.0.0.0:8089"}, {"stand-in", "8089"}, {"providers", "/no/such/file"}, {"provider-ca", "/no/such/file"}, {"prices", "/no/such/file"},
		{"redis", "redis://x"}, {"egress", "unix:/x"}, {"egress", "127.0.0.1:x"}, {"proxy", "0.0.0.0:3128"}, {"proxy", "3128"}, {"egress-hosts", "*.openai.com"}, {"egress-hosts", ""}, {"log-level", "loud"}, {"log-format", "xml"}, {"no-such-flag", "x"},
	} {
		home := filepath.Join(t.TempDir(), "home")
		code, out, errs := play(t, "up", "--home", home, "--gateway", l.Addr().String(), "--"+c.flag+"="+c.value)
		if code == 0 || out != "" || !strings.Contains(errs, c.flag) {
			t.Errorf("--%s=%s: %d %q %q", c.flag, c.value, code, out, errs)
		}
		if _, err := os.Stat(home); !os.IsNotExist(err) {
			t.Errorf("--%s=%s: the folder was made before the flags were checked", c.flag, c.value)
		}
	}

	// The stand-in is a provider, so its address must be allowed like any other.
	for _, standIn := range []string{"127.0.0.1:0", "[::1]:0", "localhost:0"} {
		home := filepath.Join(t.TempDir(), "home")
		code, out, errs := play(t, "up", "--home", home, "--gateway", l.Addr().String(), "--private-targets", "10.0.0.0/8", "--stand-in", standIn)
		if code != 2 || out != "" || !strings.Contains(errs, "--private-targets") || !strings.Contains(errs, standIn) {
			t.Errorf("--stand-in %s: %d %q %q", standIn, code, out, errs)
		}
	}
}
