package xds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/budget"
)

// Records is the audit log of the sidecar; *audit.Writer is one.
type Records interface {
	ID() string
	Earlier() []string
	WaitEarlier(ctx context.Context, org string) error
	WaitOrg(ctx context.Context, org string) error
	Waiting() uint64 // records that the control plane does not have
}

// Spend has what was charged under USD caps before this process, for budget.Memory. It also
// renews a lease for each org that this sidecar serves. So two sidecars without a shared
// store never admit requests under the same cap.
type Spend struct {
	ledger  Ledger
	records Records
	now     func() time.Time
	log     *slog.Logger

	shared bool // with other sidecars, in a store; set before use

	mu     sync.Mutex
	orgs   map[string]*served
	writer string               // the last id of records
	spent  map[[2]string]*spent // by org and agent
}

// spent is what is known of an agent's spend.
type spent struct {
	day, month         string // names of what the amounts are of
	inDay, inMonth     int64
	at                 time.Time // when the control plane was asked; zero: it has not answered
	wantDay, wantMonth string    // of the last request
	wanted             bool      // a request has come since the last response
}

const (
	// spentEvery is how often sums of agents are asked for, and spentFresh how long one is
	// used before it is asked for again.
	spentEvery = time.Second
	spentFresh = 5 * time.Second
	// maxSpent bounds the agents whose spend is kept.
	maxSpent = 10_000
)

// Spent is verdict.Spender's: what the control plane last answered about the agent.
func (s *Spend) Spent(org, agent, day, month string) (inDay, inMonth *int64, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := [2]string{org, agent}
	x := s.spent[key]
	if x == nil {
		for other := range s.spent {
			if len(s.spent) < maxSpent {
				break
			}
			delete(s.spent, other) // any one
		}
		x = &spent{}
		s.spent[key] = x
	}
	x.wantDay, x.wantMonth, x.wanted = day, month, true
	if x.at.IsZero() {
		return nil, nil, x.at
	}
	if x.day == day {
		n := x.inDay
		inDay = &n
	}
	if x.month == month {
		n := x.inMonth
		inMonth = &n
	}
	return inDay, inMonth, x.at
}

// refresh asks for the spend of agents that requests have come from.
func (s *Spend) refresh(ctx context.Context) {
	tick := time.NewTicker(spentEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		due := map[string][][2]string{}
		s.mu.Lock()
		now := s.now()
		for key, x := range s.spent {
			if x.wanted && (now.Sub(x.at) >= spentFresh || x.day != x.wantDay) {
				due[key[0]] = append(due[key[0]], key)
			}
		}
		s.mu.Unlock()
		for org, keys := range due {
			for some := range slices.Chunk(keys, audit.MaxCounts/2) {
				s.ask(ctx, org, some)
			}
		}
	}
}

// ask requests the spend of agents of one org. Without a response the amounts get older.
func (s *Spend) ask(ctx context.Context, org string, keys [][2]string) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	names := make([]audit.CountName, 0, 2*len(keys))
	s.mu.Lock()
	at := s.now()
	keys = slices.DeleteFunc(keys, func(key [2]string) bool { return s.spent[key] == nil })
	for _, key := range keys {
		x := s.spent[key]
		names = append(names, audit.CountName{Counter: audit.AgentSpent + key[1], Period: x.wantDay}, audit.CountName{Counter: audit.AgentSpent + key[1], Period: x.wantMonth})
	}
	s.mu.Unlock()
	if len(names) == 0 {
		return
	}
	got, err := s.counts(ctx, org, names)
	if err != nil {
		return // it is asked again, and the age grows
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, key := range keys {
		if x := s.spent[key]; x != nil {
			x.day, x.month, x.at, x.wanted = names[2*i].Period, names[2*i+1].Period, at, false
			x.inDay, x.inMonth = got.Counts[2*i].ChargedNanoUSD, got.Counts[2*i+1].ChargedNanoUSD
		}
	}
}

