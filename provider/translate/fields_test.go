package translate_test

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/ai-identity/ai-identity/provider/translate"
)

// samples are values of each field, as members of the request. A supported field supports
// all of them, and a rejected field none. A partly supported field has at least one of
// each.
var samples = map[string][]string{
	"model":                                                          {`"model":"gemini-2.5-pro"`},
	"messages":                                                       {user(`"x"`)},
	"messages[].role":                                                {`"messages":[{"role":"developer","content":"a"},{"role":"system","content":"b"},{"role":"user","content":"c"}]`, `"messages":[{"role":"function","name":"f","content":"a"},{"role":"user","content":"x"}]`},
	"messages[].name":                                                {`"messages":[{"role":"user","name":"ann","content":"x"}]`, `"messages":[{"role":"system","name":"ann","content":"x"},{"role":"user","content":"x"}]`},
	"messages[].content (text)":                                      {user(`[{"type":"text","text":"x"}]`)},
	"messages[].content[].image_url":                                 {user(`[{"type":"image_url","image_url":{"url":"https://example.com/a"}}]`), user(`[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]`), user(`[{"type":"image_url","image_url":{"url":"data:image/bmp;base64,AAAA"}}]`)},
	"messages[].content[].image_url.detail":                          {image("low"), image("high"), image("original")},
	"messages[].content[].input_audio":                               {user(`[{"type":"input_audio","input_audio":{"data":"AAAA","format":"mp3"}}]`)},
	"messages[].content[].file.file_data":                            {user(`[{"type":"file","file":{"file_data":"data:application/pdf;base64,AAAA"}}]`), user(`[{"type":"file","file":{"file_data":"data:application/zip;base64,AAAA"}}]`)},
	"messages[].content[].file.filename":                             {user(`[{"type":"file","file":{"file_data":"data:application/pdf;base64,AAAA","filename":"a"}}]`)},
	"messages[].content[].file.file_id":                              {user(`[{"type":"file","file":{"file_id":"file-1"}}]`)},
	"messages[].content[].prompt_cache_breakpoint":                   {user(`[{"type":"text","text":"x","prompt_cache_breakpoint":{"mode":"explicit"}}]`), user(`[{"type":"text","text":"x","prompt_cache_breakpoint":{"mode":"explicit","ttl":"12h"}}]`)},
	"messages[].content[].cache_control":                             {user(`[{"type":"text","text":"x","cache_control":{"type":"ephemeral"}}]`)},
	"messages[].tool_calls":                                          {called(`"type":"function","function":{"name":"f","arguments":"{}"}`)},
	"messages[].tool_calls[] (custom)":                               {`"messages":[{"role":"user","content":"x"},{"role":"assistant","tool_calls":[{"id":"c","type":"custom","custom":{"name":"f","input":"x"}}]},{"role":"tool","tool_call_id":"c","content":"y"},{"role":"user","content":"x"}]`},
	"messages[] of role tool":                                        {called(`"function":{"name":"f","arguments":"{}"}`)},
	"messages[].refusal":                                             {assistant(`"refusal":"no"`)},
	"messages[].audio":                                               {assistant(`"content":"x","audio":{"id":"a"}`)},
	"messages[].annotations":                                         {assistant(`"content":"x","annotations":[{"type":"url_citation"}]`)},
	"messages[].function_call":                                       {assistant(`"content":"x","function_call":{"name":"f","arguments":"{}"}`)},
	"messages[].reasoning_content":                                   {assistant(`"content":"x","reasoning_content":"r"`)},
	"messages[].reasoning_content/anthropic":                         {assistant(`"content":"x","reasoning_content":"r"`), assistant(`"content":"x","reasoning_content":"r","thinking_blocks":[{"type":"thinking","thinking":"r","signature":"s"}]`)},
	"messages[].thinking_blocks":                                     {assistant(`"content":"x","thinking_blocks":[{"index":0,"type":"thinking","thinking":"r","signature":"s"}]`)},
	"messages[].extra_content.google.thought_signature":              {assistant(`"content":"x","extra_content":{"google":{"thought_signature":"c2ln"}}`)},
	"messages[].tool_calls[].extra_content.google.thought_signature": {called(`"type":"function","function":{"name":"f","arguments":"{}"},"extra_content":{"google":{"thought_signature":"c2ln"}}`)},
	"messages[].extra_content.mistral.signature":                     {assistant(`"content":"x","reasoning_content":"r","extra_content":{"mistral":{"signature":"c2ln"}}`)},
	"audio":                  {`"audio":{"voice":"alloy","format":"wav"}`},
	"frequency_penalty":      {`"frequency_penalty":0.5`},
	"function_call":          {`"function_call":"auto"`},
	"functions":              {`"functions":[{"name":"f"}]`},
	"logit_bias":             {`"logit_bias":{"1":1}`},
	"logprobs":               {`"logprobs":true`},
	"max_completion_tokens":  {`"max_completion_tokens":7`},
	"max_tokens":             {`"max_tokens":7`},
	"metadata":               {`"metadata":{"user_id":"u"}`, `"metadata":{"a":"b"}`},
	"modalities":             {`"modalities":["text","audio"]`},
	"moderation":             {`"model":"m-1","moderation":{"model":"m"}`},
	"n":                      {`"n":2`},
	"parallel_tool_calls":    {`"parallel_tool_calls":false,` + two},
	"prediction":             {`"prediction":{"type":"content","content":"x"}`, `"prediction":{"type":"content","content":[{"type":"text","text":"x"},{"type":"text","text":"y"}]}`},
	"presence_penalty":       {`"presence_penalty":-0.5`},
	"prompt_cache_key":       {`"prompt_cache_key":"k"`},
	"prompt_cache_options":   {`"prompt_cache_options":{"mode":"implicit"}`, `"prompt_cache_options":{"ttl":"12h"}`},
	"prompt_cache_retention": {`"prompt_cache_retention":"24h"`},
	"reasoning_effort":       {effort("none"), effort("minimal"), effort("low"), effort("medium"), effort("high"), effort("xhigh"), effort("max")},
	"response_format":        {schema(`"name":"a","schema":{"type":"object"},"strict":true`), `"response_format":{"type":"json_object"}`},
	"response_format.json_schema.description": {schema(`"name":"a","description":"d","schema":{"type":"object"}`)},
	"safety_identifier":                       {`"safety_identifier":"u"`},
	"seed":                                    {`"seed":1`},
	"service_tier":                            {`"service_tier":"default"`, `"service_tier":"scale"`},
	"stop":                                    {`"stop":"x"`, `"stop":["x","y"]`},
	"store":                                   {`"store":true`},
	"stream":                                  {`"stream":true`},
	"stream_options.include_usage":            {`"stream":true,"stream_options":{"include_usage":true}`},
	"stream_options.include_obfuscation":      {`"stream":true,"stream_options":{"include_obfuscation":true}`},
	"temperature":                             {`"temperature":0.1`},
	"temperature/anthropic":                   {`"model":"claude-sonnet-4-6","temperature":0.1`, `"model":"claude-opus-4-7","temperature":0.1`, `"model":"claude-haiku-4-5","temperature":1.7`, `"model":"claude-haiku-4-5","temperature":0.5,"reasoning_effort":"low"`},
	"top_p/anthropic":                         {`"model":"claude-3-7-sonnet-20250219","top_p":0.1`, `"model":"claude-sonnet-5","top_p":0.1`, `"model":"claude-haiku-4-5","temperature":0.5,"top_p":0.1`, `"model":"claude-haiku-4-5","reasoning_effort":"low","top_p":0.1`},
	"tool_choice":                             {`"tool_choice":"required",` + function, `"tool_choice":"none",` + function, `"tool_choice":{"type":"function","function":{"name":"f"}},` + function},
	"tool_choice.allowed_tools":               {`"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"f"}}]}},` + function},
	"tools":                                   {function},
	"tools[] (custom)":                        {`"tools":[{"type":"custom","custom":{"name":"f"}}]`},
	"tools[].function.strict":                 {`"tools":[{"type":"function","function":{"name":"f","strict":true}}]`, `"tools":[{"type":"function","function":{"name":"f","strict":true}},{"type":"function","function":{"name":"g"}}]`},
	"tools[].cache_control":                   {`"tools":[{"type":"function","function":{"name":"f"},"cache_control":{"type":"ephemeral"}}]`},
	"top_logprobs":                            {`"logprobs":true,"top_logprobs":2`},
	"top_p":                                   {`"top_p":0.5`},
	"user":                                    {`"user":"u"`},
	"verbosity":                               {`"verbosity":"low"`},
	"web_search_options":                      {`"web_search_options":{}`},
	"messages[].name (assistant)":             {assistant(`"content":"x","name":"ann"`)},
	"messages (order)":                        {user(`"x"`)},
	"messages (order)/anthropic":              {user(`"x"`), `"messages":[{"role":"system","content":"x"}]`, `"model":"claude-opus-4-6","messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}]`},
	"messages (order)/gemini":                 {user(`"x"`), `"messages":[{"role":"system","content":"x"}]`, user(`""`)},
	"messages (order)/mistral":                {user(`"x"`), `"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}]`, strings.Replace(called(`"function":{"name":"f","arguments":"{}"}`), `"ok"}`, `"ok"},{"role":"user","content":"y"}`, 1)},
	"messages[].prefix":                       {`"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y","prefix":true}]`},
	"messages[].cache_control":                {`"messages":[{"role":"user","content":"x","cache_control":{"type":"ephemeral"}}]`},
	"frequency_penalty/cohere":                {`"frequency_penalty":0.5`, `"frequency_penalty":1.5`},
	"presence_penalty/cohere":                 {`"presence_penalty":0.5`, `"presence_penalty":-0.5`},
	"n/gemini":                                {`"n":2`, `"n":9`},
	"seed/gemini":                             {`"seed":1`, `"seed":3000000000`},
	"seed/cohere":                             {`"seed":1`, `"seed":-1`},
	"seed/mistral":                            {`"seed":1`, `"seed":-1`},
	"stop/anthropic":                          {`"stop":"x"`, `"stop":["x","\n"]`},
	"stop/gemini":                             {`"stop":"x"`, `"stop":["1","2","3","4","5","6"]`},
	"stop/cohere":                             {`"stop":"x"`, `"stop":["1","2","3","4","5","6"]`},
	"temperature/mistral":                     {`"temperature":0.1`, `"temperature":1.7`},
	"random_seed":                             {`"random_seed":1`},
	"safe_prompt":                             {`"safe_prompt":true`},
	"prompt_mode":                             {`"prompt_mode":"reasoning"`},
	"tools/anthropic":                         {function, `"tools":[{"type":"function","function":{"name":"f","parameters":{"anyOf":[{"type":"object"}]}}}]`, `"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"string"}}}]`},
	"response_format/anthropic":               {schema(`"name":"a","schema":{"type":"object"}`), `"response_format":{"type":"json_object"}`, `"response_format":{"type":"json_object"},` + function},
	"input/gemini":                            {`"input":"x"`, `"input":["x"` + strings.Repeat(`,"x"`, 99) + `]`, `"input":["x"` + strings.Repeat(`,"x"`, 100) + `]`, `"input":[1,2]`},
	"input/cohere":                            {`"input":"x"`, `"input":["x"` + strings.Repeat(`,"x"`, 95) + `]`, `"input":["x"` + strings.Repeat(`,"x"`, 96) + `]`, `"input":[1,2]`},
	"parallel_tool_calls/gemini":              {`"parallel_tool_calls":false,` + two, `"parallel_tool_calls":false,` + function, `"parallel_tool_calls":false,"tool_choice":{"type":"function","function":{"name":"f"}},` + two},
	"parallel_tool_calls/cohere":              {`"parallel_tool_calls":false,` + two, `"parallel_tool_calls":false,` + function, `"parallel_tool_calls":false,"tool_choice":{"type":"function","function":{"name":"f"}},` + two},

	"input":           {`"input":"x"`, `"input":["x","y"]`, `"input":[1,2]`},
	"dimensions":      {`"dimensions":8`},
	"encoding_format": {`"encoding_format":"base64"`, `"encoding_format":"float"`},
	"input_type":      {`"input_type":"clustering"`},
}

