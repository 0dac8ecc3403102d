package identity

import (
	"bytes"
	"encoding/base64"
	"strings"
)

const (
	maxLevels   = 3  // of escapes inside escapes
	shortestRun = 48 // letters of base64 that a credential has at least, on one line if it is indented
)

// FindSecrets reports whether one of our secrets is in b, complete and with a valid checksum,
// plain or in an encoding that [Issuers.Find] also reads.
func FindSecrets(b []byte) bool {
	return len(b) > bodyLen && search{begins: &keyBegins}.in(b)
}

// Find reports whether a token of a configured issuer is in b. The token may be invalid.
//
// It reads escapes of JSON and of URLs, inside each other up to three times. It also reads
// base64 of both alphabets, which may be escaped or broken into lines. It does not read base64
// inside base64, or escapes inside base64. The cost is linear in b.
func (s *Issuers) Find(b []byte) bool {
	return s != nil && search{s, &tokenBegins}.in(b)
}

// search looks for one form of credentials.
type search struct {
	tokens *Issuers // nil: our secrets
	begins *beginnings
}

func (s search) plain(b []byte) bool {
	if s.tokens != nil {
		return s.tokens.find(b)
	}
	return findSecret(b)
}

func (s search) in(b []byte) bool {
	if s.plain(b) || s.inRuns(b) {
		return true
	}
	for range maxLevels {
		if !telltale(b) {
			return false
		}
		if b = unescaped(b); s.plain(b) {
			return true
		}
	}
	return false
}

// inRuns looks inside base64. It looks at few bytes of other texts: of each 48 bytes, the last
// that is no letter of base64 excludes the ones before it.
func (s search) inRuns(b []byte) bool {
	for i := 0; i+shortestRun <= len(b); {
		end := i + shortestRun
		for end > i && runByte[b[end-1]] {
			end--
		}
		if end > i {
			i = end
			continue
		}
		line := false // whether a line begins here, so that blanks indent it
		for end = i + shortestRun - 1; end < len(b) && (runByte[b[end]] || line && blank(b[end])); end++ {
			if !blank(b[end]) {
				line = b[end] == '\n' || b[end] == 'n' && b[end-1] == '\\'
			}
		}
		if s.inRun(b[i:end]) {
			return true
		}
		i = end
	}
	return false
}

// runByte has the letters of base64, and what may be between them: line ends and escapes.
var runByte = func() (out [256]bool) {
	for c := range out {
		out[c] = letter(byte(c)) || c == '\r' || c == '\n' || c == '\\' || c == '%'
	}
	return out
}()

func letter(c byte) bool { return base64URL(c) || c == '+' || c == '/' }

func blank(c byte) bool { return c == ' ' || c == '\t' }

// inRun looks inside one run of base64.
func (s search) inRun(run []byte) bool {
	for level := 0; ; level++ {
		if s.inBase64(unwrapped(run)) {
			return true
		}
		if level == maxLevels || bytes.IndexByte(run, '\\') < 0 && bytes.IndexByte(run, '%') < 0 {
			return false
		}
		run = unescaped(run)
	}
}

// unwrapped returns a run without its line ends and blanks.
func unwrapped(run []byte) []byte {
	if !bytes.ContainsAny(run, "\r\n\t ") {
		return run
	}
	out := make([]byte, 0, len(run))
	for _, c := range run {
		if c != '\r' && c != '\n' && !blank(c) {
			out = append(out, c)
		}
	}
	return out
}

// beginnings are the beginning of a credential in base64, for each of its three positions in a
// group of four letters. Its letters code no other bytes.
type beginnings struct {
	text [3][]byte
	skip [256]uint8 // after the fourth letter: how many letters later the next one may be
}

// beginsAt is where in its group each beginning begins.
var beginsAt = [3]int{0, 2, 3}

const beginsLen = 4 // the shortest of them

var keyBegins, tokenBegins = beginningsOf(keyPrefix), beginningsOf(payloadBegins)

