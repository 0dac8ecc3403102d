package budget_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/budget"
)

// Requests and dollars of a session count for all sidecars together, whenever each of them saw
// the session first. What was charged before comes from the audit log, under all names that the
// session may have there.
func TestValkeySessions(t *testing.T) {
	s := startValkey(t)
	now := time.Now().UTC()
	name := func(at time.Time) string { return at.Truncate(10 * time.Minute).Format("2006-01-02T15:04") }
	log := &auditLog{sums: map[string]int64{
		"usd:named@" + name(now.Add(-3*time.Hour)): 20, "usd:named@" + name(now.Add(-30*time.Minute)): 10, "usd:named@" + name(now.Add(-25*time.Hour)): 1000,
		"usd:silent@" + name(now.Add(-3*time.Hour)): 1000,
	}, sidecars: 2}
	a, b := open(t, log, s.Address()), open(t, log, s.Address())
	within(t, "both have joined", func() bool {
		one, other := reserveOK(t, a), reserveOK(t, b)
		return one && other
	})
	session := func(named bool, began time.Time) budget.Session {
		return budget.Session{Name: "ag_1/id/x", Named: named, Began: began}
	}
	uses := func(began time.Time) []budget.Limit {
		return []budget.Limit{{Key: "uses", Kind: budget.Uses, Max: 3, Session: session(true, began)}}
	}
	usd := func(key string, named bool, began time.Time, amount int64) []budget.Limit {
		return []budget.Limit{{Key: key, Kind: budget.SessionUSD, Max: 100, Amount: amount, Session: session(named, began)}}
	}
	n := 0
	take := func(v *budget.Valkey, limits []budget.Limit, want bool, why budget.Why) (id string) {
		t.Helper()
		n++
		id = "request-" + strconv.Itoa(n)
		r := reserve(t, v, id, limits)
		if r.OK != want || !want && r.Why != why {
			t.Fatalf("request %d: %+v", n, r)
		}
		return id
	}
	settle := func(v *budget.Valkey, id string, nano int64) {
		v.Settle(t.Context(), id, budget.Used{NanoUSD: nano})
		v.Flush()
	}
	first := take(a, uses(now), true, 0)
	take(b, uses(now.Add(-time.Hour)), true, 0)
	settle(a, first, 0)
	given := take(b, uses(now.Add(-time.Hour)), true, 0)
	take(a, uses(now), false, budget.Spent)
	b.Release(t.Context(), given)
	b.Flush()
	take(a, uses(now), true, 0)
	take(b, uses(now), false, budget.Spent)

	id := take(a, usd("usd:named", true, now, 60), true, 0) // 30 was charged before
	take(b, usd("usd:named", true, now.Add(-time.Hour), 20), false, budget.Held)
	settle(a, id, 50)
	take(b, usd("usd:named", true, now.Add(-time.Hour), 21), false, budget.TooLarge)
	id = take(b, usd("usd:named", true, now.Add(-time.Hour), 20), true, 0)
	settle(b, id, 20)
	take(a, usd("usd:named", true, now, 1), false, budget.Spent)
	if ttl, err := strconv.Atoi(s.Do("TTL aid:{org_1}:usd:usd:named")); err != nil || ttl > 86400 || ttl < 80000 {
		t.Errorf("a session with an id is kept for %d s, %v", ttl, err)
	}
	id = take(a, usd("usd:silent", false, now, 100), true, 0) // an earlier session without an id has ended
	settle(a, id, 1)
	if ttl, err := strconv.Atoi(s.Do("TTL aid:{org_1}:usd:usd:silent")); err != nil || ttl > 1800 || ttl < 1000 {
		t.Errorf("a session without an id is kept for %d s, %v", ttl, err)
	}
}

// reserveOK reports whether the store counts caps.
func reserveOK(t *testing.T, v *budget.Valkey) bool {
	_, err := v.Reserve(t.Context(), "org_1", "probe"+strconv.FormatInt(probes.Add(1), 10), []budget.Limit{{Key: "probe", Kind: budget.Month, Max: 1, Amount: 2}})
	return err == nil
}
