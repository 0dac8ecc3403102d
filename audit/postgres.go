package audit

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/prometheus/client_golang/prometheus"
)

// DB runs fn in a transaction that sees the rows of one org, and commits it if fn returns nil.
// It may run fn again after a serialization failure.
type DB interface {
	InOrg(ctx context.Context, org string, fn func(pgx.Tx) error) error
}

// ChainConfig configures a Chain.
type ChainConfig struct {
	DB   DB   // for Append; Record uses its caller's transaction
	Keys Keys // at least one
	// AtOnce limits the batches that Append appends at the same time, of all orgs. Each needs
	// a connection to the database. 0: 10.
	AtOnce int
	// Guard stops appending when the database was rolled back. nil: it is not compared.
	Guard *Guard

	Now        func() time.Time      // nil: time.Now
	Log        *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // for aid_audit_chain_…; nil: no metrics
}

// A Chain appends entries to the chains of orgs in Postgres. Several Chains may do so at
// once: each locks the row of the org's head, so the sequence has no gaps. It is safe for
// concurrent use.
type Chain struct {
	c       ChainConfig
	metrics *chainMetrics
	ahead   atomic.Int32 // the newest epoch that a chain was in and whose key was not here

	confirmed sync.Map // proofs of keys that are the installation's
	clocks    sync.Map // orgs whose chain has an entry ClockRegressed of this process, while it lasts
	ends      ends
	turns     *turns // to append batches
}

// ends is what a Chain knows of the ends of chains.
type ends struct {
	sync.Mutex
	checked map[string]bool  // orgs whose last entry was valid before the first append
	tails   map[string]int64 // by org: the last 10,000 entries up to this one are to be checked
	bad     map[string]*Bad  // by org
}

