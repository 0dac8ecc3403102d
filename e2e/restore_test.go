package e2e_test

import (
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

// This runs the commands of docs/restore.md, in their order. A database is restored from a
// backup, and later a node is lost too. Every receipt of a caller is in the chain.
func TestRestore(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(e2e.Root(), "docs", "restore.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := fenced.FindAllStringSubmatch(string(page), -1)
	if len(blocks) != 5 { // audit.TestRestoreFromExports does what the last one does
		t.Fatalf("%d blocks of commands: the test knows 5", len(blocks))
	}
	backUp, putBack, check, lost := blocks[0][3], blocks[1][3], blocks[2][3], blocks[3][3]
	dir := e2e.Home(t)
	home := filepath.Join(dir, ".aid")
	typed, must := commandsIn(t, dir)
	start := func() *e2e.Up {
		t.Helper()
		return e2e.Start(t, e2e.Config{Home: home, Args: []string{"--stand-in", "127.0.0.1:0"}})
	}
	receipts, err := os.Create(filepath.Join(dir, "receipts.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer receipts.Close()
	traffic := func(up *e2e.Up, key string, n int) {
		t.Helper()
		for range n {
			resp := up.Chat(t, key, `{"model":"demo","messages":[{"role":"user","content":"hello"}]}`)
			if resp.Status != http.StatusOK {
				t.Fatalf("%d %s", resp.Status, resp.Body)
			}
			fmt.Fprintf(receipts, "X-AID-Receipt: %s\n", resp.Header.Get("X-Aid-Receipt"))
		}
	}
	stop := func(up *e2e.Up) {
		t.Helper()
		if _, err := up.Stop(); err != nil {
			t.Fatal(err)
		}
	}

	up := start()
	_, key := up.Key(t, up.Agent(t, `{"name":"restored","allowed_models":["demo"]}`), `{"name":"k","scopes":["chat:completions"]}`)
	traffic(up, key, 5)
	stop(up)
	must(backUp)

	up = start()
	traffic(up, key, 20)
	stop(up)
	up = start() // another process, so another writer
	traffic(up, key, 20)
	stop(up)
	if out := must(putBack); !strings.Contains(out, " 0 of them not shipped") {
		t.Errorf("the folder: %s", out)
	}
	up = start()
	e2e.Eventually(t, 60*time.Second, func() error {
		out, err := typed(check)
		if err == nil && !strings.Contains(out, "45 receipts: 45 in the chain, 0 in a gap, 0 pending, 0 missing") {
			t.Fatal(out)
		}
		return err
	})

	// The node is lost, and the database is restored once more.
	traffic(up, key, 10)
	up.Kill()
	e2e.Eventually(t, 60*time.Second, func() error { // its children end with it
		_, err := typed("flock -n .aid/segments/lock true")
		return err
	})
	must("mv .aid/segments .aid-dead; mkdir -m 700 .aid-x; mv .aid-dead .aid-x/segments; mv .aid-x .aid-dead")
	must("rm -r .aid/postgres; cp -a .aid-backup/postgres .aid/postgres")
	up = start()
	out, err := typed(check)
	var exit *exec.ExitError
	if err == nil || !asExit(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(out, "pending") {
		t.Errorf("before the dead node's records are sent: %v %s", err, out)
	}
	if out := must(lost); !strings.Contains(out, "0 are left") {
		t.Error(out)
	}
	if out := must(check); !strings.Contains(out, "55 receipts: 55 in the chain, 0 in a gap, 0 pending, 0 missing") {
		t.Error(out)
	}
	records, err := os.ReadFile(filepath.Join(dir, "records.jsonl"))
	if err != nil || strings.Count(string(records), "\n") < 110 || strings.Contains(string(records), "hello") {
		t.Errorf("the export has %d lines: %v", strings.Count(string(records), "\n"), err)
	}

	// An error has an exit code and a message.
	for block, want := range map[string]string{
		"aid segments inspect .aid/segments":                                                                     "1: in use by another process",
		"aid segments ship --xds unix:.aid/run/xds.sock .aid/segments":                                           "1: in use by another process",
		"aid segments inspect":                                                                                   "2: name one segment folder",
		"aid segments ship .aid-dead/segments":                                                                   "2: --xds",
		"aid audit verify --home .aid --receipts records.jsonl":                                                  "2: line 1",
		"aid audit verify --home .aid --receipts nothing.txt":                                                    "2: nothing.txt",
		"sed -E 's,/[0-9a-f]{8},/00000000,' receipts.txt | aid audit verify --home .aid --receipts - >/dev/null": "1: a receipt has a wrong signature",
	} {
		code, says, _ := strings.Cut(want, ": ")
		out, err := typed("set -o pipefail; " + block)
		if !asExit(err, &exit) || fmt.Sprint(exit.ExitCode()) != code || !strings.Contains(out, says) {
			t.Errorf("%s: %v %s, want %s", block, err, out, want)
		}
	}
	stop(up)
}

func asExit(err error, to **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError)
	*to = e
	return ok
}
