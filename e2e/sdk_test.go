package e2e_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
	"github.com/ai-identity/ai-identity/envoy/envoytest"
)

// clients are the suites of e2e/sdk: one for each official client and framework.
var clients = []struct{ name, program, file string }{
	{"openai-python", "sdk", "test_openai.py"},
	{"anthropic-python", "sdk", "test_anthropic.py"},
	{"google-genai-python", "sdk", "test_genai.py"},
	{"cohere-python", "sdk", "test_cohere.py"},
	{"mistralai-python", "sdk", "test_mistral.py"},
	{"langchain-python", "sdk", "test_langchain.py"},
	{"ag2-python", "sdk", "test_ag2.py"},
	{"crewai-python", "frameworks", "test_crewai.py"},
	{"autogen-agentchat-python", "frameworks", "test_agentchat.py"},
	{"autogen-python", "frameworks", "test_autogen.py"},
	{"litellm-python", "agents", "test_litellm.py"},
	{"pydantic-ai-python", "agents", "test_pydantic_ai.py"},
	{"openai-and-anthropic-go", "go", ""},
	{"openai-javascript", "node", "openai.test.mjs"},
	{"anthropic-javascript", "node", "anthropic.test.mjs"},
	{"google-genai-javascript", "node", "genai.test.mjs"},
	{"ai-javascript", "node", "ai.test.mjs"},
	{"openai-agents-javascript", "node", "agents.test.mjs"},
}

// chatModels are requested in OpenAI's format, for every provider. namedModels are
// requested by clients that put authors' names into messages. Only OpenAI supports those
// names. The settings of the other providers leave the names out.
var (
	chatModels  = []string{"gpt-4o", "claude-sonnet-4-20250514", "gemini-2.5-pro", "command-a-03-2025", "mistral-large-2512"}
	namedModels = []string{"gpt-4o", "claude-haiku-4-5", "gemini-2.5-flash", "command-r7b-12-2024", "mistral-small-2603"}
)

// The official clients work when only their base URL and key are changed, and raise their
// own typed exceptions. Upstream are the checks of e2e/sdk/provider.py, which reject every
// request that the provider's own SDK could not have sent. The responses come from aimock,
// an independent mock.
func TestSDKs(t *testing.T) {
	s := newSDKs(t)
	t.Run("clients", func(t *testing.T) {
		for _, c := range clients {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				_, one := s.up.Key(t, s.agent, `{"name":"one","scopes":["*"],"rate_limit":1}`)
				_, other := s.up.Key(t, s.agent, `{"name":"other","scopes":["*"],"rate_limit":1}`)
				env := append(s.environ(t), "AID_ONE_RPM_KEY="+one, "AID_OTHER_ONE_RPM_KEY="+other)
				switch c.program {
				case "node":
					play(t, s.dir, env, s.programs[c.program], "--test", c.file)
				case "go":
					play(t, s.dir, env, goClients(t, s.dir))
				default:
					play(t, s.dir, env, s.programs[c.program], "-m", "pytest", "-q", "-p", "no:cacheprovider", c.file)
				}
			})
		}
		for i, b := range documented(t) {
			t.Run(fmt.Sprintf("docs/%s-%d", b.heading, i+1), func(t *testing.T) {
				t.Parallel()
				s.run(t, b)
			})
		}
	})

	// The provider's checks find errors that a client hides.
	checked := s.checked(t)
	for _, f := range checked.Faults {
		t.Error("reached a provider:", f)
	}
	t.Log("reached the providers:", checked.Seen)
}

// goClients builds the program of e2e/sdk/go, which is a separate module.
func goClients(t *testing.T, dir string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "clients")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-mod=readonly", "-o", program, ".")
	cmd.Dir = filepath.Join(dir, "go")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// The checks in front of a provider are effective: each of these requests is rejected and
