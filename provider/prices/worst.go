package prices

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ai-identity/ai-identity/provider"
)

// entry is what is known of a model at a provider.
type entry struct {
	usual    rates
	services []rates
	limits   modelLimits
	own      bool // it is of the operator's file
}

// modelLimits are a model's own limits, in tokens; 0: not known.
type modelLimits struct {
	Context   int64 `json:"context"`    // the most that its input may have
	MaxOutput int64 `json:"max_output"` // the most that its output may have
}

// Version names the lists that costs are made from: the built-in one and the file.
func (t *Table) Version() string { return t.version }

// entry is the price of a model as Cost finds it.
func (t *Table) entry(p provider.Provider, asked string, at time.Time) (e entry, ok bool) {
	name := normal(asked)
	for i := range t.overrides {
		switch o := &t.overrides[i]; {
		case !o.fits(p, name):
			continue
		case o.list != nil:
			return o.list.entry(name, at)
		default:
			return entry{usual: o.rates, limits: o.limits, own: true}, true
		}
	}
	if v := t.vendorOf(p); v != nil {
		return v.entry(name, at)
	}
	return entry{}, false
}

func (v *vendor) entry(name string, at time.Time) (e entry, ok bool) {
	for i := range v.Models {
		m := &v.Models[i]
		if !m.is(name) {
			continue
		}
		e.limits = m.modelLimits
		if e.usual, ok = m.rates("", at); !ok {
			return e, false
		}
		var done []string
		for _, s := range m.Services {
			if slices.Contains(done, s.Service) {
				continue
			}
			done = append(done, s.Service)
			if r, ok := m.rates(s.Service, at); ok {
				e.services = append(e.services, r)
			}
		}
		return e, true
	}
	return entry{}, false
}

// MaxOutput is the most output tokens that the model may write, 0 if that is not known.
func (t *Table) MaxOutput(p provider.Provider, asked string, at time.Time) int64 {
	e, _ := t.entry(p, asked, at)
	return e.limits.MaxOutput
}

// Worst is the most that a request to p may cost, in nano-dollars: each token at the highest
// rate that may apply to it. If that is not known, missing is the line of the price file that
// would make it known.
func (t *Table) Worst(p provider.Provider, asked string, b provider.Bound, at time.Time) (nanoUSD int64, missing string) {
	e, ok := t.entry(p, asked, at)
	line := fmt.Sprintf("- {provider: %s, models: [%q], input: …, output: …", p.Name, normal(asked))
	free := ok && len(e.services) == 0 && e.usual.free()
	switch {
	case !ok, b.Output > 0 && !e.usual[output].known, !e.usual[input].known, !e.own && searches(asked):
		return 0, line + "}"
	case free:
		return 0, ""
	case b.Opaque && e.limits.Context == 0:
		return 0, line + ", context_window: …}"
	case b.Opaque:
		b.Input = e.limits.Context
	case e.limits.Context > 0:
		b.Input = min(b.Input, e.limits.Context)
	}
	var sum amount
	in, out := highest(e.usual, b.Input, inputSorts), highest(e.usual, b.Input, outputSorts)
	for _, r := range e.services {
		in, out = max(in, highest(r, b.Input, inputSorts)), max(out, highest(r, b.Input, outputSorts))
	}
	if !sum.add(b.Input, in) || !sum.add(b.Output, out) {
		return 1<<63 - 1, ""
	}
	n, ok := sum.nano()
	if !ok {
		return 1<<63 - 1, "" // no cap has room for it
	}
	if n == 0 && in+out > 0 {
		n = 1
	}
	return n, ""
}

// searches reports whether a model searches the web for each request. The built-in list lacks
// the fee of a search, so only the operator's file can give such a model a price under a cap.
func searches(model string) bool { return strings.Contains(normal(model), "search") }

var (
	inputSorts  = []sort{input, cached, write, longWrite, inputAudio, inputImage, inputVideo, cachedAudio, cachedImage}
	outputSorts = []sort{output, reasoning, outputAudio, outputImage, outputVideo}
)

// highest is the highest of some rates, for an input of at most that length.
func highest(r rates, length int64, of []sort) (rate int64) {
	for _, s := range of {
		rate = max(rate, r[s].base)
		for _, step := range r[s].steps {
			if length > step.above {
				rate = max(rate, step.rate)
			}
		}
	}
	return rate
}

// free says whether no rate is above 0.
func (r *rates) free() bool {
	for _, p := range r {
		if p.base > 0 || slices.ContainsFunc(p.steps, func(s step) bool { return s.rate > 0 }) {
			return false
		}
	}
	return true
}

// tokensOf reads a number of tokens of the file, or says what is wrong with it.
func tokensOf(s string) (n int64, problem string) {
	const digits = 12
	if s == "" || len(s) > digits || strings.Trim(s, "0123456789") != "" || s[0] == '0' {
		return 0, "it must be a whole number of tokens, such as 128000"
	}
	for _, c := range s {
		n = n*10 + int64(c-'0')
	}
	return n, ""
}
