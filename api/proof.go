package api

import (
	"context"
	"encoding/base64"
	"errors"
	"strconv"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/ai-identity/ai-identity/audit"
)

// AuditProof shows whether an entry is in the audit log.
type AuditProof struct {
	Status      string   `json:"status" enum:"included,pending,gap,missing,archived" doc:"Where the entry is. archived: its month left the database."`
	Reason      string   `json:"reason,omitempty" enum:"not_shipped,no_checkpoint" doc:"Why it is pending."`
	Receipt     string   `json:"receipt,omitempty" doc:"The receipt."`
	Signature   string   `json:"signature,omitempty" enum:"valid,wrong,absent,unknown" doc:"The receipt's signature. absent: an earlier version made the receipt. unknown: the writer's key is not in the log yet."`
	Seq         int64    `json:"seq,omitempty" doc:"The number of the entry, or of the gap, in the log." example:"412"`
	RequestID   string   `json:"request_id,omitempty" doc:"The entry's request."`
	Incarnation int64    `json:"incarnation,omitempty" doc:"The incarnation of the log." example:"1"`
	LeafIndex   *int64   `json:"leaf_index,omitempty" doc:"The leaf in the incarnation's tree, from 0." example:"411"`
	Link        string   `json:"link,omitempty" doc:"The leaf's data, in base64. It has the hash of the entry."`
	Path        []string `json:"path,omitempty" nullable:"false" doc:"Hashes from the leaf to the root, in base64 (RFC 6962, section 2.1.1)."`
	Checkpoint  string   `json:"checkpoint,omitempty" doc:"The signed checkpoint that has the entry."`

	Archive []ArchiveFile `json:"archive,omitempty" nullable:"false" doc:"Files of the archive that have the entry, or may have it. The operator keeps them."`
}

// ArchiveFile is a file of the archive.
type ArchiveFile struct {
	Incarnation int64  `json:"incarnation" doc:"The incarnation of the log." example:"1"`
	FirstSeq    int64  `json:"first_seq" doc:"The number of its first entry." example:"1"`
	LastSeq     int64  `json:"last_seq" doc:"The number of its last entry." example:"6500"`
	SHA256      string `json:"sha256" doc:"Digest of the file in hex." example:"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"`
}

func hashes(path []tlog.Hash) []string {
	out := make([]string, len(path))
	for i, h := range path {
		out[i] = base64.StdEncoding.EncodeToString(h[:])
	}
	return out
}

// noEntry is also the response for an entry of another agent, so an agent cannot find out which
// entries exist.
func noEntry() *problem {
	return &problem{Status: 404, Code: "not_found", Message: "The audit log has no entry that this key may prove.", Fix: "Send the complete header X-AID-Receipt, and the key that made the request."}
}

func auditProof(ctx context.Context, x *call, in *struct {
	Receipt string `query:"receipt" maxLength:"400" doc:"The value of the header X-AID-Receipt."`
	Seq     string `query:"seq" pattern:"^[1-9][0-9]{0,17}$" patternDescription:"a number" doc:"The number of an entry." example:"412"`
}) (*one[AuditProof], error) {
	if (in.Receipt == "") == (in.Seq == "") {
		return nil, invalid(fieldProblem{"receipt", "Exactly one of receipt and seq is required.", "Send receipt, the value of X-AID-Receipt, or seq, the number of an entry."})
	}
	var p audit.Proof
	var err error
	if in.Seq != "" {
		seq, _ := strconv.ParseInt(in.Seq, 10, 64) // validation has checked the form
		p, err = audit.ProveEntry(ctx, x.tx, x.org, seq)
	} else {
		r, bad := audit.ParseReceipt(in.Receipt)
		if bad != nil {
			return nil, invalid(fieldProblem{"receipt", "receipt does not have the form of a receipt.", "Send the complete value of the header X-AID-Receipt."})
		}
		p, err = audit.ProveReceipt(ctx, x.tx, x.org, r)
	}
	if errors.Is(err, audit.ErrNoEntry) {
		return nil, noEntry()
	}
	if err != nil {
		return nil, err
	}
	inChain := p.Link != nil
	signature := p.Place.Signature
	switch {
	case !inChain && in.Receipt == "" && x.asAgent != "":
		return nil, noEntry() // only the archive knows its agent
	case inChain && x.asAgent != "" && p.AgentID != x.asAgent:
		return nil, noEntry()
	case !inChain && signature == audit.SignatureWrong:
		return nil, noEntry() // it is no receipt of this log
	case !inChain && x.asAgent != "" && signature == audit.SignatureAbsent:
		return nil, noEntry() // nothing shows that it was given to a caller
	}
	if p.Status == audit.ProofMissing && signature == audit.SignatureValid {
		x.metrics.missing.Inc()
		x.c.Log.ErrorContext(ctx, "the audit log lacks the entry of a receipt that a sidecar signed", "org", x.org, "receipt", in.Receipt, "have", p.Place.Have)
	}
	out := AuditProof{Status: p.Status, Reason: p.Reason, Receipt: in.Receipt, Signature: signature, Seq: p.Place.Seq}
	if inChain {
		out.RequestID, out.Incarnation, out.Link = p.RequestID, p.Incarnation, base64.StdEncoding.EncodeToString(p.Link)
	}
	for _, a := range p.Archive {
		if x.asAgent != "" {
			break // an agent does not learn how long the log is
		}
		out.Archive = append(out.Archive, ArchiveFile{a.Incarnation, a.FirstSeq, a.LastSeq, a.SHA256})
	}
	if p.Status == audit.ProofIncluded {
		out.LeafIndex, out.Path, out.Checkpoint = &p.Index, hashes(p.Path), string(p.Checkpoint.Note)
	}
	return &one[AuditProof]{Body: out}, nil
}

