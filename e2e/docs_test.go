package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/e2e"
	"github.com/ai-identity/ai-identity/envoy/envoytest"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/provider/prices"
)

var fenced = regexp.MustCompile("(?s)```(sh|yaml)\n(.*?)```")

// Every command that the docs tell somebody to type is typed here, but for those that
// are make's: those must be targets of ours. Files that they show are read as the
// program reads them. TestReadme has the README's, TestSDKs
// docs/clients.md, and TestProduction docs/production.md.
func TestDocs(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(e2e.Root(), "docs", "*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	makefile, err := os.ReadFile(filepath.Join(e2e.Root(), "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	up := e2e.Shared(t)
	agent := up.Agent(t, `{"name":"reader-of-docs","allowed_models":["demo"]}`)
	commands := 0
	for _, page := range pages {
		if name := filepath.Base(page); name == "clients.md" || name == "production.md" {
			continue // of TestSDKs and TestProduction
		}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for i, block := range fenced.FindAllStringSubmatch(string(text), -1) {
			t.Run(fmt.Sprintf("%s/%d", filepath.Base(page), i), func(t *testing.T) {
				if block[1] == "yaml" {
					readable(t, block[2])
					return
				}
				commands++
				if strings.Contains(block[2], "make") {
					targets(t, block[2], string(makefile))
					return
				}
				typeIn(t, up, agent, block[2])
			})
		}
	}
	if commands < 5 {
		t.Errorf("only %d blocks of commands were found", commands)
	}
}

// readable reads an example of a file as the program does.
func readable(t *testing.T, example string) {
	t.Helper()
	var err error
	switch top, _, _ := strings.Cut(example, ":"); top {
	case "providers":
		_, err = provider.LoadFile([]byte(example))
	case "prices":
		_, err = prices.Load([]byte(example))
	default:
		t.Fatalf("nothing reads this file: %s", example)
	}
	if err != nil {
		t.Errorf("%v\n%s", err, example)
	}
}

// targets checks that what is made can be made.
func targets(t *testing.T, block, makefile string) {
	t.Helper()
	for _, m := range regexp.MustCompile(`(?m)^make ([a-z-]+)`).FindAllStringSubmatch(block, -1) {
		if !strings.Contains(makefile, "\n"+m[1]+":") {
			t.Errorf("the Makefile has no %s", m[1])
		}
	}
}

// typeIn runs the commands against up. A request that is refused fails.
func typeIn(t *testing.T, up *e2e.Up, agent, block string) {
	t.Helper()
	org, err := os.ReadFile(filepath.Join(up.Home, "org.key"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", "-c", "set -e\ncurl() { command curl --silent --show-error --fail-with-body \"$@\"; }\n"+
		strings.ReplaceAll(block, "localhost:8080", strings.TrimPrefix(up.Gateway, "http://")))
	cmd.Dir = e2e.Root()
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(e2e.Binary(t))+":"+os.Getenv("PATH"), "ORG="+strings.TrimSpace(string(org)), "AGENT="+agent, "AID_HOME="+t.TempDir())
	for _, flag := range []string{"GATEWAY", "API", "METRICS"} {
		cmd.Env = append(cmd.Env, fmt.Sprintf("AID_%s=127.0.0.1:%d", flag, envoytest.Port(t)))
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s\n%s", err, block, out)
	}
}
