package identity

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// IdentityID begins the id of an [Identity].
const IdentityID = "idn_"

// CredentialKind is the kind of a caller's credential.
type CredentialKind string

// The kinds of credentials.
const (
	KindKey        CredentialKind = "key"        // one of our keys
	KindKubernetes CredentialKind = "kubernetes" // a service account, by its token
	KindSPIFFE     CredentialKind = "spiffe"     // a SPIFFE id, by a JWT-SVID or an X.509-SVID
)

// Workload is the name of a program that another system identifies. The zero Workload names
// none.
type Workload struct {
	Kind CredentialKind
	// SPIFFEID is the id of a [KindSPIFFE].
	SPIFFEID string
	// Issuer, Namespace and ServiceAccount are the name of a [KindKubernetes]. Two clusters
	// have different issuers, so equal names in them are different workloads.
	Issuer, Namespace, ServiceAccount string
}

// The forms of a workload's names. A SPIFFE id has a path here, since a trust domain alone
// names no program. No segment is . or .. or begins with a dot.
// Sources: https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md#2-spiffe-identity,
// https://kubernetes.io/docs/concepts/overview/working-with-objects/names/.
var (
	spiffeID       = regexp.MustCompile(`^spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+$`)
	issuerForm     = regexp.MustCompile(`^https://[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?$`)
	dnsLabel       = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	serviceAccount = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)
)

const (
	maxSPIFFEID = 2048 // bytes
	maxIssuer   = 512
)

// CheckSPIFFEID returns what is wrong with a workload's SPIFFE id, or nil.
func CheckSPIFFEID(id string) error {
	if len(id) > maxSPIFFEID || !spiffeID.MatchString(id) {
		return errors.New("it is not a SPIFFE id with a path, such as spiffe://corp.example/ns/ai/sa/bot")
	}
	return nil
}

// CheckIssuer returns what is wrong with the issuer of tokens, or nil. Issuers are compared
// byte by byte.
func CheckIssuer(issuer string) error {
	if len(issuer) > maxIssuer || !issuerForm.MatchString(issuer) {
		return fmt.Errorf("it is not an https:// URL of at most %d bytes, as the claim iss has it", maxIssuer)
	}
	return nil
}

// CheckNamespace returns what is wrong with the name of a Kubernetes namespace, or nil.
func CheckNamespace(name string) error {
	if !dnsLabel.MatchString(name) {
		return errors.New("it is not the name of a namespace: lower-case letters, digits and hyphens, at most 63")
	}
	return nil
}

// CheckServiceAccount returns what is wrong with the name of a service account, or nil.
func CheckServiceAccount(name string) error {
	if !serviceAccount.MatchString(name) {
		return errors.New("it is not the name of a service account: lower-case letters, digits, hyphens and dots, at most 253")
	}
	return nil
}

// String is the name of the workload for people and audit logs. Two workloads never have the
// same one.
func (w Workload) String() string {
	switch w.Kind {
	case KindSPIFFE:
		return w.SPIFFEID
	case KindKubernetes:
		return w.Issuer + "#" + w.Namespace + "/" + w.ServiceAccount
	}
	return ""
}

// presentedWorkload begins the Presented of a workload, so that it is never that of a key.
const presentedWorkload = "workload:"

// Presented is the form of the workload's lookup.
func (w Workload) Presented() Presented { return presentedWorkload + Presented(hexOf(w.hash())) }

// hash is the SHA-256 of the kind and the name. Lengths keep the encoding unambiguous.
func (w Workload) hash() [32]byte {
	b := []byte("aid-workload-v1\n")
	for _, s := range []string{string(w.Kind), w.String()} {
		b = strconv.AppendInt(b, int64(len(s)), 10)
		b = append(b, ':')
		b = append(b, s...)
		b = append(b, '\n')
	}
	return sha256.Sum256(b)
}

// WorkloadHash is the hash of the presented workload in hexadecimal, as the database has it.
// ok is false if it is not a workload.
func (p Presented) WorkloadHash() (hash string, ok bool) {
	hash, ok = strings.CutPrefix(string(p), presentedWorkload)
	if !ok {
		return "", false
	}
	_, ok = Presented(hash).KeyHash()
	return hash, ok
}

// PresentedHash is the Presented of a workload with a hash in hexadecimal.
func PresentedHash(hash string) Presented { return presentedWorkload + Presented(hash) }

// Identity binds a workload to an agent. It permits what a key permits: Key has its id, its
// scopes, models, rate limit and times, and no hash and hint. Source: table agent_identities.
type Identity struct {
	Key
	Workload Workload
}

