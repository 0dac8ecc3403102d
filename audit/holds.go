package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Hold keeps all entries of an org in the database until it is released.
type Hold struct {
	Org           string
	ID            string
	Reason, Actor string
	PlacedAt      time.Time
	ReleasedAt    time.Time // zero: it holds
	ReleasedBy    string
	ReleaseReason string
}

// ErrNoHold means that an org has no such hold, or that it was released before.
var ErrNoHold = errors.New("there is no such hold")

// retentionLock keeps holds from being placed while a month leaves.
const retentionLock = 0x616964_0002

func lockRetention(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", retentionLock); err != nil {
		return fmt.Errorf("waiting for another command of retention: %w", err)
	}
	return nil
}

// PlaceHold places a hold on the org of h, with its ID, Reason and Actor. It returns what left the
// database before. It needs the owner's role.
func (c *Chain) PlaceHold(ctx context.Context, h Hold, actor Actor) (before Trim, err error) {
	if h.Reason == "" || len(h.Reason) > maxReason {
		return before, fmt.Errorf("a hold needs a reason with 1 to %d bytes", maxReason)
	}
	err = c.c.DB.InOrg(ctx, h.Org, func(tx pgx.Tx) error {
		if err := lockRetention(ctx, tx); err != nil {
			return err
		}
		if before, err = trimmed(ctx, tx, h.Org); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "INSERT INTO audit_holds (org_id, id, reason, actor) VALUES ($1, $2, $3, $4)", h.Org, h.ID, h.Reason, actor.ID); err != nil {
			return fmt.Errorf("storing a hold: %w", err)
		}
		_, err := c.Record(ctx, tx, h.Org, Changed{Kind: "audit_hold.placed", Actor: actor, ObjectKind: "audit_hold", ObjectID: h.ID})
		return err
	})
	return before, err
}

// ReleaseHold releases a hold. The error is ErrNoHold for an unknown or released one. It needs the owner's role.
func (c *Chain) ReleaseHold(ctx context.Context, org, id, reason string, actor Actor) error {
	if reason == "" || len(reason) > maxReason {
		return fmt.Errorf("a release needs a reason with 1 to %d bytes", maxReason)
	}
	return c.c.DB.InOrg(ctx, org, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, "UPDATE audit_holds SET released_at = clock_timestamp(), released_by = $3, release_reason = $4 WHERE org_id = $1 AND id = $2 AND released_at IS NULL",
			org, id, actor.ID, reason)
		if err != nil {
			return fmt.Errorf("releasing a hold: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return ErrNoHold
		}
		_, err = c.Record(ctx, tx, org, Changed{Kind: "audit_hold.released", Actor: actor, ObjectKind: "audit_hold", ObjectID: id})
		return err
	})
}

// Holds returns the holds of the org, which tx has set, the oldest first.
func Holds(ctx context.Context, tx pgx.Tx, org string) ([]Hold, error) {
	rows, err := tx.Query(ctx, `SELECT id, reason, actor, placed_at, coalesce(released_at, '0001-01-01 00:00:00+00'), coalesce(released_by, ''), coalesce(release_reason, '')
		FROM audit_holds WHERE org_id = $1 ORDER BY placed_at, id`, org)
	if err != nil {
		return nil, fmt.Errorf("reading holds: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (h Hold, err error) {
		err = row.Scan(&h.ID, &h.Reason, &h.Actor, &h.PlacedAt, &h.ReleasedAt, &h.ReleasedBy, &h.ReleaseReason)
		h.Org, h.PlacedAt, h.ReleasedAt = org, h.PlacedAt.UTC(), h.ReleasedAt.UTC()
		return h, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading holds: %w", err)
	}
	return all, nil
}