// NewChain checks c.
func NewChain(c ChainConfig) (*Chain, error) {
	if c.Keys.set == nil {
		return nil, errors.New("the audit chain has no key")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.AtOnce == 0 {
		c.AtOnce = defaultAtOnce
	}
	ch := &Chain{c: c, turns: newTurns(c.AtOnce), ends: ends{checked: make(map[string]bool), tails: make(map[string]int64), bad: make(map[string]*Bad)}}
	var err error
	ch.metrics, err = newChainMetrics(c.Registerer, func() int32 { return c.Keys.signing(c.Now()) }, ch.missing, ch.badCount)
	return ch, err
}

// ErrKeyMissing means that a chain is in a key epoch without a key here: another replica has
// signed with a newer key.
var ErrKeyMissing = errors.New("the audit chain is in a newer key epoch")

// missing returns the epoch of a chain without a key here, or 0.
func (c *Chain) missing() int32 {
	epoch := c.ahead.Load()
	if epoch == 0 {
		return 0
	}
	if _, ok := c.c.Keys.sealer("", epoch); ok {
		return 0
	}
	return epoch
}

// ErrRefused means that sending the same batch again cannot help: no correct writer sends it,
// or a directory of segments was copied.
var ErrRefused = errors.New("audit records rejected")

// controlWriter is the writer of Record's entries. No node can have this id, since the ids of
// nodes' writers begin with "w_".
const controlWriter = evidence.ControlWriter

// Append appends the records of a batch to the chain of its org, in their order. It returns
// the sequence number of the last one once all of them are committed, or an error and
// commits none. Records that are in the chain already change nothing, so a batch may be
// sent again, to any replica.
//
// A batch must follow the writer's last record in the chain, otherwise the error is a *Behind.
// If the chain has other content, or the writer belongs to another node, it wraps ErrFork.
// If no sidecar sends such a batch, it wraps ErrRefused. An entry that cannot be parsed is not
// an error: see KindMalformed.
func (c *Chain) Append(ctx context.Context, b Batch) (uint64, error) {
	if len(b.Records) == 0 {
		if b.Mark == nil {
			return 0, nil
		}
		return 0, c.appendMark(ctx, b)
	}
	if b.Shipper == "" {
		b.Shipper = b.Writer
	}
	began := c.c.Now()
	if err := checkBatch(b); err != nil {
		return 0, c.refused(ctx, b, err)
	}
	// A silent connection must not block the batch forever.
	bounded, cancel := context.WithTimeout(ctx, appendDeadline)
	defer cancel()
	leave, err := c.turns.take(bounded, b.Org)
	if err != nil {
		return 0, fmt.Errorf("waiting until other audit records of %s are appended: %w", b.Org, err)
	}
	defer leave()
	var done appended
	err = c.c.DB.InOrg(bounded, b.Org, func(tx pgx.Tx) error {
		fresh, err := unseen(bounded, tx, b)
		if err != nil {
			return err
		}
		if done, err = c.append(bounded, tx, b, fresh); err != nil || b.Mark == nil {
			return err
		}
		return storeMark(bounded, tx, b)
	})
	var behind *Behind
	switch {
	case errors.As(err, &behind):
		c.metrics.behind.Inc()
		c.c.Log.WarnContext(ctx, "audit records do not follow the chain", "org", b.Org, "node", b.Node, "writer", b.Writer, "have", behind.Have)
		return 0, behind
	case errors.Is(err, ErrRefused) || errors.Is(err, ErrFork):
		return 0, c.refused(ctx, b, err)
	case err != nil:
		return 0, fmt.Errorf("appending %d audit records of %s: %w", len(b.Records), b.Writer, err)
	}
	if r := done.regressed; r != nil {
		c.clocks.Store(b.Org, true)
		c.c.Log.WarnContext(ctx, "the clock is behind the audit log's last entry; times of appending go on from there", "org", b.Org, "clock", r.Clock, "last", r.Last)
	}
	recs := b.Records
	c.metrics.append.Observe(c.c.Now().Sub(began).Seconds())
	c.metrics.chained.Add(float64(done.count + len(done.thresholds)))
	if done.regressed != nil {
		c.metrics.chained.Inc()
	}
	c.noteMoney(ctx, b.Org, done)
	c.metrics.resent.Add(float64(len(recs) - done.count))
	if done.malformed > 0 {
		c.metrics.malformed.Add(float64(done.malformed))
		c.c.Log.ErrorContext(ctx, "audit entries that are not valid were stored unchanged", "org", b.Org, "node", b.Node,
			"writer", b.Writer, "count", done.malformed, "from", recs[0].Seq, "to", recs[len(recs)-1].Seq)
	}
	return recs[len(recs)-1].Seq, nil
}

// noteMoney counts what a committed transaction did to the counts of USD caps.
func (c *Chain) noteMoney(ctx context.Context, org string, done appended) {
	m := c.metrics
	m.reserved.Add(dollars(done.money.reserved))
	m.charged.Add(dollars(done.money.charged))
	m.corrected.Add(dollars(done.money.corrected))
	m.overruns.Add(float64(done.money.overruns))
	m.unmatched.Add(float64(done.money.unmatched))
	for _, t := range done.thresholds {
		m.thresholds.WithLabelValues(strconv.FormatInt(t.Threshold, 10)).Inc()
		c.c.Log.WarnContext(ctx, "a USD cap's share is spent", "org", org, "policy", t.PolicyID, "limit", t.Limit, "subject", t.Subject, "period", t.Period,
			"percent", t.Threshold, "charged_nano_usd", t.ChargedNanoUSD, "max_nano_usd", t.MaxNanoUSD)
	}
}

func dollars(nano int64) float64 { return float64(nano) / 1e9 }

// appendDeadline limits the time for one batch, including all retries of the transaction.
const appendDeadline = 30 * time.Second

func (c *Chain) refused(ctx context.Context, b Batch, err error) error {
	c.metrics.refused.Inc()
	c.c.Log.ErrorContext(ctx, "audit records rejected", "org", b.Org, "node", b.Node, "writer", b.Writer, "err", err)
	return err
}

// lockChain locks the org's chain until the transaction ends.
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
	return fmt.Errorf("org %s has no audit head that this role can read", org)
}

// appended is the result of append.
type appended struct {
	seq              int64 // sequence number of the last entry
	count, malformed int

	regressed  *ClockRegressed // appended behind the batch
	thresholds []Threshold     // that the charges of the batch have reached
	money      money
}

