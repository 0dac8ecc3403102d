package audit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// monthLayout is how months are written.
const monthLayout = "2006-01"

// A Month is a partition of the audit log: the entries that were appended in one month of UTC.
type Month struct {
	Start    time.Time
	Detached bool // no reader sees its entries; the table waits to be dropped
}

func (m Month) String() string { return m.Start.Format(monthLayout) }

// End is the beginning of the next month.
func (m Month) End() time.Time { return m.Start.AddDate(0, 1, 0) }

func (m Month) table() string { return "audit_entries_" + m.Start.Format("2006_01") }

// Months returns the partitions of the audit log, the oldest first. The one for other times is
// not among them.
func Months(ctx context.Context, db Querier) ([]Month, error) {
	rows, err := db.Query(ctx, `SELECT relname, relispartition, coalesce(pg_get_expr(relpartbound, oid), '') FROM pg_class
		WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname ~ '^audit_entries_[0-9]{4}_[0-9]{2}$' ORDER BY relname`)
	if err != nil {
		return nil, fmt.Errorf("reading the months of the audit log: %w", err)
	}
	months, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (m Month, err error) {
		var name, bound string
		var attached bool
		if err := row.Scan(&name, &attached, &bound); err != nil {
			return m, err
		}
		if m.Start, err = time.Parse("audit_entries_2006_01", name); err != nil {
			return m, fmt.Errorf("the table %s is of no month", name)
		}
		const layout = "2006-01-02 15:04:05+00"
		if want := fmt.Sprintf("FOR VALUES FROM ('%s') TO ('%s')", m.Start.Format(layout), m.End().Format(layout)); attached && bound != want {
			return m, fmt.Errorf("the table %s has other entries than those of its month: %s", name, bound)
		}
		m.Detached = !attached
		return m, nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the months of the audit log: %w", err)
	}
	return months, nil
}

// SetRetention sets how many months the audit log is kept. It needs the owner's role.
func SetRetention(ctx context.Context, db Execer, months int, actor Actor) error {
	if _, err := db.Exec(ctx, "INSERT INTO audit_retention (months, actor) VALUES ($1, $2)", months, actor.ID); err != nil {
		return fmt.Errorf("storing the retention: %w", err)
	}
	return nil
}

// MaxRetention is the largest number of months.
const MaxRetention = 1200

// RetentionOf returns how many months the audit log is kept. 0: for ever.
func RetentionOf(ctx context.Context, db RowQuerier) (months int, err error) {
	err = db.QueryRow(ctx, "SELECT months FROM audit_retention ORDER BY set_at DESC LIMIT 1").Scan(&months)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	} else if err != nil {
		return 0, fmt.Errorf("reading the retention: %w", err)
	}
	return months, nil
}

// Due returns the months that are older than the retention, the oldest first.
func Due(ctx context.Context, db Pool, now time.Time) (due []Month, err error) {
	retention, err := RetentionOf(ctx, db)
	if err != nil {
		return nil, err
	}
	all, err := Months(ctx, db)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if m.Detached || retention > 0 && !m.End().AddDate(0, retention, 0).After(now) {
			due = append(due, m)
		}
	}
	return due, nil
}

// RetentionConfig configures a Retention.
type RetentionConfig struct {
	DB    DB   // for exports
	Pool  Pool // of the owner's role
	Chain *Chain
	Now   func() time.Time // nil: time.Now
	Log   *slog.Logger     // nil: nothing is logged
}

// A Retention archives months of the audit log, and removes them. It needs the owner's role.
type Retention struct {
	c     RetentionConfig
	fault func(step string) error // in tests: a process that dies
}

// NewRetention checks c.
func NewRetention(c RetentionConfig) (*Retention, error) {
	if c.DB == nil || c.Pool == nil || c.Chain == nil {
		return nil, errors.New("retention needs a database and a chain")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Retention{c: c, fault: func(string) error { return nil }}, nil
}

// orgs returns all orgs with a chain.
func (r *Retention) orgs(ctx context.Context) ([]string, error) {
	rows, err := r.c.Pool.Query(ctx, "SELECT org_id FROM aid_directory() WHERE head > 0 ORDER BY org_id")
	if err != nil {
		return nil, fmt.Errorf("reading the organizations: %w", err)
	}
	orgs, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("reading the organizations: %w", err)
	}
	return orgs, nil
}

