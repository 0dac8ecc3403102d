package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/provider"
)

func keysCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "keys", Short: "Create signing keys, and rotate the keys that encrypt secrets at rest"}
	cmd.AddCommand(resealCommand(), signingCommand())
	return cmd
}

func resealCommand() *cobra.Command {
	var m manage
	var fernet string
	cmd := &cobra.Command{
		Use:   "reseal",
		Short: "Encrypt an organization's provider secrets again, with the newest Fernet key",
		Long: `reseal encrypts the credentials and header values of an organization's providers
again, and the keys of the egress CA, with the first key of --fernet-keys. Values that have that key already are
left alone, so you can stop it and run it again.

To rotate a key:

  1. Add a new key as the first line of each control plane's file.
  2. Wait until each has read the file (aid_file_reloads_total), or restart them.
  3. Run reseal for each organization.
  4. Remove the old key one day later. Stored responses of requests with an
     Idempotency-Key need it until then.

Exit codes: 0 every value has the newest key; 1 some values cannot be decrypted.
They are listed, and all others were encrypted again.`,
		Example: `  export AID_POSTGRES='postgres://aid_app@db.example.com/aid?sslmode=verify-full&passfile=app.pgpass'
  aid keys reseal --org org_default --fernet-keys fernet.keys --hmac-keys hmac.keys`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			db, err := m.open(cmd, true)
			if err != nil {
				return err
			}
			defer db.Close()
			sealer, err := m.sealer(fernet)
			if err != nil {
				return err
			}
			chain, err := m.chain(db)
			if err != nil {
				return err
			}
			var ids []string
			var values int
			err = db.InOrg(ctx, m.org, func(tx pgx.Tx) error {
				all, err := provider.List(ctx, tx)
				if err != nil {
					return err
				}
				stored, err := provider.Credentials(ctx, tx)
				ids, values = nil, len(stored)
				for _, p := range all {
					ids = append(ids, p.ID)
					values += len(p.Headers)
				}
				return err
			})
			if err != nil {
				return err
			}
			again, failed := 0, []string{}
			for _, id := range ids {
				var n int
				err := db.InOrg(ctx, m.org, func(tx pgx.Tx) (err error) {
					if n, err = provider.Reseal(ctx, tx, sealer, id); err != nil || n == 0 {
						return err
					}
					_, err = chain.Record(ctx, tx, m.org, audit.Changed{
						Kind: "provider.updated", Actor: operator(), ObjectKind: "provider", ObjectID: id, Fields: []string{"encryption"},
					})
					return err
				})
				switch {
				case errors.Is(err, provider.ErrNotFound): // deleted in the meantime
				case errors.Is(err, provider.ErrUnreadable):
					failed = append(failed, id)
					fmt.Fprintf(cmd.ErrOrStderr(), "aid: %s: %v\n", id, err)
				case err != nil:
					return fmt.Errorf("%s: %w", id, err)
				case n > 0:
					again += n
					fmt.Fprintf(cmd.ErrOrStderr(), "aid: %s: %d encrypted again\n", id, n)
				}
			}
			err = pgx.BeginFunc(ctx, db.Pool(), func(tx pgx.Tx) error {
				n, err := identity.ResealCA(ctx, tx, sealer)
				if n > 0 && err == nil {
					fmt.Fprintf(cmd.ErrOrStderr(), "aid: the egress CA: %d keys encrypted again\n", n)
				}
				return err
			})
			if err != nil {
				return fmt.Errorf("encrypting the egress CA's keys again: %w", err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %d providers, %d values encrypted again, %d providers with values that cannot be decrypted\n", m.org, len(ids), again, len(failed))
			if len(failed) > 0 {
				return fmt.Errorf("no key in %s decrypts values of %s: add the key that encrypted them, or set the values again", fernet, strings.Join(failed, ", "))
			}
			if values == 0 {
				return nil // Nothing shows that the keys are right.
			}
			if err := provider.ResealProof(ctx, db.Pool(), sealer); err != nil {
				return fmt.Errorf("encrypting the proof of the keys again: %w", err)
			}
			return nil
		},
	}
	m.flags(cmd, true, true)
	cmd.Flags().StringVar(&fernet, "fernet-keys", "", "`file` with the Fernet keys, one per line; the first encrypts, all decrypt")
	return cmd
}
