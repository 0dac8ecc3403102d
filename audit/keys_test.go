package audit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/store/storetest"
)

func secretOf(epoch int) string { return strings.Repeat(fmt.Sprintf("%02x", epoch), 32) }

func parsed(t *testing.T, lines ...string) audit.Keys {
	t.Helper()
	k, err := audit.ParseKeys(lines)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Two replicas get a new key one after the other, while both append: no entry fails, and
// all of the chain is right. (FAULTS P8)
func TestKeyRotation(t *testing.T) {
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	from := now.Add(time.Hour)
	regs := []*prometheus.Registry{prometheus.NewRegistry(), prometheus.NewRegistry()}
	skew := []time.Duration{0, -2 * time.Minute} // the second one's clock is behind
	var chains []*audit.Chain
	var keys []audit.Keys
	for i := range 2 {
		keys = append(keys, parsed(t, "1 "+secretOf(1)))
		c, err := audit.NewChain(audit.ChainConfig{DB: db, Keys: keys[i], Now: func() time.Time { return now.Add(skew[i]) }, Registerer: regs[i]})
		if err != nil {
			t.Fatal(err)
		}
		chains = append(chains, c)
	}
	n := 1
	both := func(epochs ...float64) {
		t.Helper()
		for i, c := range chains {
			b := audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: records(org, "w_1", n, 1)}
			if _, err := c.Append(context.Background(), b); err != nil {
				t.Errorf("replica %d: %v", i, err)
			}
			n++
			if got := value(t, regs[i], "aid_audit_chain_key_epoch"); got != epochs[i] {
				t.Errorf("replica %d signs with epoch %v, want %v", i, got, epochs[i])
			}
		}
	}
	next := []string{"1 " + secretOf(1), "2 " + secretOf(2) + " from=" + from.Format(time.RFC3339)}
	both(1, 1)
	for i := range chains {
		if err := keys[i].Replace(parsed(t, next...), now); err != nil {
			t.Fatal(err)
		}
		both(1, 1) // also while one of them has not read it yet
	}
	now = from.Add(-time.Second)
	both(1, 1)
	now = from.Add(time.Second)
	both(2, 1) // the clock that is behind follows the chain
	now = from.Add(time.Hour)
	both(2, 2)
	if r := verify(t, db, org, 1, 2); r.FirstBad != nil || r.Entries != int64(n-1)+1 || r.Epoch != 2 { // and clock.regressed
		t.Errorf("%+v", r)
	}
	// A replica that never got the key says so, and works once it has it.
	late := parsed(t, "1 "+secretOf(1))
	c, err := audit.NewChain(audit.ChainConfig{DB: db, Keys: late, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	b := audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: records(org, "w_1", n, 1)}
	if _, err := c.Append(context.Background(), b); !errors.Is(err, audit.ErrKeyMissing) {
		t.Errorf("without the key: %v", err)
	}
	if err := c.Ready(t.Context(), db.Pool()); !errors.Is(err, audit.ErrKeyMissing) {
		t.Errorf("ready without the key: %v", err)
	}
	if err := late.Replace(parsed(t, next...), now); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Append(context.Background(), b); err != nil || c.Ready(t.Context(), db.Pool()) != nil {
		t.Errorf("with the key: %v %v", err, c.Ready(t.Context(), db.Pool()))
	}
}

func TestKeyLines(t *testing.T) {
	one, two, three := "1 "+secretOf(1), "2 "+secretOf(2), "3 "+secretOf(3)
	for _, c := range []struct {
		lines []string
		wrong string // empty: nothing is
	}{
		{[]string{one, two + " from=2026-12-01T00:00:00Z"}, ""},
		{[]string{three + " from=2026-12-02T00:00:00+02:00", one, two + " from=2026-12-01T00:00:00Z"}, ""},
		{[]string{one, two, three}, ""},
		{[]string{one + " from=2026-12-01T00:00:00Z"}, "first"},
		{[]string{one, two + " from=2026-12-01T00:00:00Z", three}, "before"},
		{[]string{one, two + " from=2026-12-02T00:00:00Z", three + " from=2026-12-01T00:00:00Z"}, "before"},
		{[]string{one, two + " from=2026-12-01"}, "line 2"},
		{[]string{one, two + " until=2026-12-01T00:00:00Z"}, "line 2"},
		{[]string{one, two + " from=2026-12-01T00:00:00Z x"}, "line 2"},
	} {
		_, err := audit.ParseKeys(c.lines)
		if (err == nil) != (c.wrong == "") || err != nil && (!strings.Contains(err.Error(), c.wrong) || strings.Contains(err.Error(), secretOf(2))) {
			t.Errorf("%q: %v", c.lines, err)
		}
	}
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	have := []string{one, two + " from=2026-12-01T00:00:00Z"}
	for _, c := range []struct {
		next []string
		ok   bool
	}{
		{[]string{one}, true}, // what does not sign yet may go
		{[]string{one, "2 " + secretOf(9) + " from=2026-12-01T00:00:00Z"}, true},
		{[]string{two}, false},
		{[]string{"1 " + secretOf(9), two}, false},
	} {
		if err := parsed(t, have...).Replace(parsed(t, c.next...), now); (err == nil) != c.ok {
			t.Errorf("%q: %v", c.next, err)
		}
	}
}

// Two replicas have different keys under one epoch number. The chain gets entries of one of
// them only. The other one is not ready, and rejects batches of every org by name. That also
// holds in an installation that is older than the proofs of keys.
func TestOtherKeyUnderOneEpoch(t *testing.T) {
	db := storetest.Open(t)
	org, other := storetest.Org(t, db), storetest.Org(t, db)
	replica := func(secret int) *audit.Chain {
		t.Helper()
		c, err := audit.NewChain(audit.ChainConfig{DB: db, Keys: parsed(t, "1 "+secretOf(secret))})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	appends := func(c *audit.Chain, org string, n int) error {
		_, err := c.Append(t.Context(), audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: records(org, "w_1", n, 1)})
		return err
	}
	right, wrong := replica(1), replica(7)
	if err := errors.Join(right.Ready(t.Context(), db.Pool()), wrong.Ready(t.Context(), db.Pool())); err != nil {
		t.Errorf("before the first entry: %v", err)
	}
	if err := appends(right, org, 1); err != nil {
		t.Fatal(err)
	}
	// From the first entry on, before wrong has appended anything.
	if err := wrong.Ready(t.Context(), db.Pool()); !errors.Is(err, audit.ErrKeyDiffers) || !strings.Contains(err.Error(), "epoch 1") {
		t.Errorf("ready with another key: %v", err)
	}
	for _, o := range []string{org, other} {
		if err := appends(wrong, o, 2); !errors.Is(err, audit.ErrKeyDiffers) && !errors.As(err, new(*audit.Behind)) {
			t.Errorf("%s: appending with another key: %v", o, err)
		}
	}
	if err := appends(wrong, other, 1); !errors.Is(err, audit.ErrKeyDiffers) {
		t.Errorf("an org without entries: %v", err)
	}
	if err := appends(right, org, 2); err != nil {
		t.Error(err)
	}

	// Without a proof, as after an update of an older installation.
	owner := storetest.Connect(t, storetest.OwnerURL(t))
	if _, err := owner.Exec(t.Context(), "DELETE FROM installation_keys"); err != nil {
		t.Fatal(err)
	}
	if err := appends(replica(7), org, 3); !errors.Is(err, audit.ErrKeyDiffers) {
		t.Errorf("without a proof: %v", err)
	}
	if err := appends(replica(1), org, 3); err != nil {
		t.Error(err)
	}
	if err := wrong.Ready(t.Context(), db.Pool()); !errors.Is(err, audit.ErrKeyDiffers) {
		t.Errorf("after the proof was stored again: %v", err)
	}
	if r := verify(t, db, org, 1); r.FirstBad != nil || r.Entries != 3 {
		t.Errorf("%+v", r)
	}
}

// A replica without the newest key is not ready as soon as another one has signed with it.
func TestNewerKeyElsewhere(t *testing.T) {
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	ahead, behind := chain(t, db, 1, 2), chain(t, db, 1)
	if _, err := ahead.Append(t.Context(), audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: records(org, "w_1", 1, 1)}); err != nil {
		t.Fatal(err)
	}
	if err := behind.Ready(t.Context(), db.Pool()); !errors.Is(err, audit.ErrKeyMissing) || !strings.Contains(err.Error(), "epoch 2") {
		t.Errorf("ready: %v", err)
	}
}
