package policy

import (
	"fmt"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
	"pgregory.net/rapid"
)

// results returns the same as OPA's own cache, for every sequence of calls.
func TestResultsAreOPAs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ours, opas := &results{}, topdown.NewVirtualCache()
		depth := 0
		scratch := make(ast.Ref, 0, 8) // used again for each reference, as OPA does
		for range rapid.IntRange(0, 200).Draw(t, "operations") {
			scratch = append(scratch[:0], ast.DefaultRootDocument)
			for range rapid.IntRange(0, 2).Draw(t, "length") {
				scratch = append(scratch, ast.StringTerm(rapid.StringMatching("[a-f]").Draw(t, "element")))
			}
			switch rapid.IntRange(0, 9).Draw(t, "operation") {
			case 0:
				ours.Push()
				opas.Push()
				depth++
			case 1:
				if depth > 0 {
					ours.Pop()
					opas.Pop()
					depth--
				}
			case 2, 3, 4, 5:
				known, undefined := opas.Get(scratch)
				if undefined {
					break // OPA never defines it later
				}
				var v *ast.Term
				if known != nil || rapid.IntRange(0, 4).Draw(t, "undefined?") > 0 { // an undefined one stays undefined
					v = ast.InternedTerm(rapid.IntRange(0, 9).Draw(t, "value"))
				}
				ours.Put(scratch, v)
				opas.Put(scratch, v)
			}
			got, undefined := ours.Get(scratch)
			want, wantUndefined := opas.Get(scratch)
			if got != want || undefined != wantUndefined {
				t.Fatalf("%s: %v, %v, want %v, %v", scratch, got, undefined, want, wantUndefined)
			}
		}
		if got, want := refs(ours.Keys()), refs(opas.Keys()); got != want {
			t.Fatalf("keys %s, want %s", got, want)
		}
		ours.reset()
		if len(ours.Keys()) != 0 || cap(ours.few) > fewResults || cap(ours.terms) > fewTerms {
			t.Fatal("results are left after reset")
		}
	})
}

func refs(rs []ast.Ref) string {
	s := ast.NewSet()
	for _, r := range rs {
		s.Add(ast.NewTerm(r))
	}
	return fmt.Sprint(s)
}
