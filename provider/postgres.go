package provider

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Providers are in the table providers, and their encrypted credentials in
// provider_credentials. Each query runs in a transaction with an org set, and reads only
// that org's rows.

var (
	// ErrNotFound means that the org has no such provider, or the provider no credential.
	ErrNotFound = errors.New("no such provider")
	// ErrConflict means that the provider has changed since it was read.
	ErrConflict = errors.New("the provider was changed in the meantime")
	// ErrNameTaken means that another provider of the org has the name.
	ErrNameTaken = errors.New("another provider has this name")
)

// MaxProviders is the maximum number of providers in an org.
const MaxProviders = 1000

// Credential is a provider's credential as it is stored.
type Credential struct {
	ProviderID string
	Cluster    string // the ClusterName for which it was set
	Sealed     string // encrypted by a Sealer
	UpdatedAt  time.Time
}

const columns = `p.id, p.org_id, p.name, p.kind, p.base_url, p.models, p.hosts, p.headers, p.settings, p.version, p.created_at, p.updated_at, p.place,
	coalesce((SELECT c.cluster FROM provider_credentials c WHERE c.org_id = p.org_id AND c.provider_id = p.id), '')`

func scan(row pgx.CollectableRow) (p Provider, err error) {
	var headers, settings []byte
	var cluster string // the cluster of the credential
	err = row.Scan(&p.ID, &p.OrgID, &p.Name, &p.Kind, &p.BaseURL, &p.Models, &p.Hosts, &headers, &settings, &p.Version, &p.CreatedAt, &p.UpdatedAt, &p.Place, &cluster)
	if err != nil {
		return p, err
	}
	var each map[string]json.RawMessage
	if err := json.Unmarshal(headers, &each); err != nil {
		return p, fmt.Errorf("headers of %s: %w", p.ID, err)
	}
	p.Headers = make(map[string]Header, len(each))
	for name, b := range each {
		var h Header
		if err := h.scan(b); err != nil {
			return p, fmt.Errorf("header %s of %s: %w", name, p.ID, err)
		}
		p.Headers[name] = h
	}
	if string(settings) != "{}" {
		p.Settings = settings
	}
	p.Cluster, p.CreatedAt, p.UpdatedAt = ClusterName(p), p.CreatedAt.UTC(), p.UpdatedAt.UTC()
	p.HasCredential = cluster == p.Cluster
	return p, nil
}

func doing(err error, what string) error {
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pgx.ErrNoRows):
		return ErrNotFound
	case errors.As(err, &pg) && pg.Code == "23505" && pg.ConstraintName == "providers_org_id_name_key":
		return ErrNameTaken
	}
	return fmt.Errorf("%s: %w", what, err)
}

// stored returns the columns that need another form.
func (p Provider) stored(s *Sealer) (models, hosts []string, headers, settings string, err error) {
	models, hosts, settings = p.Models, p.Hosts, "{}"
	if models == nil {
		models = []string{}
	}
	if hosts == nil {
		hosts = []string{}
	}
	if len(p.Settings) > 0 {
		settings = string(p.Settings)
	}
	headers, err = p.sealHeaders(s)
	return models, hosts, headers, settings, err
}

// Insert stores a new provider, which must have passed Validate. s encrypts the values of
// its headers. If the name is in use, the error is ErrNameTaken.
func Insert(ctx context.Context, tx pgx.Tx, s *Sealer, p Provider) error {
	models, hosts, headers, settings, err := p.stored(s)
	if err == nil {
		_, err = tx.Exec(ctx, `INSERT INTO providers (id, org_id, name, kind, base_url, models, hosts, headers, settings, version, created_at, updated_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`,
			p.ID, p.OrgID, p.Name, p.Kind, p.BaseURL, models, hosts, headers, settings, p.Version, p.CreatedAt, p.UpdatedAt)
	}
	return doing(err, "storing a provider")
}

// ByID returns one provider, without its credential, or ErrNotFound.
func ByID(ctx context.Context, tx pgx.Tx, id string) (Provider, error) {
	rows, err := tx.Query(ctx, `SELECT `+columns+` FROM providers p WHERE p.org_id = aid_org() AND p.id = $1`, id)
	if err != nil {
		return Provider{}, doing(err, "reading a provider")
	}
	p, err := pgx.CollectExactlyOneRow(rows, scan)
	return p, doing(err, "reading a provider")
}