// listed. There is no provider behind them, so a request that passes gets 502.
func TestSDKChecks(t *testing.T) {
	s := &sdks{dir: filepath.Join(e2e.Root(), "e2e", "sdk")}
	python := installed("AID_SDK_PYTHON", "sdk")
	if _, err := os.Stat(python); err != nil {
		missing(t, err)
	}
	s.checks = "http://" + checks(t, python, s.dir, fmt.Sprintf("127.0.0.1:%d", envoytest.Port(t)), "sk-good")
	bearer, anthropic, google := "authorization: Bearer sk-good", "x-api-key: sk-good\nanthropic-version: 2023-06-01", "x-goog-api-key: sk-good"
	faults := 0
	for _, c := range []struct {
		name, path, headers, body string
		good                      bool
	}{
		{"OpenAI's", "/openai/v1/chat/completions", bearer, `{"model":"m","messages":[{"role":"user","content":"x"}]}`, true},
		{"Anthropic's", "/anthropic/v1/messages", anthropic, `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}]}`, true},
		{"Anthropic's count", "/anthropic/v1/messages/count_tokens", anthropic, `{"model":"m","messages":[{"role":"user","content":"x"}]}`, true},
		{"Gemini's", "/gemini/v1/models/m:generateContent", google, `{"contents":[{"role":"user","parts":[{"text":"x"}]}]}`, true},
		{"Cohere's", "/cohere/v2/chat", bearer, `{"model":"m","messages":[{"role":"user","content":"x"}]}`, true},
		{"Mistral's", "/mistral/v1/chat/completions", bearer, `{"model":"m","messages":[{"role":"user","content":"x"}]}`, true},
		{"no credential", "/openai/v1/chat/completions", "", `{"model":"m","messages":[{"role":"user","content":"x"}]}`, false},
		{"another's credential", "/openai/v1/chat/completions", "authorization: Bearer sk-bad", `{"model":"m","messages":[{"role":"user","content":"x"}]}`, false},
		{"the wrong header", "/gemini/v1/models/m:generateContent", bearer, `{"contents":[{"role":"user","parts":[{"text":"x"}]}]}`, false},
		{"two credentials", "/anthropic/v1/messages", anthropic + "\n" + bearer, `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}]}`, false},
		{"a key of ours", "/openai/v1/chat/completions", bearer, `{"model":"m","messages":[{"role":"user","content":"aid_sk_x"}]}`, false},
		{"OpenAI's field at Anthropic", "/anthropic/v1/messages", anthropic, `{"model":"m","max_tokens":1,"n":1,"messages":[{"role":"user","content":"x"}]}`, false},
		{"a field deep inside", "/anthropic/v1/messages", anthropic, `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[{"type":"text","text":"x","name":"y"}]}]}`, false},
		{"a call without an answer", "/anthropic/v1/messages", anthropic, `{"model":"m","max_tokens":1,"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"a","name":"f","input":{}}]},{"role":"user","content":"x"}]}`, false},
		{"what Anthropic requires", "/anthropic/v1/messages", anthropic, `{"model":"m","messages":[{"role":"user","content":"x"}]}`, false},
		{"another version", "/anthropic/v1/messages", "x-api-key: sk-good\nanthropic-version: 2020-01-01", `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}]}`, false},
		{"OpenAI's field at Gemini", "/gemini/v1/models/m:generateContent", google, `{"contents":[{"role":"user","parts":[{"text":"x"}]}],"messages":[]}`, false},
		{"a role that Gemini has not", "/gemini/v1/models/m:generateContent", google, `{"contents":[{"role":"assistant","parts":[{"text":"x"}]}]}`, false},
		{"OpenAI's field at Cohere", "/cohere/v2/chat", bearer, `{"model":"m","user":"u","messages":[{"role":"user","content":"x"}]}`, false},
		{"OpenAI's field at Mistral", "/mistral/v1/chat/completions", bearer, `{"model":"m","seed":1,"messages":[{"role":"user","content":"x"}]}`, false},
		{"OpenAI's ids at Mistral", "/mistral/v1/chat/completions", bearer, `{"model":"m","messages":[{"role":"assistant","content":"","tool_calls":[{"id":"call_1","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"call_1","content":"x"}]}`, false},
		{"next year's field at OpenAI", "/openai/v1/chat/completions", bearer, `{"model":"m","of_next_year":1,"messages":[{"role":"user","content":"x"}]}`, false},
		{"a path that it has not", "/openai/v1/threads", bearer, `{}`, false},
		{"what is not JSON", "/openai/v1/chat/completions", bearer, `{`, false},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.checks+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		for h := range strings.Lines(c.headers) {
			name, value, _ := strings.Cut(strings.TrimSpace(h), ": ")
			req.Header.Set(name, value)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		resp.Body.Close()
		if !c.good {
			faults++
		}
		if c.good == (resp.StatusCode == http.StatusUnprocessableEntity) {
			t.Errorf("%s: %d", c.name, resp.StatusCode)
		}
	}
	if got := len(s.checked(t).Faults); got < faults {
		t.Errorf("%d faults are remembered of %d", got, faults)
	}
}

// checked is what the providers received, and the errors in it.
type checked struct {
	Seen   map[string]int
	Faults []string
}

func (s *sdks) checked(t *testing.T) checked {
	t.Helper()
	resp, err := http.Get(s.checks + "/checked")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var c checked
	if err := json.NewDecoder(resp.Body).Decode(&c); err != nil {
		t.Fatal(err)
	}
	return c
}

// block is a piece of code in docs/clients.md, below a heading.
type block struct{ heading, language, code string }

// documented is the code of docs/clients.md.
func documented(t *testing.T) []block {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(e2e.Root(), "docs", "clients.md"))
	if err != nil {
		t.Fatal(err)
	}
	var blocks []block
	for _, section := range strings.Split(string(text), "\n## ")[1:] {
		heading, _, _ := strings.Cut(section, "\n")
		for _, m := range regexp.MustCompile("(?s)```([a-z]*)\n(.*?)```").FindAllStringSubmatch(section, -1) {
			blocks = append(blocks, block{heading, m[1], m[2]})
		}
	}
	if len(blocks) < 15 {
		t.Fatalf("%d blocks of code in docs/clients.md", len(blocks))
	}
	return blocks
}

