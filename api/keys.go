package api

import (
	"context"
	"errors"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/provider"
)

// Key is an agent's key in responses, without the secret.
type Key struct {
	ID            string     `json:"id" doc:"The key's id." example:"key_01k0000000abcdefghjkmnpqrs"`
	AgentID       string     `json:"agent_id" doc:"The id of the key's agent." example:"ag_01k0000000abcdefghjkmnpqrs"`
	Name          string     `json:"name" doc:"The key's name." example:"production-key"`
	Hint          string     `json:"hint" doc:"The last four characters of the key, to recognize it." example:"x9Qa"`
	Status        string     `json:"status" enum:"active,expired,revoked" doc:"Only an active key is accepted." example:"active"`
	Scopes        []string   `json:"scopes" nullable:"false" doc:"The operations that the key permits." example:"chat:completions"`
	AllowedModels []string   `json:"allowed_models" nullable:"false" doc:"The models that the key permits, out of the agent's models. Empty: all of them." example:"gpt-4o"`
	RateLimit     int64      `json:"rate_limit" doc:"Requests per minute; 0: the key sets no limit." example:"100"`
	RotatedFrom   *string    `json:"rotated_from" doc:"The id of the key that this one replaces." example:"key_01k0000000abcdefghjkmnpqrt"`
	CreatedAt     time.Time  `json:"created_at" doc:"Time of creation, UTC." example:"2026-01-31T12:00:00Z"`
	ExpiresAt     *time.Time `json:"expires_at" doc:"Time of expiry, UTC; null: the key does not expire." example:"2026-05-01T12:00:00Z"`
	RevokedAt     *time.Time `json:"revoked_at" doc:"Time of revocation, UTC; null: the key is not revoked." example:"2026-03-01T12:00:00Z"`
}

// MadeKey is the only response with a secret key.
type MadeKey struct {
	Key
	Secret string `json:"key" doc:"The key. It is shown only once: keep it in a secret store." example:"aid_sk_…"`
}

// NewKey is the body that creates an agent's key.
type NewKey struct {
	Name          string   `json:"name" minLength:"1" maxLength:"100" pattern:"^([^\\p{C}\\p{Z}]+( [^\\p{C}\\p{Z}]+)*)?$" patternDescription:"a string of visible characters and single spaces" doc:"The key's name." example:"production-key"`
	Scopes        []string `json:"scopes" nullable:"false" minItems:"1" maxItems:"50" maxLength:"64" doc:"The operations that the key permits; \"*\" is all of them." example:"chat:completions,embeddings"`
	AllowedModels []string `json:"allowed_models,omitzero" nullable:"false" maxItems:"200" minLength:"1" maxLength:"256" pattern:"^[!-~]*$" patternDescription:"a model's name or a pattern with * in it" doc:"The models that the key permits, out of the agent's models. Empty: all of them." example:"gpt-4o"`
	RateLimit     int64    `json:"rate_limit,omitzero" minimum:"0" maximum:"1000000000" doc:"Requests per minute. The default 0 means that the key sets no limit." example:"100"`
	ExpiresInDays int64    `json:"expires_in_days,omitzero" minimum:"1" maximum:"3650" doc:"Days until the key expires. Leave it out for a key that does not expire." example:"90"`
}

// TransformSchema adds the valid scopes, which tags cannot express.
func (NewKey) TransformSchema(_ huma.Registry, s *huma.Schema) *huma.Schema {
	s.Properties["scopes"].Items.Enum = []any{"*"}
	for _, scope := range provider.Scopes() {
		s.Properties["scopes"].Items.Enum = append(s.Properties["scopes"].Items.Enum, scope)
	}
	return s
}

