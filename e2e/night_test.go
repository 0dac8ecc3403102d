package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/e2e"
)

var nightFor = flag.Duration("night", 0, "how long TestNight goes on, with all faults again and again (0: those that take seconds, once)")

// TestNight is an operator's night. Two control planes, two nodes and Postgres with TLS are
// set up as in docs/production.md, with steady traffic of two organizations. Several faults
// follow one after the other. During a fault, /readyz of the affected process fails with
// the reason, and no other fails. After it, all are ready and serve. At the end each
// receipt of a caller is in the chain, or in a gap that the chain declares. No request was
// answered without an entry.
//
//	go test ./e2e -run TestNight -night 30m -timeout 60m -v
func TestNight(t *testing.T) {
	n := &night{apart: startApart(t), provider: e2e.Record(t, e2e.Streaming(5, 2*time.Millisecond, nil))}
	n.client = n.api(t)
	defer n.print(t)
	n.organizations(t)
	stop := n.traffic(t)
	defer stop()
	n.green(t)

	n.short(t)
	for began := time.Now(); *nightFor > 0 && time.Since(began) < *nightFor; n.short(t) {
		n.long(t)
	}
	n.green(t)
	stop()
	n.audit(t)
}

// night is the state of TestNight.
type night struct {
	*apart
	provider *e2e.Provider
	client   *http.Client // of the API
	orgs     []*tenant

	mu       sync.Mutex
	held     []held
	answered map[string]int // by node
	refused  int
	faults   []string // the rows of the table

	backup string // a copy of the database's files, while it is needed
}

// tenant is one organization and its agents.
type tenant struct {
	id, key string
	agents  []string // ids
	keys    []string // of the agents
}

// held is a caller's data of one answered request.
type held struct {
	org, request, receipt string
}

const nightAllowed = `{"model":"night-model","messages":[{"role":"user","content":"Hello there"}]}`

// organizations gives both organizations a provider, two agents each, and their keys.
func (n *night) organizations(t *testing.T) {
	t.Helper()
	for _, name := range []string{"acme", "globex"} {
		key, err := os.ReadFile(filepath.Join(n.etc(), name+".key"))
		if err != nil {
			t.Fatal(err)
		}
		made, err := os.ReadFile(filepath.Join(n.etc(), name+".made"))
		if err != nil {
			t.Fatal(err)
		}
		id := regexp.MustCompile(`org_\w+`).FindString(string(made))
		if id == "" {
			t.Fatalf("aid org create printed no id of an organization: %s", made)
		}
		o := &tenant{key: strings.TrimSpace(string(key)), id: id}
		n.orgs = append(n.orgs, o)
		var p struct{ ID string }
		n.manage(t, o, http.MethodPost, "/v1/providers", n.provider.Body("night", "night-model"), &p)
		n.manage(t, o, http.MethodPut, "/v1/providers/"+p.ID+"/credential", fmt.Sprintf(`{"secret":%q}`, credential), nil)
		for i := range 2 {
			var agent struct{ ID string }
			n.manage(t, o, http.MethodPost, "/v1/agents", fmt.Sprintf(`{"name":"night-%d","allowed_models":["night-model"]}`, i), &agent)
			o.agents = append(o.agents, agent.ID)
			_, secret := n.newKey(t, o, agent.ID)
			o.keys = append(o.keys, secret)
		}
	}
}

func (n *night) newKey(t *testing.T, o *tenant, agent string) (id, secret string) {
	t.Helper()
	var k struct{ ID, Key string }
	n.manage(t, o, http.MethodPost, "/v1/agents/"+agent+"/keys", `{"name":"night","scopes":["chat:completions"]}`, &k)
	return k.ID, k.Key
}

