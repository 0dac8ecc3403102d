package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// ErrChainBad means that the last entry of a chain does not verify. Nothing is appended behind it.
var ErrChainBad = errors.New("the end of the audit chain is not valid")

const (
	tailEntries = 10_000        // checked behind an org's first append in a process
	inspectAt   = 3 * time.Hour // after midnight in UTC, when whole chains are checked
	inspectRest = 50 * time.Millisecond
	tailPause   = time.Second // between two looks at the orgs that were appended to first
)

// checkEnd checks the head and the last entry of the locked chain, before the first append of
// this process to it. Its last 10,000 entries are checked by Inspect afterwards.
func (c *Chain) checkEnd(ctx context.Context, tx pgx.Tx, org string, seq, incarnation int64, epoch int32) error {
	c.ends.Lock()
	done := c.ends.checked[org]
	c.ends.Unlock()
	if done {
		return nil
	}
	// A key that was removed on purpose cannot check its entries.
	if _, ok := c.c.Keys.sealer(org, epoch); ok && seq > 0 {
		var bad *Bad
		if err := verifyHead(ctx, tx, org, c.c.Keys); errors.As(err, &bad) {
			c.setBad(ctx, org, bad)
			return fmt.Errorf("%w: %s: %w: see docs/restore.md", ErrChainBad, org, bad)
		} else if err != nil {
			return err
		}
	}
	if err := c.c.Guard.first(ctx, tx, org, incarnation); err != nil {
		return err
	}
	c.ends.Lock()
	defer c.ends.Unlock()
	c.ends.checked[org] = true
	if seq > 1 {
		c.ends.tails[org] = seq
	}
	return nil
}

// setBad stores the result of a check of an org's chain. nil: it is valid.
func (c *Chain) setBad(ctx context.Context, org string, bad *Bad) {
	c.ends.Lock()
	defer c.ends.Unlock()
	switch before := c.ends.bad[org]; {
	case bad == nil:
		delete(c.ends.bad, org)
	case before == nil || before.Seq != bad.Seq || before.Problem != bad.Problem:
		c.c.Log.ErrorContext(ctx, "the audit chain is not valid", "org", org, "entry", bad.Seq, "problem", bad.Problem)
		c.ends.bad[org] = bad
	}
}

// Bad returns the first org with a chain that a check found to be invalid.
func (c *Chain) Bad() error {
	c.ends.Lock()
	defer c.ends.Unlock()
	for org, bad := range c.ends.bad {
		return fmt.Errorf("the audit log of %s is not valid: %w: see docs/restore.md", org, bad)
	}
	return nil
}

func (c *Chain) badCount() int32 {
	c.ends.Lock()
	defer c.ends.Unlock()
	return int32(len(c.ends.bad))
}

// Inspect checks chains in the background until ctx is done. After the first append of this
// process to a chain it checks the last entries. Every night it checks all chains and trees.
func (c *Chain) Inspect(ctx context.Context, db Querier) error {
	night := nextNight(c.c.Now())
	for ctx.Err() == nil {
		if err := c.inspectTails(ctx); err != nil && ctx.Err() == nil {
			c.c.Log.WarnContext(ctx, "the end of an audit chain was not checked; it is tried again", "err", err)
		}
		if now := c.c.Now(); !now.Before(night) {
			night = nextNight(now)
			if err := c.InspectAll(ctx, db); err != nil && ctx.Err() == nil {
				c.c.Log.WarnContext(ctx, "not all audit chains were checked this night", "err", err)
			}
		}
		rest(ctx, tailPause)
	}
	return nil
}

// inspectTails checks the ends of the chains that were appended to for the first time.
func (c *Chain) inspectTails(ctx context.Context) (failed error) {
	c.ends.Lock()
	tails := c.ends.tails
	c.ends.tails = make(map[string]int64)
	c.ends.Unlock()
	for org, seq := range tails {
		if err := c.inspectTail(ctx, org, seq); err != nil {
			failed = fmt.Errorf("%s: %w", org, err)
			c.ends.Lock()
			c.ends.tails[org] = seq
			c.ends.Unlock()
		}
	}
	return failed
}

func nextNight(now time.Time) time.Time {
	at := now.UTC().Truncate(24 * time.Hour).Add(inspectAt)
	if !at.After(now) {
		at = at.Add(24 * time.Hour)
	}
	return at
}

// inspectTail checks the entries of a chain that end at seq.
func (c *Chain) inspectTail(ctx context.Context, org string, seq int64) error {
	v := verifier{report: Report{Org: org}, keys: c.c.Keys}
	from := max(1, seq-tailEntries+1)
	var begin Trim
	err := c.c.DB.InOrg(ctx, org, func(tx pgx.Tx) (err error) {
		if begin, err = trimmed(ctx, tx, org); err != nil {
			return err
		}
		if from <= begin.UpTo {
			v.begin(begin)
			from = begin.UpTo + 1
			return nil
		}
		err = tx.QueryRow(ctx, "SELECT prev_mac FROM audit_entries WHERE org_id = $1 AND seq = $2", org, from).Scan(&v.mac)
		if errors.Is(err, pgx.ErrNoRows) {
			// It is missing, which step reports, or the chain was reopened behind it.
			return tx.QueryRow(ctx, "SELECT seq, prev_mac FROM audit_entries WHERE org_id = $1 AND seq > $2 ORDER BY seq LIMIT 1", org, from).Scan(&from, &v.mac)
		}
		return err
	})
	if err != nil {
		return err
	}
	v.report.To = from - 1
	for v.report.To < seq {
		var more bool
		err := c.c.DB.InOrg(ctx, org, func(tx pgx.Tx) (err error) {
			more, err = v.step(ctx, tx)
			return err
		})
		var bad *Bad
		switch {
		case errors.As(err, &bad):
			if now, err := trimmedIn(ctx, c.c.DB, org); err != nil || now.UpTo > begin.UpTo && now.UpTo >= bad.Seq {
				return errors.Join(err, fmt.Errorf("entries up to %d left meanwhile", now.UpTo))
			}
			c.setBad(ctx, org, bad)
			return nil
		case err != nil:
			return err
		case !more:
			return nil
		}
		rest(ctx, inspectRest)
	}
	return nil
}

