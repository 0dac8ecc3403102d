package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// storePaths are what the shared store is measured with.
type storePaths struct {
	aid, envoy, valkey, dir string
	upstream                int
}

// sharedStore compares 100 policies whose limits are counted in memory with the same in a
// Valkey. Ten of the policies apply to each request, with rates, slots and a USD cap.
func sharedStore(ctx context.Context, out io.Writer, g *goals, s storePaths, rounds int, duration time.Duration) error {
	folder := filepath.Join(s.dir, "valkey")
	if err := os.Mkdir(folder, 0o755); err != nil {
		return err
	}
	port, err := freePort(ctx)
	if err != nil {
		return err
	}
	address := "127.0.0.1:" + strconv.Itoa(port)
	store := &path{name: "valkey", dir: folder}
	defer store.stop()
	if err := store.start(ctx, folder, "valkey", s.valkey, "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--maxmemory-policy", "noeviction"); err != nil {
		return err
	}
	if err := dials(ctx, address); err != nil {
		return fmt.Errorf("%w\n%s", err, store.lastWords())
	}
	prices := filepath.Join(folder, "prices.yaml")
	if err := os.WriteFile(prices, []byte("prices:\n- {provider: bench, models: ['bench-*'], input: 0.01, output: 0.02, max_output_tokens: 1000}\n"), 0o600); err != nil {
		return err
	}
	var paths []*path
	defer func() {
		for _, p := range paths {
			p.stop()
		}
	}()
	for _, more := range [][]string{{"aid-memory"}, {"aid-store", "--redis", "redis://" + address}} {
		p, err := startAID(ctx, more[0], s.aid, s.envoy, s.dir, s.upstream, "stream", false, append(more[1:], "--prices", prices)...)
		if err != nil {
			return err
		}
		paths = append(paths, p)
		if err := p.govern(ctx); err != nil {
			return err
		}
		if err := p.answers(ctx); err != nil { // a cap waits for the sums
			return err
		}
	}
	got := map[string][]measured{}
	for range rounds {
		for _, p := range paths {
			before := p.cpu()
			r, err := load{p.addr, chat(p.addr, p.key, modelPassed, 1<<10, false), 16, duration}.run(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			got[p.name] = append(got[p.name], measured{result: r, cpu: since(p, before, r.requests)})
		}
	}
	rate := func(m measured) float64 { return m.rate() }
	fmt.Fprintf(out, "\n### 100 policies with limits, counted in memory and in a Valkey (1 KB JSON, 16 connections)\n\n"+
		"| path | requests/s | p50 ms | p99 ms | CPU µs/request (Envoy + ext_proc) |\n|---|---|---|---|---|\n")
	for _, name := range []string{"aid-memory", "aid-store"} {
		m := got[name]
		fmt.Fprintf(out, "| %s | %.0f | %.2f | %.2f | %.0f + %.0f |\n", name, median(m, rate),
			median(m, func(m measured) float64 { return float64(m.p50.Microseconds()) / 1000 }),
			median(m, func(m measured) float64 { return float64(m.p99.Microseconds()) / 1000 }), median(m, envoyOf), median(m, extprocOf))
	}
	g.add("100 policies, limits in a Valkey: throughput", median(got["aid-store"], rate)/median(got["aid-memory"], rate), 0.85, "of limits in memory", false)
	return nil
}

// govern makes 100 policies. The first ten apply to the requests of this benchmark.
func (p *path) govern(ctx context.Context) error {
	for i := range 100 {
		models, limits := fmt.Sprintf("other-%d", i), `{"rpm":1000000}`
		if i < 10 {
			models = modelPassed
		}
		switch i {
		case 0:
			limits = `{"rpm":1000000,"tpm":1000000000,"concurrent":100000,"monthly_usd_cap":1000000}`
		case 1, 2, 3:
			limits = `{"rpm":1000000}`
		}
		if i > 3 && i < 10 {
			limits = `{}`
		}
		body := fmt.Sprintf(`{"name":"p%d","effect":"allow","conditions":{"request.model":%q},"limits":%s}`, i, models, limits)
		if err := post(ctx, p.api+"/v1/policies", p.auth, body, &struct{}{}); err != nil {
			return err
		}
	}
	return nil
}

// dials waits until something listens there.
func dials(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			return conn.Close()
		}
		if ctx.Err() != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond) // between two looks: nothing is measured yet
	}
}
