package identity

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Every function below takes a transaction whose org is set (store.DB.InOrg), and reads
// only that org. Row security and the queries both limit it, so the limit also holds for a
// superuser. Functions named Presented take a transaction that has only the presented
// credential (store.DB.Presenting).
//
// Values are always parameters of a query. Times are kept to the microsecond and are
// returned in UTC.

// ---- orgs ----

// InsertOrg creates an org. Only the schema's owner may call it.
func InsertOrg(ctx context.Context, tx pgx.Tx, o Org) error {
	_, err := tx.Exec(ctx, `INSERT INTO orgs (org_id, name, tier, created_at) VALUES ($1, $2, $3, $4)`, o.ID, o.Name, o.Tier, o.CreatedAt)
	return doing(err, "storing an organization")
}

// OrgByID returns the org, if it is the transaction's. Otherwise the error is
// [ErrNotFound].
func OrgByID(ctx context.Context, tx pgx.Tx, id string) (o Org, err error) {
	var from *time.Time
	err = tx.QueryRow(ctx, `SELECT org_id, name, tier, created_at, timezone, timezone_before, timezone_from FROM orgs WHERE org_id = aid_org() AND org_id = $1`, id).
		Scan(&o.ID, &o.Name, &o.Tier, &o.CreatedAt, &o.Timezone, &o.TimezoneBefore, &from)
	o.CreatedAt, o.TimezoneFrom = o.CreatedAt.UTC(), when(from)
	return found(o, err, "reading an organization")
}

// SetTimezone stores the three fields of the time zone of the transaction's org.
func SetTimezone(ctx context.Context, tx pgx.Tx, o Org) error {
	tag, err := tx.Exec(ctx, `UPDATE orgs SET timezone = $2, timezone_before = $3, timezone_from = $4 WHERE org_id = aid_org() AND org_id = $1`,
		o.ID, o.Timezone, o.TimezoneBefore, never(o.TimezoneFrom))
	return changed(tag.RowsAffected(), err, "storing the time zone of an organization")
}

// ---- agents ----

