package audit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// A SessionRow is a session of an agent: the requests with one session id. An id that is used
// again after its session was closed begins the next generation.
type SessionRow struct {
	AgentID, SessionID string
	Generation         int
	OpenedAt, LastAt   time.Time // of its first decision, and of its last entry
	OpenedSeq, LastSeq int64     // of its first entry, and of its last
	Entries            int64
	ClosedAt           time.Time // decisions up to this time belong to it; zero: it is open
	ClosedBy           string    // an id of a key, or ClosedIdle

	stale, fresh, changed bool
}

// ClosedIdle closes sessions without requests.
const ClosedIdle = "idle"

// SessionIdle is how long a session may have no requests. Then it is closed.
const SessionIdle = 30 * time.Minute

// followBatch is how many entries one transaction adds to sessions.
const followBatch = 5000

// ErrNoSession means that no entry of the chain has the session.
var ErrNoSession = errors.New("there is no such session")

type sessionKey struct{ agent, session string }

// following adds entries to sessions.
type following struct {
	generations map[sessionKey][]*SessionRow // ascending
	parts       map[sessionKey][]int64
	requests    map[sessionRequest]*SessionRow // of decisions in this batch
}

type sessionRequest struct {
	sessionKey
	request string
}

// sessionEntry is what sessions need of an entry.
type sessionEntry struct {
	seq     int64
	time    time.Time
	kind    string
	key     sessionKey
	request string
}

// followSessions adds the next entries of the chain to the sessions of the org, which tx has
// set. The rows are a function of the chain and of the times of closing. It holds the org's
// sessions until the transaction ends.
func followSessions(ctx context.Context, tx pgx.Tx, org string) (head int64, more bool, err error) {
	if _, err := tx.Exec(ctx, "INSERT INTO audit_session_heads (org_id, seq) VALUES ($1, 0) ON CONFLICT DO NOTHING", org); err != nil {
		return 0, false, err
	}
	if err := tx.QueryRow(ctx, "SELECT seq FROM audit_session_heads WHERE org_id = $1 FOR UPDATE", org).Scan(&head); err != nil {
		return 0, false, err
	}
	rows, err := tx.Query(ctx, `SELECT seq, time, kind, agent_id, session_id, request_id FROM audit_entries WHERE org_id = $1 AND seq > $2 AND seq <= $3 ORDER BY seq`,
		org, head, head+followBatch)
	if err != nil {
		return 0, false, err
	}
	var entries []sessionEntry
	keys := make(map[sessionKey]bool)
	var e sessionEntry
	last := head
	if _, err = pgx.ForEachRow(rows, []any{&e.seq, &e.time, &e.kind, &e.key.agent, &e.key.session, &e.request}, func() error {
		last = e.seq
		if e.key.session != "" && e.key.agent != "" && (e.kind == KindDecided || e.kind == KindSettled) {
			e.time = e.time.UTC()
			entries = append(entries, e)
			keys[e.key] = true
		}
		return nil
	}); err != nil {
		return 0, false, err
	}
	if last == head {
		return head, false, nil
	}
	f := following{generations: make(map[sessionKey][]*SessionRow), parts: make(map[sessionKey][]int64), requests: make(map[sessionRequest]*SessionRow)}
	if err := f.load(ctx, tx, org, keys); err != nil {
		return 0, false, err
	}
	for _, e := range entries {
		if err := f.add(ctx, tx, org, e); err != nil {
			return 0, false, err
		}
	}
	return last, last-head == followBatch, f.save(ctx, tx, org, last)
}

const sessionColumns = "agent_id, session_id, generation, opened_at, last_at, opened_seq, last_seq, entries, coalesce(closed_at, '-infinity'::timestamptz) > '-infinity', coalesce(closed_at, opened_at), closed_by, stale"

func scanSession(row pgx.CollectableRow) (s SessionRow, err error) {
	var closed bool
	var at time.Time
	err = row.Scan(&s.AgentID, &s.SessionID, &s.Generation, &s.OpenedAt, &s.LastAt, &s.OpenedSeq, &s.LastSeq, &s.Entries, &closed, &at, &s.ClosedBy, &s.stale)
	s.OpenedAt, s.LastAt = s.OpenedAt.UTC(), s.LastAt.UTC()
	if closed {
		s.ClosedAt = at.UTC()
	}
	return s, err
}

