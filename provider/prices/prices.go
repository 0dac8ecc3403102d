package prices

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ai-identity/ai-identity/provider"
)

//go:embed list.json
var list []byte

// Table has the prices of models. It never changes, and is safe for concurrent use.
type Table struct {
	version   string
	overrides []override // the first match applies
	vendors   []vendor
	exact     map[string]bool // the names without "*" and "#"
}

// vendor is the list of one vendor.
type vendor struct {
	Kind   string
	Hosts  []string // of its own API
	Models []model  // the first match applies
}

// model is the prices of a model.
type model struct {
	ID       string
	Match    []string // see matches
	But      []string // names that are excluded although they match
	Prices   []period // by time; the last that has begun applies, and before all of them the first
	Services []period // for a service tier; the first that has begun applies, for each sort
	modelLimits
}

// period is a list of prices and the time from which it applies.
type period struct {
	Service string // "flex", "priority", "fast"; "" for the normal tier
	from    time.Time
	rates   rates
}

// Load reads the built-in list and an override file, which may be empty. An error is about
// the file, and has the line.
func Load(file []byte) (*Table, error) {
	digest := sha256.New()
	digest.Write(list)
	digest.Write(file)
	t := &Table{version: "sha256:" + hex.EncodeToString(digest.Sum(nil))}
	var l struct {
		Source  string
		Unit    string
		Vendors []vendor
	}
	d := json.NewDecoder(bytes.NewReader(list))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		return nil, fmt.Errorf("the built-in price list: %w", err)
	}
	t.vendors = l.Vendors
	var err error
	t.overrides, err = t.parse(file)
	t.exact = map[string]bool{}
	for _, o := range t.overrides {
		t.name(o.models)
	}
	for i := range t.vendors {
		for j := range t.vendors[i].Models {
			t.name(t.vendors[i].Models[j].Match)
		}
	}
	return t, err
}

func (t *Table) name(patterns []string) {
	for _, p := range patterns {
		if !strings.ContainsAny(p, "*#") {
			t.exact[p] = true
		}
	}
}

// Lists reports whether the prices have the model by exactly this name, in lower case.
func (t *Table) Lists(model string) bool { return t.exact[model] }

// UnmarshalJSON reads a period: rates by the names of their sorts.
func (p *period) UnmarshalJSON(b []byte) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		return err
	}
	for name, value := range fields {
		switch s := slices.Index(sortNames[:], name); {
		case s >= 0:
			if err := json.Unmarshal(value, &p.rates[s]); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		case name == "service":
			if err := json.Unmarshal(value, &p.Service); err != nil {
				return err
			}
		case name == "from":
			var day string
			if err := json.Unmarshal(value, &day); err != nil {
				return err
			}
			var err error
			if p.from, err = time.Parse(time.DateOnly, day); err != nil {
				return err
			}
		default:
			return fmt.Errorf("unknown field %q", name)
		}
	}
	return nil
}

// UnmarshalJSON reads a number, or a number followed by pairs of a length and the rate
// above it.
func (p *price) UnmarshalJSON(b []byte) error {
	var numbers []int64
	if err := json.Unmarshal(b, &numbers); err != nil {
		var one int64
		if err := json.Unmarshal(b, &one); err != nil {
			return err
		}
		numbers = []int64{one}
	}
	if len(numbers)%2 == 0 {
		return errors.New("expected a rate, and pairs of a length and a rate")
	}
	*p = price{known: true, base: numbers[0]}
	for pair := range slices.Chunk(numbers[1:], 2) {
		p.steps = append(p.steps, step{above: pair[0], rate: pair[1]})
	}
	if !slices.IsSortedFunc(p.steps, func(a, b step) int { return int(a.above - b.above) }) || slices.Min(numbers) < 0 {
		return errors.New("expected ascending lengths, and no number below 0")
	}
	return nil
}

