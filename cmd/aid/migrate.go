package main

import (
	"errors"
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/ai-identity/ai-identity/store"
)

func migrateCommand() *cobra.Command {
	var postgres, database, ownerFile, appFile, auditorFile string
	var provision bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the database's schema up to date, before a rollout",
		Long: `migrate runs the missing migrations of the database, under a lock, and prints each. Run
it as the owner before servers of a new version start. They reject a schema that is
too old, and work with one that is newer.

With --provision it first creates the database and the roles aid_owner, aid_app,
aid_auditor and aid_directory, as an administrator. Then it migrates as the owner. A second run changes
only what is missing. Passwords come from files. A role without a password file has no
password. It can connect only by other methods, such as a certificate.`,
		Example: `  # once, as an administrator
  export AID_POSTGRES='postgres://postgres@db.example.com/postgres?sslmode=verify-full&passfile=admin.pgpass'
  aid migrate --provision --database aid --owner-password-file owner.pw --app-password-file app.pw

  # before each rollout, as the owner
  export AID_POSTGRES='postgres://aid_owner@db.example.com/aid?sslmode=verify-full&passfile=owner.pgpass'
  aid migrate`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logger(cmd, "migrate")
			if err != nil {
				return err
			}
			if postgres == "" {
				return usagef("--postgres is required: the URL of the database, best in the variable AID_POSTGRES, such as postgres://aid_owner@db.example.com/aid?sslmode=verify-full")
			}
			warnOfPassword(postgres, log)
			if !provision {
				for flag, v := range map[string]string{"database": database, "owner-password-file": ownerFile, "app-password-file": appFile, "auditor-password-file": auditorFile} {
					if v != "" && cmd.Flags().Changed(flag) {
						return usagef("--%s works only with --provision", flag)
					}
				}
				return store.Migrate(cmd.Context(), postgres, log)
			}
			c := store.ProvisionConfig{Database: database, Log: log}
			for _, p := range []struct {
				flag, file string
				to         *string
			}{{"owner", ownerFile, &c.OwnerPassword}, {"app", appFile, &c.AppPassword}, {"auditor", auditorFile, &c.AuditorPassword}} {
				if p.file == "" {
					continue
				}
				if *p.to, err = readSecret(p.file); err != nil {
					return usagef("--%s-password-file: %v", p.flag, err)
				}
			}
			made, err := store.Provision(cmd.Context(), postgres, c)
			if err != nil {
				return fmt.Errorf("--provision: %w", err)
			}
			owner := made.OwnerURL
			if ownerFile == "" {
				// The owner may only be reachable through the administrator.
				if owner, err = inDatabase(postgres, database); err != nil {
					return usagef("--postgres: %v", err)
				}
			}
			return store.Migrate(cmd.Context(), owner, log)
		},
	}
	f := cmd.Flags()
	f.StringVar(&postgres, "postgres", "", "database `URL` as the owner (with --provision: as an administrator), better given as AID_POSTGRES")
	f.BoolVar(&provision, "provision", false, "create the roles and the database first")
	f.StringVar(&database, "database", "aid", "name of the database that --provision creates")
	f.StringVar(&ownerFile, "owner-password-file", "", "`file` with the password of aid_owner")
	f.StringVar(&appFile, "app-password-file", "", "`file` with the password of aid_app")
	f.StringVar(&auditorFile, "auditor-password-file", "", "`file` with the password of aid_auditor")
	return cmd
}

// inDatabase returns the URL for another database of the same server.
func inDatabase(address, database string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", errors.New("not a URL") // without the address, which may have a password
	}
	q := u.Query()
	q.Del("dbname")
	q.Del("database")
	u.Path, u.RawPath, u.RawQuery = "/"+database, "", q.Encode()
	return u.String(), nil
}
