package api

import (
	"context"
	"net/http"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/ai-identity/ai-identity/identity"
)

// route is one row of the table: all of an operation except the types of its input and
// output, which are its handler's.
type route struct {
	Method, Path string
	ID           string // of the operation
	Tag          string
	Summary      string
	Description  string

	// Roles lists the roles that may call it. Without roles it rejects every key, unless it
	// is Public.
	Roles []identity.Role
	// Public rows take no key. They say nothing of any org.
	Public bool

	Status  int    // of success; 0: 200, or 204 where there is nothing to say
	Example string // a body
	// Raw bodies are checked by the handler alone, which has better words.
	Raw bool
	// Conditional rows read If-Match. [serves] sets it.
	Conditional bool
	// Unbuilt says what is promised and not there; the row answers 501.
	Unbuilt string

	mount func(*Server, route)
}

// takesBody says whether the row's body is read at all.
func (r route) takesBody() bool {
	return !r.Public && (r.Method == http.MethodPost || r.Method == http.MethodPatch || r.Method == http.MethodPut)
}

// Who may do what. There is no fourth combination.
var (
	admins    = []identity.Role{identity.Admin}
	auditors  = []identity.Role{identity.Admin, identity.Auditor}
	reviewers = []identity.Role{identity.Admin, identity.Reviewer}
	everyone  = []identity.Role{identity.Admin, identity.Auditor, identity.Reviewer}
)

