package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc/credentials"
)

// issue writes a self-signed certificate for localhost with an expiry.
func issue(t *testing.T, f tlsFiles, serial int64, until time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "aid test"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: until, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	err = errors.Join(writeFile(f.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk}), 0o600),
		writeFile(f.cert, cert, 0o644), writeFile(f.ca, cert, 0o644))
	if err != nil {
		t.Fatal(err)
	}
}

// sample returns the value of a counter or gauge.
func sample(t *testing.T, m prometheus.Metric) float64 {
	t.Helper()
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		t.Fatal(err)
	}
	return d.GetCounter().GetValue() + d.GetGauge().GetValue()
}

// The next connection uses a renewed certificate, on both sides and without a restart. A
// certificate that is not valid is counted, and the last valid one stays in use.
func TestCertificatesAreReloaded(t *testing.T) {
	dir := t.TempDir()
	f := tlsFiles{cert: filepath.Join(dir, "crt"), key: filepath.Join(dir, "key"), ca: filepath.Join(dir, "ca")}
	first, second := time.Now().Add(time.Hour).Truncate(time.Second), time.Now().Add(2*time.Hour).Truncate(time.Second)
	issue(t, f, 1, first)
	here, there := newReloads(prometheus.NewRegistry(), quiet), newReloads(prometheus.NewRegistry(), quiet)
	server, err := here.server(f)
	if err != nil {
		t.Fatal(err)
	}
	client, err := there.client(f, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	serials := func() (ofServer, ofClient int64) {
		t.Helper()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		peers := make(chan int64, 1)
		go func() {
			conn, err := l.Accept()
			if err != nil {
				peers <- -1
				return
			}
			defer conn.Close()
			s := tls.Server(conn, server)
			if err := s.Handshake(); err != nil {
				peers <- -1
				return
			}
			peers <- s.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
		}()
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		secure, info, err := client.Clone().ClientHandshake(context.Background(), "localhost", conn)
		if err != nil {
			t.Fatal(err)
		}
		defer secure.Close()
		return info.(credentials.TLSInfo).State.PeerCertificates[0].SerialNumber.Int64(), <-peers
	}
	want := func(serial int64, until time.Time) {
		t.Helper()
		if s, c := serials(); s != serial || c != serial {
			t.Errorf("the server shows %d and the client %d, want %d", s, c, serial)
		}
		for _, r := range []*reloads{here, there} {
			for _, flag := range []string{"tls-cert", "tls-ca"} {
				if got := sample(t, r.expiry.WithLabelValues(flag)); got != float64(until.Unix()) {
					t.Errorf("%s expires at %v, want %d", flag, got, until.Unix())
				}
			}
		}
	}
	want(1, first)
	issue(t, f, 2, second)
	here.check()
	there.check()
	want(2, second)

	for what, spoil := range map[string]func() error{
		"no certificate":      func() error { return writeFile(f.cert, []byte("hunter2"), 0o644) },
		"key others can read": func() error { return os.Chmod(f.key, 0o644) },
		"certificate is gone": func() error { return os.Remove(f.cert) },
	} {
		failed := sample(t, here.total.WithLabelValues("tls-cert", "failed"))
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		here.check()
		here.check() // the same error is counted once
		there.check()
		want(2, second)
		if got := sample(t, here.total.WithLabelValues("tls-cert", "failed")); got != failed+1 {
			t.Errorf("%s: counted %v times", what, got-failed)
		}
		issue(t, f, 2, second)
		here.check()
		there.check()
	}
}

// A join token and the Fernet keys are read again, regularly and upon SIGHUP. SIGHUP does
// not end the process.
func TestSecretsAreReloaded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "node.token")
	if err := writeFile(file, []byte("first\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newReloads(prometheus.NewRegistry(), quiet)
	token, err := r.token(file)
	if err != nil {
		t.Fatal(err)
	}
	current := func() string {
		m, err := token.GetRequestMetadata(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return m["authorization"]
	}
	if got := current(); got != "Bearer first" {
		t.Errorf("%q", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.run(ctx) }()
	if err := writeFile(file, []byte("second\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); current() != "Bearer second"; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("the new token is not used")
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := writeFile(file, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.check()
	if got := current(); !strings.HasSuffix(got, "second") {
		t.Errorf("an empty file is used: %q", got)
	}
}
