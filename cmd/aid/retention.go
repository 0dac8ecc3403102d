package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/signer"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/store"
)

func auditRetentionCommand() *cobra.Command {
	var m manage
	var months int
	cmd := &cobra.Command{
		Use:   "retention",
		Short: "Show or set how many months the audit log is kept",
		Long: `retention prints how long the audit log of this installation is kept. With --months it sets
that, which needs the role aid_owner. A month leaves only by aid audit trim.`,
		Example: `  aid audit retention --months 13`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("months") && (months < 1 || months > audit.MaxRetention) {
				return usagef("--months %d: valid values are 1 to %d", months, audit.MaxRetention)
			}
			db, err := m.open(cmd, false)
			if err != nil {
				return err
			}
			defer db.Close()
			if months > 0 {
				if err := audit.SetRetention(cmd.Context(), db.Pool(), months, operator()); err != nil {
					return err
				}
			}
			kept, err := audit.RetentionOf(cmd.Context(), db.Pool())
			if err != nil {
				return err
			}
			if kept == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "the audit log is kept for ever: no retention is set")
			} else {
				fmt.Fprintf(cmd.OutOrStdout(), "the audit log is kept for %d months\n", kept)
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&months, "months", 0, "whole months that every entry is kept, from 1 to 1200")
	m.flags(cmd, false, false)
	return cmd
}

func auditHoldCommand() *cobra.Command {
	var m manage
	var reason string
	cmd := &cobra.Command{
		Use:   "hold",
		Short: "Keep all entries of an organization, whatever the retention is",
		Long: `hold keeps every entry of an organization that is in the database now, and every later one,
until aid audit release. Months are kept as a whole, so a hold keeps those months for all
organizations. It needs the role aid_owner, and is in the organization's audit log.

It prints the id of the hold.`,
		Example: `  aid audit hold --org org_default --reason "case 2026-17" --hmac-keys hmac.keys`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if reason == "" {
				return usagef("--reason is required: why the entries are kept")
			}
			db, chain, err := m.openChain(cmd, true)
			if err != nil {
				return err
			}
			defer db.Close()
			id, err := identity.NewID(identity.HoldID, m.now(), rand.Reader)
			if err != nil {
				return err
			}
			before, err := chain.PlaceHold(cmd.Context(), audit.Hold{Org: m.org, ID: id, Reason: reason}, operator())
			if err != nil {
				return fmt.Errorf("placing a hold on %s: %w", m.org, err)
			}
			if before.UpTo > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "aid: entries up to %d, appended until %s, left the database before; keep their archive\n", before.UpTo, before.AppendedAt.Format(time.RFC3339))
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), id)
			return err
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why the entries are kept, at most 1024 bytes")
	m.flags(cmd, true, true)
	return cmd
}

func auditReleaseCommand() *cobra.Command {
	var m manage
	var hold, reason string
	cmd := &cobra.Command{
		Use:     "release",
		Short:   "Release a hold",
		Long:    `release ends a hold. It needs the role aid_owner, and is in the organization's audit log.`,
		Example: `  aid audit release --org org_default --hold hold_01k0000000abcdefghjkmnpqrs --reason "case closed" --hmac-keys hmac.keys`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if hold == "" || reason == "" {
				return usagef("--hold and --reason are required: the id of the hold, and why it ends")
			}
			db, chain, err := m.openChain(cmd, true)
			if err != nil {
				return err
			}
			defer db.Close()
			if err := chain.ReleaseHold(cmd.Context(), m.org, hold, reason, operator()); errors.Is(err, audit.ErrNoHold) {
				return usagef("--hold %s: %s has no such hold, or it was released before; list them with `aid audit holds`", hold, m.org)
			} else if err != nil {
				return fmt.Errorf("releasing the hold %s: %w", hold, err)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "released")
			return err
		},
	}
	cmd.Flags().StringVar(&hold, "hold", "", "id of the hold (hold_…)")
	cmd.Flags().StringVar(&reason, "reason", "", "why the hold ends, at most 1024 bytes")
	m.flags(cmd, true, true)
	return cmd
}

