package envoy_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ai-identity/ai-identity/envoy"
	"github.com/ai-identity/ai-identity/envoy/envoytest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// configs are the two shapes that we ship: `aid up`'s, where everything is on
// one machine, and the sidecar's, whose control plane is elsewhere.
func configs() map[string]envoy.Config {
	return map[string]envoy.Config{
		"up": {
			NodeID:  "up",
			XDS:     envoy.Endpoint{Address: "unix:/home/me/.aid/run/envoy-xds.sock"},
			ExtProc: "/home/me/.aid/run/extproc.sock",
			API:     envoy.Endpoint{Address: "127.0.0.1:8081"},
			Admin:   "/home/me/.aid/run/envoy.sock",
		},
		"sidecar": {
			NodeID:  "pod-1",
			Cluster: "payments",
			XDS: envoy.Endpoint{Address: "aid-control.aid.svc:18000", TLS: &envoy.TLS{
				CAFile: "/run/secrets/ca.pem", CertFile: "/run/secrets/tls.crt", KeyFile: "/run/secrets/tls.key",
			}},
			ExtProc:        "/run/aid/extproc.sock",
			Admin:          "/run/aid/envoy.sock",
			MaxConnections: 1000, MaxHeapBytes: 256 << 20, MaxStreams: 1000,
		},
	}
}

func TestBootstrapGolden(t *testing.T) {
	for name, c := range configs() {
		t.Run(name, func(t *testing.T) {
			got, err := envoy.Bootstrap(c)
			if err != nil {
				t.Fatal(err)
			}
			again, _ := envoy.Bootstrap(c)
			if !bytes.Equal(got, again) {
				t.Fatal("not the same twice")
			}
			file := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(got)); d != "" {
				t.Errorf("%s (-want +got):\n%s", file, d)
			}
		})
	}
}

// What must hold of any bootstrap, whatever the golden files say today.
func TestBootstrapLimits(t *testing.T) {
	for name, c := range configs() {
		out, err := envoy.Bootstrap(c)
		if err != nil {
			t.Fatal(err)
		}
		var b struct {
			Admin struct {
				Address struct {
					Pipe *struct {
						Path string
						Mode int
					}
				}
			}
			Static struct {
				Clusters []struct {
					Name     string
					Connect  string `json:"connect_timeout"`
					Buffer   int    `json:"per_connection_buffer_limit_bytes"`
					Breakers struct {
						Thresholds []map[string]any
					} `json:"circuit_breakers"`
				}
				Listeners []any
			} `json:"static_resources"`
		}
		if err := json.Unmarshal(out, &b); err != nil {
			t.Fatal(err)
		}
		if b.Admin.Address.Pipe == nil || b.Admin.Address.Pipe.Mode != 0o600 {
			t.Errorf("%s: admin is not a private Unix socket: %+v", name, b.Admin)
		}
		if len(b.Static.Listeners) != 0 {
			t.Errorf("%s: a static listener would serve before the control plane has spoken", name)
		}
		for _, cl := range b.Static.Clusters {
			if cl.Connect == "" || cl.Buffer == 0 || len(cl.Breakers.Thresholds) != 2 {
				t.Errorf("%s: %s leaves a default: %+v", name, cl.Name, cl)
			}
			if cl.Name != envoy.ClusterExtProc {
				continue
			}
			streams := max(c.MaxStreams, 1000)
			for _, th := range cl.Breakers.Thresholds {
				for _, k := range []string{"max_connections", "max_pending_requests", "max_requests"} {
					if n, _ := th[k].(float64); int64(n) < 2*streams {
						t.Errorf("%s: %s %s is %v, want at least %d", name, cl.Name, k, th[k], 2*streams)
					}
				}
			}
		}
		if bytes.Contains(out, []byte(": false")) {
			t.Errorf("%s: something is switched off:\n%s", name, out)
		}
	}
}

func TestBootstrapRefuses(t *testing.T) {
	base := configs()["up"]
	for name, tc := range map[string]struct {
		change func(*envoy.Config)
		want   string
	}{
		"no node":        {func(c *envoy.Config) { c.NodeID = "" }, "node id"},
		"no xds":         {func(c *envoy.Config) { c.XDS.Address = "" }, "control plane"},
		"no extproc":     {func(c *envoy.Config) { c.ExtProc = "" }, "extproc"},
		"no admin":       {func(c *envoy.Config) { c.Admin = "" }, "admin"},
		"plaintext":      {func(c *envoy.Config) { c.XDS.Address = "10.0.0.1:18000" }, "TLS is required"},
		"plaintext name": {func(c *envoy.Config) { c.API.Address = "api.example.com:80" }, "TLS is required"},
		"no port":        {func(c *envoy.Config) { c.XDS.Address = "localhost" }, "host:port"},
		"no CA":          {func(c *envoy.Config) { c.XDS = envoy.Endpoint{Address: "cp:1", TLS: &envoy.TLS{}} }, "CA file"},
		"half a key pair": {func(c *envoy.Config) {
			c.XDS = envoy.Endpoint{Address: "cp:1", TLS: &envoy.TLS{CAFile: "x", KeyFile: "k"}}
		}, "its key"},
		"TLS on a socket": {func(c *envoy.Config) { c.XDS.TLS = &envoy.TLS{CAFile: "x"} }, "Unix socket"},
		"long path":       {func(c *envoy.Config) { c.Admin = "/" + strings.Repeat("a", 120) }, "107"},
	} {
		t.Run(name, func(t *testing.T) {
			c := base
			tc.change(&c)
			_, err := envoy.Bootstrap(c)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want it to say %q", err, tc.want)
			}
			if err != nil && strings.Contains(err.Error(), "aid_node_") {
				t.Errorf("the token is in the error: %v", err)
			}
		})
	}
}

func TestBootstrapIsValidToEnvoy(t *testing.T) {
	path := envoytest.Path(t)
	for name, c := range configs() {
		if c.XDS.TLS != nil {
			// Envoy reads these files when it validates.
			dir := t.TempDir()
			c.XDS.TLS.CAFile, c.XDS.TLS.CertFile, c.XDS.TLS.KeyFile = envoytest.Certificates(t, dir, "aid-control.aid.svc")
		}
		out, err := envoy.Bootstrap(c)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "bootstrap.json")
		if err := os.WriteFile(file, out, 0o600); err != nil {
			t.Fatal(err)
		}
		msg, err := exec.CommandContext(t.Context(), path, "--mode", "validate", "--config-path", file, "--log-level", "warning").CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, msg)
		}
		// Deprecated or misspelt: Envoy says so and goes on; we do not.
		if strings.Contains(string(msg), "eprecated") || strings.Contains(string(msg), "unknown") {
			t.Errorf("%s: %s", name, msg)
		}
	}
}
