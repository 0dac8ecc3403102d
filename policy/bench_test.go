package policy_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/policy"
)

// set makes n policies. document receives the number of each.
func set(n int, document func(int) string) []policy.Policy {
	ps := make([]policy.Policy, n)
	for i := range ps {
		ps[i] = policy.Policy{ID: fmt.Sprintf("pol_%05d", i), OrgID: "org_1", Version: 1, Document: []byte(document(i))}
	}
	return ps
}

func BenchmarkDecide(b *testing.B) {
	allow := `{"name": "p%[1]d", "effect": "allow", "conditions": {"agent.team": "team-%[1]d", "request.model": {"in": ["small", "m-%[1]d"]}, "request.hour_utc": {"between": [8, 18]}}, "limits": {"rpm": 60}}`
	for _, c := range []struct {
		name     string
		policies []policy.Policy
	}{
		{"baseline", nil},
		{"10", set(10, func(i int) string { return fmt.Sprintf(allow, i) })},
		{"100-by-team", set(100, func(i int) string { return fmt.Sprintf(allow, i) })},
		{"1000-by-team", set(1000, func(i int) string { return fmt.Sprintf(allow, i) })},
		{"1000-deny-by-model", set(1000, func(i int) string {
			return fmt.Sprintf(`{"name": "p%[1]d", "effect": "deny", "conditions": {"request.model": "m-%[1]d"}}`, i)
		})},
		{"1000-allow-by-model", set(1000, func(i int) string {
			return fmt.Sprintf(`{"name": "p%[1]d", "effect": "allow", "conditions": {"request.model": "m-%[1]d"}}`, i)
		})},
		{"1000-no-index", set(1000, func(i int) string {
			return fmt.Sprintf(`{"name": "p%[1]d", "effect": "deny", "conditions": {"request.bytes": {"between": [%[1]d, %[1]d]}}}`, 1000+i)
		})},
	} {
		b.Run(c.name, func(b *testing.B) {
			bundle, err := policy.Compile(context.Background(), c.policies)
			if err != nil {
				b.Fatal(err)
			}
			in := request()
			in.Agent.Team = "team-3"
			if c.name == "1000-allow-by-model" {
				in.Request.Model, in.Agent.AllowedModels = "m-7", []string{"*"}
			}
			if d := bundle.Decide(context.Background(), in); d.Effect != policy.Allow {
				b.Fatalf("%+v", d)
			}
			b.ReportAllocs()
			cpu := processorTime(b)
			for b.Loop() {
				bundle.Decide(context.Background(), in)
			}
			cpu()
		})
	}
}

