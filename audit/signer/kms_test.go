package signer_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/audit/signer"
)

// awsKMS answers DescribeKey, GetPublicKey and Sign as the AWS KMS API Reference describes them:
// a DIGEST is signed as it is. moto 5 hashes it once more (its issue 10202).
func awsKMS(t *testing.T, key *ecdsa.PrivateKey) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			KeyID                                  string `json:"KeyId"`
			Message, MessageType, SigningAlgorithm string
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.Header.Get("Content-Type") != "application/x-amz-json-1.1" {
			t.Errorf("%v %v", err, r.Header)
		}
		if !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ") || in.KeyID != "1234abcd-12ab-34cd-56ef-1234567890ab" {
			w.WriteHeader(400)
			json.NewEncoder(w).Encode(map[string]string{"__type": "NotFoundException", "message": "no key"}) //nolint:errcheck // the client reports it
			return
		}
		const arn = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
		out := map[string]any{"KeyId": arn}
		switch r.Header.Get("X-Amz-Target") {
		case "TrentService.DescribeKey":
			out = map[string]any{"KeyMetadata": map[string]any{
				"KeyId": in.KeyID, "Arn": arn, "KeySpec": "ECC_NIST_P256", "CustomerMasterKeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY", "SigningAlgorithms": []string{"ECDSA_SHA_256"},
			}}
		case "TrentService.GetPublicKey":
			out["PublicKey"], _ = x509.MarshalPKIXPublicKey(key.Public())
			out["KeySpec"], out["KeyUsage"], out["SigningAlgorithms"] = "ECC_NIST_P256", "SIGN_VERIFY", []string{"ECDSA_SHA_256"}
		case "TrentService.Sign":
			digest, err := base64.StdEncoding.DecodeString(in.Message)
			if err != nil || in.MessageType != "DIGEST" || in.SigningAlgorithm != "ECDSA_SHA_256" || len(digest) != sha256.Size {
				t.Errorf("Sign with %+v", in)
			}
			out["Signature"], _ = ecdsa.SignASN1(rand.Reader, key, digest)
			out["SigningAlgorithm"] = in.SigningAlgorithm
		default:
			t.Errorf("request %q", r.Header.Get("X-Amz-Target"))
		}
		json.NewEncoder(w).Encode(out) //nolint:errcheck // the client reports it
	})
}

