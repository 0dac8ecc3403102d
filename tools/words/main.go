// Command words checks the prose of this repository with Vale. That is README, docs, the
// comments of Go and proto files, and the strings in Go that people read.
//
//	words [-vale PATH] [-count] [pathspec ...]
//
// Run it in the folder with .vale.ini. It checks the files in git that match a pathspec;
// without pathspecs, all of them. It prints one finding per line as "file:line: message".
// It exits with 1 if there is a finding, and with 2 if it cannot check. With -count it
// prints how many odd constructions (the rule Plain.Pattern) Go comments have per 1,000 lines.
//
// The prose of Go is its comments and the text of `doc:"…"` tags. Outside tests it is also
// each string of at least four words that is not code, as are errors and help.
package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxLine is the longest line of comments and pages, in characters. Tables, code and
// lines with a URL may be longer.
const maxLine = 140

func main() {
	vale := flag.String("vale", ".tools/bin/vale", "the `path` of Vale's binary")
	count := flag.Bool("count", false, "print the odd constructions per 1,000 comment lines of Go, and no findings")
	flag.Parse()
	files, err := tracked(flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "words:", err)
		os.Exit(2)
	}
	found, err := check(*vale, files)
	if err != nil {
		fmt.Fprintln(os.Stderr, "words:", err)
		os.Exit(2)
	}
	if *count {
		odd, lines, err := rate(files, found)
		if err != nil {
			fmt.Fprintln(os.Stderr, "words:", err)
			os.Exit(2)
		}
		fmt.Printf("%d odd constructions in %d comment lines of Go: %.2f per 1,000\n", odd, lines, 1000*float64(odd)/float64(max(lines, 1)))
		return
	}
	for _, f := range found {
		fmt.Println(f)
	}
	if len(found) > 0 {
		fmt.Fprintf(os.Stderr, "words: %d findings\n", len(found))
		os.Exit(1)
	}
}

// rate counts the findings of Plain.Pattern in Go files, and the lines of their comments.
func rate(files []string, found []finding) (odd, lines int, err error) {
	for _, f := range found {
		if filepath.Ext(f.file) == ".go" && strings.HasSuffix(f.message, "(Plain.Pattern)") {
			odd++
		}
	}
	for _, file := range files {
		if filepath.Ext(file) != ".go" {
			continue
		}
		positions := token.NewFileSet()
		tree, err := parser.ParseFile(positions, file, nil, parser.ParseComments|parser.SkipObjectResolution)
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted, and not yet committed
		}
		if err != nil {
			return 0, 0, err
		}
		if ast.IsGenerated(tree) {
			continue
		}
		for _, group := range tree.Comments {
			for _, c := range group.List {
				lines += 1 + strings.Count(c.Text, "\n")
			}
		}
	}
	return odd, lines, nil
}

// finding is one fault in one line of a file.
type finding struct {
	file    string
	line    int
	message string
}

func (f finding) String() string { return fmt.Sprintf("%s:%d: %s", f.file, f.line, f.message) }

