package api

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
)

const providerID = "prov_"

// Provider is a provider in responses, without its credential.
type Provider struct {
	ID            string            `json:"id" doc:"The provider's id." example:"prov_01k0000000abcdefghjkmnpqrs"`
	Name          string            `json:"name" doc:"The provider's name in policies and in the audit log, unique in the org." example:"openai"`
	Kind          string            `json:"kind" enum:"openai,anthropic,gemini,cohere,mistral,custom" doc:"The API of the provider." example:"openai"`
	BaseURL       string            `json:"base_url" doc:"The base URL of the provider's API." example:"https://api.openai.com/v1"`
	Models        []string          `json:"models" nullable:"false" doc:"Names, or patterns in which * stands for any characters." example:"gpt-4o"`
	Hosts         []string          `json:"hosts" nullable:"false" doc:"Host names of the provider that intercepted applications connect to: exact names in lower case. Without any, it is the host of base_url (docs/egress.md)." example:"api.openai.com"`
	Headers       map[string]string `json:"headers" doc:"Headers of every request to the provider. Values are encrypted and are shown as [redacted]."`
	Settings      rawObject         `json:"settings" doc:"Settings of the kind: auth, query, paths, answer, inject_usage, drop, max_tokens, input_type, flavor, pass_fields, pass_headers, pass_response_headers, public_headers. See docs/providers.md."`
	HasCredential bool              `json:"has_credential" doc:"Whether a credential is set." example:"true"`
	CreatedAt     time.Time         `json:"created_at" doc:"Time of creation, UTC." example:"2026-01-31T12:00:00Z"`
	UpdatedAt     time.Time         `json:"updated_at" doc:"Time of the last change, UTC." example:"2026-01-31T12:00:00Z"`
	Version       int64             `json:"version" doc:"Number of the version, from 1. It is also in the ETag." example:"1"`
	Warnings      []string          `json:"warnings,omitempty" nullable:"false" doc:"Warnings about this change, or about the provider."`
}

func providerShown(p provider.Provider) Provider {
	headers := map[string]string{}
	for name := range p.Headers {
		headers[name] = provider.Redacted
	}
	return Provider{
		ID: p.ID, Name: p.Name, Kind: p.Kind, BaseURL: p.BaseURL, Models: strs(p.Models), Hosts: strs(p.Hosts), Headers: headers,
		Settings: shownSettings(p.Settings), HasCredential: p.HasCredential, CreatedAt: p.CreatedAt.UTC(), UpdatedAt: p.UpdatedAt.UTC(), Version: p.Version,
	}
}

// shownSettings are a provider's settings without the values of query parameters that may
// be secrets.
func shownSettings(raw []byte) rawObject {
	s, err := provider.ParseSettings(raw)
	if err != nil || !maskQuery(&s) {
		return rawObject(raw)
	}
	b, err := json.Marshal(s, json.Deterministic(true))
	if err != nil {
		return nil
	}
	return rawObject(b)
}

// maskQuery replaces the values of query parameters that may be secrets, and reports
// whether there are any.
func maskQuery(s *provider.Settings) bool {
	out, masked := maps.Clone(s.Query), false
	for name := range out {
		if !provider.PublicQuery(name) {
			out[name], masked = provider.Redacted, true
		}
	}
	s.Query = out
	return masked
}

// NewProvider is the body that creates a provider.
type NewProvider struct {
	Name     string            `json:"name" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]*$" patternDescription:"letters, digits, dots, underscores and hyphens, beginning with a letter or digit," doc:"The provider's name in policies and in the audit log, unique in the org." example:"openai"`
	Kind     string            `json:"kind" enum:"openai,anthropic,gemini,cohere,mistral,custom" doc:"The API of the provider." example:"openai"`
	BaseURL  string            `json:"base_url" minLength:"1" maxLength:"2048" doc:"The base URL of the provider's API: https, or http in a private network." example:"https://api.openai.com/v1"`
	Models   []string          `json:"models,omitzero" nullable:"false" maxItems:"1000" doc:"Names, or patterns in which * stands for any characters. An exact name wins over a pattern, and a longer pattern over a shorter one." example:"gpt-*"`
	Hosts    []string          `json:"hosts,omitzero" nullable:"false" maxItems:"100" doc:"Host names of the provider that intercepted applications connect to: exact names in lower case. Without any, it is the host of base_url (docs/egress.md)." example:"api.openai.com"`
	Headers  map[string]string `json:"headers,omitzero" doc:"Headers of every request to the provider. Values are encrypted and never shown. In a PATCH, a header that is left out or has the value [redacted] keeps its value. A new base_url removes the values that are not sent with it."`
	Settings provider.Settings `json:"settings,omitzero" doc:"Settings of the kind: auth, query, paths, answer, inject_usage, drop, max_tokens, input_type, flavor, pass_fields, pass_headers, pass_response_headers, public_headers. See docs/providers.md."`
}

