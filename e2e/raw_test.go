package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
)

// rawHost is the gateway's host in the cases. The audit log must have it.
const rawHost = "gateway.test"

// TestRaw sends bytes that no client library would send. It checks three places: the
// client's response, every byte that the provider received, and the audit log. testdata/raw
// defines which requests may pass. The test checks the invariants of each request that
// passes, for every case.
func TestRaw(t *testing.T) {
	w := newRawWorld(t)
	files, err := filepath.Glob("testdata/raw/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []rawCase
	for _, f := range files {
		if strings.HasSuffix(f, "http2.txt") || strings.HasSuffix(f, "answers.txt") {
			continue // cases of TestRawHTTP2 and TestRawAnswers
		}
		all = append(all, w.cases(t, f)...)
	}
	if len(all) < 400 {
		t.Errorf("there are only %d cases", len(all))
	}
	w.each(len(all), func(i int) { w.http1(t, all[i]) })
	w.check(t, all)
}

// rawWorld is an `aid up` with an agent and a provider for the models whose names
// begin with prefix.
type rawWorld struct {
	prefix     string
	up         *e2e.Up
	provider   *e2e.Provider
	agent, key string
	digestKey  []byte
}

func newRawWorld(t *testing.T) *rawWorld {
	t.Helper()
	w := &rawWorld{prefix: strings.ToLower(t.Name()) + "-", up: e2e.Shared(t), provider: e2e.Record(t, nil)}
	w.up.Provider(t, w.provider.Body(w.prefix+"provider", w.prefix+"*"), credential)
	w.agent = w.up.Agent(t, fmt.Sprintf(`{"name":"raw","allowed_models":["%s*"]}`, w.prefix))
	_, w.key = w.up.Key(t, w.agent, `{"name":"k","scopes":["*"]}`)
	text, err := os.ReadFile(filepath.Join(w.up.Home, "secrets", "digest.key"))
	if err != nil {
		t.Fatal(err)
	}
	whole, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	w.digestKey = mac(whole, "ai-identity digest key 1\x00org_default") // the org's own key
	e2e.Eventually(t, 10*time.Second, func() error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.up.Gateway+"/v1/chat/completions", strings.NewReader(rawBody(w.prefix+"first")))
		if err != nil {
			return err
		}
		req.Host = rawHost
		req.Header.Set("Authorization", "Bearer "+w.key)
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("answered %d", resp.StatusCode)
		}
		if seen := w.provider.Requests(); seen[len(seen)-1].Header.Get("Authorization") == "" {
			return errors.New("the provider's credential is not here yet")
		}
		return nil
	})
	return w
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func (w *rawWorld) address() string { return strings.TrimPrefix(w.up.Gateway, "http://") }

// each calls f for 0 to n-1, some in parallel.
func (w *rawWorld) each(n int, f func(i int)) {
	var wg sync.WaitGroup
	turn := make(chan struct{}, 16)
	for i := range n {
		wg.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			f(i)
		})
	}
	wg.Wait()
}

// rawCase is the bytes to send, and the expected result. Its model is unique, so requests
// at the provider can be assigned to it.
type rawCase struct {
	name, model string
	want        string
	closes      bool     // the connection is closed after a response
	status      int      // of the first response; 0: any
	lines       []string // to send, each with its CRLF if it has one
}

func (c rawCase) hidden() string { return c.model + "-hidden" }

// forwarded is the number of requests with the case's model and its hidden model that may
// reach the provider.
func (c rawCase) forwarded() (own, hidden int) {
	switch c.want {
	case "one":
		return 1, 0
	case "two":
		return 1, 1
	default:
		return 0, 0
	}
}

func rawBody(model string) string {
	return `{"model":"` + model + `","messages":[{"role":"user","content":"Hello there"}]}`
}

