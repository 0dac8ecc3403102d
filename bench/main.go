package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) error {
	var (
		aid      = flag.String("aid", "bin/aid", "the `binary` to measure")
		envoy    = flag.String("envoy", ".tools/venv/bin/envoy", "the Envoy `binary`, the same for every path")
		duration = flag.Duration("duration", 4*time.Second, "how long each closed-loop measurement takes")
		rounds   = flag.Int("rounds", 3, "how often all paths are measured, one after the other; the median counts")
		streams  = flag.Int("streams", 100, "SSE streams at once")
		events   = flag.Int("events", 400, "events in each stream, 5 ms apart")
		profiles = flag.String("profile", "", "`folder` for CPU profiles of the product's extproc, one for each closed-loop measurement (it costs a little)")
		valkey   = flag.String("valkey", ".tools/valkey/valkey-server", "the Valkey `binary` for the shared store")
		only     = flag.Bool("only-shared", false, "measure the shared store and nothing else")
		socket   = flag.String("noop", "", "internal: serve the no-op ext_proc on this Unix `socket`")
	)
	flag.Parse()
	if *socket != "" {
		return serveNoop(ctx, *socket)
	}
	bin, err := filepath.Abs(*aid)
	if err != nil {
		return err
	}
	envoyBin, err := filepath.Abs(*envoy)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "aid-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // as root, Postgres runs under another account
		return err
	}

	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	upstream := l.Addr().(*net.TCPAddr).Port
	go func() { _ = provider{events: *events, interval: 5 * time.Millisecond}.serve(ctx, l) }()

	g := goals{}
	progress := func(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }
	store := func() error {
		progress("shared store: %d rounds", *rounds)
		return sharedStore(ctx, out, &g, storePaths{bin, envoyBin, *valkey, dir, upstream}, *rounds, *duration)
	}
	if *only {
		if g.fsync, err = fsyncLatency(dir); err != nil {
			return err
		}
		if err := store(); err != nil {
			return err
		}
		g.print(out)
		return nil
	}

	var paths []*path
	defer func() {
		for _, p := range paths {
			p.stop()
		}
	}()
	for _, start := range []func() (*path, error){
		func() (*path, error) { return startEnvoy(ctx, "plain", envoyBin, dir, upstream, "") },
		func() (*path, error) { return startEnvoy(ctx, "noop", envoyBin, dir, upstream, "STREAMED") },
		func() (*path, error) {
			return startAID(ctx, "aid", bin, envoyBin, dir, upstream, "stream", *profiles != "")
		},
		func() (*path, error) {
			return startAID(ctx, "aid-usage-envoy", bin, envoyBin, dir, upstream, "envoy", false)
		},
	} {
		p, err := start()
		if err != nil {
			return err
		}
		progress("%s answers on %s", p.name, p.addr)
		paths = append(paths, p)
	}
	if g.fsync, err = fsyncLatency(dir); err != nil {
		return err
	}
	idle := map[string]float64{}
	for _, p := range paths {
		idle[p.name] = p.rss()
	}

	for _, shape := range []struct {
		name  string
		size  int
		conns int
	}{
		{"1 KB JSON, 16 connections", 1 << 10, 16},
		{"1 KB JSON, 1 connection", 1 << 10, 1},
		{"100 KB JSON, 16 connections", 100 << 10, 16},
		{"100 KB JSON, 1 connection", 100 << 10, 1},
	} {
		progress("%s: %d rounds of %v for each of %d paths", shape.name, *rounds, *duration, len(paths))
		got := map[string][]measured{}
		for round := range *rounds {
			for _, p := range paths {
				profiled := make(chan error, 1)
				if *profiles != "" && round == 0 && p.name == "aid" {
					file := filepath.Join(*profiles, strings.ReplaceAll(strings.ReplaceAll(shape.name, ",", ""), " ", "-")+".pprof")
					go func() { profiled <- p.profile(ctx, file, *duration) }()
				} else {
					profiled <- nil
				}
				before := p.cpu()
				r, err := load{p.addr, chat(p.addr, p.key, modelPassed, shape.size, false), shape.conns, *duration}.run(ctx)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", shape.name, p.name, err)
				}
				got[p.name] = append(got[p.name], measured{result: r, cpu: since(p, before, r.requests)})
				if err := <-profiled; err != nil {
					return fmt.Errorf("profiling: %w", err)
				}
			}
		}
		table(out, shape.name, paths, got)
		g.closed(shape.name, shape.conns, got)
	}

	name := fmt.Sprintf("SSE, %d streams, an event each 5 ms", *streams)
	progress("%s: %d rounds", name, *rounds)
	got := map[string][]measured{}
	for range *rounds {
		for _, p := range paths {
			before := p.cpu()
			n, _, err := stream(ctx, p, modelPassed, *streams)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", name, p.name, err)
			}
			got[p.name] = append(got[p.name], measured{result: result{requests: n}, cpu: since(p, before, n)})
		}
	}
	fmt.Fprintf(out, "\n### %s\n\n| path | CPU per event, µs (Envoy + ext_proc) | of Envoy alone | of no-op |\n|---|---|---|---|\n", name)
	base, floor := median(got["plain"], cpuOf), median(got["noop"], cpuOf)
	for _, p := range paths {
		m := got[p.name]
		fmt.Fprintf(out, "| %s | %.1f (%.1f + %.1f) | %.2f | %.2f |\n", p.name, median(m, cpuOf), median(m, envoyOf), median(m, extprocOf), median(m, cpuOf)/base, median(m, cpuOf)/floor)
	}
	g.streamed(got)
	progress("translated: %d rounds", *rounds)
	if err := translated(ctx, out, paths[slices.IndexFunc(paths, func(p *path) bool { return p.name == "aid" })], *rounds, *streams, *duration); err != nil {
		return fmt.Errorf("translated: %w", err)
	}
	fmt.Fprintf(out, "\n### Resident memory of the ext_proc process, MB\n\n| path | idle | after the load |\n|---|---|---|\n")
	for _, p := range paths[1:] {
		fmt.Fprintf(out, "| %s | %.0f | %.0f |\n", p.name, idle[p.name], p.rss())
	}
	for _, p := range paths {
		if p.ready > 0 {
			g.add("ready, "+p.name, p.ready.Seconds(), 10, "s from the start with warm caches", true)
		}
	}
	for _, p := range paths {
		p.stop()
	}
	paths = nil
	if err := store(); err != nil {
		return err
	}
	g.add("idle memory of extproc", idle["aid"], 40, "MB resident", true)
	g.print(out)
	return nil
}

