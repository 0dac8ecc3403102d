package e2e_test

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ai-identity/ai-identity/e2e"
	"github.com/ai-identity/ai-identity/envoy"
)

// If keys were lost, or belong to another installation, the start beside a database in use
// fails. With the restored keys it succeeds.
func TestLostKeys(t *testing.T) {
	home := e2e.Home(t)
	up, err := e2e.TryStart(t, e2e.Config{Home: home})
	if err != nil {
		t.Fatal(err)
	}
	verify := func(args ...string) (string, error) {
		out, err := exec.Command(e2e.Binary(t), append([]string{"audit", "verify", "--home", home}, args...)...).CombinedOutput()
		return string(out), err
	}
	if out, err := verify(); err != nil || !strings.Contains(out, "org_default: ") {
		t.Errorf("verify: %v %s", err, out)
	}
	if out, err := verify("--org", "org_typo"); err == nil || !strings.Contains(out, "org_typo") || strings.Contains(out, "has no entries") {
		t.Errorf("verify of an organization that does not exist: %v %s", err, out)
	}
	// With another key than the chain's there is one finding, and no report of an empty
	// chain.
	other := filepath.Join(t.TempDir(), "hmac.keys")
	if err := os.WriteFile(other, []byte("1 "+strings.Repeat("ab", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := verify("--hmac-keys", other); err == nil || !strings.Contains(out, "audit entry 1") || strings.Contains(out, "has no entries") {
		t.Errorf("verify with another key: %v %s", err, out)
	}
	if _, err := up.Stop(); err != nil {
		t.Fatal(err)
	}

	for _, name := range []string{"fernet.keys", "hmac.keys", "digest.key", "signing.pem", "witness.pem"} {
		file := filepath.Join(home, "secrets", name)
		if err := os.Rename(file, file+".away"); err != nil {
			t.Fatal(err)
		}
		failed, err := e2e.TryStart(t, e2e.Config{Home: home})
		if err == nil {
			t.Fatalf("it starts without %s", name)
		}
		if said := failed.Stderr(); !strings.Contains(said, name) || !strings.Contains(said, "Restore") {
			t.Errorf("without %s it prints %s", name, said)
		}
		if _, err := os.Stat(file); err == nil {
			t.Errorf("a new %s was made", name)
		}
		if err := os.Rename(file+".away", file); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(home, "secrets", "hmac.keys")
	right, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("1 "+strings.Repeat("ab", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	failed, err := e2e.TryStart(t, e2e.Config{Home: home})
	if err == nil || !strings.Contains(failed.Stderr(), "does not verify with "+file) {
		t.Errorf("with another key: %v %s", err, failed.Stderr())
	}
	if err := os.WriteFile(file, right, 0o600); err != nil {
		t.Fatal(err)
	}
	e2e.Start(t, e2e.Config{Home: home})
}

// A sidecar that is stopped under load still responds: callers get 200, or 503 with
// Retry-After, and never 500.
func TestGracefulStop(t *testing.T) {
	provider := e2e.Record(t, nil)
	up := e2e.Start(t, e2e.Config{Providers: provider.File("openai", credential, "gpt-*")})
	_, key := up.Key(t, up.Agent(t, `{"name":"steady","allowed_models":["gpt-4o"]}`), `{"name":"k","scopes":["chat:completions"]}`)
	up.Chat(t, key, allowed)

	stop := make(chan struct{})
	var mu sync.Mutex
	count := map[int]int{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				got := up.Chat(t, key, allowed)
				mu.Lock()
				count[got.Status]++
				if got.Status != 200 && (got.Status != 503 || got.Header.Get("Retry-After") == "") {
					t.Errorf("a caller got %d, %v, %s", got.Status, got.Header, got.Body)
				}
				mu.Unlock()
			}
		})
	}
	served := func(n int) func() error {
		return func() error {
			mu.Lock()
			defer mu.Unlock()
			if count[200] < n {
				return fmt.Errorf("%d of %d were served", count[200], n)
			}
			return nil
		}
	}
	for range 3 {
		e2e.Eventually(t, 30*time.Second, served(count200(&mu, count)+50))
		before := up.Child(t, "aid extproc")
		if err := syscall.Kill(before, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		e2e.Eventually(t, 30*time.Second, func() error {
			if e2e.Alive(before) {
				return errors.New("it still runs")
			}
			return nil
		})
		up.Ready(t)
	}
	close(stop)
	wg.Wait()
	t.Logf("by status: %v", count)
}

func count200(mu *sync.Mutex, count map[int]int) int {
	mu.Lock()
	defer mu.Unlock()
	return count[200]
}

// The first steps that `make run` prints work as printed, without Node. A mock provider
// that cannot listen stops the start.
func TestBanner(t *testing.T) {
	up := e2e.Start(t, e2e.Config{Args: []string{"--stand-in", "127.0.0.1:0"}})
	const last = `"Hello"}]}'`
	e2e.Eventually(t, 10*time.Second, func() error {
		if !strings.Contains(up.Stderr(), last) {
			return errors.New("the first steps are not printed")
		}
		return nil
	})
	_, banner, _ := strings.Cut(up.Stderr(), "An agent, its key, and its first request:")
	commands, _, _ := strings.Cut(banner, last)
	out, err := exec.Command("sh", "-ec", commands+last).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "I am the stand-in") {
		t.Errorf("%v: %s\nof\n%s", err, out, commands)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	second, err := e2e.TryStart(t, e2e.Config{Args: []string{"--stand-in", l.Addr().String()}})
	if said := second.Stderr(); err == nil || !strings.Contains(said, "--stand-in") || !strings.Contains(said, l.Addr().String()) {
		t.Errorf("the stand-in's port is taken: %v, %s", err, said)
	}
}

// All missing tools of a machine are reported before anything is installed, with the
// packages to install.
func TestToolsCheck(t *testing.T) {
	dir := t.TempDir()
	for _, tool := range []string{"bash", "sed", "sort", "head", "dirname"} {
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(dir, tool)); err != nil {
			t.Fatal(err)
		}
	}
	program := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	check := func(what string) (string, error) {
		cmd := exec.Command(filepath.Join(e2e.Root(), "tools", "check"), what)
		cmd.Env = []string{"PATH=" + dir}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	want := func(what string, words ...string) {
		t.Helper()
		out, err := check(what)
		if (err == nil) != (len(words) == 0) {
			t.Errorf("%s: %v %s", what, err, out)
		}
		for _, w := range words {
			if !strings.Contains(out, w) {
				t.Errorf("%s does not say %q: %s", what, w, out)
			}
		}
	}
	want("check-run", "go.dev/dl", "apt-get install python3 python3-venv")
	want("check-test", "node 20", "npm 20", "C compiler", "for tests only")
	program("go", "echo go1.20.1")
	program("python3", "echo 3.7")
	want("check-run", "this is go1.20.1", "python3 is 3.7")
	program("go", "echo go1.99.0")
	program("python3", `case "$2" in *ensurepip*) exit 1;; *) echo 3.12;; esac`)
	want("check-run", "apt-get install python3-venv")
	program("python3", "echo 3.12")
	want("check-run")
}

// Envoy's configuration, which its admin interface shows, has no join token, in any
// encoding. It comes through the sidecar, which serves nothing else there.
func TestConfigDumpHasNoToken(t *testing.T) {
	up := e2e.Start(t, e2e.Config{})
	token, err := os.ReadFile(filepath.Join(up.Home, "secrets", "node.token"))
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.TrimSpace(string(token))
	dump, err := envoy.Admin(filepath.Join(up.Home, "run", "envoy.sock")).Get(t.Context(), "/config_dump?include_eds")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(dump), "envoy-xds.sock") {
		t.Error("this is not the configuration that was meant")
	}
	bootstrap, err := os.ReadFile(filepath.Join(up.Home, "secrets", "envoy.json"))
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range map[string]string{"/config_dump": string(dump), "the bootstrap": string(bootstrap)} {
		for _, form := range []string{secret, strings.TrimPrefix(secret, "aid_node_"), base64.StdEncoding.EncodeToString([]byte(secret)), hex.EncodeToString([]byte(secret)), "aid_node_"} {
			if strings.Contains(text, form) {
				t.Errorf("%s holds the join token", where)
			}
		}
	}
	conn, err := grpc.NewClient("unix:"+filepath.Join(up.Home, "run", "envoy-xds.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = conn.Invoke(t.Context(), "/aid.v1.Ingest/Append", &emptypb.Empty{}, &emptypb.Empty{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("the audit log's ingest is reachable there: %v", err)
	}
}

// Every metric that an alert rule reads exists from the start, so that an alert does not
// wait for its first event to be defined. A certificate's expiry exists where TLS is used, and
// what the shared store of counts has, where --redis is used.
func TestAlertsReadWhatExists(t *testing.T) {
	up := e2e.Shared(t)
	rules, err := os.ReadFile(filepath.Join(e2e.Root(), "docs", "alerts", "aid.yml"))
	if err != nil {
		t.Fatal(err)
	}
	metrics := string(up.Do(t, up.Metrics, http.MethodGet, "/metrics", "", "").Body)
	alerts := 0
	for line := range strings.Lines(string(rules)) {
		expr, found := strings.CutPrefix(strings.TrimSpace(line), "expr: ")
		if !found {
			continue
		}
		alerts++
		for _, name := range regexp.MustCompile(`\b(aid|envoy)_[a-z_]+`).FindAllString(expr, -1) {
			if name == "aid_certificate_expiry_timestamp_seconds" || strings.HasPrefix(name, "aid_budget_store_") {
				continue
			}
			if !regexp.MustCompile(`(?m)^` + name + `(\{| )`).MatchString(metrics) {
				t.Errorf("%s is not there: %s", name, expr)
			}
		}
	}
	if alerts < 13 {
		t.Errorf("%d alerts", alerts)
	}
}
