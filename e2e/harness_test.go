package e2e_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"

	"github.com/ai-identity/ai-identity/e2e"
	"github.com/ai-identity/ai-identity/envoy"
	"github.com/ai-identity/ai-identity/envoy/envoytest"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/xds"
)

// startEnvoy runs a real Envoy with the configuration that xds builds for the providers. It
// returns its gateway's URL once it listens. Its sidecar is on the socket.
func startEnvoy(t *testing.T, dir, extproc, usage string, providers []provider.Provider) string {
	t.Helper()
	gateway := "127.0.0.1:" + strconv.Itoa(envoytest.Port(t))
	built, err := xds.Build(xds.Input{OrgID: inOrg, Providers: providers, Gateway: gateway, Usage: usage, MaxBody: 16 << 20, Targets: provider.Targets{Private: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := xds.Lint(built); err != nil {
		t.Fatal(err)
	}
	all := map[resourcev3.Type][]types.Resource{}
	for _, kind := range []string{resourcev3.ListenerType, resourcev3.RouteType, resourcev3.ClusterType} {
		for _, r := range built.Resources(kind) {
			all[kind] = append(all[kind], r)
		}
	}
	snapshot, err := cachev3.NewSnapshot("1", all)
	if err != nil {
		t.Fatal(err)
	}
	cache := cachev3.NewSnapshotCache(true, cachev3.IDHash{}, nil)
	if err := cache.SetSnapshot(t.Context(), "test", snapshot); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "xds.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, serverv3.NewServer(ctx, cache, nil))
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		cancel()
		g.Stop()
		<-served
	})
	bootstrap, err := envoy.Bootstrap(envoy.Config{
		NodeID: "test", XDS: envoy.Endpoint{Address: "unix:" + socket}, ExtProc: extproc,
		API: envoy.Endpoint{Address: "127.0.0.1:1"}, Admin: filepath.Join(dir, "admin.sock"),
	})
	if err != nil {
		t.Fatal(err)
	}
	e := envoytest.Start(t, envoytest.Config{Bootstrap: bootstrap, Admin: filepath.Join(dir, "admin.sock")})
	e.WaitLive(t)
	e2e.Eventually(t, 20*time.Second, func() error {
		resp, err := http.Get("http://" + gateway + "/v1/models")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if !slices.Contains([]int{401, 500, 503}, resp.StatusCode) {
			return fmt.Errorf("answered %d", resp.StatusCode)
		}
		return nil
	})
	return "http://" + gateway
}