// measured is one run of one path.
type measured struct {
	result
	cpu map[string]float64 // µs per request or event, by role
}

func since(p *path, before map[string]time.Duration, n int) map[string]float64 {
	m := map[string]float64{}
	for role, after := range p.cpu() {
		m[role] = float64((after - before[role]).Microseconds()) / float64(n)
	}
	return m
}

func cpuOf(m measured) float64     { return m.cpu["envoy"] + m.cpu["ext_proc"] }
func envoyOf(m measured) float64   { return m.cpu["envoy"] }
func extprocOf(m measured) float64 { return m.cpu["ext_proc"] }
func controlOf(m measured) float64 { return m.cpu["control"] }

func median(ms []measured, of func(measured) float64) float64 {
	v := make([]float64, 0, len(ms))
	for _, m := range ms {
		v = append(v, of(m))
	}
	slices.Sort(v)
	return v[len(v)/2]
}

func table(out io.Writer, name string, paths []*path, got map[string][]measured) {
	rate := func(m measured) float64 { return m.rate() }
	p50 := func(m measured) float64 { return float64(m.p50.Microseconds()) / 1000 }
	p99 := func(m measured) float64 { return float64(m.p99.Microseconds()) / 1000 }
	fmt.Fprintf(out, "\n### %s\n\n| path | requests/s | of Envoy alone | of no-op | p50 ms | p99 ms | CPU µs/request (Envoy + ext_proc + control plane with Postgres) |\n|---|---|---|---|---|---|---|\n", name)
	base, floor := median(got["plain"], rate), median(got["noop"], rate)
	for _, p := range paths {
		m := got[p.name]
		fmt.Fprintf(out, "| %s | %.0f | %.2f | %.2f | %.2f | %.2f | %.0f + %.0f + %.0f |\n", p.name, median(m, rate), median(m, rate)/base, median(m, rate)/floor, median(m, p50), median(m, p99), median(m, envoyOf), median(m, extprocOf), median(m, controlOf))
	}
}

