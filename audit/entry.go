package audit

import (
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
)

// An Entry is one thing that happened. Decided, Settled and Changed are entries;
// Other is one that a newer build wrote.
//
// Entries only ever gain optional fields, and an absent field means what it meant
// before the field existed.
type Entry interface {
	// Encode returns the bytes that are stored, hashed and chained: one line of
	// ASCII JSON with its fields in a fixed order. Equal values give equal bytes.
	Encode() []byte
	// Head returns what every entry says.
	Head() Head

	// stamped returns the entry as the one that writer wrote for org, at now if
	// it does not say when it happened.
	stamped(org, writer string, now time.Time) Entry
}

// Head is what every entry says.
type Head struct {
	Kind      string
	Time      time.Time
	Org       string
	Writer    string
	RequestID string
	AgentID   string // empty where the entry is of no agent
}

// The kinds of the two entries that an exchange leaves.
const (
	KindDecided = "request.decided"
	KindSettled = "request.settled"
)

// OutcomeUnknown is how an exchange ended of which nothing is known: its process
// died between the decision and the end.
const OutcomeUnknown = "unknown"

// Decided is the first entry of an exchange: who asked for what, and whether they
// may. It is durable before anything is forwarded. It never holds the text of a
// prompt: BodyDigest is keyed, so that a short body cannot be guessed from it.
type Decided struct {
	Time   time.Time `json:"time"`
	Org    string    `json:"org"`    // set by the Writer
	Writer string    `json:"writer"` // set by the Writer

	RequestID        string `json:"request_id"`
	AgentID          string `json:"agent_id"`
	AgentName        string `json:"agent_name"`
	AgentFingerprint string `json:"agent_fingerprint"`
	KeyID            string `json:"key_id"`

	Mode                string   `json:"mode"` // "gateway" or "egress"
	Method              string   `json:"method"`
	Host                string   `json:"host"`
	Path                string   `json:"path"`
	Operation           string   `json:"operation"`
	Model               string   `json:"model"` // as asked for
	Provider            string   `json:"provider"`
	ProviderID          string   `json:"provider_id"`
	Cluster             string   `json:"cluster"`
	Stream              bool     `json:"stream"`
	Tools               []string `json:"tools"`
	MaxTokens           int64    `json:"max_tokens"`
	InputTokensEstimate int64    `json:"input_tokens_estimate"`
	RequestBytes        int64    `json:"request_bytes"`
	BodyDigest          string   `json:"body_digest"` // "hmac-sha256:" + hex, of the body that was judged
	ClientIP            string   `json:"client_ip"`
	UserAgent           string   `json:"user_agent"`

	Effect        string   `json:"effect"` // "allow" or "deny"
	Status        int      `json:"status"` // what a refused caller gets; 0 when forwarded
	Reasons       []Reason `json:"reasons"`
	PolicyIDs     []string `json:"policy_ids"`
	PolicyVersion string   `json:"policy_version"`
	Limits        []Limit  `json:"limits"`
	TraceID       string   `json:"trace_id"`

	// ForwardedDigest is of the bytes that were sent, if they are others than those
	// that were judged: a translation of them, or with inject_usage. Dropped are the
	// fields that a translation left out.
	ForwardedDigest string   `json:"forwarded_digest"`
	Dropped         []string `json:"dropped"`

	// Hosts are those that the provider is asked to fetch from or to call: of images
	// and files, of MCP servers.
	Hosts []string `json:"hosts"`

	// Omitted counts the elements of Tools, Reasons, PolicyIDs, Limits, Dropped and Hosts
	// that were left out because the entry would have been too long.
	Omitted int64 `json:"omitted"`
}

// Reason says why a decision fell as it did.
type Reason struct {
	Code     string `json:"code"`
	Message  string `json:"message,omitempty"`
	PolicyID string `json:"policy_id,omitempty"`
}

// Limit is a limit that applied.
type Limit struct {
	Source string `json:"source"` // "key" or a policy's id
	Name   string `json:"name"`   // "rpm"
	Value  int64  `json:"value"`
}

