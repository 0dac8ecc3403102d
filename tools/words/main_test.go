package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each line with a fault ends with the name of its rule in angle brackets.
const faulty = `// Package sample has one fault per rule.
package sample

import "errors"

// T is plain. Whoever reads it is content. <Pattern>
//
//   - An item is prose,
//     and its verdict is on the second line. <Words>
//
//	a line of code: whoever, nobody
type T struct {
	F string ` + "`doc:\"Nobody sets it. <Pattern>\"`" + `
}

// The type ` + "`refused`" + ` is a name. This one sentence is too long, and <Sentence>
// it goes on and on, over the first line and then over the second, with many words in it.
var err = errors.New("the request is " + "refused here <Words>")

const query = ` + "`SELECT refused FROM settled WHERE nobody IS NULL`" + `

const short = "nobody"
`

// A rule that matches nothing, or a finding at another place, fails here.
func TestFindings(t *testing.T) {
	vale := os.Getenv("AID_VALE")
	if vale == "" && os.Getenv("CI") == "" {
		t.Skip("AID_VALE is not set; `make test` sets it")
	}
	long := "// " + strings.Repeat("long ", 28) + "<more than 140>\n"
	for name, text := range map[string]string{
		"sample.go":    faulty,
		"sample.proto": "message M {\n  // The field from whom it is. <Pattern>\n  string f = 1;\n}\n",
		"page.md":      "# A page\n\nThe record is here. <Words>\n\n- `refused` is a code.\n",
		"wide.go":      "package wide\n\n" + strings.ReplaceAll(long, "long long long ", "long. Long long ") + "const N = 1\n",
		"doc.txt":      "Nobody reads this.\n", // no prose
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), name)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			found, err := check(vale, []string{file})
			if err != nil {
				t.Fatal(err)
			}
			want := map[int]string{}
			for i, line := range strings.Split(text, "\n") {
				if _, rule, ok := strings.Cut(line, "<"); ok {
					rule, _, _ = strings.Cut(rule, ">")
					want[i+1] = rule
				}
			}
			for _, f := range found {
				if rule := want[f.line]; rule == "" || !strings.Contains(f.message, rule) {
					t.Errorf("not a fault: %s", f)
				}
				delete(want, f.line)
			}
			for line, rule := range want {
				t.Errorf("line %d: %s was not found", line, rule)
			}
		})
	}
}
