package audit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// NotaryConfig configures a Notary.
type NotaryConfig struct {
	DB      DB   // for the trees of orgs
	Pool    Pool // for the directory, which has no org
	LogName string

	// Signers returns the keys of this process: a P-256 key and an Ed25519 key, and for a
	// rotation their successors too. The database says which of them sign. Without keys trees
	// grow, and nothing is signed.
	Signers func() []evidence.Signer
	Guard   *Guard
	Anchors []Anchor

	// Rate limits the checkpoints that are signed in a second. Beyond it orgs take turns. 0: 30.
	Rate float64

	Now        func() time.Time      // nil: time.Now
	Rand       io.Reader             // for nonces; nil: crypto/rand
	Log        *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // nil: no metrics
}

// Pool begins transactions outside of any org.
type Pool interface {
	RowQuerier
	Querier
	Begin(context.Context) (pgx.Tx, error)
}

const (
	// checkpointEvery is the shortest time between two checkpoints of an org, and the time
	// between two ticks of the directory.
	checkpointEvery = 10 * time.Second

	notaryRound  = 2 * time.Second  // between two looks at all orgs
	notaryAtOnce = 4                // orgs in work at once; each needs a connection
	signDeadline = 20 * time.Second // for all signatures of one checkpoint; less than a transaction's
	defaultRate  = 30
)

// A Notary builds the trees behind the chains of all orgs, signs their checkpoints, and keeps
// the directory. Several may run on one database. The tree's row is locked while one signs:
// there are never two roots for a size, and times ascend. It publishes only what is committed.
type Notary struct {
	c       NotaryConfig
	metrics *notaryMetrics
	rate    turnstile

	mu        sync.Mutex
	orgs      map[string]*notaryOrg
	ticked    time.Time // the last directory checkpoint that is in the database
	tree      error     // why a tree of an org, or the directory, is damaged
	published map[string]int64
	queue     []map[string][]byte // by anchor, by origin: what it does not have yet
	wake      []chan struct{}     // by anchor

	paths map[string][2]int64 // by org: incarnation and size of the checkpoint in the last tick

	fault func(ctx context.Context, step string) error // in tests: a process that dies
}

// notaryOrg is what a Notary remembers of an org.
type notaryOrg struct {
	since     time.Time // it has had entries that no checkpoint covers; zero: it has none
	signed    time.Time
	behind    int64 // entries that are not in the tree
	republish bool  // the newest checkpoint may not be published
	damaged   error // its tree, or its chain
	own       *ownTree
}

// NewNotary checks c.
func NewNotary(c NotaryConfig) (*Notary, error) {
	if c.DB == nil || c.Pool == nil || c.LogName == "" {
		return nil, errors.New("a notary needs a database and the name of the log")
	}
	if c.Signers == nil {
		c.Signers = func() []evidence.Signer { return nil }
	}
	if c.Rate == 0 {
		c.Rate = defaultRate
	}
	if c.Rate < 0 {
		return nil, fmt.Errorf("the rate of signatures is %g; it must be above 0", c.Rate)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	n := &Notary{
		c: c, orgs: make(map[string]*notaryOrg), published: make(map[string]int64), paths: make(map[string][2]int64),
		rate:   turnstile{every: time.Duration(float64(time.Second) / c.Rate)},
		ticked: c.Now().Add(-checkpointEvery), // the first tick is due at once
		fault:  func(context.Context, string) error { return nil },
	}
	for range c.Anchors {
		n.queue = append(n.queue, make(map[string][]byte))
		n.wake = append(n.wake, make(chan struct{}, 1))
	}
	var err error
	n.metrics, err = newNotaryMetrics(n, c.Registerer)
	return n, err
}

// Run works until ctx is done.
func (n *Notary) Run(ctx context.Context) error {
	if len(n.c.Signers()) == 0 {
		n.c.Log.WarnContext(ctx, "no signing keys: the audit log has no checkpoints, so a rewrite with the HMAC key cannot be shown; set --signing-key and --witness-key")
	}
	var wg sync.WaitGroup
	for i := range n.c.Anchors {
		wg.Go(func() { n.publisher(ctx, i) })
	}
	wg.Go(func() { n.every(ctx, time.Second, n.tickIfDue) })
	n.every(ctx, notaryRound, n.Round)
	wg.Wait()
	return nil
}

// every calls fn at an interval, and logs its error once until it changes.
func (n *Notary) every(ctx context.Context, pause time.Duration, fn func(context.Context) error) {
	last := ""
	for ctx.Err() == nil {
		err := fn(ctx)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text != last && text != "" && ctx.Err() == nil {
			n.c.Log.ErrorContext(ctx, "the audit log's tree or checkpoints", "err", err)
		}
		last = text
		rest(ctx, pause)
	}
}

// Ready returns an error if a tree does not fit what is stored about it.
func (n *Notary) Ready() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.tree != nil {
		return n.tree
	}
	for _, o := range n.orgs {
		if o.damaged != nil {
			return o.damaged
		}
	}
	return nil
}

