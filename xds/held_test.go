package xds

import (
	"context"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ai-identity/ai-identity/policy"
	aidv1 "github.com/ai-identity/ai-identity/proto/aid/v1"
	"github.com/ai-identity/ai-identity/provider"
	"github.com/ai-identity/ai-identity/verdict"
)

// Policies are compiled only when policies change: until then, an org has the same Bundle.
func TestPoliciesAreCompiledWhenTheyChange(t *testing.T) {
	h := newHeld()
	orgs := map[string]verdict.Org{}
	changed := func(what string, want map[string]bool, answer func(put func(m proto.Message, name string))) {
		t.Helper()
		answers := map[string]*discoveryv3.DeltaDiscoveryResponse{}
		answer(func(m proto.Message, name string) {
			r, err := resource(name, m)
			if err != nil {
				t.Fatal(err)
			}
			a := answers[r.GetResource().GetTypeUrl()]
			if a == nil {
				a = &discoveryv3.DeltaDiscoveryResponse{}
				answers[r.GetResource().GetTypeUrl()] = a
			}
			a.Resources = append(a.Resources, r)
		})
		for url, answer := range answers {
			if err := h.of(url).receive(answer); err != nil {
				t.Fatal(err)
			}
		}
		next, err := h.build(context.Background(), orgs)
		if err != nil {
			t.Fatal(err)
		}
		for id, want := range want {
			if got := next[id].Policies != orgs[id].Policies; got != want {
				t.Errorf("%s: %s compiled is %v", what, id, got)
			}
			ps := []policy.Policy{}
			for _, p := range h.policies {
				if p.value.GetOrgId() == id {
					ps = append(ps, unpackPolicy(p.value))
				}
			}
			if fresh, err := policy.Compile(context.Background(), ps); err != nil || fresh.Version() != next[id].Policies.Version() || fresh.Rego() != next[id].Policies.Rego() {
				t.Errorf("%s: %s has not its own policies, %v", what, id, err)
			}
		}
		orgs = next
	}
	pol := func(id, org string, version int64, effect string) *aidv1.Policy {
		return &aidv1.Policy{Id: id, OrgId: org, Version: version, DocumentJson: []byte(`{"name":"x","effect":"` + effect + `","conditions":{}}`)}
	}
	one := provider.Provider{ID: "prov_1", OrgID: "org_1", Name: "one", Kind: "openai", BaseURL: "http://127.0.0.1:9/v1"}
	one.Cluster = provider.ClusterName(one)
	prov := func(model string) *aidv1.Provider {
		one.Models = []string{model}
		return packProvider(one)
	}

	changed("first", map[string]bool{"org_1": true, "org_2": true, "org_3": true}, func(put func(proto.Message, string)) {
		put(pol("pol_1", "org_1", 1, "deny"), "pol_1")
		put(pol("pol_2", "org_2", 1, "deny"), "pol_2")
		for _, id := range []string{"org_1", "org_2", "org_3"} {
			put(&aidv1.Org{Id: id}, id)
		}
	})
	changed("nothing", map[string]bool{"org_1": false, "org_2": false, "org_3": false}, func(func(proto.Message, string)) {})
	changed("a provider", map[string]bool{"org_1": false}, func(put func(proto.Message, string)) { put(prov("m"), "prov_1") })
	changed("its models", map[string]bool{"org_1": false}, func(put func(proto.Message, string)) { put(prov("n"), "prov_1") })
	changed("a credential", map[string]bool{"org_1": false}, func(put func(proto.Message, string)) {
		put(&aidv1.Credential{ProviderId: "prov_1", OrgId: "org_1", Cluster: one.Cluster, Secret: []byte("s")}, "prov_1")
	})
	if got := orgs["org_1"].Providers.Providers(); len(got) != 1 || got[0].Credential.Reveal() != "s" {
		t.Errorf("what did change is not there: %+v", got)
	}
	changed("an org's tier", map[string]bool{"org_1": false, "org_2": false}, func(put func(proto.Message, string)) { put(&aidv1.Org{Id: "org_1", Tier: "pro"}, "org_1") })
	changed("the same policy once more", map[string]bool{"org_1": false}, func(put func(proto.Message, string)) { put(pol("pol_1", "org_1", 1, "deny"), "pol_1") })
	changed("another version", map[string]bool{"org_1": true, "org_2": false, "org_3": false}, func(put func(proto.Message, string)) { put(pol("pol_1", "org_1", 2, "deny"), "pol_1") })
	changed("another document", map[string]bool{"org_1": true, "org_2": false, "org_3": false}, func(put func(proto.Message, string)) { put(pol("pol_1", "org_1", 2, "allow"), "pol_1") })
	changed("one more", map[string]bool{"org_1": false, "org_2": false, "org_3": true}, func(put func(proto.Message, string)) { put(pol("pol_3", "org_3", 1, "deny"), "pol_3") })
	delete(h.policies, "pol_3")
	changed("one fewer", map[string]bool{"org_1": false, "org_2": false, "org_3": true}, func(func(proto.Message, string)) {})
	// A move from one org to another, which no control plane sends.
	changed("another org's", map[string]bool{"org_1": true, "org_2": true, "org_3": false}, func(put func(proto.Message, string)) { put(pol("pol_2", "org_1", 1, "deny"), "pol_2") })
}