// Cost returns the cost of a request to p, in nano-dollars, or false if it is not known.
// asked is the requested model. answered is the model in the response, which may be empty
// or unknown. It is usually a dated name of the same model, and its price comes first. at
// is the time of the request.
func (t *Table) Cost(p provider.Provider, asked, answered string, u provider.Usage, at time.Time) (nanoUSD int64, known bool) {
	if u.Source != "provider" {
		return 0, false
	}
	names := make([]string, 0, 2)
	for _, name := range []string{answered, asked} {
		if name = normal(name); name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for i := range t.overrides {
		switch o := &t.overrides[i]; {
		case !slices.ContainsFunc(names, func(name string) bool { return o.fits(p, name) }):
			continue
		case o.list != nil:
			return o.list.cost(names, u, at)
		case !usual(u.Service):
			return 0, false // the file has one price for each model
		default:
			return o.rates.cost(u)
		}
	}
	if v := t.vendorOf(p); v != nil {
		return v.cost(names, u, at)
	}
	return 0, false
}

// vendorOf returns the vendor if p is its own API, or nil.
func (t *Table) vendorOf(p provider.Provider) *vendor {
	up, err := p.Upstream()
	if err != nil || !up.TLS || up.Port != 443 {
		return nil
	}
	for i := range t.vendors {
		if v := &t.vendors[i]; v.Kind == p.Kind && slices.Contains(v.Hosts, up.Host) {
			return v
		}
	}
	return nil
}

// cost uses the first of the names that the list has.
func (v *vendor) cost(names []string, u provider.Usage, at time.Time) (int64, bool) {
	for _, name := range names {
		for i := range v.Models {
			if m := &v.Models[i]; m.is(name) {
				r, ok := m.rates(u.Service, at)
				if !ok {
					return 0, false
				}
				return r.cost(u)
			}
		}
	}
	return 0, false
}

func (m *model) is(name string) bool {
	fits := func(pattern string) bool { return matches(pattern, name) }
	return slices.ContainsFunc(m.Match, fits) && !slices.ContainsFunc(m.But, fits)
}

// rates are the model's prices at a time, for a service tier.
func (m *model) rates(service string, at time.Time) (r rates, ok bool) {
	if len(m.Prices) == 0 {
		return r, false
	}
	r = m.Prices[0].rates
	for i := range m.Prices {
		if p := &m.Prices[i]; !at.Before(p.from) {
			r = p.rates
		}
	}
	if usual(service) {
		return r, true
	}
	var done [sorts]bool
	for i := range m.Services {
		p := &m.Services[i]
		if p.Service != service || at.Before(p.from) {
			continue
		}
		for s := range p.rates {
			if p.rates[s].known && !done[s] {
				r[s], done[s], ok = p.rates[s], true, true
			}
		}
	}
	return r, ok
}

// usual reports whether a service tier is the normal one.
func usual(service string) bool {
	return service == "" || service == "default" || service == "standard"
}

// normal is a model's name as in the lists: in lower case, and without the prefix of
// Gemini's API.
func normal(name string) string { return strings.TrimPrefix(strings.ToLower(name), "models/") }

// matches reports whether s matches pattern. "*" stands for any text and "#" for one digit.
func matches(pattern, s string) bool {
	head, rest, star := strings.Cut(pattern, "*")
	if !star {
		return len(s) == len(pattern) && begins(s, pattern)
	}
	if !begins(s, head) {
		return false
	}
	s = s[len(head):]
	for {
		part, more, star := strings.Cut(rest, "*")
		if !star {
			return len(s) >= len(part) && begins(s[len(s)-len(part):], part)
		}
		for !begins(s, part) {
			if s == "" {
				return false
			}
			s = s[1:]
		}
		s, rest = s[len(part):], more
	}
}

// begins reports whether s begins with text, in which "#" stands for a digit.
func begins(s, text string) bool {
	if len(s) < len(text) {
		return false
	}
	for i := range len(text) {
		if digit := '0' <= s[i] && s[i] <= '9'; text[i] == '#' && !digit || text[i] != '#' && s[i] != text[i] {
			return false
		}
	}
	return true
}
