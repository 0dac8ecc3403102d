package budget

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ErrStoreAway rejects a request under a USD cap while the shared store does not answer.
var ErrStoreAway = errors.New("the shared store of counts does not answer")

// SharedSums is what the audit log has of an org whose counts are in a shared store.
type SharedSums interface {
	// Sums returns the sums of each counter of the org.
	Sums(ctx context.Context, org string, counters []string) ([]Sum, error)
	// Sidecars returns how many sidecars serve the org, this one included.
	Sidecars(ctx context.Context, org string) (int, error)
	// Shipped returns nil once the control plane has every record of the org that this
	// process and earlier ones have made so far.
	Shipped(ctx context.Context, org string) error
}

// Sum is what the audit log has of a counter, in nano-dollars.
type Sum struct {
	Charged  int64
	Reserved int64 // by recorded decisions without a completion
}

const (
	// answerTimeout is how long a call may take on the path of a request.
	answerTimeout = 100 * time.Millisecond
	// callTimeout bounds the other calls.
	callTimeout = time.Second
	// slotLease is how long a slot counts whose sidecar no longer renews it.
	slotLease = 30 * time.Second
	// silent is how long a sidecar counts that does not call.
	silent = 30 * time.Second
	// beatEvery is the time between heartbeats, and retryEvery while something is amiss.
	beatEvery  = time.Second
	retryEvery = 200 * time.Millisecond
	// joinTimeout bounds one attempt to join a generation.
	joinTimeout = 5 * time.Second
	// maxSettling is how many completions may wait for the store. With more, the counts are
	// read from the audit log again when it is back.
	maxSettling = 100_000
	// maxCompared bounds the counts that are compared with the audit log each minute.
	maxCompared = 1000
	// maxRemembered bounds the counts that are known to admit nothing.
	maxRemembered = 100_000
	// kept is how long a USD cap's count is kept after its period.
	kept = 48 * time.Hour
)

// Valkey keeps counts in a Redis or Valkey that sidecars share. Make one with NewValkey. Run
// must run while it is used. It is safe for concurrent use.
//
// Each request takes from all its limits in one script, by the store's clock. All keys of an
// org have one hash tag, so a cluster keeps them together. If the store does not answer, USD
// caps reject and each sidecar counts its share of the rates.
//
// The store may lose writes. Each call has a number of this sidecar, and the store
// keeps the last one. If it has an older one, counts were lost, and a new generation begins:
// USD caps reject until every sidecar has joined it. A sidecar joins once the control plane
// has all its records. From then on counts begin with the sums of the audit log.
type Valkey struct {
	c    ValkeyConfig
	id   string // of this process
	near *Memory
	now  func() time.Time

	every, retry time.Duration // of heartbeats
	answer       time.Duration // answerTimeout

	link  atomic.Pointer[link] // nil: there is no connection
	begun sync.WaitGroup
	ctx   context.Context // of Run; nil: it does not run
	m     *storeMetrics

	mu   sync.Mutex
	orgs map[string]*shared
	held map[string]*holding

	settling []settlement
	sending  int // on their way
	wake     chan struct{}
	denials  map[string]denial
}

// shared is one org.
type shared struct {
	name string

	mu      sync.Mutex
	seq     uint64
	acked   uint64 // the highest number in gen that got a reply
	gen     string // "": not joined
	lost    string // the generation that has lost counts
	ready   bool
	away    bool
	others  int // sidecars that serve the org, from the control plane; 0: not known
	changed chan struct{}
	why     error     // the last error of joining
	unready time.Time // since when it is not ready
	// renewed is when all slots were renewed, in the generation renewedIn.
	renewed   time.Time
	renewedIn string
	spans     map[zoned]since
	asking    map[string]chan struct{} // by counter: closed when it is known
	used      map[string]*watched      // by counter: caps that compare has to look at
	poke      chan struct{}

	// heard are the store's clock at the last two heartbeats, in microseconds. What is called
	// now is later than the first of them.
	heard [2]int64

	joining bool // its completions wait; guarded by Valkey.mu
}

// since is a period, and an instant of the store's clock in it.
type since struct {
	name string
	at   int64
	end  time.Time
}

// holding is what a request holds.
type holding struct {
	org    *shared
	limits []Limit
	gen    string
	near   bool // it is held in this process, since the store was away
	slots  bool
	// recorded: the audit log of this sidecar has what it holds.
	recorded bool
}

// settlement waits to be sent.
type settlement struct {
	org  *shared
	keys []string
	args []string // after those of begin.lua
}

// denial is what is known of a count that admits nothing.
type denial struct {
	most   int64
	gen    string
	until  time.Time
	used   int64 // of a cap: what was charged and reserved
	result Result
}

