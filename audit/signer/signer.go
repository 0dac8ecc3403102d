// Package signer opens the keys that sign evidence: checkpoints and documents.
//
// A key has a URI. `file:PATH` is a private key on this machine. Keys in a KMS have the URIs of
// sigstore: awskms, gcpkms, azurekms and hashivault. The control plane opens its keys at the start
// and gives them to package audit, which needs only their public halves and their signatures. No
// function here returns or prints a private key.
package signer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// A Kind is a kind of key.
type Kind string

const (
	P256    Kind = "p256"    // signs checkpoints and documents
	Ed25519 Kind = "ed25519" // signs checkpoints, in the form that witnesses understand
)

// KindOf returns the kind of a public key. It is empty for a key that signs no evidence.
func KindOf(public crypto.PublicKey) Kind {
	switch p := public.(type) {
	case ed25519.PublicKey:
		return Ed25519
	case *ecdsa.PublicKey:
		if p.Curve == elliptic.P256() {
			return P256
		}
	}
	return ""
}

// Open opens the key of a URI. readSecret reads a private file. It must reject a file that
// another user can read or change. The error wraps ErrAway if a KMS did not return its key.
func Open(ctx context.Context, uri string, readSecret func(path string) ([]byte, error)) (evidence.Signer, error) {
	scheme, path, ok := strings.Cut(uri, ":")
	switch {
	case !ok || path == "":
		return nil, errors.New("a key has a URI such as file:/etc/aid/signing.pem")
	case Remote(uri):
		return openRemote(ctx, uri)
	case scheme != "file":
		return nil, fmt.Errorf("unknown scheme %q; valid schemes: file, awskms, gcpkms, azurekms, hashivault", scheme)
	}
	path = strings.TrimPrefix(path, "//")
	text, err := readSecret(path)
	if err != nil {
		return nil, err
	}
	key, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// parse reads a private key in PKCS#8 PEM. No error quotes the content.
func parse(text []byte) (local, error) {
	block, rest := pem.Decode(text)
	switch {
	case block == nil || block.Type != "PRIVATE KEY":
		return local{}, errors.New("the file has no PEM block PRIVATE KEY (PKCS#8): create one with `aid keys signing create`")
	case len(bytes.TrimSpace(rest)) > 0:
		return local{}, errors.New("the file has more than one PEM block: use one file for each key")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return local{}, errors.New("the key in the file is damaged")
	}
	key, ok := parsed.(crypto.Signer)
	if !ok || KindOf(key.Public()) == "" {
		return local{}, errors.New("the key is neither P-256 nor Ed25519")
	}
	return local{key}, nil
}

// local is a key in memory.
type local struct{ key crypto.Signer }

func (l local) Public() crypto.PublicKey { return l.key.Public() }

func (l local) Sign(_ context.Context, message []byte) ([]byte, error) {
	if KindOf(l.key.Public()) == Ed25519 {
		return l.key.Sign(rand.Reader, message, crypto.Hash(0))
	}
	sum := sha256.Sum256(message)
	return l.key.Sign(rand.Reader, sum[:], crypto.SHA256)
}

// Format prints only the kind.
func (l local) Format(s fmt.State, _ rune) { fmt.Fprintf(s, "%s key", KindOf(l.key.Public())) }

// Create makes a key of this kind, and writes it to a new file that only its owner can read.
// It returns the public key. An existing file is an error that wraps fs.ErrExist.
func Create(path string, kind Kind) (crypto.PublicKey, error) {
	var key crypto.Signer
	var err error
	switch kind {
	case P256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case Ed25519:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		return nil, fmt.Errorf("unknown kind of key %q; valid kinds: %s, %s", kind, P256, Ed25519)
	}
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	// The name exists only once the key is complete and durable.
	if _, err := os.Lstat(path); err == nil {
		return nil, fmt.Errorf("%s: %w", path, fs.ErrExist)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it is linked, or of no use
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.Link(f.Name(), path); err != nil {
		return nil, err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	return key.Public(), errors.Join(dir.Sync(), dir.Close())
}