// manage calls the API of the first control plane that is ready.
func (n *night) manage(t *testing.T, o *tenant, method, path, body string, out any) {
	t.Helper()
	at := n.controls[0]
	if at.ready() != nil {
		at = n.controls[1]
	}
	req, err := http.NewRequestWithContext(t.Context(), method, at.serves+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+o.key)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := n.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode/100 != 2 {
		t.Fatalf("%s %s: %s %v %s", method, path, resp.Status, err, b)
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			t.Fatal(err)
		}
	}
}

// traffic sends requests of each agent through each node until the returned func is called.
func (n *night) traffic(t *testing.T) (stop func()) {
	n.answered = map[string]int{}
	ctx, cancel := context.WithCancel(context.Background())
	var load sync.WaitGroup
	for _, o := range n.orgs {
		for i, key := range o.keys {
			for _, node := range n.nodes {
				load.Go(func() {
					client := &http.Client{Timeout: 60 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 2}}
					tick := time.NewTicker(60 * time.Millisecond)
					defer tick.Stop()
					for sent := i; ; sent++ {
						select {
						case <-ctx.Done():
							return
						case <-tick.C:
						}
						body := nightAllowed
						if sent%4 == 0 {
							body = strings.Replace(body, "{", `{"stream":true,`, 1)
						}
						n.one(t, client, o, node, key, body)
					}
				})
			}
		}
	}
	return sync.OnceFunc(func() {
		cancel()
		load.Wait()
	})
}

// one sends one request and keeps its receipt. The request succeeds or is rejected with a
// retryable error. A valid key or an allowed request must never be reported as wrong.
func (n *night) one(t *testing.T, client *http.Client, o *tenant, node *host, key, body string) {
	resp, err := send(context.Background(), client, node.serves, key, strings.NewReader(body), int64(len(body)))
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		n.refused++
		return
	}
	n.mu.Unlock()
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	n.mu.Lock()
	receipt := resp.Header.Get("X-Aid-Receipt")
	if receipt != "" {
		n.held = append(n.held, held{o.id, resp.Header.Get("X-Request-Id"), receipt})
	}
	switch {
	case resp.StatusCode == http.StatusOK && receipt == "":
		t.Errorf("%s answered without a receipt: %v", node.name, resp.Header)
	case resp.StatusCode == http.StatusOK:
		n.answered[node.name]++
	case resp.StatusCode >= 500:
		n.refused++
	default:
		t.Errorf("%s answered %d: %s", node.name, resp.StatusCode, b)
	}
}

func (n *night) hosts() []*host { return append(n.controls[:], n.nodes[:]...) }

// green waits until all processes are ready and both nodes serve.
func (n *night) green(t *testing.T) {
	t.Helper()
	e2e.Eventually(t, 120*time.Second, func() error {
		for _, h := range n.hosts() {
			if err := h.ready(); err != nil {
				return err
			}
		}
		return nil
	})
	n.mu.Lock()
	want := map[string]int{}
	for _, h := range n.nodes {
		want[h.name] = n.answered[h.name] + 10
	}
	n.mu.Unlock()
	e2e.Eventually(t, 60*time.Second, func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		for name, w := range want {
			if n.answered[name] < w {
				return fmt.Errorf("%s answered %d requests, want %d", name, n.answered[name], w)
			}
		}
		return nil
	})
}

// gone is the result of /readyz for a process that is not running.
const gone = ""

