package audit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// maxLanes bounds the orgs that have a lane of their own. A lane has at most one
// batch in memory (1 MiB, or one longer record), one open file and its buffer of
// 256 KiB. If more orgs fail than that, those after them wait.
const maxLanes = 16

// maxForks is how often a writer's records in an org are offered as a fork, each time
// under another writer id, until Ship runs again.
const maxForks = 2

// A lane ships the records of one org from its own place in the segments, because
// the org's chain did not take a batch, or takes them slowly. It ends where the
// common cursor is.
type lane struct {
	org string
	c   cursor // of the lane's goroutine

	// The Writer's mu guards the following.
	until   uint64    // the common cursor left the org's records up to here to the lane
	pos     uint64    // the chain has the org's records up to here
	waiting int       // about how many records that leaves
	oldest  time.Time // of the first of them
	err     error     // why the last batch was not taken; nil: it was
	since   time.Time // of the first failure in a row
}

// stuck says whether somebody must look at it.
func (l *lane) stuck(now time.Time) bool {
	return l.err != nil && (definite(l.err) || now.Sub(l.since) > stuckAfter)
}

// definite says whether sending the same again cannot help.
func definite(err error) bool { return errors.Is(err, ErrRefused) || errors.Is(err, ErrFork) }

// parcels splits records by org. What is of an org with a lane is left to the lane.
func (w *Writer) parcels(recs []Record) []parcel {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ps []parcel
	at := make(map[string]int)
	for _, r := range recs {
		if l := w.lanes[r.Org]; l != nil {
			l.until = r.Seq
			l.waiting++
			continue
		}
		i, ok := at[r.Org]
		if !ok {
			i = len(ps)
			at[r.Org] = i
			ps = append(ps, parcel{org: r.Org})
		}
		ps[i].recs = append(ps[i].recs, r)
	}
	return ps
}

func (w *Writer) lanesFull() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.lanes) >= maxLanes
}

// separate gives the org of a parcel that failed a lane, if there is one left.
func (sh *shipping) separate(ctx context.Context, p parcel, err error) bool {
	w := sh.w
	first, last := p.recs[0].Seq, p.recs[len(p.recs)-1].Seq
	l := &lane{org: p.org, until: last, pos: first - 1, waiting: len(p.recs)}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.lanes) >= maxLanes {
		return false
	}
	w.seekLocked(&l.c, first-1)
	w.c.Log.WarnContext(ctx, "an org's audit records are shipped apart from those of other orgs", "org", p.org, "err", err)
	sh.startLocked(ctx, l)
	return true
}

// startLocked ships a new lane until it has caught up.
func (sh *shipping) startLocked(ctx context.Context, l *lane) {
	l.c.org = l.org
	sh.w.lanes[l.org] = l
	sh.running.Go(func() {
		defer l.c.close()
		if err := sh.drive(ctx, l); err != nil {
			select {
			case sh.failed <- err:
			default:
			}
		}
	})
}

// drive ships a lane until it has caught up. An error means that a segment cannot be
// read.
func (sh *shipping) drive(ctx context.Context, l *lane) error {
	w := sh.w
	var writer string
	var recs []Record
	pause := minSendPause
	for ctx.Err() == nil {
		if len(recs) == 0 {
			w.mu.Lock()
			l.c.limit = l.until
			w.mu.Unlock()
			var err error
			if writer, recs, err = w.read(&l.c); err != nil {
				return err
			}
			if len(recs) == 0 {
				if w.rejoin(ctx, l) {
					return nil
				}
				continue
			}
			w.noteOldest(l, recs)
		}
		err := sh.sendOrg(ctx, writer, l.org, recs)
		var back *rewind
		switch {
		case err == nil:
			w.advance(l, len(recs))
			full := len(recs) >= maxSendRecords/2
			recs, pause = nil, minSendPause
			if !full {
				rest(ctx, sendInterval)
			}
		case errors.As(err, &back):
			w.c.Log.WarnContext(ctx, "the control plane has fewer audit records than it acknowledged; they are sent again",
				"org", l.org, "writer", back.writer, "have", back.have)
			w.rewind(l)
			recs = nil
		case ctx.Err() != nil:
			return nil
		default:
			w.metrics.shipFailures.Inc()
			waiting := w.notTaken(l, err)
			wait := w.jitter(pause)
			w.c.Log.Log(ctx, again(pause), "the control plane does not take an org's audit records", "org", l.org, "err", err, "waiting", waiting, "pause", wait)
			pause = min(2*pause, maxSendPause)
			rest(ctx, wait)
		}
	}
	return nil
}

// notTaken notes why a lane's batch was not taken.
func (w *Writer) notTaken(l *lane, err error) (waiting int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if l.err == nil {
		l.since = w.c.Now()
	}
	l.err = err
	return l.waiting
}

