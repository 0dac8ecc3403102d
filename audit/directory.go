package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// tickDeadline limits the time for one tick, all of its statements and signatures included.
const tickDeadline = 30 * time.Second

// tickIfDue makes the directory's next tick, unless the last one is younger than 10 s.
func (n *Notary) tickIfDue(ctx context.Context) error {
	n.mu.Lock()
	due := n.c.Now().Sub(n.ticked) >= checkpointEvery-time.Second // of several processes one is first
	n.mu.Unlock()
	if !due {
		return nil
	}
	return n.Tick(ctx)
}

// Tick appends the state of all slots to the directory's log and signs the log, unless another
// process did so within the last 10 s.
func (n *Notary) Tick(ctx context.Context) error {
	signers := n.c.Signers()
	if len(signers) == 0 {
		return nil
	}
	if err := n.c.Guard.Check(ctx); errors.Is(err, ErrRolledBack) {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, tickDeadline)
	defer cancel()
	made, paths, err := n.tick(limited, signers)
	switch {
	case errors.Is(err, ErrTree):
		n.mu.Lock()
		n.tree = err
		n.mu.Unlock()
		fallthrough
	case err != nil:
		n.metrics.failures.Inc()
		return fmt.Errorf("signing the directory: %w", err)
	}
	n.mu.Lock()
	n.tree = nil
	n.ticked = made.ticked
	for org, at := range paths {
		n.paths[org] = at
	}
	n.mu.Unlock()
	if made.note != nil {
		n.metrics.signed.Inc()
		n.publish(evidence.DirectoryOrigin(n.c.LogName), made.size, made.note, made.root)
		return n.fault(ctx, "published")
	}
	return nil
}

// tickResult is the newest checkpoint of the directory.
type tickResult struct {
	ticked time.Time // by this process's clock
	size   int64
	root   tlog.Hash
	note   []byte // nil: it is older, and published
}

// tick makes one tick in a transaction.
func (n *Notary) tick(ctx context.Context, signers []evidence.Signer) (made tickResult, paths map[string][2]int64, err error) {
	tx, err := n.c.Pool.Begin(ctx)
	if err != nil {
		return made, nil, err
	}
	defer func() {
		// The connection may be silent, so its end is not waited for without a limit.
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = tx.Rollback(back) // after a commit it does nothing
	}()
	d, err := lockDirectory(ctx, tx)
	if errors.Is(err, pgx.ErrNoRows) {
		return tickResult{ticked: n.c.Now()}, nil, nil // another process makes it
	} else if err != nil {
		return made, nil, err
	}
	if err := n.fault(ctx, "locked"); err != nil {
		return made, nil, err
	}
	clock := n.c.Now()
	now := clock.UTC().Truncate(time.Microsecond)
	origin := evidence.DirectoryOrigin(n.c.LogName)
	keys, err := readKeys(ctx, tx, n.c.LogName, "")
	if err != nil {
		return made, nil, err
	}
	if d.size > 0 {
		if age := now.Sub(d.time); age >= 0 && age < checkpointEvery {
			return tickResult{ticked: clock.Add(-age)}, nil, nil
		}
		if err := n.continues(ctx, tx, keys, directoryForest, d.tree, origin, d.note, d.size, d.root); err != nil {
			return made, nil, err
		}
		if !now.After(d.time) {
			now = d.time.Add(time.Microsecond)
		}
	}
	if err := n.fault(ctx, "proved"); err != nil {
		return made, nil, err
	}

	all, err := n.list(ctx, tx)
	if err != nil {
		return made, nil, err
	}
	levels := slotTree(all)
	t := evidence.Tick{Number: d.tree.size, Time: now, Slots: int64(len(levels[0])), Root: levels[len(levels)-1][0]}
	if err := d.addLeaf(ctx, tx, t.Bytes()); err != nil {
		return made, nil, err
	}
	made = tickResult{ticked: clock, size: d.tree.size, root: d.tree.root()}
	if err := keys.retire(ctx, tx, made.size, now); err != nil {
		return made, nil, err
	}
	if signers, err = keys.choose(signers, origin, made.size, now); err != nil {
		return tickResult{}, nil, err
	}
	limited, cancel := context.WithTimeout(ctx, signDeadline)
	defer cancel()
	made.note, err = evidence.Sign(limited, evidence.Checkpoint{Origin: origin, Size: made.size, Root: made.root, Time: now}, signers...)
	if err != nil {
		return made, nil, err
	}
	if err := n.fault(ctx, "signed"); err != nil {
		return made, nil, err
	}

	if err := d.save(ctx, tx); err != nil {
		return made, nil, err
	}
	var b pgx.Batch
	b.Queue("INSERT INTO directory_checkpoints (size, root, time, note) VALUES ($1, $2, $3, $4)", made.size, made.root[:], now, made.note)
	paths = make(map[string][2]int64)
	n.mu.Lock()
	for _, l := range all {
		at := [2]int64{l.incarnation, l.size}
		if l.slot == nil || l.size == 0 || n.paths[l.org] == at {
			continue
		}
		paths[l.org] = at
		path := []byte{}
		for _, h := range evidence.SlotPath(levels, *l.slot) {
			path = append(path, h[:]...)
		}
		b.Queue("SELECT set_config('aid.org', $1, true)", l.org)
		b.Queue("INSERT INTO audit_paths (org_id, incarnation, size, tick, path) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
			l.org, l.incarnation, l.size, t.Number, path)
	}
	n.mu.Unlock()
	if err := tx.SendBatch(ctx, &b).Close(); err != nil {
		return made, nil, fmt.Errorf("storing a tick: %w", err)
	}
	for _, step := range []string{"inserted", "committing"} {
		if err := n.fault(ctx, step); err != nil {
			return made, nil, err
		}
	}
	if err := tx.Commit(ctx); err != nil {
		return n.committed(ctx, made, paths, err)
	}
	return made, paths, n.fault(ctx, "committed")
}

