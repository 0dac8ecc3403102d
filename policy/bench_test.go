package policy_test

import (
	"context"
	"fmt"
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

// BenchmarkDecideOfMany decides among many policies. Ten of them apply to the request. In
// "new", inputs differ in an attribute that rules read, so each is evaluated. In "equal" the
// memo answers. p50-ns is the median of a decision.
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
		for _, differ := range []bool{true, false} {
			b.Run(c.name+map[bool]string{true: "/new", false: "/equal"}[differ], func(b *testing.B) {
				b.ReportAllocs()
				took := make([]time.Duration, 0, 1<<20)
				cpu := processorTime(b)
				for i := 0; b.Loop(); i++ {
					if differ {
						in.Request.Model = models[i%len(models)]
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
