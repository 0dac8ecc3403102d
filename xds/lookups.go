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
	// lookupWindow is how many keys the control plane is asked for at the same moment.
	// What comes next is chosen when it is sent, so a queue never forms behind it.
	lookupWindow = 200
	// maxPeerLookups bounds the keys of one peer that wait, and maxLookups those of all.
	maxPeerLookups = 2000
	maxLookups     = 8000
)

// lookups is the keys that the control plane is asked for. Each peer has a queue, and
// the queues take turns: a peer that sends many keys that no agent has delays only
// itself. Guarded by Client.mu.
type lookups struct {
	byKey   map[identity.Presented]*lookup
	queues  map[netip.Prefix]*list.List // of *lookup, by peer; none is empty
	turns   *list.List                  // of netip.Prefix: whose turn comes first
	waiting int                         // in all queues
	asked   int                         // sent and not answered
}

// lookup is one key, however many requests wait for it.
type lookup struct {
	key  identity.Presented
	done chan struct{} // closed when the response is in callers or unknown, or err is set
	err  error

	peer    netip.Prefix
	place   *list.Element // in the peer's queue; nil: it was sent
	waiters int
}

func newLookups() lookups {
	return lookups{byKey: make(map[identity.Presented]*lookup), queues: make(map[netip.Prefix]*list.List), turns: list.New()}
}

// peerOf is the part of an address that counts as one peer: one IPv4 address, or
// the /64 of IPv6 that one client may have all of.
func peerOf(a netip.Addr) netip.Prefix {
	bits := 64
	if a = a.Unmap().WithZone(""); a.Is4() {
		bits = 32
	}
	p, _ := a.Prefix(bits) // the zero Prefix for a peer without an address
	return p
}

// add puts a key into its peer's queue. The error is the reason if there is no room.
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

// next takes the lookup whose turn it is, or returns nil if none waits or enough are
// with the control plane.
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

// unqueue takes a lookup out of its queue.
func (l *lookups) unqueue(n *lookup) {
	q := l.queues[n.peer]
	q.Remove(n.place)
	n.place = nil
	l.waiting--
	if q.Len() > 0 {
		return
	}
	delete(l.queues, n.peer)
	for e := l.turns.Back(); e != nil; e = e.Prev() { // next has just put it there
		if e.Value == n.peer {
			l.turns.Remove(e)
			return
		}
	}
}

// end wakes those who wait for a lookup.
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

// leave is called by a request that waits no more. A key that no request waits for is
// not looked up, unless it was sent.
func (l *lookups) leave(n *lookup) {
	if n.waiters--; n.waiters == 0 && n.place != nil {
		l.end(n, context.Canceled)
	}
}

// ask joins the lookup of a key, or begins one.
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
		return nil, fmt.Errorf("%w: not connected, and this key was not seen before", ErrUnavailable)
	}
	if x.callers[p] != nil { // it came in the meantime
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

// sendLookupsLocked asks the control plane for as many keys as it may have at once.
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