func (f *following) load(ctx context.Context, tx pgx.Tx, org string, keys map[sessionKey]bool) error {
	if len(keys) == 0 {
		return nil
	}
	var agents, sessions []string
	for k := range keys {
		agents, sessions = append(agents, k.agent), append(sessions, k.session)
	}
	rows, err := tx.Query(ctx, "SELECT "+sessionColumns+` FROM audit_sessions JOIN unnest($2::text[], $3::text[]) AS u(a, s) ON agent_id = u.a AND session_id = u.s
		WHERE org_id = $1 ORDER BY generation`, org, agents, sessions)
	if err != nil {
		return err
	}
	found, err := pgx.CollectRows(rows, scanSession)
	if err != nil {
		return err
	}
	for _, s := range found {
		k := sessionKey{s.AgentID, s.SessionID}
		f.generations[k] = append(f.generations[k], &s)
	}
	return nil
}

// generationAt returns the generation that a decision belongs to: the first that was closed at
// its time or later, or else the open one. Without one it returns nil.
func generationAt(gs []*SessionRow, decided time.Time) *SessionRow {
	for _, g := range gs {
		if g.ClosedAt.IsZero() || !decided.After(g.ClosedAt) {
			return g
		}
	}
	return nil
}

func (f *following) add(ctx context.Context, tx pgx.Tx, org string, e sessionEntry) error {
	gs := f.generations[e.key]
	r := sessionRequest{e.key, e.request}
	var g *SessionRow
	switch {
	case e.kind == KindDecided:
		g = generationAt(gs, e.time)
	case f.requests[r] != nil:
		g = f.requests[r]
	case len(gs) == 1:
		g = gs[0]
	case len(gs) > 1: // a completion belongs to the generation of its decision
		var decided time.Time
		err := tx.QueryRow(ctx, "SELECT time FROM audit_entries WHERE org_id = $1 AND request_id = $2 AND kind = $3 AND agent_id = $4 AND session_id = $5 ORDER BY seq LIMIT 1",
			org, e.request, KindDecided, e.key.agent, e.key.session).Scan(&decided)
		if errors.Is(err, pgx.ErrNoRows) {
			decided, err = e.time, nil
		}
		if err != nil {
			return err
		}
		if g = generationAt(gs, decided); g == nil {
			g = gs[len(gs)-1]
		}
	}
	if g == nil {
		g = &SessionRow{AgentID: e.key.agent, SessionID: e.key.session, Generation: 1, OpenedAt: e.time, LastAt: e.time, OpenedSeq: e.seq, fresh: true}
		if n := len(gs); n > 0 {
			g.Generation = gs[n-1].Generation + 1
		}
		f.generations[e.key] = append(gs, g)
	}
	if e.kind == KindDecided {
		f.requests[r] = g
		if e.time.Before(g.OpenedAt) {
			g.OpenedAt = e.time
		}
	}
	if e.time.After(g.LastAt) {
		g.LastAt = e.time
	}
	g.LastSeq, g.stale, g.changed = e.seq, true, true
	g.Entries++
	f.parts[e.key] = append(f.parts[e.key], e.seq)
	return nil
}

