package audit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// MaxCounts is how many counts a CountsRequest may name.
	MaxCounts = 1000
	// SidecarLease is how long a sidecar counts as serving an org after it last asked for
	// the org's counts.
	SidecarLease = 30 * time.Second
	// maxEnded bounds CountsRequest.Ended.
	maxEnded = 1000
	// countsDeadline bounds one request, with all attempts that the database requires.
	countsDeadline = 10 * time.Second
)

// CountName names a count of a USD cap as Limit does.
type CountName struct{ Counter, Period string }

// CountsRequest is a sidecar's request for sums.
type CountsRequest struct {
	Org    string
	Node   string // the authenticated node; set by the control plane, never by the sender
	Writer string // of the process
	Names  []CountName
	// Ended are earlier writers of the node whose processes have ended for certain.
	Ended   []string
	Leaving bool // the process no longer serves the org
}

// Count is what was charged to a count, and what is reserved in it.
type Count struct {
	CountName
	ChargedNanoUSD  int64
	Charges         int64 // completed requests
	ReservedNanoUSD int64 // by recorded decisions without a completion
}

// Counts is the response to a CountsRequest.
type Counts struct {
	Counts   []Count   // in the order of the request's names
	AsOf     time.Time // the database's clock when the sums were read
	Sidecars int       // that serve the org, this one included unless it leaves
	// WriterSeq is the last record of the request's writer that the sums include.
	WriterSeq uint64
	Lease     time.Duration
}

func (r CountsRequest) check() error {
	if !validID(r.Org) || r.Node == "" {
		return fmt.Errorf("%w: the org or the node is not valid", ErrRefused)
	}
	for _, id := range append([]string{r.Writer}, r.Ended...) {
		if !validID(id) || !strings.HasPrefix(id, "w_") {
			return fmt.Errorf("%w: a writer id begins with w_ and has at most %d letters and digits", ErrRefused, maxID)
		}
	}
	if len(r.Names) > MaxCounts || len(r.Ended) > maxEnded {
		return fmt.Errorf("%w: at most %d counts and %d ended writers in one request", ErrRefused, MaxCounts, maxEnded)
	}
	for _, n := range r.Names {
		if len(n.Counter) > maxCounter || len(n.Period) > maxWord || column(n.Counter, maxCounter) != n.Counter || column(n.Period, maxWord) != n.Period {
			return fmt.Errorf("%w: a count's name is UTF-8 of at most %d bytes, and its period of %d", ErrRefused, maxCounter, maxWord)
		}
	}
	return nil
}

