package extproc

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"html"
	"runtime"
	"slices"
	"strings"
	"weak"

	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/provider/sse"
)

const (
	// minSecret is the shortest secret that is searched for in responses. Shorter secrets
	// would match ordinary words.
	minSecret = 8
	// maxEscapes is how many levels of escapes are removed: JSON text in a JSON string
	// in a tool's arguments has three.
	maxEscapes = 3
)

// redactor overwrites the provider's secrets in its response. A server may return its
// request, in an error or for debugging. Without the redactor every caller would get the
// secrets.
//
// Each secret is searched for in these forms:
//
//   - as it is
//   - in base64: both alphabets, at each of the three alignments
//   - in hex
//   - in UTF-16 and UTF-32
//
// Each character of a form may be escaped as in JSON, in a URL or in HTML, up to maxEscapes
// levels deep. Line breaks inside a form are skipped, as in base64 of mail.
type redactor struct {
	*patterns        // nil: there is nothing to redact
	held      []byte // the end of the input, which may be the beginning of a form
	start     []byte // of the response, to detect its format
}

// patterns are what a redactor searches for. They never change.
type patterns struct {
	secrets []string
	forms   [][]byte
	window  int // length of the shortest form, bounded
	longest int // length of the longest form
	first   [256]bool
	within  [256]bool // bytes of forms
	tail    [256]bool // bytes of forms, and of their escapes
	joins   [256]bool // bytes of forms, and the first and the last bytes of their escapes

	// skip has, for two bytes, the distance to the earliest end of the next window. The
	// method is Wu and Manber's search for many patterns at once.
	skip [1 << 10]uint8
}

func block(one, two byte) int { return (int(one)<<4 ^ int(two)) & (1<<10 - 1) }

