package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

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

// A sidecar that is told to stop under load answers with its last strength: callers get
// 200, or 503 with Retry-After, and never 500.
func TestGracefulStop(t *testing.T) {
	provider := e2e.Record(t, nil)
	up := e2e.Start(t, e2e.Config{Providers: provider.File("openai", credential, "gpt-*")})
	_, key := up.Key(t, up.Agent(t, `{"name":"steady","allowed_models":["gpt-4o"]}`), `{"name":"k","scopes":["chat:completions"]}`)
	up.Chat(t, key, allowed)

	stop := make(chan struct{})
	var mu sync.Mutex
	count := map[int]int{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				got := up.Chat(t, key, allowed)
				mu.Lock()
				count[got.Status]++
				if got.Status != 200 && (got.Status != 503 || got.Header.Get("Retry-After") == "") {
					t.Errorf("a caller got %d, %v, %s", got.Status, got.Header, got.Body)
				}
				mu.Unlock()
			}
		})
	}
	served := func(n int) func() error {
		return func() error {
			mu.Lock()
			defer mu.Unlock()
			if count[200] < n {
				return fmt.Errorf("%d of %d were served", count[200], n)
			}
			return nil
		}
	}
	for range 3 {
		e2e.Eventually(t, 30*time.Second, served(count200(&mu, count)+50))
		before := up.Child(t, "aid extproc")
		if err := syscall.Kill(before, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		e2e.Eventually(t, 30*time.Second, func() error {
			if e2e.Alive(before) {
				return errors.New("it still runs")
			}
			return nil
		})
		up.Ready(t)
	}
	close(stop)
	wg.Wait()
	t.Logf("by status: %v", count)
}

func count200(mu *sync.Mutex, count map[int]int) int {
	mu.Lock()
	defer mu.Unlock()
	return count[200]
}
