package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// errorCode is a code that a caller can receive, with its cause and remedy.
type errorCode struct {
	code   string
	status []int // the statuses of the response; empty: the code is only in the audit log
	cause  string
	remedy string
}

// errorGroup is a section of docs/errors.md.
type errorGroup struct {
	title      string
	management bool // of the management API; otherwise of the gateway
	codes      []errorCode
}

func explainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "explain [CODE]",
		Short: "Explain an error code: its cause, and what to do",
		Long: `explain prints the cause of an error code and its remedy. A code is in the "code" field
of an error, in the audit log's reasons, and in the metric aid_extproc_refusals_total.
Without a code it lists all of them.`,
		Example: `  aid explain model_not_allowed
  aid explain`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return explainAll(cmd.OutOrStdout())
			}
			return explain(cmd.OutOrStdout(), args[0])
		},
	}
}

func explainAll(out io.Writer) error {
	for _, g := range errorGroups {
		if _, err := fmt.Fprintln(out, g.title); err != nil {
			return err
		}
		for _, c := range g.codes {
			if _, err := fmt.Fprintf(out, "  %-28s %s\n", c.code, statusText(c.status)); err != nil {
				return err
			}
		}
	}
	return nil
}

func explain(out io.Writer, code string) error {
	found := false
	for _, g := range errorGroups {
		i := slices.IndexFunc(g.codes, func(c errorCode) bool { return c.code == code })
		if i < 0 {
			continue
		}
		found = true
		c := g.codes[i]
		if _, err := fmt.Fprintf(out, "%s (%s)\n%s\ncause:  %s\nremedy: %s\n", c.code, statusText(c.status), g.title, c.cause, c.remedy); err != nil {
			return err
		}
	}
	if !found {
		return usagef("unknown error code %q: `aid explain` lists all codes", code)
	}
	return nil
}

func statusText(status []int) string {
	if len(status) == 0 {
		return "audit log"
	}
	var text []string
	for _, n := range status {
		text = append(text, strconv.Itoa(n))
	}
	return strings.Join(text, ", ")
}

