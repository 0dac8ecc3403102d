package identity_test

import (
	"encoding/json"
	"errors"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ai-identity/ai-identity/identity"
)

var noon = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

func caller() identity.Caller {
	return identity.Caller{
		Agent: identity.Agent{ID: "ag_1", OrgID: "org_1", Status: identity.Active},
		Key:   identity.Key{ID: "key_1", Kind: identity.KindKey, OrgID: "org_1", AgentID: "ag_1"},
	}
}

func TestActiveAt(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*identity.Caller)
		want   string
	}{
		"as it should be":          {func(*identity.Caller) {}, ""},
		"expires later":            {func(c *identity.Caller) { c.Key.ExpiresAt = noon.Add(1) }, ""},
		"expires now":              {func(c *identity.Caller) { c.Key.ExpiresAt = noon }, "key_expired"},
		"expired":                  {func(c *identity.Caller) { c.Key.ExpiresAt = noon.Add(-time.Hour) }, "key_expired"},
		"revoked":                  {func(c *identity.Caller) { c.Key.RevokedAt = noon.Add(-time.Hour) }, "key_revoked"},
		"revoked by another clock": {func(c *identity.Caller) { c.Key.RevokedAt = noon.Add(time.Hour) }, "key_revoked"},
		"suspended":                {func(c *identity.Caller) { c.Agent.Status = identity.Suspended }, "agent_suspended"},
		"suspended and revoked":    {func(c *identity.Caller) { c.Agent.Status, c.Key.RevokedAt = identity.Suspended, noon }, "key_revoked"},
		"no status":                {func(c *identity.Caller) { c.Agent.Status = "" }, "agent_inactive"},
		"status of a newer build":  {func(c *identity.Caller) { c.Agent.Status = "Active" }, "agent_inactive"},
		"nobody":                   {func(c *identity.Caller) { *c = identity.Caller{} }, "agent_inactive"},
		"no agent":                 {func(c *identity.Caller) { c.Agent = identity.Agent{} }, "agent_inactive"},
		"no key":                   {func(c *identity.Caller) { c.Key = identity.Key{} }, "agent_inactive"},
		"another agent's key":      {func(c *identity.Caller) { c.Key.AgentID = "ag_2" }, "agent_inactive"},
		"another org's key":        {func(c *identity.Caller) { c.Key.OrgID = "org_2" }, "agent_inactive"},
	} {
		c := caller()
		tc.change(&c)
		if got := reason(t, c.ActiveAt(noon)); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestOrgKeyAndNodeActiveAt(t *testing.T) {
	type active interface{ ActiveAt(time.Time) error }
	for _, tc := range []struct {
		name string
		is   active
		want string
	}{
		{"org key", identity.OrgKeyRecord{ID: "okey_1", OrgID: "org_1"}, ""},
		{"no org key", identity.OrgKeyRecord{}, "key_unknown"},
		{"org key revoked", identity.OrgKeyRecord{ID: "okey_1", OrgID: "org_1", RevokedAt: noon}, "key_revoked"},
		{"org key expired", identity.OrgKeyRecord{ID: "okey_1", OrgID: "org_1", ExpiresAt: noon}, "key_expired"},
		{"node", identity.Node{ID: "node_1", OrgID: "org_1", ExpiresAt: noon.Add(1)}, ""},
		{"no node", identity.Node{}, "key_unknown"},
		{"node revoked", identity.Node{ID: "node_1", OrgID: "org_1", RevokedAt: noon}, "key_revoked"},
	} {
		if got := reason(t, tc.is.ActiveAt(noon)); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func reason(t *testing.T, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	var in *identity.Inactive
	if !errors.As(err, &in) {
		t.Fatalf("%v is not an *Inactive", err)
	}
	return in.Reason
}

func TestNewID(t *testing.T) {
	form := regexp.MustCompile(`^ag_[0-7][0-9a-hjkmnp-tv-z]{25}$`)
	src := seeded("ids")
	var ids []string
	for i := range 1000 {
		id, err := identity.NewID(identity.AgentID, noon.Add(time.Duration(i)*time.Millisecond), src)
		if err != nil {
			t.Fatal(err)
		}
		if !form.MatchString(id) {
			t.Fatalf("id %q", id)
		}
		ids = append(ids, id)
	}
	if !slices.IsSorted(ids) || len(slices.Compact(ids)) != 1000 {
		t.Error("ids do not sort by age, or repeat")
	}
	first, _ := identity.NewID("org_", time.Time{}, strings.NewReader(strings.Repeat("\x00", 10)))
	last, _ := identity.NewID("org_", time.UnixMilli(1<<48-1), strings.NewReader(strings.Repeat("\xff", 10)))
	if want := "org_" + strings.Repeat("0", 26); first != want {
		t.Errorf("smallest id %q, want %q", first, want)
	}
	if want := "org_7" + strings.Repeat("z", 25); last != want {
		t.Errorf("largest id %q, want %q", last, want)
	}
	for _, prefix := range []string{"", "_", "ag", "Ag_", "a g_", "ag__", "ag-_", "'; --_"} {
		if id, err := identity.NewID(prefix, noon, src); err == nil {
			t.Errorf("prefix %q makes %q", prefix, id)
		}
	}
	if id, err := identity.NewID("ag_", noon, iotest.ErrReader(errors.New("no entropy"))); err == nil || id != "" {
		t.Errorf("without entropy: %q, %v", id, err)
	}
}

func TestFingerprint(t *testing.T) {
	created := time.Date(2026, 7, 1, 14, 0, 0, 123456789, time.FixedZone("", 2*3600))
	got := identity.Fingerprint("org_1", "ag_1", "bot", created)
	// printf 'aid-agent-v1\n5:org_1\n4:ag_1\n3:bot\n27:2026-07-01T12:00:00.123456Z\n' | sha256sum
	if want := "sha256:27bea3b71ca82919d62c12e67edaec105052c52390732f16e690d42a211557f4"; got != want {
		t.Errorf("Fingerprint = %s, want %s", got, want)
	}
	for _, other := range []string{
		identity.Fingerprint("org_2", "ag_1", "bot", created), identity.Fingerprint("org_1", "ag_2", "bot", created),
		identity.Fingerprint("org_1", "ag_1", "bot\n", created), identity.Fingerprint("org_1", "ag_1", "bot", created.Add(time.Microsecond)),
		identity.Fingerprint("org_1\n4:ag_1", "", "bot", created),
	} {
		if other == got {
			t.Error("two agents have one fingerprint")
		}
	}
}

func TestParseMetadata(t *testing.T) {
	m, err := identity.ParseMetadata([]byte(` {"team":"a","n":1.10,"big":12345678901234567890,"ok":true,"no":false,"é":"ü"} `))
	if err != nil {
		t.Fatal(err)
	}
	want := identity.Metadata{"team": "a", "n": json.Number("1.10"), "big": json.Number("12345678901234567890"), "ok": true, "no": false, "é": "ü"}
	if d := cmp.Diff(want, m); d != "" {
		t.Error(d)
	}
	again, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if m2, err := identity.ParseMetadata(again); err != nil || !cmp.Equal(m, m2) {
		t.Errorf("a round trip changes it: %s, %v", again, err)
	}
	for _, none := range []string{"", "null", "{}", " \n"} {
		if m, err := identity.ParseMetadata([]byte(none)); err != nil || m == nil || len(m) != 0 {
			t.Errorf("ParseMetadata(%q) = %v, %v", none, m, err)
		}
	}
	many := `{"k":1`
	for i := range 64 {
		many += `,"` + strings.Repeat("x", i+1) + `":1`
	}
	for s, says := range map[string]string{
		`[]`: "object", `1`: "object", `{`: "object", `{"a"`: "not JSON", `{"a":1`: "object", `{"a":1,}`: "object", `{"a":1} {}`: "after the object", `{"a":1}x`: "after the object",
		`{"a":{}}`: `"a"`, `{"a":[1]}`: `"a"`, `{"a":null}`: `"a"`, `{"a":1,"a":2}`: "twice", `{"a":1,"\u0061":2}`: "twice", `{"":1}`: "key",
		`{"a":1e400}`: `"a"`, `{"a":` + strings.Repeat("1", 65) + `}`: `"a"`, `{"a":"\u0000"}`: `"a"`, `{"a\u0000":1}`: "key",
		`{"a":"` + strings.Repeat("x", 1025) + `"}`: `"a"`, `{"` + strings.Repeat("x", 129) + `":1}`: "key", many + `}`: "65 keys", "{\"a\":\"\xff\"}": "UTF-8",
		`{"a":01}`: "object", `{"a":NaN}`: `"a"`, `{'a':1}`: "object",
	} {
		if _, err := identity.ParseMetadata([]byte(s)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("ParseMetadata(%.40s) says %v, want something with %s", s, err, says)
		}
	}
	for _, m := range []identity.Metadata{{"a": math.NaN()}, {"a": math.Inf(1)}, {"a": struct{}{}}, {"a": json.Number("x")}, {"a": []byte("x")}} {
		if m.Check() == nil {
			t.Errorf("%v passes", m)
		}
	}
	// Straight into an Agent, as tests and the API do.
	var a identity.Agent
	if err := json.Unmarshal([]byte(`{"ID":"ag_1","Status":"suspended","Metadata":{"n":1.50}}`), &a); err != nil || a.Status != identity.Suspended || a.Metadata["n"] != json.Number("1.50") {
		t.Errorf("%+v, %v", a, err)
	}
	var k identity.Key
	if err := json.Unmarshal([]byte(`{"RateLimit":1,"RevokedAt":"2026-07-01T12:00:00Z"}`), &k); err != nil || k.RateLimit != 1 || !k.RevokedAt.Equal(noon) {
		t.Errorf("%+v, %v", k, err)
	}
}

func FuzzParseMetadata(f *testing.F) {
	f.Add([]byte(`{"a":1,"b":"x","c":true}`))
	f.Add([]byte(`{"a":1e400,"a":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := identity.ParseMetadata(b)
		if err != nil {
			return
		}
		out, err := json.Marshal(m)
		if err != nil {
			t.Fatalf("%q is read and cannot be written: %v", b, err)
		}
		if again, err := identity.ParseMetadata(out); err != nil || !cmp.Equal(m, again) {
			t.Fatalf("%q comes back as %q: %v", b, out, err)
		}
	})
}