// Rotation is the body that rotates a key.
type Rotation struct {
	OverlapSeconds *int64 `json:"overlap_seconds,omitzero" minimum:"0" maximum:"2592000" doc:"How long the old key stays valid. The default is 24 hours; 0 ends it at once." example:"3600"`
	OverlapHours   *int64 `json:"overlap_hours,omitzero" minimum:"0" maximum:"720" doc:"The same in hours. Send one of the two." example:"24"`
	Name           string `json:"name,omitzero" maxLength:"100" pattern:"^([^\\p{C}\\p{Z}]+( [^\\p{C}\\p{Z}]+)*)?$" patternDescription:"a string of visible characters and single spaces" doc:"The name of the new key. The default is the name of the old key." example:"production-key-2"`
	ExpiresInDays  *int64 `json:"expires_in_days,omitzero" minimum:"1" maximum:"3650" doc:"Days until the new key expires. The default is the lifetime of the old key." example:"90"`
}

// TransformSchema adds that two fields exclude each other, which tags cannot express.
func (Rotation) TransformSchema(_ huma.Registry, s *huma.Schema) *huma.Schema {
	s.Not = &huma.Schema{
		Type: huma.TypeObject, Required: []string{"overlap_hours", "overlap_seconds"},
		Properties: map[string]*huma.Schema{"overlap_hours": {}, "overlap_seconds": {}},
	}
	return s
}

func keyShown(now time.Time) func(identity.Key) Key {
	return func(k identity.Key) Key {
		out := Key{
			ID: k.ID, AgentID: k.AgentID, Name: k.Name, Hint: k.Hint, Status: lifeOf(k.ExpiresAt, k.RevokedAt, now), Scopes: strs(k.Scopes),
			AllowedModels: strs(k.AllowedModels), RateLimit: k.RateLimit, CreatedAt: k.CreatedAt.UTC(), ExpiresAt: at(k.ExpiresAt), RevokedAt: at(k.RevokedAt),
		}
		if k.RotatedFrom != "" {
			out.RotatedFrom = &k.RotatedFrom
		}
		return out
	}
}

func lifeOf(expires, revoked, now time.Time) string {
	switch {
	case !revoked.IsZero():
		return "revoked"
	case !expires.IsZero() && !now.Before(expires):
		return "expired"
	}
	return "active"
}

