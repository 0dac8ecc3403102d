package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
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
		Short: "Verify the audit log",
		Long:  `audit has the commands for the audit log that the API does not have.`,
	}
	cmd.AddCommand(auditVerifyCommand())
	return cmd
}

func auditVerifyCommand() *cobra.Command {
	var m manage
	var receipts string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check an organization's chain from its first entry to its last",
		Long: `verify reads every entry of an organization in order. It checks that
the sequence has no gap, and that each HMAC covers exactly the bytes that are
stored and the entry before. It checks that the chain ends where its head says.

It says up to which entry and time it has looked, and exits with 1 at the first
thing that is wrong, naming its sequence number. An HMAC is no proof against
who holds its key, and a chain does not show that its end was cut off together
with its head: keep a copy of what verify printed last.

With --receipts it also looks for what callers hold: one X-AID-Receipt a line, as
the response header has it. It says of each where it is:

  in the chain   the entry is there, byte for byte; its number follows
  in a gap       the chain says that the record is lost; the gap's number follows
  pending        the chain has not come to this number of the writer; the node
                 still has the record, or the node is lost: see aid segments
  MISSING        the chain is past this number and does not have the entry

Exit codes: 0 all is right, and each receipt is in the chain; 1 the chain is wrong,
or a receipt is missing; 2 wrong usage; 3 the chain is right, none is missing, and
a receipt is pending or in a gap.`,
		Example: `  aid audit verify --org org_default --hmac-keys hmac.keys

  # what aid up keeps in .aid, while it runs
  aid audit verify --home .aid

  # are the answers that these callers got on the record?
  aid audit verify --home .aid --receipts receipts.txt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
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
				return usagef("--org %s: there is no organization with this id in the database", m.org)
			} else if err != nil {
				return fmt.Errorf("verifying %s: %w", m.org, err)
			}
			// First the receipts: the chain that is verified then has what was found.
			places, err := locateReceipts(cmd.Context(), db, m.org, held)
			if err != nil {
				return err
			}
			began := m.now()
			said := began
			report, err := audit.Verify(cmd.Context(), db, m.org, keys, func(seq int64) {
				if now := m.now(); now.Sub(said) >= 2*time.Second {
					said = now
					fmt.Fprintf(cmd.ErrOrStderr(), "aid: %d entries are right so far, %.0f a second\n", seq, float64(seq)/now.Sub(began).Seconds())
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
	cmd.Flags().StringVar(&receipts, "receipts", "", "`file` with one X-AID-Receipt a line, to look for in the chain; - is stdin")
	cmd.Flags().BoolVar(&asJSON, "json", false, "the report as one JSON object")
	m.flags(cmd, true, true)
	return cmd
}

// verification is what verify says.
type verification struct {
	audit.Report
	Receipts []audit.Place  `json:"receipts,omitempty"`
	Places   map[string]int `json:"receipt_counts,omitempty"` // by place
}

func (v *verification) count() {
	if len(v.Receipts) == 0 {
		return
	}
	v.Places = map[string]int{audit.PlaceChain: 0, audit.PlaceGap: 0, audit.PlacePending: 0, audit.PlaceMissing: 0}
	for _, p := range v.Receipts {
		v.Places[p.State]++
	}
}

// show writes it for people.
func (v *verification) show(w io.Writer) error {
	out := bufio.NewWriter(w)
	for _, p := range v.Receipts {
		switch p.State {
		case audit.PlaceChain:
			fmt.Fprintf(out, "%s in the chain, entry %d\n", p.Receipt, p.Seq)
		case audit.PlaceGap:
			fmt.Fprintf(out, "%s in a gap: entry %d says that it is lost\n", p.Receipt, p.Seq)
		case audit.PlacePending:
			fmt.Fprintf(out, "%s pending: the chain has this writer up to %d\n", p.Receipt, p.Have)
		default:
			fmt.Fprintf(out, "%s MISSING: the chain has this writer up to %d, and not this entry\n", p.Receipt, p.Have)
		}
	}
	r := v.Report
	switch {
	case r.Entries == 0 && r.FirstBad != nil:
		// Only what is wrong: nothing was found right before it.
	case r.Entries == 0:
		fmt.Fprintf(out, "%s has no entries\n", r.Org)
	default:
		fmt.Fprintf(out, "%s: %d entries are right, from %d (%s) to %d (%s)\nkey epoch %d, head %s\n", r.Org, r.Entries,
			r.From, r.Since.Format(time.RFC3339Nano), r.To, r.Till.Format(time.RFC3339Nano), r.Epoch, r.Head)
	}
	if r.Malformed > 0 {
		fmt.Fprintf(out, "%d of them could not be read when they came, and are in the chain as they came\n", r.Malformed)
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
	return fmt.Sprintf("%d in the chain, %d in a gap, %d pending, %d missing",
		v.Places[audit.PlaceChain], v.Places[audit.PlaceGap], v.Places[audit.PlacePending], v.Places[audit.PlaceMissing])
}

// result is what the command exits with.
func (v *verification) result() error {
	switch n := len(v.Receipts); {
	case v.FirstBad != nil:
		return fmt.Errorf("%s: %w", v.Org, v.FirstBad)
	case v.Places[audit.PlaceMissing] > 0:
		return fmt.Errorf("%s: %d of %d receipts are missing from the chain", v.Org, v.Places[audit.PlaceMissing], n)
	case n > v.Places[audit.PlaceChain]:
		return &incompleteError{fmt.Errorf("%s: of %d receipts, %s", v.Org, n, v.receipts())}
	}
	return nil
}

// maxReceipts bounds what one run looks for.
const maxReceipts = 1_000_000

// readReceipts reads one receipt a line. Empty lines, lines that begin with # and the
// header's name before a receipt are left out.
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
		return nil, errors.New("it has no receipt")
	}
	return receipts, nil
}

// locateReceipts is audit.Locate of none as well.
func locateReceipts(ctx context.Context, db *store.DB, org string, receipts []audit.Receipt) ([]audit.Place, error) {
	if len(receipts) == 0 {
		return nil, nil
	}
	return audit.Locate(ctx, db, org, receipts)
}