// listed is a row of the directory.
type listed struct {
	org               string
	head              int64
	slot              *int64
	incarnation, size int64
	seq               int64
	leaf              []byte
}

func (n *Notary) list(ctx context.Context, q Querier) ([]listed, error) {
	rows, err := q.Query(ctx, "SELECT org_id, head, slot, coalesce(incarnation, 0), coalesce(size, 0), coalesce(seq, 0), leaf FROM aid_directory()")
	if err != nil {
		return nil, fmt.Errorf("reading the directory: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l listed, err error) {
		err = row.Scan(&l.org, &l.head, &l.slot, &l.incarnation, &l.size, &l.seq, &l.leaf)
		return l, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the directory: %w", err)
	}
	return all, nil
}

// Round looks at all orgs once. It extends the trees that are behind their chains, and signs
// those that have grown.
func (n *Notary) Round(ctx context.Context) error {
	if err := n.c.Guard.Check(ctx); errors.Is(err, ErrRolledBack) {
		return err
	}
	all, err := n.list(ctx, n.c.Pool)
	if err != nil {
		return err
	}
	now := n.c.Now()
	work := make([]string, 0, len(all))
	n.mu.Lock()
	for _, l := range all {
		o := n.orgs[l.org]
		if o == nil {
			o = &notaryOrg{republish: l.size > 0 && len(n.c.Anchors) > 0}
			n.orgs[l.org] = o
		}
		grown := l.head > l.seq || l.slot == nil
		switch {
		case !grown:
			o.since, o.behind = time.Time{}, 0
		case o.since.IsZero():
			o.since = now
		}
		if grown || o.republish || o.damaged != nil || n.c.Guard.Err(l.org) != nil {
			work = append(work, l.org)
		}
	}
	// The longest waiting org has its turn first.
	slices.SortStableFunc(work, func(a, b string) int { return n.orgs[a].since.Compare(n.orgs[b].since) })
	n.mu.Unlock()

	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	next := make(chan string)
	for range min(notaryAtOnce, len(work)) {
		wg.Go(func() {
			for org := range next {
				if err := n.visit(ctx, org); err != nil && ctx.Err() == nil {
					mu.Lock()
					failed = err
					mu.Unlock()
				}
			}
		})
	}
	for _, org := range work {
		if ctx.Err() != nil {
			break
		}
		next <- org
	}
	close(next)
	wg.Wait()
	return failed
}

// visit extends an org's tree and signs it if it is due.
func (n *Notary) visit(ctx context.Context, org string) error {
	err := n.extend(ctx, org)
	if err == nil && n.c.Guard.Err(org) != nil {
		err = n.compareAgain(ctx, org)
	}
	if err == nil {
		err = n.signIfDue(ctx, org)
	}
	n.mu.Lock()
	o := n.orgs[org]
	if errors.Is(err, ErrTree) {
		o.damaged = err
	} else if err == nil {
		o.damaged = nil
	}
	again := o.republish
	n.mu.Unlock()
	if err == nil && again {
		err = n.republish(ctx, org)
	}
	return err
}

// compareAgain compares an org's tree that was older than its signed checkpoints. The database
// may have been restored, or the chain reopened.
func (n *Notary) compareAgain(ctx context.Context, org string) error {
	return n.c.DB.InOrg(ctx, org, func(tx pgx.Tx) error {
		var incarnation int64
		if err := tx.QueryRow(ctx, "SELECT incarnation FROM audit_heads WHERE org_id = $1", org).Scan(&incarnation); err != nil {
			return err
		}
		keys, err := readKeys(ctx, tx, n.c.LogName, org)
		if err != nil {
			return err
		}
		return n.c.Guard.checkOrg(ctx, tx, org, incarnation, keys)
	})
}

// extend adds an org's entries to its tree until it has caught up with the chain.
func (n *Notary) extend(ctx context.Context, org string) error {
	for ctx.Err() == nil {
		var g growth
		err := n.c.DB.InOrg(ctx, org, func(tx pgx.Tx) (err error) {
			g, err = grow(ctx, tx, org, growBatch, n.own(org))
			return err
		})
		if errors.Is(err, pgx.ErrNoRows) {
			return nil // the org has no chain yet, or was deleted
		}
		if err != nil {
			return err
		}
		n.metrics.leaves.Add(float64(g.added))
		n.mu.Lock()
		n.orgs[org].behind = g.behind()
		n.mu.Unlock()
		if g.busy || g.behind() == 0 {
			return nil
		}
	}
	return ctx.Err()
}

// own returns the org's tree as this process has computed it. One worker at a time uses it.
func (n *Notary) own(org string) *ownTree {
	n.mu.Lock()
	defer n.mu.Unlock()
	o := n.orgs[org]
	if o.own == nil {
		o.own = &ownTree{}
	}
	return o.own
}

// signIfDue signs an org's tree if its last checkpoint is old enough, and the rate permits.
func (n *Notary) signIfDue(ctx context.Context, org string) error {
	n.mu.Lock()
	o := n.orgs[org]
	due := !o.since.IsZero() && n.c.Now().Sub(o.signed) >= checkpointEvery
	n.mu.Unlock()
	signers := n.c.Signers()
	if !due || len(signers) == 0 || !n.rate.pass(n.c.Now()) {
		return nil
	}
	return n.sign(ctx, org, signers)
}

// sign signs an org's tree, stores the checkpoint, and only then publishes it.
func (n *Notary) sign(ctx context.Context, org string, signers []evidence.Signer) error {
	var made StoredCheckpoint
	err := n.c.DB.InOrg(ctx, org, func(tx pgx.Tx) (err error) {
		made, err = n.signIn(ctx, tx, org, signers)
		if err != nil {
			return err
		}
		return n.fault(ctx, "committing")
	})
	if err == nil {
		err = n.fault(ctx, "committed")
	}
	switch {
	case err == nil && made.Note == nil:
		return nil // not due, or in the hands of another process
	case err != nil:
		if made.Note == nil {
			n.metrics.failures.Inc()
			return fmt.Errorf("signing the tree of %s: %w", org, err)
		}
		// It may be committed or not. What the database has is published.
		n.mu.Lock()
		n.orgs[org].republish = true
		n.mu.Unlock()
		n.metrics.failures.Inc()
		return fmt.Errorf("storing a checkpoint of %s: %w", org, err)
	}
	n.metrics.signed.Inc()
	n.mu.Lock()
	n.orgs[org].signed = n.c.Now()
	n.mu.Unlock()
	n.publish(evidence.OrgOrigin(n.c.LogName, org, made.Incarnation), made.Size, made.Note, made.Root)
	return n.fault(ctx, "published")
}

// signIn signs the tree of an org within a transaction. Without a note, nothing was to be done.
func (n *Notary) signIn(ctx context.Context, tx pgx.Tx, org string, signers []evidence.Signer) (made StoredCheckpoint, err error) {
	g, err := lockTree(ctx, tx, org)
	if err != nil || g.busy || g.tree.size == 0 {
		return made, err
	}
	if err := n.fault(ctx, "locked"); err != nil {
		return made, err
	}
	// The lock is held, so the last checkpoint is the last one that any process has stored. A key
	// change of an entry in the tree was committed with the entry, so it is seen.
	now := n.c.Now().UTC().Truncate(time.Microsecond)
	origin := evidence.OrgOrigin(n.c.LogName, org, g.incarnation)
	keys, err := readKeys(ctx, tx, n.c.LogName, org)
	if err != nil {
		return made, err
	}
	before, err := LastCheckpoint(ctx, tx, org, g.incarnation)
	if err != nil && !errors.Is(err, ErrNoCheckpoint) {
		return made, err
	}
	f := orgForest(org, g.incarnation)
	if err == nil {
		if before.Size > g.tree.size {
			return made, fmt.Errorf("%s: %w: it has %d leaves, and %d were signed", org, ErrTree, g.tree.size, before.Size)
		}
		if before.Size == g.tree.size || now.Sub(before.Time) < checkpointEvery && !now.Before(before.Time) {
			return made, nil
		}
		if err := n.continues(ctx, tx, keys, f, g.tree, origin, before.Note, before.Size, before.Root); err != nil {
			return made, err
		}
		if !now.After(before.Time) {
			now = before.Time.Add(time.Microsecond)
		}
	}
	if same, err := n.own(org).confirm(ctx, tx, org, g, before.Size, before.root()); err != nil || !same {
		return made, err
	}
	if err := n.fault(ctx, "proved"); err != nil {
		return made, err
	}
	if err := n.c.Guard.checkOrg(ctx, tx, org, g.incarnation, keys); err != nil {
		return made, err
	}
	if signers, err = keys.choose(signers, origin, g.tree.size, now); err != nil {
		return made, err
	}
	c := StoredCheckpoint{Incarnation: g.incarnation, FirstSeq: g.firstSeq, Size: g.tree.size, Root: g.tree.root(), Time: now}
	limited, cancel := context.WithTimeout(ctx, signDeadline)
	defer cancel()
	text := evidence.Checkpoint{Origin: origin, Size: c.Size, Root: c.Root, Time: now}
	if c.Note, err = evidence.Sign(limited, text, signers...); err != nil {
		return made, err
	}
	if err := n.fault(ctx, "signed"); err != nil {
		return made, err
	}
	nonce, err := slot(ctx, tx, org, n.c.Rand)
	if err != nil {
		return made, err
	}
	leaf := evidence.SlotData(nonce, text.Text())
	var b pgx.Batch
	b.Queue("INSERT INTO audit_checkpoints (org_id, incarnation, size, root, time, note) VALUES ($1, $2, $3, $4, $5, $6)",
		org, c.Incarnation, c.Size, c.Root[:], now, c.Note)
	b.Queue("UPDATE audit_slots SET incarnation = $2, size = $3, seq = $4, leaf = $5 WHERE org_id = $1", org, c.Incarnation, c.Size, c.LastSeq(), leaf[:])
	if err := tx.SendBatch(ctx, &b).Close(); err != nil {
		return made, fmt.Errorf("storing a checkpoint: %w", err)
	}
	return c, n.fault(ctx, "inserted")
}

// continues proves that a tree continues the one under its last stored checkpoint, whose
// signatures and columns are checked too.
func (n *Notary) continues(ctx context.Context, tx pgx.Tx, stored keyState, f forest, m *merkle, origin string, note []byte, size int64, root tlog.Hash) error {
	if n.c.Guard != nil {
		keys := n.c.Guard.with(stored)
		if len(keys.Keys) == 0 {
			return errors.New("the public keys were not read yet")
		}
		c, err := keys.Open(note, origin)
		if err != nil {
			return fmt.Errorf("%w: its last checkpoint: %w", ErrTree, err)
		}
		if c.Size != size || c.Root != root {
			return fmt.Errorf("%w: its last checkpoint differs from its row", ErrTree)
		}
	}
	proof, err := tlog.ProveTree(m.size, size, f.reader(ctx, tx, m))
	if err != nil {
		return damaged(err)
	}
	if tlog.CheckTree(proof, m.size, m.root(), size, root) != nil {
		return fmt.Errorf("%w: its first %d leaves are not those that were signed", ErrTree, size)
	}
	return nil
}

// slot returns the nonce of an org's slot in the directory. The first call makes the slot.
func slot(ctx context.Context, tx pgx.Tx, org string, random io.Reader) (nonce []byte, err error) {
	const stored = "SELECT nonce FROM audit_slots WHERE org_id = $1"
	err = tx.QueryRow(ctx, stored, org).Scan(&nonce)
	if !errors.Is(err, pgx.ErrNoRows) {
		return nonce, err
	}
	nonce = make([]byte, 32)
	if _, err := io.ReadFull(random, nonce); err != nil {
		return nil, err
	}
	leaf := evidence.SlotData(nonce, "")
	if _, err := tx.Exec(ctx, "INSERT INTO audit_slots (org_id, nonce, leaf) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", org, nonce, leaf[:]); err != nil {
		return nil, err
	}
	err = tx.QueryRow(ctx, stored, org).Scan(&nonce)
	return nonce, err
}

// ---- publishing ----

// republish publishes the newest stored checkpoint of an org.
func (n *Notary) republish(ctx context.Context, org string) error {
	var c StoredCheckpoint
	err := n.c.DB.InOrg(ctx, org, func(tx pgx.Tx) (err error) {
		c, err = NewestCheckpoint(ctx, tx, org)
		return err
	})
	if err != nil && !errors.Is(err, ErrNoCheckpoint) {
		return err
	}
	n.mu.Lock()
	n.orgs[org].republish = false
	n.mu.Unlock()
	if err == nil {
		n.publish(evidence.OrgOrigin(n.c.LogName, org, c.Incarnation), c.Size, c.Note, c.Root)
	}
	return nil
}

// publish gives a committed checkpoint to the anchors. It does not wait for them.
func (n *Notary) publish(origin string, size int64, note []byte, root tlog.Hash) {
	if n.c.Guard != nil {
		n.c.Guard.saw(origin, evidence.Checkpoint{Size: size, Root: root})
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if size <= n.published[origin] {
		return
	}
	n.published[origin] = size
	for i := range n.queue {
		n.queue[i][origin] = note
		select {
		case n.wake[i] <- struct{}{}:
		default:
		}
	}
}

// publisher gives checkpoints to one anchor, the newest of each origin. One that an anchor did
// not accept is sent again, unless there is a newer one.
func (n *Notary) publisher(ctx context.Context, anchor int) {
	for ctx.Err() == nil {
		if n.drain(ctx, anchor) {
			select {
			case <-ctx.Done():
			case <-n.wake[anchor]:
			}
		} else {
			rest(ctx, checkpointEvery)
		}
	}
}

// drain publishes what an anchor does not have. It returns false if the anchor failed.
func (n *Notary) drain(ctx context.Context, anchor int) bool {
	n.mu.Lock()
	todo := n.queue[anchor]
	n.queue[anchor] = make(map[string][]byte)
	n.mu.Unlock()
	ok := true
	for origin, note := range todo {
		err := ctx.Err()
		if ok && err == nil {
			limited, cancel := context.WithTimeout(ctx, checkpointEvery)
			err = n.c.Anchors[anchor].Publish(limited, origin, note)
			cancel()
			if err != nil && ctx.Err() == nil {
				n.metrics.unpublished.Inc()
				n.c.Log.WarnContext(ctx, "a checkpoint was not published; it is sent again", "origin", origin, "anchor", anchor+1, "err", err)
			}
		}
		if !ok || err != nil {
			ok = false
			n.mu.Lock()
			if n.queue[anchor][origin] == nil {
				n.queue[anchor][origin] = note
			}
			n.mu.Unlock()
		}
	}
	return ok
}

// A turnstile lets a number of callers pass in a second.
type turnstile struct {
	every time.Duration
	mu    sync.Mutex
	next  time.Time
}

// pass returns false if the caller must come again later. Ten may pass at once.
func (t *turnstile) pass(now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next.Before(now) {
		t.next = now
	}
	if t.next.Sub(now) >= 10*t.every {
		return false
	}
	t.next = t.next.Add(t.every)
	return true
}
