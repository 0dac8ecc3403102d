package xds

import (
	"container/list"
	"context"
	"fmt"
	"net/netip"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/verdict"
)

const (
	// lookupWindow is how many lookups are in flight to the control plane. The next one is
	// chosen when one ends, so no queue forms at the control plane.
	lookupWindow = 200
	// maxPeerLookups limits the waiting lookups of one peer, and maxLookups those of all.
	maxPeerLookups = 2000
	maxLookups     = 8000
)

// lookups are the lookups of keys at the control plane. Each peer has a queue, and the queues
// take turns. So a peer that sends many unknown keys delays only itself. Guarded by
// Client.mu.
type lookups struct {
	byKey   map[identity.Presented]*lookup
	queues  map[netip.Prefix]*list.List // of *lookup, by peer; no queue is empty
	turns   *list.List                  // of netip.Prefix, in the order of their turns
	waiting int                         // in all queues
	asked   int                         // in flight
}

// lookup is the lookup of one key, for all requests that wait for it.
type lookup struct {
	key  identity.Presented
	done chan struct{} // closed when the response is in callers or unknown, or err is set
	err  error

	peer    netip.Prefix
	place   *list.Element // in the peer's queue; nil: the lookup is in flight
	waiters int
}

func newLookups() lookups {
	return lookups{byKey: make(map[identity.Presented]*lookup), queues: make(map[netip.Prefix]*list.List), turns: list.New()}
}

// peerOf returns the part of an address that counts as one peer. It is an IPv4 address, or an
// IPv6 /64, since one client may have all of it.
func peerOf(a netip.Addr) netip.Prefix {
	bits := 64
	if a = a.Unmap().WithZone(""); a.Is4() {
		bits = 32
	}
	p, _ := a.Prefix(bits) // the zero Prefix for a peer without an address
	return p
}

// add puts a key into its peer's queue. It returns an error if a queue is full.
func (l *lookups) add(p identity.Presented, peer netip.Prefix) (*lookup, error) {
	q := l.queues[peer]
	if q != nil && q.Len() >= maxPeerLookups {
		return nil, fmt.Errorf("%w: %d keys of this peer are being looked up", ErrUnavailable, maxPeerLookups)
	}
	if l.waiting >= maxLookups {
		if q != nil {
			return nil, fmt.Errorf("%w: %d keys are being looked up", ErrUnavailable, maxLookups)
		}
		l.evict()
	}
	if q == nil {
		q = list.New()
		l.queues[peer] = q
		l.turns.PushBack(peer)
	}
	n := &lookup{key: p, done: make(chan struct{}), peer: peer}
	n.place = q.PushBack(n)
	l.waiting++
	l.byKey[p] = n
	return n, nil
}

// evict ends the newest lookup of the peer that has the most.
func (l *lookups) evict() {
	var most *list.List
	for _, q := range l.queues {
		if most == nil || q.Len() > most.Len() {
			most = q
		}
	}
	n := most.Back().Value.(*lookup)
	l.end(n, fmt.Errorf("%w: %d keys are being looked up", ErrUnavailable, maxLookups))
}

// next removes and returns the next lookup. It returns nil if no lookup waits, or if
// lookupWindow are in flight.
func (l *lookups) next() *lookup {
	if l.asked >= lookupWindow || l.waiting == 0 {
		return nil
	}
	turn := l.turns.Front()
	n := l.queues[turn.Value.(netip.Prefix)].Front().Value.(*lookup)
	l.turns.MoveToBack(turn)
	l.unqueue(n)
	l.asked++
	return n
}

// unqueue removes a lookup from its queue.
func (l *lookups) unqueue(n *lookup) {
	q := l.queues[n.peer]
	q.Remove(n.place)
	n.place = nil
	l.waiting--
	if q.Len() > 0 {
		return
	}
	delete(l.queues, n.peer)
	for e := l.turns.Back(); e != nil; e = e.Prev() { // next has moved it to the back
		if e.Value == n.peer {
			l.turns.Remove(e)
			return
		}
	}
}

// end wakes the requests that wait for a lookup.
func (l *lookups) end(n *lookup, err error) {
	if n.place != nil {
		l.unqueue(n)
	} else {
		l.asked--
	}
	delete(l.byKey, n.key)
	n.err = err
	close(n.done)
}

// leave is called by a request that stops waiting. A lookup without a waiting request is
// removed, unless it is in flight.
func (l *lookups) leave(n *lookup) {
	if n.waiters--; n.waiters == 0 && n.place != nil {
		l.end(n, context.Canceled)
	}
}

// ask joins the lookup of a key, or starts one.
func (x *Client) ask(p identity.Presented, peer netip.Addr) (*lookup, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if l := x.lookups.byKey[p]; l != nil {
		l.waiters++
		return l, nil
	}
	if until, ok := x.unknown[p]; ok {
		if x.c.Now().Before(until) {
			x.metrics.lookups.WithLabelValues("unknown").Inc()
			return nil, verdict.ErrUnknownCaller
		}
		delete(x.unknown, p)
	}
	if !x.up {
		x.metrics.lookups.WithLabelValues("disconnected").Inc()
		return nil, fmt.Errorf("%w: not connected, and this key is not in memory", ErrUnavailable)
	}
	if x.callers[p] != nil { // received in the meantime
		l := &lookup{done: make(chan struct{})}
		close(l.done)
		return l, nil
	}
	l, err := x.lookups.add(p, peerOf(peer))
	if err != nil {
		x.metrics.lookups.WithLabelValues("full").Inc()
		return nil, err
	}
	l.waiters++
	x.sendLookupsLocked()
	return l, nil
}

// sendLookupsLocked sends lookups until lookupWindow are in flight.
func (x *Client) sendLookupsLocked() {
	for l := x.lookups.next(); l != nil; l = x.lookups.next() {
		x.requestLocked(l.key, true)
	}
}

// answerLocked ends the lookup of a key, if there is one.
func (x *Client) answerLocked(p identity.Presented) {
	if l := x.lookups.byKey[p]; l != nil {
		x.lookups.end(l, nil)
		x.sendLookupsLocked()
	}
}