// Counts notes that the sidecar serves the org, and returns the sums of its counts. Sidecars
// of one org take turns, so that of two that start together at least one sees both. The
// error wraps ErrRefused if sending the same again cannot help.
func (c *Chain) Counts(ctx context.Context, r CountsRequest) (Counts, error) {
	if err := r.check(); err != nil {
		return Counts{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, countsDeadline)
	defer cancel()
	var out Counts
	var lapsed appended
	err := c.c.DB.InOrg(ctx, r.Org, func(tx pgx.Tx) (err error) {
		if err := noteSidecar(ctx, tx, r); err != nil {
			return err
		}
		if lapsed, err = c.lapse(ctx, tx, r.Org); err != nil {
			return err
		}
		out, err = counts(ctx, tx, r)
		return err
	})
	if err != nil {
		return Counts{}, fmt.Errorf("reading counts of %s: %w", r.Org, err)
	}
	if lapsed.count > 0 {
		c.metrics.chained.Add(float64(lapsed.count + len(lapsed.thresholds)))
		c.metrics.lapsed.Add(float64(lapsed.count))
		c.noteMoney(ctx, r.Org, lapsed)
		c.c.Log.WarnContext(ctx, "the sidecar of these requests is gone: they are charged in full", "org", r.Org, "count", lapsed.count)
	}
	return out, nil
}

const (
	// strayLease is how long a reservation stays open whose process never asked for counts.
	strayLease = 10 * time.Minute
	// maxLapse bounds what one request for counts charges. The next one continues.
	maxLapse = 200
)

// lapse charges reservations in full whose sidecar is gone. Each gets a completion of
// OutcomeUnknown, which a real one still replaces.
func (c *Chain) lapse(ctx context.Context, tx pgx.Tx, org string) (appended, error) {
	const due = `SELECT r.writer, r.writer_seq, r.request_id, r.reserved_nano_usd FROM budget_reservations r
		LEFT JOIN LATERAL (SELECT max(seen_at) AS seen_at FROM sidecars s WHERE s.org_id = $1 AND s.writer = r.writer) s ON true
		WHERE r.org_id = $1 AND NOT r.unknown AND r.opened_at < clock_timestamp() - $2::interval
			AND (s.seen_at < clock_timestamp() - $2::interval OR s.seen_at IS NULL AND r.opened_at < clock_timestamp() - $3::interval)
		ORDER BY r.opened_at LIMIT $4`
	read := func() ([]Settled, error) {
		rows, err := tx.Query(ctx, due, org, SidecarLease, strayLease, maxLapse)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, func(row pgx.CollectableRow) (s Settled, err error) {
			err = row.Scan(&s.DecidedWriter, &s.DecidedSeq, &s.RequestID, &s.ChargedNanoUSD)
			return s, err
		})
	}
	if found, err := read(); len(found) == 0 || err != nil {
		return appended{}, err
	}
	if err := lockChain(ctx, tx, org); err != nil {
		return appended{}, err
	}
	found, err := read() // again: completions may have come before the lock
	if err != nil {
		return appended{}, err
	}
	entries := make([]Entry, len(found))
	for i, s := range found {
		if entries[i], err = lapsedSettlement(ctx, tx, org, s); err != nil {
			return appended{}, err
		}
	}
	return c.own(ctx, tx, org, entries)
}

// lapsedSettlement is the completion of a decision whose sidecar is gone.
func lapsedSettlement(ctx context.Context, tx pgx.Tx, org string, s Settled) (Settled, error) {
	var entry []byte
	err := tx.QueryRow(ctx, "SELECT entry FROM audit_entries WHERE org_id = $1 AND writer = $2 AND writer_seq = $3 AND request_id = $4 AND kind = $5 LIMIT 1",
		org, s.DecidedWriter, s.DecidedSeq, s.RequestID, KindDecided).Scan(&entry)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return Settled{}, err
	}
	out := Settled{RequestID: s.RequestID, Outcome: OutcomeUnknown, Usage: Usage{Source: "absent"}}
	if e, err := Parse(entry); err == nil {
		if d, ok := e.(Decided); ok {
			out = unknownSettlement(d)
		}
	}
	out.Time = time.Time{} // it is recorded now
	out.DecidedWriter, out.DecidedSeq, out.ChargedNanoUSD, out.ChargeBasis = s.DecidedWriter, s.DecidedSeq, s.ChargedNanoUSD, BasisLapsed
	return out, nil
}

// noteSidecar keeps the list of processes that serve the org.
func noteSidecar(ctx context.Context, tx pgx.Tx, r CountsRequest) error {
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtextextended('aid sidecars ' || $1, 0))", r.Org); err != nil {
		return err
	}
	gone := r.Ended
	if r.Leaving {
		gone = append(gone[:len(gone):len(gone)], r.Writer)
	}
	if _, err := tx.Exec(ctx, "DELETE FROM sidecars WHERE org_id = $1 AND (node_id = $2 AND writer = ANY($3) OR seen_at < clock_timestamp() - interval '1 day')",
		r.Org, r.Node, gone); err != nil {
		return err
	}
	if r.Leaving {
		return nil
	}
	_, err := tx.Exec(ctx, `INSERT INTO sidecars (org_id, node_id, writer, seen_at) VALUES ($1, $2, $3, clock_timestamp())
		ON CONFLICT (org_id, node_id, writer) DO UPDATE SET seen_at = EXCLUDED.seen_at`, r.Org, r.Node, r.Writer)
	return err
}

