package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"regexp"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
)

func orgCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "org",
		Short: "Create an organization, and the keys that manage it",
		Long: `org creates an organization and its first key, which the management API needs.
Do everything else with that key through the API. ` + "`aid up`" + ` creates the
organization "default" and its key.`,
	}
	key := &cobra.Command{Use: "key", Short: "Keys that manage an organization"}
	key.AddCommand(orgKeyCreateCommand())
	cmd.AddCommand(orgCreateCommand(), orgListKeysCommand(), orgTrustCommand(), orgGrantCommand(), orgWithdrawCommand(), key)
	return cmd
}

func orgCreateCommand() *cobra.Command {
	var m manage
	var name, tier, out string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create an organization and its first key",
		Long: `create creates an organization and a key with the role admin. The key is shown
once, on stdout or in a new file (--out): only its hash is stored. The
organization's id is on stderr.

Connect as the owner of the database: other roles may not create organizations.`,
		Example: `  export AID_POSTGRES='postgres://aid_owner@db.example.com/aid?sslmode=verify-full&passfile=owner.pgpass'
  aid org create --name acme --hmac-keys hmac.keys --out acme.key`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if name == "" {
				return usagef("--name is required: the name of the organization")
			}
			if err := canHandOver(out); err != nil {
				return err
			}
			db, chain, err := m.openChain(cmd, false)
			if err != nil {
				return err
			}
			defer db.Close()
			now := m.now()
			id, err := identity.NewID(identity.OrgID, now, rand.Reader)
			if err != nil {
				return err
			}
			secret, k, err := newOrgKey(id, "first", identity.Admin, now)
			if err != nil {
				return err
			}
			org := identity.Org{ID: id, Name: name, Tier: tier, CreatedAt: now}
			err = db.InOrg(cmd.Context(), id, func(tx pgx.Tx) error {
				ctx := cmd.Context()
				if err := identity.InsertOrg(ctx, tx, org); err != nil {
					return err
				}
				if _, err := chain.Record(ctx, tx, id, created(operator(), "org", id, org)); err != nil {
					return err
				}
				return insertOrgKey(ctx, tx, chain, operator(), k)
			})
			if err != nil {
				return fmt.Errorf("creating the organization: %w", err)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "aid: created organization %s (%s) with key %s\n", id, name, k.ID)
			return handOver(cmd.OutOrStdout(), out, secret)
		},
	}
	m.flags(cmd, true, false)
	cmd.Flags().StringVar(&name, "name", "", "name of the organization")
	cmd.Flags().StringVar(&tier, "tier", "", "value of org.tier in policies")
	cmd.Flags().StringVar(&out, "out", "", "new private `file` for the key (default: stdout)")
	return cmd
}

func orgKeyCreateCommand() *cobra.Command {
	var m manage
	var name, role, out string
	var expires time.Duration
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create another key of an organization",
		Long: `create creates a key that manages an organization. Use it if no active admin key is
left for the API. The key is shown once, on stdout or in a new file (--out).

Roles: admin may do everything, auditor may read everything, reviewer may read
agents and decide approvals.`,
		Example: `  aid org key create --org org_default --name ci --role auditor --hmac-keys hmac.keys --out ci.key`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch identity.Role(role) {
			case identity.Admin, identity.Auditor, identity.Reviewer:
			default:
				return usagef("--role %q: valid values are admin, auditor and reviewer", role)
			}
			if name == "" {
				return usagef("--name is required: the purpose of the key")
			}
			if expires < 0 {
				return usagef("--expires %v: set a time from now, such as 720h", expires)
			}
			if err := canHandOver(out); err != nil {
				return err
			}
			db, chain, err := m.openChain(cmd, true)
			if err != nil {
				return err
			}
			defer db.Close()
			now := m.now()
			secret, k, err := newOrgKey(m.org, name, identity.Role(role), now)
			if err != nil {
				return err
			}
			if expires > 0 {
				k.ExpiresAt = now.Add(expires)
			}
			err = db.InOrg(cmd.Context(), m.org, func(tx pgx.Tx) error {
				return insertOrgKey(cmd.Context(), tx, chain, operator(), k)
			})
			if err != nil {
				return fmt.Errorf("creating a key of %s: %w", m.org, err)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "aid: created key %s (%s) of %s\n", k.ID, role, m.org)
			return handOver(cmd.OutOrStdout(), out, secret)
		},
	}
	m.flags(cmd, true, true)
	cmd.Flags().StringVar(&name, "name", "", "purpose of the key")
	cmd.Flags().StringVar(&role, "role", string(identity.Admin), "admin, auditor or reviewer")
	cmd.Flags().DurationVar(&expires, "expires", 0, "time from now until the key expires (default: never)")
	cmd.Flags().StringVar(&out, "out", "", "new private `file` for the key (default: stdout)")
	return cmd
}

