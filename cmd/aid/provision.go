package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/store"
)

// defaultOrg is the organization of `aid up`.
var defaultOrg = identity.Org{ID: "org_default", Name: "default"}

// joinToken is the token with which the sidecar of `aid up` authenticates to the control plane.
type joinToken struct{ file, secret string }

// settle creates what must exist before the start: the organization, its first key, this
// machine's node, and the providers of --providers. Existing objects stay, so a second start
// changes nothing.
func (u *up) settle(ctx context.Context, at database) (joinToken, error) {
	var none joinToken
	// Only the owner may create organizations.
	db, err := store.Open(ctx, store.Config{URL: at.ownerURL, MaxConns: 2, Log: u.log})
	if err != nil {
		return none, fmt.Errorf("database: %w", err)
	}
	defer db.Close()
	used, err := inUse(ctx, db)
	if err != nil {
		return none, fmt.Errorf("database: %w", err)
	}
	if used {
		if err := u.home.lostKeys(); err != nil {
			return none, err
		}
		signed, err := audit.SigningKeys(ctx, db.Pool())
		if err != nil {
			return none, fmt.Errorf("database: %w", err)
		}
		if err := u.home.lostSigningKeys(len(signed) > 0); err != nil {
			return none, err
		}
	}
	keys, err := u.home.keys()
	if err != nil {
		return none, err
	}
	sealer, err := sealerOf(keys.fernet)
	if err != nil {
		return none, err
	}
	sealing, err := chainKeys(keys.hmac)
	if err != nil {
		return none, err
	}
	if err := checkChain(ctx, db, sealing, keys.hmac); err != nil {
		return none, err
	}
	chain, err := audit.NewChain(audit.ChainConfig{DB: db, Keys: sealing, Log: u.log})
	if err != nil {
		return none, err
	}
	s := settler{up: u, db: db, chain: chain, sealer: sealer, now: time.Now()}
	if err := s.org(ctx); err != nil {
		return none, fmt.Errorf("creating the organization: %w", err)
	}
	if err := s.orgKey(ctx, u.home.path("org.key")); err != nil {
		return none, fmt.Errorf("creating org.key: %w", err)
	}
	token, err := s.node(ctx, u.home.path("secrets", "node.token"))
	if err != nil {
		return none, fmt.Errorf("creating the node: %w", err)
	}
	if u.standIn != "" {
		demo := standInProvider(u.standIn)
		if err := s.provider(ctx, demo.Provider, demo.Credential.Secret.Reveal()); err != nil {
			return none, fmt.Errorf("--stand-in: %w", err)
		}
	}
	if u.providers != "" {
		if err := s.providers(ctx, u.providers); err != nil {
			return none, fmt.Errorf("--providers: %w", err)
		}
	}
	if u.model, err = s.model(ctx); err != nil {
		return none, fmt.Errorf("reading the providers: %w", err)
	}
	return token, nil
}

// inUse reports whether the organization exists, so that this is not the first start.
func inUse(ctx context.Context, db *store.DB) (used bool, err error) {
	err = db.InOrg(ctx, defaultOrg.ID, func(tx pgx.Tx) error {
		_, err := identity.OrgByID(ctx, tx, defaultOrg.ID)
		used = err == nil
		if errors.Is(err, identity.ErrNotFound) {
			return nil
		}
		return err
	})
	return used, err
}

// checkChain returns an error if the audit log was not signed with keys.
func checkChain(ctx context.Context, db *store.DB, keys audit.Keys, file string) error {
	err := audit.VerifyHead(ctx, db, defaultOrg.ID, keys)
	var bad *audit.Bad
	if errors.As(err, &bad) {
		return fmt.Errorf("the end of the audit log does not verify with %s: %w. "+
			"If this file is new or from another installation, restore the file of this database. "+
			"Otherwise the database was changed: keep it, and run `aid audit verify`", file, err)
	}
	return err
}

type settler struct {
	*up
	db     *store.DB
	chain  *audit.Chain
	sealer *provider.Sealer
	now    time.Time
}

// bootstrap is the actor of `aid up` in the audit log.
var bootstrap = audit.Actor{Kind: "bootstrap", ID: "aid-up"}

func (s settler) org(ctx context.Context) error {
	return s.db.InOrg(ctx, defaultOrg.ID, func(tx pgx.Tx) error {
		_, err := identity.OrgByID(ctx, tx, defaultOrg.ID)
		if !errors.Is(err, identity.ErrNotFound) {
			return err
		}
		o := defaultOrg
		o.CreatedAt = s.now
		if err := identity.InsertOrg(ctx, tx, o); err != nil {
			return err
		}
		_, err = s.chain.Record(ctx, tx, o.ID, created(bootstrap, "org", o.ID, o))
		return err
	})
}