// Settled is the second entry of an exchange: how it ended and what it used.
type Settled struct {
	Time   time.Time `json:"time"`
	Org    string    `json:"org"`    // set by the Writer
	Writer string    `json:"writer"` // set by the Writer

	RequestID     string `json:"request_id"`
	DecidedSeq    uint64 `json:"decided_seq"` // the writer's sequence of the first entry; 0: not known
	AgentID       string `json:"agent_id"`
	KeyID         string `json:"key_id"`
	Provider      string `json:"provider"`
	Model         string `json:"model"` // as asked for
	ResponseModel string `json:"response_model"`

	// Outcome is "completed", "refused", "provider_error", "client_closed",
	// "upstream_reset", "cut", "failed" or OutcomeUnknown.
	Outcome string `json:"outcome"`
	Status  int    `json:"status"`
	Usage   Usage  `json:"usage"`

	ResponseBytes     int64  `json:"response_bytes"`
	DurationUS        int64  `json:"duration_us"`
	FirstByteUS       int64  `json:"first_byte_us"`
	ProviderRequestID string `json:"provider_request_id"`
	CostNanoUSD       int64  `json:"cost_nano_usd"`
	Priced            bool   `json:"priced"` // false: the cost is not known, which is not 0

	// Lost names what a translated answer had for which the caller's format has no
	// place: "citations".
	Lost []string `json:"lost"`
}

// Usage is what the provider says it used.
type Usage struct {
	InputTokens      int64  `json:"input_tokens"`
	OutputTokens     int64  `json:"output_tokens"`
	CachedTokens     int64  `json:"cached_tokens"`
	CacheWriteTokens int64  `json:"cache_write_tokens"`
	ReasoningTokens  int64  `json:"reasoning_tokens"`
	Source           string `json:"source"` // "provider" or "absent"
}

// Changed is an entry of the management API: who changed what. It never holds a
// secret; Before and After are digests of the object, not the object.
type Changed struct {
	Kind   string    `json:"kind"` // "agent.created", "key.revoked", …
	Time   time.Time `json:"time"`
	Org    string    `json:"org"`    // set by Chain.Record
	Writer string    `json:"writer"` // set by Chain.Record

	Actor      Actor    `json:"actor"`
	RequestID  string   `json:"request_id"`
	ObjectKind string   `json:"object_kind"` // "agent", "key", …
	ObjectID   string   `json:"object_id"`
	AgentID    string   `json:"agent_id"` // the agent it concerns, if it concerns one
	Fields     []string `json:"fields"`   // which fields changed
	Before     string   `json:"before"`   // digest, empty for a creation
	After      string   `json:"after"`    // digest, empty for a deletion
	Omitted    int64    `json:"omitted"`  // how many of Fields were left out
}

// Actor is who changed something.
type Actor struct {
	Kind string `json:"kind"` // "org_key", "bootstrap", …
	ID   string `json:"id"`
	Role string `json:"role"`
}

// Other is an entry of a kind that this build does not know. Its bytes are kept
// as they are.
type Other struct {
	head Head
	raw  []byte
}

// Bounds, in bytes of UTF-8 before escaping, and in elements. What is longer is
// cut and ends in "…"; elements beyond the bound are counted in "omitted".
const (
	maxWord    = 64
	maxID      = 128
	maxName    = 256
	maxMessage = 512
	maxPath    = 1024

	maxTools   = 128
	maxReasons = 32
	maxIDs     = 64
	maxLimits  = 32
	maxFields  = 128

	// MaxEntryBytes is the longest an encoded entry may be. The bounds above keep
	// every entry of ours well below it.
	MaxEntryBytes = 512 << 10
)

func (e Decided) Head() Head {
	return Head{Kind: KindDecided, Time: e.Time, Org: e.Org, Writer: e.Writer, RequestID: e.RequestID, AgentID: e.AgentID}
}

func (e Decided) stamped(org, writer string, now time.Time) Entry {
	e.Org, e.Writer, e.Time = org, writer, or(e.Time, now)
	return e
}

