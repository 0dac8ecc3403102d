package budget

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"
)

// org returns the org, and begins to follow it.
func (v *Valkey) org(name string) (*shared, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if o := v.orgs[name]; o != nil {
		return o, nil
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return nil, fmt.Errorf("%w: the org %q is not a name of letters and digits", ErrStoreAway, name)
		}
	}
	if name == "" {
		return nil, fmt.Errorf("%w: the org has no name", ErrStoreAway)
	}
	o := &shared{name: name, unready: v.now(), changed: make(chan struct{}), spans: map[zoned]since{}, asking: map[string]chan struct{}{}, used: map[string]*watched{}, poke: make(chan struct{}, 1)}
	v.orgs[name] = o
	if v.ctx != nil {
		v.follow(o)
	}
	return o, nil
}

// follow runs the org's heartbeat. v.mu is held.
func (v *Valkey) follow(o *shared) {
	v.begun.Add(1)
	go func() {
		defer v.begun.Done()
		v.beats(v.ctx, o)
	}()
}

// number is the next call's.
func (o *shared) number(me string) (args []string, gen string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seq++
	return []string{me, strconv.FormatUint(o.seq, 10), strconv.FormatUint(o.acked, 10), o.gen}, o.gen
}

// got notes a reply to the call with these arguments.
func (o *shared) got(args []string, r reply) {
	state := r.word
	if r.state != "" {
		state = r.state
	}
	gen := args[3]
	o.mu.Lock()
	defer o.mu.Unlock()
	switch state {
	case "ok":
		if n, err := strconv.ParseUint(args[1], 10, 64); err == nil && gen == o.gen && gen != "" {
			o.acked = max(o.acked, n)
		}
	case "gen", "lost":
		o.behindLocked(state, gen)
	}
}

// behind notes that the store is not in generation gen, or has lost counts of it.
func (o *shared) behind(state, gen string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.behindLocked(state, gen)
}

func (o *shared) behindLocked(state, gen string) {
	if gen != o.gen || gen == "" {
		return // it joins, or has joined another one meanwhile
	}
	if o.ready {
		o.unready = time.Now()
	}
	switch state {
	case "lost":
		o.lost = gen
		o.gen, o.ready = "", false
	case "gen":
		o.gen, o.ready = "", false
	case "wait":
		o.ready = false
	}
	o.pokeLocked()
}

func (o *shared) pokeLocked() {
	select {
	case o.poke <- struct{}{}:
	default:
	}
}

// forget makes the sidecar join anew, since it has lost what it had to send.
func (o *shared) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.gen != "" {
		o.lost = o.gen
	}
	if o.ready {
		o.unready = time.Now()
	}
	o.gen, o.ready = "", false
	o.pokeLocked()
}

func (o *shared) generation() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.gen
}

func (o *shared) isAway() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.away
}

func (o *shared) sidecars() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.others
}

// wait returns nil once the org is in a generation that all sidecars have joined. It waits only
// in the first moments: later requests would hold up those that no cap applies to.
func (o *shared) wait(ctx context.Context) error {
	o.mu.Lock()
	until := o.unready.Add(sumsTimeout)
	o.mu.Unlock()
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	for {
		o.mu.Lock()
		ready, away, why, changed := o.gen != "" && o.ready, o.away, o.why, o.changed
		o.mu.Unlock()
		switch {
		case away:
			return ErrStoreAway
		case ready:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			switch {
			case errors.Is(why, ErrStoreRequired), errors.Is(why, ErrStoreAway):
				return why
			case why == nil:
				why = ctx.Err()
			}
			return fmt.Errorf("%w: %w", ErrUnknownSums, why)
		}
	}
}

// note stores what joining has found, and wakes those who wait.
func (o *shared) note(change func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	change()
	close(o.changed)
	o.changed = make(chan struct{})
}

