package translate_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/ai-identity/ai-identity/provider/translate"
)

// FuzzChat: for every input there is no panic. The output is strict JSON with the same
// turns as the input, and is the same in a second run.
func FuzzChat(f *testing.F) {
	for _, file := range files(f, "testdata/chat/*.txt") {
		f.Add([]byte(open(f, file).get("request")), uint8(0))
		f.Add([]byte(open(f, file).get("request")), uint8(7))
	}
	for _, s := range samples {
		for _, members := range s {
			f.Add(body(false, members), uint8(1))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, what uint8) {
		kind := translate.Kinds()[what%4]
		o := translate.Options{Drop: translate.Drop(what >> 2 % 3)}
		was := bytes.Clone(b)
		r, err := translate.Chat(kind, b, o)
		if !bytes.Equal(b, was) {
			t.Fatal("the body was changed")
		}
		if err != nil {
			var u *translate.Unsupported
			var i *translate.Invalid
			if !errors.As(err, &u) && !errors.As(err, &i) || u != nil && !u.Always && o.Drop == translate.DropAll && bytes.Count(b, []byte(`:`)) < 100 {
				t.Fatalf("%T %v", err, err)
			}
			return
		}
		if !jsontext.Value(r.Body).IsValid() {
			t.Fatalf("not strict JSON: %s", r.Body)
		}
		if o.Drop == translate.DropNothing && r.Dropped != nil {
			t.Fatalf("dropped %v unasked", r.Dropped)
		}
		if strings.ContainsAny(r.Path, " \r\n#") || strings.Contains(r.Path, "..") || !strings.HasPrefix(r.Path, "/v") {
			t.Fatalf("path %q", r.Path)
		}
		checkTurns(t, kind, b, r)
		again, err := translate.Chat(kind, b, o)
		if err != nil || !bytes.Equal(again.Body, r.Body) {
			t.Fatalf("another time: %v\n%s\n%s", err, again.Body, r.Body)
		}
	})
}

// checkTurns counts the turns. At Cohere and Mistral each message is a turn. At the others
// a sequence of one role is one turn, and system messages are separate.
func checkTurns(t *testing.T, kind string, b []byte, r translate.Request) {
	t.Helper()
	var asked struct {
		Messages []struct {
			Role    string
			Content any
		} `json:"messages"`
	}
	var sent struct {
		Messages []jsontext.Value `json:"messages"`
		Contents []jsontext.Value `json:"contents"`
	}
	if json.Unmarshal(b, &asked) != nil || json.Unmarshal(r.Body, &sent) != nil {
		return
	}
	want, last, silent := 0, "", false
	for _, m := range asked.Messages {
		role := m.Role
		if text, ok := m.Content.(string); !ok || strings.TrimSpace(text) == "" {
			silent = true // it may be without content, and is left out then
		}
		if role == "function" {
			continue // left out and listed
		}
		if kind == translate.Anthropic || kind == translate.Gemini {
			if role == "system" || role == "developer" {
				continue
			}
			if role == "tool" {
				role = "user"
			}
			if role == last {
				continue
			}
			last = role
		}
		want++
	}
	if got := len(sent.Messages) + len(sent.Contents); got != want && (got > want || !silent) {
		t.Fatalf("%d turns for %d:\n%s\n%s", got, want, b, r.Body)
	}
}

// FuzzAnswer: for every response there is no panic. The output does not depend on the
// split. It has OpenAI's format, with [DONE] once.
func FuzzAnswer(f *testing.F) {
	for i, kind := range translate.Kinds() {
		for _, file := range files(f, "testdata/answers/"+kind+"/*.txt") {
			_, b, _ := strings.Cut(open(f, file).get("answer"), "\n\n")
			flags := uint8(i)
			if strings.Contains(name(file), "stream") {
				flags |= 4
			}
			if strings.HasPrefix(name(file), "error") {
				flags |= 8
			}
			if strings.HasPrefix(name(file), "embeddings") {
				flags |= 16
			}
			f.Add([]byte(b), flags, uint16(len(b)/2))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, what uint8, at uint16) {
		v := answerVector{status: 200, contentType: "application/json", body: b}
		kind := translate.Kinds()[what%4]
		var err error
		switch {
		case what&16 != 0 && kind != translate.Anthropic:
			v.request, err = translate.Embeddings(kind, []byte(`{"model":"m","input":["a","b"],"encoding_format":"base64"}`), translate.Options{})
		case what&4 != 0:
			v.contentType = "text/event-stream"
			v.request, err = translate.Chat(kind, []byte(`{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true,"stream_options":{"include_usage":true}}`), translate.Options{})
		default:
			v.request, err = translate.Chat(kind, []byte(plainRequest), translate.Options{})
		}
		if err != nil {
			t.Fatal(err)
		}
		if what&8 != 0 {
			v.status = 400
		}
		out, told := v.play(b)
		i := int(at) % (len(b) + 1)
		if cut, also := v.play(b[:i], b[i:]); !bytes.Equal(cut, out) || also != told {
			t.Fatalf("cut at %d:\n%s\n%s\nwhole:\n%s\n%s", i, cut, also, out, told)
		}
		pieces := slices.Collect(slices.Chunk(b, 1+int(at)%13)) // TestCutAnywhere goes byte by byte
		if cut, also := v.play(append(pieces, nil)...); !bytes.Equal(cut, out) || also != told {
			t.Fatalf("in small pieces:\n%s\n%s\nwhole:\n%s\n%s", cut, also, out, told)
		}
		if err := form(out, v.contentType == "text/event-stream" && v.status == 200); err != nil {
			t.Fatalf("%v:\n%s", err, out)
		}
	})
}

// form checks that an OpenAI client can read out.
func form(out []byte, stream bool) error {
	if !stream {
		if !jsontext.Value(out).IsValid() {
			return errors.New("not strict JSON")
		}
		return nil
	}
	done := false // [DONE], or an error instead
	for event := range strings.SplitSeq(string(out), "\n\n") {
		switch {
		case event == "", strings.HasPrefix(event, ":") && !strings.Contains(event, "\n"):
		case done:
			return fmt.Errorf("%q after the end", event)
		case event == "data: [DONE]":
			done = true
		default:
			done = strings.HasPrefix(event, `data: {"error":`)
			data, ok := strings.CutPrefix(event, "data: ")
			if !ok || strings.Contains(data, "\n") || !jsontext.Value(data).IsValid() {
				return fmt.Errorf("event %q", event)
			}
		}
	}
	if !done {
		return errors.New("neither [DONE] nor an error at the end")
	}
	return nil
}