func (e Decided) Encode() []byte {
	o := begin(1024, KindDecided, e.Time, e.Org, e.Writer, e.RequestID)
	o.str("agent_id", e.AgentID, maxID)
	o.str("agent_name", e.AgentName, maxName)
	o.str("agent_fingerprint", e.AgentFingerprint, maxID)
	o.str("key_id", e.KeyID, maxID)
	o.str("mode", e.Mode, maxWord)
	o.str("method", e.Method, maxWord)
	o.str("host", e.Host, maxName)
	o.str("path", e.Path, maxPath)
	o.str("operation", e.Operation, maxWord)
	o.str("model", e.Model, maxName)
	o.str("provider", e.Provider, maxName)
	o.str("provider_id", e.ProviderID, maxID)
	o.str("cluster", e.Cluster, maxID)
	o.flag("stream", e.Stream)
	e.Omitted += o.strs("tools", e.Tools, maxTools, maxID)
	o.num("max_tokens", e.MaxTokens)
	o.num("input_tokens_estimate", e.InputTokensEstimate)
	o.num("request_bytes", e.RequestBytes)
	o.str("body_digest", e.BodyDigest, maxID)
	o.str("client_ip", e.ClientIP, maxID)
	o.str("user_agent", e.UserAgent, maxName)
	o.must("effect", e.Effect, maxWord)
	o.num("status", int64(e.Status))
	if n := len(e.Reasons); n > 0 {
		o.key("reasons")
		o.open('[')
		for _, r := range e.Reasons[:min(n, maxReasons)] {
			o.open('{')
			o.must("code", r.Code, maxWord)
			o.str("message", r.Message, maxMessage)
			o.str("policy_id", r.PolicyID, maxID)
			o.close('}')
		}
		o.close(']')
		e.Omitted += int64(max(0, n-maxReasons))
	}
	e.Omitted += o.strs("policy_ids", e.PolicyIDs, maxIDs, maxID)
	o.str("policy_version", e.PolicyVersion, maxID)
	if n := len(e.Limits); n > 0 {
		o.key("limits")
		o.open('[')
		for _, l := range e.Limits[:min(n, maxLimits)] {
			o.open('{')
			o.must("source", l.Source, maxID)
			o.must("name", l.Name, maxWord)
			o.always("value", l.Value)
			o.close('}')
		}
		o.close(']')
		e.Omitted += int64(max(0, n-maxLimits))
	}
	o.str("trace_id", e.TraceID, maxWord)
	o.str("forwarded_digest", e.ForwardedDigest, maxID)
	e.Omitted += o.strs("dropped", e.Dropped, maxTools, maxID)
	e.Omitted += o.strs("hosts", e.Hosts, maxTools, maxName)
	o.num("omitted", e.Omitted)
	return o.end()
}

func (e Settled) Head() Head {
	return Head{Kind: KindSettled, Time: e.Time, Org: e.Org, Writer: e.Writer, RequestID: e.RequestID, AgentID: e.AgentID}
}

func (e Settled) stamped(org, writer string, now time.Time) Entry {
	e.Org, e.Writer, e.Time = org, writer, or(e.Time, now)
	return e
}

func (e Settled) Encode() []byte {
	o := begin(640, KindSettled, e.Time, e.Org, e.Writer, e.RequestID)
	if e.DecidedSeq != 0 {
		o.key("decided_seq")
		o.b = strconv.AppendUint(o.b, e.DecidedSeq, 10)
	}
	o.str("agent_id", e.AgentID, maxID)
	o.str("key_id", e.KeyID, maxID)
	o.str("provider", e.Provider, maxName)
	o.str("model", e.Model, maxName)
	o.str("response_model", e.ResponseModel, maxName)
	o.must("outcome", e.Outcome, maxWord)
	o.num("status", int64(e.Status))
	o.key("usage")
	o.open('{')
	o.num("input_tokens", e.Usage.InputTokens)
	o.num("output_tokens", e.Usage.OutputTokens)
	o.num("cached_tokens", e.Usage.CachedTokens)
	o.num("cache_write_tokens", e.Usage.CacheWriteTokens)
	o.num("reasoning_tokens", e.Usage.ReasoningTokens)
	o.must("source", e.Usage.Source, maxWord)
	o.close('}')
	o.num("response_bytes", e.ResponseBytes)
	o.num("duration_us", e.DurationUS)
	o.num("first_byte_us", e.FirstByteUS)
	o.str("provider_request_id", e.ProviderRequestID, maxID)
	o.num("cost_nano_usd", e.CostNanoUSD)
	o.key("priced")
	o.b = strconv.AppendBool(o.b, e.Priced)
	o.strs("lost", e.Lost, maxIDs, maxWord)
	return o.end()
}

func (e Changed) Head() Head {
	return Head{Kind: e.Kind, Time: e.Time, Org: e.Org, Writer: e.Writer, RequestID: e.RequestID, AgentID: e.AgentID}
}