// readCounts is one statement, so that all that it returns is of one moment.
const readCounts = `
WITH held AS (
	SELECT l->>'counter' AS counter, l->>'period' AS period, least(sum(r.reserved_nano_usd), 9223372036854775807)::bigint AS reserved
	FROM budget_reservations r, jsonb_array_elements(r.limits) l WHERE r.org_id = $1 AND NOT r.unknown GROUP BY 1, 2)
SELECT m.*, coalesce(n.ord, 0), coalesce(c.charged_nano_usd, 0), coalesce(c.charges, 0), coalesce(h.reserved, 0)
FROM (SELECT statement_timestamp(),
		(SELECT count(*) FROM sidecars WHERE org_id = $1 AND seen_at > clock_timestamp() - $5::interval),
		coalesce((SELECT writer_seq FROM audit_writers WHERE org_id = $1 AND writer = $4 AND lane = ''), 0)) m
LEFT JOIN unnest($2::text[], $3::text[]) WITH ORDINALITY AS n(counter, period, ord) ON true
LEFT JOIN budget_counts c ON c.org_id = $1 AND c.counter = n.counter AND c.period = n.period
LEFT JOIN held h ON h.counter = n.counter AND h.period = n.period`

func counts(ctx context.Context, tx pgx.Tx, r CountsRequest) (Counts, error) {
	out := Counts{Counts: make([]Count, len(r.Names)), Lease: SidecarLease}
	counters, periods := make([]string, len(r.Names)), make([]string, len(r.Names))
	for i, n := range r.Names {
		out.Counts[i].CountName = n
		counters[i], periods[i] = n.Counter, n.Period
	}
	rows, err := tx.Query(ctx, readCounts, r.Org, counters, periods, r.Writer, SidecarLease)
	if err != nil {
		return Counts{}, err
	}
	var place int
	var c Count
	_, err = pgx.ForEachRow(rows, []any{&out.AsOf, &out.Sidecars, &out.WriterSeq, &place, &c.ChargedNanoUSD, &c.Charges, &c.ReservedNanoUSD}, func() error {
		if place > 0 {
			c.CountName = r.Names[place-1]
			out.Counts[place-1] = c
		}
		return nil
	})
	out.AsOf = out.AsOf.UTC()
	if err != nil {
		return out, err
	}
	return out, agentsSpent(ctx, tx, r, out.Counts)
}

// AgentSpent begins the name of a counter for all that an agent has spent. No such count is
// kept: the sum is that of the agent's usage.
const AgentSpent = "spent:agent:"

// agentsSpent sets the sums of counters with AgentSpent.
func agentsSpent(ctx context.Context, tx pgx.Tx, r CountsRequest, into []Count) error {
	var agents []string
	var from, to []time.Time
	var places []int
	for i, n := range r.Names {
		agent, ok := strings.CutPrefix(n.Counter, AgentSpent)
		if !ok {
			continue
		}
		begin, err := time.Parse(time.DateOnly, n.Period)
		end := begin.AddDate(0, 0, 1)
		if err != nil {
			if begin, err = time.Parse("2006-01", n.Period); err != nil {
				return fmt.Errorf("%w: %q is not the name of a day or month", ErrRefused, n.Period)
			}
			end = begin.AddDate(0, 1, 0)
		}
		agents, from, to, places = append(agents, agent), append(from, begin), append(to, end), append(places, i)
	}
	if len(agents) == 0 {
		return nil
	}
	rows, err := tx.Query(ctx, `SELECT n.ord, least(coalesce(sum(greatest(u.cost_nano_usd, u.charged_nano_usd)), 0), 9223372036854775807)::bigint
		FROM unnest($2::text[], $3::date[], $4::date[]) WITH ORDINALITY AS n(agent, first, after, ord)
		LEFT JOIN usage_daily u ON u.org_id = $1 AND u.agent_id = n.agent AND u.day >= n.first AND u.day < n.after GROUP BY n.ord`, r.Org, agents, from, to)
	if err != nil {
		return err
	}
	var place int
	var nano int64
	_, err = pgx.ForEachRow(rows, []any{&place, &nano}, func() error {
		into[places[place-1]].ChargedNanoUSD = nano
		return nil
	})
	return err
}
