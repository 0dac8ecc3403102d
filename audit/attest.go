package audit

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// SessionPredicate is the type of the predicate in a session's attestation.
const SessionPredicate = "https://ai-identity.co/attestations/session/v1"

// A Statement is an in-toto Statement v1 about a session.
// Source: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md.
type Statement struct {
	Type          string           `json:"_type"`
	Subject       []Subject        `json:"subject"`
	PredicateType string           `json:"predicateType"`
	Predicate     SessionStatement `json:"predicate"`
}

// Subject names a session, with the RFC 6962 root over the links of its entries in order.
type Subject struct {
	Name   string        `json:"name"`
	Digest SubjectDigest `json:"digest"`
}

// SubjectDigest has the root in hex.
type SubjectDigest struct {
	Root string `json:"rfc6962_sha256"`
}

// SessionStatement is what an attestation says of a session. docs/evidence.md describes it.
type SessionStatement struct {
	Org              string `json:"org"`
	AgentID          string `json:"agent_id"`
	AgentName        string `json:"agent_name"`
	AgentFingerprint string `json:"agent_fingerprint"`
	SessionID        string `json:"session_id"`
	Generation       int    `json:"generation"`
	Revision         int    `json:"revision"`
	Replaces         int    `json:"replaces,omitzero"` // the revision before

	OpenedAt time.Time `json:"opened_at"`
	ClosedAt time.Time `json:"closed_at"`
	ClosedBy string    `json:"closed_by"`

	Complete bool     `json:"complete"`
	Open     []string `json:"open"` // what is not known to be in it, if it is not complete

	Entries  int64      `json:"entries"`
	FirstSeq int64      `json:"first_seq"`
	LastSeq  int64      `json:"last_seq"`
	Seqs     [][2]int64 `json:"seqs"` // the numbers of its entries: ranges, ascending

	Requests       int64            `json:"requests"`
	Effects        map[string]int64 `json:"effects"`
	Outcomes       map[string]int64 `json:"outcomes"`
	Models         []string         `json:"models"`
	Providers      []string         `json:"providers"`
	Tools          []string         `json:"tools"`
	Policies       []string         `json:"policies"`
	PolicyVersions []string         `json:"policy_versions"`
	Approvals      []string         `json:"approvals"`
	Clipped        []string         `json:"clipped"` // lists with elements left out

	CostNanoUSD    int64 `json:"cost_nano_usd"`
	ChargedNanoUSD int64 `json:"charged_nano_usd"`
	Unpriced       int64 `json:"unpriced"` // requests with unknown cost
	InputTokens    int64 `json:"input_tokens"`
	OutputTokens   int64 `json:"output_tokens"`

	Checkpoint string `json:"checkpoint"` // a signed checkpoint that has the last entry
}

// An Attestation is a revision of the attestation of a session's generation.
type Attestation struct {
	Generation, Revision int
	Complete             bool
	Envelope             []byte // nil: not signed yet
}

// ErrNotAttested means that a session has no attestation yet.
var ErrNotAttested = errors.New("the session is not attested yet")

// errUnreadable means that entries of one session cannot be read: their month was archived, or
// they were changed.
var errUnreadable = errors.New("the entries of the session cannot be read")

// GetAttestation returns a revision of an attestation, or the newest for revision 0. tx has the
// org set.
func GetAttestation(ctx context.Context, tx pgx.Tx, org string, s SessionRow, revision int) (a Attestation, err error) {
	err = tx.QueryRow(ctx, `SELECT generation, revision, complete, envelope FROM audit_attestations
		WHERE org_id = $1 AND agent_id = $2 AND session_id = $3 AND generation = $4 AND ($5::bigint = 0 OR revision = $5) ORDER BY revision DESC LIMIT 1`,
		org, s.AgentID, s.SessionID, s.Generation, revision).Scan(&a.Generation, &a.Revision, &a.Complete, &a.Envelope)
	if errors.Is(err, pgx.ErrNoRows) {
		return a, ErrNotAttested
	}
	if err != nil {
		return a, fmt.Errorf("reading an attestation: %w", err)
	}
	return a, nil
}