// InsertAgent stores a new agent, at version 1.
func InsertAgent(ctx context.Context, tx pgx.Tx, a Agent) error {
	metadata, err := a.Metadata.stored()
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO agents (org_id, id, name, description, team, environment, tier, status, allowed_models, metadata, fingerprint,
			version, created_at, updated_at, required_identities)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 1, $12, $13, $14)`,
		a.OrgID, a.ID, a.Name, a.Description, a.Team, a.Environment, a.Tier, string(a.Status), some(a.AllowedModels), metadata, a.Fingerprint,
		a.CreatedAt, a.UpdatedAt, kindsOf(a.RequiredIdentities))
	return doing(err, "storing an agent")
}

const agentColumns = `a.org_id, a.id, a.name, a.description, a.team, a.environment, a.tier, a.status, a.allowed_models, a.metadata, a.fingerprint,
	a.version, a.created_at, a.updated_at, a.place, a.required_identities`

type agentRow struct {
	Agent
	status   string
	metadata []byte
}

func (r *agentRow) into() []any {
	return []any{&r.OrgID, &r.ID, &r.Name, &r.Description, &r.Team, &r.Environment, &r.Tier, &r.status, &r.AllowedModels, &r.metadata, &r.Fingerprint,
		&r.Version, &r.CreatedAt, &r.UpdatedAt, &r.Place, &r.RequiredIdentities}
}

// kindsOf returns a list that Postgres does not store as NULL.
func kindsOf(kinds []CredentialKind) []string {
	out := make([]string, len(kinds))
	for i, k := range kinds {
		out[i] = string(k)
	}
	return out
}

func (r *agentRow) agent() (Agent, error) {
	a := r.Agent
	a.Status, a.CreatedAt, a.UpdatedAt = Status(r.status), r.CreatedAt.UTC(), r.UpdatedAt.UTC()
	// No limits here: what was stored under older ones must still be readable.
	var err error
	if a.Metadata, err = parseMetadata(r.metadata); err != nil {
		return Agent{}, fmt.Errorf("reading agent %s: %w", a.ID, err)
	}
	return a, nil
}

// AgentByID returns the agent, or [ErrNotFound].
func AgentByID(ctx context.Context, tx pgx.Tx, id string) (Agent, error) {
	var r agentRow
	err := tx.QueryRow(ctx, `SELECT `+agentColumns+` FROM agents a WHERE a.org_id = aid_org() AND a.id = $1`, id).Scan(r.into()...)
	if err != nil {
		return found(Agent{}, err, "reading an agent")
	}
	return r.agent()
}

// AgentFilter narrows a list of agents to those that are equal in every field that
// is not empty.
type AgentFilter struct {
	Name, Team, Environment string
	Status                  Status
}

// ListAgents returns up to limit agents after the place and the id, in the order of their
// places. 0 and "" are before the first.
func ListAgents(ctx context.Context, tx pgx.Tx, place int64, id string, limit int, f AgentFilter) ([]Agent, error) {
	rows, err := tx.Query(ctx, `SELECT `+agentColumns+` FROM agents a
		WHERE a.org_id = aid_org() AND (a.place, a.id) > ($7, $1) AND ($2 = '' OR a.name = $2) AND ($3 = '' OR a.team = $3) AND ($4 = '' OR a.environment = $4)
			AND ($5 = '' OR a.status = $5)
		ORDER BY a.place, a.id LIMIT $6`, id, f.Name, f.Team, f.Environment, string(f.Status), limit, place)
	if err != nil {
		return nil, doing(err, "listing agents")
	}
	return all(rows, "listing agents", func(row pgx.CollectableRow) (Agent, error) {
		var r agentRow
		if err := row.Scan(r.into()...); err != nil {
			return Agent{}, err
		}
		return r.agent()
	})
}

// UpdateAgent stores an agent's mutable fields, if its version is still a.Version, and
// returns it with the next version. Otherwise the error is [ErrConflict] or [ErrNotFound].
// Org, id, fingerprint and creation never change.
func UpdateAgent(ctx context.Context, tx pgx.Tx, a Agent) (Agent, error) {
	metadata, err := a.Metadata.stored()
	if err != nil {
		return Agent{}, err
	}
	var r agentRow
	err = tx.QueryRow(ctx, `UPDATE agents a SET name = $3, description = $4, team = $5, environment = $6, tier = $7, status = $8, allowed_models = $9,
			metadata = $10, updated_at = $11, required_identities = $12, version = a.version + 1
		WHERE a.org_id = aid_org() AND a.id = $1 AND a.version = $2
		RETURNING `+agentColumns,
		a.ID, a.Version, a.Name, a.Description, a.Team, a.Environment, a.Tier, string(a.Status), some(a.AllowedModels), metadata, a.UpdatedAt, kindsOf(a.RequiredIdentities)).Scan(r.into()...)
	if errors.Is(err, pgx.ErrNoRows) {
		if _, err := AgentByID(ctx, tx, a.ID); err != nil {
			return Agent{}, err
		}
		return Agent{}, fmt.Errorf("agent %s: %w", a.ID, ErrConflict)
	}
	if err != nil {
		return Agent{}, doing(err, "changing an agent")
	}
	return r.agent()
}

// DeleteAgent deletes an agent and its keys. Its entries stay in the audit log.
func DeleteAgent(ctx context.Context, tx pgx.Tx, id string) error {
	tag, err := tx.Exec(ctx, `DELETE FROM agents WHERE org_id = aid_org() AND id = $1`, id)
	return changed(tag.RowsAffected(), err, "deleting an agent")
}

// ---- keys of agents ----

// InsertKey stores a new key of an agent.
func InsertKey(ctx context.Context, tx pgx.Tx, k Key) error {
	_, err := tx.Exec(ctx, `INSERT INTO agent_keys (org_id, id, agent_id, name, hash, hint, scopes, allowed_models, rate_limit, rotated_from,
			created_at, expires_at, revoked_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`,
		k.OrgID, k.ID, k.AgentID, k.Name, hexOf(k.Hash), k.Hint, some(k.Scopes), some(k.AllowedModels), k.RateLimit, k.RotatedFrom,
		k.CreatedAt, never(k.ExpiresAt), never(k.RevokedAt))
	return doing(err, "storing a key")
}

const keyColumns = `k.org_id, k.id, k.agent_id, k.name, k.hash, k.hint, k.scopes, k.allowed_models, k.rate_limit, k.rotated_from,
	k.created_at, k.expires_at, k.revoked_at, k.place`

// keyLine is the id of the first key of the line of rotations that ends with k.
const keyLine = `(WITH RECURSIVE line(id, was, n) AS (
		SELECT k.id, k.rotated_from, 0
		UNION ALL SELECT p.id, p.rotated_from, line.n + 1 FROM line JOIN agent_keys p ON p.org_id = k.org_id AND p.id = line.was)
	SELECT CASE was WHEN '' THEN id ELSE was END FROM line ORDER BY n DESC LIMIT 1)`

type keyRow struct {
	Key
	hash             string
	expires, revoked *time.Time
}

func (r *keyRow) into() []any {
	return []any{&r.OrgID, &r.ID, &r.AgentID, &r.Name, &r.hash, &r.Hint, &r.Scopes, &r.AllowedModels, &r.RateLimit, &r.RotatedFrom,
		&r.CreatedAt, &r.expires, &r.revoked, &r.Place}
}

func (r *keyRow) key() (k Key, err error) {
	k = r.Key
	k.Kind = KindKey
	k.CreatedAt, k.ExpiresAt, k.RevokedAt = r.CreatedAt.UTC(), when(r.expires), when(r.revoked)
	k.Hash, err = hashOf(r.hash)
	return k, err
}

// Keys returns all keys of an agent in the order of their places, with inactive ones.
func Keys(ctx context.Context, tx pgx.Tx, agent string) ([]Key, error) {
	rows, err := tx.Query(ctx, `SELECT `+keyColumns+` FROM agent_keys k WHERE k.org_id = aid_org() AND k.agent_id = $1 ORDER BY k.place, k.id`, agent)
	if err != nil {
		return nil, doing(err, "listing keys")
	}
	return all(rows, "listing keys", func(row pgx.CollectableRow) (Key, error) {
		var r keyRow
		if err := row.Scan(r.into()...); err != nil {
			return Key{}, err
		}
		return r.key()
	})
}

// LiveKeys returns up to limit keys of all agents that are neither revoked nor expired, with
// their lines, by agent.
func LiveKeys(ctx context.Context, tx pgx.Tx, at time.Time, limit int) (map[string][]Key, error) {
	rows, err := tx.Query(ctx, `SELECT `+keyColumns+`, `+keyLine+` FROM agent_keys k
		WHERE k.org_id = aid_org() AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > $1) ORDER BY k.place, k.id LIMIT $2`, at, limit)
	if err != nil {
		return nil, doing(err, "listing live keys")
	}
	keys, err := all(rows, "listing live keys", func(row pgx.CollectableRow) (Key, error) {
		var r keyRow
		if err := row.Scan(append(r.into(), &r.Line)...); err != nil {
			return Key{}, err
		}
		return r.key()
	})
	of := make(map[string][]Key)
	for _, k := range keys {
		of[k.AgentID] = append(of[k.AgentID], k)
	}
	return of, err
}

// RevokeKey revokes a key at once and permanently. A revoked key is not changed. If the
// agent has no such key, the error is [ErrNotFound].
func RevokeKey(ctx context.Context, tx pgx.Tx, agent, id string, at time.Time) error {
	tag, err := tx.Exec(ctx, `UPDATE agent_keys SET revoked_at = coalesce(revoked_at, $3) WHERE org_id = aid_org() AND agent_id = $1 AND id = $2`, agent, id, at)
	return changed(tag.RowsAffected(), err, "revoking a key")
}

// RotateKey stores next as the successor of the key old of the same agent. old expires at
// oldExpires, or sooner if it already does. Until then both are valid. If old is revoked,
// expired or already rotated, the error is [ErrConflict].
func RotateKey(ctx context.Context, tx pgx.Tx, old string, next Key, oldExpires time.Time) error {
	var agent string
	var live bool
	// The lock serializes two rotations: the second finds the first's key.
	err := tx.QueryRow(ctx, `SELECT agent_id, revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)
		FROM agent_keys WHERE org_id = aid_org() AND id = $1 FOR UPDATE`, old, next.CreatedAt).Scan(&agent, &live)
	if err != nil {
		_, err = found(struct{}{}, err, "rotating a key")
		return err
	}
	if agent != next.AgentID {
		return fmt.Errorf("rotating key %s: the new key is another agent's: %w", old, ErrNotFound)
	}
	var rotated bool
	if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM agent_keys WHERE org_id = aid_org() AND agent_id = $1 AND rotated_from = $2)`, agent, old).Scan(&rotated); err != nil {
		return doing(err, "rotating a key")
	}
	if !live || rotated {
		return fmt.Errorf("key %s: %w", old, ErrConflict)
	}
	_, err = tx.Exec(ctx, `UPDATE agent_keys SET expires_at = least(expires_at, $2) WHERE org_id = aid_org() AND id = $1`, old, oldExpires)
	if err != nil {
		return doing(err, "rotating a key")
	}
	next.RotatedFrom = old
	return InsertKey(ctx, tx, next)
}

