package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/anchor"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/store"
)

func auditReopenCommand() *cobra.Command {
	var m manage
	var reason, jwks string
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
control planes may run. Witnesses must be given the log again: for them it is another log.

If a signing key was replaced after the backup, the database lacks the new key. Give the
organization's keys from before the loss with --jwks.`,
		Example: `  aid audit reopen --org org_default --reason "disk of db-1 failed, backup of 02:00 restored" \
      --hmac-keys hmac.keys --anchor file:/mnt/anchor`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if reason == "" {
				return usagef("--reason is required: why entries were lost; it becomes part of the audit log")
			}
			opened, err := openAnchors(ctx, anchors)
			if err != nil {
				return err
			}
			db, chain, err := m.openChain(cmd, true)
			if err != nil {
				return err
			}
			defer db.Close()
			name, keys, err := m.keysWith(cmd, db, jwks)
			if err != nil {
				return err
			}
			keys.Own = true
			done, err := chain.Reopen(ctx, audit.Reopening{
				Org: m.org, LogName: name, Actor: operator(), Reason: reason, Keys: keys,
				Newest: func(ctx context.Context, origin string) ([]byte, error) {
					return newestOf(ctx, opened, anchors, keys, origin)
				},
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
	cmd.Flags().StringSliceVar(&anchors, "anchor", nil, anchorHelp)
	cmd.Flags().StringVar(&jwks, "jwks", "", jwksHelp)
	return cmd
}

const anchorHelp = "`URIs` of the control plane's anchors: file:FOLDER or s3://BUCKET/PREFIX?region=REGION"

func openAnchors(ctx context.Context, uris []string) (opened []anchor.Anchor, err error) {
	if len(uris) == 0 {
		return nil, usagef("--anchor is required: the anchors of the control plane, which have the signed checkpoints")
	}
	for _, uri := range uris {
		a, err := anchor.Open(ctx, uri)
		if err != nil {
			return nil, usagef("--anchor %s: %v", uri, err)
		}
		opened = append(opened, a)
	}
	return opened, nil
}

// orgKeys returns the name of the installation's logs, and the public keys with the key changes
// of the org.
func (m *manage) orgKeys(ctx context.Context, db *store.DB) (name string, keys evidence.KeySet, err error) {
	if name, err = logName(ctx, db); err != nil {
		return name, keys, err
	}
	err = db.InOrg(ctx, m.org, func(tx pgx.Tx) (err error) {
		keys, err = audit.OrgKeys(ctx, tx, name, m.org)
		return err
	})
	return name, keys, err
}

func auditRestoreCommand() *cobra.Command {
	var m manage
	var jwks string
	var from, anchors []string
	cmd := &cobra.Command{
		Use:   "restore",
		Short: "Put back entries that a restored database lacks, from exports",
		Long: `restore is for a database that was restored to an older state than the checkpoints in its
anchors. It reads exports that were made before the loss, or files of the archive. It puts
back every entry that the database lacks, with its number, time and MAC.

Each file must be intact, must have its entries without a filter, and must agree with the
newest signed checkpoint in the anchors. The last file reaches that checkpoint. Each other
one ends where the next one begins. Otherwise nothing is put back. At the end the tree has the
root of that checkpoint, which is stored again.

Stop the control planes, or leave them: they append nothing meanwhile. What was not in the
audit log does not come back, such as agents and policies. Then run aid audit reopen for the
directory, which lacks its own entries.

If a signing key was replaced after the backup, the database lacks the new key. Give the
organization's keys from before the loss with --jwks.`,
		Example: `  aid audit restore --org org_default --from audit_export.json --hmac-keys hmac.keys --anchor file:/mnt/anchor`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if len(from) == 0 {
				return usagef("--from is required: the files of exports, in their order")
			}
			opened, err := openAnchors(ctx, anchors)
			if err != nil {
				return err
			}
			var files []audit.ExportFile
			for _, name := range from {
				files = append(files, audit.ExportFile{Name: name, Open: func() (io.ReadCloser, error) { return os.Open(name) }})
			}
			db, chain, err := m.openChain(cmd, true)
			if err != nil {
				return err
			}
			defer db.Close()
			name, keys, err := m.keysWith(cmd, db, jwks)
			if err != nil {
				return err
			}
			done, err := chain.Restore(ctx, audit.Restoration{
				Org: m.org, LogName: name, Keys: keys, Exports: files,
				Newest: func(ctx context.Context, origin string) ([]byte, error) {
					return newestOf(ctx, opened, anchors, keys, origin)
				},
			})
			if done.To > 0 {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: entries %d to %d are back\n", m.org, done.From, done.To)
			}
			if err != nil {
				return fmt.Errorf("restoring the audit log of %s: %w", m.org, err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: the log has the root of the newest checkpoint, with %d entries\n", m.org, done.Size)
			return nil
		},
	}
	m.flags(cmd, true, true)
	cmd.Flags().StringSliceVar(&from, "from", nil, "`files` of exports without a filter, in their order")
	cmd.Flags().StringSliceVar(&anchors, "anchor", nil, anchorHelp)
	cmd.Flags().StringVar(&jwks, "jwks", "", jwksHelp)
	return cmd
}

// newestOf returns the newest checkpoint of an origin with our valid signatures. An anchor that
// does not answer is an error: it may have a newer one. So is a checkpoint that the keys do not
// verify: it may be the newest one, with a key that the database does not have.
func newestOf(ctx context.Context, anchors []anchor.Anchor, uris []string, keys evidence.KeySet, origin string) (newest []byte, err error) {
	size := int64(-1)
	for i, a := range anchors {
		note, err := a.Newest(ctx, origin)
		if err != nil {
			return nil, err
		}
		if note == nil {
			continue
		}
		c, err := keys.Open(note, origin)
		unknown := audit.UnknownSigners(note, origin, keys)
		switch {
		case err == nil:
		case evidence.UnknownKey(err) && len(unknown) > 0:
			return nil, fmt.Errorf("%s has a checkpoint of %s by a key that is not in the database (note key id %s). "+
				"The backup is from before a key was replaced. Give the organization's keys from before the loss with --jwks: see docs/restore.md",
				uris[i], origin, strings.Join(unknown, " and "))
		default:
			return nil, fmt.Errorf("%s has a checkpoint of %s that this database's keys do not verify, so it may hide the newest one: "+
				"see docs/restore.md: %w", uris[i], origin, err)
		}
		if c.Size > size {
			newest, size = note, c.Size
		}
	}
	return newest, nil
}

const jwksHelp = "`file` with the organization's JWKS from before the loss, if a signing key was replaced after the backup: its keys are stored again"

// keysWith is orgKeys. With a JWKS it stores the keys that the database lacks first.
func (m *manage) keysWith(cmd *cobra.Command, db *store.DB, jwks string) (name string, keys evidence.KeySet, err error) {
	if jwks != "" {
		text, err := readTrusted(jwks, publicFile)
		if err != nil {
			return "", keys, usagef("--jwks: %v", err)
		}
		set, err := evidence.ParseJWKS(text)
		if err != nil {
			return "", keys, usagef("--jwks %s: %v", jwks, err)
		}
		if name, err = logName(cmd.Context(), db); err != nil {
			return name, keys, err
		}
		added, err := audit.PutBackKeys(cmd.Context(), db, name, m.org, set)
		if err != nil {
			return name, keys, fmt.Errorf("--jwks %s: %w: nothing was changed", jwks, err)
		}
		for _, id := range added {
			fmt.Fprintf(cmd.OutOrStdout(), "key %s is in the database again\n", id)
		}
	}
	return m.orgKeys(cmd.Context(), db)
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