// SessionsConfig configures Sessions.
type SessionsConfig struct {
	DB     DB
	Pool   Querier         // for the list of orgs
	Chain  *Chain          // records the end of idle sessions
	Signer evidence.Signer // P-256; nil: nothing is attested
	// Grace is how long an attestation waits for what is open. 0: 10 minutes.
	Grace time.Duration

	Now        func() time.Time      // nil: time.Now
	Log        *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // nil: no metrics
}

// DefaultGrace is how long an attestation waits for what is open.
const DefaultGrace = 10 * time.Minute

const (
	sessionsRound  = time.Second
	sessionsAtOnce = 4
	// idleLook is how often an org without new entries is looked at, and restLook if none of
	// its sessions is open.
	idleLook, restLook = 30 * time.Second, 5 * time.Minute
	attestAtOnce       = 50 // sessions of one transaction
	// giveUp is how long an incomplete attestation is retried without new entries.
	giveUp = 7 * 24 * time.Hour
	// silentWriter is how long before a session a process must have been silent, so that it
	// cannot have entries of the session. It is above the longest --max-staleness in use.
	silentWriter = 24 * time.Hour
	signTimeout  = 20 * time.Second
	maxListed    = 1000 // elements of each list in a statement
)

// Sessions follows the chains of all orgs, closes idle sessions, and attests closed ones. Several
// may run on one database.
type Sessions struct {
	c       SessionsConfig
	latency prometheus.Histogram

	mu   sync.Mutex
	orgs map[string]*orgSessions
}

// orgSessions is what Sessions remembers of an org.
type orgSessions struct {
	head     int64
	next     time.Time
	unsigned time.Time // when the oldest statement was made that waits for its signature
	tried    map[sessionTry]time.Time
}

type sessionTry struct {
	sessionKey
	generation int
}

// NewSessions checks c.
func NewSessions(c SessionsConfig) (*Sessions, error) {
	if c.DB == nil || c.Pool == nil || c.Chain == nil {
		return nil, errors.New("sessions need a database and a chain")
	}
	if c.Grace < 0 {
		return nil, fmt.Errorf("the grace of sessions is %v; it must not be negative", c.Grace)
	}
	if c.Grace == 0 {
		c.Grace = DefaultGrace
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Sessions{c: c, orgs: make(map[string]*orgSessions)}
	s.latency = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "aid_attestation_seconds", Help: "Time from the end of a session to its signed attestation.", Buckets: prometheus.ExponentialBuckets(1, 2, 14),
	})
	if c.Registerer == nil {
		return s, nil
	}
	for _, m := range []prometheus.Collector{s.latency, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "aid_attestation_unsigned_seconds", Help: "Age of the oldest attestation that waits for its signature. 0: none waits.",
	}, s.unsigned)} {
		if err := c.Registerer.Register(m); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Sessions) unsigned() float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	oldest := 0.0
	for _, o := range s.orgs {
		if !o.unsigned.IsZero() {
			oldest = max(oldest, s.c.Now().Sub(o.unsigned).Seconds())
		}
	}
	return oldest
}

// Run works until ctx is done.
func (s *Sessions) Run(ctx context.Context) error {
	last := ""
	for ctx.Err() == nil {
		text := ""
		if err := s.Round(ctx); err != nil {
			text = err.Error()
		}
		if text != last && text != "" && ctx.Err() == nil {
			s.c.Log.ErrorContext(ctx, "sessions and their attestations", "err", text)
		}
		last = text
		rest(ctx, sessionsRound)
	}
	return nil
}

