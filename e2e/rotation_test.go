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

	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/e2e"
)

// This runs the commands of docs/keys.md, in their order. Both verifiers accept an export of the
// time before, the time in which both keys sign, and the time after, with the ids from before.
func TestKeyRotation(t *testing.T) {
	t.Parallel() // it waits for checkpoints
	page, err := os.ReadFile(filepath.Join(e2e.Root(), "docs", "keys.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := fenced.FindAllStringSubmatch(strings.ReplaceAll(string(page), "\n   ", "\n"), -1)
	if len(blocks) != 4 {
		t.Fatalf("%d blocks of commands: the test knows 4", len(blocks))
	}
	create, rotate, remove, fetch := blocks[0][3], blocks[1][3], blocks[2][3], blocks[3][3]
	dir := e2e.Home(t)
	start := func() *e2e.Up {
		t.Helper()
		return e2e.Start(t, e2e.Config{Home: filepath.Join(dir, ".aid")})
	}
	up := start()
	typed := func(block string) (string, error) {
		cmd := exec.Command("bash", "-ec", strings.ReplaceAll(block, "http://localhost:8080", up.Gateway))
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(e2e.Binary(t))+":"+os.Getenv("PATH"), "AID_ORG_KEY="+up.OrgKey)
		out, err := cmd.Output()
		return string(out), err
	}
	must := func(block string) string {
		t.Helper()
		out, err := typed(block)
		if err != nil {
			t.Fatalf("%v\n%s\n%s\n%s", err, block, out, up.Stderr())
		}
		return out
	}
	restart := func() {
		t.Helper()
		if _, err := up.Stop(); err != nil {
			t.Fatal(err)
		}
		up = start()
	}
	// checkpoint waits for the checkpoint over an entry that is made now, and returns its lines
	// with signatures.
	n := 0
	checkpoint := func() (note string) {
		t.Helper()
		n++
		up.Agent(t, fmt.Sprintf(`{"name":"bot-%d"}`, n))
		e2e.Eventually(t, 60*time.Second, func() error {
			r := up.Do(t, up.Gateway, http.MethodPost, "/v1/audit/exports", up.OrgKey, `{"newest_entry":true}`)
			if r.Status != http.StatusCreated {
				return fmt.Errorf("%d %s", r.Status, r.Body)
			}
			return nil
		})
		return string(up.Do(t, up.Gateway, http.MethodGet, "/v1/audit/checkpoint", up.OrgKey, "").Body)
	}
	first := checkpoint()
	before, err := evidence.ParseJWKS(up.Do(t, up.Gateway, http.MethodGet, "/.well-known/jwks.json", "", "").Body)
	if err != nil || len(before.Keys) != 2 {
		t.Fatal(before, err)
	}
	must(create)
	restart()
	if note := checkpoint(); strings.Count(note, "\u2014") != 2 {
		t.Errorf("before the rotation: %s", note)
	}
	if out := must(rotate); strings.Count(out, "1 organizations have the key change") != 2 {
		t.Error(out)
	}
	both := checkpoint()
	if strings.Count(both, "\u2014") != 4 {
		t.Errorf("after the rotation: %s", both)
	}
	must(remove)
	restart()
	last := checkpoint()
	if strings.Count(last, "\u2014") != 2 {
		t.Errorf("without the old keys: %s", last)
	}
	jwks := must(fetch)
	var made struct {
		ID    string `json:"id"`
		State string `json:"state"`
	}
	if r := up.Do(t, up.Gateway, http.MethodPost, "/v1/audit/exports", up.OrgKey, `{}`); json.Unmarshal(r.Body, &made) != nil || made.ID == "" {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	e2e.Eventually(t, 60*time.Second, func() error {
		r := up.Do(t, up.Gateway, http.MethodGet, "/v1/audit/exports/"+made.ID, up.OrgKey, "")
		if err := json.Unmarshal(r.Body, &made); err != nil || made.State != "complete" {
			return fmt.Errorf("%v %d %s", err, r.Status, r.Body)
		}
		return nil
	})
	export := up.Do(t, up.Gateway, http.MethodGet, "/v1/audit/exports/"+made.ID+"/file", up.OrgKey, "").Body
	for name, text := range map[string]string{"export.json": string(export), "jwks.json": jwks, "first": first, "both": both, "last": last} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := "chain export.json --jwks jwks.json --checkpoint first --checkpoint both --checkpoint last --verbose"
	for _, k := range before.Keys {
		args += " --pin " + k.ID
	}
	for _, verifier := range []string{"python3 " + filepath.Join(e2e.Root(), "cli", "ai_identity_verify.py") + " ", "aid audit verify --offline "} {
		if out := must(verifier + args); strings.Count(out, "signed by both") != 2 || !strings.Contains(out, "INTACT") {
			t.Errorf("%s: %s", verifier, out)
		}
	}
}
