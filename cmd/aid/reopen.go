package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/anchor"
	"github.com/ai-identity/ai-identity/audit/evidence"
)

func auditReopenCommand() *cobra.Command {
	var m manage
	var reason string
	var anchors []string
	cmd := &cobra.Command{
		Use:   "reopen",
		Short: "Continue an organization's chain after a restore that lost entries",
		Long: `reopen is for a database that was restored to an older state than the checkpoints in its
anchors. The control plane appends nothing then. Restore a newer backup if there is one.

reopen accepts the loss. It compares the database with the newest signed checkpoint in each
anchor. The organization's chain continues in its next incarnation, behind every number that
was signed, so no number has two meanings. The first entry of the incarnation,
chain.reopened, has that checkpoint, the range that was lost, and your reason. Verifiers
report the loss for ever. The directory's log continues in the same way.

Run it once for each organization that /readyz or the log names, with the owner's role. The
control planes may run. Witnesses must be given the log again: for them it is another log.`,
		Example: `  aid audit reopen --org org_default --reason "disk of db-1 failed, backup of 02:00 restored" \
      --hmac-keys hmac.keys --anchor file:/mnt/anchor`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if reason == "" {
				return usagef("--reason is required: why entries were lost; it becomes part of the audit log")
			}
			if len(anchors) == 0 {
				return usagef("--anchor is required: the anchors of the control plane, which have the signed checkpoints")
			}
			var opened []anchor.Anchor
			for _, uri := range anchors {
				a, err := anchor.Open(ctx, uri)
				if err != nil {
					return usagef("--anchor %s: %v", uri, err)
				}
				opened = append(opened, a)
			}
			db, err := m.open(cmd, true)
			if err != nil {
				return err
			}
			defer db.Close()
			chain, err := m.chain(db)
			if err != nil {
				return err
			}
			name, err := logName(ctx, db)
			if err != nil {
				return err
			}
			var keys evidence.KeySet
			err = db.InOrg(ctx, m.org, func(tx pgx.Tx) (err error) {
				keys, err = audit.OrgKeys(ctx, tx, name, m.org)
				return err
			})
			if err != nil {
				return err
			}
			keys.Own = true
			done, err := chain.Reopen(ctx, audit.Reopening{
				Org: m.org, LogName: name, Actor: operator(), Reason: reason, Keys: keys,
				Newest: func(ctx context.Context, origin string) ([]byte, error) { return newestOf(ctx, opened, keys, origin) },
			})
			if errors.Is(err, audit.ErrNothingLost) {
				return fmt.Errorf("%s: %w: nothing was changed", m.org, err)
			} else if err != nil {
				return fmt.Errorf("reopening the audit log of %s: %w", m.org, err)
			}
			out := cmd.OutOrStdout()
			if done.Directory > 0 {
				fmt.Fprintf(out, "the directory: %d leaves are lost, and the log continues behind them\n", done.Directory)
			}
			switch {
			case done.Incarnation == 0:
				fmt.Fprintf(out, "%s: no entries are lost\n", m.org)
			case done.LostTo == 0:
				fmt.Fprintf(out, "%s: incarnation %d begins with entry %d; no entries are lost\n", m.org, done.Incarnation, done.First)
			default:
				fmt.Fprintf(out, "%s: incarnation %d begins with entry %d; entries %d to %d are lost\n", m.org, done.Incarnation, done.First, done.LostFrom, done.LostTo)
			}
			return nil
		},
	}
	m.flags(cmd, true, true)
	cmd.Flags().StringVar(&reason, "reason", "", "why entries were lost; part of the audit log")
	cmd.Flags().StringSliceVar(&anchors, "anchor", nil, "`URIs` of the control plane's anchors: file:FOLDER or s3://BUCKET/PREFIX?region=REGION")
	return cmd
}

// newestOf returns the newest checkpoint of an origin with our valid signatures. An anchor that
// does not answer is an error: it may have a newer one.
func newestOf(ctx context.Context, anchors []anchor.Anchor, keys evidence.KeySet, origin string) (newest []byte, err error) {
	size := int64(-1)
	for _, a := range anchors {
		note, err := a.Newest(ctx, origin)
		if err != nil {
			return nil, err
		}
		if note == nil {
			continue
		}
		if c, err := keys.Open(note, origin); err == nil && c.Size > size {
			newest, size = note, c.Size
		}
	}
	return newest, nil
}

func auditKeyCommand() *cobra.Command {
	var org, hmac string
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Print an organization's own HMAC keys, for its auditor",
		Long: `key derives the HMAC keys of one organization, one for each epoch, and prints them in the
form of the verifier's variable AI_IDENTITY_HMAC_KEY. With them an auditor verifies the
MACs of this organization, and could also compute them. They do not reveal the keys of
other organizations. Entries with MACs of version 1 need the installation's key.

The output is secret. Write it to a private file.`,
		Example: `  (umask 077; aid audit key --org org_default --hmac-keys hmac.keys > org_default.hmac)`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if org == "" {
				return usagef("--org is required: the id of the organization, such as org_default")
			}
			keys, err := chainKeys(hmac)
			if err != nil {
				return err
			}
			own, err := keys.OrgKeys(org)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), own)
			return err
		},
	}
	cmd.Flags().StringVar(&org, "org", "", "id of the organization (org_…)")
	cmd.Flags().StringVar(&hmac, "hmac-keys", "", "`file` with the keys of the audit chain, the same as the control plane's")
	return cmd
}
