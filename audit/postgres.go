package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
)

// DB runs fn in a transaction that sees the rows of one org, and commits it if fn
// returns nil. It may run fn again if the database asks for that.
type DB interface {
	InOrg(ctx context.Context, org string, fn func(pgx.Tx) error) error
}

// ChainConfig is what a Chain needs.
type ChainConfig struct {
	DB   DB   // of Append; Record brings its own transaction
	Keys Keys // at least one

	Now        func() time.Time      // nil: time.Now
	Log        *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // of aid_audit_chain_…; nil: nobody reads them
}

// A Chain appends entries to the chains of orgs in Postgres. Any number of them
// may do so at once: the row of an org's head is locked meanwhile, which is what
// keeps its sequence without gaps. It is safe for concurrent use.
type Chain struct {
	c       ChainConfig
	metrics *chainMetrics
}

// NewChain checks c.
func NewChain(c ChainConfig) (*Chain, error) {
	if c.Keys.newest == 0 {
		return nil, errors.New("the audit chain has no key")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	m, err := newChainMetrics(c.Registerer)
	if err != nil {
		return nil, err
	}
	return &Chain{c: c, metrics: m}, nil
}

// ErrRefused is what Append's error wraps when sending the same again cannot help:
// no writer of ours sends that, or a directory of segments was copied.
var ErrRefused = errors.New("audit records refused")

// controlWriter is the writer of what Record appends. No node may call itself so:
// theirs begin with "w_".
const controlWriter = "control"

// Append appends the records of a writer to the chain of org, in their order, and
// returns the sequence number of the last one once all of them are committed: all
// or none are. Those that are there already change nothing, so a batch may be sent
// as often as it takes, to any replica.
//
// All records must be of org, which is the one that the sender may write for, and
// their sequence numbers must ascend; else the error wraps ErrRefused. It also
// does when a record is there already with another content: then two processes
// have the same writer id, because a directory was copied or restored. An entry
// that cannot be read is no error: see KindMalformed.
func (c *Chain) Append(ctx context.Context, org, writer string, recs []Record) (uint64, error) {
	if len(recs) == 0 {
		return 0, nil
	}
	began := c.c.Now()
	if err := checkBatch(org, writer, recs); err != nil {
		return 0, c.refused(ctx, org, writer, err)
	}
	var done appended
	err := c.c.DB.InOrg(ctx, org, func(tx pgx.Tx) error {
		fresh, err := unseen(ctx, tx, org, writer, recs)
		if err != nil {
			return err
		}
		done, err = c.append(ctx, tx, org, writer, fresh)
		return err
	})
	if errors.Is(err, ErrRefused) {
		return 0, c.refused(ctx, org, writer, err)
	}
	if err != nil {
		return 0, fmt.Errorf("appending %d audit records of %s: %w", len(recs), writer, err)
	}
	c.metrics.append.Observe(c.c.Now().Sub(began).Seconds())
	c.metrics.chained.Add(float64(done.count))
	c.metrics.resent.Add(float64(len(recs) - done.count))
	if done.malformed > 0 {
		c.metrics.malformed.Add(float64(done.malformed))
		c.c.Log.ErrorContext(ctx, "audit entries that cannot be read are in the chain as they came", "org", org, "writer", writer,
			"count", done.malformed, "from", recs[0].Seq, "to", recs[len(recs)-1].Seq)
	}
	return recs[len(recs)-1].Seq, nil
}

func (c *Chain) refused(ctx context.Context, org, writer string, err error) error {
	c.metrics.refused.Inc()
	c.c.Log.ErrorContext(ctx, "audit records refused", "org", org, "writer", writer, "err", err)
	return err
}

// checkBatch refuses what no writer of ours sends, whatever its entries say.
func checkBatch(org, writer string, recs []Record) error {
	if !validID(org) || !validID(writer) || !strings.HasPrefix(writer, "w_") {
		return fmt.Errorf("%w: org or writer is none", ErrRefused)
	}
	last := uint64(0)
	for _, r := range recs {
		switch {
		case r.Seq <= last || r.Seq > math.MaxInt64:
			return fmt.Errorf("%w: record %d comes after %d", ErrRefused, r.Seq, last)
		case r.Org != org:
			return fmt.Errorf("%w: record %d is of another org", ErrRefused, r.Seq)
		case len(r.Entry) == 0 || len(r.Entry) > MaxEntryBytes:
			return fmt.Errorf("%w: record %d has an entry of %d bytes", ErrRefused, r.Seq, len(r.Entry))
		}
		last = r.Seq
	}
	return nil
}

// unseen locks the org's chain and returns the records that are not in it. Of each
// writer the chain has everything up to some number, since it comes in order.
func unseen(ctx context.Context, tx pgx.Tx, org, writer string, recs []Record) ([]Record, error) {
	if err := lockChain(ctx, tx, org); err != nil {
		return nil, err
	}
	var seen uint64
	err := tx.QueryRow(ctx, "SELECT writer_seq FROM audit_writers WHERE org_id = $1 AND writer = $2", org, writer).Scan(&seen)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, err
	}
	n := 0
	for n < len(recs) && recs[n].Seq <= seen {
		n++
	}
	if n == 0 {
		return recs, nil
	}
	seqs := make([]int64, n)
	for i, r := range recs[:n] {
		seqs[i] = int64(r.Seq)
	}
	rows, err := tx.Query(ctx, "SELECT writer_seq, entry FROM audit_entries WHERE org_id = $1 AND writer = $2 AND writer_seq = ANY($3)", org, writer, seqs)
	if err != nil {
		return nil, err
	}
	stored := make(map[uint64][]byte, n)
	var seq uint64
	var entry []byte
	if _, err := pgx.ForEachRow(rows, []any{&seq, &entry}, func() error {
		stored[seq] = bytes.Clone(entry)
		return nil
	}); err != nil {
		return nil, err
	}
	for _, r := range recs[:n] {
		if got, ok := stored[r.Seq]; !ok || !bytes.Equal(got, r.Entry) {
			return nil, fmt.Errorf("%w: the chain is past record %d of writer %s and has not this content: are two processes using copies of one segment directory?", ErrRefused, r.Seq, writer)
		}
	}
	return recs[n:], nil
}

