package policy

import (
	"net/netip"
	"strings"
)

// kind is what an attribute's value is.
type kind uint8

const (
	text    kind = iota + 1
	number       // an integer from min to max
	truth        // true or false
	texts        // a set of texts: the condition is about its members
	scopes       // texts in which "*" is every member
	mixed        // text, number or truth, as the agent's owner chose
	instant      // a time, compared with a span
)

// attribute is something that conditions may be about.
type attribute struct {
	kind     kind
	min, max int64 // of a number

	// selects says that the attribute is the agent's or the caller's own. An allow policy
	// governs those for whom its conditions on such attributes are true. An address and a
	// user agent do not select. The client chooses them for each request, so they must not
	// lead out of a policy's reach.
	selects bool

	// address says that it is an address, or may be one, and can be compared with ranges.
	address bool

	// one returns why the attribute cannot have a string, and what to do; "" if it can.
	one func(string) (problem, fix string)
}

// maxInt is the greatest integer that no other number is rounded to.
const maxInt = 1<<53 - 1

const metadata = "agent.metadata."

// urlHost is the attribute with the hosts of URLs, and unknownHost its value for a URL
// whose host is not certain. Every deny on the attribute applies to unknownHost, and no
// allow permits it.
const (
	urlHost     = "request.url_host"
	unknownHost = "unknown"
)

// otherFamily is the family of each tool that has none.
const otherFamily = "other"

// attributeOf returns the attribute with the name that conditions use. If there is no such
// attribute, fix says what to do.
func attributeOf(name string) (a attribute, fix string) {
	switch name {
	case "agent.id", "agent.name", "agent.team", "agent.environment", "agent.tier":
		return attribute{kind: text, selects: true}, ""
	case "agent.status":
		return attribute{kind: text, selects: true, one: oneOf("active", "suspended")}, ""
	case "caller.key_id":
		return attribute{kind: text, selects: true}, ""
	case "caller.key_scopes":
		return attribute{kind: scopes, selects: true}, ""
	case "agent.allowed_models":
		return attribute{kind: scopes, selects: true}, ""
	case "caller.ip":
		return attribute{kind: text, one: address, address: true}, ""
	case "caller.user_agent":
		return attribute{kind: text}, ""
	case "org.id", "org.tier":
		return attribute{kind: text}, ""
	case "request.operation", "request.provider", "request.model", "request.host", "request.path", "request.session_id":
		return attribute{kind: text}, ""
	case "request.mode":
		return attribute{kind: text, one: oneOf("gateway", "egress")}, ""
	case "request.stream":
		return attribute{kind: truth}, ""
	case "request.max_tokens", "request.input_tokens_estimate", "request.bytes":
		return attribute{kind: number, max: maxInt}, ""
	case "request.hour_utc":
		return attribute{kind: number, max: 23}, ""
	case "request.weekday_utc":
		return attribute{kind: number, min: 1, max: 7}, ""
	case "request.tool":
		return attribute{kind: texts}, ""
	case "tool.family":
		return attribute{kind: texts}, ""
	case urlHost:
		return attribute{kind: texts, one: host, address: true}, ""
	case "request.time":
		return attribute{kind: instant}, ""
	case "request.tools":
		return attribute{}, `write "request.tool": it stands for every tool of the request`
	case "request.url_hosts":
		return attribute{}, `write "request.url_host": it stands for every host that the provider is asked to fetch from or to call`
	case "caller.spiffe_id", "caller.service_account", "spend.month_usd", "spend.day_usd":
		return attribute{}, "not built yet in this version"
	}
	if key, ok := strings.CutPrefix(name, metadata); ok {
		if key == "" {
			return attribute{}, `write "agent.metadata." and a key of the agent's metadata`
		}
		return attribute{kind: mixed, selects: true}, ""
	}
	return attribute{}, nearest(name, attributeNames, "see docs/policy.md for the attributes that there are")
}

// attributeNames are the names that attributeOf knows, for suggestions.
var attributeNames = []string{
	"agent.id", "agent.name", "agent.team", "agent.environment", "agent.tier", "agent.status", "agent.allowed_models", "agent.metadata.KEY",
	"caller.key_id", "caller.key_scopes", "caller.ip", "caller.user_agent", "org.id", "org.tier",
	"request.operation", "request.provider", "request.model", "request.host", "request.path", "request.session_id", "request.mode", "request.stream",
	"request.max_tokens", "request.input_tokens_estimate", "request.bytes", "request.hour_utc", "request.weekday_utc", "request.time",
	"request.tool", "tool.family", urlHost, "any", "all", "not",
}

// nearest suggests the name that was most likely meant. If none is near: otherwise.
func nearest(name string, names []string, otherwise string) string {
	if len(name) > 64 {
		return otherwise
	}
	best, least := "", len(name)/3+1
	for _, n := range names {
		if d := edits(strings.ToLower(name), n); d < least || d == least && best == "" {
			best, least = n, d
		}
	}
	if best == "" {
		return otherwise
	}
	return "did you mean " + quote(best) + "? " + otherwise
}

// edits is the Levenshtein distance of two short texts, in bytes.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := last
			if a[i] != b[j] {
				cost++
			}
			last = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}

func oneOf(values ...string) func(string) (string, string) {
	return func(s string) (string, string) {
		for _, v := range values {
			if s == v {
				return "", ""
			}
		}
		return "is a value that the attribute never has", "write one of " + strings.Join(values, ", ")
	}
}

// address is for texts that must be an IP address as we write it, since another
// spelling of it would never match.
func address(s string) (problem, fix string) {
	if _, err := netip.ParsePrefix(s); err == nil {
		return "is a range of addresses", `write {"cidr": ` + quote(s) + "}"
	}
	ip, err := netip.ParseAddr(s)
	if err != nil || ip.Zone() != "" {
		return "is not an IP address", `write one like "203.0.113.9" or "2001:db8::1"`
	}
	if c := ip.Unmap().String(); c != s {
		return "is not the address's canonical form", "write " + quote(c)
	}
	return "", ""
}

// host is for texts that must be a host as we write it: a name in lower case, or an
// address in canonical form. Another spelling would never match.
func host(s string) (problem, fix string) {
	if ip, err := netip.ParseAddr(s); err == nil {
		if ip.Zone() != "" {
			return "has a zone", "write the address alone"
		}
		if c := ip.Unmap().String(); c != s {
			return "is not the address's canonical form", "write " + quote(c)
		}
		return "", ""
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_', c == '.' && i < len(s)-1:
		default:
			return "is not a host", `write a name in lower case like "files.example" (non-ASCII names as "xn--…"), or an address, without scheme and port`
		}
	}
	return "", ""
}

// sectionOf is the object of the input document that the attribute is a member of, and
// its name there, both in Rego.
func sectionOf(name string) (section, member string) {
	if key, ok := strings.CutPrefix(name, metadata); ok {
		return "input.agent.metadata", literal(key)
	}
	section, member, _ = strings.Cut(name, ".")
	return "input." + section, literal(member)
}

// ref is the attribute in Rego.
func ref(name string) string {
	if key, ok := strings.CutPrefix(name, metadata); ok {
		return "input.agent.metadata[" + literal(key) + "]"
	}
	switch name {
	case "request.tool":
		return "input.request.tools"
	case "tool.family":
		return "input.request.tool_families"
	case urlHost:
		return "input.request.url_hosts"
	}
	return "input." + name
}
