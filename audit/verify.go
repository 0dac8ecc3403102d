package audit

import (
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// Report is the result of Verify for the entries from From to To. Two changes are not detected:
// cutting off the end together with the head, and changes by anyone with the HMAC key. Keep an
// earlier Report to check that the chain still has that Head at that To.
type Report struct {
	Org       string    `json:"org"`
	From      int64     `json:"from"` // first valid sequence number; 0: none
	To        int64     `json:"to"`
	Since     time.Time `json:"since"` // when those two were appended
	Till      time.Time `json:"till"`
	Entries   int64     `json:"entries"`
	Malformed int64     `json:"malformed"` // entries among them that could not be parsed on arrival
	Epoch     int32     `json:"epoch"`     // of the last one's key
	Head      string    `json:"head"`      // hex of the last one's MAC

	// Findings that do not make the chain invalid: the nodes sent the records like this.
	Gaps      int64    `json:"gaps"`       // record.gap: records that a sidecar reported as lost
	Forks     int64    `json:"forks"`      // writers with two versions in the chain
	Broken    int64    `json:"broken"`     // records that do not follow their writer's previous record
	Ahead     int64    `json:"ahead"`      // entries with a time more than clockSkew after their arrival
	BackDated int64    `json:"back_dated"` // entries more than clockSkew before an earlier entry of the same writer
	Reopened  int64    `json:"reopened"`   // chain.reopened: a restore lost entries, and the owner accepted it
	Trimmed   int64    `json:"trimmed"`    // entries up to this number left the database; 0: none did
	Archive   string   `json:"archive"`    // digest of the archive's file with the last one of them
	Findings  []string `json:"findings"`   // the first of these, at most maxFindings

	FirstBad *Bad `json:"first_bad"` // nil: the chain is valid
}

// Bad is the first error in a chain. Later entries were not checked.
type Bad struct {
	Seq     int64  `json:"seq"` // sequence number of the wrong or missing entry
	Problem string `json:"problem"`
}

func (b *Bad) Error() string { return fmt.Sprintf("audit entry %d: %s", b.Seq, b.Problem) }

// window is how many sequence numbers one query reads.
const window = 5000

// Verify reads the whole chain of org in order and checks:
//
//   - The sequence begins with 1 and has no gap and no number twice. If months were trimmed, it
//     begins behind them, and a later entry, chain.trimmed, has the MAC before its first entry.
//   - Each entry's MAC is valid, and includes the MAC before.
//   - Columns equal the fields of entries.
//   - The chain ends at its stored head.
//
// It calls progress repeatedly with the last valid sequence number; progress may be nil. Faults
// are in the Report. The error is for a check that could not be completed.
func Verify(ctx context.Context, db DB, org string, keys Keys, progress func(seq int64)) (Report, error) {
	v := verifier{report: Report{Org: org}, keys: keys, progress: progress}
	begun := false
	for {
		more := false
		err := db.InOrg(ctx, org, func(tx pgx.Tx) (err error) {
			if !begun {
				begin, err := trimmed(ctx, tx, org)
				if err != nil {
					return err
				}
				v.begin(begin)
			}
			more, err = v.step(ctx, tx)
			return err
		})
		begun = true
		var bad *Bad
		if errors.As(err, &bad) {
			err = nil
			begin, again := trimmedIn(ctx, db, org)
			if again != nil {
				return v.report, again
			}
			if begin.UpTo > v.trim.UpTo && begin.UpTo >= bad.Seq { // a month left meanwhile
				v, begun = verifier{report: Report{Org: org}, keys: keys, progress: progress}, false
				continue
			}
			v.report.FirstBad = bad
		}
		if err == nil && bad == nil && !more && v.trim.UpTo > 0 && !v.trimSeen {
			bad = &Bad{v.trim.UpTo, "entries up to this one are not here, and no entry chain.trimmed permits it"}
			v.report.FirstBad = bad
		}
		if err != nil {
			return v.report, fmt.Errorf("verifying after entry %d: %w", v.report.To, err)
		}
		if bad != nil || !more {
			return v.report, nil
		}
	}
}

type verifier struct {
	trim     Trim // where the chain begins
	trimSeen bool // an entry permits it

	report  Report
	keys    Keys
	seal    *sealer
	mac     []byte // MAC of the last valid entry
	version int16  // version of that MAC
	ahead   int64  // the chain goes on behind this number, in its next incarnation

	incarnation int64 // of the last valid entry
	writers     writers
	progress    func(int64)
}

// begin begins behind what left the database.
func (v *verifier) begin(t Trim) {
	r := &v.report
	v.trim, r.Trimmed, r.Archive = t, t.UpTo, t.Archive
	if t.UpTo > 0 {
		r.To, r.Till, r.Epoch = t.UpTo, t.AppendedAt, t.epoch
		v.mac, v.version, v.incarnation = t.mac, t.version, t.incarnation
	}
}

// step checks the next window. It updates v only for checked entries, so it may be run again.
// The error is a *Bad if an entry is wrong.
func (v *verifier) step(ctx context.Context, tx pgx.Tx) (more bool, err error) {
	// The head is read first. Head and entries are committed together, so every later
	// statement sees the entries that the head counts.
	var head struct {
		seq   int64
		epoch int32
		mac   []byte
	}
	err = tx.QueryRow(ctx, "SELECT seq, epoch, mac FROM audit_heads WHERE org_id = $1", v.report.Org).Scan(&head.seq, &head.epoch, &head.mac)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return false, err
	}
	r := &v.report
	above := r.To
	if above == 0 {
		above = math.MinInt64
	}
	rows, err := tx.Query(ctx, `
		SELECT seq, appended_at, time, kind, agent_id, request_id, writer, writer_seq, entry, epoch, prev_mac, mac,
			mac_version, incarnation, session_id, prev_writer_seq, shipped_by, lane
		FROM audit_entries WHERE org_id = $1 AND seq > $2 AND seq <= $3 ORDER BY seq, appended_at`, r.Org, above, max(r.To, v.ahead)+window)
	if err != nil {
		return false, err
	}
	defer rows.Close()
	count := 0
	var c checked
	for rows.Next() {
		if err := rows.Scan(&c.seq, &c.appendedAt, &c.time, &c.kind, &c.agent, &c.request, &c.writer, &c.writerSeq, &c.entry, &c.epoch, &c.prev, &c.mac,
			&c.version, &c.incarnation, &c.session, &c.prevWriter, &c.shippedBy, &c.lane); err != nil {
			return false, err
		}
		if err := v.check(&c); err != nil {
			return false, err
		}
		count++
	}
	if err := rows.Err(); err != nil {
		return false, err
	}
	if v.progress != nil {
		v.progress(r.To)
	}
	if count > 0 {
		return true, nil
	}

	// The checked entries are the last ones, or there is a gap.
	if head.seq > r.To && v.ahead < r.To {
		err := tx.QueryRow(ctx, "SELECT seq - 1 FROM audit_entries WHERE org_id = $1 AND seq > $2 ORDER BY seq LIMIT 1", r.Org, r.To).Scan(&v.ahead)
		if err == nil && v.ahead > r.To {
			return true, nil // check decides whether it begins an incarnation
		} else if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return false, err
		}
	}
	switch {
	case head.seq > r.To:
		return false, &Bad{r.To + 1, fmt.Sprintf("it is missing, and the head counts %d entries", head.seq)}
	case head.seq < r.To:
		return false, &Bad{head.seq + 1, fmt.Sprintf("the head counts only %d entries", head.seq)}
	case !hmac.Equal(head.mac, v.mac) || head.epoch != r.Epoch:
		return false, &Bad{r.To, "the head has another MAC than the last entry"}
	}
	var next *int64
	if err := tx.QueryRow(ctx, "SELECT min(seq) FROM audit_entries WHERE org_id = $1 AND seq > $2", r.Org, r.To).Scan(&next); err != nil {
		return false, err
	}
	if next != nil && *next > r.To+window {
		return false, &Bad{r.To + 1, fmt.Sprintf("it is missing, and %d is there", *next)}
	}
	return next != nil, nil // entries were appended meanwhile
}

