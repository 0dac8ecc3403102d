package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
)

func nodeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Manage the Envoys and sidecars that may fetch an organization's configuration",
		Long: `node manages the machines that enforce policies. Each Envoy and each ` + "`aid extproc`" + `
presents a join token or a certificate to the control plane. It receives the configuration
of its organizations, including credentials. An unknown node receives nothing.`,
	}
	cmd.AddCommand(nodeCreateCommand(), nodeListCommand(), nodeRevokeCommand())
	return cmd
}

func nodeCreateCommand() *cobra.Command {
	var m manage
	var name, spiffe, role, out string
	var more []string
	var intercepts bool
	var expires time.Duration
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create a node, with a join token or for a certificate",
		Long: `create creates a node. Without --spiffe-id the node gets a join token for --token-file of
` + "`aid extproc`" + `. The token is shown once, on stdout or in a new file (--out).
With --spiffe-id, each machine with a certificate of that id is this node.

--role envoy is for an Envoy: it gets listeners, routes and clusters. --role extproc
is for a sidecar: it gets callers, credentials and policies, and appends audit
records. Without --role the node may do both, as ` + "`aid up`" + ` does.

With --orgs one gateway serves several organizations: the caller's key selects the
organization of each request. Only the operator can create such a node. Requests
without a known caller belong to no organization. They are counted in the audit log of
--org, the node's home. Set --org to the organization of the gateway's operator.`,
		Example: `  aid node create --org org_default --name vm-7 --hmac-keys hmac.keys --out vm-7.token
  aid node create --org org_default --name gateways --hmac-keys hmac.keys \
      --spiffe-id spiffe://cluster.local/ns/ai/sa/gateway
  aid node create --org org_a --orgs org_b,org_c --name shared --role extproc --hmac-keys hmac.keys --out shared.token`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if name == "" {
				return usagef("--name is required: the name of the machine")
			}
			if spiffe != "" && !strings.HasPrefix(spiffe, "spiffe://") {
				return usagef("--spiffe-id %q: set spiffe://TRUST-DOMAIN/PATH", spiffe)
			}
			if expires < 0 {
				return usagef("--expires %v: set a time from now, such as 720h", expires)
			}
			roles, err := nodeRoles(role)
			if err != nil {
				return err
			}
			if intercepts {
				if role == "extproc" {
					return usagef("--egress: certificates are for an Envoy: use it with --role envoy or both")
				}
				roles = append(roles, identity.NodeEgress)
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
			token, n, err := newNode(m.org, name, now)
			if err != nil {
				return err
			}
			if spiffe != "" {
				token, n.TokenHash, n.SPIFFEID = "", [32]byte{}, spiffe
			}
			if expires > 0 {
				n.ExpiresAt = now.Add(expires)
			}
			n.Roles, n.ByOperator = roles, true
			orgs := append([]string{m.org}, more...)
			err = db.InOrgs(cmd.Context(), orgs, func(org string, tx pgx.Tx) error {
				n.OrgID, n.Home = org, org == m.org
				return insertNode(cmd.Context(), tx, chain, operator(), n)
			})
			if err != nil {
				return fmt.Errorf("creating a node of %s: %w", strings.Join(orgs, ", "), err)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "aid: created node %s (%s) of %s\n", n.ID, name, strings.Join(orgs, ", "))
			if token == "" {
				return nil
			}
			return handOver(cmd.OutOrStdout(), out, token)
		},
	}
	m.flags(cmd, true, true)
	cmd.Flags().StringVar(&name, "name", "", "name of the machine")
	cmd.Flags().StringVar(&role, "role", "both", "envoy, extproc or both")
	cmd.Flags().BoolVar(&intercepts, "egress", false, "the Envoy also intercepts connections to governed hosts: it gets their certificates")
	cmd.Flags().StringSliceVar(&more, "orgs", nil, "other organizations that the node serves; --org is its home")
	cmd.Flags().StringVar(&spiffe, "spiffe-id", "", "id in the node's certificate, instead of a token")
	cmd.Flags().DurationVar(&expires, "expires", 0, "time from now until the node expires (default: never)")
	cmd.Flags().StringVar(&out, "out", "", "new private `file` for the token (default: stdout)")
	return cmd
}

func nodeListCommand() *cobra.Command {
	var m manage
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the nodes of an organization",
		Long:    `list lists the nodes that may fetch an organization's configuration, without their tokens.`,
		Example: `  aid node list --org org_default`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			db, err := m.open(cmd, true)
			if err != nil {
				return err
			}
			defer db.Close()
			var nodes []identity.Node
			err = db.InOrg(cmd.Context(), m.org, func(tx pgx.Tx) (err error) {
				nodes, err = identity.ListNodes(cmd.Context(), tx)
				return err
			})
			if err != nil {
				return fmt.Errorf("listing the nodes of %s: %w", m.org, err)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tNAME\tROLES\tPRESENTS\tCREATED\tSTATE")
			for _, n := range nodes {
				presents := "a token"
				if n.SPIFFEID != "" {
					presents = n.SPIFFEID
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", n.ID, n.Name, rolesShown(n.Roles), presents, n.CreatedAt.UTC().Format(time.RFC3339), state(n.ActiveAt(m.now())))
			}
			return w.Flush()
		},
	}
	m.flags(cmd, false, true)
	return cmd
}

func nodeRevokeCommand() *cobra.Command {
	var m manage
	var more []string
	cmd := &cobra.Command{
		Use:   "revoke NODE",
		Short: "Revoke a node",
		Long: `revoke ends a node's access: the control plane closes its streams and rejects new
ones. A connected sidecar deletes its configuration at once. A sidecar without contact
continues until its --max-staleness is over. A node of several organizations continues
for the others: name them with --orgs to revoke it there as well.`,
		Example: `  aid node revoke node_01jabc… --org org_default --hmac-keys hmac.keys`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			db, chain, err := m.openChain(cmd, true)
			if err != nil {
				return err
			}
			defer db.Close()
			err = db.InOrgs(cmd.Context(), append([]string{m.org}, more...), func(org string, tx pgx.Tx) error {
				if err := identity.RevokeNode(cmd.Context(), tx, args[0], m.now()); err != nil {
					return err
				}
				_, err := chain.Record(cmd.Context(), tx, org, audit.Changed{
					Kind: "node.revoked", Actor: operator(), ObjectKind: "node", ObjectID: args[0], Fields: []string{"revoked_at"},
				})
				return err
			})
			if err != nil {
				return fmt.Errorf("revoking %s of %s: %w", args[0], m.org, err)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "aid: node %s revoked\n", args[0])
			return nil
		},
	}
	m.flags(cmd, true, true)
	cmd.Flags().StringSliceVar(&more, "orgs", nil, "other organizations in which to revoke the node")
	return cmd
}

// nodeRoles returns the roles of --role.
func nodeRoles(role string) ([]identity.NodeRole, error) {
	switch role {
	case "envoy", "extproc":
		return []identity.NodeRole{identity.NodeRole(role)}, nil
	case "both":
		return []identity.NodeRole{identity.NodeEnvoy, identity.NodeExtproc}, nil
	}
	return nil, usagef("--role %q: valid values are envoy, extproc and both", role)
}

func rolesShown(roles []identity.NodeRole) string {
	words := make([]string, len(roles))
	for i, r := range roles {
		words[i] = string(r)
	}
	return strings.Join(words, ",")
}
