package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"
)

// Every org with a failed batch has a lane, which takes about 10 KiB. Only in its turn it also
// has a batch (1 MiB, or one longer record), an open file and a buffer of 256 KiB.
const (
	// lanesAtOnce is how many lanes have a turn: this many lanes without a failure, and this
	// many with one. So lanes that hang do not block lanes that are only behind.
	lanesAtOnce = 16
	// freshDeadline limits the first batch of a lane, and later ones after success.
	freshDeadline = 10 * time.Second
	// maxLanePause is the longest pause of a lane. The pauses grow with the number of
	// lanes, so that all of them send as often as lanesAtOnce would.
	maxLanePause = 2 * time.Minute
)

// maxForks is how often a writer's records in an org are sent as a fork, each time under
// another writer id, until Ship runs again.
const maxForks = 2

// A lane ships the records of one org from its own position in the segments, because the
// org's chain rejected a batch or is slow. It ends when it reaches the common cursor.
type lane struct {
	org  string
	c    cursor // used by the lane's goroutine
	stop context.CancelFunc

	// The Writer's mu guards the following.
	until   uint64    // the lane ships the org's records up to here
	pos     uint64    // the chain has the org's records up to here
	had     uint64    // the chain had the org's records up to here; they are sent again
	waiting int       // about how many records remain
	oldest  time.Time // time of the first of them
	err     error     // why the last batch was rejected; nil: it was accepted
	since   time.Time // time of the first failure in a row
}

// stuck reports whether the lane needs attention.
func (l *lane) stuck(now time.Time) bool {
	return l.err != nil && (definite(l.err) || now.Sub(l.since) > stuckAfter)
}

// definite reports whether sending the same batch again cannot help.
func definite(err error) bool { return errors.Is(err, ErrRefused) || errors.Is(err, ErrFork) }

// parcels splits records by org. Records of an org with a lane are left to the lane.
func (w *Writer) parcels(recs []Record) []parcel {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ps []parcel
	at := make(map[string]int)
	for _, r := range recs {
		if l := w.lanes[r.Org]; l != nil {
			if r.Seq > l.until {
				l.until = r.Seq
				l.waiting++
			}
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

func (w *Writer) laneCount() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.lanes)
}

// separate starts a lane for the org of a failed parcel.
func (sh *shipping) separate(ctx context.Context, p parcel, err error) {
	w := sh.w
	first, last := p.recs[0].Seq, p.recs[len(p.recs)-1].Seq
	l := &lane{org: p.org, until: last, pos: first - 1, waiting: len(p.recs)}
	w.mu.Lock()
	defer w.mu.Unlock()
	if l := w.lanes[p.org]; l != nil {
		// recheck has started a lane meanwhile, which will ship these records.
		l.until, l.waiting = max(l.until, last), l.waiting+len(p.recs)
		return
	}
	w.seekLocked(&l.c, first-1)
	sh.streak = append(sh.streak, l)
	level := slog.LevelWarn
	if len(sh.streak) > lanesAtOnce {
		level = slog.LevelDebug // the cause is not this org
	}
	w.c.Log.Log(ctx, level, "an org's audit records are shipped separately from those of other orgs", "org", p.org, "err", err)
	sh.startLocked(ctx, l)
}

// taken is called when the chain of an org has accepted a batch. If many orgs failed in a row
// before, the cause was the control plane or its database, not their chains. Their lanes end,
// so that waiting records are read once and not once for each org.
func (sh *shipping) taken(org string) {
	w := sh.w
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(sh.merged, org)
	if len(sh.streak) > lanesAtOnce {
		sh.merge = append(sh.merge, sh.streak...)
		w.tellLocked()
	}
	sh.streak = nil
}

// together ends these lanes, and moves the common cursor back to their position. An org is moved
// at most once until its chain accepts a batch.
func (sh *shipping) together(ctx context.Context, c *cursor) bool {
	w := sh.w
	w.mu.Lock()
	defer w.mu.Unlock()
	back, orgs := w.passed, 0
	for _, l := range sh.merge {
		if w.lanes[l.org] != l || sh.merged[l.org] || l.err != nil && definite(l.err) {
			continue
		}
		sh.merged[l.org] = true
		l.stop()
		delete(w.lanes, l.org)
		w.releasedLocked(l.org)
		back = min(back, l.pos)
		orgs++
	}
	sh.merge = nil
	if orgs == 0 {
		return false
	}
	w.passLocked(back)
	w.seekLocked(c, back)
	w.c.Log.InfoContext(ctx, "the control plane accepts audit records again; orgs are shipped together", "orgs", orgs)
	return true
}

// startLocked ships a new lane until it has caught up.
func (sh *shipping) startLocked(ctx context.Context, l *lane) {
	ctx, l.stop = context.WithCancel(ctx)
	l.c.org = l.org
	sh.w.lanes[l.org] = l
	sh.w.heldLocked(l)
	sh.running.Go(func() {
		defer l.stop()
		defer l.c.close()
		if err := sh.drive(ctx, l); err != nil {
			select {
			case sh.failed <- err:
			default:
			}
		}
	})
}

// drive ships a lane until it has caught up. It returns an error if a segment cannot be read.
func (sh *shipping) drive(ctx context.Context, l *lane) error {
	w := sh.w
	turns, limit, pause := sh.fresh, freshDeadline, minSendPause
	for {
		select {
		case turns <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		sent, more, err := sh.step(ctx, l, limit)
		l.c.close()
		<-turns
		var unread *unreadable
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &unread):
			return unread.error
		case err == nil && sent == 0 && !more:
			return nil
		case err == nil:
			turns, limit, pause = sh.fresh, freshDeadline, minSendPause
			if sent > 0 && sent < maxSendRecords/2 {
				rest(ctx, sendInterval)
			}
		default:
			turns, limit = sh.failing, sendDeadline
			w.metrics.shipFailures.Inc()
			waiting := w.notTaken(l, err)
			wait := w.jitter(pause)
			w.c.Log.Log(ctx, again(pause), "the control plane does not accept an org's audit records", "org", l.org, "err", err, "waiting", waiting, "pause", wait)
			most := min(maxSendPause*time.Duration(1+w.laneCount()/lanesAtOnce), maxLanePause)
			pause = min(2*pause, most)
			rest(ctx, wait)
		}
	}
}