// tracked returns the files in git that match pathspecs.
func tracked(pathspecs []string) ([]string, error) {
	out, err := exec.Command("git", append([]string{"ls-files", "-z", "--"}, pathspecs...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("git ls-files: %w", err)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"), nil
}

// check returns what is wrong with the prose of files, sorted by place. Files that are
// not Go, proto or Markdown have no prose.
func check(vale string, files []string) ([]finding, error) {
	var found []finding
	var pages []string                    // Vale reads Markdown itself
	extracted := map[string][]paragraph{} // by folder
	for _, file := range files {
		switch filepath.Ext(file) {
		case ".go", ".proto", ".md":
		default:
			continue
		}
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted, and not yet committed
		}
		if err != nil {
			return nil, err
		}
		var ps []paragraph
		switch filepath.Ext(file) {
		case ".go":
			ps, err = fromGo(file, text)
		case ".proto":
			ps = fromProto(file, string(text))
		case ".md":
			pages = append(pages, file)
			found = append(found, longLines(file, string(text))...)
		}
		if err != nil {
			return nil, err
		}
		for _, p := range ps {
			if p.comment {
				found = append(found, p.longLines()...)
			}
		}
		if len(ps) > 0 {
			folder := filepath.Dir(file)
			extracted[folder] = append(extracted[folder], ps...)
		}
	}
	more, err := runVale(vale, pages, extracted)
	if err != nil {
		return nil, err
	}
	found = append(found, more...)
	slices.SortStableFunc(found, func(a, b finding) int {
		return cmp.Or(cmp.Compare(a.file, b.file), cmp.Compare(a.line, b.line))
	})
	return slices.Compact(found), nil
}

// paragraph is prose of one file without line breaks inside.
type paragraph struct {
	file    string
	comment bool
	words   []word
}

// word is a word and the line of its file that it is on.
type word struct {
	text string
	line int
}

// add appends the words of one line.
func (p *paragraph) add(text string, line int) {
	for _, w := range strings.Fields(text) {
		p.words = append(p.words, word{w, line})
	}
}

func (p paragraph) String() string {
	var b strings.Builder
	for i, w := range p.words {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(w.text)
	}
	return b.String()
}

// forVale returns p with code masked by as many letters. It begins and ends like a
// sentence, since Vale looks for the ends of sentences without regard to paragraphs.
func (p paragraph) forVale() string {
	text := codeSpan.ReplaceAllStringFunc(p.String(), func(code string) string {
		return strings.Repeat("x", utf8.RuneCountInString(code))
	})
	first, size := utf8.DecodeRuneInString(text)
	if first = unicode.ToUpper(first); !unicode.IsUpper(first) {
		first = 'X'
	}
	return string(first) + strings.TrimRight(text[size:], ".:") + "!"
}

// lineAt returns the line of the word at column, which counts characters from 1.
func (p paragraph) lineAt(column int) int {
	for _, w := range p.words {
		if column -= utf8.RuneCountInString(w.text) + 1; column <= 0 {
			return w.line
		}
	}
	return p.words[len(p.words)-1].line
}

// longLines returns a finding for each line whose words are longer than maxLine.
func (p paragraph) longLines() (found []finding) {
	length := map[int]int{}
	for _, w := range p.words {
		length[w.line] += utf8.RuneCountInString(w.text) + 1
		if strings.Contains(w.text, "://") {
			length[w.line] = -maxLine
		}
	}
	for line, n := range length {
		if n > maxLine {
			found = append(found, tooLong(p.file, line))
		}
	}
	return found
}

// longLines returns a finding for each line of a page that is longer than maxLine.
func longLines(file, text string) (found []finding) {
	code := false
	for i, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			code = !code
		}
		free := code || strings.HasPrefix(line, "|") || strings.Contains(line, "://")
		if !free && utf8.RuneCountInString(line) > maxLine {
			found = append(found, tooLong(file, i+1))
		}
	}
	return found
}

func tooLong(file string, line int) finding {
	return finding{file, line, fmt.Sprintf("The line has more than %d characters. Break it.", maxLine)}
}

// A list item begins a paragraph. An indented line of a comment is code. The text between
// backticks is a name, not prose.
var (
	listItem = regexp.MustCompile(`^\s*([-*•]|\d+\.)\s+`)
	codeLine = regexp.MustCompile(`^(\t| {2,})`)
	codeSpan = regexp.MustCompile("`[^`]*`")
)

// fromLines returns the paragraphs of a comment's lines, whose first is line. Lines that
// are indented and do not continue a list item are code, which is left out.
func fromLines(file string, line int, lines []string) (ps []paragraph) {
	p := paragraph{file: file, comment: true}
	end := func() {
		if len(p.words) > 0 {
			ps = append(ps, p)
		}
		p = paragraph{file: file, comment: true}
	}
	inItem := false
	for i, text := range lines {
		text = strings.TrimPrefix(text, " ")
		item := listItem.MatchString(text)
		switch {
		case strings.TrimSpace(text) == "":
			end()
			inItem = false
			continue
		case item:
			end()
			inItem = true
			text = listItem.ReplaceAllString(text, "")
		case codeLine.MatchString(text) && !inItem:
			end()
			continue
		case !codeLine.MatchString(text) && inItem:
			end()
			inItem = false
		}
		p.add(text, line+i)
	}
	end()
	return ps
}

func fromProto(file, text string) (ps []paragraph) {
	var lines []string
	flush := func(next int) {
		ps = append(ps, fromLines(file, next-len(lines), lines)...)
		lines = nil
	}
	all := strings.Split(text, "\n")
	for i, line := range all {
		before, comment, ok := strings.Cut(line, "//")
		if ok && strings.TrimSpace(before) == "" {
			lines = append(lines, comment)
			continue
		}
		flush(i + 1)
		if ok {
			ps = append(ps, fromLines(file, i+1, []string{comment})...)
		}
	}
	flush(len(all) + 1)
	return ps
}