// run runs a block unchanged, except for the host and the key.
func (s *sdks) run(t *testing.T, b block) {
	t.Helper()
	program, args := "", []string{"-"}
	switch {
	case b.language == "python" && regexp.MustCompile(`(?m)^from (crewai|autogen)`).MatchString(b.code):
		program = s.programs["frameworks"]
	case b.language == "python" && regexp.MustCompile(`(?m)^(from pydantic_ai|import litellm)`).MatchString(b.code):
		program = s.programs["agents"]
	case b.language == "python":
		program = s.programs["sdk"]
	case b.language == "js":
		program, args = s.programs["node"], []string{"--input-type=module", "-"}
	case b.language == "sh":
		program, args = "bash", []string{"-e"}
	default:
		t.Fatalf("nothing runs %q", b.language)
	}
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir, cmd.Env = s.dir, s.environ(t)
	cmd.Stdin = strings.NewReader(strings.NewReplacer("http://localhost:8080", s.up.Gateway, "aid_sk_your_agent_key", s.key).Replace(b.code))
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Answered as documented.") {
		t.Errorf("%v\n%s\nsaid\n%s", err, b.code, out)
	}
}

// sdks is the state shared by the clients' tests.
type sdks struct {
	up       *e2e.Up
	dir      string            // e2e/sdk
	programs map[string]string // node, and Python of the environments sdk and frameworks
	checks   string            // URL of provider.py
	agent    string
	key      string
	env      []string
}