// checked is a row to check.
type checked struct {
	seq, writerSeq               int64
	appendedAt, time             pgtype.Timestamptz
	kind, agent, request, writer string
	entry, prev, mac             []byte
	epoch                        int32
	version                      int16
	incarnation, prevWriter      int64
	session, shippedBy, lane     string
}

// check checks the next row and adds it to the report.
func (v *verifier) check(c *checked) error {
	r := &v.report
	want := r.To + 1
	bad := func(format string, args ...any) error { return &Bad{want, fmt.Sprintf(format, args...)} }
	if c.kind == evidence.KindReopened && c.seq > want && c.incarnation > max(1, v.incarnation) {
		want = c.seq // after a restore; its MAC covers the kind and the incarnation
	}
	switch {
	case c.seq < want:
		return &Bad{c.seq, "the number occurs twice, or is before the first"}
	case c.seq > want:
		return bad("it is missing, and %d is there", c.seq)
	case c.appendedAt.InfinityModifier != pgtype.Finite || c.time.InfinityModifier != pgtype.Finite:
		return bad("its time is invalid")
	case !bytes.Equal(c.prev, v.mac):
		return bad("it does not follow the entry before it")
	case c.version < 1 || c.version > macVersion || c.version < min(v.version, 2): // replicas of two versions write 2 and 3 in turn
		return bad("its MAC has version %d, and that of the entry before has %d", c.version, v.version)
	case c.version > 1 && v.version > 1 && !c.appendedAt.Time.After(r.Till):
		return bad("it was appended before the entry before it")
	case c.epoch < r.Epoch:
		return bad("its key is of epoch %d, and that of the entry before of %d", c.epoch, r.Epoch)
	}
	if v.seal == nil || c.epoch != r.Epoch {
		seal, ok := v.keys.sealer(r.Org, c.epoch)
		if !ok {
			return bad("its key is of epoch %d, which does not exist", c.epoch)
		}
		v.seal = seal
	}
	mac := v.seal.mac(link{
		epoch: c.epoch, org: r.Org, seq: c.seq, appendedAt: c.appendedAt.Time, writer: c.writer, writerSeq: c.writerSeq, kind: c.kind, prev: c.prev, entry: c.entry,
		version: c.version, incarnation: c.incarnation, time: c.time.Time, agent: c.agent, session: c.session, request: c.request, prevWriter: c.prevWriter,
	})
	if !hmac.Equal(mac[:], c.mac) {
		return bad("its MAC is wrong")
	}

	// The entry is the one that was appended. Its columns must be equal to its fields.
	appendedAt := c.appendedAt.Time.UTC()
	cols := columns{kind: KindMalformed, time: appendedAt}
	if c.kind == KindMalformed {
		r.Malformed++ // when it was appended; a newer build may be able to parse it
	} else {
		var e Entry
		if cols, e = describe(r.Org, c.writer, c.entry, appendedAt, c.version); e == nil {
			return bad("it cannot be parsed")
		}
	}
	for _, col := range []struct {
		name string
		same bool
	}{
		{"kind", cols.kind == c.kind}, {"time", cols.time.Equal(c.time.Time)}, {"agent_id", cols.agent == c.agent}, {"request_id", cols.request == c.request},
		{"session_id", c.version == 1 || cols.session == c.session},
	} {
		if !col.same {
			return bad("the column %s differs from the entry", col.name)
		}
	}
	if r.From == 0 {
		r.From, r.Since = c.seq, appendedAt
	}
	r.To, r.Till, r.Epoch, r.Head = c.seq, appendedAt, c.epoch, hex.EncodeToString(c.mac)
	r.Entries++
	if c.kind == evidence.KindReopened {
		r.Reopened++
		if e, err := Parse(c.entry); err == nil && len(r.Findings) < maxFindings {
			if e, ok := e.(Reopened); ok {
				r.Findings = append(r.Findings, fmt.Sprintf("entry %d: the chain was reopened after a restore; entries %d to %d are lost", c.seq, e.LostFrom, e.LostTo))
			}
		}
	}
	v.mac, v.version, v.incarnation = bytes.Clone(c.mac), c.version, c.incarnation
	if c.kind == KindTrimmed && !v.trimSeen {
		if e, err := Parse(c.entry); err == nil {
			if e, ok := e.(Trimmed); ok {
				v.trimSeen = e.UpTo == v.trim.UpTo && e.MAC == hex.EncodeToString(v.trim.mac) && e.Archive == v.trim.Archive
			}
		}
	}
	v.writers.see(r, c)
	return nil
}