func (e Changed) stamped(org, writer string, now time.Time) Entry {
	e.Org, e.Writer, e.Time = org, writer, or(e.Time, now)
	return e
}

func (e Changed) Encode() []byte {
	o := begin(640, e.Kind, e.Time, e.Org, e.Writer, e.RequestID)
	o.key("actor")
	o.open('{')
	o.must("kind", e.Actor.Kind, maxWord)
	o.str("id", e.Actor.ID, maxID)
	o.str("role", e.Actor.Role, maxWord)
	o.close('}')
	o.must("object_kind", e.ObjectKind, maxWord)
	o.must("object_id", e.ObjectID, maxID)
	o.str("agent_id", e.AgentID, maxID)
	e.Omitted += o.strs("fields", e.Fields, maxFields, maxID)
	o.str("before", e.Before, maxID)
	o.str("after", e.After, maxID)
	o.num("omitted", e.Omitted)
	return o.end()
}

func (e Other) Head() Head                              { return e.head }
func (e Other) Encode() []byte                          { return e.raw }
func (e Other) stamped(string, string, time.Time) Entry { return e }

// Stamp returns e as the entry that writer wrote for org, at now if e does not say
// when it happened. An Other stays what it is. It is what a Writer and a Chain do
// with every entry; who stands in for one in a test does it with Stamp.
func Stamp(e Entry, org, writer string, now time.Time) Entry {
	return e.stamped(org, writer, now)
}

// timeLayout has as many characters for every instant: UTC, microseconds.
const timeLayout = "2006-01-02T15:04:05.000000Z"

func or(t, now time.Time) time.Time {
	if t.IsZero() {
		return now
	}
	return t
}

// object writes one entry. A field with its zero value is left out unless the
// method says otherwise.
type object struct {
	b     []byte
	comma bool // a value stands before
}

func begin(size int, kind string, t time.Time, org, writer, request string) *object {
	o := &object{b: make([]byte, 0, size)}
	o.b = append(o.b, `{"v":1`...)
	o.comma = true
	o.must("kind", kind, maxWord)
	o.key("time")
	o.b = append(o.b, '"')
	o.b = clampYear(t.UTC()).AppendFormat(o.b, timeLayout)
	o.b = append(o.b, '"')
	o.must("org", org, maxID)
	o.must("writer", writer, maxID)
	o.must("request_id", request, maxID)
	return o
}

// clampYear keeps a broken clock from changing the width of a time.
func clampYear(t time.Time) time.Time {
	switch y := t.Year(); {
	case y < 1:
		return time.Time{}.UTC()
	case y > 9999:
		return time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC)
	}
	return t
}

func (o *object) end() []byte { return append(o.b, '}') }

func (o *object) next() {
	if o.comma {
		o.b = append(o.b, ',')
	}
	o.comma = true
}

func (o *object) key(name string) {
	o.next()
	o.b = append(o.b, '"')
	o.b = append(o.b, name...)
	o.b = append(o.b, '"', ':')
}

func (o *object) open(c byte) {
	if last := o.b[len(o.b)-1]; last != ':' {
		o.next()
	}
	o.b = append(o.b, c)
	o.comma = false
}

func (o *object) close(c byte) {
	o.b = append(o.b, c)
	o.comma = true
}

// must writes the field also when it is empty.
func (o *object) must(name, s string, limit int) {
	o.key(name)
	o.b = appendString(o.b, s, limit)
}

func (o *object) str(name, s string, limit int) {
	if s != "" {
		o.must(name, s, limit)
	}
}

func (o *object) always(name string, n int64) {
	o.key(name)
	o.b = strconv.AppendInt(o.b, n, 10)
}

func (o *object) num(name string, n int64) {
	if n != 0 {
		o.always(name, n)
	}
}

func (o *object) flag(name string, v bool) {
	if v {
		o.key(name)
		o.b = append(o.b, "true"...)
	}
}

// strs returns how many it left out.
func (o *object) strs(name string, ss []string, count, limit int) (omitted int64) {
	if len(ss) == 0 {
		return 0
	}
	o.key(name)
	o.open('[')
	for _, s := range ss[:min(len(ss), count)] {
		o.next()
		o.b = appendString(o.b, s, limit)
	}
	o.close(']')
	return int64(max(0, len(ss)-count))
}

const hexDigits = "0123456789abcdef"

