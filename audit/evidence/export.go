package evidence

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/mod/sumdb/tlog"
)

// ExportFormat is the format of exports. docs/evidence.md describes it.
const ExportFormat = "aid export v1"

// An ExportFilter selects entries by fields of their links. Zero fields select all. Times are
// those of the entries, in microseconds since 1970.
type ExportFilter struct {
	AgentID   string `json:"agent_id"`
	SessionID string `json:"session_id"`
	RequestID string `json:"request_id"`
	Kind      string `json:"kind"`
	Since     int64  `json:"since"` // from this time on
	Until     int64  `json:"until"` // before this time; 0: no end
}

// Match reports whether the filter selects a link's entry.
func (f ExportFilter) Match(l *Link) bool {
	if f.AgentID != "" && f.AgentID != l.AgentID || f.SessionID != "" && f.SessionID != l.SessionID ||
		f.RequestID != "" && f.RequestID != l.RequestID || f.Kind != "" && f.Kind != l.Kind {
		return false
	}
	at := l.Time.UnixMicro()
	return (f.Since == 0 || at >= f.Since) && (f.Until == 0 || at < f.Until)
}

// An ExportHeader is the first line of an export. An export has the link of each leaf from
// First to the size of the checkpoint End, and the entries that Filter selects.
type ExportHeader struct {
	ID          string       `json:"id"`
	Org         string       `json:"org"`
	Incarnation int64        `json:"incarnation"`
	FirstSeq    int64        `json:"first_seq"` // of the incarnation's first entry
	Filter      ExportFilter `json:"filter"`
	After       string       `json:"after"`    // the export that this one continues; "": none
	First       int64        `json:"first"`    // index of the first leaf
	Left        [][]byte     `json:"left"`     // Range.Hashes of the tree with First leaves
	PrevMAC     string       `json:"prev_mac"` // hex; the MAC before the first row
	Before      string       `json:"before"`   // checkpoint of size First; "" if First is 0
	End         string       `json:"end"`      // checkpoint
	Newest      string       `json:"newest"`   // checkpoint; "" if it is End
	Consistency [][]byte     `json:"consistency"`
}

// selects reports whether the export has a link's entry. Every export has key changes, and the
// first entry of a reopened log, which says what was lost.
func (h *ExportHeader) selects(l *Link, index int64) bool {
	return h.Filter.Match(l) || index == 0 && h.Incarnation > 1 || l.changesKeys()
}

// KindReopened is the kind of the first entry of an incarnation after the first.
const KindReopened = "chain.reopened"

// A Reopened is the first entry of a log that was reopened after a loss.
type Reopened struct {
	Kind     string `json:"kind"`
	Previous string `json:"previous"` // the last checkpoint of the incarnation before, signed
	Restored int64  `json:"restored"` // leaves of that incarnation that are in the database
	LostFrom int64  `json:"lost_from"`
	LostTo   int64  `json:"lost_to"` // numbers of the entries that were lost; 0: none was
}

// setID derives the export's id from everything else, so that equal orders have equal ids.
func (h *ExportHeader) setID() error {
	h.ID = ""
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(append([]byte(ExportFormat+"\n"), b...))
	h.ID = "exp_" + hex.EncodeToString(sum[:16])
	return nil
}

// An ExportRow is a link with its place in the chain of MACs.
type ExportRow struct {
	Link
	Epoch   int32
	Version int16
	MAC     []byte // 32 bytes
	Bytes   []byte // the entry
}

// ExportStatement is what the signature of an export says.
type ExportStatement struct {
	Format  string       `json:"format"`
	ID      string       `json:"id"`
	Org     string       `json:"org"`
	Filter  ExportFilter `json:"filter"`
	First   int64        `json:"first"`
	End     int64        `json:"end"`
	Root    []byte       `json:"root"`    // of the tree with End leaves
	Entries int64        `json:"entries"` // that the filter selects
	SHA256  string       `json:"sha256"`  // hex; of all lines before the last one
}

// An ExportWriter writes the lines of one export. It proves each line to itself: the rows must
// be the leaves of the checkpoint.
type ExportWriter struct {
	h       ExportHeader
	end     Checkpoint
	late    int64 // entries with a time before this are late; math.MinInt64: none is
	tree    *Range
	rows    int64
	entries int64
}

// NewExportWriter checks the header, sets its ID, and returns a writer and the first line. The
// checkpoints must be ones that the caller trusts: their signatures are not verified.
func NewExportWriter(h ExportHeader) (*ExportWriter, []byte, error) {
	w := &ExportWriter{late: math.MinInt64}
	var err error
	if w.end, err = ParseNote(h.End); err != nil {
		return nil, nil, fmt.Errorf("the checkpoint at the end: %w", err)
	}
	if w.tree, err = h.start(); err != nil {
		return nil, nil, err
	}
	if h.Before != "" {
		before, err := ParseNote(h.Before)
		if err != nil || before.Size != h.First || before.Root != w.tree.Root() {
			return nil, nil, errors.New("the checkpoint before does not fit the tree before the first row")
		}
		if h.After != "" {
			w.late = before.Time.UnixMicro()
		}
	} else if h.First != 0 {
		return nil, nil, errors.New("the checkpoint before is missing")
	}
	if h.First > w.end.Size {
		return nil, nil, errors.New("the first row is after the end")
	}
	if err := h.setID(); err != nil {
		return nil, nil, err
	}
	w.h = h
	line, err := h.line()
	return w, line, err
}

// Header returns the header with its ID.
func (w *ExportWriter) Header() ExportHeader { return w.h }

