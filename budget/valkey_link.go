package budget

import (
	"context"
	"crypto/sha1"
	"crypto/tls"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valkey-io/valkey-go"
)

//go:embed lua/begin.lua
var luaBegin string

//go:embed lua/reserve.lua
var luaReserve string

//go:embed lua/settle.lua
var luaSettle string

//go:embed lua/beat.lua
var luaBeat string

//go:embed lua/join.lua
var luaJoin string

//go:embed lua/seed.lua
var luaSeed string

//go:embed lua/compare.lua
var luaCompare string

//go:embed lua/bury.lua
var luaBury string

//go:embed lua/session.lua
var luaSession string

//go:embed lua/renew.lua
var luaRenew string

// script is one that the store runs.
type script struct {
	name string
	*valkey.Lua
}

func newScript(name, text string) script { return script{name, valkey.NewLuaScript(luaBegin + text)} }

var (
	scriptReserve = newScript("reserve", luaReserve)
	scriptSettle  = newScript("settle", luaSettle)
	scriptBeat    = newScript("beat", luaBeat)
	scriptJoin    = newScript("join", luaJoin)
	scriptSeed    = newScript("seed", luaSeed)
	scriptCompare = newScript("compare", luaCompare)
	scriptBury    = newScript("bury", luaBury)
	scriptSession = newScript("session", luaSession)
	scriptRenew   = newScript("renew", luaRenew)

	settleSHA = fmt.Sprintf("%x", sha1.Sum([]byte(luaBegin+luaSettle))) // as EVALSHA names it
)

// ValkeyConfig configures a Valkey.
type ValkeyConfig struct {
	// Addresses are host:port of a server, or of some nodes of a cluster.
	Addresses []string
	// TLS returns the current TLS configuration, for each new connection. Nil: without TLS.
	TLS func() *tls.Config
	// Username is of an ACL; "": default.
	Username string
	// Password returns the current password, for each new connection. Nil: none.
	Password func() (string, error)
	Sums     SharedSums

	Log        *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

func (c ValkeyConfig) check() error {
	switch {
	case len(c.Addresses) == 0:
		return errors.New("the shared store has no address")
	case c.Sums == nil || c.Log == nil:
		return errors.New("the shared store needs sums and a log")
	case c.Username != "" && c.Password == nil:
		return errors.New("the shared store's user has no password")
	}
	return nil
}

// ParseStoreURL reads the URL of a shared store: redis://host:port, or rediss:// for TLS. More
// nodes of a cluster follow after commas. Everything else in it is rejected by name.
func ParseStoreURL(text string) (addresses []string, secure bool, err error) {
	scheme, rest, ok := strings.Cut(text, "://")
	switch {
	case !ok:
		return nil, false, errors.New("it is no URL: write redis://host:port, or rediss://host:port for TLS")
	case scheme == "rediss" || scheme == "valkeys":
		secure = true
	case scheme != "redis" && scheme != "valkey":
		return nil, false, fmt.Errorf("the scheme %q is not known: write redis, or rediss for TLS", scheme)
	}
	rest = strings.TrimSuffix(rest, "/")
	switch {
	case strings.Contains(rest, "@"):
		return nil, false, errors.New("it has a user or a password: set them with --redis-user and --redis-password-file")
	case strings.ContainsAny(rest, "?#"):
		return nil, false, errors.New("it has options after ? or #: leave them out")
	case strings.Contains(rest, "/"):
		return nil, false, errors.New("it names a database: leave it out, only database 0 is used")
	}
	for _, a := range strings.Split(rest, ",") {
		u, err := url.Parse("redis://" + a)
		if err != nil || u.Hostname() == "" {
			return nil, false, fmt.Errorf("the address %q is not host:port", a)
		}
		port := u.Port()
		if port == "" {
			port = "6379"
		}
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return nil, false, fmt.Errorf("the port of the address %q is not a number from 1 to 65535", a)
		}
		addresses = append(addresses, net.JoinHostPort(u.Hostname(), port))
	}
	return addresses, secure, nil
}

