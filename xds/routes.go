package xds

import (
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	aiv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ai_protocol_manager/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	llmv3 "github.com/envoyproxy/go-control-plane/envoy/type/ai/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ai-identity/ai-identity/envoy"
	"github.com/ai-identity/ai-identity/provider"
)

func uitoa(n uint64) string { return strconv.FormatUint(n, 10) }

// ManagementPaths lead to the management API and never to a provider. The API requires its
// own credentials. On these routes extproc is off, and the header that selects a provider
// has been removed from the request. Each entry matches the path and all paths below it.
var ManagementPaths = []string{
	"/v1/agents", "/v1/policies", "/v1/policy-templates", "/v1/policy-dry-runs", "/v1/limits", "/v1/providers", "/v1/org", "/v1/org-keys", "/v1/nodes", "/v1/me", "/v1/audit", "/v1/forensics",
	"/v1/usage", "/v1/usage.csv",
	"/v1/shadow-agents", "/v1/approvals", "/v1/sessions", "/v1/attestations", "/v1/compliance",
	"/docs", "/redoc", "/openapi.json", "/openapi.yaml", "/openapi-3.0.json", "/openapi-3.0.yaml", "/schemas", "/.well-known", "/log",
}

// nowhere is the cluster of requests without a decision. It does not exist, so Envoy returns
// 503. Lint checks that no cluster has this name.
const nowhere = "no-verdict-no-route"

// routes returns the route table. The decision leads to providers, and a management path to
// the management API. Every other request leads nowhere.
func (in Input) routes(providers []*routev3.Route) *routev3.RouteConfiguration {
	all := append([]*routev3.Route{escapedSlash()}, providers...)
	for _, p := range ManagementPaths {
		for _, m := range []*routev3.RouteMatch{
			{PathSpecifier: &routev3.RouteMatch_Path{Path: p}},
			{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: p + "/"}},
		} {
			all = append(all, &routev3.Route{
				Name: envoy.RouteManagement, Match: m,
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{
					ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: envoy.ClusterAPI}, Timeout: seconds(120),
				}},
				TypedPerFilterConfig: map[string]*anypb.Any{
					envoy.FilterExtProc: pack(&extprocv3.ExtProcPerRoute{Override: &extprocv3.ExtProcPerRoute_Disabled{Disabled: true}}),
				},
			})
		}
	}
	end := ended(&routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}})
	if len(in.Origins) > 0 {
		// Every request has this route before its decision, when the CORS filter reads the
		// policy. The management API has no CORS policy.
		end.TypedPerFilterConfig = map[string]*anypb.Any{envoy.FilterCORS: pack(in.cors())}
	}
	all = append(all, end)
	return &routev3.RouteConfiguration{
		Name: routesName,
		VirtualHosts: []*routev3.VirtualHost{{
			Name: "all", Domains: []string{"*"}, Routes: all,
			RequestBodyBufferLimit: wrapperspb.UInt64(uint64(in.MaxBody + slack)),
		}},
		ValidateClusters: wrapperspb.Bool(false),
	}
}

// ended returns a route to the cluster nowhere. It is not a direct response, because the limit
// of a request's body holds only for routes to a cluster (Envoy 1.40). Before the decision
// every request has this route.
func ended(m *routev3.RouteMatch) *routev3.Route {
	return &routev3.Route{
		Name: envoy.RouteUndecided, Match: m,
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: nowhere}, ClusterNotFoundResponseCode: routev3.RouteAction_SERVICE_UNAVAILABLE,
		}},
	}
}

// escapedSlash returns the first route. A path with an escaped slash or backslash never leads
// to a provider or to the management API. SDKs use such a path in GET /v1/models/{model} for
// the name "org/model", and extproc itself responds to it.
func escapedSlash() *routev3.Route {
	return ended(&routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_SafeRegex{
		SafeRegex: &matcherv3.RegexMatcher{Regex: `.*%(2[fF]|5[cC]).*`},
	}})
}

