package identity

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// The prefixes of ids; see [NewID].
const (
	OrgID    = "org_"
	AgentID  = "ag_"
	KeyID    = "key_"
	OrgKeyID = "okey_"
	NodeID   = "node_"
	HoldID   = "hold_"
)

// NewID returns a new id: prefix and 26 characters of base 32 (0-9 and a-z without i, l, o,
// u). prefix is lower-case letters and an underscore. The 26 characters encode 48 bits of
// now, in milliseconds since 1970, and 80 bits of rand. So ids sort by age and cannot be
// guessed. It returns an error if rand fails or prefix has another form.
func NewID(prefix string, now time.Time, rand io.Reader) (string, error) {
	const alphabet = "0123456789abcdefghjkmnpqrstvwxyz"
	name, ok := strings.CutSuffix(prefix, "_")
	if !ok || name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz") != "" {
		return "", fmt.Errorf("making an id: prefix %q is not lower-case letters and an underscore", prefix)
	}
	var b [16]byte
	ms := uint64(max(0, now.UnixMilli()))
	for i := range 6 {
		b[i] = byte(ms >> (40 - 8*i))
	}
	if _, err := io.ReadFull(rand, b[6:]); err != nil {
		return "", fmt.Errorf("making an id: %w", err)
	}
	// 26 digits of 5 bits are 130: the first has only 3 bits of ours.
	id := make([]byte, 0, len(prefix)+26)
	id = append(id, prefix...)
	acc, n := uint(0), 2
	for _, c := range b {
		acc, n = acc<<8|uint(c), n+8
		for n >= 5 {
			n -= 5
			id = append(id, alphabet[acc>>n&31])
		}
		acc &= 1<<n - 1
	}
	return string(id), nil
}

// Org owns all other objects. Source: table orgs.
type Org struct {
	ID        string // "org_…"
	Name      string
	Tier      string // the org's plan; may be empty
	CreatedAt time.Time

	// Timezone is the IANA name of the zone of the org's days and months from TimezoneFrom
	// on, and TimezoneBefore that until then. A zero TimezoneFrom: Timezone always holds.
	Timezone, TimezoneBefore string
	TimezoneFrom             time.Time
}

// Status is an agent's permission to act. Every value except Active denies, including the
// zero value.
type Status string

// The statuses of an agent.
const (
	Active    Status = "active"
	Suspended Status = "suspended"
)

// Agent is a program that calls models. Source: table agents. An unset list of
// allowed models allows none.
type Agent struct {
	ID            string // "ag_…"
	OrgID         string
	Name          string
	Description   string
	Team          string
	Environment   string
	Tier          string
	Status        Status
	AllowedModels []string // exact names or globs
	// RequiredIdentities are the kinds of credentials that each request must have, all of them
	// at once. Empty: one of any kind suffices.
	RequiredIdentities []CredentialKind
	Metadata           Metadata
	Fingerprint        string // see [Fingerprint]
	CreatedAt          time.Time
	UpdatedAt          time.Time
	Version            int64 // counts the changes, from 1
	// Place is the agent's position in the lists of its org. Postgres sets it, in the order
	// of the commits.
	Place int64 `json:"-"`
}

// Key is one key of an agent, without its secret, which is shown once and not stored.
// Source: table agent_keys. A zero time means never.
type Key struct {
	ID            string // "key_…"; "idn_…" of an [Identity]
	Kind          CredentialKind
	OrgID         string
	AgentID       string
	Name          string
	Hint          string // the last four characters of the secret, for people
	Hash          [32]byte
	Scopes        []string // operations; "*" is all of them; an empty list allows none
	AllowedModels []string // exact names or globs; empty: as the agent's
	RateLimit     int64    // requests per minute; 0: no limit of the key's own
	RotatedFrom   string   // id of the key that this one replaces, or ""
	Line          string   // id of the first key of its line of rotations; set by lookups of callers only
	CreatedAt     time.Time
	ExpiresAt     time.Time
	RevokedAt     time.Time
	Place         int64 `json:"-"` // as an [Agent]'s
}

// Hint is the part of a secret that may be shown again: its last four characters. They
// belong to the checksum, so they reveal little about the rest.
func Hint(secret string) string {
	return secret[max(0, len(secret)-4):]
}

// Caller is the agent that sends a request, and its credential: a key, or an [Identity] as
// one. The zero Caller is inactive.
type Caller struct {
	Agent    Agent
	Key      Key
	Workload Workload // of an Identity
}

// Presented is a caller's credential, in the form of its lookup: the SHA-256 of its key in
// lower-case hexadecimal, or [Workload.Presented].
type Presented string

// PresentedKey is the Presented of a key with that SHA-256.
func PresentedKey(hash [32]byte) Presented { return Presented(hexOf(hash)) }