// committed finds out whether a tick is stored whose commit has failed.
func (n *Notary) committed(ctx context.Context, made tickResult, paths map[string][2]int64, failed error) (tickResult, map[string][2]int64, error) {
	var note []byte
	err := n.c.Pool.QueryRow(ctx, "SELECT note FROM directory_checkpoints WHERE size = $1", made.size).Scan(&note)
	if err != nil || string(note) != string(made.note) {
		return tickResult{}, nil, fmt.Errorf("committing: %w", failed)
	}
	return made, paths, nil
}

// slotTree returns the tree over the slots of all orgs.
func slotTree(all []listed) [][]tlog.Hash {
	last := int64(-1)
	for _, l := range all {
		if l.slot != nil {
			last = max(last, *l.slot)
		}
	}
	data := make([][32]byte, last+1)
	for _, l := range all {
		if l.slot != nil {
			data[*l.slot] = [32]byte(l.leaf)
		}
	}
	return evidence.SlotTree(data)
}

// directory is the directory's log, whose row is locked.
type directory struct {
	tree *merkle

	// The last stored checkpoint. Without one size is 0.
	size int64
	root tlog.Hash
	time time.Time
	note []byte
}

// lockDirectory locks the directory's log. The error is pgx.ErrNoRows if another process has it.
func lockDirectory(ctx context.Context, tx pgx.Tx) (*directory, error) {
	var size int64
	var root, edge []byte
	err := tx.QueryRow(ctx, "SELECT size, root, edge FROM directory_tree FOR UPDATE SKIP LOCKED").Scan(&size, &root, &edge)
	if err != nil {
		return nil, err
	}
	d := &directory{}
	if d.tree, err = parseTree(size, root, edge); err != nil {
		return nil, fmt.Errorf("the directory: %w", err)
	}
	var signed []byte
	err = tx.QueryRow(ctx, "SELECT size, root, time, note FROM directory_checkpoints ORDER BY size DESC LIMIT 1").Scan(&d.size, &signed, &d.time, &d.note)
	if errors.Is(err, pgx.ErrNoRows) {
		return d, nil
	}
	if err != nil {
		return nil, err
	}
	if d.size > size || len(signed) != tlog.HashSize {
		return nil, fmt.Errorf("the directory: %w: it has %d leaves, and %d were signed", ErrTree, size, d.size)
	}
	d.root, d.time = tlog.Hash(signed), d.time.UTC()
	return d, nil
}

