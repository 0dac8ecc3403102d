package envoy

import (
	"regexp"
	"slices"
	"testing"
)

// The expression that Envoy gets matches exactly the headers that do not pass. Envoy
// matches whole names, with the same library's syntax.
func TestResponseMutations(t *testing.T) {
	further := []string{"x-ratelimit-remaining-requests", "x-more"}
	first := ResponseMutations(further).GetMutations().GetResponseMutations()[0].GetRemoveOnMatch().GetKeyMatcher().GetSafeRegex().GetRegex()
	removes := regexp.MustCompile(`\A(?:` + first + `)\z`)
	check := func(name string) {
		t.Helper()
		if got, want := removes.MatchString(name), !PassesToCaller(name, further) && name != ":status"; got != want {
			t.Errorf("%q: removed %v, want %v", name, got, want)
		}
	}
	for _, name := range []string{"x", "x-aid-dropped", "x-agent-id", "access-control-allow-origin", "set-cookie", "link", "refresh", "clear-site-data",
		"strict-transport-security", "x-ratelimit-limit-requests", "anthropic-ratelimit-tokens-limit", ":path", "z", "-", "^"} {
		check(name)
		if PassesToCaller(name, further) {
			t.Errorf("%s passes", name)
		}
	}
	// Each name that passes, all its beginnings, and each with one letter changed or added.
	for _, name := range slices.Concat([]string{":status"}, responseHeaders, further) {
		check(name)
		for i := range len(name) {
			if i > 0 {
				check(name[:i])
			}
			for _, c := range "a-z0_^]" {
				check(name[:i] + string(c) + name[i+1:])
				check(name[:i] + string(c) + name[i:])
			}
		}
		check(name + "-")
		check(name + "x")
	}
}
