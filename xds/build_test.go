package xds_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/ai-identity/ai-identity/envoy"
	"github.com/ai-identity/ai-identity/envoy/envoytest"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/xds"
)

var update = flag.Bool("update", false, "rewrite testdata")

// providers has one provider for each way to reach a server.
func providers() []provider.Provider {
	return []provider.Provider{
		{ID: "prov_a", OrgID: "org_1", Name: "openai", Kind: "openai", BaseURL: "https://api.openai.com/v1", Models: []string{"gpt-*"}},
		{ID: "prov_b", OrgID: "org_1", Name: "anthropic", Kind: "anthropic", BaseURL: "https://api.anthropic.com", Models: []string{"claude-*"}},
		{ID: "prov_c", OrgID: "org_1", Name: "gemini", Kind: "gemini", BaseURL: "https://generativelanguage.googleapis.com", Models: []string{"gemini-*"}},
		{ID: "prov_d", OrgID: "org_1", Name: "local", Kind: "custom", BaseURL: "http://[::1]:8000/v1", Models: []string{"llama"}},
		{ID: "prov_e", OrgID: "org_1", Name: "near", Kind: "openai", BaseURL: "https://10.0.0.7:8443/v1", Models: []string{"qwen"}},
	}
}

// private are the addresses of the tests' providers.
var private, _ = provider.ParseTargets([]string{"::1", "10.0.0.0/8", "127.0.0.0/8"})

func input(usage string, ps ...provider.Provider) xds.Input {
	return xds.Input{OrgID: "org_1", Providers: ps, Gateway: "127.0.0.1:8080", Usage: usage, MaxBody: 16 << 20, Targets: private, AccessLog: "/dev/null"}
}

func build(t testing.TB, in xds.Input) *xds.Snapshot {
	t.Helper()
	s, err := xds.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Left) != 0 {
		t.Fatalf("left out: %v", s.Left)
	}
	return s
}

// render returns a snapshot as YAML, as in Envoy's documentation.
func render(t testing.TB, s *xds.Snapshot) []byte {
	t.Helper()
	all := map[string]json.RawMessage{}
	for _, typ := range []string{xds.ListenerType, xds.RouteType, xds.ClusterType} {
		for name, m := range s.Resources(typ) {
			b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			all[name] = b
		}
	}
	loose, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, loose, "", "  "); err != nil {
		t.Fatal(err)
	}
	return append(out.Bytes(), '\n')
}

// without removes the mappers of Envoy's own responses. They are long, and the same in every
// snapshot.
func without(t testing.TB, s *xds.Snapshot) []byte {
	t.Helper()
	var lines bytes.Buffer
	for _, l := range s.Listeners {
		filter, hcm := l.GetFilterChains()[0].GetFilters()[0], &hcmv3.HttpConnectionManager{}
		unpack(t, filter.GetTypedConfig(), hcm)
		for _, m := range hcm.GetLocalReplyConfig().GetMappers() {
			b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Compact(&lines, b); err != nil {
				t.Fatal(err)
			}
			lines.WriteByte('\n')
		}
		hcm.LocalReplyConfig = nil
		filter.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: pack(t, hcm)}
	}
	return lines.Bytes()
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s (-want +got):\n%s", name, d)
	}
}

func TestGolden(t *testing.T) {
	for name, in := range map[string]xds.Input{
		"none": input("stream"), "one": input("stream", providers()[0]), "all": input("stream", providers()...), "usage-envoy": input("envoy", providers()...),
	} {
		s := build(t, in)
		if err := xds.Lint(s); err != nil {
			t.Errorf("%s: lint: %v", name, err)
		}
		golden(t, "replies.jsonl", without(t, s))
		golden(t, name+".json", render(t, s))
	}
}

