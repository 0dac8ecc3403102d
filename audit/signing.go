package audit

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// The roles of signing keys. Each checkpoint has a signature of each role.
const (
	RoleP256    = "p256"    // the promise; it signs documents too
	RoleEd25519 = "ed25519" // what witnesses understand
)

// ErrSigningKey means that a signing key here is not the installation's.
var ErrSigningKey = errors.New("the signing key is not the installation's")

// A SigningKey is a public key that signs evidence, or has signed.
type SigningKey struct {
	evidence.Key
	Role     string
	RetireAt time.Time // when it stops signing, beside its successor; zero: it has no successor
}

// Current reports whether the key signs at a time.
func (k SigningKey) Current(now time.Time) bool {
	return k.To == 0 && (k.RetireAt.IsZero() || now.Before(k.RetireAt))
}

// SigningKeys returns the keys that have ever signed, the oldest first.
func SigningKeys(ctx context.Context, db Querier) ([]SigningKey, error) {
	rows, err := db.Query(ctx, "SELECT kid, role, spki, from_size, coalesce(to_size, 0), retire_at FROM signing_keys ORDER BY added_at, kid")
	if err != nil {
		return nil, fmt.Errorf("reading signing keys: %w", err)
	}
	keys, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (k SigningKey, err error) {
		var spki []byte
		var kid string
		var retire *time.Time
		if err := row.Scan(&kid, &k.Role, &spki, &k.From, &k.To, &retire); err != nil {
			return k, err
		}
		public, err := x509.ParsePKIXPublicKey(spki)
		if err != nil {
			return k, fmt.Errorf("key %s: %w", kid, err)
		}
		key, err := evidence.NewKey(public)
		if err != nil {
			return k, fmt.Errorf("key %s: %w", kid, err)
		}
		if key.ID != kid || roleOf(key) != k.Role {
			return k, fmt.Errorf("key %s: its row was changed", kid)
		}
		key.From, key.To = k.From, k.To
		k.Key = key
		if retire != nil {
			k.RetireAt = retire.UTC()
		}
		return k, nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading signing keys: %w", err)
	}
	return keys, nil
}

// PublicKeys returns the keys that have ever signed, for the JWKS.
func PublicKeys(ctx context.Context, db Querier) (evidence.KeySet, error) {
	keys, err := SigningKeys(ctx, db)
	if err != nil {
		return evidence.KeySet{}, err
	}
	var s evidence.KeySet
	for _, k := range keys {
		s.Keys = append(s.Keys, k.Key)
	}
	return s, nil
}

func roleOf(k evidence.Key) string {
	if _, ok := k.Public.(*ecdsa.PublicKey); ok {
		return RoleP256
	}
	return RoleEd25519
}

// An Execer reads and changes rows outside of any organization.
type Execer interface {
	Querier
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// UseSigningKeys checks that each key signs for this installation. The first key of a role is
// stored. From then on another key of that role is an error that wraps ErrSigningKey, until it
// becomes the successor by a key change.
func UseSigningKeys(ctx context.Context, db Execer, now time.Time, signers ...evidence.Signer) error {
	for _, s := range signers {
		k, err := evidence.NewKey(s.Public())
		if err != nil {
			return err
		}
		spki, err := x509.MarshalPKIXPublicKey(s.Public())
		if err != nil {
			return err
		}
		// Of several replicas with different keys, one is first.
		if _, err := db.Exec(ctx, `INSERT INTO signing_keys (kid, role, spki) SELECT $1, $2::text, $3
			WHERE NOT EXISTS (SELECT FROM signing_keys WHERE role = $2::text) ON CONFLICT DO NOTHING`, k.ID, roleOf(k), spki); err != nil {
			return fmt.Errorf("storing the public key %s: %w", k.ID, err)
		}
		stored, err := SigningKeys(ctx, db)
		if err != nil {
			return err
		}
		found, current := SigningKey{}, SigningKey{}
		for _, other := range stored {
			if other.ID == k.ID {
				found = other
			}
			if other.Role == roleOf(k) && other.RetireAt.IsZero() {
				current = other
			}
		}
		switch {
		case found.ID == "":
			return fmt.Errorf("%w: key %s signs, and the key here is %s: use that key. This version cannot replace a signing key", ErrSigningKey, current.ID, k.ID)
		case !found.Current(now):
			return fmt.Errorf("%w: key %s is retired, and key %s signs", ErrSigningKey, k.ID, current.ID)
		}
	}
	return nil
}
