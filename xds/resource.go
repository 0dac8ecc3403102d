package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	aidv1 "github.com/ai-identity/ai-identity/proto/aid/v1"
	"github.com/ai-identity/ai-identity/provider"
)

// Type URLs of the served resources.
const (
	typePrefix = "type.googleapis.com/"

	ListenerType = typePrefix + "envoy.config.listener.v3.Listener"
	RouteType    = typePrefix + "envoy.config.route.v3.RouteConfiguration"
	SecretType   = typePrefix + "envoy.extensions.transport_sockets.tls.v3.Secret"
	ClusterType  = typePrefix + "envoy.config.cluster.v3.Cluster"

	OrgType        = typePrefix + "aid.v1.Org"
	NodeType       = typePrefix + "aid.v1.Node"
	CallerType     = typePrefix + "aid.v1.Caller"
	PolicyType     = typePrefix + "aid.v1.Policy"
	ProviderType   = typePrefix + "aid.v1.Provider"
	CredentialType = typePrefix + "aid.v1.Credential"
	HeartbeatType  = typePrefix + "aid.v1.Heartbeat"
)

// heartbeatName is the name of the only Heartbeat, and nodeName of the only Node.
const (
	heartbeatName = "clock"
	nodeName      = "self"
)

// A kind is a resource type. A new type needs a row here, a field in held, and code in a
// snapshot: TestFilesOfAType, TestNewType.
type kind struct {
	url   string
	short string            // for labels and logs
	role  identity.NodeRole // the nodes that may subscribe to it
	named bool              // nodes subscribe to it only by name
}

// kinds are all types, in the order in which new resources are sent. Removals are sent in the
// reverse order.
var kinds = []kind{
	{url: ClusterType, short: "Cluster", role: identity.NodeEnvoy},
	// Certificates. A node without the role egress has none, and its stream goes on.
	{url: SecretType, short: "Secret", role: identity.NodeEnvoy},
	{url: ListenerType, short: "Listener", role: identity.NodeEnvoy},
	{url: RouteType, short: "RouteConfiguration", role: identity.NodeEnvoy},
	{url: NodeType, short: "Node", role: identity.NodeExtproc},
	{url: CredentialType, short: "Credential", role: identity.NodeExtproc},
	{url: ProviderType, short: "Provider", role: identity.NodeExtproc},
	{url: PolicyType, short: "Policy", role: identity.NodeExtproc},
	{url: OrgType, short: "Org", role: identity.NodeExtproc}, // last, since an org is complete once this has arrived
	{url: HeartbeatType, short: "Heartbeat", role: identity.NodeExtproc},
	{url: CallerType, short: "Caller", role: identity.NodeExtproc, named: true},
}

func kindOf(url string) (kind, bool) {
	i := slices.IndexFunc(kinds, func(k kind) bool { return k.url == url })
	if i < 0 {
		return kind{}, false
	}
	return kinds[i], true
}

// short returns a type's name for labels and logs. A node may send any type.
func short(url string) string {
	if k, ok := kindOf(url); ok {
		return k.short
	}
	return "other"
}

// inOrg returns the resource name of an org's object. Ids are unique only within an org.
func inOrg(org, id string) string { return org + "/" + id }

// resource packs m. The version is a digest, so that all replicas send the same version for
// the same resource.
func resource(name string, m proto.Message) (*discoveryv3.Resource, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("packing %s: %w", name, err)
	}
	sum := sha256.Sum256(b)
	return &discoveryv3.Resource{
		Name: name, Version: hex.EncodeToString(sum[:12]),
		Resource: &anypb.Any{TypeUrl: typePrefix + string(m.ProtoReflect().Descriptor().FullName()), Value: b},
	}, nil
}

// callerName returns the resource name of the caller that presents p.
func callerName(p identity.Presented) string {
	if _, is := p.WorkloadHash(); is {
		return string(p)
	}
	return "key:" + string(p)
}

func parseCallerName(name string) (p identity.Presented, ok bool) {
	text, ok := strings.CutPrefix(name, "key:")
	if p = identity.Presented(text); ok {
		_, ok = p.KeyHash()
		return p, ok
	}
	_, ok = p.WorkloadHash()
	return p, ok
}

// ---- callers ----

func packCaller(c identity.Caller) (*aidv1.Caller, error) {
	metadata, err := json.Marshal(c.Agent.Metadata)
	if err != nil {
		return nil, fmt.Errorf("metadata of %s: %w", c.Agent.ID, err)
	}
	a, k := c.Agent, c.Key
	out := &aidv1.Caller{
		Agent: &aidv1.Agent{
			Id: a.ID, OrgId: a.OrgID, Name: a.Name, Description: a.Description, Team: a.Team, Environment: a.Environment,
			Tier: a.Tier, Status: aidv1.Agent_SUSPENDED, AllowedModels: a.AllowedModels, MetadataJson: metadata, Fingerprint: a.Fingerprint,
		},
		Key: &aidv1.Key{
			Id: k.ID, OrgId: k.OrgID, AgentId: k.AgentID, Name: k.Name, Scopes: k.Scopes, AllowedModels: k.AllowedModels,
			RateLimit: k.RateLimit, ExpiresAt: stamp(k.ExpiresAt), Status: aidv1.Key_REVOKED, Line: k.Line,
		},
	}
	for _, kind := range a.RequiredIdentities {
		out.Agent.RequiredIdentities = append(out.Agent.RequiredIdentities, string(kind))
	}
	if w := c.Workload; k.Kind != identity.KindKey {
		out.Key.Workload = &aidv1.Workload{
			Kind: string(w.Kind), SpiffeId: w.SPIFFEID, Issuer: w.Issuer, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount,
		}
	}
	if a.Status == identity.Active {
		out.Agent.Status = aidv1.Agent_ACTIVE
	}
	if k.RevokedAt.IsZero() {
		out.Key.Status = aidv1.Key_ACTIVE
	}
	return out, nil
}

