package aiidentity_test

import (
	"encoding/json"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/ai-identity/ai-identity/"

// layer gives the height of each folder. A package may import only packages from lower
// layers. So leaves never import one another, and neither do the three servers. Only cmd
// sees everything.
var layer = map[string]int{
	"proto": 0, "process": 0,
	"identity": 1, "provider": 1, "policy": 1, "budget": 1, "audit": 1, "store": 1, "envoy": 1,
	"verdict": 2,
	"extproc": 3, "xds": 3, "api": 3,
	"cmd": 4, "bench": 4, "e2e": 4, "tools": 4,
}

// besideTests lists test support that may import what its package's layer may not. A test's
// real database is opened by the packages under test.
var besideTests = map[string]string{}

// home lists the folders that may import a dependency. A dependency that is not listed here
// may not be imported. Adding one means adding a line, and the reviewer asks there why.
var home = map[string]string{
	"github.com/open-policy-agent/opa":       "policy",
	"github.com/jackc/pgx":                   "store identity provider policy audit xds api cmd",
	"github.com/pressly/goose":               "store",
	"github.com/fernet/fernet-go":            "provider",
	"github.com/goccy/go-yaml":               "provider",
	"github.com/go-json-experiment/json":     "provider policy audit api identity",
	"github.com/go-jose/go-jose":             "identity", // tokens of workloads
	"github.com/andybalholm/brotli":          "provider",
	"github.com/klauspost/compress":          "provider",
	"github.com/danielgtaylor/huma":          "api",
	"github.com/swaggest/swgui":              "api",
	"github.com/envoyproxy/go-control-plane": "extproc xds envoy cmd bench", // cmd registers extproc's service
	"github.com/cncf/xds":                    "xds",                         // the matchers of custom_response
	"google.golang.org/grpc":                 "proto extproc xds cmd bench",
	"google.golang.org/genproto":             "xds", /* the status in a NACK */
	"google.golang.org/protobuf":             "proto extproc xds envoy bench",
	"github.com/prometheus/client_golang":    "extproc xds api policy budget audit store cmd",
	"github.com/prometheus/common":           "cmd", // the text format, to merge what the children say
	"github.com/prometheus/client_model":     "cmd",
	"go.opentelemetry.io/otel":               "extproc cmd",
	"go.opentelemetry.io/contrib":            "cmd",
	"github.com/spf13/cobra":                 "cmd",
	"github.com/spf13/pflag":                 "cmd",
	"github.com/aws/aws-sdk-go-v2":           "audit", // an anchor in S3, and its credentials
	"github.com/sigstore/sigstore":           "audit", // signing keys in a KMS
	"github.com/aws/smithy-go":               "audit", // its errors
	"github.com/secure-systems-lab":          "audit", // in a test: another implementation of DSSE reads our envelopes
	"github.com/xi2/xz":                      "store", // Postgres comes in it
	"github.com/valkey-io/valkey-go":         "budget",
	"golang.org/x/mod":                       "audit api", // sumdb/tlog: hashes and tiles
	"golang.org/x/text":                      "api",       // one spelling of names that policies compare
	"golang.org/x/sync":                      "cmd audit xds api",
	"golang.org/x/sys":                       "cmd store audit",
}

func TestImports(t *testing.T) {
	for _, p := range list(t) {
		from := top(p.ImportPath)
		if from == "" {
			continue // this package, which is only tests
		}
		for _, imp := range p.Imports {
			to := top(imp)
			switch {
			case !strings.Contains(strings.SplitN(imp, "/", 2)[0], "."): // standard library
			case strings.HasPrefix(imp, module):
				if to != from && layer[to] >= layer[from] && !slices.Contains(strings.Fields(besideTests[strings.TrimPrefix(p.ImportPath, module)]), to) {
					t.Errorf("%s imports %s: %s is not below %s", p.ImportPath, imp, to, from)
				}
			default:
				if !mayUse(from, imp) {
					t.Errorf("%s imports %s, whose home is elsewhere", p.ImportPath, imp)
				}
			}
		}
	}
}

func TestPackageDocs(t *testing.T) {
	for _, p := range list(t) {
		from := top(p.ImportPath)
		if from == "" {
			continue
		}
		if _, placed := layer[from]; !placed {
			t.Errorf("%s: folder %q stands in no layer; place it in layout_test.go", p.ImportPath, from)
		}
		if p.Doc == "" && len(p.GoFiles) > 0 && !generated(p.ImportPath) {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

// Commands of `make test` must not depend on what only one machine has.
func TestNoLocalReplacements(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{if .Replace}}{{.Path}}{{end}}", "all").Output()
	if err != nil {
		t.Fatal(err)
	}
	if s := strings.TrimSpace(string(out)); s != "" {
		t.Errorf("replaced in go.mod: %s", s)
	}
}

func generated(path string) bool { return strings.HasPrefix(path, module+"proto/") }

func top(path string) string {
	rest, ok := strings.CutPrefix(path, module)
	if !ok {
		return ""
	}
	first, _, _ := strings.Cut(rest, "/")
	return first
}

func mayUse(from, imp string) bool {
	for dep, folders := range home {
		if imp == dep || strings.HasPrefix(imp, dep+"/") {
			return slices.Contains(strings.Fields(folders), from)
		}
	}
	return false
}

type pkg struct {
	ImportPath, Doc string
	GoFiles         []string
	Imports         []string
}

func list(t *testing.T) (ps []pkg) {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Doc,GoFiles,Imports", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); err == io.EOF {
			return ps
		} else if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
}
