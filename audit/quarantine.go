package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// quarantineName is the folder of records that the control plane rejects for their form. It is
// beside the segments. Each record has its own segment folder in it, which `aid segments`
// reads and ships like any other.
const quarantineName = "quarantine"

// maxQuarantined limits these records. Beyond it the org's lane stays stuck, since a control
// plane that rejects everything must not empty the segments.
const maxQuarantined = 1000

// quarantine durably stores a record that the control plane rejects. Then it records a gap in
// its place, so that later records can follow. If the gap is also rejected, the lane stays
// stuck, with an error.
func (sh *shipping) quarantine(ctx context.Context, writer string, r Record, fork bool, why error) error {
	w := sh.w
	e, err := Parse(r.Entry)
	if err == nil && e.Head().Kind == KindGap {
		return why
	}
	path, err := w.setApart(writer, r)
	if err != nil {
		return fmt.Errorf("%w; it cannot be stored in quarantine: %w", why, err)
	}
	gap := Gap{Org: r.Org, Writer: writer, After: r.Prev, Last: r.Seq, Reason: GapRejected}
	if e != nil {
		gap.Time = e.Head().Time // so that a resend has equal bytes
	}
	err = sh.send(ctx, sendDeadline, Batch{Org: r.Org, Writer: writer, Shipper: w.ID(), Fork: fork,
		Records: []Record{{Seq: r.Seq, Prev: r.Prev, Org: r.Org, Entry: gap.Encode()}}})
	if err != nil {
		return err
	}
	w.metrics.gaps.Inc()
	w.c.Log.ErrorContext(ctx, "the control plane rejects an audit record: it is kept in quarantine, and a gap is recorded",
		"org", r.Org, "writer", writer, "number", r.Seq, "folder", path, "err", why)
	return nil
}

// setApart makes a record durable in its own segment folder.
func (w *Writer) setApart(writer string, r Record) (path string, err error) {
	w.apartMu.Lock()
	defer w.apartMu.Unlock()
	name := fmt.Sprintf("%s-%d", writer, r.Seq)
	path = filepath.Join(w.c.Dir, quarantineName, name)
	d := disk{path, w.c.fault}
	if _, err := os.Stat(d.path(segmentName(r.Seq))); err == nil {
		return path, nil // it was rejected before
	}
	if n, err := w.quarantined(); err != nil {
		return "", err
	} else if n >= maxQuarantined {
		return "", fmt.Errorf("%s holds %d records already: ship them with `aid segments ship`, or move them away", filepath.Dir(path), n)
	}
	if err := makeDir(path); err != nil {
		return "", err
	}
	b := appendHead(nil, head{writer: writer, first: r.Seq, durable: r.Seq - 1, prevs: map[string]uint64{r.Org: r.Prev}})
	b = appendFrame(b, frame{kind: kindRecord, seq: r.Seq, mark: r.Seq, name: r.Org, body: r.Entry})
	f, err := d.place(segmentName(r.Seq), func(f *os.File) error { return d.write(f, b) })
	if err != nil {
		return "", err
	}
	return path, f.Close()
}

// quarantined counts the records in quarantine.
func (w *Writer) quarantined() (int, error) {
	dirs, err := os.ReadDir(filepath.Join(w.c.Dir, quarantineName))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	return len(dirs), err
}
