package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/e2e"
)

// entry is one entry of the audit log, as it is stored.
type entry struct {
	Seq       int64
	Writer    string
	WriterSeq int64
	Kind      string
	RequestID string
	AgentID   string
	Raw       []byte

	Effect       string
	Status       int
	Outcome      string
	Method       string
	Host         string
	Path         string
	ClientIP     string `json:"client_ip"`
	Model        string
	BodyDigest   string `json:"body_digest"`
	RequestBytes int64  `json:"request_bytes"`
	Usage        struct {
		InputTokens  int64 `json:"input_tokens"`
		OutputTokens int64 `json:"output_tokens"`
		CachedTokens int64 `json:"cached_tokens"`
		Reasoning    int64 `json:"reasoning_tokens"`
		Source       string
	}
}

// record reads the whole audit log directly from the database.
func record(t testing.TB, up *e2e.Up) []entry {
	t.Helper()
	entries, err := readRecord(up)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func readRecord(up *e2e.Up) ([]entry, error) {
	url, err := os.ReadFile(filepath.Join(up.Home, "run", "postgres.url"))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, strings.TrimSpace(string(url)))
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "SELECT set_config('aid.org', 'org_default', false)"); err != nil {
		return nil, err
	}
	rows, err := conn.Query(ctx, "SELECT seq, writer, writer_seq, kind, request_id, agent_id, entry FROM audit_entries WHERE org_id = 'org_default' ORDER BY seq")
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (e entry, err error) {
		if err := row.Scan(&e.Seq, &e.Writer, &e.WriterSeq, &e.Kind, &e.RequestID, &e.AgentID, &e.Raw); err != nil {
			return e, err
		}
		return e, json.Unmarshal(e.Raw, &e)
	})
}

// settled waits until every exchange is complete and is in the audit log, which it returns.
func settled(t testing.TB, up *e2e.Up) []entry {
	t.Helper()
	var all []entry
	e2e.Eventually(t, 60*time.Second, func() (err error) {
		for _, metric := range []string{"aid_extproc_live_exchanges", "aid_audit_unsettled", "aid_audit_lag_records"} {
			if n := up.Metric(t, metric); n > 0 {
				return fmt.Errorf("%s is %v", metric, n)
			}
		}
		if all, err = readRecord(up); err != nil {
			return err
		}
		open := map[string]bool{}
		for _, e := range all {
			switch e.Kind {
			case "request.decided":
				open[e.RequestID] = true
			case "request.settled":
				delete(open, e.RequestID)
			}
		}
		if len(open) > 0 {
			return fmt.Errorf("%d exchanges are decided and not settled", len(open))
		}
		return nil
	})
	return all
}

// check verifies the audit log as an auditor does. There is no gap and no duplicate in the
// sequences of the org and of each writer. Each exchange has one decision and one
// completion. The chain is valid.
func check(t testing.TB, up *e2e.Up, entries []entry) {
	t.Helper()
	type place struct {
		writer string
		seq    int64
	}
	places, first, last := map[place]bool{}, map[string]entry{}, map[string]int64{}
	decided, settled := map[string]int{}, map[string]int{}
	for i, e := range entries {
		if e.Seq != int64(i)+1 {
			t.Errorf("entry %d of the org has the sequence number %d", i+1, e.Seq)
		}
		if places[place{e.Writer, e.WriterSeq}] {
			t.Errorf("%s/%d is there twice", e.Writer, e.WriterSeq)
		}
		places[place{e.Writer, e.WriterSeq}] = true
		last[e.Writer] = max(last[e.Writer], e.WriterSeq)
		if f, ok := first[e.Writer]; !ok || e.WriterSeq < f.WriterSeq {
			first[e.Writer] = e
		}
		switch e.Kind {
		case "request.decided":
			decided[e.RequestID]++
		case "request.settled":
			settled[e.RequestID]++
		}
	}
	delete(last, "control") // its numbers are the org's
	for writer, n := range last {
		// A writer's numbers continue after those in its folder, and its first entry is its
		// start.
		if first[writer].Kind != "writer.started" {
			t.Errorf("the first record of %s is %s/%d, a %s", writer, writer, first[writer].WriterSeq, first[writer].Kind)
		}
		for seq := first[writer].WriterSeq; seq <= n; seq++ {
			if !places[place{writer, seq}] {
				t.Errorf("%s/%d is missing", writer, seq)
			}
		}
	}
	for id, n := range decided {
		if n != 1 || settled[id] != 1 {
			t.Errorf("exchange %s is decided %d times and settled %d times", id, n, settled[id])
		}
	}
	for id := range settled {
		if decided[id] == 0 {
			t.Errorf("exchange %s is settled and was never decided", id)
		}
	}
	out, err := exec.Command(e2e.Binary(t), "audit", "verify", "--home", up.Home).CombinedOutput()
	if err != nil {
		t.Errorf("aid audit verify: %v\n%s", err, out)
	} else if !strings.Contains(string(out), fmt.Sprint(len(entries))) {
		t.Errorf("aid audit verify does not say how far it looked (%d): %s", len(entries), out)
	}
}

// inspected checks that everything the provider received had been decided, allowed and
// recorded.
func inspected(t testing.TB, entries []entry, p *e2e.Provider) {
	t.Helper()
	allowed := map[string]bool{}
	for _, e := range entries {
		if e.Kind == "request.decided" && e.Effect == "allow" {
			allowed[e.RequestID] = true
		}
	}
	for _, r := range p.Requests() {
		if id := r.Header.Get("X-Request-Id"); !allowed[id] {
			t.Errorf("the provider saw %s %s (%q), of which the record says nothing", r.Method, r.Path, id)
		}
	}
}

// TestClientAddress: the audit log has the address of the connection, for every address
// that the client declares.
func TestClientAddress(t *testing.T) {
	up := e2e.Shared(t)
	provider := e2e.Record(t, nil)
	up.Provider(t, provider.Body("address", "address-model"), "sk-address-credential-0001")
	_, key := up.Key(t, up.Agent(t, `{"name":"address","allowed_models":["address-model"]}`), `{"name":"k","scopes":["chat:completions"]}`)
	ids := map[string]bool{}
	for _, lines := range [][]string{nil, {"8.8.8.8"}, {"8.8.8.8, 9.9.9.9"}, {"8.8.8.8", "9.9.9.9"}, {"10.0.0.1, "}} {
		req, err := http.NewRequest(http.MethodPost, up.Gateway+"/v1/chat/completions", strings.NewReader(`{"model":"address-model","messages":[{"role":"user","content":"hi"}]}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + key}, "X-Forwarded-For": lines, "X-Real-Ip": {"8.8.8.8"}, "Forwarded": {"for=8.8.8.8"}}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("with x-forwarded-for %q: %s", lines, resp.Status)
		}
		ids[resp.Header.Get("X-Request-Id")] = true
	}
	for _, e := range settled(t, up) {
		if e.Kind == "request.decided" && ids[e.RequestID] {
			delete(ids, e.RequestID)
			if e.ClientIP != "127.0.0.1" {
				t.Errorf("the record says %q", e.ClientIP)
			}
		}
	}
	if len(ids) > 0 {
		t.Errorf("%d requests are not in the record", len(ids))
	}
	if all := string(provider.Bytes()); strings.Contains(all, "8.8.8.8") || strings.Contains(all, "127.0.0.1, ") {
		t.Error("the provider is told of the client's addresses")
	}
}
