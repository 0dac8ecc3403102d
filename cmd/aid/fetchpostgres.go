package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ai-identity/ai-identity/store"
)

// fetchPostgresCommand is hidden, since only make needs it.
func fetchPostgresCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "fetch-postgres DIR",
		Short:  "Download and unpack the Postgres that `aid up` embeds",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := store.FetchPostgres(cmd.Context(), args[0], func(step string) {
				fmt.Fprintf(cmd.ErrOrStderr(), "aid: %s\n", step)
			})
			if err != nil {
				return fmt.Errorf("fetching Postgres into %s: %w", args[0], err)
			}
			return nil
		},
	}
}