// cors returns the policy for scripts of the allowed origins. They may send a key in a header
// and read the response. Browsers send no cookies.
func (in Input) cors() *corsv3.CorsPolicy {
	p := &corsv3.CorsPolicy{
		AllowMethods: "GET, POST", AllowHeaders: "authorization, *", ExposeHeaders: "*", MaxAge: "600", AllowCredentials: wrapperspb.Bool(false),
	}
	for _, o := range in.Origins {
		p.AllowOriginStringMatch = append(p.AllowOriginStringMatch, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: o}})
	}
	return p
}

// envoysOwn are headers that Envoy adds to a request after it has removed the client's
// headers with these names. extproc cannot remove them: Envoy needs x-forwarded-proto to
// find a route, and extproc may not change x-envoy-*. They describe the client and its
// connection, and must not reach the provider.
var envoysOwn = []string{"x-forwarded-proto", "x-envoy-external-address", "x-envoy-internal"}

func overwrite(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header: &corev3.HeaderValue{Key: name, Value: value}, AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// providerRoutes returns the only routes to a provider.
func (in Input) providerRoutes(p provider.Provider, cluster, host string) []*routev3.Route {
	build := func(path string, llm llmv3.LLMProtocol, read bool) *routev3.Route {
		r := &routev3.Route{
			Name: cluster,
			Match: &routev3.RouteMatch{
				PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"},
				Headers: []*routev3.HeaderMatcher{{
					Name: envoy.HeaderRoute,
					HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
						MatchPattern: &matcherv3.StringMatcher_Exact{Exact: cluster},
					}},
				}},
			},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{
				ClusterSpecifier:     &routev3.RouteAction_Cluster{Cluster: cluster},
				HostRewriteSpecifier: &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: host},
				Timeout:              seconds(0),   // a response has no time limit
				IdleTimeout:          seconds(600), // only a limit between its parts
				// Only if nothing was sent. The cluster and the credential stay the
				// same, and the decision holds for all tries.
				RetryPolicy: &routev3.RetryPolicy{
					RetryOn: "connect-failure,refused-stream,reset-before-request", NumRetries: wrapperspb.UInt32(2),
				},
			}},
			RequestHeadersToRemove: append([]string{envoy.HeaderRoute}, envoysOwn...),
		}
		if path != "" {
			r.Match.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: path}}
		}
		if in.Usage == envoy.UsageEnvoy && !read {
			r.TypedPerFilterConfig = map[string]*anypb.Any{
				envoy.FilterResponse: pack(envoy.ResponseMutations(p.PassesToCaller())),
				envoy.FilterReplace:  pack(replaced()),
			}
			if llm != llmv3.LLMProtocol_LLM_PROTOCOL_UNSPECIFIED {
				r.TypedPerFilterConfig[envoy.FilterUsage] = pack(&aiv3.AiProtocolManagerPerRoute{Response: &aiv3.ResponsePerRoute{LlmProtocol: llm}})
			}
		}
		return r
	}
	route := func(path string, llm llmv3.LLMProtocol) *routev3.Route { return build(path, llm, false) }
	if in.Usage != envoy.UsageEnvoy {
		return []*routev3.Route{route("", 0)}
	}
	// The first route is for responses that extproc reads. Envoy does not read usage there,
	// since it sends usage in trailers, after the end of a translated response.
	read := build("", 0, true)
	read.Match.Headers = append(read.Match.Headers, &routev3.HeaderMatcher{
		Name: envoy.HeaderAnswer, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true},
	})
	read.RequestHeadersToRemove = append(read.RequestHeadersToRemove, envoy.HeaderAnswer)
	switch p.Kind {
	case provider.KindAnthropic:
		return []*routev3.Route{read, route("", llmv3.LLMProtocol_ANTHROPIC_MESSAGES)}
	case provider.KindGemini:
		return []*routev3.Route{read, route("", llmv3.LLMProtocol_GEMINI_GENERATE_CONTENT)}
	case provider.KindCohere:
		return []*routev3.Route{read, route("", 0)} // Envoy cannot read the usage of this kind
	default:
		return []*routev3.Route{read, route(`.*/responses`, llmv3.LLMProtocol_OPENAI_RESPONSES), route("", llmv3.LLMProtocol_OPENAI_CHAT_COMPLETIONS)}
	}
}
