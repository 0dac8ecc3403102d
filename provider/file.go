package provider

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/parser"
)

// FileProvider is a provider as a file for `aid up --providers` has it.
type FileProvider struct {
	Provider
	Credential FileCredential
}

// FileCredential says where a credential is. At most one of its fields is set; none
// is for a provider that needs no credential.
type FileCredential struct {
	Env    string // name of a variable
	File   string // path of a file that holds it and nothing else
	Secret Secret // itself
}

// Read finds the credential, "" if there is none to find.
func (c FileCredential) Read(lookup func(string) (string, bool), file func(string) (string, error)) (string, error) {
	switch {
	case c.Env != "":
		v, ok := lookup(c.Env)
		if !ok || strings.TrimSpace(v) == "" {
			return "", &Invalid{"credential.env", "the variable " + c.Env + " is not set; export it before"}
		}
		return strings.TrimSpace(v), nil
	case c.File != "":
		v, err := file(c.File)
		if err != nil {
			return "", fmt.Errorf("credential.file: %w", err)
		}
		return v, nil
	}
	return c.Secret.Reveal(), nil
}

// inFile is what the YAML holds.
type inFile struct {
	Providers []struct {
		Name       string            `yaml:"name"`
		Kind       string            `yaml:"kind"`
		BaseURL    string            `yaml:"base_url"`
		Models     []string          `yaml:"models"`
		Hosts      []string          `yaml:"hosts"`
		Headers    map[string]string `yaml:"headers"`
		Settings   *Settings         `yaml:"settings"`
		Credential struct {
			Env    string `yaml:"env"`
			File   string `yaml:"file"`
			Secret string `yaml:"secret"`
		} `yaml:"credential"`
	} `yaml:"providers"`
}

// maxFile is how large a file of providers may be.
const maxFile = 1 << 20

// LoadFile reads a file of providers, strictly: a field that is not known, or is
// there twice, is an error with its line. No error quotes a value: it may be a
// secret.
func LoadFile(text []byte) ([]FileProvider, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("the file has more than %d bytes", maxFile)
	}
	var f inFile
	d := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict())
	err := d.Decode(&f)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, yamlError(err)
	}
	if err == nil && !errors.Is(d.Decode(&inFile{}), io.EOF) {
		return nil, errors.New("the file has more than one document; put all providers into one list")
	}
	var out []FileProvider
	seen := map[string]bool{}
	for i, p := range f.Providers {
		wrong := func(err *Invalid) error { return fmt.Errorf("line %d: %w", lineOf(text, i, err.Field), err) }
		fp := FileProvider{Provider: Provider{Name: p.Name, Kind: p.Kind, BaseURL: p.BaseURL, Models: p.Models, Hosts: p.Hosts, Headers: map[string]string{}}}
		for name, value := range p.Headers {
			fp.Headers[strings.ToLower(name)] = value
		}
		if p.Settings != nil {
			if fp.Settings, err = json.Marshal(p.Settings); err != nil {
				return nil, wrong(&Invalid{"settings", err.Error()})
			}
		}
		var invalid *Invalid
		if errors.As(Validate(fp.Provider), &invalid) {
			return nil, wrong(invalid)
		}
		if seen[p.Name] {
			return nil, wrong(&Invalid{"name", "another provider of the file has it"})
		}
		seen[p.Name] = true
		c := p.Credential
		n := 0
		for _, s := range []string{c.Env, c.File, c.Secret} {
			if s != "" {
				n++
			}
		}
		if n > 1 {
			return nil, wrong(&Invalid{"credential", "give one of env, file and secret"})
		}
		if (Provider{Settings: fp.Settings}).needsNone() && n > 0 {
			return nil, wrong(&Invalid{"credential", "settings.auth says that there is none"})
		}
		fp.Credential = FileCredential{Env: c.Env, File: c.File, Secret: NewSecret(c.Secret)}
		out = append(out, fp)
	}
	return out, nil
}

// lineOf is the line of a field of the provider at i; of the provider if that does
// not have the field.
func lineOf(text []byte, i int, field string) int {
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return 0
	}
	field, _, _ = strings.Cut(field, "[") // the element is on that line or near it
	for {
		path, err := yaml.PathString(strings.TrimSuffix(fmt.Sprintf("$.providers[%d].%s", i, field), "."))
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

// yamlError is what is wrong with the YAML and where, without the text around it.
func yamlError(err error) error {
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
	if !nameable.MatchString(name) {
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
		message = "not valid here: see `aid up --help` for an example"
	}
	return fmt.Errorf("line %d: %s", line, message)
}
