package e2e_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
	"github.com/ai-identity/ai-identity/envoy/envoytest"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/provider/prices"
)

// A comment before a block may have its required output: prints: 403, model_not_allowed
//
// Or the output follows in a block of text, which may leave out lines. "…" stands for any
// text.
var fenced = regexp.MustCompile("(?s)(?:<!-- prints: ([^\n]*) -->\n *)?```(sh|yaml|python)\n(.*?)```(?:\n```text\n(.*?)```)?")

// typedElsewhere are pages with a separate test.
var typedElsewhere = map[string]string{
	"clients.md":    "TestSDKs",
	"keys.md":       "TestKeyRotation",
	"production.md": "TestProduction",
	"restore.md":    "TestRestore",
}

// Every command in the README and the docs is run here, against what `make run` starts. They
// are run in the order of the page, in one shell for each page. Targets of make must exist. Files are read as the
// program reads them.
func TestDocs(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(e2e.Root(), "docs", "*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	makefile, err := os.ReadFile(filepath.Join(e2e.Root(), "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	up := e2e.Start(t, e2e.Config{Args: []string{"--stand-in", "127.0.0.1:0"}})
	for _, name := range []string{"CONTRIBUTING.md", "README.md"} {
		pages = append(pages, filepath.Join(e2e.Root(), name))
	}
	commands := 0
	for _, page := range pages {
		name := filepath.Base(page)
		if typedElsewhere[name] != "" {
			continue
		}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) {
			s := newShell(t, up)
			for i, block := range fenced.FindAllStringSubmatch(string(text), -1) {
				prints, kind, typed, shown := block[1], block[2], block[3], block[4]
				t.Run(fmt.Sprint(i), func(t *testing.T) {
					switch {
					case kind == "yaml":
						readable(t, typed)
						return
					case regexp.MustCompile(`(?m)^make\b`).MatchString(typed):
						targets(t, typed, string(makefile))
						return
					case kind == "python" && name != "README.md":
						t.Skip("TestSDKs runs it, with each client's provider")
					case kind == "python":
						typed = "\"$AID_SDK_PYTHON\" - <<'END'\n" + typed + "END\n"
					}
					commands++
					s.run(t, typed, prints, shown)
				})
			}
		})
	}
	t.Run("recording.cast", func(t *testing.T) { replay(t, up) })
	if commands < 25 && !t.Failed() {
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

// targets checks that the targets of a block exist.
func targets(t *testing.T, block, makefile string) {
	t.Helper()
	for _, m := range regexp.MustCompile(`(?m)^make ([a-z-]+)`).FindAllStringSubmatch(block, -1) {
		if !strings.Contains(makefile, "\n"+m[1]+":") {
			t.Errorf("the Makefile has no %s", m[1])
		}
	}
}

// shell runs the blocks of one page. Variables and functions last from block to block.
type shell struct {
	env     []string
	state   string
	replace *strings.Replacer
}

func newShell(t *testing.T, up *e2e.Up) *shell {
	t.Helper()
	python := os.Getenv("AID_SDK_PYTHON")
	if python == "" {
		python = filepath.Join(e2e.Root(), ".tools", "sdk", "bin", "python")
	}
	agent := up.Agent(t, `{"name":"reader-of-docs","allowed_models":["demo"]}`)
	s := &shell{
		state: filepath.Join(t.TempDir(), "state"),
		env: append(os.Environ(), "PATH="+filepath.Dir(e2e.Binary(t))+":"+os.Getenv("PATH"), "AID_SDK_PYTHON="+python,
			"ORG="+up.OrgKey, "AGENT="+agent, "AID_HOME="+t.TempDir()),
		replace: strings.NewReplacer("localhost:8080", strings.TrimPrefix(up.Gateway, "http://"), "localhost:8081", strings.TrimPrefix(up.API, "http://"),
			`export PATH="$PWD/bin:$PATH"`, ":", // newShell has the program of this test there
			"localhost:9090", strings.TrimPrefix(up.Metrics, "http://"), ".aid/", up.Home+"/", "--home .aid", "--home "+up.Home),
	}
	for _, flag := range []string{"GATEWAY", "API", "METRICS"} {
		s.env = append(s.env, fmt.Sprintf("AID_%s=127.0.0.1:%d", flag, envoytest.Port(t)))
	}
	if err := os.WriteFile(s.state, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// run runs a block. A rejected request or a failed command fails, unless the page shows what is
// printed. Then the block is repeated until it prints that, since a change takes a moment to arrive.
func (s *shell) run(t *testing.T, block, prints, shown string) {
	t.Helper()
	curl := "curl() { command curl --silent --show-error --fail-with-body \"$@\"; }\n"
	again := prints != "" || shown != ""
	if again {
		curl = "curl() { command curl \"$@\"; }\n"
	}
	s.until(t, curl, block, again, func(out string) string {
		for line := range strings.Lines(shown) {
			line = strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSpace(line)), "…", ".*")
			if !regexp.MustCompile(`(?m)^\s*` + line + `,?\s*$`).MatchString(out) {
				return fmt.Sprintf("no line is %q", line)
			}
		}
		if prints == "" {
			return ""
		}
		for _, want := range strings.Split(prints, ", ") {
			if !strings.Contains(out, want) {
				return fmt.Sprintf("it does not print %q", want)
			}
		}
		return ""
	})
}

// until runs a block, again if it may be, until it succeeds and wrong finds no error in its output.
func (s *shell) until(t *testing.T, before, block string, again bool, wrong func(string) string) {
	t.Helper()
	script := "set -ea\nexport STATE=" + s.state + "\n. $STATE\n" + before + s.replace.Replace(block) +
		"\n{ export -p; declare -f; } | grep -v '^declare -[a-z]*r' > $STATE.new && mv $STATE.new $STATE\n"
	for deadline := time.Now().Add(15 * time.Second); ; {
		cmd := exec.CommandContext(t.Context(), "bash", "-c", script)
		cmd.Dir, cmd.Env = e2e.Root(), s.env
		out, err := cmd.CombinedOutput()
		found := wrong(string(out))
		if err != nil {
			found = strings.TrimSuffix(err.Error()+": "+found, ": ")
		}
		switch {
		case found == "":
			return
		case !again || time.Now().After(deadline):
			t.Fatalf("%s:\n%s\n%s", found, block, out)
		}
		select {
		case <-t.Context().Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// commandsIn returns how blocks of commands are run in a folder, with aid on the PATH. must ends
// the test if one fails.
func commandsIn(t *testing.T, dir string) (typed func(string) (string, error), must func(string) string) {
	typed = func(block string) (string, error) {
		cmd := exec.Command("bash", "-ec", block)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(e2e.Binary(t))+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must = func(block string) string {
		t.Helper()
		out, err := typed(block)
		if err != nil {
			t.Fatalf("%v\n%s\n%s", err, block, out)
		}
		return out
	}
	return typed, must
}

// varies matches text that differs between two runs of the recording.
var varies = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\b[0-9a-f]{64}\b|\d{4}-\d\d-\d\dT[\d:.]+Z|\b\d+ entries|\bto \d+|"created":\d+`)

// replay runs the commands of docs/recording.cast again. They print what the recording
// shows, with other ids, times and counts. Both images were made from that file.
func replay(t *testing.T, up *e2e.Up) {
	cast, err := os.ReadFile(filepath.Join(e2e.Root(), "docs", "recording.cast"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"recording-light.svg", "recording-dark.svg"} {
		svg, err := os.ReadFile(filepath.Join(e2e.Root(), "docs", name))
		if err != nil {
			t.Fatal(err)
		}
		if digest := fmt.Sprintf("recording.cast sha256:%x<", sha256.Sum256(cast)); !strings.Contains(string(svg), digest) {
			t.Errorf("docs/%s is not of docs/recording.cast: run `make recording`", name)
		}
	}
	s := newShell(t, up)
	agent := up.Agent(t, `{"name":"support-bot","allowed_models":["demo"]}`)
	id, key := up.Key(t, agent, `{"name":"first","scopes":["chat:completions"]}`)
	s.env = append(s.env, "AGENT="+agent, "KEY="+id, "AID_KEY="+key)

	type step struct{ typed, printed string }
	var steps []step
	const prompt = "\x1b[32m$\x1b[0m "
	for _, line := range strings.Split(strings.TrimSpace(string(cast)), "\n")[1:] {
		var at float64
		var kind, text string
		if err := json.Unmarshal([]byte(line), &[]any{&at, &kind, &text}); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		text = strings.ReplaceAll(text, "\r\n", "\n")
		switch {
		case kind == "i":
			steps = append(steps, step{typed: text})
		case text == prompt: // the echo of the typed command follows
			steps = append(steps, step{})
		case len(steps) > 0:
			steps[len(steps)-1].printed += text
		}
	}
	commands := 0
	for _, step := range steps {
		if step.typed == "" {
			continue
		}
		commands++
		want := varies.ReplaceAllString(step.printed, "…")
		s.until(t, "", step.typed, true, func(out string) string {
			if got := varies.ReplaceAllString(out, "…"); got != want {
				return fmt.Sprintf("the recording is out of date, run `make recording`: it shows %q, and the product prints %q", want, got)
			}
			return ""
		})
	}
	if commands < 8 {
		t.Errorf("docs/recording.cast has only %d commands", commands)
	}
}