// List returns all providers of the org, without their credentials, in the order of their
// places.
func List(ctx context.Context, tx pgx.Tx) ([]Provider, error) {
	rows, err := tx.Query(ctx, `SELECT `+columns+` FROM providers p WHERE p.org_id = aid_org() ORDER BY p.place, p.id LIMIT $1`, MaxProviders+1)
	if err != nil {
		return nil, doing(err, "listing providers")
	}
	ps, err := pgx.CollectRows(rows, scan)
	return ps, doing(err, "listing providers")
}

// Update stores the fields that users set, if the stored version is still p.Version, and
// returns the new state. Otherwise the error is ErrConflict or ErrNotFound. A credential
// for another base URL is kept, and is not used until it is set again. The same holds for
// the values of encrypted headers.
func Update(ctx context.Context, tx pgx.Tx, s *Sealer, p Provider) (Provider, error) {
	models, hosts, headers, settings, err := p.stored(s)
	if err != nil {
		return Provider{}, doing(err, "changing a provider")
	}
	tag, err := tx.Exec(ctx, `UPDATE providers SET name = $3, kind = $4, base_url = $5, models = $6, hosts = $7, headers = $8, settings = $9,
		version = version + 1, updated_at = $10 WHERE org_id = aid_org() AND id = $1 AND version = $2`,
		p.ID, p.Version, p.Name, p.Kind, p.BaseURL, models, hosts, headers, settings, p.UpdatedAt)
	if err != nil {
		return Provider{}, doing(err, "changing a provider")
	}
	next, err := ByID(ctx, tx, p.ID)
	if err == nil && tag.RowsAffected() == 0 {
		err = ErrConflict
	}
	return next, err
}

// Delete removes a provider and its credential, or returns ErrNotFound.
func Delete(ctx context.Context, tx pgx.Tx, id string) error {
	tag, err := tx.Exec(ctx, `DELETE FROM providers WHERE org_id = aid_org() AND id = $1`, id)
	if err == nil && tag.RowsAffected() == 0 {
		return ErrNotFound
	}
	return doing(err, "removing a provider")
}

// PutCredential stores a provider's credential and replaces the previous one.
func PutCredential(ctx context.Context, tx pgx.Tx, c Credential) error {
	_, err := tx.Exec(ctx, `INSERT INTO provider_credentials (org_id, provider_id, cluster, sealed, updated_at) VALUES (aid_org(), $1, $2, $3, $4)
		ON CONFLICT (org_id, provider_id) DO UPDATE SET cluster = excluded.cluster, sealed = excluded.sealed, updated_at = excluded.updated_at`,
		c.ProviderID, c.Cluster, c.Sealed, c.UpdatedAt)
	return doing(err, "storing a credential")
}

// DeleteCredential removes a provider's credential, or returns ErrNotFound.
func DeleteCredential(ctx context.Context, tx pgx.Tx, id string) error {
	tag, err := tx.Exec(ctx, `DELETE FROM provider_credentials WHERE org_id = aid_org() AND provider_id = $1`, id)
	if err == nil && tag.RowsAffected() == 0 {
		return ErrNotFound
	}
	return doing(err, "removing a credential")
}

// Credentials returns all credentials of the org, encrypted.
func Credentials(ctx context.Context, tx pgx.Tx) ([]Credential, error) {
	rows, err := tx.Query(ctx, `SELECT provider_id, cluster, sealed, updated_at FROM provider_credentials WHERE org_id = aid_org() ORDER BY provider_id`)
	if err != nil {
		return nil, doing(err, "reading credentials")
	}
	cs, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c Credential, err error) {
		err = row.Scan(&c.ProviderID, &c.Cluster, &c.Sealed, &c.UpdatedAt)
		return c, err
	})
	return cs, doing(err, "reading credentials")
}

