package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/store"
)

// manage is shared by commands that change the database directly. They are needed before the
// first org key exists. Their changes are in the org's audit log, like all others.
type manage struct {
	postgres, hmac, org, home string

	log *slog.Logger
	now func() time.Time
}

// flags adds the flags of these commands.
func (m *manage) flags(cmd *cobra.Command, changes, inOrg bool) {
	f := cmd.Flags()
	f.StringVar(&m.postgres, "postgres", "", postgresHelp)
	f.StringVar(&m.home, "home", "", "`folder` of a running aid up; its database, keys and organization are the defaults")
	if changes {
		f.StringVar(&m.hmac, "hmac-keys", "", "`file` with the keys of the audit chain, the same as the control plane's, to record the change")
	}
	if inOrg {
		f.StringVar(&m.org, "org", "", "id of the organization (org_…)")
	}
}

// open checks the flags and opens the database.
func (m *manage) open(cmd *cobra.Command, inOrg bool) (db *store.DB, err error) {
	if m.log, err = logger(cmd, cmd.Name()); err != nil {
		return nil, err
	}
	m.now = time.Now
	if err := m.fromHome(); err != nil {
		return nil, err
	}
	if inOrg && m.org == "" {
		return nil, usagef("--org is required: the id of the organization, such as org_default")
	}
	return openStore(cmd.Context(), m.postgres, 2, nil, m.log)
}

// fromHome sets missing flags to the values of the `aid up` that uses --home.
func (m *manage) fromHome() error {
	if m.home == "" {
		return nil
	}
	if m.postgres == "" {
		url, err := readSecret(filepath.Join(m.home, "run", ownerURLFile))
		if errors.Is(err, os.ErrNotExist) {
			return usagef("--home %s: no `aid up` has used this folder", m.home)
		} else if err != nil {
			return usagef("--home: %v", err)
		}
		m.postgres = url
	}
	if m.hmac == "" {
		m.hmac = filepath.Join(m.home, "secrets", "hmac.keys")
	}
	if m.org == "" {
		m.org = defaultOrg.ID
	}
	return nil
}

// chain returns the chain to which changes are appended.
func (m *manage) chain(db *store.DB) (*audit.Chain, error) {
	keys, err := chainKeys(m.hmac)
	if err != nil {
		return nil, err
	}
	return audit.NewChain(audit.ChainConfig{DB: db, Keys: keys, Log: m.log})
}

// openChain opens the database and the chain to which changes are appended.
func (m *manage) openChain(cmd *cobra.Command, inOrg bool) (*store.DB, *audit.Chain, error) {
	db, err := m.open(cmd, inOrg)
	if err != nil {
		return nil, nil, err
	}
	chain, err := m.chain(db)
	if err != nil {
		db.Close()
		return nil, nil, err
	}
	return db, chain, nil
}

// sealer opens --fernet-keys, which --home has a default for.
func (m *manage) sealer(fernet string) (*provider.Sealer, error) {
	if fernet == "" && m.home != "" {
		fernet = filepath.Join(m.home, "secrets", "fernet.keys")
	}
	return sealerOf(fernet)
}

// operator returns the user and host of the command, as the actor in the audit log.
func operator() audit.Actor {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, _ := os.Hostname()
	return audit.Actor{Kind: "operator", ID: name + "@" + host}
}

// created returns the audit entry of a new object.
func created(actor audit.Actor, kind, id string, object any) audit.Changed {
	return audit.Changed{Kind: kind + ".created", Actor: actor, ObjectKind: kind, ObjectID: id, After: digest(object)}
}

// digest identifies a state of an object without its content. Objects have no secrets.
func digest(object any) string {
	b, err := json.Marshal(object)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// newOrgKey returns a new org key of a role, and its record.
func newOrgKey(org, name string, role identity.Role, now time.Time) (string, identity.OrgKeyRecord, error) {
	secret, hash, err := identity.Mint(identity.OrgKey, rand.Reader)
	if err != nil {
		return "", identity.OrgKeyRecord{}, err
	}
	id, err := identity.NewID(identity.OrgKeyID, now, rand.Reader)
	return secret, identity.OrgKeyRecord{ID: id, OrgID: org, Name: name, Role: role, Hash: hash, CreatedAt: now}, err
}

// newNode returns a new join token, and its node.
func newNode(org, name string, now time.Time) (string, identity.Node, error) {
	token, hash, err := identity.Mint(identity.NodeToken, rand.Reader)
	if err != nil {
		return "", identity.Node{}, err
	}
	id, err := identity.NewID(identity.NodeID, now, rand.Reader)
	return token, identity.Node{ID: id, OrgID: org, Name: name, TokenHash: hash, CreatedAt: now}, err
}

// insertOrgKey stores an org key and records it in the same transaction.
func insertOrgKey(ctx context.Context, tx pgx.Tx, chain *audit.Chain, actor audit.Actor, k identity.OrgKeyRecord) error {
	if err := identity.InsertOrgKey(ctx, tx, k); err != nil {
		return err
	}
	k.Hash = [32]byte{}
	_, err := chain.Record(ctx, tx, k.OrgID, created(actor, "org_key", k.ID, k))
	return err
}

// insertNode stores a node and records it in the same transaction.
func insertNode(ctx context.Context, tx pgx.Tx, chain *audit.Chain, actor audit.Actor, n identity.Node) error {
	if err := identity.InsertNode(ctx, tx, n); err != nil {
		return err
	}
	n.TokenHash = [32]byte{}
	_, err := chain.Record(ctx, tx, n.OrgID, created(actor, "node", n.ID, n))
	return err
}

// setNodeRoles changes what a node may fetch and send.
func setNodeRoles(ctx context.Context, tx pgx.Tx, chain *audit.Chain, actor audit.Actor, n identity.Node, roles []identity.NodeRole) error {
	n.TokenHash = [32]byte{}
	before := digest(n)
	n.Roles = roles
	if err := identity.SetNodeRoles(ctx, tx, n.ID, roles); err != nil {
		return err
	}
	_, err := chain.Record(ctx, tx, n.OrgID, audit.Changed{
		Kind: "node.updated", Actor: actor, ObjectKind: "node", ObjectID: n.ID, Fields: []string{"roles"}, Before: before, After: digest(n),
	})
	return err
}

// handOver writes a secret once, to a new private file, or to stdout if no file is named.
func handOver(out io.Writer, file, secret string) error {
	if file == "" {
		_, err := fmt.Fprintln(out, secret)
		return err
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return usagef("--out %s: the file exists, and may have a secret that is in use; name another file", file)
	}
	if err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	_, err = f.WriteString(secret + "\n")
	return errors.Join(err, f.Sync(), f.Close())
}

// canHandOver returns an error if handOver would fail, before anything is created.
func canHandOver(file string) error {
	if file == "" {
		return nil
	}
	if _, err := os.Lstat(file); err == nil {
		return usagef("--out %s: the file exists, and may have a secret that is in use; name another file", file)
	}
	return nil
}
