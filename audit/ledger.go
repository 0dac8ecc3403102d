package audit

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// usdCap is what the name of each limit in US dollars ends with.
const usdCap = "_usd_cap"

// reservation is what a decision holds in the counts of its caps.
type reservation struct {
	limits   []Limit // the caps
	reserved int64
	charged  int64 // by a completion of OutcomeUnknown
	unknown  bool  // it has one

	stored, changed, gone bool
}

// holder names a reservation. The request id tells apart the copies of a forked writer.
type holder struct {
	decision
	request string
}

// ledger is what a batch changes in the counts of USD caps.
type ledger struct {
	held map[holder]*reservation
	sums map[CountName]*sum
	money
}

// money is what a batch did, for the metrics.
type money struct {
	reserved, charged, corrected int64 // corrected: taken back for the charges that replace it
	unmatched, overruns          int
}

// sum is what a batch adds to a count.
type sum struct {
	nanoUSD, charges int64
	limit            Limit // the cap, as the last charge's decision had it
	agent            string
}

// read loads the reservations of the decisions that complete here.
func (l *ledger) read(ctx context.Context, tx pgx.Tx, org string, entries []Entry) error {
	l.held, l.sums = make(map[holder]*reservation), make(map[CountName]*sum)
	var writers, requests []string
	var seqs []int64
	for _, e := range entries {
		if s, ok := e.(Settled); ok && s.DecidedSeq != 0 {
			d := decisionOf(s)
			writers, seqs, requests = append(writers, d.writer), append(seqs, d.seq), append(requests, column(s.RequestID, maxID))
		}
	}
	if len(seqs) == 0 {
		return nil
	}
	rows, err := tx.Query(ctx, `SELECT r.writer, r.writer_seq, r.request_id, r.limits, r.reserved_nano_usd, r.charged_nano_usd, r.unknown
		FROM budget_reservations r JOIN unnest($2::text[], $3::bigint[], $4::text[]) AS w(writer, seq, request)
			ON r.writer = w.writer AND r.writer_seq = w.seq AND r.request_id = w.request
		WHERE r.org_id = $1`, org, writers, seqs, requests)
	if err != nil {
		return err
	}
	var k holder
	var h reservation
	var limits []byte
	_, err = pgx.ForEachRow(rows, []any{&k.writer, &k.seq, &k.request, &limits, &h.reserved, &h.charged, &h.unknown}, func() error {
		one := h
		one.stored = true
		if err := json.Unmarshal(limits, &one.limits); err != nil {
			return fmt.Errorf("reading the caps of a reservation: %w", err)
		}
		l.held[k] = &one
		return nil
	})
	return err
}

// open notes what an allowed decision reserves. A decision that has completed already, in
// another copy of its writer, reserves nothing.
func (l *ledger) open(ctx context.Context, tx pgx.Tx, org string, d Decided, seq int64, fork bool) error {
	if d.Effect != effectAllow || d.ReservedNanoUSD <= 0 {
		return nil
	}
	k := holder{decision{column(d.Writer, maxID), seq}, column(d.RequestID, maxID)}
	h := &reservation{reserved: min(d.ReservedNanoUSD, maxCount)}
	seen := make(map[CountName]bool)
	for _, lim := range d.Limits {
		lim.Counter, lim.Period = column(lim.Counter, maxCounter), column(lim.Period, maxWord)
		if name := lim.name(); lim.Counter != "" && strings.HasSuffix(lim.Limit, usdCap) && !seen[name] {
			seen[name] = true
			h.limits = append(h.limits, lim)
		}
	}
	if len(h.limits) == 0 || l.held[k] != nil {
		return nil
	}
	if fork {
		if ended, err := settledBefore(ctx, tx, org, k.request); ended || err != nil {
			return err
		}
	}
	l.held[k] = h
	l.reserved += h.reserved
	return nil
}

func (l Limit) name() CountName { return CountName{l.Counter, l.Period} }

// charge charges a completion to the counts of its decision. It returns what it charged,
// and what an unknown completion had charged that this one replaces. The caller has found
// that the completion counts.
func (l *ledger) charge(s Settled, d decision) (charged, replaced int64) {
	h := l.held[holder{d, column(s.RequestID, maxID)}]
	if h == nil || h.gone {
		if s.ChargedNanoUSD != 0 {
			l.unmatched++
		}
		return s.ChargedNanoUSD, 0
	}
	charged, replaced = s.ChargedNanoUSD, h.charged
	if s.ChargeBasis == "" || s.Outcome == OutcomeUnknown {
		charged = max(charged, h.reserved) // what was used is not known
	}
	if charged > h.reserved {
		l.overruns++
	}
	n := int64(1)
	if h.unknown {
		n = 0 // it is counted
	}
	for _, lim := range h.limits {
		t := l.sums[lim.name()]
		if t == nil {
			t = &sum{}
			l.sums[lim.name()] = t
		}
		t.nanoUSD += charged - replaced
		t.charges += n
		t.limit, t.agent = lim, s.AgentID
	}
	h.changed = true
	l.charged, l.corrected = l.charged+charged, l.corrected+replaced
	if s.Outcome == OutcomeUnknown {
		h.unknown, h.charged = true, charged
	} else {
		h.gone = true
	}
	return charged, replaced
}