func beginningsOf(text string) (out beginnings) {
	for c := range out.skip {
		out.skip[c] = beginsLen
	}
	for pad := range out.text {
		coded := base64.StdEncoding.EncodeToString(append(make([]byte, pad), text...))
		out.text[pad] = []byte(coded[beginsAt[pad] : (pad+len(text))*8/6])
		for i, c := range out.text[pad][:beginsLen] {
			out.skip[c] = min(out.skip[c], uint8(beginsLen-1-i))
		}
	}
	return out
}

// inBase64 looks for credentials in base64, also where one text follows another.
func (s search) inBase64(b []byte) bool {
	end, phases := 0, [4]bool{} // the letters that were decoded, and from which of their four phases
	for i := beginsLen - 1; i < len(b); {
		if n := s.begins.skip[b[i]]; n > 0 {
			i += int(n)
			continue
		}
		at := i + 1 - beginsLen
		i++
		for pad, text := range s.begins.text {
			start := at - beginsAt[pad] // the group of four that the beginning lies in
			if !bytes.HasPrefix(b[at:], text) || start < 0 || !letters(b[start:at]) {
				continue
			}
			if at >= end {
				for end = at; end < len(b) && letter(b[end]); end++ {
				}
				phases = [4]bool{}
			}
			if phases[start%4] {
				continue
			}
			phases[start%4] = true
			if s.plain(decoded(b[start:end])) {
				return true
			}
		}
	}
	return false
}

func letters(b []byte) bool {
	for _, c := range b {
		if !letter(c) {
			return false
		}
	}
	return true
}

// decoded reads base64 of either alphabet.
func decoded(b []byte) []byte {
	text := bytes.ReplaceAll(bytes.ReplaceAll(b, []byte("+"), []byte("-")), []byte("/"), []byte("_"))
	if len(text)%4 == 1 {
		text = text[:len(text)-1]
	}
	plain := make([]byte, base64.RawURLEncoding.DecodedLen(len(text)))
	n, err := base64.RawURLEncoding.Decode(plain, text)
	if err != nil {
		return nil
	}
	return plain[:n]
}

// jsonByte begins the escapes of JSON for the first 256 characters.
var jsonByte = []byte(`\u00`)

// telltale reports whether an escape in b may be part of a credential, or of another escape.
func telltale(b []byte) bool {
	for rest := b; ; {
		i := bytes.Index(rest, jsonByte)
		if i < 0 {
			break
		}
		rest = rest[i+len(jsonByte):]
		if c, ok := hexByte(rest); ok && telling(c) {
			return true
		}
	}
	for rest := b; ; {
		i := bytes.IndexByte(rest, '%')
		if i < 0 {
			return false
		}
		rest = rest[i+1:]
		if c, ok := hexByte(rest); ok && telling(c) {
			return true
		}
	}
}

func telling(c byte) bool { return base64URL(c) || c == '.' || c == '\\' || c == '%' }

// hexByte reads two hexadecimal digits.
func hexByte(b []byte) (byte, bool) {
	if len(b) < 2 || hexDigit[b[0]] == 0 || hexDigit[b[1]] == 0 {
		return 0, false
	}
	return (hexDigit[b[0]]-1)<<4 | (hexDigit[b[1]] - 1), true
}

// hexDigit has the values of hexadecimal digits, plus one.
var hexDigit = func() (out [256]byte) {
	for i, c := range []byte("0123456789abcdef0123456789ABCDEF") {
		out[c] = byte(i%16) + 1
	}
	return out
}()

// unescaped replaces the escapes of JSON and of URLs by their bytes, once.
func unescaped(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for len(b) > 0 {
		i := 0
		for i < len(b) && b[i] != '\\' && b[i] != '%' {
			i++
		}
		out = append(out, b[:i]...)
		if b = b[i:]; len(b) == 0 {
			break
		}
		c, n := b[0], 1
		if c == '%' {
			if x, ok := hexByte(b[1:]); ok {
				c, n = x, 3
			}
		} else if bytes.HasPrefix(b, jsonByte) {
			if x, ok := hexByte(b[len(jsonByte):]); ok {
				c, n = x, len(jsonByte)+2
			}
		} else if len(b) > 1 {
			if j := strings.IndexByte(`nrt/\"`, b[1]); j >= 0 {
				c, n = "\n\r\t/\\\""[j], 2
			}
		}
		out = append(out, c)
		b = b[n:]
	}
	return out
}
