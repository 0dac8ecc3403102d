package api_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/api"
	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/audit/signer"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/store/storetest"
)

func newKey(t *testing.T, kind signer.Kind) evidence.Signer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key.pem")
	if _, err := signer.Create(path, kind); err != nil {
		t.Fatal(err)
	}
	key, err := signer.Open(context.Background(), "file:"+path, os.ReadFile)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sign makes a checkpoint of every org, and returns the public keys.
func (w *world) sign(witness evidence.Signer) (keys evidence.KeySet) {
	w.t.Helper()
	notary, err := audit.NewNotary(audit.NotaryConfig{
		DB: w.db, Pool: w.db.Pool(), LogName: "aid-0011223344556677", Signers: func() []evidence.Signer { return []evidence.Signer{w.signer, witness} },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := notary.Round(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	for _, s := range []evidence.Signer{w.signer, witness} {
		k, err := evidence.NewKey(s.Public())
		if err != nil {
			w.t.Fatal(err)
		}
		keys.Keys = append(keys.Keys, k)
	}
	return keys
}

func TestExports(t *testing.T) {
	w := serve(t)
	unsigned, err := api.New(api.Config{DB: w.db, Chain: w.chain, Sealer: w.sealer})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		w.record(audit.Decided{RequestID: "req_" + string(rune('a'+i)), AgentID: "ag_1", Effect: "allow", Time: time.Now()})
	}
	signed := w.server
	w.server = unsigned
	if r := w.want(503, "POST", "/v1/audit/exports", `{}`); r.field("error", "code") != "signing_unavailable" {
		t.Error(r.body)
	}
	w.server = signed
	if r := w.want(409, "POST", "/v1/audit/exports", `{}`); r.field("error", "code") != "no_checkpoint" {
		t.Error(r.body)
	}
	keys := w.sign(newKey(t, signer.Ed25519))
	w.want(409, "POST", "/v1/audit/exports", `{"since":"2026-02-01T00:00:00Z","until":"2026-01-01T00:00:00Z"}`)
	w.want(404, "POST", "/v1/audit/exports", `{"after":"exp_none"}`)
	w.want(404, "GET", "/v1/audit/exports/exp_none", "")
	w.want(404, "GET", "/v1/audit/exports/exp_none/file", "")
	order := w.want(201, "POST", "/v1/audit/exports", `{"agent_id":"ag_1","newest_entry":true}`)
	path := order.header.Get("Location")
	if order.field("state") != "making" || path != "/v1/audit/exports/"+order.field("id").(string) || order.field("checkpoint") == "" {
		t.Fatal(order.body)
	}
	w.want(409, "GET", path+"/file", "")
	// The order is in the audit log, so the newest checkpoint does not cover the newest entry.
	if r := w.want(409, "POST", "/v1/audit/exports", `{"newest_entry":true}`); r.field("error", "code") != "checkpoint_behind" || r.header.Get("Retry-After") == "" {
		t.Error(r.body)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- w.server.Run(ctx) }()
	for w.want(200, "GET", path, "").field("state") != "complete" {
		if r := w.want(200, "GET", path, ""); r.field("state") == "failed" {
			t.Fatal(r.body)
		}
	}
	// Over a real connection, since the file is streamed.
	server := httptest.NewServer(w.server)
	defer server.Close()
	get := func(path, rng string) (*http.Response, []byte) {
		t.Helper()
		req, err := http.NewRequest("GET", server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+w.keys[identity.Auditor])
		if rng != "" {
			req.Header.Set("Range", rng)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, b
	}
	resp, file := get(path+"/file", "")
	if resp.StatusCode != 200 || resp.ContentLength != int64(len(file)) || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	v := evidence.VerifyChain(bytes.NewReader(file), evidence.ChainOptions{Keys: keys, Held: []evidence.HeldNote{{From: "kept", Note: []byte(order.field("checkpoint").(string))}}})
	if v.Exit != evidence.Intact {
		t.Errorf("%+v", v)
	}
	if resp, part := get(path+"/file", "bytes=1000-"); resp.StatusCode != 206 || !bytes.Equal(part, file[1000:]) || !strings.HasPrefix(resp.Header.Get("Content-Range"), "bytes 1000-") {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	if resp, _ := get(path+"/file", "bytes=100000000-"); resp.StatusCode != 416 {
		t.Errorf("%d", resp.StatusCode)
	}
	if resp, b := get(path+"/file", "bytes=0-5,7-9"); resp.StatusCode != 200 || !bytes.Equal(b, file) {
		t.Errorf("%d", resp.StatusCode)
	}
	if r := w.want(201, "POST", "/v1/audit/exports", `{"agent_id":"ag_1"}`); r.field("id") != order.field("id") || r.field("state") != "complete" {
		t.Error(r.body)
	}
	w.want(201, "POST", "/v1/audit/exports", `{"agent_id":"ag_1","after":"`+order.field("id").(string)+`"}`)
	if r := w.want(200, "GET", "/v1/audit/exports?limit=1", ""); r.field("has_more") != true {
		t.Error(r.body)
	}
	// Another org has none of it.
	other := w.orgKey(storetest.Org(t, w.db), identity.Admin)
	for _, p := range []string{path, path + "/file"} {
		if r := w.call(other, "GET", p, ""); r.status != 404 {
			t.Errorf("%s of another org: %d", p, r.status)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestForensicsReport(t *testing.T) {
	w := serve(t)
	hostile := `<script>alert(1)</script>`
	w.record(audit.Decided{RequestID: "req_1", AgentID: "ag_1", AgentName: hostile, Operation: "chat.completions", Model: hostile, Effect: "deny",
		Reasons: []audit.Reason{{Code: "model", Message: hostile + `"'`}}, PolicyIDs: []string{"pol_1"}, SessionID: "s 1", Time: time.Now()})
	if r := w.want(409, "POST", "/v1/forensics/reports", `{"request_id":"req_1"}`); r.field("error", "code") != "checkpoint_behind" {
		t.Error(r.body)
	}
	keys := w.sign(newKey(t, signer.Ed25519))
	w.want(404, "POST", "/v1/forensics/reports", `{"request_id":"req_none"}`)
	for _, none := range []string{`{}`, `{"request_id":"req_1","correlation_id":"b"}`, `{"session_id":"s 1"}`, `{"request_id":"req_1","agent_id":"ag_2"}`, `{"agent_id":"ag_1"}`} {
		w.want(404, "POST", "/v1/forensics/reports", none)
	}
	w.want(422, "POST", "/v1/forensics/reports", `{"request_id":"req_1","format":"pdf"}`)
	for _, body := range []string{`{"request_id":"req_1"}`, `{"correlation_id":"req_1"}`, `{"session_id":"s 1","agent_id":"ag_1"}`} {
		r := w.want(201, "POST", "/v1/forensics/reports", body)
		v := evidence.VerifyReport([]byte(r.body), keys)
		if v.Exit != evidence.Intact || r.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %+v\n%s", body, v, r.body)
		}
		if f := os.Getenv("AID_KEEP_REPORT"); f != "" {
			set, err := keys.JWKS()
			if err != nil {
				t.Fatal(err)
			}
			os.WriteFile(f, []byte(r.body), 0o600)
			os.WriteFile(f+".jwks", set, 0o600)
		}
		changed := strings.Replace(r.body, `"payload":"e`, `"payload":"f`, 1)
		if v := evidence.VerifyReport([]byte(changed), keys); v.Exit != evidence.Tampered {
			t.Errorf("changed: %+v", v)
		}
	}
	page := w.want(201, "POST", "/v1/forensics/reports", `{"request_id":"req_1","format":"html"}`)
	if strings.Contains(page.body, "<script") || !strings.Contains(page.body, "&lt;script&gt;") || page.header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Errorf("%s\n%v", page.body, page.header)
	}
	if csp := page.header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "style-src 'sha256-") || strings.Contains(csp, "unsafe") {
		t.Error(csp)
	}
}