func listKeys(ctx context.Context, x *call, in *struct {
	ByID
	Pages
}) (*paged[Key], error) {
	a, err := x.agent(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	keys, err := identity.Keys(ctx, x.tx, a.ID)
	if err != nil {
		return nil, err
	}
	return pageOf(in.Pages, keys, func(k identity.Key) place { return place{k.Place, k.ID} }, keyShown(x.now)), nil
}

func createKey(ctx context.Context, x *call, in *struct {
	ByID
	Body NewKey
}) (*made[MadeKey], error) {
	a, err := x.agent(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	secret, k, err := x.mintKey(identity.Key{
		AgentID: a.ID, Name: in.Body.Name, Scopes: in.Body.Scopes, AllowedModels: in.Body.AllowedModels, RateLimit: in.Body.RateLimit,
		ExpiresAt: x.expiry(in.Body.ExpiresInDays),
	})
	if err != nil {
		return nil, err
	}
	if err := identity.InsertKey(ctx, x.tx, k); err != nil {
		return nil, err
	}
	return x.madeKey(ctx, "key.created", secret, k)
}

// mintKey returns a new secret, and the key to store for it.
func (x *call) mintKey(k identity.Key) (string, identity.Key, error) {
	secret, hash, err := identity.Mint(identity.AgentKey, x.c.Rand)
	if err != nil {
		return "", k, err
	}
	k.OrgID, k.Hash, k.Hint, k.CreatedAt = x.org, hash, identity.Hint(secret), x.now
	k.ID, err = x.newID(identity.KeyID)
	return secret, k, err
}

func (x *call) madeKey(ctx context.Context, kind, secret string, k identity.Key) (*made[MadeKey], error) {
	shown := keyShown(x.now)(k)
	if err := x.record(ctx, kind, "key", k.ID, k.AgentID, nil, shown); err != nil {
		return nil, err
	}
	return &made[MadeKey]{Location: "/v1/agents/" + k.AgentID + "/keys/" + k.ID, Body: MadeKey{Key: shown, Secret: secret}}, nil
}

type KeyIn struct {
	ByID
	KeyID string `path:"key_id" maxLength:"128" doc:"The key's id."`
}

// keyOf returns the agent's key with the id, or a 404 with the id.
func (x *call) keyOf(ctx context.Context, in KeyIn) (identity.Key, error) {
	a, err := x.agent(ctx, in.ID)
	if err != nil {
		return identity.Key{}, err
	}
	keys, err := identity.Keys(ctx, x.tx, a.ID)
	if err != nil {
		return identity.Key{}, err
	}
	for _, k := range keys {
		if k.ID == in.KeyID {
			return k, nil
		}
	}
	return identity.Key{}, notFound("key", in.KeyID)
}

func getKey(ctx context.Context, x *call, in *KeyIn) (*one[Key], error) {
	k, err := x.keyOf(ctx, *in)
	if err != nil {
		return nil, err
	}
	return &one[Key]{Body: keyShown(x.now)(k)}, nil
}

func revokeKey(ctx context.Context, x *call, in *KeyIn) (*nothing, error) {
	k, err := x.keyOf(ctx, *in)
	if err != nil || !k.RevokedAt.IsZero() {
		return nil, err
	}
	if err := identity.RevokeKey(ctx, x.tx, k.AgentID, k.ID, x.now); err != nil {
		return nil, err
	}
	before := keyShown(x.now)(k)
	k.RevokedAt = x.now
	return nil, x.record(ctx, "key.revoked", "key", k.ID, k.AgentID, before, keyShown(x.now)(k))
}

func rotateKey(ctx context.Context, x *call, in *struct {
	KeyIn
	Body *Rotation
}) (*made[MadeKey], error) {
	rotation := deref(in.Body)
	overlap := 24 * time.Hour
	switch {
	case rotation.OverlapSeconds != nil:
		overlap = time.Duration(*rotation.OverlapSeconds) * time.Second
	case rotation.OverlapHours != nil:
		overlap = time.Duration(*rotation.OverlapHours) * time.Hour
	}
	old, err := x.keyOf(ctx, in.KeyIn)
	if err != nil {
		return nil, err
	}
	if status := lifeOf(old.ExpiresAt, old.RevokedAt, x.now); status != "active" {
		return nil, &problem{Status: 409, Code: "key_" + status, Message: "This key is " + status + " and cannot be rotated.", Fix: "Create a new key."}
	}
	next := old
	next.RotatedFrom, next.RevokedAt = old.ID, time.Time{}
	if rotation.Name != "" {
		next.Name = rotation.Name
	}
	switch {
	case rotation.ExpiresInDays != nil:
		next.ExpiresAt = x.expiry(*rotation.ExpiresInDays)
	case !old.ExpiresAt.IsZero():
		next.ExpiresAt = x.now.Add(old.ExpiresAt.Sub(old.CreatedAt))
	}
	secret, next, err := x.mintKey(next)
	if err != nil {
		return nil, err
	}
	err = identity.RotateKey(ctx, x.tx, old.ID, next, x.now.Add(overlap))
	if errors.Is(err, identity.ErrConflict) {
		return nil, &problem{Status: 409, Code: "changed", Message: "This key was revoked or rotated in the meantime.", Fix: "List the agent's keys to see the current state."}
	}
	if err != nil {
		return nil, err
	}
	before, after := keyShown(x.now)(old), old
	if end := x.now.Add(overlap); after.ExpiresAt.IsZero() || end.Before(after.ExpiresAt) {
		after.ExpiresAt = end
	}
	if err := x.record(ctx, "key.rotated", "key", old.ID, old.AgentID, before, keyShown(x.now)(after)); err != nil {
		return nil, err
	}
	return x.madeKey(ctx, "key.created", secret, next)
}