// beats keeps the org's place in the store, each second. It joins a new generation when one
// has begun, and notices when the store is away or back.
func (v *Valkey) beats(ctx context.Context, o *shared) {
	var before error
	for n := 0; ; n++ {
		err := v.beat(ctx, o, n)
		if ctx.Err() != nil {
			return
		}
		o.note(func() { o.why = err })
		switch {
		case err != nil && (before == nil || before.Error() != err.Error()):
			v.c.Log.WarnContext(ctx, "the shared store of counts is not usable for an org: its USD caps reject", "org", o.name, "err", err)
		case err == nil && before != nil:
			v.c.Log.InfoContext(ctx, "the shared store of counts is usable for an org", "org", o.name)
		}
		before = err
		wait := v.every
		if err != nil {
			wait = v.retry
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-o.poke:
		}
		timer.Stop()
	}
}

// beat is one heartbeat. Every tenth also renews slots, and looks for sidecars that are gone.
// Every sixtieth compares the counts with the audit log.
func (v *Valkey) beat(ctx context.Context, o *shared, n int) error {
	often := n%10 == 0
	if often {
		v.countSidecars(ctx, o)
	}
	r, _, err := v.here(ctx, o, 0, often)
	if err != nil {
		return err
	}
	if o.generation() == "" {
		if err := v.join(ctx, o); err != nil {
			return err
		}
		r = reply{}
	}
	if len(r.rest) == 0 || r.rest[0] != "1" {
		need := v.countSidecars(ctx, o)
		if need == 0 {
			return errNoAnswer
		}
		var gen string
		if r, gen, err = v.here(ctx, o, need, often); err != nil {
			return err
		}
		if r.word != "ok" || len(r.rest) == 0 || r.rest[0] != "1" {
			return fmt.Errorf("%w: the store has lost counts, and not all of %d sidecars have joined again", ErrUnknownSums, need)
		}
		o.note(func() { o.ready = o.gen == gen })
	}
	if often {
		v.renew(ctx, o)
		for _, id := range r.rest[1:] {
			v.bury(ctx, o, id)
		}
	}
	if n%60 == 59 {
		v.compare(ctx, o)
	}
	return nil
}

var errNoAnswer = fmt.Errorf("%w: the control plane does not answer", ErrUnknownSums)

// here says that the sidecar is here. need is how many must have joined; 0: do not look.
func (v *Valkey) here(ctx context.Context, o *shared, need int, silentToo bool) (reply, string, error) {
	args, gen := o.number(v.id)
	args = append(args, strconv.Itoa(need), flag(silentToo), strconv.Itoa(int(silent.Seconds())))
	r, err := v.call(ctx, o, callTimeout, scriptBeat, o.keys(v.id, "", nil)[:2], args)
	if err == nil {
		o.note(func() {
			o.away = false
			o.heard[0], o.heard[1] = o.heard[1], r.at.UnixMicro()
			if o.gen == gen && gen != "" && r.word == "ok" && len(r.rest) > 0 {
				o.ready = r.rest[0] == "1"
			}
		})
	}
	return r, gen, err
}

