package e2e_test

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/e2e"
)

// victims are what TestKills kills.
var victims = []string{"aid extproc", "aid control", "postgres", "envoy"}

// child returns the first process with a name. Of Postgres that is the postmaster, whose
// children have names of their own.
func child(all map[int]string, name string) (first int) {
	for pid, n := range all {
		if n == name && (first == 0 || pid < first) {
			first = pid
		}
	}
	return first
}

var (
	kills = flag.Int("kills", 4, "how often TestKills kills a process")
	rate  = flag.Int("rate", 200, "how many requests a second TestKills sends")
)

// The sidecar, the control plane, Postgres and Envoy are killed with SIGKILL in turn. The load is
// open, and one request in four is a stream. Each response had a decision on
// disk before it. The audit log has no gap and no duplicate.
//
//	go test ./e2e -run TestKills -kills 100 -v
func TestKills(t *testing.T) {
	provider := e2e.Record(t, e2e.Streaming(20, 5*time.Millisecond, nil))
	up := e2e.Start(t, e2e.Config{Providers: provider.File("openai", credential, "gpt-*")})
	agent := up.Agent(t, `{"name":"a","allowed_models":["gpt-*"]}`)
	_, key := up.Key(t, agent, `{"name":"k","scopes":["chat:completions"]}`)
	up.Ready(t)

	var (
		mu       sync.Mutex
		receipts = map[string]string{} // of answered requests, by request id
		answered atomic.Int64
		refused  atomic.Int64
		broken   atomic.Int64
	)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}, Timeout: 60 * time.Second}
	one := func(n int) {
		body := allowed
		if n%4 == 0 {
			body = strings.Replace(allowed, "{", `{"stream":true,`, 1)
		}
		resp, err := send(t.Context(), client, up.Gateway, key, strings.NewReader(body), int64(len(body)))
		if err != nil {
			broken.Add(1)
			return
		}
		defer resp.Body.Close()
		first, _ := bufio.NewReader(resp.Body).ReadByte()
		_, err = io.Copy(io.Discard, resp.Body)
		switch {
		case resp.StatusCode == 200:
			answered.Add(1)
			if err != nil {
				broken.Add(1)
			}
			mu.Lock()
			receipts[resp.Header.Get("X-Request-Id")] = resp.Header.Get("X-Aid-Receipt")
			mu.Unlock()
		case resp.StatusCode >= 500 && first == '{':
			refused.Add(1)
		default:
			t.Errorf("answered %d", resp.StatusCode)
		}
	}

	stop := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		var wg sync.WaitGroup
		defer wg.Wait()
		tick := time.NewTicker(time.Second / time.Duration(*rate))
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			wg.Go(func() { one(n) })
		}
	})
	for i := range *kills {
		// Each time it is killed after some dozens of requests were answered.
		want := answered.Load() + 40
		e2e.Eventually(t, 60*time.Second, func() error {
			if n := answered.Load(); n < want {
				return fmt.Errorf("kill %d: only %d requests are answered, want %d", i, n, want)
			}
			return nil
		})
		var pid int
		e2e.Eventually(t, 20*time.Second, func() error {
			if pid = child(up.Children(t), victims[i%len(victims)]); pid == 0 {
				return fmt.Errorf("no %s", victims[i%len(victims)])
			}
			return nil
		})
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
	}
	want := answered.Load() + 40
	e2e.Eventually(t, 60*time.Second, func() error {
		if n := answered.Load(); n < want {
			return fmt.Errorf("after the last kill: only %d requests are answered, want %d", n, want)
		}
		return nil
	})
	close(stop)
	load.Wait()
	up.Ready(t)

	entries := settled(t, up)
	inspected(t, entries, provider)
	check(t, up, entries)
	stored := map[string]entry{}
	unknown := 0
	for _, e := range entries {
		if e.Kind == "request.decided" {
			stored[e.RequestID] = e
		}
		if e.Outcome == "unknown" {
			unknown++
		}
	}
	for id, text := range receipts {
		e, ok := stored[id]
		if !ok {
			t.Errorf("request %s was answered and never decided", id)
			continue
		}
		r, err := audit.ParseReceipt(text)
		if err != nil || r.Writer != e.Writer || int64(r.Seq) != e.WriterSeq || r.Leaf != audit.LeafHash(e.Raw) {
			t.Errorf("request %s: its receipt %q is not that of its entry %s/%d: %v", id, text, e.Writer, e.WriterSeq, err)
		}
	}
	t.Logf("%d kills: %d requests answered, %d refused, %d connections broken; %d entries, of which %d say that the end is unknown",
		*kills, answered.Load(), refused.Load(), broken.Load(), len(entries), unknown)
}
