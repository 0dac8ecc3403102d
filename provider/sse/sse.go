// Package sse reads streams of server-sent events, for every split into chunks. Usage and
// translations are both read from its output. It follows the parsing rules of
// https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream in
// the HTML standard.
package sse

import (
	"bytes"
	"math"
	"strings"
)

// Kind is what a Part is.
type Kind uint8

const (
	More    Kind = iota // nothing: the next part needs the next chunk
	Data                // a part of the event's data; lines of data are joined by "\n"
	Type                // the event's type, which is the value of its "event" field
	Comment             // a comment, without its colon
	End                 // the event ended; it may have had no data
	EndLF               // the rest of the last End: the LF of a CR LF, in another chunk
	TooLong             // a line or an event is longer than its limit; the rest of it is skipped
)

// Part is the next part of a stream. Text is valid until the next call.
type Part struct {
	Kind Kind
	Text []byte
}

// Unlimited is the limit of data that the caller does not keep.
const Unlimited = math.MaxInt

// Reader splits a stream into parts. It stores no data, and at most one line of another
// field. Its zero value accepts no byte of any line: use New or NewLines. It is for one
// goroutine.
type Reader struct {
	maxLine  int  // bytes of a type or a comment
	maxEvent int  // bytes of an event's data
	lines    bool // each line is the data of an event of its own

	state state
	bom   int     // bytes of the byte order mark so far; bomDone: the stream is past it
	name  [5]byte // the field's name, as far as it was read
	named int
	text  []byte // of a type or a comment, as far as it was read
	size  int    // of the event's data
	data  bool   // the event has data
	cr    bool   // the last byte was a CR, which a LF may follow
	ended bool   // the last byte ended an event
}

// state is the position of the next byte in a line.
type state uint8

const (
	inName    state = iota // at the beginning of the line, or in the name of its field
	atData                 // after "data:", where one space is not data
	inData                 // in data
	atType                 // after "event:", where one space is not the type
	inType                 // in the value of "event"
	inComment              // after a colon at the beginning of the line
	inOther                // in a line that is ignored, or is longer than its limit
)

const (
	mark     = "\xef\xbb\xbf"
	bomDone  = len(mark)
	dataName = "data"
	typeName = "event"
)

var newline = []byte{'\n'}

// New returns a reader of server-sent events. maxLine limits types and comments, and
// maxEvent limits the data of an event.
func New(maxLine, maxEvent int) Reader { return Reader{maxLine: maxLine, maxEvent: maxEvent} }

// NewLines returns a reader of a stream that has one value in each line, as in NDJSON.
// Each line is the data of an event, and has at most maxEvent bytes.
func NewLines(maxEvent int) Reader { return Reader{maxEvent: maxEvent, lines: true, state: inData} }

// Is reports whether a content type is that of server-sent events.
func Is(contentType string) bool {
	kind, _, _ := strings.Cut(contentType, ";")
	return strings.EqualFold(strings.TrimSpace(kind), "text/event-stream")
}

// Next returns the next part of the stream, and how many bytes of b came before its
// end. It is called again with the rest of b until there is no rest.
func (r *Reader) Next(b []byte) (p Part, n int) {
	if r.bom < bomDone && len(b) > 0 {
		if p, n = r.skipBOM(b); p.Kind != More {
			return p, n
		}
	}
	for n < len(b) {
		if r.cr {
			if r.cr = false; b[n] == '\n' {
				n++
				if r.ended {
					r.ended = false
					return Part{Kind: EndLF}, n
				}
				continue
			}
		}
		r.ended = false
		if b[n] == '\n' || b[n] == '\r' {
			if p, n = r.endLine(b, n); p.Kind != More {
				return p, n
			}
			continue
		}
		switch r.state {
		case inName:
			if p = r.readName(b[n]); p.Kind != More {
				return p, n + 1
			}
			n++
		case atData, atType:
			if b[n] == ' ' {
				n++
			}
			r.state++
		default:
			end := n + lineLen(b[n:])
			p = r.value(b[n:end], end < len(b))
			n = end
			if p.Kind != More {
				return p, n
			}
		}
	}
	return Part{}, n
}

