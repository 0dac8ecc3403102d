package api

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// JWKS is the set of public keys in responses.
type JWKS struct{ set evidence.KeySet }

// MarshalJSON writes the set in its published form.
func (j JWKS) MarshalJSON() ([]byte, error) { return j.set.JWKS() }

// Schema describes the keys; docs/evidence.md has the meaning of aid_from and aid_to.
func (JWKS) Schema(huma.Registry) *huma.Schema {
	text := func(doc string) *huma.Schema { return &huma.Schema{Type: huma.TypeString, Description: doc} }
	return &huma.Schema{
		Type: huma.TypeObject, Description: "A JSON Web Key Set (RFC 7517).", Required: []string{"keys"},
		Properties: map[string]*huma.Schema{"keys": {
			Type: huma.TypeArray, Items: &huma.Schema{
				Type: huma.TypeObject, Required: []string{"kty", "crv", "x", "kid", "alg", "use", "aid_from"},
				Properties: map[string]*huma.Schema{
					"kty": text("EC or OKP."), "crv": text("P-256 or Ed25519."), "x": text("A coordinate, or the Ed25519 key; base64url."),
					"y": text("The second coordinate of a P-256 key."), "kid": text("The key's thumbprint (RFC 7638)."),
					"alg": text("ES256 or EdDSA."), "use": text("sig."),
					"aid_from": {Type: huma.TypeInteger, Description: "The size of the directory's log from which on the key signs."},
					"aid_to":   {Type: huma.TypeInteger, Description: "The size from which on the key does not sign. Absent: it signs."},
				},
			},
		}, "aid_changes": {
			Type: huma.TypeArray, Items: &huma.Schema{
				Type: huma.TypeObject, Required: []string{"origin", "role", "old", "new", "size", "old_signature", "new_signature"},
				Properties: map[string]*huma.Schema{
					"origin": text("The log in which the key changes."), "role": text("p256 or ed25519."), "old": text("The kid of the key before."), "new": text("The kid of the key that takes its place."),
					"size":          {Type: huma.TypeInteger, Description: "Checkpoints of the log from this size on need the new key."},
					"old_signature": text("The old key's signature of the change; base64."), "new_signature": text("The new key's signature of the change; base64."),
				},
			},
		}},
	}
}

// orgKeys returns the public keys with the key changes of the org's logs.
func orgKeys(ctx context.Context, x *call, _ *struct{}) (*one[JWKS], error) {
	if x.c.OrgKeys == nil {
		return &one[JWKS]{}, nil
	}
	set, err := x.c.OrgKeys(ctx, x.tx, x.org)
	if err != nil {
		return nil, err
	}
	return &one[JWKS]{Body: JWKS{set}}, nil
}

// jwksAge is how long caches may keep the keys, and how long the control plane does.
const jwksAge, jwksKept = 5 * time.Minute, 10 * time.Second

// keptKeys has the keys that were read last, so that a public path costs few queries.
type keptKeys struct {
	mu   sync.Mutex
	set  evidence.KeySet
	read time.Time // zero: never
}

// publicKeys returns the keys. While the database is away it returns those that were read last.
func (s *Server) publicKeys(ctx context.Context) (evidence.KeySet, error) {
	k := &s.keys
	k.mu.Lock()
	defer k.mu.Unlock()
	now := s.c.Now()
	if age := now.Sub(k.read); !k.read.IsZero() && age >= 0 && age < jwksKept {
		return k.set, nil
	}
	set, err := s.c.PublicKeys(ctx)
	switch {
	case err == nil:
		k.set, k.read = set, now
	case k.read.IsZero():
		return evidence.KeySet{}, fmt.Errorf("reading the public keys: %w", err)
	default:
		k.read = now.Add(-jwksKept + time.Second) // tried again in a second
	}
	return k.set, nil
}

// jwks returns the row of the public keys. It is public: everyone may verify.
func jwks(r route) route {
	r.Public = true
	type out struct {
		CacheControl string `header:"Cache-Control" doc:"How long the keys may be kept."`
		Body         JWKS
	}
	r.mount = func(s *Server, r route) {
		op := s.operation(r)
		op.Responses["503"] = &huma.Response{Description: problems[503], Content: op.Responses["500"].Content}
		huma.Register(s.huma, op, func(ctx context.Context, _ *struct{}) (*out, error) {
			set, err := s.publicKeys(ctx)
			if err != nil {
				return nil, s.refused(ctx, err)
			}
			return &out{CacheControl: "public, max-age=" + strconv.Itoa(int(jwksAge/time.Second)), Body: JWKS{set}}, nil
		})
	}
	return r
}
