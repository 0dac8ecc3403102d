// Package strict reads YAML files that people write for us: what is not known, or
// is there twice, is an error with its line, and so is what makes a value depend on
// another place (anchors, aliases, tags). No error quotes a value, which may be a
// secret.
package strict

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxFile is how large a file may be.
const maxFile = 1 << 20

// Decode reads text, one document or none, into into, a pointer to a struct. what
// is what the file lists, and see where an example is, for people who are told what
// is wrong.
func Decode(text []byte, into any, what, see string) (err error) {
	defer func() {
		// The library panics at some texts (1.19.2, found by FuzzFile of
		// provider/prices). They are no worse than others that cannot be read.
		if recover() != nil {
			err = errors.New("not valid YAML")
		}
	}()
	if len(text) > maxFile {
		return fmt.Errorf("the file has more than %d bytes", maxFile)
	}
	tree, err := parser.ParseBytes(text, 0)
	if err != nil {
		return explained(err, see)
	}
	var w walker
	for _, doc := range tree.Docs {
		ast.Walk(&w, doc)
	}
	if w.line > 0 {
		return fmt.Errorf("line %d: anchors, aliases and tags are not taken here; write the value out", w.line)
	}
	d := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict())
	switch err := d.Decode(into); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return explained(err, see)
	}
	if !errors.Is(d.Decode(&struct{}{}), io.EOF) {
		return errors.New("the file has more than one document; put all " + what + " into one list")
	}
	return nil
}

// walker looks for what must not be there. An alias inside of what it stands for
// would have the library run out of stack, which nothing catches.
type walker struct{ line int }

func (w *walker) Visit(n ast.Node) ast.Visitor {
	switch n.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.MergeKeyNode:
		if w.line == 0 {
			w.line = n.GetToken().Position.Line
		}
	}
	return w
}

// Line is the line of a field of the element at i of the list; of the element if
// that does not have the field.
func Line(text []byte, list string, i int, field string) int {
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return 0
	}
	field, _, _ = strings.Cut(field, "[") // the element is on that line or near it
	for {
		path, err := yaml.PathString(strings.TrimSuffix(fmt.Sprintf("$.%s[%d].%s", list, i, field), "."))
		if err == nil {
			if node, err := path.FilterFile(file); err == nil && node.GetToken() != nil {
				return node.GetToken().Position.Line
			}
		}
		if field == "" {
			return 0
		}
		field = field[:max(strings.LastIndexByte(field, '.'), 0)]
	}
}

// explained is what is wrong with the YAML and where, without the text around it.
func explained(err error, see string) error {
	var e yaml.Error
	if !errors.As(err, &e) {
		return errors.New("not valid YAML")
	}
	message, line := e.GetMessage(), 0
	if t := e.GetToken(); t != nil && t.Position != nil {
		line = t.Position.Line
	}
	what, rest, _ := strings.Cut(message, `"`)
	name, _, _ := strings.Cut(rest, `"`)
	if !Nameable.MatchString(name) {
		name = "" // perhaps a secret that is in the wrong place
	} else {
		name = ` "` + name + `"`
	}
	switch {
	case strings.HasPrefix(what, "unknown field"):
		message = "unknown field" + name
	case strings.Contains(message, "duplicate"), strings.Contains(message, "already defined"):
		message = "the field" + name + " is there twice"
	default:
		message = "not valid here: see " + see + " for an example"
	}
	return fmt.Errorf("line %d: %s", line, message)
}

// Nameable is what an error may quote of a field's name: no secret looks like this.
var Nameable = regexp.MustCompile(`^[A-Za-z][A-Za-z_-]{0,40}$`)
