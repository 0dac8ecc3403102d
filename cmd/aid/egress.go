package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/xds"
)

// egressHosts are the hosts of known providers' public APIs. The operator can set others.
var egressHosts = []string{
	"api.anthropic.com", "api.cohere.com", "api.deepseek.com", "api.fireworks.ai", "api.groq.com", "api.mistral.ai", "api.openai.com", "api.perplexity.ai",
	"api.together.xyz", "api.x.ai", "generativelanguage.googleapis.com", "openrouter.ai",
}

const egressHostsHelp = "`hosts` of providers whose intercepted connections may be decrypted: exact names; an organization governs those of its providers"

// egress are the flags of the interception of connections to providers' own hosts.
type egress struct {
	listen, proxy string
	hosts         []string
}

func (e egress) config() xds.Egress {
	return xds.Egress{Listen: e.listen, Proxy: e.proxy, Hosts: e.hosts}
}

func (e egress) check() error {
	if err := xds.CheckEgress(e.config()); err != nil {
		return usagef("--egress, --proxy, --egress-hosts: %v", err)
	}
	if (e.listen != "" || e.proxy != "") && len(e.hosts) == 0 {
		return usagef("--egress-hosts is empty: set the hosts to intercept, such as api.openai.com, or remove --egress and --proxy")
	}
	return nil
}

func egressCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "egress",
		Short: "Run applications with their providers' own URLs, intercepted",
		Long: `egress is for applications that keep their provider's URL, such as https://api.openai.com.
They connect through the forward proxy of ` + "`aid up`" + ` or of a gateway. Envoy decrypts connections to
governed hosts only, with a certificate of the installation's CA. The same policies, audit log
and credentials apply as at the gateway. The application's key is an agent's key (aid_sk_…).

run starts a program with the variables that it needs. env prints them. ca prints the
certificates that applications must trust.`,
	}
	cmd.AddCommand(egressRunCommand(), egressEnvCommand(), egressCACommand(), egressRotateCommand())
	return cmd
}

// egressPlace are the flags that say where the proxy and the CA are.
type egressPlace struct{ home, proxy, ca string }

func (p *egressPlace) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&p.home, "home", ".aid", "`folder` of `aid up`, which has the proxy's address and the CA")
	f.StringVar(&p.proxy, "proxy", "", "`URL` of the forward proxy (default: the one of --home)")
	f.StringVar(&p.ca, "ca", "", "PEM `file` with the roots, as `aid egress ca` prints them (default: the one of --home)")
}

func egressRunCommand() *cobra.Command {
	var p egressPlace
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARG]...",
		Short: "Run a program whose connections to governed hosts are intercepted",
		Long: `run starts a program with the variables of ` + "`aid egress env`" + `. The program's SDK needs no
change: it keeps its URL and gets an agent's key as its key. Its exit code is run's.

The proxy opens connections to governed hosts only. For other hosts, add them to NO_PROXY.`,
		Example: `  OPENAI_API_KEY=$KEY aid egress run -- python app.py`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			vars, err := p.variables(os.Getenv)
			if err != nil {
				return err
			}
			path, err := exec.LookPath(args[0])
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			env := slices.DeleteFunc(os.Environ(), func(v string) bool {
				name, _, _ := strings.Cut(v, "=")
				return slices.ContainsFunc(vars, func(set [2]string) bool { return set[0] == name })
			})
			for _, v := range vars {
				env = append(env, v[0]+"="+v[1])
			}
			return syscall.Exec(path, args, env) // the program replaces this one, with its signals and its exit code
		},
	}
	p.flags(cmd)
	return cmd
}

func egressEnvCommand() *cobra.Command {
	var p egressPlace
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Print the variables for an intercepted program",
		Long: `env prints lines for a shell. Most variables replace the certificates that a program trusts.
They name a file with the system's certificates, those of a variable that is already set,
and the CA of the installation. NODE_EXTRA_CA_CERTS adds the CA alone. Node reads the
proxy's variables from version 24 on.`,
		Example: `  eval "$(aid egress env)"`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			vars, err := p.variables(os.Getenv)
			if err != nil {
				return err
			}
			for _, v := range vars {
				fmt.Fprintf(cmd.OutOrStdout(), "export %s='%s'\n", v[0], strings.ReplaceAll(v[1], "'", `'\''`))
			}
			return nil
		},
	}
	p.flags(cmd)
	return cmd
}

