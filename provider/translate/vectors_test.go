package translate_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/ai-identity/ai-identity/provider/translate"
)

var update = flag.Bool("update", false, "rewrite the wants of testdata and FIELDS.md")

// TestRequests plays testdata/chat and testdata/embeddings. Each file is one request of
// OpenAI's and what each provider gets for it, side by side:
//
//	options       a line each: "drop all", "drop none", "max 1024"
//	request       OpenAI's body
//	want KIND     the method and path, headers, dropped fields, an empty line, the body; or the error
func TestRequests(t *testing.T) {
	for _, folder := range []string{"chat", "embeddings"} {
		for _, file := range files(t, "testdata/"+folder+"/*.txt") {
			t.Run(folder+"/"+name(file), func(t *testing.T) {
				s := open(t, file)
				convert := translate.Chat
				if folder == "embeddings" {
					convert = translate.Embeddings
				}
				for _, kind := range translate.Kinds() {
					s.want("want "+kind, sent(convert(kind, []byte(s.get("request")), options(t, s.get("options")))))
				}
				s.close()
			})
		}
	}
}

// TestAnswers plays testdata/answers/KIND. Each file is a response:
//
//	request       OpenAI's body, if it is not the plain one
//	answer        the status and the content type, an empty line, the provider's bytes
//	want          OpenAI's, JSON indented
//	want told     what the answer says of itself: status, content type, model, usage, what is lost
func TestAnswers(t *testing.T) {
	for _, kind := range translate.Kinds() {
		for _, file := range files(t, "testdata/answers/"+kind+"/*.txt") {
			t.Run(kind+"/"+name(file), func(t *testing.T) {
				s := open(t, file)
				v := vector(t, kind, s)
				out, told := v.play(v.body)
				s.want("want", readable(out))
				s.want("want told", told)
				s.close()
			})
		}
	}
}

// TestCutAnywhere splits every response in two at every byte, and into single bytes: the
// output is the same.
func TestCutAnywhere(t *testing.T) {
	for _, kind := range translate.Kinds() {
		for _, file := range files(t, "testdata/answers/"+kind+"/*.txt") {
			t.Run(kind+"/"+name(file), func(t *testing.T) {
				v := vector(t, kind, open(t, file))
				body := v.body
				if len(body) > 4000 && testing.Short() {
					t.Skip("long")
				}
				want, told := v.play(body)
				var single [][]byte
				for i := range body {
					single = append(single, body[i:i+1])
					if out, also := v.play(body[:i], body[i:]); !bytes.Equal(out, want) || also != told {
						t.Fatalf("cut at %d:\n%s\n%s\nwhole:\n%s\n%s", i, out, also, want, told)
					}
				}
				if out, also := v.play(single...); !bytes.Equal(out, want) || also != told {
					t.Fatalf("byte by byte:\n%s\n%s\nwhole:\n%s\n%s", out, also, want, told)
				}
				// The protocol also has the line ends of Windows and of the older Mac.
				for _, end := range []string{"\r\n", "\r"} {
					if v.contentType != "text/event-stream" {
						break
					}
					if out, _ := v.play(bytes.ReplaceAll(body, []byte("\n"), []byte(end))); !bytes.Equal(out, want) {
						t.Fatalf("with %q:\n%s\nwant\n%s", end, out, want)
					}
				}
			})
		}
	}
}

type answerVector struct {
	request     translate.Request
	status      int
	contentType string
	body        []byte
}

const plainRequest = `{"model":"m-1","messages":[{"role":"user","content":"hi"}]}`

func vector(t testing.TB, kind string, s *script) answerVector {
	t.Helper()
	body, convert := s.get("request"), translate.Chat
	if body == "" {
		body = plainRequest
		if strings.Contains(s.get("answer"), "text/event-stream") {
			body = strings.TrimSuffix(plainRequest, "}") + `,"stream":true,"stream_options":{"include_usage":true}}`
		}
	}
	if strings.Contains(body, `"input"`) {
		convert = translate.Embeddings
	}
	r, err := convert(kind, []byte(body), translate.Options{})
	if err != nil {
		t.Fatal(err)
	}
	head, rest, _ := strings.Cut(s.get("answer"), "\n\n")
	code, contentType, _ := strings.Cut(strings.TrimSpace(head), " ")
	status, err := strconv.Atoi(code)
	if err != nil {
		t.Fatal(err)
	}
	return answerVector{request: r, status: status, contentType: contentType, body: []byte(rest)}
}