// countSidecars asks the control plane how many sidecars serve the org. It returns 0 if it
// does not answer; the last number goes on to count for shares.
func (v *Valkey) countSidecars(ctx context.Context, o *shared) int {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	n, err := v.c.Sums.Sidecars(ctx, o.name)
	if err != nil || n <= 0 {
		return 0
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.others = n
	return n
}

// join makes the sidecar a member of the store's generation, once the control plane has all
// its records. Until then gen is empty, so no cap is taken. What requests in progress hold is
// in the audit log by then, and comes with its sums. What is not recorded yet is taken along.
// The ends of all these wait meanwhile.
func (v *Valkey) join(ctx context.Context, o *shared) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if v.countSidecars(ctx, o) == 0 { // from now on the others wait for this one
		return errNoAnswer
	}
	args, _ := o.number(v.id)
	keys := o.keys(v.id, "", nil)[:2]
	var inFlight []string
	var moved []*holding
	places := map[string]int{}
	v.mu.Lock()
	o.joining = true
	for id, h := range v.held {
		if h.org != o || h.near {
			continue
		}
		moved = append(moved, h)
		for i := range h.limits {
			l := &h.limits[i]
			if !l.Kind.Money() || l.Shadow || l.amount() == 0 || again(h.limits, i) {
				continue
			}
			key := o.count(l)
			if places[key] == 0 {
				keys = append(keys, key)
				places[key] = len(keys)
			}
			inFlight = append(inFlight, id, strconv.Itoa(places[key]), strconv.FormatInt(l.amount(), 10), flag(h.recorded))
		}
	}
	v.mu.Unlock()
	defer func() {
		v.mu.Lock()
		o.joining = false
		v.mu.Unlock()
		v.wakeUp()
	}()
	if err := v.c.Sums.Shipped(ctx, o.name); err != nil {
		return fmt.Errorf("%w: %w", ErrUnknownSums, err)
	}
	o.mu.Lock()
	args[3] = o.lost
	o.mu.Unlock()
	args = append(args, v.id+"-"+args[1])
	r, err := v.call(ctx, o, callTimeout, scriptJoin, keys, append(args, inFlight...))
	if err != nil {
		return err
	}
	seq, _ := strconv.ParseUint(args[1], 10, 64)
	v.mu.Lock()
	for _, h := range moved {
		h.gen = r.word
	}
	v.mu.Unlock()
	o.note(func() { o.lost, o.gen, o.acked, o.ready = "", r.word, seq, false })
	v.m.generations.Inc()
	v.c.Log.InfoContext(ctx, "joined a generation of the shared store of counts", "org", o.name, "generation", r.word)
	return nil
}

// learn reads the counts of limits that the store does not know from the audit log, or waits
// for another request that does.
func (v *Valkey) learn(ctx context.Context, o *shared, gen string, limits []Limit, places []string) error {
	ctx, cancel := context.WithTimeout(ctx, sumsTimeout)
	defer cancel()
	var mine []*Limit
	var waits []chan struct{}
	done := make(chan struct{})
	o.mu.Lock()
	for _, place := range places {
		i, err := strconv.Atoi(place)
		if err != nil || i < 1 || i > len(limits) {
			continue
		}
		l := &limits[i-1]
		counter := l.Counter()
		if asked := o.asking[counter]; asked != nil {
			if asked != done {
				waits = append(waits, asked)
			}
			continue
		}
		o.asking[counter] = done
		mine = append(mine, l)
	}
	o.mu.Unlock()
	var err error
	if len(mine) > 0 {
		err = v.seed(ctx, o, gen, mine)
		o.mu.Lock()
		for _, l := range mine {
			delete(o.asking, l.Counter())
		}
		o.mu.Unlock()
		close(done)
	}
	if err != nil {
		return err
	}
	for _, w := range waits {
		select {
		case <-w:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnknownSums, ctx.Err())
		}
	}
	return nil
}

// seed begins the store's counts with the sums of the audit log.
func (v *Valkey) seed(ctx context.Context, o *shared, gen string, limits []*Limit) error {
	sums, err := v.sums(ctx, o, limits)
	if err != nil {
		return err
	}
	totals := make([]int64, len(sums))
	for i, s := range sums {
		totals[i] = add(s.Charged, s.Reserved)
	}
	return v.setSums(ctx, o, gen, limits, totals)
}

