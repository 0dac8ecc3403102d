package audit

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// KeysChanged is the entry of a key change in an org's chain: from this entry's checkpoint on
// the new key must sign. Both keys have signed it.
type KeysChanged struct {
	Time   time.Time `json:"time"`
	Org    string    `json:"org"`
	Writer string    `json:"writer"`

	Actor        Actor  `json:"actor"`
	Role         string `json:"role"`
	Old          string `json:"old_kid"`
	New          string `json:"new_kid"`
	Key          []byte `json:"new_key"` // X.509 SubjectPublicKeyInfo
	Size         int64  `json:"size"`
	OldSignature []byte `json:"old_signature"`
	NewSignature []byte `json:"new_signature"`
}

func (e KeysChanged) Head() Head {
	return Head{Kind: evidence.KindKeysChanged, Time: e.Time, Org: e.Org, Writer: e.Writer}
}

func (e KeysChanged) stamped(org, writer string, now time.Time) Entry {
	e.Org, e.Writer, e.Time = org, writer, or(e.Time, now)
	return e
}

func (e KeysChanged) Encode() []byte {
	o := begin(1024, evidence.KindKeysChanged, e.Time, e.Org, e.Writer, "")
	o.actor(e.Actor)
	o.must("role", e.Role, maxWord)
	o.must("old_kid", e.Old, maxID)
	o.must("new_kid", e.New, maxID)
	o.must("new_key", base64.StdEncoding.EncodeToString(e.Key), maxSignature)
	o.num("size", e.Size)
	o.must("old_signature", base64.StdEncoding.EncodeToString(e.OldSignature), maxSignature)
	o.must("new_signature", base64.StdEncoding.EncodeToString(e.NewSignature), maxSignature)
	return o.end()
}

// maxSignature limits a signature or a public key in an entry, in base64.
const maxSignature = 256

// keyState is what the database says about signing keys, as of a transaction.
type keyState struct {
	keys []SigningKey
	set  evidence.KeySet // with the changes of the directory, and of one org
}

// readKeys reads the keys with the directory's changes. With an org, which tx must have set, it
// reads the changes of the org's trees too.
func readKeys(ctx context.Context, db Querier, logName, org string) (s keyState, err error) {
	if s.keys, err = SigningKeys(ctx, db); err != nil {
		return s, err
	}
	for _, k := range s.keys {
		s.set.Keys = append(s.set.Keys, k.Key)
	}
	s.set.Own = true
	query, args := "SELECT 0::bigint, role, size, old_kid, new_kid, old_signature, new_signature FROM directory_key_changes", []any(nil)
	if org != "" {
		query, args = query+" UNION ALL SELECT incarnation, role, size, old_kid, new_kid, old_signature, new_signature FROM audit_key_changes WHERE org_id = $1", []any{org}
	}
	rows, err := db.Query(ctx, query+" ORDER BY 1, 2, 3", args...)
	if err == nil {
		s.set.Changes, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (c evidence.KeyChange, err error) {
			var incarnation int64
			err = row.Scan(&incarnation, &c.Role, &c.Size, &c.Old, &c.New, &c.OldSignature, &c.NewSignature)
			if c.Origin = evidence.DirectoryOrigin(logName); incarnation > 0 {
				c.Origin = evidence.OrgOrigin(logName, org, incarnation)
			}
			return c, err
		})
	}
	if err != nil {
		return s, fmt.Errorf("reading key changes: %w", err)
	}
	return s, nil
}

// newest returns the key of a role that has no successor.
func (s keyState) newest(role string) (SigningKey, bool) {
	for _, k := range s.keys {
		if k.Role == role && k.RetireAt.IsZero() && k.To == 0 {
			return k, true
		}
	}
	return SigningKey{}, false
}

// choose returns those of the signers that sign a checkpoint. These are the newest keys and
// those that the log's key changes demand. Older ones sign until they retire. A key that is not stored
// waits for its key change. It is an error if a key that must sign is not here.
func (s keyState) choose(signers []evidence.Signer, origin string, size int64, now time.Time) (out []evidence.Signer, err error) {
	if len(s.keys) == 0 {
		return signers, nil
	}
	for _, role := range []string{evidence.RoleP256, evidence.RoleEd25519} {
		need := make(map[string]bool)
		if k, ok := s.newest(role); ok {
			need[k.ID] = true
		}
		if s.set.Changed(origin, role) {
			need[s.set.Signer(origin, role, size)] = true
		}
		for _, signer := range signers {
			k, err := evidence.NewKey(signer.Public())
			if err != nil {
				return nil, err
			}
			i := slices.IndexFunc(s.keys, func(have SigningKey) bool { return have.ID == k.ID })
			if k.Role() == role && i >= 0 && (need[k.ID] || s.keys[i].Current(now)) {
				out = append(out, signer)
				delete(need, k.ID)
			}
		}
		for id := range need {
			return nil, fmt.Errorf("%w: key %s must sign %s with size %d, and it is not here: add it to --signing-key or --witness-key", ErrSigningKey, id, origin, size)
		}
	}
	return out, nil
}

