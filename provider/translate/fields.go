package translate

import (
	"fmt"
	"strings"
)

// Verdict is what becomes of a field.
type Verdict string

// The verdicts. Refused is a 422, or left out and listed if the org allows that.
const (
	Carried Verdict = "carried" // under its own name, or by what the gateway does itself
	Renamed Verdict = "renamed" // the same under another name or in another form
	Partly  Verdict = "partly"  // some values; the others are refused
	Refused Verdict = "refused"
	Hint    Verdict = "left out" // it changes no response: left out and listed, refused if the org drops nothing
)

// fate is what becomes of one field at one kind.
type fate struct {
	Verdict Verdict
	As      string // the kind's name for it
	Note    string // why it is refused, or what else there is to know
	neutral []string
}

// idle says whether v asks for what happens without it.
func (f fate) idle(v raw) bool {
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

// Field is one field of OpenAI's request and its fate for each kind. A nested
// field has a path: "messages[].name".
type Field struct {
	Name    string
	Neutral []string // values that ask for what happens anyway: always accepted
	Fates   map[string]Fate
}

// Fate is what becomes of a field at a kind.
type Fate struct {
	Verdict Verdict
	As      string // the kind's own field; empty: none
	Note    string // why it is refused, or what else there is to know
}

func (f Fate) String() string {
	s := string(f.Verdict)
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
		f := Field{Name: r.name, Neutral: r.neutral, Fates: map[string]Fate{}}
		for _, kind := range Kinds() {
			x := r.fate(kind)
			f.Fates[kind] = Fate{Verdict: x.Verdict, As: x.As, Note: x.Note}
		}
		fs = append(fs, f)
	}
	return fs
}

// row is one line of a table. A kind that it does not name refuses the field.
type row struct {
	name                               string
	neutral                            []string
	hint                               bool   // the kinds that are not named leave it out
	why                                string // of the kinds that refuse without a word of their own
	anthropic, gemini, cohere, mistral fate
}

func (r row) fate(kind string) fate {
	f := map[string]fate{Anthropic: r.anthropic, Gemini: r.gemini, Cohere: r.cohere, Mistral: r.mistral}[kind]
	if f.Verdict == "" {
		f.Verdict = Refused
		if r.hint {
			f.Verdict = Hint
		}
	}
	if (f.Verdict == Refused || f.Verdict == Hint) && f.Note == "" {
		f.Note = r.why
	}
	f.neutral = r.neutral
	return f
}

// fates are a table's, by field, for one kind.
func fates(table func() []row, kind string) map[string]fate {
	m := map[string]fate{}
	for _, r := range table() {
		m[r.name] = r.fate(kind)
	}
	return m
}

// same is a field that a kind carries under OpenAI's own name.
func same(note ...string) fate { return fate{Verdict: Carried, Note: strings.Join(note, "")} }

func as(name string, note ...string) fate {
	return fate{Verdict: Renamed, As: name, Note: strings.Join(note, "")}
}

func partly(name, note string) fate { return fate{Verdict: Partly, As: name, Note: note} }

func not(why string) fate { return fate{Verdict: Refused, Note: why} }

// left is a field that changes no response, and that the kind leaves out.
func left(why string) fate { return fate{Verdict: Hint, Note: why} }

// all is a row that says the same of every kind.
func all(name string, f fate, neutral ...string) row {
	return row{name: name, neutral: neutral, anthropic: f, gemini: f, cohere: f, mistral: f}
}

// Markdown is both tables as a page.
func Markdown() string {
	var b strings.Builder
	b.WriteString("# What becomes of each field\n\n" +
		"Made from `table.go` by `go test ./provider/translate -run TestFieldsPage -update`, and checked against what the code does by `TestFates`.\n\n" +
		"*Refused* is answered with 422 and names the field, or is left out and listed if the provider's settings have `drop: all`. " +
		"*Left out* is for what changes no response: it is left out and listed, and refused only with `drop: none`. " +
		"A field that is in no table is refused as well. `null` says nothing and is always accepted.\n")
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
				fmt.Fprintf(&b, " %s |", f.Fates[kind])
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}