func egressCACommand() *cobra.Command {
	var m manage
	cmd := &cobra.Command{
		Use:     "ca",
		Short:   "Print the certificates that intercepted applications must trust",
		Long:    `ca prints the roots of the installation's egress CA, as PEM. A control plane with --egress or --proxy creates the CA at its first start.`,
		Example: `  aid egress ca > egress-ca.pem`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			db, err := m.open(cmd, false)
			if err != nil {
				return err
			}
			defer db.Close()
			var roots []byte
			err = pgx.BeginFunc(cmd.Context(), db.Pool(), func(tx pgx.Tx) error {
				roots, err = identity.EgressRoots(cmd.Context(), tx)
				return err
			})
			if err == nil && len(roots) == 0 {
				err = errors.New("there is no egress CA yet: start a control plane with --egress or --proxy")
			}
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(roots)
			return err
		},
	}
	m.flags(cmd, false, false)
	return cmd
}

func egressRotateCommand() *cobra.Command {
	var m manage
	var fernet string
	var hosts []string
	cmd := &cobra.Command{
		Use:   "rotate STEP",
		Short: "Replace the root that intercepted applications trust, in three steps",
		Long: `rotate replaces the root of the egress CA. Nothing is interrupted if each step is complete
before the next one. Each step is recorded in the audit log of every organization:

  spread    makes a new root for --egress-hosts, which does not sign yet. Distribute the
            output of ` + "`aid egress ca`" + ` to all applications, and restart them.
  sign      the new root signs. Control planes notice it within a day, and at once when
            they start. The old root is still in the output.
  withdraw  at the earliest 24 hours later, the old root is removed and its key deleted.`,
		Example: `  aid egress rotate spread --fernet-keys fernet.keys --hmac-keys hmac.keys --egress-hosts api.openai.com,mine.openai.azure.com
  aid egress rotate sign --fernet-keys fernet.keys --hmac-keys hmac.keys
  aid egress rotate withdraw --fernet-keys fernet.keys --hmac-keys hmac.keys`,
		Args:      cobra.ExactArgs(1),
		ValidArgs: []string{identity.RotateSpread, identity.RotateSign, identity.RotateWithdraw},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := xds.CheckEgress(xds.Egress{Listen: "127.0.0.1:1", Hosts: hosts}); err != nil {
				return usagef("--egress-hosts: %v", err)
			}
			db, err := m.open(cmd, false)
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
			rows, err := db.Pool().Query(cmd.Context(), "SELECT org_id FROM aid_directory() WHERE head > 0")
			if err != nil {
				return fmt.Errorf("listing the organizations: %w", err)
			}
			orgs, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				return fmt.Errorf("listing the organizations: %w", err)
			}
			if len(orgs) == 0 {
				return errors.New("there is no organization, so the step could not be recorded: create one with `aid org create`")
			}
			// The CA decrypts connections of every organization, so each has the entry.
			first := slices.Min(orgs)
			err = db.InOrgs(cmd.Context(), orgs, func(org string, tx pgx.Tx) error {
				if org == first {
					if err := identity.RotateCA(cmd.Context(), tx, sealer, args[0], hosts, m.now(), rand.Reader); err != nil {
						return err
					}
				}
				_, err := chain.Record(cmd.Context(), tx, org, audit.Changed{
					Kind: "egress_ca." + args[0], Actor: operator(), ObjectKind: "egress_ca", ObjectID: "root", Fields: []string{"state"},
				})
				return err
			})
			if errors.Is(err, identity.ErrRotation) {
				return usagef("%v", err)
			}
			if err == nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "done: "+args[0])
			}
			return err
		},
	}
	m.flags(cmd, true, false)
	cmd.Flags().StringVar(&fernet, "fernet-keys", "", "`file` with the keys that encrypt the CA's keys, the same as the control plane's")
	cmd.Flags().StringSliceVar(&hosts, "egress-hosts", egressHosts, egressHostsHelp)
	return cmd
}

// Variables that replace a program's certificates: Go, OpenSSL, Python's httpx and requests,
// curl, Git, AWS, gRPC, Cargo, Deno.
var trustVariables = []string{
	"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "AWS_CA_BUNDLE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "CARGO_HTTP_CAINFO", "DENO_CERT",
}