const insertEntries = `
INSERT INTO audit_entries (org_id, seq, appended_at, time, kind, agent_id, request_id, writer, writer_seq, entry, epoch, prev_mac, mac,
	mac_version, incarnation, session_id, prev_writer_seq, shipped_by, lane)
SELECT $1, u.seq, u.appended_at, u.time, u.kind, u.agent_id, u.request_id, $2, u.writer_seq, u.entry, $3, u.prev_mac, u.mac,
	3, $4, u.session_id, u.prev_writer_seq, $5, $6
FROM unnest($7::bigint[], $8::timestamptz[], $9::timestamptz[], $10::text[], $11::text[], $12::text[], $13::bigint[], $14::bytea[], $15::bytea[],
	$16::bytea[], $17::text[], $18::bigint[])
	AS u(seq, appended_at, time, kind, agent_id, request_id, writer_seq, entry, prev_mac, mac, session_id, prev_writer_seq)`

// append assigns the next numbers and links of the locked chain to recs, and adds up their
// usage. A record without a number gets the chain's number.
func (c *Chain) append(ctx context.Context, tx pgx.Tx, batch Batch, recs []Record) (appended, error) {
	if len(recs) == 0 {
		return appended{}, nil
	}
	org, writer := batch.Org, batch.Writer
	// A new connection was compared before this transaction began on it.
	if err := c.c.Guard.Err(org); err != nil {
		return appended{}, err
	}
	var seq, incarnation int64
	var epoch int32
	var prev []byte
	var last pgtype.Timestamptz
	if err := tx.QueryRow(ctx, "SELECT seq, epoch, mac, incarnation, appended_at FROM audit_heads WHERE org_id = $1", org).
		Scan(&seq, &epoch, &prev, &incarnation, &last); err != nil {
		return appended{}, err
	}
	// A replica that signs with an older epoch than the chain's follows the chain.
	headEpoch := epoch
	epoch = max(epoch, c.c.Keys.signing(c.c.Now()))
	if batch.restored != nil {
		epoch = batch.restored[0].Epoch
	}
	seal, ok := c.c.Keys.sealer(org, epoch)
	if !ok {
		c.ahead.Store(max(c.ahead.Load(), epoch))
		return appended{}, fmt.Errorf("%w: %s is in epoch %d, and the newest key here has epoch %d", ErrKeyMissing, org, epoch, c.c.Keys.last())
	}
	if err := c.installed(ctx, tx, org, epoch, headEpoch); err != nil {
		return appended{}, err
	}
	if err := c.checkEnd(ctx, tx, org, seq, incarnation, headEpoch); err != nil {
		return appended{}, err
	}
	if batch.reopenAfter > 0 {
		seq, incarnation = batch.reopenAfter, incarnation+1
	}
	now := c.c.Now().UTC().Truncate(time.Microsecond) // the database's precision, so that the MAC can be checked
	var behind *ClockRegressed
	if last.InfinityModifier == pgtype.Finite && writer != controlWriter {
		behind = c.regressed(org, now, last.Time.UTC())
	}
	if last.InfinityModifier == pgtype.Finite && !now.After(last.Time) {
		now = last.Time.UTC().Add(time.Microsecond)
	}

	n := len(recs)
	done := appended{count: n}
	use := usage{days: make(map[usageKey]*UsageDay)}
	seqs, writerSeqs, writerPrevs := make([]int64, n), make([]int64, n), make([]int64, n)
	appendedAts, times := make([]time.Time, n), make([]time.Time, n)
	kinds, agents, requests, sessions := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	entries, prevs, macs := make([][]byte, n), make([][]byte, n), make([][]byte, n)
	described, parsed := make([]columns, n), make([]Entry, n)
	for i, r := range recs {
		at := now.Add(time.Duration(i) * time.Microsecond)
		if batch.restored != nil {
			at = batch.restored[i].AppendedAt
		}
		if described[i], parsed[i] = describe(org, writer, r.Entry, at, macVersion); parsed[i] == nil {
			done.malformed++
		}
	}
	if err := errors.Join(use.read(ctx, tx, org, parsed), use.ledger.read(ctx, tx, org, parsed)); err != nil {
		return appended{}, err
	}
	for i, r := range recs {
		seq++
		if i > 0 {
			now = now.Add(time.Microsecond)
		}
		if batch.restored != nil {
			now = batch.restored[i].AppendedAt
		}
		cols, e := described[i], parsed[i]
		writerSeq, writerPrev := int64(r.Seq), int64(r.Prev)
		if writerSeq == 0 { // of the control plane: the chain's own number is as unique
			writerSeq = seq
			if i > 0 {
				writerPrev = writerSeqs[i-1]
			}
		}
		var err error
		switch e := e.(type) {
		case Decided:
			err = use.ledger.open(ctx, tx, org, e, writerSeq, batch.Fork)
		case Settled:
			err = use.settle(ctx, tx, org, e, now, batch.Fork)
		}
		if err != nil {
			return appended{}, err
		}
		mac := seal.mac(link{
			version: macVersion, epoch: epoch, org: org, incarnation: incarnation, seq: seq, appendedAt: now, time: cols.time, kind: cols.kind,
			agent: cols.agent, session: cols.session, request: cols.request, writer: writer, writerSeq: writerSeq, prevWriter: writerPrev,
			prev: prev, entry: r.Entry,
		})
		if batch.restored != nil && !hmac.Equal(mac[:], batch.restored[i].MAC) {
			return appended{}, fmt.Errorf("entry %d: its MAC is not that of the export: the HMAC keys or the entries before it are others", seq)
		}
		seqs[i], writerSeqs[i], writerPrevs[i], appendedAts[i], times[i] = seq, writerSeq, writerPrev, now, cols.time
		kinds[i], agents[i], requests[i], sessions[i] = cols.kind, cols.agent, cols.request, cols.session
		entries[i], prevs[i], macs[i] = r.Entry, prev, mac[:]
		prev = mac[:]
	}
	done.seq = seq

	shippedBy := batch.Shipper
	if shippedBy == writer {
		shippedBy = ""
	}
	var b pgx.Batch
	b.Queue(insertEntries, org, writer, epoch, incarnation, shippedBy, batch.lane(), seqs, appendedAts, times, kinds, agents, requests, writerSeqs,
		entries, prevs, macs, sessions, writerPrevs)
	b.Queue("UPDATE audit_heads SET seq = $2, epoch = $3, mac = $4, appended_at = $5, incarnation = $6 WHERE org_id = $1", org, seq, epoch, prev, now, incarnation)
	b.Queue(`INSERT INTO audit_writers (org_id, writer, lane, writer_seq, node_id) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (org_id, writer, lane) DO UPDATE SET writer_seq = EXCLUDED.writer_seq`, org, writer, batch.lane(), writerSeqs[n-1], batch.Node)
	use.queue(&b, org)
	if err := tx.SendBatch(ctx, &b).Close(); err != nil {
		return appended{}, err
	}
	reached, err := use.ledger.apply(ctx, tx, org)
	if err != nil {
		return appended{}, err
	}
	done.thresholds, done.money = reached, use.ledger.money
	done.regressed = behind
	if batch.restored != nil {
		return done, nil // the entries of thresholds are among those that are restored
	}
	events := make([]Entry, len(reached))
	for i, t := range reached {
		events[i] = t
	}
	if behind != nil {
		events = append(events, *behind)
	}
	_, err = c.own(ctx, tx, org, events)
	return done, err
}