// Reseal encrypts the credential and the header values of a provider again with s' first
// key. It returns the number of values that were encrypted with another key. Do not commit
// after an error. The error is ErrUnreadable if a value cannot be decrypted.
func Reseal(ctx context.Context, tx pgx.Tx, s *Sealer, id string) (n int, err error) {
	rows, err := tx.Query(ctx, `SELECT `+columns+` FROM providers p WHERE p.org_id = aid_org() AND p.id = $1 FOR UPDATE OF p`, id)
	if err != nil {
		return 0, doing(err, "reading a provider")
	}
	p, err := pgx.CollectExactlyOneRow(rows, scan)
	if err != nil {
		return 0, doing(err, "reading a provider")
	}
	var sealed string
	err = tx.QueryRow(ctx, `SELECT sealed FROM provider_credentials WHERE org_id = aid_org() AND provider_id = $1 FOR UPDATE`, id).Scan(&sealed)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, doing(err, "reading a credential")
	}
	if err == nil && !s.Newest(sealed) {
		plain, err := s.Open(sealed)
		if err != nil {
			return 0, fmt.Errorf("credential: %w", err)
		}
		if sealed, err = s.Seal(plain); err != nil {
			return 0, err
		}
		if _, err := tx.Exec(ctx, `UPDATE provider_credentials SET sealed = $2 WHERE org_id = aid_org() AND provider_id = $1`, id, sealed); err != nil {
			return 0, doing(err, "storing a credential")
		}
		n++
	}
	old := 0
	for _, h := range p.Headers {
		if h.sealed == "" || !s.Newest(h.sealed) {
			old++
		}
	}
	if old == 0 {
		return n, nil
	}
	if p, err = p.OpenHeaders(s); err != nil {
		return 0, err
	}
	headers, err := Provider{ID: p.ID, OrgID: p.OrgID, BaseURL: p.BaseURL, Headers: Headers(p.HeaderValues())}.sealHeaders(s)
	if err == nil {
		_, err = tx.Exec(ctx, `UPDATE providers SET headers = $2 WHERE org_id = aid_org() AND id = $1`, id, headers)
	}
	return n + old, doing(err, "storing headers")
}

// proofText is the content of the proof of Fernet keys.
const proofText = "aid fernet proof v1"

// CheckKeys returns nil if s has the keys of this installation. The first control plane
// stores a proof, which is a token of its first key. Keys that do not decrypt the proof are
// others, and the error is then ErrUnreadable. It needs no organization, so a control plane
// notices a wrong file before it serves a node.
func CheckKeys(ctx context.Context, pool *pgxpool.Pool, s *Sealer) error {
	proof, err := keyProof(ctx, pool)
	if errors.Is(err, pgx.ErrNoRows) {
		sealed, bad := s.Seal([]byte(proofText))
		if bad != nil {
			return bad
		}
		if _, err := pool.Exec(ctx, `INSERT INTO installation_keys (name, epoch, proof) VALUES ('fernet', 0, $1) ON CONFLICT DO NOTHING`, sealed); err != nil {
			return doing(err, "storing the proof of Fernet keys")
		}
		proof, err = keyProof(ctx, pool) // Another control plane may have stored its own.
	}
	if err != nil {
		return doing(err, "reading the proof of Fernet keys")
	}
	if text, err := s.Open(proof); err != nil || string(text) != proofText {
		return fmt.Errorf("the proof of this installation's keys: %w", ErrUnreadable)
	}
	return nil
}

func keyProof(ctx context.Context, pool *pgxpool.Pool) (proof string, err error) {
	err = pool.QueryRow(ctx, `SELECT proof FROM installation_keys WHERE name = 'fernet'`).Scan(&proof)
	return proof, err
}

// ResealProof stores the proof of CheckKeys again with s' first key, unless it has that key.
// Call it when s has decrypted all values of an organization, so that its keys are right.
func ResealProof(ctx context.Context, pool *pgxpool.Pool, s *Sealer) error {
	proof, err := keyProof(ctx, pool)
	if err == nil && s.Newest(proof) {
		return nil
	}
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return doing(err, "reading the proof of Fernet keys")
	}
	sealed, err := s.Seal([]byte(proofText))
	if err != nil {
		return err
	}
	_, err = pool.Exec(ctx, `INSERT INTO installation_keys (name, epoch, proof) VALUES ('fernet', 0, $1)
		ON CONFLICT (name, epoch) DO UPDATE SET proof = excluded.proof`, sealed)
	return doing(err, "storing the proof of Fernet keys")
}
