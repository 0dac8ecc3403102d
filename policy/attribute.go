package policy

import (
	"net/netip"
	"strings"
)

// kind is the type of an attribute's value.
type kind uint8

const (
	text    kind = iota + 1
	number       // an integer from min to max
	truth        // true or false
	texts        // a set of strings; the condition compares its members
	scopes       // a set of strings in which "*" stands for every member
	mixed        // a string, a number or a boolean, as the agent's owner set it
	instant      // a time; it is compared with a span
)

// attribute is an attribute that conditions can compare.
type attribute struct {
	kind     kind
	min, max int64 // of a number
	fraction bool  // a number that need not be an integer

	// selects is true for attributes of the agent and of its key. If the conditions of an
	// allow policy on such attributes are true, the policy governs the caller. An address
	// and a user agent do not select: the client chooses them for each request, and could
	// so avoid a policy.
	selects bool

	// address is true if the value can be an address, so that cidr applies to it.
	address bool

	// one returns why a string is not a valid value, and how to fix it. It returns "" for a valid one.
	one func(string) (problem, fix string)
}

// maxInt is the greatest integer that a float64 represents without ambiguity.
const maxInt = 1<<53 - 1

const metadata = "agent.metadata."

// urlHost is the attribute with the hosts of URLs, and unknownHost its value for a URL
// whose host is not certain. Every deny on the attribute applies to unknownHost, and no
// allow permits it.
const (
	urlHost     = "request.url_host"
	unknownHost = "unknown"
)

// What the agent has spent in the current day and month, in US dollars.
const (
	spendDay   = "spend.day_usd"
	spendMonth = "spend.month_usd"
)

// kinds are the values of caller.kind.
var kinds = []string{"key", "kubernetes", "spiffe"}

// otherFamily is the family of each tool that has none.
const otherFamily = "other"

// attributeOf returns the attribute with the name that conditions use. If there is no such
// attribute, fix is how to correct the name.
func attributeOf(name string) (a attribute, fix string) {
	switch name {
	case "agent.id", "agent.name", "agent.team", "agent.environment", "agent.tier":
		return attribute{kind: text, selects: true}, ""
	case "agent.status":
		return attribute{kind: text, selects: true, one: oneOf("active", "suspended")}, ""
	case "caller.key_id", "caller.credential_id":
		return attribute{kind: text, selects: true}, ""
	case "caller.kind":
		return attribute{kind: text, selects: true, one: oneOf(kinds...)}, ""
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
		return attribute{}, `write "request.url_host": it stands for every host that the request has the provider fetch from or call`
	case spendDay, spendMonth:
		return attribute{kind: number, max: maxInt, fraction: true}, ""
	case "caller.spiffe_id", "caller.service_account":
		return attribute{}, "this version does not support it"
	}
	if key, ok := strings.CutPrefix(name, metadata); ok {
		if key == "" {
			return attribute{}, `write "agent.metadata." and a key of the agent's metadata`
		}
		return attribute{kind: mixed, selects: true}, ""
	}
	return attribute{}, nearest(name, attributeNames, "docs/policy.md lists the attributes")
}

// attributeNames are the names that attributeOf knows, for suggestions.
var attributeNames = []string{
	"agent.id", "agent.name", "agent.team", "agent.environment", "agent.tier", "agent.status", "agent.allowed_models", "agent.metadata.KEY",
	"caller.kind", "caller.credential_id", "caller.key_id", "caller.key_scopes", "caller.ip", "caller.user_agent", "org.id", "org.tier",
	"request.operation", "request.provider", "request.model", "request.host", "request.path", "request.session_id", "request.mode", "request.stream",
	"request.max_tokens", "request.input_tokens_estimate", "request.bytes", "request.hour_utc", "request.weekday_utc", "request.time",
	"request.tool", "tool.family", urlHost, spendDay, spendMonth, "any", "all", "not",
}

// nearest suggests the name with the fewest edits. If no name is similar, it returns otherwise.
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

// edits returns the Levenshtein distance of two short strings, in bytes.
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

// address checks that a string is an IP address in canonical form. Another spelling would
// never match.
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

// host checks that a string is a name in lower case or an address in canonical form.
// Another spelling would never match.
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

// sectionOf returns the object of the input document that has the attribute, and the
// attribute's name in it, both in Rego.
func sectionOf(name string) (section, member string) {
	if key, ok := strings.CutPrefix(name, metadata); ok {
		return "input.agent.metadata", literal(key)
	}
	section, member, _ = strings.Cut(name, ".")
	return "input." + section, literal(member)
}

// ref returns the reference to the attribute in Rego.
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
