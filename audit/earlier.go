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
	w.mu.Unlock()
}

// WaitEarlier waits until the control plane has the org's records of earlier processes. These
// are what was in the folder when it was opened, and the completions that OpenWriter added. Ship must run
// meanwhile. The error is ctx's.
func (w *Writer) WaitEarlier(ctx context.Context, org string) error {
	const look = 50 * time.Millisecond // an org's own lane makes no change of all
	timer := time.NewTicker(look)
	defer timer.Stop()
	for {
		w.mu.Lock()
		arrived, until := w.arrivedLocked(org), w.found
		w.mu.Unlock()
		if arrived >= until {
			return nil
		}
		select {
		case <-timer.C:
		case <-ctx.Done():
			return fmt.Errorf("records of an earlier process are not shipped: %w", ctx.Err())
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
