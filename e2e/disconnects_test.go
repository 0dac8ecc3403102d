package e2e_test

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/e2e"
	"github.com/ai-identity/ai-identity/extproc"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
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

// form is an API in which a stream reports its usage at some time.
type form struct {
	model, path string
	body        string // with the id of the request
	first       bool   // usage comes before the end
	perToken    int    // bytes
	event       func(i int, text string, total int64) string
	// finish is an event with the finish reason and the usage of total, but not the stream's
	// final usage. nil: no client hangs up after it.
	finish func(total int64) string
}

// tally keeps what the requests have used.
type tally struct {
	*budget.Memory
	mu   *sync.Mutex
	used map[string]budget.Used // by request
}

func (s tally) Settle(ctx context.Context, id string, used budget.Used) {
	s.mu.Lock()
	s.used[id] = used
	s.mu.Unlock()
	s.Memory.Settle(ctx, id, used)
}

// Clients hang up in streams, at a random byte. The provider's tokens are a known function of
// the bytes that it sends. It sends an event only when the client has the one before. Where
// usage comes first, charges are exact to 1 % in sum. In other forms, no charge is below what
// passed or above the reservation. Some clients hang up between the finish reason and the final
// usage. At rest nothing is reserved.
//
//	go test ./e2e -run TestDisconnects -disconnects 10000 -v
func TestDisconnects(t *testing.T) {
	const events, input, nanoIn, nanoOut = 30, 11, 1000, 10_000
	chunk := func(usage func(total int64) string) func(int, string, int64) string {
		return func(_ int, text string, total int64) string {
			return fmt.Sprintf(`data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"gpt-1","choices":[{"index":0,"delta":{"content":%q},"finish_reason":null}],"usage":%s}`+"\n\n", text, usage(total))
		}
	}
	finish := func(usage func(total int64) string) func(int64) string {
		return func(total int64) string {
			return `data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"gpt-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":` + usage(total) + "}\n\n"
		}
	}
	each := func(total int64) string {
		return fmt.Sprintf(`{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}`, input, total, input+total)
	}
	last := func(int64) string { return "null" }
	zero := func(int64) string { return `{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}` }
	chat := `{"model":%q,"stream":true,"max_tokens":2000,"messages":[{"role":"user","content":%q}]}`
	forms := []form{
		{model: "gpt-each", path: "/v1/chat/completions", body: chat, first: true, perToken: 4, event: chunk(each), finish: finish(each)},
		{model: "gpt-last", path: "/v1/chat/completions", body: chat, perToken: 4, event: chunk(last), finish: finish(last)},
		// Some servers send figures of zero until the last event.
		{model: "gpt-zero", path: "/v1/chat/completions", body: chat, perToken: 4, event: chunk(zero), finish: finish(zero)},
		// The output after message_start is an estimate, so the tokens are as the estimate takes them.
		{model: "claude-1", path: "/v1/messages", body: chat, first: true, perToken: 3, event: func(i int, text string, _ int64) string {
			start := ""
			if i == 0 {
				start = fmt.Sprintf("event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"claude-1\",\"content\":[],\"stop_reason\":null,\"usage\":{\"input_tokens\":%d,\"output_tokens\":3}}}\n\n"+
					"event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n", input)
			}
			return start + fmt.Sprintf("event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":%q}}\n\n", text)
		}},
		{model: "gemini-1", path: "/v1beta/models/gemini-1:streamGenerateContent?alt=sse", body: `{"generationConfig":{"maxOutputTokens":2000},"contents":[{"role":"user","parts":[{"text":%q}]}]}`, first: true, perToken: 4,
			event: func(_ int, text string, total int64) string {
				return fmt.Sprintf(`data: {"candidates":[{"content":{"parts":[{"text":%q}],"role":"model"},"index":0}],"usageMetadata":{"promptTokenCount":%d,"candidatesTokenCount":%d,"totalTokenCount":%d},"modelVersion":"gemini-1"}`+"\r\n\r\n",
					text, input, total, input+total)
			}},
	}
	text := func(n int) string { return strings.Repeat("x", 3+n*7%40) }
	tokens := func(f form, n int) (sum int64) { // of the first n events
		for i := range n {
			sum += int64((len(text(i)) + f.perToken - 1) / f.perToken)
		}
		return sum
	}
	formOf := func(body string) (f form, id string) {
		_, id, _ = strings.Cut(body, `"n-`)
		id, _, _ = strings.Cut(id, `"`)
		n, _ := strconv.Atoi(id)
		return forms[n%len(forms)], "n-" + id
	}
	var mu sync.Mutex
	steps, wrote := map[string]chan struct{}{}, map[string]int{}
	stand := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		f, id := formOf(string(body))
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
			mu.Lock()
			wrote[id] = i + 1
			mu.Unlock()
			io.WriteString(w, f.event(i, text(i), tokens(f, i+1)))
			http.NewResponseController(w).Flush()
		}
		select {
		case <-step:
			io.WriteString(w, f.finish(tokens(f, events)))
			http.NewResponseController(w).Flush()
		case <-r.Context().Done():
			return
		}
		<-r.Context().Done() // the client always leaves before the end
	})
	table, err := prices.Load([]byte("prices:\n- {provider: one, models: [\"*\"], input: 1, output: 10}\n- {provider: two, models: [\"*\"], input: 1, output: 10}\n- {provider: three, models: [\"*\"], input: 1, output: 10}\n"))
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
	counts := tally{Memory: m, mu: &sync.Mutex{}, used: map[string]budget.Used{}}
	log := charges{mu: &sync.Mutex{}, settled: map[string]audit.Settled{}, worst: map[string]int64{}}
	ps := []provider.Provider{{Name: "one", Kind: "openai", Models: []string{"gpt-*"}}, {Name: "two", Kind: "anthropic", Models: []string{"claude-*"}}, {Name: "three", Kind: "gemini", Models: []string{"gemini-*"}}}
	x := inProcessWith(t, stand, "stream", ps, func(c *extproc.Config) {
		d := c.Directory.(oneCaller)
		d.org.Policies = bundle
		log.Recorder = c.Recorder
		c.Directory, c.Limiter, c.Pricer, c.Recorder = d, counts, table, log
	}, nil)

	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	type left struct {
		form
		id, request string
		got         int  // events that the client has, whole
		finished    bool // and the finish reason
	}
	hangUp := func(n int) left {
		dice := rand.New(rand.NewPCG(7, uint64(n)))
		l := left{id: fmt.Sprint("n-", n), form: forms[n%len(forms)]}
		step := make(chan struct{}, events+1)
		mu.Lock()
		steps[l.id] = step
		mu.Unlock()
		step <- struct{}{}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		body := fmt.Sprintf(l.body, l.model, l.id)
		if l.model == "gemini-1" {
			body = fmt.Sprintf(l.body, l.id)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, x.gateway+l.path, strings.NewReader(body))
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
			b, _ := io.ReadAll(resp.Body)
			t.Errorf("%s: %d %s", l.model, resp.StatusCode, b)
			return l
		}
		reader := bufio.NewReader(resp.Body)
		want := 1 + dice.IntN(events-1)
		finished := l.finish != nil && dice.IntN(4) == 0
		if finished {
			want = events
		}
		for l.got < want {
			line, err := reader.ReadString('\n')
			if err != nil {
				t.Error(err)
				return l
			}
			if strings.Contains(line, "xxx") { // no other lines have a text
				if l.got++; l.got < want {
					step <- struct{}{}
				}
			}
		}
		if finished {
			step <- struct{}{}
			for !l.finished {
				line, err := reader.ReadString('\n')
				if err != nil {
					t.Error(err)
					return l
				}
				l.finished = strings.Contains(line, `"stop"`)
			}
			return l
		}
		if dice.IntN(2) == 0 { // in the middle of the next event
			step <- struct{}{}
			io.CopyN(io.Discard, reader, int64(8+dice.IntN(52))) // the sidecar has the event then
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

	truth, off := map[string]int64{}, map[string]int64{}
	var sum int64
	for _, l := range all {
		s, ok := log.settled[l.request]
		if !ok {
			t.Errorf("%s has no completion", l.id)
			continue
		}
		sum += s.ChargedNanoUSD
		cost := input*nanoIn + tokens(l.form, wrote[l.id])*nanoOut
		passed := tokens(l.form, l.got) * nanoOut
		truth[l.model] += cost
		off[l.model] += max(s.ChargedNanoUSD-cost, cost-s.ChargedNanoUSD)
		basis := audit.BasisSeen
		switch {
		case l.finished && l.first:
			basis = audit.BasisUsage
		case l.finished:
			basis = audit.BasisReservation
		}
		if u := counts.used[l.request]; !u.Counted || u.Tokens < input+tokens(l.form, l.got) {
			t.Errorf("%s %s: %+v tokens are counted, and %d passed", l.model, l.id, u, tokens(l.form, l.got))
		}
		switch {
		case s.ChargedNanoUSD > log.worst[l.request] || s.ChargeBasis != basis:
			t.Errorf("%s %s: %d of %d reserved, by %s (%s)", l.model, l.id, s.ChargedNanoUSD, log.worst[l.request], s.ChargeBasis, s.Outcome)
		case !l.first && s.ChargedNanoUSD < passed:
			t.Errorf("%s %s: %d is charged, and %d passed", l.model, l.id, s.ChargedNanoUSD, passed)
		}
	}
	for _, f := range forms {
		if f.first && off[f.model]*100 > truth[f.model] {
			t.Errorf("%s: usage comes first, and charges of %d differ by %d", f.model, truth[f.model], off[f.model])
		}
		t.Logf("%s: cost %d nano-dollars, charges differ by %.3f %%", f.model, truth[f.model], float64(off[f.model])*100/float64(truth[f.model]))
	}
	limits := []budget.Limit{{Key: "policy:pol_1:monthly_usd_cap:policy:", Kind: budget.Month, Max: most, Amount: 0}}
	if _, err := m.Reserve(t.Context(), inOrg, "probe", limits); err != nil || most-limits[0].Left != sum {
		t.Errorf("the cap has %d charged, and the completions %d: %v", most-limits[0].Left, sum, err)
	}
	t.Logf("%d hung up; in all %d nano-dollars are charged", len(all), sum)
}