// retire notes the size of the directory from which keys whose time is over do not sign.
func (s keyState) retire(ctx context.Context, tx pgx.Tx, size int64, now time.Time) error {
	for i, k := range s.keys {
		if k.To != 0 || k.RetireAt.IsZero() || now.Before(k.RetireAt) {
			continue
		}
		if _, err := tx.Exec(ctx, "UPDATE signing_keys SET to_size = $2 WHERE kid = $1 AND to_size IS NULL", k.ID, size); err != nil {
			return fmt.Errorf("retiring key %s: %w", k.ID, err)
		}
		s.keys[i].To = size
	}
	return nil
}

// OrgKeys returns the public keys with the key changes of the directory and of the trees of the
// org, which tx has set.
func OrgKeys(ctx context.Context, tx pgx.Tx, logName, org string) (evidence.KeySet, error) {
	s, err := readKeys(ctx, tx, logName, org)
	s.set.Own = false
	return s.set, err
}

// A Rotation replaces a signing key.
type Rotation struct {
	Pool     Pool
	LogName  string
	Actor    Actor
	Old, New evidence.Signer
	Overlap  time.Duration // how long the old key signs beside the new one
	Now      time.Time
}

// RotationResult has what Rotate did.
type RotationResult struct {
	Old, New  string // key ids
	Directory int64  // the size of the directory from which the new key signs
	RetireAt  time.Time
	Orgs      int // how many orgs have the key change now
}

// Rotate replaces a signing key: first in the directory's log, then in the chain of each org.
// Each of them has a statement that both keys have signed. It may be run again after a failure.
// Control planes need both keys before it.
func (c *Chain) Rotate(ctx context.Context, r Rotation) (done RotationResult, err error) {
	old, err := evidence.NewKey(r.Old.Public())
	if err != nil {
		return done, err
	}
	next, err := evidence.NewKey(r.New.Public())
	if err != nil {
		return done, err
	}
	switch {
	case old.ID == next.ID:
		return done, errors.New("the old and the new key are the same")
	case old.Role() != next.Role():
		return done, fmt.Errorf("the old key is %s and the new one is %s: they need the same role", old.Role(), next.Role())
	}
	done.Old, done.New = old.ID, next.ID
	if err := r.directory(ctx, old, next, &done); err != nil {
		return done, fmt.Errorf("the directory: %w", err)
	}
	rows, err := r.Pool.Query(ctx, "SELECT org_id FROM aid_directory() WHERE head > 0 ORDER BY org_id")
	if err != nil {
		return done, fmt.Errorf("listing organizations: %w", err)
	}
	orgs, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return done, fmt.Errorf("listing organizations: %w", err)
	}
	for _, org := range orgs {
		var changed bool
		err := c.c.DB.InOrg(ctx, org, func(tx pgx.Tx) (err error) {
			changed, err = r.org(ctx, tx, c, org, next)
			return err
		})
		if err != nil {
			return done, fmt.Errorf("%s: %w", org, err)
		}
		if changed {
			done.Orgs++
		}
	}
	return done, nil
}

