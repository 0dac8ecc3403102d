package audit

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// PutBackKeys stores keys and key changes that a restored database lacks, from the org's JWKS.
// That has every key and change of the database, and each new key has the signature of the key
// before it. The JWKS is valid: ParseJWKS checks it. It needs the owner's role, and returns the ids of new keys.
func PutBackKeys(ctx context.Context, db DB, logName, org string, jwks evidence.KeySet) (added []string, err error) {
	err = db.InOrg(ctx, org, func(tx pgx.Tx) (err error) {
		added, err = putBackKeys(ctx, tx, logName, org, jwks)
		return err
	})
	return added, err
}

func putBackKeys(ctx context.Context, tx pgx.Tx, logName, org string, jwks evidence.KeySet) (added []string, err error) {
	if err := jwks.Check(); err != nil {
		return nil, err
	}
	// Two commands at once add one after the other.
	if _, err := tx.Exec(ctx, "LOCK TABLE signing_keys IN SHARE ROW EXCLUSIVE MODE"); err != nil {
		return nil, err
	}
	s, err := readKeys(ctx, tx, logName, org)
	if err != nil {
		return nil, err
	}
	if len(s.keys) == 0 {
		return nil, errors.New("the database has no signing key, so nothing says that the keys of the JWKS are its own: restore a newer backup")
	}
	for _, k := range s.keys {
		if _, ok := jwks.Find(k.ID); !ok {
			return nil, fmt.Errorf("the JWKS lacks key %s of the database: it is of another installation, or older", k.ID)
		}
	}
	same := func(c evidence.KeyChange) func(evidence.KeyChange) bool {
		return func(d evidence.KeyChange) bool {
			return c.Origin == d.Origin && c.Role == d.Role && c.Old == d.Old && c.New == d.New && c.Size == d.Size
		}
	}
	for _, c := range s.set.Changes {
		if !slices.ContainsFunc(jwks.Changes, same(c)) {
			return nil, fmt.Errorf("the JWKS lacks a key change of %s with size %d that the database has: it is older, or has another history", c.Origin, c.Size)
		}
	}
	changes := slices.Clone(jwks.Changes)
	slices.SortStableFunc(changes, func(a, b evidence.KeyChange) int { return int(min(1, max(-1, a.Size-b.Size))) })
	directory, own := evidence.DirectoryOrigin(logName), strings.TrimSuffix(evidence.OrgOrigin(logName, org, 1), "1")
	for _, c := range changes {
		if c.Origin != directory && !strings.HasPrefix(c.Origin, own) {
			return nil, fmt.Errorf("the JWKS has a key change of %s, which is not a log of %s: get that organization's own", c.Origin, org)
		}
		if c.Origin != directory || slices.ContainsFunc(s.set.Changes, same(c)) {
			continue
		}
		newest, ok := s.newest(c.Role)
		if !ok || newest.ID != c.Old {
			return nil, fmt.Errorf("the JWKS replaces key %s, and the database's newest key is %s: they have another history", c.Old, newest.ID)
		}
		next, _ := jwks.Find(c.New)
		if err := addKey(ctx, tx, c, next); err != nil {
			return nil, err
		}
		added = append(added, c.New)
		if s, err = readKeys(ctx, tx, logName, org); err != nil {
			return nil, err
		}
	}
	for _, c := range changes {
		if c.Origin == directory || slices.ContainsFunc(s.set.Changes, same(c)) {
			continue
		}
		incarnation, err := strconv.ParseInt(strings.TrimPrefix(c.Origin, own), 10, 64)
		if err != nil || evidence.OrgOrigin(logName, org, incarnation) != c.Origin {
			return nil, fmt.Errorf("the JWKS has a key change of %s, which is not a log of %s", c.Origin, org)
		}
		if err := storeChange(ctx, tx, org, incarnation, c); err != nil {
			return nil, err
		}
	}
	return added, nil
}

// addKey stores a key with its change in the directory. The key before it signs no more. The
// next tick notes where it has ended: a JWKS says that without a signature.
func addKey(ctx context.Context, tx pgx.Tx, c evidence.KeyChange, next evidence.Key) error {
	spki, err := x509.MarshalPKIXPublicKey(next.Public)
	if err != nil {
		return err
	}
	var b pgx.Batch
	b.Queue("UPDATE signing_keys SET retire_at = now() WHERE kid = $1 AND retire_at IS NULL", c.Old)
	b.Queue("INSERT INTO signing_keys (kid, role, spki, from_size, added_at) VALUES ($1, $2, $3, $4, clock_timestamp())", next.ID, c.Role, spki, c.Size)
	b.Queue("INSERT INTO directory_key_changes (role, size, old_kid, new_kid, old_signature, new_signature) VALUES ($1, $2, $3, $4, $5, $6)",
		c.Role, c.Size, c.Old, c.New, c.OldSignature, c.NewSignature)
	if err := tx.SendBatch(ctx, &b).Close(); err != nil {
		return fmt.Errorf("storing key %s: %w", next.ID, err)
	}
	return nil
}

// UnknownSigners returns the ids of the keys that signed a note as this origin and are not in
// the set. Each has 8 hex digits, as `aid keys signing vkey` prints them.
func UnknownSigners(note []byte, origin string, keys evidence.KeySet) (ids []string) {
	known := make(map[string]bool)
	for _, k := range keys.Keys {
		if vkey, err := evidence.VerifierKey(origin, k.Public); err == nil {
			id, _, _ := strings.Cut(strings.TrimPrefix(vkey, origin+"+"), "+")
			known[id] = true
		}
	}
	_, signatures, _ := strings.Cut(string(note), "\n\n")
	for line := range strings.Lines(signatures) {
		sig, ours := strings.CutPrefix(strings.TrimSpace(line), "\u2014 "+origin+" ")
		raw, err := base64.StdEncoding.DecodeString(sig)
		if !ours || err != nil || len(raw) < 5 {
			continue
		}
		if id := hex.EncodeToString(raw[:4]); !known[id] && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}