// newPatterns returns the patterns of the secrets that are long enough, or nil if there are
// none.
func newPatterns(secrets []string) *patterns {
	p := &patterns{secrets: secrets, window: 64}
	for _, s := range secrets {
		if len(s) < minSecret {
			continue
		}
		p.add([]byte(s))
		for shift := range 3 {
			// From base64, only the characters that do not depend on the bytes around the
			// secret.
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
	p.joins = p.within
	for _, c := range []byte(`\%&;0123456789abcdefABCDEF`) {
		p.joins[c] = true
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

// plain finds the next form in b without an escaped character. from is -1 if there is
// no such form.
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
	if r.has(b) {
		return true
	}
	text, breaks := r.unwrapped(b)
	return breaks != nil && r.has(text)
}

func (p *patterns) has(b []byte) bool {
	plain, _ := p.plain(b, 0)
	escaped, _ := p.escaped(b, 0)
	return plain >= 0 || escaped >= 0
}

// holds reports whether bytes are held back. After the last chunk they are lost.
func (r *redactor) holds() bool { return len(r.held) > 0 }

// pass returns the part of the next chunk that may continue, with secrets overwritten.
// Lengths are kept, so that content-length stays true. Bytes that may begin a secret are
// held back for the next chunk, unless end marks the last one. Otherwise a server could
// split its response so that all bytes of a secret except one pass. b is not changed.
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
	text, breaks := r.unwrapped(b)
	if breaks != nil {
		for from, to := r.plain(text, 0); from >= 0; from, to = r.plain(text, to) {
			blank(breaks.at(from), breaks.at(to-1)+1)
		}
		for from, to := r.escaped(text, 0); from >= 0; from, to = r.escaped(text, to) {
			blank(breaks.at(from), breaks.at(to-1)+1)
		}
	}
	if end {
		return b, blanked
	}
	n := r.begins(b)
	if breaks != nil {
		if text, breaks = r.unwrapped(b); breaks != nil {
			if at := r.begins(text); at < len(text) {
				n = min(n, breaks.at(at))
			}
		}
	}
	if n < len(b) {
		r.held = bytes.Clone(b[n:])
		b = b[:n]
	}
	return b, blanked
}

// escaped finds the next form in b with at least one escaped character. from is
// -1 if there is no such form.
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

// maxBreak is the longest line break that is skipped, with the spaces after it.
const maxBreak = 32

// breaks are the line breaks that were removed from a text.
type breaks []struct{ before, length int } // the offset in the remaining text, and the sum of all bytes removed up to there

// at returns the original offset of byte i of the remaining text.
func (b breaks) at(i int) int {
	n, _ := slices.BinarySearchFunc(b, i, func(x struct{ before, length int }, i int) int {
		if x.before <= i {
			return -1
		}
		return 1
	})
	if n == 0 {
		return i
	}
	return i + b[n-1].length
}

// unwrapped returns b without the line breaks between two characters of forms. These are
// "\n" and "\r", plain or escaped, with the spaces after them. Without such breaks taken is
// nil, and nothing is allocated.
func (p *patterns) unwrapped(b []byte) (text []byte, taken breaks) {
	from, length := 0, 0
	for i := 0; i < len(b); {
		if c := b[i]; c > '\\' || c != '\n' && c != '\r' && c != '\\' {
			i++
			continue
		}
		end, isBreak := lineBreak(b, i)
		if isBreak && end-i <= maxBreak && i > from && p.joins[b[i-1]] && (end == len(b) || p.joins[b[end]]) {
			text = append(text, b[from:i]...)
			length += end - i
			taken = append(taken, struct{ before, length int }{len(text), length})
			from = end
		}
		i = max(end, i+1)
	}
	if taken == nil {
		return nil, nil
	}
	return append(text, b[from:]...), taken
}

// lineBreak returns where the line breaks and spaces that begin at b[i] end. isBreak
// reports whether they are more than spaces. An empty line is no break, since it ends an
// event. A break that the end of b cuts off counts as one.
func lineBreak(b []byte, i int) (end int, isBreak bool) {
	const field = "data:" // before each line of an event's data
	for lines := 0; i < len(b); {
		switch c := b[i]; c {
		case '\n', '\r':
			if c == '\r' || i == 0 || b[i-1] != '\r' {
				lines++
			}
			if i, isBreak = i+1, lines == 1; !isBreak {
				return i, false
			}
			if rest := b[i:min(len(b), i+len(field))]; string(rest) == field[:len(rest)] {
				i += len(rest)
			}
		case ' ', '\t':
			i++
		case '\\':
			n := i
			for n < len(b) && b[n] == '\\' {
				n++
			}
			if n < len(b) && b[n] != 'n' && b[n] != 'r' {
				return i, isBreak
			}
			i, isBreak = min(n+1, len(b)), true
		default:
			return i, isBreak
		}
	}
	return i, true // the rest may be in the next chunk
}

// relevant reports whether b escapes any character that forms have. Most events escape only
// line breaks and quotes, and are not searched further.
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

// begins returns where the end of b may begin a form, or len(b).
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

// match returns where the form that begins at b[i] ends, or 0. open reports that b ended
// before this was clear. Every way to read an escape is tried, since a form may have
// characters that look like an escape.
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

// escapes reports whether c may begin an escape.
func escapes(c byte) bool { return c == '\\' || c == '%' || c == '&' }

// unescape reads the character at b[i] with up to depth levels of escapes removed. next is
// where the next character begins, or 0 if b ends inside this one.
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

// hexAt reads a number of hexadecimal digits, or the digits in braces. Without digits, the
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

// providerIn is a provider in a snapshot of an organization's providers.
type providerIn struct {
	snapshot weak.Pointer[provider.Registry]
	id       string
}

// patternsOf returns what to search for in responses of the provider. The patterns of its
// last request are used again if its secrets are the same. They are freed with the
// provider's snapshot, so that no secret of a deleted provider stays in memory.
func (s *Server) patternsOf(snapshot *provider.Registry, id string, secrets []string) *patterns {
	slices.Sort(secrets)
	secrets = slices.Compact(secrets)
	key := providerIn{weak.Make(snapshot), id}
	if last, ok := s.patterns.Load(key); ok && slices.Equal(last.(*patterns).secrets, secrets) {
		return last.(*patterns)
	}
	p := newPatterns(secrets)
	if p != nil {
		if _, had := s.patterns.Swap(key, p); !had {
			runtime.AddCleanup(snapshot, func(key providerIn) { s.patterns.Delete(key) }, key)
		}
	}
	return p
}

// unreadable returns why a response cannot be searched for secrets and must not pass, or
// "". Either its encoding was not requested, or secrets have other bytes in its charset.
func unreadable(encoding, contentType string) string {
	for e := range strings.SplitSeq(encoding, ",") {
		if e = strings.ToLower(strings.TrimSpace(e)); e != "" && e != "identity" {
			return "a content-encoding that was not requested"
		}
	}
	kind, params, _ := strings.Cut(strings.ToLower(contentType), ";")
	kind = strings.TrimSpace(kind)
	json := sse.Is(contentType) || strings.HasSuffix(kind, "json")
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

// compressed are the first bytes of compressed data: gzip, zstd, bzip2, xz, LZ4, and
// zlib at each of its levels.
var compressed = [][]byte{
	{0x1f, 0x8b}, {0x28, 0xb5, 0x2f, 0xfd}, []byte("BZh"), {0xfd, '7', 'z', 'X', 'Z'}, {0x04, 0x22, 0x4d, 0x18},
	{0x78, 0x01}, {0x78, 0x5e}, {0x78, 0x9c}, {0x78, 0xda},
}

// disguised reports whether the response is in an encoding that its headers do not name. A
// search would find no secret in it. b is the next chunk. A response passes as JSON or as
// an event stream only if it begins like one.
func (r *redactor) disguised(b []byte, kind form) bool {
	const most = 5 // the longest of compressed
	if r.patterns == nil || len(r.start) >= most {
		return false
	}
	fresh := len(r.start) == 0
	r.start = append(r.start, b[:min(len(b), most-len(r.start))]...)
	if len(r.start) == 0 {
		return false
	}
	for _, magic := range compressed {
		if bytes.HasPrefix(r.start, magic) {
			return true
		}
	}
	if !fresh {
		return false
	}
	const common = " \t\r\n\xef{[" // \xef begins a byte order mark; some servers send JSON as an event stream
	switch kind {
	case formJSON:
		return strings.IndexByte(common+`"-0123456789tfn`, r.start[0]) < 0
	case formEvents: // data, event, id, retry, and comments
		return strings.IndexByte(common+":deir", r.start[0]) < 0
	}
	return false
}

// form is the kind of content that a response's content type declares.
type form uint8

const (
	formOther form = iota
	formJSON
	formEvents
)

func formOf(contentType string) form {
	kind, _, _ := strings.Cut(strings.ToLower(contentType), ";")
	switch {
	case sse.Is(contentType):
		return formEvents
	case strings.HasSuffix(strings.TrimSpace(kind), "json"):
		return formJSON
	}
	return formOther
}