// lockChain holds the org's chain until the transaction ends.
func lockChain(ctx context.Context, tx pgx.Tx, org string) error {
	for range 2 {
		var one int
		err := tx.QueryRow(ctx, "SELECT 1 FROM audit_heads WHERE org_id = $1 FOR UPDATE", org).Scan(&one)
		if !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		if _, err := tx.Exec(ctx, "INSERT INTO audit_heads (org_id) VALUES ($1) ON CONFLICT DO NOTHING", org); err != nil {
			return err
		}
	}
	return fmt.Errorf("org %s has no audit head that we may see", org)
}

// appended is what append did.
type appended struct {
	seq              int64 // of the last entry
	count, malformed int
}

const insertEntries = `
INSERT INTO audit_entries (org_id, seq, appended_at, time, kind, agent_id, request_id, writer, writer_seq, entry, epoch, prev_mac, mac)
SELECT $1, u.seq, $2, u.time, u.kind, u.agent_id, u.request_id, $3, u.writer_seq, u.entry, $4, u.prev_mac, u.mac
FROM unnest($5::bigint[], $6::timestamptz[], $7::text[], $8::text[], $9::text[], $10::bigint[], $11::bytea[], $12::bytea[], $13::bytea[])
	AS u(seq, time, kind, agent_id, request_id, writer_seq, entry, prev_mac, mac)`

