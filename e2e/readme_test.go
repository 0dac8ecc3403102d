package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/e2e"
)

// The README's first minute, word for word but for the addresses: what it tells a
// newcomer to type is typed here.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(e2e.Root(), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, minute, ok := strings.Cut(string(text), "## The first minute")
	minute, _, ok2 := strings.Cut(minute, "\n## ")
	if !ok || !ok2 {
		t.Fatal("the README has no first minute")
	}
	blocks := regexp.MustCompile("(?s)```(sh|python)\n(.*?)```").FindAllStringSubmatch(minute, -1)
	if len(blocks) != 5 || strings.TrimSpace(blocks[0][2]) != "make run" {
		t.Fatalf("%d blocks, the first is %q", len(blocks), blocks[0][2])
	}
	python := os.Getenv("AID_SDK_PYTHON")
	if python == "" {
		python = filepath.Join(e2e.Root(), ".tools", "sdk", "bin", "python")
	}
	node, err := exec.LookPath("node")
	if err != nil {
		missing(t, err)
	}
	if _, err := os.Stat(python); err != nil {
		missing(t, err)
	}
	upstream := standIn(t, node, filepath.Join(e2e.Root(), "e2e", "sdk"), filepath.Join(e2e.Root(), "tools", "demo.json"))
	up := e2e.Start(t, e2e.Config{Providers: "providers:\n- {name: demo, kind: openai, base_url: 'http://" + upstream + "/v1', models: [demo, demo-*], credential: {secret: sk-demo-no-secret}}\n"})

	var script strings.Builder
	script.WriteString("set -e\n")
	for _, b := range blocks[1:] {
		if b[1] == "python" {
			script.WriteString("\"$AID_SDK_PYTHON\" - <<'END'\n" + b[2] + "END\n")
			continue
		}
		script.WriteString(b[2])
	}
	gateway := strings.TrimPrefix(up.Gateway, "http://")
	typed := strings.NewReplacer("localhost:8080", gateway, ".aid/org.key", filepath.Join(up.Home, "org.key")).Replace(script.String())
	// The record takes a moment to get there.
	typed = strings.Replace(typed, "curl -s \"", "sleep_until_recorded\ncurl -s \"", 1)
	typed = "sleep_until_recorded() { for _ in $(seq 100); do curl -s \"" + gateway + "/v1/agents/$AGENT/logs?limit=4\" -H \"Authorization: Bearer $ORG\" | grep -q refused && break; done; }\n" + typed
	cmd := exec.Command("bash", "-c", typed)
	cmd.Dir, cmd.Env = e2e.Root(), append(os.Environ(), "AID_SDK_PYTHON="+python)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"Hello! I am the stand-in", "403 Forbidden", "model_not_allowed", `"effect": "deny"`, `"outcome": "refused"`, `"mac"`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("it does not show %q:\n%s", want, out)
		}
	}
}
