package e2e_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/ai-identity/ai-identity/e2e"
)

// collector receives spans as an OpenTelemetry collector does.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	URL string

	mu      sync.Mutex
	spans   []*tracev1.Span
	service map[string]bool
	raw     bytes.Buffer
}

func collect(t *testing.T) *collector {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{URL: "http://" + l.Addr().String(), service: map[string]bool{}}
	g := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(g, c)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		<-served
	})
	return c
}

func (c *collector) Export(_ context.Context, req *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	b, err := proto.Marshal(req)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw.Write(b)
	for _, r := range req.GetResourceSpans() {
		c.service[said(r.GetResource().GetAttributes())["service.name"]] = true
		for _, s := range r.GetScopeSpans() {
			c.spans = append(c.spans, s.GetSpans()...)
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// of returns the spans of an exchange.
func (c *collector) of(id string) (out []*tracev1.Span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if said(s.GetAttributes())["aid.exchange"] == id {
			out = append(out, s)
		}
	}
	return out
}

// said returns attributes as text.
func said(attributes []*commonv1.KeyValue) map[string]string {
	out := map[string]string{}
	for _, a := range attributes {
		switch v := a.GetValue().GetValue().(type) {
		case *commonv1.AnyValue_IntValue:
			out[a.GetKey()] = fmt.Sprint(v.IntValue)
		default:
			out[a.GetKey()] = a.GetValue().GetStringValue()
		}
	}
	return out
}

// With the standard variables set, each exchange is one span in its caller's trace. It has
// the caller, the model and the outcome, and no content of messages.
func TestTracing(t *testing.T) {
	c := collect(t)
	provider := e2e.Record(t, nil)
	up := e2e.Start(t, e2e.Config{Providers: provider.File("openai", credential, "gpt-*"), Env: []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.URL, "OTEL_BSP_SCHEDULE_DELAY=50",
	}})
	agent := up.Agent(t, `{"name":"a","allowed_models":["gpt-*"]}`)
	keyID, key := up.Key(t, agent, `{"name":"k","scopes":["chat:completions"]}`)
	up.Ready(t)
	ask := func(bearer, body, traceparent string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, up.Gateway+"/v1/chat/completions", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+bearer)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("User-Agent", "prompt-free/1")
		if traceparent != "" {
			req.Header.Set("Traceparent", traceparent)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		return resp
	}
	e2e.Eventually(t, 10*time.Second, func() error {
		if resp := ask(key, allowed, ""); resp.StatusCode != 200 {
			return fmt.Errorf("answered %d", resp.StatusCode)
		}
		return nil
	})

	const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	const sampled, unsampled = "00-" + trace + "-" + parent + "-01", "00-" + trace + "-" + parent + "-00"
	other := strings.Replace(allowed, "gpt-", "claude-", 1)
	for name, x := range map[string]struct {
		bearer, body, traceparent string
		want                      map[string]string
	}{
		"allowed": {key, allowed, sampled, map[string]string{
			"aid.agent": agent, "aid.key": keyID, "aid.decision": "allow", "aid.outcome": "completed", "http.response.status_code": "200",
			"gen_ai.operation.name": "chat.completions", "gen_ai.provider.name": "openai", "gen_ai.response.model": "gpt-4o-2024-08-06",
			"gen_ai.usage.input_tokens": "11", "gen_ai.usage.output_tokens": "9",
		}},
		"in a trace of its own": {key, allowed, "", map[string]string{"aid.decision": "allow", "aid.outcome": "completed"}},
		"refused":               {key, other, sampled, map[string]string{"aid.agent": agent, "aid.decision": "deny", "aid.outcome": "refused", "gen_ai.usage.input_tokens": "0"}},
		"unknown key":           {key[:len(key)-1] + "!", allowed, sampled, map[string]string{"aid.agent": "", "aid.decision": "deny", "http.response.status_code": "401"}},
		"not sampled":           {key, allowed, unsampled, nil},
	} {
		before := len(provider.Requests())
		resp := ask(x.bearer, x.body, x.traceparent)
		id := resp.Header.Get("X-Request-Id")
		sentOn := ""
		if seen := provider.Requests(); len(seen) > before {
			sentOn = seen[before].Header.Get("Traceparent")
		}
		if x.want == nil {
			if !strings.HasPrefix(sentOn, "00-"+trace+"-") || !strings.HasSuffix(sentOn, "-00") {
				t.Errorf("%s: the provider was sent %q", name, sentOn)
			}
			continue // it has no span, which is checked at the end
		}
		var span *tracev1.Span
		e2e.Eventually(t, 10*time.Second, func() error {
			spans := c.of(id)
			if len(spans) != 1 {
				return fmt.Errorf("%s: there are %d spans of %s", name, len(spans), id)
			}
			span = spans[0]
			return nil
		})
		got := said(span.GetAttributes())
		for attribute, want := range x.want {
			if got[attribute] != want {
				t.Errorf("%s: %s is %q, want %q", name, attribute, got[attribute], want)
			}
		}
		if receipt := resp.Header.Get("X-Aid-Receipt"); got["aid.receipt"] != receipt {
			t.Errorf("%s: the receipt is %q, want %q", name, got["aid.receipt"], receipt)
		}
		if span.GetKind() != tracev1.Span_SPAN_KIND_SERVER || span.GetName() != "exchange" || span.GetEndTimeUnixNano() < span.GetStartTimeUnixNano() {
			t.Errorf("%s: %v", name, span)
		}
		traced, from := hex.EncodeToString(span.GetTraceId()), hex.EncodeToString(span.GetParentSpanId())
		if x.traceparent != "" && (traced != trace || from != parent) || x.traceparent == "" && (traced == trace || from != "") {
			t.Errorf("%s: it is in trace %s under %q", name, traced, from)
		}
		if want := "00-" + traced + "-" + hex.EncodeToString(span.GetSpanId()) + "-01"; sentOn != "" && sentOn != want {
			t.Errorf("%s: the provider was sent %q, want %q", name, sentOn, want)
		}
		if sentOn == "" && got["aid.decision"] == "allow" {
			t.Errorf("%s: the provider was sent no traceparent", name)
		}
	}

	if _, err := up.Stop(); err != nil { // the remaining spans are sent
		t.Error(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	perExchange := map[string]int{}
	for _, s := range c.spans {
		perExchange[said(s.GetAttributes())["aid.exchange"]]++
		if said(s.GetAttributes())["aid.outcome"] == "canary" {
			t.Error("the probe of our own readiness is a span")
		}
	}
	for id, n := range perExchange {
		if id == "" || n != 1 {
			t.Errorf("exchange %q has %d spans", id, n)
		}
	}
	if !c.service["aid-extproc"] {
		t.Errorf("spans are of %v", slices.Collect(maps.Keys(c.service)))
	}
	for what, word := range map[string]string{"the agent's key": key, "the provider's credential": credential, "the org's key": up.OrgKey, "the prompt": "Hello", "the answer": "Hello!"} {
		if bytes.Contains(c.raw.Bytes(), []byte(word)) {
			t.Errorf("spans hold %s", what)
		}
	}
}