func (f *following) save(ctx context.Context, tx pgx.Tx, org string, head int64) error {
	var b pgx.Batch
	for _, k := range slices.SortedFunc(maps.Keys(f.parts), func(a, b sessionKey) int {
		return slices.Compare([]string{a.agent, a.session}, []string{b.agent, b.session})
	}) {
		seqs := f.parts[k]
		b.Queue("INSERT INTO audit_session_parts (org_id, agent_id, session_id, first_seq, seqs) VALUES ($1, $2, $3, $4, $5)", org, k.agent, k.session, seqs[0], seqs)
		for _, g := range f.generations[k] {
			switch {
			case g.fresh:
				b.Queue(`INSERT INTO audit_sessions (org_id, agent_id, session_id, generation, opened_at, last_at, opened_seq, last_seq, entries) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
					org, k.agent, k.session, g.Generation, g.OpenedAt, g.LastAt, g.OpenedSeq, g.LastSeq, g.Entries)
			case g.changed:
				b.Queue(`UPDATE audit_sessions SET opened_at = $5, last_at = $6, last_seq = $7, entries = $8, stale = true
					WHERE org_id = $1 AND agent_id = $2 AND session_id = $3 AND generation = $4`, org, k.agent, k.session, g.Generation, g.OpenedAt, g.LastAt, g.LastSeq, g.Entries)
			}
		}
	}
	b.Queue("UPDATE audit_session_heads SET seq = $2 WHERE org_id = $1", org, head)
	return tx.SendBatch(ctx, &b).Close()
}

// CatchUpSessions adds the chain's newest entries to the sessions of the org, which tx has set.
func CatchUpSessions(ctx context.Context, tx pgx.Tx, org string) error {
	for range 40 { // as far as one request may
		if _, more, err := followSessions(ctx, tx, org); err != nil || !more {
			return err
		}
	}
	return errors.New("sessions are far behind the audit log: try again later")
}

// generationsOf returns the generations of a session, of one agent or of all, in order.
func generationsOf(ctx context.Context, tx pgx.Tx, org, agent, session string) ([]SessionRow, error) {
	rows, err := tx.Query(ctx, "SELECT "+sessionColumns+` FROM audit_sessions WHERE org_id = $1 AND session_id = $2 AND ($3 = '' OR agent_id = $3)
		ORDER BY agent_id, generation`, org, session, agent)
	if err != nil {
		return nil, fmt.Errorf("reading sessions: %w", err)
	}
	found, err := pgx.CollectRows(rows, scanSession)
	if err != nil {
		return nil, fmt.Errorf("reading sessions: %w", err)
	}
	return found, nil
}

// ErrAmbiguous is the error for a session id that several agents use.
type ErrAmbiguous struct{ Agents []string }

func (e *ErrAmbiguous) Error() string {
	return fmt.Sprintf("%d agents have a session with this id", len(e.Agents))
}

// SessionGenerations returns the generations of one agent's session, oldest first. Without
// agent, the error is an *ErrAmbiguous if several agents have the session. Without any, it is
// ErrNoSession. tx has the org set.
func SessionGenerations(ctx context.Context, tx pgx.Tx, org, agent, session string) ([]SessionRow, error) {
	all, err := generationsOf(ctx, tx, org, agent, session)
	if err != nil {
		return nil, err
	}
	var agents []string
	for _, s := range all {
		if !slices.Contains(agents, s.AgentID) {
			agents = append(agents, s.AgentID)
		}
	}
	switch len(agents) {
	case 0:
		return nil, ErrNoSession
	case 1:
		return all, nil
	}
	return nil, &ErrAmbiguous{agents}
}

// CloseSession closes the open generation of a session. A session that is closed stays as it
// is. Decisions up to now belong to it, also those that arrive later. tx has the org set.
func CloseSession(ctx context.Context, tx pgx.Tx, org, agent, session, by string, now time.Time) (s SessionRow, closed bool, err error) {
	if err := CatchUpSessions(ctx, tx, org); err != nil {
		return s, false, fmt.Errorf("closing a session: %w", err)
	}
	all, err := SessionGenerations(ctx, tx, org, agent, session)
	if err != nil {
		return s, false, err
	}
	if s = all[len(all)-1]; !s.ClosedAt.IsZero() {
		return s, false, nil
	}
	s.ClosedBy, s.ClosedAt = by, now
	if s.LastAt.After(now) {
		s.ClosedAt = s.LastAt // a node's clock is ahead
	}
	_, err = tx.Exec(ctx, "UPDATE audit_sessions SET closed_at = $5, closed_by = $6, stale = true WHERE org_id = $1 AND agent_id = $2 AND session_id = $3 AND generation = $4",
		org, s.AgentID, session, s.Generation, s.ClosedAt, by)
	if err != nil {
		return s, false, fmt.Errorf("closing a session: %w", err)
	}
	return s, true, nil
}

// closeIdle closes the sessions of an org without requests for SessionIdle.
func closeIdle(ctx context.Context, tx pgx.Tx, org string, now time.Time) ([]SessionRow, error) {
	rows, err := tx.Query(ctx, `UPDATE audit_sessions SET closed_at = $2, closed_by = $3, stale = true WHERE (org_id, agent_id, session_id, generation) IN (
			SELECT org_id, agent_id, session_id, generation FROM audit_sessions WHERE org_id = $1 AND closed_at IS NULL AND last_at < $4 ORDER BY last_at LIMIT 200)
		RETURNING `+sessionColumns, org, now, ClosedIdle, now.Add(-SessionIdle))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanSession)
}

// ListSessions returns sessions, newest first, after the one that began at an entry. The org is
// tx's.
func ListSessions(ctx context.Context, tx pgx.Tx, agent, state string, after int64, limit int) ([]SessionRow, error) {
	rows, err := tx.Query(ctx, "SELECT "+sessionColumns+` FROM audit_sessions WHERE org_id = aid_org() AND ($1 = '' OR agent_id = $1)
		AND ($2 = '' OR ($2 = 'open') = (closed_at IS NULL)) AND ($3::bigint = 0 OR opened_seq < $3) ORDER BY opened_seq DESC LIMIT $4`, agent, state, after, limit)
	if err != nil {
		return nil, fmt.Errorf("listing sessions: %w", err)
	}
	found, err := pgx.CollectRows(rows, scanSession)
	if err != nil {
		return nil, fmt.Errorf("listing sessions: %w", err)
	}
	return found, nil
}
