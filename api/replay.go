package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"
)

// replayFor is how long a response is stored for its idempotency key.
const replayFor = 24 * time.Hour

// replayable is a response that can be replayed.
type replayable interface{ replayed() }

// once runs fn unless a response is stored for the caller's idempotency key. The key's row
// is written first, in the same transaction as fn. A second request with the key waits in
// Postgres until the first one ends. Then it finds the response, or no row if the first one
// failed. Only successful responses are stored.
func once[O any](ctx context.Context, x *call, fn func() (*O, error)) (*O, error) {
	sum := sha256.New()
	for _, part := range [][]byte{[]byte(x.method), []byte(x.target), x.body} {
		s := sha256.Sum256(part)
		sum.Write(s[:])
	}
	digest := hex.EncodeToString(sum.Sum(nil))

	// Old responses are deleted, a few each time, without waiting for rows that are locked.
	if _, err := x.tx.Exec(ctx, `
		DELETE FROM idempotency_keys WHERE org_id = $1 AND (actor, key) IN (
			SELECT actor, key FROM idempotency_keys WHERE org_id = $1 AND created_at < $2
			ORDER BY created_at LIMIT 100 FOR UPDATE SKIP LOCKED)`,
		x.org, x.now.Add(-replayFor)); err != nil {
		return nil, err
	}
	tag, err := x.tx.Exec(ctx, `
		INSERT INTO idempotency_keys (org_id, actor, key, digest, status, sealed, created_at) VALUES ($1, $2, $3, $4, 0, '', $5)
		ON CONFLICT (org_id, actor, key) DO UPDATE SET digest = excluded.digest, status = 0, sealed = '', created_at = excluded.created_at
			WHERE idempotency_keys.created_at < $6`,
		x.org, x.key.ID, x.idempotencyKey, digest, x.now, x.now.Add(-replayFor))
	if err != nil {
		return nil, err
	}
	if tag.RowsAffected() == 0 {
		return again[O](ctx, x, digest)
	}
	out, err := fn()
	if err != nil {
		return nil, err
	}
	// The response may have a key that is shown once, so it is encrypted.
	plain, err := json.Marshal(out)
	if err != nil {
		return nil, err
	}
	sealed, err := x.c.Sealer.Seal(plain)
	if err != nil {
		return nil, err
	}
	_, err = x.tx.Exec(ctx, `UPDATE idempotency_keys SET status = $4, sealed = $5 WHERE org_id = $1 AND actor = $2 AND key = $3`,
		x.org, x.key.ID, x.idempotencyKey, http.StatusOK, sealed)
	return out, err
}

// again returns the response that is stored for the key.
func again[O any](ctx context.Context, x *call, digest string) (*O, error) {
	var stored, sealed string
	err := x.tx.QueryRow(ctx, `SELECT digest, sealed FROM idempotency_keys WHERE org_id = $1 AND actor = $2 AND key = $3`,
		x.org, x.key.ID, x.idempotencyKey).Scan(&stored, &sealed)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, unavailable() // the row was deleted just now; the next try succeeds
	}
	if err != nil {
		return nil, err
	}
	if stored != digest {
		return nil, &problem{
			Status: http.StatusUnprocessableEntity, Code: "idempotency_key_reused", Message: "This Idempotency-Key was used with another request.",
			Field: "Idempotency-Key", Fix: "Send a new key with each new request, and the same key only with the same request.",
		}
	}
	plain, err := x.c.Sealer.Open(sealed)
	if err != nil {
		return nil, &problem{
			Status: http.StatusConflict, Code: "answer_gone", Message: "This request was executed, but its response cannot be decrypted: the keys are gone.",
			Field: "Idempotency-Key", Fix: "List the objects to see the result of the first request.",
		}
	}
	out := new(O)
	if err := json.Unmarshal(plain, out); err != nil {
		return nil, err
	}
	if r, ok := any(out).(replayable); ok {
		r.replayed()
	}
	x.metrics.replays.Inc()
	return out, nil
}