// unreadable is an error from reading a segment.
type unreadable struct{ error }

// step sends the next batch of a lane. If the batch is rejected, the lane's position stays. If
// more is false, the lane has ended.
func (sh *shipping) step(ctx context.Context, l *lane, limit time.Duration) (sent int, more bool, err error) {
	w := sh.w
	w.mu.Lock()
	l.c.limit = l.until
	w.mu.Unlock()
	at := l.c.mark()
	writer, recs, err := w.read(&l.c)
	if err != nil {
		return 0, false, &unreadable{err}
	}
	if len(recs) == 0 {
		return 0, !w.rejoin(ctx, l), nil
	}
	w.noteOldest(l, recs)
	err = sh.sendOrg(ctx, limit, writer, l.org, recs)
	var back *rewind
	switch {
	case err == nil:
		w.advance(l, len(recs))
		return len(recs), true, nil
	case errors.As(err, &back):
		w.c.Log.WarnContext(ctx, "the control plane has fewer audit records than it acknowledged; they are sent again",
			"org", l.org, "writer", back.writer, "have", back.have)
		w.rewind(l)
		return 0, true, nil
	}
	l.c.reset(at)
	return 0, true, err
}

// mark returns the position of a cursor of one org.
func (c *cursor) mark() cursor {
	m := *c
	m.file, m.prevs = nil, maps.Clone(c.prevs)
	return m
}

// reset moves a cursor back to a mark.
func (c *cursor) reset(m cursor) {
	c.close()
	*c = m
}

// notTaken stores why a lane's batch was rejected.
func (w *Writer) notTaken(l *lane, err error) (waiting int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if l.err == nil {
		l.since = w.c.Now()
	}
	l.err = err
	return l.waiting
}

// advance stores that the chain has all records that the lane has read.
func (w *Writer) advance(l *lane, n int) {
	w.mu.Lock()
	l.err, l.pos, l.waiting = nil, max(l.pos, l.c.at), max(0, l.waiting-n)
	if w.lanes[l.org] == l {
		w.heldLocked(l)
	}
	w.mu.Unlock()
	w.acknowledge()
}

