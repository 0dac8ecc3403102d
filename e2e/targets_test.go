package e2e_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
	"github.com/ai-identity/ai-identity/provider"
)

// A name is checked when Envoy connects. Envoy connects to no address that is not public,
// even if the name had another address when the provider was created.
func TestTargets(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := net.LookupHost(host)
	if err != nil {
		// Only such a name passes validation and leads to a private address. The test makes
		// none: tests without root cannot change /etc/hosts.
		t.Skipf("the name of this machine has no address: %v. Add 127.0.0.1 %s to /etc/hosts.", err, host)
	}
	address := netip.MustParseAddr(addrs[0])
	if (provider.Targets{}).Allows(address, 1) {
		t.Skipf("%s stands for %s, which is public. Add 127.0.0.1 %s to /etc/hosts.", host, address, host)
	}
	var connected atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}`)
	}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connected.Add(1)
		}
	}
	server.Listener.Close()
	if server.Listener, err = net.Listen("tcp", netip.AddrPortFrom(address, 0).String()); err != nil {
		t.Fatal(err)
	}
	server.Start()
	defer server.Close()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		private string
		status  int
		dialled bool
	}{{"", http.StatusForbidden, false}, {address.String() + ",127.0.0.0/8", http.StatusOK, true}} {
		for _, usage := range []string{"stream", "envoy"} {
			connected.Store(0)
			up := e2e.Start(t, e2e.Config{Args: []string{"--private-targets=" + c.private, "--usage", usage}})
			want := http.StatusUnprocessableEntity
			if c.dialled {
				want = http.StatusCreated
			}
			up.Manage(t, http.MethodPost, "/v1/providers", `{"name":"direct","kind":"openai","base_url":"`+server.URL+`/v1","models":["direct"]}`, want, nil)
			// Our own API can never be a provider.
			up.Manage(t, http.MethodPost, "/v1/providers", `{"name":"own","kind":"openai","base_url":"`+up.API+`/v1","models":["own"]}`, http.StatusUnprocessableEntity, nil)
			up.Provider(t, `{"name":"named","kind":"openai","base_url":"http://`+host+":"+u.Port()+`/v1","models":["named"]}`, "sk-target-0123456789")
			_, key := up.Key(t, up.Agent(t, `{"name":"a","team":"t","allowed_models":["named"]}`), `{"name":"k","scopes":["chat:completions"]}`)
			ask := func() e2e.Response {
				return up.Chat(t, key, `{"model":"named","messages":[{"role":"user","content":"hi"}]}`)
			}
			got := ask()
			for deadline := time.Now().Add(20 * time.Second); (got.Status == http.StatusNotFound || got.Status == http.StatusServiceUnavailable) && time.Now().Before(deadline); {
				got = ask() // the provider is being sent to the sidecar and to Envoy
			}
			if got.Status != c.status || !c.dialled && !strings.Contains(string(got.Body), "provider_address_refused") {
				t.Errorf("%q, %s: %d %s", c.private, usage, got.Status, got.Body)
			}
			if (connected.Load() > 0) != c.dialled {
				t.Errorf("%q, %s: %d connections", c.private, usage, connected.Load())
			}
			if _, err := up.Stop(); err != nil {
				t.Error(err)
			}
		}
	}
}