// fault begins a fault and waits until /readyz of the processes fails with the texts. It
// checks that no other process fails, heals the fault, and waits until all are ready.
func (n *night) fault(t *testing.T, name string, begin func(), red map[*host]string, heal func()) {
	t.Helper()
	n.mu.Lock()
	refused := n.refused
	n.mu.Unlock()
	began := time.Now()
	begin()
	var said []string
	if len(red) > 0 {
		e2e.Eventually(t, 180*time.Second, func() error {
			said = nil
			for h, words := range red {
				body, err := h.get("/readyz")
				var refused *url.Error
				switch {
				case err == nil:
					return fmt.Errorf("%s: %s is ready: %s", name, h.name, body)
				case words == gone && !errors.As(err, &refused):
					return fmt.Errorf("%s: %s answers: %w %s", name, h.name, err, body)
				case !strings.Contains(body, words):
					return fmt.Errorf("%s: %s is red for another reason: %s", name, h.name, body)
				}
				said = append(said, h.name+": "+body)
			}
			return nil
		})
	}
	toRed := time.Since(began)
	for _, h := range n.hosts() {
		if _, ok := red[h]; ok {
			continue
		}
		if err := h.ready(); err != nil {
			t.Errorf("%s: %v, and it is not what failed", name, err)
		}
	}
	healed := time.Now()
	heal()
	n.green(t)
	n.mu.Lock()
	defer n.mu.Unlock()
	row := fmt.Sprintf("%-34s %8s %8s %6d", name, "-", time.Since(healed).Round(100*time.Millisecond), n.refused-refused)
	if len(red) > 0 {
		row = fmt.Sprintf("%-34s %8s %8s %6d  %.150s", name, toRed.Round(100*time.Millisecond), time.Since(healed).Round(100*time.Millisecond), n.refused-refused, strings.Join(said, "; "))
	}
	n.faults = append(n.faults, row)
}

func (n *night) print(t *testing.T) {
	n.mu.Lock()
	defer n.mu.Unlock()
	t.Logf("%-34s %8s %8s %6s  %s\n%s", "fault", "to red", "to green", "503", "what /readyz said", strings.Join(n.faults, "\n"))
}

// short are the faults that take seconds.
func (n *night) short(t *testing.T) {
	c1, c2, node1, node2 := n.controls[0], n.controls[1], n.nodes[0], n.nodes[1]
	n.fault(t, "Postgres is stopped (and copied)", func() {
		n.db.stop(t)
		if n.backup == "" {
			n.backup = filepath.Join(n.dir, "backup")
			n.db.copyTo(t, n.backup)
		}
	}, map[*host]string{c1: "database", c2: "database"}, func() { n.db.start(t) })
	copied := max(n.known(t, c1), n.known(t, c2)) // at least the copy's
	n.revoked(t)
	n.fault(t, "a control plane is killed", c1.aid.kill, map[*host]string{c1: gone}, c1.aid.start)
	n.fault(t, "a control plane starts without Postgres", func() {
		c1.aid.stop()
		n.db.stop(t)
		c1.aid.start()
	}, map[*host]string{c1: "starting", c2: "database"}, func() { n.db.start(t) })
	n.fault(t, "extproc is killed", node1.aid.kill, map[*host]string{node1: gone}, node1.aid.start)
	// The chain loses entries here that were acknowledged to a process that has ended.
	n.restored(t, copied)
	n.fault(t, "Envoy is killed", node2.envoy.kill, map[*host]string{node2: "gateway"}, node2.envoy.start)
}

// revoked: a key is revoked everywhere while it is in use.
func (n *night) revoked(t *testing.T) {
	o := n.orgs[1]
	id, key := n.newKey(t, o, o.agents[0])
	ask := func(node *host) int {
		resp, err := send(t.Context(), http.DefaultClient, node.serves, key, strings.NewReader(nightAllowed), int64(len(nightAllowed)))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if r := resp.Header.Get("X-Aid-Receipt"); r != "" {
			n.mu.Lock()
			n.held = append(n.held, held{o.id, resp.Header.Get("X-Request-Id"), r})
			n.mu.Unlock()
		}
		return resp.StatusCode
	}
	for _, node := range n.nodes {
		if got := ask(node); got != http.StatusOK {
			t.Errorf("%s answers a new key with %d", node.name, got)
		}
	}
	n.fault(t, "a key is revoked", func() {
		n.manage(t, o, http.MethodDelete, "/v1/agents/"+o.agents[0]+"/keys/"+id, "", nil)
		for _, node := range n.nodes {
			e2e.Eventually(t, 20*time.Second, func() error {
				if got := ask(node); got != http.StatusUnauthorized {
					return fmt.Errorf("%s answers a revoked key with %d", node.name, got)
				}
				return nil
			})
		}
	}, nil, func() {})
}