// ErrStoreUnfit is wrapped by the error about a store that would lose counts.
var ErrStoreUnfit = errors.New("the shared store cannot be used")

// link is a connection to the store.
type link struct{ client valkey.Client }

func (v *Valkey) options() valkey.ClientOption {
	o := valkey.ClientOption{
		InitAddress: v.c.Addresses, ClientName: "aid-extproc",
		Dialer:           net.Dialer{Timeout: callTimeout, KeepAlive: callTimeout},
		ConnWriteTimeout: 2 * callTimeout,
		DisableCache:     true, DisableRetry: true, AlwaysPipelining: true,
		PipelineMultiplex: 1, ReadBufferEachConn: 64 << 10, WriteBufferEachConn: 64 << 10,
	}
	if v.c.TLS != nil {
		o.DialCtxFn = func(ctx context.Context, address string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
			return (&tls.Dialer{NetDialer: d, Config: v.c.TLS()}).DialContext(ctx, "tcp", address)
		}
	}
	if v.c.Password != nil {
		o.AuthCredentialsFn = func(valkey.AuthCredentialsContext) (valkey.AuthCredentials, error) {
			password, err := v.c.Password()
			return valkey.AuthCredentials{Username: v.c.Username, Password: password}, err
		}
	}
	return o
}

// connect makes a connection, and checks that the store keeps what is written.
func (v *Valkey) connect(ctx context.Context) (*link, error) {
	client, err := valkey.NewClient(v.options())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStoreAway, err)
	}
	l := &link{client}
	if err := l.inspect(ctx); err != nil {
		client.Close()
		return nil, err
	}
	return l, nil
}

// inspect checks each node's version, and that it evicts nothing.
func (l *link) inspect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for address, node := range l.client.Nodes() {
		server, err := node.Do(ctx, node.B().Info().Section("server").Build()).ToString()
		if err != nil {
			return fmt.Errorf("%w: reading INFO server of %s: %w", ErrStoreAway, address, err)
		}
		memory, err := node.Do(ctx, node.B().Info().Section("memory").Build()).ToString()
		if err != nil {
			return fmt.Errorf("%w: reading INFO memory of %s: %w", ErrStoreAway, address, err)
		}
		version := entry(server, "valkey_version")
		if version == "" {
			version = entry(server, "redis_version")
		}
		major, _, _ := strings.Cut(version, ".")
		if n, err := strconv.Atoi(major); err != nil || n < 7 {
			return fmt.Errorf("%w: %s is version %q: Redis or Valkey 7 or later is required", ErrStoreUnfit, address, version)
		}
		if policy := entry(memory, "maxmemory_policy"); policy != "noeviction" {
			return fmt.Errorf("%w: %s has maxmemory-policy %q and would forget counts: set noeviction", ErrStoreUnfit, address, policy)
		}
	}
	return nil
}

// entry is a value of the reply to INFO.
func entry(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// Check connects once. The error wraps ErrStoreUnfit if the store cannot be used as it is, and
// ErrStoreAway if it does not answer.
func (v *Valkey) Check(ctx context.Context) error {
	l, err := v.connect(ctx)
	if err != nil {
		return err
	}
	l.client.Close()
	return nil
}

// Run keeps the connection and what is in the store, until ctx ends. Then it sends the
// completions that wait.
func (v *Valkey) Run(ctx context.Context) error {
	v.mu.Lock()
	v.ctx = ctx
	for _, o := range v.orgs {
		v.follow(o)
	}
	v.mu.Unlock()
	sent := make(chan struct{})
	sending, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	go func() {
		defer close(sent)
		v.send(sending)
	}()
	v.keep(ctx)
	v.begun.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	for v.waiting() > 0 && last.Err() == nil && v.link.Load() != nil {
		v.wakeUp()
		select {
		case <-last.Done():
		case <-time.After(retryEvery / 20):
		}
	}
	stop()
	<-sent
	if l := v.link.Swap(nil); l != nil {
		l.client.Close()
	}
	return nil
}

func (v *Valkey) waiting() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.settling) + v.sending
}

