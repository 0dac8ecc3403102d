package provider

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/ai-identity/ai-identity/provider/internal/strict"
)

// FileProvider is a provider in a file for `aid up --providers`.
type FileProvider struct {
	Provider
	Credential FileCredential
}

// FileCredential is the place of a credential. At most one of its fields is set. A provider
// that needs no credential has no field set.
type FileCredential struct {
	Env    string // name of an environment variable
	File   string // path of a file that contains only the credential
	Secret Secret // the credential
}

// Read returns the credential, or "" without one.
func (c FileCredential) Read(lookup func(string) (string, bool), file func(string) (string, error)) (string, error) {
	switch {
	case c.Env != "":
		v, ok := lookup(c.Env)
		if !ok || strings.TrimSpace(v) == "" {
			return "", &Invalid{"credential.env", "the variable " + c.Env + " is not set. Export it first"}
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

// Warnings are about settings that are valid and probably a mistake.
func (p FileProvider) Warnings() (all []string) {
	if len(p.Models) == 0 {
		all = append(all, "it has no models, so no request reaches it by its model: list them, such as models: [\"gpt-*\"]")
	}
	if c := p.Credential; c.Env == "" && c.File == "" && c.Secret.Reveal() == "" && !p.needsNone() {
		all = append(all, "it has no credential. Requests to it are rejected until one is set with credential: {env: VARIABLE} or through the API")
	}
	if p.Exposed() {
		all = append(all, ExposedWarning)
	}
	return all
}

// inFile is the content of the YAML.
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

// LoadFile reads a file of providers, strictly: an unknown or repeated field is an error
// with its line. Errors never quote a value, since it may be a secret.
func LoadFile(text []byte) ([]FileProvider, error) {
	var f inFile
	err := strict.Decode(text, &f, "providers", "`aid up --help`")
	if err != nil {
		return nil, err
	}
	var out []FileProvider
	seen := map[string]bool{}
	for i, p := range f.Providers {
		wrong := func(err *Invalid) error {
			return fmt.Errorf("line %d: %w", strict.Line(text, "providers", i, err.Field), err)
		}
		fp := FileProvider{Provider: Provider{Name: p.Name, Kind: p.Kind, BaseURL: p.BaseURL, Models: p.Models, Hosts: p.Hosts, Headers: map[string]Header{}}}
		for name, value := range p.Headers {
			fp.Headers[strings.ToLower(name)] = NewHeader(value)
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
			return nil, wrong(&Invalid{"name", "another provider in the file has the same name"})
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
			return nil, wrong(&Invalid{"credential", "settings.auth has type none, so remove the credential"})
		}
		fp.Credential = FileCredential{Env: c.Env, File: c.File, Secret: NewSecret(c.Secret)}
		out = append(out, fp)
	}
	return out, nil
}
