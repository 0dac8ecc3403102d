package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const vectors = "../../audit/evidence/testdata/vectors/"

// The command and the Python file have the same arguments, output and exit codes.
func TestOffline(t *testing.T) {
	python := os.Getenv("AID_SDK_PYTHON")
	if python == "" {
		python = "python3"
	}
	contradiction := filepath.Join(t.TempDir(), "two-roots.txt")
	in := func(name string) string { return vectors + name }
	jwks := []string{"--jwks", in("jwks.json")}
	for _, c := range []struct {
		args  []string
		env   string
		code  int
		wants string
	}{
		{[]string{"chain", in("export-12.json"), "--verbose"}, "", 0, "INTACT"},
		{[]string{"chain", in("export-12.json"), "--checkpoint", in("checkpoint-12.txt"), "--pin", "NYtmi0SlklezihJmIvtTC3hBf77BMXXPCjAlV0GFqq0", "--pin", "s1yYFcfjePJirRjwSaq9XDGHvcyLoMeQ6XWg1YajhPo"}, "", 0, "completeness: complete for the filter among entries 1 to 12"},
		{[]string{"chain", in("export-12.json"), "--pin", "other"}, "", 2, "pinned key other"},
		{[]string{"chain", in("export-12.json"), "--pin", "-NaV1"}, "", 2, "pinned key -NaV1"},
		{[]string{"chain", in("export-12.json")}, strings.Repeat("0b", 32), 0, "12 MACs are right"},
		{[]string{"chain", in("export-12.json")}, "1:" + strings.Repeat("0b", 32), 0, "12 MACs are right"},
		{[]string{"chain", in("export-12.json")}, "1:" + strings.Repeat("0c", 32), 1, "its MAC is wrong"},
		{[]string{"chain", in("export-12.json")}, "2:" + strings.Repeat("0c", 32), 0, "12 could not be checked"},
		{[]string{"chain", in("export-12.json")}, "secret", 3, "AI_IDENTITY_HMAC_KEY is not"},
		{[]string{"chain", in("export-row.json")}, "", 1, "TAMPERED: entry 3"},
		{[]string{"chain", in("none.json")}, "", 3, "none.json"},
		{[]string{"chain"}, "", 3, ""},
		{[]string{"checkpoint", in("checkpoint-5.txt"), in("checkpoint-5-root-6.txt"), "--evidence", contradiction}, "", 1, "two histories"},
		{[]string{"checkpoint", in("checkpoint-12.txt"), in("checkpoint-50.txt")}, "", 2, "INCOMPLETE"},
		{[]string{"checkpoint", in("checkpoint-12.txt"), in("checkpoint-50.txt"), "--bundle", in("bundle-few.json")}, "", 0, "up to the checkpoint"},
		{[]string{"bundle", in("bundle-few.json")}, "", 0, "no completeness"},
		{[]string{"report", in("bundle-few.json")}, "", 1, "TAMPERED: the report"},
		{[]string{"attestation", in("bundle-few.json")}, "", 1, "TAMPERED: the attestation"},
	} {
		t.Setenv("AI_IDENTITY_HMAC_KEY", c.env)
		os.Remove(contradiction)
		args := append(append([]string{}, c.args...), jwks...)
		var out, errs bytes.Buffer
		code := run(context.Background(), append([]string{"audit", "verify", "--offline"}, args...), nil, &out, &errs)
		if text := out.String() + errs.String(); code != c.code || !strings.Contains(text, c.wants) {
			t.Errorf("%v: exit code %d\n%s", c.args, code, text)
		}
		if c.args[0] == "checkpoint" && c.code == 1 {
			if b, err := os.ReadFile(contradiction); err != nil || strings.Count(string(b), "time 2026") != 2 {
				t.Errorf("the two checkpoints were not written: %q, %v", b, err)
			}
		}
		cmd := exec.Command(python, append([]string{"../../cli/ai_identity_verify.py"}, args...)...)
		cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
		other, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			if os.Getenv("CI") == "" {
				t.Skipf("there is no python3: %v", err)
			}
			t.Fatal(err)
		}
		if got := cmd.ProcessState.ExitCode(); got != c.code || !strings.Contains(string(other), c.wants) {
			t.Errorf("Python, %v: exit code %d\n%s", c.args, got, other)
		}
		if c.code < 3 && string(other) != out.String() && c.args[0] != "report" && c.args[0] != "attestation" {
			t.Errorf("%v: the output differs:\n%s\n%s", c.args, out.String(), other)
		}
	}
	var out bytes.Buffer
	if code := run(context.Background(), append([]string{"audit", "verify", "--offline", "--json", in("export-12.json")}, jwks...), nil, &out, &out); code != 0 || !json.Valid(out.Bytes()) {
		t.Errorf("%d: %s", code, out.String())
	}
	t.Chdir(t.TempDir())
	out.Reset()
	if code := run(context.Background(), []string{"audit", "verify", "--offline", "bundle", "/dev/null"}, nil, &out, &out); code != 1 || !strings.Contains(out.String(), "there is no JWKS") {
		t.Errorf("%d: %s", code, out.String())
	}
}

// The commands of the product's documentation run as they are written there.
func TestOfflineAsDocumented(t *testing.T) {
	python := os.Getenv("AID_SDK_PYTHON")
	if python == "" {
		python = "python3"
	}
	python, err := exec.LookPath(python)
	if err != nil {
		if os.Getenv("CI") == "" {
			t.Skipf("there is no python3: %v", err)
		}
		t.Fatal(err)
	}
	dir := t.TempDir()
	for from, to := range map[string]string{
		vectors + "export-12.json": "audit_export.json", vectors + "forensics_report.json": "forensics_report.json", vectors + "attestation.json": "attestation.json",
		vectors + "jwks.json": "jwks.json", "../../cli/ai_identity_verify.py": "cli/ai_identity_verify.py",
	} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		to = filepath.Join(dir, to)
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(python, filepath.Join(bin, "python3")); err != nil {
		t.Fatal(err)
	}
	// Only the folder and the secret are others.
	script := strings.NewReplacer("/usr/local/bin", bin, "your-hmac-secret", strings.Repeat("0b", 32)).Replace(`set -e
cp cli/ai_identity_verify.py /usr/local/bin/ai_identity_verify
chmod +x /usr/local/bin/ai_identity_verify
export AI_IDENTITY_HMAC_KEY='your-hmac-secret'
ai_identity_verify chain audit_export.json --verbose
ai_identity_verify report forensics_report.json
ai_identity_verify attestation attestation.json --jwks jwks.json
`)
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "INTACT\n") != 3 || !strings.Contains(string(out), "12 MACs are right") {
		t.Errorf("%v\n%s", err, out)
	}
	syntax := exec.Command(python, "-c", "import ast, sys; ast.parse(sys.stdin.read(), feature_version=(3, 9))")
	if syntax.Stdin, err = os.Open("../../cli/ai_identity_verify.py"); err != nil {
		t.Fatal(err)
	}
	if out, err := syntax.CombinedOutput(); err != nil {
		t.Errorf("it is not Python 3.9: %s", out)
	}
}
