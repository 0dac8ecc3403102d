package provider_test

import (
	"net/netip"
	"testing"

	"github.com/ai-identity/ai-identity/provider"
)

// The check rejects every spelling of an address that is not public. Each address can be
// allowed.
func TestTargets(t *testing.T) {
	check := func(targets provider.Targets, base string) error {
		p := prov("a", "openai", "m")
		p.BaseURL = base
		if err := provider.Validate(p); err != nil {
			return err
		}
		return targets.Check(p)
	}
	for _, host := range []string{
		// Loopback, private, link-local and metadata addresses, in the spellings of
		// resolvers.
		"127.0.0.1", "127.1", "127.0.1", "0177.0.0.1", "0x7f.0.0.1", "0x7f000001", "2130706433", "017700000001", "127.255.255.254", "127.0.0.1.", "127.0.0.0x1", "0",
		"0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.0.1", "100.64.0.1", "100.100.100.200", "169.254.169.254", "169.254.170.2", "2852039166", "0xa9fea9fe",
		"0251.0376.0251.0376", "169.254.43518", "192.0.0.192", "168.63.129.16", "198.18.0.1", "192.0.2.1", "224.0.0.1", "255.255.255.255", "240.0.0.1",
		"[::]", "[::1]", "[::1%25lo]", "[fe80::1]", "[fe80::1%25eth0]", "[fc00::1]", "[fd00:ec2::254]", "[ff02::1]", "[::ffff:127.0.0.1]", "[::ffff:a9fe:a9fe]", "[::127.0.0.1]",
		"[64:ff9b::127.0.0.1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::1]", "[2002:7f00:1::]", "[2002:a9fe:a9fe::1]", "[2001::1]", "[2001:db8::1]", "[100::1]", "[5f00::1]", "[3fff::1]",
		"localhost", "LOCALHOST", "a.localhost", "localhost.", "metadata.google.internal", "Metadata.Google.Internal", "metadata.google.internal.", "metadata", "instance-data",
		"metadata.azure.internal", "x.metadata.goog",
	} {
		for _, base := range []string{"http://" + host + "/v1", "https://" + host + ":8443/v1"} {
			if check(provider.Targets{}, base) == nil {
				t.Errorf("%s is taken", base)
			}
		}
	}
	for _, host := range []string{"api.openai.com", "8.8.8.8", "1.1.1.1", "172.15.0.1", "172.32.0.1", "100.63.0.1", "100.128.0.1", "[2606:4700::1111]", "[64:ff9b::8.8.8.8]", "vllm.models.svc", "10.example.com"} {
		if err := check(provider.Targets{}, "https://"+host+"/v1"); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	targets, err := provider.ParseTargets([]string{"127.0.0.0/8", "::1", "10.0.0.0/8"})
	if err != nil {
		t.Fatal(err)
	}
	targets.Own = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8081"), netip.MustParseAddrPort("0.0.0.0:9091"), netip.MustParseAddrPort("10.0.0.5:18000")}
	for base, want := range map[string]bool{
		"http://127.0.0.1:11434/v1": true, "http://localhost:11434/v1": true, "http://[::1]:1/v1": true, "http://10.9.9.9/v1": true, "http://10.0.0.6:18000/v1": true,
		"http://127.0.0.1:8081/v1": false, "http://127.9.9.9:8081/v1": false, "http://[::1]:8081/v1": false, "http://localhost:9091/v1": false, "http://10.0.0.5:18000/v1": false,
		"http://192.168.0.1/v1": false, "http://169.254.169.254/v1": false, "http://0.0.0.0:1/v1": false,
	} {
		if err := check(targets, base); (err == nil) != want {
			t.Errorf("%s: %v", base, err)
		}
	}
	for _, bad := range []string{"", "x", "10.0.0.1/8", "10.0.0.0/33", "fe80::1%lo", "::ffff:127.0.0.1", "::ffff:7f00:0/104"} {
		if _, err := provider.ParseTargets([]string{bad}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// TestExposed: plain http is for this machine and private networks.
func TestExposed(t *testing.T) {
	for base, want := range map[string]bool{
		"http://api.example.com/v1": true, "http://8.8.8.8/v1": true, "http://[2606:4700::1111]/v1": true, "http://api.example.com:8443": true,
		"https://api.example.com/v1": false, "http://127.0.0.1:1/v1": false, "http://10.0.0.1/v1": false, "http://[fd00::1]/v1": false, "http://localhost:11434/v1": false,
		"http://vllm/v1": false, "http://vllm.models.svc/v1": false, "http://vllm.models.svc.cluster.local:8000/v1": false, "http://gpu.internal/v1": false, "ftp://x.example": false,
	} {
		p := prov("a", "openai", "m")
		p.BaseURL = base
		if got := p.Exposed(); got != want {
			t.Errorf("%s: %v", base, got)
		}
	}
}
