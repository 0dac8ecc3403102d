package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// prices of the test provider's models. A cap in USD needs them.
const prices = "prices:\n- {provider: bench, models: ['bench-*'], input: 0.01, output: 0.02, max_output_tokens: 1000}\n"

// startGoverned runs the product with 100 policies. Ten of them apply to each request, with
// rates, slots and a monthly cap in USD.
func (e environment) startGoverned(ctx context.Context, name string, pprof bool, more ...string) (*path, error) {
	file := filepath.Join(e.dir, "prices.yaml")
	if err := os.WriteFile(file, []byte(prices), 0o600); err != nil {
		return nil, err
	}
	p, err := e.startAID(ctx, name, "stream", pprof, append(more, "--prices", file)...)
	if err != nil {
		return nil, err
	}
	err = p.govern(ctx)
	if err == nil {
		err = p.answers(ctx) // a cap waits for the sums
	}
	if err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// startShared is startGoverned with the counts in a Valkey.
func (e environment) startShared(ctx context.Context, name string) (*path, error) {
	folder := filepath.Join(e.dir, "valkey")
	if err := os.Mkdir(folder, 0o755); err != nil {
		return nil, err
	}
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	address := "127.0.0.1:" + strconv.Itoa(port)
	store := &path{name: "valkey", dir: folder}
	if err := store.start(ctx, folder, "valkey", e.valkey, "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--maxmemory-policy", "noeviction"); err != nil {
		return nil, err
	}
	if err := dials(ctx, address); err != nil {
		store.stop()
		return nil, fmt.Errorf("%w\n%s", err, store.lastWords())
	}
	p, err := e.startGoverned(ctx, name, false, "--redis", "redis://"+address)
	if err != nil {
		store.stop()
		return nil, err
	}
	family := p.procs
	p.procs = func() map[string][]int {
		m := family()
		m["valkey"] = []int{store.cmds[0].Process.Pid}
		return m
	}
	p.cmds = append(store.cmds, p.cmds...)
	return p, nil
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
