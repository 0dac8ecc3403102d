package e2e_test

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/e2e"
	"github.com/ai-identity/ai-identity/extproc"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider/prices"
)

var disconnects = flag.Int("disconnects", 120, "how many clients of TestDisconnects hang up")

// nothingCharged is the control plane of an org that has not spent anything.
type nothingCharged struct{}

func (nothingCharged) Charged(_ context.Context, _ string, counters []string) ([]int64, error) {
	return make([]int64, len(counters)), nil
}

func (nothingCharged) Alone(context.Context, string) error { return nil }

// charges keeps the completions that a sidecar records.
type charges struct {
	extproc.Recorder
	mu      *sync.Mutex
	settled map[string]audit.Settled // by request
	worst   map[string]int64         // what was reserved
}

func (c charges) Sign(_ string, r audit.Receipt) audit.Receipt { return r }

func (c charges) Append(ctx context.Context, org string, e audit.Entry) (audit.Receipt, error) {
	if d, ok := e.(audit.Decided); ok {
		c.mu.Lock()
		c.worst[d.RequestID] = d.ReservedNanoUSD
		c.mu.Unlock()
	}
	return c.Recorder.Append(ctx, org, e)
}

func (c charges) Enqueue(org string, e audit.Entry) {
	if s, ok := e.(audit.Settled); ok {
		c.mu.Lock()
		c.settled[s.RequestID] = s
		c.mu.Unlock()
	}
	c.Recorder.Enqueue(org, e)
}