// append gives recs the next numbers and links of the chain, which is locked, and
// adds up what they say was used. A record without a number gets the chain's.
func (c *Chain) append(ctx context.Context, tx pgx.Tx, org, writer string, recs []Record) (appended, error) {
	if len(recs) == 0 {
		return appended{}, nil
	}
	var seq int64
	var epoch int32
	var prev []byte
	if err := tx.QueryRow(ctx, "SELECT seq, epoch, mac FROM audit_heads WHERE org_id = $1", org).Scan(&seq, &epoch, &prev); err != nil {
		return appended{}, err
	}
	if epoch > c.c.Keys.newest {
		return appended{}, fmt.Errorf("the chain of %s is in key epoch %d, and the newest key here is of epoch %d", org, epoch, c.c.Keys.newest)
	}
	epoch = c.c.Keys.newest
	seal, _ := c.c.Keys.sealer(epoch)
	now := c.c.Now().UTC().Truncate(time.Microsecond) // as the database keeps it, so that the MAC can be checked

	n := len(recs)
	done := appended{count: n}
	use := make(usage)
	seqs, writerSeqs, times := make([]int64, n), make([]int64, n), make([]time.Time, n)
	kinds, agents, requests := make([]string, n), make([]string, n), make([]string, n)
	entries, prevs, macs := make([][]byte, n), make([][]byte, n), make([][]byte, n)
	for i, r := range recs {
		seq++
		cols, e := describe(org, writer, r.Entry, now)
		if e == nil {
			done.malformed++
		}
		if s, ok := e.(Settled); ok {
			use.add(s)
		}
		writerSeq := int64(r.Seq)
		if writerSeq == 0 {
			writerSeq = seq
		}
		mac := seal.mac(link{
			epoch: epoch, org: org, seq: seq, appendedAt: now, writer: writer, writerSeq: writerSeq, kind: cols.kind, prev: prev, entry: r.Entry,
		})
		seqs[i], writerSeqs[i], times[i] = seq, writerSeq, cols.time
		kinds[i], agents[i], requests[i] = cols.kind, cols.agent, cols.request
		entries[i], prevs[i], macs[i] = r.Entry, prev, mac[:]
		prev = mac[:]
	}
	done.seq = seq

	var b pgx.Batch
	b.Queue(insertEntries, org, now, writer, epoch, seqs, times, kinds, agents, requests, writerSeqs, entries, prevs, macs)
	b.Queue("UPDATE audit_heads SET seq = $2, epoch = $3, mac = $4 WHERE org_id = $1", org, seq, epoch, prev)
	b.Queue(`INSERT INTO audit_writers (org_id, writer, writer_seq) VALUES ($1, $2, $3)
		ON CONFLICT (org_id, writer) DO UPDATE SET writer_seq = EXCLUDED.writer_seq`, org, writer, writerSeqs[n-1])
	use.queue(&b, org)
	return done, tx.SendBatch(ctx, &b).Close()
}

// Position is where in an org's chain an entry is.
type Position struct {
	Org string
	Seq int64
}

// Record appends e to the chain of org in the caller's transaction, which has org
// set: what is changed and that it was changed are there together or not at all.
// It holds the chain until the transaction ends, so it should come last in it.
func (c *Chain) Record(ctx context.Context, tx pgx.Tx, org string, e Changed) (Position, error) {
	b := Stamp(e, org, controlWriter, c.c.Now()).Encode()
	got, err := Parse(b)
	if _, ok := got.(Changed); err == nil && !ok {
		err = fmt.Errorf("%w: kind %q is not of a change", ErrMalformed, e.Kind)
	}
	if err != nil {
		return Position{}, fmt.Errorf("recording a change: %w", err)
	}
	if err := lockChain(ctx, tx, org); err != nil {
		return Position{}, fmt.Errorf("recording %s: %w", e.Kind, err)
	}
	// The chain's own number is the writer's, too: it is as unique.
	done, err := c.append(ctx, tx, org, controlWriter, []Record{{Org: org, Entry: b}})
	if err != nil {
		return Position{}, fmt.Errorf("recording %s: %w", e.Kind, err)
	}
	c.metrics.chained.Inc()
	return Position{Org: org, Seq: done.seq}, nil
}

