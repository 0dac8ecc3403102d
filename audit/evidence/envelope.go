package evidence

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// An Envelope is a signed document.
// Source: https://github.com/secure-systems-lab/dsse, protocol version 1.0.
type Envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"` // base64 in JSON
	Signatures  []Signature `json:"signatures"`
}

// A Signature is one signature of an Envelope.
type Signature struct {
	KeyID string `json:"keyid"` // the JWK thumbprint
	Sig   []byte `json:"sig"`   // ASN.1 DER, base64 in JSON
}

// Types of payloads. Each document has its own, so that a signature of one is never valid for
// another.
const (
	InTotoType = "application/vnd.in-toto+json"               // a Statement: attestations of sessions
	ExportType = "application/vnd.ai-identity.export+json"    // the statement about an export
	ReportType = "application/vnd.ai-identity.forensics+json" // a forensics report
)

// pae returns the bytes that are signed (DSSE, pre-authentication encoding).
func pae(payloadType string, payload []byte) []byte {
	b := append([]byte("DSSEv1 "), strconv.Itoa(len(payloadType))...)
	b = append(append(b, ' '), payloadType...)
	b = strconv.AppendInt(append(b, ' '), int64(len(payload)), 10)
	return append(append(b, ' '), payload...)
}

// SignEnvelope signs a payload with a P-256 key. A signer whose key changes has the method Now,
// which returns the one that signs now.
func SignEnvelope(ctx context.Context, payloadType string, payload []byte, s Signer) (Envelope, error) {
	if changing, ok := s.(interface {
		Now(context.Context) (Signer, error)
	}); ok {
		var err error
		if s, err = changing.Now(ctx); err != nil {
			return Envelope{}, fmt.Errorf("signing %s: %w", payloadType, err)
		}
	}
	key, err := NewKey(s.Public())
	if err != nil {
		return Envelope{}, err
	}
	if _, ok := key.Public.(*ecdsa.PublicKey); !ok {
		return Envelope{}, errors.New("documents are signed with a P-256 key")
	}
	message := pae(payloadType, payload)
	sig, err := s.Sign(ctx, message)
	if err != nil {
		return Envelope{}, fmt.Errorf("signing %s: %w", payloadType, err)
	}
	if !verify(key.Public, message, sig) {
		return Envelope{}, fmt.Errorf("signing %s: the signer returned an invalid signature", payloadType)
	}
	return Envelope{PayloadType: payloadType, Payload: payload, Signatures: []Signature{{key.ID, sig}}}, nil
}

// maxEnvelope limits what OpenEnvelope reads.
const maxEnvelope = 64 << 20

// OpenEnvelope parses an envelope strictly, and verifies that a P-256 key of the set signed it
// as this type. A signature of a known key that is invalid rejects the envelope.
func (s KeySet) OpenEnvelope(b []byte, payloadType string) (payload []byte, signer Key, err error) {
	if len(b) > maxEnvelope {
		return nil, Key{}, fmt.Errorf("the envelope has %d bytes, and at most %d are allowed", len(b), maxEnvelope)
	}
	var e Envelope
	if err := parse(b, &e); err != nil {
		return nil, Key{}, fmt.Errorf("the envelope is invalid: %w", err)
	}
	return s.Verify(e, payloadType)
}

// parse parses JSON strictly: b has exactly the members that v has, once, in any order and with
// any white space. So no other parser can read another value.
func parse(b []byte, v any) error {
	if err := json.Unmarshal(b, v, json.RejectUnknownMembers(true)); err != nil {
		return err
	}
	again, err := json.Marshal(v)
	if err != nil {
		return err
	}
	got, want := jsontext.Value(bytes.Clone(b)), jsontext.Value(again)
	if err := errors.Join(got.Canonicalize(), want.Canonicalize()); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("a member is missing or null, or its base64 is not canonical")
	}
	return nil
}

// Verify is OpenEnvelope for a parsed envelope.
func (s KeySet) Verify(e Envelope, payloadType string) (payload []byte, signer Key, err error) {
	if e.PayloadType != payloadType {
		return nil, Key{}, fmt.Errorf("the envelope has the type %s, not %s", strconv.Quote(e.PayloadType), payloadType)
	}
	if len(e.Signatures) == 0 || len(e.Signatures) > maxSignatures {
		return nil, Key{}, fmt.Errorf("the envelope has %d signatures; it must have from 1 to %d", len(e.Signatures), maxSignatures)
	}
	for _, sig := range e.Signatures {
		k, ok := s.Find(sig.KeyID)
		if !ok || !s.believes(k) {
			continue
		}
		if _, ok := k.Public.(*ecdsa.PublicKey); !ok {
			return nil, Key{}, errors.New("the envelope is signed with a key that is not P-256")
		}
		if !verify(k.Public, pae(e.PayloadType, e.Payload), sig.Sig) {
			return nil, Key{}, fmt.Errorf("the signature of key %s is wrong", k.ID)
		}
		if signer.ID == "" || slices.Index(s.line(RoleP256), k.ID) > slices.Index(s.line(RoleP256), signer.ID) {
			signer = k // the newest of several
		}
	}
	if signer.ID == "" {
		return nil, Key{}, fmt.Errorf("%w signed the envelope", errUnknownKey)
	}
	return e.Payload, signer, nil
}
