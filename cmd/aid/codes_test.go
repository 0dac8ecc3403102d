package main

import (
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// site is a place in the source with an error code.
type site struct {
	area   string // gateway or management
	code   string
	status int // 0: the place has no status
	where  string
}

var statuses = func() map[string]int {
	m := map[string]int{}
	for n := 100; n < 600; n++ {
		if text := http.StatusText(n); text != "" {
			m["Status"+strings.NewReplacer(" ", "", "-", "", "'", "").Replace(text)] = n
		}
	}
	m["StatusRequestURITooLong"] = 414
	return m
}()

// sites finds the error codes in the source of the folders that reply to callers. They are in
// the fields of errors, and in arguments for parameters with the names code or reason.
func sites(t *testing.T) (found []site, open map[string]string) {
	t.Helper()
	open = map[string]string{}
	root := filepath.Join("..", "..")
	fset := token.NewFileSet()
	files := map[string][]*ast.File{}
	for _, dir := range []string{"api", "extproc", "identity", "policy", "provider", "verdict", "xds"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
			files[dir] = append(files[dir], f)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for dir, parsed := range files {
		area := "gateway"
		if dir == "api" {
			area = "management"
		}
		s := scanner{fset: fset, area: area, folder: dir, open: open, consts: map[string]string{}, params: map[string]int{}}
		// The folder may call functions of every folder.
		for _, all := range files {
			for _, f := range all {
				s.declared(f)
			}
		}
		for _, f := range parsed {
			ast.Inspect(f, s.look)
		}
		found = append(found, s.found...)
	}
	// The codes of the baseline, which is Rego.
	rego, err := os.ReadFile(filepath.Join(root, "policy", "baseline.rego"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`refused contains \[\d+, "([a-z_]+)"`).FindAllStringSubmatch(string(rego), -1) {
		found = append(found, site{area: "gateway", code: m[1], where: "policy/baseline.rego"})
	}
	return found, open
}

type scanner struct {
	fset   *token.FileSet
	area   string
	folder string
	open   map[string]string // expressions that are not constant, by their place
	consts map[string]string
	params map[string]int // functions with a parameter for a code, and its index
	found  []site
}

func (s *scanner) declared(f *ast.File) {
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			i := 0
			for _, field := range d.Type.Params.List {
				for _, name := range field.Names {
					if name.Name == "code" {
						s.params[d.Name.Name] = i
					}
					i++
				}
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				v, ok := spec.(*ast.ValueSpec)
				if !ok || d.Tok != token.CONST {
					continue
				}
				for i, name := range v.Names {
					if i < len(v.Values) {
						if text, ok := literal(v.Values[i]); ok {
							s.consts[name.Name] = text
						}
					}
				}
			}
		}
	}
}

func literal(e ast.Expr) (string, bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(lit.Value)
	return text, err == nil
}

func (s *scanner) value(e ast.Expr) (string, bool) {
	if id, ok := e.(*ast.Ident); ok {
		text, ok := s.consts[id.Name]
		return text, ok
	}
	return literal(e)
}

func (s *scanner) status(e ast.Expr) int {
	switch e := e.(type) {
	case *ast.BasicLit:
		n, _ := strconv.Atoi(e.Value)
		return n
	case *ast.SelectorExpr:
		return statuses[e.Sel.Name]
	}
	return 0
}

var word = regexp.MustCompile(`^[a-z][a-z_]*[a-z]$`)

func (s *scanner) add(e ast.Expr, status int) {
	code, ok := s.value(e)
	if !ok {
		var b strings.Builder
		_ = printer.Fprint(&b, s.fset, e)
		s.open[s.fset.Position(e.Pos()).String()] = s.folder + " " + b.String()
		return
	}
	if word.MatchString(code) {
		s.found = append(s.found, site{s.area, code, status, s.fset.Position(e.Pos()).String()})
	}
}

func (s *scanner) look(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.CallExpr:
		name := ""
		switch f := n.Fun.(type) {
		case *ast.Ident:
			name = f.Name
		case *ast.SelectorExpr:
			name = f.Sel.Name
		}
		i, ok := s.params[name]
		if !ok || i >= len(n.Args) {
			return true
		}
		status := 0
		switch name {
		case "bad":
			status = 400
		case "unauthenticated":
			status = 401
		case "unusable":
			status = 502
		case "Unavailable":
			status = 503
		case "Refuse":
			status = s.status(n.Args[0])
		}
		s.add(n.Args[i], status)
	case *ast.CompositeLit:
		status, code := 0, ast.Expr(nil)
		for _, e := range n.Elts {
			kv, ok := e.(*ast.KeyValueExpr)
			if !ok {
				continue
			}
			switch key, _ := kv.Key.(*ast.Ident); {
			case key == nil:
			case key.Name == "Status":
				status = s.status(kv.Value)
			case key.Name == "Code" || key.Name == "code":
				code = kv.Value
			}
		}
		if code != nil {
			s.add(code, status)
		}
		if id, ok := n.Type.(*ast.Ident); ok && id.Name == "Inactive" && len(n.Elts) == 1 {
			s.add(n.Elts[0], 0)
		}
	case *ast.AssignStmt:
		for i, left := range n.Lhs {
			name := ""
			switch l := left.(type) {
			case *ast.Ident:
				name = l.Name
			case *ast.SelectorExpr:
				name = l.Sel.Name
			}
			if (name == "Code" || name == "code") && i < len(n.Rhs) {
				s.add(n.Rhs[i], 0)
			}
		}
	}
	return true
}

