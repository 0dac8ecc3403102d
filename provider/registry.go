package provider

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// Registry finds the provider of a model. It never changes: a new list of providers is a
// new Registry.
//
// If several providers have the model, the order is:
//
//  1. Only providers that can serve the endpoint count: natively or by translation.
//  2. A provider that lists the model by its exact name comes before one with a matching
//     glob.
//  3. Among globs, the one with the longest text before its first "*" wins, then the
//     longer one, then the one that sorts first.
//  4. Among equal providers, one with the endpoint's format comes before one with
//     translation.
//  5. Among equal providers, the one whose name sorts first wins.
//
// A model has only the name that its provider has for it. So policy and the forwarded
// request have the same string. "openai/gpt-4o" is a model of that name, not a model of the
// provider "openai".
type Registry struct {
	providers []Provider // by name
	exact     map[string][]int
	globs     []glob          // best first
	reads     map[string]bool // by the endpoint's path: see Reads
	matches   Matcher
}

// Matcher reports whether a pattern with "*" matches a model's name. It is policy.Matches.
// Lists of agents, keys and providers must have one meaning, and policy defines it.
type Matcher func(pattern, model string) bool

type glob struct {
	pattern string
	prefix  int // bytes before the first "*"
	at      int // index in providers
}

// Model is a model in a list.
type Model struct {
	ID      string
	OwnedBy string // the provider's name
}

// NewRegistry returns a registry of one org's providers. Repeated names are an error.
func NewRegistry(providers []Provider, matches Matcher) (*Registry, error) {
	r := &Registry{providers: slices.Clone(providers), exact: map[string][]int{}, reads: map[string]bool{}, matches: matches}
	slices.SortStableFunc(r.providers, func(a, b Provider) int { return cmp.Compare(a.Name, b.Name) })
	for i, p := range r.providers {
		if i > 0 && r.providers[i-1].Name == p.Name {
			return nil, fmt.Errorf("two providers are named %q", p.Name)
		}
		p.ready = p.prepare()
		r.providers[i].ready = p.ready
		for _, ep := range endpoints {
			if p.Reads(ep) {
				r.reads[ep.Path] = true
			}
		}
		for _, m := range p.Models {
			if prefix := strings.IndexByte(m, '*'); prefix >= 0 {
				r.globs = append(r.globs, glob{pattern: m, prefix: prefix, at: i})
			} else if at := r.exact[m]; !slices.Contains(at, i) {
				r.exact[m] = append(at, i)
			}
		}
	}
	slices.SortStableFunc(r.globs, func(a, b glob) int {
		return cmp.Or(cmp.Compare(b.prefix, a.prefix), cmp.Compare(len(b.pattern), len(a.pattern)), cmp.Compare(a.pattern, b.pattern), cmp.Compare(a.at, b.at))
	})
	return r, nil
}

// Known returns the call with the provider's name of the model. Google's prefix "models/" is
// not part of a name, unless a provider of OpenAI's API lists exactly that name.
func (r *Registry) Known(c Call) Call {
	if !c.foldered {
		return c
	}
	const folder = "models/"
	if slices.ContainsFunc(r.exact[folder+c.Model], func(i int) bool { k := r.providers[i].Kind; return k == KindOpenAI || k == KindCustom }) {
		c.Model, c.foldered = folder+c.Model, false
	}
	return c
}

// Lists reports whether a provider lists the model by its exact name.
func (r *Registry) Lists(model string) bool { return r != nil && len(r.exact[model]) > 0 }

// Resolve finds the provider for the call. The error is 404 if no provider has the model,
// and 400 if one has it but does not serve the endpoint.
func (r *Registry) Resolve(c Call) (Provider, *Error) {
	known, best := "", -1
	for _, i := range r.exact[c.Model] {
		if p := &r.providers[i]; !p.serves(c.Endpoint) {
			known = p.Kind
		} else if !p.translates(c) {
			return *p, nil
		} else if best < 0 {
			best = i
		}
	}
	if best >= 0 {
		return r.providers[best], nil
	}
	pattern := ""
	for _, g := range r.globs {
		if best >= 0 && g.pattern != pattern {
			break
		}
		if !r.matches(g.pattern, c.Model) {
			continue
		}
		if p := &r.providers[g.at]; !p.serves(c.Endpoint) {
			known = cmp.Or(known, p.Kind)
		} else if !p.translates(c) {
			return *p, nil
		} else if best < 0 {
			best, pattern = g.at, g.pattern
		}
	}
	if best >= 0 {
		return r.providers[best], nil
	}
	if known != "" {
		return Provider{}, bad("unsupported_endpoint", "model", "This model's provider is of kind "+known+", which does not serve "+c.Endpoint.Operation+".")
	}
	return Provider{}, &Error{Status: http.StatusNotFound, Type: invalidRequest, Code: "model_not_found", Param: "model",
		Message: "No provider here has the model \"" + Clip(c.Model, 128) + "\"."}
}

// Reads is Provider.Reads for any of the providers: it reports whether a response to the
// endpoint may have to be read here.
func (r *Registry) Reads(ep Endpoint) bool { return r.reads[ep.Path] }

// ByHost finds the provider of a host, a name in lower case that applications connect to
// directly. A provider that lists the host comes before one that only has it in its base_url.
// A host of two equal providers has no provider.
func (r *Registry) ByHost(host string) (Provider, bool) {
	var listed, own []Provider
	for _, p := range r.providers {
		switch {
		case !slices.Contains(p.EgressHosts(), host):
		case len(p.Hosts) > 0:
			listed = append(listed, p)
		default:
			own = append(own, p)
		}
	}
	if len(listed) > 0 {
		own = listed
	}
	if len(own) != 1 {
		return Provider{}, false
	}
	return own[0], true
}

// Providers returns all providers, by name.
func (r *Registry) Providers() []Provider { return slices.Clone(r.providers) }

// Models lists models, sorted and without duplicates, each with its first provider. It has
// the models that providers list by exact names and that may allows. Of names, which come
// from a caller, it has those that match a provider's glob. A glob itself is not listed,
// since only the provider knows its models. Those models can be used in any case.
func (r *Registry) Models(may func(string) bool, names ...string) []Model {
	var out []Model
	for m, at := range r.exact {
		if may(m) {
			out = append(out, Model{ID: m, OwnedBy: r.providers[at[0]].Name})
		}
	}
	for _, name := range names {
		if strings.Contains(name, "*") || !may(name) || slices.ContainsFunc(out, func(m Model) bool { return m.ID == name }) {
			continue
		}
		for _, g := range r.globs {
			if r.matches(g.pattern, name) {
				out = append(out, Model{ID: name, OwnedBy: r.providers[g.at].Name})
				break
			}
		}
	}
	slices.SortFunc(out, func(a, b Model) int { return cmp.Compare(a.ID, b.ID) })
	return out
}