// clockSkew is how far clocks may differ before Verify reports a time. A sidecar
// that was offline ships old entries, so an old time alone is not reported.
const clockSkew = 5 * time.Minute

// maxFindings limits Report.Findings.
const maxFindings = 100

// writers has the state of each lane of each writer.
type writers map[[2]string]*writerState

type writerState struct {
	last   int64
	latest time.Time
}

// see updates the state of a valid entry's writer, and adds findings.
func (w *writers) see(r *Report, c *checked) {
	if c.version == 1 {
		return
	}
	if *w == nil {
		*w = make(writers)
	}
	note := func(n *int64, format string, args ...any) {
		*n++
		if len(r.Findings) < maxFindings {
			r.Findings = append(r.Findings, fmt.Sprintf("entry %d: ", c.seq)+fmt.Sprintf(format, args...))
		}
	}
	k := [2]string{c.writer, c.lane}
	s := (*w)[k]
	switch {
	case s == nil && c.lane != "":
		note(&r.Forks, "a fork of writer %s begins after its record %d; writer %s shipped it", c.writer, c.prevWriter, c.shippedBy)
	case s == nil && c.prevWriter != 0 && c.writer != controlWriter && r.Trimmed == 0, s != nil && s.last != c.prevWriter:
		note(&r.Broken, "record %d of writer %s follows %d, which is not its previous record in the chain", c.writerSeq, c.writer, c.prevWriter)
	}
	if c.kind == KindGap {
		note(&r.Gaps, "records of writer %s after %d, up to %d, are lost", c.writer, c.prevWriter, c.writerSeq)
	}
	if s == nil {
		s = &writerState{}
		(*w)[k] = s
	}
	s.last = c.writerSeq
	if c.kind == KindMalformed {
		return
	}
	if t := c.time.Time; t.After(c.appendedAt.Time.Add(clockSkew)) {
		note(&r.Ahead, "writer %s set the time %s, and the entry arrived at %s", c.writer, t.UTC().Format(time.RFC3339), c.appendedAt.Time.UTC().Format(time.RFC3339))
	} else if t.Add(clockSkew).Before(s.latest) && c.kind != KindGap {
		note(&r.BackDated, "writer %s set the time %s, after an entry with the time %s", c.writer, t.UTC().Format(time.RFC3339), s.latest.UTC().Format(time.RFC3339))
	} else if t.After(s.latest) {
		s.latest = t
	}
}
