package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ai-identity/ai-identity/identity"
)

var quiet = slog.New(slog.DiscardHandler)

// play runs aid and returns its exit code and output.
func play(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &o, &e)
	return code, o.String(), e.String()
}

// A usage error names the flag and the fix.
func TestErrorsNameTheFlag(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	badPrices := filepath.Join(dir, "prices.yaml")
	if err := os.WriteFile(badPrices, []byte("prices:\n- provider: a\n  price: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args string
		want []string
	}{
		{"up --bogus", []string{"--bogus", "aid up --help"}},
		{"up --home " + dir + " --usage later", []string{"--usage", "stream and envoy"}},
		{"up --home " + dir + " --max-body -1", []string{"--max-body"}},
		{"up --home " + dir + " --domains ai.example.com:443", []string{"--domains", "ai.example.com:443", "without a port"}},
		{"up --home " + dir + " --cors-origins *", []string{"--cors-origins", "https://app.example.com"}},
		{"control --cors-origins https://App.example.com/", []string{"--cors-origins", "https://app.example.com"}},
		{"extproc --xds unix:/x --segments " + dir + " --domains https://ai.example.com", []string{"--domains", "such as ai.example.com"}},
		{"up --home " + dir + " --gateway 8080", []string{"--gateway", "host"}},
		{"up --home " + dir + " --gateway unix:/x", []string{"--gateway", "host"}},
		{"up --home " + dir + " --gateway 127.0.0.1:0 --api 192.0.2.1:80", []string{"--api", "not an address of this machine"}},
		{"up --home " + empty, []string{"--home"}},
		{"up --home " + dir + " --gateway 127.0.0.1:0 --api 127.0.0.1:0 --metrics 127.0.0.1:0 --envoy /nonexistent", []string{"--envoy", "/nonexistent"}},
		{"up --home " + dir + " --prices /nonexistent", []string{"--prices", "/nonexistent"}},
		{"up --home " + dir + " --prices " + badPrices, []string{"--prices " + badPrices, `line 3: unknown field "price"`}},
		{"extproc --xds unix:/x --segments " + dir + " --prices " + badPrices, []string{"--prices " + badPrices, "line 3"}},
		{"up --log-level loud", []string{"--log-level", "debug, info, warn and error"}},
		{"up --log-format xml", []string{"--log-format", "text and json"}},
		{"envoy-bootstrap", []string{"--xds"}},
		{"envoy-bootstrap --xds cp.example.com:1", []string{"TLS is required"}},
		{"control", []string{"--fernet-keys"}},
		{"control --usage later", []string{"--usage", "stream and envoy"}},
		{"control --listen-xds 0.0.0.0:18000", []string{"--listen-xds", "--tls-cert"}},
		{"control --tls-cert /nonexistent --tls-key /nonexistent", []string{"--tls-cert", "--tls-key"}},
		{"control --fernet-keys " + empty, []string{"--fernet-keys", "empty"}},
		{"extproc", []string{"--xds"}},
		{"extproc --xds unix:/x", []string{"--segments"}},
		{"extproc --xds cp.example.com:1 --segments " + dir, []string{"--xds", "--tls-ca"}},
		{"extproc --xds unix:/x --listen 0.0.0.0:1 --segments " + dir, []string{"--listen", "unix:/path"}},
		{"extproc --xds unix:/x --max-staleness 0s --segments " + dir, []string{"--max-staleness"}},
		{"extproc --xds unix:/x --token-file /nonexistent --segments " + dir, []string{"--token-file"}},
		{"migrate", []string{"--postgres", "AID_POSTGRES"}},
		{"migrate --postgres postgres://h/db --app-password-file x", []string{"--app-password-file", "--provision"}},
		{"migrate --postgres postgres://h/db --provision --app-password-file /nonexistent", []string{"--app-password-file"}},
		{"org create", []string{"--name"}},
		{"org create --name x --out " + empty, []string{"--out"}},
		{"org create --name x", []string{"--postgres", "AID_POSTGRES"}},
		{"org key create --org o --name x --role boss", []string{"--role", "admin, auditor and reviewer"}},
		{"org key create --name x", []string{"--org"}},
		{"org list-keys --home " + dir, []string{"--home"}},
		{"node create", []string{"--name"}},
		{"node create --name x --spiffe-id y", []string{"--spiffe-id", "spiffe://"}},
		{"audit verify", []string{"--org"}},
		{"audit reopen --org x", []string{"--reason is required"}},
		{"audit reopen --org x --reason y", []string{"--anchor is required"}},
		{"audit reopen --org x --reason y --anchor ftp://z", []string{"--anchor ftp://z", "valid schemes"}},
		{"audit retention --months 0", []string{"--months 0", "1 to 1200"}},
		{"audit hold --org x", []string{"--reason is required"}},
		{"audit release --org x --reason y", []string{"--hold and --reason are required"}},
		{"audit archive --signing-key file:x", []string{"--to is required"}},
		{"audit archive --to x", []string{"--signing-key is required"}},
		{"audit archive --to x --through 2026-13", []string{"a month has the form"}},
		{"audit trim", []string{"--archive is required"}},
		{"audit trim --archive x --apply", []string{"--apply needs --reason"}},
		{"audit key --hmac-keys x", []string{"--org is required"}},
		{"audit key --org x", []string{"--hmac-keys is required"}},
		{"keys signing create --out x", []string{"--kind", "p256 and ed25519"}},
		{"keys signing create --kind p256", []string{"--out is required"}},
		{"keys signing create --kind p256 --out " + empty, []string{"--out " + empty, "name another file"}},
		{"audit verify --org x", []string{"--postgres"}},
	} {
		code, _, errs := play(t, strings.Fields(tc.args)...)
		if code == 0 || !strings.HasPrefix(errs, "aid: ") {
			t.Errorf("aid %s: %d %q", tc.args, code, errs)
		}
		for _, w := range tc.want {
			if !strings.Contains(errs, w) {
				t.Errorf("aid %s: does not say %q: %s", tc.args, w, errs)
			}
		}
	}
}

// Every command has a description in --help, and commands for users have an example.
func TestHelp(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
			return
		}
		if c.Short == "" {
			t.Errorf("%s: no short help", c.CommandPath())
		}
		if c.HasParent() && c.Runnable() && c.Name() != "version" && (c.Long == "" || c.Example == "") {
			t.Errorf("%s: no long help, or no example", c.CommandPath())
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s: no help", c.CommandPath(), f.Name)
			}
			for _, word := range []string{"password", "secret", "token", "key"} {
				if f.Name == word || strings.HasSuffix(f.Name, "-"+word) && !strings.Contains(f.Usage, "`file`") && !strings.Contains(f.Usage, "`URI` of the") {
					t.Errorf("%s --%s: a secret in an argument is seen by every process", c.CommandPath(), f.Name)
				}
			}
		})
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot())
	if code, out, _ := play(t, "up", "--help"); code != 0 || !strings.Contains(out, "providers.yaml") {
		t.Errorf("%d %s", code, out)
	}
}

