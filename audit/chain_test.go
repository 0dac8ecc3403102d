package audit_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

func keys(t testing.TB, epochs ...int) audit.Keys {
	t.Helper()
	var lines []string
	for _, e := range epochs {
		lines = append(lines, fmt.Sprintf("%d %s", e, strings.Repeat(fmt.Sprintf("%02x", e), 32)))
	}
	k, err := audit.ParseKeys(lines)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func chain(t testing.TB, db *store.DB, epochs ...int) *audit.Chain {
	t.Helper()
	c, err := audit.NewChain(audit.ChainConfig{DB: db, Keys: keys(t, epochs...)})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// records are what a writer recorded: a decision and its completion, in turn.
func records(org, writer string, from, n int) []audit.Record {
	var out []audit.Record
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for i := from; i < from+n; i++ {
		id := fmt.Sprintf("%s-%d", writer, i/2)
		var e audit.Entry = audit.Decided{RequestID: id, AgentID: "ag_1", Effect: "allow", Model: "small", Provider: "one", Time: at}
		if i%2 == 0 {
			e = audit.Settled{RequestID: id, AgentID: "ag_1", Outcome: "completed", Model: "small", Provider: "one", Time: at,
				Usage: audit.Usage{InputTokens: 10, OutputTokens: 2, Source: "provider"}}
		}
		out = append(out, audit.Record{Seq: uint64(i), Prev: uint64(i - 1), Org: org, Entry: audit.Stamp(e, org, writer, at).Encode()})
	}
	return out
}

func entries(t testing.TB, db *store.DB, org string) (all []audit.Stored) {
	t.Helper()
	for {
		f := audit.Filter{Limit: audit.MaxEntries}
		if n := len(all); n > 0 {
			f.AfterSeq = all[n-1].Seq
		}
		n := len(all)
		err := db.InOrg(context.Background(), org, func(tx pgx.Tx) error {
			page, err := audit.Entries(context.Background(), tx, f)
			all = append(all[:n:n], page...)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == n {
			return all
		}
	}
}

func verify(t testing.TB, db *store.DB, org string, epochs ...int) audit.Report {
	t.Helper()
	r, err := audit.Verify(context.Background(), db, org, keys(t, epochs...), nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Writers ship at the same time to two replicas, and each batch is sent more than once.
// Every record is in the chain once, and no number is missing.
func TestExactlyOnce(t *testing.T) {
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	replicas := []*audit.Chain{chain(t, db, 1), chain(t, db, 1)}
	const writers, batches, size = 4, 12, 10
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			writer := fmt.Sprintf("w_%d", w)
			dice := rand.New(rand.NewPCG(uint64(w), 7))
			for b := range batches {
				recs := records(org, writer, 1+b*size, size)
				for range 1 + dice.IntN(3) { // a reply got lost
					if n, err := replicas[dice.IntN(2)].Append(context.Background(), audit.Batch{Org: org, Node: "node_1", Writer: writer, Records: recs}); err != nil || n != recs[size-1].Seq {
						t.Errorf("%s: %d %v", writer, n, err)
					}
				}
				if b > 0 && dice.IntN(3) == 0 { // an old batch, and a new one behind it
					if _, err := replicas[0].Append(context.Background(), audit.Batch{Org: org, Node: "node_1", Writer: writer, Records: records(org, writer, 1+(b-1)*size, 2*size)}); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	all := entries(t, db, org)
	if len(all) != writers*batches*size {
		t.Errorf("%d entries, want %d", len(all), writers*batches*size)
	}
	seen := map[string]bool{}
	for i, e := range all {
		if e.Seq != int64(i+1) {
			t.Fatalf("entry %d has the number %d", i+1, e.Seq)
		}
		place := fmt.Sprintf("%s/%d", e.Writer, e.WriterSeq)
		if seen[place] {
			t.Errorf("%s twice", place)
		}
		seen[place] = true
	}
	if r := verify(t, db, org, 1); r.FirstBad != nil || r.Entries != int64(len(all)) {
		t.Errorf("verify: %+v", r)
	}
	var sum int64
	err := db.InOrg(context.Background(), org, func(tx pgx.Tx) error {
		days, err := audit.DailyUsage(context.Background(), tx, "ag_1", time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC))
		sum = 0
		for _, d := range days {
			sum += d.InputTokens
		}
		return err
	})
	if want := int64(writers * batches * size / 2 * 10); err != nil || sum != want {
		t.Errorf("usage is %d, want %d: %v", sum, want, err)
	}
}

// A node may write only new records, for its own org and with its own name.
func TestRefusedRecords(t *testing.T) {
	db := storetest.Open(t)
	org, other := storetest.Org(t, db), storetest.Org(t, db)
	c := chain(t, db, 1)
	if _, err := c.Append(context.Background(), audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: records(org, "w_1", 1, 4)}); err != nil {
		t.Fatal(err)
	}
	for name, recs := range map[string][]audit.Record{
		"another org's":   records(other, "w_1", 5, 1),
		"out of order":    {records(org, "w_1", 7, 1)[0], records(org, "w_1", 6, 1)[0]},
		"another content": {{Seq: 2, Org: org, Entry: records(org, "w_1", 9, 1)[0].Entry}},
		"number 0":        {{Seq: 0, Org: org, Entry: records(org, "w_1", 1, 1)[0].Entry}},
	} {
		if _, err := c.Append(context.Background(), audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: recs}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	for _, writer := range []string{"", "control", "w_1/2"} {
		if _, err := c.Append(context.Background(), audit.Batch{Org: org, Node: "node_1", Writer: writer, Records: records(org, writer, 1, 1)}); err == nil {
			t.Errorf("the writer %q: taken", writer)
		}
	}
	if n := len(entries(t, db, org)); n != 4 {
		t.Errorf("%d entries", n)
	}
}

// A node may record its decisions, but no changes. Only the control plane records a change, in
// the transaction of the change.
func TestChangesAreNoNodesToTell(t *testing.T) {
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	c := chain(t, db, 1)
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	e := audit.Changed{Kind: "key.revoked", ObjectKind: "key", ObjectID: "key_1", AgentID: "ag_1", Actor: audit.Actor{Kind: "org_key", ID: "okey_1", Role: "admin"}}
	if _, err := c.Append(context.Background(), audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: []audit.Record{{Seq: 1, Org: org, Entry: audit.Stamp(e, org, "w_1", at).Encode()}}}); err != nil {
		t.Fatal(err)
	}
	for _, s := range entries(t, db, org) {
		if s.Kind != audit.KindMalformed {
			t.Errorf("a node's word that somebody changed something is in the chain as %s", s.Kind)
		}
	}
	if r := verify(t, db, org, 1); r.FirstBad != nil || r.Malformed != 1 {
		t.Errorf("%+v", r)
	}
}

// Keys are rotated by epoch, and old entries verify with the old key.
func TestEpochs(t *testing.T) {
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	if _, err := chain(t, db, 1).Append(context.Background(), audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: records(org, "w_1", 1, 4)}); err != nil {
		t.Fatal(err)
	}
	if _, err := chain(t, db, 1, 2).Append(context.Background(), audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: records(org, "w_1", 5, 4)}); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, db, org, 1, 2); r.FirstBad != nil || r.Entries != 8 || r.Epoch != 2 {
		t.Errorf("with both keys: %+v", r)
	}
	if r := verify(t, db, org, 2); r.FirstBad == nil || r.FirstBad.Seq != 1 {
		t.Errorf("without the old key: %+v", r)
	}
}

// TestTampering changes the table as its owner could, with the triggers off. Each change is
// found at the changed entry.
func TestTampering(t *testing.T) {
	for _, c := range []struct {
		name, sql string
		seq       int64
	}{
		{"an entry", `UPDATE audit_entries SET entry = set_byte(entry, 40, get_byte(entry, 40) # 1) WHERE seq = 5`, 5},
		{"a mac", `UPDATE audit_entries SET mac = set_byte(mac, 0, get_byte(mac, 0) # 1) WHERE seq = 5`, 5},
		{"a link", `UPDATE audit_entries SET prev_mac = set_byte(prev_mac, 0, get_byte(prev_mac, 0) # 1) WHERE seq = 5`, 5},
		{"one is gone", `DELETE FROM audit_entries WHERE seq = 5`, 5},
		{"two are swapped", `UPDATE audit_entries a SET entry = b.entry FROM audit_entries b WHERE a.org_id = b.org_id AND a.seq + b.seq = 11 AND a.seq IN (5, 6)`, 5},
		{"the end is gone", `DELETE FROM audit_entries WHERE seq > 7`, 8},
		{"the writer", `UPDATE audit_entries SET writer = 'w_9' WHERE seq = 5`, 5},
		{"the agent's column", `UPDATE audit_entries SET agent_id = 'ag_9' WHERE seq = 5`, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			db := storetest.Open(t)
			org := storetest.Org(t, db)
			if _, err := chain(t, db, 1).Append(context.Background(), audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: records(org, "w_1", 1, 10)}); err != nil {
				t.Fatal(err)
			}
			if r := verify(t, db, org, 1); r.FirstBad != nil || r.To != 10 {
				t.Fatalf("before: %+v", r)
			}
			// The app role cannot: the audit log is append-only for it.
			err := db.InOrg(context.Background(), org, func(tx pgx.Tx) error {
				_, err := tx.Exec(context.Background(), c.sql)
				return err
			})
			if err == nil {
				t.Error("the app role could")
			}
			conn := superuser(t, db)
			for _, sql := range []string{`SET session_replication_role = replica`, c.sql} {
				if _, err := conn.Exec(context.Background(), sql); err != nil {
					t.Fatal(err)
				}
			}
			if r := verify(t, db, org, 1); r.FirstBad == nil || r.FirstBad.Seq != c.seq {
				t.Errorf("after: %+v", r)
			}
		})
	}
}

// superuser connects to db as the superuser.
func superuser(t testing.TB, db *store.DB) *pgx.Conn {
	t.Helper()
	c, err := pgx.ParseConfig(storetest.AdminURL(t))
	if err != nil {
		t.Fatal(err)
	}
	c.Database = db.Pool().Config().ConnConfig.Database
	conn, err := pgx.ConnectConfig(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// A change and its entry are one transaction.
func TestRecord(t *testing.T) {
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	c := chain(t, db, 1)
	undo := fmt.Errorf("undo")
	for _, fail := range []error{nil, undo, nil} {
		err := db.InOrg(context.Background(), org, func(tx pgx.Tx) error {
			if _, err := c.Record(context.Background(), tx, org, audit.Changed{Kind: "agent.created", Actor: audit.Actor{Kind: "org_key", ID: "okey_1"}, ObjectKind: "agent", ObjectID: "ag_1"}); err != nil {
				return err
			}
			return fail
		})
		if err != fail {
			t.Fatal(err)
		}
	}
	if all := entries(t, db, org); len(all) != 2 || all[1].Seq != 2 {
		t.Errorf("%d entries", len(all))
	}
	if r := verify(t, db, org, 1); r.FirstBad != nil || r.To != 2 {
		t.Errorf("verify: %+v", r)
	}
}
