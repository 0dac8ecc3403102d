package api_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// TestExamples sends every example of the OpenAPI description to its operation, complete and
// field by field. All must be accepted.
func TestExamples(t *testing.T) {
	w := serve(t)
	storetest.InOrgAsOwner(t, w.org, func(tx pgx.Tx) error {
		return identity.GrantNamespace(t.Context(), tx, w.org, "https://kubernetes.default.svc.cluster.local", "ai")
	})
	w.record(audit.Decided{RequestID: "req_01k0000000abcdefghjkmnpqrs", AgentID: "ag_1", Effect: "allow", Time: time.Now()}) // the examples name it
	var spec struct {
		Paths map[string]map[string]struct {
			OperationID string `json:"operationId"`
			RequestBody struct {
				Content map[string]struct {
					Example json.RawMessage
					Schema  schema
				}
			}
		}
		Components struct{ Schemas map[string]schema }
	}
	if err := json.Unmarshal([]byte(w.call("", "GET", "/openapi.json", "").body), &spec); err != nil {
		t.Fatal(err)
	}
	resolve := func(s schema) schema {
		if name, ok := strings.CutPrefix(s.Ref, "#/components/schemas/"); ok {
			return spec.Components.Schemas[name]
		}
		return s
	}
	// Each request has a new object, since an example may change it.
	n := 0
	object := func(path string) string {
		n++
		id := func(r reply) string { return r.field("id").(string) }
		unique := func(s string) string {
			return strings.ReplaceAll(s, "$", string(rune('a'+n%26))+strings.Repeat("x", n/26))
		}
		switch {
		case strings.HasPrefix(path, "/v1/agents/{id}"):
			agent := id(w.want(201, "POST", "/v1/agents", unique(`{"name":"example-$"}`)))
			path = strings.Replace(path, "{id}", agent, 1)
			if strings.Contains(path, "{key_id}") {
				key := id(w.want(201, "POST", "/v1/agents/"+agent+"/keys", `{"name":"k","scopes":["*"]}`))
				path = strings.Replace(path, "{key_id}", key, 1)
			}
		case strings.HasPrefix(path, "/v1/providers/{id}"):
			path = strings.Replace(path, "{id}", id(w.want(201, "POST", "/v1/providers", unique(`{"name":"example-$","kind":"openai","base_url":"https://api.example.com/v1"}`))), 1)
		case strings.HasPrefix(path, "/v1/policies/{id}"):
			path = strings.Replace(path, "{id}", id(w.want(201, "POST", "/v1/policies", unique(`{"name":"example-$","effect":"allow","conditions":{}}`))), 1)
		}
		return path
	}
	sent := 0
	for _, path := range slices.Sorted(maps.Keys(spec.Paths)) {
		for method, op := range spec.Paths[path] {
			for _, content := range op.RequestBody.Content {
				send := func(what string, body any) {
					b, err := json.Marshal(body)
					if err != nil {
						t.Fatal(err)
					}
					sent++
					r := w.call(w.keys[identity.Admin], strings.ToUpper(method), object(path), string(b))
					if r.status/100 != 2 && r.status != 501 && r.status != 409 {
						t.Errorf("%s, the example of %s: %d %s\nwith %s", op.OperationID, what, r.status, r.body, b)
					}
				}
				if content.Example != nil {
					var whole any
					if err := json.Unmarshal(content.Example, &whole); err != nil {
						t.Fatal(err)
					}
					if body, ok := whole.(map[string]any); ok && path == "/v1/limits/raises" {
						body["policy_id"] = w.want(201, "POST", "/v1/policies", `{"name":"raised","effect":"allow","conditions":{},"limits":{"monthly_usd_cap":5}}`).field("id")
					}
					send("the body", whole)
				}
				if method != "patch" {
					continue
				}
				for name, f := range resolve(content.Schema).Properties {
					for _, example := range append(f.Examples, resolve(f).Examples...) {
						if hosts, ok := example.([]any); ok && name == "hosts" {
							example = []any{fmt.Sprintf("%d.%v", n, hosts[0])} // a host has one provider
						}
						send(name, map[string]any{name: example})
					}
				}
			}
		}
	}
	if sent < 15 {
		t.Errorf("only %d examples were sent", sent)
	}
}

type schema struct {
	Ref        string `json:"$ref"`
	Properties map[string]schema
	Examples   []any
}