// A secret is written once, to a new private file.
func TestHandOver(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	if err := canHandOver(file); err != nil {
		t.Fatal(err)
	}
	if err := handOver(io.Discard, file, "secret"); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if canHandOver(file) == nil || handOver(io.Discard, file, "another") == nil {
		t.Error("what was there is overwritten")
	}
	if s, _ := readSecret(file); s != "secret" {
		t.Errorf("%q", s)
	}
}

// A secret of the folder is created once, and a secret of another kind is not used.
func TestKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "org.key")
	secret, hash, err := kept(file, identity.OrgKey)
	if err != nil || !strings.HasPrefix(secret, "aid_org_") {
		t.Fatalf("%.8s %v", secret, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if again, same, err := kept(file, identity.OrgKey); err != nil || again != secret || same != hash {
		t.Errorf("it changed: %v", err)
	}
	if _, _, err := kept(file, identity.NodeToken); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("another kind: %v", err)
	}
}

func TestReadiness(t *testing.T) {
	var r readiness
	if err := r.ask(t.Context()); err == nil {
		t.Error("ready before anything was started")
	}
	r.set(func(context.Context) error { return nil })
	if err := r.ask(t.Context()); err != nil {
		t.Error(err)
	}
	r.stop()
	if err := r.ask(t.Context()); err == nil {
		t.Error("ready while stopping")
	}
}

