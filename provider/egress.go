package provider

import (
	"net/netip"
	"slices"
	"strings"
)

// EgressHosts are the names under which applications connect to the provider directly, in
// lower case, without wildcards. Without hosts of its own, a provider has the host of its
// base_url, if that is https on port 443.
func (p Provider) EgressHosts() []string {
	if len(p.Hosts) > 0 {
		return slices.DeleteFunc(slices.Clone(p.Hosts), func(h string) bool { return strings.HasPrefix(h, "*") })
	}
	up, err := p.Upstream()
	if _, ip := netip.ParseAddr(up.Host); err != nil || ip == nil || !up.TLS || up.Port != 443 || !strings.Contains(up.Host, ".") {
		return nil
	}
	return []string{up.Host}
}

// OwnPath returns the gateway's path for a path of the provider's own API, which the provider's
// SDK sends to host. ok is false for a path outside that API's base.
//
//	openai     https://api.openai.com/v1         /v1/chat/completions        → /v1/chat/completions
//	openai     https://x.example/openai/v1       /openai/v1/chat/completions → /v1/chat/completions
//	anthropic  https://api.anthropic.com         /v1/messages                → /v1/messages
//	mistral    https://api.mistral.ai            /v1/chat/completions        → /mistral/v1/chat/completions
func (p Provider) OwnPath(host, path string) (own string, ok bool) {
	s, up, e := p.prepared()
	if e != nil || path == "" || path[0] != '/' {
		return "", false
	}
	base := ""
	switch {
	case up.Host == host:
		base = up.PathPrefix
	case p.Kind == KindOpenAI || p.Kind == KindCustom:
		base = "/v1" // the base of OpenAI's SDK
	}
	for template, to := range s.Paths {
		if path == base+to && !strings.Contains(template, "{") {
			return template, true
		}
	}
	if last := lastSegment(base); isVersion(last) && p.Kind != KindOpenAI && p.Kind != KindCustom {
		base = strings.TrimSuffix(base, "/"+last)
	}
	rest, ok := strings.CutPrefix(path, base)
	if !ok || rest == "" || rest[0] != '/' {
		return "", false
	}
	switch {
	case (p.Kind == KindOpenAI || p.Kind == KindCustom) && base != "":
		return "/v1" + rest, true
	case p.Kind == KindMistral:
		return ownMistral + rest, true
	}
	return rest, true
}

// FormatOfKind is the format of a kind of provider's own API.
func FormatOfKind(kind string) Format {
	switch kind {
	case KindAnthropic:
		return FormatAnthropic
	case KindGemini:
		return FormatGemini
	case KindCohere:
		return FormatCohere
	case KindMistral:
		return FormatMistral
	}
	return FormatOpenAI
}

// Native reports whether the provider has the endpoint itself, without translation.
func (p Provider) Native(ep Endpoint) bool { return slices.Contains(ep.Kinds, p.Kind) }