// cases reads a file of cases; framing.txt describes the format.
func (w *rawWorld) cases(t *testing.T, file string) (out []rawCase) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	base := strings.TrimSuffix(filepath.Base(file), ".txt")
	blocks := strings.Split("\n"+string(text), "\n=== ")
	for _, block := range blocks[1:] {
		name, rest, _ := strings.Cut(block, "\n")
		c := rawCase{want: ""}
		var values, lines []string
		for line := range strings.Lines(rest) {
			line = strings.TrimSuffix(line, "\n")
			word, value, _ := strings.Cut(line, " ")
			switch word {
			case "want":
				c.want = value
			case "close":
				c.closes = true
			case "status":
				c.status, _ = strconv.Atoi(value)
			case "each":
				values = append(values, value)
			case ">":
				lines = append(lines, value+`\r\n`)
			case "|":
				lines = append(lines, value)
			case "", "#":
			default:
				if base != "http2" {
					t.Fatalf("%s: %s: %q", file, name, line)
				}
				lines = append(lines, line)
			}
		}
		if !slices.Contains([]string{"refused", "one", "two", "waits", "any", "whole", "empty", "broken"}, c.want) || len(lines) == 0 {
			t.Fatalf("%s: %s: wants %q and sends %d lines", file, name, c.want, len(lines))
		}
		if len(values) == 0 {
			values = []string{""}
		}
		for i, x := range values {
			c := c
			c.name = fmt.Sprintf("%s: %s", base, name)
			if len(values) > 1 {
				c.name += fmt.Sprintf(" (%d: %.40s)", i+1, x)
			}
			c.model = fmt.Sprintf("%s%s-%d", w.prefix, base, len(out))
			for _, line := range lines {
				line = w.expand(c, line, x)
				if base != "http2" {
					line = rawBytes(line)
				}
				c.lines = append(c.lines, line)
			}
			out = append(out, c)
		}
	}
	return out
}

var (
	rawPad    = regexp.MustCompile(`\{pad:(\d+)\}`)
	rawRepeat = regexp.MustCompile(`\{repeat:(\d+):([^{}]*)\}`)
	rawEscape = regexp.MustCompile(`\\(x[0-9a-f]{2}|[rnt\\])`)
)

// expand replaces the placeholders in a line of a case.
func (w *rawWorld) expand(c rawCase, line, x string) string {
	body, inner := rawBody(c.model), rawBody(c.hidden())
	answer := rawAnswer(c.model)
	if slices.Contains([]string{"whole", "empty", "broken"}, c.want) {
		body = answer
	}
	stray := rawAnswer("stray")
	stray = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(stray)) + "\r\n\r\n" + stray
	head := "POST /v1/chat/completions HTTP/1.1\r\nHost: " + rawHost + "\r\nAuthorization: Bearer " + w.key + "\r\nContent-Type: application/json"
	hidden := head + "\r\nContent-Length: " + strconv.Itoa(len(inner)) + "\r\n\r\n" + inner
	places := func(s string) string {
		s = strings.NewReplacer(
			"{post}", head, "{body}", body, "{len}", strconv.Itoa(len(body)), "{hex}", strconv.FormatInt(int64(len(body)), 16),
			"{HEX}", strings.ToUpper(strconv.FormatInt(int64(len(body)), 16)), "{key}", w.key, "{model}", c.model, "{hidden-body}", inner,
			"{answer}", answer, "{stray}", stray, "{secret}", credential,
			"{hidden}", hidden, "{hidden-len}", strconv.Itoa(len(hidden)), "{hidden-hex}", strconv.FormatInt(int64(len(hidden)), 16),
		).Replace(s)
		s = rawPad.ReplaceAllStringFunc(s, func(m string) string {
			n, _ := strconv.Atoi(rawPad.FindStringSubmatch(m)[1])
			return strings.Repeat("x", n)
		})
		return rawRepeat.ReplaceAllStringFunc(s, func(m string) string {
			n, _ := strconv.Atoi(rawRepeat.FindStringSubmatch(m)[1])
			return strings.TrimSuffix(strings.Repeat(rawRepeat.FindStringSubmatch(m)[2]+"\r\n", n), "\r\n")
		})
	}
	size := strconv.FormatInt(int64(len(rawBytes(places(x)))), 16)
	return places(strings.NewReplacer("{x}", x, "{x-hex}", size).Replace(line))
}