// ---- what was used ----

// UsageDay is what an agent used on a day of one model of one provider. Requests
// counts settled exchanges; Refused and Unpriced are among them.
type UsageDay struct {
	AgentID  string
	Day      time.Time // 00:00 UTC
	Provider string
	Model    string // as asked for

	Requests, Refused                                                          int64
	InputTokens, OutputTokens, CachedTokens, CacheWriteTokens, ReasoningTokens int64
	CostNanoUSD                                                                int64
	Unpriced                                                                   int64 // requests whose cost is not known
}

type usageKey struct {
	agent, provider, model string
	day                    time.Time
}

// usage is what a batch adds.
type usage map[usageKey]*UsageDay

// maxCount bounds what one exchange may say it used: a writer that is broken must
// not make a sum that the database refuses, and with it the chain.
const maxCount = 1e15

func (u usage) add(s Settled) {
	t := s.Time.UTC()
	k := usageKey{
		agent: column(s.AgentID, maxID), provider: column(s.Provider, maxName), model: column(s.Model, maxName),
		day: time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC),
	}
	d := u[k]
	if d == nil {
		d = &UsageDay{AgentID: k.agent, Day: k.day, Provider: k.provider, Model: k.model}
		u[k] = d
	}
	d.Requests++
	if s.Outcome == outcomeRefused {
		d.Refused++ // and cost nothing, which is known
	} else if !s.Priced {
		d.Unpriced++
	}
	for _, f := range []struct {
		sum *int64
		n   int64
	}{
		{&d.InputTokens, s.Usage.InputTokens}, {&d.OutputTokens, s.Usage.OutputTokens}, {&d.CachedTokens, s.Usage.CachedTokens},
		{&d.CacheWriteTokens, s.Usage.CacheWriteTokens}, {&d.ReasoningTokens, s.Usage.ReasoningTokens}, {&d.CostNanoUSD, s.CostNanoUSD},
	} {
		*f.sum += min(max(f.n, 0), maxCount)
	}
}

// outcomeRefused is the outcome of an exchange in which nothing was forwarded.
const outcomeRefused = "refused"

// queue adds the sums to those in the database, each bounded rather than refused.
func (u usage) queue(b *pgx.Batch, org string) {
	if len(u) == 0 {
		return
	}
	const most = "least(usage_daily.%[1]s::numeric + EXCLUDED.%[1]s, 9223372036854775807)::bigint"
	columns := []string{"requests", "refused", "input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens", "cost_nano_usd", "unpriced"}
	set := make([]string, len(columns))
	for i, c := range columns {
		set[i] = c + " = " + fmt.Sprintf(most, c)
	}
	insert := "INSERT INTO usage_daily (org_id, agent_id, day, provider, model, " + strings.Join(columns, ", ") + `)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
		ON CONFLICT (org_id, agent_id, day, provider, model) DO UPDATE SET ` + strings.Join(set, ", ")
	for _, d := range u {
		b.Queue(insert, org, d.AgentID, d.Day, d.Provider, d.Model, d.Requests, d.Refused,
			d.InputTokens, d.OutputTokens, d.CachedTokens, d.CacheWriteTokens, d.ReasoningTokens, d.CostNanoUSD, d.Unpriced)
	}
}

// DailyUsage returns what an agent used, or all agents if agent is empty, on the
// UTC days from that of from to that of to, oldest first. The org is tx's.
func DailyUsage(ctx context.Context, tx pgx.Tx, agent string, from, to time.Time) ([]UsageDay, error) {
	rows, err := tx.Query(ctx, `
		SELECT agent_id, day, provider, model, requests, refused, input_tokens, output_tokens, cached_tokens, cache_write_tokens,
			reasoning_tokens, cost_nano_usd, unpriced
		FROM usage_daily
		WHERE org_id = aid_org() AND ($1 = '' OR agent_id = $1) AND day BETWEEN $2::date AND $3::date
		ORDER BY day, agent_id, provider, model`, agent, from.UTC(), to.UTC())
	if err != nil {
		return nil, fmt.Errorf("reading usage: %w", err)
	}
	days, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (d UsageDay, err error) {
		err = row.Scan(&d.AgentID, &d.Day, &d.Provider, &d.Model, &d.Requests, &d.Refused, &d.InputTokens, &d.OutputTokens,
			&d.CachedTokens, &d.CacheWriteTokens, &d.ReasoningTokens, &d.CostNanoUSD, &d.Unpriced)
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading usage: %w", err)
	}
	return days, nil
}