// directory replaces the key in the directory's log, unless that is done.
func (r Rotation) directory(ctx context.Context, old, next evidence.Key, done *RotationResult) error {
	tx, err := r.Pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // after a commit it does nothing
	// The notary that signs at the moment is waited for.
	if _, err := tx.Exec(ctx, "SELECT 1 FROM directory_tree FOR UPDATE"); err != nil {
		return err
	}
	d, err := lockDirectory(ctx, tx)
	if err != nil {
		return err
	}
	s, err := readKeys(ctx, tx, r.LogName, "")
	if err != nil {
		return err
	}
	for _, c := range s.set.Changes {
		if c.Old == old.ID && c.New == next.ID {
			done.Directory = c.Size
			for _, k := range s.keys {
				if k.ID == old.ID {
					done.RetireAt = k.RetireAt
				}
			}
			return nil
		}
	}
	if k, ok := s.newest(next.Role()); !ok || k.ID != old.ID {
		return fmt.Errorf("%w: key %s is not the one that signs now, which is %s", ErrSigningKey, old.ID, k.ID)
	}
	if _, ok := s.set.Find(next.ID); ok {
		return fmt.Errorf("%w: key %s has signed before, and a key never comes back", ErrSigningKey, next.ID)
	}
	origin := evidence.DirectoryOrigin(r.LogName)
	change, err := evidence.SignKeyChange(ctx, origin, d.tree.size+1, r.Old, r.New)
	if err != nil {
		return err
	}
	if err := d.addLeaf(ctx, tx, change.Leaf()); err != nil {
		return err
	}
	if err := d.save(ctx, tx); err != nil {
		return err
	}
	spki, err := x509.MarshalPKIXPublicKey(next.Public)
	if err != nil {
		return err
	}
	retire := r.Now.Add(r.Overlap).UTC().Truncate(time.Microsecond)
	var b pgx.Batch
	b.Queue("UPDATE signing_keys SET retire_at = $2 WHERE kid = $1", old.ID, retire)
	b.Queue("INSERT INTO signing_keys (kid, role, spki, from_size) VALUES ($1, $2, $3, $4)", next.ID, next.Role(), spki, change.Size)
	b.Queue("INSERT INTO directory_key_changes (role, size, old_kid, new_kid, old_signature, new_signature) VALUES ($1, $2, $3, $4, $5, $6)",
		change.Role, change.Size, change.Old, change.New, change.OldSignature, change.NewSignature)
	if err := tx.SendBatch(ctx, &b).Close(); err != nil {
		return err
	}
	done.Directory, done.RetireAt = change.Size, retire
	return tx.Commit(ctx)
}

// org replaces the key in the org's trees, which tx has set. The newest incarnation gets an
// entry. Earlier ones are complete, so their change begins behind everything that was signed for them.
func (r Rotation) org(ctx context.Context, tx pgx.Tx, c *Chain, org string, next evidence.Key) (changed bool, err error) {
	var newest int64
	if err := tx.QueryRow(ctx, "SELECT incarnation FROM audit_heads WHERE org_id = $1", org).Scan(&newest); err != nil {
		return false, fmt.Errorf("reading the audit log's head: %w", err)
	}
	// After a reopening the newest incarnation has no tree until a notary looks at it.
	if _, err := makeTree(ctx, tx, org, newest); err != nil {
		return false, err
	}
	// With the lock of each tree no checkpoint is being made with the keys before.
	rows, err := tx.Query(ctx, "SELECT incarnation, first_seq, size FROM audit_trees WHERE org_id = $1 ORDER BY incarnation FOR UPDATE", org)
	if err != nil {
		return false, err
	}
	type tree struct{ incarnation, first, size int64 }
	trees := make(map[int64]tree)
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (t tree, err error) {
		return t, row.Scan(&t.incarnation, &t.first, &t.size)
	})
	if err != nil {
		return false, err
	}
	for _, t := range all {
		trees[t.incarnation] = t
	}
	s, err := readKeys(ctx, tx, r.LogName, org)
	if err != nil {
		return false, err
	}
	for n := int64(1); n <= newest; n++ {
		origin := evidence.OrgOrigin(r.LogName, org, n)
		if slices.ContainsFunc(s.set.Changes, func(c evidence.KeyChange) bool { return c.Origin == origin && c.New == next.ID }) {
			continue
		}
		oldest, lost, err := oldestNote(ctx, tx, org, n, origin)
		if err != nil {
			return false, err
		}
		if only := (evidence.KeySet{Keys: []evidence.Key{{ID: next.ID, Public: next.Public}}}); oldest == nil || only.Signed(oldest, origin, next.ID) {
			continue // every checkpoint of the tree is signed with the new key
		}
		if n < newest {
			after := max(trees[n].size, lost)
			for _, c := range s.set.Changes {
				if c.Origin == origin && c.Role == next.Role() {
					after = max(after, c.Size) // an ended tree may have one already
				}
			}
			_, err = r.change(ctx, tx, org, n, after+1)
		} else {
			err = r.enter(ctx, tx, c, org, next, n, trees[n].first)
		}
		if err != nil {
			return false, err
		}
		changed = true
	}
	return changed, nil
}