// NewValkey returns a Valkey that connects once Run runs.
func NewValkey(c ValkeyConfig) (*Valkey, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	v := &Valkey{
		c: c, id: rand.Text(), near: NewMemory(time.Now, nil), now: time.Now, every: beatEvery, retry: retryEvery, answer: answerTimeout,
		orgs: map[string]*shared{}, held: map[string]*holding{},
		wake: make(chan struct{}, 1), denials: map[string]denial{},
	}
	m, err := newStoreMetrics(c.Registerer, v.inFlight)
	if err != nil {
		return nil, err
	}
	v.m = m
	return v, nil
}

func (v *Valkey) inFlight() (away, waiting int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, o := range v.orgs {
		o.mu.Lock()
		if o.away {
			away++
		}
		o.mu.Unlock()
	}
	return away, len(v.settling)
}

// Reserve takes the request from every limit, or from none, as Memory.Reserve does. The error
// wraps ErrStoreAway, ErrUnknownSums or ErrStoreRequired.
func (v *Valkey) Reserve(ctx context.Context, org, id string, limits []Limit) (Result, error) {
	if len(limits) == 0 {
		return Result{OK: true, Which: -1}, nil
	}
	o, err := v.org(org)
	if err != nil {
		return Result{}, err
	}
	v.mu.Lock()
	h := v.held[id]
	v.mu.Unlock()
	if h != nil {
		copy(limits, h.limits)
		return Result{OK: true, Which: -1}, nil
	}
	money := spends(limits)
	if r, denied := v.remembered(o, limits); denied {
		return r, nil
	}
	const attempts = 5 // each has another cause: a period's end, a loss, a count that is not known
	for range attempts {
		if money {
			if err := o.wait(ctx); err != nil {
				return Result{}, err
			}
		}
		if o.isAway() || v.link.Load() == nil {
			return v.nearby(ctx, o, id, limits)
		}
		v.locate(o, limits)
		o.watch(limits)
		reply, gen, err := v.take(ctx, o, id, limits, money)
		switch {
		case err != nil && ctx.Err() != nil:
			return Result{}, fmt.Errorf("%w: %w", ErrStoreAway, ctx.Err())
		case err != nil:
			return v.nearby(ctx, o, id, limits)
		}
		switch reply.word {
		case "ok", "no", "again":
			return v.result(o, id, gen, limits, reply)
		case "period":
			o.turn(reply.at)
		case "gen", "lost", "wait":
			o.behind(reply.word, gen)
		case "unknown":
			if err := v.learn(ctx, o, gen, limits, reply.rest); err != nil {
				return Result{}, err
			}
		case "ended":
			return Result{}, fmt.Errorf("%w: the request has ended", ErrStoreAway)
		default:
			return Result{}, fmt.Errorf("%w: its reply %q is not known", ErrStoreAway, reply.word)
		}
	}
	return Result{}, fmt.Errorf("%w: the shared store's counts change too fast", ErrUnknownSums)
}

// nearby counts a request in this process, against its share of each limit. Under a USD cap
// it rejects.
func (v *Valkey) nearby(ctx context.Context, o *shared, id string, limits []Limit) (Result, error) {
	for i := range limits {
		if limits[i].Kind.Money() && limits[i].amount() > 0 {
			return Result{}, ErrStoreAway
		}
	}
	n := o.sidecars()
	if n <= 0 {
		return Result{}, fmt.Errorf("%w, and how many sidecars share the limits is not known", ErrStoreAway)
	}
	share := make([]Limit, len(limits))
	copy(share, limits)
	for i := range share {
		share[i].Max /= int64(n)
	}
	r, err := v.near.Reserve(ctx, o.name, id, share)
	copy(limits, share)
	if err == nil && r.OK {
		v.hold(id, &holding{org: o, limits: share, near: true})
	}
	return r, err
}

func (v *Valkey) hold(id string, h *holding) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.held[id] = h
}

// take runs the script. Without a reply it is not known whether the request was taken, so its
// end is sent after it.
func (v *Valkey) take(ctx context.Context, o *shared, id string, limits []Limit, money bool) (reply, string, error) {
	keys, args, gen := o.reserveArgs(v.id, id, limits, money)
	began := v.now()
	r, err := v.call(ctx, o, v.answer, scriptReserve, keys, args)
	v.m.seconds.Observe(v.now().Sub(began).Seconds())
	if err != nil {
		v.settle(o, id, limits, nil, true)
	}
	return r, gen, err
}