// rawBytes is the text of a case with its escapes replaced by bytes.
func rawBytes(s string) string {
	return rawEscape.ReplaceAllStringFunc(s, func(m string) string {
		switch m[1] {
		case 'r':
			return "\r"
		case 'n':
			return "\n"
		case 't':
			return "\t"
		case '\\':
			return `\`
		}
		b, _ := hex.DecodeString(m[2:])
		return string(b)
	})
}

// http1 sends a case and checks the responses. The provider's bytes are checked after all
// cases.
func (w *rawWorld) http1(t *testing.T, c rawCase) {
	conn, err := net.Dial("tcp", w.address())
	if err != nil {
		t.Errorf("%s: %v", c.name, err)
		return
	}
	defer conn.Close()
	go func() {
		for _, line := range c.lines {
			if _, err := io.WriteString(conn, line); err != nil {
				return // the connection was cut, which counts as a response
			}
		}
	}()
	statuses, answers := rawAnswers(conn, c)
	if strings.Contains(answers, w.key) {
		t.Errorf("%s: the answer holds the key: %s", c.name, answers)
	}
	good := 0
	for _, s := range statuses {
		if s < 300 {
			good++
		}
	}
	own, hidden := c.forwarded()
	switch {
	case slices.Contains(statuses, 0):
		t.Errorf("%s: was neither answered nor closed: %v", c.name, statuses)
	case c.want == "waits" && len(statuses) > 0:
		t.Errorf("%s: was answered %v though it is not complete", c.name, statuses)
	case c.want == "waits":
	case c.want == "any" && len(statuses) > 0 && statuses[0] == c.status && len(statuses) <= 2:
	case good != own+hidden:
		t.Errorf("%s: was answered %v, want %s: %.300s", c.name, statuses, c.want, answers)
	}
	if c.status != 0 && c.want != "any" && (len(statuses) != 1 || statuses[0] != c.status || !strings.Contains(answers, `"request_id":"`)) {
		t.Errorf("%s: was answered %v, want %d and a request_id: %.300s", c.name, statuses, c.status, answers)
	}
}

// rawAnswers reads the gateway's responses until it closes the connection or sends nothing
// more. The wait is short. A later request is found in the audit log.
func rawAnswers(conn net.Conn, c rawCase) (statuses []int, all string) {
	const hung, quiet = 20 * time.Second, 300 * time.Millisecond
	own, hidden := c.forwarded()
	r := bufio.NewReader(conn)
	var text bytes.Buffer
	req := &http.Request{Method: "POST"}
	if strings.HasPrefix(c.lines[0], "HEAD ") || strings.HasPrefix(c.lines[0], "CONNECT ") {
		req.Method = "HEAD" // for the parser: no body follows
	}
	for {
		wait := hung
		if c.want == "waits" || len(statuses) >= max(1, own+hidden) {
			wait = quiet
		}
		conn.SetReadDeadline(time.Now().Add(wait))
		resp, err := http.ReadResponse(r, req)
		if err != nil {
			if wait == hung && errors.Is(err, os.ErrDeadlineExceeded) {
				text.WriteString("(no answer)")
				statuses = append(statuses, 0)
			}
			return statuses, text.String()
		}
		b, _ := io.ReadAll(resp.Body)
		fmt.Fprintf(&text, "%d %v %s\n", resp.StatusCode, resp.Header, b)
		if resp.StatusCode >= 200 {
			statuses = append(statuses, resp.StatusCode)
		}
	}
}

// check compares what reached the provider with the audit log.
func (w *rawWorld) check(t *testing.T, cases []rawCase) {
	t.Helper()
	entries := settled(t, w.up)
	inspected(t, entries, w.provider)
	decided := map[string]entry{}
	allowed := map[string]int{}
	for _, e := range entries {
		if e.Kind == "request.decided" && e.AgentID == w.agent {
			decided[e.RequestID] = e
			if e.Effect == "allow" {
				allowed[e.Model]++
			}
		}
		if bytes.Contains(e.Raw, []byte(w.key)) {
			t.Errorf("the record holds the key: %s", e.Raw)
		}
	}

	// Two parsers must find the same requests in the same bytes: our own, which accepts one
	// spelling only, and Go's.
	var seen []rawRequest
	for i, b := range w.provider.Connections() {
		if bytes.Contains(b, []byte(w.key)) || bytes.Contains(b, []byte("aid_sk_")) {
			t.Errorf("connection %d to the provider holds a key of ours", i)
		}
		rs, err := strictRequests(b)
		if err != nil {
			t.Errorf("connection %d to the provider: %v", i, err)
		}
		seen = append(seen, rs...)
	}
	if n := len(w.provider.Requests()); n != len(seen) {
		t.Errorf("the provider saw %d requests, and %d are in its bytes", n, len(seen))
	}
	reached := map[string]int{}
	for _, r := range seen {
		model := w.judged(t, r, decided)
		reached[model]++
	}
	for _, c := range cases {
		own, hidden := c.forwarded()
		for model, want := range map[string]int{c.model: own, c.hidden(): hidden} {
			if c.want == "any" {
				if reached[model] > 1 || allowed[model] > 1 {
					t.Errorf("%s: %d requests for %s reached the provider, and %d are recorded as allowed", c.name, reached[model], model, allowed[model])
				}
				continue
			}
			if reached[model] != want || allowed[model] != want {
				t.Errorf("%s: %d requests for %s reached the provider and %d are recorded as allowed, want %d", c.name, reached[model], model, allowed[model], want)
			}
		}
	}
	t.Logf("%d cases, of which %d requests reached the provider", len(cases), len(seen))
	for line := range strings.Lines(string(w.up.Do(t, w.up.Metrics, http.MethodGet, "/metrics", "", "").Body)) {
		for _, counter := range []string{"failure_mode_allowed", "spurious_msgs_received", "rejected_header_mutations"} {
			if strings.Contains(line, counter) && strings.HasPrefix(line, "envoy") && !strings.HasSuffix(strings.TrimSpace(line), " 0") {
				t.Errorf("must stay 0: %s", line)
			}
		}
	}
	w.up.Ready(t)
}

// judged checks that a request at the provider is the one that was evaluated, and has no
// content that the client may not send. It returns the request's model.
func (w *rawWorld) judged(t *testing.T, r rawRequest, decided map[string]entry) string {
	t.Helper()
	var body struct{ Model string }
	if err := json.Unmarshal(r.body, &body); err != nil {
		t.Errorf("the provider was sent %q: %v", r.body, err)
		return ""
	}
	if body.Model == w.prefix+"first" {
		return body.Model // it was sent when all had arrived
	}
	e := decided[r.one("x-request-id")]
	for what, pair := range map[string][2]string{
		"effect":     {"allow", e.Effect},
		"method":     {r.method, e.Method},
		"path":       {r.path, e.Path},
		"model":      {body.Model, e.Model},
		"body":       {"hmac-sha256:" + hex.EncodeToString(mac(w.digestKey, string(r.body))), e.BodyDigest},
		"bytes":      {strconv.Itoa(len(r.body)), strconv.FormatInt(e.RequestBytes, 10)},
		"host":       {rawHost, e.Host},
		"own host":   {strings.TrimSuffix(strings.TrimPrefix(w.provider.URL, "http://"), "/v1"), r.one("host")},
		"agent":      {w.agent, r.one("x-agent-id")},
		"credential": {"Bearer " + credential, r.one("authorization")},
		"type":       {"application/json", r.one("content-type")},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: its %s is %q, want %q", body.Model, what, pair[1], pair[0])
		}
	}
	for name := range r.header {
		switch name {
		case "cookie", "te", "trailer", "expect", "upgrade", "connection", "proxy-connection", "keep-alive", "proxy-authorization", "via", "forwarded", "baggage",
			"x-api-key", "api-key", "x-goog-api-key", "content-encoding", "x-host", "x-original-host", "x-original-url", "x-rewrite-url",
			"x-http-method-override", "x-method-override", "x-http-method":
			t.Errorf("%s: the provider was sent %s", body.Model, name)
		}
		for _, prefix := range []string{"x-aid-", "x-envoy-", "x-forwarded-"} {
			if strings.HasPrefix(name, prefix) {
				t.Errorf("%s: the provider was sent %s", body.Model, name)
			}
		}
	}
	return body.Model
}

// rawRequest is a request as strictRequests reads it.
type rawRequest struct {
	method, path string
	header       map[string][]string
	body         []byte
}

// one returns the value of a header that must occur once.
func (r rawRequest) one(name string) string {
	if v := r.header[name]; len(v) == 1 {
		return v[0]
	}
	return fmt.Sprintf("(%d times)", len(r.header[name]))
}

var (
	rawLine   = regexp.MustCompile(`^([A-Z]+) (/[!-~]*) HTTP/1\.1$`)
	rawHeader = regexp.MustCompile("^([!#$%&'*+.^`|~0-9a-z-]+): ?([^\x00-\x08\x0a-\x1f\x7f]*)$")
)

// strictRequests parses a connection's bytes. It accepts only what every parser reads
// alike. Other bytes are an error.
func strictRequests(b []byte) (out []rawRequest, err error) {
	line := func() (string, error) {
		l, rest, ok := bytes.Cut(b, []byte("\r\n"))
		if !ok {
			return "", fmt.Errorf("a line without end: %q", b)
		}
		b = rest
		return string(l), nil
	}
	take := func(n int64) ([]byte, error) {
		if n < 0 || int64(len(b)) < n {
			return nil, fmt.Errorf("%d bytes of %d", len(b), n)
		}
		part := b[:n]
		b = b[n:]
		return part, nil
	}
	for len(b) > 0 {
		first, err := line()
		if err != nil {
			return out, err
		}
		m := rawLine.FindStringSubmatch(first)
		if m == nil {
			return out, fmt.Errorf("not a request line: %q", first)
		}
		r := rawRequest{method: m[1], path: m[2], header: map[string][]string{}}
		for {
			l, err := line()
			if err != nil {
				return out, err
			}
			if l == "" {
				break
			}
			m := rawHeader.FindStringSubmatch(l)
			if m == nil {
				return out, fmt.Errorf("not a header: %q", l)
			}
			r.header[m[1]] = append(r.header[m[1]], m[2])
		}
		length, coding := r.header["content-length"], r.header["transfer-encoding"]
		switch {
		case len(length) == 1 && len(coding) == 0:
			n, err := strconv.ParseUint(length[0], 10, 32)
			if err != nil {
				return out, err
			}
			if r.body, err = take(int64(n)); err != nil {
				return out, err
			}
		case len(length) == 0 && slices.Equal(coding, []string{"chunked"}):
			for size := int64(-1); size != 0; {
				l, err := line()
				if err != nil {
					return out, err
				}
				if size, err = strconv.ParseInt(l, 16, 32); err != nil {
					return out, err
				}
				chunk, err := take(size)
				if err != nil {
					return out, err
				}
				r.body = append(r.body, chunk...)
				if end, err := line(); err != nil || end != "" {
					return out, fmt.Errorf("a chunk or a trailer: %q", end)
				}
			}
		default:
			return out, fmt.Errorf("content-length %q, transfer-encoding %q", length, coding)
		}
		out = append(out, r)
	}
	return out, nil
}