// oldestNote returns the oldest signed checkpoint of a tree that the database knows, or nil. A
// database that was restored may lack all of the tree's own. lost is the size of the newest
// checkpoint that was accepted as lost, or 0.
func oldestNote(ctx context.Context, tx pgx.Tx, org string, incarnation int64, origin string) (note []byte, lost int64, err error) {
	err = tx.QueryRow(ctx, "SELECT size, note FROM audit_reopened WHERE origin = $1 ORDER BY size DESC LIMIT 1", origin).Scan(&lost, &note)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, 0, fmt.Errorf("reading what was lost: %w", err)
	}
	first, err := CheckpointAt(ctx, tx, org, incarnation, 0)
	switch {
	case err == nil:
		note = first.Note
	case !errors.Is(err, ErrNoCheckpoint):
		return nil, 0, err
	}
	return note, lost, nil
}

// change signs the key change of a tree, and stores it.
func (r Rotation) change(ctx context.Context, tx pgx.Tx, org string, incarnation, size int64) (evidence.KeyChange, error) {
	change, err := evidence.SignKeyChange(ctx, evidence.OrgOrigin(r.LogName, org, incarnation), size, r.Old, r.New)
	if err != nil {
		return change, err
	}
	return change, storeChange(ctx, tx, org, incarnation, change)
}

// storeChange stores a key change of a tree of the org, which tx has set.
func storeChange(ctx context.Context, tx pgx.Tx, org string, incarnation int64, c evidence.KeyChange) error {
	_, err := tx.Exec(ctx, `INSERT INTO audit_key_changes (org_id, incarnation, role, size, old_kid, new_kid, old_signature, new_signature)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`, org, incarnation, c.Role, c.Size, c.Old, c.New, c.OldSignature, c.NewSignature)
	if err != nil {
		return fmt.Errorf("storing a key change: %w", err)
	}
	return nil
}

// enter signs the key change of the newest tree, and appends its entry.
func (r Rotation) enter(ctx context.Context, tx pgx.Tx, c *Chain, org string, next evidence.Key, incarnation, first int64) error {
	if err := lockChain(ctx, tx, org); err != nil {
		return err
	}
	var head, now int64
	if err := tx.QueryRow(ctx, "SELECT seq, incarnation FROM audit_heads WHERE org_id = $1", org).Scan(&head, &now); err != nil {
		return err
	}
	if now != incarnation {
		return errors.New("the chain was reopened meanwhile: run the rotation again")
	}
	change, err := r.change(ctx, tx, org, incarnation, head+1-first+1)
	if err != nil {
		return err
	}
	spki, err := x509.MarshalPKIXPublicKey(next.Public)
	if err != nil {
		return err
	}
	at, err := c.own(ctx, tx, org, []Entry{KeysChanged{Actor: r.Actor, Role: change.Role, Old: change.Old, New: change.New, Key: spki, Size: change.Size,
		OldSignature: change.OldSignature, NewSignature: change.NewSignature}})
	if err != nil {
		return err
	}
	if at.seq != head+1 {
		return fmt.Errorf("the entry of the key change has the number %d, and it should have %d", at.seq, head+1)
	}
	return nil
}

// A DocumentSigner signs documents with the P-256 key that has no successor. The key can change
// while the process runs.
type DocumentSigner struct {
	db      Querier
	logName string
	signers []evidence.Signer
	evidence.Signer
}

// NewDocumentSigner returns a signer that has all of the process's keys. It is nil without keys.
func NewDocumentSigner(db Querier, logName string, signers []evidence.Signer) evidence.Signer {
	for _, s := range signers {
		if k, err := evidence.NewKey(s.Public()); err == nil && k.Role() == evidence.RoleP256 {
			return &DocumentSigner{db: db, logName: logName, signers: signers, Signer: s}
		}
	}
	return nil
}

// Now returns the signer of the key that signs now. Without that key here, nothing is signed: a
// document of a key that was replaced is not valid.
func (d *DocumentSigner) Now(ctx context.Context) (evidence.Signer, error) {
	s, err := readKeys(ctx, d.db, d.logName, "")
	if err != nil {
		return nil, err
	}
	newest, ok := s.newest(evidence.RoleP256)
	for _, signer := range d.signers {
		if k, err := evidence.NewKey(signer.Public()); err == nil && ok && k.ID == newest.ID {
			return signer, nil
		}
	}
	return nil, fmt.Errorf("%w: key %s signs documents, and it is not here: add it to --signing-key", ErrSigningKey, newest.ID)
}
