package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// An Anchor stores signed checkpoints outside of the database. An anchor that is not for an
// origin ignores it: witnesses accept the directory only.
type Anchor interface {
	// Publish stores a checkpoint of an origin. Publishing it again, or an older one later,
	// changes nothing.
	Publish(ctx context.Context, origin string, note []byte) error
	// Newest returns the newest checkpoint of an origin, or nil.
	Newest(ctx context.Context, origin string) ([]byte, error)
}

// ErrRolledBack means that the database is older than a checkpoint that was signed for it, or
// has another history. Nothing is appended or signed then.
var ErrRolledBack = errors.New("the database is older than a signed checkpoint, or has another history")

// GuardConfig configures a Guard.
type GuardConfig struct {
	DB      RowQuerier // outside of any org
	LogName string
	Anchors []Anchor
	// Keys returns the public keys that have ever signed. Checkpoints of other keys are ignored.
	Keys func(context.Context) (evidence.KeySet, error)

	Now        func() time.Time      // nil: time.Now
	Log        *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // nil: no metrics
}

// RowQuerier reads one row.
type RowQuerier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// A Guard compares the database with the newest checkpoints outside of it. It compares
// before each signature, at the start of the process, and on each new connection to the
// database. An anchor that cannot be reached stops nothing. A nil Guard accepts everything.
type Guard struct {
	c GuardConfig

	mu     sync.Mutex
	seen   map[string]seenCheckpoint // by origin: the newest one outside of the database
	behind map[string]error          // by origin
	away   []time.Time               // by anchor: it is not asked before this time
	keys   evidence.KeySet
	keysAt time.Time

	again chan struct{} // a new connection was opened: compare now

	rolledBack prometheus.GaugeFunc
	known      prometheus.GaugeFunc
	failures   prometheus.Counter
	ignored    prometheus.Counter
}

// seenCheckpoint is a signed checkpoint that was outside of the database.
type seenCheckpoint struct {
	size int64
	root tlog.Hash
}

const (
	anchorDeadline = 3 * time.Second  // for one request of an anchor
	anchorPause    = 30 * time.Second // after a failed request of an anchor
	keysFor        = time.Minute      // public keys are read again after this time
)

// NewGuard returns a Guard. It has compared nothing yet: see Check.
func NewGuard(c GuardConfig) (*Guard, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	g := &Guard{
		c: c, seen: make(map[string]seenCheckpoint), behind: make(map[string]error), away: make([]time.Time, len(c.Anchors)), again: make(chan struct{}, 1),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "aid_audit_anchor_failures_total", Help: "Requests that an anchor of checkpoints did not answer, or rejected.",
		}),
		ignored: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "aid_audit_anchor_ignored_total", Help: "Checkpoints in an anchor without valid signatures. Above 0: someone wrote to the anchor, or a restored database lacks a newer key, see docs/restore.md.",
		}),
	}
	g.rolledBack = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "aid_audit_rolled_back", Help: "Trees that are older in the database than a signed checkpoint. Above 0: nothing is appended, see docs/restore.md.",
	}, func() float64 {
		g.mu.Lock()
		defer g.mu.Unlock()
		return float64(len(g.behind))
	})
	g.known = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "aid_audit_directory_known_size", Help: "Size of the newest directory checkpoint that this process knows. A database without this checkpoint is noticed.",
	}, func() float64 {
		g.mu.Lock()
		defer g.mu.Unlock()
		return float64(g.seen[evidence.DirectoryOrigin(c.LogName)].size)
	})
	if c.Registerer == nil {
		return g, nil
	}
	return g, registerAll(c.Registerer, g.rolledBack, g.known, g.failures, g.ignored)
}

// Err returns an ErrRolledBack if nothing may be appended for an org.
func (g *Guard) Err(org string) error {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.behind) == 0 {
		return nil
	}
	if err := g.behind[evidence.DirectoryOrigin(g.c.LogName)]; err != nil {
		return err
	}
	for origin, err := range g.behind {
		if strings.HasPrefix(origin, g.c.LogName+"/org/"+org+"/") {
			return err
		}
	}
	return nil
}

// Ready returns an ErrRolledBack if nothing may be appended for any org.
func (g *Guard) Ready() error {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, err := range g.behind {
		return err
	}
	return nil
}