func orgListKeysCommand() *cobra.Command {
	var m manage
	cmd := &cobra.Command{
		Use:     "list-keys",
		Short:   "List the keys of an organization",
		Long:    `list-keys lists the keys that manage an organization, without their secrets.`,
		Example: `  aid org list-keys --org org_default`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			db, err := m.open(cmd, true)
			if err != nil {
				return err
			}
			defer db.Close()
			var keys []identity.OrgKeyRecord
			err = db.InOrg(cmd.Context(), m.org, func(tx pgx.Tx) (err error) {
				keys, err = allOrgKeys(cmd.Context(), tx)
				return err
			})
			if err != nil {
				return fmt.Errorf("listing the keys of %s: %w", m.org, err)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tNAME\tROLE\tCREATED\tSTATE")
			for _, k := range keys {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", k.ID, k.Name, k.Role, k.CreatedAt.UTC().Format(time.RFC3339), state(k.ActiveAt(m.now())))
			}
			return w.Flush()
		},
	}
	m.flags(cmd, false, true)
	return cmd
}

// state returns the status of a key or a node for lists.
func state(inactive error) string {
	if inactive == nil {
		return "active"
	}
	return inactive.Error()
}

// allOrgKeys reads all pages of an org's keys.
func allOrgKeys(ctx context.Context, tx pgx.Tx) (all []identity.OrgKeyRecord, err error) {
	return identity.ListOrgKeys(ctx, tx)
}

func orgTrustCommand() *cobra.Command {
	var m manage
	cmd := &cobra.Command{
		Use:   "trust PREFIX",
		Short: "Let an organization use SPIFFE ids below a prefix, for nodes and agents",
		Long: `trust lets the admins of an organization create nodes with SPIFFE ids below PREFIX, and
bind such ids to agents.
PREFIX is a trust domain, or a trust domain and whole path segments. Without a prefix
an organization can only create nodes with join tokens. Prefixes of two organizations
must not overlap.

Connect as the owner of the database: other roles may not grant prefixes.`,
		Example: `  aid org trust spiffe://corp.example/ns/acme --org org_acme --hmac-keys hmac.keys`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !spiffePrefix.MatchString(args[0]) {
				return usagef("PREFIX %q: set spiffe://TRUST-DOMAIN or spiffe://TRUST-DOMAIN/PATH, without a slash at the end", args[0])
			}
			err := m.grants(cmd, func(ctx context.Context, tx pgx.Tx, chain *audit.Chain) error {
				if err := identity.GrantPrefix(ctx, tx, m.org, args[0]); err != nil {
					return err
				}
				_, err := chain.Record(ctx, tx, m.org, created(operator(), "trust_prefix", args[0], map[string]string{"prefix": args[0]}))
				return err
			})
			if errors.Is(err, identity.ErrConflict) {
				return fmt.Errorf("%s overlaps with the prefix of another organization: choose a longer one", args[0])
			}
			if err != nil {
				return fmt.Errorf("granting %s to %s: %w", args[0], m.org, err)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "aid: %s may use SPIFFE ids below %s\n", m.org, args[0])
			return nil
		},
	}
	m.flags(cmd, true, true)
	return cmd
}

