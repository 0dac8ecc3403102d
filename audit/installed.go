package audit

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// ErrKeyDiffers means that the key of an epoch here is not the key that signs this
// installation's audit log under the same number.
var ErrKeyDiffers = errors.New("the audit log is signed with another key")

// proofDomain separates proofs from other uses of the same key.
const proofDomain = "aid audit key proof v1\x00"

// proof identifies the key of an epoch and does not reveal it. It is empty without a key.
func (k Keys) proof(epoch int32) string {
	found, ok := k.set.Load().byEpoch[epoch]
	if !ok {
		return ""
	}
	info := string(binary.BigEndian.AppendUint64([]byte(proofDomain), uint64(epoch)))
	proof, err := hkdf.Key(sha256.New, found.secret, nil, info, sha256.Size)
	if err != nil {
		return ""
	}
	return hex.EncodeToString(proof)
}

// installed returns nil if the key of epoch is the installation's. The first entry of an
// epoch stores the proof of its key, in the same transaction. From then on every other key
// with this number is rejected. An installation without a proof is older than proofs, so its
// last entry is checked instead.
func (c *Chain) installed(ctx context.Context, tx pgx.Tx, org string, epoch, head int32) error {
	own := c.c.Keys.proof(epoch)
	if _, ok := c.confirmed.Load(own); ok {
		return nil
	}
	stored, err := proofOf(ctx, tx, epoch)
	if err != nil {
		return err
	}
	if stored != "" && hmac.Equal([]byte(stored), []byte(own)) {
		c.confirmed.Store(own, true) // It was committed before this transaction.
		return nil
	}
	if stored == "" {
		if head == epoch {
			var bad *Bad
			if err := verifyHead(ctx, tx, org, c.c.Keys); errors.As(err, &bad) {
				return fmt.Errorf("%w: the last entry of %s does not verify with the key of epoch %d here: %w", ErrKeyDiffers, org, epoch, bad)
			} else if err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, "INSERT INTO installation_keys (name, epoch, proof) VALUES ('hmac', $1, $2) ON CONFLICT DO NOTHING", epoch, own); err != nil {
			return err
		}
		if stored, err = proofOf(ctx, tx, epoch); err != nil {
			return err
		}
	}
	if !hmac.Equal([]byte(stored), []byte(own)) {
		return differs(epoch)
	}
	return nil
}

func differs(epoch int32) error {
	return fmt.Errorf("%w: the key of epoch %d here is not the installation's: copy --hmac-keys from the other replica, and restart", ErrKeyDiffers, epoch)
}

// proofOf returns the stored proof of an epoch's key. It is empty if there is no proof.
func proofOf(ctx context.Context, tx pgx.Tx, epoch int32) (proof string, err error) {
	err = tx.QueryRow(ctx, "SELECT proof FROM installation_keys WHERE name = 'hmac' AND epoch = $1", epoch).Scan(&proof)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	return proof, err
}

// Querier reads from the database, outside of any organization.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Ready returns nil if the keys suffice to append entries. No chain and no other replica may
// have a newer epoch, and no replica another key under the same number.
func (c *Chain) Ready(ctx context.Context, db Querier) error {
	newest := c.missing()
	rows, err := db.Query(ctx, "SELECT epoch, proof FROM installation_keys WHERE name = 'hmac' ORDER BY epoch")
	if err != nil {
		return fmt.Errorf("reading the proofs of HMAC keys: %w", err)
	}
	var epoch int32
	var proof string
	_, err = pgx.ForEachRow(rows, []any{&epoch, &proof}, func() error {
		switch own := c.c.Keys.proof(epoch); {
		case own == "" && epoch > c.c.Keys.last():
			newest = max(newest, epoch)
		case own != "" && own != proof:
			return differs(epoch)
		}
		return nil
	})
	switch {
	case errors.Is(err, ErrKeyDiffers):
		return err
	case err != nil:
		return fmt.Errorf("reading the proofs of HMAC keys: %w", err)
	case newest != 0:
		return fmt.Errorf("%w: epoch %d, and the newest key here has epoch %d: copy --hmac-keys from the other replica", ErrKeyMissing, newest, c.c.Keys.last())
	}
	return nil
}
