package audit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// sessionWorld appends entries of sessions as one sidecar, under a clock that the test sets.
type sessionWorld struct {
	*notaries
	t        *testing.T
	org      string
	chain    *audit.Chain
	sessions *audit.Sessions
	notary   *audit.Notary
	seq      uint64
}

func newSessionWorld(t *testing.T) *sessionWorld {
	t.Helper()
	w := &sessionWorld{notaries: newNotaries(t), t: t}
	w.org = storetest.Org(t, w.db)
	w.chain = chain(t, w.db, 1)
	w.notary = w.start(t, w.db, w.clock)
	w.restart(w.signers[0])
	return w
}

// restart starts another control plane, with a signing key or without.
func (w *sessionWorld) restart(s evidence.Signer) {
	w.t.Helper()
	var err error
	if w.sessions, err = audit.NewSessions(audit.SessionsConfig{DB: w.db, Pool: w.db.Pool(), Chain: w.chain, Signer: s, Now: w.clock, Grace: time.Minute}); err != nil {
		w.t.Fatal(err)
	}
}

// append appends entries, and the watermark of the sidecar.
func (w *sessionWorld) append(mark time.Time, entries ...audit.Entry) {
	w.t.Helper()
	b := audit.Batch{Org: w.org, Node: "node_1", Writer: "w_1", Mark: &audit.Mark{Seq: w.seq + uint64(len(entries)), Time: mark}}
	for _, e := range entries {
		b.Records = append(b.Records, audit.Record{Seq: w.seq + 1, Prev: w.seq, Org: w.org, Entry: audit.Stamp(e, w.org, "w_1", w.clock()).Encode()})
		w.seq++
	}
	if _, err := w.chain.Append(w.t.Context(), b); err != nil {
		w.t.Fatal(err)
	}
}

func (w *sessionWorld) decided(session, request string, at time.Time) audit.Decided {
	return audit.Decided{Time: at, RequestID: request, AgentID: "ag_1", AgentName: "a", AgentFingerprint: "sha256:f", SessionID: session, Effect: "allow",
		Model: "small", Provider: "one", Tools: []string{"t"}, PolicyIDs: []string{"pol_1"}, PolicyVersion: "sha256:p"}
}

func settled(session, request string, at time.Time) audit.Settled {
	return audit.Settled{Time: at, RequestID: request, AgentID: "ag_1", SessionID: session, Outcome: "completed", CostNanoUSD: 7, Priced: true,
		Usage: audit.Usage{InputTokens: 3, OutputTokens: 2, Source: "provider"}}
}