const two = `"tools":[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"g"}}]`
const function = `"tools":[{"type":"function","function":{"name":"f"}}]`

func user(content string) string {
	if rest, ok := strings.CutSuffix(content, "]"); ok { // the rest of the list is kept
		content = rest + `,{"type":"text","text":"x"}]`
	}
	return `"messages":[{"role":"user","content":` + content + `}]`
}
func image(detail string) string {
	return `"model":"gemini-3-pro",` + user(`[{"type":"image_url","image_url":{"url":"https://example.com/a","detail":"`+detail+`"}}]`)
}
func assistant(members string) string {
	return `"messages":[{"role":"user","content":"x"},{"role":"assistant",` + members + `},{"role":"user","content":"y"}]`
}
func called(members string) string {
	return `"messages":[{"role":"user","content":"x"},{"role":"assistant","content":null,"tool_calls":[{"id":"abcdefghi",` + members + `}]},{"role":"tool","tool_call_id":"abcdefghi","content":"ok"}]`
}
func effort(e string) string { return `"reasoning_effort":"` + e + `"` }
func schema(s string) string {
	return `"response_format":{"type":"json_schema","json_schema":{` + s + `}}`
}

// body is a plain request with some members replaced.
func body(embeddings bool, members string) []byte {
	b := "{" + members
	if !strings.Contains(members, `"model"`) {
		b += `,"model":"m-1"`
	}
	switch {
	case embeddings && !strings.Contains(members, `"input"`):
		b += `,"input":"hi"`
	case !embeddings && !strings.Contains(members, `"messages"`):
		b += `,"messages":[{"role":"user","content":"hi"}]`
	}
	return []byte(strings.Replace(b+"}", "{,", "{", 1))
}

