package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/envoy"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/store"
)

func auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Verify, archive and trim the audit log",
		Long:  `audit has the commands for the audit log that the API does not have.`,
	}
	cmd.AddCommand(auditArchiveCommand(), auditHoldCommand(), auditHoldsCommand(), auditKeyCommand(), auditReleaseCommand(), auditReopenCommand(), auditRestoreCommand(), auditRetentionCommand(),
		auditTieOutCommand(), auditTrimCommand(), auditVerifyCommand())
	return cmd
}

func auditVerifyCommand() *cobra.Command {
	var m manage
	var receipts string
	var asJSON bool
	var files offline
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check an organization's chain from its first entry to its last",
		Long: `verify reads every entry of an organization in order. It checks that
the sequence has no gap, and that each HMAC covers exactly the bytes that are
stored and the entry before. It checks that the chain ends where its head says.

  - The sequence numbers have no gap.
  - Each HMAC fits the stored bytes of the entry and the HMAC before.
  - The chain ends at its stored head.

It prints the last entry and time that it has checked. At the first error it prints
the sequence number and exits with 1. Two changes are not detected. Anyone with the
HMAC key can rewrite the chain. Anyone who can write to the database can cut off its
end together with the head. Keep a copy of the last output of verify.

With --receipts it also looks for the receipts of callers. The file has one value of
the response header X-AID-Receipt per line. verify prints the place of each:

  in the chain   the chain has the entry, byte for byte; its number follows
  in a gap       the chain records the entry as lost; the gap's number follows
  pending        the chain does not have this number of the writer yet; the node
                 still has the record, or the node is lost: see aid segments
  in the archive the entry's month left the database: see aid audit trim
  MISSING        the chain has later numbers of the writer, but not this entry

Exit codes:

  0   The chain is valid and has each receipt.
  1   The chain is not valid, or a receipt is missing.
  2   Wrong usage.
  3   The chain is valid, and a receipt is pending, in a gap or in the archive.

With --offline it verifies files instead, with public keys and without a database:

  verify --offline EXPORT                   an export of the audit log
  verify --offline report REPORT            a forensics report
  verify --offline attestation ATTESTATION  the attestation of a session
  verify --offline checkpoint FILE...       signed checkpoints, which are compared
  verify --offline bundle BUNDLE            single entries with inclusion proofs
  verify --offline receipt RECEIPT BUNDLE   a receipt and the proof of its entry

Keys come from --jwks, never from the files. AI_IDENTITY_HMAC_KEY may have HMAC keys:
HEX, EPOCH:HEX,... or the name of a file with them. Exit codes with --offline:

  0   Everything that was checked is right.
  1   Something was changed; the place follows.
  2   Nothing is wrong, but something is missing, or no key is known.
  3   Wrong usage.`,
		Example: `  aid audit verify --org org_default --hmac-keys hmac.keys

  # the chain of an aid up that runs on .aid
  aid audit verify --home .aid

  # check that the chain has the entries of these callers' receipts
  aid audit verify --home .aid --receipts receipts.txt

  # verify an export, which must agree with a checkpoint that you kept
  aid audit verify --offline audit_export.json --jwks jwks.json --checkpoint kept.txt`,
		Args: func(cmd *cobra.Command, args []string) error {
			if files.on {
				return nil
			}
			return cobra.NoArgs(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if files.on {
				return files.run(cmd, args, asJSON)
			}
			held, err := readReceipts(receipts, cmd.InOrStdin())
			if err != nil {
				return usagef("--receipts %s: %v", receipts, err)
			}
			db, err := m.open(cmd, true)
			if err != nil {
				return err
			}
			defer db.Close()
			keys, err := chainKeys(m.hmac)
			if err != nil {
				return err
			}
			err = db.InOrg(cmd.Context(), m.org, func(tx pgx.Tx) error {
				_, err := identity.OrgByID(cmd.Context(), tx, m.org)
				return err
			})
			if errors.Is(err, identity.ErrNotFound) {
				return usagef("--org %s: the database has no organization with this id", m.org)
			} else if err != nil {
				return fmt.Errorf("verifying %s: %w", m.org, err)
			}
			// Receipts first, so that the verified chain includes the entries that were found.
			places, err := locateReceipts(cmd.Context(), db, m.org, held)
			if err != nil {
				return err
			}
			began := m.now()
			said := began
			report, err := audit.Verify(cmd.Context(), db, m.org, keys, func(seq int64) {
				if now := m.now(); now.Sub(said) >= 2*time.Second {
					said = now
					fmt.Fprintf(cmd.ErrOrStderr(), "aid: %d entries are valid so far, %.0f per second\n", seq, float64(seq)/now.Sub(began).Seconds())
				}
			})
			if err != nil {
				return fmt.Errorf("verifying %s: %w", m.org, err)
			}
			v := verification{Report: report, Receipts: places}
			v.count()
			if asJSON {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(v)
			} else {
				err = v.show(cmd.OutOrStdout())
			}
			if err != nil {
				return err
			}
			return v.result()
		},
	}
	cmd.Flags().StringVar(&receipts, "receipts", "", "`file` with one X-AID-Receipt per line to look for in the chain; - is stdin")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as one JSON object")
	files.flags(cmd.Flags())
	m.flags(cmd, true, true)
	return cmd
}

// verification is the report of verify.
type verification struct {
	audit.Report
	Receipts []audit.Place  `json:"receipts,omitempty"`
	Places   map[string]int `json:"receipt_counts,omitempty"` // by place
}