// served is what is known of an org in which a cap was used.
type served struct {
	asking chan struct{} // closed when the control plane has answered; nil: it is not asked
	until  time.Time     // the reply holds until then
	alone  bool          // no other sidecar serves the org
	writer string        // of seq
	seq    uint64        // the last record of writer that a response included
	err    error         // of the last question
}

// askTimeout bounds one question.
const askTimeout = 2 * time.Second

// NewSpend returns a Spend that knows nothing yet. Run must run while it is used.
func NewSpend(ledger Ledger, records Records, now func() time.Time, log *slog.Logger) *Spend {
	return &Spend{ledger: ledger, records: records, now: now, log: log, orgs: map[string]*served{}, writer: records.ID(), spent: map[[2]string]*spent{}}
}

// Alone returns nil if this sidecar alone serves the org. Otherwise the error wraps
// budget.ErrStoreRequired, or budget.ErrUnknownSums if the control plane has not confirmed it
// within its lease.
func (s *Spend) Alone(ctx context.Context, org string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.servedLocked(org)
	if !s.now().Before(o.until) {
		if err := s.askLocked(ctx, org, o); err != nil {
			return err
		}
	}
	if !o.alone {
		return budget.ErrStoreRequired
	}
	return nil
}

// servedLocked is what is known of the org, from its first use on.
func (s *Spend) servedLocked(org string) *served {
	o := s.orgs[org]
	if o == nil {
		o = &served{}
		s.orgs[org] = o
	}
	return o
}

// askLocked asks whether the sidecar is alone, or joins a question about the org.
func (s *Spend) askLocked(ctx context.Context, org string, o *served) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if asking := o.asking; asking != nil {
		s.mu.Unlock()
		select {
		case <-asking:
		case <-ctx.Done():
		}
		s.mu.Lock()
		if s.now().Before(o.until) {
			return nil
		}
		return fmt.Errorf("%w: %w", budget.ErrUnknownSums, errors.Join(o.err, ctx.Err()))
	}
	o.asking = make(chan struct{})
	s.mu.Unlock()
	_, err := s.counts(ctx, org, nil)
	s.mu.Lock()
	close(o.asking)
	o.asking, o.err = nil, err
	return err
}

