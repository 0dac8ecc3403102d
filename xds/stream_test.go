package xds

import (
	"context"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/store/storetest"
)

// A node that cannot be looked up is looked up again when the database responds again, and
// not repeatedly until then.
func TestRecheckWaits(t *testing.T) {
	db := storetest.Open(t)
	db.Close()
	st := &stream{
		s: &Server{c: ServerConfig{DB: db, Now: time.Now}, orgs: map[string]*orgState{}, joined: map[string]joined{}}, presented: "token", woken: make(chan struct{}, 1),
		agents: map[string]struct{}{}, callers: map[string]struct{}{}, subs: map[string]*subscription{},
	}
	st.recheck()
	<-st.woken
	if err := st.push(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !st.dead {
		t.Error("nobody looks again")
	}
	if len(st.woken) != 0 {
		t.Error("it wakes itself: a loop for as long as the database is away")
	}
}
