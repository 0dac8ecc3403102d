package sse_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/provider/sse"
)

// read returns the output of a reader for a stream in these chunks, one string for each
// event, type and comment.
func read(t testing.TB, r sse.Reader, chunks ...[]byte) (out []string) {
	t.Helper()
	var data []byte
	for _, b := range chunks {
		for len(b) > 0 {
			p, n := r.Next(b)
			if n < 0 || n > len(b) || n == 0 && p.Kind == sse.More {
				t.Fatalf("%d bytes of %d were read", n, len(b))
			}
			b = b[n:]
			switch p.Kind {
			case sse.More:
				if len(b) > 0 {
					t.Fatalf("no part, and %d bytes are left", len(b))
				}
			case sse.Data:
				data = append(data, p.Text...)
			case sse.Type:
				out = append(out, "type "+string(p.Text))
			case sse.Comment:
				out = append(out, "comment "+string(p.Text))
			case sse.TooLong:
				out = append(out, "too long")
				data = nil
			case sse.End:
				out = append(out, "event "+string(data))
				data = data[:0]
			}
		}
	}
	if len(data) > 0 {
		out = append(out, "open "+string(data))
	}
	return out
}

// plainly reads a stream in the simplest way that follows the rules: in one pass over all
// bytes.
func plainly(b []byte) (out []string) {
	text := strings.TrimPrefix(string(b), "\ufeff")
	text = strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\r", "\n")
	var data []string
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		last := i == len(lines)-1 // no line end came
		name, value, colon := strings.Cut(line, ":")
		switch {
		case line == "" && !last:
			out = append(out, "event "+strings.Join(data, "\n"))
			data = nil
		case name == "data" && (colon || !last):
			data = append(data, strings.TrimPrefix(value, " "))
		case name == "" && colon && !last:
			out = append(out, "comment "+value)
		case name == "event" && !last:
			out = append(out, "type "+strings.TrimPrefix(value, " "))
		}
	}
	if open := strings.Join(data, "\n"); open != "" {
		out = append(out, "open "+open)
	}
	return out
}

func TestReader(t *testing.T) {
	for _, c := range []struct{ stream, want string }{
		{"data: a\n\n", "event a"},
		{"data: a\r\n\r\ndata:b\r\rdata:  c\n\n", "event a|event b|event  c"},
		{"\ufeffdata: a\n\n", "event a"},
		{"\ufeff\ufeffdata: a\n\n", "event "},
		{"\xefdata: a\n\ndata: b\n\n", "event |event b"},
		{"data: a\ndata: b\ndata\ndata:\n\n", "event a\nb\n\n"},
		{"event: error\nid: 7\nretry: 3\ndata: a\n\n", "type error|event a"},
		{"event\nevent:x\nevents: y\n\n", "type |type x|event "},
		{":\n: keep alive\n\n", "comment |comment  keep alive|event "},
		{"Data: a\n data: b\ndata : c\ndatax: d\n\n", "event "},
		{"data: a", "open a"},
		{"dat", ""},
		{"data: \x00\xff\n\n", "event \x00\xff"},
	} {
		if got := read(t, sse.New(64, 64), []byte(c.stream)); strings.Join(got, "|") != c.want {
			t.Errorf("%q:\n%q, want\n%q", c.stream, got, c.want)
		}
		if plain := plainly([]byte(c.stream)); strings.Join(plain, "|") != c.want {
			t.Errorf("the plain reader, %q:\n%q, want\n%q", c.stream, plain, c.want)
		}
	}
}

func TestLines(t *testing.T) {
	for stream, want := range map[string]string{
		"{}\n{\"a\":1}\r\n\r\nx\ry": "event {}|event {\"a\":1}|event |event x|open y",
		"\ufeffa\n\xef\xbbb":        "event a|open \xef\xbbb",
		"\xef\xbbb\ndata: c\n":      "event \xef\xbbb|event data: c",
		"123456789\n12345678\n":     "too long|event |event 12345678",
	} {
		for i := range len(stream) + 1 {
			if got := read(t, sse.NewLines(8), []byte(stream[:i]), []byte(stream[i:])); strings.Join(got, "|") != want {
				t.Errorf("%q, split at %d: %q", stream, i, got)
			}
		}
	}
}

// A line or an event above its limit is skipped to its end, and uses no memory.
func TestLimits(t *testing.T) {
	for stream, want := range map[string]string{
		"data: 12345678\n\n":                               "event 12345678",
		"data: 123456789\n\ndata: a\n\n":                   "too long|event |event a",
		"data: 1234\ndata: 567\n\n":                        "event 1234\n567",
		"data: 1234\ndata: 5678\ndata: 9\n\ndata: a\n\n":   "too long|event |event a",
		":1234\n:12345\n:1\n\n":                            "comment 1234|too long|comment 1|event ",
		"event: 1234\nevent: 12345\ndata: a\n\n":           "type 1234|too long|event a",
		strings.Repeat("z", 1000) + "\ndata: a\n\n":        "event a",
		strings.Repeat("data:\n", 20) + "\ndata: a\n\n":    "too long|event |event a",
		strings.Repeat("data:\n", 9) + "\ndata: 12345678":  "event \n\n\n\n\n\n\n\n|open 12345678",
		"data: 12345678\ndata\ndata: 1\n\ndata:12345678\n": "too long|event |open 12345678",
	} {
		for i := range len(stream) + 1 {
			if got := read(t, sse.New(4, 8), []byte(stream[:i]), []byte(stream[i:])); strings.Join(got, "|") != want {
				t.Fatalf("%.60q, split at %d: %q", stream, i, got)
			}
		}
	}
	if got := read(t, sse.Reader{}, []byte("data: a\n:b\n\n")); strings.Join(got, "|") != "too long|too long|event " {
		t.Errorf("the zero reader accepted %q", got)
	}
	r := sse.New(64, sse.Unlimited)
	chunk := bytes.Repeat([]byte("x"), 1<<10)
	r.Next([]byte("data: "))
	if n := testing.AllocsPerRun(100, func() { r.Next(chunk) }); n > 0 {
		t.Errorf("%v allocations for each chunk of data", n)
	}
}

