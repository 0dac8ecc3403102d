package provider_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/provider"
)

func TestLoadFile(t *testing.T) {
	ps, err := provider.LoadFile([]byte(`
# All that a provider can have.
providers:
- name: openai
  kind: openai
  base_url: https://api.openai.com/v1
  models: ["gpt-*", "o*", text-embedding-3-small]
  hosts: [api.openai.com]
  headers:
    X-Team: blue
  settings:
    inject_usage: true
    query: {api-version: "2026-01-01"}
  credential: {env: OPENAI_API_KEY}
- {name: local, kind: custom, base_url: 'http://127.0.0.1:8000', settings: {auth: {type: none}, paths: {/v1/chat/completions: /api/chat}}}
- name: filed
  kind: anthropic
  base_url: https://api.anthropic.com
  credential:
    file: /run/secrets/anthropic
- name: inline
  kind: gemini
  base_url: https://generativelanguage.googleapis.com
  credential: {secret: "hunter2"}
`))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range ps {
		got = append(got, fmt.Sprintf("%s %s %s %v %v %v %s env=%s file=%s secret=%s", p.Name, p.Kind, p.BaseURL, p.Models, p.Hosts, p.HeaderValues(), p.Settings, p.Credential.Env, p.Credential.File, p.Credential.Secret.Reveal()))
	}
	want := `openai openai https://api.openai.com/v1 [gpt-* o* text-embedding-3-small] [api.openai.com] map[x-team:blue] {"query":{"api-version":"2026-01-01"},"inject_usage":true} env=OPENAI_API_KEY file= secret=
local custom http://127.0.0.1:8000 [] [] map[] {"auth":{"type":"none"},"paths":{"/v1/chat/completions":"/api/chat"}} env= file= secret=
filed anthropic https://api.anthropic.com [] [] map[]  env= file=/run/secrets/anthropic secret=
inline gemini https://generativelanguage.googleapis.com [] [] map[]  env= file= secret=hunter2`
	if s := strings.Join(got, "\n"); s != want {
		t.Errorf("got\n%s\nwant\n%s", s, want)
	}
	if s := fmt.Sprintf("%+v %#v", ps, ps); strings.Contains(s, "hunter2") {
		t.Error("the secret prints itself")
	}
	for _, empty := range []string{"", "providers: []\n", "# nothing\n", "providers:\n"} {
		if ps, err := provider.LoadFile([]byte(empty)); err != nil || len(ps) != 0 {
			t.Errorf("%q: %v %v", empty, ps, err)
		}
	}
}

// TestLoadFileErrors: each error has its line and no secret.
func TestLoadFileErrors(t *testing.T) {
	const good = "providers:\n- name: a\n  kind: openai\n  base_url: https://a.example/v1\n"
	for _, c := range []struct{ name, text, want string }{
		{"an unknown field", good + "  api_key: hunter2\n", `line 5: unknown field "api_key"`},
		{"an unknown field above", "provider:\n- name: a\n", `line 1: unknown field "provider"`},
		{"an unknown setting", good + "  settings:\n    inject: true\n", `line 6: unknown field "inject"`},
		{"an unknown place for a credential", good + "  credential: {secret: hunter2, vault: x}\n", `line 5: unknown field "vault"`},
		{"a field twice", good + "  kind: openai\n", `line 5: the field "kind" is repeated`},
		{"a secret for a field", good + "  credential: {sk-hunter2}\n", "line 5: unknown field"},
		{"a list for a string", good + "  credential: {secret: [hunter2]}\n", "line 5: "},
		{"a string for a list", good + "  models: hunter2\n", "line 5: "},
		{"broken YAML", good + "  models: [hunter2\n", "line "},
		{"an alias of itself", "providers:\n- &x\n  settings: *x\n", "line 2: anchors, aliases and tags are not accepted"},
		{"a tag", "providers: !!float 1\n", "line 1: anchors, aliases and tags are not accepted"},
		{"tabs", good + "\tmodels: []\n", "line "},
		{"a kind that is not one", "providers:\n- name: a\n  kind: azure\n  base_url: https://a.example\n", "line 3: kind: it must be one of openai,"},
		{"a URL that is not one", "providers:\n- name: a\n  kind: openai\n  base_url: https://u:hunter2@a.example\n", "line 4: base_url: it must not have a user"},
		{"no URL", "providers:\n- kind: openai\n  name: a\n", "line 2: base_url: it is missing"},
		{"no name", "providers:\n- kind: openai\n  base_url: https://a.example\n", "line 2: name: "},
		{"a header", good + "  headers:\n    x-ok: a\n    authorization: Bearer hunter2\n", "line 7: headers.authorization: this header carries credentials"},
		{"a model", good + "  models:\n  - a\n  - 'b c'\n", "models[1]: it must be visible ASCII"},
		{"a setting", good + "  settings:\n    auth:\n      type: digest\n", "line 7: settings.auth.type: it must be bearer,"},
		{"two credentials", good + "  credential: {env: A, secret: hunter2}\n", "line 5: credential: give one of"},
		{"a credential for nobody", good + "  settings: {auth: {type: none}}\n  credential: {env: A}\n", "line 6: credential: settings.auth has type none"},
		{"a name twice", good + "- name: a\n  kind: openai\n  base_url: https://b.example\n", "line 5: name: another provider in the file has the same name"},
		{"two documents", good + "---\n" + good, "more than one document"},
		{"too long", strings.Repeat("#", 1<<20+1), "more than 1048576 bytes"},
	} {
		ps, err := provider.LoadFile([]byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) || ps != nil {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: quoted: %v", c.name, err)
		}
	}
}