// Round looks once at the orgs that have new entries, or something to do.
func (s *Sessions) Round(ctx context.Context) error {
	rows, err := s.c.Pool.Query(ctx, "SELECT org_id, head FROM aid_directory()")
	if err != nil {
		return fmt.Errorf("listing orgs: %w", err)
	}
	now := s.c.Now()
	var due []string
	var org string
	var head int64
	_, err = pgx.ForEachRow(rows, []any{&org, &head}, func() error {
		if head == 0 { // it has no entries, or it was deleted
			return nil
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		o := s.orgs[org]
		if o == nil {
			o = &orgSessions{tried: make(map[sessionTry]time.Time)}
			s.orgs[org] = o
		}
		if head > o.head || !now.Before(o.next) {
			due = append(due, org)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("listing orgs: %w", err)
	}
	var wg sync.WaitGroup
	errs := make([]error, len(due))
	turns := make(chan struct{}, sessionsAtOnce)
	for i, org := range due {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			if err := s.org(ctx, org); err != nil {
				errs[i] = fmt.Errorf("%s: %w", org, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// org does everything that is due in one org.
func (s *Sessions) org(ctx context.Context, org string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*appendDeadline)
	defer cancel()
	s.mu.Lock()
	o := s.orgs[org]
	s.mu.Unlock()
	now := s.c.Now().UTC().Truncate(time.Microsecond)
	var head int64
	waiting, open := false, false
	for more := true; more && ctx.Err() == nil; {
		err := s.c.DB.InOrg(ctx, org, func(tx pgx.Tx) (err error) {
			if head, more, err = followSessions(ctx, tx, org); err != nil || more {
				return err
			}
			idle, err := closeIdle(ctx, tx, org, now)
			if err != nil {
				return err
			}
			if s.c.Signer != nil {
				if waiting, err = s.attest(ctx, tx, org, o, now); err != nil {
					return err
				}
			}
			if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM audit_sessions WHERE org_id = $1 AND closed_at IS NULL)", org).Scan(&open); err != nil {
				return err
			}
			for _, g := range idle { // last, since it locks the chain
				if _, err := s.c.Chain.Record(ctx, tx, org, SessionClosed(g, Actor{Kind: "control", ID: ClosedIdle}, now, "")); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	unsigned, err := s.sign(ctx, org)
	s.mu.Lock()
	defer s.mu.Unlock()
	o.head, o.unsigned = head, unsigned
	switch {
	case waiting || !unsigned.IsZero():
		o.next = now.Add(sessionsRound)
	case open:
		o.next = now.Add(idleLook)
	default:
		o.next = now.Add(restLook)
	}
	return err
}

// SessionClosed is the entry for the end of a session.
func SessionClosed(s SessionRow, by Actor, now time.Time, request string) Changed {
	return Changed{
		Kind: "session.closed", Time: now, Actor: by, RequestID: request, ObjectKind: "session", ObjectID: s.SessionID, AgentID: s.AgentID,
		Fields: []string{"generation " + strconv.Itoa(s.Generation)},
	}
}

// attest makes the statements of closed sessions that have none, or whose entries have changed.
// It returns whether some wait.
func (s *Sessions) attest(ctx context.Context, tx pgx.Tx, org string, o *orgSessions, now time.Time) (waiting bool, err error) {
	rows, err := tx.Query(ctx, "SELECT "+sessionColumns+" FROM audit_sessions WHERE org_id = $1 AND closed_at IS NOT NULL AND stale ORDER BY closed_at DESC LIMIT 500", org)
	if err != nil {
		return false, err
	}
	due, err := pgx.CollectRows(rows, scanSession)
	if err != nil {
		return false, err
	}
	made := 0
	for _, g := range due {
		t := sessionTry{sessionKey{g.AgentID, g.SessionID}, g.Generation}
		if next, ok := o.tried[t]; ok && now.Before(next) || made >= attestAtOnce {
			waiting = true
			continue
		}
		made++
		done, err := s.attestOne(ctx, tx, org, g, now)
		if errors.Is(err, errUnreadable) {
			// Only this session: the others go on.
			s.c.Log.ErrorContext(ctx, "a session cannot be attested", "org", org, "agent", g.AgentID, "session", g.SessionID, "generation", g.Generation, "err", err)
			o.tried[t] = now.Add(time.Hour)
			continue
		}
		if err != nil {
			return false, fmt.Errorf("attesting session %s of %s: %w", g.SessionID, g.AgentID, err)
		}
		if done {
			delete(o.tried, t)
			continue
		}
		waiting = true
		// What is open for long is looked at less often.
		if age := now.Sub(g.ClosedAt); age > s.c.Grace {
			o.tried[t] = now.Add(time.Minute)
		} else {
			o.tried[t] = now.Add(max(sessionsRound, age/10))
		}
		if len(o.tried) > 10_000 {
			clear(o.tried)
		}
	}
	return waiting, nil
}

// attestOne makes the next revision of a session's statement, if it is due. done means that
// nothing has to be done until more entries come.
func (s *Sessions) attestOne(ctx context.Context, tx pgx.Tx, org string, g SessionRow, now time.Time) (done bool, err error) {
	st, err := collect(ctx, tx, org, g)
	if err != nil {
		return false, err
	}
	p := &st.Predicate
	p.Complete = len(p.Open) == 0
	if !p.Complete && now.Sub(g.ClosedAt) < s.c.Grace {
		return false, nil
	}
	root, err := hex.DecodeString(st.Subject[0].Digest.Root)
	if err != nil {
		return false, err
	}
	var revision int
	var had []byte
	var complete bool
	err = tx.QueryRow(ctx, `SELECT revision, root, complete FROM audit_attestations WHERE org_id = $1 AND agent_id = $2 AND session_id = $3 AND generation = $4
		ORDER BY revision DESC LIMIT 1`, org, g.AgentID, g.SessionID, g.Generation).Scan(&revision, &had, &complete)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return false, err
	}
	if revision == 0 || string(had) != string(root) || complete != p.Complete {
		p.Revision, p.Replaces = revision+1, revision
		b, err := json.Marshal(st, json.Deterministic(true))
		if err != nil {
			return false, err
		}
		if _, err := tx.Exec(ctx, `INSERT INTO audit_attestations (org_id, agent_id, session_id, generation, revision, root, complete, made_at, statement)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`, org, g.AgentID, g.SessionID, g.Generation, p.Revision, root, p.Complete, now, b); err != nil {
			return false, err
		}
	}
	if !p.Complete && now.Sub(g.ClosedAt) < giveUp {
		return false, nil
	}
	_, err = tx.Exec(ctx, "UPDATE audit_sessions SET stale = false WHERE org_id = $1 AND agent_id = $2 AND session_id = $3 AND generation = $4 AND last_seq = $5",
		org, g.AgentID, g.SessionID, g.Generation, g.LastSeq)
	return true, err
}

// seqsOf returns the numbers of the entries with a session's id, from its first on.
func seqsOf(ctx context.Context, tx pgx.Tx, org string, g SessionRow) ([]int64, error) {
	rows, err := tx.Query(ctx, `SELECT seqs FROM audit_session_parts WHERE org_id = $1 AND agent_id = $2 AND session_id = $3
		AND first_seq >= coalesce((SELECT max(first_seq) FROM audit_session_parts WHERE org_id = $1 AND agent_id = $2 AND session_id = $3 AND first_seq <= $4), 0)
		AND first_seq <= $5 ORDER BY first_seq`, org, g.AgentID, g.SessionID, g.OpenedSeq, g.LastSeq)
	if err != nil {
		return nil, err
	}
	var all, part []int64
	_, err = pgx.ForEachRow(rows, []any{&part}, func() error {
		for _, seq := range part {
			if seq >= g.OpenedSeq && seq <= g.LastSeq {
				all = append(all, seq)
			}
		}
		part = nil
		return nil
	})
	return all, err
}

// distinct is a sorted list without duplicates, of at most maxListed elements.
type distinct struct {
	seen map[string]bool
	over bool
}

func (d *distinct) add(values ...string) {
	for _, v := range values {
		switch {
		case v == "" || d.seen[v]:
		case len(d.seen) >= maxListed:
			d.over = true
		default:
			if d.seen == nil {
				d.seen = make(map[string]bool)
			}
			d.seen[v] = true
		}
	}
}

func (d *distinct) list() []string {
	out := make([]string, 0, len(d.seen))
	for v := range d.seen {
		out = append(out, v)
	}
	slices.Sort(out)
	return out
}

// collected is what a session's entries add up to.
type collected struct {
	st      Statement
	root    *evidence.Range
	members map[string]bool     // requests with a decision in this generation; false: in another one
	allowed map[string]bool     // requests that were forwarded
	settled map[string]*Settled // by request: the real completion, or an unknown one
	shipped map[string]bool     // writers and the processes that shipped their records

	models, providers, tools, policies, versions distinct
}

// collect reads a generation's entries and makes its statement, without its revision. Open names
// what is not known to be in it.
func collect(ctx context.Context, tx pgx.Tx, org string, g SessionRow) (Statement, error) {
	seqs, err := seqsOf(ctx, tx, org, g)
	if err != nil {
		return Statement{}, err
	}
	earlier, err := generationsOf(ctx, tx, org, g.AgentID, g.SessionID)
	if err != nil {
		return Statement{}, err
	}
	generations := make([]*SessionRow, len(earlier))
	for i := range earlier {
		generations[i] = &earlier[i]
	}
	c := collected{
		root: &evidence.Range{}, members: make(map[string]bool), allowed: make(map[string]bool), settled: make(map[string]*Settled), shipped: make(map[string]bool),
		st: Statement{Type: "https://in-toto.io/Statement/v1", PredicateType: SessionPredicate, Predicate: SessionStatement{
			Org: org, AgentID: g.AgentID, SessionID: g.SessionID, Generation: g.Generation, OpenedAt: g.OpenedAt, ClosedAt: g.ClosedAt, ClosedBy: g.ClosedBy,
			Open: []string{}, Seqs: [][2]int64{}, Effects: map[string]int64{}, Outcomes: map[string]int64{}, Approvals: []string{}, Clipped: []string{},
		}},
	}
	var incarnation int64
	for len(seqs) > 0 {
		some := seqs[:min(len(seqs), 1000)]
		seqs = seqs[len(some):]
		if err := c.read(ctx, tx, org, some, g, generations, &incarnation); err != nil {
			return Statement{}, err
		}
	}
	if err := c.open(ctx, tx, org, g, incarnation); err != nil {
		return Statement{}, err
	}
	c.sum()
	root := c.root.Root()
	c.st.Subject = []Subject{{
		Name:   "aid:session/" + org + "/" + g.AgentID + "/" + g.SessionID + "/" + strconv.Itoa(g.Generation),
		Digest: SubjectDigest{hex.EncodeToString(root[:])},
	}}
	return c.st, nil
}

// read adds entries by their numbers. Those of other generations are left out.
func (c *collected) read(ctx context.Context, tx pgx.Tx, org string, seqs []int64, g SessionRow, generations []*SessionRow, incarnation *int64) error {
	rows, err := tx.Query(ctx, `SELECT seq, appended_at, time, kind, agent_id, session_id, request_id, writer, writer_seq, prev_writer_seq, incarnation, shipped_by, entry
		FROM audit_entries WHERE org_id = $1 AND seq = ANY($2) ORDER BY seq`, org, seqs)
	if err != nil {
		return err
	}
	l := evidence.Link{Org: org}
	var shippedBy string
	var entry []byte
	count := 0
	_, err = pgx.ForEachRow(rows, []any{&l.Seq, &l.AppendedAt, &l.Time, &l.Kind, &l.AgentID, &l.SessionID, &l.RequestID, &l.Writer, &l.WriterSeq,
		&l.PrevWriterSeq, &l.Incarnation, &shippedBy, &entry}, func() error {
		count++
		if l.AgentID != g.AgentID || l.SessionID != g.SessionID {
			return fmt.Errorf("%w: entry %d belongs to another session", errUnreadable, l.Seq)
		}
		e, err := Parse(entry)
		if err != nil {
			return fmt.Errorf("%w: entry %d: %w", errUnreadable, l.Seq, err)
		}
		switch e := e.(type) {
		case Decided:
			at := generationAt(generations, l.Time)
			member := at != nil && at.Generation == g.Generation
			c.members[l.RequestID] = c.members[l.RequestID] || member
			if !member {
				return nil
			}
			c.decided(e)
		case Settled:
			// A completion without a decision here belongs to the generation that got it.
			if member, known := c.members[l.RequestID]; known && !member || !known && len(generations) > 1 {
				return nil
			}
			if had := c.settled[l.RequestID]; had == nil || had.Outcome == OutcomeUnknown {
				c.settled[l.RequestID] = &e
			}
		default:
			return nil
		}
		l.Entry = LeafHash(entry)
		c.root.Append(l.Leaf())
		p := &c.st.Predicate
		if p.Entries++; p.FirstSeq == 0 {
			p.FirstSeq = l.Seq
		}
		p.LastSeq, *incarnation = l.Seq, l.Incarnation
		if n := len(p.Seqs); n > 0 && p.Seqs[n-1][1] == l.Seq-1 {
			p.Seqs[n-1][1] = l.Seq
		} else {
			p.Seqs = append(p.Seqs, [2]int64{l.Seq, l.Seq})
		}
		if l.Writer != controlWriter {
			if shippedBy == "" {
				shippedBy = l.Writer
			}
			c.shipped[shippedBy] = true
		}
		return nil
	})
	if err == nil && count != len(seqs) {
		err = fmt.Errorf("%w: %d of %d are missing", errUnreadable, len(seqs)-count, len(seqs))
	}
	return err
}

func (c *collected) decided(e Decided) {
	p := &c.st.Predicate
	p.Requests++
	p.Effects[e.Effect]++
	p.AgentName, p.AgentFingerprint = e.AgentName, e.AgentFingerprint
	if e.Effect == effectAllow {
		c.allowed[e.RequestID] = true
	}
	c.models.add(e.Model)
	c.providers.add(e.Provider)
	c.tools.add(e.Tools...)
	c.policies.add(e.PolicyIDs...)
	c.versions.add(e.PolicyVersion)
}

// sum adds up the completions.
func (c *collected) sum() {
	p := &c.st.Predicate
	for _, s := range c.settled {
		p.Outcomes[s.Outcome]++
		p.CostNanoUSD += s.CostNanoUSD
		p.ChargedNanoUSD += s.ChargedNanoUSD
		p.InputTokens += s.Usage.InputTokens
		p.OutputTokens += s.Usage.OutputTokens
		if !s.Priced && s.Outcome != outcomeRefused {
			p.Unpriced++
		}
	}
	for _, l := range []struct {
		name string
		from *distinct
		to   *[]string
	}{
		{"models", &c.models, &p.Models}, {"providers", &c.providers, &p.Providers}, {"tools", &c.tools, &p.Tools}, {"policies", &c.policies, &p.Policies},
		{"policy_versions", &c.versions, &p.PolicyVersions},
	} {
		if *l.to = l.from.list(); l.from.over {
			p.Clipped = append(p.Clipped, l.name)
		}
	}
}

// open adds what is not known to be in the session, and the checkpoint that has its last entry.
func (c *collected) open(ctx context.Context, tx pgx.Tx, org string, g SessionRow, incarnation int64) error {
	p := &c.st.Predicate
	unsettled := 0
	for r := range c.allowed {
		if c.settled[r] == nil {
			if unsettled++; unsettled <= 100 {
				p.Open = append(p.Open, "request "+r+" has no completion")
			}
		}
	}
	rows, err := tx.Query(ctx, `SELECT writer, at > $2 OR ended, ended OR seen_at < $3 FROM audit_watermarks WHERE org_id = $1`, org, g.ClosedAt, g.OpenedAt.Add(-silentWriter))
	if err != nil {
		return err
	}
	known := make(map[string]bool)
	var writer string
	var past, gone bool
	if _, err := pgx.ForEachRow(rows, []any{&writer, &past, &gone}, func() error {
		known[writer] = true
		if !past && !gone {
			p.Open = append(p.Open, "writer "+writer+" may have records that are not shipped")
		}
		return nil
	}); err != nil {
		return err
	}
	for w := range c.shipped {
		if !known[w] {
			p.Open = append(p.Open, "writer "+w+" has no watermark")
		}
	}
	cp := StoredCheckpoint{}
	err = ErrNoCheckpoint
	if p.Entries > 0 {
		var first int64
		err = tx.QueryRow(ctx, "SELECT first_seq FROM audit_trees WHERE org_id = $1 AND incarnation = $2", org, incarnation).Scan(&first)
		if errors.Is(err, pgx.ErrNoRows) {
			err = ErrNoCheckpoint
		}
		if err == nil {
			cp, err = CheckpointAt(ctx, tx, org, incarnation, p.LastSeq-first+1)
		}
	}
	switch {
	case errors.Is(err, ErrNoCheckpoint):
		p.Open = append(p.Open, "no signed checkpoint has the last entry")
	case err != nil:
		return err
	}
	p.Checkpoint = string(cp.Note)
	slices.Sort(p.Open)
	return nil
}

// sign signs the statements of an org that have no signature. It returns when the oldest one was
// made that still waits.
func (s *Sessions) sign(ctx context.Context, org string) (oldest time.Time, err error) {
	type waiting struct {
		agent, session       string
		generation, revision int
		made, closed         time.Time
		statement            []byte
	}
	var all []waiting
	err = s.c.DB.InOrg(ctx, org, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT a.agent_id, a.session_id, a.generation, a.revision, a.made_at, s.closed_at, a.statement FROM audit_attestations a
			JOIN audit_sessions s USING (org_id, agent_id, session_id, generation) WHERE a.org_id = $1 AND a.envelope IS NULL ORDER BY a.made_at LIMIT $2`, org, attestAtOnce)
		if err != nil {
			return err
		}
		all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (w waiting, err error) {
			err = row.Scan(&w.agent, &w.session, &w.generation, &w.revision, &w.made, &w.closed, &w.statement)
			return w, err
		})
		return err
	})
	if err != nil || len(all) == 0 {
		return time.Time{}, err
	}
	if s.c.Signer == nil {
		return all[0].made, nil
	}
	for _, w := range all {
		signing, cancel := context.WithTimeout(ctx, signTimeout)
		e, err := evidence.SignEnvelope(signing, evidence.InTotoType, w.statement, s.c.Signer)
		cancel()
		if err != nil {
			return w.made, err
		}
		b, err := json.Marshal(e)
		if err != nil {
			return w.made, err
		}
		now := s.c.Now()
		if err := s.c.DB.InOrg(ctx, org, func(tx pgx.Tx) error {
			// Another replica may have signed it meanwhile. The first signature stays.
			_, err := tx.Exec(ctx, `UPDATE audit_attestations SET envelope = $6, signed_at = $7
				WHERE org_id = $1 AND agent_id = $2 AND session_id = $3 AND generation = $4 AND revision = $5 AND envelope IS NULL`,
				org, w.agent, w.session, w.generation, w.revision, b, now)
			return err
		}); err != nil {
			return w.made, err
		}
		if w.revision == 1 {
			s.latency.Observe(now.Sub(w.closed).Seconds())
		}
	}
	if len(all) == attestAtOnce {
		return all[len(all)-1].made, nil // there may be more
	}
	return time.Time{}, nil
}
