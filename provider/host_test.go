package provider_test

import (
	"bufio"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/ai-identity/ai-identity/provider"
)

// hosts are URLs and the hosts that are recorded for them.
var hosts = []struct{ url, host string }{
	{"https://good.example", "good.example"},
	{"HTTPS://Good.Example:443/a?b#c", "good.example"},
	{"http://good.example./", "good.example"},
	{"https://good.example:/", "good.example"},
	{"https://good.example?x=1", "good.example"},
	{"https://good.example/@evil.example/", "good.example"},
	{"https://good.example/bücher", "good.example"},
	{"https://xn--bcher-kva.example/", "xn--bcher-kva.example"},
	{"https://my_bucket.example/", "my_bucket.example"},
	{"https://1.2.3.example/", "1.2.3.example"},

	{"http://127.0.0.1/", "127.0.0.1"},
	{"http://2130706433/", "127.0.0.1"},
	{"http://0x7f000001/", "127.0.0.1"},
	{"http://0X7F.1/", "127.0.0.1"},
	{"http://127.1/", "127.0.0.1"},
	{"http://127.0.0.1./", "127.0.0.1"},
	{"http://[::1]:80/", "::1"},
	{"http://[0:0::1]/", "::1"},
	{"http://[::ffff:169.254.169.254]/", "169.254.169.254"},
	{"http://[::ffff:a9fe:a9fe]/", "169.254.169.254"},
	{"http://0177.0.0.1/", "unknown"}, // 127.0.0.1 for most parsers, 177.0.0.1 for Java
	{"http://256.0.0.1/", "unknown"},
	{"http://4294967296/", "unknown"},
	{"http://1.2.3.4.5/", "unknown"},
	{"http://0x/", "unknown"},
	{"http://a.0x7f/", "unknown"},
	{"http://[::1%25eth0]/", "unknown"},
	{"http://[::1]evil.example/", "unknown"},
	{"http://[v1.x]/", "unknown"},
	{"http://::1/", "unknown"},

	{`https://good.example\@evil.example/`, "unknown"},
	{`https://good.example/\@evil.example/`, "unknown"},
	{`https:\\good.example\`, "unknown"},
	{"https://user@good.example/", "unknown"},
	{"https://good.example:443@evil.example/", "unknown"},
	{"https://good.example#@evil.example/", "unknown"},
	{"https://good.example?@evil.example/", "unknown"},
	{"https:good.example", "unknown"},
	{"https:/good.example", "unknown"},
	{"https:///good.example", "unknown"},
	{"https:/x//good.example", "unknown"},
	{"//good.example/", "unknown"},
	{"x//good.example/", "unknown"},
	{"ht\ntps://good.example/", "unknown"},
	{"https://good.\texample/", "unknown"},
	{"https://good.example/ ", "unknown"},
	{" https://good.example/", "unknown"},
	{"https://good.example\x00.evil.example/", "unknown"},
	{"https://exa%6dple.com/", "unknown"},
	{"https://good。example/", "unknown"},
	{"https://bücher.example/", "unknown"},
	{"https://good..example/", "unknown"},
	{"https://.good.example/", "unknown"},
	{"https://good.example:99999/", "unknown"},
	{"https://good.example:80x/", "unknown"},
	{"https://good.example;evil.example/", "unknown"},
	{"https://good.example,evil.example/", "unknown"},
	{"https://", "unknown"},
	{"gs://bucket/x", "unknown"},
	{"file:///etc/passwd", "unknown"},
	{"ftp://good.example/", "unknown"},
	{"AAAA", "unknown"},
}

func TestHostOf(t *testing.T) {
	for _, c := range hosts {
		if got := provider.HostOf(c.url); got != c.host {
			t.Errorf("%q: %s, and not %s", c.url, got, c.host)
		}
	}
}

// connects is the host that a client connects to if its parser returns host.
func connects(host string) string {
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().String()
	}
	// Text that inet_aton accepts is an address for getaddrinfo, and so for most clients.
	parts := strings.Split(host, ".")
	var address uint64
	for i, part := range parts {
		base := 10
		switch {
		case strings.HasPrefix(part, "0x"):
			part, base = part[2:], 16
		case len(part) > 1 && part[0] == '0':
			base = 8
		}
		n, err := strconv.ParseUint(part, base, 32)
		size := 8
		if i == len(parts)-1 {
			size = 8 * (5 - len(parts))
		}
		if err != nil || len(parts) > 4 || n >= 1<<size {
			return host
		}
		address = address<<size | n
	}
	return netip.AddrFrom4([4]byte{byte(address >> 24), byte(address >> 16), byte(address >> 8), byte(address)}).String()
}

// parser reads URLs in another process.
type parser struct {
	mu  sync.Mutex
	in  io.Writer
	out *bufio.Reader
}

func startParser(t testing.TB, name string, arg ...string) *parser {
	t.Helper()
	cmd := exec.Command(name, arg...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	return &parser{in: in, out: bufio.NewReaderSize(out, 1<<20)}
}

func (p *parser) read(t testing.TB, urls []string) []map[string]*string {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	b, err := json.Marshal(urls)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.in.Write(append(b, '\n')); err != nil {
		t.Fatal(err)
	}
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var out []map[string]*string
	if err := json.Unmarshal(line, &out); err != nil || len(out) != len(urls) {
		t.Fatalf("%d URLs, %d results: %v", len(urls), len(out), err)
	}
	return out
}

// otherParsers are the installed parsers of Python and Node.
func otherParsers(t testing.TB) []*parser {
	t.Helper()
	var ps []*parser
	python := os.Getenv("AID_SDK_PYTHON")
	if python == "" {
		python = "python3"
	}
	for _, c := range [][]string{{python, "testdata/url/hosts.py"}, {"node", "testdata/url/hosts.mjs"}} {
		if path, err := exec.LookPath(c[0]); err == nil {
			ps = append(ps, startParser(t, path, c[1]))
		} else if os.Getenv("CI") != "" {
			t.Fatalf("%s is needed in CI: %v", c[0], err)
		} else {
			t.Logf("without %s: %v", c[0], err)
		}
	}
	return ps
}

// readAlike checks that a client connects to the recorded host, if it is known.
func readAlike(t testing.TB, ps []*parser, urls []string) (known int) {
	t.Helper()
	check := func(u, parser, host string) {
		if ours := provider.HostOf(u); ours != "unknown" && connects(host) != ours {
			t.Errorf("%q: %s connects to %q, and %q is recorded", u, parser, host, ours)
		}
	}
	for _, u := range urls {
		if provider.HostOf(u) != "unknown" {
			known++
		}
		if parsed, err := url.Parse(u); err == nil {
			check(u, "net/url", parsed.Hostname())
		}
	}
	for _, p := range ps {
		for i, read := range p.read(t, urls) {
			for parser, host := range read {
				if host != nil {
					check(urls[i], parser, *host)
				}
			}
		}
	}
	return known
}

// madeURL builds a URL from pieces on which parsers disagree.
func madeURL(r *rand.Rand) string {
	pieces := []string{"good.example", "evil.example", "127.0.0.1", "0x7f", "0177", "1", "2130706433", "[::1]", "[::ffff:1.2.3.4]", "[", "]", "xn--a", "xn--bcher-kva", "ü", "。", "／", "＠",
		"@", ":", "/", "//", "\\", "?", "#", ".", "..", "%40", "%2f", "%00", "%", "\t", "\n", "\r", " ", "\u00a0", "\u00ad", "\u200b", "\x00", "\x7f", ":80", ":0", ":65536", "user:pass@", ";", ",", "&", "=", "_", "-", "~", "!", "$", "'", "(", "*", "+", "|", "^", "`", "{", "\"", "<", "a", "A", "0", "ß", "K", "ſ", "http:", "https://"}
	var b strings.Builder
	b.WriteString([]string{"https://", "http://", "https://", "HTTP://", "https:", "https:/", "https:///", "https:\\\\", "//", " https://", "ht\ntp://", ""}[[]int{0, 1, 0, 0, 3, r.IntN(12)}[r.IntN(6)]])
	if r.IntN(3) > 0 {
		b.WriteString(pieces[r.IntN(9)])
		if r.IntN(3) == 0 {
			b.WriteString("/x")
		}
	}
	if r.IntN(3) == 0 {
		b.WriteString([]string{"/", "?", "#", ":80/", "."}[r.IntN(5)])
	}
	for range r.IntN(4) {
		b.WriteString(pieces[r.IntN(len(pieces))])
	}
	return b.String()
}

// TestHostsReadAlike compares the recorded host with five parsers of URLs. AID_URLS is the
// number of URLs.
func TestHostsReadAlike(t *testing.T) {
	n := 20_000
	if s := os.Getenv("AID_URLS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	ps := otherParsers(t)
	urls := make([]string, 0, 1000)
	for _, c := range hosts {
		urls = append(urls, c.url)
	}
	readAlike(t, ps, urls)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	known := 0
	for done := 0; done < n && !t.Failed(); done += len(urls) {
		urls = urls[:0]
		for range 1000 {
			urls = append(urls, madeURL(r))
		}
		known += readAlike(t, ps, urls)
	}
	t.Logf("%d URLs, of %d the host is known", n, known)
	if known < n/20 {
		t.Errorf("of %d URLs only %d have a host: the test tests nothing", n, known)
	}
}

// FuzzHostOf searches for a URL that a client reads differently.
func FuzzHostOf(f *testing.F) {
	for _, c := range hosts {
		f.Add(c.url)
	}
	ps := otherParsers(f)
	f.Fuzz(func(t *testing.T, u string) {
		if !utf8.ValidString(u) {
			t.Skip("no JSON string")
		}
		readAlike(t, ps, []string{u})
	})
}
