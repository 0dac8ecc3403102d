package xds

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ai-identity/ai-identity/identity"
)

// TestFilesOfAType: each type is named in at most three files, all in this package. So a new
// type needs edits in three files: its row in resource.go, the client and the server. For
// Envoy's types, Envoy is the client.
func TestFilesOfAType(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]string{} // type URLs by the names of constants
	uses := map[string]map[string]bool{}
	each := func(visit func(file string, n ast.Node)) {
		t.Helper()
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() && (strings.HasPrefix(d.Name(), ".") || d.Name() == "node_modules" || d.Name() == "testdata" || path == filepath.Join(root, "proto")) {
				return filepath.SkipDir
			}
			if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return nil
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			file, err := filepath.Rel(root, path)
			ast.Inspect(f, func(n ast.Node) bool {
				visit(file, n)
				return true
			})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	use := func(url, file string) {
		if uses[url] == nil {
			uses[url] = map[string]bool{}
		}
		uses[url][file] = true
	}
	each(func(file string, n ast.Node) {
		v, ok := n.(*ast.ValueSpec)
		if !ok || filepath.Dir(file) != "xds" || len(v.Names) != 1 || len(v.Values) != 1 {
			return
		}
		for _, k := range kinds {
			if sum, ok := v.Values[0].(*ast.BinaryExpr); ok && literal(sum.Y) == strings.TrimPrefix(k.url, typePrefix) {
				names[v.Names[0].Name] = k.url
			}
		}
	})
	if len(names) != len(kinds) {
		t.Fatalf("%d types, and constants for %v", len(kinds), slices.Sorted(maps.Keys(names)))
	}
	each(func(file string, n ast.Node) {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			if p, ok := n.X.(*ast.Ident); ok && p.Name == "xds" && names[n.Sel.Name] != "" {
				use(names[n.Sel.Name], file)
			}
		case *ast.Ident:
			if url := names[n.Name]; url != "" && filepath.Dir(file) == "xds" {
				use(url, file)
			}
		case *ast.BasicLit:
			for _, k := range kinds {
				if strings.Contains(literal(n), strings.TrimPrefix(k.url, typePrefix)) && (strings.HasPrefix(literal(n), typePrefix) || filepath.Dir(file) == "xds") {
					use(k.url, file)
				}
			}
		}
	})
	for _, k := range kinds {
		files := slices.Sorted(maps.Keys(uses[k.url]))
		t.Logf("%s: %s", k.short, strings.Join(files, " "))
		if len(files) > 3 {
			t.Errorf("%s is named in %d files: %s", k.short, len(files), strings.Join(files, " "))
		}
		for _, f := range files {
			if filepath.Dir(f) != "xds" {
				t.Errorf("%s is named in %s: only package xds knows types", k.short, f)
			}
		}
	}
}

func literal(n ast.Node) string {
	if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
		if s, err := strconv.Unquote(l.Value); err == nil {
			return s
		}
	}
	return ""
}

// TestNewType: a row of kinds is enough for the protocol. Clients subscribe to the type. It is
// sent in its place in the order, removed when deleted, and counted under its name.
func TestNewType(t *testing.T) {
	const url = typePrefix + "google.protobuf.StringValue"
	before := kinds
	defer func() { kinds = before }()
	at := slices.IndexFunc(before, func(k kind) bool { return k.url == PolicyType })
	kinds = slices.Insert(slices.Clone(before), at, kind{url: url, short: "Test", role: identity.NodeExtproc})

	c := &Client{c: ClientConfig{NodeID: "node_1"}, held: newHeld()}
	asked := &fakeClient{}
	if err := c.subscribe(asked); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(asked.sent, func(r *discoveryv3.DeltaDiscoveryRequest) bool { return r.GetTypeUrl() == url }) {
		t.Error("the client does not subscribe to the type")
	}

	metrics, err := newServerMetrics(nil, func() int { return 0 }, func() int { return 0 })
	if err != nil {
		t.Fatal(err)
	}
	v := newView()
	for name, text := range map[string]string{"org_1/a": "one", "org_1/b": "two"} {
		if err := v.put(url, name, wrapperspb.String(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.put(OrgType, "org_1", wrapperspb.String("the org")); err != nil {
		t.Fatal(err)
	}
	built, err := Build(Input{OrgID: "org_1", Usage: "stream", Gateway: "127.0.0.1:9001", MaxBody: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	state := &orgState{id: "org_1", loaded: true, view: v, envoy: built}
	s := &Server{c: ServerConfig{Log: slog.New(slog.DiscardHandler)}, metrics: metrics, orgs: map[string]*orgState{"org_1": state}, joined: map[string]joined{}}
	sent := &fakeServer{}
	st := &stream{s: s, orgs: []string{"org_1"}, node: identity.Node{ID: "node_1", Roles: []identity.NodeRole{identity.NodeExtproc}}, g: sent,
		woken: make(chan struct{}, 1), agents: map[string]struct{}{}, callers: map[string]struct{}{}, subs: map[string]*subscription{}, owner: map[string]string{}}
	for _, t2 := range []string{OrgType, url} {
		if err := st.request(context.Background(), &discoveryv3.DeltaDiscoveryRequest{TypeUrl: t2, ResourceNamesSubscribe: []string{"*"}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.push(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := sent.take(); got != url+": org_1/a org_1/b; "+OrgType+": org_1" {
		t.Errorf("sent %q", got)
	}
	delete(v.resources[url], "org_1/a")
	if err := st.push(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := sent.take(); got != url+": -org_1/a" {
		t.Errorf("sent %q after the removal", got)
	}
	if short(url) != "Test" {
		t.Errorf("counted as %q", short(url))
	}
}

type fakeClient struct {
	deltaClient
	sent []*discoveryv3.DeltaDiscoveryRequest
}

func (f *fakeClient) Send(r *discoveryv3.DeltaDiscoveryRequest) error {
	f.sent = append(f.sent, r)
	return nil
}

type fakeServer struct {
	discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	sent []string
}

func (f *fakeServer) Send(r *discoveryv3.DeltaDiscoveryResponse) error {
	var names []string
	for _, r := range r.GetResources() {
		names = append(names, r.GetName())
	}
	for _, name := range r.GetRemovedResources() {
		names = append(names, "-"+name)
	}
	f.sent = append(f.sent, r.GetTypeUrl()+": "+strings.Join(names, " "))
	return nil
}

func (f *fakeServer) take() string {
	out := strings.Join(f.sent, "; ")
	f.sent = nil
	return out
}