// CallerByHash returns the agent and the key with that SHA-256, in every state. If this org
// has no such key, the error is [ErrNotFound].
func CallerByHash(ctx context.Context, tx pgx.Tx, hash [32]byte) (Caller, error) {
	c, err := scanCaller(tx.QueryRow(ctx, `SELECT `+keyColumns+`, `+keyLine+`, `+agentColumns+`
		FROM agent_keys k JOIN agents a ON a.org_id = k.org_id AND a.id = k.agent_id
		WHERE k.org_id = aid_org() AND k.hash = $1`, hexOf(hash)))
	return found(c, err, "looking up a caller")
}

// ---- org keys ----

// InsertOrgKey stores a new org key.
func InsertOrgKey(ctx context.Context, tx pgx.Tx, k OrgKeyRecord) error {
	_, err := tx.Exec(ctx, `INSERT INTO org_keys (org_id, id, name, role, hash, created_at, expires_at, revoked_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		k.OrgID, k.ID, k.Name, string(k.Role), hexOf(k.Hash), k.CreatedAt, never(k.ExpiresAt), never(k.RevokedAt))
	return doing(err, "storing an org key")
}

const orgKeyColumns = `org_id, id, name, role, hash, created_at, expires_at, revoked_at, place`

func scanOrgKey(row pgx.CollectableRow) (k OrgKeyRecord, err error) {
	var role, hash string
	var expires, revoked *time.Time
	if err := row.Scan(&k.OrgID, &k.ID, &k.Name, &role, &hash, &k.CreatedAt, &expires, &revoked, &k.Place); err != nil {
		return OrgKeyRecord{}, err
	}
	k.Role, k.CreatedAt, k.ExpiresAt, k.RevokedAt = Role(role), k.CreatedAt.UTC(), when(expires), when(revoked)
	k.Hash, err = hashOf(hash)
	return k, err
}

// OrgKeyPresented returns the org key with that SHA-256, in every state. It needs no org:
// the transaction was opened by Presenting that hash in hex. Without such a key, the error
// is [ErrNotFound].
func OrgKeyPresented(ctx context.Context, tx pgx.Tx, hash [32]byte) (OrgKeyRecord, error) {
	rows, err := tx.Query(ctx, `SELECT `+orgKeyColumns+` FROM org_keys WHERE hash = $1`, hexOf(hash))
	if err != nil {
		return OrgKeyRecord{}, doing(err, "looking up an org key")
	}
	k, err := pgx.CollectOneRow(rows, scanOrgKey)
	return found(k, err, "looking up an org key")
}

// ListOrgKeys returns all org keys in the order of their places, with inactive ones: an org
// has few.
func ListOrgKeys(ctx context.Context, tx pgx.Tx) ([]OrgKeyRecord, error) {
	rows, err := tx.Query(ctx, `SELECT `+orgKeyColumns+` FROM org_keys WHERE org_id = aid_org() ORDER BY place, id`)
	if err != nil {
		return nil, doing(err, "listing org keys")
	}
	return all(rows, "listing org keys", scanOrgKey)
}

// RevokeOrgKey revokes an org key at once and permanently. A revoked key is not changed.
// Without such a key, the error is [ErrNotFound].
func RevokeOrgKey(ctx context.Context, tx pgx.Tx, id string, at time.Time) error {
	tag, err := tx.Exec(ctx, `UPDATE org_keys SET revoked_at = coalesce(revoked_at, $2) WHERE org_id = aid_org() AND id = $1`, id, at)
	return changed(tag.RowsAffected(), err, "revoking an org key")
}

// ---- nodes ----

// InsertNode stores a new node, which has a token hash, a SPIFFE id, or both.
func InsertNode(ctx context.Context, tx pgx.Tx, n Node) error {
	var token, spiffe *string
	if n.TokenHash != [32]byte{} {
		h := hexOf(n.TokenHash)
		token = &h
	}
	if n.SPIFFEID != "" {
		spiffe = &n.SPIFFEID
	}
	roles := n.Roles
	if roles == nil {
		roles = []NodeRole{} // it denies
	}
	_, err := tx.Exec(ctx, `INSERT INTO nodes (org_id, id, name, token_hash, spiffe_id, roles, by_operator, home, created_at, expires_at, revoked_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
		n.OrgID, n.ID, n.Name, token, spiffe, roles, n.ByOperator, n.Home, n.CreatedAt, never(n.ExpiresAt), never(n.RevokedAt))
	return doing(err, "storing a node")
}

// SetNodeRoles changes the roles of a node in the transaction's org.
func SetNodeRoles(ctx context.Context, tx pgx.Tx, id string, roles []NodeRole) error {
	tag, err := tx.Exec(ctx, "UPDATE nodes SET roles = $2 WHERE id = $1", id, roles)
	if err == nil && tag.RowsAffected() == 0 {
		err = ErrNotFound
	}
	return doing(err, "changing a node's roles")
}

const nodeColumns = `org_id, id, name, coalesce(token_hash, ''), coalesce(spiffe_id, ''), roles, by_operator, home, created_at, expires_at, revoked_at, place`

func scanNode(row pgx.CollectableRow) (n Node, err error) {
	var hash string
	var expires, revoked *time.Time
	if err := row.Scan(&n.OrgID, &n.ID, &n.Name, &hash, &n.SPIFFEID, &n.Roles, &n.ByOperator, &n.Home, &n.CreatedAt, &expires, &revoked, &n.Place); err != nil {
		return Node{}, err
	}
	n.CreatedAt, n.ExpiresAt, n.RevokedAt = n.CreatedAt.UTC(), when(expires), when(revoked)
	if hash != "" {
		n.TokenHash, err = hashOf(hash)
	}
	return n, err
}

// NodePresented returns the node with a credential: the hex SHA-256 of its token
// ([HexHash]), or its SPIFFE id. Orgs are those that it serves at now. If it serves no org,
// the node is inactive. The transaction was opened by Presenting the same string. Without
// such a node, or with several, the error is [ErrNotFound].
func NodePresented(ctx context.Context, tx pgx.Tx, presented string, now time.Time) (Node, error) {
	rows, err := tx.Query(ctx, `SELECT `+nodeColumns+` FROM nodes WHERE token_hash = $1 OR spiffe_id = $1 ORDER BY org_id, id`, presented)
	if err != nil {
		return Node{}, doing(err, "looking up a node")
	}
	found, err := all(rows, "looking up a node", scanNode)
	if err != nil {
		return Node{}, err
	}
	return oneNode(found, now)
}

// oneNode joins the rows of one node. A SPIFFE id may also belong to revoked nodes.
func oneNode(rows []Node, now time.Time) (Node, error) {
	if len(rows) == 0 {
		return Node{}, ErrNotFound
	}
	live := slices.DeleteFunc(slices.Clone(rows), func(n Node) bool { return n.ActiveAt(now) != nil })
	if len(live) == 0 {
		return rows[len(rows)-1], nil // inactive, so it gets nothing
	}
	if slices.ContainsFunc(live, func(n Node) bool { return n.ByOperator }) {
		live = slices.DeleteFunc(live, func(n Node) bool { return !n.ByOperator })
	}
	n := live[0]
	homes := 0
	for _, other := range live {
		if other.ID != n.ID {
			return Node{}, ErrNotFound // ambiguous
		}
		n.Roles = slices.DeleteFunc(slices.Clone(n.Roles), func(r NodeRole) bool { return !other.Has(r) })
		n.Orgs = append(n.Orgs, other.OrgID)
		if other.Home {
			homes++
			n.HomeID = other.OrgID
		}
		if n.ExpiresAt.IsZero() || !other.ExpiresAt.IsZero() && other.ExpiresAt.Before(n.ExpiresAt) {
			n.ExpiresAt = other.ExpiresAt
		}
	}
	if homes != 1 {
		n.HomeID = "" // it is older than homes, or its home revoked it
	}
	return n, nil
}

// MayName reports whether the operator gave the organization a trust domain or a path
// prefix above the SPIFFE id. Prefixes end at whole path segments.
func MayName(ctx context.Context, tx pgx.Tx, spiffeID string) (ok bool, err error) {
	err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM trust_prefixes WHERE org_id = aid_org() AND starts_with($1 || '/', prefix || '/'))`, spiffeID).Scan(&ok)
	return ok, doing(err, "looking up the SPIFFE ids of an organization")
}

// GrantPrefix lets an organization create nodes below a trust domain or path prefix. The
// role must be the database's owner. If it overlaps with a granted prefix of any
// organization, the error is [ErrConflict].
func GrantPrefix(ctx context.Context, tx pgx.Tx, org, prefix string) error {
	_, err := tx.Exec(ctx, `INSERT INTO trust_prefixes (org_id, prefix) VALUES ($1, $2)`, org, prefix)
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) && pg.Code == "23P01" {
		err = ErrConflict
	}
	return doing(err, "granting a SPIFFE prefix")
}

// OrgsOfKeys returns the organization of each existing key hash in hex. The transaction was
// opened by Presenting the hashes, joined by commas. A hash in two organizations is left
// out.
func OrgsOfKeys(ctx context.Context, tx pgx.Tx, hashes []string) (map[string]string, error) {
	rows, err := tx.Query(ctx, `SELECT hash, min(org_id) FROM agent_keys WHERE hash = ANY ($1) GROUP BY hash HAVING count(*) = 1`, hashes)
	if err != nil {
		return nil, doing(err, "looking up the organizations of keys")
	}
	out := make(map[string]string, len(hashes))
	var hash, org string
	_, err = pgx.ForEachRow(rows, []any{&hash, &org}, func() error { out[hash] = org; return nil })
	return out, doing(err, "looking up the organizations of keys")
}

// CallersByHash is like [CallerByHash] for several hashes in hex, in one statement. Unknown
// hashes are left out.
func CallersByHash(ctx context.Context, tx pgx.Tx, hashes []string) (map[string]Caller, error) {
	rows, err := tx.Query(ctx, `SELECT `+keyColumns+`, `+keyLine+`, `+agentColumns+`
		FROM agent_keys k JOIN agents a ON a.org_id = k.org_id AND a.id = k.agent_id
		WHERE k.org_id = aid_org() AND k.hash = ANY ($1)`, hashes)
	if err != nil {
		return nil, doing(err, "looking up callers")
	}
	defer rows.Close()
	out := make(map[string]Caller, len(hashes))
	for rows.Next() {
		c, err := scanCaller(rows)
		if err != nil {
			return nil, doing(err, "looking up callers")
		}
		out[hexOf(c.Key.Hash)] = c
	}
	return out, doing(rows.Err(), "looking up callers")
}

func scanCaller(row pgx.Row) (c Caller, err error) {
	var k keyRow
	var a agentRow
	if err := row.Scan(slices.Concat(k.into(), []any{&k.Line}, a.into())...); err != nil {
		return Caller{}, err
	}
	if c.Key, err = k.key(); err != nil {
		return Caller{}, err
	}
	c.Agent, err = a.agent()
	return c, err
}

// ListNodes returns all nodes in the order of their places, with inactive ones.
func ListNodes(ctx context.Context, tx pgx.Tx) ([]Node, error) {
	rows, err := tx.Query(ctx, `SELECT `+nodeColumns+` FROM nodes WHERE org_id = aid_org() ORDER BY place, id`)
	if err != nil {
		return nil, doing(err, "listing nodes")
	}
	return all(rows, "listing nodes", scanNode)
}

// RevokeNode revokes a node's access at once and permanently. A revoked node is not
// changed. Without such a node, the error is [ErrNotFound].
func RevokeNode(ctx context.Context, tx pgx.Tx, id string, at time.Time) error {
	tag, err := tx.Exec(ctx, `UPDATE nodes SET revoked_at = coalesce(revoked_at, $2) WHERE org_id = aid_org() AND id = $1`, id, at)
	return changed(tag.RowsAffected(), err, "revoking a node")
}

// ---- how values are stored ----

// HexHash is the form in which the SHA-256 of a secret is stored and presented: lower-case
// hexadecimal.
func HexHash(hash [32]byte) string { return hexOf(hash) }

func hexOf(hash [32]byte) string { return hex.EncodeToString(hash[:]) }

func hashOf(s string) (hash [32]byte, err error) {
	if len(s) != 2*len(hash) {
		return hash, errors.New("a stored hash is not a SHA-256")
	}
	if _, err := hex.Decode(hash[:], []byte(s)); err != nil {
		return hash, errors.New("a stored hash is not hexadecimal")
	}
	return hash, nil
}

func (m Metadata) stored() ([]byte, error) {
	if len(m) == 0 {
		return []byte("{}"), nil
	}
	if err := m.Check(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(map[string]any(m))
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	return b, nil
}

// some returns a list that Postgres does not store as NULL.
func some(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func never(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func when(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

func doing(err error, what string) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func found[T any](v T, err error, what string) (T, error) {
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		var none T
		return none, fmt.Errorf("%s: %w", what, ErrNotFound)
	case err != nil:
		var none T
		return none, fmt.Errorf("%s: %w", what, err)
	}
	return v, nil
}

func changed(rows int64, err error, what string) error {
	if err == nil && rows == 0 {
		err = pgx.ErrNoRows
	}
	_, err = found(struct{}{}, err, what)
	return err
}

func all[T any](rows pgx.Rows, what string, scan func(pgx.CollectableRow) (T, error)) ([]T, error) {
	list, err := pgx.CollectRows(rows, scan)
	return list, doing(err, what)
}