// own appends entries of the control plane to the chain, which is locked.
func (c *Chain) own(ctx context.Context, tx pgx.Tx, org string, entries []Entry) (appended, error) {
	if len(entries) == 0 {
		return appended{}, nil
	}
	have, _, _, err := position(ctx, tx, org, controlWriter, "")
	if err != nil {
		return appended{}, err
	}
	recs := make([]Record, len(entries))
	for i, e := range entries {
		recs[i] = Record{Org: org, Entry: Stamp(e, org, controlWriter, c.c.Now()).Encode()}
	}
	recs[0].Prev = have
	return c.append(ctx, tx, Batch{Org: org, Writer: controlWriter, Shipper: controlWriter}, recs)
}

// Position is an entry's position in an org's chain.
type Position struct {
	Org string
	Seq int64
}

// Record appends e to the chain of org in the caller's transaction, which has org set. So
// the change and its entry are committed together or not at all. It locks the chain until
// the transaction ends, so call it last.
func (c *Chain) Record(ctx context.Context, tx pgx.Tx, org string, e Changed) (Position, error) {
	b := Stamp(e, org, controlWriter, c.c.Now()).Encode()
	got, err := Parse(b)
	if _, ok := got.(Changed); err == nil && !ok {
		err = fmt.Errorf("%w: kind %q is not the kind of a change", ErrMalformed, e.Kind)
	}
	if err != nil {
		return Position{}, fmt.Errorf("recording a change: %w", err)
	}
	if err := lockChain(ctx, tx, org); err != nil {
		return Position{}, fmt.Errorf("recording %s: %w", e.Kind, err)
	}
	done, err := c.own(ctx, tx, org, []Entry{got})
	if err != nil {
		return Position{}, fmt.Errorf("recording %s: %w", e.Kind, err)
	}
	c.metrics.chained.Inc()
	return Position{Org: org, Seq: done.seq}, nil
}

