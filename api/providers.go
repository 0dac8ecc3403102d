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

// Provider is a provider on the wire, without its credential.
type Provider struct {
	ID            string            `json:"id" doc:"Its id." example:"prov_01k0000000abcdefghjkmnpqrs"`
	Name          string            `json:"name" doc:"Its name in policies and in the audit log; unique in the org." example:"openai"`
	Kind          string            `json:"kind" enum:"openai,anthropic,gemini,cohere,mistral,custom" doc:"Which API it speaks." example:"openai"`
	BaseURL       string            `json:"base_url" doc:"Where its API begins." example:"https://api.openai.com/v1"`
	Models        []string          `json:"models" nullable:"false" doc:"Names, or patterns in which * stands for anything." example:"gpt-4o"`
	Hosts         []string          `json:"hosts" nullable:"false" doc:"Names under which applications reach it directly (for egress, which is not built yet)." example:"api.openai.com"`
	Headers       map[string]string `json:"headers" doc:"Sent with every request. Values are encrypted and never shown: each is [redacted]."`
	Settings      rawObject         `json:"settings" doc:"Of the kind: auth, query, paths, answer, inject_usage, drop, max_tokens, input_type, flavor, pass_fields, pass_headers, pass_response_headers, public_headers. See docs/providers.md."`
	HasCredential bool              `json:"has_credential" doc:"Whether a credential was given." example:"true"`
	CreatedAt     time.Time         `json:"created_at" doc:"When it was created, UTC." example:"2026-01-31T12:00:00Z"`
	UpdatedAt     time.Time         `json:"updated_at" doc:"When it was changed last, UTC." example:"2026-01-31T12:00:00Z"`
	Version       int64             `json:"version" doc:"Counts the changes, from 1. Also in the ETag." example:"1"`
	Warnings      []string          `json:"warnings,omitempty" nullable:"false" doc:"What you should know of this change."`
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

// NewProvider is what people say of a provider.
type NewProvider struct {
	Name     string            `json:"name" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]*$" patternDescription:"letters, digits, dots, underscores and hyphens, beginning with a letter or digit," doc:"What policies and the record call it; unique in the org." example:"openai"`
	Kind     string            `json:"kind" enum:"openai,anthropic,gemini,cohere,mistral,custom" doc:"Which API it speaks." example:"openai"`
	BaseURL  string            `json:"base_url" minLength:"1" maxLength:"2048" doc:"Where its API begins: https, or http for what is near." example:"https://api.openai.com/v1"`
	Models   []string          `json:"models,omitzero" nullable:"false" maxItems:"1000" doc:"Names, or patterns in which * stands for anything. An exact name wins over a pattern, a longer pattern over a shorter." example:"gpt-*"`
	Hosts    []string          `json:"hosts,omitzero" nullable:"false" maxItems:"100" doc:"Names under which applications reach it directly." example:"api.openai.com"`
	Headers  map[string]string `json:"headers,omitzero" doc:"Sent with every request. Values are encrypted and never shown. In a PATCH, a name that is left out or has the value [redacted] keeps its value. A new base_url drops the values that are not given with it."`
	Settings provider.Settings `json:"settings,omitzero" doc:"Of the kind: auth, query, paths, answer, inject_usage, drop, max_tokens, input_type, flavor, pass_fields, pass_headers, pass_response_headers, public_headers. See docs/providers.md."`
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
	all, err := provider.List(ctx, x.tx)
	if err != nil {
		return nil, err
	}
	if len(all) >= provider.MaxProviders {
		return nil, &problem{Status: 409, Code: "too_many", Message: "The org has " + itoa(provider.MaxProviders) + " providers, which is the most there can be.", Fix: "Delete one."}
	}
	if err := provider.Insert(ctx, x.tx, x.c.Sealer, p); err != nil {
		return nil, err
	}
	shown := providerShown(p)
	if err := x.record(ctx, "provider.created", "provider", p.ID, "", nil, shown); err != nil {
		return nil, err
	}
	return &made[Provider]{Location: "/v1/providers/" + p.ID, ETag: etag(p.Version), Body: shown}, nil
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
	return &one[Provider]{ETag: etag(p.Version), Body: providerShown(p)}, nil
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
				warnings = append(warnings, "The values of these headers and query parameters were for the old base_url and have been dropped: "+strings.Join(dropped, ", ")+". Set them again with PATCH /v1/providers/"+before.ID+".")
			}
		}
		after, err := said.put(before, x.c.Targets)
		if err != nil {
			return err
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
			warnings = append(warnings, "The credential was for the old base_url and has been dropped: set it again with PUT /v1/providers/"+before.ID+"/credential.")
		}
		after.UpdatedAt = x.now
		if after, err = provider.Update(ctx, x.tx, x.c.Sealer, after); err != nil {
			return err
		}
		shown := providerShown(after)
		if err := x.recordFields(ctx, "provider.updated", "provider", after.ID, "", fields, providerShown(before), shown); err != nil {
			return err
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

// differ reports whether a value is given that the provider does not have. err says that
// the values that it has cannot be read.
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

// NewCredential is a provider's secret. It has no String on purpose: nothing prints it.
type NewCredential struct {
	Secret string `json:"secret" minLength:"1" maxLength:"8192" pattern:"^[ -~]*$" patternDescription:"printable ASCII" doc:"The key that the provider gave you."`
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
	// The audit log says that it was set, also where there was one before.
	if err := x.record(ctx, "provider.credential_set", "provider", p.ID, "", before, providerShown(p)); err != nil {
		return nil, err
	}
	return &one[Provider]{ETag: etag(p.Version), Body: providerShown(p)}, nil
}

// Models is a list of models in OpenAI's format.
type Models struct {
	Object string  `json:"object" doc:"Always list." example:"list"`
	Data   []Model `json:"data" nullable:"false" doc:"The models."`
}

// Model is one of them.
type Model struct {
	ID      string `json:"id" doc:"Its name." example:"gpt-4o"`
	Object  string `json:"object" doc:"Always model." example:"model"`
	Created int64  `json:"created" doc:"Always 0: providers' own lists say it, and this one does not ask them." example:"0"`
	OwnedBy string `json:"owned_by" doc:"The provider that has it." example:"openai"`
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

// conflict says whether an object was changed between reading and writing it.
func conflict(err error) bool {
	return errors.Is(err, provider.ErrConflict) || errors.Is(err, policy.ErrConflict)
}
