package audit_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// books is the chain of one org, and writers that ship to it.
type books struct {
	t    *testing.T
	db   *store.DB
	org  string
	c    *audit.Chain
	next map[string]uint64 // the last number of each writer
}

func newBooks(t *testing.T, db *store.DB) *books {
	return &books{t: t, db: db, org: storetest.Org(t, db), c: chain(t, db, 1), next: map[string]uint64{}}
}

var booked = time.Date(2026, 3, 31, 23, 59, 0, 0, time.UTC)

// cap is a USD cap as a decision names it.
func usdCap(counter, period string, most int64) audit.Limit {
	return audit.Limit{Source: "pol_1", Name: "monthly_usd_cap", Value: most, PolicyID: "pol_1", Limit: "monthly_usd_cap", Per: "policy", Subject: "pol_1",
		Counter: counter, Period: period, Max: most, Left: most}
}

// reserves is a decision that reserves.
func reserves(request string, amount int64, limits ...audit.Limit) audit.Decided {
	return audit.Decided{RequestID: request, AgentID: "ag_1", AgentTeam: "team", PolicyIDs: []string{"pol_1", "pol_2"}, Effect: "allow", Provider: "one", Model: "small", ReservedNanoUSD: amount, Limits: limits, Time: booked}
}

// charges is the completion of record seq of the writer.
func charges(request, writer string, seq uint64, amount int64, basis string) audit.Settled {
	return audit.Settled{RequestID: request, AgentTeam: "team", PolicyIDs: []string{"pol_1", "pol_2"}, AgentID: "ag_1", Provider: "one", Model: "small", DecidedWriter: writer, DecidedSeq: seq, Outcome: "completed",
		ChargedNanoUSD: amount, ChargeBasis: basis, Time: booked}
}

func unknown(s audit.Settled) audit.Settled {
	s.Outcome = audit.OutcomeUnknown
	return s
}

// ship appends entries as the next records of a writer, and then the same batch again.
func (b *books) ship(writer string, entries ...audit.Entry) {
	b.t.Helper()
	batch := audit.Batch{Org: b.org, Node: "node_1", Writer: writer}
	for _, e := range entries {
		seq := b.next[writer] + 1
		batch.Records = append(batch.Records, audit.Record{Seq: seq, Prev: b.next[writer], Org: b.org, Entry: audit.Stamp(e, b.org, writer, booked).Encode()})
		b.next[writer] = seq
	}
	for range 2 {
		if _, err := b.c.Append(context.Background(), batch); err != nil {
			b.t.Fatal(err)
		}
	}
}

// sums asks as a sidecar does.
func (b *books) sums(names ...audit.CountName) audit.Counts {
	b.t.Helper()
	got, err := b.c.Counts(context.Background(), audit.CountsRequest{Org: b.org, Node: "node_1", Writer: "w_1", Names: names})
	if err != nil {
		b.t.Fatal(err)
	}
	return got
}

// is checks one count.
func (b *books) is(counter, period string, charged, n, reserved int64) {
	b.t.Helper()
	name := audit.CountName{Counter: counter, Period: period}
	want := []audit.Count{{CountName: name, ChargedNanoUSD: charged, Charges: n, ReservedNanoUSD: reserved}}
	if diff := cmp.Diff(want, b.sums(name).Counts); diff != "" {
		b.t.Errorf("%s of %s: %s", counter, period, diff)
	}
}