// KeyHash is the SHA-256 of the presented key; ok is false if it is not a key.
func (p Presented) KeyHash() (hash [32]byte, ok bool) {
	hash, err := hashOf(string(p))
	return hash, err == nil && hexOf(hash) == string(p)
}

// Inactive is the error of a known caller that may not act.
type Inactive struct {
	// Reason is one word of a fixed set: "key_revoked", "key_expired", "identity_revoked",
	// "identity_expired", "agent_suspended", "agent_inactive".
	Reason string
}

func (e *Inactive) Error() string { return "caller is not active: " + e.Reason }

// ActiveAt returns nil if the caller may act at now, else an [*Inactive]. The key's state
// is reported before the agent's: a caller with a dead key learns nothing about the agent.
// A revoked key stays revoked at any time.
func (c Caller) ActiveAt(now time.Time) error {
	switch k := c.Key; {
	case !k.RevokedAt.IsZero() && k.Kind == KindKey:
		return &Inactive{"key_revoked"}
	case !k.RevokedAt.IsZero():
		return &Inactive{"identity_revoked"}
	case !k.ExpiresAt.IsZero() && !now.Before(k.ExpiresAt) && k.Kind == KindKey:
		return &Inactive{"key_expired"}
	case !k.ExpiresAt.IsZero() && !now.Before(k.ExpiresAt):
		return &Inactive{"identity_expired"}
	case c.Agent.Status == Suspended:
		return &Inactive{"agent_suspended"}
	case c.Agent.Status != Active, c.Agent.ID == "", c.Agent.OrgID == "", k.ID == "", k.Kind == "", k.AgentID != c.Agent.ID, k.OrgID != c.Agent.OrgID:
		return &Inactive{"agent_inactive"}
	}
	return nil
}

