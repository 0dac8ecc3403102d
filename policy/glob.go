package policy

import "strings"

// Matches reports whether a pattern of a list of models matches all of s. It is the only
// matcher of model names: the baseline and the lists of agents, keys and providers use it.
//
// "*" alone matches everything. In a longer pattern it stands for zero or more characters.
// Some characters join names or choose a variant: , : @ | # * ? and blanks. A "*" matches
// such a character only if the pattern contains it, as in "llama3:*". So "gpt-4o*" does not
// match "gpt-4o,claude-opus-4". Every other character stands for itself. In the worst case
// the time is proportional to the product of the lengths.
//
// OPA's own glob.match is not used: ?, [ ], { } and \ are special in it, and its "ab*ba"
// matches "aba".
func Matches(pattern, s string) bool {
	if pattern == "*" {
		return true
	}
	if strings.IndexByte(pattern, '*') < 0 {
		return pattern == s
	}
	for i := range len(s) {
		if c := s[i]; joins(c) && (c == '*' || strings.IndexByte(pattern, c) < 0) {
			return false // no literal of the pattern matches this character either
		}
	}
	return matchesAll(pattern, s)
}

// matchesAll is Matches with a "*" that stands for any characters.
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
		// The first match is enough, since it leaves the most text for the other parts.
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s, rest = s[i+len(part):], more
	}
}

func joins(c byte) bool { return c <= ' ' || c == 0x7f || strings.IndexByte(",:@|#*?", c) >= 0 }
