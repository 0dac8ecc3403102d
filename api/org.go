package api

import (
	"context"
	"time"

	"github.com/ai-identity/ai-identity/budget"
	"github.com/ai-identity/ai-identity/identity"
)

// Me describes the caller.
type Me struct {
	OrgID     string     `json:"org_id" doc:"The organization's id." example:"org_01k0000000abcdefghjkmnpqrs"`
	OrgName   string     `json:"org_name" doc:"The organization's name." example:"default"`
	Tier      string     `json:"tier" doc:"The organization's tier." example:""`
	KeyID     string     `json:"key_id" doc:"The id of the key in the request." example:"okey_01k0000000abcdefghjkmnpqrs"`
	KeyName   string     `json:"key_name" doc:"The key's name." example:"first"`
	Role      string     `json:"role" enum:"admin,auditor,reviewer" doc:"What it may do." example:"admin"`
	ExpiresAt *time.Time `json:"expires_at" doc:"Time of the key's expiry, UTC; null: it does not expire." example:"2027-01-31T12:00:00Z"`
}

func getMe(ctx context.Context, x *call, _ *struct{}) (*one[Me], error) {
	org, err := identity.OrgByID(ctx, x.tx, x.org)
	if err != nil {
		return nil, err
	}
	return &one[Me]{Body: Me{OrgID: x.org, OrgName: org.Name, Tier: org.Tier, KeyID: x.key.ID, KeyName: x.key.Name, Role: string(x.key.Role), ExpiresAt: at(x.key.ExpiresAt)}}, nil
}

// Org is an organization in responses.
type Org struct {
	ID       string     `json:"id" doc:"The organization's id." example:"org_01k0000000abcdefghjkmnpqrs"`
	Name     string     `json:"name" doc:"The organization's name." example:"default"`
	Tier     string     `json:"tier" doc:"The organization's tier." example:""`
	Timezone string     `json:"timezone" doc:"The time zone of its days and months, in which USD caps are counted." example:"UTC"`
	Next     string     `json:"timezone_next" doc:"The time zone that takes its place; empty: no change is due." example:"Europe/Berlin"`
	NextFrom *time.Time `json:"timezone_next_from" doc:"When it takes its place, UTC; null: no change is due." example:"2026-12-01T00:00:00Z"`
}

func orgShown(o identity.Org, now time.Time) Org {
	shown := Org{ID: o.ID, Name: o.Name, Tier: o.Tier, Timezone: o.Timezone}
	if now.Before(o.TimezoneFrom) {
		shown.Timezone, shown.Next, shown.NextFrom = o.TimezoneBefore, o.Timezone, at(o.TimezoneFrom)
	}
	return shown
}

func getOrg(ctx context.Context, x *call, _ *struct{}) (*one[Org], error) {
	org, err := identity.OrgByID(ctx, x.tx, x.org)
	return &one[Org]{Body: orgShown(org, x.now)}, err
}

// OrgChange is a change of an organization.
type OrgChange struct {
	Timezone string `json:"timezone" minLength:"1" maxLength:"64" doc:"An IANA name. The change holds from the first of the next month." example:"Europe/Berlin"`
}