// transit answers what the Vault API documentation of the transit engine describes: reading a
// key, and signing with it.
func transit(t *testing.T, p256 *ecdsa.PrivateKey, ed ed25519.PrivateKey) http.Handler {
	spki, err := x509.MarshalPKIXPublicKey(p256.Public())
	if err != nil {
		t.Fatal(err)
	}
	data := func(w http.ResponseWriter, v any) {
		json.NewEncoder(w).Encode(map[string]any{"data": v}) //nolint:errcheck // the client reports it
	}
	mux := http.NewServeMux()
	for name, version := range map[string]map[string]any{
		"signing": {"name": "P-256", "public_key": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))},
		"witness": {"name": "ed25519", "public_key": base64.StdEncoding.EncodeToString(ed.Public().(ed25519.PublicKey))},
	} {
		mux.HandleFunc("GET /v1/transit/keys/"+name, func(w http.ResponseWriter, r *http.Request) {
			data(w, map[string]any{"keys": map[string]any{"1": version}, "latest_version": 1, "name": name})
		})
	}
	signed := func(w http.ResponseWriter, r *http.Request, sign func(input []byte, prehashed bool) []byte) {
		var in struct {
			Input     []byte `json:"input"`
			Prehashed bool   `json:"prehashed"`
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		data(w, map[string]any{"signature": "vault:v1:" + base64.StdEncoding.EncodeToString(sign(in.Input, in.Prehashed))})
	}
	mux.HandleFunc("PUT /v1/transit/sign/signing/sha2-256", func(w http.ResponseWriter, r *http.Request) {
		signed(w, r, func(input []byte, prehashed bool) []byte {
			if !prehashed {
				sum := sha256.Sum256(input)
				input = sum[:]
			}
			sig, _ := ecdsa.SignASN1(rand.Reader, p256, input)
			return sig
		})
	})
	mux.HandleFunc("PUT /v1/transit/sign/witness", func(w http.ResponseWriter, r *http.Request) {
		signed(w, r, func(input []byte, _ bool) []byte { return ed25519.Sign(ed, input) })
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Vault-Token") != "vault-test-token" {
			w.WriteHeader(403)
			w.Write([]byte(`{"errors":["permission denied"]}`)) //nolint:errcheck // the client reports it
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// Keys in a KMS sign checkpoints that verify. A KMS that hangs is not waited for beyond the
// deadline, and signs again when it is there.
func TestKMS(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const hangs, fails = 1, 2
	var state atomic.Int32
	release := make(chan struct{})
	moody := func(h http.Handler) *httptest.Server {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch state.Load() {
			case hangs:
				<-release
			case fails:
				w.WriteHeader(400)
				return
			}
			h.ServeHTTP(w, r)
		}))
		t.Cleanup(s.Close)
		return s
	}
	amazon, vault := moody(awsKMS(t, p256)), moody(transit(t, p256, ed))
	t.Cleanup(func() { close(release) })
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "aidtest", "AWS_SECRET_ACCESS_KEY": "aid-test-secret", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
		"AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": amazon.URL, "VAULT_ADDR": vault.URL, "VAULT_TOKEN": "vault-test-token",
	} {
		t.Setenv(name, value)
	}
	const awsKey = "awskms:///1234abcd-12ab-34cd-56ef-1234567890ab"
	check := func(s evidence.Signer, want crypto.PublicKey) {
		t.Helper()
		other, err := signer.Open(t.Context(), "file:x", func(string) ([]byte, error) { return filed(t, s), nil })
		if err != nil {
			t.Fatal(err)
		}
		var set evidence.KeySet
		for _, s := range []evidence.Signer{s, other} {
			k, err := evidence.NewKey(s.Public())
			if err != nil {
				t.Fatal(err)
			}
			set.Keys = append(set.Keys, k)
		}
		note, err := evidence.Sign(t.Context(), evidence.Checkpoint{Origin: "aid/directory", Size: 1, Time: time.Unix(1, 0)}, s, other)
		if err != nil {
			t.Error(err)
		} else if _, err := set.Open(note, "aid/directory"); err != nil {
			t.Error(err)
		}
		if !want.(interface{ Equal(crypto.PublicKey) bool }).Equal(s.Public()) {
			t.Error("another public key")
		}
	}
	for uri, want := range map[string]crypto.PublicKey{awsKey: p256.Public(), "hashivault://signing": p256.Public(), "hashivault://witness": ed.Public()} {
		state.Store(0)
		s, err := signer.Open(t.Context(), uri, os.ReadFile)
		if err != nil {
			t.Fatalf("%s: %v", uri, err)
		}
		check(s, want)
		state.Store(hangs)
		// More requests than have a place: each ends at its deadline.
		for range 10 {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			if _, err := s.Sign(ctx, []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s hangs: %v", uri, err)
			}
			cancel()
		}
		state.Store(fails)
		if _, err := signer.Open(t.Context(), uri, os.ReadFile); !errors.Is(err, signer.ErrAway) {
			t.Errorf("%s fails: %v", uri, err)
		}
		later, err := signer.Later(uri, want)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := later.Sign(t.Context(), []byte("x")); !errors.Is(err, signer.ErrAway) {
			t.Errorf("%s fails: %v", uri, err)
		}
		state.Store(0)
		check(later, want)
		third, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		wrong, err := signer.Later(uri, third.Public())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := wrong.Sign(t.Context(), []byte("x")); err == nil || !strings.Contains(err.Error(), "another key") {
			t.Errorf("%s has another key: %v", uri, err)
		}
	}
	if _, err := signer.Open(t.Context(), "awskms:///1234abcd-12ab-34cd-56ef-000000000000", os.ReadFile); !errors.Is(err, signer.ErrAway) || strings.Contains(err.Error(), "aid-test-secret") {
		t.Error(err)
	}
	for _, uri := range []string{"awskms://", "awskms:///x y", "gcpkms://projects/p", "azurekms://vault", "hashivault://a/b", "hashivault://", "pkcs11:x", "sigstore-kms-x://y"} {
		if _, err := signer.Open(t.Context(), uri, os.ReadFile); err == nil || errors.Is(err, signer.ErrAway) {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

// filed returns a new key of the other kind than s has, as a file.
func filed(t *testing.T, s evidence.Signer) []byte {
	t.Helper()
	kind := signer.P256
	if signer.KindOf(s.Public()) == signer.P256 {
		kind = signer.Ed25519
	}
	path := t.TempDir() + "/key"
	if _, err := signer.Create(path, kind); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