func (n NewProvider) put(p provider.Provider, targets provider.Targets) (provider.Provider, error) {
	have := p.Headers
	p.Name, p.Kind, p.BaseURL, p.Models, p.Hosts, p.Headers = n.Name, n.Kind, n.BaseURL, n.Models, n.Hosts, provider.Headers(n.Headers)
	for name, value := range n.Headers {
		if h, ok := have[name]; ok && value == provider.Redacted {
			p.Headers[name] = h
		}
	}
	if old, err := provider.ParseSettings(p.Settings); err == nil {
		n.Settings.Query = maps.Clone(n.Settings.Query)
		for name, value := range n.Settings.Query {
			if v, ok := old.Query[name]; ok && value == provider.Redacted {
				n.Settings.Query[name] = v
			}
		}
	}
	settings, err := json.Marshal(n.Settings, json.Deterministic(true))
	if err != nil {
		return p, err
	}
	p.Settings = nil
	if string(settings) != "{}" {
		p.Settings = settings
	}
	if err := provider.Validate(p); err != nil {
		return p, err
	}
	return p, targets.Check(p)
}

func providerSaid(p provider.Provider) (NewProvider, error) {
	s, err := provider.ParseSettings(p.Settings)
	maskQuery(&s)
	return NewProvider{Name: p.Name, Kind: p.Kind, BaseURL: p.BaseURL, Models: p.Models, Hosts: p.Hosts, Headers: providerShown(p).Headers, Settings: s}, err
}

func listProviders(ctx context.Context, x *call, in *Pages) (*paged[Provider], error) {
	ps, err := provider.List(ctx, x.tx)
	if err != nil {
		return nil, err
	}
	return pageOf(*in, ps, func(p provider.Provider) place { return place{p.Place, p.ID} }, providerShown), nil
}

func createProvider(ctx context.Context, x *call, in *struct{ Body NewProvider }) (*made[Provider], error) {
	id, err := x.newID(providerID)
	if err != nil {
		return nil, err
	}
	p, err := in.Body.put(provider.Provider{ID: id, OrgID: x.org, CreatedAt: x.now, UpdatedAt: x.now, Version: 1}, x.c.Targets)
	if err != nil {
		return nil, err
	}
	if err := x.inTurn(ctx, "providers"); err != nil {
		return nil, err
	}
	all, err := provider.List(ctx, x.tx)
	if err != nil {
		return nil, err
	}
	if len(all) >= provider.MaxProviders {
		return nil, &problem{Status: 409, Code: "too_many", Message: "The org has " + itoa(provider.MaxProviders) + " providers, which is the limit.", Fix: "Delete a provider."}
	}
	if err := hostsOnce(all, p); err != nil {
		return nil, err
	}
	if err := provider.Insert(ctx, x.tx, x.c.Sealer, p); err != nil {
		return nil, err
	}
	shown := providerShown(p)
	if err := x.record(ctx, "provider.created", "provider", p.ID, "", nil, shown); err != nil {
		return nil, err
	}
	if p.Exposed() {
		shown.Warnings = append(shown.Warnings, provider.ExposedWarning)
	}
	return &made[Provider]{Location: "/v1/providers/" + p.ID, ETag: etag(p.Version), Body: shown}, nil
}

// hostsOnce returns an error if another provider of the org lists a host of p. An intercepted
// connection has one provider. Hosts are exact names.
func hostsOnce(all []provider.Provider, p provider.Provider) error {
	for i, h := range p.Hosts {
		field := "hosts[" + itoa(int64(i)) + "]"
		if strings.Contains(h, "*") {
			return &provider.Invalid{Field: field, Problem: "it is a pattern, and only exact names are intercepted: list the names"}
		}
		for _, other := range all {
			if other.ID != p.ID && slices.Contains(other.Hosts, h) {
				return &provider.Invalid{Field: field, Problem: "the provider " + other.Name + " has this host: a host has one provider"}
			}
		}
	}
	return nil
}