// BenchmarkDecideOfMany decides among many policies. Ten of them apply to each request. p50-ns
// is the median of a decision. The inputs are:
//
//   - "equal": all the same
//   - "new": each has another model, which rules read
//   - "mix": of 100 teams, with models that policies name and new ones, and with other sizes,
//     addresses, sessions, tools and times
//   - "evaluated": as in new, and OPA evaluates each
func BenchmarkDecideOfMany(b *testing.B) {
	apply := `{"name": "p%[1]d", "effect": "allow", "conditions": {"agent.team": "team-%[2]d", "request.hour_utc": {"between": [8, 18]}, "request.model": {"ne": "m-%[1]d"}}, "limits": {"rpm": 60}}`
	others := []string{
		`"request.model": {"glob": "other-%[1]d-*"}`, `"not": {"request.bytes": {"gte": 0}}`, `"caller.ip": {"cidr": "10.%[3]d.0.0/16"}`,
		`"request.time": {"between": ["00:00", "00:0%[4]d"], "zone": "Europe/Berlin"}`,
	}
	mixed := func(i int) string {
		if i >= 200 {
			return fmt.Sprintf(apply, i, i/10)
		}
		return fmt.Sprintf(`{"name": "p%[1]d", "effect": "deny", "conditions": {`+others[i%4]+`}}`, i, i/10, i%256, 1+i%9)
	}
	for _, c := range []struct {
		name     string
		policies []policy.Policy
	}{
		{"10", set(10, func(i int) string { return fmt.Sprintf(apply, i, 30) })},
		{"1000", set(1000, func(i int) string { return fmt.Sprintf(apply, i, i/10) })},
		{"2000", set(2000, func(i int) string { return fmt.Sprintf(apply, i, i/10) })},
		{"1000-200-not-glob-cidr-hours", set(1000, mixed)},
	} {
		bundle, err := policy.Compile(context.Background(), c.policies)
		if err != nil {
			b.Fatal(err)
		}
		in := request()
		in.Agent.Team, in.Agent.AllowedModels, in.Caller.IP = "team-30", []string{"*"}, "203.0.113.9"
		models := make([]string, 1<<18) // more than the memo holds
		for i := range models {
			models[i] = fmt.Sprint("model-", i)
		}
		if d := bundle.Decide(context.Background(), in); d.Effect != policy.Allow || len(d.PolicyIDs) != 10 {
			b.Fatalf("%+v", d)
		}
		mix := mixOf(1<<14, in)
		for _, kind := range []string{"new", "equal", "mix", "evaluated"} {
			b.Run(c.name+"/"+kind, func(b *testing.B) {
				b.ReportAllocs()
				if kind == "evaluated" {
					defer bundle.WithoutMemo()()
				}
				for i := 0; kind == "mix" && i < len(mix); i++ {
					bundle.Decide(context.Background(), mix[i])
				}
				took := make([]time.Duration, 0, 1<<20)
				cpu := processorTime(b)
				for i := 0; b.Loop(); i++ {
					switch kind {
					case "new", "evaluated":
						in.Request.Model = models[i%len(models)]
					case "mix":
						in = mix[i%len(mix)]
						in.Request.Bytes, in.Request.Time = int64(i), in.Request.Time.Add(time.Duration(i)*time.Millisecond)
					}
					began := time.Now()
					bundle.Decide(context.Background(), in)
					took = append(took, time.Since(began))
				}
				cpu()
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2]), "p50-ns")
			})
		}
	}
}

// mixOf returns n inputs that differ as those of one org do.
func mixOf(n int, in policy.Input) []policy.Input {
	random := rand.New(rand.NewPCG(1, 2))
	tools := []string{"search", "read", "write", "shell", "mail"}
	ins := make([]policy.Input, n)
	for i := range ins {
		x := in
		team := random.IntN(100)
		x.Agent.ID, x.Agent.Team, x.Caller.KeyID = fmt.Sprint("ag_", team, "_", random.IntN(20)), fmt.Sprint("team-", team), fmt.Sprint("key_", i)
		x.Request.Model = fmt.Sprint("m-", random.IntN(100)*10) // a policy of some team excludes it
		if random.IntN(2) == 0 {
			x.Request.Model = fmt.Sprint("model-", random.IntN(40))
		}
		x.Request.MaxTokens, x.Request.InputTokensEstimate = random.Int64N(4096), random.Int64N(100_000)
		x.Request.SessionID, x.Caller.IP = fmt.Sprint("session-", i), fmt.Sprintf("203.0.113.%d", random.IntN(256))
		x.Request.Tools = tools[:random.IntN(len(tools))]
		ins[i] = x
	}
	return ins
}

// BenchmarkDecideForMany decides with the baseline for more callers than the cache holds.
func BenchmarkDecideForMany(b *testing.B) {
	bundle, err := policy.Compile(context.Background(), nil)
	if err != nil {
		b.Fatal(err)
	}
	ins := make([]policy.Input, 10_000)
	for i := range ins {
		ins[i] = request()
		ins[i].Caller.KeyID = fmt.Sprint("key_", i)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		bundle.Decide(context.Background(), ins[i%len(ins)])
	}
}

func BenchmarkCompile(b *testing.B) {
	for _, n := range []int{0, 10, 1000} {
		ps := set(n, func(i int) string {
			return fmt.Sprintf(`{"name": "p%[1]d", "effect": "allow", "conditions": {"agent.team": "team-%[1]d", "request.model": {"in": ["small", "m-%[1]d"]}, "request.hour_utc": {"between": [8, 18]}}, "limits": {"rpm": 60}}`, i)
		})
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := policy.Compile(context.Background(), ps); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// processorTime reports the processor time beside the elapsed time, which grows with other
// processes on the machine.
func processorTime(b *testing.B) func() {
	used := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}
