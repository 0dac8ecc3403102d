package provider

import "bytes"

// scanner reads JSON text in chunks and extracts the values at a few places. It stores only
// those values, up to maxTaken bytes each. It does not verify that the text is valid: no
// decision depends on a provider's response, and the client's parser must read it.
//
// Names are compared without unescaping: no API escapes the letters of its names.
type scanner struct {
	reads *reading
	out   *ResponseReader

	state   scanState
	stack   [maxPlaces]open // objects and arrays that are searched, outermost first
	depth   int             // of stack
	name    [maxWanted]byte // the current name
	named   int             // its length; a name that is too long for the array matches nothing
	escaped bool            // the last byte was a backslash
	next    *member         // the member to find in the next value; nil: nothing

	outer bool // there is an array around everything, in which each object is a text
	whole bool // a text has ended, and no other has begun

	// The state of a value that is skipped or extracted.
	nested int  // the arrays and objects that are open in it
	quoted bool // inside a string
	taking bool
	taken  []byte
}

type scanState uint8

const (
	atValue  scanState = iota // before a value
	atName                    // in an object that is searched: before a name or the end
	inName                    // in the name
	atColon                   // after it
	inString                  // in a value that is a string
	inNested                  // in a value that is an object or array
	inPlain                   // in a value that is neither: a number, true, false, null
)

const (
	maxPlaces = 4
	maxWanted = 32       // the maximum length of a name to find
	maxTaken  = 16 << 10 // the maximum length of an extracted value
)

// open is an object or array that is searched. Each object in an array is searched like the
// array's own place.
type open struct {
	place *place
	array bool
}

// place is an object in which values are searched.
type place []member

// member is a value to find in an object.
type member struct {
	name string
	want want
	in   place // with wantInside
}

type want uint8

const (
	wantInside     want = iota // the value is an object to search in
	wantModel                  // a string
	wantUsage                  // an object
	wantFirstUsage             // an object, sent before any output: its figure of the output covers none
	wantService                // a string
	wantInput                  // a number, like the others below
	wantOutput
	wantCached
	wantCacheWrite
	wantReasoning
)

// These mark the end of a response, and are detected where the value begins or ends.
const (
	wantError  want = 100 + iota // anything except null: the response is an error
	wantFinish                   // a string: the reason why a choice ended
	wantBlock                    // a string: the reason why there are no choices
	wantType                     // a string: the type of the event
)

func (s *scanner) begin(r *reading, out *ResponseReader) { s.reads, s.out = r, out }

// reset prepares for the next text, even in the middle of one.
func (s *scanner) reset() {
	s.state, s.depth, s.next, s.outer, s.taking, s.whole = atValue, 0, nil, false, false, false
}

// feed processes the next chunk of the text.
func (s *scanner) feed(b []byte) {
	for i := 0; i < len(b); {
		switch s.state {
		case inString, inNested, inPlain:
			n, ended := s.value(b[i:])
			if s.taking && len(s.taken)+n <= maxTaken {
				s.taken = append(s.taken, b[i:i+n]...)
			} else {
				s.taking = false
			}
			i += n
			if ended {
				s.valueEnds()
			}
			continue
		case inName:
			n := s.inString(b[i:])
			text := b[i : i+n]
			if !s.quoted {
				text = text[:n-1]
				s.state = atColon
			}
			if s.named+len(text) <= len(s.name) {
				copy(s.name[s.named:], text)
			}
			s.named += len(text)
			i += n
			continue
		}
		c := b[i]
		i++
		if c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == ',' {
			continue
		}
		switch s.state {
		case atName:
			switch c {
			case '"':
				s.state, s.named, s.quoted, s.escaped = inName, 0, true, false
			case '}', ']':
				s.leave()
			}
		case atColon:
			if c == ':' {
				s.next = s.wanted()
				s.state = atValue
			}
		case atValue:
			s.valueBegins(c)
		}
	}
}

// wanted returns the member to find under the name that was read.
func (s *scanner) wanted() *member {
	if s.named > len(s.name) {
		return nil
	}
	p := *s.stack[s.depth-1].place
	for i := range p {
		if p[i].name == string(s.name[:s.named]) {
			return &p[i]
		}
	}
	return nil
}