func auditHoldsCommand() *cobra.Command {
	var m manage
	cmd := &cobra.Command{
		Use:     "holds",
		Short:   "List an organization's holds",
		Long:    `holds lists the holds of an organization, those that were released too.`,
		Example: `  aid audit holds --org org_default`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			db, err := m.open(cmd, true)
			if err != nil {
				return err
			}
			defer db.Close()
			var all []audit.Hold
			err = db.InOrg(cmd.Context(), m.org, func(tx pgx.Tx) (err error) {
				all, err = audit.Holds(cmd.Context(), tx, m.org)
				return err
			})
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "HOLD\tPLACED\tBY\tREASON\tRELEASED")
			for _, h := range all {
				released := ""
				if !h.ReleasedAt.IsZero() {
					released = fmt.Sprintf("%s by %s: %s", h.ReleasedAt.Format(time.DateOnly), h.ReleasedBy, h.ReleaseReason)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", h.ID, h.PlacedAt.Format(time.DateOnly), h.Actor, h.Reason, released)
			}
			return w.Flush()
		},
	}
	m.flags(cmd, false, true)
	return cmd
}

// retention opens what archives and removes months.
func (m *manage) retention(cmd *cobra.Command) (*store.DB, *audit.Retention, error) {
	db, chain, err := m.openChain(cmd, false)
	if err != nil {
		return nil, nil, err
	}
	r, err := audit.NewRetention(audit.RetentionConfig{DB: db, Pool: db.Pool(), Chain: chain, Now: m.now})
	if err != nil {
		db.Close()
		return nil, nil, err
	}
	return db, r, nil
}

// progress prints what a long command does.
func progress(w io.Writer) func(string, ...any) {
	return func(format string, args ...any) { fmt.Fprintf(w, "aid: "+format+"\n", args...) }
}