// kept returns the secret of a file, or creates one. The file is written before its row. After
// a crash in between, the next start finds the file and creates the row. In the other order
// the secret would be lost.
func kept(file string, kind identity.Kind) (secret string, hash [32]byte, err error) {
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		secret, _, err := identity.Mint(kind, rand.Reader)
		if err != nil {
			return "", hash, err
		}
		if err := writeFile(file, []byte(secret+"\n"), 0o600); err != nil {
			return "", hash, err
		}
	}
	if secret, err = readSecret(file); err != nil {
		return "", hash, err
	}
	is, hash, err := identity.Parse(secret)
	if err != nil || is != kind {
		return "", hash, fmt.Errorf("%s does not have a key with the prefix %s: move the file away, and a new one is created", file, kind.Prefix())
	}
	return secret, hash, nil
}

func (s settler) orgKey(ctx context.Context, file string) error {
	_, hash, err := kept(file, identity.OrgKey)
	if err != nil {
		return err
	}
	return s.db.InOrg(ctx, defaultOrg.ID, func(tx pgx.Tx) error {
		all, err := identity.ListOrgKeys(ctx, tx)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(all, func(k identity.OrgKeyRecord) bool { return k.Hash == hash }) {
			return nil // also if it is revoked, since that was intended
		}
		id, err := identity.NewID(identity.OrgKeyID, s.now, rand.Reader)
		if err != nil {
			return err
		}
		return insertOrgKey(ctx, tx, s.chain, bootstrap, identity.OrgKeyRecord{
			ID: id, OrgID: defaultOrg.ID, Name: "first", Role: identity.Admin, Hash: hash, CreatedAt: s.now,
		})
	})
}

// node creates this machine's node. A revoked or expired token is replaced.
func (s settler) node(ctx context.Context, file string) (joinToken, error) {
	for {
		token, hash, err := kept(file, identity.NodeToken)
		if err != nil {
			return joinToken{}, err
		}
		usable := true
		err = s.db.InOrg(ctx, defaultOrg.ID, func(tx pgx.Tx) error {
			all, err := identity.ListNodes(ctx, tx)
			if err != nil {
				return err
			}
			if i := slices.IndexFunc(all, func(n identity.Node) bool { return n.TokenHash == hash }); i >= 0 {
				usable = all[i].ActiveAt(s.now) == nil
				if !usable || all[i].Has(identity.NodeEgress) {
					return nil
				}
				// An earlier build created it.
				return setNodeRoles(ctx, tx, s.chain, bootstrap, all[i], append(slices.Clone(all[i].Roles), identity.NodeEgress))
			}
			id, err := identity.NewID(identity.NodeID, s.now, rand.Reader)
			if err != nil {
				return err
			}
			return insertNode(ctx, tx, s.chain, bootstrap, identity.Node{
				Roles: []identity.NodeRole{identity.NodeEnvoy, identity.NodeExtproc, identity.NodeEgress}, ByOperator: true, Home: true,
				ID: id, OrgID: defaultOrg.ID, Name: "up", TokenHash: hash, CreatedAt: s.now,
			})
		})
		if err != nil || usable {
			return joinToken{file: file, secret: token}, err
		}
		if err := os.Remove(file); err != nil {
			return joinToken{}, err
		}
	}
}

