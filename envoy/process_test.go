package envoy_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/envoy"
	"github.com/ai-identity/ai-identity/envoy/envoytest"
)

func TestCheckVersion(t *testing.T) {
	for v, ok := range map[string]bool{
		"1.38.9": false, "1.39.0": false, "1.39.1": true, "1.39.2": true, "1.40.0": true, "2.0.0": true, "0.99.99": false, "junk": false,
	} {
		if err := envoy.CheckVersion(v); (err == nil) != ok {
			t.Errorf("%s: %v", v, err)
		}
	}
}

func TestVersion(t *testing.T) {
	v, err := envoy.Version(t.Context(), envoytest.Path(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := envoy.CheckVersion(v); err != nil {
		t.Error(err)
	}
}

func TestFindSaysWhatToDo(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Chdir(t.TempDir())
	if _, err := envoy.Find("", t.TempDir()); err == nil || !strings.Contains(err.Error(), "make setup") {
		t.Errorf("got %v", err)
	}
	if _, err := envoy.Find("/nonexistent", ""); err == nil || !strings.Contains(err.Error(), "/nonexistent") {
		t.Errorf("got %v", err)
	}
}

// static is an Envoy with one listener that responds without extproc.
func static(admin string, listen int, upstream string) []byte {
	return fmt.Appendf(nil, `{
	"node": {"id": "x", "cluster": "x"},
	"admin": {"address": {"pipe": {"path": %q}}},
	"static_resources": {
	  "clusters": [{"name": "up", "type": "STATIC", "load_assignment": {"cluster_name": "up", "endpoints": [{"lb_endpoints": [
	    {"endpoint": {"address": {"pipe": {"path": %q}}}}]}]}}],
	  "listeners": [{"address": {"socket_address": {"address": "127.0.0.1", "port_value": %d}}, "filter_chains": [{"filters": [{
	  "name": "hcm", "typed_config": {
	    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
	    "stat_prefix": "in",
	    "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "0s"}}]}]},
	    "http_filters": [{"name": "r", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]
	  }}]}]}]}}`, admin, upstream, listen)
}

// An Envoy that is killed is started again. One that is stopped lets the exchange in flight
// end first.
func TestProcess(t *testing.T) {
	path, dir, port := envoytest.Path(t), envoytest.SocketDir(t), envoytest.Port(t)
	admin, upstream := filepath.Join(dir, "admin.sock"), filepath.Join(dir, "up.sock")

	l, err := net.Listen("unix", upstream)
	if err != nil {
		t.Fatal(err)
	}
	arrived, release := make(chan struct{}, 1), make(chan struct{})
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			arrived <- struct{}{}
			<-release
		}
		io.WriteString(w, "whole")
	}))
	t.Cleanup(func() { l.Close() })

	file := filepath.Join(dir, "bootstrap.json")
	if err := os.WriteFile(file, static(admin, port, upstream), 0o600); err != nil {
		t.Fatal(err)
	}
	p := envoy.NewProcess(envoy.ProcessConfig{Path: path, Bootstrap: file, Admin: admin, Concurrency: 1, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()

	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	answers := func() { // within 20 s
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for {
			resp, err := http.Get(url + "/")
			if err == nil {
				resp.Body.Close()
				return
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
			<-time.After(10 * time.Millisecond)
		}
	}
	answers()
	syscall.Kill(p.PID(), syscall.SIGKILL)
	for p.Restarts() == 0 {
		<-time.After(time.Millisecond)
	}
	answers()

	got := make(chan string, 1)
	go func() {
		resp, err := http.Get(url + "/slow")
		if err != nil {
			got <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		got <- fmt.Sprint(string(b), err)
	}()
	<-arrived
	cancel()
	// The listener is closed first: wait for that, then let the response go.
	for {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			break
		}
		c.Close()
		<-time.After(10 * time.Millisecond)
	}
	close(release)
	if s := <-got; s != "whole<nil>" {
		t.Errorf("the exchange in hand ended with %q", s)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if p.PID() != 0 {
		t.Error("still running")
	}
}