// routes is the table. A path that is not in it does not exist. TestRoutes calls each row
// without a key, with a wrong one, with a wrong role, and from another org.
func routes() []route {
	return []route{
		// Agents
		serves(route{
			Method: "GET", Path: "/v1/agents", ID: "list-agents", Tag: tagAgents, Roles: everyone,
			Summary:     "List agents",
			Description: "Oldest first. Filters are exact and combine.",
		}, listAgents),
		serves(route{
			Method: "POST", Path: "/v1/agents", ID: "create-agent", Tag: tagAgents, Roles: admins, Status: 201,
			Summary:     "Create an agent",
			Description: "An agent is a program that calls models. It can do nothing until it has a key, and only what its `allowed_models`, its key and your policies permit.",
			Example:     `{"name":"support-bot","description":"Customer support assistant","allowed_models":["gpt-4o","claude-sonnet-4-20250514","gemini-2.5-pro"],"team":"support","environment":"prod","metadata":{"cost_center":"cx-7"}}`,
		}, createAgent),
		serves(route{
			Method: "GET", Path: "/v1/agents/{id}", ID: "get-agent", Tag: tagAgents, Roles: everyone,
			Summary: "Get an agent", Description: "The header `ETag` is for a later `If-Match`.",
		}, getAgent),
		serves(route{
			Method: "PATCH", Path: "/v1/agents/{id}", ID: "update-agent", Tag: tagAgents, Roles: admins,
			Summary:     "Update an agent",
			Description: mergePatch + " Suspending an agent (`{\"status\":\"suspended\"}`) rejects its requests and cuts its streams everywhere, within about a second.",
			Example:     `{"status":"suspended"}`,
		}, updateAgent),
		serves(route{
			Method: "DELETE", Path: "/v1/agents/{id}", ID: "delete-agent", Tag: tagAgents, Roles: admins, Status: 204,
			Summary: "Delete an agent", Description: "Its keys end with it. What it did stays in the audit log, under its id.",
		}, deleteAgent),

		// Keys of agents
		serves(route{
			Method: "GET", Path: "/v1/agents/{id}/keys", ID: "list-agent-keys", Tag: tagKeys, Roles: auditors,
			Summary: "List an agent's keys", Description: "Oldest first, revoked and expired ones too. The keys themselves are not kept; `hint` is the last four characters.",
		}, listKeys),
		serves(route{
			Method: "POST", Path: "/v1/agents/{id}/keys", ID: "create-agent-key", Tag: tagKeys, Roles: admins, Status: 201,
			Summary:     "Create an agent's key",
			Description: "The response holds the key. It is shown once: only its SHA-256 is kept. It works everywhere at once.",
			Example:     `{"name":"production-key","scopes":["chat:completions","embeddings"],"rate_limit":100,"expires_in_days":90}`,
		}, createKey),
		serves(route{
			Method: "GET", Path: "/v1/agents/{id}/keys/{key_id}", ID: "get-agent-key", Tag: tagKeys, Roles: auditors,
			Summary: "Get an agent's key", Description: "The key itself is not kept; `hint` is its last four characters.",
		}, getKey),
		serves(route{
			Method: "DELETE", Path: "/v1/agents/{id}/keys/{key_id}", ID: "revoke-agent-key", Tag: tagKeys, Roles: admins, Status: 204,
			Summary: "Revoke an agent's key", Description: "It is rejected everywhere within about a second, and its streams are cut. Revoking it again changes nothing.",
		}, revokeKey),
		serves(route{
			Method: "POST", Path: "/v1/agents/{id}/keys/{key_id}/rotate", ID: "rotate-agent-key", Tag: tagKeys, Roles: admins, Status: 201,
			Summary:     "Rotate an agent's key",
			Description: "Makes a new key with the scopes, models and rate limit of the old one. Both work until the overlap ends; then the old one has expired.",
			Example:     `{"overlap_hours":24}`,
		}, rotateKey),

		// The audit log
		serves(route{
			Method: "GET", Path: "/v1/agents/{id}/logs", ID: "list-agent-logs", Tag: tagRecord, Roles: auditors,
			Summary:     "List what an agent did",
			Description: "Entries of the audit log about the agent, newest first. Each request leaves two: `request.decided` before anything is forwarded, and `request.settled` at its end. Prompts and responses are never in them.",
		}, listLogs),
		serves(route{
			Method: "GET", Path: "/v1/agents/{id}/usage", ID: "get-agent-usage", Tag: tagRecord, Roles: auditors,
			Summary:     "Get an agent's usage",
			Description: "Requests, tokens and money by day and model. Money is whole nano-dollars (1 USD = 1,000,000,000). `unpriced` counts requests whose cost is not known, which is not 0.",
		}, getUsage),
		serves(route{
			Method: "GET", Path: "/v1/audit/entries", ID: "list-audit-entries", Tag: tagRecord, Roles: auditors,
			Summary:     "Export the record",
			Description: "The org's whole chain, oldest first, with what is needed to verify it: the exact bytes of each entry, and the HMACs. Walk it with `after`.",
		}, exportEntries),

		// Policies
		serves(route{
			Method: "GET", Path: "/v1/policies", ID: "list-policies", Tag: tagPolicies, Roles: everyone,
			Summary: "List policies", Description: "Oldest first.",
		}, listPolicies),
		serves(route{
			Method: "POST", Path: "/v1/policies", ID: "create-policy", Tag: tagPolicies, Roles: admins, Status: 201, Raw: true,
			Summary:     "Create a policy",
			Description: "Any deny that matches denies. An agent that an allow policy selects (by its conditions on `agent.*` and `caller.*`) may do only what one such policy permits; an agent that none selects has its `allowed_models` and its key's scopes. A condition on an attribute that a request does not have is false. What this version cannot enforce is refused, never ignored.",
			Example:     `{"name":"support-agents-read-only-crm","effect":"allow","conditions":{"agent.team":"support","agent.environment":"prod","request.tool":{"in":["crm.read","kb.search"]},"request.hour_utc":{"between":[13,23]}},"limits":{"rpm":60}}`,
		}, createPolicy),
		serves(route{
			Method: "GET", Path: "/v1/policies/{id}", ID: "get-policy", Tag: tagPolicies, Roles: everyone,
			Summary: "Get a policy", Description: "The header `ETag` is for a later `If-Match`.",
		}, getPolicy),
		serves(route{
			Method: "PATCH", Path: "/v1/policies/{id}", ID: "update-policy", Tag: tagPolicies, Roles: admins, Raw: true,
			Summary:     "Update a policy",
			Description: mergePatch + " Conditions are merged too: to take one out, send it as null.",
			Example:     `{"limits":{"rpm":120},"conditions":{"request.hour_utc":null}}`,
		}, updatePolicy),
		serves(route{
			Method: "DELETE", Path: "/v1/policies/{id}", ID: "delete-policy", Tag: tagPolicies, Roles: admins, Status: 204,
			Summary: "Delete a policy", Description: "Deleting an agent's last allow policy gives it the baseline back: its `allowed_models` and its key's scopes.",
		}, deletePolicy),

		// Providers
		serves(route{
			Method: "GET", Path: "/v1/providers", ID: "list-providers", Tag: tagProviders, Roles: auditors,
			Summary: "List providers", Description: "Oldest first. Credentials are never shown.",
		}, listProviders),
		serves(route{
			Method: "POST", Path: "/v1/providers", ID: "create-provider", Tag: tagProviders, Roles: admins, Status: 201,
			Summary:     "Create a provider",
			Description: "Says where models are. Give its credential next, with PUT …/credential. It takes effect everywhere without a restart.",
			Example:     `{"name":"openai","kind":"openai","base_url":"https://api.openai.com/v1","models":["gpt-*","o*","text-embedding-*"]}`,
		}, createProvider),
		serves(route{
			Method: "GET", Path: "/v1/providers/{id}", ID: "get-provider", Tag: tagProviders, Roles: auditors,
			Summary: "Get a provider", Description: "The header `ETag` is for a later `If-Match`.",
		}, getProvider),
		serves(route{
			Method: "PATCH", Path: "/v1/providers/{id}", ID: "update-provider", Tag: tagProviders, Roles: admins,
			Summary:     "Update a provider",
			Description: mergePatch + " A credential is bound to the `base_url` that it was given for: changing the URL drops the credential, and the response says so in `warnings`.",
			Example:     `{"models":["gpt-4o","gpt-4o-mini"]}`,
		}, updateProvider),
		serves(route{
			Method: "DELETE", Path: "/v1/providers/{id}", ID: "delete-provider", Tag: tagProviders, Roles: admins, Status: 204,
			Summary: "Delete a provider", Description: "Its credential goes with it. Streams that run are not cut.",
		}, deleteProvider),
		serves(route{
			Method: "PUT", Path: "/v1/providers/{id}/credential", ID: "put-provider-credential", Tag: tagProviders, Roles: admins,
			Summary:     "Set a provider's credential",
			Description: "It is sealed at rest, is sent to this provider's `base_url` and nowhere else, and is never shown again.",
			Example:     `{"secret":"sk-the-key-that-the-provider-gave-you"}`,
		}, putCredential),
		serves(route{
			Method: "GET", Path: "/v1/models", ID: "list-models", Tag: tagProviders, Roles: everyone,
			Summary:     "List models",
			Description: "The models that your providers name, in OpenAI's format. A pattern such as `gpt-*` is not in the list, since its models are not known here. On the gateway, with an agent's key, the same path lists what that agent may use.",
		}, listModels),

		// The org
		serves(route{
			Method: "GET", Path: "/v1/me", ID: "get-me", Tag: tagOrg, Roles: everyone,
			Summary: "Who am I", Description: "The organization and the role of the key that you sent.",
		}, getMe),
		serves(route{
			Method: "GET", Path: "/v1/org-keys", ID: "list-org-keys", Tag: tagOrg, Roles: admins,
			Summary: "List organization keys", Description: "Oldest first, revoked and expired ones too.",
		}, listOrgKeys),
		serves(route{
			Method: "POST", Path: "/v1/org-keys", ID: "create-org-key", Tag: tagOrg, Roles: admins, Status: 201,
			Summary:     "Create an organization key",
			Description: "For people and programs that manage. `admin` may do everything, `auditor` may read everything but organization keys and nodes, `reviewer` may read agents and policies and decide approvals. The response holds the key. It is shown once.",
			Example:     `{"name":"ci","role":"auditor","expires_in_days":365}`,
		}, createOrgKey),
		serves(route{
			Method: "GET", Path: "/v1/org-keys/{id}", ID: "get-org-key", Tag: tagOrg, Roles: admins,
			Summary: "Get an organization key", Description: "Without the key itself, which is not kept.",
		}, getOrgKey),
		serves(route{
			Method: "DELETE", Path: "/v1/org-keys/{id}", ID: "revoke-org-key", Tag: tagOrg, Roles: admins, Status: 204,
			Summary: "Revoke an organization key", Description: "The last admin key that works cannot be revoked, since the org could not be managed without it.",
		}, revokeOrgKey),
		serves(route{
			Method: "GET", Path: "/v1/nodes", ID: "list-nodes", Tag: tagOrg, Roles: admins,
			Summary: "List nodes", Description: "Envoys and sidecars that may fetch this org's configuration, credentials included.",
		}, listNodes),
		serves(route{
			Method: "POST", Path: "/v1/nodes", ID: "create-node", Tag: tagOrg, Roles: admins, Status: 201,
			Summary:     "Create a node",
			Description: "Gives a join token, this once; or, with `spiffe_id`, lets the holder of that certificate in without one.",
			Example:     `{"name":"gateway-eu-1"}`,
		}, createNode),
		serves(route{
			Method: "GET", Path: "/v1/nodes/{id}", ID: "get-node", Tag: tagOrg, Roles: admins,
			Summary: "Get a node", Description: "Without its join token, which is not kept.",
		}, getNode),
		serves(route{
			Method: "DELETE", Path: "/v1/nodes/{id}", ID: "revoke-node", Tag: tagOrg, Roles: admins, Status: 204,
			Summary: "Revoke a node", Description: "It gets no configuration any more. Revoking it again changes nothing.",
		}, revokeNode),

		// Promised, and not built in this version. Each says so and changes nothing.
		unbuilt("POST", "/v1/policies/dry-run", "dry-run-policy", tagPolicies, admins, "Dry-run a policy on recorded traffic"),
		unbuilt("GET", "/v1/shadow-agents", "list-shadow-agents", tagShadow, auditors, "List detected shadow agents"),
		unbuilt("POST", "/v1/shadow-agents/{id}/register", "register-shadow-agent", tagShadow, admins, "Register a shadow agent"),
		unbuilt("POST", "/v1/shadow-agents/{id}/block", "block-shadow-agent", tagShadow, admins, "Block a shadow agent"),
		unbuilt("POST", "/v1/shadow-agents/{id}/dismiss", "dismiss-shadow-agent", tagShadow, admins, "Dismiss a shadow agent"),
		unbuilt("GET", "/v1/approvals", "list-approvals", tagApprovals, everyone, "List pending approvals"),
		unbuilt("POST", "/v1/approvals/{id}/decide", "decide-approval", tagApprovals, reviewers, "Decide an approval"),
		unbuilt("GET", "/v1/attestations/{session_id}", "get-attestation", tagRecord, auditors, "Get a session's signed attestation"),
		unbuilt("POST", "/v1/compliance/exports", "create-compliance-export", tagCompliance, auditors, "Make an evidence bundle"),
		unbuilt("GET", "/v1/compliance/exports/{id}", "get-compliance-export", tagCompliance, auditors, "Download an evidence bundle"),
		unbuilt("POST", "/v1/audit/sinks", "create-audit-sink", tagRecord, admins, "Forward the audit log to a SIEM"),
		unbuilt("GET", "/v1/audit/sinks", "list-audit-sinks", tagRecord, auditors, "List SIEM sinks"),
		unbuilt("GET", "/.well-known/jwks.json", "get-jwks", tagRecord, nil, "Public keys of attestations"),

		// Pages
		page("GET", "/{$}", start),
		page("GET", "/readyz", readyz),
		page("GET", "/openapi.json", specJSON),
		page("GET", "/openapi.yaml", specYAML),
		page("GET", "/docs", swagger),
		page("GET", "/docs/", swagger),
		page("GET", "/redoc", redoc),
		page("GET", "/redoc/redoc.standalone.js", redocScript),
	}
}