// sums asks the control plane.
func (v *Valkey) sums(ctx context.Context, o *shared, limits []*Limit) ([]Sum, error) {
	var counters []string
	var of []int // the limit of each counter
	for i, l := range limits {
		for _, c := range names(l, v.now()) {
			counters, of = append(counters, c), append(of, i)
		}
	}
	sums, err := v.c.Sums.Sums(ctx, o.name, counters)
	switch {
	case err != nil:
		return nil, fmt.Errorf("asking for what was charged: %w", err)
	case len(sums) != len(counters):
		return nil, fmt.Errorf("%w: %d of %d sums came", ErrUnknownSums, len(sums), len(counters))
	}
	out := make([]Sum, len(limits))
	for i, s := range sums {
		if s.Charged < 0 || s.Reserved < 0 {
			return nil, fmt.Errorf("%w: the control plane sent a sum below 0", ErrUnknownSums)
		}
		out[of[i]] = Sum{add(out[of[i]].Charged, s.Charged), add(out[of[i]].Reserved, s.Reserved)}
	}
	return out, nil
}

// names are the counters of the audit log that a count of the store stands for. Each sidecar
// names a session by when the session began there. One with an id may have begun in the last
// SessionLife. Another one begins anew after silence, so it is known from when on.
func names(l *Limit, now time.Time) []string {
	switch {
	case l.Kind != SessionUSD:
		return []string{l.Counter()}
	case l.Session.Named:
		return append(earlier(&Limit{Key: l.Key, Session: Session{Began: now}}), l.Key+"@"+began(now))
	}
	var out []string
	for at := l.Session.Began.Truncate(stepOfSession); !at.After(now) && len(out) <= int(SessionLife/stepOfSession); at = at.Add(stepOfSession) {
		out = append(out, l.Key+"@"+began(at))
	}
	return out
}

// setSums runs seed.lua.
func (v *Valkey) setSums(ctx context.Context, o *shared, gen string, limits []*Limit, sums []int64) error {
	keys := o.keys(v.id, "", nil)[:2]
	args, now := o.number(v.id)
	if now != gen {
		return nil // the caller looks again
	}
	for i, l := range limits {
		keys = append(keys, o.count(l))
		end := o.span(l).end.Add(kept)
		if l.Kind == SessionUSD {
			end = o.span(l).end // reserve.lua ends it earlier after silence
		}
		args = append(args, strconv.FormatInt(sums[i], 10), strconv.FormatInt(end.Unix(), 10))
	}
	_, err := v.call(ctx, o, callTimeout, scriptSeed, keys, args)
	return err
}

// watched is a count that compare looks at, and what compare last saw of it.
type watched struct {
	limit        Limit
	gen, in, out string
	since        int64 // of the store's clock, in microseconds; 0: it has not been seen in gen
}

// watch lets compare look at the counts of USD caps, also of a request that they reject.
func (o *shared) watch(limits []Limit) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range limits {
		l := &limits[i]
		if (l.Kind == Day || l.Kind == Month) && !l.Shadow && l.amount() > 0 && len(o.used) < maxCompared && o.used[l.Counter()] == nil {
			o.used[l.Counter()] = &watched{limit: *l}
		}
	}
}