// TestFields compares the table with the code: each field behaves as its line in the table,
// and each sample has a line.
func TestFields(t *testing.T) {
	seen := map[string]bool{}
	for _, table := range []struct {
		embeddings bool
		convert    func(string, []byte, translate.Options) (translate.Request, error)
		fields     []translate.Field
	}{{false, translate.Chat, translate.Fields()}, {true, translate.Embeddings, translate.EmbeddingFields()}} {
		for _, f := range table.fields {
			seen[f.Name] = true
			if len(samples[f.Name]) == 0 {
				t.Errorf("%s has no samples", f.Name)
			}
			for _, kind := range translate.Kinds() {
				if table.embeddings && kind == translate.Anthropic {
					if _, err := table.convert(kind, body(true, ""), translate.Options{}); err == nil {
						t.Errorf("Anthropic has embeddings")
					}
					continue
				}
				t.Run(f.Name+"/"+kind, func(t *testing.T) {
					went, not := 0, 0
					ss := samples[f.Name+"/"+kind]
					if ss == nil {
						ss = samples[f.Name]
					}
					for _, s := range ss {
						b := body(table.embeddings, s)
						_, err := table.convert(kind, b, translate.Options{Drop: translate.DropNothing})
						var u *translate.Unsupported
						if v := f.Support[kind].Level; v == translate.Hint || v == translate.Rejected {
							r, err := table.convert(kind, b, translate.Options{})
							if v == translate.Hint && (err != nil || len(r.Dropped) == 0 || !about(f.Name, r.Dropped[0])) || v == translate.Rejected && err == nil {
								t.Errorf("%s, as it is by default: %v, %v; the table says %s", b, r.Dropped, err, v)
							}
						}
						switch {
						case err == nil:
							went++
						case !errors.As(err, &u):
							t.Errorf("%s: %v", b, err)
						default:
							not++
							if u.Kind != kind || u.Why == "" || !about(f.Name, u.Field) {
								t.Errorf("%s: refused as %q of %s (%s)", b, u.Field, u.Kind, u.Why)
							}
							if f.Support[kind].Level == translate.Rejected && u.Field == f.Name && u.Why != f.Support[kind].Note {
								t.Errorf("%s: refused because %q; the table says %q", b, u.Why, f.Support[kind].Note)
							}
							r, err := table.convert(kind, b, translate.Options{Drop: translate.DropAll})
							if u.Always { // without it the request has another meaning
								if err == nil {
									t.Errorf("%s: left out, although it cannot be", b)
								}
								continue
							}
							if err != nil || len(r.Dropped) == 0 || !about(f.Name, r.Dropped[0]) {
								t.Errorf("%s, to be dropped: %v, %v", b, r.Dropped, err)
							}
						}
					}
					ok := map[translate.Level]bool{
						translate.Supported: went > 0 && not == 0,
						translate.Renamed:   went > 0 && not == 0,
						translate.Partly:    went > 0 && not > 0,
						translate.Rejected:  went == 0 && not > 0,
						translate.Hint:      went == 0 && not > 0,
					}[f.Support[kind].Level]
					// Where all values of a role or an effort are supported, there is no
					// sample to reject.
					if !ok {
						t.Errorf("the table says %s; of the samples %d went and %d did not", f.Support[kind].Level, went, not)
					}
					if v := f.Support[kind].Level; (v == translate.Rejected || v == translate.Hint) && f.Support[kind].Note == "" {
						t.Error("the table does not say why")
					}
				})
			}
			for _, n := range f.Neutral {
				b := body(table.embeddings, `"`+f.Name+`":`+n)
				if strings.ContainsAny(f.Name, "[.") {
					continue // tested in testdata/chat/neutral.txt
				}
				for _, kind := range translate.Kinds() {
					if _, err := table.convert(kind, b, translate.Options{}); err != nil {
						t.Errorf("%s to %s: %v", b, kind, err)
					}
				}
			}
		}
	}
	for name := range samples {
		if n, _, _ := strings.Cut(name, "/"); !seen[n] {
			t.Errorf("a sample of %s, which is in no table", name)
		}
	}
}

