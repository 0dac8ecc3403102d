package translate

import (
	"fmt"
	"strings"
)

// Level is how a field is supported.
type Level string

// The values of Level. Rejected means 422, or left out and listed if the org allows that.
const (
	Supported Level = "supported" // under its own name, or by the gateway itself
	Renamed   Level = "renamed"   // under another name or in another form
	Partly    Level = "partly"    // some values; the others are rejected
	Rejected  Level = "rejected"
	Hint      Level = "left out" // it changes no response: left out and listed, or rejected if the org drops nothing
)

// support is how a kind supports one field.
type support struct {
	Level   Level
	As      string // the kind's name for it
	Note    string // the reason for the rejection, or other information
	neutral []string
}

// idle reports whether v is the default.
func (f support) idle(v raw) bool {
	for _, n := range f.neutral {
		if string(v) == n {
			return true
		}
		a, isNumber := v.number()
		b, alsoNumber := raw(n).number()
		if isNumber && alsoNumber && a == b {
			return true
		}
	}
	return false
}

// Field is one field of OpenAI's request and its support by each kind. A nested field has a
// path: "messages[].name".
type Field struct {
	Name    string
	Neutral []string // values without an effect: always accepted
	Support map[string]Support
}

// Support is how a kind supports a field.
type Support struct {
	Level Level
	As    string // the kind's own field; empty: none
	Note  string // the reason for the rejection, or other information
}

func (f Support) String() string {
	s := string(f.Level)
	if f.As != "" {
		s += " as `" + strings.ReplaceAll(f.As, "|", "\\|") + "`"
	}
	if f.Note != "" {
		s += ": " + strings.ReplaceAll(f.Note, "|", "\\|")
	}
	return s
}

// Fields is the table of OpenAI's chat request, in the order of its reference.
func Fields() []Field { return published(chatFields) }

// EmbeddingFields is the table of OpenAI's embeddings request.
func EmbeddingFields() []Field { return published(embeddingFields) }

func published(table func() []row) []Field {
	var fs []Field
	for _, r := range table() {
		f := Field{Name: r.name, Neutral: r.neutral, Support: map[string]Support{}}
		for _, kind := range Kinds() {
			x := r.support(kind)
			f.Support[kind] = Support{Level: x.Level, As: x.As, Note: x.Note}
		}
		fs = append(fs, f)
	}
	return fs
}

// row is one line of a table. A kind that it does not name rejects the field.
type row struct {
	name                               string
	neutral                            []string
	hint                               bool   // the kinds that are not named leave it out
	why                                string // the reason of the kinds that reject without their own reason
	anthropic, gemini, cohere, mistral support
}

func (r row) support(kind string) support {
	f := map[string]support{Anthropic: r.anthropic, Gemini: r.gemini, Cohere: r.cohere, Mistral: r.mistral}[kind]
	if f.Level == "" {
		f.Level = Rejected
		if r.hint {
			f.Level = Hint
		}
	}
	if (f.Level == Rejected || f.Level == Hint) && f.Note == "" {
		f.Note = r.why
	}
	f.neutral = r.neutral
	return f
}

// supports returns a table by field, for one kind.
func supports(table func() []row, kind string) map[string]support {
	m := map[string]support{}
	for _, r := range table() {
		m[r.name] = r.support(kind)
	}
	return m
}

// same is a field that a kind supports under OpenAI's own name.
func same(note ...string) support { return support{Level: Supported, Note: strings.Join(note, "")} }

func as(name string, note ...string) support {
	return support{Level: Renamed, As: name, Note: strings.Join(note, "")}
}

func partly(name, note string) support { return support{Level: Partly, As: name, Note: note} }

func not(why string) support { return support{Level: Rejected, Note: why} }

// left is a field that changes no response, and that the kind leaves out.
func left(why string) support { return support{Level: Hint, Note: why} }

// all is a row that is the same for every kind.
func all(name string, f support, neutral ...string) row {
	return row{name: name, neutral: neutral, anthropic: f, gemini: f, cohere: f, mistral: f}
}

// Markdown returns both tables as a page.
func Markdown() string {
	var b strings.Builder
	b.WriteString("# Support of each field\n\n" +
		"Made from `table.go` by `go test ./provider/translate -run TestFieldsPage -update`, and checked against what the code does by `TestFields`.\n\n" +
		"*Rejected* fields get a 422 that names the field. They are left out and listed if the provider's settings have `drop: all`.\n" +
		"*Left out* fields change no response. They are left out and listed, and rejected only with `drop: none`.\n" +
		"A field that is in no table is rejected too. `null` counts as absent and is always accepted.\n")
	for _, table := range []struct {
		title  string
		fields []Field
	}{{"Chat completions", Fields()}, {"Embeddings", EmbeddingFields()}} {
		fmt.Fprintf(&b, "\n## %s\n\n| Field | Always accepted |", table.title)
		for _, kind := range Kinds() {
			fmt.Fprintf(&b, " %s |", Name(kind))
		}
		b.WriteString("\n|---|---|" + strings.Repeat("---|", len(Kinds())) + "\n")
		for _, f := range table.fields {
			neutral := ""
			if len(f.Neutral) > 0 {
				neutral = "`" + strings.Join(f.Neutral, "`, `") + "`"
			}
			fmt.Fprintf(&b, "| `%s` | %s |", f.Name, neutral)
			for _, kind := range Kinds() {
				fmt.Fprintf(&b, " %s |", f.Support[kind])
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}
