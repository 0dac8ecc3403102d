package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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

// row is a line of the tables: a path that is measured in each round.
type row struct {
	name string
	*path
}

func run(ctx context.Context, out io.Writer) error {
	var (
		aid      = flag.String("aid", "bin/aid", "the `binary` to measure")
		envoy    = flag.String("envoy", ".tools/venv/bin/envoy", "the Envoy `binary`, the same for every path")
		valkey   = flag.String("valkey", ".tools/valkey/valkey-server", "the Valkey `binary` for the shared store")
		duration = flag.Duration("duration", 4*time.Second, "how long each closed-loop measurement takes")
		rounds   = flag.Int("rounds", 3, "how often all paths are measured, one after the other; the median counts")
		events   = flag.Int("events", 300, "events in each stream, 5 ms apart")
		profiles = flag.String("profile", "", "`folder` for CPU profiles of the product's extproc, one for each closed-loop measurement (it costs a little)")
		names    = flag.String("paths", "", "measure only these `paths`, such as noop,aid")
		socket   = flag.String("noop", "", "internal: serve the no-op ext_proc on this Unix `socket`")
		port     = flag.Int("provider", 0, "internal: be the test provider on this `port`")
	)
	flag.Parse()
	switch {
	case *socket != "":
		return serveNoop(ctx, *socket)
	case *port != 0:
		return serveProvider(ctx, *port, *events, eventEvery)
	}
	e := environment{}
	var err error
	for _, file := range []struct {
		to   *string
		from string
	}{{&e.aid, *aid}, {&e.envoy, *envoy}, {&e.valkey, *valkey}} {
		if *file.to, err = filepath.Abs(file.from); err != nil {
			return err
		}
	}
	if e.dir, err = os.MkdirTemp("", "aid-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(e.dir)
	if err := os.Chmod(e.dir, 0o755); err != nil { // as root, Postgres runs under another account
		return err
	}
	up, err := startProvider(ctx, e.dir, *events)
	if err != nil {
		return err
	}
	defer up.stop()
	e.upstream = up.addr

	progress := func(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }
	g := goals{}
	var rows []row
	defer func() {
		for _, r := range rows {
			r.stop()
		}
	}()
	for _, start := range []struct {
		name string
		path func() (*path, error)
	}{
		{"plain", func() (*path, error) { return e.startEnvoy(ctx, "plain", "") }},
		{"noop", func() (*path, error) { return e.startEnvoy(ctx, "noop", "STREAMED") }},
		{"aid", func() (*path, error) { return e.startGoverned(ctx, "aid", *profiles != "") }},
		{"aid-valkey", func() (*path, error) { return e.startShared(ctx, "aid-valkey") }},
		{"aid-no-limits", func() (*path, error) { return e.startAID(ctx, "aid-no-limits", "stream", false) }},
		{"aid-usage-envoy", func() (*path, error) { return e.startAID(ctx, "aid-usage-envoy", "envoy", false) }},
	} {
		if *names != "" && !slices.Contains(strings.Split(*names, ","), start.name) {
			continue
		}
		p, err := start.path()
		if err != nil {
			return fmt.Errorf("%s: %w", start.name, err)
		}
		progress("%s answers on %s", p.name, p.addr)
		rows = append(rows, row{p.name, p})
		if p.name == "noop" { // the difference between its two rows is the machine's noise
			rows = append(rows, row{"noop again", p})
		}
	}
	if g.fsync, err = fsyncLatency(e.dir); err != nil {
		return err
	}
	idle := map[string]float64{}
	for _, r := range rows {
		idle[r.name] = r.rss()
	}

	var drivers []string
	for _, shape := range []struct {
		name  string
		size  int
		conns int
	}{
		{"1 KB JSON, 64 connections", 1 << 10, 64},
		{"1 KB JSON, 16 connections", 1 << 10, 16},
		{"1 KB JSON, 1 connection", 1 << 10, 1},
		{"100 KB JSON, 16 connections", 100 << 10, 16},
	} {
		progress("%s: %d rounds of %v for each of %d paths", shape.name, *rounds, *duration, len(rows))
		got := map[string][]measured{}
		for round := range *rounds {
			for _, r := range rows {
				profiled := make(chan error, 1)
				if *profiles != "" && round == 0 && r.name == "aid" {
					file := filepath.Join(*profiles, strings.ReplaceAll(strings.ReplaceAll(shape.name, ",", ""), " ", "-")+".pprof")
					go func() { profiled <- r.profile(ctx, file, *duration) }()
				} else {
					profiled <- nil
				}
				own := cpuTime(os.Getpid()) + up.cpu()["provider"]
				m, err := r.measure(ctx, load{addr: r.addr, requests: r.chats(modelPassed, shape.size, false), conns: shape.conns, duration: *duration})
				if err != nil {
					return fmt.Errorf("%s: %w", shape.name, err)
				}
				if m.rejected > 0 {
					progress("%s: %d of %d responses were not 200: %.300q", r.name, m.rejected, m.rejected+m.requests, m.why)
				}
				if r.name == "plain" && round == 0 {
					own = cpuTime(os.Getpid()) + up.cpu()["provider"] - own
					drivers = append(drivers, fmt.Sprintf("%.0f µs (%s)", float64(own.Microseconds())/float64(m.requests), shape.name))
				}
				got[r.name] = append(got[r.name], m)
				if err := <-profiled; err != nil {
					return fmt.Errorf("profiling: %w", err)
				}
			}
		}
		table(out, shape.name, rows, got)
		g.closed(shape.name, shape.conns, shape.size, got)
	}
	if len(drivers) > 0 {
		fmt.Fprintf(out, "\nThe load and the test provider together use, in addition, for each request: %s.\n", strings.Join(drivers, ", "))
	}

	for _, n := range []int{20, 100, 1000} {
		name := fmt.Sprintf("SSE, %d streams, an event each %v", n, eventEvery)
		progress("%s: %d rounds", name, *rounds)
		got := map[string][]measured{}
		for range *rounds {
			for _, r := range rows {
				m, err := r.measure(ctx, streams(r.path, modelPassed, n))
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				got[r.name] = append(got[r.name], m)
			}
		}
		fmt.Fprintf(out, "\n### %s\n\n| path | CPU per event, µs (Envoy + ext_proc) | of Envoy alone | of no-op |\n|---|---|---|---|\n", name)
		base, floor := median(got["plain"], pathOf), median(got["noop"], pathOf)
		for _, r := range rows {
			m := got[r.name]
			fmt.Fprintf(out, "| %s | %.1f (%.1f + %.1f) | %.2f | %.2f |\n", r.name, median(m, pathOf), median(m, envoyOf), median(m, extprocOf), median(m, pathOf)/base, median(m, pathOf)/floor)
		}
		g.streamed(n, got)
	}
	if i := slices.IndexFunc(rows, func(r row) bool { return r.name == "aid-no-limits" }); i >= 0 {
		progress("translated: %d rounds", *rounds)
		if err := translated(ctx, out, rows[i].path, *rounds, 100, *duration); err != nil {
			return fmt.Errorf("translated: %w", err)
		}
	}
	fmt.Fprintf(out, "\n### Resident memory of the ext_proc process, MB\n\n| path | idle | after the load |\n|---|---|---|\n")
	for _, r := range rows {
		if r.name != "plain" && r.name != "noop again" {
			fmt.Fprintf(out, "| %s | %.0f | %.0f |\n", r.name, idle[r.name], r.rss())
		}
	}
	for _, r := range rows {
		if r.ready > 0 {
			g.add("ready, "+r.name, r.ready.Seconds(), 10, "s from the start with warm caches", true)
		}
	}
	g.add("idle memory of extproc", idle["aid-no-limits"], 40, "MB resident", true)
	g.print(out)
	return nil
}

// eventEvery is the time between two events of a stream.
const eventEvery = 5 * time.Millisecond

// measured is one run of one path.
type measured struct {
	result
	cpu map[string]float64 // µs per request, or per event of streams, by role
}

// measure drives a path, and divides the CPU time of its processes.
func (p *path) measure(ctx context.Context, l load) (measured, error) {
	before := p.cpu()
	r, err := l.run(ctx)
	if err != nil {
		return measured{}, fmt.Errorf("%s: %w\n%s", p.name, err, p.lastWords())
	}
	n := r.requests
	if l.once {
		n = r.events
	}
	m := measured{r, map[string]float64{}}
	for role, after := range p.cpu() {
		m.cpu[role] = float64((after - before[role]).Microseconds()) / float64(n)
	}
	return m, nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func envoyOf(m measured) float64    { return m.cpu["envoy"] }
func extprocOf(m measured) float64  { return m.cpu["ext_proc"] }
func controlOf(m measured) float64  { return m.cpu["control"] }
func postgresOf(m measured) float64 { return m.cpu["postgres"] }
func rateOf(m measured) float64     { return m.rate() }
func p50Of(m measured) float64      { return ms(m.p50) }
func p99Of(m measured) float64      { return ms(m.p99) }

// pathOf is the CPU time on the way of a request or an event.
func pathOf(m measured) float64 { return m.cpu["envoy"] + m.cpu["ext_proc"] }

// allOf is the CPU time of all processes of a path.
func allOf(m measured) (sum float64) {
	for _, v := range m.cpu {
		sum += v
	}
	return sum
}

func median(all []measured, of func(measured) float64) float64 {
	v := make([]float64, 0, len(all))
	for _, m := range all {
		v = append(v, of(m))
	}
	slices.Sort(v)
	return v[len(v)/2]
}

func table(out io.Writer, name string, rows []row, got map[string][]measured) {
	fmt.Fprintf(out, "\n### %s\n\n| path | CPU µs/request | of no-op | Envoy | ext_proc | control plane | Postgres | requests/s | of no-op | p50 ms | p99 ms |\n|---|---|---|---|---|---|---|---|---|---|---|\n", name)
	floor, rate := median(got["noop"], allOf), median(got["noop"], rateOf)
	for _, r := range rows {
		m := got[r.name]
		fmt.Fprintf(out, "| %s | %.0f | %.2f | %.0f | %.0f | %.0f | %.0f | %.0f | %.2f | %.2f | %.2f |\n", r.name, median(m, allOf), median(m, allOf)/floor,
			median(m, envoyOf), median(m, extprocOf), median(m, controlOf), median(m, postgresOf), median(m, rateOf), median(m, rateOf)/rate, median(m, p50Of), median(m, p99Of))
	}
}

// translated compares chat completions that are translated for Anthropic with those
// that pass as they are, in one process, whole and streamed.
func translated(ctx context.Context, out io.Writer, p *path, rounds, n int, duration time.Duration) error {
	models := []string{modelPassed, modelTranslated}
	whole, streamed := map[string][]measured{}, map[string][]measured{}
	for range rounds {
		for _, model := range models {
			w, err := p.measure(ctx, load{addr: p.addr, requests: p.chats(model, 1<<10, false), conns: 16, duration: duration})
			if err != nil {
				return err
			}
			s, err := p.measure(ctx, streams(p, model, n))
			if err != nil {
				return err
			}
			whole[model], streamed[model] = append(whole[model], w), append(streamed[model], s)
		}
	}
	fmt.Fprintf(out, "\n### Translated for Anthropic, against passed through (1 KB JSON, 16 connections; %d streams)\n\n"+
		"| | requests/s | p50 ms | CPU µs/request (Envoy + ext_proc) | CPU µs/event (Envoy + ext_proc) | ms to the first event |\n|---|---|---|---|---|---|\n", n)
	for _, model := range models {
		w, s := whole[model], streamed[model]
		fmt.Fprintf(out, "| %s | %.0f | %.2f | %.0f + %.0f | %.1f + %.1f | %.2f |\n", model, median(w, rateOf), median(w, p50Of), median(w, envoyOf), median(w, extprocOf),
			median(s, envoyOf), median(s, extprocOf), median(s, func(m measured) float64 { return ms(m.first) }))
	}
	return nil
}

// streams are n streams at once, read to their ends.
func streams(p *path, model string, n int) load {
	return load{addr: p.addr, requests: p.chats(model, 1<<10, true), conns: n, once: true}
}

func serveProvider(ctx context.Context, port, events int, interval time.Duration) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	return (&provider{events: events, interval: interval}).serve(ctx, l.(*net.TCPListener))
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
