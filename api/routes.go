package api

import (
	"context"
	"net/http"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/ai-identity/ai-identity/identity"
)

// route is one row of the table. It has the whole operation except the types of its input
// and output, which the handler has.
type route struct {
	Method, Path string
	ID           string // of the operation
	Tag          string
	Summary      string
	Description  string

	// Roles lists the roles that may call it. Without roles it rejects every key, unless it
	// is Public.
	Roles []identity.Role
	// Conflicts rows return 409 to a GET: the object is not ready.
	Conflicts bool
	// Agents rows accept an agent's key too, for what is the agent's own.
	Agents bool
	// Public rows require no key, and return nothing about any org.
	Public bool

	Status  int    // of success; 0: 200, or 204 without a body
	MIME    string // of the response; "": JSON
	Example string // an example of the body
	// Only the handler validates Raw bodies, with better messages.
	Raw bool
	// Names rows have the id of an object in their body, and return 404 if it does not exist.
	Names bool
	// Conditional rows read If-Match. [serves] sets it.
	Conditional bool
	// Unbuilt names an operation that is not built; the row returns 501.
	Unbuilt string

	mount func(*Server, route)
}

// takesBody reports whether the row reads a body.
func (r route) takesBody() bool {
	return !r.Public && (r.Method == http.MethodPost || r.Method == http.MethodPatch || r.Method == http.MethodPut)
}

