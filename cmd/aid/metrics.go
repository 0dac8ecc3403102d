package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/ai-identity/ai-identity/envoy"
)

// check returns why something is not ready, or nil.
type check func(context.Context) error

// stillReady is a check's error that /readyz shows while it stays green.
type stillReady string

func (s stillReady) Error() string { return string(s) }

// status serves /metrics, /healthz (this process responds) and /readyz (it can work, or the
// reason why it cannot). Every aid process has it.
func status(metrics http.Handler, ready check) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 8*time.Second)
		defer cancel()
		err := ready(ctx)
		if still := stillReady(""); errors.As(err, &still) {
			io.WriteString(w, "ready\n"+string(still)+"\n")
			return
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "ready\n")
	})
	return mux
}

// profiled adds Go's profiles under /debug/pprof/ to a status server, if on is set. They
// reveal internals of this process, and cost CPU while they run.
func profiled(h http.Handler, on bool) http.Handler {
	if !on {
		return h
	}
	mux := http.NewServeMux()
	mux.Handle("/", h)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// withEnvoy adds Envoy's statistics under /metrics/envoy. Envoy's admin interface can also
// stop Envoy and shows its configuration, so it stays on a private socket.
func withEnvoy(h http.Handler, socket string) http.Handler {
	if socket == "" {
		return h
	}
	admin := envoy.Admin(socket)
	mux := http.NewServeMux()
	mux.Handle("/", h)
	mux.HandleFunc("GET /metrics/envoy", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 8*time.Second)
		defer cancel()
		text, err := admin.Get(ctx, "/stats/prometheus")
		if err != nil {
			http.Error(w, "Envoy does not respond on --envoy-admin "+socket+": "+err.Error(), http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", string(expfmt.NewFormat(expfmt.TypeTextPlain)))
		w.Write(filtered(text)) //nolint:errcheck // the scraper has gone
	})
	return mux
}

// readiness is the state of /readyz: red at the start, then the result of the check, and red
// again once the process begins to stop.
type readiness struct {
	stopping atomic.Bool
	check    atomic.Pointer[check]
}

func (r *readiness) set(c check) { r.check.Store(&c) }
func (r *readiness) stop()       { r.stopping.Store(true) }

func (r *readiness) ask(ctx context.Context) error {
	c := r.check.Load()
	switch {
	case r.stopping.Load():
		return errors.New("stopping")
	case c == nil:
		return errors.New("starting")
	}
	return (*c)(ctx)
}

// announceEvery is how often a process asks itself whether it is ready. Until it is ready
// for the first time it asks more often.
const announceEvery, announceFirst = 10 * time.Second, 500 * time.Millisecond

// announce returns a part that logs a line when the process becomes ready, with what it
// serves. It logs another, with the reason, when the process is no longer ready.
func (r *readiness) announce(log *slog.Logger, serves func() []any) func(context.Context) error {
	return func(ctx context.Context) error {
		every, was := announceFirst, false
		for {
			timer := time.NewTimer(every)
			select {
			case <-ctx.Done():
				timer.Stop()
				return nil
			case <-timer.C:
			}
			ask, cancel := context.WithTimeout(ctx, 8*time.Second)
			err := r.ask(ask)
			cancel()
			if still := stillReady(""); errors.As(err, &still) {
				err = nil
			}
			switch is := err == nil; {
			case ctx.Err() != nil || r.stopping.Load():
				return nil
			case is && !was:
				log.Info("ready", serves()...)
				every, was = announceEvery, true
			case !is && was:
				log.Warn("not ready", "err", err)
				was = false
			}
		}
	}
}

// registered serves the metrics of this process.
func registered(reg *prometheus.Registry, log *slog.Logger) http.Handler {
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError), Timeout: 10 * time.Second,
	})
}

// gathered returns the metrics of a registry in the text format.
func gathered(reg *prometheus.Registry) ([]byte, error) {
	families, err := reg.Gather()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&out, f); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// remember caches the result of a check for a while, so that frequent calls are cheap.
// Concurrent calls run the check once.
func remember(d time.Duration, c check) check {
	var mu sync.Mutex
	var last error
	var until time.Time
	return func(ctx context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); !now.Before(until) {
			last, until = c(ctx), now.Add(d)
		}
		return last
	}
}