func (x *call) provider(ctx context.Context, id string) (provider.Provider, error) {
	if !isID(providerID, id) {
		return provider.Provider{}, notFound("provider", id)
	}
	p, err := provider.ByID(ctx, x.tx, id)
	if errors.Is(err, provider.ErrNotFound) {
		return p, notFound("provider", id)
	}
	return p, err
}

func getProvider(ctx context.Context, x *call, in *ByID) (*one[Provider], error) {
	p, err := x.provider(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	shown := providerShown(p)
	shown.Warnings, err = warningsOf(ctx, x, p)
	return &one[Provider]{ETag: etag(p.Version), Body: shown}, err
}

// warningsOf warns of plain http, and of what the keys of this control plane do not open. Nodes keep the last
// good one of it.
func warningsOf(ctx context.Context, x *call, p provider.Provider) (warnings []string, err error) {
	const what = " cannot be decrypted with the keys of this control plane (--fernet-keys). Nodes use the last one that could. Set it again, or ask the operator for the key."
	all, err := provider.Credentials(ctx, x.tx)
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		if c.ProviderID == p.ID && c.Cluster == p.Cluster {
			if _, err := x.c.Sealer.Open(c.Sealed); err != nil {
				warnings = append(warnings, "The credential"+what)
			}
		}
	}
	if _, err := p.OpenHeaders(x.c.Sealer); err != nil {
		warnings = append(warnings, "A header"+what)
	}
	if p.Exposed() {
		warnings = append(warnings, provider.ExposedWarning)
	}
	return warnings, nil
}

func updateProvider(ctx context.Context, x *call, in *struct {
	ByID
	Conditional
	Body patch[NewProvider]
}) (*one[Provider], error) {
	var out *one[Provider]
	err := freshly(func() error {
		before, err := x.provider(ctx, in.ID)
		if err != nil {
			return err
		}
		if err := x.matches(before.Version); err != nil {
			return err
		}
		said, err := providerSaid(before)
		if err != nil {
			return err
		}
		if said, err = in.Body.onto(x.Server, said); err != nil {
			return err
		}
		var warnings []string
		if said.BaseURL != before.BaseURL {
			if dropped := append(drop(said.Headers), drop(said.Settings.Query)...); len(dropped) > 0 {
				warnings = append(warnings, "These headers and query parameters belonged to the old base_url and were removed: "+strings.Join(dropped, ", ")+". Set them again with PATCH /v1/providers/"+before.ID+".")
			}
		}
		after, err := said.put(before, x.c.Targets)
		if err != nil {
			return err
		}
		if !slices.Equal(before.Hosts, after.Hosts) {
			if err := x.inTurn(ctx, "providers"); err != nil {
				return err
			}
			all, err := provider.List(ctx, x.tx)
			if err != nil {
				return err
			}
			if err := hostsOnce(all, after); err != nil {
				return err
			}
		}
		fields, err := changed(providerShown(before), providerShown(after))
		if err != nil {
			return err
		}
		if open, err := before.OpenHeaders(x.c.Sealer); !slices.Contains(fields, "headers") && differ(open, err, said.Headers) {
			fields = append(fields, "headers")
		}
		if !slices.Contains(fields, "settings") && string(before.Settings) != string(after.Settings) {
			a, errA := provider.ParseSettings(before.Settings)
			b, errB := provider.ParseSettings(after.Settings)
			if errA != nil || errB != nil || !maps.Equal(a.Query, b.Query) {
				fields = append(fields, "settings") // a value that is not shown
			}
		}
		slices.Sort(fields)
		if len(fields) == 0 {
			out = &one[Provider]{ETag: etag(before.Version), Body: providerShown(before)}
			return nil
		}
		if slices.Contains(fields, "base_url") && before.HasCredential {
			if err := provider.DeleteCredential(ctx, x.tx, before.ID); err != nil {
				return err
			}
			warnings = append(warnings, "The credential belonged to the old base_url and was removed: set it again with PUT /v1/providers/"+before.ID+"/credential.")
		}
		after.UpdatedAt = x.now
		if after, err = provider.Update(ctx, x.tx, x.c.Sealer, after); err != nil {
			return err
		}
		shown := providerShown(after)
		if err := x.recordFields(ctx, "provider.updated", "provider", after.ID, "", fields, providerShown(before), shown); err != nil {
			return err
		}
		if after.Exposed() {
			warnings = append(warnings, provider.ExposedWarning)
		}
		shown.Warnings = warnings
		out = &one[Provider]{ETag: etag(after.Version), Body: shown}
		return nil
	})
	return out, err
}