// ---- reading ----

// Filter says which entries are wanted. Zero fields do not filter.
type Filter struct {
	AgentID, RequestID, Kind string
	Since, Until             time.Time // when it happened, by the entry: from Since, before Until

	// AfterSeq is the last one that the caller has: what is returned comes after
	// it in the order asked for. 0: from the beginning of that order.
	AfterSeq int64
	Desc     bool // newest first
	Limit    int  // from 1 to MaxEntries; else MaxEntries
}

// MaxEntries is how many Entries returns at most.
const MaxEntries = 1000

// Stored is an entry in an org's chain.
type Stored struct {
	Seq        int64
	AppendedAt time.Time
	Kind       string
	Writer     string
	WriterSeq  int64 // with Writer and LeafHash(Entry): the receipt
	Epoch      int32
	PrevMAC    []byte
	MAC        []byte
	Entry      []byte // as they were made durable first
}

// Parse reads the entry. The error wraps ErrMalformed; see KindMalformed.
func (s Stored) Parse() (Entry, error) { return Parse(s.Entry) }

// clockSlack is how far a node's clock may be ahead of the database's writer
// before a filter by time misses what it wrote.
const clockSlack = 24 * time.Hour

// Entries returns the entries of tx's org that f wants, by sequence number.
func Entries(ctx context.Context, tx pgx.Tx, f Filter) ([]Stored, error) {
	var args []any
	var where strings.Builder
	where.WriteString("org_id = aid_org()")
	and := func(condition string, v any) {
		args = append(args, v)
		where.WriteString(" AND " + strings.ReplaceAll(condition, "?", "$"+strconv.Itoa(len(args))))
	}
	if f.AgentID != "" {
		and("agent_id = ?", f.AgentID)
	}
	if f.RequestID != "" {
		and("request_id = ?", f.RequestID)
	}
	if f.Kind != "" {
		and("kind = ?", f.Kind)
	}
	if !f.Since.IsZero() {
		and("time >= ?", f.Since)
		// An entry is appended after it happened: older months are not looked at.
		and("appended_at >= ?", f.Since.Add(-clockSlack))
	}
	if !f.Until.IsZero() {
		and("time < ?", f.Until)
	}
	order, after := "ASC", "seq > ?"
	if f.Desc {
		order, after = "DESC", "seq < ?"
	}
	if f.AfterSeq > 0 {
		and(after, f.AfterSeq)
	}
	limit := f.Limit
	if limit < 1 || limit > MaxEntries {
		limit = MaxEntries
	}
	args = append(args, limit)
	rows, err := tx.Query(ctx, "SELECT seq, appended_at, kind, writer, writer_seq, epoch, prev_mac, mac, entry FROM audit_entries WHERE "+
		where.String()+" ORDER BY seq "+order+" LIMIT $"+strconv.Itoa(len(args)), args...)
	if err != nil {
		return nil, fmt.Errorf("reading audit entries: %w", err)
	}
	stored, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s Stored, err error) {
		err = row.Scan(&s.Seq, &s.AppendedAt, &s.Kind, &s.Writer, &s.WriterSeq, &s.Epoch, &s.PrevMAC, &s.MAC, &s.Entry)
		s.AppendedAt = s.AppendedAt.UTC()
		return s, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading audit entries: %w", err)
	}
	return stored, nil
}
