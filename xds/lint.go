package xds

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	headerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ai-identity/ai-identity/envoy"
	"github.com/ai-identity/ai-identity/provider"
)

// lint collects the faults of a snapshot, each with its rule:
//
//	L01  extproc is before the router, once; only routes to the management API skip it
//	L02  extproc fails closed, and Envoy applies its rejections
//	L03  extproc receives complete requests, and no mode that it may choose has less
//	L04  a forbidden change of a header is an error
//	L05  only a decision leads to a provider; every other request ends at the gateway
//	L06  paths, hosts and headers are normalized once; data of clients is not trusted
//	L07  no mirror, redirect, upgrade, CONNECT or HTTP/3
//	L08  limits are explicit and large enough
//	L11  TLS to providers has the name of the server and the CA
//	L12  Envoy's own responses are replaced; only extproc's pass unchanged
//	L13  if extproc does not receive response headers, Envoy removes the same ones
//	L14  the address of a provider is checked when Envoy connects
//	L15  an intercepted connection has its host's chain, certificate and routes, and no others
//	L16  the forward proxy opens tunnels to governed hosts, and does nothing else
//	L17  every request is in the access log of the tie-out, with a route's name that says where it leads
type lint struct {
	found  []error
	log    string // the file of the access log; empty: none
	unseen bool   // extproc does not receive response headers
}

func (l *lint) bad(rule, format string, args ...any) {
	l.found = append(l.found, fmt.Errorf("%s: %s", rule, fmt.Sprintf(format, args...)))
}

func (l *lint) want(ok bool, rule, what string) {
	if !ok {
		l.bad(rule, "%s", what)
	}
}