// refresh reads the public keys again. Those of the last reading are used when the database is
// away. It must not be called within a transaction: it may wait for another connection.
func (g *Guard) refresh(ctx context.Context) {
	g.mu.Lock()
	fresh := len(g.keys.Keys) > 0 && g.c.Now().Sub(g.keysAt) < keysFor
	g.mu.Unlock()
	if fresh {
		return
	}
	keys, err := g.c.Keys(ctx)
	if err != nil {
		g.c.Log.WarnContext(ctx, "reading the public keys", "err", err)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.keys, g.keysAt = keys, g.c.Now()
}

// with returns the keys of the database as of a transaction. Without any it is those that were
// read last.
func (g *Guard) with(s keyState) evidence.KeySet {
	if len(s.set.Keys) > 0 {
		return s.set
	}
	return g.keySet()
}

// keySet returns the public keys that were read last.
func (g *Guard) keySet() evidence.KeySet {
	g.mu.Lock()
	defer g.mu.Unlock()
	keys := g.keys
	keys.Own = true
	return keys
}

// saw notes a checkpoint that is outside of the database, or that this process has stored.
func (g *Guard) saw(origin string, c evidence.Checkpoint) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if have, ok := g.seen[origin]; !ok || c.Size > have.size {
		g.seen[origin] = seenCheckpoint{c.Size, c.Root}
	}
}

// outside returns the checkpoints of an origin outside of the database, the newest of each
// anchor. An anchor that does not answer counts as one without a checkpoint.
func (g *Guard) outside(ctx context.Context, origin string, keys evidence.KeySet) (all []seenCheckpoint) {
	for i, a := range g.c.Anchors {
		g.mu.Lock()
		wait := g.away[i].After(g.c.Now())
		g.mu.Unlock()
		if wait || len(keys.Keys) == 0 {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, anchorDeadline)
		note, err := a.Newest(limited, origin)
		cancel()
		if err != nil {
			g.failed(i, "reading", origin, err)
			continue
		}
		if note == nil {
			continue
		}
		c, err := keys.Open(note, origin)
		if err != nil {
			if evidence.UnknownKey(err) && evidence.IsDirectory(origin) && g.stale() {
				continue // a key may have changed: it is read again first
			}
			g.ignored.Inc()
			g.c.Log.WarnContext(ctx, "an anchor has a checkpoint that is not ours; it is ignored. If this database was restored, it may lack a newer key: see docs/restore.md",
				"origin", origin, "anchor", i+1, "unknown_keys", UnknownSigners(note, origin, keys), "err", err)
			continue
		}
		all = append(all, seenCheckpoint{c.Size, c.Root})
		g.saw(origin, c)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if s, ok := g.seen[origin]; ok {
		all = append(all, s)
	}
	return all
}

// stale makes the next refresh read the public keys, unless they were read just now.
func (g *Guard) stale() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.c.Now().Sub(g.keysAt) < notaryRound {
		return false
	}
	g.keysAt = time.Time{}
	return true
}

func (g *Guard) failed(anchor int, what, origin string, err error) {
	g.failures.Inc()
	g.mu.Lock()
	g.away[anchor] = g.c.Now().Add(anchorPause)
	g.mu.Unlock()
	g.c.Log.Warn("an anchor of checkpoints does not answer; the work goes on without it", "doing", what, "origin", origin, "anchor", anchor+1, "err", err)
}

// directorySized returns the root of the directory's checkpoint with a size.
const directorySized = "SELECT root FROM directory_checkpoints WHERE size = $1"

// Check compares the directory in the database with the newest checkpoints outside of it. It
// covers all orgs. The error is an ErrRolledBack, or says that the database did not answer.
func (g *Guard) Check(ctx context.Context) error {
	if g == nil {
		return nil
	}
	origin := evidence.DirectoryOrigin(g.c.LogName)
	g.refresh(ctx)
	// First the anchors: what they have was committed before, so a database that is intact
	// has it.
	outside := g.outside(ctx, origin, g.keySet())
	if err := g.judge(ctx, g.c.DB, origin, outside, directorySized); err != nil {
		return err
	}
	return g.read(ctx, origin)
}

// read notes the directory's newest checkpoint in the database. Without anchors, a process that
// signs nothing itself would else not notice that the database became an older one.
func (g *Guard) read(ctx context.Context, origin string) error {
	keys := g.keySet()
	if len(keys.Keys) == 0 {
		return nil
	}
	var note []byte
	err := g.c.DB.QueryRow(ctx, "SELECT note FROM directory_checkpoints ORDER BY size DESC LIMIT 1").Scan(&note)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	} else if err != nil {
		return fmt.Errorf("reading the newest checkpoint of %s: %w", origin, err)
	}
	c, err := keys.Open(note, origin)
	if evidence.UnknownKey(err) && g.stale() {
		return nil // a key may have changed: it is read again first
	} else if err != nil {
		return fmt.Errorf("the newest stored checkpoint of %s: %w", origin, err)
	}
	g.saw(origin, c)
	return nil
}

