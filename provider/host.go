package provider

import (
	"bytes"
	"net/netip"
	"strconv"
	"strings"
)

// unknownHost stands for a host that is not certain. For a policy that denies hosts it
// matches every host. For a policy that allows hosts it matches no host.
const unknownHost = "unknown"

// hostOf returns the host that every client connects to for the URL s, in lower case, or
// unknownHost. An address is in its canonical form: "0x7f.1" and "[::ffff:127.0.0.1]"
// become "127.0.0.1".
//
// Parsers of URLs differ, and the provider's parser is not known. So a URL has a known host
// only if all parsers agree on it. It is http or https with "//" after it, and an authority
// of RFC 3986. The authority has no user info, no percent-encoding and only ASCII. s has no
// backslash, blank or control character.
func hostOf(s string) string {
	scheme, rest, _ := strings.Cut(s, ":")
	if !strings.EqualFold(scheme, "https") && !strings.EqualFold(scheme, "http") {
		return unknownHost
	}
	rest, ok := strings.CutPrefix(rest, "//")
	if !ok {
		return unknownHost
	}
	for i := range len(rest) {
		if c := rest[i]; c <= ' ' || c == 0x7f || c == '\\' {
			return unknownHost
		}
	}
	authority := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority = rest[:i]
		// Some parsers end the authority only at "/", and read text before "@" as user
		// info.
		if rest[i] != '/' && strings.IndexByte(rest[i:], '@') >= 0 {
			return unknownHost
		}
	}
	return hostOfAuthority(authority)
}

// hostOfAuthority reads host and port. Without a name or an address and the digits of a
// port the host is unknown.
func hostOfAuthority(authority string) string {
	if inner, ok := strings.CutPrefix(authority, "["); ok {
		inner, port, ok := strings.Cut(inner, "]")
		ip, err := netip.ParseAddr(inner)
		if !ok || err != nil || !ip.Is6() || ip.Zone() != "" || port != "" && (port[0] != ':' || !isPort(port[1:])) {
			return unknownHost
		}
		return ip.Unmap().String()
	}
	host, port, _ := strings.Cut(authority, ":")
	if !isPort(port) {
		return unknownHost
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if last := host[strings.LastIndexByte(host, '.')+1:]; isNumber(last) {
		return addressOf(host)
	}
	if !hostName(host) {
		return unknownHost
	}
	return host
}

func isPort(s string) bool {
	if s == "" {
		return true
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n <= 65535
}

// isNumber reports whether a host with this last label can only be an IPv4 address. The
// rule is https://url.spec.whatwg.org/#ends-in-a-number-checker in the URL standard.
func isNumber(label string) bool {
	if strings.HasPrefix(label, "0x") {
		return true
	}
	return label != "" && strings.Trim(label, "0123456789") == ""
}

// addressOf reads an IPv4 address in the forms of inet_aton: one to four parts, decimal or
// hexadecimal. The last part fills the remaining bytes. A part with a leading zero is octal
// for some parsers and decimal for others, so the host is unknown.
func addressOf(host string) string {
	parts := strings.Split(host, ".")
	if len(parts) > 4 {
		return unknownHost
	}
	var address uint64
	for i, part := range parts {
		base := 10
		if hex, ok := strings.CutPrefix(part, "0x"); ok {
			part, base = hex, 16
		} else if len(part) > 1 && part[0] == '0' {
			return unknownHost
		}
		n, err := strconv.ParseUint(part, base, 32)
		size := 8
		if i == len(parts)-1 {
			size = 8 * (5 - len(parts))
		}
		if err != nil || n >= 1<<size {
			return unknownHost
		}
		address = address<<size | n
	}
	return netip.AddrFrom4([4]byte{byte(address >> 24), byte(address >> 16), byte(address >> 8), byte(address)}).String()
}

// isDataURL reports whether text is a data: URL, which has the content itself.
func isDataURL(text []byte) bool {
	text = bytes.TrimLeft(text, " \t\r\n")
	return len(text) >= 5 && bytes.EqualFold(text[:5], []byte("data:"))
}

// isBase64 reports whether all of text is base64, in either alphabet, with line breaks.
func isBase64(text []byte) bool {
	for _, c := range text {
		if !base64Bytes[c] {
			return false
		}
	}
	return true
}

var base64Bytes = func() (is [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_=\r\n") {
		is[c] = true
	}
	return is
}()
