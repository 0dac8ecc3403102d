package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
)

// A database is restored to an older state twice. The first time exports have what it lacks, and
// every entry comes back. The second time they do not, and the log is reopened. Both verifiers
// say what was lost. The commands are those of docs/restore.md.
func TestRestoreExports(t *testing.T) {
	t.Parallel() // it waits for checkpoints
	page, err := os.ReadFile(filepath.Join(e2e.Root(), "docs", "restore.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := fenced.FindAllStringSubmatch(string(page), -1)
	restore, reopen, ok := strings.Cut(strings.TrimSpace(blocks[len(blocks)-1][3]), "\n")
	if !ok || !strings.HasPrefix(restore, "aid audit restore ") || !strings.HasPrefix(reopen, "aid audit reopen ") {
		t.Fatalf("%q", blocks[len(blocks)-1][3])
	}
	dir := e2e.Home(t)
	file := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Mkdir(file("anchor"), 0o700); err != nil {
		t.Fatal(err)
	}
	config := e2e.Config{Home: file(".aid"), Args: []string{"--anchor", "file:" + file("anchor")}}
	typed, must := commandsIn(t, dir)
	up := e2e.Start(t, config)
	n := 0
	// export makes an entry, waits for the checkpoint over it, and writes an export.
	export := func(name string) {
		t.Helper()
		n++
		up.Agent(t, fmt.Sprintf(`{"name":"bot-%d"}`, n))
		var made struct {
			ID    string `json:"id"`
			State string `json:"state"`
		}
		e2e.Eventually(t, 60*time.Second, func() error {
			r := up.Do(t, up.Gateway, http.MethodPost, "/v1/audit/exports", up.OrgKey, `{"newest_entry":true}`)
			if r.Status != http.StatusCreated {
				return fmt.Errorf("%d %s", r.Status, r.Body)
			}
			return json.Unmarshal(r.Body, &made)
		})
		e2e.Eventually(t, 60*time.Second, func() error {
			r := up.Do(t, up.Gateway, http.MethodGet, "/v1/audit/exports/"+made.ID, up.OrgKey, "")
			if err := json.Unmarshal(r.Body, &made); err != nil || made.State != "complete" {
				return fmt.Errorf("%v %s", err, r.Body)
			}
			return nil
		})
		for path, to := range map[string]string{"/v1/audit/exports/" + made.ID + "/file": name, "/v1/audit/jwks": "jwks.json"} {
			if err := os.WriteFile(file(to), up.Do(t, up.Gateway, http.MethodGet, path, up.OrgKey, "").Body, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	stop := func() {
		t.Helper()
		if _, err := up.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	// verdict runs both verifiers, and returns their exit code and output.
	verdict := func(args string) (int, string) {
		t.Helper()
		code, text := -1, ""
		for _, verifier := range []string{"python3 " + filepath.Join(e2e.Root(), "cli", "ai_identity_verify.py") + " ", "aid audit verify --offline "} {
			out, err := typed(verifier + args)
			got := 0
			var exit *exec.ExitError
			if asExit(err, &exit) {
				got = exit.ExitCode()
			} else if err != nil {
				t.Fatal(err)
			}
			if code >= 0 && got != code {
				t.Errorf("%s: exit %d and %d: %s", args, code, got, out)
			}
			code, text = got, out
		}
		return code, text
	}
	// restored starts with a database from the backup. It is ready once a command has accepted it.
	restored := func(commands ...string) (out string) {
		t.Helper()
		must("rm -r .aid/postgres; cp -a .aid-backup/postgres .aid/postgres")
		started := make(chan error, 1)
		go func() {
			var err error
			up, err = e2e.TryStart(t, config)
			started <- err
		}()
		for _, c := range commands {
			var last string
			e2e.Eventually(t, 45*time.Second, func() (err error) {
				last, err = typed(c)
				if err != nil {
					err = fmt.Errorf("%w: %s", err, last)
				}
				return err
			})
			out += last
		}
		if err := <-started; err != nil {
			t.Fatalf("%v\n%s", err, up.Stderr())
		}
		return out
	}

	export("first.json")
	stop()
	must("cp -a .aid .aid-backup")
	up = e2e.Start(t, config)
	export("audit_export.json")
	stop()
	if out := restored(restore, reopen); !strings.Contains(out, " are back") || !strings.Contains(out, "no entries are lost") {
		t.Error(out)
	}
	export("after.json")
	if code, out := verdict("chain after.json --jwks jwks.json --checkpoint anchor/$(cd anchor && ls -d */org/org_default/1)/checkpoint"); code != 0 {
		t.Errorf("%d %s", code, out)
	}
	if out, err := typed(restore); err == nil || !strings.Contains(out, "every entry that was signed") {
		t.Errorf("again: %v %s", err, out)
	}
	stop()

	if out := restored(reopen); !strings.Contains(out, "incarnation 2 begins with entry") {
		t.Error(out)
	}
	export("reopened.json")
	code, out := verdict("chain reopened.json --jwks jwks.json --checkpoint anchor/$(cd anchor && ls -d */org/org_default/1)/checkpoint")
	if code != 2 || !strings.Contains(out, "were lost before the log was reopened") {
		t.Errorf("%d %s", code, out)
	}
	stop()
}
