package evidence_test

import (
	"bufio"
	"crypto/sha256"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

var speed = flag.Int("speed", 0, "how many entries TestSpeed verifies; 0: it is skipped")

// writeLarge writes an export of n entries, without keeping them.
func writeLarge(t *testing.T, path string, n int) *aLog {
	t.Helper()
	l := newLog("org_1")
	l.add(n, strings.Repeat("x", 200))
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := bufio.NewWriterSize(f, 1<<20)
	sum := sha256.New()
	w, line, err := evidence.NewExportWriter(evidence.ExportHeader{Org: l.org, Incarnation: 1, FirstSeq: 1, End: l.note(int64(n))})
	if err != nil {
		t.Fatal(err)
	}
	both := io.MultiWriter(out, sum)
	both.Write(line)
	var b []byte
	for i := range l.rows {
		if b, err = w.AppendRow(b[:0], &l.rows[i]); err != nil {
			t.Fatal(err)
		}
		both.Write(b)
	}
	both.Write([]byte(evidence.ExportRowsEnd))
	statement, err := w.Statement([32]byte(sum.Sum(nil)))
	if err != nil {
		t.Fatal(err)
	}
	e, err := evidence.SignEnvelope(t.Context(), evidence.ExportType, statement, l.p256)
	if err != nil {
		t.Fatal(err)
	}
	last, err := evidence.ExportLastLine(e)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(last)
	if err := out.Flush(); err != nil {
		t.Fatal(err)
	}
	return l
}

// Python verifies 1,000,000 entries a minute within 256 MB, and Go 10,000,000.
func TestSpeed(t *testing.T) {
	if *speed == 0 {
		t.Skip("use -speed 1000000")
	}
	path := filepath.Join(t.TempDir(), "export.json")
	l := writeLarge(t, path, *speed)
	keys := l.keys(t)
	l.rows, l.stored = nil, nil
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if kept := os.Getenv("AID_KEEP_EXPORT"); kept != "" {
		if err := os.Link(path, kept); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(kept+".jwks", []byte(jwks(t, keys)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	if v := evidence.VerifyChain(f, evidence.ChainOptions{Keys: keys}); v.Exit != evidence.Intact {
		t.Fatalf("%+v", v)
	}
	t.Logf("Go: %.0f entries a minute", float64(*speed)/time.Since(began).Minutes())
	set := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(set, []byte(jwks(t, keys)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("python3", "-c", `
import resource, subprocess, sys
code = subprocess.call([sys.executable, "-B", "../../cli/ai_identity_verify.py"] + sys.argv[1:])
print("peak memory of the verifier, KiB:", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)`, "chain", path, "--jwks", set)
	began = time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	t.Logf("Python: %.0f entries a minute\n%s", float64(*speed)/time.Since(began).Minutes(), out)
}