// Fingerprint returns "sha256:" and the hex SHA-256 of what never changes about an agent.
// That is its org, its id, its name at creation, and the time of creation. Anyone can
// compute it again from the agent's "created" entry in the audit log. The digest is over
//
//	aid-agent-v1\n
//	LENGTH:ORG\n LENGTH:ID\n LENGTH:NAME\n LENGTH:TIME\n      (without the spaces)
//
// Each length is in bytes and decimal. The time is like 2006-01-02T15:04:05.000000Z. The
// lengths keep the encoding unambiguous.
func Fingerprint(org, id, name string, created time.Time) string {
	b := []byte("aid-agent-v1\n")
	for _, s := range []string{org, id, name, created.UTC().Format("2006-01-02T15:04:05.000000Z")} {
		b = strconv.AppendInt(b, int64(len(s)), 10)
		b = append(b, ':')
		b = append(b, s...)
		b = append(b, '\n')
	}
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Metadata is an org's data about an agent, which policies read. Each value is a string, a
// bool, or a json.Number. A json.Number keeps its digits, which a float64 would not. A
// Metadata from Go may also have float64 and int; these become json.Number once stored.
type Metadata map[string]any

// The bounds of a Metadata. Policies read all of it with every request.
const (
	MaxMetadataKeys  = 64
	MaxMetadataKey   = 128  // bytes
	MaxMetadataValue = 1024 // bytes of a string
)

// UnmarshalJSON is [ParseMetadata] for encoding/json.
func (m *Metadata) UnmarshalJSON(b []byte) error {
	parsed, err := ParseMetadata(b)
	if err != nil {
		return err
	}
	*m = parsed
	return nil
}

// ParseMetadata reads one JSON object (or null, or nothing: no metadata). Its error has the
// key and the action to take, and never a value. Names may not be repeated, values may not
// be nested, and a number must be near a float64.
func ParseMetadata(b []byte) (Metadata, error) {
	m, err := parseMetadata(b)
	if err == nil {
		err = m.Check()
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

func parseMetadata(b []byte) (Metadata, error) {
	m := Metadata{}
	if b = bytes.TrimSpace(b); len(b) == 0 || string(b) == "null" {
		return m, nil
	}
	if !utf8.Valid(b) {
		return nil, errors.New("metadata is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("metadata is not a JSON object")
	}
	for d.More() {
		t, err := d.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return nil, errors.New("metadata is not a JSON object")
		}
		if _, twice := m[name]; twice {
			return nil, fmt.Errorf("metadata has %q twice. Remove one", bounded(name))
		}
		v, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("metadata: the value of %q is not JSON", bounded(name))
		}
		m[name] = v
		if _, nested := v.(json.Delim); nested || v == nil {
			return nil, fmt.Errorf("metadata: %q is not a string, a number or true or false", bounded(name))
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, errors.New("metadata is not a JSON object")
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("metadata: there is text after the object")
	}
	return m, nil
}

// Check returns what is wrong with a Metadata, with the key.
func (m Metadata) Check() error {
	if len(m) > MaxMetadataKeys {
		return fmt.Errorf("metadata has %d keys, the limit is %d", len(m), MaxMetadataKeys)
	}
	for name, v := range m {
		if name == "" || len(name) > MaxMetadataKey || !plain(name) {
			return fmt.Errorf("metadata: a key must be 1 to %d bytes of text: %q", MaxMetadataKey, bounded(name))
		}
		switch v := v.(type) {
		case bool, int, int64:
		case string:
			if len(v) > MaxMetadataValue || !plain(v) {
				return fmt.Errorf("metadata: %q must be text of at most %d bytes", name, MaxMetadataValue)
			}
		case float64:
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return fmt.Errorf("metadata: %q is not a number that JSON supports", name)
			}
		case json.Number:
			if f, err := v.Float64(); err != nil || math.IsInf(f, 0) || written(v) > 64 {
				return fmt.Errorf("metadata: %q is not a number of at most 64 characters, written in full, that a float64 can hold", name)
			}
		default:
			return fmt.Errorf("metadata: %q is not a string, a number or true or false", name)
		}
	}
	return nil
}

// written is the length of a number without an exponent, or more. Postgres stores 1e60 with
// all its digits, and the stored number must be readable under the same limit.
func written(n json.Number) int {
	digits, exponent, _ := strings.Cut(strings.ToLower(string(n)), "e")
	if exponent == "" {
		return len(digits)
	}
	e, err := strconv.Atoi(exponent)
	if err != nil {
		return math.MaxInt
	}
	return len(digits) + max(e, -e)
}

// plain reports whether s is text that Postgres can store.
func plain(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

func bounded(s string) string {
	if len(s) <= 64 {
		return s
	}
	return strings.ToValidUTF8(s[:64], "") + "…"
}

// Role is the set of permissions of an org key.
type Role string

// The roles of an org key. The empty role allows nothing.
const (
	Admin    Role = "admin"    // everything
	Auditor  Role = "auditor"  // read everything
	Reviewer Role = "reviewer" // read agents, and decide approvals
)

// OrgKeyRecord is a key that manages, without its secret. Source: table org_keys.
// A zero time means never.
type OrgKeyRecord struct {
	ID        string // "okey_…"
	OrgID     string
	Name      string
	Role      Role
	Hash      [32]byte
	CreatedAt time.Time
	ExpiresAt time.Time
	RevokedAt time.Time
	Place     int64 `json:"-"` // as an [Agent]'s
}

// ActiveAt is nil if the key may be used at now, else an [*Inactive].
func (k OrgKeyRecord) ActiveAt(now time.Time) error {
	return usable(k.ID, k.OrgID, k.ExpiresAt, k.RevokedAt, now)
}

// NodeRole is the data that a node may fetch and send.
type NodeRole string

const (
	NodeEnvoy   NodeRole = "envoy"   // listeners, routes and clusters
	NodeExtproc NodeRole = "extproc" // callers, credentials and policies; it appends audit records
	NodeEgress  NodeRole = "egress"  // beside envoy: certificates of governed hosts; only the operator gives it
)

// Has reports whether the node has the role.
func (n Node) Has(r NodeRole) bool { return slices.Contains(n.Roles, r) }

// Node is an Envoy or a sidecar that may fetch its org's configuration. It authenticates
// with a token, with a certificate with a SPIFFE id, or with either. Source: table nodes. A
// zero time means never. A zero TokenHash means no token.
type Node struct {
	ID        string // "node_…"
	OrgID     string
	Name      string
	TokenHash [32]byte
	SPIFFEID  string // "spiffe://…", or ""
	// Roles are the node's roles. A node without a role gets nothing.
	Roles []NodeRole
	// ByOperator is true for a node that the operator created. It takes precedence over an
	// organization's node with the same SPIFFE id.
	ByOperator bool
	// Home is true in the one organization whose audit log counts the node's requests
	// without a known caller.
	Home bool
	// Orgs are the organizations that the node serves now, and HomeID is the one of
	// them that is its home, or "". [NodePresented] sets both.
	Orgs      []string `json:"-"`
	HomeID    string   `json:"-"`
	CreatedAt time.Time
	ExpiresAt time.Time
	RevokedAt time.Time
	Place     int64 `json:"-"` // as an [Agent]'s
}

// ActiveAt is nil if the node may be served at now, else an [*Inactive].
func (n Node) ActiveAt(now time.Time) error {
	return usable(n.ID, n.OrgID, n.ExpiresAt, n.RevokedAt, now)
}

func usable(id, org string, expires, revoked, now time.Time) error {
	switch {
	case !revoked.IsZero():
		return &Inactive{"key_revoked"}
	case !expires.IsZero() && !now.Before(expires):
		return &Inactive{"key_expired"}
	case id == "" || org == "":
		return &Inactive{"key_unknown"}
	}
	return nil
}

// Errors that callers branch on.
var (
	// ErrNotFound: there is no such row in this org.
	ErrNotFound = errors.New("not found")
	// ErrConflict: it has changed since the version that the caller read.
	ErrConflict = errors.New("changed in the meantime")
)