// advance notes that the chain has all that the lane has read.
func (w *Writer) advance(l *lane, n int) {
	w.mu.Lock()
	l.err, l.pos, l.waiting = nil, l.c.at, max(0, l.waiting-n)
	w.mu.Unlock()
	w.acknowledge()
}

// rejoin ends a lane that has nothing left to send, unless the common cursor has
// left more to it meanwhile.
func (w *Writer) rejoin(ctx context.Context, l *lane) bool {
	w.mu.Lock()
	if l.until > l.c.limit {
		w.mu.Unlock()
		return false
	}
	delete(w.lanes, l.org)
	w.mu.Unlock()
	w.c.Log.InfoContext(ctx, "an org's audit records are shipped with those of other orgs again", "org", l.org)
	w.acknowledge()
	return true
}

// rewind is sendOrg's error when the chain has lost records that may be here.
type rewind struct {
	writer string
	have   uint64
}

func (r *rewind) Error() string {
	return fmt.Sprintf("writer %s: send again after %d", r.writer, r.have)
}

// rewind moves a lane back to the oldest record here: a chain that lacks records of
// one writer may lack those of writers before it. The chain drops what it has.
func (w *Writer) rewind(l *lane) {
	w.mu.Lock()
	w.seekLocked(&l.c, 0)
	l.pos = min(l.pos, l.c.after)
	w.mu.Unlock()
	w.acknowledge()
}

// sendOrg sends records of one writer in one org. All are committed when it returns
// nil.
func (sh *shipping) sendOrg(ctx context.Context, writer, org string, recs []Record) error {
	w, k := sh.w, source{writer, org}
	for range maxSendRecords {
		shipper := w.ID()
		sh.mu.Lock()
		forks := sh.forks[k]
		had, again := sh.rewound[k]
		sh.mu.Unlock()
		err := sh.send(ctx, sendDeadline, Batch{Org: org, Writer: writer, Shipper: shipper, Fork: forks > 0, Records: recs})
		var behind *Behind
		switch {
		case err == nil:
			return nil
		case errors.As(err, &behind):
			if !again || had != behind.Have {
				sh.mu.Lock()
				sh.rewound[k] = behind.Have
				sh.mu.Unlock()
				return &rewind{writer, behind.Have}
			}
			// What lies between is not here any more. Say so, once and for all.
			prev := recs[0].Prev
			if prev <= behind.Have {
				return err
			}
			gap := Gap{Org: org, Writer: writer, After: behind.Have, Last: prev}
			if e, err := Parse(recs[0].Entry); err == nil {
				gap.Time = e.Head().Time
			}
			w.metrics.gaps.Inc()
			w.c.Log.ErrorContext(ctx, "the control plane lost audit records that are not kept here: a gap is recorded", "org", org, "writer", writer,
				"after", behind.Have, "last", prev)
			recs = append([]Record{{Seq: prev, Prev: behind.Have, Org: org, Entry: gap.Encode()}}, recs...)
		case errors.Is(err, ErrFork):
			if forks >= maxForks {
				return err
			}
			if writer == shipper || forks > 0 {
				if err := w.changeID(ctx, shipper); err != nil {
					return err
				}
			}
			sh.mu.Lock()
			sh.forks[k]++
			sh.mu.Unlock()
		case errors.Is(err, ErrRefused) && len(recs) > 1:
			// One record is enough for a batch to be rejected. The others are not.
			half := len(recs) / 2
			if err := sh.sendOrg(ctx, writer, org, recs[:half]); err != nil {
				return err
			}
			return sh.sendOrg(ctx, writer, org, recs[half:])
		case errors.Is(err, ErrRefused):
			return sh.quarantine(ctx, writer, recs[0], forks > 0, err)
		default:
			return err
		}
	}
	return fmt.Errorf("records of writer %s in org %s are answered differently again and again", writer, org)
}

// stuckLocked says which orgs' records do not reach the control plane; nil: none.
func (w *Writer) stuckLocked(now time.Time) error {
	var orgs []string
	var first *lane
	for _, org := range slices.Sorted(maps.Keys(w.lanes)) {
		if l := w.lanes[org]; l.stuck(now) {
			orgs = append(orgs, org)
			if first == nil {
				first = l
			}
		}
	}
	if first == nil {
		return nil
	}
	return fmt.Errorf("the control plane does not take the audit records of org %s: in %s %d wait, since %s: %w",
		strings.Join(orgs, ", "), first.org, first.waiting, first.since.UTC().Format(time.RFC3339), first.err)
}

// Failure is why a batch was not taken lately, of an org that still fails; nil: none
// does. Shipping says when that needs attention.
func (w *Writer) Failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, org := range slices.Sorted(maps.Keys(w.lanes)) {
		if err := w.lanes[org].err; err != nil {
			return fmt.Errorf("org %s: %w", org, err)
		}
	}
	return w.refused
}