// readyOver returns a check of a child process on its Unix socket.
func readyOver(name string, client *http.Client) check {
	return func(ctx context.Context) error {
		body, err := get(ctx, client, "http://"+name+"/readyz")
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		_ = body
		return nil
	}
}

func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, errors.Unwrap(err) // without the URL, which has no meaning for a socket
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode != http.StatusOK:
		return nil, errors.New(string(bytes.TrimSpace(body[:min(len(body), 500)])))
	}
	return body, nil
}

// scrape requests the metrics of one process, in the text format.
type scrape struct {
	process string
	text    func(context.Context) ([]byte, error)
}

// merged serves the metrics of several processes together. Each sample has a label with its
// process. For a process that does not respond, aid_up_scrape_ok is 0.
func merged(log *slog.Logger, scrapes ...scrape) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 8*time.Second)
		defer cancel()
		texts := make([][]byte, len(scrapes))
		var wg sync.WaitGroup
		for i, s := range scrapes {
			wg.Go(func() {
				var err error
				if texts[i], err = s.text(ctx); err != nil {
					log.Warn("scraping", "of", s.process, "err", err)
					texts[i] = nil
				}
			})
		}
		wg.Wait()
		families := map[string]*dto.MetricFamily{}
		ok := &dto.MetricFamily{
			Name: ptr("aid_up_scrape_ok"), Help: ptr("Whether the process responded to this scrape."), Type: dto.MetricType_GAUGE.Enum(),
		}
		families[ok.GetName()] = ok
		for i, s := range scrapes {
			value := 1.0
			if err := merge(families, s.process, texts[i]); err != nil || texts[i] == nil {
				value = 0
				if err != nil {
					log.Warn("reading metrics", "of", s.process, "err", err)
				}
			}
			ok.Metric = append(ok.Metric, &dto.Metric{Label: []*dto.LabelPair{label("process", s.process)}, Gauge: &dto.Gauge{Value: &value}})
		}
		w.Header().Set("Content-Type", string(expfmt.NewFormat(expfmt.TypeTextPlain)))
		names := make([]string, 0, len(families))
		for name := range families {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			if _, err := expfmt.MetricFamilyToText(w, families[name]); err != nil {
				return // the scraper has gone
			}
		}
	})
}

// merge adds the samples in text to families. If two processes have different types for a
// metric, the first one is used and the other one is left out.
func merge(families map[string]*dto.MetricFamily, process string, text []byte) error {
	p := expfmt.NewTextParser(model.UTF8Validation)
	parsed, err := p.TextToMetricFamilies(bytes.NewReader(text))
	for name, f := range parsed {
		for _, m := range f.Metric {
			m.Label = append(m.Label, label("process", process))
			slices.SortFunc(m.Label, func(a, b *dto.LabelPair) int { return cmp.Compare(a.GetName(), b.GetName()) })
		}
		if have := families[name]; have == nil {
			families[name] = f
		} else if have.GetType() == f.GetType() {
			have.Metric = append(have.Metric, f.Metric...)
		}
	}
	return err
}

func label(name, value string) *dto.LabelPair { return &dto.LabelPair{Name: &name, Value: &value} }

func ptr[T any](v T) *T { return &v }

// envoyMetrics matches Envoy's metrics for operators: downstream and upstream traffic, and
// the counters of ext_proc. Some must stay 0 (failure_mode_allowed,
// spurious_msgs_received, …).
var envoyMetrics = regexp.MustCompile(`^envoy_(http_(downstream_(rq|cx)|ext_proc|no_route|passthrough)|ext_proc|cluster_(upstream_(rq|cx)|ext_proc|circuit|membership)|control_plane|cluster_manager|listener_(manager|downstream)|overload|server_(uptime|live|version|memory|concurrency|total_connections|worker)|runtime_load)`)

// filtered returns the metrics that match envoyMetrics, out of Envoy's thousands.
func filtered(text []byte) []byte {
	var out bytes.Buffer
	for line := range bytes.Lines(text) {
		name := line
		if rest, ok := bytes.CutPrefix(line, []byte("# TYPE ")); ok {
			name = rest
		} else if bytes.HasPrefix(line, []byte("#")) {
			continue
		}
		if envoyMetrics.Match(name) {
			out.Write(line)
		}
	}
	return out.Bytes()
}