// drop removes the values that would be kept, and returns their names.
func drop(values map[string]string) (names []string) {
	maps.DeleteFunc(values, func(name, value string) bool {
		if value == provider.Redacted {
			names = append(names, name)
		}
		return value == provider.Redacted
	})
	slices.Sort(names)
	return names
}

// differ reports whether a given value differs from the provider's. err is set if the
// provider's values cannot be read.
func differ(open provider.Provider, err error, given map[string]string) bool {
	have := open.HeaderValues()
	for name, value := range given {
		if value != provider.Redacted && (err != nil || have[name] != value) {
			return true
		}
	}
	return false
}

func deleteProvider(ctx context.Context, x *call, in *struct {
	ByID
	Conditional
}) (*nothing, error) {
	p, err := x.provider(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := x.matches(p.Version); err != nil {
		return nil, err
	}
	if err := provider.Delete(ctx, x.tx, p.ID); err != nil {
		return nil, err
	}
	return nil, x.record(ctx, "provider.deleted", "provider", p.ID, "", providerShown(p), nil)
}

// NewCredential is a provider's secret. It has no String method, so that it is never printed.
type NewCredential struct {
	Secret string `json:"secret" minLength:"1" maxLength:"8192" pattern:"^[ -~]*$" patternDescription:"printable ASCII" doc:"Your key for the provider."`
}

func putCredential(ctx context.Context, x *call, in *struct {
	ByID
	Body NewCredential
}) (*one[Provider], error) {
	p, err := x.provider(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	sealed, err := x.c.Sealer.Seal([]byte(in.Body.Secret))
	if err != nil {
		return nil, err
	}
	err = provider.PutCredential(ctx, x.tx, provider.Credential{ProviderID: p.ID, Cluster: provider.ClusterName(p), Sealed: sealed, UpdatedAt: x.now})
	if err != nil {
		return nil, err
	}
	before := providerShown(p)
	p.HasCredential = true
	// The audit log records the change, also if there was a credential before.
	if err := x.record(ctx, "provider.credential_set", "provider", p.ID, "", before, providerShown(p)); err != nil {
		return nil, err
	}
	return &one[Provider]{ETag: etag(p.Version), Body: providerShown(p)}, nil
}

// Models is a list of models in OpenAI's format.
type Models struct {
	Object string  `json:"object" doc:"Always the word list." example:"list"`
	Data   []Model `json:"data" nullable:"false" doc:"The models."`
}

// Model is a model in OpenAI's format.
type Model struct {
	ID      string `json:"id" doc:"The model's name." example:"gpt-4o"`
	Object  string `json:"object" doc:"Always the word model." example:"model"`
	Created int64  `json:"created" doc:"Always 0, since the time is not known here." example:"0"`
	OwnedBy string `json:"owned_by" doc:"The provider of the model." example:"openai"`
}

func listModels(ctx context.Context, x *call, _ *struct{}) (*one[Models], error) {
	ps, err := provider.List(ctx, x.tx)
	if err != nil {
		return nil, err
	}
	r, err := provider.NewRegistry(ps, policy.Matches)
	if err != nil {
		return nil, err
	}
	out := Models{Object: "list", Data: []Model{}}
	for _, m := range r.Models(func(string) bool { return true }) {
		out.Data = append(out.Data, Model{ID: m.ID, Object: "model", OwnedBy: m.OwnedBy})
	}
	return &one[Models]{Body: out}, nil
}

// conflict reports whether an object was changed between reading and writing it.
func conflict(err error) bool {
	return errors.Is(err, provider.ErrConflict) || errors.Is(err, policy.ErrConflict)
}