// The combinations of roles in the table.
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
			Description: "An agent is a program that calls models. It needs a key. It may do only what its `allowed_models`, its key and your policies permit.",
			Example:     `{"name":"support-bot","description":"Customer support assistant","allowed_models":["gpt-4o","claude-sonnet-4-20250514","gemini-2.5-pro"],"team":"support","environment":"prod","metadata":{"cost_center":"cx-7"}}`,
		}, createAgent),
		serves(route{
			Method: "GET", Path: "/v1/agents/{id}", ID: "get-agent", Tag: tagAgents, Roles: everyone,
			Summary: "Get an agent", Description: "Send the header `ETag` in a later `If-Match`.",
		}, getAgent),
		serves(route{
			Method: "PATCH", Path: "/v1/agents/{id}", ID: "update-agent", Tag: tagAgents, Roles: admins,
			Summary:     "Update an agent",
			Description: mergePatch + " After you suspend an agent (`{\"status\":\"suspended\"}`), all sidecars reject its requests and cut its streams, within about a second.",
			Example:     `{"status":"suspended"}`,
		}, updateAgent),
		serves(route{
			Method: "DELETE", Path: "/v1/agents/{id}", ID: "delete-agent", Tag: tagAgents, Roles: admins, Status: 204,
			Summary: "Delete an agent", Description: "Its keys are revoked. Its history stays in the audit log, under its id.",
		}, deleteAgent),

		// Keys of agents
		serves(route{
			Method: "GET", Path: "/v1/agents/{id}/keys", ID: "list-agent-keys", Tag: tagKeys, Roles: auditors,
			Summary: "List an agent's keys", Description: "Oldest first, including revoked and expired ones. The keys themselves are not stored; `hint` is the last four characters.",
		}, listKeys),
		serves(route{
			Method: "POST", Path: "/v1/agents/{id}/keys", ID: "create-agent-key", Tag: tagKeys, Roles: admins, Status: 201,
			Summary:     "Create an agent's key",
			Description: "The response has the key. It is shown only once, since only its SHA-256 is stored. The key is valid at once.",
			Example:     `{"name":"production-key","scopes":["chat:completions","embeddings"],"rate_limit":100,"expires_in_days":90}`,
		}, createKey),
		serves(route{
			Method: "GET", Path: "/v1/agents/{id}/keys/{key_id}", ID: "get-agent-key", Tag: tagKeys, Roles: auditors,
			Summary: "Get an agent's key", Description: "The key itself is not stored; `hint` is its last four characters.",
		}, getKey),
		serves(route{
			Method: "DELETE", Path: "/v1/agents/{id}/keys/{key_id}", ID: "revoke-agent-key", Tag: tagKeys, Roles: admins, Status: 204,
			Summary: "Revoke an agent's key", Description: "All sidecars reject the key and cut its streams, within about a second. Revoking it again changes nothing.",
		}, revokeKey),
		serves(route{
			Method: "POST", Path: "/v1/agents/{id}/keys/{key_id}/rotate", ID: "rotate-agent-key", Tag: tagKeys, Roles: admins, Status: 201,
			Summary:     "Rotate an agent's key",
			Description: "Creates a new key with the scopes, models and rate limit of the old one. Both are valid until the overlap ends. Then the old key expires.",
			Example:     `{"overlap_hours":24}`,
		}, rotateKey),

		// Identities of agents
		serves(route{
			Method: "GET", Path: "/v1/agents/{id}/identities", ID: "list-agent-identities", Tag: tagKeys, Roles: auditors,
			Summary: "List an agent's identities", Description: "Oldest first, including revoked and expired ones. An identity is a credential that another system issues, so the agent needs no key.",
		}, listIdentities),
		serves(route{
			Method: "POST", Path: "/v1/agents/{id}/identities", ID: "create-agent-identity", Tag: tagKeys, Roles: admins, Status: 201,
			Summary: "Bind an identity to an agent",
			Description: "The program with this identity is the agent. The operator must have granted its namespace, or a prefix of its SPIFFE id, to this organization. " +
				"An identity belongs to one agent, and an agent may have several.",
			Example: `{"name":"production","kubernetes":{"issuer":"https://kubernetes.default.svc.cluster.local","namespace":"ai","service_account":"support-bot"},"scopes":["chat:completions"],"rate_limit":100}`,
		}, bindIdentity),
		serves(route{
			Method: "GET", Path: "/v1/agents/{id}/identities/{identity_id}", ID: "get-agent-identity", Tag: tagKeys, Roles: auditors,
			Summary: "Get an agent's identity", Description: "What it names, and what it permits.",
		}, getIdentity),
		serves(route{
			Method: "DELETE", Path: "/v1/agents/{id}/identities/{identity_id}", ID: "revoke-agent-identity", Tag: tagKeys, Roles: admins, Status: 204,
			Summary: "Revoke an agent's identity", Description: "All sidecars reject it and cut its streams, within about a second. Revoking it again changes nothing. You can then bind it again.",
		}, revokeIdentity),

		// The audit log
		serves(route{
			Method: "GET", Path: "/v1/agents/{id}/logs", ID: "list-agent-logs", Tag: tagRecord, Roles: auditors,
			Summary:     "List an agent's audit entries",
			Description: "Entries of the audit log about the agent, newest first. Each request has two: `request.decided` before anything is forwarded, and `request.settled` at the end. They never contain prompts or responses.",
		}, listLogs),
		serves(route{
			Method: "GET", Path: "/v1/agents/{id}/usage", ID: "get-agent-usage", Tag: tagRecord, Roles: auditors,
			Summary:     "Get an agent's usage",
			Description: "Requests, tokens and cost by day and model. Cost is an integer in nano-dollars (1 USD = 1,000,000,000). `unpriced` counts requests with unknown cost, which the sums do not include.",
		}, getUsage),
		serves(route{
			Method: "GET", Path: "/v1/usage", ID: "get-usage", Tag: tagRecord, Roles: auditors,
			Summary: "Get the organization's usage",
			Description: "Requests, tokens, cost and charges, grouped by day, agent, team, model, provider or policy. `cost_nano_usd` is the known cost. " +
				"`charged_nano_usd` is what was charged under USD caps. A field of a group without a value is left out. Add names to `by` with commas.",
		}, orgUsage),
		serves(route{
			Method: "GET", Path: "/v1/usage.csv", ID: "get-usage-csv", Tag: tagRecord, Roles: auditors, MIME: "text/csv",
			Summary:     "Get the organization's usage as CSV",
			Description: "The same sums with one line for each group, at most 100,000. A name that a spreadsheet would take for a formula begins with an apostrophe.",
		}, orgUsageCSV),
		serves(route{
			Method: "GET", Path: "/v1/audit/entries", ID: "list-audit-entries", Tag: tagRecord, Roles: auditors,
			Summary:     "Export the audit log",
			Description: "The org's whole chain, oldest first, with the exact bytes of each entry and the HMACs, so that you can verify it. Read the pages with `after`.",
		}, exportEntries),
		serves(route{
			Method: "GET", Path: "/v1/audit/exports", ID: "list-audit-exports", Tag: tagRecord, Roles: auditors,
			Summary: "List exports of the audit log", Description: "Newest first.",
		}, listExports),
		serves(route{
			Method: "POST", Path: "/v1/audit/exports", ID: "create-audit-export", Tag: tagRecord, Roles: auditors, Status: 201, Names: true,
			Summary: "Order an export of the audit log",
			Description: "An export proves that it is complete for its filter, up to a signed checkpoint. It has the link of each entry of the range, and the entries that match. " +
				"The same filter and checkpoint return the same export, byte for byte. Verify it with `ai_identity_verify chain` or `aid audit verify --offline`.",
			Example: `{"agent_id":"ag_01k0000000abcdefghjkmnpqrs","since":"2026-01-01T00:00:00Z","until":"2026-02-01T00:00:00Z"}`,
		}, createExport),
		serves(route{
			Method: "GET", Path: "/v1/audit/exports/{id}", ID: "get-audit-export", Tag: tagRecord, Roles: auditors,
			Summary: "Get the state of an export", Description: "Get it until its state is `complete`.",
		}, getExport),
		serves(route{
			Method: "GET", Path: "/v1/audit/exports/{id}/file", ID: "get-audit-export-file", Tag: tagRecord, Roles: auditors,
			Summary: "Download an export", Description: "The file `audit_export.json`. To continue a download, send `Range: bytes=OFFSET-`.",
		}, getExportFile),
		serves(route{
			Method: "POST", Path: "/v1/forensics/reports", ID: "create-forensics-report", Tag: tagRecord, Roles: auditors, Status: 201, MIME: "application/json", Names: true,
			Summary: "Make a forensics report",
			Description: "The whole story of a request or a session: gateway, policy, provider and audit log. It has every entry, and the proof that a signed checkpoint has it. " +
				"The report is signed: `ai_identity_verify report forensics_report.json` verifies it.",
			Example: `{"request_id":"req_01k0000000abcdefghjkmnpqrs"}`,
		}, createReport),

		serves(route{
			Method: "GET", Path: "/v1/audit/proof", ID: "get-audit-proof", Tag: tagRecord, Roles: auditors, Agents: true, Names: true,
			Summary: "Prove that an entry is in the audit log",
			Description: "Redeems a receipt (`receipt`), or proves the entry with a number (`seq`). `included` has the entry's link, which is the leaf, the path to the root, and the signed checkpoint. " +
				"`pending`: try again. `gap`: the log records the entry as lost. `missing`: the log must have the entry, and does not. An agent's key redeems receipts of its own agent only.",
		}, auditProof),
		serves(route{
			Method: "GET", Path: "/v1/audit/consistency", ID: "get-audit-consistency", Tag: tagRecord, Roles: auditors, Agents: true, Names: true,
			Summary:     "Prove that one checkpoint continues another",
			Description: "The hashes that prove that the log with `old` entries is the beginning of the log with `size` entries (RFC 6962, section 2.1.2).",
		}, auditConsistency),

		serves(route{
			Method: "GET", Path: "/v1/sessions", ID: "list-sessions", Tag: tagRecord, Roles: auditors,
			Summary:     "List sessions",
			Description: "Newest first. A session is the requests of one agent with the same `X-Session-ID`. Requests without the header get an id of the sidecar (`sess_…`), in the entry's `own_session`.",
		}, listSessions),
		serves(route{
			Method: "POST", Path: "/v1/sessions/{session_id}/close", ID: "close-session", Tag: tagRecord, Roles: admins, Agents: true,
			Summary:     "Close a session",
			Description: "Decisions up to now belong to the session. Later requests with the same id begin its next generation, and none is rejected. A closed session stays closed. An agent's key closes its own sessions.",
		}, closeSession),
		serves(route{
			Method: "GET", Path: "/v1/attestations/{session_id}", ID: "get-attestation", Tag: tagRecord, Roles: auditors, Conflicts: true,
			Summary: "Get a session's signed attestation",
			Description: "A DSSE envelope over an in-toto Statement v1, signed with ECDSA P-256. Its subject is the root over the session's entries. " +
				"It is made when each request is completed and each sidecar has confirmed that all of its records are in the log. Until then the response is 409 `session_open`. " +
				"After a grace period it says `complete: false` and names what is open. Entries that arrive later make the next revision.",
		}, getAttestation),

		// Policies
		serves(route{
			Method: "GET", Path: "/v1/policies", ID: "list-policies", Tag: tagPolicies, Roles: everyone,
			Summary: "List policies", Description: "Oldest first.",
		}, listPolicies),
		serves(route{
			Method: "POST", Path: "/v1/policies", ID: "create-policy", Tag: tagPolicies, Roles: admins, Status: 201, Raw: true,
			Summary: "Create a policy",
			Description: "A deny policy that matches denies the request. " +
				"Allow policies select agents by their conditions on `agent.*` and `caller.*`. A selected agent may do only what one of these policies permits. " +
				"Any other agent may do what its `allowed_models` and its key's scopes permit. " +
				"A condition on an attribute that the request does not have is not true. A policy that this version cannot enforce is rejected.",
			Example: `{"name":"support-agents-read-only-crm","effect":"allow","conditions":{"agent.team":"support","agent.environment":"prod","request.tool":{"in":["crm.read","kb.search"]},"request.hour_utc":{"between":[13,23]}},"limits":{"rpm":60,"monthly_usd_cap":500}}`,
		}, createPolicy),
		serves(route{
			Method: "GET", Path: "/v1/policies/{id}", ID: "get-policy", Tag: tagPolicies, Roles: everyone,
			Summary: "Get a policy", Description: "Send the header `ETag` in a later `If-Match`.",
		}, getPolicy),
		serves(route{
			Method: "PATCH", Path: "/v1/policies/{id}", ID: "update-policy", Tag: tagPolicies, Roles: admins, Raw: true,
			Summary:     "Update a policy",
			Description: mergePatch + " Conditions are also merged: to remove one, send it as null.",
			Example:     `{"limits":{"rpm":120},"conditions":{"request.hour_utc":null}}`,
		}, updatePolicy),
		serves(route{
			Method: "DELETE", Path: "/v1/policies/{id}", ID: "delete-policy", Tag: tagPolicies, Roles: admins, Status: 204,
			Summary: "Delete a policy", Description: "Without any allow policy that selects it, an agent may do what its `allowed_models` and its key's scopes permit.",
		}, deletePolicy),
		serves(route{
			Method: "GET", Path: "/v1/policies/{id}/versions", ID: "list-policy-versions", Tag: tagPolicies, Roles: auditors,
			Summary: "List a policy's versions", Description: "Newest first: each document that the policy had, who wrote it, and when. They stay when the policy is deleted.",
		}, policyVersions),
		serves(route{
			Method: "GET", Path: "/v1/policies/{id}/rego", ID: "get-policy-rego", Tag: tagPolicies, Roles: auditors,
			Summary: "Get a policy in Rego", Description: "What the policy is compiled to. `policy/decision.rego` and `policy/baseline.rego` are evaluated with it.",
		}, policyRego),
		serves(route{
			Method: "POST", Path: "/v1/policies/explain", ID: "explain-decision", Tag: tagPolicies, Roles: auditors, Names: true,
			Summary:     "Explain a decision",
			Description: "Evaluates the input of a recorded request again, by the policies that decided it. The response lists every condition that fails in each policy that governs the agent. Nothing is changed.",
		}, explainRequest),
		serves(route{
			Method: "POST", Path: "/v1/policies/dry-run", ID: "dry-run-policy", Tag: tagPolicies, Roles: admins, Raw: true, Names: true,
			Summary:     "Dry-run a policy on recorded traffic",
			Description: "Evaluates recorded requests by today's policies with the candidate among them, and by today's policies alone. It changes no policy. A window with many requests is a job: the response is 202, and GET /v1/policy-dry-runs/{id} has its progress and its result.",
			Example:     `{"policy":{"name":"no-big-models","effect":"deny","conditions":{"request.model":{"glob":"gpt-4*"}}},"window":"24h"}`,
		}, dryRunPolicy),
		serves(route{
			Method: "GET", Path: "/v1/policy-dry-runs/{id}", ID: "get-policy-dry-run", Tag: tagPolicies, Roles: auditors,
			Summary: "Get a dry-run", Description: "Its progress, or its result, page by page. It is kept for a week.",
		}, getDryRun),

		serves(route{
			Method: "GET", Path: "/v1/policy-templates", ID: "list-policy-templates", Tag: tagPolicies, Roles: everyone,
			Summary: "List policy templates",
			Description: "Policies for common kinds of agents, without the agents that they govern. " +
				"With `operations`, `models` or `tools` that an agent was seen to use, the nearest template is first, and `fit` has what it does not permit.",
		}, listTemplates),
		serves(route{
			Method: "POST", Path: "/v1/policies/from-template", ID: "create-policy-from-template", Tag: tagPolicies, Roles: admins, Status: 201, Names: true,
			Summary:     "Create a policy from a template",
			Description: "The result is an ordinary policy. At least one of `agents`, `team` and `environment` is required: otherwise the policy would govern every agent.",
			Example:     `{"template":"support","name":"support-defaults","team":"support","models":["gpt-4o-mini","claude-haiku-*"]}`,
		}, createFromTemplate),

		serves(route{
			Method: "GET", Path: "/v1/limits/raises", ID: "list-limit-raises", Tag: tagPolicies, Roles: auditors,
			Summary: "List raises of USD caps", Description: "Oldest first, including those that have ended.",
		}, listRaises),
		serves(route{
			Method: "POST", Path: "/v1/limits/raises", ID: "raise-limit", Tag: tagPolicies, Roles: admins, Status: 201, Names: true,
			Summary: "Raise a USD cap",
			Description: "Adds to one count of a policy's daily or monthly cap until a time in its current period, within about a second on all sidecars. " +
				"Raises of one count add up. The policy stays as it is. No raise exceeds the cap of the organization's tier.",
			Example: `{"policy_id":"pol_01k0000000abcdefghjkmnpqrs","limit":"monthly_usd_cap","add_usd":50,"reason":"Launch week"}`,
		}, raiseLimit),
		serves(route{
			Method: "GET", Path: "/v1/limits/raises/{id}", ID: "get-limit-raise", Tag: tagPolicies, Roles: auditors,
			Summary: "Get a raise of a USD cap", Description: "A raise cannot be changed or withdrawn. It ends by its time.",
		}, getRaise),

		// Providers
		serves(route{
			Method: "GET", Path: "/v1/providers", ID: "list-providers", Tag: tagProviders, Roles: auditors,
			Summary: "List providers", Description: "Oldest first. Credentials are never shown.",
		}, listProviders),
		serves(route{
			Method: "POST", Path: "/v1/providers", ID: "create-provider", Tag: tagProviders, Roles: admins, Status: 201,
			Summary:     "Create a provider",
			Description: "A provider serves models at its `base_url`. Set its credential next, with PUT …/credential. It takes effect without a restart.",
			Example:     `{"name":"openai","kind":"openai","base_url":"https://api.openai.com/v1","models":["gpt-*","o*","text-embedding-*"]}`,
		}, createProvider),
		serves(route{
			Method: "GET", Path: "/v1/providers/{id}", ID: "get-provider", Tag: tagProviders, Roles: auditors,
			Summary: "Get a provider", Description: "Send the header `ETag` in a later `If-Match`.",
		}, getProvider),
		serves(route{
			Method: "PATCH", Path: "/v1/providers/{id}", ID: "update-provider", Tag: tagProviders, Roles: admins,
			Summary:     "Update a provider",
			Description: mergePatch + " A credential is bound to the `base_url` that it was set for. A new URL removes the credential, and the response has a warning in `warnings`.",
			Example:     `{"models":["gpt-4o","gpt-4o-mini"]}`,
		}, updateProvider),
		serves(route{
			Method: "DELETE", Path: "/v1/providers/{id}", ID: "delete-provider", Tag: tagProviders, Roles: admins, Status: 204,
			Summary: "Delete a provider", Description: "Its credential is deleted, too. Running streams are not cut.",
		}, deleteProvider),
		serves(route{
			Method: "PUT", Path: "/v1/providers/{id}/credential", ID: "put-provider-credential", Tag: tagProviders, Roles: admins,
			Summary:     "Set a provider's credential",
			Description: "The credential is encrypted at rest, is sent only to this provider's `base_url`, and is never shown again.",
			Example:     `{"secret":"sk-the-key-that-the-provider-gave-you"}`,
		}, putCredential),
		serves(route{
			Method: "GET", Path: "/v1/models", ID: "list-models", Tag: tagProviders, Roles: everyone,
			Summary:     "List models",
			Description: "The models of your providers, in OpenAI's format. Patterns such as `gpt-*` are not in the list, since their models are unknown. On the gateway, with an agent's key, the same path lists the agent's models.",
		}, listModels),

		// The org
		serves(route{
			Method: "GET", Path: "/v1/me", ID: "get-me", Tag: tagOrg, Roles: everyone,
			Summary: "Who am I", Description: "The organization and the role of the key that you sent.",
		}, getMe),
		serves(route{
			Method: "GET", Path: "/v1/org", ID: "get-org", Tag: tagOrg, Roles: everyone,
			Summary: "Get the organization", Description: "Its name, tier and time zone.",
		}, getOrg),
		serves(route{
			Method: "PATCH", Path: "/v1/org", ID: "update-org", Tag: tagOrg, Roles: admins,
			Summary:     "Change the organization's time zone",
			Description: "Days and months of USD caps begin and end in this zone. A change holds from the first of the next month, in the zone that holds until then. Sending the current zone withdraws a change that is due.",
			Example:     `{"timezone":"Europe/Berlin"}`,
		}, updateOrg),
		serves(route{
			Method: "GET", Path: "/v1/org-keys", ID: "list-org-keys", Tag: tagOrg, Roles: admins,
			Summary: "List organization keys", Description: "Oldest first, including revoked and expired ones.",
		}, listOrgKeys),
		serves(route{
			Method: "POST", Path: "/v1/org-keys", ID: "create-org-key", Tag: tagOrg, Roles: admins, Status: 201,
			Summary: "Create an organization key",
			Description: "A key for people and programs that use the management API. `admin` may do everything. " +
				"`auditor` may read everything except organization keys and nodes. `reviewer` may read agents and policies and decide approvals. " +
				"The response has the key. It is shown only once.",
			Example: `{"name":"ci","role":"auditor","expires_in_days":365}`,
		}, createOrgKey),
		serves(route{
			Method: "GET", Path: "/v1/org-keys/{id}", ID: "get-org-key", Tag: tagOrg, Roles: admins,
			Summary: "Get an organization key", Description: "The response does not include the key itself, which is not stored.",
		}, getOrgKey),
		serves(route{
			Method: "DELETE", Path: "/v1/org-keys/{id}", ID: "revoke-org-key", Tag: tagOrg, Roles: admins, Status: 204,
			Summary: "Revoke an organization key", Description: "The last active admin key cannot be revoked, since the organization could not be managed without it.",
		}, revokeOrgKey),
		serves(route{
			Method: "GET", Path: "/v1/nodes", ID: "list-nodes", Tag: tagOrg, Roles: admins,
			Summary: "List nodes", Description: "Envoys and sidecars that may fetch this org's configuration, including credentials.",
		}, listNodes),
		serves(route{
			Method: "POST", Path: "/v1/nodes", ID: "create-node", Tag: tagOrg, Roles: admins, Status: 201,
			Summary:     "Create a node",
			Description: "The response has a join token, which is shown only once. With `spiffe_id`, the node authenticates with its certificate and gets no token.",
			Example:     `{"name":"gateway-eu-1"}`,
		}, createNode),
		serves(route{
			Method: "GET", Path: "/v1/nodes/{id}", ID: "get-node", Tag: tagOrg, Roles: admins,
			Summary: "Get a node", Description: "The response does not include the join token, which is not stored.",
		}, getNode),
		serves(route{
			Method: "DELETE", Path: "/v1/nodes/{id}", ID: "revoke-node", Tag: tagOrg, Roles: admins, Status: 204,
			Summary: "Revoke a node", Description: "The node gets no more configuration. Revoking it again changes nothing.",
		}, revokeNode),

		// Evidence
		serves(route{
			Method: "GET", Path: "/v1/audit/checkpoint", ID: "get-checkpoint", Tag: tagRecord, Roles: auditors, MIME: "text/plain", Names: true,
			Summary:     "Get the newest checkpoint",
			Description: "The newest signed checkpoint of your organization's tree, as C2SP tlog-checkpoint describes. docs/evidence.md has the format.",
		}, orgCheckpoint),
		serves(route{
			Method: "GET", Path: "/v1/audit/tile/{level}/{index...}", ID: "get-tile", Tag: tagRecord, Roles: auditors, MIME: "application/octet-stream",
			Summary:     "Get a tile of the tree",
			Description: "Up to 256 hashes of your organization's tree, as C2SP tlog-tiles describes. A client of tlog-tiles has the prefix `/v1/audit`.",
		}, orgTile),
		serves(route{
			Method: "GET", Path: "/v1/audit/jwks", ID: "get-audit-jwks", Tag: tagRecord, Roles: auditors,
			Summary:     "Get the public keys with your key changes",
			Description: "The keys of `/.well-known/jwks.json`, and when they changed in the logs of your organization. Verifiers need it after a rotation.",
		}, orgKeys),
		jwks(route{
			Method: "GET", Path: "/.well-known/jwks.json", ID: "get-jwks", Tag: tagRecord, Summary: "Get the public keys",
			Description: "All keys that have ever signed checkpoints and documents of this installation, as a JSON Web Key Set. It needs no key.",
		}),

		// Promised and not built in this version. Each returns 501 and changes nothing.
		unbuilt("GET", "/v1/shadow-agents", "list-shadow-agents", tagShadow, auditors, "List detected shadow agents"),
		unbuilt("POST", "/v1/shadow-agents/{id}/register", "register-shadow-agent", tagShadow, admins, "Register a shadow agent"),
		unbuilt("POST", "/v1/shadow-agents/{id}/block", "block-shadow-agent", tagShadow, admins, "Block a shadow agent"),
		unbuilt("POST", "/v1/shadow-agents/{id}/dismiss", "dismiss-shadow-agent", tagShadow, admins, "Dismiss a shadow agent"),
		unbuilt("GET", "/v1/approvals", "list-approvals", tagApprovals, everyone, "List pending approvals"),
		unbuilt("POST", "/v1/approvals/{id}/decide", "decide-approval", tagApprovals, reviewers, "Decide an approval"),
		unbuilt("POST", "/v1/compliance/exports", "create-compliance-export", tagCompliance, auditors, "Make an evidence bundle"),
		unbuilt("GET", "/v1/compliance/exports/{id}", "get-compliance-export", tagCompliance, auditors, "Download an evidence bundle"),
		unbuilt("POST", "/v1/audit/sinks", "create-audit-sink", tagRecord, admins, "Forward the audit log to a SIEM"),
		unbuilt("GET", "/v1/audit/sinks", "list-audit-sinks", tagRecord, auditors, "List SIEM sinks"),

		// Pages
		page("GET", "/{$}", start),
		page("GET", "/readyz", readyz),
		page("GET", "/log/checkpoint", logCheckpoint),
		page("GET", "/log/tile/{level}/{index...}", logTile),
		page("GET", "/openapi.json", specJSON),
		page("GET", "/openapi.yaml", specYAML),
		page("GET", "/docs", swagger),
		page("GET", "/docs/", swagger),
		page("GET", "/redoc", redoc),
		page("GET", "/redoc/redoc.standalone.js", redocScript),
	}
}

