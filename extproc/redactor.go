package extproc

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"html"
	"slices"
	"strings"
)

const (
	// minSecret is the shortest secret that is searched for in responses. A shorter
	// one would be found in ordinary words.
	minSecret = 8
	// maxEscapes is how many levels of escapes are removed: JSON text in a JSON string
	// in a tool's arguments has three.
	maxEscapes = 3
)

// redactor overwrites the provider's secrets in its response. A server that returns
// its request, in an error or for debugging, would give them to every caller.
//
// Each secret is searched for in these forms: as it is, in base64 (both alphabets, at
// each of the three alignments), in hex, and in UTF-16 and UTF-32. Each character of a
// form may be escaped as in JSON, in a URL or in HTML, up to maxEscapes levels deep.
type redactor struct {
	*patterns        // nil: there is nothing to redact
	held      []byte // the end of the input, which may be the beginning of a form
}

// patterns are what a redactor searches for. They never change.
type patterns struct {
	secrets []string
	forms   [][]byte
	window  int // length of the shortest form, bounded
	longest int // length of the longest form
	first   [256]bool
	within  [256]bool // bytes of forms
	tail    [256]bool // bytes of forms, and of what may escape them

	// skip has, for two bytes, how far behind them the end of the next window may be,
	// as in Wu and Manber's search for many patterns at once.
	skip [1 << 10]uint8
}

func block(one, two byte) int { return (int(one)<<4 ^ int(two)) & (1<<10 - 1) }

// newPatterns searches for the secrets that are long enough. It is nil if there are
// none.
func newPatterns(secrets []string) *patterns {
	p := &patterns{secrets: secrets, window: 64}
	for _, s := range secrets {
		if len(s) < minSecret {
			continue
		}
		p.add([]byte(s))
		for shift := range 3 {
			// Of base64, only the characters that do not depend on what surrounds the secret.
			text := base64.RawStdEncoding.EncodeToString(append(make([]byte, shift), s...))
			text = text[[...]int{0, 2, 3}[shift] : (shift+len(s))*8/6]
			if len(text) >= minSecret {
				p.add([]byte(text))
				p.add([]byte(strings.NewReplacer("+", "-", "/", "_").Replace(text)))
			}
		}
		lower := hex.EncodeToString([]byte(s))
		p.add([]byte(lower))
		p.add([]byte(strings.ToUpper(lower)))
		for _, size := range []int{2, 4} {
			wide := make([]byte, (len(s)-1)*size+1)
			for i := range s {
				wide[i*size] = s[i]
			}
			p.add(wide)
		}
	}
	if len(p.forms) == 0 {
		return nil
	}
	p.tail = p.within
	for _, c := range []byte(`\%&#;{}0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ`) {
		p.tail[c] = true
	}
	for i := range p.skip {
		p.skip[i] = uint8(p.window - 1)
	}
	for _, form := range p.forms {
		for i := 1; i < p.window; i++ {
			at := &p.skip[block(form[i-1], form[i])]
			*at = min(*at, uint8(p.window-1-i))
		}
	}
	return p
}

func (p *patterns) add(form []byte) {
	if slices.ContainsFunc(p.forms, func(f []byte) bool { return bytes.Equal(f, form) }) {
		return
	}
	p.forms = append(p.forms, form)
	p.window = min(p.window, len(form))
	p.longest = max(p.longest, len(form))
	p.first[form[0]] = true
	for _, c := range form {
		p.within[c] = true
	}
}

// plain finds the next form in b of which no character is escaped. from is -1 if there
// is none.
func (p *patterns) plain(b []byte, after int) (from, to int) {
	for i := after + p.window - 1; i < len(b); {
		n := int(p.skip[block(b[i-1], b[i])])
		if n > 0 {
			i += n
			continue
		}
		from = i - p.window + 1
		for _, form := range p.forms {
			if bytes.HasPrefix(b[from:], form) {
				to = max(to, from+len(form))
			}
		}
		if to > 0 {
			return from, to
		}
		i++
	}
	return -1, 0
}

// in reports whether b holds a secret.
func (r *redactor) in(b []byte) bool {
	if r.patterns == nil {
		return false
	}
	plain, _ := r.plain(b, 0)
	escaped, _ := r.escaped(b, 0)
	return plain >= 0 || escaped >= 0
}

// holds reports whether something is held back. After the last chunk it is lost.
func (r *redactor) holds() bool { return len(r.held) > 0 }

