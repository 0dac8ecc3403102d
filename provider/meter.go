package provider

import (
	"bytes"
	"math"
)

// meter estimates how many tokens of output have passed in a response. It counts the bytes of
// all strings except those in marksOf, and all bytes of what is in objectsOf. A token has bytesToken bytes, and an event with any
// text has at least one token. It is incremental, and keeps the last name only.
//
// A usage report replaces the estimate of everything up to the end of its event. Some servers
// send the same figures with each event until the last one. So only a report with more output
// than all reports before it counts.
type meter struct {
	tokens   int64 // since the last report
	reported int64
	covered  bool  // the event has a report
	bytes    int64 // of the event

	name    [maxMark]byte // the string that ended last, or its beginning
	named   int           // its length
	mark    int           // strings up to this length are no output: the next value's member is a mark
	holds   bool          // the next value is of a member in objectsOf
	inside  int           // brackets that are open in such a value
	pending bool          // a string has ended, and it is not clear whether it is a name
	quoted  bool          // inside a string
	escaped bool          // the byte before was a backslash
}

const maxMark = 24

// marksOf are names of members whose strings are no output, up to the given length. A model may
// choose names in the objects that it writes, so only signatures and the like have no such limit.
var marksOf = map[string]int{
	"id": longMark, "object": longMark, "model": longMark, "type": longMark, "role": longMark, "finish_reason": longMark, "native_finish_reason": longMark,
	"stop_reason": longMark, "stop_sequence": longMark, "system_fingerprint": longMark, "service_tier": longMark, "item_id": longMark, "response_id": longMark,
	"call_id": longMark, "event_type": longMark, "status": longMark, "provider": longMark, "modelVersion": longMark, "responseId": longMark,
	"finishReason": longMark, "event": longMark, "previous_response_id": longMark, "message_id": longMark, "container": longMark,
	"obfuscation": math.MaxInt, "signature": math.MaxInt, "encrypted_content": math.MaxInt, "thoughtSignature": math.MaxInt,
}

// longMark is the longest string of an ordinary mark, and the longest name that is no output.
const longMark = 128

// objectsOf are names of members whose objects the model writes: the arguments of tools. All
// of their bytes are output.
var objectsOf = map[string]bool{"args": true, "arguments": true, "input": true}

// feed takes the next piece of an event's data, or of a whole response.
func (m *meter) feed(b []byte) {
	for i := 0; i < len(b); i++ {
		c := b[i]
		if m.quoted {
			// Text without quotes and backslashes is passed over at once.
			n := bytes.IndexAny(b[i:], `"\`)
			switch {
			case m.escaped:
				n, m.escaped = 0, false
				m.keep(c)
			case n < 0:
				m.keepAll(b[i:])
				return
			default:
				m.keepAll(b[i : i+n])
				if i += n; b[i] == '\\' {
					m.escaped = true
				} else {
					m.quoted, m.pending = false, true
				}
			}
			continue
		}
		switch {
		case c == ' ', c == '\t', c == '\r', c == '\n':
			continue
		case m.inside > 0:
			m.value()
			switch c {
			case '"':
				m.quoted, m.named = true, 0
			case '{', '[':
				m.inside++
			case '}', ']':
				m.inside--
			}
			if m.inside > 0 {
				m.bytes++
			}
		case c == ':':
			if m.pending {
				name := m.name[:min(m.named, maxMark)]
				m.mark, m.holds = 0, false
				switch {
				case m.named > longMark:
					m.bytes += int64(m.named)
				case m.named <= maxMark:
					m.mark, m.holds = marksOf[string(name)], objectsOf[string(name)]
				}
				m.pending = false
			}
		case c == '"':
			m.value()
			m.quoted, m.named, m.holds = true, 0, false
		default:
			m.value()
			m.mark = 0
			if m.holds && (c == '{' || c == '[') {
				m.inside = 1
			}
			m.holds = false
		}
	}
}

func (m *meter) keep(c byte) {
	if m.named < maxMark {
		m.name[m.named] = c
	}
	m.named++
}

func (m *meter) keepAll(b []byte) {
	if m.named < maxMark {
		copy(m.name[m.named:], b)
	}
	m.named += len(b)
}

// value counts the string that ended last, which was no name.
func (m *meter) value() {
	if m.pending && m.named > m.mark {
		m.bytes += int64(m.named)
	}
	m.pending = false
}

// end is the end of an event.
func (m *meter) end() {
	if m.quoted && m.named > m.mark {
		m.bytes += int64(m.named) // it broke off in a string
	}
	m.value()
	switch {
	case m.covered:
		m.tokens = 0
	case m.bytes > 0:
		m.tokens += max(1, (m.bytes+bytesToken-1)/bytesToken)
	}
	m.bytes, m.quoted, m.escaped, m.mark, m.covered = 0, false, false, 0, false
	m.holds, m.inside = false, 0
}

// cover notes that the provider reports so many tokens of output so far. A nil meter ignores it.
func (m *meter) cover(tokens int64) {
	if m != nil && tokens > m.reported {
		m.reported, m.covered = tokens, true
	}
}