// reserveArgs are the keys and arguments of reserve.lua.
func (o *shared) reserveArgs(me, id string, limits []Limit, money bool) (keys, args []string, gen string) {
	keys = o.keys(me, id, limits)
	args = make([]string, 0, 8+6*len(limits))
	var numbers []string
	numbers, gen = o.number(me)
	args = append(args, numbers...)
	record, holds := gen, false
	for i := range limits {
		l := &limits[i]
		holds = holds || l.Kind != Requests
		if l.Kind.Money() && !l.Shadow && l.amount() > 0 && !again(limits, i) {
			record += "\n" + strconv.FormatInt(l.amount(), 10) + " " + keys[3+i]
		}
	}
	args = append(args, id, flag(money), record, flag(holds))
	for i := range limits {
		args = append(args, terms(&limits[i], o)...)
	}
	return keys, args, gen
}

// terms are what reserve.lua needs of a limit.
func terms(l *Limit, o *shared) []string {
	n := func(i int64) string { return strconv.FormatInt(i, 10) }
	switch l.Kind {
	case Requests, Tokens, Starts:
		reach := longest
		switch l.Kind {
		case Tokens:
			reach = farthest
		case Starts:
			reach = 2 * time.Hour
		}
		if l.Max <= 0 {
			return []string{"r", "0", "0", "0", n(int64(reach)), ""}
		}
		every := interval(l.Kind.window(), l.Max)
		return []string{"r", n(int64(every) * min(l.Max, maxPerMinute)), n(int64(times(every, l.amount()))), flag(l.amount() <= l.Max), n(int64(reach)), ""}
	case Slots:
		return []string{"s", n(min(max(0, l.Max), 1<<50)), n(slotLease.Milliseconds()), "", "", ""}
	case Uses, SessionUSD:
		kind := "m"
		if l.Shadow || l.Kind == Uses {
			kind = "p"
		}
		lasts := SessionLife
		if !l.Session.Named {
			lasts = silence
		}
		return []string{kind, n(max(0, l.Max)), n(l.amount()), "0", n(1 << 50), "~" + n(int64(lasts/time.Second))}
	case Day, Month:
		kind := "m"
		if l.Shadow {
			kind = "p"
		}
		in := o.span(l)
		return []string{kind, n(max(0, l.Max)), n(l.amount()), n(in.at), n(in.end.Unix()), n(in.end.Add(kept).Unix())}
	}
	return []string{"r", "0", "0", "0", "0", ""} // a kind that cannot be counted rejects
}

func flag(is bool) string {
	if is {
		return "1"
	}
	return "0"
}

// keys of a script about a request. All have the org's hash tag.
func (o *shared) keys(me, id string, limits []Limit) []string {
	keys := make([]string, 0, 3+len(limits))
	keys = append(keys, o.key("org"), o.key("held:"+me), o.key("seen:"+id))
	for i := range limits {
		keys = append(keys, o.count(&limits[i]))
	}
	return keys
}

func (o *shared) key(name string) string { return "aid:{" + o.name + "}:" + name }

// count is the key of a limit's count.
func (o *shared) count(l *Limit) string {
	switch {
	case l.Kind == Slots:
		return o.key("slots:" + l.Key)
	case l.Kind == Uses && l.Shadow:
		return o.key("shadow:uses:" + l.Key)
	case l.Kind == Uses:
		return o.key("uses:" + l.Key)
	case l.Kind == SessionUSD && l.Shadow:
		return o.key("shadow:" + l.Key)
	case l.Kind == SessionUSD: // sidecars differ in when the session began, so that is not in its name
		return o.key("usd:" + l.Key)
	case l.Kind.Money() && l.Shadow:
		return o.key("shadow:" + l.Counter())
	case l.Kind.Money():
		return o.key("usd:" + l.Counter())
	}
	return o.key("rate:" + l.Key)
}

// result reads the reply of reserve.lua. Whether the request passes is computed from the
// same figures a second time: if the two differ, it is rejected.
func (v *Valkey) result(o *shared, id, gen string, limits []Limit, r reply) (Result, error) {
	states, err := r.states(limits)
	if err != nil {
		v.settle(o, id, limits, nil, true)
		return Result{}, err
	}
	before := slices.Clone(limits)
	for i := range limits {
		if l := &limits[i]; l.Kind.Money() || l.Kind == Uses {
			l.Reset = max(0, o.span(l).end.Sub(r.at))
		}
	}
	best := figures(limits, states)
	switch {
	case r.word == "again":
		best = Result{OK: true, Which: -1}
	case best.OK != (r.word == "ok"):
		v.settle(o, id, before, nil, true)
		return Result{}, fmt.Errorf("%w: it counts otherwise than this version", ErrStoreAway)
	case !best.OK:
		v.remember(o, gen, limits, best)
		return best, nil
	}
	h := &holding{org: o, limits: limits, gen: gen, slots: slices.ContainsFunc(limits, func(l Limit) bool { return l.Kind == Slots })}
	v.hold(id, h)
	return best, nil
}

