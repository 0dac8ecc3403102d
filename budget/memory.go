package budget

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"time"
)

// Sums is what was charged before, by whichever process. Package xds has one: it asks the
// control plane, which keeps the sums of the audit log.
type Sums interface {
	// Charged returns what was charged to each counter of the org, in nano-dollars. It
	// returns an error if a charge may be missing in one of them.
	Charged(ctx context.Context, org string, counters []string) ([]int64, error)
	// Alone returns nil if no other process counts for the org. The error wraps
	// ErrStoreRequired or ErrUnknownSums.
	Alone(ctx context.Context, org string) error
}

// Memory keeps counts in this process. Make one with NewMemory. It is safe for concurrent
// use.
//
// Of rates it keeps those that were used in the last two to four minutes, and those in debt.
// Any other is a full bucket. Of USD caps it keeps the current period, and earlier ones that
// still hold a reservation. The first request under a cap waits for Sums.
type Memory struct {
	now  func() time.Time
	sums Sums

	mu     sync.Mutex
	epoch  time.Time     // what the durations below count from
	last   time.Duration // the latest now: the clock never goes back here
	turned time.Duration // when young became old
	young  map[string]time.Duration
	old    map[string]time.Duration // not used since turned

	slots    map[string]int64 // in use; none is 0
	accounts map[string]*account
	held     map[string][]Limit // by request: what Reserve took and nothing has replaced
	periods  map[zoned]span     // that of each kind which is current

	steps []step // of one Reserve; kept to save the allocation
}

// account is the count of a USD cap in one period.
type account struct {
	charged, reserved int64
	known             bool          // charged holds what was charged before
	asking            chan struct{} // closed when Sums has answered; nil: it is not asked
	err               error         // why not
	end               time.Time     // of the period
	uses              bool          // it counts requests
	session           *Limit        // of a USD cap of a session that earlier processes may have counted

	// For Comparison, of a day or month that is not in shadow.
	org   string
	moved moved
	dirty bool // it may differ from the audit log
}

type zoned struct {
	kind     Kind
	calendar *Calendar
}

type span struct {
	name string
	end  time.Time
}

// step is what one limit would do.
type step struct {
	tat     time.Duration
	account *account
	result  Result
	again   bool // an earlier limit has the same count
}

// sumsTimeout bounds the wait for Sums.
const sumsTimeout = 2 * time.Second

// NewMemory returns a Memory in which nothing was counted yet. Without sums, requests under
// USD caps are rejected.
func NewMemory(now func() time.Time, sums Sums) *Memory {
	return &Memory{
		now: now, sums: sums, epoch: now(), young: map[string]time.Duration{}, slots: map[string]int64{},
		accounts: map[string]*account{}, held: map[string][]Limit{}, periods: map[zoned]span{},
	}
}

