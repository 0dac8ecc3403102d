package policy

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// By is who changed a policy.
type By struct {
	Kind string // "org_key"; empty: the change is older than the table of versions
	ID   string
	Role string
}

// A Version is a policy as one change left it. Versions stay when the policy is deleted.
type Version struct {
	PolicyID string
	Version  int64
	Change   string // "created", "updated", "deleted", or "imported": it was there before versions were kept
	Name     string
	Document []byte // of a deleted policy, its last one
	By       By
	At       time.Time
}

// keep stores a version. It is called in the transaction of the change, after the change.
func keep(ctx context.Context, tx pgx.Tx, p Policy, change string, by By) error {
	_, err := tx.Exec(ctx, `INSERT INTO policy_versions (org_id, policy_id, version, change, name, document, actor_kind, actor_id, actor_role, at)
		VALUES (aid_org(), $1, $2, $3, $4, $5, $6, $7, $8, $9)`, p.ID, p.Version, change, p.Name, string(p.Document), by.Kind, by.ID, by.Role, p.UpdatedAt)
	return doing(err, "storing a policy's version")
}

// Versions returns at most limit versions of a policy, newest first, those before a
// version; 0 is the newest. Without any, the org never had the policy: ErrNotFound.
func Versions(ctx context.Context, tx pgx.Tx, id string, before int64, limit int) ([]Version, error) {
	rows, err := tx.Query(ctx, `SELECT policy_id, version, change, name, document, actor_kind, actor_id, actor_role, at FROM policy_versions
		WHERE org_id = aid_org() AND policy_id = $1 AND ($2::bigint = 0 OR version < $2) ORDER BY version DESC LIMIT $3`, id, before, limit)
	if err != nil {
		return nil, doing(err, "listing versions")
	}
	vs, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (v Version, err error) {
		var document string
		err = row.Scan(&v.PolicyID, &v.Version, &v.Change, &v.Name, &document, &v.By.Kind, &v.By.ID, &v.By.Role, &v.At)
		v.Document, v.At = []byte(document), v.At.UTC()
		return v, err
	})
	switch {
	case err != nil:
		return nil, doing(err, "listing versions")
	case len(vs) == 0 && before == 0:
		return nil, ErrNotFound
	}
	return vs, nil
}

// Bounds of SetOf.
const (
	setSlack = 5 * time.Minute // a sidecar's clock may be that much behind the control plane's
	maxSets  = 64              // sets that are compared: a sidecar is at most some changes behind
)

// SetOf returns the set of policies that Bundle.Version names, as a sidecar used it at a
// time. It looks at the sets that held shortly before, newest first. If none of them has
// the version: ErrNotFound.
func SetOf(ctx context.Context, tx pgx.Tx, org, version string, at time.Time) ([]Policy, error) {
	rows, err := tx.Query(ctx, `SELECT DISTINCT place FROM policy_versions WHERE org_id = aid_org() AND at <= $1 ORDER BY place DESC LIMIT $2`, at.Add(setSlack), maxSets)
	if err != nil {
		return nil, doing(err, "finding a set of policies")
	}
	places, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, doing(err, "finding a set of policies")
	}
	for _, place := range append(places, -1) { // at -1 there was no policy
		ps, err := setAt(ctx, tx, org, place)
		if err != nil {
			return nil, err
		}
		if versionOf(sorted(ps)) == version {
			return ps, nil
		}
	}
	return nil, fmt.Errorf("the set %s of %s: %w", version, at.UTC().Format(time.RFC3339), ErrNotFound)
}

// setAt is the set of policies that held at a place.
func setAt(ctx context.Context, tx pgx.Tx, org string, place int64) ([]Policy, error) {
	rows, err := tx.Query(ctx, `SELECT policy_id, version, name, document FROM (
			SELECT DISTINCT ON (policy_id) policy_id, version, name, document, change FROM policy_versions
			WHERE org_id = aid_org() AND place <= $1 ORDER BY policy_id, version DESC) latest
		WHERE change <> 'deleted'`, place)
	if err != nil {
		return nil, doing(err, "reading a set of policies")
	}
	ps, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Policy, error) {
		p := Policy{OrgID: org}
		var document string
		err := row.Scan(&p.ID, &p.Version, &p.Name, &document)
		p.Document = []byte(document)
		return p, err
	})
	return ps, doing(err, "reading a set of policies")
}
