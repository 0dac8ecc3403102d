package audit

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// KindTrimmed is the kind of Trimmed.
const KindTrimmed = "chain.trimmed"

// Trimmed says that entries may leave the database. From then on the chain may begin behind UpTo.
type Trimmed struct {
	Time   time.Time `json:"time"`
	Org    string    `json:"org"`
	Writer string    `json:"writer"`

	Actor      Actor  `json:"actor"`
	Reason     string `json:"reason"`
	Month      string `json:"month"`
	From       int64  `json:"from"`
	UpTo       int64  `json:"up_to"`
	Entries    int64  `json:"entries"`
	MAC        string `json:"mac"`        // of the last one, hex
	Checkpoint string `json:"checkpoint"` // the first signed one that has them
	Archive    string `json:"archive"`    // "sha256:" and hex, of the archive's file with the last one
}

func (e Trimmed) Head() Head {
	return Head{Kind: KindTrimmed, Time: e.Time, Org: e.Org, Writer: e.Writer}
}

func (e Trimmed) stamped(org, writer string, now time.Time) Entry {
	e.Org, e.Writer, e.Time = org, writer, or(e.Time, now)
	return e
}

func (e Trimmed) Encode() []byte {
	o := begin(1536, KindTrimmed, e.Time, e.Org, e.Writer, "")
	o.actor(e.Actor)
	o.must("reason", e.Reason, maxReason)
	o.must("month", e.Month, maxWord)
	o.num("from", e.From)
	o.num("up_to", e.UpTo)
	o.num("entries", e.Entries)
	o.must("mac", e.MAC, maxID)
	o.must("checkpoint", e.Checkpoint, maxPrevious)
	o.must("archive", e.Archive, maxID)
	return o.end()
}

// A Trim says which entries of an org's chain are not in the database any more: those up to
// UpTo. The zero Trim is of a chain that has all of its entries.
type Trim struct {
	UpTo       int64
	AppendedAt time.Time // of the last one
	At         time.Time // when it was permitted to leave
	Size       int64     // of the first signed checkpoint that has it
	Checkpoint string    // that one
	Archive    string    // "sha256:" and hex, of the archive's file with the last one

	incarnation int64
	mac         []byte
	version     int16
	epoch       int32
}

// trimmed returns where the chain of an org begins, which tx has set. A trim whose entries are
// still there is not in effect.
func trimmed(ctx context.Context, tx pgx.Tx, org string) (t Trim, err error) {
	var archive, checkpoint []byte
	err = tx.QueryRow(ctx, `SELECT up_to, appended_at, trimmed_at, size, checkpoint, archive, incarnation, mac, mac_version, epoch FROM audit_trims
		WHERE org_id = $1 AND up_to < coalesce((SELECT seq FROM audit_entries WHERE org_id = $1 ORDER BY seq LIMIT 1), 9223372036854775807)
		ORDER BY up_to DESC LIMIT 1`, org).
		Scan(&t.UpTo, &t.AppendedAt, &t.At, &t.Size, &checkpoint, &archive, &t.incarnation, &t.mac, &t.version, &t.epoch)
	if errors.Is(err, pgx.ErrNoRows) {
		return Trim{}, nil
	} else if err != nil {
		return Trim{}, fmt.Errorf("reading what left the audit log of %s: %w", org, err)
	}
	t.AppendedAt, t.At, t.Checkpoint, t.Archive = t.AppendedAt.UTC(), t.At.UTC(), string(checkpoint), "sha256:"+hex.EncodeToString(archive)
	return t, nil
}

// BeginOf returns what left the chain of an org, which tx has set.
func BeginOf(ctx context.Context, tx pgx.Tx, org string) (Trim, error) { return trimmed(ctx, tx, org) }

// trimmedHere is trimmed for the org that tx has set.
func trimmedHere(ctx context.Context, tx pgx.Tx) (Trim, error) {
	var org string
	if err := tx.QueryRow(ctx, "SELECT coalesce(aid_org(), '')").Scan(&org); err != nil {
		return Trim{}, err
	}
	return trimmed(ctx, tx, org)
}

// trimmedIn is trimmed in a transaction of its own.
func trimmedIn(ctx context.Context, db DB, org string) (t Trim, err error) {
	err = db.InOrg(ctx, org, func(tx pgx.Tx) (err error) {
		t, err = trimmed(ctx, tx, org)
		return err
	})
	return t, err
}

// leaves returns how many leaves of an incarnation's tree have no entry in the database.
func (t Trim) leaves(incarnation, firstSeq int64) int64 {
	switch {
	case t.UpTo == 0 || t.incarnation < incarnation:
		return 0
	case t.incarnation > incarnation:
		return 1<<63 - 1
	}
	return t.UpTo - firstSeq + 1
}

// An Archived is an archive's file: an export of leaves of an org's tree.
type Archived struct {
	Incarnation       int64
	First, Size       int64 // its leaves are those from First on, before Size
	FirstSeq, LastSeq int64 // numbers of its entries
	SHA256            string
	export            string
	note              []byte
}

// archives returns the archive's files of an org, in order. tx has the org set.
func archives(ctx context.Context, tx pgx.Tx, org string) ([]Archived, error) {
	rows, err := tx.Query(ctx, `SELECT a.incarnation, a.first, a.size, t.first_seq, encode(a.sha256, 'hex'), a.export_id, a.note
		FROM audit_archives a JOIN audit_trees t ON t.org_id = a.org_id AND t.incarnation = a.incarnation
		WHERE a.org_id = $1 ORDER BY a.incarnation, a.first`, org)
	if err != nil {
		return nil, fmt.Errorf("reading the archive of %s: %w", org, err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (a Archived, err error) {
		var first int64
		err = row.Scan(&a.Incarnation, &a.First, &a.Size, &first, &a.SHA256, &a.export, &a.note)
		a.FirstSeq, a.LastSeq = first+a.First, first+a.Size-1
		return a, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the archive of %s: %w", org, err)
	}
	return all, nil
}