// appendString writes s as an ASCII JSON string. All but plain printable ASCII is
// \u-escaped, so a record can be shown on a terminal or in a page as it is, looks
// the same in every editor (no bidirectional or invisible characters), and any
// JSON library that escapes non-ASCII writes the same bytes. Invalid UTF-8
// becomes U+FFFD.
func appendString(b []byte, s string, limit int) []byte {
	s = bounded(s, limit)
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			i++
			switch {
			case c == '"' || c == '\\':
				b = append(b, '\\', c)
			case c < 0x20 || c == 0x7f || c == '<' || c == '>' || c == '&':
				b = appendUnit(b, rune(c))
			default:
				b = append(b, c)
			}
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		i += n
		if r > 0xffff { // a surrogate pair, RFC 8259 section 7
			r -= 0x10000
			b = appendUnit(b, 0xd800+r>>10)
			r = 0xdc00 + r&0x3ff
		}
		b = appendUnit(b, r)
	}
	return append(b, '"')
}

func appendUnit(b []byte, u rune) []byte {
	return append(b, '\\', 'u', hexDigits[u>>12&15], hexDigits[u>>8&15], hexDigits[u>>4&15], hexDigits[u&15])
}

// bounded returns s as valid UTF-8 of at most limit bytes. What it returns it
// returns again.
func bounded(s string, limit int) string {
	if !utf8.ValidString(s) {
		// Bounded first, so that the cost does not depend on what was sent.
		s = string([]rune(s[:min(len(s), limit)]))
		if len(s) > limit {
			s += "…" // longer than limit in any case: cut below
		}
	}
	if len(s) <= limit {
		return s
	}
	cut := limit - len("…")
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

// ErrMalformed is what Parse's errors wrap.
var ErrMalformed = errors.New("malformed audit entry")

// Parse reads what Encode wrote. It is strict: one JSON object, valid UTF-8, no
// name twice, types as written, version 1. Fields that it does not know are
// allowed, since a newer build may add some; a kind that it does not know becomes
// an Other or, if it has an actor, a Changed.
func Parse(b []byte) (Entry, error) {
	if len(b) > MaxEntryBytes {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrMalformed, len(b), MaxEntryBytes)
	}
	var h struct {
		V         *int      `json:"v"`
		Kind      string    `json:"kind"`
		Time      string    `json:"time"`
		Org       string    `json:"org"`
		Writer    string    `json:"writer"`
		RequestID string    `json:"request_id"`
		AgentID   string    `json:"agent_id"`
		Actor     *struct{} `json:"actor"`
	}
	if err := json.Unmarshal(b, &h); err != nil {
		return nil, malformed(err)
	}
	if h.V == nil {
		return nil, fmt.Errorf("%w: no version", ErrMalformed)
	}
	if *h.V != 1 {
		return nil, fmt.Errorf("%w: version %d; this build reads version 1", ErrMalformed, *h.V)
	}
	if h.Kind == "" || h.Org == "" || h.Writer == "" {
		return nil, fmt.Errorf("%w: kind, org and writer must not be empty", ErrMalformed)
	}
	at, err := time.Parse(timeLayout, h.Time)
	if err != nil || at.Format(timeLayout) != h.Time {
		return nil, fmt.Errorf("%w: time is not like %s", ErrMalformed, timeLayout)
	}
	switch {
	case h.Kind == KindDecided:
		var e Decided
		err = json.Unmarshal(b, &e)
		return e, malformed(err)
	case h.Kind == KindSettled:
		var e Settled
		err = json.Unmarshal(b, &e)
		return e, malformed(err)
	case h.Actor != nil:
		var e Changed
		err = json.Unmarshal(b, &e)
		return e, malformed(err)
	}
	return Other{
		head: Head{Kind: h.Kind, Time: at, Org: h.Org, Writer: h.Writer, RequestID: h.RequestID, AgentID: h.AgentID},
		raw:  append([]byte(nil), b...),
	}, nil
}

// malformed does not quote the entry: the error goes into a log.
func malformed(err error) error {
	if err == nil {
		return nil
	}
	var s *json.SemanticError
	if errors.As(err, &s) {
		return fmt.Errorf("%w: wrong type at %q", ErrMalformed, string(s.JSONPointer))
	}
	return fmt.Errorf("%w: not one strict JSON object", ErrMalformed)
}