// compare corrects counts that differ from the sums of the audit log. The sums are complete
// once all sidecars have shipped what was counted when compare last ran. So a count is looked
// at until it is at rest.
func (v *Valkey) compare(ctx context.Context, o *shared) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	var limits []*Limit
	var seen []*watched
	o.mu.Lock()
	gen, until := o.gen, o.heard[1]
	for _, w := range o.used {
		if w.gen != gen {
			*w = watched{limit: w.limit, gen: gen, in: "0", out: "0"}
		}
		limits, seen = append(limits, &w.limit), append(seen, w)
	}
	o.mu.Unlock()
	if gen == "" {
		return
	}
	failed := func(err error) {
		v.c.Log.WarnContext(ctx, "the shared store was not compared with the audit log", "org", o.name, "err", err)
	}
	// Other sidecars wait for this, also if it has nothing to compare.
	if err := v.c.Sums.Shipped(ctx, o.name); err != nil {
		failed(err)
		return
	}
	var sums []Sum
	if len(limits) > 0 {
		var err error
		if sums, err = v.sums(ctx, o, limits); err != nil {
			failed(err)
			return
		}
		// Charges that the log has already are on their way to the store.
		timer := time.NewTimer(v.every)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
	keys := o.keys(v.id, "", nil)[:2]
	args, now := o.number(v.id)
	if now != gen {
		return // the next one compares
	}
	args = append(args, strconv.FormatInt(until, 10))
	for i, l := range limits {
		w := seen[i]
		keys = append(keys, o.count(l))
		args = append(args, strconv.FormatInt(sums[i].Charged, 10), strconv.FormatInt(sums[i].Reserved, 10), w.in, w.out, strconv.FormatInt(w.since, 10))
	}
	const each = 7
	r, err := v.call(ctx, o, callTimeout, scriptCompare, keys, args)
	if err != nil || r.word != "ok" || len(r.rest) != each*len(limits) {
		return // the next heartbeat reports it
	}
	v.mu.Lock()
	for _, l := range limits {
		delete(v.denials, o.name+" "+l.Key) // what is left may have been corrected, also by others
	}
	v.mu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, w := range seen {
		f := r.rest[each*i : each*i+each]
		v.m.note(ctx, v.c.Log, o.name, limits[i].Counter(), f[0], f[4], f[5])
		rests := w.since > 0 && w.in == f[2] && w.out == f[3] && f[1] == "0"
		w.in, w.out, w.since = f[2], f[3], r.at.UnixMicro()
		if rests && f[6] == "1" {
			delete(o.used, limits[i].Counter())
		}
	}
}

// note counts and logs a correction.
func (m *storeMetrics) note(ctx context.Context, log *slog.Logger, org, counter, had, added, removed string) {
	for direction, text := range map[string]string{directionAdded: added, directionRemoved: removed} {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n <= 0 {
			continue
		}
		m.corrected.WithLabelValues(direction).Add(float64(n))
		log.WarnContext(ctx, "the shared store differed from the audit log, and was corrected", "org", org, "counter", counter, "had", had, direction, n)
	}
}

// renew extends the leases of slots in use.
func (v *Valkey) renew(ctx context.Context, o *shared) {
	counts, ids := v.slotsInUse(o)
	v.extend(ctx, o, counts, ids)
}

// slotsInUse are the counts of slots in use, and the request that has each.
func (v *Valkey) slotsInUse(o *shared) (counts, ids []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for id, h := range v.held {
		if h.org != o || h.near || !h.slots {
			continue
		}
		for i := range h.limits {
			if h.limits[i].Kind == Slots {
				counts, ids = append(counts, o.count(&h.limits[i])), append(ids, id)
			}
		}
	}
	return counts, ids
}

// extend extends leases. A request may end after slotsInUse has listed it, and before the
// store gets this. Its slot must not come back. So only a store that may have lost slots gets
// those that it lacks.
func (v *Valkey) extend(ctx context.Context, o *shared, counts, ids []string) {
	const most = 1000
	began := v.now()
	gen, lacks := o.lapsed(began)
	for keys := o.keys(v.id, "", nil)[:2]; len(ids) > 0; {
		n := min(most, len(ids))
		args, now := o.number(v.id)
		if now != gen {
			return // the next heartbeat renews them
		}
		args = append(args, strconv.FormatInt(slotLease.Milliseconds(), 10), flag(lacks))
		if _, err := v.call(ctx, o, callTimeout, scriptRenew, slices.Concat(keys, counts[:n]), append(args, ids[:n]...)); err != nil {
			return // the next heartbeat renews them
		}
		counts, ids = counts[n:], ids[n:]
	}
	o.note(func() { o.renewed, o.renewedIn = began, gen })
}

// lapsed reports whether slots may have lapsed since the last renewal, or were lost with a
// generation.
func (o *shared) lapsed(now time.Time) (gen string, lapsed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.gen, o.gen != o.renewedIn || now.Sub(o.renewed) >= slotLease/2
}

