package e2e_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
	"github.com/ai-identity/ai-identity/envoy/envoytest"
)

// The official SDKs work when only their base URL and key are changed, and raise
// their own typed exceptions. Upstream is a stand-in that nobody here wrote.
func TestSDKs(t *testing.T) {
	dir := filepath.Join(e2e.Root(), "e2e", "sdk")
	python := os.Getenv("AID_SDK_PYTHON")
	if python == "" {
		python = filepath.Join(e2e.Root(), ".tools", "sdk", "bin", "python")
	}
	node, err := exec.LookPath("node")
	if err != nil {
		missing(t, err)
	}
	for _, path := range []string{python, filepath.Join(dir, "node_modules", "openai"), filepath.Join(dir, "node_modules", ".bin", "llmock")} {
		if _, err := os.Stat(path); err != nil {
			missing(t, err)
		}
	}

	upstream := standIn(t, node, dir, "fixtures.json")
	up := e2e.Shared(t)
	up.Provider(t, fmt.Sprintf(`{"name":"sdk","kind":"openai","base_url":"http://%s/v1","models":["gpt-4o","gpt-*","text-embedding-*"]}`, upstream), "sk-sdk-credential")
	up.Provider(t, fmt.Sprintf(`{"name":"unreachable","kind":"openai","base_url":"http://127.0.0.1:%d/v1","models":["unreachable-model"]}`, envoytest.Port(t)), "sk-sdk-credential")
	agent := up.Agent(t, `{"name":"sdk","allowed_models":["gpt-4o*","text-embedding-*","unreachable-model"]}`)
	scopes := `"scopes":["chat:completions","embeddings","responses","models"]`
	_, key := up.Key(t, agent, `{"name":"all",`+scopes+`}`)
	revokedID, revoked := up.Key(t, agent, `{"name":"revoked",`+scopes+`}`)
	up.Revoke(t, agent, revokedID)
	_, one := up.Key(t, agent, `{"name":"one",`+scopes+`,"rate_limit":1}`)
	_, oneJS := up.Key(t, agent, `{"name":"one-js",`+scopes+`,"rate_limit":1}`)
	e2e.Eventually(t, 10*time.Second, func() error {
		if r := up.Chat(t, key, `{"model":"gpt-4o","messages":[{"role":"user","content":"hello"}]}`); r.Status != 200 {
			return fmt.Errorf("%d %s", r.Status, r.Body)
		}
		return nil
	})
	env := append(os.Environ(), "AID_BASE_URL="+up.Gateway+"/v1", "AID_KEY="+key, "AID_REVOKED_KEY="+revoked,
		"AID_ONE_RPM_KEY="+one, "AID_ONE_RPM_KEY_JS="+oneJS, "PYTHONDONTWRITEBYTECODE=1")

	t.Run("python", func(t *testing.T) {
		play(t, dir, env, python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_openai.py")
	})
	t.Run("javascript", func(t *testing.T) {
		play(t, dir, env, node, "--test", "openai.test.mjs")
	})
}

// missing skips where somebody develops, and fails in CI, where a skipped test
// would be a promise nobody kept.
func missing(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(err)
	}
	t.Skipf("%v; `make test` installs it", err)
}

// standIn starts the provider stand-in with what it is to answer, and returns its host and port.
func standIn(t *testing.T, node, dir, fixtures string) string {
	t.Helper()
	port := strconv.Itoa(envoytest.Port(t))
	cmd := exec.Command(node, filepath.Join("node_modules", ".bin", "llmock"), "-p", port, "-f", fixtures, "--log-level", "warn")
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	address := net.JoinHostPort("127.0.0.1", port)
	e2e.Eventually(t, 20*time.Second, func() error {
		resp, err := http.Get("http://" + address + "/v1/models")
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
	return address
}

// play runs one SDK's tests.
func play(t *testing.T, dir string, env []string, program string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir, cmd.Env = dir, env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", filepath.Base(program), strings.Join(args, " "), err, out)
	}
}