const mergePatch = "Send a JSON merge patch (RFC 7396). A field that is not in it stays. `null` restores the default. Objects are merged by name; lists are replaced. " +
	"With `If-Match`, only the version that you read is changed (412 otherwise). Without it, the newest version is changed."

// The tags of the description, in its order.
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

// serves returns the row of an operation.
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
		// A parameter of several segments has dots in the mux and none in the description.
		if paths := s.huma.OpenAPI().Paths; strings.Contains(r.Path, "...}") {
			paths[strings.Replace(r.Path, "...}", "}", 1)] = paths[r.Path]
			delete(paths, r.Path)
		}
	}
	return r
}

// unbuilt returns the row of an operation that is promised and not built.
func unbuilt(method, path, id, tag string, roles []identity.Role, summary string) route {
	r := route{
		Method: method, Path: path, ID: id, Tag: tag, Roles: roles, Public: roles == nil, Status: http.StatusNotImplemented,
		Summary: summary, Description: "Not built in this version: the response is 501, and nothing is changed.", Unbuilt: summary,
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
				Status: http.StatusNotImplemented, Code: "not_built", Message: r.Unbuilt + ": this version does not support it. Nothing was changed.",
				Fix: "Read the release notes of newer versions.",
			}
		})
	}
	return r
}

// page returns the row of a public page for browsers.
func page(method, path string, serve func(*Server, http.ResponseWriter, *http.Request)) route {
	return route{Method: method, Path: path, Public: true, mount: func(s *Server, r route) {
		s.mux.HandleFunc(r.Method+" "+r.Path, func(w http.ResponseWriter, req *http.Request) { serve(s, w, req) })
	}}
}