// long runs fn in a transaction whose statements may take long.
func (r *Retention) long(ctx context.Context, org string, fn func(pgx.Tx) error) error {
	tx, err := r.c.Pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() {
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = tx.Rollback(back) // after a commit it does nothing
	}()
	if _, err := tx.Exec(ctx, "SELECT set_config('aid.org', $1, true), set_config('statement_timeout', '0', true)", org); err != nil {
		return err
	}
	if err := fn(tx); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

// An OrgMonth is what an org has in a month, and whether it may leave.
type OrgMonth struct {
	Org      string
	From, To int64 // numbers of its entries
	Entries  int64
	Why      string // it may not leave: why; "": it may

	recorded bool
	files    []Archived // that have its entries
	size     int64      // of the last incarnation's tree with its last entry
	trees    int64      // the last incarnation
}

// A MonthPlan is what a month has, and whether it may leave.
type MonthPlan struct {
	Month
	Orgs []OrgMonth
}

// Blocked returns how many orgs keep the month.
func (p MonthPlan) Blocked() (n int) {
	for _, o := range p.Orgs {
		if o.Why != "" {
			n++
		}
	}
	return n
}

// TrimOptions are what a trim may do.
type TrimOptions struct {
	Archive       []string // folders with the archive's files, which are compared
	LeaveSessions bool     // sessions may lose entries before they are attested
	Reason        string
	Actor         Actor
	Progress      func(format string, args ...any)
}

// Plan says which months are older than the retention, and which of them may leave.
func (r *Retention) Plan(ctx context.Context, o TrimOptions) ([]MonthPlan, error) {
	due, err := Due(ctx, r.c.Pool, r.c.Now())
	if err != nil {
		return nil, err
	}
	orgs, err := r.orgs(ctx)
	if err != nil {
		return nil, err
	}
	var plans []MonthPlan
	checked := make(map[string]error)
	for _, m := range due {
		p := MonthPlan{Month: m}
		if !m.Detached {
			if p.Orgs, err = r.planMonth(ctx, m, due[0].Start, orgs, o, checked); err != nil {
				return nil, fmt.Errorf("%s: %w", m, err)
			}
		}
		plans = append(plans, p)
	}
	return plans, nil
}

func (r *Retention) planMonth(ctx context.Context, m Month, from time.Time, orgs []string, o TrimOptions, checked map[string]error) (all []OrgMonth, err error) {
	for _, org := range orgs {
		var got OrgMonth
		err := r.long(ctx, org, func(tx pgx.Tx) (err error) {
			got, err = planOrg(ctx, tx, org, m, from, o.LeaveSessions)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", org, err)
		}
		if got.Entries == 0 {
			continue
		}
		for _, f := range got.files {
			if got.Why != "" {
				break
			}
			name := archiveName(org, f)
			if _, done := checked[name]; !done {
				checked[name] = inArchive(o.Archive, name, f.SHA256)
			}
			if err := checked[name]; err != nil {
				got.Why = err.Error()
			}
		}
		all = append(all, got)
	}
	return all, nil
}

// planOrg says what an org has in a month, and why it may not leave. Months from from on leave
// before it.
func planOrg(ctx context.Context, tx pgx.Tx, org string, m Month, from time.Time, leaveSessions bool) (o OrgMonth, err error) {
	o.Org = org
	type part struct{ incarnation, entries, from, to int64 }
	rows, err := tx.Query(ctx, "SELECT incarnation, count(*), min(seq), max(seq) FROM "+m.table()+" WHERE org_id = $1 GROUP BY incarnation ORDER BY incarnation", org)
	if err != nil {
		return o, err
	}
	parts, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p part, err error) {
		return p, row.Scan(&p.incarnation, &p.entries, &p.from, &p.to)
	})
	if err != nil || len(parts) == 0 {
		return o, err
	}
	o.From, o.To = parts[0].from, parts[len(parts)-1].to
	for _, p := range parts {
		o.Entries += p.entries
		if p.entries != p.to-p.from+1 {
			o.Why = fmt.Sprintf("entries from %d to %d are missing: run aid audit verify", p.from, p.to)
			return o, nil
		}
	}
	var hold string
	var outside, followed int64
	var session *string
	if err := tx.QueryRow(ctx, `SELECT coalesce((SELECT id FROM audit_holds WHERE org_id = $1 AND released_at IS NULL ORDER BY placed_at LIMIT 1), ''),
			coalesce((SELECT seq FROM audit_entries WHERE org_id = $1 AND seq <= $2 AND (appended_at < $3 OR appended_at >= $4) ORDER BY seq LIMIT 1), 0),
			coalesce((SELECT seq FROM audit_session_heads WHERE org_id = $1), 0),
			(SELECT session_id FROM audit_sessions WHERE org_id = $1 AND opened_seq <= $2 AND (closed_at IS NULL OR stale) ORDER BY opened_seq LIMIT 1),
			EXISTS (SELECT FROM audit_trims WHERE org_id = $1 AND up_to >= $2)`, org, o.To, from, m.End()).
		Scan(&hold, &outside, &followed, &session, &o.recorded); err != nil {
		return o, err
	}
	switch {
	case hold != "":
		o.Why = "the hold " + hold + " keeps it"
		return o, nil
	case outside != 0:
		o.Why = fmt.Sprintf("entry %d, which is before its last one, is in another partition and would stay", outside)
		return o, nil
	case followed < o.To:
		o.Why = fmt.Sprintf("sessions are known up to entry %d only: a control plane must run", followed)
		return o, nil
	case session != nil && !leaveSessions:
		o.Why = fmt.Sprintf("the session %q is open, or its attestation lacks entries", *session)
		return o, nil
	}
	files, err := archives(ctx, tx, org)
	if err != nil {
		return o, err
	}
	for _, p := range parts {
		var first int64
		err := tx.QueryRow(ctx, "SELECT first_seq FROM audit_trees WHERE org_id = $1 AND incarnation = $2", org, p.incarnation).Scan(&first)
		if errors.Is(err, pgx.ErrNoRows) {
			o.Why = fmt.Sprintf("no signed checkpoint has entry %d", p.to)
			return o, nil
		} else if err != nil {
			return o, err
		}
		need := p.to - first + 1
		switch _, err := CheckpointAt(ctx, tx, org, p.incarnation, need); {
		case errors.Is(err, ErrNoCheckpoint):
			o.Why = fmt.Sprintf("no signed checkpoint has entry %d", p.to)
			return o, nil
		case err != nil:
			return o, err
		}
		covered := int64(0)
		for _, f := range files {
			if f.Incarnation != p.incarnation {
				continue
			}
			if f.First != covered {
				break
			}
			if covered = f.Size; f.LastSeq >= p.from && f.FirstSeq <= p.to {
				o.files = append(o.files, f)
			}
		}
		if covered < need {
			o.Why = fmt.Sprintf("entry %d is not archived", p.to)
			return o, nil
		}
		o.trees, o.size = p.incarnation, need
	}
	return o, nil
}