// The order of providers has no effect.
func TestOrderOfProviders(t *testing.T) {
	ps := providers()
	want := render(t, build(t, input("envoy", ps...)))
	slices.Reverse(ps)
	if got := render(t, build(t, input("envoy", ps...))); !bytes.Equal(got, want) {
		t.Error("another order, another snapshot")
	}
}

// One invalid object never blocks the others.
func TestBadProviderIsLeftOut(t *testing.T) {
	bad := providers()[1]
	bad.BaseURL = "ftp://nowhere"
	twin := providers()[0]
	s, err := xds.Build(input("stream", providers()[0], bad, twin))
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Clusters) != 1 || s.Left[bad.ID] == nil || len(s.Left) != 2 {
		t.Errorf("clusters %d, left out %v", len(s.Clusters), s.Left)
	}
	if err := xds.Lint(s); err != nil {
		t.Error(err)
	}
}

func TestBadInput(t *testing.T) {
	for _, change := range []func(*xds.Input){
		func(in *xds.Input) { in.Gateway = "8080" },
		func(in *xds.Input) { in.Gateway = "example.com:80" },
		func(in *xds.Input) { in.Gateway = "127.0.0.1:0" },
		func(in *xds.Input) { in.Usage = "" },
		func(in *xds.Input) { in.MaxBody = 0 },
		func(in *xds.Input) { in.MaxBody = 2 << 30 },
	} {
		in := input("stream")
		change(&in)
		if _, err := xds.Build(in); err == nil {
			t.Errorf("taken: %+v", in)
		}
	}
}

// Envoy itself validates the configuration.
func TestEnvoyValidates(t *testing.T) {
	path := envoytest.Path(t)
	// The longest list of response headers that settings may have, with the longest names.
	settings := provider.Settings{}
	for i := range 16 {
		settings.PassResponseHeaders = append(settings.PassResponseHeaders, fmt.Sprintf("%c", 'a'+i)+strings.Repeat("x", 63))
	}
	long, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	for _, usage := range []string{"stream", "envoy"} {
		ps := providers()
		ps[0].Settings = long
		s := build(t, input(usage, ps...))
		if err := xds.Lint(s); err != nil {
			t.Error(err)
		}
		static, err := s.Static()
		if err != nil {
			t.Fatal(err)
		}
		file := writeBootstrap(t, t.TempDir(), static)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		out, err := exec.CommandContext(ctx, path, "--mode", "validate", "-c", file).CombinedOutput()
		cancel()
		if err != nil {
			t.Errorf("%s: %v\n%s", usage, err, out)
		}
		for line := range strings.SplitSeq(string(out), "\n") {
			// Envoy warns that the filters of usage "envoy" are work in progress.
			if strings.Contains(line, "[warning]") && (usage == "stream" || strings.Contains(line, "eprecated")) {
				t.Errorf("%s: Envoy warns of the configuration: %s", usage, line)
			}
		}
	}
}

// writeBootstrap writes a bootstrap with a snapshot inside, for an Envoy without a control
// plane.
func writeBootstrap(t testing.TB, dir string, static *bootstrapv3.Bootstrap_StaticResources) string {
	t.Helper()
	b, err := envoy.Bootstrap(envoy.Config{
		NodeID: "test", XDS: envoy.Endpoint{Address: "unix:" + filepath.Join(dir, "xds.sock")}, ExtProc: filepath.Join(dir, "extproc.sock"),
		API: envoy.Endpoint{Address: "unix:" + filepath.Join(dir, "api.sock")}, Admin: filepath.Join(dir, "admin.sock"),
	})
	if err != nil {
		t.Fatal(err)
	}
	var boot bootstrapv3.Bootstrap
	if err := protojson.Unmarshal(b, &boot); err != nil {
		t.Fatal(err)
	}
	boot.DynamicResources = nil
	proto.Merge(boot.StaticResources, static)
	if b, err = protojson.Marshal(&boot); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "envoy.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(fmt.Errorf("writing the bootstrap: %w", err))
	}
	return file
}