func TestFlagsFromEnv(t *testing.T) {
	var home string
	var n int
	newFlags := func() *pflag.FlagSet {
		f := pflag.NewFlagSet("x", pflag.ContinueOnError)
		f.StringVar(&home, "home", "default", "")
		f.IntVar(&n, "max-body", 7, "")
		return f
	}
	env := map[string]string{"AID_HOME": "from env", "AID_MAX_BODY": "9", "AID_HELP": "true"}
	lookup := func(k string) (string, bool) { v, ok := env[k]; return v, ok }

	f := newFlags()
	if err := f.Parse([]string{"--home", "from flag"}); err != nil {
		t.Fatal(err)
	}
	if err := flagsFromEnv(f, lookup); err != nil {
		t.Fatal(err)
	}
	if home != "from flag" || n != 9 {
		t.Errorf("home %q, max-body %d", home, n)
	}

	env["AID_MAX_BODY"] = "many"
	err := flagsFromEnv(newFlags(), lookup)
	if err == nil || !strings.Contains(err.Error(), "AID_MAX_BODY") || !strings.Contains(err.Error(), "--max-body") {
		t.Errorf("got %v", err)
	}
}

func TestHomeIsLocked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "home")
	h, err := openHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openHome(dir); err == nil || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("second: %v", err)
	}
	if pid := runsOn(dir); pid != fmt.Sprint(os.Getpid()) {
		t.Errorf("runs on: %q", pid)
	}
	h.close()
	if pid := runsOn(dir); pid != "" {
		t.Errorf("still runs on: %q", pid)
	}
	h, err = openHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	h.close()
}

func TestHomeSecrets(t *testing.T) {
	h, err := openHome(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	k, err := h.keys()
	if err != nil {
		t.Fatal(err)
	}
	before := map[string]string{}
	for _, f := range []string{k.fernet, k.hmac, k.digest} {
		info, err := os.Stat(f)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, info, err)
		}
		if before[f], err = readSecret(f); err != nil {
			t.Error(err)
		}
	}
	if _, err := h.keys(); err != nil {
		t.Fatal(err)
	}
	for f, want := range before {
		if got, _ := readSecret(f); got != want {
			t.Errorf("%s changed: what it sealed is lost", f)
		}
	}
}

// A Unix socket's path is limited, so a home with a long path uses another folder for sockets.
func TestDeepHome(t *testing.T) {
	h, err := openHome(filepath.Join(t.TempDir(), strings.Repeat("deep/", 30)))
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	defer os.RemoveAll(h.run)
	l, err := listen(t.Context(), "listen", "unix:"+h.socket("control-status"))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if info, err := os.Stat(h.run); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", info, err)
	}
}

// A folder that belongs to another user, or that another user can change, is not used.
func TestFoldersAreOurs(t *testing.T) {
	dir := t.TempDir()
	link, open, foreign := filepath.Join(dir, "link"), filepath.Join(dir, "open"), filepath.Join(dir, "foreign")
	if err := errors.Join(os.Symlink(dir, link), os.Mkdir(open, 0o700), os.Chmod(open, 0o777), os.Mkdir(foreign, 0o700)); err != nil {
		t.Fatal(err)
	}
	wrong := map[string]string{link: "is a link", open: "mode 0777"}
	if os.Geteuid() == 0 {
		if err := os.Chown(foreign, 54321, 54321); err != nil {
			t.Fatal(err)
		}
		wrong[foreign] = "user id 54321"
	}
	for path, want := range wrong {
		if err := makeFolder(path, 0o700); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
		if _, err := openHome(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--home %s: %v", path, err)
		}
	}
	for _, name := range []string{"secrets", "segments", "postgres", "run"} {
		home := filepath.Join(t.TempDir(), "home")
		if err := errors.Join(os.Mkdir(home, 0o700), os.Symlink(dir, filepath.Join(home, name))); err != nil {
			t.Fatal(err)
		}
		if _, err := openHome(home); err == nil || !strings.Contains(err.Error(), "is a link") {
			t.Errorf("%s as a link: %v", name, err)
		}
	}
}

