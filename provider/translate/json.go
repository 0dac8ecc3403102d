package translate

import (
	"bytes"
	"encoding/base64"
	"iter"
	"strconv"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// raw is one JSON value, known to be valid and without space around it. Values are copied
// as bytes, so the order of keys, the digits of numbers and the escapes of strings are
// kept.
type raw []byte

// parse validates b strictly: one value, UTF-8, no repeated names.
func parse(b []byte) (raw, bool) {
	if !jsontext.Value(b).IsValid() {
		return nil, false
	}
	return bytes.Trim(b, " \t\r\n"), true
}

// parseLoosely accepts a provider's JSON: names may be repeated, and bytes that are not
// UTF-8 become U+FFFD, as in every SDK.
func parseLoosely(b []byte) (raw, bool) {
	twice := jsontext.AllowDuplicateNames(true)
	if jsontext.Value(b).IsValid(twice) {
		return bytes.Trim(b, " \t\r\n"), true
	}
	mended, err := jsontext.AppendFormat(nil, b, twice, jsontext.AllowInvalidUTF8(true))
	if err != nil || !jsontext.Value(mended).IsValid(twice) {
		return nil, false
	}
	return mended, true
}

// kind is the value's first byte: '{', '[', '"', 't', 'f', 'n', or a number's ('-' or a
// digit). Without a value it is 0.
func (v raw) kind() byte {
	if len(v) == 0 {
		return 0
	}
	return v[0]
}

// given reports whether there is a value that is not null.
func (v raw) given() bool { return len(v) > 0 && v[0] != 'n' }

func (v raw) isNumber() bool { k := v.kind(); return k == '-' || k >= '0' && k <= '9' }
func (v raw) isTrue() bool   { return v.kind() == 't' }
func (v raw) isBool() bool   { return v.kind() == 't' || v.kind() == 'f' }

// text is the string's value. It shares memory with v if there are no escapes.
func (v raw) text() []byte {
	if v.kind() != '"' {
		return nil
	}
	inner := v[1 : len(v)-1]
	if bytes.IndexByte(inner, '\\') < 0 {
		return inner
	}
	s, _ := jsontext.AppendUnquote(nil, v)
	return s
}

func (v raw) string() string { return string(v.text()) }

// inner is the text between the string's quotes, with its escapes.
func (v raw) inner() []byte {
	if v.kind() != '"' {
		return nil
	}
	return v[1 : len(v)-1]
}

// whole is a number without a fraction. Providers also write 12.0 and 1e3.
func (v raw) whole() (int64, bool) {
	if !v.isNumber() {
		return 0, false
	}
	if n, err := strconv.ParseInt(string(v), 10, 64); err == nil {
		return n, true
	}
	f, err := strconv.ParseFloat(string(v), 64)
	if err != nil || f != float64(int64(f)) || f > 1<<53 || f < -1<<53 {
		return 0, false
	}
	return int64(f), true
}

func (v raw) number() (float64, bool) {
	if !v.isNumber() {
		return 0, false
	}
	f, err := strconv.ParseFloat(string(v), 64)
	return f, err == nil
}

// members yields the names and values of an object, in order. The name shares memory with v
// if it has no escapes. For other values it yields nothing.
func (v raw) members() iter.Seq2[[]byte, raw] {
	return func(yield func([]byte, raw) bool) {
		if v.kind() != '{' {
			return
		}
		for i := space(v, 1); v[i] != '}'; {
			end := skip(v, i)
			name := v[i:end].text()
			i = space(v, space(v, end)+1) // after the colon
			end = skip(v, i)
			if !yield(name, v[i:end]) {
				return
			}
			if i = space(v, end); v[i] == ',' {
				i = space(v, i+1)
			}
		}
	}
}

// elements yields an array's values. For other values it yields nothing.
func (v raw) elements() iter.Seq2[int, raw] {
	return func(yield func(int, raw) bool) {
		if v.kind() != '[' {
			return
		}
		n := 0
		for i := space(v, 1); v[i] != ']'; n++ {
			end := skip(v, i)
			if !yield(n, v[i:end]) {
				return
			}
			if i = space(v, end); v[i] == ',' {
				i = space(v, i+1)
			}
		}
	}
}

// get returns the value at a path of names, or nil.
func (v raw) get(path ...string) raw {
	for _, want := range path {
		var found raw
		for name, value := range v.members() {
			if string(name) == want {
				found = value
				break
			}
		}
		if found == nil {
			return nil
		}
		v = found
	}
	return v
}

func space(v raw, i int) int {
	for i < len(v) && (v[i] == ' ' || v[i] == '\n' || v[i] == '\t' || v[i] == '\r') {
		i++
	}
	return i
}

// skip returns the index after the value that begins at i of valid JSON.
func skip(v raw, i int) int {
	switch v[i] {
	case '"':
		return skipString(v, i)
	case '{', '[':
		for depth := 0; ; {
			switch v[i] {
			case '"':
				i = skipString(v, i)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
			i++
		}
	}
	for i < len(v) {
		switch v[i] {
		case ',', '}', ']', ' ', '\n', '\t', '\r':
			return i
		}
		i++
	}
	return i
}

func skipString(v raw, i int) int {
	for i++; ; {
		j := i + bytes.IndexByte(v[i:], '"')
		k := bytes.IndexByte(v[i:j], '\\')
		if k < 0 {
			return j + 1
		}
		i += k + 2 // over the backslash and the escaped byte
	}
}

// compact is v without the space between its tokens. All else is kept.
func (v raw) compact() raw {
	out := make(raw, 0, len(v))
	for i := 0; i < len(v); {
		switch v[i] {
		case ' ', '\n', '\t', '\r':
			i++
		case '"':
			end := skipString(v, i)
			out = append(out, v[i:end]...)
			i = end
		default:
			out = append(out, v[i])
			i++
		}
	}
	return out
}

// writer builds JSON. It adds commas: one is needed unless the last byte opened a value or
// ended a name, and no value ends in such a byte.
type writer struct{ b []byte }

func (w *writer) due() {
	if n := len(w.b); n > 0 {
		switch w.b[n-1] {
		case '{', '[', ':':
		default:
			w.b = append(w.b, ',')
		}
	}
}

func (w *writer) open(c byte)  { w.due(); w.b = append(w.b, c) }
func (w *writer) close(c byte) { w.b = append(w.b, c) }

// key writes a constant name, which needs no escapes.
func (w *writer) key(name string) {
	w.due()
	w.b = append(w.b, '"')
	w.b = append(w.b, name...)
	w.b = append(w.b, '"', ':')
}

func (w *writer) raw(v []byte) { w.due(); w.b = append(w.b, v...) }

func (w *writer) string(s string) { w.text([]byte(s)) }

func (w *writer) text(s []byte) {
	w.due()
	w.b = quote(w.b, s)
}

func (w *writer) int(n int64) { w.due(); w.b = strconv.AppendInt(w.b, n, 10) }

func (w *writer) bool(t bool) { w.due(); w.b = strconv.AppendBool(w.b, t) }

func (w *writer) keyRaw(name string, v []byte) { w.key(name); w.raw(v) }

func (w *writer) keyString(name, s string) { w.key(name); w.string(s) }

func (w *writer) keyInt(name string, n int64) { w.key(name); w.int(n) }

// quote appends s as a JSON string, invalid UTF-8 as U+FFFD.
func quote(dst, s []byte) []byte {
	if !utf8.Valid(s) {
		s = bytes.ToValidUTF8(s, []byte("\uFFFD"))
	}
	dst, _ = jsontext.AppendQuote(dst, s) // the only error is invalid UTF-8
	return dst
}

// joined returns the contents of strings, with their escapes, as one string.
func joined(parts []raw) raw {
	n := 2
	for _, p := range parts {
		n += len(p)
	}
	out := append(make(raw, 0, n), '"')
	for _, p := range parts {
		out = append(out, p.inner()...)
	}
	return append(out, '"')
}

// isBase64 reports whether s is standard base64 with padding, which every provider's
// decoder accepts.
func isBase64(s []byte) bool {
	if len(s) == 0 || len(s)%4 != 0 {
		return false
	}
	for i, c := range s {
		switch {
		case c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '+', c == '/':
		case c == '=' && i >= len(s)-2:
		default:
			return false
		}
	}
	tail := s[len(s)-4:]
	_, err := base64.StdEncoding.Decode(make([]byte, 3), tail)
	return err == nil
}