// variables returns the variables of an intercepted program. get reads the present ones.
func (p egressPlace) variables(get func(string) string) (vars [][2]string, err error) {
	if p.proxy == "" {
		b, err := os.ReadFile(filepath.Join(p.home, "endpoints.json"))
		if err != nil {
			return nil, fmt.Errorf("--home: %w; start `aid up`, or set --proxy and --ca", err)
		}
		var e endpoints
		if err := json.Unmarshal(b, &e); err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(p.home, "endpoints.json"), err)
		}
		if p.proxy = e.Proxy; p.proxy == "" {
			return nil, fmt.Errorf("%s has no proxy: start `aid up` with --proxy", p.home)
		}
	}
	if u, err := url.Parse(p.proxy); err != nil || u.Scheme != "http" || u.Host == "" || u.User != nil {
		return nil, usagef("--proxy %q: set a URL such as http://127.0.0.1:3128", p.proxy)
	}
	if p.ca == "" {
		p.ca = filepath.Join(p.home, "egress-ca.pem")
	}
	roots, err := pemCertificates(p.ca)
	if err != nil {
		return nil, err
	}
	// The system's certificates and those that the program would have trusted.
	all := slices.Clone(roots)
	trusted := []string{systemCAs()}
	for _, name := range trustVariables {
		if file := get(name); file != "" {
			trusted = append(trusted, file)
		}
	}
	for _, file := range trusted {
		more, err := pemCertificates(file)
		if err != nil && file != systemCAs() {
			return nil, err
		}
		all = append(all, more...)
	}
	extra := slices.Clone(roots)
	if file := get("NODE_EXTRA_CA_CERTS"); file != "" {
		more, err := pemCertificates(file)
		if err != nil {
			return nil, err
		}
		extra = append(extra, more...)
	}
	bundle, err := kept0644("bundle", all)
	if err != nil {
		return nil, err
	}
	own, err := kept0644("roots", extra)
	if err != nil {
		return nil, err
	}
	for _, name := range trustVariables {
		vars = append(vars, [2]string{name, bundle})
	}
	vars = append(vars, [2]string{"NODE_EXTRA_CA_CERTS", own}, [2]string{"NODE_USE_ENV_PROXY", "1"})
	direct := []string{"localhost", "127.0.0.1", "::1"}
	for _, name := range []string{"NO_PROXY", "no_proxy"} {
		for host := range strings.SplitSeq(get(name), ",") {
			if host = strings.TrimSpace(host); host != "" && !slices.Contains(direct, host) {
				direct = append(direct, host)
			}
		}
	}
	for _, name := range []string{"HTTPS_PROXY", "https_proxy"} {
		vars = append(vars, [2]string{name, p.proxy})
	}
	for _, name := range []string{"NO_PROXY", "no_proxy"} {
		vars = append(vars, [2]string{name, strings.Join(direct, ",")})
	}
	return vars, nil
}

// pemCertificates reads the certificates of a PEM file. Other blocks are an error, since the file
// could have a key.
func pemCertificates(file string) (out []*pem.Block, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%s has a block %q beside certificates", file, block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err == nil { // systems ship some that Go cannot read
			out = append(out, &pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has no certificate", file)
	}
	return out, nil
}

// kept0644 writes certificates into the user's cache, under a name that depends on their
// content, and returns the path. Programs that run keep their file.
func kept0644(name string, blocks []*pem.Block) (string, error) {
	var b bytes.Buffer
	seen := map[string]bool{}
	for _, block := range blocks {
		if !seen[string(block.Bytes)] {
			seen[string(block.Bytes)] = true
			pem.Encode(&b, block) //nolint:errcheck // a buffer returns no error
		}
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	if dir = filepath.Join(dir, "aid"); os.MkdirAll(dir, 0o755) != nil {
		return "", fmt.Errorf("%s cannot be created", dir)
	}
	sum := sha256.Sum256(b.Bytes())
	file := filepath.Join(dir, "egress-"+name+"-"+hex.EncodeToString(sum[:8])+".pem")
	if have, err := os.ReadFile(file); err == nil && bytes.Equal(have, b.Bytes()) {
		return file, nil
	}
	return file, writeFile(file, b.Bytes(), 0o644)
}