// Files of keys belong to this user or root, and others can neither read nor change them.
func TestFilesAreOurs(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, mode os.FileMode, owner int) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte("hunter2\n"), 0o600), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		if owner != 0 {
			if err := os.Lchown(path, owner, owner); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	link := func(name, to string, owner int) string {
		path := filepath.Join(dir, name)
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
		if owner != 0 {
			if err := os.Lchown(path, owner, owner); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	good := file("good", 0o600, 0)
	for path, want := range map[string]struct{ secret, public bool }{
		good:                            {true, true},
		link("link", good, 0):           {true, true}, // as Kubernetes mounts secrets
		file("readable", 0o644, 0):      {false, true},
		file("writable", 0o620, 0):      {false, false},
		file("everybody's", 0o666, 0):   {false, false},
		fifo:                            {false, false},
		dir:                             {false, false},
		filepath.Join(dir, "not there"): {false, false},
	} {
		_, secret := readTrusted(path, secretFile)
		_, public := readTrusted(path, publicFile)
		if (secret == nil) != want.secret || (public == nil) != want.public {
			t.Errorf("%s: as a secret %v, as public %v", path, secret, public)
		}
		if err := errors.Join(secret, public); err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: its text is in %v", path, err)
		}
	}
	if os.Geteuid() != 0 {
		return
	}
	for _, path := range []string{file("foreign", 0o600, 54321), link("foreign link", good, 54321)} {
		if _, err := readTrusted(path, publicFile); err == nil || !strings.Contains(err.Error(), "54321") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// Every flag for a file of keys uses the same check.
func TestFlagsCheckTheirFiles(t *testing.T) {
	open := filepath.Join(t.TempDir(), "open")
	if err := errors.Join(os.WriteFile(open, []byte("1 "+strings.Repeat("00", 32)+"\n"), 0o600), os.Chmod(open, 0o666)); err != nil {
		t.Fatal(err)
	}
	for flag, read := range map[string]func() error{
		"--fernet-keys":  func() error { _, err := sealerOf(open); return err },
		"--hmac-keys":    func() error { _, err := chainKeys(open); return err },
		"--digest-key":   func() error { _, err := digestKey(open); return err },
		"--tls-cert":     func() error { _, err := tlsFiles{cert: open, key: open}.server(); return err },
		"--tls-ca":       func() error { _, err := tlsFiles{ca: open}.client(""); return err },
		"--prices":       func() error { _, err := loadPrices(open); return err },
		"token, org key": func() error { _, _, err := kept(open, identity.OrgKey); return err },
		"extproc": func() error {
			_, _, errs := play(t, "extproc", "--xds", "unix:/x", "--segments", t.TempDir(), "--token-file", open)
			return errors.New(errs)
		},
	} {
		if err := read(); err == nil || !strings.Contains(err.Error(), "mode 0666") {
			t.Errorf("%s: %v", flag, err)
		}
	}
}

func TestListen(t *testing.T) {
	ctx := t.Context()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, err = listen(ctx, "gateway", taken.Addr().String())
	if err == nil || !strings.Contains(err.Error(), "--gateway") || !strings.Contains(err.Error(), "AID_GATEWAY") {
		t.Errorf("got %v", err)
	}
	if a, err := free(ctx, "api", "127.0.0.1:0"); err != nil || strings.HasSuffix(a, ":0") {
		t.Errorf("%q %v", a, err)
	}

	path := filepath.Join(t.TempDir(), "s")
	l, err := listen(ctx, "listen", "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if _, err := listen(ctx, "listen", "unix:"+path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("in use: %v", err)
	}
	// The socket of a killed process is replaced.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	l, err = listen(ctx, "listen", "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := listen(ctx, "listen", "unix:/"+strings.Repeat("x", 120)); err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("long: %v", err)
	}
}

func TestLocal(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1:80": true, "127.9.9.9:80": true, "[::1]:80": true, "localhost:80": true, "unix:/x": true,
		"0.0.0.0:80": false, ":80": false, "10.0.0.1:80": false, "example.com:80": false, "localhost.example.com:80": false, "junk": false,
	} {
		if local(address) != want {
			t.Errorf("%s: %v", address, !want)
		}
	}
}

// A part ends before the parts that it depends on.
func TestLifeEndsInReverse(t *testing.T) {
	l := newLife(quiet)
	var mu sync.Mutex
	var order []string
	for _, name := range []string{"postgres", "control", "extproc", "envoy"} {
		l.start(t.Context(), name, func(ctx context.Context) error {
			<-ctx.Done()
			mu.Lock()
			defer mu.Unlock()
			order = append(order, name)
			return nil
		})
	}
	l.stop(time.Minute)
	if want := []string{"envoy", "extproc", "control", "postgres"}; !slices.Equal(order, want) {
		t.Errorf("%v, want %v", order, want)
	}
}

func TestLifeToldOfDeath(t *testing.T) {
	l := newLife(quiet)
	l.start(t.Context(), "fine", func(ctx context.Context) error { <-ctx.Done(); return nil })
	l.start(t.Context(), "broken", func(context.Context) error { return errors.New("no such file") })
	if err := l.wait(t.Context()); err == nil || err.Error() != "broken: no such file" {
		t.Errorf("got %v", err)
	}
	l.stop(time.Minute)
}

func TestLifeGoesOnWithoutTheHung(t *testing.T) {
	l := newLife(quiet)
	ended := make(chan struct{})
	l.start(t.Context(), "first", func(ctx context.Context) error { <-ctx.Done(); close(ended); return nil })
	release := make(chan struct{})
	defer close(release)
	l.start(t.Context(), "hung", func(context.Context) error { <-release; return nil })
	l.stop(10 * time.Millisecond)
	<-ended
}

func TestMerged(t *testing.T) {
	say := func(s string) func(context.Context) ([]byte, error) {
		return func(context.Context) ([]byte, error) { return []byte(s), nil }
	}
	h := merged(quiet,
		scrape{"extproc", say("# HELP aid_x Things.\n# TYPE aid_x counter\naid_x{a=\"b\"} 1\n# TYPE go_goroutines gauge\ngo_goroutines 5\n")},
		scrape{"control", say("# HELP aid_x Things.\n# TYPE aid_x counter\naid_x 2\n# TYPE go_goroutines gauge\ngo_goroutines 7\n")},
		scrape{"envoy", func(context.Context) ([]byte, error) { return nil, errors.New("gone") }},
		scrape{"odd", say("# TYPE aid_x gauge\naid_x 9\n")},
	)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	want := `# HELP aid_up_scrape_ok Whether the process responded to this scrape.
# TYPE aid_up_scrape_ok gauge
aid_up_scrape_ok{process="extproc"} 1
aid_up_scrape_ok{process="control"} 1
aid_up_scrape_ok{process="envoy"} 0
aid_up_scrape_ok{process="odd"} 1
# HELP aid_x Things.
# TYPE aid_x counter
aid_x{a="b",process="extproc"} 1
aid_x{process="control"} 2
# TYPE go_goroutines gauge
go_goroutines{process="extproc"} 5
go_goroutines{process="control"} 7
`
	if got := w.Body.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestStatus(t *testing.T) {
	var err error
	s := httptest.NewServer(status(http.NotFoundHandler(), func(context.Context) error { return err }))
	defer s.Close()
	ask := func(path string) (int, string) {
		resp, e := http.Get(s.URL + path)
		if e != nil {
			t.Fatal(e)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	if code, _ := ask("/readyz"); code != 200 {
		t.Error(code)
	}
	err = errors.New("no canary")
	if code, body := ask("/readyz"); code != 503 || !strings.Contains(body, "no canary") {
		t.Error(code, body)
	}
	if code, _ := ask("/healthz"); code != 200 {
		t.Error(code)
	}
}

func TestRemember(t *testing.T) {
	n := 0
	c := remember(time.Hour, func(context.Context) error { n++; return errors.New("x") })
	for range 5 {
		if c(t.Context()) == nil {
			t.Error("nil")
		}
	}
	if n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestWriteFileIsWholeOrNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, s := range []string{"a", "bb"} {
		if err := writeFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if b, _ := os.ReadFile(path); string(b) != s {
			t.Errorf("%q", b)
		}
	}
	if left, _ := filepath.Glob(path + ".*"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