// errorGroups has every code that a caller can receive. TestErrorCodes compares it with
// the source of the packages that reply to callers; docs/errors.md is generated from it.
var errorGroups = []errorGroup{
	{title: "Keys and agents", codes: []errorCode{
		{"missing_api_key", []int{401}, "The request has no key.", "Send an agent key (`aid_sk_…`) as `Authorization: Bearer …`, `x-api-key` or `x-goog-api-key`."},
		{"invalid_api_key", []int{401}, "The key is malformed, unknown or deleted, or it is not an agent key.", "Check that the whole key was copied. If so, create a new one."},
		{"org_key_on_model_path", []int{401}, "An organization key (`aid_org_…`) was used to call a model.", "Create an agent key with `POST /v1/agents/{id}/keys` and send that."},
		{"ambiguous_credentials", []int{400}, "The request has two different keys or workload tokens, or such a header twice.", "Send one key, in one header."},
		{"misplaced_credential", []int{400}, "A key or a workload's token is in the URL, the body or another header. Those are kept in logs.", "Rotate the key. Send it as `Authorization: Bearer …` only, or a token in `X-AID-Workload-Token`."},
		{"invalid_workload_token", []int{401}, "The token of a workload is not valid. The message has the reason.", "Request a token for this installation's audience that is valid for at most an hour: see [identities](identities.md)."},
		{"workload_not_bound", []int{401}, "The token is valid, and no agent has this identity.", "Bind it with `POST /v1/agents/{id}/identities`."},
		{"workload_tokens_off", []int{401}, "The request has `X-AID-Workload-Token`, and the sidecar has no issuers.", "Set `--workload-issuers` of the sidecar, or leave the header out."},
		{"conflicting_identities", []int{403}, "The key and the workload belong to two agents.", "Send credentials of one agent."},
		{"identity_required", []int{403}, "The agent's `required_identities` has a kind of credential that the request lacks.", "Send the key and the workload's token (`X-AID-Workload-Token`) together."},
		{"identity_expired", []int{401}, "The identity's `expires_at` has passed.", "Bind it again."},
		{"identity_revoked", []int{401}, "The identity was revoked.", "Bind it again, if the agent may still call models."},
		{"key_expired", []int{401}, "The key's `expires_at` has passed, or the overlap of a rotation has ended.", "Create a key, or rotate before the old one expires."},
		{"key_revoked", []int{401}, "The key was revoked.", "Create a new key, if the agent may still call models."},
		{"key_unknown", []int{401}, "The key was deleted while the request was in progress.", "Create a new key."},
		{"key_inactive", []int{403}, "The key is in a state that this version does not support.", "Update the sidecar to the control plane's version."},
		{"agent_suspended", []int{403}, "The agent's `status` is `suspended`.", "Set it to `active` with `PATCH /v1/agents/{id}`."},
		{"agent_inactive", []int{403}, "The agent is neither active nor suspended, for example because it was deleted.", "Create an agent and a key."},
		{"inactive", []int{403}, "The key or the agent may not be used, for a reason that this version does not support.", "Update the sidecar to the control plane's version."},
	}},
	{title: "Policy", codes: []errorCode{
		{"scope_missing", []int{403}, "The key does not have the scope of this operation.", "Create a key with the scope (`chat:completions`, `embeddings`, …)."},
		{"model_not_allowed", []int{403}, "The model is not in `allowed_models` of the agent, or not in those of the key.", "Add the model with `PATCH /v1/agents/{id}`, or create a key that has it."},
		{"policy_denied", []int{403}, "A deny policy matches the request. `policy_id` names it.", "Read the policy: `GET /v1/policies/{id}`. Change the request or the policy."},
		{"not_permitted", []int{403}, "Allow policies govern this agent, and not one of them permits the request.", "Widen one of those policies, or add one. The audit entry's `policy_ids` names them."},
		{"approval_required", []int{403}, "A policy requires a person's approval. This version does not support approvals, so the request is rejected.", "Change the request, or the policy that `policy_id` names."},
		{"policy_error", []int{403, 503}, "The policies could not be evaluated, or this version cannot enforce a limit.", "Look at the sidecar's log. Update the sidecar to the control plane's version."},
		{"policy_timeout", []int{503}, "The policies were not evaluated in time.", "Try again. If it stays, reduce the load or the number of conditions."},
	}},
	{title: "Limits and capacity", codes: []errorCode{
		{"rate_limit_exceeded", []int{429}, "The requests or tokens per minute of the key or of a policy are used up, or the provider's own limit is.", "Wait for `Retry-After`, or raise `rate_limit` or the policy's `rpm` or `tpm`. Without `Retry-After` the request is larger than the limit: send less."},
		{"concurrency_limit_exceeded", []int{429}, "As many requests are in progress as a policy's `concurrent` allows.", "Wait until one has ended, or raise `concurrent`."},
		{"max_tokens_exceeded", []int{403}, "The request asks for more output tokens than a policy's `max_tokens` allows.", "Ask for fewer, or raise `max_tokens`."},
		{"invalid_max_tokens", []int{400}, "The request asks for 0 output tokens where a limit on tokens or cost applies.", "Ask for at least 1."},
		{"too_many_limits", []int{403}, "More than 64 limits apply to the request.", "Give fewer limits to the policies that permit it."},
		{"insufficient_quota", []int{429}, "The USD cap of a policy is spent.", "Wait for the next period, or raise the cap."},
		{"session_limit_exceeded", []int{429}, "The session has had the requests or the time that a policy permits.", "Begin a new session, with another `X-Session-ID`."},
		{"budget_held", []int{429}, "The USD cap has no room while requests in progress hold what they may cost.", "Wait for `Retry-After`. A smaller `max_tokens` holds less."},
		{"budget_too_large", []int{429}, "The request may cost more than what is left of a USD cap.", "Set `max_tokens` to the number in the message, or send less."},
		{"price_unknown", []int{403}, "A USD cap applies, and what the request may cost is not known.", "Add the line in the message to the file of `--prices`."},
		{"unbounded_cost", []int{403}, "A USD cap applies, and the request has a tool that the provider runs itself.", "Leave the tool out, or use a policy without a USD cap."},
		{"too_many_waiting", []int{429}, "Too many requests of the key or the agent wait for their bodies.", "Send bodies faster, and fewer at once."},
		{"request_too_large", []int{413}, "The body, encoded or decoded, is larger than `--max-body` (16 MiB).", "Send less, or raise `--max-body` of control and extproc."},
		{"headers_too_large", []int{431}, "The request headers have more than 60 KiB, or more than 100 lines.", "Send fewer or shorter headers."},
		{"overloaded", []int{503}, "The sidecar has no room for the request, or no free worker.", "Try again. Add sidecars, or raise `--max-waiting-bytes` or `--max-deciding`."},
		{"gateway_overloaded", []int{503}, "The sidecar has `--max-streams` requests, or Envoy is at its limit of memory or connections.", "Try again. Add sidecars, or raise the limit."},
		{"shutting_down", []int{503}, "The sidecar is stopping.", "Try again: another sidecar, or the restarted one, responds."},
	}},
	{title: "The request", codes: []errorCode{
		{"unknown_endpoint", []int{404}, "The gateway does not forward this path.", "Check the client's base URL: the message names the nearest path. [clients.md](clients.md) has those of each client."},
		{"method_not_allowed", []int{405}, "The path has another method.", "Use the method that the message names. For browsers, set `--cors-origins`."},
		{"invalid_path", []int{400}, "The path is not in normal form: it has `//`, `..`, or an unnecessary escape.", "Send the path as the provider's documentation has it."},
		{"unknown_host", []int{421}, "The request's host is not one of `--domains`.", "Use a host of `--domains`, or add this one."},
		{"invalid_session_id", []int{400}, "`X-Session-ID` is empty, longer than 128 characters, or has other characters than letters, digits and `. _ : @ + = -`.", "Send another id, such as a UUID, or leave the header out."},
		{"invalid_host", []int{400}, "The request has no host, or the host has invalid characters.", "Send one host."},
		{"invalid_scheme", []int{400}, "The request's scheme is neither http nor https.", "Use http or https."},
		{"bad_request", []int{400}, "Envoy cannot read the request: it is not valid HTTP.", "Send valid HTTP/1.1 or HTTP/2."},
		{"repeated_header", []int{400}, "The request has a header twice that is allowed only once.", "Send it once."},
		{"invalid_content_length", []int{400}, "`content-length` is not a number.", "Send the length of the body, or leave the header out."},
		{"trailers_not_accepted", []int{400}, "The request has trailers.", "Send no trailers."},
		{"http_version_not_supported", []int{426}, "The request is HTTP/1.0, or another version that is not supported.", "Use HTTP/1.1 or HTTP/2."},
		{"host_not_governed", []int{403}, "An intercepted connection is to a host that no provider of the organization has, or the proxy does not intercept.", "Add the host to `hosts` of the provider, or to `NO_PROXY`: see [intercepted applications](egress.md)."},
		{"misdirected_request", []int{421}, "The host of an intercepted request is not the host of its connection.", "Use one connection for each host."},
		{"connect_required", []int{400}, "The forward proxy received a request that is not CONNECT.", "Use the provider's `https://` URL."},
		{"upgrade_refused", []int{403}, "The request is an upgrade to WebSocket or h2c, or a CONNECT.", "Use a plain HTTP request."},
		{"request_timeout", []int{408}, "The request did not arrive in time.", "Send it faster."},
		{"request_incomplete", nil, "The client closed the connection before its request was complete.", "None: nothing was forwarded."},
		{"unexpected_body", []int{400}, "The request has a body, and the operation does not accept one.", "Send no body."},
		{"unsupported_media_type", []int{415}, "The body is not JSON.", "Send `Content-Type: application/json`."},
		{"unsupported_encoding", []int{415}, "The `content-encoding` is not supported.", "Use gzip, br or zstd, or do not compress the body."},
		{"invalid_encoding", []int{400}, "The body is not in the encoding that `content-encoding` names.", "Send it uncompressed, or correct the header."},
		{"mislabelled_body", []int{400}, "The body is compressed, and `content-encoding` does not name it.", "Add the header."},
		{"invalid_json", []int{400}, "The body is not one JSON object in UTF-8, or it is nested too deeply.", "Send one JSON object."},
		{"repeated_field", []int{400}, "The body has a field twice. Parsers disagree on which one counts.", "Send it once."},
		{"ambiguous_field_name", []int{400}, "A field's name differs from a known one only in case, or looks like it.", "Use the name in the message."},
		{"invalid_field_name", []int{400}, "A field's name has characters that this API does not use in names.", "Use plain ASCII."},
		{"unknown_field", []int{400}, "The field is not known for this provider.", "Remove it, or add it to the provider's `settings.pass_fields`."},
		{"too_many_betas", []int{400}, "A header for beta features has more than 64 values.", "Send fewer values."},
		{"too_many_unknown_fields", []int{400}, "The body has more than 64 fields that this API does not have.", "Remove them."},
		{"unknown_query_parameter", []int{400}, "The endpoint does not accept this query parameter.", "Remove it."},
		{"repeated_query_parameter", []int{400}, "The request has a query parameter twice.", "Send it once."},
		{"invalid_type", []int{400}, "A field has the wrong type, or a value that does not fit.", "Correct the field that `param` names."},
		{"missing_model", []int{400}, "The request names no model.", "Set `model`."},
		{"invalid_model", []int{400}, "`model` is not a valid name.", "Use a name in the list of `GET /v1/models`."},
		{"model_mismatch", []int{400}, "The model in the body is not the one in the path.", "Name one model."},
		{"model_not_found", []int{404}, "No provider serves the model, or the key may not use it.", "List the models with `GET /v1/models`. An administrator can add the model to a provider."},
		{"missing_label", []int{400}, "An MCP server has no name, which policies need.", "Set `server_label`, or `name`."},
		{"too_many_tools", []int{400}, "The request has more different tools than the audit log records.", "Send fewer tools."},
		{"too_many_urls", []int{400}, "The request has more URLs, or hosts, than the audit log records.", "Send fewer URLs."},
		{"unsupported_parameter", []int{400}, "The field would change the target of the request, or set a model that was not evaluated.", "Remove the field that `param` names."},
		{"stored_object", []int{400}, "The field refers to something stored or run at the provider.", "Put everything into the request. For Responses set `store: false`."},
		{"unsupported_endpoint", []int{400}, "The model's provider does not support this operation.", "Use another operation or model: [providers.md](providers.md)."},
		{"unsupported_by_provider", []int{422}, "A field has no equivalent in the API of the model's provider.", "Remove the field that `param` names, or set the provider's `settings.drop`."},
		{"invalid_request", []int{400}, "The request cannot be translated: a value is invalid in the provider's format.", "Correct the field that `param` names."},
		{"ambiguous_request", []int{400}, "The translated request would differ from the request that was evaluated.", "Send it in the provider's own format."},
	}},
	{title: "The provider", codes: []errorCode{
		{"provider_unauthorized", []int{502}, "The provider rejected the gateway's credential.", "Renew it: `PUT /v1/providers/{id}/credential`."},
		{"provider_redirects", []int{502}, "The provider replied with a redirect, which the gateway does not follow.", "Correct the provider's `base_url`."},
		{"provider_protocol", []int{502}, "The provider's response is not valid HTTP.", "Check `base_url`: its scheme and port."},
		{"provider_encoding", []int{502}, "The response is compressed or not in UTF-8, so the gateway cannot search it for the credential.", "Have the provider send plain UTF-8."},
		{"provider_misconfigured", []int{503}, "The provider has no credential, or a setting that cannot be used.", "Correct the provider: the message names the setting."},
		{"provider_not_configured", []int{503}, "Envoy does not have the provider's cluster yet.", "Try again. If it stays, look for rejected configuration in the control plane's log."},
		{"provider_address_refused", []int{403}, "The provider's address is private, or it is an address of this product.", "Correct the provider's `base_url`, or have the operator list the range in `--private-targets`."},
		{"provider_unreachable", []int{503}, "The provider cannot be reached: DNS, connection or TLS failed.", "Check the network and `--provider-ca`."},
		{"provider_disconnected", []int{503}, "The provider closed the connection before it responded.", "Try again."},
		{"provider_error", []int{400, 500, 502, 503}, "The provider replied with an error that is not in the format of the called API.", "Read the message, which is the provider's."},
		{"answer_too_large", []int{502}, "The response to be translated is larger than `--max-body`.", "Request less, or a stream."},
		{"timeout", []int{504}, "The provider did not respond in time.", "Try again, or request a stream."},
		{"unreadable_answer", []int{502}, "The response to be translated is not in the provider's format. In a stream it is the last event.", "Check the provider's `kind` and `base_url`."},
		{"incomplete_answer", []int{502}, "The response ended before it was complete. In a stream it is the last event.", "Try again."},
		{"context_length_exceeded", []int{400, 413}, "The prompt is too long for the model, according to the provider.", "Send a shorter prompt, or use a model with a larger context."},
		{"error", []int{502}, "Mistral ended the response with an error, in a stream as its last event.", "Try again."},
	}},
	{title: "The gateway", codes: []errorCode{
		{"audit_unavailable", []int{503}, "The decision cannot be recorded, so nothing is forwarded.", "Look at the disk of `--segments`: `--min-free`, `--max-backlog`, `aid_audit_writable`."},
		{"identity_unavailable", []int{503}, "A key that the sidecar has not seen cannot be looked up, or the last contact is older than `--max-staleness`.", "Start a control plane; look at its database."},
		{"policy_unavailable", []int{503}, "The sidecar does not have the organization's policies and providers.", "Look at `/readyz` of the sidecar, and at the node's organizations (`aid node list`)."},
		{"limits_unavailable", []int{503}, "Limits cannot be counted.", "Look at the sidecar's log."},
		{"budget_unavailable", []int{503}, "A USD cap applies, and what was charged in its period is not known.", "Try again. If it goes on, look at the sidecar's log: it cannot reach the control plane."},
		{"budget_store_required", []int{503}, "A USD cap applies, and several sidecars serve the organization without a shared store.", "Set `--redis` on each sidecar, or run one sidecar for the organization."},
		{"budget_store_unavailable", []int{503}, "A USD cap applies, and the store of `--redis` does not answer.", "Try again. If it goes on, look at the sidecar's log and at `aid_budget_store_errors_total`."},
		{"configuration_changed", []int{503}, "The organization's first provider of this kind was added during the request.", "Try again."},
		{"decision_unavailable", []int{503}, "Envoy receives no decision: the sidecar is down, hung or not connected.", "Start `aid extproc`; check its socket."},
		{"not_decided", []int{503}, "The request reached Envoy's default route: there was no decision.", "Check that Envoy has its configuration from the control plane."},
		{"internal_error", []int{503}, "A fault of the sidecar.", "Report it with the request id and the sidecar's log."},
		{"unavailable", []int{503}, "Envoy cannot serve the request, for a reason without a code.", "Look at Envoy's log."},
		{"gateway_error", []int{500, 501, 505}, "Envoy replied with a status that has no code.", "Look at Envoy's log."},
	}},
	{title: "The management API", management: true, codes: []errorCode{
		{"unauthenticated", []int{401}, "The request has no key.", "Send an organization key: `Authorization: Bearer aid_org_…`."},
		{"key_malformed", []int{401}, "The key is not a key of AI Identity, or part of it is missing.", "Check that the whole key was copied."},
		{"key_wrong_kind", []int{401}, "An agent key or a join token was sent.", "Send an organization key."},
		{"key_unknown", []int{401}, "No organization has this key.", "Ask an administrator for a new one."},
		{"key_expired", []int{401, 409}, "401: your organization key has expired. 409: the agent key to be rotated has.", "401: ask an administrator for a new one. 409: create a new key."},
		{"key_revoked", []int{401, 409}, "401: your organization key was revoked. 409: the agent key to be rotated was.", "401: ask an administrator for a new one. 409: create a new key."},
		{"not_evaluated", []int{409}, "No policy was evaluated for this request, or its audit entry is too old to be evaluated again.", "Read the entry: `GET /v1/audit/entries?request_id=…`."},
		{"policies_not_kept", []int{409}, "The set of policies that decided the request is older than the versions that are kept.", "Send `\"policies\": \"current\"`."},
		{"role", []int{403}, "The key's role does not permit this operation.", "Use a key with a role that the message names."},
		{"identity_not_granted", []int{403}, "The organization may not bind this identity to an agent.", "The operator grants a namespace with `aid org grant`, a SPIFFE prefix with `aid org trust`."},
		{"identity_bound", []int{409}, "An agent of the organization has this identity.", "Revoke it there first."},
		{"spiffe_id_not_granted", []int{403}, "The organization may not use this SPIFFE id.", "The operator grants a prefix with `aid org trust`."},
		{"not_found", []int{404}, "The object does not exist, or it belongs to another organization.", "Check the id and the key's organization (`GET /v1/me`)."},
		{"no_such_path", []int{404}, "The path does not exist.", "See `/docs`. A path has no slash at its end."},
		{"method_not_allowed", []int{405}, "The path has other methods.", "Use one that the message names."},
		{"conflict", []int{409}, "The name is taken.", "Choose another name, or change the object that has it."},
		{"no_checkpoint", []int{409}, "The log has no signed checkpoint yet.", "Set `--signing-key` and `--witness-key` of `aid control`, or wait 10 seconds."},
		{"checkpoint_behind", []int{409}, "No signed checkpoint has the newest entries yet.", "Try again after `Retry-After`."},
		{"empty_range", []int{409}, "The order has no entries.", "Order a longer range."},
		{"other_filter", []int{409}, "The export to continue has another filter.", "Send the same filter, or leave `after` out."},
		{"archived", []int{409}, "Entries of the range are not in the database any more.", "Order a later range. The archive has the entries before it."},
		{"not_complete", []int{409}, "The file is being made.", "Get the export until its state is `complete`."},
		{"range", []int{416}, "`Range` begins after the end of the file.", "Begin before its end."},
		{"session_open", []int{409}, "The session is open, or it is closed and not attested yet.", "Close it: `POST /v1/sessions/{session_id}/close`. Then try again in some seconds."},
		{"ambiguous_session", []int{409}, "Several agents have a session with this id.", "Add `agent_id`."},
		{"changed", []int{409, 412}, "The object was changed by another request. 412: since the version in `If-Match`.", "Read it again, then repeat the change."},
		{"above_tier", []int{409}, "The raise would bring the cap above the cap of the organization's tier.", "Add less, or have the operator change the tier."},
		{"too_many", []int{409}, "The organization has reached the limit of these objects.", "Delete one."},
		{"last_admin_key", []int{409}, "This is the last active admin key.", "Create another admin key first."},
		{"answer_gone", []int{409}, "The request was executed, and its stored response can no longer be decrypted.", "List the objects to see the result."},
		{"too_large", []int{413}, "The body is larger than 1 MiB.", "Send less."},
		{"unsupported_media_type", []int{415}, "The body is not uncompressed JSON in UTF-8.", "Send `Content-Type: application/json`."},
		{"bad_request", []int{400}, "The body is not JSON, or the query string is malformed.", "Send one JSON object; percent-encode the query."},
		{"invalid", []int{422}, "A field or a parameter has an invalid value. `field` and `errors` name them.", "Follow `fix`."},
		{"idempotency_key_reused", []int{422}, "The `Idempotency-Key` was used with another request.", "Use a new key for each new request."},
		{"internal", []int{500}, "A fault of the control plane.", "Look for the request id in its log."},
		{"not_built", []int{501}, "The operation is not built in this version.", "None. Nothing was changed."},
		{"unavailable", []int{503}, "The database does not respond, or was restored to an older state. Nothing was changed.", "Try again after `Retry-After`; see [restore.md](restore.md)."},
		{"signing_unavailable", []int{503}, "Nothing is signed: there is no signing key, or no checkpoint yet.", "Set `--signing-key` and `--witness-key` of `aid control`; wait 10 seconds."},
	}},
}
