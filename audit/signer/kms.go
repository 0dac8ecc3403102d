package signer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/sigstore/sigstore/pkg/signature/kms"
	"github.com/sigstore/sigstore/pkg/signature/kms/aws"
	"github.com/sigstore/sigstore/pkg/signature/kms/azure"
	"github.com/sigstore/sigstore/pkg/signature/kms/gcp"
	"github.com/sigstore/sigstore/pkg/signature/kms/hashivault"
	"github.com/sigstore/sigstore/pkg/signature/options"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// ErrAway means that a KMS did not return its public key. It may be away, or reject us.
var ErrAway = errors.New("the KMS did not return the key")

const (
	// kmsDeadline limits one request to a KMS, retries included.
	kmsDeadline = 8 * time.Second
	// kmsAtOnce limits the requests in flight. Some of the libraries do not end at a deadline,
	// so a request keeps its place until it ends.
	kmsAtOnce = 8
)

// valid checks the form of a key's URI, by scheme. Other URIs would start a plugin program.
var valid = map[string]func(uri string) error{
	"awskms": aws.ValidReference, "azurekms": azure.ValidReference, "gcpkms": gcp.ValidReference, "hashivault": hashivault.ValidReference,
}

// Remote reports whether a URI is of a key in a KMS.
func Remote(uri string) bool {
	scheme, _, _ := strings.Cut(uri, ":")
	return valid[scheme] != nil
}

// Later returns the key of a KMS that is away. Its public key is known from before. The KMS is
// asked at the first signature.
func Later(uri string, public crypto.PublicKey) (evidence.Signer, error) {
	scheme, _, _ := strings.Cut(uri, ":")
	check := valid[scheme]
	if check == nil {
		return nil, fmt.Errorf("%s is not the key of a KMS", uri)
	}
	if err := check(uri); err != nil {
		return nil, fmt.Errorf("the URI of the key is not valid: %w", err)
	}
	return &remote{uri: uri, public: public, places: make(chan struct{}, kmsAtOnce)}, nil
}

// openRemote asks the KMS for the public key.
func openRemote(ctx context.Context, uri string) (evidence.Signer, error) {
	s, err := Later(uri, nil)
	if err != nil {
		return nil, err
	}
	r := s.(*remote)
	if _, err := r.open(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// remote is a key in a KMS.
type remote struct {
	uri    string
	places chan struct{}

	mu     sync.Mutex
	public crypto.PublicKey
	client kms.SignerVerifier // nil: not opened yet
}

func (r *remote) Public() crypto.PublicKey {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.public
}

// Format prints only the URI, which has no secret.
func (r *remote) Format(s fmt.State, _ rune) { fmt.Fprintf(s, "key %s", r.uri) }

func (r *remote) Sign(ctx context.Context, message []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, kmsDeadline)
	defer cancel()
	client, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	sig, err := limited(ctx, r.places, func() ([]byte, error) {
		return client.SignMessage(bytes.NewReader(message), options.WithContext(ctx))
	})
	if err != nil {
		return nil, fmt.Errorf("signing with %s: %w", r.uri, err)
	}
	return sig, nil
}

// open returns the client, which the first call makes.
func (r *remote) open(ctx context.Context) (kms.SignerVerifier, error) {
	r.mu.Lock()
	client, known := r.client, r.public
	r.mu.Unlock()
	if client != nil {
		return client, nil
	}
	ctx, cancel := context.WithTimeout(ctx, kmsDeadline)
	defer cancel()
	type opened struct {
		client kms.SignerVerifier
		public crypto.PublicKey
	}
	// The clients live longer than this request.
	lasting := context.WithoutCancel(ctx)
	o, err := limited(ctx, r.places, func() (o opened, err error) {
		if o.client, err = kms.Get(lasting, r.uri, crypto.SHA256); err != nil {
			return o, err
		}
		if o.public, err = o.client.PublicKey(options.WithContext(ctx)); err != nil {
			return o, err
		}
		if _, ok := o.public.(ed25519.PublicKey); ok {
			o.client, err = kms.Get(lasting, r.uri, crypto.Hash(0))
		}
		return o, err
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w %s: %w", ErrAway, r.uri, err)
	case KindOf(o.public) == "":
		return nil, fmt.Errorf("the key %s is neither P-256 nor Ed25519", r.uri)
	}
	if same, ok := known.(interface{ Equal(crypto.PublicKey) bool }); ok && !same.Equal(o.public) {
		return nil, fmt.Errorf("the KMS has another key under %s than the one that signs for this installation", r.uri)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.client, r.public = o.client, o.public
	return o.client, nil
}

// limited runs fn, and waits for it no longer than ctx. A fn that does not end keeps its place.
func limited[T any](ctx context.Context, places chan struct{}, fn func() (T, error)) (out T, err error) {
	select {
	case places <- struct{}{}:
	case <-ctx.Done():
		return out, fmt.Errorf("%d requests to the KMS have not ended: %w", cap(places), ctx.Err())
	}
	type result struct {
		out T
		err error
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-places }()
		out, err := fn()
		done <- result{out, err}
	}()
	select {
	case r := <-done:
		return r.out, r.err
	case <-ctx.Done():
		return out, ctx.Err()
	}
}
