package provider

import "bytes"

// meter estimates how many tokens of output have passed in a response. It counts the bytes of
// all strings except those in marksOf. A token has bytesToken bytes, and an event with any
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
	mark    bool          // the member that the next value belongs to is a mark
	pending bool          // a string has ended, and it is not clear whether it is a name
	quoted  bool          // inside a string
	escaped bool          // the byte before was a backslash
}

const maxMark = 24

// marksOf are names of members whose strings are no output.
var marksOf = map[string]bool{
	"id": true, "object": true, "model": true, "type": true, "role": true, "finish_reason": true, "native_finish_reason": true, "stop_reason": true,
	"stop_sequence": true, "system_fingerprint": true, "service_tier": true, "item_id": true, "response_id": true, "call_id": true, "obfuscation": true,
	"event_type": true, "status": true, "provider": true, "signature": true, "encrypted_content": true, "thoughtSignature": true, "modelVersion": true,
	"responseId": true, "finishReason": true, "event": true, "previous_response_id": true, "message_id": true, "container": true,
}

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
		switch c {
		case ' ', '\t', '\r', '\n':
			continue
		case ':':
			if m.pending {
				m.mark = m.named <= maxMark && marksOf[string(m.name[:m.named])]
				m.pending = false
			}
		case '"':
			m.value()
			m.quoted, m.named = true, 0
		default:
			m.value()
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
	if m.pending && !m.mark {
		m.bytes += int64(m.named)
	}
	m.pending = false
}

// end is the end of an event.
func (m *meter) end() {
	if m.quoted && !m.mark {
		m.bytes += int64(m.named) // it broke off in a string
	}
	m.value()
	switch {
	case m.covered:
		m.tokens = 0
	case m.bytes > 0:
		m.tokens += max(1, (m.bytes+bytesToken-1)/bytesToken)
	}
	m.bytes, m.quoted, m.escaped, m.mark, m.covered = 0, false, false, false, false
}

// cover notes that the provider reports so many tokens of output so far. A nil meter ignores it.
func (m *meter) cover(tokens int64) {
	if m != nil && tokens > m.reported {
		m.reported, m.covered = tokens, true
	}
}