// thresholds are the shares of a cap, in per cent, whose reaching is recorded.
var thresholds = []int64{50, 80, 100}

// share is the least number of nano-dollars that is at least so many per cent of max.
func share(maximum, percent int64) int64 {
	return maximum/100*percent + (maximum%100*percent+99)/100
}

// apply stores all of it, and returns the thresholds that were reached for the first time.
func (l *ledger) apply(ctx context.Context, tx pgx.Tx, org string) ([]Threshold, error) {
	var b pgx.Batch
	for k, h := range l.held {
		switch {
		case h.gone && h.stored:
			b.Queue("DELETE FROM budget_reservations WHERE org_id = $1 AND writer = $2 AND writer_seq = $3 AND request_id = $4", org, k.writer, k.seq, k.request)
		case h.gone:
		case !h.stored:
			limits, err := json.Marshal(h.limits)
			if err != nil {
				return nil, err
			}
			b.Queue(`INSERT INTO budget_reservations (org_id, writer, writer_seq, request_id, limits, reserved_nano_usd, charged_nano_usd, unknown, opened_at)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8, clock_timestamp()) ON CONFLICT DO NOTHING`, org, k.writer, k.seq, k.request, limits, h.reserved, h.charged, h.unknown)
		case h.changed:
			b.Queue(`UPDATE budget_reservations SET unknown = $5, charged_nano_usd = $6 WHERE org_id = $1 AND writer = $2 AND writer_seq = $3 AND request_id = $4`,
				org, k.writer, k.seq, k.request, h.unknown, h.charged)
		}
	}
	if b.Len() > 0 {
		if err := tx.SendBatch(ctx, &b).Close(); err != nil {
			return nil, err
		}
	}
	if len(l.sums) == 0 {
		return nil, nil
	}
	return l.add(ctx, tx, org)
}

// add adds to the sums in the database, each bounded rather than rejected.
func (l *ledger) add(ctx context.Context, tx pgx.Tx, org string) ([]Threshold, error) {
	var counters, periods []string
	var amounts, charges []int64
	for _, name := range slices.SortedFunc(maps.Keys(l.sums), func(a, b CountName) int { return strings.Compare(a.Counter+a.Period, b.Counter+b.Period) }) {
		counters, periods = append(counters, name.Counter), append(periods, name.Period)
		amounts, charges = append(amounts, l.sums[name].nanoUSD), append(charges, l.sums[name].charges)
	}
	rows, err := tx.Query(ctx, `INSERT INTO budget_counts AS c (org_id, counter, period, charged_nano_usd, charges)
		SELECT $1, u.* FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[]) u
		ON CONFLICT (org_id, counter, period) DO UPDATE SET
			charged_nano_usd = least(c.charged_nano_usd::numeric + EXCLUDED.charged_nano_usd, 9223372036854775807)::bigint,
			charges = least(c.charges::numeric + EXCLUDED.charges, 9223372036854775807)::bigint
		RETURNING counter, period, charged_nano_usd`, org, counters, periods, amounts, charges)
	if err != nil {
		return nil, err
	}
	var reached pgx.Batch
	var due []Threshold
	var name CountName
	var charged int64
	_, err = pgx.ForEachRow(rows, []any{&name.Counter, &name.Period, &charged}, func() error {
		s := l.sums[name]
		for _, percent := range thresholds {
			if s.nanoUSD <= 0 || s.limit.Max <= 0 || charged < share(s.limit.Max, percent) {
				continue
			}
			due = append(due, Threshold{
				PolicyID: s.limit.PolicyID, Limit: s.limit.Limit, Per: s.limit.Per, Subject: s.limit.Subject, Counter: name.Counter, Period: name.Period,
				Threshold: percent, MaxNanoUSD: s.limit.Max, ChargedNanoUSD: charged, AgentID: s.agent,
			})
		}
		return nil
	})
	if err != nil || len(due) == 0 {
		return nil, err
	}
	var fresh []Threshold
	for _, t := range due {
		reached.Queue(`INSERT INTO budget_events (org_id, counter, period, threshold, max_nano_usd, charged_nano_usd, at) VALUES ($1, $2, $3, $4, $5, $6, clock_timestamp())
			ON CONFLICT DO NOTHING`, org, t.Counter, t.Period, t.Threshold, t.MaxNanoUSD, t.ChargedNanoUSD).Exec(func(tag pgconn.CommandTag) error {
			if tag.RowsAffected() > 0 {
				fresh = append(fresh, t)
			}
			return nil
		})
	}
	return fresh, tx.SendBatch(ctx, &reached).Close()
}