var number = regexp.MustCompile(`\[\d+\]`)

// about reports whether an error's path belongs to the table's field: the field, a parent
// or a child.
func about(field, path string) bool {
	field, _, _ = strings.Cut(field, " ")
	path = number.ReplaceAllString(path, "[]")
	return strings.HasPrefix(path, field) || strings.HasPrefix(field, path) || strings.HasPrefix(path, strings.TrimSuffix(field, "[]")) ||
		field == "top_logprobs" && path == "logprobs"
}

// TestFieldsPage keeps FIELDS.md equal to the table.
func TestFieldsPage(t *testing.T) {
	got := translate.Markdown()
	if *update {
		if err := os.WriteFile("FIELDS.md", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("FIELDS.md")
	if err != nil || string(want) != got {
		t.Errorf("FIELDS.md is not what table.go says (%v); run go test ./provider/translate -run TestFieldsPage -update", err)
	}
}

// TestNothingLost gives each official field a value. Each must be sent to the provider or
// be rejected, since fields that are not taken are rejected. This holds for unknown names
// too.
func TestNothingLost(t *testing.T) {
	places := []string{
		`"zzz":1`,
		`"messages":[{"role":"user","content":"x","zzz":1}]`,
		`"messages":[{"role":"system","content":"x","zzz":1},{"role":"user","content":"x"}]`,
		`"messages":[{"role":"user","content":[{"type":"text","text":"x","zzz":1}]}]`,
		`"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://a.b/c","zzz":1}}]}]`,
		user(`[{"type":"zzz"}]`),
		assistant(`"content":"x","zzz":1`),
		called(`"function":{"name":"f","arguments":"{}"},"zzz":1`),
		called(`"function":{"name":"f","arguments":"{}","zzz":1}`),
		strings.Replace(called(`"function":{"name":"f","arguments":"{}"}`), `"content":"ok"`, `"content":"ok","zzz":1`, 1),
		`"tools":[{"type":"function","function":{"name":"f"},"zzz":1}]`,
		`"tools":[{"type":"function","function":{"name":"f","zzz":1}}]`,
		`"tools":[{"type":"zzz"}]`,
		`"tool_choice":{"type":"function","function":{"name":"f"},"zzz":1},` + function,
		`"tool_choice":{"type":"function","function":{"name":"f","zzz":1}},` + function,
		`"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"function":{"name":"f"}}],"zzz":1}},` + function,
		`"response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{},"zzz":1}}`,
		`"response_format":{"type":"text","zzz":1}`,
		`"stream":true,"stream_options":{"zzz":1}`,
		assistant(`"content":"x","extra_content":{"zzz":1}`),
	}
	for _, p := range places {
		for _, kind := range translate.Kinds() {
			_, err := translate.Chat(kind, body(false, p), translate.Options{})
			var u *translate.Unsupported
			if !errors.As(err, &u) {
				t.Errorf("%s to %s: %v", p, kind, err)
			}
			r, err := translate.Chat(kind, body(false, p), translate.Options{Drop: translate.DropAll})
			if err != nil || len(r.Dropped) == 0 || strings.Contains(string(r.Body), "zzz") {
				t.Errorf("%s to %s, to be dropped: %q, %v", p, kind, r.Dropped, err)
			}
			if !jsontext.Value(r.Body).IsValid() {
				t.Errorf("%s to %s: not JSON: %s", p, kind, r.Body)
			}
		}
	}
}

// TestManyFields: the list of fields left out is bounded, and making it costs no more than
// reading the request.
func TestManyFields(t *testing.T) {
	var b strings.Builder
	for i := range 200_000 {
		fmt.Fprintf(&b, `"f%d":1,`, i)
	}
	r, err := translate.Chat(translate.Mistral, body(false, strings.TrimSuffix(b.String(), ",")), translate.Options{Drop: translate.DropAll})
	var u *translate.Unsupported
	if !errors.As(err, &u) || u.Field != "f100" || r.Dropped != nil {
		t.Errorf("%v, %d dropped", err, len(r.Dropped))
	}
}