// Whole returns the data of the event at the beginning of b, and the event's length. It
// does so only for an event with one line of data that ends with two LFs in b. For others n
// is 0. Such events, which are most, need no call of Next.
func (r *Reader) Whole(b []byte) (data []byte, n int) {
	const field = dataName + ":"
	if r.lines || r.state != inName || r.named > 0 || r.cr || r.data || r.bom != bomDone || !bytes.HasPrefix(b, []byte(field)) {
		return nil, 0
	}
	end := bytes.IndexByte(b, '\n')
	if end < 0 || end+1 == len(b) || b[end+1] != '\n' || bytes.IndexByte(b[:end], '\r') >= 0 {
		return nil, 0
	}
	if data = b[len(field):end]; len(data) > 0 && data[0] == ' ' {
		data = data[1:]
	}
	if len(data) > r.maxEvent {
		return nil, 0
	}
	r.ended = false
	return data, end + 2
}

// skipBOM skips a byte order mark at the beginning of the stream.
func (r *Reader) skipBOM(b []byte) (p Part, n int) {
	for n < len(b) && r.bom < bomDone {
		if b[n] != mark[r.bom] {
			p = r.noBOM()
			r.bom = bomDone
			return p, n
		}
		r.bom++
		n++
	}
	return Part{}, n
}

// noBOM returns the bytes that only looked like a byte order mark as part of their line.
func (r *Reader) noBOM() Part {
	switch {
	case r.bom == 0:
		return Part{}
	case r.lines:
		return r.value([]byte(mark[:r.bom]), false)
	}
	r.state = inOther // no field that is read begins like this
	return Part{}
}

// readName reads the next byte of a field's name, or the colon after it.
func (r *Reader) readName(c byte) Part {
	if c != ':' {
		if r.named == len(r.name) {
			r.state = inOther
			return Part{}
		}
		r.name[r.named] = c
		r.named++
		return Part{}
	}
	switch string(r.name[:r.named]) {
	case dataName:
		r.state = atData
		return r.beginData()
	case typeName:
		r.state = atType
	case "":
		r.state = inComment
	default:
		r.state = inOther
	}
	return Part{}
}

// beginData begins a line of data. The newline before it is data too, except for the
// event's first line of data.
func (r *Reader) beginData() Part {
	if !r.data {
		r.data = true
		return Part{}
	}
	return r.grow(newline)
}

// value reads the next bytes of a field's value. whole reports that the line ends after
// them.
func (r *Reader) value(text []byte, whole bool) Part {
	switch r.state {
	case inData:
		r.data = true
		return r.grow(text)
	case inType, inComment:
		if len(r.text)+len(text) > r.maxLine {
			r.state, r.text = inOther, r.text[:0]
			return Part{Kind: TooLong}
		}
		if !whole || len(r.text) > 0 {
			r.text = append(r.text, text...)
			return Part{}
		}
		p := r.finish(text)
		r.state = inOther // the line has been returned
		return p
	}
	return Part{}
}

// grow returns text as data, unless the event becomes too long.
func (r *Reader) grow(text []byte) Part {
	switch {
	case r.size < 0: // it is too long already
		return Part{}
	case len(text) > r.maxEvent-r.size:
		r.size = -1
		return Part{Kind: TooLong}
	}
	r.size += len(text)
	return Part{Data, text}
}

// finish returns the line whose value is text.
func (r *Reader) finish(text []byte) Part {
	switch r.state {
	case inType, atType:
		return Part{Type, text}
	case inComment:
		return Part{Comment, text}
	}
	return Part{}
}

// endLine reads the end of a line at b[n], and returns what ends with it.
func (r *Reader) endLine(b []byte, n int) (Part, int) {
	if r.cr = b[n] == '\r'; r.cr && n+1 < len(b) {
		if r.cr = false; b[n+1] == '\n' {
			n++
		}
	}
	n++
	var p Part
	switch {
	case r.lines, r.state == inName && r.named == 0:
		r.size, r.data, r.ended = 0, false, true
		p.Kind = End
	case r.state == inName:
		switch string(r.name[:r.named]) { // no colon: the value is empty
		case dataName:
			p = r.beginData()
		case typeName:
			p.Kind = Type
		}
	default:
		p = r.finish(r.text)
	}
	r.named, r.text = 0, r.text[:0]
	if r.state = inName; r.lines {
		r.state = inData
	}
	return p, n
}

// lineLen is the length of the first line in b, or of b.
func lineLen(b []byte) int {
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		b = b[:i]
	}
	if i := bytes.IndexByte(b, '\r'); i >= 0 {
		return i
	}
	return len(b)
}
