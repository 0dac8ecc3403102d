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

// ManagementPaths go to the management API and never to a provider. The API requires its
// own kind of credentials. On these routes extproc is off, and the header that leads to
// providers has been removed from the request. Each path stands for itself and for all
// paths below it.
var ManagementPaths = []string{
	"/v1/agents", "/v1/policies", "/v1/providers", "/v1/org-keys", "/v1/nodes", "/v1/me", "/v1/audit",
	"/v1/shadow-agents", "/v1/approvals", "/v1/attestations", "/v1/compliance",
	"/docs", "/redoc", "/openapi.json", "/openapi.yaml", "/openapi-3.0.json", "/openapi-3.0.yaml", "/schemas", "/.well-known",
}

// nowhere is the cluster of what has no decision. It does not exist, so Envoy answers
// 503; the lint keeps every cluster from having this name.
const nowhere = "no-verdict-no-route"

// routes is the whole table: to providers by the decision, to the management API by
// path, and else nowhere.
func (in Input) routes(providers []*routev3.Route) *routev3.RouteConfiguration {
	all := append([]*routev3.Route{escapedSlash()}, providers...)
	for _, p := range ManagementPaths {
		for _, m := range []*routev3.RouteMatch{
			{PathSpecifier: &routev3.RouteMatch_Path{Path: p}},
			{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: p + "/"}},
		} {
			all = append(all, &routev3.Route{
				Match: m,
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
		// The route of each request before its decision, which is when the filter reads this.
		// The management API has no such policy.
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

// ended is a route that leads nowhere. It is no direct response, because the bound on a
// request's body holds only for routes to a cluster (Envoy 1.40). Before the decision every
// request has this route.
func ended(m *routev3.RouteMatch) *routev3.Route {
	return &routev3.Route{
		Match: m,
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: nowhere}, ClusterNotFoundResponseCode: routev3.RouteAction_SERVICE_UNAVAILABLE,
		}},
	}
}

// escapedSlash is the first route: no path with an escaped slash or backslash goes to
// a provider or to the management API, whatever the decision. extproc itself answers
// GET /v1/models/{model}, where SDKs write the name "org/model" in this way.
func escapedSlash() *routev3.Route {
	return ended(&routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_SafeRegex{
		SafeRegex: &matcherv3.RegexMatcher{Regex: `.*%(2[fF]|5[cC]).*`},
	}})
}

// cors is what scripts of the allowed origins may do: send a key in a header, and read
// the response. Browsers send no cookies.
func (in Input) cors() *corsv3.CorsPolicy {
	p := &corsv3.CorsPolicy{
		AllowMethods: "GET, POST", AllowHeaders: "authorization, *", ExposeHeaders: "*", MaxAge: "600", AllowCredentials: wrapperspb.Bool(false),
	}
	for _, o := range in.Origins {
		p.AllowOriginStringMatch = append(p.AllowOriginStringMatch, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: o}})
	}
	return p
}

// envoysOwn are headers that Envoy adds to a request after the client's headers of these
// names are removed. extproc cannot remove them: Envoy needs x-forwarded-proto to find a
// route, and x-envoy-* is closed to extproc. They describe the client and its connection,
// and must not reach the provider.
var envoysOwn = []string{"x-forwarded-proto", "x-envoy-external-address", "x-envoy-internal"}

func overwrite(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header: &corev3.HeaderValue{Key: name, Value: value}, AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// providerRoutes are the only ones to a provider.
func (in Input) providerRoutes(p provider.Provider, cluster, host string) []*routev3.Route {
	build := func(path string, llm llmv3.LLMProtocol, read bool) *routev3.Route {
		r := &routev3.Route{
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
				Timeout:              seconds(0),   // a response takes as long as it takes,
				IdleTimeout:          seconds(600), // but says something
				// Only where nothing was sent. The same cluster, so the same
				// credential; and the request was evaluated once for all tries.
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
	// First the one for answers that extproc reads. Envoy reads no usage there: the
	// trailers in which it would say so come after the end of a translated response.
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
		return []*routev3.Route{read, route("", 0)} // Envoy does not read its usage
	default:
		return []*routev3.Route{read, route(`.*/responses`, llmv3.LLMProtocol_OPENAI_RESPONSES), route("", llmv3.LLMProtocol_OPENAI_CHAT_COMPLETIONS)}
	}
}
