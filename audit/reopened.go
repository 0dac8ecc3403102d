package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// Reopened is the first entry of an org's chain after a restore that lost entries. The chain
// goes on in its next incarnation, behind all numbers that had a meaning before.
type Reopened struct {
	Time   time.Time `json:"time"`
	Org    string    `json:"org"`
	Writer string    `json:"writer"`

	Actor    Actor  `json:"actor"`
	Reason   string `json:"reason"`
	Previous string `json:"previous"`  // the newest checkpoint outside, signed
	Restored int64  `json:"restored"`  // leaves of that incarnation that the database has
	LostFrom int64  `json:"lost_from"` // numbers of the entries that were lost; 0: none
	LostTo   int64  `json:"lost_to"`
}

func (e Reopened) Head() Head {
	return Head{Kind: evidence.KindReopened, Time: e.Time, Org: e.Org, Writer: e.Writer}
}

func (e Reopened) stamped(org, writer string, now time.Time) Entry {
	e.Org, e.Writer, e.Time = org, writer, or(e.Time, now)
	return e
}

// maxReason limits the reason of a reopening.
const maxReason = 1024

func (e Reopened) Encode() []byte {
	o := begin(1024, evidence.KindReopened, e.Time, e.Org, e.Writer, "")
	o.actor(e.Actor)
	o.must("reason", e.Reason, maxReason)
	o.must("previous", e.Previous, maxPrevious)
	o.num("restored", e.Restored)
	o.num("lost_from", e.LostFrom)
	o.num("lost_to", e.LostTo)
	return o.end()
}

// maxPrevious limits the checkpoint in an entry. With its signatures it has about 700 bytes.
const maxPrevious = 16 << 10

// ErrNothingLost means that the database has all that was signed.
var ErrNothingLost = errors.New("the database has every entry that was signed")

// A Reopening accepts what a restored database lacks.
type Reopening struct {
	Org     string
	LogName string
	Actor   Actor
	Reason  string
	Keys    evidence.KeySet
	// Newest returns the newest checkpoint of an origin outside of the database, or nil.
	Newest func(ctx context.Context, origin string) ([]byte, error)
}

// ReopenResult has what Reopen did.
type ReopenResult struct {
	Directory        int64 // leaves of the directory that were lost
	Incarnation      int64 // the new one
	First            int64 // number of its first entry
	LostFrom, LostTo int64
}

// Reopen accepts the loss of entries after a restore. The org's chain goes on in its next
// incarnation, behind the newest signed number. The directory's log goes on behind the newest
// signed size: leaves that say "lost" are in the place of those that were lost. It needs the
// owner's role. The error is ErrNothingLost if nothing is lost.
func (c *Chain) Reopen(ctx context.Context, r Reopening) (done ReopenResult, err error) {
	if r.Reason == "" || len(r.Reason) > maxReason {
		return done, fmt.Errorf("a reopening needs a reason with 1 to %d bytes", maxReason)
	}
	err = c.c.DB.InOrg(ctx, r.Org, func(tx pgx.Tx) error {
		done = ReopenResult{}
		directory, err := r.directory(ctx, tx, &done)
		if err != nil {
			return err
		}
		chain, err := r.chain(ctx, tx, c, &done)
		if err == nil && !directory && !chain {
			return ErrNothingLost
		}
		return err
	})
	return done, err
}

// outside returns the newest checkpoint of an origin outside of the database.
func (r *Reopening) outside(ctx context.Context, origin string) (c evidence.Checkpoint, note []byte, err error) {
	if note, err = r.Newest(ctx, origin); err != nil || note == nil {
		return c, nil, err
	}
	c, err = r.Keys.Open(note, origin)
	return c, note, err
}

func (r *Reopening) accept(ctx context.Context, tx pgx.Tx, origin string, restored, size int64, note []byte) error {
	_, err := tx.Exec(ctx, "INSERT INTO audit_reopened (origin, restored, size, note, actor, reason) VALUES ($1, $2, $3, $4, $5, $6)",
		origin, restored, size, note, r.Actor.ID, r.Reason)
	if err != nil {
		return fmt.Errorf("recording the loss: %w", err)
	}
	return nil
}

