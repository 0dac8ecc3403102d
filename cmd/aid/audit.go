package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
)

func auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Look after the record",
		Long:  `audit has what an operator does with the record beside reading it through the API.`,
	}
	cmd.AddCommand(auditVerifyCommand())
	return cmd
}

func auditVerifyCommand() *cobra.Command {
	var m manage
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check an organization's chain from its first entry to its last",
		Long: `verify reads every entry of an organization in order and checks that the sequence
has no gap, that each entry's HMAC is right over exactly the bytes that are
stored and the one before, and that the chain ends where its head says.

It says up to which entry and time it has looked, and exits with 1 at the first
thing that is wrong, naming its sequence number. An HMAC is no proof against
who holds its key, and a chain does not show that its end was cut off together
with its head: keep a copy of what verify printed last.`,
		Example: `  aid audit verify --org org_default --hmac-keys hmac.keys

  # what aid up keeps in .aid, while it runs
  aid audit verify --home .aid`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
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
			out := cmd.OutOrStdout()
			switch {
			case report.Entries == 0 && report.FirstBad != nil:
				// Only what is wrong: nothing was found right before it.
			case report.Entries == 0:
				fmt.Fprintf(out, "%s has no entries\n", m.org)
			default:
				fmt.Fprintf(out, "%s: %d entries are right, from %d (%s) to %d (%s)\nkey epoch %d, head %s\n", m.org, report.Entries,
					report.From, report.Since.Format(time.RFC3339Nano), report.To, report.Till.Format(time.RFC3339Nano), report.Epoch, report.Head)
			}
			if report.Malformed > 0 {
				fmt.Fprintf(out, "%d of them could not be read when they came, and are in the chain as they came\n", report.Malformed)
			}
			for _, finding := range report.Findings {
				fmt.Fprintln(out, finding)
			}
			if n := report.Gaps + report.Forks + report.Broken + report.Ahead + report.BackDated; n > 0 {
				fmt.Fprintf(out, "%d gaps, %d forks, %d records out of order, %d entries ahead of time, %d back-dated: the nodes sent it so\n",
					report.Gaps, report.Forks, report.Broken, report.Ahead, report.BackDated)
			}
			if report.FirstBad != nil {
				return fmt.Errorf("%s: %w", m.org, report.FirstBad)
			}
			return nil
		},
	}
	m.flags(cmd, true, true)
	return cmd
}
