package audit

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// The status of an entry in the log.
const (
	ProofIncluded = "included" // a signed checkpoint has it
	ProofPending  = "pending"  // it is not in a signed checkpoint yet; see Proof.Reason
	ProofGap      = "gap"      // the chain records it as lost
	ProofMissing  = "missing"  // it must be in the chain, and is not
	ProofArchived = "archived" // it left the database; see Proof.Archive
)

// Reasons of ProofPending.
const (
	PendingShipping   = "not_shipped"   // the writer has not said that the chain has all records up to it
	PendingCheckpoint = "no_checkpoint" // the chain has it, and no signed checkpoint has
)

// A Proof shows that an entry is in the org's log.
type Proof struct {
	Status, Reason string
	Place          Place // of the receipt; its Seq is the entry or the gap
	AgentID        string
	RequestID      string

	// The following are set for an entry in the chain.
	Incarnation int64
	Index       int64  // of the leaf in the incarnation's tree
	Link        []byte // the leaf's data

	Path       []tlog.Hash      // for ProofIncluded, from the leaf to Checkpoint's root
	Checkpoint StoredCheckpoint // the first one that has the entry

	// Archive has, for ProofArchived, the archive's files that have the entry, or may have it. They
	// are the newest ones, at most maxProofFiles.
	Archive []Archived
}

// maxProofFiles limits the archive's files in a proof.
const maxProofFiles = 100

// ProveReceipt finds the entry of a receipt in the log of an org, which tx has set.
func ProveReceipt(ctx context.Context, tx pgx.Tx, org string, r Receipt) (Proof, error) {
	places, err := locate(ctx, tx, org, []Receipt{r})
	if err != nil {
		return Proof{}, fmt.Errorf("looking for a receipt: %w", err)
	}
	p := Proof{Place: places[0]}
	switch p.Place.State {
	case PlaceChain:
		err := p.include(ctx, tx, org, p.Place.Seq)
		return p, err
	case PlaceGap:
		p.Status = ProofGap
	case PlacePending:
		p.Status, p.Reason = ProofPending, PendingShipping
	case PlaceArchived:
		p.Status = ProofArchived
		p.Archive, err = left(ctx, tx, org, 0)
	default:
		p.Status = ProofMissing
	}
	return p, err
}

// left returns the archive's files with entries that are not in the database: those with the
// entry seq, or all for 0.
func left(ctx context.Context, tx pgx.Tx, org string, seq int64) (files []Archived, err error) {
	begin, err := trimmed(ctx, tx, org)
	if err != nil || begin.UpTo == 0 || seq > begin.UpTo {
		return nil, err
	}
	all, err := archives(ctx, tx, org)
	if err != nil {
		return nil, err
	}
	for _, a := range all {
		if a.FirstSeq <= begin.UpTo && (seq == 0 || a.FirstSeq <= seq && seq <= a.LastSeq) {
			files = append(files, a)
		}
	}
	return files[max(0, len(files)-maxProofFiles):], nil
}

// ErrNoEntry means that a chain does not have the entry.
var ErrNoEntry = errors.New("the chain has no such entry")

// ProveEntry proves the entry with a number.
func ProveEntry(ctx context.Context, tx pgx.Tx, org string, seq int64) (Proof, error) {
	p := Proof{Place: Place{State: PlaceChain, Seq: seq}}
	return p, p.include(ctx, tx, org, seq)
}

// include adds the link of an entry, and the path to the first checkpoint that has it.
func (p *Proof) include(ctx context.Context, tx pgx.Tx, org string, seq int64) error {
	l := evidence.Link{Org: org, Seq: seq}
	var entry []byte
	err := tx.QueryRow(ctx, `SELECT appended_at, time, kind, agent_id, session_id, request_id, writer, writer_seq, prev_writer_seq, incarnation, entry
		FROM audit_entries WHERE org_id = $1 AND seq = $2`, org, seq).
		Scan(&l.AppendedAt, &l.Time, &l.Kind, &l.AgentID, &l.SessionID, &l.RequestID, &l.Writer, &l.WriterSeq, &l.PrevWriterSeq, &l.Incarnation, &entry)
	if errors.Is(err, pgx.ErrNoRows) {
		if p.Archive, err = left(ctx, tx, org, seq); err == nil && len(p.Archive) == 0 {
			err = ErrNoEntry
		}
		p.Place.State, p.Status = PlaceArchived, ProofArchived
		return err
	}
	if err != nil {
		return fmt.Errorf("reading entry %d: %w", seq, err)
	}
	l.Entry = LeafHash(entry)
	p.AgentID, p.RequestID, p.Incarnation, p.Link = l.AgentID, l.RequestID, l.Incarnation, l.Append(nil)
	p.Status, p.Reason = ProofPending, PendingCheckpoint
	var first int64
	err = tx.QueryRow(ctx, "SELECT first_seq FROM audit_trees WHERE org_id = $1 AND incarnation = $2", org, l.Incarnation).Scan(&first)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the tree of entry %d: %w", seq, err)
	}
	p.Index = seq - first
	p.Checkpoint, err = CheckpointAt(ctx, tx, org, l.Incarnation, p.Index+1)
	if errors.Is(err, ErrNoCheckpoint) {
		return nil
	}
	if err != nil {
		return err
	}
	if p.Path, err = Inclusion(ctx, tx, org, l.Incarnation, p.Index, p.Checkpoint.Size); err != nil {
		return err
	}
	// A proof that a verifier would reject is a damaged tree or a changed entry, and not a proof.
	if err := tlog.CheckRecord(p.Path, p.Checkpoint.Size, p.Checkpoint.Root, p.Index, l.Leaf()); err != nil {
		return fmt.Errorf("%w: entry %d is not the one under checkpoint %d", ErrTree, seq, p.Checkpoint.Size)
	}
	p.Status, p.Reason = ProofIncluded, ""
	return nil
}