// lostLeaf is the data of a leaf in the directory's log in the place of one that was lost.
func lostLeaf(n int64) []byte {
	const domain = "aid lost v1"
	b := binary.BigEndian.AppendUint64(nil, uint64(len(domain)))
	b = append(b, domain...)
	b = binary.BigEndian.AppendUint64(b, 8)
	return binary.BigEndian.AppendUint64(b, uint64(n))
}

// maxLostTicks limits the ticks that a restore may lose: about 115 days.
const maxLostTicks = 1_000_000

// directory continues the directory's log behind the newest signed size.
func (r *Reopening) directory(ctx context.Context, tx pgx.Tx, done *ReopenResult) (bool, error) {
	origin := evidence.DirectoryOrigin(r.LogName)
	outside, note, err := r.outside(ctx, origin)
	if err != nil || note == nil {
		return false, err
	}
	d, err := lockDirectory(ctx, tx)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, errors.New("a control plane signs at the moment: try again")
	} else if err != nil {
		return false, err
	}
	if outside.Size <= d.tree.size {
		return false, nil // it was reopened before, or nothing is lost
	}
	restored := d.tree.size
	if outside.Size-restored > maxLostTicks {
		return false, fmt.Errorf("the directory has %d leaves, and %d were signed: this backup is too old", restored, outside.Size)
	}
	for d.tree.size < outside.Size {
		if err := d.addLeaf(ctx, tx, lostLeaf(d.tree.size)); err != nil {
			return false, err
		}
	}
	if err := d.save(ctx, tx); err != nil {
		return false, err
	}
	done.Directory = outside.Size - restored
	return true, r.accept(ctx, tx, origin, restored, outside.Size, note)
}

// chain begins the next incarnation of the org's chain.
func (r *Reopening) chain(ctx context.Context, tx pgx.Tx, c *Chain, done *ReopenResult) (bool, error) {
	if err := lockChain(ctx, tx, r.Org); err != nil {
		return false, err
	}
	var head, incarnation int64
	if err := tx.QueryRow(ctx, "SELECT seq, incarnation FROM audit_heads WHERE org_id = $1", r.Org).Scan(&head, &incarnation); err != nil {
		return false, err
	}
	origin := evidence.OrgOrigin(r.LogName, r.Org, incarnation)
	outside, note, err := r.outside(ctx, origin)
	if err != nil || note == nil {
		return false, err
	}
	first, err := firstSeq(ctx, tx, r.Org, incarnation)
	if err != nil {
		return false, err
	}
	restored := head - first + 1
	e := Reopened{Actor: r.Actor, Reason: r.Reason, Previous: string(note), Restored: restored}
	last := first + outside.Size - 1
	if last > head {
		e.LostFrom, e.LostTo = head+1, last
	} else {
		// All numbers are there. They must be the entries that were signed.
		begin, err := trimmed(ctx, tx, r.Org)
		if err != nil {
			return false, err
		}
		left := min(begin.leaves(incarnation, first), outside.Size) // the tree has those that left the database
		tree, err := RangeBefore(ctx, tx, r.Org, incarnation, left)
		if err != nil {
			return false, err
		}
		if err := leaves(ctx, tx, r.Org, incarnation, first+left, last, func(h tlog.Hash) { tree.Append(h) }); err != nil {
			return false, err
		}
		if tree.Root() != outside.Root {
			return false, fmt.Errorf("%w: entries up to %d are not those that were signed; restore another backup", ErrTree, last)
		}
		var there bool
		err = tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM audit_checkpoints WHERE org_id = $1 AND incarnation = $2 AND size = $3)", r.Org, incarnation, outside.Size).Scan(&there)
		if err != nil || there {
			return false, err
		}
	}
	b := Batch{Org: r.Org, Writer: controlWriter, Shipper: controlWriter, reopenAfter: max(head, last)}
	have, _, _, err := position(ctx, tx, r.Org, controlWriter, "")
	if err != nil {
		return false, err
	}
	entry := Stamp(e, r.Org, controlWriter, c.c.Now()).Encode()
	if _, err := c.append(ctx, tx, b, []Record{{Org: r.Org, Prev: have, Entry: entry}}); err != nil {
		return false, fmt.Errorf("beginning incarnation %d: %w", incarnation+1, err)
	}
	done.Incarnation, done.First, done.LostFrom, done.LostTo = incarnation+1, b.reopenAfter+1, e.LostFrom, e.LostTo
	return true, r.accept(ctx, tx, origin, restored, outside.Size, note)
}
