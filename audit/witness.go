package audit

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/tlog"
)

// WitnessesConfig configures Witnesses.
type WitnessesConfig struct {
	Pool   WitnessPool
	Names  []string // of the witnesses that this installation asks
	Quorum int      // fewer cosignatures are an alert; at most the number of names

	Now        func() time.Time      // nil: time.Now
	Registerer prometheus.Registerer // nil: no metrics
}

// WitnessPool runs statements outside of any org.
type WitnessPool interface {
	Pool
	Execer
}

// Witnesses stores the cosignatures of the directory's checkpoints. A checkpoint is signed and
// published without waiting for them.
type Witnesses struct{ c WitnessesConfig }

// cosignedWithin is how old a checkpoint may be to count as one that is cosigned now.
const cosignedWithin = time.Minute

// NewWitnesses checks c.
func NewWitnesses(c WitnessesConfig) (*Witnesses, error) {
	if c.Quorum < 0 || c.Quorum > len(c.Names) {
		return nil, fmt.Errorf("a quorum of %d witnesses out of %d cannot be reached", c.Quorum, len(c.Names))
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	w := &Witnesses{c}
	if c.Registerer == nil {
		return w, nil
	}
	gauge := func(name, help string, f func(cosigned int) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "aid_audit_witnesses_" + name, Help: help}, func() float64 {
			n, err := w.cosigned()
			if err != nil {
				return -1
			}
			return float64(f(n))
		})
	}
	return w, registerAll(c.Registerer,
		gauge("cosigned", "Witnesses that have cosigned a checkpoint of the last minute. -1: unknown.", func(n int) int { return n }),
		gauge("missing", "Witnesses that are missing for --witness-quorum. -1: unknown.", func(n int) int { return max(0, c.Quorum-n) }))
}

// cosigned counts the witnesses that cosigned lately, for any control plane.
func (w *Witnesses) cosigned() (n int, err error) {
	if len(w.c.Names) == 0 {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err = w.c.Pool.QueryRow(ctx, `SELECT count(DISTINCT c.witness) FROM directory_cosignatures c JOIN directory_checkpoints d USING (size)
		WHERE c.witness = ANY($1) AND d.time > $2`, w.c.Names, w.c.Now().Add(-cosignedWithin)).Scan(&n)
	return n, err
}

// Consistency proves that the directory's log with old leaves is the beginning of the one with
// size.
func (w *Witnesses) Consistency(ctx context.Context, old, size int64) ([]tlog.Hash, error) {
	tx, err := w.c.Pool.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = tx.Rollback(back) // nothing was changed
	}()
	return DirectoryConsistency(ctx, tx, old, size)
}

// Cosigned stores the signature line of a witness under the checkpoint with this size.
func (w *Witnesses) Cosigned(ctx context.Context, witness string, size int64, line string) error {
	_, err := w.c.Pool.Exec(ctx, "INSERT INTO directory_cosignatures (size, witness, line) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", size, witness, line)
	if err != nil {
		return fmt.Errorf("storing the cosignature of %s: %w", witness, err)
	}
	return nil
}

// maxCosignatures is the most lines that are published with a checkpoint. A reader accepts 64
// lines, those of the log included.
const maxCosignatures = 32

// cosigned returns a checkpoint of the directory with the lines of its witnesses.
func cosigned(ctx context.Context, db Querier, size int64, note []byte) ([]byte, error) {
	rows, err := db.Query(ctx, "SELECT line FROM directory_cosignatures WHERE size = $1 ORDER BY witness LIMIT $2", size, maxCosignatures)
	if err != nil {
		return nil, fmt.Errorf("reading cosignatures: %w", err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("reading cosignatures: %w", err)
	}
	out := append([]byte(nil), note...)
	for _, line := range lines {
		out = append(append(out, line...), '\n')
	}
	return out, nil
}