// counts asks the control plane, and notes how many sidecars serve the org.
func (s *Spend) counts(ctx context.Context, org string, names []audit.CountName) (audit.Counts, error) {
	began := s.now()
	r := audit.CountsRequest{Org: org, Writer: s.records.ID(), Names: names, Ended: s.records.Earlier()}
	s.mu.Lock()
	if s.writer != r.Writer {
		r.Ended = append(r.Ended, s.writer) // of this very process
	}
	s.mu.Unlock()
	got, err := s.ledger.Counts(ctx, r)
	if err != nil {
		return got, fmt.Errorf("%w: %w", budget.ErrUnknownSums, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.servedLocked(org)
	alone := got.Sidecars <= 1
	if !s.shared && (o.alone != alone && !o.until.IsZero() || o.until.IsZero() && !alone) {
		s.log.WarnContext(ctx, "the number of sidecars of an organization changed; requests under USD caps need exactly one", "org", org, "sidecars", got.Sidecars)
	}
	o.alone, o.until = alone, began.Add(got.Lease)
	if o.writer != r.Writer {
		o.writer, o.seq = r.Writer, 0
	}
	o.seq = max(o.seq, got.WriterSeq)
	return got, nil
}

// Charged is budget.Sums'. A reservation without a completion counts as charged, since the
// process that made it has ended.
func (s *Spend) Charged(ctx context.Context, org string, counters []string) ([]int64, error) {
	sums, err := s.sums(ctx, org, counters, true)
	if err != nil {
		return nil, err
	}
	out := make([]int64, len(sums))
	for i, c := range sums {
		out[i] = c.Charged + c.Reserved
	}
	return out, nil
}

// Shared returns the same sums for counts that sidecars share in a store.
func (s *Spend) Shared() budget.SharedSums {
	s.shared = true
	return sharedSpend{s}
}

// Books returns what the audit log has, for counts that only this sidecar keeps.
func (s *Spend) Books() budget.Books { return sharedSpend{s} }

type sharedSpend struct{ s *Spend }

func (s sharedSpend) Sums(ctx context.Context, org string, counters []string) ([]budget.Sum, error) {
	return s.s.sums(ctx, org, counters, false)
}

func (s sharedSpend) Sidecars(ctx context.Context, org string) (int, error) {
	got, err := s.s.counts(ctx, org, nil)
	return got.Sidecars, err
}

func (s sharedSpend) Shipped(ctx context.Context, org string) error {
	return s.s.records.WaitOrg(ctx, org)
}

// sums asks the control plane. With alone, another sidecar is an error.
func (s *Spend) sums(ctx context.Context, org string, counters []string, alone bool) ([]budget.Sum, error) {
	if err := s.records.WaitEarlier(ctx, org); err != nil {
		return nil, fmt.Errorf("%w: %w", budget.ErrUnknownSums, err)
	}
	s.mu.Lock()
	o := s.servedLocked(org)
	writer, seq := o.writer, o.seq
	s.mu.Unlock()
	out := make([]budget.Sum, 0, len(counters))
	for some := range slices.Chunk(counters, audit.MaxCounts) {
		names := make([]audit.CountName, len(some))
		for i, c := range some {
			names[i] = audit.CountName{Counter: c, Period: c[strings.LastIndexByte(c, '@')+1:]}
		}
		got, err := s.counts(ctx, org, names)
		if err != nil {
			return nil, err
		}
		switch {
		case alone && got.Sidecars > 1:
			return nil, budget.ErrStoreRequired
		case writer == s.records.ID() && got.WriterSeq < seq:
			// A count that is lowered to such sums would admit again what was spent.
			return nil, fmt.Errorf("%w: the control plane had record %d of this process, and has records up to %d only; its database was restored",
				budget.ErrUnknownSums, seq, got.WriterSeq)
		}
		for _, c := range got.Counts {
			if c.ChargedNanoUSD < 0 || c.ReservedNanoUSD < 0 || c.ChargedNanoUSD+c.ReservedNanoUSD < 0 {
				return nil, fmt.Errorf("%w: the control plane sent a sum that cannot be", budget.ErrUnknownSums)
			}
			out = append(out, budget.Sum{Charged: c.ChargedNanoUSD, Reserved: c.ReservedNanoUSD})
		}
	}
	return out, nil
}

// Run renews the lease of each org in which a cap was used, three times in each lease, until
// ctx ends. Then it gives the leases back.
func (s *Spend) Run(ctx context.Context) error {
	refreshed := make(chan struct{})
	go func() {
		defer close(refreshed)
		s.refresh(ctx)
	}()
	defer func() { <-refreshed }()
	tick := time.NewTicker(audit.SidecarLease / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			s.leave(context.WithoutCancel(ctx))
			return nil
		case <-tick.C:
		}
		for _, org := range s.served() {
			asked, cancel := context.WithTimeout(ctx, askTimeout)
			if _, err := s.counts(asked, org, nil); err != nil && ctx.Err() == nil {
				s.log.WarnContext(ctx, "the lease for USD caps is not renewed; requests under them are rejected when it ends", "org", org, "err", err)
			}
			cancel()
		}
		s.mu.Lock()
		s.writer = s.records.ID()
		s.mu.Unlock()
	}
}

func (s *Spend) served() (orgs []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for org := range s.orgs {
		orgs = append(orgs, org)
	}
	return orgs
}

// leave gives the leases back, so that another sidecar need not wait for their end. While
// charges are not shipped, the sums lack them, so the leases run on.
func (s *Spend) leave(ctx context.Context) {
	if s.records.Waiting() > 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	for _, org := range s.served() {
		if _, err := s.ledger.Counts(ctx, audit.CountsRequest{Org: org, Writer: s.records.ID(), Leaving: true}); err != nil {
			s.log.WarnContext(ctx, "the lease for USD caps is not given back; it ends by its time", "org", org, "err", err)
		}
	}
}