// checkOrg compares an org's tree. tx has the org set, and keys are as of it.
func (g *Guard) checkOrg(ctx context.Context, tx RowQuerier, org string, incarnation int64, keys keyState) error {
	if g == nil {
		return nil
	}
	origin := evidence.OrgOrigin(g.c.LogName, org, incarnation)
	// The chain was reopened after earlier incarnations, and names what they lost.
	g.mu.Lock()
	for n := range incarnation {
		delete(g.behind, evidence.OrgOrigin(g.c.LogName, org, n))
	}
	g.mu.Unlock()
	return g.judge(ctx, tx, origin, g.outside(ctx, origin, g.with(keys)), "SELECT root FROM audit_checkpoints WHERE size = $1 AND org_id = $2 AND incarnation = $3", org, incarnation)
}

// first compares an org's tree before the first append of this process. The newest tick of the
// directory may be older than the org's newest checkpoint.
func (g *Guard) first(ctx context.Context, tx pgx.Tx, org string, incarnation int64) error {
	if g == nil || len(g.c.Anchors) == 0 {
		return nil
	}
	keys, err := readKeys(ctx, tx, g.c.LogName, org)
	if err != nil {
		return err
	}
	return g.checkOrg(ctx, tx, org, incarnation, keys)
}

// judge stops appending if the database lacks a checkpoint, and permits it if not.
func (g *Guard) judge(ctx context.Context, db RowQuerier, origin string, outside []seenCheckpoint, sized string, args ...any) error {
	err := g.compare(ctx, db, origin, outside, sized, args...)
	if err == nil || errors.Is(err, ErrRolledBack) {
		g.set(ctx, origin, err)
	}
	return err
}

// compare requires that the database has each checkpoint that was signed for it.
func (g *Guard) compare(ctx context.Context, db RowQuerier, origin string, outside []seenCheckpoint, sized string, args ...any) error {
	for _, c := range outside {
		var root []byte
		err := db.QueryRow(ctx, sized, append([]any{c.size}, args...)...).Scan(&root)
		if errors.Is(err, pgx.ErrNoRows) {
			// After a restore the owner may have accepted that it is lost.
			var lost bool
			err = db.QueryRow(ctx, "SELECT EXISTS (SELECT FROM audit_reopened WHERE origin = $1 AND restored < $2 AND size >= $2)", origin, c.size).Scan(&lost)
			if lost {
				continue
			} else if err == nil {
				err = pgx.ErrNoRows
			}
		}
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return fmt.Errorf("%w: a checkpoint of %s with size %d was signed, and the database has none: see docs/restore.md", ErrRolledBack, origin, c.size)
		case err != nil:
			return fmt.Errorf("comparing %s with its signed checkpoints: %w", origin, err)
		case string(root) != string(c.root[:]):
			return fmt.Errorf("%w: two checkpoints of %s with size %d have different roots: see docs/restore.md", ErrRolledBack, origin, c.size)
		}
	}
	return nil
}

// set stores the result of a comparison.
func (g *Guard) set(ctx context.Context, origin string, wrong error) {
	g.mu.Lock()
	before := g.behind[origin]
	if wrong == nil {
		delete(g.behind, origin)
	} else {
		g.behind[origin] = wrong
	}
	g.mu.Unlock()
	switch {
	case wrong != nil && before == nil:
		g.c.Log.ErrorContext(ctx, "the database was rolled back: appending stops", "origin", origin, "err", wrong)
	case wrong == nil && before != nil:
		g.c.Log.WarnContext(ctx, "the database has the signed checkpoints again", "origin", origin)
	}
}

// Connected compares the directory on a new connection with the newest checkpoint that this
// process has seen. It asks no anchor, so it is quick, but makes Run do so at once. A server
// that took over with an older state is noticed before it is used.
func (g *Guard) Connected(ctx context.Context, conn RowQuerier) {
	if g == nil {
		return
	}
	origin := evidence.DirectoryOrigin(g.c.LogName)
	g.mu.Lock()
	seen, ok := g.seen[origin]
	g.mu.Unlock()
	if ok {
		if err := g.compare(ctx, conn, origin, []seenCheckpoint{seen}, directorySized); errors.Is(err, ErrRolledBack) {
			g.set(ctx, origin, err)
		} else if err != nil {
			g.c.Log.WarnContext(ctx, "a new connection to the database was not compared with the signed checkpoints", "err", err)
		}
	}
	select {
	case g.again <- struct{}{}:
	default:
	}
}

// guardEvery is the longest time between two comparisons.
const guardEvery = 10 * time.Second

// Run compares after each new connection, and every 10 s, until ctx is done.
func (g *Guard) Run(ctx context.Context) error {
	for {
		limited, cancel := context.WithTimeout(ctx, guardEvery)
		if err := g.Check(limited); err != nil && ctx.Err() == nil && !errors.Is(err, ErrRolledBack) {
			g.c.Log.WarnContext(ctx, "the database was not compared with the signed checkpoints", "err", err)
		}
		cancel()
		timer := time.NewTimer(guardEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-g.again:
			timer.Stop()
		case <-timer.C:
		}
	}
}
