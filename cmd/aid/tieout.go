package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/ai-identity/ai-identity/audit"
)

func auditTieOutCommand() *cobra.Command {
	var m manage
	var since time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "tieout",
		Short: "Show where Envoy's access logs and the audit log differ",
		Long: `tieout prints the comparisons of Envoy's access log with the audit log, which the sidecars
of an organization's nodes write each hour. Each row is about the requests that began in that
hour at one process of Envoy:

  seen        in the access log; the sum of the next six
  decided     with an entry
  unrecorded  rejected without a known caller, or a readiness check
  own         Envoy responded, or the client left, before a decision
  api         of the management API
  tunnels     CONNECT of the forward proxy
  unknown     began before the comparison did
  sent        of decided: sent to a provider

A difference is printed below its row with the request ids. The exit code is then 1.
A time for which nothing is known, such as the end of an Envoy that was killed, is printed as
such, and is no difference.`,
		Example: `  aid audit tieout --home .aid
  aid audit tieout --org org_acme --since 720h`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if since <= 0 {
				return usagef("--since %v: set a time above 0, such as 168h", since)
			}
			db, err := m.open(cmd, true)
			if err != nil {
				return err
			}
			defer db.Close()
			var entries []audit.Entry
			err = db.InOrg(cmd.Context(), m.org, func(tx pgx.Tx) error {
				entries, err = audit.TieOuts(cmd.Context(), tx, m.org, m.now().Add(-since))
				return err
			})
			if err != nil {
				return fmt.Errorf("reading the audit log of %s: %w", m.org, err)
			}
			if asJSON {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(entries)
			} else {
				err = showTieOuts(cmd.OutOrStdout(), entries)
			}
			if err != nil {
				return err
			}
			if differ := audit.Differing(entries); differ > 0 {
				return fmt.Errorf("%s: the access log and the audit log differ in %d rows", m.org, differ)
			}
			return nil
		},
	}
	m.flags(cmd, false, true)
	cmd.Flags().DurationVar(&since, "since", 7*24*time.Hour, "how far back")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the entries as one JSON array")
	return cmd
}

func showTieOuts(w io.Writer, entries []audit.Entry) error {
	if len(entries) == 0 {
		_, err := fmt.Fprintln(w, "nothing was compared: set --access-log of the control plane and the sidecars")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "hour\tenvoy\tpart\tseen\tdecided\tunrecorded\town\tapi\ttunnels\tunknown\tsent")
	for _, e := range entries {
		switch e := e.(type) {
		case audit.TieOutHour:
			fmt.Fprintf(t, "%s\t%.8s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\n", e.Hour.UTC().Format("2006-01-02 15:04"), e.Process, e.Part, e.Seen, e.Decided, e.Unrecorded,
				e.Own, e.Management, e.Tunnels, e.Unknown, e.Forwarded)
			for _, d := range []struct {
				n    int64
				what string
				ids  []string
			}{
				{e.Missing, "without the entry that they need", e.MissingIDs},
				{e.Unseen, "entries without a request in the access log", e.UnseenIDs},
				{e.NotAllowed, "sent to a provider without being allowed", e.NotAllowedIDs},
				{e.Unlogged, "counted by Envoy, and not in its access log", nil},
				{e.Excess, "sent to a provider, and not in the access log", nil},
			} {
				if d.n > 0 {
					fmt.Fprintf(t, "  DIFFERS: %d %s %s\n", d.n, d.what, strings.Join(d.ids, " "))
				}
			}
			if e.Late > 0 {
				fmt.Fprintf(t, "  taken back: %d entries whose request came late %s\n", e.Late, strings.Join(e.LateIDs, " "))
			}
		case audit.TieOutUnknown:
			fmt.Fprintf(t, "  not known: %s to %s, %s, %d requests with an entry\n", e.From.UTC().Format("2006-01-02 15:04:05"), e.To.UTC().Format("15:04:05"), e.Reason, e.Entries)
		}
	}
	return t.Flush()
}
