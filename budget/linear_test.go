package budget_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/ai-identity/ai-identity/budget"
)

var histories = flag.Int("histories", 300, "how many histories TestLinearizable checks")

// operation is what a client does with one request.
type operation struct {
	kind   string // "reserve", "end" or "release"
	id     int
	amount int64 // reserved, or charged
}

const (
	linearCap   = 100
	linearRate  = 6
	linearSlots = 3
	linearIDs   = 6
)

// counted is the state of a cap, a rate and slots, at one instant: the clock stands still.
type counted struct {
	charged     int64
	rate, slots int
	held        [linearIDs]int64 // what each request reserves; 0: nothing
}

// reference does one operation after another, as the documentation says.
var reference = porcupine.Model{
	Init: func() any { return counted{} },
	Step: func(state, input, output any) (bool, any) {
		s, op := state.(counted), input.(operation)
		held := s.held[op.id]
		switch op.kind {
		case "reserve":
			if held != 0 {
				return output == true, s // a request that is held takes nothing more
			}
			reserved := int64(0)
			for _, n := range s.held {
				reserved += n
			}
			ok := s.charged+reserved+op.amount <= linearCap && s.rate < linearRate && s.slots < linearSlots
			if ok {
				s.held[op.id], s.rate, s.slots = op.amount, s.rate+1, s.slots+1
			}
			return output == ok, s
		case "end":
			if held != 0 {
				s.held[op.id], s.charged, s.slots = 0, s.charged+op.amount, s.slots-1
			}
		case "release":
			if held != 0 {
				s.held[op.id], s.rate, s.slots = 0, s.rate-1, s.slots-1
			}
		}
		return true, s
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v: %v", input, output) },
}

// Whatever runs at once, the results are those of some order of the same operations.
//
//	go test ./budget -run TestLinearizable -histories 10000
func TestLinearizable(t *testing.T) {
	for n := range *histories {
		c := &clock{}
		m := budget.NewMemory(c.now, &ledger{})
		epoch := time.Now()
		var mu sync.Mutex
		var history []porcupine.Operation
		var clients sync.WaitGroup
		for client := range 4 {
			clients.Go(func() {
				dice := rand.New(rand.NewPCG(uint64(n), uint64(client)))
				for range 10 {
					op := operation{kind: []string{"reserve", "reserve", "end", "release"}[dice.IntN(4)], id: dice.IntN(linearIDs), amount: 1 + dice.Int64N(40)}
					id, out := fmt.Sprint(op.id), true
					call := time.Since(epoch)
					switch op.kind {
					case "reserve":
						r, err := m.Reserve(t.Context(), "org_1", id, []budget.Limit{
							{Key: "cap", Kind: budget.Month, Max: linearCap, Amount: op.amount}, {Key: "rate", Max: linearRate}, {Key: "slots", Kind: budget.Slots, Max: linearSlots},
						})
						if out = r.OK; err != nil {
							t.Error(err)
						}
					case "end":
						m.Settle(t.Context(), id, budget.Used{NanoUSD: op.amount})
					case "release":
						m.Release(t.Context(), id)
					}
					back := time.Since(epoch)
					mu.Lock()
					history = append(history, porcupine.Operation{ClientId: client, Input: op, Output: out, Call: call.Nanoseconds(), Return: back.Nanoseconds()})
					mu.Unlock()
				}
			})
		}
		clients.Wait()
		if got := porcupine.CheckOperationsTimeout(reference, history, time.Minute); got != porcupine.Ok {
			t.Fatalf("history %d is not linearizable (%s): %+v", n, got, history)
		}
	}
}

var simulated = flag.Int("simulated", 200_000, "how many requests TestSimulated sends")

// Many requests in virtual time: bursts, pauses, and requests that end in any order. No window
// lets more pass than the rate and a burst, and a day is never charged above its cap.
//
//	go test ./budget -run TestSimulated -simulated 10000000
func TestSimulated(t *testing.T) {
	const rate, daily, agents = 600, 50_000, 20
	c := &clock{}
	m := budget.NewMemory(c.now, &ledger{})
	dice := rand.New(rand.NewPCG(3, 4))
	start := c.now()
	type open struct {
		id, day string
		agent   int
		amount  int64
	}
	var inFlight []open
	charged, passed := map[string]int64{}, [agents]int64{}
	allowed, most := 0, int64(0)
	for n := range *simulated {
		switch dice.IntN(200) {
		case 0:
			c.advance(time.Duration(dice.Int64N(int64(90 * time.Second))))
		case 1:
			c.advance(time.Duration(dice.Int64N(int64(20 * time.Minute))))
		default:
			c.advance(time.Duration(dice.Int64N(int64(10 * time.Millisecond))))
		}
		agent, id := dice.IntN(agents), fmt.Sprint(n)
		limits := []budget.Limit{{Key: fmt.Sprint("agent:", agent), Max: rate}, {Key: "cap", Kind: budget.Day, Max: daily, Amount: 1 + dice.Int64N(100)}}
		r, err := m.Reserve(t.Context(), "org_1", id, limits)
		if err != nil {
			t.Fatal(err)
		}
		if r.OK {
			allowed++
			passed[agent]++
			inFlight = append(inFlight, open{id, limits[1].Period, agent, limits[1].Amount})
			if limits[1].Left < 0 {
				t.Fatalf("request %d: the cap has %d left", n, limits[1].Left)
			}
			// Since the start at most a burst and the rate has passed.
			if bound := rate + int64(c.now().Sub(start)/(time.Minute/rate)); passed[agent] > bound {
				t.Fatalf("request %d: %d of agent %d passed, at most %d may", n, passed[agent], agent, bound)
			}
		}
		for len(inFlight) > 0 && (dice.IntN(2) == 0 || len(inFlight) > 200) {
			i := dice.IntN(len(inFlight))
			o := inFlight[i]
			inFlight[i] = inFlight[len(inFlight)-1]
			inFlight = inFlight[:len(inFlight)-1]
			if dice.IntN(20) == 0 {
				m.Release(t.Context(), o.id)
				passed[o.agent]-- // it gives its place in the rate back
				continue
			}
			cost := dice.Int64N(o.amount + 1)
			m.Settle(t.Context(), o.id, budget.Used{NanoUSD: cost})
			if charged[o.day] += cost; charged[o.day] > daily {
				t.Fatalf("request %d: %d is charged on %s", n, charged[o.day], o.day)
			}
			most = max(most, charged[o.day])
		}
	}
	for _, o := range inFlight {
		m.Release(t.Context(), o.id)
	}
	if reserved, slots, requests := m.InFlight(); reserved != 0 || slots != 0 || requests != 0 {
		t.Errorf("at rest: %d reserved, %d slots, %d requests", reserved, slots, requests)
	}
	if most < daily*9/10 {
		t.Errorf("the cap was never near: %d", most)
	}
	t.Logf("%d of %d requests passed, on %d days, in %v; at most %d of %d was charged in a day", allowed, *simulated, len(charged), c.now().Sub(start), most, daily)
}