func (v answerVector) play(pieces ...[]byte) (out []byte, told string) {
	a := newAnswer(v.request, v.status, v.contentType)
	for i, p := range pieces {
		out = append(out, a.Chunk(p, i == len(pieces)-1)...)
	}
	return out, toldBy(a)
}

func newAnswer(r translate.Request, status int, contentType string) *translate.Response {
	return r.Answer(status, contentType,
		func() time.Time { return time.Unix(1_700_000_000, 0) },
		func() string { return "chatcmpl-made" })
}

func toldBy(a *translate.Response) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s\nmodel %s\n", a.Status(), a.ContentType(), a.Model())
	if in, out, cached, written, reasoning, known := a.Usage(); known {
		fmt.Fprintf(&b, "input %d (cached %d, written %d), output %d (reasoning %d)\n", in, cached, written, out, reasoning)
	}
	for _, l := range a.Lost() {
		fmt.Fprintf(&b, "lost %s\n", l)
	}
	if d := a.RetryAfter(); d > 0 {
		fmt.Fprintf(&b, "retry after %s\n", d)
	}
	return b.String()
}

func options(t testing.TB, text string) (o translate.Options) {
	for line := range strings.Lines(text) {
		switch word, rest, _ := strings.Cut(strings.TrimSpace(line), " "); word {
		case "drop":
			o.Drop = map[string]translate.Drop{"": translate.DropAll, "all": translate.DropAll, "none": translate.DropNothing, "hints": translate.DropHints}[rest]
		case "max":
			o.DefaultMaxTokens, _ = strconv.ParseInt(rest, 10, 64)
		case "version":
			o.GeminiVersion = rest
		default:
			t.Fatalf("option %q", line)
		}
	}
	return o
}

// sent shows what a provider gets.
func sent(r translate.Request, err error) string {
	var u *translate.Unsupported
	var i *translate.Invalid
	switch {
	case errors.As(err, &u):
		return "422 " + err.Error() + "\n"
	case errors.As(err, &i):
		return "400 " + err.Error() + "\n"
	case err != nil:
		return err.Error() + "\n"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "POST %s\n", r.Path)
	for _, k := range slices.Sorted(maps.Keys(r.Header)) {
		if k != "content-type" {
			fmt.Fprintf(&b, "%s: %s\n", k, r.Header[k])
		}
	}
	for _, d := range r.Dropped {
		fmt.Fprintf(&b, "dropped %s\n", d)
	}
	b.WriteString("\n" + indent(r.Body) + "\n")
	return b.String()
}

func indent(b []byte) string {
	v := jsontext.Value(bytes.Clone(b))
	if err := v.Indent(jsontext.WithIndent("  ")); err != nil {
		return "NOT JSON: " + err.Error() + "\n" + string(b)
	}
	return string(v)
}

// readable is a response for a person: a stream unchanged, JSON indented.
func readable(out []byte) string {
	if bytes.HasPrefix(out, []byte("{")) {
		return indent(out) + "\n"
	}
	return string(out)
}

func files(t testing.TB, pattern string) []string {
	t.Helper()
	fs, err := filepath.Glob(pattern)
	if err != nil || len(fs) == 0 {
		t.Fatalf("no files %s: %v", pattern, err)
	}
	return fs
}

func name(file string) string { return strings.TrimSuffix(filepath.Base(file), ".txt") }

// script is a file of testdata.
type script struct {
	t    testing.TB
	file string
	ar   *txtar.Archive
}

func open(t testing.TB, file string) *script {
	t.Helper()
	ar, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return &script{t: t, file: file, ar: ar}
}

func (s *script) get(section string) string {
	for _, f := range s.ar.Files {
		if f.Name == section {
			return string(f.Data)
		}
	}
	return ""
}

func (s *script) want(section, got string) {
	s.t.Helper()
	if !strings.HasSuffix(got, "\n") {
		got += "\n"
	}
	if *update {
		i := slices.IndexFunc(s.ar.Files, func(f txtar.File) bool { return f.Name == section })
		if i < 0 {
			i = len(s.ar.Files)
			s.ar.Files = append(s.ar.Files, txtar.File{Name: section})
		}
		s.ar.Files[i].Data = []byte(got)
		return
	}
	if diff := cmp.Diff(s.get(section), got); diff != "" {
		s.t.Errorf("%s (-want +got):\n%s", section, diff)
	}
}

func (s *script) close() {
	if *update {
		if err := os.WriteFile(s.file, txtar.Format(s.ar), 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
}