// pass returns what may go on of the next chunk, with secrets overwritten. Lengths are
// kept, so that content-length stays true. What may be the beginning of a secret is
// held back for the next chunk, unless end says that this is the last. Otherwise a
// server that chooses where its response is cut could send all of it but one byte. b is
// not changed.
func (r *redactor) pass(b []byte, end bool) (out []byte, blanked bool) {
	if r.patterns == nil {
		return b, false
	}
	own := len(r.held) > 0
	if own {
		b = append(r.held, b...)
		r.held = nil
	}
	blank := func(from, to int) {
		if !own {
			b, own = bytes.Clone(b), true
		}
		blanked = true
		for i := from; i < to; i++ {
			b[i] = '*'
		}
	}
	for from, to := r.plain(b, 0); from >= 0; from, to = r.plain(b, to) {
		blank(from, to)
	}
	for from, to := r.escaped(b, 0); from >= 0; from, to = r.escaped(b, to) {
		blank(from, to)
	}
	if end {
		return b, blanked
	}
	if n := r.begins(b); n < len(b) {
		r.held = bytes.Clone(b[n:])
		b = b[:n]
	}
	return b, blanked
}

// escaped finds the next form in b of which at least one character is escaped. from is
// -1 if there is none.
func (p *patterns) escaped(b []byte, after int) (from, to int) {
	if !p.relevant(b[after:]) {
		return -1, 0
	}
	for i := after; i < len(b); i++ {
		if !p.first[b[i]] && !escapes(b[i]) {
			continue
		}
		for _, form := range p.forms {
			if end, _ := match(b, i, form); end > 0 {
				return i, end
			}
		}
	}
	return -1, 0
}

// relevant reports whether b escapes any character that forms have. Most events have
// line breaks and quotes only, and are not looked at further.
func (p *patterns) relevant(b []byte) bool {
	if bytes.IndexByte(b, '\\') < 0 && bytes.IndexByte(b, '%') < 0 && bytes.IndexByte(b, '&') < 0 {
		return false
	}
	for i, c := range b {
		if !escapes(c) {
			continue
		}
		for depth := 1; depth <= maxEscapes; depth++ {
			if c, next := unescape(b, i, depth); next > i+1 && c < 256 && p.within[c] {
				return true
			}
		}
	}
	return false
}

// begins returns where the end of b may be the beginning of a form, or len(b).
func (p *patterns) begins(b []byte) int {
	window := p.longest - 1
	// A character that is escaped at three levels, each "\uXXXX", has 6·6·6 bytes.
	if far := b[max(0, len(b)-p.longest*216):]; bytes.IndexByte(far, '\\') >= 0 || bytes.IndexByte(far, '%') >= 0 || bytes.IndexByte(far, '&') >= 0 {
		window = len(far)
	}
	i := len(b)
	for i > 0 && len(b)-i < window && p.tail[b[i-1]] {
		i--
	}
	for ; i < len(b); i++ {
		if !p.first[b[i]] && !escapes(b[i]) {
			continue
		}
		for _, form := range p.forms {
			if _, open := match(b, i, form); open {
				return i
			}
		}
	}
	return len(b)
}

// match reports where form ends that begins at b[i], or 0. open says that b ended
// before it was clear. Every way to read an escape is tried: a form may itself have
// characters that look like one.
func match(b []byte, i int, form []byte) (end int, open bool) {
	var one, other [16]int
	at, next := append(one[:0], i), other[:0]
	for _, want := range form {
		next = next[:0]
		for _, i := range at {
			if i == len(b) {
				open = true
				continue
			}
			if b[i] == want {
				next = insert(next, i+1)
			}
			if !escapes(b[i]) {
				continue
			}
			for depth := 1; depth <= maxEscapes; depth++ {
				c, n := unescape(b, i, depth)
				switch {
				case n == 0:
					open = true
				case c == rune(want) && n > i+1:
					next = insert(next, n)
				}
			}
		}
		if len(next) == 0 {
			return 0, open
		}
		at, next = next, at
	}
	return slices.Max(at), false
}

func insert(list []int, n int) []int {
	if slices.Contains(list, n) {
		return list
	}
	return append(list, n)
}

// escapes reports whether an escape may begin with c.
func escapes(c byte) bool { return c == '\\' || c == '%' || c == '&' }

