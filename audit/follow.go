package audit

import (
	"bytes"
	"time"
)

// Followed is what the tie-out reads of a record: of a decision or of a completion.
type Followed struct {
	Seq       uint64
	RequestID string
	Time      time.Time // of the entry
	Completed bool      // it is the completion
	Allowed   bool      // of a decision: the request may be forwarded
}

// A Follower reads decisions and completions from a Writer's segments, in their order. One
// goroutine uses it.
type Follower struct {
	w *Writer
	c cursor
}

// Follow returns a follower of the records after a number.
func (w *Writer) Follow(after uint64) *Follower {
	return &Follower{w: w, c: cursor{after: after, at: after}}
}

// Durable is the number of the last durable record.
func (w *Writer) Durable() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.durable
}

// At is the number of the last record that was read.
func (f *Follower) At() uint64 { return max(f.c.at, f.c.after) }

// Next returns the next decisions and completions. more is false at the end of the durable
// records. lost counts the records before them that the segments no longer have.
func (f *Follower) Next() (found []Followed, lost uint64, more bool, err error) {
	before := f.At()
	_, recs, err := f.w.read(&f.c)
	if err != nil {
		return nil, 0, false, err
	}
	if f.c.after > before { // the oldest segment begins later
		lost = f.c.after - before
	}
	if len(recs) == 0 {
		return nil, lost, false, nil
	}
	for _, r := range recs {
		if d, ok := followed(r); ok {
			found = append(found, d)
		}
	}
	return found, lost, true, nil
}

// Close releases the follower's file.
func (f *Follower) Close() { f.c.close() }

var (
	followedDecided = []byte(`{"v":1,"kind":"` + KindDecided + `",`)
	followedSettled = []byte(`{"v":1,"kind":"` + KindSettled + `",`)
	followedAllow   = []byte(`,"effect":"` + effectAllow + `"`)
)

// followed reads a record without parsing all of it. Entries have their fields in a fixed order,
// and a quotation mark within a value is escaped.
func followed(r Record) (Followed, bool) {
	d := Followed{Seq: r.Seq, Completed: bytes.HasPrefix(r.Entry, followedSettled)}
	if !d.Completed && !bytes.HasPrefix(r.Entry, followedDecided) {
		return d, false
	}
	d.RequestID = member(r.Entry, `"request_id":"`)
	d.Time, _ = time.Parse(timeLayout, member(r.Entry, `"time":"`)) // this program wrote it
	d.Allowed = !d.Completed && bytes.Contains(r.Entry, followedAllow)
	return d, d.RequestID != ""
}

func member(entry []byte, name string) string {
	_, rest, ok := bytes.Cut(entry, []byte(name))
	value, _, closed := bytes.Cut(rest, []byte{'"'})
	if !ok || !closed {
		return ""
	}
	return string(value)
}