// Clients hang up in streams, at a random byte. The provider's tokens are a known function of
// the bytes that it sends. It sends an event only when the client has the one before. With
// usage in each event the charges are exact to 1 % in sum. Without it, no charge is below what
// passed or above the reservation. At rest nothing is reserved.
//
//	go test ./e2e -run TestDisconnects -disconnects 10000 -v
func TestDisconnects(t *testing.T) {
	const events, input, nanoIn, nanoOut = 30, 11, 1000, 10_000
	text := func(n int) string { return strings.Repeat("x", 3+n*7%40) }
	tokens := func(n int) (sum int64) { // of the first n events
		for i := range n {
			sum += int64(len(text(i))+2) / 3 // as many bytes as the estimate takes for a token
		}
		return sum
	}
	var mu sync.Mutex
	steps, wrote := map[string]chan struct{}{}, map[string]int{}
	stand := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var asked struct {
			Model    string
			Messages []struct{ Content string }
		}
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || len(asked.Messages) != 1 {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		id := asked.Messages[0].Content
		mu.Lock()
		step := steps[id]
		mu.Unlock()
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range events {
			select {
			case <-step:
			case <-r.Context().Done():
				return
			}
			usage := "null"
			if asked.Model == "gpt-first" {
				usage = fmt.Sprintf(`{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}`, input, tokens(i+1), input+tokens(i+1))
			}
			mu.Lock()
			wrote[id] = i + 1
			mu.Unlock()
			fmt.Fprintf(w, `data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"gpt-1","choices":[{"index":0,"delta":{"content":%q},"finish_reason":null}],"usage":%s}`+"\n\n", text(i), usage)
			http.NewResponseController(w).Flush()
		}
		<-r.Context().Done() // the client always leaves before the end
	})
	table, err := prices.Load([]byte("prices:\n- {provider: one, models: [\"*\"], input: 1, output: 10}\n"))
	if err != nil {
		t.Fatal(err)
	}
	const most = 1_000_000_000_000_000
	bundle, err := policy.Compile(t.Context(), []policy.Policy{{ID: "pol_1", OrgID: inOrg, Version: 1,
		Document: []byte(`{"name":"cap","effect":"allow","conditions":{},"limits":{"monthly_usd_cap":1000000,"concurrent":1000000,"tpm":1000000000}}`)}})
	if err != nil {
		t.Fatal(err)
	}
	m := budget.NewMemory(time.Now, nothingCharged{})
	log := charges{mu: &sync.Mutex{}, settled: map[string]audit.Settled{}, worst: map[string]int64{}}
	x := inProcess(t, stand, func(c *extproc.Config) {
		d := c.Directory.(oneCaller)
		d.org.Policies = bundle
		log.Recorder = c.Recorder
		c.Directory, c.Limiter, c.Pricer, c.Recorder = d, m, table, log
	}, nil)

	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	type left struct {
		id, request string
		first       bool
		got         int // events that the client has, whole
	}
	hangUp := func(n int) left {
		dice := rand.New(rand.NewPCG(7, uint64(n)))
		l := left{id: fmt.Sprint("n", n), first: n%2 == 0}
		step := make(chan struct{}, events)
		mu.Lock()
		steps[l.id] = step
		mu.Unlock()
		model := "gpt-last"
		if l.first {
			model = "gpt-first"
		}
		step <- struct{}{}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, x.gateway+"/v1/chat/completions",
			strings.NewReader(fmt.Sprintf(`{"model":%q,"stream":true,"max_tokens":2000,"messages":[{"role":"user","content":%q}]}`, model, l.id)))
		if err != nil {
			t.Error(err)
			return l
		}
		req.Header.Set("Authorization", "Bearer "+x.key)
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(req)
		if err != nil {
			t.Error(err)
			return l
		}
		defer resp.Body.Close()
		if l.request = resp.Header.Get("X-Request-Id"); resp.StatusCode != http.StatusOK {
			t.Errorf("%d", resp.StatusCode)
			return l
		}
		body := bufio.NewReader(resp.Body)
		for want := 1 + dice.IntN(events-1); l.got < want; {
			line, err := body.ReadString('\n')
			if err != nil {
				t.Error(err)
				return l
			}
			if line == "\n" {
				if l.got++; l.got < want {
					step <- struct{}{}
				}
			}
		}
		if dice.IntN(2) == 0 { // in the middle of the next event
			step <- struct{}{}
			io.CopyN(io.Discard, body, int64(dice.IntN(60)))
		}
		return l
	}
	all := make([]left, *disconnects)
	var workers sync.WaitGroup
	for worker := range 16 {
		workers.Go(func() {
			for n := worker; n < len(all); n += 16 {
				all[n] = hangUp(n)
			}
		})
	}
	workers.Wait()
	e2e.Eventually(t, 60*time.Second, func() error {
		log.mu.Lock()
		defer log.mu.Unlock()
		if reserved, slots, n := m.InFlight(); reserved != 0 || slots != 0 || n != 0 || len(log.settled) != len(all) {
			return fmt.Errorf("at rest $%d are reserved and %d slots are used by %d requests; %d of %d have ended", reserved, slots, n, len(log.settled), len(all))
		}
		return nil
	})

	var truth, off, sum int64
	for _, l := range all {
		s, ok := log.settled[l.request]
		if !ok {
			t.Errorf("%s has no completion", l.id)
			continue
		}
		sum += s.ChargedNanoUSD
		cost := input*nanoIn + tokens(wrote[l.id])*nanoOut
		passed := tokens(l.got) * nanoOut
		switch {
		case s.ChargedNanoUSD > log.worst[l.request] || s.ChargeBasis != audit.BasisSeen:
			t.Errorf("%s: %d of %d reserved, by %s (%s)", l.id, s.ChargedNanoUSD, log.worst[l.request], s.ChargeBasis, s.Outcome)
		case l.first:
			truth += cost
			off += max(s.ChargedNanoUSD-cost, cost-s.ChargedNanoUSD)
		case s.ChargedNanoUSD < passed:
			t.Errorf("%s: %d is charged, and %d passed", l.id, s.ChargedNanoUSD, passed)
		}
	}
	if off*100 > truth {
		t.Errorf("with usage in each event, charges of %d differ by %d", truth, off)
	}
	limits := []budget.Limit{{Key: "policy:pol_1:monthly_usd_cap:policy:", Kind: budget.Month, Max: most, Amount: 0}}
	if _, err := m.Reserve(t.Context(), inOrg, "probe", limits); err != nil || most-limits[0].Left != sum {
		t.Errorf("the cap has %d charged, and the completions %d: %v", most-limits[0].Left, sum, err)
	}
	t.Logf("%d hung up: with usage in each event %d nano-dollars, charged with an error of %.3f %%; in all %d charged", len(all), truth, float64(off)*100/float64(truth), sum)
}
