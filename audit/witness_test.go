package audit_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/anchor"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// tool returns a program that make installs. Without it the test is skipped, and in CI fails.
func tool(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join("..", ".tools", "bin", name)
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is not installed: run `make .tools/%s.done`", name, name)
		}
		t.Skipf("%s is not installed", name)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// freePort returns a port that is free now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// program starts a server and waits until it accepts connections. stop ends it.
func program(t *testing.T, address string, cmd *exec.Cmd) (stop func()) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()      //nolint:errcheck // it is killed
	stop = func() { cmd.Process.Kill(); <-ended } //nolint:errcheck // it may have ended
	t.Cleanup(stop)
	for {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			c.Close()
			return stop
		}
		select {
		case <-ended:
			t.Fatalf("%s ended: %s", cmd.Path, out.String())
		case <-t.Context().Done():
			t.Fatalf("%s does not listen: %s", cmd.Path, out.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// noteKey returns a private key for a note signer, and the vkey of its cosignatures.
func noteKey(t *testing.T, name string) (skey, vkey string, key ed25519.PrivateKey) {
	t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	hash := func(kind byte) []byte {
		sum := sha256.Sum256(append([]byte(name+"\n"), append([]byte{kind}, public...)...))
		return sum[:4]
	}
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("PRIVATE+KEY+%s+%x+%s", name, hash(1), b64(append([]byte{1}, key.Seed()...))),
		fmt.Sprintf("%s+%x+%s", name, hash(4), b64(append([]byte{4}, public...))), key
}

// A stock witness cosigns the directory's checkpoints, also after restarts on both sides. When
// it is away, checkpoints are signed and published without it.
func TestWitness(t *testing.T) {
	witnessBinary := tool(t, "omniwitness")
	ctx := context.Background()
	n := newNotaries(t)
	org := storetest.Org(t, n.db)
	c := chain(t, n.db, 1)
	origin := evidence.DirectoryOrigin(logName)

	dir := t.TempDir()
	skey, vkey, _ := noteKey(t, "witness.example")
	var logKey string
	for _, s := range n.signers {
		if _, ok := s.Public().(ed25519.PublicKey); ok {
			var err error
			if logKey, err = evidence.VerifierKey(origin, s.Public()); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, text := range map[string]string{
		"key": skey, "logs.yaml": "Logs:\n- Origin: " + origin + "\n  URL: http://127.0.0.1:1/\n  PublicKey: " + logKey + "\n  Feeder: none\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	address, metrics := freePort(t), freePort(t)
	start := func() func() {
		return program(t, address, exec.Command(witnessBinary, "-listen", address, "-metrics_listen", metrics, "-additional_logs", filepath.Join(dir, "logs.yaml"),
			"-private_key_path", filepath.Join(dir, "key"), "-db_file", filepath.Join(dir, "db")))
	}
	stop := start()

	reg := prometheus.NewRegistry()
	store, err := audit.NewWitnesses(audit.WitnessesConfig{Pool: n.db.Pool(), Names: []string{"witness.example"}, Quorum: 1, Now: n.clock, Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	plane := func() *audit.Notary {
		w, err := anchor.NewWitness("http://"+address+"="+vkey, origin, store)
		if err != nil {
			t.Fatal(err)
		}
		n.anchors = []audit.Anchor{w}
		return n.start(t, n.db, n.clock)
	}
	one, seq := plane(), 1
	tick := func(notary *audit.Notary, cosigned bool) {
		t.Helper()
		appendMany(t, c, org, "w_1", seq, 3)
		seq += 3
		n.later(11 * time.Second)
		if err := notary.Round(ctx); err != nil {
			t.Fatal(err)
		}
		if err := notary.Tick(ctx); err != nil {
			t.Fatal(err)
		}
		if ok := notary.Publish(ctx); ok != cosigned {
			t.Errorf("published: %v", ok)
		}
		note, err := audit.DirectoryCheckpoint(ctx, n.db.Pool())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.keys.Open(note, origin); err != nil {
			t.Errorf("with the cosignature the checkpoint is %v", err)
		}
		if got := strings.Count(string(note), "\n\u2014 witness.example "); (got == 1) != cosigned {
			t.Errorf("%d cosignatures in %s", got, note)
		}
	}
	for range 3 {
		tick(one, true)
	}
	two := plane() // another control plane, which does not know what the witness has
	tick(two, true)
	tick(one, true) // and the first one, which knows an older size
	measured := func(cosigned, missing float64) {
		t.Helper()
		if a, b := value(t, reg, "aid_audit_witnesses_cosigned"), value(t, reg, "aid_audit_witnesses_missing"); a != cosigned || b != missing {
			t.Errorf("%v witnesses cosigned, and %v are missing", a, b)
		}
	}
	measured(1, 0)
	stop()
	tick(one, false)
	n.later(2 * time.Minute)
	measured(0, 1)
	start()
	tick(one, true)
}

// A response without a right cosignature is an error, and nothing is stored.
func TestWitnessRejects(t *testing.T) {
	origin := evidence.DirectoryOrigin(logName)
	_, vkey, key := noteKey(t, "witness.example")
	_, _, other := noteKey(t, "witness.example")
	signers, _ := signingKeys(t)
	note, err := evidence.Sign(t.Context(), evidence.Checkpoint{Origin: origin, Size: 7, Time: time.Unix(1, 0)}, signers...)
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ := strings.Cut(string(note), "\n\n")
	line := func(name string, key ed25519.PrivateKey, text string) string {
		sum := sha256.Sum256(append([]byte("witness.example\n"), append([]byte{4}, key.Public().(ed25519.PublicKey)...)...))
		sig := ed25519.Sign(key, []byte("cosignature/v1\ntime 5\n"+text+"\n"))
		return "\u2014 " + name + " " + base64.StdEncoding.EncodeToString(append(append(sum[:4], 0, 0, 0, 0, 0, 0, 0, 5), sig...)) + "\n"
	}
	right := line("witness.example", key, text)
	for name, c := range map[string]struct {
		status int
		body   string
		ok     bool
	}{
		"right": {200, right, true}, "right, after another's line": {200, line("other.example", other, text) + right, true},
		"empty": {200, "", false}, "another key": {200, line("witness.example", other, text), false}, "another name": {200, line("w.example", key, text), false},
		"another checkpoint": {200, line("witness.example", key, text+"x"), false}, "no line": {200, "ok\n", false},
		"unknown log": {404, "", false}, "wrong key": {403, "", false}, "inconsistent": {422, "", false}, "redirect": {302, "", false}, "error": {500, "", false},
		"conflict without a size": {409, "x", false}, "conflict with the same size": {409, "0\n", false}, "conflict with a negative size": {409, "-5\n", false},
		"conflict without end": {409, "", false}, "it has a newer one": {409, "9\n", true},
	} {
		stored := &kept{}
		server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body) //nolint:errcheck // the body is of no interest
			rw.Header().Set("Location", "/elsewhere")
			rw.WriteHeader(c.status)
			io.WriteString(rw, c.body) //nolint:errcheck // the client reports it
		}))
		w, err := anchor.NewWitness(server.URL+"="+vkey, origin, stored)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Publish(t.Context(), origin, note); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		if want := c.ok && c.status == 200; (stored.line == strings.TrimSuffix(right, "\n")) != want {
			t.Errorf("%s: stored %q", name, stored.line)
		}
		if err := w.Publish(t.Context(), evidence.OrgOrigin(logName, "org_1", 1), note); err != nil {
			t.Errorf("%s: another log's checkpoint: %v", name, err)
		}
		server.Close()
	}
	for _, flag := range []string{
		"", "http://h", "http://h=", "ftp://h=" + vkey, "http://u:p@h=" + vkey, "h=" + vkey, "http://h=x+y+z", "http://h=" + strings.Replace(vkey, "witness", "witnes", 1),
		"http://h=" + vkey[:len(vkey)-4],
	} {
		if _, err := anchor.NewWitness(flag, origin, nil); err == nil {
			t.Errorf("%q is accepted", flag)
		}
	}
}

type kept struct {
	audit.Witnesses
	line string
}

func (k *kept) Cosigned(_ context.Context, _ string, _ int64, line string) error {
	k.line = line
	return nil
}
