package policy

import (
	"bytes"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"
)

// maxTiers is how many tiers a file may have.
const maxTiers = 100

// Tiers are the limits of organizations, by the names of their tiers.
type Tiers map[string]*Tier

// Tier has the limits of one tier. They count for the organization as a whole. The nil Tier
// has none.
type Tier struct {
	name   string
	text   []byte // the limits as written
	limits []limit
}

// ParseTiers reads a file of tiers: {"free": {"rpm": 60, "monthly_usd_cap": 5}, …}. The error
// names the field, the problem and what to do.
func ParseTiers(b []byte) (Tiers, error) {
	r := &reader{dec: jsontext.NewDecoder(bytes.NewReader(b))}
	out := Tiers{}
	r.object("", func(name string) {
		from := r.dec.InputOffset()
		ls := r.tier(name)
		if r.err != nil {
			return
		}
		out[name] = &Tier{name: name, text: bytes.TrimLeft(b[from:r.dec.InputOffset()], ": \t\r\n"), limits: ls}
		if len(out) > maxTiers {
			r.fail(excerpt(name), fmt.Sprintf("is one tier more than %d", maxTiers), "leave tiers out")
		}
	})
	if r.err == nil && len(bytes.TrimSpace(b[r.dec.InputOffset():])) > 0 {
		r.fail("", "has something after its end", "write one JSON object")
	}
	if r.err != nil {
		return nil, r.err
	}
	return out, nil
}

// ParseTier reads the limits of one tier, as Text returns them.
func ParseTier(name string, text []byte) (*Tier, error) {
	r := &reader{dec: jsontext.NewDecoder(bytes.NewReader(text))}
	ls := r.tier(name)
	if r.err != nil {
		return nil, r.err
	}
	return &Tier{name: name, text: text, limits: ls}, nil
}

// Max is the tier's limit of this name. ok is false without one.
func (t *Tier) Max(name string) (most int64, ok bool) {
	if t == nil {
		return 0, false
	}
	for _, l := range t.limits {
		if l.name == name {
			return l.max, true
		}
	}
	return 0, false
}

// Text is the tier's limits as written.
func (t *Tier) Text() []byte { return t.text }

// tier reads the limits of a tier. Each counts for the organization.
func (r *reader) tier(name string) []limit {
	if name == "" || len(name) > maxText {
		r.fail(excerpt(name), "is not the name of a tier", fmt.Sprintf("write 1 to %d bytes", maxText))
		return nil
	}
	ls := r.limits()
	for i := range ls {
		l := &ls[i]
		switch {
		case r.err != nil:
		case limitForms[l.name].per == perSession || l.name == "max_tokens":
			r.fail(excerpt(name)+".limits."+l.name, "does not count for an organization", "use rpm, tpm, concurrent, sessions_per_hour, daily_usd_cap or monthly_usd_cap")
		case len(l.per) != 1 || l.per[0] != limitForms[l.name].per && l.per[0] != perOrg:
			r.fail(excerpt(name)+".limits."+l.name, "has a per", "leave it out: limits of a tier count for the organization")
		}
		l.per = []string{perOrg}
		for _, other := range ls[:i] {
			if r.err == nil && other.name == l.name {
				r.fail(excerpt(name)+".limits."+l.name, "counts for the same as another", "keep one of them")
			}
		}
	}
	return ls
}

// Bind returns the tier's limits for a request of the org.
func (t *Tier) Bind(org string) (out []Limit) {
	if t == nil {
		return nil
	}
	var d Decision
	d.bind("", t.limits, &Input{Org: OrgAttrs{ID: org}})
	for _, l := range d.Limits {
		l.Source, l.Key = SourceTier, "tier:"+l.Name+":"+org
		out = append(out, l)
	}
	return out
}

// The values of Limit.Source beside the ids of policies.
const (
	SourceKey  = "key"
	SourceTier = "tier"
)