// unpackCaller reverses packCaller. An agent or key without an active status is not active.
func unpackCaller(p identity.Presented, m *aidv1.Caller) (identity.Caller, error) {
	a, k := m.GetAgent(), m.GetKey()
	kind, w := identity.KindKey, identity.Workload{}
	hash, ok := p.KeyHash()
	if m := k.GetWorkload(); m != nil {
		w = identity.Workload{
			Kind: identity.CredentialKind(m.GetKind()), SPIFFEID: m.GetSpiffeId(), Issuer: m.GetIssuer(), Namespace: m.GetNamespace(), ServiceAccount: m.GetServiceAccount(),
		}
		kind, ok = w.Kind, w.String() != "" && w.Presented() == p
	}
	if !ok {
		return identity.Caller{}, errors.New("a caller with another credential than its name has")
	}
	if a.GetId() == "" || k.GetId() == "" || k.GetAgentId() != a.GetId() || k.GetOrgId() != a.GetOrgId() || a.GetOrgId() == "" {
		return identity.Caller{}, errors.New("a caller with a key of another agent")
	}
	metadata, err := identity.ParseMetadata(a.GetMetadataJson())
	if err != nil {
		return identity.Caller{}, fmt.Errorf("metadata of %s: %w", a.GetId(), err)
	}
	c := identity.Caller{
		Workload: w,
		Agent: identity.Agent{
			ID: a.GetId(), OrgID: a.GetOrgId(), Name: a.GetName(), Description: a.GetDescription(), Team: a.GetTeam(),
			Environment: a.GetEnvironment(), Tier: a.GetTier(), Status: identity.Suspended, AllowedModels: a.GetAllowedModels(),
			Metadata: metadata, Fingerprint: a.GetFingerprint(),
		},
		Key: identity.Key{
			ID: k.GetId(), Kind: kind, OrgID: k.GetOrgId(), AgentID: k.GetAgentId(), Hash: hash, Name: k.GetName(), Scopes: k.GetScopes(),
			AllowedModels: k.GetAllowedModels(), RateLimit: k.GetRateLimit(), RevokedAt: revoked, Line: k.GetLine(),
		},
	}
	for _, kind := range a.GetRequiredIdentities() { // a kind that is not known here is never presented
		c.Agent.RequiredIdentities = append(c.Agent.RequiredIdentities, identity.CredentialKind(kind))
	}
	if a.GetStatus() == aidv1.Agent_ACTIVE {
		c.Agent.Status = identity.Active
	}
	if k.GetStatus() == aidv1.Key_ACTIVE {
		c.Key.RevokedAt = time.Time{}
	}
	if t := k.GetExpiresAt(); t != nil {
		c.Key.ExpiresAt = t.AsTime()
	}
	return c, nil
}

// revoked is the time of a revocation with an unknown time.
var revoked = time.Unix(1, 0).UTC()

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// ---- providers, credentials, policies ----

func packProvider(p provider.Provider) *aidv1.Provider {
	return &aidv1.Provider{
		Id: p.ID, OrgId: p.OrgID, Name: p.Name, Kind: p.Kind, BaseUrl: p.BaseURL, Models: p.Models, Hosts: p.Hosts,
		Headers: p.HeaderValues(), SettingsJson: p.Settings, Cluster: p.Cluster, HasCredential: p.HasCredential,
	}
}

func unpackProvider(m *aidv1.Provider) (provider.Provider, error) {
	p := provider.Provider{
		ID: m.GetId(), OrgID: m.GetOrgId(), Name: m.GetName(), Kind: m.GetKind(), BaseURL: m.GetBaseUrl(), Models: m.GetModels(),
		Hosts: m.GetHosts(), Headers: provider.Headers(m.GetHeaders()), Settings: m.GetSettingsJson(), Cluster: m.GetCluster(), HasCredential: m.GetHasCredential(),
	}
	if p.ID == "" || p.OrgID == "" || p.Cluster != provider.ClusterName(p) {
		return p, errors.New("a provider with the cluster of another")
	}
	return p, provider.Validate(p)
}

func packPolicy(p policy.Policy) *aidv1.Policy {
	return &aidv1.Policy{Id: p.ID, OrgId: p.OrgID, Version: p.Version, DocumentJson: p.Document}
}

func unpackPolicy(m *aidv1.Policy) policy.Policy {
	return policy.Policy{ID: m.GetId(), OrgID: m.GetOrgId(), Version: m.GetVersion(), Document: m.GetDocumentJson()}
}
