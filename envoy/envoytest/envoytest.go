// Package envoytest gives a test a real Envoy, as httptest gives one a server.
package envoytest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/envoy"
)

// Path returns the real Envoy: AID_ENVOY, the one that `make setup` installed, or the one
// on PATH. Without one the test is skipped. In CI it fails, since a skipped test would
// prove nothing.
func Path(t testing.TB) string {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(file), "..", "..")
	path, err := envoy.Find(os.Getenv("AID_ENVOY"), root)
	switch {
	case err == nil:
		return path
	case os.Getenv("CI") != "":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
	return ""
}

// Config says what to start.
type Config struct {
	// Bootstrap is the whole static configuration, JSON or YAML. Its admin
	// interface must be on the Unix socket Admin.
	Bootstrap []byte
	Admin     string
	// Concurrency is the number of workers; 0: 1.
	Concurrency int
	// LogLevel is Envoy's; empty: "warning".
	LogLevel string
}

// Envoy is a running Envoy.
type Envoy struct {
	Admin envoy.AdminClient
	proc  *envoy.Process
}

// PID is Envoy's process id.
func (e *Envoy) PID() int { return e.proc.PID() }

// Start runs Envoy until the test ends. It returns when Envoy responds on its admin socket.
// Use Live to find out whether it is live, which may depend on a control plane that the
// test starts later.
func Start(t testing.TB, c Config) *Envoy {
	t.Helper()
	path := Path(t)
	if c.Concurrency == 0 {
		c.Concurrency = 1
	}
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(file, c.Bootstrap, 0o600); err != nil {
		t.Fatal(err)
	}
	p := envoy.NewProcess(envoy.ProcessConfig{
		Path: path, Bootstrap: file, Admin: c.Admin, Concurrency: c.Concurrency, LogLevel: c.LogLevel,
		DrainTimeout: time.Second, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	e := &Envoy{Admin: envoy.Admin(c.Admin), proc: p}
	wait(t, "Envoy to answer on its admin socket", func(ctx context.Context) error {
		if p.Restarts() > 0 {
			t.Fatalf("Envoy ended at once: %q", p.Tail())
		}
		_, err := e.Admin.Get(ctx, "/server_info")
		return err
	})
	return e
}

// WaitLive returns when Envoy serves.
func (e *Envoy) WaitLive(t testing.TB) {
	t.Helper()
	wait(t, "Envoy to be live", e.Admin.Live)
}

func wait(t testing.TB, what string, ask func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waiting for %s: %v", what, err)
		case <-tick.C:
		}
	}
}

// SocketDir is a directory whose path is short enough for Unix sockets, which
// t.TempDir's often is not.
func SocketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "aid")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Port is a TCP port of the loopback address that was free a moment ago.
func Port(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// Certificates writes a self-signed CA certificate for a DNS name, and uses it
// as the server's too: ca, certificate and key files, in dir.
func Certificates(t testing.TB, dir, name string) (ca, cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cert = write("cert.pem", "CERTIFICATE", der)
	return cert, cert, write("key.pem", "PRIVATE KEY", pkcs8)
}
