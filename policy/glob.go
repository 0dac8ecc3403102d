package policy

import "strings"

// Matches says whether a pattern of a list of models matches all of s. It is the one
// matcher of models' names: the baseline and the lists of agents, keys and providers
// use it.
//
// "*" alone matches everything. In a longer pattern it stands for any characters, or
// for none. Some characters join names or choose a variant: , : @ | # * ? and blanks.
// A "*" matches one of these only if the pattern has it, as in "llama3:*". So
// "gpt-4o*" does not match "gpt-4o,claude-opus-4". Every other character stands for
// itself. It takes time in proportion to the product of the lengths at worst.
//
// OPA's own glob.match is not used: in it ?, [ ], { } and \ have meanings that
// names of models are not meant to have, and "ab*ba" matches "aba".
func Matches(pattern, s string) bool {
	if pattern == "*" {
		return true
	}
	if strings.IndexByte(pattern, '*') < 0 {
		return pattern == s
	}
	for i := range len(s) {
		if c := s[i]; joins(c) && (c == '*' || strings.IndexByte(pattern, c) < 0) {
			return false // no literal of the pattern is this character either
		}
	}
	return matchesAll(pattern, s)
}

// matchesAll is Matches with a "*" that stands for any characters at all.
func matchesAll(pattern, s string) bool {
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

func joins(c byte) bool { return c <= ' ' || c == 0x7f || strings.IndexByte(",:@|#*?", c) >= 0 }
