package api_test

import (
	"context"
	"encoding/base64"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/audit/signer"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/store/storetest"
)

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// evidenceKeys are a P-256 and an Ed25519 key that sign.
func evidenceKeys(t *testing.T) (signers []evidence.Signer, set evidence.KeySet) {
	t.Helper()
	for _, kind := range []signer.Kind{signer.P256, signer.Ed25519} {
		path := filepath.Join(t.TempDir(), "key.pem")
		if _, err := signer.Create(path, kind); err != nil {
			t.Fatal(err)
		}
		s, err := signer.Open(t.Context(), "file:"+path, os.ReadFile)
		if err != nil {
			t.Fatal(err)
		}
		k, err := evidence.NewKey(s.Public())
		if err != nil {
			t.Fatal(err)
		}
		signers, set.Keys = append(signers, s), append(set.Keys, k)
	}
	return signers, set
}

// notary signs checkpoints of the world's database.
func (w *world) notary(signers []evidence.Signer, set evidence.KeySet) *audit.Notary {
	w.t.Helper()
	guard, err := audit.NewGuard(audit.GuardConfig{DB: w.db.Pool(), LogName: "aid-test", Keys: func(context.Context) (evidence.KeySet, error) { return set, nil }})
	if err != nil {
		w.t.Fatal(err)
	}
	n, err := audit.NewNotary(audit.NotaryConfig{DB: w.db, Pool: w.db.Pool(), LogName: "aid-test", Guard: guard, Signers: func() []evidence.Signer { return signers }})
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// writer records entries as a sidecar, and ships them to the world's chain.
func (w *world) writer() (_ *audit.Writer, ship func()) {
	w.t.Helper()
	wr, err := audit.OpenWriter(audit.WriterConfig{Dir: w.t.TempDir(), MinFreeBytes: -1})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- wr.Run(ctx) }()
	w.t.Cleanup(func() { cancel(); <-done; _ = wr.Close() })
	return wr, func() {
		w.t.Helper()
		ctx, stop := context.WithCancel(context.Background())
		shipped := make(chan error, 1)
		go func() { shipped <- wr.Ship(ctx, shipper{w.chain}) }()
		wait, over := context.WithTimeout(context.Background(), 30*time.Second)
		defer over()
		err := wr.WaitShipped(wait)
		stop()
		if e := <-shipped; err != nil || e != nil {
			w.t.Fatal(err, e)
		}
	}
}

type shipper struct{ c *audit.Chain }

func (s shipper) Send(ctx context.Context, b audit.Batch) (uint64, error) {
	b.Node = "node_1"
	return s.c.Append(ctx, b)
}

// agentKey makes an agent, and a key for it.
func (w *world) agentKey(name string) (agent, key string) {
	w.t.Helper()
	agent = w.want(201, "POST", "/v1/agents", `{"name":"`+name+`"}`).field("id").(string)
	return agent, w.want(201, "POST", "/v1/agents/"+agent+"/keys", `{"name":"k","scopes":["*"]}`).field("key").(string)
}

