package policy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Policies are in the table policies. Each query runs in a transaction with the org set,
// and reads only that org's rows. After an error other than ErrNotFound and ErrConflict,
// Postgres rejects every other statement of the transaction.

var (
	// ErrNotFound means that the org has no such policy.
	ErrNotFound = errors.New("no such policy")
	// ErrConflict means that the policy has changed since it was read.
	ErrConflict = errors.New("the policy was changed in the meantime")
	// ErrNameTaken means that another policy of the org has the name.
	ErrNameTaken = errors.New("another policy has this name")
)

const columns = `id, org_id, name, version, document, created_at, updated_at, place`

func scan(row pgx.CollectableRow) (p Policy, err error) {
	var document string
	err = row.Scan(&p.ID, &p.OrgID, &p.Name, &p.Version, &document, &p.CreatedAt, &p.UpdatedAt, &p.Place)
	p.Document, p.CreatedAt, p.UpdatedAt = []byte(document), p.CreatedAt.UTC(), p.UpdatedAt.UTC()
	return p, err
}

func doing(err error, what string) error {
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pgx.ErrNoRows):
		return ErrNotFound
	case errors.As(err, &pg) && pg.Code == "23505" && pg.ConstraintName == "policies_org_id_name_key":
		return ErrNameTaken
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Insert stores a new policy. Its document must have passed Check. If another policy has
// the name, the error is ErrNameTaken.
func Insert(ctx context.Context, tx pgx.Tx, p Policy, by By) error {
	_, err := tx.Exec(ctx, `INSERT INTO policies (id, org_id, name, version, document, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		p.ID, p.OrgID, p.Name, p.Version, string(p.Document), p.CreatedAt, p.UpdatedAt)
	if err != nil {
		return doing(err, "storing a policy")
	}
	return keep(ctx, tx, p, "created", by)
}

// ByID returns a policy, or ErrNotFound.
func ByID(ctx context.Context, tx pgx.Tx, id string) (Policy, error) {
	rows, err := tx.Query(ctx, `SELECT `+columns+` FROM policies WHERE org_id = aid_org() AND id = $1`, id)
	if err != nil {
		return Policy{}, doing(err, "reading a policy")
	}
	p, err := pgx.CollectExactlyOneRow(rows, scan)
	return p, doing(err, "reading a policy")
}

// List returns at most limit policies after the place and the id, in the order of their
// places. 0 and "" are before the first.
func List(ctx context.Context, tx pgx.Tx, place int64, id string, limit int) ([]Policy, error) {
	rows, err := tx.Query(ctx, `SELECT `+columns+` FROM policies WHERE org_id = aid_org() AND (place, id) > ($1, $2) ORDER BY place, id LIMIT $3`, place, id, limit)
	if err != nil {
		return nil, doing(err, "listing policies")
	}
	ps, err := pgx.CollectRows(rows, scan)
	return ps, doing(err, "listing policies")
}

// All returns every policy of the org.
func All(ctx context.Context, tx pgx.Tx) ([]Policy, error) {
	return List(ctx, tx, 0, "", MaxPolicies+1)
}

// Update replaces name and document if the stored version is still p.Version, and returns
// the new policy. Otherwise the error is ErrConflict or ErrNotFound.
func Update(ctx context.Context, tx pgx.Tx, p Policy, by By) (Policy, error) {
	rows, err := tx.Query(ctx, `UPDATE policies SET name = $3, document = $4, version = version + 1, updated_at = $5
		WHERE org_id = aid_org() AND id = $1 AND version = $2 RETURNING `+columns, p.ID, p.Version, p.Name, string(p.Document), p.UpdatedAt)
	if err != nil {
		return Policy{}, doing(err, "changing a policy")
	}
	next, err := pgx.CollectExactlyOneRow(rows, scan)
	if errors.Is(err, pgx.ErrNoRows) {
		if _, err := ByID(ctx, tx, p.ID); err != nil {
			return Policy{}, err
		}
		return Policy{}, ErrConflict
	}
	if err != nil {
		return next, doing(err, "changing a policy")
	}
	return next, keep(ctx, tx, next, "updated", by)
}

// Delete removes a policy at a time, or returns ErrNotFound. Its versions stay, and its
// deletion is one more.
func Delete(ctx context.Context, tx pgx.Tx, id string, at time.Time, by By) error {
	rows, err := tx.Query(ctx, `DELETE FROM policies WHERE org_id = aid_org() AND id = $1 RETURNING `+columns, id)
	if err != nil {
		return doing(err, "removing a policy")
	}
	p, err := pgx.CollectExactlyOneRow(rows, scan)
	if err != nil {
		return doing(err, "removing a policy")
	}
	p.Version, p.UpdatedAt = p.Version+1, at
	return keep(ctx, tx, p, "deleted", by)
}