// archiveName is the name of an archive's file in a folder.
func archiveName(org string, a Archived) string {
	return filepath.Join(org, fmt.Sprintf("%d-%d-%d.json", a.Incarnation, a.First, a.Size))
}

// inArchive requires that a folder has the file with this digest.
func inArchive(folders []string, name, sum string) error {
	if len(folders) == 0 {
		return errors.New("no folder of the archive was given")
	}
	for _, folder := range folders {
		f, err := os.Open(filepath.Join(folder, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		f.Close()
		switch {
		case err != nil:
			return err
		case hex.EncodeToString(h.Sum(nil)) != sum:
			return fmt.Errorf("the archive's file %s was changed: it has not the digest %s", filepath.Join(folder, name), sum)
		}
		return nil
	}
	return fmt.Errorf("the archive has no file %s", name)
}

// ErrKept means that a month may not leave.
var ErrKept = errors.New("the month may not leave")

// Trim removes the months that are older than the retention, the oldest first. It ends at the
// first month that may not leave, with an ErrKept. It may be run again after every error.
func (r *Retention) Trim(ctx context.Context, o TrimOptions) (gone []Month, err error) {
	if o.Reason == "" || len(o.Reason) > maxReason {
		return nil, fmt.Errorf("a trim needs a reason with 1 to %d bytes", maxReason)
	}
	if o.Progress == nil {
		o.Progress = func(string, ...any) {}
	}
	due, err := Due(ctx, r.c.Pool, r.c.Now())
	if err != nil {
		return nil, err
	}
	checked := make(map[string]error)
	for _, m := range due {
		orgs, err := r.orgs(ctx)
		if err == nil && !m.Detached {
			err = r.leave(ctx, m, orgs, o, checked)
		}
		if err == nil {
			err = r.drop(ctx, m, o)
		}
		if err != nil {
			return gone, fmt.Errorf("%s: %w", m, err)
		}
		gone = append(gone, m)
	}
	return gone, nil
}

// leave records in each org's chain that the month leaves, and detaches its table.
func (r *Retention) leave(ctx context.Context, m Month, orgs []string, o TrimOptions, checked map[string]error) error {
	o.Progress("%s: checking %d organizations", m, len(orgs))
	plan, err := r.planMonth(ctx, m, m.Start, orgs, o, checked)
	if err != nil {
		return err
	}
	for _, got := range plan {
		if got.Why != "" {
			return fmt.Errorf("%w: %s: %s", ErrKept, got.Org, got.Why)
		}
	}
	for i, got := range plan {
		if err := r.fault("checked " + got.Org); err != nil {
			return err
		}
		if err := r.record(ctx, m, got, o); err != nil {
			return fmt.Errorf("%s: recording that entries leave: %w", got.Org, err)
		}
		if err := r.fault("recorded " + got.Org); err != nil {
			return err
		}
		if (i+1)%500 == 0 {
			o.Progress("%s: recorded for %d of %d organizations", m, i+1, len(plan))
		}
	}
	if err := r.detach(ctx, m, orgs, o); err != nil {
		return err
	}
	return r.fault("detached")
}

// record appends the entry chain.trimmed to the org's chain, and stores the trim with it.
func (r *Retention) record(ctx context.Context, m Month, got OrgMonth, o TrimOptions) error {
	if got.recorded {
		return nil
	}
	c := r.c.Chain
	return c.c.DB.InOrg(ctx, got.Org, func(tx pgx.Tx) error {
		if err := lockChain(ctx, tx, got.Org); err != nil {
			return err
		}
		t := Trim{UpTo: got.To}
		if err := tx.QueryRow(ctx, "SELECT mac, mac_version, epoch, appended_at, incarnation FROM "+m.table()+" WHERE org_id = $1 AND seq = $2", got.Org, got.To).
			Scan(&t.mac, &t.version, &t.epoch, &t.AppendedAt, &t.incarnation); err != nil {
			return err
		}
		cp, err := CheckpointAt(ctx, tx, got.Org, got.trees, got.size)
		if err != nil {
			return err
		}
		last := got.files[len(got.files)-1]
		sum, err := hex.DecodeString(last.SHA256)
		if err != nil {
			return err
		}
		// A sidecar that was idle sends its last record again. It is compared by this hash.
		if _, err := tx.Exec(ctx, `UPDATE audit_writers w SET leaf = sha256('\x00'::bytea || e.entry) FROM `+m.table()+` e
			WHERE w.org_id = $1 AND e.org_id = $1 AND e.writer = w.writer AND e.writer_seq = w.writer_seq AND e.lane = w.lane`, got.Org); err != nil {
			return err
		}
		done, err := c.own(ctx, tx, got.Org, []Entry{Trimmed{
			Actor: o.Actor, Reason: o.Reason, Month: m.String(), From: got.From, UpTo: got.To, Entries: got.Entries, MAC: hex.EncodeToString(t.mac),
			Checkpoint: string(cp.Note), Archive: "sha256:" + last.SHA256,
		}})
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO audit_trims (org_id, up_to, from_seq, entries, month, incarnation, mac, mac_version, epoch, appended_at, size, checkpoint, archive,
			entry_seq, actor, reason) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`,
			got.Org, got.To, got.From, got.Entries, m.Start, t.incarnation, t.mac, t.version, t.epoch, t.AppendedAt, cp.Size, cp.Note, sum, done.seq, o.Actor.ID, o.Reason)
		if err != nil {
			return err
		}
		return r.fault("recording " + got.Org)
	})
}

const (
	detachWait  = time.Second // for the locks; new statements on the audit log wait as long
	detachPause = 500 * time.Millisecond
	detachTries = 120
)

// detach takes the month's table out of the audit log. All orgs are checked once more under locks
// that keep holds from being placed and entries from being added to the month.
func (r *Retention) detach(ctx context.Context, m Month, orgs []string, o TrimOptions) error {
	return r.long(ctx, "", func(tx pgx.Tx) error {
		if err := lockRetention(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "LOCK TABLE "+m.table()+" IN SHARE MODE"); err != nil {
			return fmt.Errorf("locking the month: %w", err)
		}
		if err := recheck(ctx, tx, m, orgs); err != nil {
			return err
		}
		for try := 1; ; try++ {
			err := r.detachOnce(ctx, tx, m)
			var pg *pgconn.PgError
			if err == nil || try == detachTries || !errors.As(err, &pg) || pg.Code != "55P03" && pg.Code != "40P01" {
				if err != nil {
					return fmt.Errorf("detaching the month: %w", err)
				}
				return r.fault("detaching")
			}
			if try%10 == 0 {
				o.Progress("%s: the audit log is busy; try %d of %d to detach the month", m, try, detachTries)
			}
			if rest(ctx, detachPause); ctx.Err() != nil {
				return ctx.Err()
			}
		}
	})
}

// detachOnce waits for a short time, since all others wait behind it.
func (r *Retention) detachOnce(ctx context.Context, tx pgx.Tx, m Month) error {
	part, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	_, err = part.Exec(ctx, fmt.Sprintf("SET LOCAL lock_timeout = %d; ALTER TABLE audit_entries DETACH PARTITION %s", detachWait.Milliseconds(), m.table()))
	if err != nil {
		return errors.Join(err, part.Rollback(ctx))
	}
	return part.Commit(ctx)
}

// recheck requires, of each org, that the trim covers what the month has, and that no hold was
// placed since.
func recheck(ctx context.Context, tx pgx.Tx, m Month, orgs []string) error {
	for some := range slices.Chunk(orgs, 500) {
		var b pgx.Batch
		for _, org := range some {
			b.Queue("SELECT set_config('aid.org', $1, true)", org)
			b.Queue(`SELECT coalesce((SELECT max(seq) FROM `+m.table()+` WHERE org_id = $1), 0), coalesce((SELECT max(up_to) FROM audit_trims WHERE org_id = $1), 0),
				EXISTS (SELECT FROM audit_holds WHERE org_id = $1 AND released_at IS NULL)`, org).QueryRow(func(row pgx.Row) error {
				var last, upTo int64
				var held bool
				switch err := row.Scan(&last, &upTo, &held); {
				case err != nil:
					return err
				case last > 0 && held:
					return fmt.Errorf("%w: %s: a hold was placed meanwhile", ErrKept, org)
				case last > upTo:
					return fmt.Errorf("%w: %s: entry %d was added meanwhile", ErrKept, org, last)
				}
				return nil
			})
		}
		if err := tx.SendBatch(ctx, &b).Close(); err != nil {
			return err
		}
	}
	return nil
}

// drop drops the table of a month that was detached. It counts the table's rows without regard
// to organizations first: a row that no trim covers keeps the table.
func (r *Retention) drop(ctx context.Context, m Month, o TrimOptions) error {
	o.Progress("%s: counting the entries of the detached table", m)
	type rows struct {
		org                string
		count, first, last int64
	}
	var all []rows
	err := r.long(ctx, "", func(tx pgx.Tx) error {
		// The owner sees all rows then. Only the owner may read a partition by its name.
		_, err := tx.Exec(ctx, "ALTER TABLE "+m.table()+" NO FORCE ROW LEVEL SECURITY")
		if err != nil {
			return err
		}
		found, err := tx.Query(ctx, "SELECT org_id, count(*), min(seq), max(seq) FROM "+m.table()+" GROUP BY org_id")
		if err != nil {
			return err
		}
		all, err = pgx.CollectRows(found, func(row pgx.CollectableRow) (x rows, err error) {
			return x, row.Scan(&x.org, &x.count, &x.first, &x.last)
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("counting the entries of the detached table: %w", err)
	}
	if err := r.fault("counted"); err != nil {
		return err
	}
	err = r.long(ctx, "", func(tx pgx.Tx) error {
		if err := lockRetention(ctx, tx); err != nil {
			return err
		}
		for _, x := range all {
			var count, first, last int64
			var held bool
			if _, err := tx.Exec(ctx, "SELECT set_config('aid.org', $1, true)", x.org); err != nil {
				return err
			}
			err := tx.QueryRow(ctx, `SELECT entries, from_seq, up_to, EXISTS (SELECT FROM audit_holds WHERE org_id = $1 AND released_at IS NULL)
				FROM audit_trims WHERE org_id = $1 AND month = $2 ORDER BY up_to DESC LIMIT 1`, x.org, m.Start).Scan(&count, &first, &last, &held)
			switch {
			case errors.Is(err, pgx.ErrNoRows) || err == nil && (count != x.count || first != x.first || last != x.last):
				return fmt.Errorf("%w: the detached table %s has %d entries of %s, from %d to %d, that no trim covers: attach it again, and find out why",
					ErrKept, m.table(), x.count, x.org, x.first, x.last)
			case err != nil:
				return err
			case held:
				return fmt.Errorf("%w: %s: a hold was placed when the table %s was detached: attach it again", ErrKept, x.org, m.table())
			}
		}
		if _, err := tx.Exec(ctx, "DROP TABLE "+m.table()); err != nil {
			return err
		}
		return r.fault("dropping")
	})
	if err != nil {
		return fmt.Errorf("dropping the table: %w", err)
	}
	o.Progress("%s: gone", m)
	return r.fault("dropped")
}

// ---- archive ----

// ArchiveOptions are what is archived, and where.
type ArchiveOptions struct {
	Folder   string
	Through  time.Time // entries that were appended before; zero: those of months older than the retention
	Signer   evidence.Signer
	Keys     evidence.KeySet // public keys that verify the files, if the database has none
	Actor    Actor
	Progress func(format string, args ...any)
}

// Archive writes exports of all orgs to a folder. Each is verified as a file before it counts.
// The first problem of an org does not stop the others.
func (r *Retention) Archive(ctx context.Context, o ArchiveOptions) (files int, err error) {
	if o.Progress == nil {
		o.Progress = func(string, ...any) {}
	}
	through := o.Through
	if through.IsZero() {
		due, err := Due(ctx, r.c.Pool, r.c.Now())
		if err != nil {
			return 0, err
		}
		if len(due) == 0 {
			return 0, nil // nothing is old enough
		}
		through = due[len(due)-1].End()
	}
	// An export keeps its first signature for ever, so the signature of another key would spoil it.
	documents, err := (&DocumentSigner{db: r.c.Pool, signers: []evidence.Signer{o.Signer}}).Now(ctx)
	if err != nil {
		return 0, err
	}
	o.Signer = documents
	orgs, err := r.orgs(ctx)
	if err != nil {
		return 0, err
	}
	var failed error
	for _, org := range orgs {
		n, err := r.archiveOrg(ctx, org, through, o)
		files += n
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", org, err))
		}
	}
	return files, failed
}

// archiveOrg archives an org's entries up to a time.
func (r *Retention) archiveOrg(ctx context.Context, org string, through time.Time, o ArchiveOptions) (files int, err error) {
	type need struct {
		incarnation, size int64
		after             Archived
	}
	var needs []need
	err = r.long(ctx, org, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT t.incarnation, (SELECT seq FROM audit_entries WHERE org_id = $1 AND appended_at < $2 AND seq >= t.first_seq AND
				seq < coalesce((SELECT min(first_seq) FROM audit_trees n WHERE n.org_id = $1 AND n.incarnation > t.incarnation), 9223372036854775807)
				ORDER BY seq DESC LIMIT 1) - t.first_seq + 1
			FROM audit_trees t WHERE t.org_id = $1 ORDER BY t.incarnation`, org, through)
		if err != nil {
			return err
		}
		var n need
		var size *int64
		if _, err := pgx.ForEachRow(rows, []any{&n.incarnation, &size}, func() error {
			if size != nil {
				needs = append(needs, need{incarnation: n.incarnation, size: *size})
			}
			return nil
		}); err != nil {
			return err
		}
		stored, err := archives(ctx, tx, org)
		for i := range needs {
			for _, a := range stored {
				if a.Incarnation == needs[i].incarnation {
					needs[i].after = a
				}
			}
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	for _, n := range needs {
		if n.after.Size >= n.size {
			continue
		}
		if err := r.archiveFile(ctx, org, n.incarnation, n.size, n.after, o); err != nil {
			return files, err
		}
		files++
	}
	return files, nil
}

// archiveFile makes the next file of an org.
func (r *Retention) archiveFile(ctx context.Context, org string, incarnation, size int64, after Archived, o ArchiveOptions) error {
	var e Export
	err := r.c.DB.InOrg(ctx, org, func(tx pgx.Tx) (err error) {
		e, err = OrderExport(ctx, tx, org, ExportOrder{archive: &archiveOrder{incarnation, size, after}}, r.c.Now())
		return err
	})
	if errors.Is(err, ErrNoCheckpoint) {
		return fmt.Errorf("no signed checkpoint of incarnation %d has %d entries: a control plane must run with signing keys", incarnation, size)
	} else if err != nil {
		return err
	}
	if !e.Complete {
		if _, err := MakeExport(ctx, r.c.DB, org, e.ID, o.Signer, r.c.Now); err != nil {
			return err
		}
		if err := r.c.DB.InOrg(ctx, org, func(tx pgx.Tx) (err error) {
			e, err = GetExport(ctx, tx, org, e.ID)
			return err
		}); err != nil {
			return err
		}
		if !e.Complete {
			return errors.New("another process makes the export: try again in a minute")
		}
	}
	a := Archived{Incarnation: incarnation, First: e.First, Size: e.End.Size}
	name := filepath.Join(o.Folder, archiveName(org, a))
	keys := o.Keys
	err = r.c.DB.InOrg(ctx, org, func(tx pgx.Tx) error {
		installation, _, _ := strings.Cut(e.End.Origin, "/org/")
		own, err := OrgKeys(ctx, tx, installation, org)
		if err == nil && len(own.Keys) > 0 {
			keys = own // with the key changes of the org
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := r.writeArchive(ctx, name, &e, keys); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := r.fault("archived " + org); err != nil {
		return err
	}
	sum, err := hex.DecodeString(e.SHA256)
	if err != nil {
		return err
	}
	err = r.c.DB.InOrg(ctx, org, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO audit_archives (org_id, incarnation, first, size, export_id, note, sha256, bytes, actor) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
			org, incarnation, a.First, a.Size, e.ID, []byte(e.ExportHeader.End), sum, e.Size, o.Actor.ID)
		return err
	})
	if err != nil {
		return fmt.Errorf("recording the archive's file: %w", err)
	}
	o.Progress("%s: entries %d to %d are in %s, sha256 %s", org, e.FirstEntry, e.LastEntry, name, e.SHA256)
	return nil
}

// writeArchive writes an export to a file, and verifies what the disk has. The file has its name
// only after that.
func (r *Retention) writeArchive(ctx context.Context, name string, e *Export, keys evidence.KeySet) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(name+".new", os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(name + ".new")
	defer f.Close()
	if err := e.Write(ctx, r.c.DB, f, 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	sum := sha256.New()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	switch v := evidence.VerifyChain(io.TeeReader(f, sum), evidence.ChainOptions{Keys: keys}); {
	case v.Exit != evidence.Intact && !v.OnlyLost:
		return fmt.Errorf("the file is %s: %s %s", v.Verdict, v.Where, v.Problem)
	case hex.EncodeToString(sum.Sum(nil)) != e.SHA256:
		return errors.New("the file has another digest than the export")
	}
	if err := os.Rename(name+".new", name); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
