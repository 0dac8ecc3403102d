package policy

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// A cached subject is used only if all written attributes are equal. After every change, a
// writer with a cache writes the same as a new one.
func TestSubjects(t *testing.T) {
	for _, module := range []string{
		`p := input`,
		`p if { input.agent.metadata.region == "eu"; input.caller.key_id == "x"; input.org.tier == "y" }`,
		`p if { input.agent.team == "x"; object.get(input.caller, "ip", "") == "::1" }`,
		strings.ReplaceAll(baselineRego, "package aid.baseline", ""),
	} {
		c, err := compile(map[string]string{"m.rego": "package m\n\n" + module})
		if err != nil {
			t.Fatal(err)
		}
		w := writerFor(c.parsed)
		in := active()
		in.Agent.Metadata = map[string]any{"region": "eu", "other": 1}
		in.Caller.KeyAllowedModels = []string{"a", "b"}
		in.Caller.KeyExpiresAt = time.Unix(2e9, 0)
		check := func(what string) {
			t.Helper()
			for range 2 {
				if got, want := w.document(&in), writerFor(c.parsed).document(&in); got.Value.Compare(want.Value) != 0 {
					t.Errorf("%s: %s, want %s", what, got, want)
				}
			}
		}
		check("as it is")
		v := reflect.ValueOf(&in).Elem()
		for i := range v.NumField() {
			for j := range v.Field(i).NumField() {
				f := v.Field(i).Field(j)
				what := v.Type().Field(i).Name + "." + v.Field(i).Type().Field(j).Name
				switch p := f.Addr().Interface().(type) {
				case *string:
					*p += "x"
				case *bool:
					*p = !*p
				case *int64:
					*p++
				case **int64:
					n := int64(7)
					*p = &n
				case *time.Time:
					*p = p.Add(1)
				case *[]string:
					if len(*p) > 0 {
						(*p)[0] += "x" // in place: a caller may write to its slice
						check(what)
					}
					*p = append(*p, "y")
					check(what)
					*p = (*p)[:1]
				case *map[string]any:
					for _, v := range []any{"us", true, 7, 7.5, nil, []string{"x"}} {
						(*p)["region"] = v
						check(what)
						(*p)["other"] = v
						check(what)
					}
					delete(*p, "region")
				default:
					t.Fatalf("%s is a %s: add it to the test", what, f.Type())
				}
				check(what)
			}
		}
	}
}

// Only the keys of metadata that rules read are written.
func TestMetadataIsWhatIsRead(t *testing.T) {
	in := active()
	in.Agent.Metadata = map[string]any{"region": "eu", "level": 3, "other": true}
	for module, want := range map[string]string{
		`p if { input.agent.metadata.region == "eu"; input.agent.metadata["level"] == 3; input.agent.metadata.none }`: `{"agent": {"metadata": {"level": 3, "region": "eu"}}}`,
		`p if { some k; input.agent.metadata[k] == "eu" }`:                                                            `{"agent": {"metadata": {"level": 3, "other": true, "region": "eu"}}}`,
		`p if { input.agent.metadata.region == "eu"; count(input.agent.metadata) > 1 }`:                               `{"agent": {"metadata": {"level": 3, "other": true, "region": "eu"}}}`,
		`p if object.get(input.agent, "metadata", {}) != {}`:                                                          `{"agent": {"metadata": {"level": 3, "other": true, "region": "eu"}}}`,
		`p if object.get(input.agent, "id", "") != ""`:                                                                `{"agent": {"id": "ag_1"}}`,
		`p if input.agent.status == "active"`:                                                                         `{"agent": {"status": "active"}}`,
	} {
		c, err := compile(map[string]string{"m.rego": "package m\n\n" + module})
		if err != nil {
			t.Fatal(err)
		}
		if got := writerFor(c.parsed).document(&in).String(); got != want {
			t.Errorf("%s: %s, want %s", module, got, want)
		}
	}
	// In parsed modules, "input" alone has another form.
	for _, module := range []string{`p := input`, `p if { x := input; x.agent.id == "y" }`, `p if input[input.agent.id]`, `p if object.get(input, "agent", {}) != {}`,
		`p if object.get(input.agent, input.agent.id, "") != ""`, `p := input.agent`, `p if { some k; input.agent[k] == 1 }`, `p if count(input) == 7 with input as {}`} {
		c, err := compile(map[string]string{"m.rego": "package m\n\n" + module})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, all := reads(c.parsed); !all {
			t.Errorf("%s: not the whole input", module)
		}
	}
}