// providers creates or updates the providers of the file, each in its own transaction.
// Providers that are not in the file stay, since they may come from the API.
func (s settler) providers(ctx context.Context, file string) error {
	text, err := readTrusted(file, publicFile)
	if err != nil {
		return usagef("--providers: %v", err)
	}
	all, err := provider.LoadFile(text)
	if err != nil {
		return usagef("--providers %s: %v", file, err)
	}
	if len(all) == 0 {
		s.log.Warn("--providers: the file lists no providers; `aid up --help` shows one", "file", file)
	}
	targets, err := provider.ParseTargets(s.private)
	if err != nil {
		return usagef("--private-targets: %v", err)
	}
	targets.Own = ownPorts(s.api, s.gateway, s.metrics, s.egress.listen, s.egress.proxy)
	for _, p := range all {
		if err := targets.Check(p.Provider); err != nil {
			return usagef("--providers %s: %s: %v", file, p.Name, err)
		}
		for _, w := range p.Warnings() {
			s.log.Warn("--providers: "+w, "file", file, "provider", p.Name)
		}
		secret, err := p.Credential.Read(os.LookupEnv, func(path string) (string, error) {
			if !filepath.IsAbs(path) {
				path = filepath.Join(filepath.Dir(file), path)
			}
			return readSecret(path)
		})
		if err != nil {
			return usagef("--providers %s: %s: %v", file, p.Name, err)
		}
		if err := s.provider(ctx, p.Provider, secret); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	return nil
}

// model returns a model for the example request. It is the stand-in's, or one with an exact
// name, or a known one that a pattern matches.
func (s settler) model(ctx context.Context) (model string, err error) {
	if s.standIn != "" {
		return standInModel, nil
	}
	known := []string{"gpt-4o-mini", "claude-haiku-4-5", "gemini-2.5-flash", "mistral-small-latest", "command-r-08-2024", "deepseek-chat"}
	err = s.db.InOrg(ctx, defaultOrg.ID, func(tx pgx.Tx) error {
		all, err := provider.List(ctx, tx)
		if err != nil {
			return err
		}
		for _, p := range all {
			for _, pattern := range p.Models {
				if !strings.ContainsAny(pattern, "*?[\\\"'") {
					model = pattern
					return nil
				}
			}
		}
		for _, p := range all {
			for _, pattern := range p.Models {
				for _, m := range known {
					if ok, err := path.Match(pattern, m); err == nil && ok {
						model = m
						return nil
					}
				}
			}
		}
		return nil
	})
	return model, err
}

// provider creates or updates the provider with the name in the file. If the file has no
// credential, the stored one stays.
func (s settler) provider(ctx context.Context, want provider.Provider, secret string) error {
	return s.db.InOrg(ctx, defaultOrg.ID, func(tx pgx.Tx) error {
		p, err := s.described(ctx, tx, want)
		if err != nil || secret == "" {
			return err
		}
		return s.credential(ctx, tx, p, secret)
	})
}

// described stores the provider of the file, if it differs from the stored one.
func (s settler) described(ctx context.Context, tx pgx.Tx, want provider.Provider) (provider.Provider, error) {
	all, err := provider.List(ctx, tx)
	if err != nil {
		return want, err
	}
	i := slices.IndexFunc(all, func(p provider.Provider) bool { return p.Name == want.Name })
	if i < 0 {
		if want.ID, err = identity.NewID("prov_", s.now, rand.Reader); err != nil {
			return want, err
		}
		want.OrgID, want.Version, want.CreatedAt, want.UpdatedAt = defaultOrg.ID, 1, s.now, s.now
		want.Cluster = provider.ClusterName(want)
		if err := provider.Insert(ctx, tx, s.sealer, want); err != nil {
			return want, err
		}
		s.log.Info("provider added", "provider", want.Name, "id", want.ID)
		_, err = s.chain.Record(ctx, tx, defaultOrg.ID, created(bootstrap, "provider", want.ID, want))
		return want, err
	}
	have := all[i]
	fields := differences(s.sealer, have, want)
	if len(fields) == 0 {
		return have, nil
	}
	next := have
	next.Kind, next.BaseURL, next.Models, next.Hosts, next.Headers, next.Settings = want.Kind, want.BaseURL, want.Models, want.Hosts, want.Headers, want.Settings
	next.UpdatedAt = s.now
	if next, err = provider.Update(ctx, tx, s.sealer, next); err != nil {
		return next, err
	}
	s.log.Info("provider changed", "provider", next.Name, "id", next.ID, "fields", fields)
	_, err = s.chain.Record(ctx, tx, defaultOrg.ID, audit.Changed{
		Kind: "provider.updated", Actor: bootstrap, ObjectKind: "provider", ObjectID: next.ID, Fields: fields, Before: digest(have), After: digest(next),
	})
	return next, err
}

// differences returns the fields in which a file's provider differs from the stored one.
func differences(sealer *provider.Sealer, have, want provider.Provider) (fields []string) {
	open, err := have.OpenHeaders(sealer)
	a, errA := provider.ParseSettings(have.Settings)
	b, errB := provider.ParseSettings(want.Settings)
	for _, f := range []struct {
		name string
		same bool
	}{
		{"base_url", have.BaseURL == want.BaseURL}, {"headers", err == nil && maps.Equal(open.HeaderValues(), want.HeaderValues())}, {"hosts", slices.Equal(have.Hosts, want.Hosts)},
		{"kind", have.Kind == want.Kind}, {"models", slices.Equal(have.Models, want.Models)},
		{"settings", errA == nil && errB == nil && reflect.DeepEqual(a, b)},
	} {
		if !f.same {
			fields = append(fields, f.name)
		}
	}
	return fields
}

// credential stores a provider's credential, unless the same one is stored for the current
// address.
func (s settler) credential(ctx context.Context, tx pgx.Tx, p provider.Provider, secret string) error {
	all, err := provider.Credentials(ctx, tx)
	if err != nil {
		return err
	}
	cluster := provider.ClusterName(p)
	if i := slices.IndexFunc(all, func(c provider.Credential) bool { return c.ProviderID == p.ID && c.Cluster == cluster }); i >= 0 {
		if stored, err := s.sealer.Open(all[i].Sealed); err == nil && string(stored) == secret {
			return nil
		}
	}
	sealed, err := s.sealer.Seal([]byte(secret))
	if err != nil {
		return err
	}
	if err := provider.PutCredential(ctx, tx, provider.Credential{ProviderID: p.ID, Cluster: cluster, Sealed: sealed, UpdatedAt: s.now}); err != nil {
		return err
	}
	s.log.Info("credential set", "provider", p.Name, "id", p.ID)
	_, err = s.chain.Record(ctx, tx, defaultOrg.ID, audit.Changed{
		Kind: "provider.credential_set", Actor: bootstrap, ObjectKind: "provider", ObjectID: p.ID, Fields: []string{"credential"},
	})
	return err
}