func TestCredentialRead(t *testing.T) {
	env := func(name string) (string, bool) {
		v, ok := map[string]string{"SET": " sk-1\n", "EMPTY": " "}[name]
		return v, ok
	}
	file := func(path string) (string, error) {
		if path == "good" {
			return "sk-2", nil
		}
		return "", errors.New("no such file")
	}
	for _, c := range []struct {
		from provider.FileCredential
		want string
		bad  bool
	}{
		{provider.FileCredential{Env: "SET"}, "sk-1", false}, {provider.FileCredential{Env: "EMPTY"}, "", true}, {provider.FileCredential{Env: "UNSET"}, "", true},
		{provider.FileCredential{File: "good"}, "sk-2", false}, {provider.FileCredential{File: "bad"}, "", true},
		{provider.FileCredential{Secret: provider.NewSecret("sk-3")}, "sk-3", false}, {provider.FileCredential{}, "", false},
	} {
		got, err := c.from.Read(env, file)
		if got != c.want || (err != nil) != c.bad {
			t.Errorf("%+v: %q %v", c.from, got, err)
		}
	}
}

// FuzzLoadFile: a file is accepted completely or not at all, and no error contains the
// secret.
func FuzzLoadFile(f *testing.F) {
	f.Add("providers:\n- name: a\n  kind: openai\n  base_url: https://a.example/v1\n  credential: {secret: hunter2hunter2}\n")
	f.Add("providers:\n- {name: a, kind: custom, base_url: 'http://h', settings: {auth: {type: query, name: k}}}\n")
	f.Add("a: &a [*a]\n")
	f.Add("providers: &x\n- <<: *x\n")
	f.Add("? !!binary x\n: y\n---\n")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 4096 {
			return
		}
		ps, err := provider.LoadFile([]byte(text))
		if err != nil {
			if ps != nil {
				t.Fatal("providers beside an error")
			}
			if strings.Contains(err.Error(), "hunter2hunter2") {
				t.Fatalf("quoted: %v", err)
			}
			return
		}
		names := map[string]bool{}
		for _, p := range ps {
			if err := provider.Validate(p.Provider); err != nil || names[p.Name] {
				t.Fatalf("%+v: %v", p.Provider, err)
			}
			names[p.Name] = true
		}
	})
}

// TestLoadDocs: every providers file in the docs is valid.
func TestLoadDocs(t *testing.T) {
	text, err := os.ReadFile("../docs/providers.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, block := range strings.Split(string(text), "```yaml\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		ps, err := provider.LoadFile([]byte(block))
		if err != nil || len(ps) == 0 {
			t.Errorf("%v\n%s", err, block)
		}
		n += len(ps)
	}
	if n < 3 {
		t.Errorf("%d providers are shown", n)
	}
	_, err = provider.LoadFile([]byte("providers:\n- name: a\n  kind: custom\n  base_url: https://a.example\n  settings:\n    answer:\n      errors: /e\n"))
	if err == nil || !strings.Contains(err.Error(), "7") {
		t.Errorf("a field that is not known, in line 7: %v", err)
	}
}

// The error for a mistake in the file has its line, what was expected and what was found,
// and no value.
func TestFileMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"- name: a\n  kind: openai\n": "line 1: expected a mapping (name: value), found a list",
		"hello\n":                     "line 1: expected a mapping (name: value), found a string",
		"providers:\n  openai:\n    kind: openai\n": "expected a list, found a mapping",
		"providers: 7\n":                                                `line 1: the field "providers": expected a list, found a number`,
		"providers:\n- openai\n":                                        "line 2: expected a mapping (name: value), found a string",
		"providers:\n- name: a\n  models: hunter2\n":                    `line 3: the field "models": expected a list, found a string`,
		"providers:\n- name: a\n  base_url: [hunter2]\n":                `line 3: the field "base_url": expected a string, found a list`,
		"providers:\n- name: a\n  credential: hunter2\n":                `line 3: the field "credential": expected a mapping (name: value), found a string`,
		"providers:\n- name: a\n  headers: [hunter2]\n":                 `line 3: the field "headers": expected a mapping (name: value), found a list`,
		"providers:\n- name: a\n  settings: {inject_usage: hunter2}\n":  `the field "inject_usage": expected true or false, found a string`,
		"providers:\n- name: a\n\tkind: hunter2\n":                      "line 3: a tab: indent with spaces",
		"providers:\n- name: a\n   kind: hunter2\n":                     "indented too far",
		"providers:\n- name: [hunter2\n":                                "not closed",
		"providers:\n- name: \"hunter2\n":                               "not closed",
		"providers:\n- {name: a, kind: openia, base_url: 'http://x'}\n": "line 2: kind: it must be one of openai",
	} {
		_, err := provider.LoadFile([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	all, err := provider.LoadFile([]byte("providers:\n- {name: a, kind: openai, base_url: 'https://api.openai.com/v1'}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if w := strings.Join(all[0].Warnings(), "\n"); !strings.Contains(w, "no models") || !strings.Contains(w, "no credential") {
		t.Errorf("warnings: %q", w)
	}
}
