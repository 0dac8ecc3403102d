package budget_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/budget"
)

// try reserves once, for another request each time: one in doubt has ended.
func try(t *testing.T, v *budget.Valkey, id string, limits []budget.Limit) (budget.Result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	return v.Reserve(ctx, "org_1", id+fmt.Sprint(probes.Add(1)), limits)
}

// Whatever happens to the store, a cap is never exceeded by more than what the lost second
// reserved, and it admits again within 30 seconds.
func TestValkeyFaults(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault func(t *testing.T, s *server) // and its end
		away  bool
	}{
		{"killed", func(t *testing.T, s *server) { s.Kill(); s.Restart() }, true},
		{"flushed", func(t *testing.T, s *server) { s.Do("FLUSHALL") }, false},
		{"paused", func(t *testing.T, s *server) {
			s.Signal(syscall.SIGSTOP)
			t.Cleanup(func() { s.Signal(syscall.SIGCONT) })
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := startValkey(t)
			a := &auditLog{sidecars: 1}
			v := open(t, a, s.Address())
			if r := reserve(t, v, "a", month1(100, 60)); !r.OK {
				t.Fatalf("%+v", r)
			}
			v.Recorded("a")
			if r := reserve(t, v, "done", month1(100, 10)); !r.OK {
				t.Fatalf("%+v", r)
			}
			v.Settle(t.Context(), "done", budget.Used{NanoUSD: 5})
			s.charged(thisMonth(), "5")
			// Both decisions are recorded, and one completion.
			a.set(func(a *auditLog) { a.sums = map[string]int64{thisMonth(): 65} })
			c.fault(t, s)
			if c.name == "paused" {
				v.Wait(100 * time.Millisecond)
				if _, err := try(t, v, "paused", month1(100, 1)); !errors.Is(err, budget.ErrStoreAway) {
					t.Errorf("while it is paused: %v", err)
				}
				began := time.Now()
				for i := range 20 {
					if _, err := try(t, v, fmt.Sprint("paused", i), month1(100, 1)); !errors.Is(err, budget.ErrStoreAway) {
						t.Errorf("while it is paused: %v", err)
					}
				}
				if took := time.Since(began); took > 2*time.Second {
					t.Errorf("20 requests waited %v for a store that is known to be away", took)
				}
				s.Signal(syscall.SIGCONT)
				v.Wait(10 * time.Second)
			}
			// 65 are counted, so of these at most 35 may pass.
			var r budget.Result
			var b string
			within(t, "the cap admits again", func() bool {
				var err error
				b = fmt.Sprint("b", probes.Add(1))
				r, err = v.Reserve(t.Context(), "org_1", b, month1(100, 30))
				return err == nil
			})
			if !r.OK {
				t.Fatalf("what is left is not admitted: %+v", r)
			}
			if r, err := try(t, v, "c", month1(100, 36)); err == nil && r.OK {
				t.Errorf("more than the cap was admitted: %+v", r)
			}
			v.Settle(t.Context(), b, budget.Used{NanoUSD: 1})
			for start := s.now(); s.now() < start+3*50_000; { // heartbeats, after the sums were read
				reserve(t, v, fmt.Sprint("later", s.now()), month1(100, 100))
			}
			v.Settle(t.Context(), "a", budget.Used{NanoUSD: 2})
			s.charged(thisMonth(), "8")
			if got := s.settled(thisMonth()); got != "8" {
				t.Errorf("charged %s", got)
			}
		})
	}
}

// charged waits for what is charged to a counter.
func (s *server) charged(counter, want string) {
	s.t.Helper()
	got := ""
	within(s.t, counter+" is charged "+want, func() bool {
		var err error
		got, err = s.Send("HGET aid:{org_1}:usd:" + counter + " charged")
		return err == nil && got == want
	})
}