// ConsistencyProof shows that a tree is the beginning of another one.
type ConsistencyProof struct {
	Incarnation   int64    `json:"incarnation" doc:"The incarnation of the log." example:"1"`
	Old           int64    `json:"old" doc:"The smaller size." example:"100"`
	Size          int64    `json:"size" doc:"The larger size." example:"412"`
	Path          []string `json:"path" nullable:"false" doc:"The hashes, in base64."`
	OldCheckpoint string   `json:"old_checkpoint,omitempty" doc:"The signed checkpoint with the smaller size, if there is one."`
	Checkpoint    string   `json:"checkpoint,omitempty" doc:"The signed checkpoint with the larger size, if there is one."`
}

func auditConsistency(ctx context.Context, x *call, in *struct {
	Old         int64 `query:"old" required:"true" minimum:"0" maximum:"1000000000000000" doc:"The size of the older checkpoint." example:"100"`
	Size        int64 `query:"size" required:"true" minimum:"0" maximum:"1000000000000000" doc:"The size of the newer checkpoint." example:"412"`
	Incarnation int64 `query:"incarnation" minimum:"1" maximum:"1000000" doc:"The incarnation of the log. The newest one if left out." example:"1"`
}) (*one[ConsistencyProof], error) {
	if in.Old > in.Size {
		return nil, invalid(fieldProblem{"old", "old is larger than size.", "Send the smaller size as old."})
	}
	newest, err := audit.NewestCheckpoint(ctx, x.tx, x.org)
	if err == nil && in.Incarnation != 0 && in.Incarnation != newest.Incarnation {
		newest, err = audit.LastCheckpoint(ctx, x.tx, x.org, in.Incarnation)
	}
	if errors.Is(err, audit.ErrNoCheckpoint) || err == nil && in.Size > newest.Size {
		return nil, &problem{Status: 404, Code: "not_found", Message: "The log has no signed checkpoint with that many entries.", Field: "size", Fix: "Send the sizes of two checkpoints of one incarnation."}
	}
	if err != nil {
		return nil, err
	}
	path, err := audit.Consistency(ctx, x.tx, x.org, newest.Incarnation, in.Old, in.Size)
	if err != nil {
		return nil, err
	}
	out := ConsistencyProof{Incarnation: newest.Incarnation, Old: in.Old, Size: in.Size, Path: hashes(path)}
	for size, note := range map[int64]*string{in.Old: &out.OldCheckpoint, in.Size: &out.Checkpoint} {
		c, err := audit.CheckpointAt(ctx, x.tx, x.org, newest.Incarnation, size)
		if err == nil && c.Size == size {
			*note = string(c.Note)
		} else if err != nil && !errors.Is(err, audit.ErrNoCheckpoint) {
			return nil, err
		}
	}
	if in.Old == in.Size {
		out.OldCheckpoint = out.Checkpoint
	}
	return &one[ConsistencyProof]{Body: out}, nil
}
