package audit_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

type watermark struct {
	seq   int64
	at    time.Time
	ended bool
	known bool
}

func watermarkOf(t *testing.T, db *store.DB, org, writer string) (w watermark) {
	t.Helper()
	err := db.InOrg(t.Context(), org, func(tx pgx.Tx) error {
		return tx.QueryRow(t.Context(), "SELECT seq, at, ended, true FROM audit_watermarks WHERE writer = $1", writer).Scan(&w.seq, &w.at, &w.ended, &w.known)
	})
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		t.Fatal(err)
	}
	return w
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// TestWatermarks: the chain has what a watermark says, and no watermark passes a decision that is
// being made. A later process of the folder ends the earlier one, and so does a graceful stop.
func TestWatermarks(t *testing.T) {
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	c := chain(t, db, 1)
	dir := t.TempDir()
	w, err := audit.OpenWriter(audit.WriterConfig{Dir: dir, MinFreeBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	run, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- w.Run(run) }()
	shipping, shipped := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Ship(shipping, direct{c, "node_1"}) }()

	began := time.Now()
	held := w.Deciding(began)
	receipts := write(t, w, org, "a", 3)
	last := receipts[2]
	until(t, "no watermark has the last record", func() bool { return watermarkOf(t, db, org, w.ID()).seq >= int64(last.Seq) })
	until(t, "no second watermark", func() bool { return watermarkOf(t, db, org, w.ID()).at.After(began.Add(-2 * time.Second)) })
	if got := watermarkOf(t, db, org, w.ID()); !got.at.Before(began) {
		t.Errorf("the watermark %v has passed the decision of %v", got.at, began)
	}
	held()
	// Nothing more is recorded, and the watermark passes the decision.
	until(t, "the watermark does not advance without records", func() bool { return watermarkOf(t, db, org, w.ID()).at.After(began) })

	// Another node cannot say anything about this writer.
	mark := &audit.Mark{Seq: 1 << 40, Time: time.Now()}
	if _, err := (direct{c, "node_2"}).Send(t.Context(), audit.Batch{Org: org, Writer: w.ID(), Mark: mark}); !errors.Is(err, audit.ErrFork) {
		t.Errorf("another node's watermark: %v", err)
	}
	if _, err := (direct{c, "node_2"}).Send(t.Context(), audit.Batch{Org: org, Writer: "w_other", Mark: &audit.Mark{Time: time.Now(), Ended: []string{w.ID()}}}); err != nil {
		t.Error(err)
	}
	if got := watermarkOf(t, db, org, w.ID()); got.seq >= 1<<40 || got.ended {
		t.Errorf("another node has set the watermark: %+v", got)
	}
	// A clock that is ahead does not count.
	if _, err := (direct{c, "node_2"}).Send(t.Context(), audit.Batch{Org: org, Writer: "w_other", Mark: &audit.Mark{Time: time.Now().Add(time.Hour)}}); err != nil {
		t.Error(err)
	}
	if got := watermarkOf(t, db, org, "w_other"); got.at.After(time.Now().Add(time.Minute)) {
		t.Errorf("a watermark in the future: %v", got.at)
	}

	// A receipt that the chain must have and lacks is missing; one after the watermark is pending.
	lost, later := last, last
	lost.Leaf[0]++
	later.Seq += 1000
	places, err := audit.Locate(t.Context(), db, org, []audit.Receipt{w.Sign(org, last), w.Sign(org, lost), w.Sign(org, later), w.Sign("org_2", last), last})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []audit.Place{
		{State: audit.PlaceChain, Signature: audit.SignatureValid}, {State: audit.PlaceMissing, Signature: audit.SignatureValid},
		{State: audit.PlacePending, Signature: audit.SignatureValid}, {State: audit.PlaceChain, Signature: audit.SignatureWrong},
		{State: audit.PlaceChain, Signature: audit.SignatureAbsent},
	} {
		if got := places[i]; got.State != want.State || got.Signature != want.Signature {
			t.Errorf("place %d: %+v, want %+v", i, got, want)
		}
	}

	// The process is killed, and the next one ships.
	shipped()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	stop()
	<-ran
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if watermarkOf(t, db, org, w.ID()).ended {
		t.Error("the process has ended before it was closed")
	}
	next, err := audit.OpenWriter(audit.WriterConfig{Dir: dir, MinFreeBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	run, stop = context.WithCancel(context.Background())
	defer stop()
	go func() { ran <- next.Run(run) }()
	shipping, shipped = context.WithCancel(context.Background())
	go func() { ended <- next.Ship(shipping, direct{c, "node_1"}) }()
	until(t, "the earlier process has not ended", func() bool { return watermarkOf(t, db, org, w.ID()).ended })
	if places, err = audit.Locate(t.Context(), db, org, []audit.Receipt{w.Sign(org, later)}); err != nil || places[0].State != audit.PlaceMissing {
		t.Errorf("a receipt of a process that has ended: %+v, %v", places, err)
	}
	// It stops with nothing left.
	write(t, next, org, "b", 1)
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	if err := next.WaitShipped(t.Context()); err != nil {
		t.Fatal(err)
	}
	shipped()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if !watermarkOf(t, db, org, next.ID()).ended {
		t.Error("a process that stopped with nothing left has not ended")
	}
}