// ---- usage ----

// UsageDay is the usage of an agent on one day, of one model and one provider. Requests counts
// completed requests, including Rejected and Unpriced.
type UsageDay struct {
	AgentID  string
	Day      time.Time // the date of the decision in the org's time zone, at 00:00 UTC
	Provider string
	Model    string // as the client requested it, or UnlistedModel
	Team     string // of the agent at the time

	Requests, Refused                                                          int64
	InputTokens, OutputTokens, CachedTokens, CacheWriteTokens, ReasoningTokens int64
	CostNanoUSD                                                                int64
	ChargedNanoUSD                                                             int64 // under USD caps
	Unpriced                                                                   int64 // requests with unknown cost
}

type usageKey struct {
	agent, provider, model, team string
	policies                     string // their ids, with spaces between
	day                          time.Time
}

// usage is the usage that a batch adds.
type usage struct {
	days    map[usageKey]*UsageDay
	unknown map[decision]usageKey // decisions that are completed as "unknown" so far
	ended   map[decision]bool     // decisions with a real completion in this batch
	ledger  ledger
}

// decision identifies a first entry by its writer and number.
type decision struct {
	writer string
	seq    int64
}

// farthestDay is how far the day of a decision may be from the end of its request: a zone's
// offset, and the longest request.
const farthestDay = 3 * 24 * time.Hour

// maxCount limits each figure in the usage of one request.
const maxCount = 1e15

// UnlistedModel is the model of the usage of all models whose names are in no list. Clients
// choose names, so rows for each name would have no bound.
const UnlistedModel = "(other)"

// day returns the day and the keys to which a completion counts. The node sets an entry's
// time. An entry with a future time counts on the day of its arrival.
func (u *usage) day(s Settled, appendedAt time.Time) usageKey {
	t := s.Time.UTC()
	if t.After(appendedAt) {
		t = appendedAt
	}
	if day, err := time.Parse(time.DateOnly, s.Day); err == nil && t.Sub(day).Abs() < farthestDay {
		t = day
	}
	if s.ModelUnlisted {
		s.Model = UnlistedModel
	}
	return usageKey{
		agent: column(s.AgentID, maxID), provider: column(s.Provider, maxName), model: column(s.Model, maxName),
		team: column(s.AgentTeam, maxName), policies: column(strings.Join(s.PolicyIDs, " "), maxIDs*maxID),
		day: time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC),
	}
}

// settle counts a completion once for its decision. A real completion replaces a recovered
// "unknown". An "unknown" after a real completion is not counted.
func (u *usage) settle(ctx context.Context, tx pgx.Tx, org string, s Settled, appendedAt time.Time, fork bool) error {
	k, d := u.day(s, appendedAt), decisionOf(s)
	if d.seq == 0 {
		u.add(k, s, 1)
		return nil
	}
	if s.Outcome == OutcomeUnknown {
		if _, twice := u.unknown[d]; twice || u.ended[d] {
			return nil
		}
		// Rare: a process died. Check whether the chain has a completion already.
		if ended, err := settledBefore(ctx, tx, org, s.RequestID); ended || err != nil {
			return err
		}
		u.unknown[d] = k
		s.ChargedNanoUSD, _ = u.ledger.charge(s, d)
		u.add(k, s, 1)
		if _, err := tx.Exec(ctx, `INSERT INTO audit_unknown (org_id, writer, writer_seq, agent_id, day, provider, model, team, policies) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
			ON CONFLICT DO NOTHING`, org, d.writer, d.seq, k.agent, k.day, k.provider, k.model, k.team, k.policies); err != nil {
			return err
		}
		return nil
	}
	if u.ended[d] {
		return nil
	}
	if u.ended == nil {
		u.ended = make(map[decision]bool)
	}
	u.ended[d] = true
	old, recovered := u.unknown[d]
	if recovered {
		delete(u.unknown, d)
		if _, err := tx.Exec(ctx, "DELETE FROM audit_unknown WHERE org_id = $1 AND writer = $2 AND writer_seq = $3", org, d.writer, d.seq); err != nil {
			return err
		}
	} else if fork {
		// Both copies of a process may have completed the same request.
		if ended, err := settledBefore(ctx, tx, org, s.RequestID); ended || err != nil {
			return err
		}
	}
	charged, replaced := u.ledger.charge(s, d)
	if recovered {
		u.add(old, Settled{Outcome: OutcomeUnknown, ChargedNanoUSD: replaced}, -1)
	}
	s.ChargedNanoUSD = charged
	u.add(k, s, 1)
	return nil
}

