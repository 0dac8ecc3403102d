package verdict_test

import (
	"fmt"
	"runtime/debug"
	"testing"
)

// judged are requests whose decision has a known number of allocations. The figures change
// only with the code, so they show a change that adds work to each request. The commit of a
// feature that needs an allocation changes the figure, and says why.
//
// Before limits were built (33db5dc), the first two took 21 and 23.
var judged = []struct {
	name     string
	policies []string
	allocs   float64
}{
	{"no policies", nil, 18},
	{"a policy without limits", []string{`{"name": "all", "effect": "allow", "conditions": {"agent.team": "support"}}`}, 20},
	{"100 policies without limits", hundred(""), 20},
	{"100 policies, ten limits apply", hundred(`, "limits": {"rpm": 1000000}`), 52},
	{"a deny", []string{`{"name": "none", "effect": "deny", "conditions": {"request.model": "small"}}`}, 20},
}

// hundred are 100 policies for ten teams.
func hundred(limits string) (documents []string) {
	for i := range 100 {
		team := "support"
		if i >= 10 {
			team = fmt.Sprint("team-", i/10)
		}
		documents = append(documents, fmt.Sprintf(`{"name": "p%d", "effect": "allow", "conditions": {"agent.team": %q, "request.model": {"ne": "m-%[1]d"}}%[3]s}`, i, team, limits))
	}
	return documents
}

func TestAllocations(t *testing.T) {
	if racing {
		t.Skip("the race detector allocates")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection empties pools
	for _, c := range judged {
		w := newWorld(t, c.policies...)
		w.judge() // OPA evaluates the first one
		if got := testing.AllocsPerRun(200, func() { w.judge() }); got != c.allocs {
			t.Errorf("%s: a verdict takes %v allocations, and the figure in this file is %v", c.name, got, c.allocs)
		}
	}
}

// BenchmarkJudge evaluates the requests of TestAllocations.
func BenchmarkJudge(b *testing.B) {
	for _, c := range judged {
		b.Run(c.name, func(b *testing.B) {
			w := newWorld(b, c.policies...)
			b.ReportAllocs()
			for b.Loop() {
				w.judge()
			}
		})
	}
}