func orgGrantCommand() *cobra.Command {
	var m manage
	var issuer, namespace string
	cmd := &cobra.Command{
		Use:   "grant",
		Short: "Let an organization bind the service accounts of a Kubernetes namespace to its agents",
		Long: `grant lets the admins of an organization bind service accounts of a namespace to
agents. --issuer is the issuer of the cluster's tokens, as their claim iss has it. A
namespace of a cluster belongs to one organization. For SPIFFE ids see ` + "`aid org trust`" + `.

Connect as the owner of the database: other roles may not grant namespaces.`,
		Example: `  aid org grant --issuer https://kubernetes.default.svc.cluster.local --namespace ai --org org_acme --hmac-keys hmac.keys`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkNamespace(issuer, namespace); err != nil {
				return err
			}
			err := m.grants(cmd, func(ctx context.Context, tx pgx.Tx, chain *audit.Chain) error {
				if err := identity.GrantNamespace(ctx, tx, m.org, issuer, namespace); err != nil {
					return err
				}
				id := issuer + "#" + namespace
				_, err := chain.Record(ctx, tx, m.org, created(operator(), "trust_namespace", id, map[string]string{"issuer": issuer, "namespace": namespace}))
				return err
			})
			if errors.Is(err, identity.ErrConflict) {
				return fmt.Errorf("the namespace %s of %s belongs to an organization: withdraw it there first", namespace, issuer)
			}
			if err != nil {
				return fmt.Errorf("granting the namespace %s to %s: %w", namespace, m.org, err)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "aid: %s may bind service accounts of the namespace %s of %s\n", m.org, namespace, issuer)
			return nil
		},
	}
	m.flags(cmd, true, true)
	cmd.Flags().StringVar(&issuer, "issuer", "", "issuer of the cluster's tokens, an https:// `URL`")
	cmd.Flags().StringVar(&namespace, "namespace", "", "`name` of the namespace")
	return cmd
}

func orgWithdrawCommand() *cobra.Command {
	var m manage
	var issuer, namespace string
	cmd := &cobra.Command{
		Use:   "withdraw [PREFIX]",
		Short: "Withdraw a grant, and delete the identities of agents below it",
		Long: `withdraw ends a grant of ` + "`aid org grant`" + ` (--issuer and --namespace) or of
` + "`aid org trust`" + ` (PREFIX). The identities of agents below it are deleted: sidecars
reject them and cut their streams. Nodes keep their SPIFFE ids: see ` + "`aid node revoke`" + `.

Connect as the owner of the database.`,
		Example: `  aid org withdraw --issuer https://kubernetes.default.svc.cluster.local --namespace ai --org org_acme --hmac-keys hmac.keys
  aid org withdraw spiffe://corp.example/ns/acme --org org_acme --hmac-keys hmac.keys`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, id := "trust_namespace", issuer+"#"+namespace
			switch {
			case len(args) == 1 && (issuer != "" || namespace != ""):
				return usagef("PREFIX and --issuer exclude each other: set one of them")
			case len(args) == 1:
				kind, id = "trust_prefix", args[0]
			default:
				if err := checkNamespace(issuer, namespace); err != nil {
					return err
				}
			}
			err := m.grants(cmd, func(ctx context.Context, tx pgx.Tx, chain *audit.Chain) error {
				var err error
				if kind == "trust_prefix" {
					err = identity.WithdrawPrefix(ctx, tx, id)
				} else {
					err = identity.WithdrawNamespace(ctx, tx, issuer, namespace)
				}
				if err != nil {
					return err
				}
				_, err = chain.Record(ctx, tx, m.org, audit.Changed{Kind: kind + ".deleted", Actor: operator(), ObjectKind: kind, ObjectID: id})
				return err
			})
			if err != nil {
				return fmt.Errorf("withdrawing %s from %s: %w", id, m.org, err)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "aid: %s is withdrawn from %s\n", id, m.org)
			return nil
		},
	}
	m.flags(cmd, true, true)
	cmd.Flags().StringVar(&issuer, "issuer", "", "issuer of the cluster's tokens, an https:// `URL`")
	cmd.Flags().StringVar(&namespace, "namespace", "", "`name` of the namespace")
	return cmd
}

func checkNamespace(issuer, namespace string) error {
	if err := identity.CheckIssuer(issuer); err != nil {
		return usagef("--issuer %q: %v", issuer, err)
	}
	if err := identity.CheckNamespace(namespace); err != nil {
		return usagef("--namespace %q: %v", namespace, err)
	}
	return nil
}

// grants runs a change of an organization's grants, with its audit entry, in one transaction.
func (m *manage) grants(cmd *cobra.Command, fn func(context.Context, pgx.Tx, *audit.Chain) error) error {
	db, chain, err := m.openChain(cmd, true)
	if err != nil {
		return err
	}
	defer db.Close()
	return db.InOrg(cmd.Context(), m.org, func(tx pgx.Tx) error { return fn(cmd.Context(), tx, chain) })
}

var spiffePrefix = regexp.MustCompile(`^spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)*$`)
