package signer_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/audit/signer"
)

// A key that Create made signs, has mode 0600, is never replaced, and is never printed.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	for _, kind := range []signer.Kind{signer.P256, signer.Ed25519} {
		path := filepath.Join(dir, string(kind)+".pem")
		public, err := signer.Create(path, kind)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v %v", info.Mode(), err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := signer.Create(path, kind); !errors.Is(err, fs.ErrExist) {
			t.Errorf("a key was replaced: %v", err)
		}
		for _, uri := range []string{"file:" + path, "file://" + path} {
			s, err := signer.Open(t.Context(), uri, os.ReadFile)
			if err != nil {
				t.Fatal(err)
			}
			message := []byte("four lines")
			sig, err := s.Sign(t.Context(), message)
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(message)
			switch p := s.Public().(type) {
			case ed25519.PublicKey:
				if kind != signer.Ed25519 || !p.Equal(public) || !ed25519.Verify(p, message, sig) {
					t.Errorf("%s: %v", kind, p)
				}
			case *ecdsa.PublicKey:
				if kind != signer.P256 || !p.Equal(public) || !ecdsa.VerifyASN1(p, sum[:], sig) {
					t.Errorf("%s: %v", kind, p)
				}
			}
			block, _ := pem.Decode(text)
			for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%s", "%q", "%d"} {
				out := fmt.Sprintf(verb, s)
				if out != string(kind)+" key" || strings.Contains(out, fmt.Sprintf("%x", block.Bytes[len(block.Bytes)-8:])) {
					t.Errorf("%s prints %q", verb, out)
				}
			}
		}
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 2 {
		t.Errorf("%v %v", files, err)
	}
}

func TestOpenRejects(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8 := func(key any) string {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := pkcs8(p256)
	for _, c := range []struct{ uri, content, want string }{
		{"", "", "URI such as"},
		{"signing.pem", "", "URI such as"},
		{"file:", "", "URI such as"},
		{"http://h/k", "", `unknown scheme "http"`},
		{"file:k", "", "no PEM block"},
		{"file:k", "secretsecret", "no PEM block"},
		{"file:k", strings.ReplaceAll(good, "PRIVATE", "PUBLIC"), "no PEM block"},
		{"file:k", good + good, "more than one"},
		{"file:k", good + "more", "more than one"},
		{"file:k", strings.Replace(good, good[60:70], "secretsecr", 1), "damaged"},
		{"file:k", pkcs8(p384), "neither"},
		{"file:k", pkcs8(rsaKey), "neither"},
	} {
		_, err := signer.Open(t.Context(), c.uri, func(string) ([]byte, error) { return []byte(c.content), nil })
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secretsecr") {
			t.Errorf("%q: %v", c.uri, err)
		}
	}
	refused := errors.New("others can read it")
	if _, err := signer.Open(t.Context(), "file:k", func(string) ([]byte, error) { return nil, refused }); !errors.Is(err, refused) {
		t.Error(err)
	}
	if _, err := signer.Create(filepath.Join(t.TempDir(), "k"), "rsa"); err == nil || !strings.Contains(err.Error(), "valid kinds") {
		t.Error(err)
	}
}