const mergePatch = "Takes a JSON merge patch (RFC 7396): what is not in it stays, `null` puts back what a new object has, objects are merged name by name, lists are replaced whole. With `If-Match`, the change is made only to the version that you saw (412 otherwise); without it, to the newest."

// The groups of the description, in its order.
const (
	tagAgents     = "Agents"
	tagKeys       = "Agent keys"
	tagPolicies   = "Policies"
	tagProviders  = "Providers"
	tagRecord     = "Record"
	tagOrg        = "Organization"
	tagApprovals  = "Approvals"
	tagShadow     = "Shadow agents"
	tagCompliance = "Compliance"
)

// serves makes a row of an operation.
func serves[I, O any](r route, fn func(context.Context, *call, *I) (*O, error)) route {
	if in := reflect.TypeFor[I](); in.Kind() == reflect.Struct {
		_, r.Conditional = in.FieldByName("IfMatch")
	}
	r.mount = func(s *Server, r route) {
		op := s.operation(r)
		body, ok := reflect.TypeFor[I]().FieldByName("Body")
		huma.Register(s.huma, op, func(ctx context.Context, in *I) (*O, error) { return act(ctx, s, r, in, fn) })
		if ok {
			s.bodies[r.ID] = s.huma.OpenAPI().Components.Schemas.Schema(body.Type, true, "")
		}
	}
	return r
}