// Reserve takes the request from every limit. If any limit is exceeded, it takes from none.
// Without limits the result is allowed. A key that is given twice is counted once, against
// the stricter of its limits.
//
// What was taken is held under the id until Settle or Release. A request whose id is held
// takes nothing more. The error wraps ErrUnknownSums or ErrStoreRequired.
func (m *Memory) Reserve(ctx context.Context, org, id string, limits []Limit) (Result, error) {
	if len(limits) == 0 {
		return Result{OK: true, Which: -1}, nil
	}
	if spends(limits) {
		if m.sums == nil {
			return Result{}, ErrUnknownSums
		}
		if err := m.sums.Alone(ctx, org); err != nil {
			return Result{}, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		m.advance()
		if before, ok := m.held[id]; ok {
			copy(limits, before)
			return Result{OK: true, Which: -1}, nil
		}
		unknown := m.locate(org, limits)
		best := m.evaluate(limits, len(unknown) > 0)
		switch {
		case !best.OK:
			m.drop(limits)
			return best, nil
		case len(unknown) == 0:
			m.take(limits)
			m.held[id] = limits
			return best, nil
		}
		if err := m.learn(ctx, org, unknown); err != nil {
			m.drop(limits)
			return Result{}, err
		}
	}
}

// Take is Reserve for limits on requests alone, for a request that nothing ends.
func (m *Memory) Take(limits []Limit) Result {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.advance()
	best := m.evaluate(limits, false)
	if best.OK {
		m.take(limits)
	}
	return best
}

// spends reports whether the request takes from a USD cap that is enforced.
func spends(limits []Limit) bool {
	for i := range limits {
		if l := &limits[i]; l.Kind.Money() && l.amount() > 0 && !l.Shadow {
			return true
		}
	}
	return false
}

// advance sets last to now, and forgets what is no longer needed.
func (m *Memory) advance() {
	m.last = max(m.last, m.now().Sub(m.epoch))
	m.turn()
}

// locate sets the period of each USD cap and returns the counters whose sums are not known.
// A cap that the request takes nothing from needs no sum.
func (m *Memory) locate(org string, limits []Limit) (unknown []string) {
	for i := range limits {
		l := &limits[i]
		if !l.Kind.Money() && l.Kind != Uses {
			continue
		}
		in := m.period(l)
		l.Period = in.name
		if l.amount() == 0 {
			continue
		}
		counter := l.Counter()
		a := m.accounts[counter]
		if a == nil {
			a = &account{end: in.end, uses: l.Kind == Uses, known: l.Shadow || l.Kind == Uses || l.Kind == SessionUSD && !l.Session.Named}
			if l.Kind == SessionUSD && !a.known {
				a.session = &Limit{Key: l.Key, Session: l.Session}
			}
			if (l.Kind == Day || l.Kind == Month) && !l.Shadow {
				a.org = org
			}
			m.accounts[counter] = a
		}
		a.dirty = a.org != "" // also if it rejects the request: it may have too much
		if !a.known {
			unknown = append(unknown, counter)
		}
	}
	return unknown
}

// period is the current one of the limit.
func (m *Memory) period(l *Limit) span {
	if l.Kind == Uses || l.Kind == SessionUSD {
		return span{m.session(l), l.Session.Began.Add(SessionLife)}
	}
	const most = 64 // calendars change with the configuration
	z := zoned{l.Kind, l.Calendar}
	now := m.epoch.Add(m.last)
	in, ok := m.periods[z]
	if !ok || !now.Before(in.end) {
		if l.Kind == Day {
			in.name, in.end = l.Calendar.Day(now)
		} else {
			in.name, in.end = l.Calendar.Month(now)
		}
		if len(m.periods) >= most {
			clear(m.periods)
		}
		m.periods[z] = in
	}
	return in
}

// stepOfSession is how exactly the name of a session's count says when it began. A process that finds
// a session does not know when it began in an earlier process. It asks for each name of the
// last SessionLife.
const stepOfSession = 10 * time.Minute

func began(at time.Time) string { return at.UTC().Truncate(stepOfSession).Format("2006-01-02T15:04") }

// session is the name of the session's period. Its first requests may come together, and each
// has its own time as the session's beginning. They share the count that one of them has begun.
// Sessions of one name begin further apart than neighbouring names.
func (m *Memory) session(l *Limit) string {
	for _, d := range [...]time.Duration{0, -stepOfSession, stepOfSession} {
		name := began(l.Session.Began.Add(d))
		if m.accounts[l.Key+"@"+name] != nil {
			return name
		}
	}
	return began(l.Session.Began)
}

// earlier are the counters of a session that began in an earlier process.
func earlier(l *Limit) (counters []string) {
	if l == nil {
		return nil
	}
	for d := stepOfSession; d <= SessionLife; d += stepOfSession {
		counters = append(counters, l.Key+"@"+began(l.Session.Began.Add(-d)))
	}
	return counters
}

// learn asks Sums for counters, or waits for another request that has asked for one of them.
// It is called with the lock held, and does not hold it while it waits. It waits for others
// only after its own question is answered, so no two requests wait for each other.
func (m *Memory) learn(ctx context.Context, org string, counters []string) error {
	ctx, cancel := context.WithTimeout(ctx, sumsTimeout)
	defer cancel()
	var mine []string
	var of, others []*account
	var waits []chan struct{}
	done := make(chan struct{})
	for _, c := range counters {
		if a := m.accounts[c]; a.asking == nil {
			a.asking, a.err = done, nil
			mine, of = append(mine, c), append(of, a)
			for _, c := range earlier(a.session) {
				mine, of = append(mine, c), append(of, a)
			}
		} else {
			others, waits = append(others, a), append(waits, a.asking)
		}
	}
	m.mu.Unlock()
	defer m.mu.Lock()
	if len(mine) > 0 {
		sums, err := m.sums.Charged(ctx, org, mine)
		if err == nil && len(sums) != len(mine) {
			err = fmt.Errorf("%w: %d of %d sums came", ErrUnknownSums, len(sums), len(mine))
		} else if err != nil {
			err = fmt.Errorf("asking for what was charged: %w", err)
		}
		m.answered(of, sums, err, done)
		if err != nil {
			return err
		}
	}
	for i, a := range others {
		select {
		case <-waits[i]:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnknownSums, ctx.Err())
		}
		m.mu.Lock()
		err := a.err
		m.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// answered ends the question for these accounts.
func (m *Memory) answered(of []*account, sums []int64, err error, done chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, a := range of {
		a.asking, a.err = nil, err
		if err == nil {
			a.charged, a.known, a.session = add(a.charged, sums[i]), true, nil
		}
	}
	close(done)
}

// drop forgets the counts that a rejected request has begun. Clients choose the ids of
// sessions, so a count for each rejected one would have no bound.
func (m *Memory) drop(limits []Limit) {
	for i := range limits {
		l := &limits[i]
		a := m.accounts[l.Counter()]
		if a == nil || a.asking != nil || a.charged != 0 || a.reserved != 0 {
			continue
		}
		if !a.known || l.Shadow || l.Kind == Uses || l.Kind == SessionUSD {
			delete(m.accounts, l.Counter())
		}
	}
}

// evaluate finds out what each limit would do, and sets its figures as they are before. With
// unknown, a cap whose sum is not known rejects only what is above the whole cap.
func (m *Memory) evaluate(limits []Limit, unknown bool) Result {
	m.steps = m.steps[:0]
	best := Result{OK: true, Which: -1}
	for i := range limits {
		s := m.step(limits, i)
		if unknown && s.account != nil && !s.account.known {
			n := limits[i].amount()
			s.result = Result{OK: n <= limits[i].Max, Limit: limits[i].Max, Remaining: limits[i].Max, Reset: s.result.Reset, Why: TooLarge, Fits: limits[i].Max}
		}
		m.steps = append(m.steps, s)
		limits[i].Left, limits[i].Reset = m.figures(&limits[i])
		r := s.result
		r.Which = i
		switch {
		case !r.OK && (best.OK || worse(r, best)):
			best = r
		case r.OK && best.OK && limits[i].Kind == Requests && (best.Which < 0 || r.Remaining < best.Remaining):
			best = r
		}
	}
	return best
}

// worse reports whether a, and not b, is the reason that a rejected caller gets.
func worse(a, b Result) bool {
	final := func(r Result) bool { return r.RetryAfter == 0 }
	if final(a) != final(b) {
		return final(a)
	}
	return a.RetryAfter > b.RetryAfter
}

// step is what limit i would do.
func (m *Memory) step(limits []Limit, i int) (s step) {
	l := &limits[i]
	s.again = again(limits, i)
	n := l.amount()
	switch l.Kind {
	case Requests, Tokens, Starts:
		s.tat, s.result = take(l.Kind.window(), m.last, m.tat(l.Key), l.Max, n)
	case Slots:
		left := l.Max - m.slots[l.Key]
		s.result = Result{OK: left > 0, Limit: l.Max, Remaining: max(0, left-1), Why: Busy}
		if !s.result.OK {
			s.result.RetryAfter = time.Second
		}
	case Day, Month, Uses, SessionUSD:
		if n == 0 {
			s.result = Result{OK: true, Limit: l.Max}
			break
		}
		s.account = m.accounts[l.Counter()]
		s.result = s.account.take(l.Max, n, s.account.end.Sub(m.epoch.Add(m.last)))
	default:
		s.result = Result{Why: TooLarge} // a kind that cannot be counted rejects
	}
	return s
}

// take says whether n fits under the cap.
func (a *account) take(most, n int64, reset time.Duration) Result {
	r := Result{Limit: most, Remaining: max(0, most-a.charged-a.reserved), Reset: reset}
	switch free := most - a.charged; {
	case !a.known:
	case free <= 0, a.uses && free <= a.reserved:
		r.Why = Spent
	case n > free:
		r.Why, r.Fits = TooLarge, free
	case n > free-a.reserved:
		r.Why, r.RetryAfter = Held, time.Second
	default:
		r.OK, r.Remaining = true, free-a.reserved-n
	}
	return r
}

// figures are what is left of a limit now, and until when.
func (m *Memory) figures(l *Limit) (int64, time.Duration) {
	switch l.Kind {
	case Requests, Tokens, Starts:
		tat := m.tat(l.Key)
		return left(l.Kind.window(), m.last, tat, l.Max), max(0, tat-m.last)
	case Slots:
		return l.Max - m.slots[l.Key], 0
	}
	reset := m.period(l).end.Sub(m.epoch.Add(m.last))
	if a := m.accounts[l.Counter()]; a != nil {
		return l.Max - a.charged - a.reserved, reset
	}
	return l.Max, reset
}

// take takes the steps. All are allowed.
func (m *Memory) take(limits []Limit) {
	for i := range limits {
		l, s := &limits[i], &m.steps[i]
		switch {
		case l.Kind.rate():
			m.young[l.Key] = max(m.young[l.Key], s.tat) // of equal keys the latest full bucket holds
		case s.again:
		case l.Kind == Slots:
			m.slots[l.Key]++
		case s.account != nil:
			s.account.reserved += l.amount()
		}
	}
	for i := range limits {
		limits[i].Left, limits[i].Reset = m.figures(&limits[i])
	}
}

// Full returns the figures of the limit with the longest wait, if a limit is exceeded. It
// counts nothing. USD caps are not looked at.
func (m *Memory) Full(limits []Limit) (worst Result, full bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = max(m.last, m.now().Sub(m.epoch))
	for i := range limits {
		if limits[i].Kind.Money() {
			continue
		}
		if r := m.step(limits, i).result; !r.OK && (!full || worse(r, worst)) {
			worst, full = r, true
			worst.Which = i
		}
	}
	return worst, full
}

// Recorded does nothing: the counts are lost only with this process.
func (m *Memory) Recorded(string) {}

// Release returns what Reserve took for a request that was not forwarded. A rate is full
// again that much sooner.
func (m *Memory) Release(_ context.Context, id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	limits := m.held[id]
	for i, l := range counted(limits) {
		switch l.Kind {
		case Requests, Tokens, Starts:
			narrowest := l.Max
			for _, o := range limits[i:] {
				if o.Key == l.Key {
					narrowest = min(narrowest, o.Max) // as Reserve took it
				}
			}
			m.shift(l.Key, -times(interval(l.Kind.window(), narrowest), l.amount()))
		default:
			m.free(l)
		}
	}
	delete(m.held, id)
}

// Settle replaces what Reserve took by what the request has used. A second call, or one for
// a request that holds nothing, changes nothing.
func (m *Memory) Settle(_ context.Context, id string, used Used) {
	m.mu.Lock()
	defer m.mu.Unlock()
	limits := m.held[id]
	for _, l := range counted(limits) {
		switch l.Kind {
		case Requests, Starts:
		case Uses:
			if a := m.free(l); a != nil {
				a.charged = add(a.charged, 1)
			}
		case Tokens:
			if d := used.Tokens - l.amount(); used.Counted && d >= 0 {
				m.shift(l.Key, times(interval(time.Minute, l.Max), d))
			} else if used.Counted {
				m.shift(l.Key, -times(interval(time.Minute, l.Max), -d))
			}
		default:
			if a := m.free(l); a != nil {
				n := max(0, used.NanoUSD)
				a.charged, a.moved.in = add(a.charged, n), add(a.moved.in, n)
				a.moved.out -= min(n, l.amount()) // free has added all of it
			}
		}
	}
	delete(m.held, id)
}

// free gives back a slot, or what was reserved, and returns the account of a cap.
func (m *Memory) free(l *Limit) *account {
	if l.Kind == Slots {
		if m.slots[l.Key]--; m.slots[l.Key] <= 0 {
			delete(m.slots, l.Key)
		}
		return nil
	}
	a := m.accounts[l.Counter()]
	if a != nil && l.amount() > 0 {
		a.reserved -= l.amount()
		a.moved.out = add(a.moved.out, l.amount())
	}
	return a
}

// counted yields the first limit of each count, and its index.
func counted(limits []Limit) iter.Seq2[int, *Limit] {
	return func(yield func(int, *Limit) bool) {
		for i := range limits {
			if !again(limits, i) && !yield(i, &limits[i]) {
				return
			}
		}
	}
}

// again says whether an earlier limit has the count of limit i.
func again(limits []Limit, i int) bool {
	for j := range limits[:i] {
		if limits[j].Key == limits[i].Key {
			return true
		}
	}
	return false
}

// shift moves the instant at which a rate is full again.
func (m *Memory) shift(key string, by time.Duration) {
	m.last = max(m.last, m.now().Sub(m.epoch))
	tat := m.tat(key)
	if by > 0 {
		tat = max(tat, m.last)
	} else if tat <= m.last {
		return // it is full
	}
	m.young[key] = min(tat+by, m.last+farthest)
}

// Len returns how many counts are kept, for metrics. A key that is used again after two
// minutes may be counted twice.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.young) + len(m.old) + len(m.slots) + len(m.accounts)
}

// InFlight returns what is reserved under USD caps, the slots in use, and the requests that
// hold something.
func (m *Memory) InFlight() (reserved, slots int64, requests int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range m.accounts {
		if !a.uses {
			reserved = add(reserved, a.reserved)
		}
	}
	for _, n := range m.slots {
		slots += n
	}
	return reserved, slots, len(m.held)
}

// tat is the state of a rate; 0 is long past.
func (m *Memory) tat(key string) time.Duration {
	if tat, ok := m.young[key]; ok {
		return tat
	}
	return m.old[key]
}

// turn forgets the counts that were unused for so long that their buckets are full, and the
// periods that are over. A rate that is used is in young from then on.
func (m *Memory) turn() {
	idle := m.last - m.turned
	if idle < longest {
		return
	}
	before := m.old
	m.old, m.young, m.turned = m.young, map[string]time.Duration{}, m.last
	if idle >= 2*longest {
		for key, tat := range m.old {
			if tat > m.last {
				m.young[key] = tat
			}
		}
		m.old = nil
	}
	for key, tat := range before {
		if _, used := m.old[key]; !used && tat > m.last { // in debt
			m.young[key] = max(tat, m.young[key])
		}
	}
	now := m.epoch.Add(m.last)
	for counter, a := range m.accounts {
		if a.reserved == 0 && a.asking == nil && !now.Before(a.end) {
			delete(m.accounts, counter)
		}
	}
	for z, in := range m.periods {
		if !now.Before(in.end) {
			delete(m.periods, z)
		}
	}
}

// add is a sum that does not overflow.
func add(a, b int64) int64 {
	if s := a + b; b <= 0 || s > a {
		return s
	}
	return 1<<63 - 1
}