func decisionOf(s Settled) decision {
	d := decision{column(s.DecidedWriter, maxID), int64(min(s.DecidedSeq, math.MaxInt64))}
	if d.writer == "" {
		d.writer = column(s.Writer, maxID)
	}
	return d
}

// settledBefore reports whether the chain has a completion of the request.
func settledBefore(ctx context.Context, tx pgx.Tx, org, request string) (ended bool, err error) {
	err = tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM audit_entries WHERE org_id = $1 AND request_id = $2 AND kind = $3)",
		org, column(request, maxID), KindSettled).Scan(&ended)
	return ended, err
}

// read finds the decisions that were recovered as "unknown" and are completed in this batch.
func (u *usage) read(ctx context.Context, tx pgx.Tx, org string, entries []Entry) error {
	u.unknown = make(map[decision]usageKey)
	var writers []string
	var seqs []int64
	for _, e := range entries {
		if s, ok := e.(Settled); ok && s.DecidedSeq != 0 {
			d := decisionOf(s)
			writers, seqs = append(writers, d.writer), append(seqs, d.seq)
		}
	}
	if len(seqs) == 0 {
		return nil
	}
	rows, err := tx.Query(ctx, `SELECT u.writer, u.writer_seq, u.agent_id, u.day, u.provider, u.model, u.team, u.policies
		FROM audit_unknown u JOIN unnest($2::text[], $3::bigint[]) AS w(writer, seq) ON u.writer = w.writer AND u.writer_seq = w.seq
		WHERE u.org_id = $1`, org, writers, seqs)
	if err != nil {
		return err
	}
	var d decision
	var k usageKey
	_, err = pgx.ForEachRow(rows, []any{&d.writer, &d.seq, &k.agent, &k.day, &k.provider, &k.model, &k.team, &k.policies}, func() error {
		u.unknown[d] = k
		return nil
	})
	return err
}

func (u *usage) add(k usageKey, s Settled, n int64) {
	d := u.days[k]
	if d == nil {
		d = &UsageDay{AgentID: k.agent, Day: k.day, Provider: k.provider, Model: k.model, Team: k.team}
		u.days[k] = d
	}
	d.Requests += n
	if s.Outcome == outcomeRefused {
		d.Refused += n // with a known cost of 0
	} else if !s.Priced {
		d.Unpriced += n
	}
	for _, f := range []struct {
		sum *int64
		n   int64
	}{
		{&d.InputTokens, s.Usage.InputTokens}, {&d.OutputTokens, s.Usage.OutputTokens}, {&d.CachedTokens, s.Usage.CachedTokens},
		{&d.CacheWriteTokens, s.Usage.CacheWriteTokens}, {&d.ReasoningTokens, s.Usage.ReasoningTokens}, {&d.CostNanoUSD, s.CostNanoUSD},
		{&d.ChargedNanoUSD, s.ChargedNanoUSD},
	} {
		*f.sum += n * f.n
	}
}

// outcomeRefused is the outcome of a request that was not forwarded.
const outcomeRefused = "refused"