func (w *sessionWorld) round() {
	w.t.Helper()
	if err := w.notary.Round(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	if err := w.sessions.Round(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *sessionWorld) close(session string) audit.SessionRow {
	w.t.Helper()
	var s audit.SessionRow
	err := w.db.InOrg(w.t.Context(), w.org, func(tx pgx.Tx) (err error) {
		s, _, err = audit.CloseSession(w.t.Context(), tx, w.org, "", session, "okey_1", w.clock())
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// attested returns the newest attestation of a generation, verified with the public keys. Without
// one it returns nil.
func (w *sessionWorld) attested(session string, generation int) *audit.Statement {
	w.t.Helper()
	var a audit.Attestation
	err := w.db.InOrg(w.t.Context(), w.org, func(tx pgx.Tx) (err error) {
		a, err = audit.GetAttestation(w.t.Context(), tx, w.org, audit.SessionRow{AgentID: "ag_1", SessionID: session, Generation: generation}, 0)
		return err
	})
	if errors.Is(err, audit.ErrNotAttested) || err == nil && a.Envelope == nil {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	payload, _, err := w.keys.OpenEnvelope(a.Envelope, evidence.InTotoType)
	if err != nil {
		w.t.Fatal(err)
	}
	st := &audit.Statement{}
	if err := json.Unmarshal(payload, st, json.RejectUnknownMembers(true)); err != nil {
		w.t.Fatal(err)
	}
	w.verify(st)
	return st
}

// verify computes the root again, from the chain's links with the statement's numbers.
func (w *sessionWorld) verify(st *audit.Statement) {
	w.t.Helper()
	root := &evidence.Range{}
	err := w.db.InOrg(w.t.Context(), w.org, func(tx pgx.Tx) error {
		for _, r := range st.Predicate.Seqs {
			for seq := r[0]; seq <= r[1]; seq++ {
				l := evidence.Link{Org: w.org, Seq: seq}
				var entry []byte
				if err := tx.QueryRow(w.t.Context(), `SELECT appended_at, time, kind, agent_id, session_id, request_id, writer, writer_seq, prev_writer_seq, incarnation, entry
					FROM audit_entries WHERE seq = $1`, seq).Scan(&l.AppendedAt, &l.Time, &l.Kind, &l.AgentID, &l.SessionID, &l.RequestID, &l.Writer, &l.WriterSeq,
					&l.PrevWriterSeq, &l.Incarnation, &entry); err != nil {
					return err
				}
				l.Entry = audit.LeafHash(entry)
				root.Append(l.Leaf())
			}
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	sum := root.Root()
	if got := fmt.Sprintf("%x", sum[:]); got != st.Subject[0].Digest.Root || root.Size() != st.Predicate.Entries {
		w.t.Errorf("the links have the root %s and number %d: %+v", got, root.Size(), st)
	}
	if st.Predicate.Complete {
		c, err := w.keys.Open([]byte(st.Predicate.Checkpoint), evidence.OrgOrigin(logName, w.org, 1))
		if err != nil || c.Size < st.Predicate.LastSeq {
			w.t.Errorf("the checkpoint %+v does not have entry %d: %v", c, st.Predicate.LastSeq, err)
		}
	}
}

// TestSessionAttestation: a session is attested once its requests are completed and the sidecar's
// watermark is past its end. What comes later is a new revision, or the next generation.
func TestSessionAttestation(t *testing.T) {
	w := newSessionWorld(t)
	at := w.clock()
	w.append(at, w.decided("s", "r1", at), w.decided("s", "r2", at), settled("s", "r1", at), w.decided("other", "r3", at))
	w.round()
	w.later(time.Second)
	s := w.close("s")
	if s.Generation != 1 || !s.ClosedAt.Equal(w.clock()) {
		t.Errorf("%+v", s)
	}
	w.later(11 * time.Second)
	w.round()
	if st := w.attested("s", 1); st != nil {
		t.Errorf("attested while a request runs and the watermark is before the end: %+v", st.Predicate)
	}
	w.append(at, settled("s", "r2", w.clock())) // the watermark is still before the end
	w.later(11 * time.Second)
	w.round()
	if st := w.attested("s", 1); st != nil {
		t.Errorf("attested while the watermark is before the end: %+v", st.Predicate)
	}
	w.append(s.ClosedAt.Add(time.Millisecond))
	w.later(11 * time.Second)
	w.round()
	st := w.attested("s", 1)
	if st == nil {
		t.Fatal("not attested")
	}
	p := st.Predicate
	if !p.Complete || p.Revision != 1 || p.Replaces != 0 || p.Entries != 4 || p.Requests != 2 || p.Outcomes["completed"] != 2 || p.Effects["allow"] != 2 || p.CostNanoUSD != 14 ||
		p.AgentName != "a" || fmt.Sprint(p.Models, p.Providers, p.Tools, p.Policies, p.PolicyVersions) != "[small] [one] [t] [pol_1] [sha256:p]" || len(p.Open) != 0 {
		t.Errorf("%+v", p)
	}
	if want := "aid:session/" + w.org + "/ag_1/s/1"; st.Subject[0].Name != want {
		t.Errorf("the subject is %s", st.Subject[0].Name)
	}

	// The same id again is the next generation. A late decision from before the end is a revision.
	w.append(w.clock(), w.decided("s", "r5", w.clock()), settled("s", "r5", w.clock()))
	w.later(11 * time.Second)
	w.append(w.clock(), w.decided("s", "late", at), settled("s", "late", w.clock()))
	for range 3 {
		w.later(11 * time.Second)
		w.round()
	}
	if st = w.attested("s", 1); st.Predicate.Revision != 2 || st.Predicate.Replaces != 1 || st.Predicate.Entries != 6 || !st.Predicate.Complete {
		t.Errorf("the revision: %+v", st.Predicate)
	}
	if got := w.attested("s", 2); got != nil {
		t.Errorf("an open generation is attested: %+v", got.Predicate)
	}
	if again := w.close("s"); again.Generation != 2 {
		t.Errorf("%+v", again)
	}
	w.append(w.clock().Add(time.Millisecond))
	w.later(11 * time.Second)
	w.append(w.clock())
	w.round()
	if st = w.attested("s", 2); st == nil || st.Predicate.Entries != 2 || st.Predicate.Requests != 1 {
		t.Errorf("the next generation: %+v", st)
	}
}

// TestSessionGrace: after the grace period an attestation says what is open. It is complete later.
func TestSessionGrace(t *testing.T) {
	w := newSessionWorld(t)
	at := w.clock()
	w.append(at, w.decided("s", "r1", at))
	w.close("s")
	w.later(2 * time.Minute)
	w.round()
	st := w.attested("s", 1)
	if st == nil || st.Predicate.Complete || !strings.Contains(strings.Join(st.Predicate.Open, "\n"), "request r1 has no completion") ||
		!strings.Contains(strings.Join(st.Predicate.Open, "\n"), "writer w_1 may have records") {
		t.Fatalf("%+v", st)
	}
	w.append(w.clock(), settled("s", "r1", w.clock()))
	for range 3 {
		w.later(time.Minute)
		w.append(w.clock())
		w.round()
	}
	if st = w.attested("s", 1); !st.Predicate.Complete || st.Predicate.Revision != 2 {
		t.Errorf("%+v", st.Predicate)
	}
}

// TestSessionUnreadable: a session whose entries are gone does not stop the others.
func TestSessionUnreadable(t *testing.T) {
	w := newSessionWorld(t)
	at := w.clock()
	w.append(at, w.decided("gone", "r1", at), settled("gone", "r1", at), w.decided("s", "r2", at), settled("s", "r2", at))
	w.round()
	w.close("gone")
	w.close("s")
	conn := superuser(t, w.db)
	for _, sql := range []string{`SET session_replication_role = replica`, `DELETE FROM audit_entries WHERE org_id = '` + w.org + `' AND seq = 1`} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	w.later(11 * time.Second)
	w.append(w.clock())
	w.later(time.Minute)
	if err := w.sessions.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w.attested("s", 1) == nil || w.attested("gone", 1) != nil {
		t.Errorf("the other session: %v; the one without its entries: %v", w.attested("s", 1), w.attested("gone", 1))
	}
}

// keyAway is a signing key that is not available.
type keyAway struct {
	evidence.Signer
	away bool
}

func (k *keyAway) Sign(ctx context.Context, m []byte) ([]byte, error) {
	if k.away {
		return nil, errors.New("the KMS is away")
	}
	return k.Signer.Sign(ctx, m)
}

// TestSessionIdle: a session without requests is closed, and its statement waits for a key that
// is not available.
func TestSessionIdle(t *testing.T) {
	w := newSessionWorld(t)
	key := &keyAway{w.signers[0], true}
	w.restart(key)
	at := w.clock()
	w.append(at, w.decided("s", "r1", at), settled("s", "r1", at))
	w.round()
	w.later(audit.SessionIdle + time.Second)
	w.append(w.clock())
	w.round()
	w.later(11 * time.Second)
	w.append(w.clock().Add(-time.Second))
	if err := w.notary.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.sessions.Round(t.Context()); err == nil || !strings.Contains(err.Error(), "the KMS is away") {
		t.Errorf("the key is away: %v", err)
	}
	if st := w.attested("s", 1); st != nil {
		t.Error("it is signed while the key is away")
	}
	key.away = false
	w.later(2 * time.Second)
	w.round()
	if st := w.attested("s", 1); st == nil || st.Predicate.ClosedBy != audit.ClosedIdle || !st.Predicate.Complete {
		t.Errorf("%+v", st)
	}
	found := 0
	for _, e := range entries(t, w.db, w.org) {
		if e.Kind == "session.closed" {
			found++
		}
	}
	if found != 1 {
		t.Errorf("%d entries session.closed", found)
	}
}