// long are the faults that need time to be detected, or to heal.
func (n *night) long(t *testing.T) {
	c1, c2, node1, node2 := n.controls[0], n.controls[1], n.nodes[0], n.nodes[1]
	var again func()
	n.fault(t, "connections to Postgres go silent", func() { again = n.dbWay.silence() },
		map[*host]string{c1: "database", c2: "database"}, func() { again() })
	n.fault(t, "a control plane hangs", func() { c2.aid.signal(t, syscall.SIGSTOP) }, map[*host]string{c2: gone}, func() { c2.aid.signal(t, syscall.SIGCONT) })
	n.fault(t, "both control planes are killed", func() {
		c1.aid.kill()
		c2.aid.kill()
	}, map[*host]string{c1: gone, c2: gone}, func() {
		c1.aid.start()
		c2.aid.start()
	})
	n.fault(t, "extproc hangs", func() { node1.aid.signal(t, syscall.SIGSTOP) }, map[*host]string{node1: gone}, func() { node1.aid.signal(t, syscall.SIGCONT) })
	if n.small {
		hog := filepath.Join(filepath.Dir(node2.etc), "lib", "hog")
		n.fault(t, "the disk of the segments is full", func() {
			if out, err := exec.Command("dd", "if=/dev/zero", "of="+hog, "bs=1M").CombinedOutput(); err == nil {
				t.Errorf("the disk takes everything: %s", out)
			}
		}, map[*host]string{node2: "record"}, func() {
			if err := os.Remove(hog); err != nil {
				t.Error(err)
			}
		})
	}
	n.fernet(t)
	n.certificates(t)
	n.hmac(t)
}

