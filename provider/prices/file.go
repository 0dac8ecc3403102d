package prices

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/provider/internal/strict"
)

// override is an element of the override file.
type override struct {
	provider, kind string   // one of them is set; the other is empty
	models         []string // names in lower case, or globs
	list           *vendor  // the vendor whose built-in list applies; nil: the rates apply
	rates          rates
	limits         modelLimits
}

func (o *override) fits(p provider.Provider, name string) bool {
	return (o.provider == p.Name || o.provider == "" && o.kind == p.Kind) &&
		slices.ContainsFunc(o.models, func(pattern string) bool { return matches(pattern, name) })
}

// inFile is the content of the YAML.
type inFile struct {
	Prices []struct {
		Provider string   `yaml:"provider"`
		Kind     string   `yaml:"kind"`
		Models   []string `yaml:"models"`
		List     string   `yaml:"list"`

		Input        decimal `yaml:"input"`
		Output       decimal `yaml:"output"`
		CachedInput  decimal `yaml:"cached_input"`
		CacheWrite   decimal `yaml:"cache_write"`
		CacheWrite1h decimal `yaml:"cache_write_1h"`
		Reasoning    decimal `yaml:"reasoning"`
		InputAudio   decimal `yaml:"input_audio"`
		InputImage   decimal `yaml:"input_image"`
		OutputAudio  decimal `yaml:"output_audio"`
		OutputImage  decimal `yaml:"output_image"`

		ContextWindow   decimal `yaml:"context_window"`
		MaxOutputTokens decimal `yaml:"max_output_tokens"`
	} `yaml:"prices"`
}

// decimal is a number as text, quoted or not. YAML's own numbers would turn 2.50 into
// floating point, and 010 into octal.
type decimal string

// UnmarshalYAML keeps the text of the value.
func (d *decimal) UnmarshalYAML(b []byte) error {
	*d = decimal(strings.TrimSpace(string(b)))
	return nil
}

func (d decimal) plain() string {
	s := string(d)
	if n := len(s); n >= 2 && (s[0] == '"' || s[0] == '\'') && s[n-1] == s[0] {
		s = s[1 : n-1]
	}
	return s
}

// parse reads an override file, strictly.
func (t *Table) parse(text []byte) ([]override, error) {
	var f inFile
	if err := strict.Decode(text, &f, "prices", "docs/prices.md"); err != nil {
		return nil, err
	}
	var out []override
	for i, e := range f.Prices {
		wrong := func(field, problem string) error {
			return fmt.Errorf("line %d: %s: %s", strict.Line(text, "prices", i, field), field, problem)
		}
		o := override{provider: e.Provider, kind: e.Kind}
		switch {
		case e.Provider == "" && e.Kind == "":
			return nil, wrong("provider", "set the owner of these prices: provider (a name) or kind")
		case e.Provider != "" && e.Kind != "":
			return nil, wrong("kind", "set provider or kind, not both")
		case e.Kind != "" && !slices.Contains(provider.Kinds(), e.Kind):
			return nil, wrong("kind", "it must be one of "+strings.Join(provider.Kinds(), ", "))
		}
		for n, m := range e.Models {
			if problem := modelProblem(m); problem != "" {
				return nil, wrong(fmt.Sprintf("models[%d]", n), problem)
			}
			o.models = append(o.models, normal(m))
		}
		if len(o.models) == 0 {
			o.models = []string{"*"}
		}
		given := 0
		for _, r := range []struct {
			field string
			sort  sort
			text  decimal
		}{
			{"input", input, e.Input}, {"output", output, e.Output}, {"cached_input", cached, e.CachedInput},
			{"cache_write", write, e.CacheWrite}, {"cache_write_1h", longWrite, e.CacheWrite1h}, {"reasoning", reasoning, e.Reasoning},
			{"input_audio", inputAudio, e.InputAudio}, {"input_image", inputImage, e.InputImage},
			{"output_audio", outputAudio, e.OutputAudio}, {"output_image", outputImage, e.OutputImage},
		} {
			if r.text == "" {
				continue
			}
			n, problem := dollars(r.text.plain())
			if problem != "" {
				return nil, wrong(r.field, problem)
			}
			o.rates[r.sort] = price{known: true, base: n}
			given++
		}
		for _, l := range []struct {
			field string
			text  decimal
			to    *int64
		}{{"context_window", e.ContextWindow, &o.limits.Context}, {"max_output_tokens", e.MaxOutputTokens, &o.limits.MaxOutput}} {
			if l.text == "" {
				continue
			}
			n, problem := tokensOf(l.text.plain())
			if problem != "" {
				return nil, wrong(l.field, problem)
			}
			*l.to = n
			given++
		}
		switch {
		case e.List != "" && given > 0:
			return nil, wrong("list", "set list or rates, not both")
		case e.List != "":
			at := slices.IndexFunc(t.vendors, func(v vendor) bool { return v.Kind == e.List })
			if at < 0 {
				return nil, wrong("list", "it must be one of "+strings.Join(t.lists(), ", "))
			}
			o.list = &t.vendors[at]
		case !o.rates[input].known && !o.rates[output].known:
			return nil, wrong("input", "set input or output, in US dollars per million tokens, or a list")
		}
		out = append(out, o)
	}
	return out, nil
}

// lists returns the names of the built-in lists.
func (t *Table) lists() []string {
	names := make([]string, len(t.vendors))
	for i, v := range t.vendors {
		names[i] = v.Kind
	}
	return names
}

// modelProblem returns what is wrong with a name or glob, or "".
func modelProblem(s string) string {
	switch {
	case s == "":
		return "it is empty"
	case len(s) > 256:
		return "it is longer than 256 characters"
	case strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return "it must be visible ASCII, without spaces"
	case strings.Contains(s, "#"):
		return "it must not have a #"
	}
	return ""
}

const (
	maxWhole    = 6 // digits before the point: less than a million dollars for a million tokens
	maxFraction = 9 // digits after it: nano-dollars
)

// dollars converts a decimal number of dollars to nano-dollars, exactly. Otherwise problem
// has the reason.
func dollars(s string) (nano int64, problem string) {
	whole, fraction, point := strings.Cut(s, ".")
	switch {
	case whole == "" || point && fraction == "" || strings.Trim(whole+fraction, "0123456789") != "":
		return 0, "it must be a decimal number of US dollars, such as 2.50"
	case len(whole) > maxWhole:
		return 0, "it must be less than 1000000 US dollars"
	case len(fraction) > maxFraction:
		return 0, "it must have at most 9 digits after the point, which is a nano-dollar"
	}
	for _, c := range whole + fraction + strings.Repeat("0", maxFraction-len(fraction)) {
		nano = nano*10 + int64(c-'0')
	}
	return nano, ""
}