// rejoin ends a lane that has no records left to send.
func (w *Writer) rejoin(ctx context.Context, l *lane) bool {
	w.mu.Lock()
	if l.until > l.c.limit {
		w.mu.Unlock()
		return false
	}
	if w.lanes[l.org] != l {
		w.mu.Unlock()
		return true
	}
	delete(w.lanes, l.org)
	w.releasedLocked(l.org)
	w.mu.Unlock()
	w.c.Log.InfoContext(ctx, "an org's audit records are shipped with those of other orgs again", "org", l.org)
	w.acknowledge()
	return true
}

// rewind is sendOrg's error if the chain has lost records that may be in the segments.
type rewind struct {
	writer string
	have   uint64
}

func (r *rewind) Error() string {
	return fmt.Sprintf("writer %s: send again after %d", r.writer, r.have)
}

// rewind moves a lane back to the oldest record in the segments. A chain that lacks records of
// one writer may also lack those of earlier writers. The chain drops records that it has.
func (w *Writer) rewind(l *lane) {
	w.mu.Lock()
	w.seekLocked(&l.c, 0)
	l.had = max(l.had, l.pos)
	l.pos = min(l.pos, l.c.after)
	if w.lanes[l.org] == l {
		w.heldLocked(l)
	}
	w.mu.Unlock()
	w.acknowledge()
}

// sendOrg sends records of one writer in one org. When it returns nil, all are committed.
func (sh *shipping) sendOrg(ctx context.Context, limit time.Duration, writer, org string, recs []Record) error {
	w, k := sh.w, source{writer, org}
	before := sh.before(writer, org, recs)
	if before != nil {
		if err := sh.sendOrg(ctx, limit, before.writer, org, []Record{before.rec}); err != nil {
			return err
		}
	}
	for range maxSendRecords {
		shipper := w.ID()
		sh.mu.Lock()
		forks := sh.forks[k]
		had, again := sh.rewound[k]
		sh.mu.Unlock()
		err := sh.send(ctx, limit, Batch{Org: org, Writer: writer, Shipper: shipper, Fork: forks > 0, Records: recs})
		var behind *Behind
		switch {
		case err == nil && before != nil && sh.has(ctx, limit, before) != nil:
			return fmt.Errorf("the chain's last record of writer %s is not known", before.writer)
		case err == nil:
			if forks == 0 {
				sh.keep(writer, recs)
			}
			return nil
		case errors.As(err, &behind):
			if !again || had != behind.Have {
				sh.mu.Lock()
				sh.rewound[k] = behind.Have
				sh.mu.Unlock()
				return &rewind{writer, behind.Have}
			}
			// The records in between are not in the segments any more. Record the gap.
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
			// One record can cause the rejection of a batch. Send halves to find it.
			half := len(recs) / 2
			if err := sh.sendOrg(ctx, limit, writer, org, recs[:half]); err != nil {
				return err
			}
			return sh.sendOrg(ctx, limit, writer, org, recs[half:])
		case errors.Is(err, ErrRefused):
			return sh.quarantine(ctx, writer, recs[0], forks > 0, err)
		default:
			return err
		}
	}
	return fmt.Errorf("the control plane's replies for records of writer %s in org %s contradict each other", writer, org)
}

// stuckLocked returns an error with the orgs whose records do not reach the control plane, or nil.
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
	const shown = 10
	names := strings.Join(orgs[:min(len(orgs), shown)], ", ")
	if n := len(orgs) - shown; n > 0 {
		names = fmt.Sprintf("%s and %d more", names, n)
	}
	return fmt.Errorf("the control plane does not accept the audit records of org %s: in %s %d wait, since %s: %w",
		names, first.org, first.waiting, first.since.UTC().Format(time.RFC3339), first.err)
}

// Failure returns why the last batch of a failing org was rejected, or nil if no org fails.
// Shipping returns an error when that needs attention.
func (w *Writer) Failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, org := range slices.Sorted(maps.Keys(w.lanes)) {
		if err := w.lanes[org].err; err != nil {
			return fmt.Errorf("org %s: %w", org, err)
		}
	}
	return nil
}
