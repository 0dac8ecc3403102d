// Package strict reads YAML files that people write. Unknown and repeated fields are errors
// with their line. So are anchors, aliases and tags, which make a value depend on another
// place. Errors never quote a value, since it may be a secret.
package strict

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxFile is the maximum size of a file.
const maxFile = 1 << 20

// Decode reads text, with at most one document, into a pointer to a struct. Errors use two
// texts: what names the elements of the file, and see names the place of an example.
func Decode(text []byte, into any, what, see string) (err error) {
	defer func() {
		// The library panics for some texts (1.19.2, found by FuzzFile of provider/prices).
		// They are rejected like other invalid texts.
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
		return fmt.Errorf("line %d: anchors, aliases and tags are not accepted; write the full value", w.line)
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

// walker searches for nodes that are not allowed. An alias inside its own anchor would
// exhaust the library's stack, which cannot be recovered.
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

// Line returns the line of a field of element i of the list. If the element does not have
// the field, it is the element's line.
func Line(text []byte, list string, i int, field string) int {
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return 0
	}
	field, _, _ = strings.Cut(field, "[") // the element is on or near that line
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

// explained returns what is wrong with the YAML and where, without the text around it.
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
		name = "" // it may be a misplaced secret
	} else {
		name = ` "` + name + `"`
	}
	switch {
	case strings.HasPrefix(what, "unknown field"):
		message = "unknown field" + name
	case strings.Contains(message, "duplicate"), strings.Contains(message, "already defined"):
		message = "the field" + name + " is repeated"
	default:
		message = mistake(err, message, field(e)) + "; see " + see + " for an example"
	}
	return fmt.Errorf("line %d: %s", line, message)
}

// mistake describes what was expected and what was found. It quotes only the name of the
// field.
func mistake(err error, message, field string) string {
	if field != "" {
		field = `the field "` + field + `": `
	}
	var wrong *yaml.TypeError
	if m := usedWhere.FindStringSubmatch(message); m != nil {
		return field + "expected " + cmp.Or(kinds[m[2]], "a value of another kind") + ", found " + cmp.Or(kinds[m[1]], "one of another kind")
	} else if errors.As(err, &wrong) {
		return field + "expected " + kindOf(wrong.DstType) + ", found " + kindOf(wrong.SrcType)
	}
	switch {
	case strings.Contains(message, "'\t'"), strings.Contains(message, "tab character"):
		return "a tab: indent with spaces"
	case strings.HasPrefix(message, "mapping value is not allowed"):
		return "a field at a place where no field can begin: the next line is indented too far, or a value with \": \" has no quotes"
	case strings.Contains(message, "end token"), strings.Contains(message, "end character"):
		return "a [, { or quotation mark that is not closed"
	case strings.Contains(message, "was used where"), strings.HasPrefix(message, "non-map value"):
		return "expected a field with a value (name: value)"
	}
	return "this is not valid YAML: the indentation, a bracket or a quotation mark is wrong near here"
}

// field returns the name of the field with the wrong value, or "".
func field(e yaml.Error) string {
	t := e.GetToken()
	if t == nil || t.Prev == nil || t.Prev.Type != token.MappingValueType || t.Prev.Prev == nil || !Nameable.MatchString(t.Prev.Prev.Value) {
		return ""
	}
	return t.Prev.Prev.Value
}

// usedWhere matches the library's error for a value of another kind.
var usedWhere = regexp.MustCompile(`^(\w+) was used where (\w+) is expected`)

// kinds maps the library's names of kinds to those in our errors.
var kinds = map[string]string{
	"sequence": "a list", "mapping": "a mapping (name: value)", "string": "a string", "int": "a number", "integer": "a number",
	"float": "a number", "bool": "true or false", "boolean": "true or false", "null": "nothing",
}

func kindOf(t reflect.Type) string {
	if t == nil {
		return "nothing"
	}
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Map, reflect.Struct, reflect.Pointer:
		return "a mapping (name: value)"
	case reflect.Int, reflect.Int64, reflect.Uint64, reflect.Float64:
		return "a number"
	}
	return "a value of another kind"
}

// Nameable matches the names of fields that an error may quote. No secret looks like this.
var Nameable = regexp.MustCompile(`^[A-Za-z][A-Za-z_-]{0,40}$`)