// Skip continues behind the first n rows, to write a part of the file. Statement is an error
// after it.
func (w *ExportWriter) Skip(n int64) { w.rows = n }

// Size returns the number of rows that the export has.
func (w *ExportWriter) Size() int64 { return w.end.Size - w.h.First }

// start returns the tree before the first row.
func (h *ExportHeader) start() (*Range, error) {
	left := make([]tlog.Hash, len(h.Left))
	for i, b := range h.Left {
		if len(b) != len(left[i]) {
			return nil, errors.New("a hash of left has not 32 bytes")
		}
		left[i] = tlog.Hash(b)
	}
	return NewRange(h.First, left)
}

func (h *ExportHeader) line() ([]byte, error) {
	b, err := json.Marshal(h, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	return bytes.Join([][]byte{[]byte(`{"format":"` + ExportFormat + `","header":`), b, []byte(`,"rows":[` + "\n")}, nil), nil
}

// ParseNote parses the text of a signed checkpoint. It does not verify the signatures.
func ParseNote(note string) (Checkpoint, error) {
	text, _, ok := strings.Cut(note, "\n\n")
	if !ok {
		return Checkpoint{}, errCheckpoint
	}
	return ParseCheckpoint(text + "\n")
}

// AppendRow appends the line of the next row to b.
func (w *ExportWriter) AppendRow(b []byte, r *ExportRow) ([]byte, error) {
	index := w.h.First + w.rows
	switch {
	case index >= w.end.Size:
		return nil, errors.New("there are more rows than the checkpoint has leaves")
	case r.Seq != w.h.FirstSeq+index || r.Org != w.h.Org || r.Incarnation != w.h.Incarnation:
		return nil, fmt.Errorf("entry %d is missing", w.h.FirstSeq+index)
	case len(r.MAC) != 32:
		return nil, fmt.Errorf("the MAC of entry %d has not 32 bytes", r.Seq)
	case EntryHash(r.Bytes) != r.Entry:
		return nil, fmt.Errorf("the link of entry %d has another hash than its bytes", r.Seq)
	}
	w.tree.Append(r.Leaf())
	w.rows++
	var err error
	text := func(name, s string) {
		b = append(append(append(b, `,"`...), name...), `":`...)
		if err == nil {
			b, err = jsontext.AppendQuote(b, s)
		}
	}
	number := func(name string, n int64) {
		b = append(append(append(b, `,"`...), name...), `":`...)
		b = strconv.AppendInt(b, n, 10)
	}
	b = strconv.AppendInt(append(b, `{"seq":`...), r.Seq, 10)
	number("appended_at", r.AppendedAt.UnixMicro())
	number("time", r.Time.UnixMicro())
	text("kind", r.Kind)
	text("agent_id", r.AgentID)
	text("session_id", r.SessionID)
	text("request_id", r.RequestID)
	text("writer", r.Writer)
	number("writer_seq", r.WriterSeq)
	number("prev_writer_seq", r.PrevWriterSeq)
	text("entry_hash", hex.EncodeToString(r.Entry[:]))
	number("epoch", int64(r.Epoch))
	number("mac_version", int64(r.Version))
	text("mac", hex.EncodeToString(r.MAC))
	if w.h.selects(&r.Link, index) {
		w.entries++
		if r.Time.UnixMicro() < w.late {
			b = append(b, `,"late":true`...)
		}
		if utf8.Valid(r.Bytes) {
			text("entry", string(r.Bytes))
		} else {
			text("entry_base64", base64.StdEncoding.EncodeToString(r.Bytes))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("writing entry %d: %w", r.Seq, err)
	}
	b = append(b, '}')
	if index+1 < w.end.Size {
		b = append(b, ',')
	}
	return append(b, '\n'), nil
}

// ExportRowsEnd is the line after the rows.
const ExportRowsEnd = "],\n"

// Statement returns what is to be signed, given the SHA-256 of all lines before the last one. It
// is an error unless the rows lead to the checkpoint's root.
func (w *ExportWriter) Statement(sum [32]byte) ([]byte, error) {
	if w.tree.Size() != w.end.Size {
		return nil, fmt.Errorf("entry %d is missing", w.h.FirstSeq+w.tree.Size())
	}
	root := w.tree.Root()
	if root != w.end.Root {
		return nil, fmt.Errorf("entries %d to %d are not those of the checkpoint with %d leaves", w.h.FirstSeq+w.h.First, w.h.FirstSeq+w.end.Size-1, w.end.Size)
	}
	return json.Marshal(ExportStatement{
		Format: ExportFormat, ID: w.h.ID, Org: w.h.Org, Filter: w.h.Filter, First: w.h.First, End: w.end.Size, Root: root[:], Entries: w.entries,
		SHA256: hex.EncodeToString(sum[:]),
	})
}

// Rows and Entries return how many rows and selected entries were written.
func (w *ExportWriter) Rows() int64    { return w.rows }
func (w *ExportWriter) Entries() int64 { return w.entries }

// ExportLastLine returns the last line of an export.
func ExportLastLine(e Envelope) ([]byte, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	return bytes.Join([][]byte{[]byte(`"envelope":`), b, []byte("}\n")}, nil), nil
}

// appendMAC appends what a MAC of version 2 covers.
func appendMAC(b []byte, epoch int32, prev, link []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(epoch))
	b = binary.BigEndian.AppendUint64(b, uint64(len(prev)))
	return append(append(b, prev...), link...)
}

// micro is the time of microseconds since 1970.
func micro(n int64) time.Time { return time.UnixMicro(n).UTC() }