func (v *verification) count() {
	if len(v.Receipts) == 0 {
		return
	}
	v.Places = map[string]int{audit.PlaceChain: 0, audit.PlaceGap: 0, audit.PlacePending: 0, audit.PlaceArchived: 0, audit.PlaceMissing: 0}
	for _, p := range v.Receipts {
		v.Places[p.State]++
	}
}

// show writes the report as text.
func (v *verification) show(w io.Writer) error {
	out := bufio.NewWriter(w)
	for _, p := range v.Receipts {
		if p.Signature == audit.SignatureWrong {
			fmt.Fprintf(out, "%s has a WRONG SIGNATURE: its writer did not make it\n", p.Receipt)
		}
		switch p.State {
		case audit.PlaceChain:
			fmt.Fprintf(out, "%s in the chain, entry %d\n", p.Receipt, p.Seq)
		case audit.PlaceGap:
			fmt.Fprintf(out, "%s in a gap: entry %d records it as lost\n", p.Receipt, p.Seq)
		case audit.PlacePending:
			fmt.Fprintf(out, "%s pending: the chain has this writer's records up to %d\n", p.Receipt, p.Have)
		case audit.PlaceArchived:
			fmt.Fprintf(out, "%s in the archive: this writer's records up to this one left the database\n", p.Receipt)
		default:
			fmt.Fprintf(out, "%s MISSING: the chain has this writer's records up to %d, but not this entry\n", p.Receipt, p.Have)
		}
	}
	r := v.Report
	switch {
	case r.Entries == 0 && r.FirstBad != nil:
		// The first entry is wrong, so there is no valid part to print.
	case r.Entries == 0:
		fmt.Fprintf(out, "%s has no entries\n", r.Org)
	default:
		fmt.Fprintf(out, "%s: %d entries are right, from %d (%s) to %d (%s)\nkey epoch %d, head %s\n", r.Org, r.Entries,
			r.From, r.Since.Format(time.RFC3339Nano), r.To, r.Till.Format(time.RFC3339Nano), r.Epoch, r.Head)
	}
	if r.Trimmed > 0 {
		fmt.Fprintf(out, "entries up to %d left the database by aid audit trim; the archive's file with the last one is %s\n", r.Trimmed, r.Archive)
	}
	if r.Malformed > 0 {
		fmt.Fprintf(out, "%d of them could not be parsed on arrival, and are in the chain unchanged\n", r.Malformed)
	}
	for _, finding := range r.Findings {
		fmt.Fprintln(out, finding)
	}
	if n := r.Gaps + r.Forks + r.Broken + r.Ahead + r.BackDated; n > 0 {
		fmt.Fprintf(out, "%d gaps, %d forks, %d records out of order, %d entries ahead of time, %d back-dated: the nodes sent it so\n",
			r.Gaps, r.Forks, r.Broken, r.Ahead, r.BackDated)
	}
	if n := len(v.Receipts); n > 0 {
		fmt.Fprintf(out, "%d receipts: %s\n", n, v.receipts())
	}
	return out.Flush()
}

func (v *verification) receipts() string {
	archived := ""
	if n := v.Places[audit.PlaceArchived]; n > 0 {
		archived = fmt.Sprintf(", %d in the archive", n)
	}
	return fmt.Sprintf("%d in the chain, %d in a gap, %d pending, %d missing%s",
		v.Places[audit.PlaceChain], v.Places[audit.PlaceGap], v.Places[audit.PlacePending], v.Places[audit.PlaceMissing], archived)
}

// result returns the error that sets the exit code.
func (v *verification) result() error {
	switch n := len(v.Receipts); {
	case v.FirstBad != nil:
		return fmt.Errorf("%s: %w", v.Org, v.FirstBad)
	case slices.ContainsFunc(v.Receipts, func(p audit.Place) bool { return p.Signature == audit.SignatureWrong }):
		return fmt.Errorf("%s: a receipt has a wrong signature", v.Org)
	case v.Places[audit.PlaceMissing] > 0:
		return fmt.Errorf("%s: %d of %d receipts are missing from the chain", v.Org, v.Places[audit.PlaceMissing], n)
	case n > v.Places[audit.PlaceChain]:
		return &incompleteError{fmt.Errorf("%s: of %d receipts, %s", v.Org, n, v.receipts())}
	}
	return nil
}

// maxReceipts limits the receipts of one run.
const maxReceipts = 1_000_000

// readReceipts reads one receipt per line. It skips empty lines, lines that begin with #, and
// the header's name before a receipt.
func readReceipts(name string, stdin io.Reader) ([]audit.Receipt, error) {
	if name == "" {
		return nil, nil
	}
	in := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	var receipts []audit.Receipt
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if name, value, ok := strings.Cut(line, ":"); ok && strings.EqualFold(name, envoy.HeaderReceipt) {
			line = strings.TrimSpace(value)
		}
		if line == "" || line[0] == '#' {
			continue
		}
		r, err := audit.ParseReceipt(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if len(receipts) == maxReceipts {
			return nil, fmt.Errorf("line %d: more than %d receipts: split the file", n, maxReceipts)
		}
		receipts = append(receipts, r)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(receipts) == 0 {
		return nil, errors.New("the file has no receipt")
	}
	return receipts, nil
}

// locateReceipts is audit.Locate, without a query if there are no receipts.
func locateReceipts(ctx context.Context, db *store.DB, org string, receipts []audit.Receipt) ([]audit.Place, error) {
	if len(receipts) == 0 {
		return nil, nil
	}
	return audit.Locate(ctx, db, org, receipts)
}