func (b *books) exec(sql string, args ...any) {
	b.t.Helper()
	err := b.db.InOrg(context.Background(), b.org, func(tx pgx.Tx) error {
		_, err := tx.Exec(context.Background(), sql, args...)
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// kinds are those of the chain's entries, in order.
func (b *books) kinds() (kinds []string) {
	for _, e := range entries(b.t, b.db, b.org) {
		kinds = append(kinds, e.Kind)
	}
	if r := verify(b.t, b.db, b.org, 1); r.FirstBad != nil || r.Broken != 0 || r.Malformed != 0 {
		b.t.Errorf("the chain: %+v", r)
	}
	return kinds
}

// A charge goes to the counts that the decision names, in their period, once.
func TestCharges(t *testing.T) {
	const month, day = "2026-03", "2026-03-31"
	db := storetest.Open(t)
	limits := []audit.Limit{usdCap("m", month, 1000), usdCap("d", day, 1000)}
	limits[1].Limit = "daily_usd_cap"
	rpm := usdCap("rpm", "", 60)
	rpm.Limit = "rpm"
	decided := reserves("r", 50, append(limits, rpm, usdCap("m", month, 1000))...)
	settled := charges("r", "w_1", 1, 20, audit.BasisUsage)
	late := settled
	late.Time = booked.AddDate(0, 0, 2) // in another month and on another day
	for name, c := range map[string]struct {
		ship                 func(b *books)
		charged, n, reserved int64
		usage                int64
	}{
		"reserved":                 {func(b *books) { b.ship("w_1", decided) }, 0, 0, 50, 0},
		"completed":                {func(b *books) { b.ship("w_1", decided); b.ship("w_1", settled) }, 20, 1, 0, 20},
		"in one batch":             {func(b *books) { b.ship("w_1", decided, settled) }, 20, 1, 0, 20},
		"after midnight":           {func(b *books) { b.ship("w_1", decided); b.ship("w_1", late) }, 20, 1, 0, 20},
		"twice":                    {func(b *books) { b.ship("w_1", decided, settled, settled); b.ship("w_1", settled) }, 20, 1, 0, -1},
		"unknown":                  {func(b *books) { b.ship("w_1", decided); b.ship("w_2", unknown(settled)) }, 50, 1, 0, 50},
		"unknown without a charge": {func(b *books) { b.ship("w_1", decided); b.ship("w_2", unknown(charges("r", "w_1", 1, 0, ""))) }, 50, 1, 0, 50},
		"unknown twice": {func(b *books) {
			b.ship("w_1", decided)
			b.ship("w_2", unknown(settled))
			b.ship("w_3", unknown(settled))
		}, 50, 1, 0, 50},
		"unknown, then real":          {func(b *books) { b.ship("w_1", decided); b.ship("w_2", unknown(settled)); b.ship("w_1", settled) }, 20, 1, 0, 20},
		"unknown, then real, at once": {func(b *books) { b.ship("w_1", decided, unknown(settled), settled) }, 20, 1, 0, 20},
		"real, then unknown":          {func(b *books) { b.ship("w_1", decided, settled); b.ship("w_2", unknown(settled)) }, 20, 1, 0, 20},
		"an overrun":                  {func(b *books) { b.ship("w_1", decided, charges("r", "w_1", 1, 70, audit.BasisUsage)) }, 70, 1, 0, 70},
		"nothing sent":                {func(b *books) { b.ship("w_1", decided, charges("r", "w_1", 1, 0, audit.BasisNothing)) }, 0, 1, 0, 0},
		"without a basis":             {func(b *books) { b.ship("w_1", decided, charges("r", "w_1", 1, 0, "")) }, 50, 1, 0, 50},
		"another request's":           {func(b *books) { b.ship("w_1", decided, charges("x", "w_1", 1, 20, audit.BasisUsage)) }, 0, 0, 50, 20},
		"another writer's":            {func(b *books) { b.ship("w_1", decided); b.ship("w_2", charges("r", "", 1, 20, audit.BasisUsage)) }, 0, 0, 50, 20},
		"a negative charge":           {func(b *books) { b.ship("w_1", decided, charges("r", "w_1", 1, -20, audit.BasisUsage)) }, 0, 0, 50, 0},
		"a denial": {func(b *books) {
			d := decided
			d.Effect = "deny"
			b.ship("w_1", d)
		}, 0, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBooks(t, db)
			c.ship(b)
			b.is("m", month, c.charged, c.n, c.reserved)
			b.is("d", day, c.charged, c.n, c.reserved)
			b.is("rpm", "", 0, 0, 0)
			b.is("m", "2026-04", 0, 0, 0)
			if usage := b.usage(); c.usage >= 0 && usage != c.usage {
				t.Errorf("the usage has %d, want %d", usage, c.usage)
			}
		})
	}
}

// usage is what the days' usage says was charged.
func (b *books) usage() (sum int64) {
	b.t.Helper()
	err := b.db.InOrg(context.Background(), b.org, func(tx pgx.Tx) error {
		days, err := audit.DailyUsage(context.Background(), tx, "", booked.AddDate(0, 0, -1), time.Now().AddDate(0, 0, 1))
		sum = 0
		for _, d := range days {
			sum += d.ChargedNanoUSD
		}
		if err != nil {
			return err
		}
		for _, group := range []struct{ by, key string }{{"team", "team"}, {"policy", "pol_1"}, {"policy", "pol_2"}} {
			got, err := audit.SumUsage(context.Background(), tx, booked.AddDate(0, 0, -1), time.Now().AddDate(0, 0, 1), []string{group.by}, 0, 10)
			if err != nil {
				return err
			}
			var one int64
			for _, g := range got {
				if g.Key[0] == group.key {
					one += g.ChargedNanoUSD
				}
			}
			if one != sum {
				b.t.Errorf("usage of the %s %s is %d, want %d", group.by, group.key, one, sum)
			}
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return sum
}

// Both copies of a cloned process may complete the same request. It is charged once.
func TestForkCharges(t *testing.T) {
	b := newBooks(t, storetest.Open(t))
	limit := usdCap("m", "2026-03", 1000)
	recs := func(entries ...audit.Entry) (out []audit.Record) {
		for i, e := range entries {
			out = append(out, audit.Record{Seq: uint64(i + 1), Prev: uint64(i), Org: b.org, Entry: audit.Stamp(e, b.org, "w_1", booked).Encode()})
		}
		return out
	}
	one := recs(reserves("same", 50, limit), charges("same", "", 1, 20, audit.BasisUsage), reserves("one", 50, limit), charges("one", "", 3, 5, audit.BasisUsage))
	two := recs(reserves("same", 50, limit), charges("same", "", 1, 30, audit.BasisUsage), reserves("two", 50, limit), charges("two", "", 3, 7, audit.BasisUsage))
	for _, batch := range []audit.Batch{
		{Writer: "w_1", Records: one},
		{Writer: "w_1", Shipper: "w_9", Fork: true, Records: two},
		{Writer: "w_1", Shipper: "w_9", Fork: true, Records: two},
	} {
		batch.Org, batch.Node = b.org, "node_1"
		if _, err := b.c.Append(context.Background(), batch); err != nil {
			t.Fatal(err)
		}
	}
	b.is("m", "2026-03", 20+5+7, 3, 0)
}

// Half, four fifths and all of a cap are each recorded once in a period, with the charge that
// reaches the threshold. This also holds if one charge reaches several, or the cap changes.
func TestThresholds(t *testing.T) {
	b := newBooks(t, storetest.Open(t))
	var seq uint64
	spend := func(amount int64, basis string, limit audit.Limit) {
		t.Helper()
		seq++
		request := fmt.Sprint("r", seq)
		b.ship("w_1", reserves(request, 50, limit))
		b.ship("w_1", charges(request, "w_1", b.next["w_1"], amount, basis))
	}
	reached := func() (out []string) {
		for _, e := range entries(t, b.db, b.org) {
			if e.Kind != audit.KindThreshold {
				continue
			}
			parsed, err := e.Parse()
			if err != nil {
				t.Fatal(err)
			}
			h := parsed.(audit.Threshold)
			out = append(out, fmt.Sprintf("%s %s %d%% of %d: %d", h.Counter, h.Period, h.Threshold, h.MaxNanoUSD, h.ChargedNanoUSD))
			if h.Writer != "control" || h.PolicyID != "pol_1" || h.Limit != "monthly_usd_cap" || h.AgentID != "ag_1" || h.Subject != "pol_1" {
				t.Errorf("%+v", h)
			}
		}
		return out
	}
	march := usdCap("m", "2026-03", 101)
	var want []string
	for _, step := range []struct {
		amount int64
		limit  audit.Limit
		want   []string
	}{
		{50, march, nil}, // 50 of 101 is less than half
		{1, march, []string{"m 2026-03 50% of 101: 51"}},
		{29, march, nil},
		{1, march, []string{"m 2026-03 80% of 101: 81"}},
		{40, march, []string{"m 2026-03 100% of 101: 121"}},
		{40, march, nil},
		{1, usdCap("m", "2026-03", 200), nil}, // a higher cap: half of it was reached before
		{100, usdCap("m", "2026-04", 101), []string{"m 2026-04 50% of 101: 100", "m 2026-04 80% of 101: 100"}},
		{90, usdCap("other", "2026-04", 100), []string{"other 2026-04 50% of 100: 90", "other 2026-04 80% of 100: 90"}},
		{0, usdCap("free", "2026-04", 100), nil},
		{10, usdCap("zero", "2026-04", 0), nil},
		{10, usdCap("most", "2026-04", 1<<63-1), nil},
	} {
		spend(step.amount, audit.BasisUsage, step.limit)
		want = append(want, step.want...)
		if diff := cmp.Diff(want, reached()); diff != "" {
			t.Fatalf("after %d of %s: %s", step.amount, step.limit.Counter, diff)
		}
	}
	b.kinds()
	// A node may not report them.
	b.ship("w_2", audit.Threshold{Limit: "monthly_usd_cap", Counter: "m", Period: "2026-03", Threshold: 50})
	if got := entries(t, b.db, b.org); got[len(got)-1].Kind != audit.KindMalformed {
		t.Errorf("a node's threshold is stored as %s", got[len(got)-1].Kind)
	}
}

// A reservation whose sidecar is gone is charged in full, and not before. What the sidecar
// ships after all takes its place.
func TestLapse(t *testing.T) {
	limit := usdCap("m", "2026-03", 1000)
	db := storetest.Open(t)
	back := func(b *books, what string, d time.Duration) {
		b.exec("UPDATE "+what+" - $1::interval", d)
	}
	const opened, seen = "budget_reservations SET opened_at = opened_at", "sidecars SET seen_at = seen_at"
	ask := func(b *books, writer string) {
		b.t.Helper()
		if _, err := b.c.Counts(context.Background(), audit.CountsRequest{Org: b.org, Node: "node_1", Writer: writer}); err != nil {
			b.t.Fatal(err)
		}
	}
	setup := func(t *testing.T) *books {
		b := newBooks(t, db)
		ask(b, "w_2")
		b.ship("w_2", reserves("r", 50, limit))
		return b
	}
	t.Run("alive", func(t *testing.T) {
		b := setup(t)
		back(b, opened, time.Hour)
		ask(b, "w_2")
		b.is("m", "2026-03", 0, 0, 50)
	})
	t.Run("its record came just now", func(t *testing.T) {
		b := setup(t)
		back(b, seen, time.Hour)
		b.is("m", "2026-03", 0, 0, 50)
	})
	t.Run("never seen", func(t *testing.T) {
		b := newBooks(t, db)
		b.ship("w_2", reserves("r", 50, limit))
		back(b, opened, 9*time.Minute)
		b.is("m", "2026-03", 0, 0, 50)
		back(b, opened, 2*time.Minute)
		b.is("m", "2026-03", 50, 1, 0)
	})
	for name, c := range map[string]struct {
		then          []audit.Entry
		charged       int64
		usage, counts int64
	}{
		"gone":               {nil, 50, 50, 1},
		"gone, then real":    {[]audit.Entry{charges("r", "", 1, 20, audit.BasisUsage)}, 20, 20, 1},
		"gone, then unknown": {[]audit.Entry{unknown(charges("r", "w_2", 1, 50, audit.BasisReservation))}, 50, 50, 1},
		"gone, then both":    {[]audit.Entry{unknown(charges("r", "w_2", 1, 50, audit.BasisReservation)), charges("r", "w_2", 1, 20, audit.BasisUsage)}, 20, 20, 1},
	} {
		t.Run(name, func(t *testing.T) {
			b := setup(t)
			back(b, opened, time.Hour)
			back(b, seen, time.Hour)
			b.is("m", "2026-03", 50, 1, 0)
			b.is("m", "2026-03", 50, 1, 0) // once
			all := entries(t, b.db, b.org)
			e, err := all[len(all)-1].Parse()
			if err != nil {
				t.Fatal(err)
			}
			if s := e.(audit.Settled); s.Writer != "control" || s.Outcome != audit.OutcomeUnknown || s.ChargeBasis != audit.BasisLapsed || s.AgentID != "ag_1" ||
				s.Model != "small" || s.DecidedWriter != "w_2" || s.DecidedSeq != 1 || s.ChargedNanoUSD != 50 {
				t.Errorf("%+v", s)
			}
			if len(c.then) > 0 {
				b.ship("w_2", c.then...)
			}
			b.is("m", "2026-03", c.charged, c.counts, 0)
			if got := b.usage(); got != c.usage {
				t.Errorf("the usage has %d, want %d", got, c.usage)
			}
			b.kinds()
		})
	}
}

// The sums equal those of the completions in the chain, in every order. A decision counts the
// charge of its real completion, or its reservation if there is only an unknown one. A decision
// without a completion counts its reservation.
func TestSumsAreTheChains(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	b := newBooks(t, storetest.Open(t))
	type state struct {
		writer        string
		seq           uint64
		reserved      int64
		counter       string
		real, unknown bool
		charged       int64
	}
	var all []*state
	writers := []string{"w_1", "w_2", "w_3"}
	for range 40 {
		var batch []audit.Entry
		writer := writers[r.IntN(len(writers))]
		for range 1 + r.IntN(12) {
			open := slices.DeleteFunc(slices.Clone(all), func(s *state) bool { return s.real && r.IntN(8) > 0 })
			if len(open) == 0 || r.IntN(2) == 0 {
				s := &state{writer: writer, seq: b.next[writer] + uint64(len(batch)) + 1, reserved: 1 + r.Int64N(100), counter: fmt.Sprint("c", r.IntN(3))}
				batch = append(batch, reserves(fmt.Sprint("r", len(all)), s.reserved, usdCap(s.counter, "2026-03", 1<<40), usdCap("all", "2026-03", 1<<40)))
				all = append(all, s)
				continue
			}
			s := open[r.IntN(len(open))]
			e := charges(fmt.Sprint("r", slices.Index(all, s)), s.writer, s.seq, r.Int64N(100), audit.BasisUsage)
			if r.IntN(3) == 0 {
				e = unknown(e)
				e.ChargedNanoUSD, s.unknown = s.reserved, true
			} else {
				if s.real {
					continue // no sidecar completes a request twice
				}
				s.real, s.charged = true, e.ChargedNanoUSD
			}
			batch = append(batch, e)
		}
		if len(batch) > 0 {
			b.ship(writer, batch...)
		}
	}
	want := map[string]audit.Count{}
	for _, s := range all {
		for _, counter := range []string{s.counter, "all"} {
			c := want[counter]
			c.CountName = audit.CountName{Counter: counter, Period: "2026-03"}
			switch {
			case s.real:
				c.ChargedNanoUSD, c.Charges = c.ChargedNanoUSD+s.charged, c.Charges+1
			case s.unknown:
				c.ChargedNanoUSD, c.Charges = c.ChargedNanoUSD+s.reserved, c.Charges+1
			default:
				c.ReservedNanoUSD += s.reserved
			}
			want[counter] = c
		}
	}
	for counter, c := range want {
		if diff := cmp.Diff([]audit.Count{c}, b.sums(c.CountName).Counts); diff != "" {
			t.Errorf("seed %d, %s: %s", seed, counter, diff)
		}
	}
	if got := b.sums(); got.WriterSeq != b.next["w_1"] {
		t.Errorf("seed %d: includes %d, want %d", seed, got.WriterSeq, b.next["w_1"])
	}
	if !strings.Contains(strings.Join(b.kinds(), " "), audit.KindSettled) {
		t.Error("no completions")
	}
}

// What an agent has spent is the sum of its usage: the known cost, or the charge if that is
// more. It has no count of its own.
func TestAgentSpent(t *testing.T) {
	b := newBooks(t, storetest.Open(t))
	known := charges("r1", "w_1", 0, 0, "")
	known.CostNanoUSD, known.Priced = 7, true
	earlier := known
	earlier.RequestID, earlier.Time = "r2", booked.AddDate(0, 0, -1)
	other := known
	other.RequestID, other.AgentID = "r3", "ag_2"
	capped := usdCap("policy:p", "2026-03", 1000)
	b.ship("w_1", known, earlier, other, reserves("r4", 100, capped), charges("r4", "w_1", 4, 60, audit.BasisReservation))
	name := func(agent, period string) audit.CountName {
		return audit.CountName{Counter: audit.AgentSpent + agent, Period: period}
	}
	got := b.sums(name("ag_1", "2026-03-31"), name("ag_1", "2026-03"), audit.CountName{Counter: "policy:p", Period: "2026-03"}, name("ag_2", "2026-03"), name("ag_3", "2026-03"), name("ag_1", "2026-04"))
	var sums []int64
	for _, c := range got.Counts {
		sums = append(sums, c.ChargedNanoUSD)
	}
	if !slices.Equal(sums, []int64{60, 67, 60, 7, 0, 0}) {
		t.Errorf("%v", sums)
	}
	if _, err := b.c.Counts(context.Background(), audit.CountsRequest{Org: b.org, Node: "node_1", Writer: "w_1", Names: []audit.CountName{name("ag_1", "March")}}); !errors.Is(err, audit.ErrRefused) {
		t.Errorf("%v", err)
	}
}

// Usage counts on the day of the decision, in the org's time zone. A day that is far from the
// request's end is not believed.
func TestUsageDays(t *testing.T) {
	b := newBooks(t, storetest.Open(t))
	for i, c := range []struct{ day, want string }{
		{"", "2026-03-31"}, {"2026-04-01", "2026-04-01"}, {"2026-03-30", "2026-03-30"}, {"2026-03-01", "2026-03-31"}, {"2030-01-01", "2026-03-31"}, {"tomorrow", "2026-03-31"},
	} {
		s := charges(fmt.Sprint("r", i), "w_1", 0, 0, "")
		s.Day, s.AgentID = c.day, fmt.Sprint("ag_", i)
		b.ship("w_1", s)
		var got string
		err := b.db.InOrg(context.Background(), b.org, func(tx pgx.Tx) error {
			return tx.QueryRow(context.Background(), "SELECT day::text FROM usage_daily WHERE agent_id = $1", s.AgentID).Scan(&got)
		})
		if err != nil || got != c.want {
			t.Errorf("%q counts on %s, want %s, %v", c.day, got, c.want, err)
		}
	}
	// A recovered completion counts on the day of its decision, whenever it comes.
	d := reserves("r9", 10, usdCap("c", "2026-03", 100))
	b.ship("w_2", d)
	u := unknown(charges("r9", "w_2", 1, 10, audit.BasisLapsed))
	u.Day, u.AgentID, u.Time = "2026-03-31", "ag_9", booked.Add(time.Hour)
	b.ship("w_1", u)
	var got string
	err := b.db.InOrg(context.Background(), b.org, func(tx pgx.Tx) error {
		return tx.QueryRow(context.Background(), "SELECT day::text FROM usage_daily WHERE agent_id = 'ag_9'").Scan(&got)
	})
	if err != nil || got != "2026-03-31" {
		t.Errorf("a recovered completion counts on %s, %v", got, err)
	}
}