// inTurn waits until no other transaction of the org changes these objects. A limit on their
// number is checked after it. Otherwise concurrent requests could exceed it together.
func (x *call) inTurn(ctx context.Context, objects string) error {
	_, err := x.tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended('aid ' || $1 || ' ' || $2, 0))`, objects, x.org)
	return err
}

func updateOrg(ctx context.Context, x *call, in *struct{ Body OrgChange }) (*one[Org], error) {
	if err := x.inTurn(ctx, "orgs"); err != nil {
		return nil, err
	}
	org, err := identity.OrgByID(ctx, x.tx, x.org)
	if err != nil {
		return nil, err
	}
	before := orgShown(org, x.now)
	now, err := budget.NewCalendar(before.Timezone, before.Timezone, time.Time{})
	if err != nil {
		return nil, err
	}
	if _, err := budget.NewCalendar(in.Body.Timezone, before.Timezone, time.Time{}); err != nil {
		return nil, invalid(fieldProblem{"timezone", "This is not a time zone.", "Use an IANA name, such as Europe/Berlin or UTC."})
	}
	org.Timezone, org.TimezoneBefore, org.TimezoneFrom = in.Body.Timezone, before.Timezone, now.NextMonth(x.now)
	if in.Body.Timezone == before.Timezone {
		org.TimezoneFrom = time.Time{} // a change that was due is withdrawn
	}
	after := orgShown(org, x.now)
	if fields, err := changed(before, after); err != nil || len(fields) == 0 {
		return &one[Org]{Body: before}, err
	}
	if err := identity.SetTimezone(ctx, x.tx, org); err != nil {
		return nil, err
	}
	return &one[Org]{Body: after}, x.record(ctx, "org.updated", "org", x.org, "", before, after)
}

// OrgKey is an organization key in responses, without the secret.
type OrgKey struct {
	ID        string     `json:"id" doc:"Its id." example:"okey_01k0000000abcdefghjkmnpqrs"`
	Name      string     `json:"name" doc:"What people call it." example:"ci"`
	Role      string     `json:"role" enum:"admin,auditor,reviewer" doc:"What it may do." example:"auditor"`
	Status    string     `json:"status" enum:"active,expired,revoked" doc:"Whether it works." example:"active"`
	CreatedAt time.Time  `json:"created_at" doc:"When it was made, UTC." example:"2026-01-31T12:00:00Z"`
	ExpiresAt *time.Time `json:"expires_at" doc:"When it stops working, UTC; null: never." example:"2027-01-31T12:00:00Z"`
	RevokedAt *time.Time `json:"revoked_at" doc:"When it was revoked, UTC; null: it was not." example:"2026-03-01T12:00:00Z"`
}

// MadeOrgKey is the only response with a secret organization key.
type MadeOrgKey struct {
	OrgKey
	Secret string `json:"key" doc:"The key. It is shown only once: keep it in a secret store." example:"aid_org_…"`
}

// NewOrgKey is the body that creates an organization key.
type NewOrgKey struct {
	Name          string `json:"name" minLength:"1" maxLength:"100" pattern:"^([^\\p{C}\\p{Z}]+( [^\\p{C}\\p{Z}]+)*)?$" patternDescription:"a string of visible characters and single spaces" doc:"What people call it." example:"ci"`
	Role          string `json:"role" enum:"admin,auditor,reviewer" doc:"What it may do." example:"auditor"`
	ExpiresInDays int64  `json:"expires_in_days,omitzero" minimum:"1" maximum:"3650" doc:"Days until the key expires. Leave it out for a key that does not expire." example:"365"`
}

func orgKeyShown(now time.Time) func(identity.OrgKeyRecord) OrgKey {
	return func(k identity.OrgKeyRecord) OrgKey {
		return OrgKey{
			ID: k.ID, Name: k.Name, Role: string(k.Role), Status: lifeOf(k.ExpiresAt, k.RevokedAt, now),
			CreatedAt: k.CreatedAt.UTC(), ExpiresAt: at(k.ExpiresAt), RevokedAt: at(k.RevokedAt),
		}
	}
}

func listOrgKeys(ctx context.Context, x *call, in *Pages) (*paged[OrgKey], error) {
	keys, err := identity.ListOrgKeys(ctx, x.tx)
	if err != nil {
		return nil, err
	}
	return pageOf(*in, keys, func(k identity.OrgKeyRecord) place { return place{k.Place, k.ID} }, orgKeyShown(x.now)), nil
}

func getOrgKey(ctx context.Context, x *call, in *ByID) (*one[OrgKey], error) {
	keys, err := identity.ListOrgKeys(ctx, x.tx)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		if k.ID == in.ID {
			return &one[OrgKey]{Body: orgKeyShown(x.now)(k)}, nil
		}
	}
	return nil, notFound("organization key", in.ID)
}

func createOrgKey(ctx context.Context, x *call, in *struct{ Body NewOrgKey }) (*made[MadeOrgKey], error) {
	secret, hash, err := identity.Mint(identity.OrgKey, x.c.Rand)
	if err != nil {
		return nil, err
	}
	id, err := x.newID(identity.OrgKeyID)
	if err != nil {
		return nil, err
	}
	k := identity.OrgKeyRecord{ID: id, OrgID: x.org, Name: in.Body.Name, Role: identity.Role(in.Body.Role), Hash: hash, CreatedAt: x.now, ExpiresAt: x.expiry(in.Body.ExpiresInDays)}
	if err := identity.InsertOrgKey(ctx, x.tx, k); err != nil {
		return nil, err
	}
	shown := orgKeyShown(x.now)(k)
	if err := x.record(ctx, "org_key.created", "org_key", k.ID, "", nil, shown); err != nil {
		return nil, err
	}
	return &made[MadeOrgKey]{Location: "/v1/org-keys/" + k.ID, Body: MadeOrgKey{OrgKey: shown, Secret: secret}}, nil
}

func revokeOrgKey(ctx context.Context, x *call, in *ByID) (*nothing, error) {
	// One at a time, since two admins could revoke each other's key and leave none.
	if err := x.inTurn(ctx, "org_keys"); err != nil {
		return nil, err
	}
	keys, err := identity.ListOrgKeys(ctx, x.tx)
	if err != nil {
		return nil, err
	}
	var k *identity.OrgKeyRecord
	others := 0 // other active admin keys
	for i := range keys {
		switch {
		case keys[i].ID == in.ID:
			k = &keys[i]
		case keys[i].Role == identity.Admin && keys[i].ActiveAt(x.now) == nil:
			others++
		}
	}
	switch {
	case k == nil:
		return nil, notFound("organization key", in.ID)
	case !k.RevokedAt.IsZero():
		return nil, nil
	case others == 0 && k.Role == identity.Admin:
		return nil, &problem{Status: 409, Code: "last_admin_key", Message: "This is the last active admin key. Without it, the organization could not be managed.", Fix: "Create another admin key first."}
	}
	if err := identity.RevokeOrgKey(ctx, x.tx, k.ID, x.now); err != nil {
		return nil, err
	}
	before, after := orgKeyShown(x.now)(*k), *k
	after.RevokedAt = x.now
	return nil, x.record(ctx, "org_key.revoked", "org_key", k.ID, "", before, orgKeyShown(x.now)(after))
}

// Node is a node in responses, without its token.
type Node struct {
	ID        string     `json:"id" doc:"Its id." example:"node_01k0000000abcdefghjkmnpqrs"`
	Role      string     `json:"role" enum:"envoy,extproc,both,none" doc:"The configuration that the node may fetch." example:"extproc"`
	Name      string     `json:"name" doc:"What people call it." example:"gateway-eu-1"`
	SPIFFEID  *string    `json:"spiffe_id" doc:"The SPIFFE id of the node's certificate, if it has one." example:"spiffe://corp.example/ns/ai/sa/gateway"`
	Status    string     `json:"status" enum:"active,expired,revoked" doc:"Only an active node receives configuration." example:"active"`
	CreatedAt time.Time  `json:"created_at" doc:"When it was made, UTC." example:"2026-01-31T12:00:00Z"`
	ExpiresAt *time.Time `json:"expires_at" doc:"Time of expiry, UTC; null: the node does not expire." example:"2027-01-31T12:00:00Z"`
	RevokedAt *time.Time `json:"revoked_at" doc:"When it was revoked, UTC; null: it was not." example:"2026-03-01T12:00:00Z"`
}

// MadeNode is the only response with a node's token.
type MadeNode struct {
	Node
	Token string `json:"token,omitzero" doc:"The join token. It is shown only once. A node with a SPIFFE id has no token." example:"aid_node_…"`
}

// NewNode is the body that creates a node.
type NewNode struct {
	Name          string `json:"name" minLength:"1" maxLength:"100" pattern:"^([^\\p{C}\\p{Z}]+( [^\\p{C}\\p{Z}]+)*)?$" patternDescription:"a string of visible characters and single spaces" doc:"What people call it." example:"gateway-eu-1"`
	SPIFFEID      string `json:"spiffe_id,omitzero" maxLength:"2048" pattern:"^(spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+)?$" patternDescription:"a SPIFFE id such as spiffe://corp.example/ns/ai/sa/gateway" doc:"The SPIFFE id of the node's certificate. The operator must have granted its prefix to this organization (aid org trust). The node then gets no token." example:"spiffe://corp.example/ns/ai/sa/gateway"`
	Role          string `json:"role,omitzero" enum:"envoy,extproc,both" doc:"envoy may fetch listeners, routes and clusters. extproc may fetch callers, credentials and policies, and append audit records. The default is both." example:"extproc"`
	ExpiresInDays int64  `json:"expires_in_days,omitzero" minimum:"1" maximum:"3650" doc:"Days until the node expires. Leave it out for a node that does not expire." example:"365"`
}

func nodeShown(now time.Time) func(identity.Node) Node {
	return func(n identity.Node) Node {
		out := Node{ID: n.ID, Role: roleOf(n), Name: n.Name, Status: lifeOf(n.ExpiresAt, n.RevokedAt, now), CreatedAt: n.CreatedAt.UTC(), ExpiresAt: at(n.ExpiresAt), RevokedAt: at(n.RevokedAt)}
		if n.SPIFFEID != "" {
			out.SPIFFEID = &n.SPIFFEID
		}
		return out
	}
}

// nodeRoles returns the roles for a role in a request.
func nodeRoles(role string) []identity.NodeRole {
	switch role {
	case "envoy", "extproc":
		return []identity.NodeRole{identity.NodeRole(role)}
	}
	return []identity.NodeRole{identity.NodeEnvoy, identity.NodeExtproc}
}

func roleOf(n identity.Node) string {
	switch {
	case n.Has(identity.NodeEnvoy) && n.Has(identity.NodeExtproc):
		return "both"
	case n.Has(identity.NodeEnvoy):
		return "envoy"
	case n.Has(identity.NodeExtproc):
		return "extproc"
	}
	return "none"
}

func listNodes(ctx context.Context, x *call, in *Pages) (*paged[Node], error) {
	nodes, err := identity.ListNodes(ctx, x.tx)
	if err != nil {
		return nil, err
	}
	return pageOf(*in, nodes, func(n identity.Node) place { return place{n.Place, n.ID} }, nodeShown(x.now)), nil
}

func getNode(ctx context.Context, x *call, in *ByID) (*one[Node], error) {
	nodes, err := identity.ListNodes(ctx, x.tx)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		if n.ID == in.ID {
			return &one[Node]{Body: nodeShown(x.now)(n)}, nil
		}
	}
	return nil, notFound("node", in.ID)
}

func createNode(ctx context.Context, x *call, in *struct{ Body NewNode }) (*made[MadeNode], error) {
	id, err := x.newID(identity.NodeID)
	if err != nil {
		return nil, err
	}
	n := identity.Node{ID: id, OrgID: x.org, Name: in.Body.Name, SPIFFEID: in.Body.SPIFFEID, Roles: nodeRoles(in.Body.Role), Home: true, CreatedAt: x.now, ExpiresAt: x.expiry(in.Body.ExpiresInDays)}
	if n.SPIFFEID != "" {
		// The response does not reveal whether another organization has such a node.
		may, err := identity.MayName(ctx, x.tx, n.SPIFFEID)
		if err != nil {
			return nil, err
		}
		if !may {
			return nil, &problem{Status: 403, Code: "spiffe_id_not_granted", Message: "This organization may not create nodes with this SPIFFE id.", Fix: "Ask the operator to grant a trust domain or path to the organization (aid org trust), or leave spiffe_id out to get a join token."}
		}
	}
	token := ""
	if n.SPIFFEID == "" {
		if token, n.TokenHash, err = identity.Mint(identity.NodeToken, x.c.Rand); err != nil {
			return nil, err
		}
	}
	if err := identity.InsertNode(ctx, x.tx, n); err != nil {
		return nil, err
	}
	shown := nodeShown(x.now)(n)
	if err := x.record(ctx, "node.created", "node", n.ID, "", nil, shown); err != nil {
		return nil, err
	}
	return &made[MadeNode]{Location: "/v1/nodes/" + n.ID, Body: MadeNode{Node: shown, Token: token}}, nil
}

func revokeNode(ctx context.Context, x *call, in *ByID) (*nothing, error) {
	nodes, err := identity.ListNodes(ctx, x.tx)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		if n.ID != in.ID {
			continue
		}
		if !n.RevokedAt.IsZero() {
			return nil, nil
		}
		if err := identity.RevokeNode(ctx, x.tx, n.ID, x.now); err != nil {
			return nil, err
		}
		before := nodeShown(x.now)(n)
		n.RevokedAt = x.now
		return nil, x.record(ctx, "node.revoked", "node", n.ID, "", before, nodeShown(x.now)(n))
	}
	return nil, notFound("node", in.ID)
}
