package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/audit/signer"
)

// signing has the keys that sign evidence.
type signing struct {
	p256URI, ed25519URI string

	p256, ed25519 evidence.Signer // nil: nothing is signed
	away          error           // of a KMS; recall finds its public key
}

func (s *signing) flags(f *pflag.FlagSet) {
	f.StringVar(&s.p256URI, "signing-key", "", "`URI` of the P-256 key that signs checkpoints and documents, such as file:signing.pem or awskms:///KEY (default: nothing is signed)")
	f.StringVar(&s.ed25519URI, "witness-key", "", "`URI` of the Ed25519 key that signs checkpoints beside --signing-key, such as file:witness.pem; witnesses understand it")
}

// open opens both keys. Without flags there are none.
func (s *signing) open(ctx context.Context) (err error) {
	switch {
	case s.p256URI == "" && s.ed25519URI == "":
		return nil
	case s.ed25519URI == "":
		return usagef("--signing-key needs --witness-key: a checkpoint is valid only with both signatures; create the key with `aid keys signing create`")
	case s.p256URI == "":
		return usagef("--witness-key needs --signing-key: a checkpoint is valid only with both signatures; create the key with `aid keys signing create`")
	}
	for _, k := range s.keys() {
		*k.to, err = openSigner(ctx, k.flag, k.uri, k.kind)
		if errors.Is(err, signer.ErrAway) {
			s.away = errors.Join(s.away, err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

type signingKey struct {
	flag, uri string
	kind      signer.Kind
	to        *evidence.Signer
}

func (s *signing) keys() []signingKey {
	return []signingKey{{"signing-key", s.p256URI, signer.P256, &s.p256}, {"witness-key", s.ed25519URI, signer.Ed25519, &s.ed25519}}
}

// recall takes the public keys of a KMS that is away from the database, so that requests go on.
// Signatures wait until the KMS is there. Without a stored key the KMS is needed.
func (s *signing) recall(ctx context.Context, db audit.Querier, log *slog.Logger) error {
	if s.away == nil {
		return nil
	}
	stored, err := audit.SigningKeys(ctx, db)
	if err != nil {
		return err
	}
	for _, k := range s.keys() {
		if *k.to != nil {
			continue
		}
		for _, have := range stored {
			if have.Role == string(k.kind) && have.RetireAt.IsZero() {
				if *k.to, err = signer.Later(k.uri, have.Public); err != nil {
					return usagef("--%s: %v", k.flag, err)
				}
			}
		}
		if *k.to == nil {
			return fmt.Errorf("the first start needs the KMS: %w", s.away)
		}
	}
	log.ErrorContext(ctx, "the KMS of a signing key is away: requests go on, and signatures wait for it", "err", s.away)
	return nil
}

func (s *signing) signers() []evidence.Signer {
	if s.p256 == nil {
		return nil
	}
	return []evidence.Signer{s.p256, s.ed25519}
}

// openSigner opens the key of a flag.
func openSigner(ctx context.Context, flag, uri string, kind signer.Kind) (evidence.Signer, error) {
	key, err := signer.Open(ctx, uri, func(path string) ([]byte, error) { return readTrusted(path, secretFile) })
	if errors.Is(err, signer.ErrAway) {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	} else if err != nil {
		return nil, usagef("--%s: %v", flag, err)
	}
	if is := signer.KindOf(key.Public()); is != kind {
		return nil, usagef("--%s %s: the key is %s, and this flag needs %s: create one with `aid keys signing create --kind %s`", flag, uri, is, kind, kind)
	}
	return key, nil
}

func signingCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "signing", Short: "Manage the keys that sign checkpoints and documents"}
	cmd.AddCommand(signingCreateCommand(), signingVkeyCommand())
	return cmd
}

func signingVkeyCommand() *cobra.Command {
	var m manage
	cmd := &cobra.Command{
		Use:   "vkey",
		Short: "Print the directory's verifier keys, for witnesses",
		Long: `vkey prints the keys that sign the directory's checkpoints, one per line, in the form that
witnesses and other readers of signed notes accept. The name in them is the log's origin.
Give a witness the last line, which is the Ed25519 key: not every witness supports P-256.`,
		Example: `  aid keys signing vkey --home .aid`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			db, err := m.open(cmd, false)
			if err != nil {
				return err
			}
			defer db.Close()
			var name string
			if err := db.Pool().QueryRow(cmd.Context(), "SELECT log_name FROM installation").Scan(&name); errors.Is(err, pgx.ErrNoRows) {
				return errors.New("this installation has no log yet: start the control plane once")
			} else if err != nil {
				return fmt.Errorf("reading the name of the log: %w", err)
			}
			keys, err := audit.SigningKeys(cmd.Context(), db.Pool())
			if err != nil {
				return err
			}
			lines := make(map[string][]string)
			for _, k := range keys {
				if !k.Current(m.now()) {
					continue
				}
				vkey, err := evidence.VerifierKey(evidence.DirectoryOrigin(name), k.Public)
				if err != nil {
					return err
				}
				lines[k.Role] = append(lines[k.Role], vkey)
			}
			if len(lines) == 0 {
				return errors.New("this installation has no signing keys: set --signing-key and --witness-key of aid control")
			}
			for _, line := range append(lines[audit.RoleP256], lines[audit.RoleEd25519]...) {
				fmt.Fprintln(cmd.OutOrStdout(), line)
			}
			return nil
		},
	}
	m.flags(cmd, false, false)
	return cmd
}

func signingCreateCommand() *cobra.Command {
	var kind, out string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create a signing key in a new file",
		Long: `create makes a private key and writes it to a new file with mode 0600, in PKCS#8 PEM.
It prints the key's id, which is its JWK thumbprint. Write it down: it is the fingerprint
that auditors pin. The private key is never printed.

Both kinds are needed: p256 for --signing-key, and ed25519 for --witness-key.`,
		Example: `  aid keys signing create --kind p256 --out signing.pem
  aid keys signing create --kind ed25519 --out witness.pem`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if kind != string(signer.P256) && kind != string(signer.Ed25519) {
				return usagef("--kind %q: valid values are %s and %s", kind, signer.P256, signer.Ed25519)
			}
			if out == "" {
				return usagef("--out is required: the new file of the key")
			}
			public, err := signer.Create(out, signer.Kind(kind))
			if errors.Is(err, fs.ErrExist) {
				return usagef("--out %s: the file exists, and may have a key that is in use; name another file", out)
			} else if err != nil {
				return fmt.Errorf("--out: %w", err)
			}
			key, err := evidence.NewKey(public)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), key.ID)
			return err
		},
	}
	cmd.Flags().StringVar(&kind, "kind", "", "kind of the key: p256 or ed25519")
	cmd.Flags().StringVar(&out, "out", "", "new `file` for the private key")
	return cmd
}
