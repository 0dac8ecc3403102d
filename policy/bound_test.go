package policy

import (
	"context"
	"errors"
	"testing"
	"time"
)

// endless returns policies that take more than 8^10 steps to evaluate.
const endless = `package aid.policies

deny contains "pol_a" if {
	some a in input.request.tools
	some b in input.request.tools
	some c in input.request.tools
	some d in input.request.tools
	some e in input.request.tools
	some f in input.request.tools
	some g in input.request.tools
	some h in input.request.tools
	some i in input.request.tools
	some j in input.request.tools
	count({a, b, c, d, e, f, g, h, i, j}) == 11
}

allow := set()

governs := set()
`

func wantTimeout(t *testing.T, d Decision, err error) {
	t.Helper()
	if d.Effect != Deny || len(d.Reasons) != 1 || d.Reasons[0].Code != "policy_timeout" || !errors.Is(d.Err, err) {
		t.Errorf("%+v, want policy_timeout for %v", d, err)
	}
}

// An evaluation ends after a fixed number of steps on every machine.
func TestSteps(t *testing.T) {
	b := broken(t, endless)
	if b.engine.steps != 2_000_000 || b.engine.deadline != 5*time.Second {
		t.Errorf("%d steps, %s: docs/policy.md has other figures", b.engine.steps, b.engine.deadline)
	}
	b.engine.steps = 50_000 // so that the test takes less time
	b.engine.now = func() time.Time { return time.Unix(1e9, 0) }
	wantTimeout(t, b.Decide(context.Background(), active()), errSteps)

	// The same input takes the same number of steps each time.
	least := func(b *Bundle) int {
		for n := range 200 {
			b.engine.steps = n
			switch d := b.Decide(context.Background(), active()); {
			case d.Effect == Allow && d.Err == nil:
				return n
			default:
				wantTimeout(t, d, errSteps)
			}
		}
		t.Fatal("200 steps are not enough")
		return 0
	}
	b, err := Compile(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	b.engine.now = func() time.Time { t.Error("an ordinary decision reads a clock"); return time.Time{} }
	n := least(b)
	b.engine.steps = n
	for range 10 {
		if d := b.Decide(context.Background(), active()); d.Err != nil {
			t.Fatalf("%d steps were enough, and are not: %v", n, d.Err)
		}
	}
	if n > 40 {
		t.Errorf("an ordinary decision takes %d steps: docs/policy.md has about 40", n)
	}
}

// The deadline bounds work that steps do not count, and the caller can cancel.
func TestStepsTakeTooLong(t *testing.T) {
	b := broken(t, endless)
	at := time.Unix(1e9, 0)
	b.engine.now = func() time.Time { at = at.Add(time.Second); return at }
	wantTimeout(t, b.Decide(context.Background(), active()), errTimeout)
	if got := at.Sub(time.Unix(1e9, 0)); got != 6*time.Second {
		t.Errorf("ended after %s", got)
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b.engine.now = func() time.Time { cancel(); return at }
	wantTimeout(t, b.Decide(ctx, active()), context.Canceled)
}
