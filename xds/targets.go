package xds

import (
	"net/netip"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/rbac/matchers/upstream_ip_port/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ai-identity/ai-identity/provider"
)

// Envoy resolves names and connects, so Envoy checks the address. filterTargets runs in each
// cluster after a host is chosen and before Envoy connects. So it checks the address that
// the name has at that moment.
const (
	filterTargets = "envoy.filters.http.upstream_rbac"
	filterCodec   = "envoy.filters.http.upstream_codec"
	matcherTarget = "target" // Envoy finds the matcher by its type. Each rule has the name, so it is short.

	policyTargets = "targets"
)

// targets returns provider.Targets' Allows as an RBAC policy of Envoy. An address that no
// policy lists is rejected.
func targets(t provider.Targets) *rbacv3.RBAC {
	allowed := []*rbacv3.Permission{allOf(anyOf(matching(provider.Public)...), not(anyOf(matching(provider.Special)...)))}
	if len(t.Private) > 0 {
		allowed = append(allowed, anyOf(matching(t.Private)...))
	}
	denied := matching(provider.Never)
	for _, o := range t.OwnPrefixes() {
		denied = append(denied, target(o.Prefix, o.Port))
	}
	rule := allOf(anyOf(allowed...), not(anyOf(denied...)))
	return &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW, Policies: map[string]*rbacv3.Policy{policyTargets: {
		Permissions: []*rbacv3.Permission{rule}, Principals: []*rbacv3.Principal{{Identifier: &rbacv3.Principal_Any{Any: true}}},
	}}}
}

func matching(ps []netip.Prefix) (out []*rbacv3.Permission) {
	for _, p := range ps {
		out = append(out, target(p, 0))
	}
	return out
}

// target matches a host in p, with port unless port is 0.
func target(p netip.Prefix, port uint16) *rbacv3.Permission {
	m := &upstreamv3.UpstreamIpPortMatcher{UpstreamIp: &corev3.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))}}
	if port != 0 {
		m.UpstreamPortRange = &typev3.Int64Range{Start: int64(port), End: int64(port) + 1}
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_Matcher{Matcher: &corev3.TypedExtensionConfig{Name: matcherTarget, TypedConfig: pack(m)}}}
}

func anyOf(ps ...*rbacv3.Permission) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_OrRules{OrRules: &rbacv3.Permission_Set{Rules: ps}}}
}

func allOf(ps ...*rbacv3.Permission) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_AndRules{AndRules: &rbacv3.Permission_Set{Rules: ps}}}
}

func not(p *rbacv3.Permission) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_NotRule{NotRule: p}}
}
