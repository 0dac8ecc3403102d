package audit_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// signs is a key in memory.
type signs struct{ crypto.Signer }

func (s signs) Public() crypto.PublicKey { return s.Signer.Public() }

func (s signs) Sign(_ context.Context, message []byte) ([]byte, error) {
	if _, ok := s.Signer.(ed25519.PrivateKey); ok {
		return s.Signer.Sign(rand.Reader, message, crypto.Hash(0))
	}
	sum := sha256.Sum256(message)
	return s.Signer.Sign(rand.Reader, sum[:], crypto.SHA256)
}

// signedLog makes checkpoints of an org, as the control plane does.
type signedLog struct {
	t        testing.TB
	db       *store.DB
	org      string
	p256, ed signs
}

func newSignedLog(t testing.TB, db *store.DB, org string) *signedLog {
	t.Helper()
	a, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, b, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &signedLog{t, db, org, signs{a}, signs{b}}
}

func (l *signedLog) keys() (s evidence.KeySet) {
	l.t.Helper()
	for _, x := range []signs{l.p256, l.ed} {
		k, err := evidence.NewKey(x.Public())
		if err != nil {
			l.t.Fatal(err)
		}
		s.Keys = append(s.Keys, k)
	}
	return s
}

// checkpoint signs the tree of all entries at a time.
func (l *signedLog) checkpoint(at time.Time) string {
	l.t.Helper()
	size := growAll(l.t, l.db, l.org, 10_000)
	var note []byte
	inOrg(l.t, l.db, l.org, func(tx pgx.Tx) error {
		tree, err := audit.RangeBefore(context.Background(), tx, l.org, 1, size)
		if err != nil {
			return err
		}
		root := tree.Root()
		note, err = evidence.Sign(context.Background(), evidence.Checkpoint{Origin: evidence.OrgOrigin("aid-0011223344556677", l.org, 1), Size: size, Root: root, Time: at}, l.p256, l.ed)
		if err != nil {
			return err
		}
		_, err = tx.Exec(context.Background(), `INSERT INTO audit_checkpoints (org_id, incarnation, size, root, time, note) VALUES ($1, 1, $2, $3, $4, $5)`, l.org, size, root[:], at, note)
		return err
	})
	return string(note)
}

func inOrg(t testing.TB, db *store.DB, org string, fn func(pgx.Tx) error) {
	t.Helper()
	if err := db.InOrg(context.Background(), org, fn); err != nil {
		t.Fatal(err)
	}
}

func (l *signedLog) order(o audit.ExportOrder) (e audit.Export, err error) {
	l.t.Helper()
	err = l.db.InOrg(context.Background(), l.org, func(tx pgx.Tx) (err error) {
		e, err = audit.OrderExport(context.Background(), tx, l.org, o, time.Now())
		return err
	})
	return e, err
}

// file orders an export, makes it and returns its bytes.
func (l *signedLog) file(o audit.ExportOrder) (audit.Export, []byte) {
	l.t.Helper()
	e, err := l.order(o)
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := audit.MakeExport(context.Background(), l.db, l.org, e.ID, l.p256, time.Now); err != nil {
		l.t.Fatal(err)
	}
	again, err := l.order(o)
	if err != nil || again.ID != e.ID || !again.Complete {
		l.t.Fatalf("%+v, %v", again, err)
	}
	var b bytes.Buffer
	if err := again.Write(context.Background(), l.db, &b, 0); err != nil {
		l.t.Fatal(err)
	}
	if sum := sha256.Sum256(b.Bytes()); hex.EncodeToString(sum[:]) != again.SHA256 || int64(b.Len()) != again.Size {
		l.t.Errorf("%d bytes, want %d with another digest", b.Len(), again.Size)
	}
	return again, b.Bytes()
}

func (l *signedLog) intact(b []byte, held ...string) evidence.Verdict {
	l.t.Helper()
	o := evidence.ChainOptions{Keys: l.keys()}
	for _, h := range held {
		o.Held = append(o.Held, evidence.HeldNote{From: "held", Note: []byte(h)})
	}
	v := evidence.VerifyChain(bytes.NewReader(b), o)
	if v.Exit != evidence.Intact {
		l.t.Errorf("%+v", v)
	}
	return v
}

