package policy

import "strings"

// Matches says whether pattern, in which "*" stands for anything, also for nothing,
// matches all of s. Every other character stands for itself. It takes time in
// proportion to the product of the lengths at worst.
//
// OPA's own glob.match is not used: in it ?, [ ], { } and \ have meanings that
// names of models are not meant to have, and "ab*ba" matches "aba".
func Matches(pattern, s string) bool {
	head, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == s
	}
	if !strings.HasPrefix(s, head) {
		return false
	}
	s = s[len(head):]
	for {
		part, more, star := strings.Cut(rest, "*")
		if !star {
			return strings.HasSuffix(s, part)
		}
		// The first place is as good as any: what follows has more room.
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s, rest = s[i+len(part):], more
	}
}
