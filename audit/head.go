package audit

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

// VerifyHead checks the last entry of org and its head with keys. It is fast enough for a
// start, and detects keys of another chain. The error is a *Bad if the last entry or the head
// is wrong. A chain without entries is valid.
func VerifyHead(ctx context.Context, db DB, org string, keys Keys) error {
	return db.InOrg(ctx, org, func(tx pgx.Tx) error { return verifyHead(ctx, tx, org, keys) })
}

func verifyHead(ctx context.Context, tx pgx.Tx, org string, keys Keys) error {
	v := verifier{report: Report{Org: org}, keys: keys}
	var seq int64
	err := tx.QueryRow(ctx, `SELECT seq, prev_mac FROM audit_entries
		WHERE org_id = $1 AND seq = (SELECT seq FROM audit_heads WHERE org_id = $1)`, org).Scan(&seq, &v.mac)
	if errors.Is(err, pgx.ErrNoRows) {
		seq, err = 1, nil // step reports a missing entry
	}
	if err != nil {
		return err
	}
	v.report.To = seq - 1
	// The first step checks the entry, and the one after the last entry the head.
	for more := true; more && err == nil; {
		more, err = v.step(ctx, tx)
	}
	return err
}
