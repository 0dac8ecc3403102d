package audit

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Earlier returns the ids of earlier writers of the folder, at most maxEnded. Their processes
// have ended, since this one has the folder's lock.
func (w *Writer) Earlier() []string { return slices.Clone(w.earlier) }

// noteEarlier keeps what was in the folder before this process wrote a decision.
func (w *Writer) noteEarlier() {
	for _, s := range w.segs {
		if s.writer != "" && s.writer != w.ID() && !slices.Contains(w.earlier, s.writer) {
			w.earlier = append(w.earlier, s.writer)
		}
	}
	if n := len(w.earlier) - maxEnded; n > 0 {
		w.earlier = w.earlier[n:]
	}
	w.mu.Lock()
	w.found = w.durable
	w.keepMarkLocked()
	w.mu.Unlock()
}

// WaitEarlier waits until the control plane has the org's records of earlier processes. These
// are what was in the folder when it was opened, and the completions that OpenWriter added. Ship must run
// meanwhile. The error is ctx's.
func (w *Writer) WaitEarlier(ctx context.Context, org string) error {
	w.mu.Lock()
	until := w.found
	w.mu.Unlock()
	if err := w.waitArrived(ctx, org, until); err != nil {
		return fmt.Errorf("records of an earlier process are not shipped: %w", err)
	}
	return nil
}

// WaitOrg waits until the control plane has all of the org's records. These are those of earlier
// processes, and what was appended or enqueued before the call. Run and Ship must run
// meanwhile. The error is ctx's.
func (w *Writer) WaitOrg(ctx context.Context, org string) error {
	w.mu.Lock()
	b := w.latest
	w.mu.Unlock()
	for b != nil {
		select {
		case <-b.done:
		case <-ctx.Done():
			return fmt.Errorf("records are not durable: %w", ctx.Err())
		}
		w.mu.Lock()
		if b = nil; len(w.queue) > 0 && w.failed != nil {
			b = w.queue[len(w.queue)-1] // what the disk did not take is written again
		}
		w.mu.Unlock()
	}
	w.mu.Lock()
	until := w.durable
	w.mu.Unlock()
	if err := w.waitArrived(ctx, org, until); err != nil {
		return fmt.Errorf("records are not shipped: %w", err)
	}
	return nil
}

// waitArrived waits until the control plane has the org's records up to a number.
func (w *Writer) waitArrived(ctx context.Context, org string, until uint64) error {
	const look = 50 * time.Millisecond // an org's own lane makes no change of all
	timer := time.NewTicker(look)
	defer timer.Stop()
	for {
		w.mu.Lock()
		arrived, changed := w.arrivedLocked(org), w.changed
		w.mu.Unlock()
		if arrived >= until {
			return nil
		}
		select {
		case <-timer.C:
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// arrivedLocked is how far the control plane has the org's records.
func (w *Writer) arrivedLocked(org string) uint64 {
	if l := w.lanes[org]; l != nil {
		return max(l.pos, w.acked)
	}
	if n, ok := w.behind[org]; ok && w.lanes == nil {
		return max(n, w.acked)
	}
	return max(w.passed, w.acked)
}
