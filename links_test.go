package aiidentity_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	linked  = regexp.MustCompile(`!?\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset|href)="([^"]+)"`)
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	code    = regexp.MustCompile("(?s)```.*?```|`[^`\n]*`")
)

// Every relative link of every page leads to a file, and to a heading in it if it names
// one. Every page in docs/ is one click from the README.
func TestLinks(t *testing.T) {
	out, err := exec.Command("git", "ls-files", "*.md").Output()
	if err != nil {
		t.Skipf("not a checkout: %v", err)
	}
	pages := strings.Fields(string(out))
	if len(pages) < 15 {
		t.Fatalf("only %d pages", len(pages))
	}
	first := map[string]bool{}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range linked.FindAllStringSubmatch(code.ReplaceAllString(string(text), ""), -1) {
			link := m[1] + m[2]
			if strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
				continue
			}
			file, anchor, _ := strings.Cut(link, "#")
			target := page
			if file != "" {
				target = filepath.Join(filepath.Dir(page), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: the link %s leads nowhere", page, link)
				continue
			}
			if page == "README.md" {
				first[target] = true
			}
			if anchor != "" && !slices.Contains(anchors(t, target), anchor) {
				t.Errorf("%s: %s has no heading #%s", page, target, anchor)
			}
		}
	}
	for _, page := range pages {
		if filepath.Dir(page) == "docs" && !first[page] {
			t.Errorf("README.md does not link to %s", page)
		}
	}
}

// anchors are those that GitHub gives to a page's headings.
func anchors(t *testing.T, page string) (all []string) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range heading.FindAllStringSubmatch(regexp.MustCompile("(?s)```.*?```").ReplaceAllString(string(text), ""), -1) {
		name := strings.ToLower(m[1])
		name = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(name, "")
		all = append(all, strings.ReplaceAll(name, " ", "-"))
	}
	return all
}

// The dark variant of an image has the same text as the light variant.
func TestPictures(t *testing.T) {
	words := func(name string) (all []string) {
		text, err := os.ReadFile(filepath.Join("docs", name))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`<(?:text|title)[^>]*>([^<]*)<`).FindAllStringSubmatch(string(text), -1) {
			all = append(all, m[1])
		}
		return all
	}
	light := words("path.svg")
	for _, name := range []string{"path", "budget"} {
		if !slices.Equal(words(name+".svg"), words(name+"-dark.svg")) {
			t.Errorf("docs/%s.svg and docs/%s-dark.svg differ in their words", name, name)
		}
	}
	for _, want := range []string{"identify", "parse", "authorize", "record", "forward"} {
		if !slices.Contains(light, want) {
			t.Errorf("docs/path.svg does not have %q", want)
		}
	}
}

var (
	goTest   = regexp.MustCompile(`go test (\./[a-z0-9/]+) -run '?([A-Za-z0-9_|]+)`)
	testsOf  = regexp.MustCompile("`(\\./[a-z0-9/]+)` (Test[A-Za-z0-9_]+(?:, Test[A-Za-z0-9_]+)*)")
	testFunc = regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9_]*)\(`)
)

// Every test that a page names exists in the package that the page names.
func TestNamedTests(t *testing.T) {
	out, err := exec.Command("git", "ls-files", "*.md").Output()
	if err != nil {
		t.Skipf("not a checkout: %v", err)
	}
	named := 0
	for _, page := range strings.Fields(string(out)) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range slices.Concat(goTest.FindAllStringSubmatch(string(text), -1), testsOf.FindAllStringSubmatch(string(text), -1)) {
			named++
			files, err := filepath.Glob(filepath.Join(m[1], "*_test.go"))
			if err != nil {
				t.Fatal(err)
			}
			var tests []string
			for _, file := range files {
				code, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range testFunc.FindAllStringSubmatch(string(code), -1) {
					tests = append(tests, f[1])
				}
			}
			for _, name := range strings.FieldsFunc(m[2], func(r rune) bool { return r == '|' || r == ',' || r == ' ' }) {
				if !slices.ContainsFunc(tests, func(f string) bool { return strings.Contains(f, name) }) {
					t.Errorf("%s: %s has no test %s", page, m[1], name)
				}
			}
		}
	}
	if named < 30 {
		t.Errorf("only %d tests are named", named)
	}
}