// queue adds the sums to those in the database. A sum that is too large is set to the maximum.
func (u *usage) queue(b *pgx.Batch, org string) {
	if len(u.days) == 0 {
		return
	}
	byAgent := addSums("usage_daily", "org_id", "agent_id", "day", "provider", "model", "team")
	byPolicy := addSums("usage_policies", "org_id", "policy_id", "agent_id", "day", "provider", "model", "team")
	for k, d := range u.days {
		sums := []any{d.Requests, d.Refused, d.InputTokens, d.OutputTokens, d.CachedTokens, d.CacheWriteTokens, d.ReasoningTokens, d.CostNanoUSD, d.ChargedNanoUSD, d.Unpriced}
		b.Queue(byAgent, append([]any{org, d.AgentID, d.Day, d.Provider, d.Model, d.Team}, sums...)...)
		for _, policy := range strings.Split(k.policies, " ") { // "" without any
			b.Queue(byPolicy, append([]any{org, policy, d.AgentID, d.Day, d.Provider, d.Model, d.Team}, sums...)...)
		}
	}
}

// sumColumns are the sums in usage_daily and usage_policies.
var sumColumns = []string{"requests", "refused", "input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens", "cost_nano_usd", "charged_nano_usd", "unpriced"}

// addSums is the statement that adds to the sums of one row of a table.
func addSums(table string, key ...string) string {
	const most = "%[2]s = least(%[1]s.%[2]s::numeric + EXCLUDED.%[2]s, 9223372036854775807)::bigint"
	set, places := make([]string, len(sumColumns)), make([]string, len(key)+len(sumColumns))
	for i, c := range sumColumns {
		set[i] = fmt.Sprintf(most, table, c)
	}
	for i := range places {
		places[i] = "$" + strconv.Itoa(i+1)
	}
	return "INSERT INTO " + table + " (" + strings.Join(append(key[:len(key):len(key)], sumColumns...), ", ") + ") VALUES (" + strings.Join(places, ", ") +
		") ON CONFLICT (" + strings.Join(key, ", ") + ") DO UPDATE SET " + strings.Join(set, ", ")
}

// DailyUsage returns the usage per day of the org's time zone, oldest first. The first day is
// the UTC date of from, and the last one that of to.
// It is the usage of an agent, or of all agents if agent is empty. The org is tx's.
func DailyUsage(ctx context.Context, tx pgx.Tx, agent string, from, to time.Time) ([]UsageDay, error) {
	rows, err := tx.Query(ctx, `
		SELECT agent_id, day, provider, model, sum(requests)::bigint, sum(refused)::bigint, sum(input_tokens)::bigint, sum(output_tokens)::bigint,
			sum(cached_tokens)::bigint, sum(cache_write_tokens)::bigint, sum(reasoning_tokens)::bigint, sum(cost_nano_usd)::bigint, sum(charged_nano_usd)::bigint,
			sum(unpriced)::bigint
		FROM usage_daily
		WHERE org_id = aid_org() AND ($1 = '' OR agent_id = $1) AND day BETWEEN $2::date AND $3::date
		GROUP BY agent_id, day, provider, model
		ORDER BY day, agent_id, provider, model`, agent, from.UTC(), to.UTC())
	if err != nil {
		return nil, fmt.Errorf("reading usage: %w", err)
	}
	days, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (d UsageDay, err error) {
		err = row.Scan(&d.AgentID, &d.Day, &d.Provider, &d.Model, &d.Requests, &d.Refused, &d.InputTokens, &d.OutputTokens,
			&d.CachedTokens, &d.CacheWriteTokens, &d.ReasoningTokens, &d.CostNanoUSD, &d.ChargedNanoUSD, &d.Unpriced)
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading usage: %w", err)
	}
	return days, nil
}

// UsageGroups are the names that SumUsage can group by.
var UsageGroups = []string{"day", "agent", "team", "model", "provider", "policy"}

// UsageGroup is a sum over the requests of one group. The Key has the values of the names that
// it is grouped by, in their order.
type UsageGroup struct {
	Key []string
	UsageDay
}

