package provider

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Targets defines which addresses providers may have. The zero Targets allows public
// addresses only: no loopback, private, link-local, metadata or reserved address.
type Targets struct {
	Private []netip.Prefix   // addresses that are not public and are allowed
	Own     []netip.AddrPort // our own listeners, which are never allowed
}

// ParseTargets reads a list of addresses and CIDRs, such as 10.0.0.0/8.
func ParseTargets(list []string) (Targets, error) {
	var t Targets
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if a, bad := netip.ParseAddr(s); err != nil && bad == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil || p != p.Masked() || p.Addr().Is4In6() {
			return Targets{}, fmt.Errorf("%q is neither an address nor a CIDR without host bits, such as 10.0.0.0/8 or ::1", s)
		}
		t.Private = append(t.Private, p)
	}
	return t, nil
}

// Public are the ranges with public addresses. Special are the ranges in them that are not
// public: IANA's registries of special-purpose addresses, and the addresses of clouds'
// metadata services. Envoy gets both: see xds.
var (
	Public  = prefixes("0.0.0.0/0", "2000::/3", nat64.String())
	Special = special()

	special4 = prefixes("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
		"192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
		"224.0.0.0/3", "168.63.129.16/32")
	// 6to4 (2002::/16) also embeds IPv4. It is obsolete (RFC 7526), so all of it is here.
	special6 = prefixes("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")

	nat64 = netip.MustParsePrefix("64:ff9b::/96")
)

// special also has each IPv4 range as NAT64 embeds it in IPv6.
func special() []netip.Prefix {
	all := slices.Concat(special4, special6)
	for _, p := range special4 {
		v4 := p.Addr().As4()
		a := nat64.Addr().As16()
		copy(a[12:], v4[:])
		all = append(all, netip.PrefixFrom(netip.AddrFrom16(a), 96+p.Bits()))
	}
	return all
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func inAny(a netip.Addr, ps []netip.Prefix) bool {
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Never holds the addresses that no setting allows: unspecified and multicast addresses, and
// IPv4 in IPv6 form, which is another spelling of an IPv4 address. Envoy gets it too.
var Never = prefixes("0.0.0.0/32", "224.0.0.0/4", "::/128", "ff00::/8", "::ffff:0.0.0.0/96")

// Allows reports whether a provider may be at the address and port.
func (t Targets) Allows(a netip.Addr, port uint16) bool {
	if !a.IsValid() || a.Zone() != "" || a.Is4In6() || inAny(a, Never) {
		return false
	}
	for _, own := range t.OwnPrefixes() {
		if own.Port == port && own.Prefix.Contains(a) {
			return false
		}
	}
	return inAny(a, t.Private) || inAny(a, Public) && !inAny(a, Special)
}

// OwnPort is one of our ports at some addresses.
type OwnPort struct {
	Prefix netip.Prefix
	Port   uint16
}

// OwnPrefixes returns our own listeners. A listener on loopback or on all addresses can be
// reached by each address of loopback.
func (t Targets) OwnPrefixes() (out []OwnPort) {
	for _, o := range t.Own {
		a := o.Addr().Unmap()
		if a.IsLoopback() || a.IsUnspecified() {
			for _, p := range prefixes("127.0.0.0/8", "::1/128") {
				out = append(out, OwnPort{p, o.Port()})
			}
			continue
		}
		out = append(out, OwnPort{netip.PrefixFrom(a, a.BitLen()), o.Port()})
	}
	return out
}

// Check returns what is wrong with the provider's base_url as an *Invalid, or nil. A name
// is allowed unless it is known to be private. Envoy checks the address of the name when it
// connects.
func (t Targets) Check(p Provider) error {
	up, err := p.Upstream()
	if err != nil {
		return err
	}
	a, err := netip.ParseAddr(up.Host)
	if err != nil {
		if localName(up.Host) {
			a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		} else if metadataName(up.Host) {
			return &Invalid{"base_url", "the host " + up.Host + " is a cloud's metadata service"}
		} else {
			return nil
		}
	}
	if !t.Allows(a, up.Port) {
		for _, own := range t.OwnPrefixes() {
			if own.Port == up.Port && own.Prefix.Contains(a.Unmap()) {
				return &Invalid{"base_url", fmt.Sprintf("%s is a listener of this gateway", netip.AddrPortFrom(a, up.Port))}
			}
		}
		return &Invalid{"base_url", "the address of " + up.Host + " is not public; the operator can allow it with --private-targets " + a.Unmap().String()}
	}
	return nil
}

// Exposed reports whether base_url is http and its host is not on a private network: prompts
// and the credential cross the internet unencrypted.
func (p Provider) Exposed() bool {
	up, err := p.Upstream()
	if err != nil || up.TLS {
		return false
	}
	if a, err := netip.ParseAddr(up.Host); err == nil {
		return Targets{}.Allows(a, up.Port)
	}
	private := []string{".svc", ".svc.cluster.local", ".local", ".internal", ".lan", ".home.arpa", ".test", ".localdomain"}
	host := strings.TrimSuffix(up.Host, ".")
	return strings.Contains(host, ".") && !localName(host) && !slices.ContainsFunc(private, func(s string) bool { return strings.HasSuffix(host, s) })
}

// ExposedWarning is for people with a provider that is Exposed.
const ExposedWarning = "base_url begins with http://, so prompts and the credential cross the network unencrypted. Use https://."

// localName reports whether a name means this machine (RFC 6761).
func localName(host string) bool {
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || host == "localhost.localdomain" || host == "ip6-localhost" || host == "ip6-loopback"
}

// metadataName reports whether a name is a cloud's metadata service.
func metadataName(host string) bool {
	switch host {
	case "metadata", "instance-data", "instance-data.ec2.internal", "metadata.azure.internal", "metadata.azure.com", "metadata.oraclecloud.com",
		"metadata.packet.net", "metadata.platformequinix.com", "metadata.tencentyun.com", "metadata.internal", "kubernetes.default.svc":
		return true
	}
	return strings.HasSuffix(host, ".metadata.google.internal") || host == "metadata.google.internal" || host == "metadata.goog" || strings.HasSuffix(host, ".metadata.goog")
}

// numericHost reports whether some resolver reads the name as an address: its last label is
// a number in decimal, octal or hex (WHATWG's rule).
func numericHost(host string) bool {
	last := host[strings.LastIndexByte(host, '.')+1:]
	if last == "" {
		return true
	}
	if rest, ok := strings.CutPrefix(strings.ToLower(last), "0x"); ok {
		return strings.Trim(rest, "0123456789abcdef") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}