// TestProof redeems receipts: of an entry under a checkpoint, of one that is not shipped, of one
// that is missing. An agent's key redeems its own receipts only, and learns nothing of others.
func TestProof(t *testing.T) {
	w := serve(t)
	signers, set := evidenceKeys(t)
	notary := w.notary(signers, set)
	mine, key := w.agentKey("mine")
	theirs, _ := w.agentKey("theirs")
	other := w.orgKey(storetest.Org(t, w.db), identity.Admin)
	wr, ship := w.writer()
	record := func(agent, request string) audit.Receipt {
		t.Helper()
		r, err := wr.Append(t.Context(), w.org, audit.Decided{RequestID: request, AgentID: agent, Effect: "deny", Time: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		return wr.Sign(w.org, r)
	}
	path := func(r audit.Receipt) string { return "/v1/audit/proof?receipt=" + url.QueryEscape(r.String()) }
	own, foreign := record(mine, "r1"), record(theirs, "r2")

	// Before it is shipped.
	if got := w.call(key, "GET", path(own), ""); got.status != 200 || got.field("status") != "pending" || got.field("reason") != "not_shipped" || got.field("signature") != "unknown" {
		t.Errorf("not shipped: %d %s", got.status, got.body)
	}
	ship()
	if got := w.call(key, "GET", path(own), ""); got.field("status") != "pending" || got.field("reason") != "no_checkpoint" || got.field("signature") != "valid" {
		t.Errorf("without a checkpoint: %s", got.body)
	}
	if err := notary.Round(t.Context()); err != nil {
		t.Fatal(err)
	}

	for name, k := range map[string]string{"the agent's key": key, "an auditor's key": w.keys[identity.Auditor]} {
		got := w.call(k, "GET", path(own), "")
		if got.status != 200 || got.field("status") != "included" || got.field("request_id") != "r1" {
			t.Fatalf("%s: %d %s", name, got.status, got.body)
		}
		checkInclusion(t, w.org, set, got, own.Leaf)
	}
	seq := w.call(key, "GET", path(own), "").field("seq").(float64)
	if got := w.want(200, "GET", "/v1/audit/proof?seq="+itoa(int64(seq)), ""); got.field("status") != "included" {
		t.Errorf("by number: %s", got.body)
	}

	lost := own
	lost.Leaf[0]++
	lost = wr.Sign(w.org, lost)
	made := lost
	made.Sig[0]++
	unsigned := own
	unsigned.Signed, unsigned.Sig = false, [64]byte{}
	if got := w.call(key, "GET", path(unsigned), ""); got.field("status") != "included" || got.field("signature") != "absent" {
		t.Errorf("a receipt of three parts: %d %s", got.status, got.body)
	}
	unsigned.Leaf[0]++
	if got := w.call(key, "GET", path(lost), ""); got.status != 200 || got.field("status") != "missing" {
		t.Errorf("missing: %d %s", got.status, got.body)
	}
	if !strings.Contains(w.logs.String(), "lacks the entry of a receipt") {
		t.Error("a missing receipt is not logged")
	}

	// Nothing tells apart what is not the agent's and what does not exist.
	foreignSeq := w.want(200, "GET", path(foreign), "").field("seq").(float64)
	refused := map[string]string{
		"another agent's receipt": path(foreign), "another agent's entry": "/v1/audit/proof?seq=" + itoa(int64(foreignSeq)), "no entry": "/v1/audit/proof?seq=4000000",
		"a made-up receipt": path(made), "a made-up receipt without a signature": path(unsigned),
	}
	body := ""
	for name, p := range refused {
		got := w.call(key, "GET", p, "")
		text := strings.Replace(got.body, got.header.Get("X-Request-Id"), "", 1)
		if got.status != 404 || body != "" && text != body {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
		body = text
	}
	if got := w.call(other, "GET", path(own), ""); got.field("status") == "included" || strings.Contains(got.body, "r1") {
		t.Errorf("another org: %d %s", got.status, got.body)
	}
	w.want(422, "GET", "/v1/audit/proof", "")
	w.want(422, "GET", "/v1/audit/proof?seq=1&receipt=x", "")
	w.want(422, "GET", "/v1/audit/proof?receipt=x", "")
	if got := w.call(key, "GET", "/v1/agents", ""); got.status != 401 {
		t.Errorf("an agent's key lists agents: %d", got.status)
	}
	w.want(204, "DELETE", "/v1/agents/"+mine, "")
	if got := w.call(key, "GET", path(own), ""); got.status != 401 {
		t.Errorf("the key of a deleted agent: %d %s", got.status, got.body)
	}
}

// checkInclusion verifies a proof as an auditor with the public keys does.
func checkInclusion(t *testing.T, org string, set evidence.KeySet, got reply, leaf [32]byte) {
	t.Helper()
	var proof tlog.RecordProof
	for _, h := range got.field("path").([]any) {
		b, err := base64.StdEncoding.DecodeString(h.(string))
		if err != nil {
			t.Fatal(err)
		}
		proof = append(proof, tlog.Hash(b))
	}
	c, err := set.Open([]byte(got.field("checkpoint").(string)), evidence.OrgOrigin("aid-test", org, 1))
	if err != nil {
		t.Fatal(err)
	}
	link, err := base64.StdEncoding.DecodeString(got.field("link").(string))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(string(link), string(leaf[:])) {
		t.Error("the link does not have the receipt's leaf")
	}
	if err := tlog.CheckRecord(proof, c.Size, c.Root, int64(got.field("leaf_index").(float64)), tlog.RecordHash(link)); err != nil {
		t.Error(err)
	}
}

// TestConsistency proves that a checkpoint continues an older one.
func TestConsistency(t *testing.T) {
	w := serve(t)
	signers, set := evidenceKeys(t)
	notary := w.notary(signers, set)
	w.want(404, "GET", "/v1/audit/consistency?old=0&size=0", "")
	w.agentKey("a")
	if err := notary.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	open := func(got reply, name string) evidence.Checkpoint {
		t.Helper()
		c, err := set.Open([]byte(got.field(name).(string)), evidence.OrgOrigin("aid-test", w.org, 1))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	newest := w.want(200, "GET", "/v1/audit/proof?seq=1", "")
	end := open(newest, "checkpoint")
	for old := int64(1); old <= end.Size; old++ {
		got := w.want(200, "GET", "/v1/audit/consistency?old="+itoa(old)+"&size="+itoa(end.Size), "")
		if open(got, "checkpoint") != end {
			t.Errorf("%s", got.body)
		}
		if got.field("old_checkpoint") == nil != (old != end.Size) {
			t.Errorf("checkpoint %d: %s", old, got.body)
		}
	}
	w.want(404, "GET", "/v1/audit/consistency?old=1&size="+itoa(end.Size+1), "")
	w.want(404, "GET", "/v1/audit/consistency?old=1&size=1&incarnation=2", "")
	w.want(422, "GET", "/v1/audit/consistency?old=2&size=1", "")
}
