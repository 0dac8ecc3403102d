package extproc

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/ai-identity/ai-identity/identity"
)

// live is the set of exchanges in progress. It admits them, finds the exchanges of a
// revoked key, and reports when none is left.
type live struct {
	mu       sync.Mutex
	draining bool
	all      map[*handle]struct{}
	byKey    map[identity.Presented]map[*handle]struct{} // the members of all that are past identify
	empty    chan struct{}                               // closed when draining and all is empty
}

// handle is the part of an exchange that other goroutines use. They can only cut the
// exchange.
type handle struct {
	once   sync.Once
	cutCh  chan struct{} // closed by cut
	reason atomic.Pointer[string]

	// forwarded is set before reason is read for the last time. So either cut finds
	// forwarded set, or the exchange finds the reason.
	forwarded atomic.Bool

	// turn is the goroutine that replies to Envoy: see waits.
	turn atomic.Int32

	// Guarded by live.mu: the key, the workload, or both.
	keys []identity.Presented
}

// The values of handle.turn. Process may answer an exchange that waits for its body, when
// the exchange is cut. The goroutine that owns the exchange is blocked in Recv at that
// time. Before it touches anything, it takes the exchange back or finds that Process has
// it.
const (
	turnOwner   int32 = iota // the goroutine in run
	turnWaiting              // it waits for the body; the goroutine that swaps this value owns the exchange
	turnProcess              // Process answered, and the exchange has ended
)

// cut orders the exchange to end now. Only the first reason is kept.
func (h *handle) cut(reason string) {
	h.once.Do(func() {
		h.reason.Store(&reason)
		close(h.cutCh)
	})
}

// cutReason is "" unless the exchange was ordered to end.
func (h *handle) cutReason() string {
	if r := h.reason.Load(); r != nil {
		return *r
	}
	return ""
}

func newLive() *live {
	return &live{
		all:   make(map[*handle]struct{}),
		byKey: make(map[identity.Presented]map[*handle]struct{}),
		empty: make(chan struct{}),
	}
}

// enter admits h unless the server drains or limit exchanges are live already.
func (l *live) enter(h *handle, limit int) (draining, full bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.draining:
		return true, false
	case len(l.all) >= limit:
		return false, true
	}
	l.all[h] = struct{}{}
	return false, false
}

// key indexes h by a credential. It must be called before the credential is looked up, so that
// a revocation in between finds h.
func (l *live) key(h *handle, p identity.Presented) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h.keys = append(h.keys, p)
	m := l.byKey[p]
	if m == nil {
		m = make(map[*handle]struct{}, 1)
		l.byKey[p] = m
	}
	m[h] = struct{}{}
}

// leave removes h. The exchange is complete.
func (l *live) leave(h *handle) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.all, h)
	for _, key := range h.keys {
		if m := l.byKey[key]; m != nil {
			delete(m, h)
			if len(m) == 0 {
				delete(l.byKey, key)
			}
		}
	}
	if l.draining && len(l.all) == 0 {
		select {
		case <-l.empty:
		default:
			close(l.empty)
		}
	}
}

// cutKey ends every exchange of one key and returns their number.
func (l *live) cutKey(p identity.Presented, reason string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	for h := range l.byKey[p] {
		h.cut(reason)
	}
	return len(l.byKey[p])
}

// has reports whether an exchange of the key is in progress.
func (l *live) has(p identity.Presented) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.byKey[p]) > 0
}

func (l *live) cutAll(reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for h := range l.all {
		h.cut(reason)
	}
}

func (l *live) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.all)
}

// drain rejects new exchanges from now on and waits until all others have left.
func (l *live) drain(ctx context.Context) error {
	l.mu.Lock()
	if !l.draining {
		l.draining = true
		if len(l.all) == 0 {
			close(l.empty)
		}
	}
	l.mu.Unlock()
	select {
	case <-l.empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