// valueBegins selects the state for a value by its first byte.
func (s *scanner) valueBegins(c byte) {
	in := s.inside()
	switch {
	case c == '}' || c == ']':
		s.leave()
		return
	case c == '[' && s.depth == 0 && !s.outer:
		// A stream of Gemini's that was not requested as events is one array.
		s.outer = true
		return
	case (c == '{' || c == '[' && s.next != nil) && in != nil && s.depth < len(s.stack):
		s.stack[s.depth] = open{in, c == '['}
		s.depth++
		s.whole = false
		if s.state, s.next = atName, nil; c == '[' {
			s.state = atValue
		}
		return
	}
	s.whole = false
	if s.next != nil && s.next.want == wantError && (c == '{' || c == '"' || c == '[') {
		s.out.failed = true
	}
	s.taking = s.next != nil && (c == '{' && (s.next.want == wantUsage || s.next.want == wantFirstUsage) ||
		c == '"' && (s.next.want == wantModel || s.next.want == wantService || s.next.want == wantFinish || s.next.want == wantBlock || s.next.want == wantType) ||
		'0' <= c && c <= '9' && wantInput <= s.next.want && s.next.want <= wantReasoning)
	if s.taking {
		s.taken = append(s.taken[:0], c)
	}
	switch c {
	case '"':
		s.state, s.quoted, s.escaped = inString, true, false
	case '{', '[':
		s.state, s.quoted, s.nested = inNested, false, 1
	default:
		s.state = inPlain
	}
}

// valueEnds returns the value, if it was searched for, and continues behind it.
func (s *scanner) valueEnds() {
	if s.taking {
		s.taking = false
		s.out.took(s.next.want, s.taken)
	}
	s.goOn()
}

// leave ends an object that was searched, or the array around everything.
func (s *scanner) leave() {
	if s.depth == 0 {
		s.outer, s.whole = false, true
		return
	}
	s.depth--
	s.goOn()
}

func (s *scanner) goOn() {
	s.next = nil
	s.state = atValue
	if s.depth == 0 {
		s.whole = !s.outer
	} else if !s.stack[s.depth-1].array {
		s.state = atName
	}
}

// inside returns the place for a value that is searched.
func (s *scanner) inside() *place {
	switch {
	case s.depth == 0:
		return &s.reads.root
	case s.next == nil && s.stack[s.depth-1].array:
		return s.stack[s.depth-1].place
	case s.next != nil && s.next.want == wantInside:
		return &s.next.in
	}
	return nil
}

// value skips the bytes of the current value.
func (s *scanner) value(b []byte) (n int, ended bool) {
	switch s.state {
	case inString:
		n = s.inString(b)
		return n, !s.quoted
	case inPlain:
		if n = bytes.IndexAny(b, ",}] \t\r\n"); n < 0 {
			return len(b), false
		}
		return n, true
	}
	for n < len(b) {
		if s.quoted {
			n += s.inString(b[n:])
			continue
		}
		c := b[n]
		n++
		switch c {
		case '"':
			s.quoted, s.escaped = true, false
		case '{', '[':
			s.nested++
		case '}', ']':
			if s.nested--; s.nested == 0 {
				return n, true
			}
		}
	}
	return n, false
}

// inString skips the rest of a string, including its closing quote. quoted reports
// afterwards whether the string continues.
func (s *scanner) inString(b []byte) int {
	i := 0
	if s.escaped && len(b) > 0 {
		s.escaped = false
		i = 1
	}
	for i < len(b) {
		n := bytes.IndexByte(b[i:], '"')
		end := i + n
		if n < 0 {
			end = len(b)
		}
		// A quote after an odd number of backslashes is part of the string. The same holds
		// for the first byte of the next chunk.
		odd := false
		for j := end - 1; j >= i && b[j] == '\\'; j-- {
			odd = !odd
		}
		if n < 0 {
			s.escaped = odd
			return len(b)
		}
		i = end + 1
		if !odd {
			s.quoted = false
			return i
		}
	}
	return i
}