// SumUsage returns sums from the day of from to the day of to, in the order of the groups'
// keys. A request that several policies decided counts for each of them. There are at most
// limit groups, after the first skip. The org is tx's.
func SumUsage(ctx context.Context, tx pgx.Tx, from, to time.Time, by []string, skip, limit int) ([]UsageGroup, error) {
	table := "usage_daily"
	columns := map[string]string{"day": "day::text", "agent": "agent_id", "team": "team", "model": "model", "provider": "provider", "policy": "policy_id"}
	if slices.Contains(by, "policy") {
		table = "usage_policies"
	}
	key := make([]string, len(by))
	for i, name := range by {
		column, ok := columns[name]
		if !ok {
			return nil, fmt.Errorf("usage is not kept by %q", name)
		}
		key[i] = column
	}
	sums := make([]string, len(sumColumns))
	for i, c := range sumColumns {
		sums[i] = "least(sum(" + c + "), 9223372036854775807)::bigint"
	}
	keys := strings.Join(key, ", ")
	rows, err := tx.Query(ctx, "SELECT ARRAY["+keys+"]::text[], "+strings.Join(sums, ", ")+" FROM "+table+
		" WHERE org_id = aid_org() AND day BETWEEN $1::date AND $2::date GROUP BY "+keys+" ORDER BY (ARRAY["+keys+"]::text[]) COLLATE \"C\" OFFSET $3 LIMIT $4", from.UTC(), to.UTC(), skip, limit)
	if err != nil {
		return nil, fmt.Errorf("reading usage: %w", err)
	}
	groups, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (g UsageGroup, err error) {
		err = row.Scan(&g.Key, &g.Requests, &g.Refused, &g.InputTokens, &g.OutputTokens, &g.CachedTokens, &g.CacheWriteTokens, &g.ReasoningTokens,
			&g.CostNanoUSD, &g.ChargedNanoUSD, &g.Unpriced)
		return g, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading usage: %w", err)
	}
	return groups, nil
}

// ---- reading ----

// Filter selects entries. Zero fields do not filter.
type Filter struct {
	AgentID, RequestID, Kind string
	Since, Until             time.Time // the time in the entry: from Since, before Until

	// AfterSeq is the last number that the caller has. Entries after it are returned, in the
	// requested order. 0: from the beginning of that order.
	AfterSeq int64
	Desc     bool // newest first
	Limit    int  // from 1 to MaxEntries; other values mean MaxEntries
}

// MaxEntries is the most entries that Entries returns.
const MaxEntries = 1000

// Stored is an entry in an org's chain.
type Stored struct {
	Seq        int64
	AppendedAt time.Time
	Kind       string
	Writer     string
	WriterSeq  int64 // the receipt has Writer, WriterSeq and LeafHash(Entry)
	Epoch      int32
	PrevMAC    []byte
	MAC        []byte
	Entry      []byte // the bytes that were made durable first
}

// Parse reads the entry. The error wraps ErrMalformed; see KindMalformed.
func (s Stored) Parse() (Entry, error) { return Parse(s.Entry) }

// clockSlack is how far a node's clock may be ahead of the control plane's before a filter by
// time misses its entries.
const clockSlack = 24 * time.Hour

// Entries returns the entries of tx's org that match f, by sequence number.
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
		// An entry is appended after its time, so older months are not read.
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

// Since returns a number of an entry after which is all that happened from a time on, and
// the number of the newest entry. It searches by the times of appending, which do not go
// back, so it is quick for a long log.
func Since(ctx context.Context, tx pgx.Tx, since time.Time) (after, last int64, err error) {
	err = tx.QueryRow(ctx, "SELECT coalesce(max(seq), 0) FROM audit_heads WHERE org_id = aid_org()").Scan(&last)
	if err != nil {
		return 0, 0, fmt.Errorf("reading the audit log's head: %w", err)
	}
	// Numbers that are not there are before the first entry, or were left out after a restore.
	begin, err := trimmedHere(ctx, tx)
	if err != nil {
		return 0, 0, err
	}
	// before is the last number before a time.
	before := func(t time.Time) (int64, error) {
		low, high := begin.UpTo, last // entry low is before t, entry high+1 is not
		for low < high {
			middle := low + (high-low+1)/2
			var at time.Time
			if err := tx.QueryRow(ctx, "SELECT appended_at FROM audit_entries WHERE org_id = aid_org() AND seq >= $1 ORDER BY seq LIMIT 1", middle).Scan(&at); err != nil {
				return 0, fmt.Errorf("reading audit entry %d: %w", middle, err)
			}
			if at.Before(t) {
				low = middle
			} else {
				high = middle - 1
			}
		}
		return low, nil
	}
	if after, err = before(since.Add(-clockSlack)); err != nil {
		return 0, 0, err
	}
	return after, last, nil
}