// fromGo returns the prose of a Go file: its comments and the strings that people read.
func fromGo(file string, text []byte) ([]paragraph, error) {
	positions := token.NewFileSet()
	tree, err := parser.ParseFile(positions, file, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	if ast.IsGenerated(tree) {
		return nil, nil
	}
	var ps []paragraph
	for _, group := range tree.Comments {
		first := positions.Position(group.Pos()).Line
		var lines []string
		flush := func(next int) {
			ps = append(ps, fromLines(file, first, lines)...)
			first, lines = next, nil
		}
		for _, c := range group.List {
			at := positions.Position(c.Pos())
			if before := text[at.Offset-at.Column+1 : at.Offset]; len(bytes.TrimSpace(before)) > 0 {
				flush(at.Line) // beside code, not a continuation of the line above
			}
			body, isLine := strings.CutPrefix(c.Text, "//")
			if !isLine {
				body = strings.TrimSuffix(strings.TrimPrefix(body, "/*"), "*/")
			} else if !strings.HasPrefix(body, " ") && !strings.HasPrefix(body, "\t") {
				body = "" // a directive
			}
			lines = append(lines, strings.Split(body, "\n")...)
		}
		flush(0)
	}
	if strings.HasSuffix(file, "_test.go") {
		return ps, nil
	}
	ast.Inspect(tree, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ImportSpec:
			return false
		case *ast.Field:
			if n.Tag != nil {
				tag, _ := strconv.Unquote(n.Tag.Value)
				p := paragraph{file: file}
				p.add(reflect.StructTag(tag).Get("doc"), positions.Position(n.Tag.Pos()).Line)
				if len(p.words) > 0 {
					ps = append(ps, p)
				}
			}
			return n.Tag == nil
		case *ast.BinaryExpr:
			if n.Op == token.ADD {
				if text, ok := concatenated(n); ok {
					ps = append(ps, fromString(file, positions.Position(n.Pos()).Line, text)...)
					return false
				}
			}
		case *ast.BasicLit:
			if n.Kind == token.STRING {
				text, _ := strconv.Unquote(n.Value)
				ps = append(ps, fromString(file, positions.Position(n.Pos()).Line, text)...)
			}
		}
		return true
	})
	return ps, nil
}

// concatenated returns the text of a sum of literals, with % for every other operand.
// It reports whether there is a literal in it.
func concatenated(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			text, _ := strconv.Unquote(e.Value)
			return text, true
		}
	case *ast.BinaryExpr:
		if e.Op == token.ADD {
			left, inLeft := concatenated(e.X)
			right, inRight := concatenated(e.Y)
			return left + right, inLeft || inRight
		}
	}
	return "%", false
}

// statement matches SQL. It begins with a verb in capitals, and messages do not.
var statement = regexp.MustCompile(`^\s*(SELECT|INSERT|UPDATE|DELETE|WITH|CREATE|ALTER|DROP|GRANT|REVOKE|SET|LOCK|DO|FROM|WHERE|AND|ORDER|VALUES)\b`)

// setting matches a line of YAML.
var setting = regexp.MustCompile(`^\s*(- )?[a-z_]+:(\s|$)`)

// fromString returns the paragraphs of a string that has four words and is not code. Code is
// SQL, settings, and text with less than three of four words made of letters.
func fromString(file string, line int, text string) (ps []paragraph) {
	if len(strings.Fields(text)) < 4 || statement.MatchString(text) {
		return nil
	}
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if lines[i] = " " + l; len(lines) > 1 && setting.MatchString(l) {
			lines[i] = ""
		}
	}
	for _, p := range fromLines(file, line, lines) {
		letters := 0
		for _, w := range p.words {
			if strings.Trim(w.text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ%,.:;!?()'-–") == "" {
				letters++
			}
		}
		if p.comment = false; 4*letters >= 3*len(p.words) {
			ps = append(ps, p)
		}
	}
	return ps
}

// runVale returns what Vale finds in pages, and in the paragraphs of each folder, which
// it reads as a text of one paragraph per line.
func runVale(vale string, pages []string, folders map[string][]paragraph) ([]finding, error) {
	temp, err := os.MkdirTemp("", "words")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	args := append([]string{"--no-exit", "--output=JSON"}, pages...)
	source := map[string][]paragraph{}
	for folder, ps := range folders {
		var text bytes.Buffer
		for _, p := range ps {
			fmt.Fprintf(&text, "%s\n\n", p.forVale())
		}
		file := filepath.Join(temp, strings.ReplaceAll(folder, "/", "+")+".txt")
		if err := os.WriteFile(file, text.Bytes(), 0o600); err != nil {
			return nil, err
		}
		source[file] = ps
		args = append(args, file)
	}
	if len(pages)+len(folders) == 0 {
		return nil, nil // without files Vale prints its help
	}
	cmd := exec.Command(vale, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s%s", vale, err, out, stderr.Bytes())
	}
	var alerts map[string][]struct {
		Line    int
		Span    [2]int
		Message string
		Check   string
	}
	if err := json.Unmarshal(out, &alerts); err != nil {
		return nil, fmt.Errorf("%s: reading its output: %w", vale, err)
	}
	var found []finding
	for file, as := range alerts {
		for _, a := range as {
			f := finding{file, a.Line, a.Message + " (" + a.Check + ")"}
			if ps, extracted := source[file]; extracted {
				p := ps[a.Line/2]
				f.file, f.line = p.file, p.lineAt(a.Span[0])
			}
			found = append(found, f)
		}
	}
	return found, nil
}