// Whole returns the same as Next, and only at the beginning of an event.
func TestWhole(t *testing.T) {
	for _, c := range []struct {
		before, stream, want string
		n                    int
	}{
		{"\n", "data: a\n\nx", "a", 9},
		{"\n", "data:a\n\n", "a", 8},
		{"\n", "data:  a\n\n", " a", 10},
		{"id: 1\n", "data: a\n\n", "a", 9},
		{"", "data: a\n\n", "", 0}, // there may be a byte order mark
		{"\n", "data: a\n", "", 0},
		{"\n", "data: a\r\n\r\n", "", 0},
		{"\n", "data: a\ndata: b\n\n", "", 0},
		{"\n", "data: a\rdata: b\n\n", "", 0},
		{"\n", "event: a\n\n", "", 0},
		{"data: x\n", "data: a\n\n", "", 0},
		{"da", "data: a\n\n", "", 0},
		{"data:", "data: a\n\n", "", 0},
		{"\r", "data: a\n\n", "", 0},
		{"\n", "data: 123456789\n\n", "", 0},
	} {
		r := sse.New(8, 8)
		for b := []byte(c.before); len(b) > 0; {
			_, n := r.Next(b)
			b = b[n:]
		}
		if data, n := r.Whole([]byte(c.stream)); string(data) != c.want || n != c.n {
			t.Errorf("%q after %q: %q, %d", c.stream, c.before, data, n)
		}
	}
}

func TestIs(t *testing.T) {
	for contentType, want := range map[string]bool{
		"text/event-stream": true, "Text/Event-Stream ; charset=utf-8": true, " text/event-stream;": true,
		"": false, "application/json": false, "text/event-streams": false, "x; text/event-stream": false,
	} {
		if sse.Is(contentType) != want {
			t.Errorf("%q: %v", contentType, !want)
		}
	}
}

// FuzzReader: for every split, the events are those of the simple reader.
func FuzzReader(f *testing.F) {
	for _, s := range []string{
		"\ufeffdata: a\r\n\r\nevent: x\rdata\rdata:b\r\r\n:c\n\n", "data: a\ndata: b\n\n: hi\n\nda", "\xef\xbb\xbf\xef\xbb\xbf\n", "\r\n\r\n\n\r\r", "data:\n\ndata: \n\nevent",
	} {
		f.Add([]byte(s), uint64(len(s)))
	}
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		kept := bytes.Clone(b)
		want := plainly(b)
		check := func(how string, chunks ...[]byte) {
			t.Helper()
			if got := read(t, sse.New(len(b), len(b)), chunks...); !slices.Equal(got, want) {
				t.Fatalf("%q in %s:\n%q, want\n%q", b, how, got, want)
			}
		}
		check("one chunk", b)
		check("single bytes", slices.Collect(slices.Chunk(b, 1))...)
		random := rand.New(rand.NewPCG(seed, 1))
		var chunks [][]byte
		for rest := b; len(rest) > 0; {
			n := 1 + random.IntN(min(len(rest), 16))
			chunks, rest = append(chunks, rest[:n]), rest[n:]
		}
		check(fmt.Sprintf("%d chunks", len(chunks)), chunks...)

		// Where Whole applies, it is the same as Next.
		fast := sse.New(len(b), len(b))
		var got []string
		var data []byte
		for rest := b; len(rest) > 0; {
			if whole, n := fast.Whole(rest); n > 0 {
				got, rest = append(got, "event "+string(whole)), rest[n:]
				continue
			}
			p, n := fast.Next(rest)
			rest = rest[n:]
			switch p.Kind {
			case sse.Data:
				data = append(data, p.Text...)
			case sse.End:
				got, data = append(got, "event "+string(data)), nil
			}
		}
		events := slices.DeleteFunc(slices.Clone(want), func(s string) bool { return !strings.HasPrefix(s, "event ") })
		if !slices.Equal(got, events) {
			t.Fatalf("%q with Whole:\n%q, want\n%q", b, got, events)
		}

		// The limits hold for every split.
		small := read(t, sse.New(3, 5), b)
		if again := read(t, sse.New(3, 5), chunks...); !slices.Equal(again, small) {
			t.Fatalf("%q with limits: %q in one chunk, %q in %d", b, small, again, len(chunks))
		}
		if !bytes.Equal(b, kept) {
			t.Fatal("the chunk was changed")
		}
	})
}
