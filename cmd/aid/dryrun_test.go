package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/api"
	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// The command evaluates the entries of a real control plane, in its response and as a job.
func TestPolicyDryRun(t *testing.T) {
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	sealer, err := provider.NewSealer([]string{"cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := audit.ParseKeys([]string{"1 " + strings.Repeat("ab", 32)})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := audit.NewChain(audit.ChainConfig{DB: db, Keys: keys, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	server, err := api.New(api.Config{DB: db, Chain: chain, Sealer: sealer, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	control := httptest.NewServer(server)
	t.Cleanup(control.Close)

	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	secret, hash, err := identity.Mint(identity.OrgKey, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.InOrg(t.Context(), org, func(tx pgx.Tx) error {
		return identity.InsertOrgKey(t.Context(), tx, identity.OrgKeyRecord{ID: "okey_1", OrgID: org, Name: "k", Role: identity.Admin, Hash: hash, CreatedAt: time.Now()})
	}); err != nil {
		t.Fatal(err)
	}
	none, err := policy.Compile(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	start, recorded := time.Now().Add(-time.Hour).UTC().Truncate(time.Second), uint64(0)
	record := func(n int) {
		for n > 0 {
			b := audit.Batch{Org: org, Node: "node_1", Writer: "w_1"}
			for range min(n, 1000) {
				recorded++
				e := audit.Stamp(audit.Decided{
					Time: start.Add(time.Duration(recorded) * time.Millisecond), RequestID: fmt.Sprintf("req-%d", recorded), AgentID: "ag_1", AgentName: "bot", KeyID: "key_1",
					Mode: "gateway", Method: "POST", Path: "/v1/chat/completions", Operation: "chat.completions", Model: []string{"small", "big"}[recorded%2], Provider: "one",
					Effect: "allow", PolicyVersion: none.Version(), InputVersion: 1, AgentAllowedModels: []string{"*"}, KeyScopes: []string{"*"},
				}, org, "w_1", time.Now())
				b.Records = append(b.Records, audit.Record{Seq: recorded, Prev: recorded - 1, Org: org, Entry: e.Encode()})
				n--
			}
			if _, err := chain.Append(t.Context(), b); err != nil {
				t.Fatal(err)
			}
		}
	}
	record(300)

	key := file("org.key", secret)
	candidate := file("no-big.json", `{"name":"no-big","effect":"deny","conditions":{"request.model":"big"}}`)
	file("endpoints.json", `{"api":"`+control.URL+`"}`)
	try := func(args string, exit int, want ...string) string {
		t.Helper()
		var out bytes.Buffer
		got := run(t.Context(), append([]string{"policy", "dry-run"}, strings.Fields(args)...), strings.NewReader(`{"name":"stdin","effect":"deny","conditions":{}}`), &out, &out)
		if got != exit {
			t.Errorf("aid policy dry-run %s: exit %d, want %d\n%s", args, got, exit, out.String())
		}
		for _, w := range want {
			if !strings.Contains(out.String(), w) {
				t.Errorf("aid policy dry-run %s: no %q in\n%s", args, w, out.String())
			}
		}
		if strings.Contains(out.String(), secret) {
			t.Error("the output has the key")
		}
		return out.String()
	}
	apart := "--url " + control.URL + " --org-key-file " + key + " "
	table := try(apart+"--policy "+candidate+" --rows 150", 0, "as a new policy", "AGENT  REQUESTS  ALLOW  DENY  WOULD CHANGE", "bot    300       150    150   150", "all    300       150    150   150", "Not known:")
	if n := strings.Count(table, "chat.completions  big    allow  deny  policy_denied"); n != 150 {
		t.Errorf("%d rows:\n%s", n, table)
	}
	try(apart+"--policy "+candidate, 0, "20 of 150 requests")
	try("--home "+dir+" --policy - --rows 0 --window "+start.Format(time.RFC3339)+"/"+start.Add(time.Hour).Format(time.RFC3339), 0, "all    300       0      300   300")
	try(apart+"--policy "+candidate+" --fail-on-change", 3, "150 requests would change")
	var r api.DryRun
	if err := json.Unmarshal([]byte(try(apart+"--json --rows 2 --policy "+candidate, 0)), &r); err != nil || len(r.Data) != 2 || r.Counts.WouldChange != 150 || !r.HasMore {
		t.Errorf("%v %+v", err, r)
	}

	for args, want := range map[string]string{
		apart: "--policy",
		apart + "--policy " + file("bad.json", `{"name":"x","effect":"deny","conditions":{"agent.teem":"a"}}`): `did you mean "agent.team"?`,
		apart + "--policy " + candidate + " --window yesterday":                                                "window",
		apart + "--policy " + candidate + " --replaces pol_none":                                               "pol_none",
		apart + "--policy " + candidate + " --rows -1":                                                         "--rows",
		"--home " + filepath.Join(dir, "none") + " --policy " + candidate:                                      "--url",
		"--url ftp://x --org-key-file " + key + " --policy " + candidate:                                       "--url",
		"--url " + control.URL + " --org-key-file " + filepath.Join(dir, "none") + " --policy " + candidate:    "--org-key-file",
	} {
		try(args, 2, want)
	}
	try("--url http://127.0.0.1:1 --org-key-file "+key+" --policy "+candidate, 1, "does not respond")
	other := file("other.key", "aid_org_"+strings.Repeat("x", 40))
	try("--url "+control.URL+" --org-key-file "+other+" --policy "+candidate, 1, "not a key of this product")

	// More than 5,000 entries are a job.
	record(5_000)
	try(apart+"--policy "+candidate+" --rows 1", 0, "of about 5300 entries\n", "all    5300      2650   2650  2650")
}