// translated compares chat completions that are translated for Anthropic with those
// that pass as they are, in one process, whole and streamed.
func translated(ctx context.Context, out io.Writer, p *path, rounds, streams int, duration time.Duration) error {
	models := []string{modelPassed, modelTranslated}
	whole, streamed := map[string][]measured{}, map[string][]measured{}
	first := map[string][]time.Duration{}
	for range rounds {
		for _, model := range models {
			before := p.cpu()
			r, err := load{p.addr, chat(p.addr, p.key, model, 1<<10, false), 16, duration}.run(ctx)
			if err != nil {
				return err
			}
			whole[model] = append(whole[model], measured{result: r, cpu: since(p, before, r.requests)})
			before = p.cpu()
			n, took, err := stream(ctx, p, model, streams)
			if err != nil {
				return err
			}
			streamed[model] = append(streamed[model], measured{result: result{requests: n}, cpu: since(p, before, n)})
			first[model] = append(first[model], took)
		}
	}
	fmt.Fprintf(out, "\n### Translated for Anthropic, against passed through (1 KB JSON, 16 connections; %d streams)\n\n"+
		"| | requests/s | p50 ms | CPU µs/request (Envoy + ext_proc) | CPU µs/event (Envoy + ext_proc) | ms to the first event |\n|---|---|---|---|---|---|\n", streams)
	for _, model := range models {
		w, s := whole[model], streamed[model]
		slices.Sort(first[model])
		fmt.Fprintf(out, "| %s | %.0f | %.2f | %.0f + %.0f | %.1f + %.1f | %.2f |\n", model, median(w, func(m measured) float64 { return m.rate() }),
			median(w, func(m measured) float64 { return float64(m.p50.Microseconds()) / 1000 }), median(w, envoyOf), median(w, extprocOf),
			median(s, envoyOf), median(s, extprocOf), float64(first[model][rounds/2].Microseconds())/1000)
	}
	return nil
}

// stream reads n concurrent streams to their ends. It returns the number of events, and the
// median wait for the first event.
func stream(ctx context.Context, p *path, model string, n int) (int, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	var (
		wg     sync.WaitGroup
		events atomic.Int64
		errs   = make([]error, n)
		first  = make([]time.Duration, n)
	)
	for i := range n {
		wg.Go(func() {
			errs[i] = func() error {
				conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.addr)
				if err != nil {
					return err
				}
				defer conn.Close()
				began := time.Now()
				if _, err := conn.Write(chat(p.addr, p.key, model, 1<<10, true)); err != nil {
					return err
				}
				status, err := discardAnswer(bufio.NewReader(conn), func() {
					if events.Add(1); first[i] == 0 {
						first[i] = time.Since(began)
					}
				})
				if err == nil && status != 200 {
					err = fmt.Errorf("answered %d, want 200", status)
				}
				return err
			}()
		})
	}
	wg.Wait()
	slices.Sort(first)
	return int(events.Load()), first[n/2], errors.Join(errs...)
}

func serveNoop(ctx context.Context, socket string) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return err
	}
	s := grpc.NewServer(grpc.MaxRecvMsgSize(16<<20), grpc.MaxConcurrentStreams(100_000))
	extprocv3.RegisterExternalProcessorServer(s, noop{})
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	return s.Serve(l)
}