// keep connects, and again after the connection was given up.
func (v *Valkey) keep(ctx context.Context) {
	var before string
	looked := v.now()
	tick := time.NewTicker(v.retry)
	defer tick.Stop()
	for {
		l, err := v.link.Load(), error(nil)
		switch {
		case l == nil:
			if l, err = v.connect(ctx); err == nil {
				v.link.Store(l)
				v.pokeAll()
			}
		case v.now().Sub(looked) > time.Minute:
			looked = v.now()
			if err = l.inspect(ctx); errors.Is(err, ErrStoreUnfit) {
				v.drop(l)
			}
		}
		if err != nil && ctx.Err() == nil && err.Error() != before {
			v.c.Log.ErrorContext(ctx, "the shared store of counts is not usable: USD caps reject, and rates count for each sidecar", "err", err)
		}
		before = ""
		if err != nil {
			before = err.Error()
			v.m.errors.WithLabelValues(cause(err)).Inc()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (v *Valkey) pokeAll() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, o := range v.orgs {
		o.pokeLocked()
	}
	v.wakeUp()
}

// drop gives a connection up. keep makes another one.
func (v *Valkey) drop(l *link) {
	if v.link.CompareAndSwap(l, nil) {
		time.AfterFunc(callTimeout, l.client.Close) // calls in progress see errors of their own
	}
}

// call runs a script. After an error the org counts as away until a heartbeat gets a reply.
func (v *Valkey) call(ctx context.Context, o *shared, timeout time.Duration, s script, keys, args []string) (reply, error) {
	l := v.link.Load()
	if l == nil {
		o.note(func() { o.away = true })
		return reply{}, ErrStoreAway
	}
	within, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r, err := read(s.Exec(within, l.client, keys, args))
	switch {
	case err != nil && ctx.Err() != nil:
		return reply{}, fmt.Errorf("%w: %w", ErrStoreAway, ctx.Err()) // the caller has gone
	case err != nil:
		v.failed(o, l, s, err)
		return reply{}, fmt.Errorf("%w: %w", ErrStoreAway, err)
	}
	if s.name != scriptJoin.name {
		if s.name == scriptReserve.name && (r.word == "ok" || r.word == "no" || r.word == "again") && len(r.rest) > 0 {
			r.state = r.rest[0]
		}
		o.got(args, r)
	}
	return r, nil
}

// failed notes a call without a reply.
func (v *Valkey) failed(o *shared, l *link, s script, err error) {
	v.m.errors.WithLabelValues(cause(err)).Inc()
	o.note(func() {
		if !o.away {
			v.c.Log.Warn("the shared store of counts is away for an org", "org", o.name, "script", s.name, "err", err)
		}
		o.away = true
	})
	if e, ok := valkey.IsValkeyErr(err); ok && strings.HasPrefix(e.Error(), "READONLY") {
		v.drop(l) // it is a replica now: the name leads elsewhere
	}
}

// cause is the reason of an error for metrics.
func cause(err error) string {
	switch e, ok := valkey.IsValkeyErr(err); {
	case errors.Is(err, ErrStoreUnfit):
		return "unfit"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case ok && strings.HasPrefix(e.Error(), "READONLY"):
		return "readonly"
	case ok:
		return "rejected"
	}
	return "connection"
}

// read reads the reply of a script.
func read(result valkey.ValkeyResult) (r reply, err error) {
	parts, err := result.AsStrSlice()
	if err != nil {
		return r, err
	}
	if len(parts) < 3 {
		return r, fmt.Errorf("a reply of %d parts", len(parts))
	}
	sec, err1 := strconv.ParseInt(parts[1], 10, 64)
	micro, err2 := strconv.ParseInt(parts[2], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return r, err
	}
	return reply{word: parts[0], at: time.Unix(sec, micro*1000), rest: parts[3:]}, nil
}

// records are the values of a hash.
func (v *Valkey) records(ctx context.Context, key string) (map[string]string, error) {
	l := v.link.Load()
	if l == nil {
		return nil, ErrStoreAway
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return l.client.Do(ctx, l.client.B().Hgetall().Key(key).Build()).AsStrMap()
}

// send sends completions, in one pipeline at a time. What gets no reply is sent again.
func (v *Valkey) send(ctx context.Context) {
	const most = 256
	for {
		var batch, left []settlement
		v.mu.Lock()
		for _, s := range v.settling {
			if len(batch) < most && !s.org.joining {
				batch = append(batch, s)
			} else {
				left = append(left, s)
			}
		}
		v.settling, v.sending = left, len(batch)
		v.mu.Unlock()
		failed := v.sendBatch(ctx, batch)
		v.mu.Lock()
		v.settling, v.sending = append(failed, v.settling...), 0
		more := len(batch) > 0 && len(left) > 0 && len(failed) == 0
		v.mu.Unlock()
		if more {
			continue
		}
		timer := time.NewTimer(v.retry)
		if len(failed) > 0 { // not at once
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
			continue
		}
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-v.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// sendBatch returns the completions that got no reply.
func (v *Valkey) sendBatch(ctx context.Context, batch []settlement) (failed []settlement) {
	l := v.link.Load()
	if l == nil || len(batch) == 0 {
		return batch
	}
	within, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	commands := make(valkey.Commands, len(batch))
	all := make([][]string, len(batch))
	for i, s := range batch {
		numbers, _ := s.org.number(v.id)
		all[i] = append(numbers, s.args...)
		commands[i] = l.client.B().Evalsha().Sha1(settleSHA).Numkeys(int64(len(s.keys))).Key(s.keys...).Arg(all[i]...).Build()
	}
	for i, result := range l.client.DoMulti(within, commands...) {
		r, err := read(result)
		if e, ok := valkey.IsValkeyErr(err); ok && e.IsNoScript() {
			r, err = read(scriptSettle.Exec(within, l.client, batch[i].keys, all[i]))
		}
		if err != nil {
			failed = append(failed, batch[i])
			if len(failed) == 1 && ctx.Err() == nil {
				v.failed(batch[i].org, l, scriptSettle, err)
			}
			continue
		}
		batch[i].org.got(all[i], r)
	}
	return failed
}

// storeMetrics are those of the shared store. No label takes a value from a request.
type storeMetrics struct {
	seconds     prometheus.Histogram
	errors      *prometheus.CounterVec
	generations prometheus.Counter
	corrected   *prometheus.CounterVec
}

func newStoreMetrics(r prometheus.Registerer, inFlight func() (away, waiting int)) (*storeMetrics, error) {
	m := &storeMetrics{
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "aid_budget_store_seconds", Help: "Time for taking a request from its limits in the shared store.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25},
		}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "aid_budget_store_errors_total", Help: "Calls to the shared store that failed, by cause.",
		}, []string{"cause"}),
		generations: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "aid_budget_store_generations_total", Help: "How often an org's counts began anew from the audit log, at a start or since the shared store lost counts.",
		}),
		corrected: newCorrected("aid_budget_store_corrected_nano_usd_total", "Nano-dollars by which counts of the shared store differed from the audit log, and were corrected. added: the store had less. removed: it had more."),
	}
	for _, c := range []string{"connection", "dropped", "readonly", "rejected", "timeout", "unfit"} {
		m.errors.WithLabelValues(c) // alerts need them before the first error
	}
	if r == nil {
		return m, nil
	}
	away := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "aid_budget_store_away_orgs", Help: "Orgs for which the shared store does not answer. Their USD caps reject.",
	}, func() float64 { n, _ := inFlight(); return float64(n) })
	waiting := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "aid_budget_store_waiting", Help: "Completions that wait for the shared store.",
	}, func() float64 { _, n := inFlight(); return float64(n) })
	for _, c := range []prometheus.Collector{m.seconds, m.errors, m.generations, m.corrected, away, waiting} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
	}
	return m, nil
}