// computed are the codes that are not literals in the source: the expression, and the codes
// that it can have.
var computed = map[string][]string{
	"extproc why":                         {"too_many_waiting"},
	"extproc code":                        nil, // a parameter; its arguments are found
	"verdict code":                        nil,
	"verdict e.Code":                      nil,
	"verdict reason":                      {"key_expired", "key_revoked", "key_unknown", "overloaded", "agent_suspended", "agent_inactive", "inactive"},
	"verdict r.Code":                      nil, // a reason of policy
	"verdict refused.Code":                nil,
	"policy code":                         nil,
	"policy string(code)":                 nil, // the baseline's, in Rego
	"policy r.Code":                       nil, // one of these, from the cache
	"policy a.Elem(1).Value.(ast.String)": nil,
	"provider code":                       nil,
	"provider e.Code":                     nil,
	// A translated error has the provider's own code.
	"provider a.codeOf(own, f.message)":            {"context_length_exceeded"},
	`provider a.codeOf("", inner.string())`:        nil,
	`provider delta.get("finish_reason").string()`: nil,
	"api code":            nil,
	"api p.Code":          nil,
	`api "key_" + reason`: {"key_malformed", "key_wrong_kind", "key_unknown", "key_expired", "key_revoked"},
	`api "key_" + status`: nil, // key_expired and key_revoked

	// These are not error codes.
	"policy storage.NotFoundErr":        nil,
	"provider e.Status":                 nil,
	"xds grpcstatus.Code(err)":          nil,
	"xds 3":                             nil,
	"xds rule":                          nil,
	"extproc typev3.StatusCode(status)": nil,
}

// Every code that a caller can receive has an explanation with its status in the source.
// Every explained code exists.
func TestErrorCodes(t *testing.T) {
	type key struct{ area, code string }
	explained := map[key]errorCode{}
	for _, g := range errorGroups {
		area := "gateway"
		if g.management {
			area = "management"
		}
		for _, c := range g.codes {
			k := key{area, c.code}
			if _, twice := explained[k]; twice {
				t.Errorf("%s is explained twice", c.code)
			}
			if c.cause == "" || c.remedy == "" {
				t.Errorf("%s has no cause or no remedy", c.code)
			}
			explained[k] = c
		}
	}
	found, open := sites(t)
	exists := map[key]bool{}
	for _, s := range found {
		k := key{s.area, s.code}
		exists[k] = true
		c, ok := explained[k]
		switch {
		case !ok:
			t.Errorf("%s: the %s's code %q is not explained in explain.go", s.where, s.area, s.code)
		case s.status != 0 && !slices.Contains(c.status, s.status):
			t.Errorf("%s: %q has the status %d, and explain.go has %v", s.where, s.code, s.status, c.status)
		}
	}
	stale := maps.Clone(computed)
	for where, expression := range open {
		codes, ok := computed[expression]
		delete(stale, expression)
		if !ok {
			t.Errorf("%s: a code is computed: %s", where, expression)
		}
		for _, code := range codes {
			area := "gateway"
			if strings.HasPrefix(expression, "api ") {
				area = "management"
			}
			exists[key{area, code}] = true
		}
	}
	for expression := range stale {
		t.Errorf("nothing computes a code by %s", expression)
	}
	for k := range explained {
		if !exists[k] {
			t.Errorf("the %s has no code %q", k.area, k.code)
		}
	}
}