// After a loss, caps reject until every sidecar has joined, and its records are shipped.
func TestValkeyWaitsForAllSidecars(t *testing.T) {
	s := startValkey(t)
	one, two := &auditLog{sidecars: 1}, &auditLog{sidecars: 1}
	v1, v2 := open(t, one, s.Address()), open(t, two, s.Address())
	if r := reserve(t, v1, "a", month1(100, 1)); !r.OK {
		t.Fatalf("%+v", r)
	}
	if r := reserve(t, v2, "b", month1(100, 70)); !r.OK {
		t.Fatalf("%+v", r)
	}
	hold := make(chan struct{})
	for _, a := range []*auditLog{one, two} {
		a.set(func(a *auditLog) { a.sidecars = 2; a.sums = map[string]int64{thisMonth(): 71} })
	}
	two.set(func(a *auditLog) { a.hold = hold }) // the second has charges that are not shipped
	s.Do("FLUSHALL")
	within(t, "the loss is noticed", func() bool {
		_, err := try(t, v1, "c", month1(100, 30))
		return errors.Is(err, budget.ErrUnknownSums)
	})
	for i := range 3 {
		if r, err := try(t, v1, fmt.Sprint("c", i), month1(100, 1)); err == nil {
			t.Fatalf("admitted before the second sidecar has joined: %+v", r)
		}
	}
	if r, err := try(t, v1, "rate", one1("key:k", 5)); err != nil || !r.OK {
		t.Errorf("rates are counted meanwhile: %+v %v", r, err)
	}
	close(hold)
	within(t, "the cap admits again", func() bool {
		r, err := try(t, v1, "d", month1(1000, 1))
		return err == nil && r.OK
	})
	if r, err := try(t, v2, "e", month1(100, 30)); err == nil && r.OK {
		t.Errorf("what both held is not counted: %+v", r)
	}
}

func one1(key string, perMinute int64) []budget.Limit { return one(key, perMinute) }

// A decision that is not recorded yet when counts are lost is not lost with them.
func TestValkeyTakesYoungReservationsAlong(t *testing.T) {
	s := startValkey(t)
	v := open(t, &auditLog{}, s.Address())
	if r := reserve(t, v, "young", month1(100, 60)); !r.OK {
		t.Fatalf("%+v", r)
	}
	s.Do("FLUSHALL")
	within(t, "the loss is noticed", func() bool {
		_, err := s.Send("HGET aid:{org_1}:org gen")
		return err == nil && s.Do("DBSIZE") != "0" && s.Do("HGET aid:{org_1}:usd:"+thisMonth()+" reserved") == "60"
	})
	if r := reserve(t, v, "b", month1(100, 41)); r.OK {
		t.Fatalf("more than the cap: %+v", r)
	}
	v.Settle(t.Context(), "young", budget.Used{NanoUSD: 7})
	if got := s.settled(thisMonth()); got != "7" {
		t.Errorf("charged %s", got)
	}
}

// While the store is away, each sidecar counts its share of the rates.
func TestValkeyAwayRates(t *testing.T) {
	s := startValkey(t)
	a := &auditLog{sidecars: 4}
	v := open(t, a, s.Address())
	first := 0
	within(t, "it is counted in the store", func() bool {
		first++
		r, err := try(t, v, fmt.Sprint("first", first), one("key:k", 8))
		return err == nil && r.Limit == 8
	})
	within(t, "the number of sidecars is known", func() bool { return v.Sidecars("org_1") == 4 })
	s.Kill()
	var passed int
	within(t, "it is away", func() bool { _, err := try(t, v, "m", month1(10, 1)); return errors.Is(err, budget.ErrStoreAway) })
	for i := range 8 {
		r, err := v.Reserve(t.Context(), "org_1", fmt.Sprint("r", i), one("key:k2", 8))
		if err != nil {
			t.Fatal(err)
		}
		if r.OK {
			passed++
			v.Settle(t.Context(), fmt.Sprint("r", i), budget.Used{})
		} else if r.Limit != 2 {
			t.Errorf("%+v", r)
		}
	}
	if passed != 2 {
		t.Errorf("%d of 8 passed, want a quarter", passed)
	}
	if _, err := try(t, v, "usd", month1(10, 1)); !errors.Is(err, budget.ErrStoreAway) {
		t.Errorf("a cap: %v", err)
	}
	if _, err := try(t, v, "free", month1(10, 0)); err != nil {
		t.Errorf("what costs nothing: %v", err)
	}
	s.Restart()
	within(t, "it is back", func() bool {
		first++
		r, err := try(t, v, fmt.Sprint("back", first), one("key:k3", 8))
		return err == nil && r.Limit == 8
	})
}

// proxy forwards connections to a server, and can be cut or led elsewhere.
type proxy struct {
	listener net.Listener
	mu       sync.Mutex
	to       string
	conns    map[net.Conn]bool
	cut      chan struct{} // nothing passes until it is closed; nil: all does
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, to: to, conns: map[net.Conn]bool{}}
	t.Cleanup(func() { l.Close(); p.lead("") })
	go p.accept()
	return p
}

