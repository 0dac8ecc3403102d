package e2e_test

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/e2e"
)

// The management API follows its description for every request. Schemathesis makes valid
// and invalid requests from /openapi.json and checks each response against it. Its
// configuration is e2e/sdk/schemathesis.toml in the repository.
func TestSchemathesis(t *testing.T) {
	python := installed("AID_SCHEMATHESIS_PYTHON", "schemathesis")
	if _, err := os.Stat(python); err != nil {
		missing(t, err)
	}
	up := e2e.Start(t, e2e.Config{}) // a separate one: the objects made here would disturb other tests
	var me struct {
		KeyID string `json:"key_id"`
	}
	up.Manage(t, http.MethodGet, "/v1/me", "", 200, &me)
	var nodes struct{ Data []struct{ ID string } }
	up.Manage(t, http.MethodGet, "/v1/nodes", "", 200, &nodes)
	keep := []string{me.KeyID}
	for _, n := range nodes.Data {
		keep = append(keep, n.ID)
	}
	sdk := filepath.Join(e2e.Root(), "e2e", "sdk")
	run := func(location string, args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(filepath.Dir(python), "schemathesis"),
			append([]string{"--config-file", filepath.Join(sdk, "schemathesis.toml"), "run", location, "--no-color"}, args...)...)
		cmd.Dir = t.TempDir() // it creates a folder
		cmd.Env = append(os.Environ(), "AID_ORG_KEY="+up.OrgKey, "AID_KEEP="+strings.Join(keep, ","), "PYTHONDONTWRITEBYTECODE=1", "SCHEMATHESIS_HOOKS="+filepath.Join(sdk, "schemathesis_hooks.py"), "HOME="+t.TempDir())
		out, err := cmd.CombinedOutput()
		if strings.Contains(string(out), up.OrgKey) {
			t.Error("the tester prints its key")
		}
		return string(out), err
	}

	// A wrong description must fail. Otherwise the check proves nothing.
	lie := filepath.Join(t.TempDir(), "openapi.json")
	spec := string(up.Do(t, up.API, http.MethodGet, "/openapi.json", "", "").Body)
	lied := strings.Replace(spec, `"enum": [
              "admin",
              "auditor",
              "reviewer"
            ]`, `"enum": ["owner"]`, -1)
	if lied == spec || !json.Valid([]byte(lied)) {
		t.Fatal("the description has no roles to lie about")
	}
	if err := os.WriteFile(lie, []byte(lied), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := run(lie, "--url", up.API, "--include-operation-id", "get-me", "--phases", "coverage")
	if err == nil || !regexp.MustCompile(`(?i)response violates schema`).MatchString(out) {
		t.Errorf("a wrong description passes: %v\n%s", err, out)
	}

	out, err = run(up.API+"/openapi.json", "--phases", "examples,coverage,fuzzing", "--max-time", "60")
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	} else {
		t.Log(out[max(0, len(out)-1200):])
	}

	// The objects made in these requests do not disturb the gateway.
	if r := up.Do(t, up.Metrics, http.MethodGet, "/readyz", "", ""); r.Status != 200 {
		t.Errorf("/readyz: %d %s", r.Status, r.Body)
	}
	r := up.Do(t, up.API, http.MethodGet, "/v1/me", up.OrgKey, "")
	if r.Status != 200 {
		t.Errorf("/v1/me: %d %s", r.Status, r.Body)
	}
}