func auditArchiveCommand() *cobra.Command {
	var m manage
	var to, through, key string
	cmd := &cobra.Command{
		Use:   "archive",
		Short: "Write the audit log's old months to files that verifiers accept",
		Long: `archive writes signed exports of all organizations to a folder: TO/ORG/INCARNATION-FIRST-SIZE.json.
Each file continues the one before. It is complete up to a signed checkpoint, so it may have
entries of the next month. The file is verified with the public keys after it is written,
and the database records its digest. Copy the folder to a write-once store.

Without --through it writes what is older than the retention. It may be run again.
It needs the role aid_owner and the key of the control plane's --signing-key.`,
		Example: `  aid audit archive --to /mnt/archive --signing-key file:signing.pem --hmac-keys hmac.keys`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if to == "" {
				return usagef("--to is required: the folder of the archive")
			}
			o := audit.ArchiveOptions{Folder: to, Actor: operator(), Progress: progress(cmd.ErrOrStderr())}
			if through != "" {
				month, err := time.Parse("2006-01", through)
				if err != nil {
					return usagef("--through %q: a month has the form 2026-03", through)
				}
				o.Through = month.AddDate(0, 1, 0)
			}
			if key == "" && m.home != "" {
				key = "file:" + filepath.Join(m.home, "secrets", "signing.pem")
			}
			if key == "" {
				return usagef("--signing-key is required: the P-256 key of the control plane")
			}
			var err error
			if o.Signer, err = openSigner(cmd.Context(), "signing-key", key, signer.P256); err != nil {
				return err
			}
			db, r, err := m.retention(cmd)
			if err != nil {
				return err
			}
			defer db.Close()
			if o.Through.After(m.now()) {
				return usagef("--through %s: this month is not over", through)
			}
			files, err := r.Archive(cmd.Context(), o)
			fmt.Fprintf(cmd.OutOrStdout(), "%d files were written and verified\n", files)
			if err != nil {
				return fmt.Errorf("archiving: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "`folder` of the archive")
	cmd.Flags().StringVar(&through, "through", "", "last `month` to archive, such as 2026-03 (default: the last one that is older than the retention)")
	cmd.Flags().StringVar(&key, "signing-key", "", "`URI` of the P-256 key, the same as the control plane's")
	m.flags(cmd, true, false)
	return cmd
}

func auditTrimCommand() *cobra.Command {
	var m manage
	var o audit.TrimOptions
	var apply bool
	cmd := &cobra.Command{
		Use:   "trim",
		Short: "Remove months that are older than the retention from the database",
		Long: `trim prints what is older than the retention, and whether it may leave. With --apply it
removes those months, the oldest first, and stops at the first one that may not leave.

A month leaves only if this holds for every organization with entries in it:

  - Signed checkpoints and the archive have all of them.
  - Each file of the archive is in --archive, with the digest that was recorded.
  - No hold keeps them, and no earlier entry would stay.
  - Sessions with entries in it are closed and attested.

Each chain gets an entry, chain.trimmed, and goes on. What stays are the trees, the
checkpoints, and the place from which aid audit verify starts. Requests wait for a second
at most while the table is detached. After an error, run it again.
It needs the role aid_owner.`,
		Example: `  aid audit trim --archive /mnt/archive --hmac-keys hmac.keys

  aid audit trim --archive /mnt/archive --hmac-keys hmac.keys --apply --reason "retention of 13 months"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(o.Archive) == 0 {
				return usagef("--archive is required: the folders with the files of aid audit archive")
			}
			if apply && o.Reason == "" {
				return usagef("--apply needs --reason: it becomes part of the audit log")
			}
			o.Actor, o.Progress = operator(), progress(cmd.ErrOrStderr())
			db, r, err := m.retention(cmd)
			if err != nil {
				return err
			}
			defer db.Close()
			kept, err := audit.RetentionOf(cmd.Context(), db.Pool())
			if err != nil {
				return err
			}
			if kept == 0 {
				return errors.New("no retention is set, so nothing may leave: set it with `aid audit retention --months N`")
			}
			if apply {
				gone, err := r.Trim(cmd.Context(), o)
				for _, month := range gone {
					fmt.Fprintf(cmd.OutOrStdout(), "%s left the database\n", month)
				}
				if err == nil && len(gone) == 0 {
					fmt.Fprintf(cmd.OutOrStdout(), "nothing is older than %d months\n", kept)
				}
				if err != nil {
					return fmt.Errorf("trimming the audit log: %w", err)
				}
				return nil
			}
			plans, err := r.Plan(cmd.Context(), o)
			if err != nil {
				return fmt.Errorf("planning a trim: %w", err)
			}
			return showPlan(cmd.OutOrStdout(), plans, kept)
		},
	}
	cmd.Flags().StringSliceVar(&o.Archive, "archive", nil, "`folders` with the files of aid audit archive")
	cmd.Flags().BoolVar(&apply, "apply", false, "remove the months; without it nothing is changed")
	cmd.Flags().BoolVar(&o.LeaveSessions, "leave-sessions", false, "let entries of sessions leave that are open or not attested; they will have no attestation")
	cmd.Flags().StringVar(&o.Reason, "reason", "", "why the months leave, at most 1024 bytes; part of the audit log")
	m.flags(cmd, true, false)
	return cmd
}

func showPlan(out io.Writer, plans []audit.MonthPlan, kept int) error {
	if len(plans) == 0 {
		_, err := fmt.Fprintf(out, "nothing is older than %d months\n", kept)
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MONTH\tORGANIZATION\tENTRIES\tNUMBERS\tMAY IT LEAVE")
	stays := ""
	for _, p := range plans {
		if p.Detached {
			fmt.Fprintf(w, "%s\t\t\t\tyes: it left the log, and its table is dropped\n", p.Month)
			continue
		}
		for _, o := range p.Orgs {
			why := "yes"
			if o.Why != "" {
				why = "no: " + o.Why
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%d-%d\t%s\n", p.Month, o.Org, o.Entries, o.From, o.To, why)
		}
		switch n := p.Blocked(); {
		case n > 0:
			fmt.Fprintf(w, "%s\t\t\t\tno: %d organizations keep it\n", p.Month, n)
			stays = p.Month.String()
		case stays != "":
			fmt.Fprintf(w, "%s\t\t\t\tno: %s must leave before\n", p.Month, stays)
		default:
			fmt.Fprintf(w, "%s\t\t\t\tyes, with --apply\n", p.Month)
		}
	}
	return w.Flush()
}
