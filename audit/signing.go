package audit

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ai-identity/ai-identity/audit/evidence"
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
		if key.ID != kid || key.Role() != k.Role {
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

// PublicKeys returns the keys that have ever signed with the directory's key changes, for the
// JWKS.
func PublicKeys(ctx context.Context, db Querier, logName string) (evidence.KeySet, error) {
	s, err := readKeys(ctx, db, logName, "")
	s.set.Own = false
	return s.set, err
}

// An Execer reads and changes rows outside of any organization.
type Execer interface {
	Querier
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// UseSigningKeys checks that the process has the keys that sign for this installation. The first
// key of a role is stored. From then on the newest stored key of each role must be here, or the
// error wraps ErrSigningKey. A key that is not stored may be here beside it, for a rotation.
func UseSigningKeys(ctx context.Context, db Execer, now time.Time, signers ...evidence.Signer) error {
	have := make(map[string][]evidence.Key)
	for _, s := range signers {
		k, err := evidence.NewKey(s.Public())
		if err != nil {
			return err
		}
		have[k.Role()] = append(have[k.Role()], k)
	}
	for role, keys := range have {
		stored, err := SigningKeys(ctx, db)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(stored, func(k SigningKey) bool { return k.Role == role }) {
			if len(keys) > 1 {
				return fmt.Errorf("%w: no key with the role %s has signed yet: start with one key, and rotate later", ErrSigningKey, role)
			}
			spki, err := x509.MarshalPKIXPublicKey(keys[0].Public)
			if err != nil {
				return err
			}
			// Of several replicas with different keys, one is first.
			if _, err := db.Exec(ctx, `INSERT INTO signing_keys (kid, role, spki) SELECT $1, $2::text, $3
				WHERE NOT EXISTS (SELECT FROM signing_keys WHERE role = $2::text) ON CONFLICT DO NOTHING`, keys[0].ID, role, spki); err != nil {
				return fmt.Errorf("storing the public key %s: %w", keys[0].ID, err)
			}
			if stored, err = SigningKeys(ctx, db); err != nil {
				return err
			}
		}
		current, ok := keyState{keys: stored}.newest(role)
		if !ok || !slices.ContainsFunc(keys, func(k evidence.Key) bool { return k.ID == current.ID }) {
			return fmt.Errorf("%w: key %s signs, and the key here is %s: use that key. A key is replaced with `aid keys signing rotate`. After a restore see docs/restore.md",
				ErrSigningKey, current.ID, keys[0].ID)
		}
	}
	return nil
}
