package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/audit/signer"
	"github.com/ai-identity/ai-identity/store"
)

// signing has the keys that sign evidence. For a rotation there are two of a kind.
type signing struct {
	p256URIs, ed25519URIs []string

	keys []signingKey
	away error // of a KMS; recall finds its public key
}

type signingKey struct {
	flag, uri string
	kind      signer.Kind
	signer    evidence.Signer // nil: its KMS is away
}

func (s *signing) flags(f *pflag.FlagSet) {
	f.StringSliceVar(&s.p256URIs, "signing-key", nil, "`URI` of the P-256 key that signs checkpoints and documents, such as file:signing.pem or awskms:///KEY (default: nothing is signed). A second one is for a rotation")
	f.StringSliceVar(&s.ed25519URIs, "witness-key", nil, "`URI` of the Ed25519 key that signs checkpoints beside --signing-key, such as file:witness.pem; witnesses understand it. A second one is for a rotation")
}

// open opens the keys. Without flags there are none.
func (s *signing) open(ctx context.Context) error {
	switch {
	case len(s.p256URIs) == 0 && len(s.ed25519URIs) == 0:
		return nil
	case len(s.ed25519URIs) == 0:
		return usagef("--signing-key needs --witness-key: a checkpoint is valid only with both signatures; create the key with `aid keys signing create`")
	case len(s.p256URIs) == 0:
		return usagef("--witness-key needs --signing-key: a checkpoint is valid only with both signatures; create the key with `aid keys signing create`")
	}
	for _, uri := range s.p256URIs {
		s.keys = append(s.keys, signingKey{flag: "signing-key", uri: uri, kind: signer.P256})
	}
	for _, uri := range s.ed25519URIs {
		s.keys = append(s.keys, signingKey{flag: "witness-key", uri: uri, kind: signer.Ed25519})
	}
	for i, k := range s.keys {
		key, err := openSigner(ctx, k.flag, k.uri, k.kind)
		if errors.Is(err, signer.ErrAway) {
			s.away = errors.Join(s.away, err)
		} else if err != nil {
			return err
		}
		s.keys[i].signer = key
	}
	return nil
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
	// The key that must sign is first: it has no time to retire.
	slices.SortStableFunc(stored, func(a, b audit.SigningKey) int { return a.RetireAt.Compare(b.RetireAt) })
	here := make(map[string]bool)
	for _, k := range s.keys {
		if k.signer == nil {
			continue
		}
		key, err := evidence.NewKey(k.signer.Public())
		if err != nil {
			return err
		}
		here[key.ID] = true
	}
	for i, k := range s.keys {
		for _, have := range stored {
			if k.signer != nil || have.Role != string(k.kind) || here[have.ID] || !have.Current(time.Now()) {
				continue
			}
			if k.signer, err = signer.Later(k.uri, have.Public); err != nil {
				return usagef("--%s: %v", k.flag, err)
			}
			here[have.ID] = true
			s.keys[i] = k
		}
		if k.signer == nil {
			return fmt.Errorf("the first start with a key needs its KMS: %w", s.away)
		}
	}
	log.ErrorContext(ctx, "the KMS of a signing key is away: requests go on, and signatures wait for it", "err", s.away)
	return nil
}

func (s *signing) signers() (all []evidence.Signer) {
	for _, k := range s.keys {
		if k.signer != nil {
			all = append(all, k.signer)
		}
	}
	return all
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
	cmd.AddCommand(signingCreateCommand(), signingRotateCommand(), signingVkeyCommand())
	return cmd
}

func signingRotateCommand() *cobra.Command {
	var m manage
	var old, next string
	var overlap time.Duration
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Replace a signing key",
		Long: `rotate replaces a signing key by a new one of the same kind. The directory's log and the
audit log of each organization get a key change, which both keys sign. From its place on,
checkpoints need the new key. The old key signs beside it for --overlap, for readers that
do not have the new key yet. It stays in the JWKS for ever.

First give both keys to every control plane: set --signing-key or --witness-key twice, and
restart. A control plane without the new key signs nothing after the rotation. Remove the
old key after the time that rotate prints. If rotate fails, run it again.`,
		Example: `  aid keys signing create --kind p256 --out next.pem
  aid keys signing rotate --old file:signing.pem --new file:next.pem --hmac-keys hmac.keys`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if overlap < 0 || overlap > maxOverlap {
				return usagef("--overlap %v: set a time from 0 to %v", overlap, maxOverlap)
			}
			r := audit.Rotation{Actor: operator(), Overlap: overlap, Now: time.Now()}
			for _, k := range []struct {
				flag, uri string
				to        *evidence.Signer
			}{{"old", old, &r.Old}, {"new", next, &r.New}} {
				if k.uri == "" {
					return usagef("--%s is required: the URI of a key, such as file:signing.pem", k.flag)
				}
				key, err := signer.Open(ctx, k.uri, func(path string) ([]byte, error) { return readTrusted(path, secretFile) })
				if err != nil {
					return usagef("--%s: %v", k.flag, err)
				}
				*k.to = key
			}
			db, chain, err := m.openChain(cmd, false)
			if err != nil {
				return err
			}
			defer db.Close()
			if r.LogName, err = logName(ctx, db); err != nil {
				return err
			}
			r.Pool = db.Pool()
			done, err := chain.Rotate(ctx, r)
			if err != nil {
				return fmt.Errorf("replacing key %s: %w", done.Old, err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s replaces %s from size %d of the directory on; %d organizations have the key change. The old key signs until %s\n",
				done.New, done.Old, done.Directory, done.Orgs, done.RetireAt.Format(time.RFC3339))
			return nil
		},
	}
	m.flags(cmd, true, false)
	cmd.Flags().StringVar(&old, "old", "", "`URI` of the key that signs now")
	cmd.Flags().StringVar(&next, "new", "", "`URI` of the key that takes its place")
	cmd.Flags().DurationVar(&overlap, "overlap", 30*24*time.Hour, "how long the old key signs beside the new one")
	return cmd
}

// maxOverlap limits --overlap.
const maxOverlap = 366 * 24 * time.Hour

// logName returns the name of the installation's logs.
func logName(ctx context.Context, db *store.DB) (name string, err error) {
	err = db.Pool().QueryRow(ctx, "SELECT log_name FROM installation").Scan(&name)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", errors.New("this installation has no log yet: start the control plane once")
	} else if err != nil {
		return "", fmt.Errorf("reading the name of the log: %w", err)
	}
	return name, nil
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
			name, err := logName(cmd.Context(), db)
			if err != nil {
				return err
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
			for _, line := range append(lines[evidence.RoleP256], lines[evidence.RoleEd25519]...) {
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
