package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/ai-identity/ai-identity/envoy"
)

func envoyBootstrapCommand() *cobra.Command {
	var c envoy.Config
	var files tlsFiles
	var serverName string
	cmd := &cobra.Command{
		Use:   "envoy-bootstrap",
		Short: "Print the configuration that an Envoy beside `aid extproc` starts with",
		Long: `envoy-bootstrap prints the start configuration of an Envoy beside an ` + "`aid extproc`" + `,
as JSON. It has the addresses of the control plane and of extproc, limits, and an admin
interface on a private Unix socket. Everything else, including listeners, comes from the
control plane: without it, this Envoy opens no port.

A join token must not be in this configuration, since Envoy's admin interface shows it to
every caller. With a token, ` + "`aid extproc --listen-xds`" + ` forwards the configuration to Envoy.`,
		Example: `  # a pod: the control plane over TLS, authenticated by the pod's certificate
  aid envoy-bootstrap --xds aid-control.aid.svc:18000 --tls-ca /run/tls/ca.pem \
      --tls-cert /run/tls/tls.crt --tls-key /run/tls/tls.key > /run/aid/envoy.json
  envoy --config-path /run/aid/envoy.json --disable-hot-restart

  # a virtual machine with a join token for the sidecar
  aid envoy-bootstrap --xds unix:/run/aid/envoy-xds.sock > /run/aid/envoy.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if files.ca != "" {
				// Envoy reads these files later; an error is easier to see now.
				if _, err := files.client(serverName); err != nil {
					return usagef("%v", err)
				}
				c.XDS.TLS = &envoy.TLS{CAFile: files.ca, ServerName: serverName, CertFile: files.cert, KeyFile: files.key}
			}
			if c.NodeID == "" {
				c.NodeID, _ = os.Hostname()
			}
			if c.XDS.Address == "" {
				return usagef("--xds is required: set it to the address of the control plane, such as control.example.com:18000 or unix:/run/aid/xds.sock")
			}
			b, err := envoy.Bootstrap(c)
			if err != nil {
				return usagef("%v", err)
			}
			_, err = cmd.OutOrStdout().Write(b)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.NodeID, "node-id", "", "name of this Envoy at the control plane (default: the host's name)")
	f.StringVar(&c.Cluster, "cluster", "aid", "Envoy's node.cluster")
	f.StringVar(&c.XDS.Address, "xds", "", "control plane: host:port or unix:/path")
	f.StringVar(&files.ca, "tls-ca", "", "PEM `file` of the CA of the control plane's certificate; required unless the control plane is on this machine")
	f.StringVar(&serverName, "tls-server-name", "", "name in the control plane's certificate (default: the host of --xds)")
	f.StringVar(&files.cert, "tls-cert", "", "PEM `file` of this node's client certificate")
	f.StringVar(&files.key, "tls-key", "", "PEM `file` of the key of --tls-cert")
	f.StringVar(&c.ExtProc, "extproc", "/run/aid/extproc.sock", "Unix socket of `aid extproc`")
	f.StringVar(&c.API.Address, "api", "", "management API that the gateway forwards /v1/agents and similar paths to: host:port on this machine or unix:/path; empty: none")
	f.StringVar(&c.Admin, "admin", "/run/aid/envoy.sock", "Unix socket of Envoy's admin interface")
	f.Int64Var(&c.MaxConnections, "max-connections", 0, "limit of concurrent client connections (default 50000)")
	f.Int64Var(&c.MaxHeapBytes, "max-heap", 0, "bytes of memory from which on requests are rejected (default 2147483648)")
	f.Int64Var(&c.MaxStreams, "max-streams", 0, "limit of concurrent requests, including streamed responses (default 50000)")
	return cmd
}