// addLeaf adds a leaf to the log.
func (d *directory) addLeaf(ctx context.Context, tx pgx.Tx, data []byte) error {
	if _, err := tx.Exec(ctx, "INSERT INTO directory_leaves (n, data) VALUES ($1, $2)", d.tree.size, data); err != nil {
		return fmt.Errorf("storing a leaf of the directory: %w", err)
	}
	d.tree.add(tlog.RecordHash(data))
	return nil
}

func (d *directory) save(ctx context.Context, tx pgx.Tx) error {
	return directoryForest.save(ctx, tx, d.tree, "INSERT INTO directory_tiles (level, n, nodes) SELECT u.level, u.n, u.nodes",
		"UPDATE directory_tree SET size = $1, root = $2, edge = $3")
}

// DirectoryCheckpoint returns the directory's newest checkpoint as it was published, with the
// signatures of witnesses that it has by now.
func DirectoryCheckpoint(ctx context.Context, db interface {
	RowQuerier
	Querier
}) (note []byte, err error) {
	var size int64
	err = db.QueryRow(ctx, "SELECT size, note FROM directory_checkpoints ORDER BY size DESC LIMIT 1").Scan(&size, &note)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrNoCheckpoint
	}
	if err != nil {
		return nil, err
	}
	return cosigned(ctx, db, size, note)
}

// DirectoryConsistency proves that the directory's log with old leaves is the beginning of the
// one with size.
func DirectoryConsistency(ctx context.Context, tx pgx.Tx, old, size int64) ([]tlog.Hash, error) {
	return directoryForest.consistency(ctx, tx, old, size)
}

// DirectoryProof proves that the directory has a checkpoint of the org, which tx has set. It
// uses the first tick that had the checkpoint, or the newest tick if the checkpoint is the org's
// newest. The error is ErrNoCheckpoint if no tick has it yet.
func DirectoryProof(ctx context.Context, tx pgx.Tx, org string, incarnation, size int64) (evidence.DirectoryProof, error) {
	var none, p evidence.DirectoryProof
	var slot, tick int64
	var nonce, stored, data []byte
	var newest bool
	err := tx.QueryRow(ctx, `SELECT s.slot, s.nonce, p.tick, p.path, l.data, s.incarnation = p.incarnation AND s.size = p.size FROM audit_slots s JOIN audit_paths p ON p.org_id = s.org_id
		JOIN directory_leaves l ON l.n = p.tick WHERE s.org_id = $1 AND p.incarnation = $2 AND p.size = $3`, org, incarnation, size).
		Scan(&slot, &nonce, &tick, &stored, &data, &newest)
	if errors.Is(err, pgx.ErrNoRows) {
		return none, ErrNoCheckpoint
	} else if err != nil {
		return none, fmt.Errorf("reading the directory: %w", err)
	}
	var signed int64
	var note []byte
	err = tx.QueryRow(ctx, "SELECT size, note FROM directory_checkpoints ORDER BY size DESC LIMIT 1").Scan(&signed, &note)
	if errors.Is(err, pgx.ErrNoRows) {
		return none, ErrNoCheckpoint
	} else if err != nil {
		return none, fmt.Errorf("reading the directory: %w", err)
	}
	var path []tlog.Hash
	for ; len(stored) >= tlog.HashSize; stored = stored[tlog.HashSize:] {
		path = append(path, tlog.Hash(stored[:tlog.HashSize]))
	}
	t, ok := evidence.ParseTick(data)
	if !ok || t.Number != tick {
		return none, fmt.Errorf("%w: leaf %d of the directory is not its tick", ErrTree, tick)
	}
	if newest {
		if last, lastPath, err := newestPath(ctx, tx, signed, slot); err != nil {
			return none, err
		} else if lastPath != nil {
			t, path = last, lastPath
		}
	}
	if note, err = cosigned(ctx, tx, signed, note); err != nil {
		return none, err
	}
	p = evidence.NewDirectoryProof(slot, nonce, path, t)
	log, err := directoryForest.inclusion(ctx, tx, t.Number, signed)
	if err != nil {
		return none, err
	}
	p.LogPath, p.Checkpoint = evidence.Hashes(log), string(note)
	return p, nil
}