// bury charges what a sidecar holds in full that no longer calls.
func (v *Valkey) bury(ctx context.Context, o *shared, id string) {
	theirs := o.key("held:" + id)
	records, err := v.records(ctx, theirs)
	if err != nil {
		return // later
	}
	keys, seen := append(o.keys(v.id, "", nil)[:2], theirs), map[string]bool{}
	for _, record := range records {
		for _, line := range strings.Split(record, "\n")[1:] {
			if _, key, ok := strings.Cut(line, " "); ok && !seen[key] && strings.HasPrefix(key, o.key("")) {
				seen[key] = true
				keys = append(keys, key)
			}
		}
	}
	args, _ := o.number(v.id)
	if _, err := v.call(ctx, o, callTimeout, scriptBury, keys, append(args, id, strconv.Itoa(int(silent.Seconds())))); err == nil && len(records) > 0 {
		v.c.Log.WarnContext(ctx, "a sidecar is gone: what it held in the shared store is charged in full", "org", o.name, "requests", len(records))
	}
}

// Session returns the session with the time when it began on any sidecar. Without a response of
// the store, it is as this sidecar has it.
func (v *Valkey) Session(ctx context.Context, org string, x Session) Session {
	return v.session(ctx, org, x, "")
}

// Began notes in the store that a request of the session has passed, and when the session began.
func (v *Valkey) Began(ctx context.Context, org string, x Session) Session {
	return v.session(ctx, org, x, strconv.FormatInt(x.Began.UnixMicro(), 10))
}

func (v *Valkey) session(ctx context.Context, org string, x Session, began string) Session {
	o, err := v.org(org)
	if err != nil || o.isAway() || v.link.Load() == nil {
		return x
	}
	args, _ := o.number(v.id)
	lasts := SessionLife
	if !x.Named {
		lasts = silence + touchEvery // the store gets to know once in touchEvery that the session goes on
	}
	n := func(d time.Duration) string { return strconv.Itoa(int(d.Seconds())) }
	r, err := v.call(ctx, o, v.answer, scriptSession, append(o.keys(v.id, "", nil)[:2], o.key("session:"+x.Name)), append(args, began, n(lasts), n(SessionLife)))
	if err != nil || len(r.rest) != 1 {
		return x
	}
	if at, err := strconv.ParseInt(r.rest[0], 10, 64); err == nil {
		x.Began, x.Fresh = time.UnixMicro(at).UTC(), false
	}
	return x
}

// locate sets the period of each USD cap, by the store's clock.
func (v *Valkey) locate(o *shared, limits []Limit) {
	for i := range limits {
		if l := &limits[i]; l.Kind.Money() || l.Kind == Uses {
			l.Period = o.span(l).name
		}
	}
}

// span is the period of a limit.
func (o *shared) span(l *Limit) since {
	const most = 64 // calendars change with the configuration
	if l.Kind == Uses || l.Kind == SessionUSD {
		return since{name: began(l.Session.Began), end: l.Session.Began.Add(SessionLife)}
	}
	z := zoned{l.Kind, l.Calendar}
	o.mu.Lock()
	defer o.mu.Unlock()
	in, ok := o.spans[z]
	if !ok {
		if len(o.spans) >= most {
			clear(o.spans)
		}
		in = z.since(time.Now())
		o.spans[z] = in
	}
	return in
}

// since is the period at an instant.
func (z zoned) since(at time.Time) since {
	in := since{at: at.Unix()}
	if z.kind == Day {
		in.name, in.end = z.calendar.Day(at)
	} else {
		in.name, in.end = z.calendar.Month(at)
	}
	return in
}

// turn computes the periods again, for an instant of the store's clock.
func (o *shared) turn(at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for z := range o.spans {
		o.spans[z] = z.since(at)
	}
}

// before is an instant of the store's clock, in microseconds, that is certainly past. The
// completion of a request that ends now was not recorded by then. It is 0 if none is known.
func (o *shared) before() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.heard[0]
}