func newSDKs(t *testing.T) *sdks {
	t.Helper()
	s := &sdks{dir: filepath.Join(e2e.Root(), "e2e", "sdk"), programs: map[string]string{
		"sdk":        installed("AID_SDK_PYTHON", "sdk"),
		"frameworks": installed("AID_FRAMEWORKS_PYTHON", "frameworks"),
		"agents":     installed("AID_AGENTS_PYTHON", "agents"),
	}}
	node, err := exec.LookPath("node")
	if err != nil {
		missing(t, err)
	}
	s.programs["node"] = node
	for _, path := range []string{s.programs["sdk"], s.programs["frameworks"], s.programs["agents"], filepath.Join(s.dir, "node_modules", "@openai", "agents"), filepath.Join(s.dir, "node_modules", ".bin", "llmock")} {
		if _, err := os.Stat(path); err != nil {
			missing(t, err)
		}
	}

	const credential = "sk-sdk-credential"
	s.checks = "http://" + checks(t, s.programs["sdk"], s.dir, standIn(t, node, s.dir, "fixtures.json"), credential)
	s.up = e2e.Shared(t)
	for kind, models := range map[string]string{
		"openai":    `"gpt-4o","gpt-*","text-embedding-*","omni-moderation-*"`,
		"anthropic": `"claude-sonnet-4-20250514","claude-*"`,
		"gemini":    `"gemini-2.5-pro","gemini-*"`,
		"cohere":    `"command-a-03-2025","command-*","embed-v4.0","rerank-*"`,
		"mistral":   `"mistral-large-2512","mistral-*","codestral-*"`,
	} {
		base, version := s.checks+"/"+kind, ""
		if kind == "openai" {
			version = "/v1"
		}
		s.up.Provider(t, fmt.Sprintf(`{"name":"sdk-%s","kind":%q,"base_url":%q,"models":[%s]}`, kind, kind, base+version, models), credential)
		if i := slices.Index([]string{"anthropic", "gemini", "cohere", "mistral"}, kind); i >= 0 {
			s.up.Provider(t, fmt.Sprintf(`{"name":"sdk-%s-unnamed","kind":%q,"base_url":%q,"models":[%q],"settings":{"drop_unsupported":true}}`, kind, kind, base, namedModels[i+1]), credential)
		}
		s.up.Provider(t, fmt.Sprintf(`{"name":"unreachable-%s","kind":%q,"base_url":"http://127.0.0.1:%d%s","models":["unreachable-%s"]}`, kind, kind, envoytest.Port(t), version, kind), credential)
	}
	s.agent = s.up.Agent(t, `{"name":"sdk","allowed_models":["gpt-4o*","text-embedding-*","omni-moderation-*","claude-sonnet-*","claude-haiku-*","gemini-2.5-*","gemini-embedding-*","command-a-*","command-r7b-*","embed-*","rerank-*","mistral-large-*","mistral-small-*","mistral-embed","mistral-ocr-*","mistral-moderation-*","codestral-*","unreachable-*"]}`)
	_, s.key = s.up.Key(t, s.agent, `{"name":"all","scopes":["*"]}`)
	revokedID, revoked := s.up.Key(t, s.agent, `{"name":"revoked","scopes":["*"]}`)
	s.up.Revoke(t, s.agent, revokedID)
	e2e.Eventually(t, 10*time.Second, func() error {
		if r := s.up.Chat(t, s.key, `{"model":"gpt-4o","messages":[{"role":"user","content":"hello"}]}`); r.Status != 200 {
			return fmt.Errorf("%d %s", r.Status, r.Body)
		}
		return nil
	})
	elsewhere := nowhere(t)
	s.env = append(os.Environ(), "AID_GATEWAY="+s.up.Gateway, "AID_KEY="+s.key, "AID_REVOKED_KEY="+revoked,
		"AID_CHAT_MODELS="+strings.Join(chatModels, ","), "AID_NAMED_MODELS="+strings.Join(namedModels, ","),
		"PYTHONDONTWRITEBYTECODE=1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1",
		// Frameworks that send usage data to their makers have that turned off.
		"CREWAI_DISABLE_TELEMETRY=true", "OTEL_SDK_DISABLED=true", "CREWAI_TRACING_ENABLED=false", "OPENAI_AGENTS_DISABLE_TRACING=1", "LANGSMITH_TRACING=false", "AI_SDK_LOG_WARNINGS=false",
		"HTTP_PROXY="+elsewhere, "HTTPS_PROXY="+elsewhere, "http_proxy="+elsewhere, "https_proxy="+elsewhere, "NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1", "NODE_USE_ENV_PROXY=1")
	return s
}

// environ is the environment of one client, with a separate home, since some clients keep
// databases there.
func (s *sdks) environ(t *testing.T) []string { return append(slices.Clip(s.env), "HOME="+t.TempDir()) }

// nowhere is a proxy that rejects everything: a client that connects to any host except the
// gateway fails the test.
func nowhere(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("a client asked %s of %s", r.Method, r.Host)
		http.Error(w, "nothing but the gateway", http.StatusForbidden)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// installed is the path of Python with the clients.
func installed(variable, folder string) string {
	if p := os.Getenv(variable); p != "" {
		return p
	}
	return filepath.Join(e2e.Root(), ".tools", folder, "bin", "python")
}

// missing skips the test on a developer's machine, and fails in CI, where a skipped test
// would hide an error.
func missing(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(err)
	}
	t.Skipf("%v; `make test` installs it", err)
}

// standIn starts the mock provider with its fixtures, and returns its host and port.
func standIn(t *testing.T, node, dir, fixtures string) string {
	t.Helper()
	port := strconv.Itoa(envoytest.Port(t))
	cmd := exec.Command(node, filepath.Join("node_modules", ".bin", "llmock"), "-p", port, "-f", fixtures, "--log-level", "warn")
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	begin(t, cmd)
	address := net.JoinHostPort("127.0.0.1", port)
	e2e.Eventually(t, 20*time.Second, func() error {
		resp, err := http.Get("http://" + address + "/v1/models")
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
	return address
}

// checks starts the checks of the provider's requests, and returns their host and port.
func checks(t *testing.T, python, dir, mock, credential string) string {
	t.Helper()
	cmd := exec.Command(python, "provider.py", mock, credential)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	begin(t, cmd)
	line, err := bufio.NewReader(io.LimitReader(out, 16)).ReadString('\n')
	if err != nil {
		t.Fatal("provider.py did not say its port: ", err)
	}
	return net.JoinHostPort("127.0.0.1", strings.TrimSpace(line))
}

// begin starts a program that runs until the test ends.
func begin(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
}

// play runs one client's tests.
func play(t *testing.T, dir string, env []string, program string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir, cmd.Env = dir, env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", filepath.Base(program), strings.Join(args, " "), err, out)
	}
}