// newestPath returns the path of a slot in the tick under the newest checkpoint, if no slot has
// changed since. The path is nil if one has. A directory with one slot has an empty path.
func newestPath(ctx context.Context, tx pgx.Tx, signed, slot int64) (t evidence.Tick, path []tlog.Hash, err error) {
	var data []byte
	if err := tx.QueryRow(ctx, "SELECT data FROM directory_leaves WHERE n = $1", signed-1).Scan(&data); err != nil {
		return t, nil, fmt.Errorf("reading the directory: %w", err)
	}
	t, ok := evidence.ParseTick(data)
	if !ok {
		return t, nil, nil
	}
	rows, err := tx.Query(ctx, "SELECT slot, leaf FROM aid_directory() WHERE slot IS NOT NULL")
	if err != nil {
		return t, nil, fmt.Errorf("reading the directory: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l listed, err error) {
		return l, row.Scan(&l.slot, &l.leaf)
	})
	if err != nil {
		return t, nil, fmt.Errorf("reading the directory: %w", err)
	}
	levels := slotTree(all)
	if slot >= int64(len(levels[0])) || levels[len(levels)-1][0] != t.Root {
		return t, nil, nil
	}
	return t, append([]tlog.Hash{}, evidence.SlotPath(levels, slot)...), nil
}

// ---- metrics ----

// notaryMetrics are the metrics of a Notary.
type notaryMetrics struct {
	leaves, signed, failures, unpublished prometheus.Counter
}

func newNotaryMetrics(n *Notary, r prometheus.Registerer) (*notaryMetrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "aid_audit_" + name, Help: help})
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "aid_audit_" + name, Help: help}, func() float64 {
			n.mu.Lock()
			defer n.mu.Unlock()
			return f()
		})
	}
	m := &notaryMetrics{
		leaves:      counter("tree_leaves_total", "Entries added to the trees behind the chains."),
		signed:      counter("checkpoints_total", "Checkpoints that this process has signed and stored."),
		failures:    counter("signing_failures_total", "Checkpoints that could not be signed or stored. Above 0: look at the log; they are tried again."),
		unpublished: counter("unpublished_total", "Checkpoints that an anchor did not accept. They are sent again."),
	}
	if r == nil {
		return m, nil
	}
	return m, registerAll(r, m.leaves, m.signed, m.failures, m.unpublished,
		gauge("tree_lag_entries", "Entries that are not in the trees behind the chains, of all orgs.", func() (sum float64) {
			for _, o := range n.orgs {
				sum += float64(o.behind)
			}
			return sum
		}),
		gauge("checkpoint_age_seconds", "How long the oldest entry of any org has waited for a checkpoint. 0: none waits, or nothing is signed.", func() (age float64) {
			if len(n.c.Signers()) == 0 {
				return 0
			}
			for _, o := range n.orgs {
				if !o.since.IsZero() {
					age = max(age, n.c.Now().Sub(o.since).Seconds())
				}
			}
			return age
		}),
		gauge("directory_age_seconds", "Age of the directory's newest checkpoint. 0: nothing is signed.", func() float64 {
			if len(n.c.Signers()) == 0 {
				return 0
			}
			return max(0, n.c.Now().Sub(n.ticked).Seconds())
		}),
		gauge("trees_damaged", "Trees that do not fit what is stored about them. Above 0: nothing is signed for them, see /readyz.", func() (count float64) {
			if n.tree != nil {
				count++
			}
			for _, o := range n.orgs {
				if o.damaged != nil {
					count++
				}
			}
			return count
		}))
}