// certificates: those of all processes are renewed in place and used, without a restart.
func (n *night) certificates(t *testing.T) {
	n.fault(t, "certificates are renewed", func() {
		before := map[*host]float64{}
		renewed := map[*host][]string{n.controls[0]: {"control.crt", "control.key"}, n.controls[1]: {"control.crt", "control.key"}, n.nodes[1]: {"node.crt", "node.key"}}
		for h := range renewed {
			before[h], _ = h.metric(`aid_certificate_expiry_timestamp_seconds{flag="tls-cert"`)
		}
		if n.page["1"] == nil {
			t.Fatal("no page")
		}
		// The commands of the page, without those of the CA.
		var commands []string
		for _, line := range strings.Split(strings.ReplaceAll(n.page["1"][1], "\\\n", " "), "\n") {
			if !strings.Contains(line, "ca.key -out") {
				commands = append(commands, line)
			}
		}
		n.run(t, strings.Join(commands, "\n"))
		for h, files := range renewed {
			for _, name := range files {
				b, err := os.ReadFile(filepath.Join(n.etc(), name))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(h.etc, name), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		for h := range renewed {
			e2e.Eventually(t, 30*time.Second, func() error {
				if now, err := h.metric(`aid_certificate_expiry_timestamp_seconds{flag="tls-cert"`); err != nil || now <= before[h] {
					return fmt.Errorf("%s has not read its certificate again: it expires at %v (%v)", h.name, now, err)
				}
				return nil
			})
		}
		n.xdsWay.cut()
	}, nil, func() {})
}

// fernet: one control plane has another key file than the one that encrypts.
func (n *night) fernet(t *testing.T) {
	c2 := n.controls[1]
	file := filepath.Join(c2.etc, "fernet.keys")
	right, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	put := func(b []byte) {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		c2.aid.signal(t, syscall.SIGHUP)
	}
	n.fault(t, "a stale Fernet file in one replica", func() {
		before, _ := c2.metric(`aid_file_reloads_total{flag="fernet-keys",result="ok"`)
		put([]byte(n.run(t, "head -c 32 /dev/urandom | base64 | tr +/ -_")))
		e2e.Eventually(t, 30*time.Second, func() error {
			if now, err := c2.metric(`aid_file_reloads_total{flag="fernet-keys",result="ok"`); err != nil || now <= before {
				return fmt.Errorf("the file is not read again: %v", err)
			}
			return nil
		})
		var all struct{ Data []struct{ ID string } }
		n.manage(t, n.orgs[0], http.MethodGet, "/v1/providers", "", &all)
		n.manage(t, n.orgs[0], http.MethodPut, "/v1/providers/"+all.Data[0].ID+"/credential", fmt.Sprintf(`{"secret":%q}`, credential), nil)
	}, map[*host]string{c2: "credential"}, func() { put(right) })
}

// hmac: the audit chain gets a new key, without a restart. All control planes have it
// before its time comes.
func (n *night) hmac(t *testing.T) {
	n.fault(t, "the HMAC key is rotated", func() {
		n.run(t, `echo "$(($(tail -1 hmac.keys | cut -d' ' -f1) + 1)) $(openssl rand -hex 32) from=$(date -u -d '+15 sec' +%FT%TZ)" >> hmac.keys`)
		b, err := os.ReadFile(filepath.Join(n.etc(), "hmac.keys"))
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range n.controls {
			if err := os.WriteFile(filepath.Join(h.etc, "hmac.keys"), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		epoch, _, _ := strings.Cut(n.run(t, "tail -1 hmac.keys"), " ")
		for _, h := range n.controls {
			e2e.Eventually(t, 60*time.Second, func() error {
				if now, err := h.metric("aid_audit_chain_key_epoch"); err != nil || fmt.Sprint(now) != epoch {
					return fmt.Errorf("%s signs with epoch %v, want %s (%v)", h.name, now, epoch, err)
				}
				return nil
			})
		}
	}, nil, func() {})
}

// restored: the database gets its earlier copy, as docs/restore.md says: the control planes are
// stopped. One that runs has seen newer checkpoints, and rejects the older database. The
// sidecars send the lost entries again.
//
// copied is the size of a directory checkpoint that is at least as new as the copy.
func (n *night) restored(t *testing.T, copied float64) {
	running, restarted := n.controls[0], n.controls[1]
	e2e.Eventually(t, 60*time.Second, func() error {
		if now := n.known(t, running); now <= copied {
			return fmt.Errorf("%s knows the directory up to %v only", running.name, now)
		}
		return nil
	})
	n.fault(t, "the database is an older one", func() {
		restarted.aid.stop()
		n.db.stop(t)
		n.db.restore(t, n.backup)
		n.backup = ""
		n.db.start(t)
	}, map[*host]string{running: "older than a signed checkpoint", restarted: gone}, func() {
		running.aid.stop()
		running.aid.start()
		restarted.aid.start()
	})
}

// known returns the size of the newest directory checkpoint that a control plane knows.
func (n *night) known(t *testing.T, h *host) float64 {
	t.Helper()
	v, err := h.metric("aid_audit_directory_known_size")
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// audit checks the chains as an auditor with all receipts does.
func (n *night) audit(t *testing.T) {
	t.Helper()
	for _, node := range n.nodes {
		e2e.Eventually(t, 120*time.Second, func() error {
			for _, metric := range []string{"aid_extproc_live_exchanges", "aid_audit_unsettled", "aid_audit_lag_records"} {
				if v, err := node.metric(metric); err != nil || v > 0 {
					return fmt.Errorf("%s: %s is %v (%v)", node.name, metric, v, err)
				}
			}
			return nil
		})
	}
	var all []entry
	chains := map[string]*chain{}
	for _, o := range n.orgs {
		c := n.chain(t, o.id)
		chains[o.id] = c
		all = append(all, c.entries...)
	}
	inspected(t, all, n.provider)
	missing, inGaps := 0, 0
	for _, h := range n.held {
		r, err := audit.ParseReceipt(h.receipt)
		if err != nil {
			t.Errorf("request %s: %v", h.request, err)
			continue
		}
		c := chains[h.org]
		r.Sig, r.Signed = [64]byte{}, false
		switch {
		case c.leaves[r.String()] == h.request:
		case c.gap(r):
			inGaps++
		default:
			if missing++; missing < 10 {
				t.Errorf("request %s of %s has the receipt %s, and the chain does not", h.request, h.org, h.receipt)
			}
		}
	}
	if missing > 0 {
		t.Errorf("%d receipts are missing", missing)
	}
	out := n.run(t, `export AID_POSTGRES="postgres://aid_owner@db.example.com/aid?sslmode=verify-full&sslrootcert=/etc/aid/db-ca.crt&passfile=/etc/aid/owner.pgpass"
for org in `+n.orgs[0].id+" "+n.orgs[1].id+`; do aid audit verify --org $org --hmac-keys hmac.keys; done`)
	t.Logf("%d receipts, %d of them in gaps; %d entries; %d requests refused\n%s", len(n.held), inGaps, len(all), n.refused, out)
	if len(n.held) < 100 {
		t.Errorf("only %d receipts", len(n.held))
	}
}

// chain is the database's entries of an organization.
type chain struct {
	entries []entry
	leaves  map[string]string // receipt to request
	gaps    []audit.Gap
}

func (c *chain) gap(r audit.Receipt) bool {
	for _, g := range c.gaps {
		if g.Writer == r.Writer && g.After < r.Seq && r.Seq <= g.Last {
			return true
		}
	}
	return false
}

// chain reads all entries directly from the database, and waits until each decision has its
// completion.
func (n *night) chain(t *testing.T, org string) (c *chain) {
	t.Helper()
	at, err := url.Parse(n.db.embedded.URL())
	if err != nil {
		t.Fatal(err)
	}
	at.Path = "/aid"
	e2e.Eventually(t, 60*time.Second, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		conn, err := pgx.Connect(ctx, at.String())
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		rows, err := conn.Query(ctx, "SELECT seq, writer, writer_seq, kind, request_id, agent_id, entry FROM audit_entries WHERE org_id = $1 ORDER BY seq", org)
		if err != nil {
			return err
		}
		c = &chain{leaves: map[string]string{}}
		c.entries, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (e entry, err error) {
			if err := row.Scan(&e.Seq, &e.Writer, &e.WriterSeq, &e.Kind, &e.RequestID, &e.AgentID, &e.Raw); err != nil {
				return e, err
			}
			return e, json.Unmarshal(e.Raw, &e)
		})
		if err != nil {
			return err
		}
		open := map[string]entry{}
		for i, e := range c.entries {
			if e.Seq != int64(i)+1 {
				t.Fatalf("entry %d of %s has the number %d", i+1, org, e.Seq)
			}
			switch e.Kind {
			case "request.decided":
				open[e.RequestID] = e
				c.leaves[audit.Receipt{Writer: e.Writer, Seq: uint64(e.WriterSeq), Leaf: audit.LeafHash(e.Raw)}.String()] = e.RequestID
			case "request.settled":
				delete(open, e.RequestID)
			case audit.KindGap:
				var g audit.Gap
				if err := json.Unmarshal(e.Raw, &g); err != nil {
					return err
				}
				c.gaps = append(c.gaps, g)
			}
		}
		for id, e := range open {
			return fmt.Errorf("%d exchanges of %s are decided and not settled, one is %s, %s/%d: %s", len(open), org, id, e.Writer, e.WriterSeq, e.Raw)
		}
		return nil
	})
	return c
}

// mounted mounts a small separate disk at dir, where permissions allow that.
func mounted(t *testing.T, dir string) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		return false
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=512m,mode=0700"); err != nil {
		return false
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("%v %s", err, out)
		}
	})
	return true
}
