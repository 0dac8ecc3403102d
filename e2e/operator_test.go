package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/e2e"
)

// Keys that were lost, or are those of another installation, stop the start beside a
// database that is in use. What is restored starts again.
func TestLostKeys(t *testing.T) {
	home := e2e.Home(t)
	up, err := e2e.TryStart(t, e2e.Config{Home: home})
	if err != nil {
		t.Fatal(err)
	}
	verify := func(args ...string) (string, error) {
		out, err := exec.Command(e2e.Binary(t), append([]string{"audit", "verify", "--home", home}, args...)...).CombinedOutput()
		return string(out), err
	}
	if out, err := verify(); err != nil || !strings.Contains(out, "org_default: ") {
		t.Errorf("verify: %v %s", err, out)
	}
	if out, err := verify("--org", "org_typo"); err == nil || !strings.Contains(out, "org_typo") || strings.Contains(out, "has no entries") {
		t.Errorf("verify of an organization that does not exist: %v %s", err, out)
	}
	// Another key than that of the chain: one finding, and no claim that it is empty.
	other := filepath.Join(t.TempDir(), "hmac.keys")
	if err := os.WriteFile(other, []byte("1 "+strings.Repeat("ab", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := verify("--hmac-keys", other); err == nil || !strings.Contains(out, "audit entry 1") || strings.Contains(out, "has no entries") {
		t.Errorf("verify with another key: %v %s", err, out)
	}
	if _, err := up.Stop(); err != nil {
		t.Fatal(err)
	}

	for _, name := range []string{"fernet.keys", "hmac.keys", "digest.key"} {
		file := filepath.Join(home, "secrets", name)
		if err := os.Rename(file, file+".away"); err != nil {
			t.Fatal(err)
		}
		failed, err := e2e.TryStart(t, e2e.Config{Home: home})
		if err == nil {
			t.Fatalf("it starts without %s", name)
		}
		if said := failed.Stderr(); !strings.Contains(said, name) || !strings.Contains(said, "Restore") {
			t.Errorf("without %s it prints %s", name, said)
		}
		if _, err := os.Stat(file); err == nil {
			t.Errorf("a new %s was made", name)
		}
		if err := os.Rename(file+".away", file); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(home, "secrets", "hmac.keys")
	right, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("1 "+strings.Repeat("ab", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	failed, err := e2e.TryStart(t, e2e.Config{Home: home})
	if err == nil || !strings.Contains(failed.Stderr(), "does not verify with "+file) {
		t.Errorf("with another key: %v %s", err, failed.Stderr())
	}
	if err := os.WriteFile(file, right, 0o600); err != nil {
		t.Fatal(err)
	}
	e2e.Start(t, e2e.Config{Home: home})
}
