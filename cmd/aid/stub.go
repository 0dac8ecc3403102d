package main

import (
	"context"
	"github.com/spf13/cobra"
)

const defaultMaxBody = 16 << 20

type database struct{ appURL string }
type joinToken struct{ file, secret string }

func (u *up) database(ctx context.Context) (database, error)             { panic(0) }
func (u *up) settle(ctx context.Context, db database) (joinToken, error) { panic(0) }
func controlCommand() *cobra.Command {
	return &cobra.Command{Use: "control", RunE: func(*cobra.Command, []string) error { return nil }}
}
func extprocCommand() *cobra.Command { return &cobra.Command{Use: "extproc"} }
func migrateCommand() *cobra.Command { return &cobra.Command{Use: "migrate"} }
func orgCommand() *cobra.Command     { return &cobra.Command{Use: "org"} }
func nodeCommand() *cobra.Command    { return &cobra.Command{Use: "node"} }
func auditCommand() *cobra.Command   { return &cobra.Command{Use: "audit"} }
func fetchPostgresCommand() *cobra.Command {
	return &cobra.Command{Use: "fetch-postgres", Hidden: true}
}
func (d *doctor) checkDatabase(ctx context.Context) {}
