package verdict

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/provider"
)

// TestRecordedWhole: the request with the most tools and hosts that the parser accepts
// is recorded whole, and one more is rejected. So an agent cannot push a tool out of its
// entry by listing others.
func TestRecordedWhole(t *testing.T) {
	const maxTools, maxHosts = 512, 256
	request := func(tools, hosts int) []byte {
		var b bytes.Buffer
		b.WriteString(`{"model":"m","tools":[`)
		for i := range tools {
			fmt.Fprintf(&b, `{"type":"function","function":{"name":"%s%03d"}},`, strings.Repeat(`\"`, 125), i)
		}
		b.Truncate(b.Len() - 1)
		b.WriteString(`],"messages":[{"role":"user","content":[`)
		for i := range hosts {
			fmt.Fprintf(&b, `{"image_url":"https://h%03d.%s.example/"},`, i, strings.Repeat(strings.Repeat("a", 59)+".", 3)+"a")
		}
		b.Truncate(b.Len() - 1)
		b.WriteString(`]}]}`)
		return b.Bytes()
	}
	ep, params, _ := provider.Match("POST", "/v1/chat/completions")
	for _, c := range []struct {
		tools, hosts int
		code         string
	}{{maxTools + 1, 1, "too_many_tools"}, {1, maxHosts + 1, "too_many_urls"}} {
		if _, e := provider.Parse(ep, params, "application/json", "", request(c.tools, c.hosts)); e == nil || e.Code != c.code {
			t.Errorf("%d tools, %d hosts: %v", c.tools, c.hosts, e)
		}
	}
	call, e := provider.Parse(ep, params, "application/json", "", request(maxTools, maxHosts))
	if e != nil {
		t.Fatal(e)
	}
	entry := audit.Decided{Tools: call.Tools, Hosts: call.Hosts}.Encode()
	var read struct {
		Tools, Hosts []string
		Omitted      int64
	}
	if err := json.Unmarshal(entry, &read); err != nil {
		t.Fatal(err)
	}
	if len(read.Tools) != maxTools || len(read.Hosts) != maxHosts || read.Omitted != 0 || read.Tools[0] != call.Tools[0] {
		t.Errorf("%d tools, %d hosts, %d left out", len(read.Tools), len(read.Hosts), read.Omitted)
	}
	if len(entry) > audit.MaxEntryBytes/2 {
		t.Errorf("the entry has %d bytes", len(entry))
	}
}