func (p *proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		go p.serve(c)
	}
}

func (p *proxy) serve(c net.Conn) {
	p.mu.Lock()
	to := p.to
	p.mu.Unlock()
	defer c.Close()
	up, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer up.Close()
	p.mu.Lock()
	p.conns[c], p.conns[up] = true, true
	p.mu.Unlock()
	done := make(chan struct{}, 2)
	pass := func(to, from net.Conn) {
		b := make([]byte, 32<<10)
		for {
			n, err := from.Read(b)
			p.mu.Lock()
			cut := p.cut
			p.mu.Unlock()
			if cut != nil {
				<-cut
			}
			if err == nil {
				_, err = to.Write(b[:n])
			}
			if err != nil {
				break
			}
		}
		done <- struct{}{}
	}
	go pass(up, c)
	go pass(c, up)
	<-done
}

// partition holds back what is sent, until heal is called.
func (p *proxy) partition() (heal func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	cut := make(chan struct{})
	p.cut = cut
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.cut = nil
		close(cut)
	}
}

// lead ends all connections, and leads new ones to another server.
func (p *proxy) lead(to string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.to = to
	for c := range p.conns {
		_ = c.Close()
	}
	clear(p.conns)
}

// In a partition a cap rejects. What got no reply is given back once it is over.
func TestValkeyPartition(t *testing.T) {
	s := startValkey(t)
	p := newProxy(t, s.Address())
	v := open(t, &auditLog{}, p.listener.Addr().String())
	if r := reserve(t, v, "a", month1(100, 10)); !r.OK {
		t.Fatalf("%+v", r)
	}
	v.Wait(100 * time.Millisecond)
	heal := p.partition()
	v.Settle(t.Context(), "a", budget.Used{NanoUSD: 4})
	began := time.Now()
	if _, err := try(t, v, "b", month1(100, 10)); !errors.Is(err, budget.ErrStoreAway) {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("a request waited %v", took)
	}
	heal()
	v.Wait(10 * time.Second)
	s.charged(thisMonth(), "4")
	if got := s.settled(thisMonth()); got != "4" {
		t.Errorf("charged %s", got)
	}
	if r := reserve(t, v, "c", month1(100, 96)); !r.OK {
		t.Errorf("what was never admitted is still held: %+v", r)
	}
}

// A promoted replica that lacks the last writes is noticed: at most these are admitted twice.
func TestValkeyFailover(t *testing.T) {
	first := startValkey(t)
	second := startValkey(t, "--replicaof", "127.0.0.1 "+strconv.Itoa(first.Port))
	within(t, "the replica follows", func() bool { return strings.Contains(second.Do("INFO replication"), "master_link_status:up") })
	p := newProxy(t, first.Address())
	a := &auditLog{}
	v := open(t, a, p.listener.Addr().String())
	if r := reserve(t, v, "a", month1(100, 50)); !r.OK {
		t.Fatalf("%+v", r)
	}
	within(t, "it is replicated", func() bool { return second.Do("HGET aid:{org_1}:usd:"+thisMonth()+" reserved") == "50" })
	second.Do("REPLICAOF NO ONE") // from here on, writes to the first are lost
	if r := reserve(t, v, "lost", month1(100, 30)); !r.OK {
		t.Fatalf("%+v", r)
	}
	a.set(func(a *auditLog) { a.sums = map[string]int64{thisMonth(): 80} }) // both are recorded
	gen := second.Do("HGET aid:{org_1}:org gen")
	p.lead(second.Address())
	within(t, "a new generation begins", func() bool {
		g := second.Do("HGET aid:{org_1}:org gen")
		return g != gen && second.Do("HGET aid:{org_1}:org ready") == "1"
	})
	if r := reserve(t, v, "b", month1(100, 21)); r.OK {
		t.Errorf("more than the cap: %+v", r)
	}
	if r := reserve(t, v, "c", month1(1000, 21)); !r.OK {
		t.Errorf("%+v", r)
	}
}

