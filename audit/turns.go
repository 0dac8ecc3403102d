package audit

import (
	"context"
	"sync"
)

// batchesPerOrg limits the batches of one org that are appended at the same time. Each holds
// a connection to the database, also while it waits for the lock of the org's chain. So an
// org with many nodes does not take the connections of the other orgs. The second one is
// read and prepared while the first one is committed.
const batchesPerOrg = 2

// defaultAtOnce limits the batches of all orgs, unless ChainConfig has another limit.
const defaultAtOnce = 10

// turns limits the batches that are appended at the same time. A batch waits first for its
// org's turn and then for one of all orgs.
type turns struct {
	all chan struct{} // has a token for each batch

	mu   sync.Mutex
	orgs map[string]*orgTurns // with batches
}

type orgTurns struct {
	tokens chan struct{}
	users  int // batches that wait or have a token; guarded by turns.mu
}

func newTurns(atOnce int) *turns {
	return &turns{all: make(chan struct{}, atOnce), orgs: make(map[string]*orgTurns)}
}

// take waits for a turn of org. The caller must call done.
func (t *turns) take(ctx context.Context, org string) (done func(), err error) {
	t.mu.Lock()
	o := t.orgs[org]
	if o == nil {
		o = &orgTurns{tokens: make(chan struct{}, batchesPerOrg)}
		t.orgs[org] = o
	}
	o.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if o.users--; o.users == 0 {
			delete(t.orgs, org)
		}
	}
	select {
	case o.tokens <- struct{}{}:
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
	select {
	case t.all <- struct{}{}:
	case <-ctx.Done():
		<-o.tokens
		leave()
		return nil, ctx.Err()
	}
	return func() {
		<-t.all
		<-o.tokens
		leave()
	}, nil
}