func TestExports(t *testing.T) {
	ctx := context.Background()
	db := storetest.Open(t)
	c := chain(t, db, 1)
	org := storetest.Org(t, db)
	l := newSignedLog(t, db, org)
	if _, err := l.order(audit.ExportOrder{}); !errors.Is(err, audit.ErrNoCheckpoint) {
		t.Fatalf("without a checkpoint: %v", err)
	}
	appendMany(t, c, org, "w_1", 1, 6000)
	first := l.checkpoint(time.Now().Add(-time.Minute))
	appendMany(t, c, org, "w_1", 6001, 500)
	if _, err := l.order(audit.ExportOrder{Newest: true}); !errors.Is(err, audit.ErrCheckpointBehind) {
		t.Errorf("the newest entry has no checkpoint: %v", err)
	}
	second := l.checkpoint(time.Now())
	e, all := l.file(audit.ExportOrder{Newest: true})
	if e.FirstEntry != 1 || e.LastEntry != 6500 || e.Entries != 6500 {
		t.Errorf("%+v", e)
	}
	l.intact(all, first, second)
	if _, again := l.file(audit.ExportOrder{}); !bytes.Equal(again, all) {
		t.Error("the same order gives another file")
	}
	for _, from := range []int64{0, 1, 700, 10_000, e.Size / 2, e.Size - 1, e.Size, int64(bytes.Index(all, []byte(`{"seq":5001,`))), int64(bytes.Index(all, []byte(`{"seq":1,`)))} {
		var b bytes.Buffer
		if err := e.Write(ctx, db, &b, from); err != nil || !bytes.Equal(b.Bytes(), all[from:]) {
			t.Errorf("from %d: %d bytes, %v", from, b.Len(), err)
		}
	}

	// An older checkpoint, and what follows it. The newest checkpoint is proved, too.
	e1, b1 := l.file(audit.ExportOrder{AsOf: time.Now().Add(-2 * time.Minute), Filter: evidence.ExportFilter{Kind: audit.KindDecided}})
	if e1.End.Size != 6000 || e1.Newest == "" {
		t.Errorf("%+v", e1)
	}
	l.intact(b1, first, second)
	e2, b2 := l.file(audit.ExportOrder{After: e1.ID, Filter: evidence.ExportFilter{Kind: audit.KindDecided}})
	if e2.FirstEntry != 6001 || e2.LastEntry != 6500 || e2.Before != first {
		t.Errorf("%+v", e2)
	}
	l.intact(b2, first, second)
	if !strings.Contains(string(b2), `"late":true`) {
		t.Error("entries that arrived late are not marked")
	}
	if _, err := l.order(audit.ExportOrder{After: e1.ID}); !errors.Is(err, audit.ErrOtherFilter) {
		t.Errorf("continued with another filter: %v", err)
	}
	if _, err := l.order(audit.ExportOrder{After: "exp_none"}); !errors.Is(err, audit.ErrNoExport) {
		t.Errorf("continued none: %v", err)
	}
	// A range by time begins at a checkpoint before it.
	e3, b3 := l.file(audit.ExportOrder{Filter: evidence.ExportFilter{Since: time.Now().Add(25 * time.Hour).UnixMicro()}})
	if e3.First != 6500 || e3.Entries != 0 {
		t.Errorf("%+v", e3)
	}
	l.intact(b3, second)

	inOrg(t, db, org, func(tx pgx.Tx) error {
		list, err := audit.Exports(ctx, tx, org, "", 10)
		if len(list) != 4 {
			t.Errorf("%d exports", len(list))
		}
		return err
	})
	// Several replicas make one file.
	e4, err := l.order(audit.ExportOrder{Filter: evidence.ExportFilter{AgentID: "ag_9"}})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	made := make(chan bool, 4)
	for range 4 {
		wg.Go(func() {
			mine, err := audit.MakeExport(ctx, db, org, e4.ID, l.p256, time.Now)
			if err != nil {
				t.Error(err)
			}
			made <- mine
		})
	}
	wg.Wait()
	close(made)
	n := 0
	for mine := range made {
		if mine {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d replicas made the file", n)
	}

	// Nothing is signed that contradicts the checkpoint.
	e5, err := l.order(audit.ExportOrder{Filter: evidence.ExportFilter{AgentID: "ag_8"}})
	if err != nil {
		t.Fatal(err)
	}
	conn := superuser(t, db)
	for _, sql := range []string{`SET session_replication_role = replica`, `UPDATE audit_entries SET agent_id = 'ag_8' WHERE seq = 77 AND org_id = '` + org + `'`} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := audit.MakeExport(ctx, db, org, e5.ID, l.p256, time.Now); err == nil || !strings.Contains(err.Error(), "not those of the checkpoint") {
		t.Errorf("an export of changed rows: %v", err)
	}
	inOrg(t, db, org, func(tx pgx.Tx) error {
		e5, err = audit.GetExport(ctx, tx, org, e5.ID)
		if e5.Complete || e5.Problem == "" {
			t.Errorf("%+v", e5)
		}
		return err
	})
}