// InspectAll checks the chains of all orgs, and that their trees are those of the rows.
func (c *Chain) InspectAll(ctx context.Context, db Querier) error {
	rows, err := db.Query(ctx, "SELECT org_id FROM aid_directory() WHERE head > 0")
	if err != nil {
		return err
	}
	orgs, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	var failed error
	for _, org := range orgs {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		report, err := Verify(ctx, c.c.DB, org, c.c.Keys, func(int64) { rest(ctx, inspectRest) })
		bad := report.FirstBad
		if err == nil && bad == nil {
			bad, err = c.inspectTree(ctx, org)
			if now, again := trimmedIn(ctx, c.c.DB, org); again != nil || bad != nil && now.UpTo > report.Trimmed {
				bad, err = nil, errors.Join(err, again, fmt.Errorf("entries up to %d left meanwhile", now.UpTo))
			}
		}
		if err != nil {
			failed = fmt.Errorf("%s: %w", org, err)
			continue
		}
		c.setBad(ctx, org, bad)
	}
	return failed
}

// inspectTree builds an org's tree again from its rows, and compares the roots. Rows that were
// archived are taken from the tree.
func (c *Chain) inspectTree(ctx context.Context, org string) (*Bad, error) {
	var incarnation, first, size int64
	err := c.c.DB.InOrg(ctx, org, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, "SELECT incarnation, first_seq, size FROM audit_trees WHERE org_id = $1 ORDER BY incarnation DESC LIMIT 1", org).Scan(&incarnation, &first, &size)
	})
	if errors.Is(err, pgx.ErrNoRows) || err == nil && size == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f := orgForest(org, incarnation)
	var r *evidence.Range
	err = c.c.DB.InOrg(ctx, org, func(tx pgx.Tx) error {
		var from int64
		err := tx.QueryRow(ctx, "SELECT coalesce(min(seq), $3) FROM audit_entries WHERE org_id = $1 AND seq >= $2", org, first, first+size).Scan(&from)
		if err == nil {
			r, err = f.before(ctx, tx, min(from-first, size))
		}
		return err
	})
	for err == nil && r.Size() < size && ctx.Err() == nil {
		err = c.c.DB.InOrg(ctx, org, func(tx pgx.Tx) error { return f.compare(ctx, tx, org, incarnation, first, size, r) })
		rest(ctx, inspectRest)
	}
	if err == nil && ctx.Err() == nil {
		err = c.c.DB.InOrg(ctx, org, func(tx pgx.Tx) error {
			stored, err := f.before(ctx, tx, size)
			if err == nil && stored.Root() != r.Root() {
				err = fmt.Errorf("%w: the rows have another root", ErrTree)
			}
			return err
		})
	}
	if err == nil && ctx.Err() == nil {
		// What left the database must be what was signed.
		var begin Trim
		var stored *evidence.Range
		if begin, err = trimmedIn(ctx, c.c.DB, org); err == nil && begin.UpTo > 0 && begin.incarnation == incarnation {
			err = c.c.DB.InOrg(ctx, org, func(tx pgx.Tx) (err error) {
				stored, err = f.before(ctx, tx, begin.Size)
				return err
			})
			if cp, bad := evidence.ParseNote(begin.Checkpoint); err == nil && (bad != nil || cp.Root != stored.Root() || cp.Size != begin.Size) {
				err = fmt.Errorf("%w: the checkpoint of what left the database has another root", ErrTree)
			}
		}
	}
	if errors.Is(err, ErrTree) {
		return &Bad{first + size - 1, "the tree up to this entry: " + err.Error()}, nil
	}
	return nil, err
}

// compare adds the next rows to r, and compares the tiles of leaves with them.
func (f forest) compare(ctx context.Context, tx pgx.Tx, org string, incarnation, first, size int64, r *evidence.Range) error {
	at := r.Size()
	end := min(at+window, size)
	hashes := make([]tlog.Hash, 0, end-at)
	if err := leaves(ctx, tx, org, incarnation, first+at, first+end-1, func(h tlog.Hash) { hashes = append(hashes, h) }); err != nil {
		return err
	}
	var levels []int16
	var ns []int64
	for n := (at + tileWidth - 1) / tileWidth; (n+1)*tileWidth <= end; n++ {
		levels, ns = append(levels, 0), append(ns, n)
	}
	tiles, err := f.read(ctx, tx, levels, ns)
	if err != nil {
		return err
	}
	for _, n := range ns {
		var tile []byte
		for _, h := range hashes[n*tileWidth-at : (n+1)*tileWidth-at] {
			tile = append(tile, h[:]...)
		}
		if string(tile) != string(tiles[tileKey{0, n}]) {
			return fmt.Errorf("%w: tile %d of its leaves differs from the rows", ErrTree, n)
		}
	}
	for _, h := range hashes {
		r.Append(h)
	}
	return nil
}