// ErrNotGranted means that the operator has not granted the organization a prefix or a
// namespace with this workload. It is the same whether another organization has it or not.
var ErrNotGranted = errors.New("not granted")

// InsertIdentity binds a workload to an agent. Without a grant of the organization the error
// is [ErrNotGranted]. If the workload is bound in this organization, it is [ErrConflict].
func InsertIdentity(ctx context.Context, tx pgx.Tx, i Identity) error {
	w := i.Workload
	var prefix *string
	var granted bool
	var err error
	switch w.Kind {
	case KindSPIFFE:
		// Prefixes end at whole segments.
		err = tx.QueryRow(ctx, `SELECT prefix FROM trust_prefixes WHERE org_id = aid_org() AND starts_with($1 || '/', prefix || '/')
			ORDER BY length(prefix) DESC LIMIT 1`, w.SPIFFEID).Scan(&prefix)
		granted = err == nil
	case KindKubernetes:
		err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM trust_namespaces WHERE org_id = aid_org() AND issuer = $1 AND namespace = $2)`, w.Issuer, w.Namespace).Scan(&granted)
	default:
		return fmt.Errorf("storing an identity: no such kind: %q", w.Kind)
	}
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return doing(err, "storing an identity")
	}
	if !granted {
		return fmt.Errorf("storing an identity: %w", ErrNotGranted)
	}
	// The foreign keys keep the grant until this transaction ends.
	_, err = tx.Exec(ctx, `INSERT INTO agent_identities (org_id, id, agent_id, name, kind, spiffe_id, trust_prefix, issuer, namespace, service_account, hash,
			scopes, allowed_models, rate_limit, created_at, expires_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`,
		i.OrgID, i.ID, i.AgentID, i.Name, string(w.Kind), unless(w.SPIFFEID), prefix, unless(w.Issuer), unless(w.Namespace), unless(w.ServiceAccount), hexOf(w.hash()),
		some(i.Scopes), some(i.AllowedModels), i.RateLimit, i.CreatedAt, never(i.ExpiresAt))
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) {
		switch pg.Code {
		case "23505":
			err = ErrConflict
		case "23503":
			err = ErrNotGranted // withdrawn in the meantime
		}
	}
	return doing(err, "storing an identity")
}

// unless is nil for "".
func unless(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

const identityColumns = `k.org_id, k.id, k.agent_id, k.name, k.kind, coalesce(k.spiffe_id, ''), coalesce(k.issuer, ''), coalesce(k.namespace, ''),
	coalesce(k.service_account, ''), k.scopes, k.allowed_models, k.rate_limit, k.created_at, k.expires_at, k.revoked_at, k.place`

type identityRow struct {
	Identity
	expires, revoked *time.Time
}

func (r *identityRow) into() []any {
	w := &r.Workload
	return []any{&r.OrgID, &r.ID, &r.AgentID, &r.Name, &w.Kind, &w.SPIFFEID, &w.Issuer, &w.Namespace, &w.ServiceAccount,
		&r.Scopes, &r.AllowedModels, &r.RateLimit, &r.CreatedAt, &r.expires, &r.revoked, &r.Place}
}

func (r *identityRow) identity() Identity {
	i := r.Identity
	i.CreatedAt, i.ExpiresAt, i.RevokedAt = r.CreatedAt.UTC(), when(r.expires), when(r.revoked)
	i.Kind = i.Workload.Kind
	return i
}

// Identities returns all identities of an agent in the order of their places, with inactive
// ones.
func Identities(ctx context.Context, tx pgx.Tx, agent string) ([]Identity, error) {
	rows, err := tx.Query(ctx, `SELECT `+identityColumns+` FROM agent_identities k WHERE k.org_id = aid_org() AND k.agent_id = $1 ORDER BY k.place, k.id`, agent)
	if err != nil {
		return nil, doing(err, "listing identities")
	}
	return all(rows, "listing identities", scanIdentity)
}

func scanIdentity(row pgx.CollectableRow) (Identity, error) {
	var r identityRow
	if err := row.Scan(r.into()...); err != nil {
		return Identity{}, err
	}
	return r.identity(), nil
}

// LiveIdentities returns up to limit identities of all agents that are neither revoked nor
// expired, as credentials, by agent.
func LiveIdentities(ctx context.Context, tx pgx.Tx, at time.Time, limit int) (map[string][]Key, error) {
	rows, err := tx.Query(ctx, `SELECT `+identityColumns+` FROM agent_identities k
		WHERE k.org_id = aid_org() AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > $1) ORDER BY k.place, k.id LIMIT $2`, at, limit)
	if err != nil {
		return nil, doing(err, "listing live identities")
	}
	live, err := all(rows, "listing live identities", scanIdentity)
	of := make(map[string][]Key)
	for _, i := range live {
		of[i.AgentID] = append(of[i.AgentID], i.Key)
	}
	return of, err
}

// RevokeIdentity revokes an identity at once and permanently. A revoked identity is not
// changed. If the agent has no such identity, the error is [ErrNotFound].
func RevokeIdentity(ctx context.Context, tx pgx.Tx, agent, id string, at time.Time) error {
	tag, err := tx.Exec(ctx, `UPDATE agent_identities SET revoked_at = coalesce(revoked_at, $3) WHERE org_id = aid_org() AND agent_id = $1 AND id = $2`, agent, id, at)
	return changed(tag.RowsAffected(), err, "revoking an identity")
}

// OrgsOfWorkloads is [OrgsOfKeys] for hashes of workloads.
func OrgsOfWorkloads(ctx context.Context, tx pgx.Tx, hashes []string) (map[string]string, error) {
	// Only one organization has a live row, since grants do not overlap. Rows of an earlier
	// grant are revoked or deleted.
	rows, err := tx.Query(ctx, `SELECT DISTINCT ON (hash) hash, org_id FROM agent_identities WHERE hash = ANY ($1)
		ORDER BY hash, revoked_at IS NOT NULL, created_at DESC, org_id`, hashes)
	if err != nil {
		return nil, doing(err, "looking up the organizations of workloads")
	}
	out := make(map[string]string, len(hashes))
	var hash, org string
	_, err = pgx.ForEachRow(rows, []any{&hash, &org}, func() error { out[hash] = org; return nil })
	return out, doing(err, "looking up the organizations of workloads")
}

// CallersByWorkload is [CallersByHash] for hashes of workloads. Of several rows of one
// workload the live one counts, or the newest.
func CallersByWorkload(ctx context.Context, tx pgx.Tx, hashes []string) (map[string]Caller, error) {
	rows, err := tx.Query(ctx, `SELECT DISTINCT ON (k.hash) k.hash, `+identityColumns+`, `+agentColumns+`
		FROM agent_identities k JOIN agents a ON a.org_id = k.org_id AND a.id = k.agent_id
		WHERE k.org_id = aid_org() AND k.hash = ANY ($1) ORDER BY k.hash, k.revoked_at IS NOT NULL, k.created_at DESC, k.id`, hashes)
	if err != nil {
		return nil, doing(err, "looking up workloads")
	}
	defer rows.Close()
	out := make(map[string]Caller, len(hashes))
	for rows.Next() {
		var hash string
		var k identityRow
		var a agentRow
		if err := rows.Scan(append([]any{&hash}, append(k.into(), a.into()...)...)...); err != nil {
			return nil, doing(err, "looking up workloads")
		}
		agent, err := a.agent()
		if err != nil {
			return nil, err
		}
		i := k.identity()
		out[hash] = Caller{Agent: agent, Key: i.Key, Workload: i.Workload}
	}
	return out, doing(rows.Err(), "looking up workloads")
}

// GrantNamespace lets an organization bind the service accounts of a cluster's namespace. The
// role must be the database's owner. If an organization has it, the error is [ErrConflict].
func GrantNamespace(ctx context.Context, tx pgx.Tx, org, issuer, namespace string) error {
	_, err := tx.Exec(ctx, `INSERT INTO trust_namespaces (org_id, issuer, namespace) VALUES ($1, $2, $3)`, org, issuer, namespace)
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) && pg.Code == "23505" {
		err = ErrConflict
	}
	return doing(err, "granting a namespace")
}

// WithdrawNamespace ends a grant, and deletes the identities below it. Without such a grant,
// the error is [ErrNotFound].
func WithdrawNamespace(ctx context.Context, tx pgx.Tx, issuer, namespace string) error {
	tag, err := tx.Exec(ctx, `DELETE FROM trust_namespaces WHERE org_id = aid_org() AND issuer = $1 AND namespace = $2`, issuer, namespace)
	return changed(tag.RowsAffected(), err, "withdrawing a namespace")
}

// WithdrawPrefix ends a grant of [GrantPrefix], and deletes the identities below it. Nodes
// stay. Without such a grant, the error is [ErrNotFound].
func WithdrawPrefix(ctx context.Context, tx pgx.Tx, prefix string) error {
	tag, err := tx.Exec(ctx, `DELETE FROM trust_prefixes WHERE org_id = aid_org() AND prefix = $1`, prefix)
	return changed(tag.RowsAffected(), err, "withdrawing a SPIFFE prefix")
}