// Recorded notes that the audit log of this sidecar has what the request holds.
func (v *Valkey) Recorded(id string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if h := v.held[id]; h != nil {
		h.recorded = true
	}
}

// Release returns what Reserve took for a request that was not forwarded.
func (v *Valkey) Release(ctx context.Context, id string) { v.end(ctx, id, nil) }

// Settle replaces what Reserve took by what the request has used. The store gets it soon
// after. A second call, or one for a request that holds nothing, changes nothing.
func (v *Valkey) Settle(ctx context.Context, id string, used Used) { v.end(ctx, id, &used) }

func (v *Valkey) end(ctx context.Context, id string, used *Used) {
	v.mu.Lock()
	h := v.held[id]
	delete(v.held, id)
	v.mu.Unlock()
	switch {
	case h == nil:
	case h.near && used == nil:
		v.near.Release(ctx, id)
	case h.near:
		v.near.Settle(ctx, id, *used)
	default:
		v.settle(h.org, id, h.limits, used, false)
	}
}

// settle sends the end of a request. used is nil if it was not forwarded.
func (v *Valkey) settle(o *shared, id string, limits []Limit, used *Used, inDoubt bool) {
	n := func(i int64) string { return strconv.FormatInt(i, 10) }
	changes := inDoubt
	args := []string{id, flag(inDoubt), n(int64(farthest)), n(o.before())}
	for i := range limits {
		l := &limits[i]
		switch l.Kind {
		case Requests, Tokens, Starts:
			by := time.Duration(0)
			switch {
			case l.Max <= 0:
			case used == nil:
				narrowest := l.Max
				for _, other := range limits[i:] {
					if other.Key == l.Key {
						narrowest = min(narrowest, other.Max) // as it was taken
					}
				}
				by = -times(interval(l.Kind.window(), narrowest), l.amount())
			case l.Kind == Tokens && used.Counted:
				if d := used.Tokens - l.amount(); d >= 0 {
					by = times(interval(l.Kind.window(), l.Max), d)
				} else {
					by = -times(interval(l.Kind.window(), l.Max), -d)
				}
			}
			changes = changes || by != 0 || l.Kind == Tokens
			args = append(args, "r", n(int64(by)), "")
		case Slots:
			changes = true
			args = append(args, "s", "", "")
		default:
			changes = true
			kind, charge := "m", int64(0)
			if l.Shadow || l.Kind == Uses {
				kind = "p"
			}
			switch {
			case used == nil:
			case l.Kind == Uses:
				charge = 1
			default:
				charge = max(0, used.NanoUSD)
			}
			args = append(args, kind, n(l.amount()), n(charge))
		}
	}
	if !changes {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.settling) >= maxSettling {
		// Too much is missing in the store: what was charged comes from the audit log.
		for _, s := range v.settling {
			s.org.forget()
		}
		v.settling = nil
		v.m.errors.WithLabelValues("dropped").Inc()
	}
	v.settling = append(v.settling, settlement{org: o, keys: o.keys(v.id, id, limits), args: args})
	v.wakeUp()
}