// unbuilt makes a row of an operation that is promised and not there.
func unbuilt(method, path, id, tag string, roles []identity.Role, summary string) route {
	r := route{
		Method: method, Path: path, ID: id, Tag: tag, Roles: roles, Public: roles == nil, Status: http.StatusNotImplemented,
		Summary: summary, Description: "Promised, and not built in this version: the response is 501, and nothing is changed.", Unbuilt: summary,
	}
	r.mount = func(s *Server, r route) {
		op := s.operation(r)
		for _, part := range strings.Split(path, "/") {
			if name, ok := strings.CutPrefix(part, "{"); ok {
				op.Parameters = append(op.Parameters, &huma.Param{Name: strings.TrimSuffix(name, "}"), In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}})
			}
		}
		huma.Register(s.huma, op, func(context.Context, *struct{}) (*struct{}, error) {
			return nil, &problem{
				Status: http.StatusNotImplemented, Code: "not_built", Message: r.Unbuilt + ": this is not built in this version. Nothing was changed.",
				Fix: "Look for it in the release notes of a newer version.",
			}
		})
	}
	return r
}

// page makes a row of what is for browsers, and public.
func page(method, path string, serve func(*Server, http.ResponseWriter, *http.Request)) route {
	return route{Method: method, Path: path, Public: true, mount: func(s *Server, r route) {
		s.mux.HandleFunc(r.Method+" "+r.Path, func(w http.ResponseWriter, req *http.Request) { serve(s, w, req) })
	}}
}