// unescape reads the character at b[i] with up to depth levels of escapes removed, and
// returns where the next one begins. next is 0 if b ends inside of it.
func unescape(b []byte, i, depth int) (c rune, next int) {
	if i >= len(b) {
		return 0, 0
	}
	if depth == 0 || !escapes(b[i]) {
		return rune(b[i]), i + 1
	}
	c, next = unescape(b, i, depth-1)
	if next == 0 {
		return 0, 0
	}
	plain := next
	switch c {
	case '\\':
		c, next = unescape(b, plain, depth-1)
		switch {
		case next == 0:
			return 0, 0
		case c == 'u', c == 'x', c == 'U':
			digits := map[rune]int{'u': 4, 'x': 2, 'U': 8}[c]
			return hexAt(b, next, depth-1, digits, '\\', plain)
		case c == 'n', c == 't', c == 'r', c == 'b', c == 'f':
			return '\n', next // a control character, which no form has
		case c < 0x80 && !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'):
			return c, next // "\/", "\-"
		}
		return '\\', plain
	case '%':
		return hexAt(b, plain, depth-1, 2, '%', plain)
	case '&':
		name := []byte{'&'}
		for next = plain; len(name) < 12; {
			if c, next = unescape(b, next, depth-1); next == 0 {
				return 0, 0
			}
			if c != ';' && c != '#' && !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9') {
				break
			}
			name = append(name, byte(c))
			if c == ';' {
				if text := []rune(html.UnescapeString(string(name))); len(text) == 1 {
					return text[0], next
				}
				break
			}
		}
		return '&', plain
	}
	return c, next
}

// hexAt reads digits hexadecimal digits, or those in braces. If there are none, the
// character is instead, and the next one begins at plain.
func hexAt(b []byte, i, depth, digits int, instead rune, plain int) (c rune, next int) {
	braces := false
	for n := 0; n < digits; n++ {
		d, after := unescape(b, i, depth)
		if after == 0 {
			return 0, 0
		}
		switch {
		case d == '{' && n == 0 && digits == 4:
			braces, digits = true, 9
		case d == '}' && braces:
			return c, after
		case '0' <= d && d <= '9':
			c = c<<4 | (d - '0')
		case 'a' <= d && d <= 'f':
			c = c<<4 | (d - 'a' + 10)
		case 'A' <= d && d <= 'F':
			c = c<<4 | (d - 'A' + 10)
		default:
			return instead, plain
		}
		i = after
	}
	if braces {
		return instead, plain
	}
	return c, i
}

// secretName reports whether a header called so holds a secret.
func secretName(name string) bool {
	for _, word := range []string{"auth", "token", "secret", "key", "passw", "credential", "cookie", "signature"} {
		if strings.Contains(name, word) {
			return true
		}
	}
	return false
}

// secretsOf returns the values of the headers that hold a secret, less the scheme.
func secretsOf(headers map[string]string) []string {
	var out []string
	for name, value := range headers {
		if !secretName(name) {
			continue
		}
		if scheme, rest, ok := strings.Cut(value, " "); ok && isWord(scheme) {
			value = rest // of "Bearer …"
		}
		out = append(out, value)
	}
	return out
}

func isWord(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z') })
}

// patternsOf returns what to search for in responses of the provider. Those of its last
// request are used again if its secrets are the same.
func (s *Server) patternsOf(provider string, secrets []string) *patterns {
	slices.Sort(secrets)
	secrets = slices.Compact(secrets)
	if last, ok := s.patterns.Load(provider); ok && slices.Equal(last.(*patterns).secrets, secrets) {
		return last.(*patterns)
	}
	p := newPatterns(secrets)
	if p != nil {
		s.patterns.Store(provider, p)
	}
	return p
}

// unreadable says why a response may not pass that nobody could search for secrets, or
// nothing. Its encoding was not requested; its charset would spell a secret otherwise.
func unreadable(encoding, contentType string) string {
	for e := range strings.SplitSeq(encoding, ",") {
		if e = strings.ToLower(strings.TrimSpace(e)); e != "" && e != "identity" {
			return "a content-encoding that was not requested"
		}
	}
	kind, params, _ := strings.Cut(strings.ToLower(contentType), ";")
	kind = strings.TrimSpace(kind)
	json := kind == "text/event-stream" || strings.HasSuffix(kind, "json")
	for p := range strings.SplitSeq(params, ";") {
		name, value, _ := strings.Cut(p, "=")
		if strings.TrimSpace(name) != "charset" {
			continue
		}
		switch strings.Trim(value, " \t\"'") {
		case "", "utf-8", "utf8", "us-ascii", "ascii":
		case "iso-8859-1", "latin1", "iso-8859-15", "windows-1252": // the same bytes for ASCII
			if json {
				return "a charset other than UTF-8"
			}
		default:
			return "a charset other than UTF-8"
		}
	}
	return ""
}