// The old primary that has become a replica is left, where its name leads elsewhere.
func TestValkeyReadOnly(t *testing.T) {
	first, second := startValkey(t), startValkey(t)
	p := newProxy(t, first.Address())
	v := open(t, &auditLog{}, p.listener.Addr().String())
	reserve(t, v, "a", month1(100, 1))
	first.Do("REPLICAOF 127.0.0.1 " + strconv.Itoa(second.Port))
	p.mu.Lock()
	p.to = second.Address() // connections stay
	p.mu.Unlock()
	within(t, "the cap admits again", func() bool {
		r, err := v.Reserve(t.Context(), "org_1", fmt.Sprint("b", probes.Add(1)), month1(100, 1))
		return err == nil && r.OK
	})
	if second.Do("HGET aid:{org_1}:org ready") != "1" {
		t.Error("it counts elsewhere")
	}
}

// A cluster rejects scripts whose keys are in several slots.
func TestValkeyCluster(t *testing.T) {
	s := startValkey(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-announce-ip", "127.0.0.1")
	s.Do("CLUSTER ADDSLOTSRANGE 0 16383")
	within(t, "the cluster is up", func() bool { return strings.Contains(s.Do("CLUSTER INFO"), "cluster_state:ok") })
	if err := s.Try("EVAL return{redis.call('GET',KEYS[1]),redis.call('GET',KEYS[2])} 2 a b"); err == nil || !strings.Contains(err.Error(), "CROSSSLOT") {
		t.Fatalf("the server does not enforce slots: %v", err)
	}
	v := open(t, &auditLog{}, s.Address())
	limits := func(amount int64) []budget.Limit {
		return []budget.Limit{
			{Key: "key:{other}", Kind: budget.Requests, Max: 5}, {Key: "t", Kind: budget.Tokens, Max: 5, Amount: 1}, {Key: "s", Kind: budget.Slots, Max: 2},
			{Key: "cap", Kind: budget.Month, Max: 100, Amount: amount}, {Key: "day", Kind: budget.Day, Max: 100, Amount: amount},
		}
	}
	for i, org := range []string{"org_1", "org_2", "org_3"} {
		id := ""
		within(t, org+" is counted", func() bool {
			id = fmt.Sprint("r", i, "-", probes.Add(1))
			r, err := v.Reserve(t.Context(), org, id, limits(10))
			return err == nil && r.OK
		})
		v.Settle(t.Context(), id, budget.Used{NanoUSD: 3, Tokens: 2, Counted: true})
	}
	if got := s.settled(thisMonth()); got != "3" {
		t.Errorf("charged %s", got)
	}
	if v.Release(t.Context(), "none"); s.Do("DBSIZE") == "0" {
		t.Error("nothing is stored")
	}
}

// A store that would forget counts is rejected, and so is one that becomes such a store.
func TestValkeyUnfit(t *testing.T) {
	s := startValkey(t, "--maxmemory-policy", "allkeys-lru")
	v, err := budget.NewValkey(budget.ValkeyConfig{Addresses: []string{s.Address()}, Sums: &auditLog{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Check(t.Context()); !errors.Is(err, budget.ErrStoreUnfit) || !strings.Contains(err.Error(), "noeviction") {
		t.Errorf("%v", err)
	}
	s.Do("CONFIG SET maxmemory-policy noeviction")
	if err := v.Check(t.Context()); err != nil {
		t.Error(err)
	}
	s.Kill()
	if err := v.Check(t.Context()); !errors.Is(err, budget.ErrStoreAway) {
		t.Errorf("%v", err)
	}
	old := oldServer(t, "redis_version:6.2.14\r\n")
	v, err = budget.NewValkey(budget.ValkeyConfig{Addresses: []string{old}, Sums: &auditLog{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Check(t.Context()); !errors.Is(err, budget.ErrStoreUnfit) || !strings.Contains(err.Error(), "6.2.14") {
		t.Errorf("%v", err)
	}
}

// oldServer replies to each command as an old Redis: INFO with these lines.
func oldServer(t *testing.T, info string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 64<<10)
				for {
					n, err := c.Read(b)
					if err != nil {
						return
					}
					for _, command := range strings.Split(string(b[:n]), "*")[1:] {
						text := "+OK\r\n"
						switch up := strings.ToUpper(command); {
						case strings.Contains(up, "INFO\r\n") && !strings.Contains(up, "SETINFO"):
							text = fmt.Sprintf("$%d\r\n%s\r\n", len(info), info)
						case strings.Contains(up, "HELLO"):
							text = "%2\r\n$7\r\nversion\r\n$6\r\n6.2.14\r\n$5\r\nproto\r\n:3\r\n"
						case strings.Contains(up, "CLUSTER"):
							text = "-ERR This instance has cluster support disabled\r\n"
						case strings.Contains(up, "PING"):
							text = "+PONG\r\n"
						}
						if _, err := io.WriteString(c, text); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// A sidecar that is gone leaves its reservations charged in full, and no slot.
func TestValkeyBury(t *testing.T) {
	s := startValkey(t)
	v := open(t, &auditLog{}, s.Address())
	reserve(t, v, "mine", month1(100, 1))
	key := "aid:{org_1}:usd:" + thisMonth()
	gen := s.Do("HGET aid:{org_1}:org gen")
	s.Do("HSET aid:{org_1}:held:DEAD gone \"" + gen + "\\n40 " + key + "\"")
	s.Do("HINCRBY " + key + " reserved 40")
	s.Do("HSET aid:{org_1}:org b:DEAD 1000 s:DEAD 4 j:DEAD " + gen)
	within(t, "what it held is charged", func() bool { return s.Do("HGET "+key+" charged") == "40" && s.Do("HGET "+key+" reserved") == "1" })
	within(t, "it is forgotten", func() bool {
		return s.Do("HEXISTS aid:{org_1}:org b:DEAD") == "0" && s.Do("EXISTS aid:{org_1}:held:DEAD") == "0"
	})
}

var whole = flag.Bool("shares", false, "run TestValkeyShares with 20 sidecars, 1,000 requests and $10")

// $02: 20 sidecars, 1,000 requests at one barrier, $10. Without -shares a tenth of that.
func TestValkeyShares(t *testing.T) {
	s := startValkey(t)
	a := &auditLog{}
	sidecars, streams := 4, 25
	most, each := int64(1e9), int64(5e7)
	if *whole {
		sidecars, streams, most = 20, 50, 10e9
	}
	run := func(name string, counter string, charge int64, again bool) (charged int64, admitted int64) {
		var sum, passed atomic.Int64
		var wg sync.WaitGroup
		barrier, done := make(chan struct{}), make(chan struct{})
		exceeded := make(chan string, 1)
		key := "aid:{org_1}:usd:" + counter + "@" + time.Now().UTC().Format("2006-01")
		limits := func() []budget.Limit { return month(counter, most, each) }
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		for i := range sidecars {
			v := open(t, a, s.Address())
			for j := range streams {
				wg.Go(func() {
					<-barrier
					for n := 0; ctx.Err() == nil; n++ {
						id := fmt.Sprintf("%s-%d-%d-%d", name, i, j, n)
						r, err := v.Reserve(ctx, "org_1", id, limits())
						if err != nil {
							continue
						}
						switch {
						case r.OK:
							passed.Add(1)
							if again {
								v.Settle(ctx, id, budget.Used{NanoUSD: charge})
								sum.Add(charge)
							}
						case again && r.Why == budget.Held:
							time.Sleep(r.RetryAfter / 20) // as Retry-After asks, but sooner, so that the test ends
							continue
						default:
							return // spent, or too large
						}
						if !again {
							return
						}
					}
				})
			}
		}
		go func() { // no instant may be above the cap
			for {
				select {
				case <-done:
					return
				default:
				}
				line, err := s.Send(`EVAL "return string.format('%d', (redis.call('HGET', KEYS[1], 'charged') or '0') + (redis.call('HGET', KEYS[1], 'reserved') or '0'))" 1 ` + key)
				if n, bad := strconv.ParseInt(line, 10, 64); err != nil || bad != nil || n > most {
					line += fmt.Sprint(" ", err)
					select {
					case exceeded <- line:
					default:
					}
				}
			}
		}()
		close(barrier)
		wg.Wait()
		close(done)
		select {
		case n := <-exceeded:
			t.Errorf("%s: at one instant %s was charged and reserved", name, n)
		default:
		}
		return sum.Load(), passed.Load()
	}
	if _, admitted := run("same", "cap1", each, false); admitted != most/each {
		t.Errorf("%d were admitted, want %d", admitted, most/each)
	}
	charged, _ := run("tenth", "cap2", each/10, true)
	if charged < most*95/100 || charged > most {
		t.Errorf("charged %d of %d", charged, most)
	}
	t.Logf("charged %d of %d", charged, most)
}
