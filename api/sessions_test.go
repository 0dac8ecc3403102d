package api_test

import (
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/identity"
)

// TestSessions: an agent's key closes its own sessions only. The attestation comes once the
// session is closed. An id that two agents use needs the agent.
func TestSessions(t *testing.T) {
	w := serve(t)
	signers, set := evidenceKeys(t)
	notary := w.notary(signers, set)
	sessions, err := audit.NewSessions(audit.SessionsConfig{DB: w.db, Pool: w.db.Pool(), Chain: w.chain, Signer: signers[0]})
	if err != nil {
		t.Fatal(err)
	}
	one, key := w.agentKey("one")
	two, other := w.agentKey("two")
	wr, ship := w.writer()
	record := func(agent, session, request string) {
		t.Helper()
		now := time.Now()
		if _, err := wr.Append(t.Context(), w.org, audit.Decided{Time: now, RequestID: request, AgentID: agent, SessionID: session, Effect: "allow"}); err != nil {
			t.Fatal(err)
		}
		wr.Enqueue(w.org, audit.Settled{Time: now, RequestID: request, AgentID: agent, SessionID: session, Outcome: "completed", Usage: audit.Usage{Source: "absent"}})
	}
	record(one, "sess_8f2a4c71b9", "r1")
	record(two, "shared", "r2")
	record(one, "shared", "r3")
	ship()

	if got := w.call(w.keys[identity.Admin], "POST", "/v1/sessions/none/close", ""); got.status != 404 {
		t.Errorf("no session: %d %s", got.status, got.body)
	}
	if got := w.call(other, "POST", "/v1/sessions/sess_8f2a4c71b9/close", ""); got.status != 404 {
		t.Errorf("another agent's session: %d %s", got.status, got.body)
	}
	if got := w.call(other, "POST", "/v1/sessions/sess_8f2a4c71b9/close?agent_id="+one, ""); got.status != 404 {
		t.Errorf("another agent's session by its agent: %d %s", got.status, got.body)
	}
	if got := w.call(w.keys[identity.Auditor], "POST", "/v1/sessions/sess_8f2a4c71b9/close", ""); got.status != 403 {
		t.Errorf("an auditor closes: %d", got.status)
	}
	if got := w.want(409, "GET", "/v1/attestations/sess_8f2a4c71b9", ""); got.field("error", "code") != "session_open" {
		t.Errorf("%s", got.body)
	}
	closed := w.call(key, "POST", "/v1/sessions/sess_8f2a4c71b9/close", "")
	if closed.status != 200 || closed.field("status") != "closed" || closed.field("agent_id") != one || closed.field("generation") != 1.0 {
		t.Fatalf("%d %s", closed.status, closed.body)
	}
	if again := w.call(key, "POST", "/v1/sessions/sess_8f2a4c71b9/close", ""); again.status != 200 || again.field("closed_at") != closed.field("closed_at") {
		t.Errorf("closed again: %d %s", again.status, again.body)
	}
	for _, path := range []string{"/v1/sessions/shared/close", "/v1/attestations/shared"} {
		method := "POST"
		if path == "/v1/attestations/shared" {
			method = "GET"
		}
		if got := w.want(409, method, path, ""); got.field("error", "code") != "ambiguous_session" {
			t.Errorf("%s: %s", path, got.body)
		}
	}
	w.want(200, "POST", "/v1/sessions/shared/close?agent_id="+two, "")

	list := w.want(200, "GET", "/v1/sessions?limit=2", "")
	if rows := list.field("data").([]any); len(rows) != 2 || list.field("has_more") != true {
		t.Errorf("%s", list.body)
	}
	w.want(200, "GET", "/v1/sessions?after=1999178540817886", "") // beyond 32 bits
	rest := w.want(200, "GET", "/v1/sessions?limit=2&after="+list.field("next").(string), "")
	if rows := rest.field("data").([]any); len(rows) != 1 || rest.field("has_more") != false {
		t.Errorf("%s", rest.body)
	}
	if rows := w.want(200, "GET", "/v1/sessions?status=open", "").field("data").([]any); len(rows) != 1 {
		t.Errorf("%v", rows)
	}

	// The sidecar's watermark passes the end about a second later.
	deadline := time.Now().Add(20 * time.Second)
	for {
		ship()
		if _, err := (shipper{w.chain}).Send(t.Context(), audit.Batch{Org: w.org, Writer: wr.ID(), Mark: &audit.Mark{Time: time.Now()}}); err != nil {
			t.Fatal(err)
		}
		if err := notary.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := sessions.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := w.call(w.keys[identity.Auditor], "GET", "/v1/attestations/sess_8f2a4c71b9", "")
		if got.status == 200 {
			if _, _, err := set.OpenEnvelope([]byte(got.body), evidence.InTotoType); err != nil {
				t.Errorf("%v: %s", err, got.body)
			}
			break
		}
		if got.field("error", "code") != "session_open" || time.Now().After(deadline) {
			t.Fatalf("%d %s", got.status, got.body)
		}
		time.Sleep(100 * time.Millisecond)
	}
	w.want(404, "GET", "/v1/attestations/sess_8f2a4c71b9?generation=2", "")
	w.want(404, "GET", "/v1/attestations/sess_8f2a4c71b9?revision=7", "")
	w.want(200, "GET", "/v1/attestations/sess_8f2a4c71b9?generation=1&revision=1", "")
}