// Lint returns the faults of a snapshot, or nil. It does not trust Build: it checks the
// resources that Envoy would receive.
func Lint(s *Snapshot) error {
	l := &lint{}
	l.want(s.Listeners[listenerName] != nil && s.Routes[routesName] != nil, "L01", "the gateway's listener or route table is missing")
	hosts := s.leaves()
	l.log = s.accessLog()
	l.want(envoy.CheckLogPath(l.log) == nil, "L17", "the access log is not a file")
	reached := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(s.Listeners)) {
		li := s.Listeners[name]
		l.want(li.GetName() == name, "L01", name+" has another name")
		switch name {
		case listenerName:
			l.listener(li)
		case egressListener, innerListener:
			l.terminating(li, hosts)
		case proxyListener:
			l.proxy(li, hosts)
		default:
			l.bad("L01", "there is a listener %s", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Routes)) {
		rc := s.Routes[name]
		l.want(rc.GetName() == name, "L01", name+" has another name")
		switch host, egress := strings.CutPrefix(name, egressRoutes); {
		case name == routesName:
			l.routes(rc, s.Clusters, reached, "")
		case egress:
			l.routes(rc, s.Clusters, reached, host)
		default:
			l.bad("L01", "there is a route table %s", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Clusters)) {
		if name == innerCluster {
			l.want(proto.Equal(s.Clusters[name], inner()), "L15", "the cluster behind the proxy leads to something other than the inner listener")
			continue
		}
		l.want(reached[name], "L05", "no route leads to "+name)
		l.cluster(name, s.Clusters[name])
	}
	return errors.Join(l.found...)
}

// terminating checks a listener for TLS connections to governed hosts. It lists all that the
// role may hold: for each host a chain with its certificate and the gateway's HTTP settings.
func (l *lint) terminating(li *listenerv3.Listener, hosts []string) {
	tunneled := li.GetName() == innerListener
	if tunneled {
		l.want(li.GetInternalListener() != nil && li.GetAddress() == nil, "L15", "the inner listener has an address")
	} else {
		a := li.GetAddress().GetSocketAddress()
		l.want(a.GetAddress() != "" && a.GetPortValue() != 0 && a.GetProtocol() == corev3.SocketAddress_TCP, "L15", "the egress listener has no TCP address")
	}
	l.want(li.GetUdpListenerConfig() == nil, "L07", "a listener is not TCP")
	l.want(small(li.GetPerConnectionBufferLimitBytes()), "L08", "a listener's buffer limit is not set, or above 1 MiB")
	l.want(sameLogs(li.GetAccessLog(), Input{AccessLog: l.log}.connectionLog(li.GetName())), "L17", "connections are not in the access log, or in another one")
	l.want(li.GetDefaultFilterChain() == nil, "L15", "a connection that is not to a governed host has a filter chain")
	l.want(len(li.GetListenerFilters()) == 1 && li.GetListenerFilters()[0].GetName() == "envoy.filters.listener.tls_inspector" &&
		li.GetListenerFiltersTimeout().AsDuration() > 0 && !li.GetContinueOnListenerFiltersTimeout(), "L15", "the server name is not read, or without a timeout")
	var served []string
	for _, c := range li.GetFilterChains() {
		names := c.GetFilterChainMatch().GetServerNames()
		if len(names) != 1 || !exactHost(names[0]) {
			l.bad("L15", "a filter chain is not for exactly one host")
			continue
		}
		host := names[0]
		served = append(served, host)
		l.want(proto.Equal(c.GetFilterChainMatch(), &listenerv3.FilterChainMatch{ServerNames: []string{host}, TransportProtocol: "tls"}), "L15", host+" is matched by more than its server name over TLS")
		l.want(proto.Equal(c.GetTransportSocket(), terminates(host)), "L15", host+" has another TLS configuration")
		l.want(c.GetTransportSocketConnectTimeout().AsDuration() > 0, "L08", host+" has no timeout for handshakes")
		var h hcmv3.HttpConnectionManager
		if len(c.GetFilters()) != 1 || c.GetFilters()[0].GetTypedConfig().UnmarshalTo(&h) != nil {
			l.bad("L15", "%s has not exactly one filter, or another one", host)
			continue
		}
		l.want(h.GetRds().GetRouteConfigName() == egressRoutes+host, "L15", host+" uses the routes of another host")
		l.common(&h)
		l.want(len(h.GetEarlyHeaderMutationExtensions()) == 1 && proto.Equal(h.GetEarlyHeaderMutationExtensions()[0], earlyOf(envoy.EgressMutation(host, tunneled))),
			"L15", host+" does not overwrite the headers with facts of the connection")
		l.want(len(h.GetHttpFilters()) > 0 && h.GetHttpFilters()[0].GetName() == envoy.FilterExtProc, "L15", host+" has a filter before extproc")
		l.filters(h.GetHttpFilters())
	}
	l.want(slices.Equal(slices.Sorted(slices.Values(served)), hosts), "L15", "the governed hosts are not those with routes")
}

// proxy checks the forward proxy: it holds exactly the tunnels to the governed hosts.
func (l *lint) proxy(li *listenerv3.Listener, hosts []string) {
	l.want(proto.Equal(li, Input{AccessLog: l.log}.proxy(li.GetAddress(), hosts)), "L16", "the proxy has more than tunnels to governed hosts")
	a, err := netip.ParseAddr(li.GetAddress().GetSocketAddress().GetAddress())
	l.want(err == nil && a.IsLoopback(), "L16", "other machines can reach the proxy, which asks for no credentials")
}

// accessLog returns the file of the gateway's access log, or "".
func (s *Snapshot) accessLog() string {
	hcm, err := managerOf(s.Listeners[listenerName])
	if err != nil || len(hcm.GetAccessLog()) < 2 {
		return ""
	}
	var file filelogv3.FileAccessLog
	if hcm.GetAccessLog()[1].GetTypedConfig().UnmarshalTo(&file) != nil {
		return ""
	}
	return file.GetPath()
}

func sameLogs(a, b []*accesslogv3.AccessLog) bool {
	return slices.EqualFunc(a, b, func(a, b *accesslogv3.AccessLog) bool { return proto.Equal(a, b) })
}

func (l *lint) listener(li *listenerv3.Listener) {
	a := li.GetAddress().GetSocketAddress()
	l.want(a.GetAddress() != "" && a.GetPortValue() != 0, "L08", "the listener has no address")
	l.want(a.GetProtocol() == corev3.SocketAddress_TCP && li.GetUdpListenerConfig() == nil, "L07", "the listener is not TCP")
	l.want(small(li.GetPerConnectionBufferLimitBytes()), "L08", "the listener's buffer limit is not set, or above 1 MiB")
	l.want(len(li.GetAccessLog()) == 0, "L17", "the gateway logs connections")
	l.want(li.GetDefaultFilterChain() == nil && len(li.GetListenerFilters()) == 0, "L01", "the listener has another filter chain or a listener filter")
	hcm, err := managerOf(li)
	if err != nil {
		l.bad("L01", "%v", err)
		return
	}
	l.manager(hcm)
	l.filters(hcm.GetHttpFilters())
}

func (l *lint) manager(h *hcmv3.HttpConnectionManager) {
	l.want(h.GetRds().GetRouteConfigName() == routesName, "L01", "the listener uses other routes than the snapshot's")
	l.common(h)
	l.early(h)
}

// common checks what every HTTP connection manager has that calls extproc.
func (l *lint) common(h *hcmv3.HttpConnectionManager) {
	l.want(h.GetNormalizePath().GetValue(), "L06", "normalize_path is off")
	l.want(h.GetMergeSlashes(), "L06", "merge_slashes is off")
	l.want(h.GetPathWithEscapedSlashesAction() == hcmv3.HttpConnectionManager_REJECT_REQUEST ||
		h.GetPathWithEscapedSlashesAction() == hcmv3.HttpConnectionManager_KEEP_UNCHANGED, "L06", "escaped slashes are decoded")
	l.want(h.GetStripAnyHostPort(), "L06", "strip_any_host_port is off")
	l.want(h.GetSchemeHeaderTransformation().GetMatchUpstream(), "L06", "the client's scheme is sent to a provider")
	l.want(h.GetUseRemoteAddress().GetValue(), "L06", "use_remote_address is off: clients could choose their address")
	l.want(h.GetXffNumTrustedHops() == 0 && len(h.GetOriginalIpDetectionExtensions()) == 0, "L06", "x-forwarded-for of clients is trusted")
	l.want(!h.GetPreserveExternalRequestId() && h.GetGenerateRequestId().GetValue(), "L06", "clients can choose request ids")
	l.want(h.GetForwardClientCertDetails() == hcmv3.HttpConnectionManager_SANITIZE_SET, "L06", "x-forwarded-client-cert of clients is trusted")
	l.want(h.GetStreamErrorOnInvalidHttpMessage().GetValue(), "L06", "stream_error_on_invalid_http_message is off")
	c := h.GetCommonHttpProtocolOptions()
	l.want(c.GetHeadersWithUnderscoresAction() == corev3.HttpProtocolOptions_REJECT_REQUEST, "L06", "headers with underscores are not rejected")
	l.want(!h.GetHttpProtocolOptions().GetAllowChunkedLength(), "L06", "chunked bodies with a content-length are accepted")
	l.want(len(h.GetUpgradeConfigs()) == 0 && !h.GetHttp2ProtocolOptions().GetAllowConnect(), "L07", "upgrades or CONNECT are on")
	l.want(h.GetHttp3ProtocolOptions() == nil && h.GetCodecType() != hcmv3.HttpConnectionManager_HTTP3, "L07", "HTTP/3 is on")
	want := append([]*accesslogv3.AccessLog{endLog()}, Input{AccessLog: l.log}.requestLog()...)
	l.want(sameLogs(h.GetAccessLog(), want), "L06", "an access log other than extproc's and the one of the tie-out could contain a credential from a URL")
	l.want(h.GetMaxRequestHeadersKb().GetValue() > 0 && c.GetMaxHeadersCount().GetValue() > 0, "L08", "headers have no limit")
	l.want(small(h.GetHttp2ProtocolOptions().GetInitialStreamWindowSize()) && small(h.GetHttp2ProtocolOptions().GetInitialConnectionWindowSize()), "L08", "HTTP/2 windows are not set, or above 1 MiB")
	l.want(h.GetHttp2ProtocolOptions().GetMaxConcurrentStreams().GetValue() > 0, "L08", "HTTP/2 streams have no limit")
	l.want(h.GetRequestHeadersTimeout().AsDuration() > 0 && h.GetRequestTimeout().AsDuration() > 0, "L08", "the time for a request to arrive has no limit")
	l.want(h.GetStreamIdleTimeout().AsDuration() >= seconds(60).AsDuration(), "L08", "stream_idle_timeout is not set, or shorter than a model may take")
	l.want(c.GetIdleTimeout().AsDuration() > 0, "L08", "idle connections have no timeout")
	l.replies(h.GetLocalReplyConfig())
}

// early checks the gateway's mutations before extproc.
func (l *lint) early(h *hcmv3.HttpConnectionManager) {
	removed, peer, protocol := map[string]bool{}, false, false
	for _, e := range h.GetEarlyHeaderMutationExtensions() {
		var m earlyv3.HeaderMutation
		if e.GetTypedConfig().UnmarshalTo(&m) != nil {
			continue
		}
		for _, mut := range m.GetMutations() {
			removed[mut.GetRemove()] = true
			if a := mut.GetAppend(); a != nil {
				name, value := a.GetHeader().GetKey(), a.GetHeader().GetValue()
				overwrites := a.GetAppendAction() == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
				isPeer := overwrites && name == envoy.HeaderPeer && value == envoy.PeerFormat
				isProtocol := overwrites && name == envoy.HeaderProtocol && value == envoy.ProtocolFormat
				l.want(isPeer || isProtocol, "L05", "a header is added before extproc")
				peer, protocol = peer || isPeer, protocol || isProtocol
			}
		}
	}
	l.want(peer, "L05", "clients can choose their address: "+envoy.HeaderPeer+" is not overwritten")
	for _, name := range []string{envoy.HeaderRoute, envoy.HeaderEgress, envoy.HeaderConnect} {
		l.want(removed[name], "L05", "clients can send "+name)
	}
	l.want(protocol, "L06", "extproc does not see HTTP/1.0: "+envoy.HeaderProtocol+" is not overwritten")
}

// replies checks that every response of Envoy is mapped, without Envoy's own text.
func (l *lint) replies(c *hcmv3.LocalReplyConfig) {
	ms := c.GetMappers()
	if len(ms) < 2 || c.GetBodyFormat() != nil {
		l.bad("L12", "Envoy's own responses are not mapped, or have a format beside the mappers")
		return
	}
	l.want(proto.Equal(ms[0].GetFilter(), extprocs()) && ms[0].GetBodyFormatOverride() == nil && ms[0].GetBody() == nil, "L12", "extproc's responses do not pass unchanged")
	for i, m := range ms[1:] {
		f := m.GetBodyFormatOverride()
		l.want(f.GetContentType() == "application/json" && len(f.GetJsonFormat().GetFields()) > 0, "L12", fmt.Sprintf("response %d of Envoy is not JSON", i+1))
		l.want(m.GetStatusCode() == nil && m.GetBody() == nil, "L12", fmt.Sprintf("response %d of Envoy has another status or body", i+1))
		text := strings.NewReplacer(requestIDNow, "", statusNow, "").Replace(f.GetJsonFormat().String())
		l.want(!strings.Contains(text, "%"), "L12", fmt.Sprintf("response %d of Envoy has more data than the request's id", i+1))
	}
	l.want(proto.Equal(ms[len(ms)-1].GetFilter(), cel("true")), "L12", "some of Envoy's responses have no mapper")
}

func (l *lint) filters(fs []*hcmv3.HttpFilter) {
	var names []string
	for _, f := range fs {
		names = append(names, f.GetName())
		l.want(!f.GetDisabled() && !f.GetIsOptional(), "L01", f.GetName()+" is disabled or optional")
		l.want(f.GetConfigDiscovery() == nil, "L01", f.GetName()+" comes from discovery")
	}
	if len(names) > 0 && names[0] == envoy.FilterCORS {
		fs, names = fs[1:], names[1:] // CORS only responds to preflights, and adds headers to responses
	}
	with := []string{envoy.FilterExtProc, "envoy.filters.http.router"}
	withUsage := []string{envoy.FilterExtProc, envoy.FilterReplace, envoy.FilterResponse, envoy.FilterUsage, "envoy.filters.http.router"}
	if !slices.Equal(names, with) && !slices.Equal(names, withUsage) {
		l.bad("L01", "the filters are %s", strings.Join(names, ", "))
		return
	}
	var p extprocv3.ExternalProcessor
	if err := fs[0].GetTypedConfig().UnmarshalTo(&p); err != nil {
		l.bad("L01", "the filter with the name extproc is another one")
		return
	}
	l.want(p.GetGrpcService().GetEnvoyGrpc().GetClusterName() == envoy.ClusterExtProc, "L01", "the filter calls another service than extproc")
	l.want(!p.GetFailureModeAllow(), "L02", "failure_mode_allow is on")
	l.want(!p.GetObservabilityMode(), "L02", "observability_mode is on")
	l.want(!p.GetDisableImmediateResponse(), "L02", "disable_immediate_response is on: rejections would pass")
	l.want(!p.GetSendBodyWithoutWaitingForHeaderResponse(), "L03", "bodies are sent before the headers are evaluated")
	l.want(p.GetAllowModeOverride() == (len(p.GetAllowedOverrideModes()) > 0), "L03", "extproc may choose any mode")
	for _, m := range p.GetAllowedOverrideModes() {
		l.want(m.GetRequestBodyMode() == extprocv3.ProcessingMode_BUFFERED && m.GetRequestTrailerMode() == p.GetProcessingMode().GetRequestTrailerMode() &&
			m.GetResponseHeaderMode() == extprocv3.ProcessingMode_SEND && m.GetResponseTrailerMode() == extprocv3.ProcessingMode_SEND &&
			(m.GetResponseBodyMode() == extprocv3.ProcessingMode_STREAMED || m.GetResponseBodyMode() == extprocv3.ProcessingMode_BUFFERED), "L03", "extproc may choose a mode that sends it less")
	}
	m := p.GetProcessingMode()
	l.unseen = m.GetResponseHeaderMode() != extprocv3.ProcessingMode_SEND
	l.want(m.GetRequestHeaderMode() == extprocv3.ProcessingMode_SEND, "L03", "request headers are not sent")
	l.want(m.GetRequestBodyMode() == extprocv3.ProcessingMode_BUFFERED, "L03", "request bodies are not buffered")
	l.want(m.GetResponseHeaderMode() == extprocv3.ProcessingMode_SEND || m.GetResponseHeaderMode() == extprocv3.ProcessingMode_SKIP && len(fs) == len(withUsage), "L03", "response headers are not sent")
	l.want(m.GetResponseBodyMode() == extprocv3.ProcessingMode_STREAMED || m.GetResponseBodyMode() == extprocv3.ProcessingMode_NONE && len(fs) == len(withUsage), "L03", "response bodies are not streamed")
	l.want(m.GetResponseTrailerMode() == extprocv3.ProcessingMode_SEND, "L03", "response trailers are not sent")
	r := p.GetMutationRules()
	l.want(r.GetDisallowIsError().GetValue(), "L04", "a change that is not allowed is not an error")
	l.want(!r.GetAllowEnvoy().GetValue() && !r.GetAllowAllRouting().GetValue(), "L04", "x-envoy-* or routing headers may be changed")
	l.want(p.GetMessageTimeout().AsDuration() >= seconds(5).AsDuration(), "L08", "message_timeout is not set, or too short")
	l.want(p.GetMaxMessageTimeout().AsDuration() == 0, "L08", "extproc may take longer than message_timeout")
	l.want(p.GetRouteCacheAction() == extprocv3.ExternalProcessor_DEFAULT, "L05", "something other than the decision clears the route cache")
}

// routes checks a route table, and adds the clusters that it leads to. host is the governed host
// of a table for egress, and "" for the gateway's.
func (l *lint) routes(rc *routev3.RouteConfiguration, clusters map[string]*clusterv3.Cluster, reached map[string]bool, host string) {
	hosts := rc.GetVirtualHosts()
	if host != "" && len(hosts) == 2 {
		other := hosts[1]
		hosts = hosts[:1]
		l.want(slices.Equal(other.GetDomains(), []string{"*"}) && len(other.GetRoutes()) == 1 && endsHere(other.GetRoutes()[0]) && len(other.GetTypedPerFilterConfig()) == 0 &&
			len(other.GetRequestMirrorPolicies()) == 0 && other.GetRetryPolicy() == nil && other.GetMatcher() == nil && other.GetRequestBodyBufferLimit().GetValue() >= slack,
			"L15", "a request to another host than "+host+" may be routed")
	}
	want := host
	if want == "" {
		want = "*"
	}
	if len(hosts) != 1 || len(rc.GetVirtualHosts()) != map[bool]int{true: 1, false: 2}[host == ""] || !slices.Equal(hosts[0].GetDomains(), []string{want}) {
		l.bad("L05", "%s has not one virtual host for %s", rc.GetName(), want)
		return
	}
	vh := hosts[0]
	l.want(rc.GetVhds() == nil && vh.GetMatcher() == nil, "L05", "routes come from another source")
	l.want(len(vh.GetTypedPerFilterConfig())+len(rc.GetTypedPerFilterConfig()) == 0, "L01", "filters are changed for many routes at once")
	l.want(len(vh.GetRequestMirrorPolicies())+len(rc.GetRequestMirrorPolicies()) == 0, "L07", "requests are mirrored")
	l.want(vh.GetRetryPolicy() == nil && len(rc.GetClusterSpecifierPlugins()) == 0, "L05", "routes inherit settings")
	l.want(vh.GetRequestBodyBufferLimit().GetValue() >= slack, "L08", "the buffer of a request's body is not set, or too small")
	last := len(vh.GetRoutes()) - 1
	if last < 1 {
		l.bad("L05", "there are no routes")
		return
	}
	l.want(proto.Equal(vh.GetRoutes()[0], escapedSlash()), "L06", "a path with an escaped slash may be routed")
	end := vh.GetRoutes()[last]
	l.want(endsHere(end), "L05", "requests that no route matches do not get 503")
	l.want(clusters[nowhere] == nil, "L05", "there is a cluster for requests without a decision")
	for i, r := range vh.GetRoutes()[1:last] {
		a := r.GetRoute()
		if a == nil {
			l.bad("L05", "route %d does not lead to a cluster", i)
			continue
		}
		l.want(len(a.GetRequestMirrorPolicies()) == 0, "L07", "requests are mirrored")
		l.want(a.GetInternalRedirectPolicy() == nil, "L07", "redirects are followed")
		l.want(len(a.GetUpgradeConfigs()) == 0, "L07", "a route allows upgrades")
		switch name := a.GetCluster(); {
		case name == envoy.ClusterAPI && host == "":
			l.managementRoute(r)
		case clusters[name] != nil && name != innerCluster:
			reached[name] = true
			l.providerRoute(r, name)
		default:
			l.bad("L05", "route %d leads to %q, which is not a provider's cluster", i, name)
		}
	}
}

// endsHere reports whether a route leads nowhere, for every request.
func endsHere(r *routev3.Route) bool {
	return r.GetName() == envoy.RouteUndecided && r.GetMatch().GetPrefix() == "/" && len(r.GetMatch().GetHeaders()) == 0 && r.GetRoute().GetCluster() == nowhere &&
		r.GetRoute().GetClusterNotFoundResponseCode() == routev3.RouteAction_SERVICE_UNAVAILABLE && len(r.GetRoute().GetRequestMirrorPolicies()) == 0
}

// providerRoute checks that only the decision leads to the route, and that extproc is on.
func (l *lint) providerRoute(r *routev3.Route, cluster string) {
	hs, read := r.GetMatch().GetHeaders(), false
	if len(hs) == 2 && hs[1].GetName() == envoy.HeaderAnswer { // this narrows the match
		hs, read = hs[:1], true
		l.want(slices.Contains(r.GetRequestHeadersToRemove(), envoy.HeaderAnswer), "L05", envoy.HeaderAnswer+" is sent upstream")
	}
	l.want(len(hs) == 1 && hs[0].GetName() == envoy.HeaderRoute && !hs[0].GetInvertMatch() && !hs[0].GetTreatMissingHeaderAsEmpty() &&
		hs[0].GetStringMatch().GetExact() == cluster && !hs[0].GetStringMatch().GetIgnoreCase(), "L05", "a request reaches a provider without the decision for exactly "+cluster)
	l.want(r.GetName() == cluster, "L17", "the route to "+cluster+" has another name")
	l.want(slices.Contains(r.GetRequestHeadersToRemove(), envoy.HeaderRoute), "L05", "the decision is sent upstream")
	for _, name := range envoysOwn {
		l.want(slices.Contains(r.GetRequestHeadersToRemove(), name), "L06", "the provider receives the client's connection in "+name)
	}
	l.want(len(r.GetRequestHeadersToAdd()) == 0, "L05", "a provider's route adds headers")
	c := r.GetTypedPerFilterConfig()
	for name := range c {
		l.want(name == envoy.FilterUsage || name == envoy.FilterResponse || name == envoy.FilterReplace, "L01", "a provider's route changes "+name)
	}
	if l.unseen && !read {
		l.want(filtersResponses(c[envoy.FilterResponse]), "L13", "a provider's response headers are not filtered")
		l.want(proto.Equal(c[envoy.FilterReplace], pack(replaced())), "L13", "a provider's 401 or redirect reaches the caller")
	}
	l.want(len(r.GetResponseHeadersToAdd()) == 0, "L13", "a provider's route adds response headers, which the filter removes")
	l.want(r.GetRoute().GetHostRewriteLiteral() != "", "L06", "a provider would receive the gateway's host")
	l.want(r.GetRoute().GetTimeout() != nil && r.GetRoute().GetTimeout().AsDuration() == 0, "L08", "a provider's response has a timeout")
	l.want(r.GetRoute().GetIdleTimeout().AsDuration() >= seconds(60).AsDuration(), "L08", "a provider's route has no idle timeout, or a short one")
	for _, on := range strings.Split(r.GetRoute().GetRetryPolicy().GetRetryOn(), ",") {
		switch on {
		case "", "connect-failure", "refused-stream", "reset-before-request":
		default:
			l.bad("L05", "a request that may have arrived is sent again on %s", on)
		}
	}
}

// filtersResponses reports whether a configuration removes the response headers that no
// setting of a provider can permit, and sets the gateway's own.
func filtersResponses(a *anypb.Any) bool {
	var m headerv3.HeaderMutationPerRoute
	if a.UnmarshalTo(&m) != nil || len(m.GetMutations().GetResponseMutations()) == 0 {
		return false
	}
	first := m.GetMutations().GetResponseMutations()[0].GetRemoveOnMatch().GetKeyMatcher().GetSafeRegex().GetRegex()
	removes, err := regexp.Compile(`\A(?:` + first + `)\z`)
	if err != nil {
		return false
	}
	for _, name := range []string{"set-cookie", "location", "refresh", "link", "www-authenticate", "access-control-allow-origin", "clear-site-data", "alt-svc",
		"authorization", "api-key", "x-unknown", envoy.HeaderAgentID, envoy.HeaderDecision, envoy.HeaderReceipt, envoy.HeaderDropped, envoy.PrefixOwn + "x", envoy.PrefixAgent + "x"} {
		if !removes.MatchString(name) {
			return false
		}
	}
	rest := envoy.ResponseMutations(nil).GetMutations().GetResponseMutations()[1:]
	return slices.EqualFunc(m.GetMutations().GetResponseMutations()[1:], rest, func(a, b *mutationv3.HeaderMutation) bool { return proto.Equal(a, b) })
}

// managementRoute checks that the route is only for a management path.
func (l *lint) managementRoute(r *routev3.Route) {
	path := r.GetMatch().GetPath()
	if prefix := r.GetMatch().GetPrefix(); prefix != "" {
		path = strings.TrimSuffix(prefix, "/")
		l.want(prefix != path, "L01", "the management path "+prefix+" also matches other paths with the same beginning")
	}
	l.want(slices.Contains(ManagementPaths, path), "L01", fmt.Sprintf("%q leads to the management API, which does not have the path", path))
	l.want(r.GetName() == envoy.RouteManagement, "L17", "a management route has another name")
	var disabled extprocv3.ExtProcPerRoute
	c := r.GetTypedPerFilterConfig()
	l.want(len(c) == 1 && unpacks(c[envoy.FilterExtProc], &disabled) && disabled.GetDisabled(), "L01", "a management route changes filters in another way")
	l.want(len(r.GetRequestHeadersToAdd()) == 0, "L05", "a management route adds headers")
}

func unpacks(a *anypb.Any, into *extprocv3.ExtProcPerRoute) bool {
	return a != nil && a.UnmarshalTo(into) == nil
}

func (l *lint) cluster(name string, c *clusterv3.Cluster) {
	l.want(c.GetName() == name && strings.HasPrefix(name, "provider-"), "L05", name+" is not a provider's cluster")
	for _, reserved := range []string{envoy.ClusterXDS, envoy.ClusterExtProc, envoy.ClusterAPI} {
		l.want(c.GetName() != reserved, "L05", reserved+" is taken")
	}
	var dns dnsv3.DnsCluster
	switch t := c.GetClusterType(); {
	case t != nil && t.GetName() == dnsCluster && t.GetTypedConfig().UnmarshalTo(&dns) == nil:
	case t == nil && c.GetType() == clusterv3.Cluster_STATIC:
	default:
		l.bad("L07", "%s has a discovery type other than DNS or static", name)
	}
	l.want(!dns.GetAllAddressesInSingleEndpoint(), "L14", name+" has addresses that the filter of targets does not check")
	l.want(checksTargets(c), "L14", name+" connects to any address")
	l.want(small(c.GetPerConnectionBufferLimitBytes()), "L08", name+" has no buffer limit, or one above 1 MiB")
	l.want(c.GetConnectTimeout().AsDuration() > 0, "L08", name+" has no connect timeout")
	ts := c.GetCircuitBreakers().GetThresholds()
	l.want(len(ts) > 0, "L08", name+" has Envoy's default circuit breakers")
	for _, t := range ts {
		l.want(t.GetMaxRequests().GetValue() >= 10_000 && t.GetMaxPendingRequests().GetValue() >= 10_000 && t.GetMaxConnections().GetValue() >= 10_000,
			"L08", name+"'s circuit breakers are too small for streamed responses")
	}
	n := 0
	for _, loc := range c.GetLoadAssignment().GetEndpoints() {
		n += len(loc.GetLbEndpoints())
	}
	l.want(n == 1, "L05", name+" has not exactly one server")
	if c.GetTransportSocket() == nil {
		return // http, which the base URL sets
	}
	var t tlsv3.UpstreamTlsContext
	if c.GetTransportSocket().GetTypedConfig().UnmarshalTo(&t) != nil {
		l.bad("L11", "%s has a transport other than TLS", name)
		return
	}
	v := t.GetCommonTlsContext().GetValidationContext()
	l.want(v.GetTrustedCa().GetFilename() != "", "L11", name+" has no CA, so it trusts every server")
	l.want(len(v.GetMatchTypedSubjectAltNames()) == 1 && v.GetMatchTypedSubjectAltNames()[0].GetMatcher().GetExact() != "", "L11", name+" accepts any server with a certificate of the CA")
	l.want(v.GetTrustChainVerification() == tlsv3.CertificateValidationContext_VERIFY_TRUST_CHAIN && !v.GetAllowExpiredCertificate(), "L11", name+" accepts certificates that are not valid")
	l.want(t.GetCommonTlsContext().GetTlsParams().GetTlsMinimumProtocolVersion() >= tlsv3.TlsParameters_TLSv1_2, "L11", name+" permits TLS below 1.2")
	l.want(!t.GetAllowRenegotiation(), "L11", name+" allows renegotiation")
}

// checksTargets reports whether Envoy connects only to addresses that are public or listed.
func checksTargets(c *clusterv3.Cluster) bool {
	var o httpv3.HttpProtocolOptions
	var rbac rbacfilterv3.RBAC
	if a := c.GetTypedExtensionProtocolOptions()[httpOptions]; a == nil || a.UnmarshalTo(&o) != nil || len(o.GetHttpFilters()) != 2 {
		return false
	}
	first, last := o.GetHttpFilters()[0], o.GetHttpFilters()[1]
	if first.GetName() != filterTargets || first.GetDisabled() || first.GetTypedConfig().UnmarshalTo(&rbac) != nil || last.GetName() != filterCodec {
		return false
	}
	rules := rbac.GetRules()
	policy := rules.GetPolicies()[policyTargets]
	if rules.GetAction() != rbacv3.RBAC_ALLOW || len(rules.GetPolicies()) != 1 || len(policy.GetPermissions()) != 1 || policy.GetCondition() != nil {
		return false
	}
	want := targets(provider.Targets{}).GetPolicies()[policyTargets].GetPermissions()[0].GetAndRules().GetRules()
	got := policy.GetPermissions()[0].GetAndRules().GetRules()
	if len(got) != 2 {
		return false
	}
	allowed, denied := got[0].GetOrRules().GetRules(), got[1].GetNotRule().GetOrRules().GetRules()
	public, never := want[0].GetOrRules().GetRules()[0], want[1].GetNotRule().GetOrRules().GetRules()
	return len(allowed) > 0 && len(allowed) <= 2 && proto.Equal(allowed[0], public) && len(denied) >= len(never) &&
		slices.EqualFunc(denied[:len(never)], never, func(a, b *rbacv3.Permission) bool { return proto.Equal(a, b) })
}

// small says whether a buffer limit is set, and not above 1 MiB: it is held for each
// connection, in both directions.
func small(n *wrapperspb.UInt32Value) bool { return n.GetValue() > 0 && n.GetValue() <= 1<<20 }