func (v *Valkey) wakeUp() {
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// Full returns the figures of a limit that is known to admit no request, and asks no store.
func (v *Valkey) Full(limits []Limit) (worst Result, full bool) {
	if r, full := v.near.Full(limits); full {
		return r, true
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.now()
	for i := range limits {
		l := &limits[i]
		if d, ok := v.denials[l.Key]; ok && !l.Kind.Money() && d.most == l.Max && now.Before(d.until) {
			r := d.result
			r.RetryAfter, r.Reset = d.until.Sub(now), max(0, r.Reset-(d.result.RetryAfter-d.until.Sub(now)))
			if !full || worse(r, worst) {
				worst, full = r, true
				worst.Which = i
			}
		}
	}
	return worst, full
}

// remembered rejects a request under a cap that is spent, and asks no store. A raised cap, a
// new period and a new generation are asked for.
func (v *Valkey) remembered(o *shared, limits []Limit) (r Result, denied bool) {
	gen := o.generation()
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.now()
	for i := range limits {
		l := &limits[i]
		if l.Kind != Day && l.Kind != Month || l.amount() == 0 || l.Shadow {
			continue
		}
		d, ok := v.denials[o.name+" "+l.Key]
		if !ok || d.most < l.Max || d.gen != gen || !now.Before(d.until) || gen == "" {
			continue
		}
		d.result.Limit, d.result.Remaining, d.result.Reset, d.result.Which = l.Max, 0, d.until.Sub(now), i
		for j := range limits {
			if limits[j].Kind.Money() {
				in := o.span(&limits[j])
				limits[j].Period, limits[j].Reset = in.name, max(0, in.end.Sub(now))
			}
		}
		l.Left = l.Max - d.used
		o.watch(limits)
		return d.result, true
	}
	return Result{}, false
}

// remember notes a count that admits nothing for a while.
func (v *Valkey) remember(o *shared, gen string, limits []Limit, r Result) {
	l := &limits[r.Which]
	key, until := "", v.now()
	switch {
	case l.Kind == Requests && r.RetryAfter > 0:
		key, until = l.Key, until.Add(r.RetryAfter)
	case (l.Kind == Day || l.Kind == Month) && r.Why == Spent && !l.Shadow:
		key, until = o.name+" "+l.Key, until.Add(r.Reset)
	default:
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.denials) >= maxRemembered {
		clear(v.denials)
	}
	v.denials[key] = denial{most: l.Max, gen: gen, until: until, used: l.Max - l.Left, result: r}
}

// reply is what a script has returned.
type reply struct {
	word  string
	at    time.Time // the store's clock
	state string
	rest  []string
}

// state is a count as it was before the request.
type state struct {
	ahead             time.Duration // of a rate: when it is full, from now
	slots             int64
	charged, reserved int64
}

func (r reply) states(limits []Limit) ([]state, error) {
	if len(r.rest) != len(limits)+1 {
		return nil, fmt.Errorf("%w: its reply has %d counts, not %d", ErrStoreAway, len(r.rest)-1, len(limits))
	}
	out := make([]state, len(limits))
	for i := range limits {
		text := r.rest[1+i]
		var err error
		switch limits[i].Kind {
		case Slots:
			out[i].slots, err = strconv.ParseInt(text, 10, 64)
		case Day, Month, Uses, SessionUSD:
			charged, reserved, _ := strings.Cut(text, " ")
			var err2 error
			out[i].charged, err = strconv.ParseInt(charged, 10, 64)
			out[i].reserved, err2 = strconv.ParseInt(reserved, 10, 64)
			err = errors.Join(err, err2)
		default:
			var n int64
			n, err = strconv.ParseInt(text, 10, 64)
			out[i].ahead = time.Duration(n)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: its reply has a count that is no number", ErrStoreAway)
		}
	}
	return out, nil
}

// figures sets the figures of the limits, and returns the result for states.
func figures(limits []Limit, states []state) Result {
	best := Result{OK: true, Which: -1}
	after := make([]state, len(states))
	for i := range limits {
		l, s := &limits[i], states[i]
		var r Result
		switch l.Kind {
		case Requests, Tokens, Starts:
			s.ahead, r = take(l.Kind.window(), 0, s.ahead, l.Max, l.amount())
		case Slots:
			left := l.Max - s.slots
			r = Result{OK: left > 0, Limit: l.Max, Remaining: max(0, left-1), Why: Busy}
			if !r.OK {
				r.RetryAfter = time.Second
			}
			s.slots++
		case Day, Month, Uses, SessionUSD:
			r = Result{OK: true, Limit: l.Max}
			if n := l.amount(); n > 0 {
				a := account{charged: s.charged, reserved: s.reserved, known: true, uses: l.Kind == Uses}
				r = a.take(l.Max, n, l.Reset)
				s.reserved = add(s.reserved, n)
			}
		default:
			r = Result{Why: TooLarge}
		}
		r.Which = i
		after[i] = s
		switch {
		case !r.OK && (best.OK || worse(r, best)):
			best = r
		case r.OK && best.OK && l.Kind == Requests && (best.Which < 0 || r.Remaining < best.Remaining):
			best = r
		}
	}
	if best.OK {
		states = after
	}
	for i := range limits {
		l, s := &limits[i], states[i]
		switch l.Kind {
		case Requests, Tokens, Starts:
			for j := range limits { // of equal keys the latest full bucket holds
				if limits[j].Key == l.Key {
					s.ahead = max(s.ahead, states[j].ahead)
				}
			}
			l.Left, l.Reset = left(l.Kind.window(), 0, s.ahead, l.Max), max(0, s.ahead)
		case Slots:
			l.Left, l.Reset = l.Max-s.slots, 0
		case Day, Month, Uses, SessionUSD:
			l.Left = l.Max - add(s.charged, s.reserved)
		}
	}
	return best
}
