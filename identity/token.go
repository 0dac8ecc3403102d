package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Issuer is a system whose tokens identify workloads. All fields that its kind has are
// required, except one of JWKSFile and JWKSURL, and the issuer of a SPIFFE trust domain.
type Issuer struct {
	Kind CredentialKind `json:"kind"` // KindKubernetes or KindSPIFFE
	// Issuer is the claim iss. SPIFFE tokens may have none: then Issuer is "", and tokens of
	// the trust domain with a claim iss are rejected.
	Issuer string `json:"issuer,omitzero"`
	// TrustDomain is the trust domain of a KindSPIFFE, such as corp.example.
	TrustDomain string `json:"trust_domain,omitzero"`
	// Audience is the only audience that a token may have. It names this installation, so that
	// no receiver of another audience can use its tokens here.
	Audience string `json:"audience"`
	// JWKSFile or JWKSURL has the public keys. CAFile has the CA of JWKSURL, in PEM; "": the
	// system's.
	JWKSFile string `json:"jwks_file,omitzero"`
	JWKSURL  string `json:"jwks_url,omitzero"`
	CAFile   string `json:"ca_file,omitzero"`
}

// The limits of tokens and of their issuers' keys. docs/identities.md lists them.
const (
	maxIssuers      = 32
	maxToken        = 8 << 10 // bytes
	maxAudience     = 512
	maxTokenLife    = time.Hour
	tokenSkew       = 30 * time.Second // of iat and nbf; exp has none
	maxJWKS         = 256 << 10        // bytes
	maxJWKSKeys     = 64
	jwksInterval    = 5 * time.Minute  // between two readings of a URL
	jwksRetry       = 30 * time.Second // after one that failed
	jwksSoon        = 10 * time.Second // at the earliest, for a key that is not known
	jwksTimeout     = 5 * time.Second
	jwksMaxAge      = 24 * time.Hour // of a URL's keys; older ones are not used
	jwksFilesEvery  = 5 * time.Second
	jwksFileMaxAge  = 5 * time.Minute // of a file's keys, while it cannot be read
	minRSA, maxRSA  = 2048, 8192
	tokenTypeJWT    = "JWT"
	tokenTypeJOSE   = "JOSE" // SPIFFE permits it
	k8sSubject      = "system:serviceaccount:"
	payloadBegins   = ".eyJ" // {" in base64, after the header
	maxPayloadFound = maxToken
)

// Token is a verified token.
type Token struct {
	Workload Workload
	Expires  time.Time
}

// ErrNotWorkload means that a text is not a token of a configured issuer.
var ErrNotWorkload = errors.New("not a token of a workload's issuer")

// ErrKeysUnavailable means that the keys of an issuer are not known now.
var ErrKeysUnavailable = errors.New("the issuer's keys are not available")

// InvalidToken is the error of a token that is definitely not accepted. It has no part of the
// token.
type InvalidToken struct{ Reason string }

func (e *InvalidToken) Error() string { return e.Reason }

// Issuers verifies tokens of workloads. It is safe for concurrent use.
type Issuers struct {
	all []*issuer
	log *slog.Logger
}

// issuer is an Issuer with its keys.
type issuer struct {
	Issuer
	client *http.Client
	mark   []byte                 // the host of Issuer, or TrustDomain: each of its tokens has it
	kick   chan struct{}          // has a token while a key that is not known was presented
	keys   atomic.Pointer[keySet] // nil: none were read yet

	mu     sync.Mutex
	tried  time.Time // the last reading
	failed bool
}

type keySet struct {
	byID map[string]tokenKey
	at   time.Time // when they were read
	sum  [sha256.Size]byte
}

// tokenKey is a public key, and the one algorithm that it is used with.
type tokenKey struct {
	key any
	alg jose.SignatureAlgorithm
}

// ParseIssuers reads a file of issuers: a JSON list of [Issuer]. It reads the files that it
// names. Keys from URLs are read by Run.
func ParseIssuers(b []byte, now time.Time, log *slog.Logger) (*Issuers, error) {
	var list []Issuer
	if err := json.Unmarshal(b, &list, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("it is not a JSON list of issuers with known fields: %w", err)
	}
	if len(list) == 0 || len(list) > maxIssuers {
		return nil, fmt.Errorf("it has %d issuers: write from 1 to %d", len(list), maxIssuers)
	}
	s := &Issuers{log: log}
	for i, c := range list {
		x, err := newIssuer(c)
		if err != nil {
			return nil, fmt.Errorf("issuer %d: %w", i+1, err)
		}
		for _, other := range s.all {
			if c.Issuer != "" && c.Issuer == other.Issuer.Issuer || c.TrustDomain != "" && c.TrustDomain == other.TrustDomain {
				return nil, fmt.Errorf("issuer %d: its issuer or trust domain is there twice", i+1)
			}
		}
		if c.JWKSFile != "" {
			keys, err := x.read(context.Background(), now)
			if err == nil && len(keys.byID) == 0 {
				err = errors.New("it has no usable key: a key has an id, and is RSA of at least 2048 bits, or ECDSA on P-256, P-384 or P-521")
			}
			if err != nil {
				return nil, fmt.Errorf("issuer %d: jwks_file: %w", i+1, err)
			}
			x.keys.Store(keys)
		}
		s.all = append(s.all, x)
	}
	return s, nil
}

func newIssuer(c Issuer) (*issuer, error) {
	x := &issuer{Issuer: c, kick: make(chan struct{}, 1)}
	if c.Audience == "" || len(c.Audience) > maxAudience || !plain(c.Audience) {
		return nil, fmt.Errorf("audience: set the audience that tokens for this installation have, at most %d bytes", maxAudience)
	}
	if c.Issuer != "" || c.Kind == KindKubernetes {
		if err := CheckIssuer(c.Issuer); err != nil {
			return nil, fmt.Errorf("issuer %q: %w", bounded(c.Issuer), err)
		}
	}
	switch c.Kind {
	case KindKubernetes:
		if c.TrustDomain != "" {
			return nil, errors.New("trust_domain: only the kind spiffe has one")
		}
	case KindSPIFFE:
		if CheckSPIFFEID("spiffe://"+c.TrustDomain+"/x") != nil || strings.Contains(c.TrustDomain, "/") {
			return nil, fmt.Errorf("trust_domain %q: set a trust domain such as corp.example", bounded(c.TrustDomain))
		}
	default:
		return nil, fmt.Errorf("kind %q: set kubernetes or spiffe", bounded(string(c.Kind)))
	}
	host, _, _ := strings.Cut(strings.TrimPrefix(c.Issuer, "https://"), "/")
	if x.mark = []byte(host); c.Kind == KindSPIFFE {
		x.mark = []byte(c.TrustDomain)
	}
	switch {
	case (c.JWKSFile == "") == (c.JWKSURL == ""):
		return nil, errors.New("set one of jwks_file and jwks_url")
	case c.JWKSURL != "" && CheckIssuer(c.JWKSURL) != nil:
		return nil, errors.New("jwks_url: set an https:// URL without a query")
	case c.CAFile != "" && c.JWKSURL == "":
		return nil, errors.New("ca_file: it is for jwks_url")
	}
	if c.JWKSURL != "" {
		t := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}
		if c.CAFile != "" {
			pem, err := os.ReadFile(c.CAFile)
			if err != nil {
				return nil, fmt.Errorf("ca_file: %w", err)
			}
			t.TLSClientConfig.RootCAs = x509.NewCertPool()
			if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("ca_file %s: it has no certificate in PEM", c.CAFile)
			}
		}
		x.client = &http.Client{Transport: t, Timeout: jwksTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	return x, nil
}

// Run reads keys again until ctx is done: files when they change, URLs every five minutes and
// for a key that is not known.
func (s *Issuers) Run(ctx context.Context, now func() time.Time) error {
	var all sync.WaitGroup
	for _, x := range s.all {
		all.Go(func() {
			tick := time.NewTicker(jwksFilesEvery)
			defer tick.Stop()
			for {
				if x.due(now()) {
					s.reread(ctx, x, now())
				}
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				case <-x.kick:
				}
			}
		})
	}
	all.Wait()
	return nil
}

func (x *issuer) due(now time.Time) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	pause := jwksInterval
	switch {
	case x.JWKSFile != "", x.tried.IsZero():
		return true
	case x.failed:
		pause = jwksRetry
	}
	return now.Sub(x.tried).Abs() >= pause
}

func (s *Issuers) reread(ctx context.Context, x *issuer, now time.Time) {
	x.mu.Lock()
	x.tried = now
	x.mu.Unlock()
	keys, err := x.read(ctx, now)
	x.mu.Lock()
	was, last := x.failed, x.keys.Load()
	x.failed = err != nil
	switch { // under the lock, so that rereads never sees new keys and an old failure
	case err == nil:
		x.keys.Store(keys)
	case errors.Is(err, fs.ErrNotExist): // the file was deleted
		x.keys.Store(nil)
	}
	x.mu.Unlock()
	if err == nil && len(keys.byID) == 0 && (last == nil || len(last.byID) > 0) {
		s.log.WarnContext(ctx, "the key set of a workload issuer has no usable key: its tokens are rejected", "issuer", x.name())
	}
	if failed := err != nil; failed != was && ctx.Err() == nil {
		if failed {
			s.log.WarnContext(ctx, "the keys of a workload issuer cannot be read; the last ones stay until they are too old", "issuer", x.name(), "err", err)
		} else {
			s.log.InfoContext(ctx, "the keys of a workload issuer can be read again", "issuer", x.name())
		}
	}
}

func (x *issuer) name() string {
	if x.Kind == KindSPIFFE {
		return "spiffe://" + x.TrustDomain
	}
	return x.Issuer.Issuer
}

// read returns the keys as they are now.
func (x *issuer) read(ctx context.Context, now time.Time) (*keySet, error) {
	b, err := x.fetch(ctx)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	if last := x.keys.Load(); last != nil && last.sum == sum {
		return &keySet{last.byID, now, sum}, nil
	}
	keys, err := parseKeys(b)
	return &keySet{keys, now, sum}, err
}

func (x *issuer) fetch(ctx context.Context) ([]byte, error) {
	var from io.Reader
	if x.JWKSFile != "" {
		f, err := os.Open(x.JWKSFile)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		from = f
	} else {
		ctx, cancel := context.WithTimeout(ctx, jwksTimeout)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, x.JWKSURL, nil)
		if err != nil {
			return nil, err
		}
		resp, err := x.client.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("%s returns %d", x.JWKSURL, resp.StatusCode)
		}
		from = resp.Body
	}
	b, err := io.ReadAll(io.LimitReader(from, maxJWKS+1))
	if err == nil && len(b) > maxJWKS {
		err = fmt.Errorf("the key set has more than %d bytes", maxJWKS)
	}
	return b, err
}

// parseKeys returns the keys of a JWKS that verify tokens, by their ids. Keys of other kinds,
// as a SPIFFE bundle has, are left out. A secret or private key makes the set invalid. A set
// without a usable key is valid: its issuer has withdrawn them.
func parseKeys(b []byte) (map[string]tokenKey, error) {
	var raw struct {
		Keys []jsontext.Value `json:"keys"`
	}
	if err := json.Unmarshal(b, &raw); err != nil || raw.Keys == nil {
		return nil, errors.New("it is not a JSON Web Key Set: an object with a list of keys")
	}
	if len(raw.Keys) > maxJWKSKeys {
		return nil, fmt.Errorf("it has %d keys, and the limit is %d", len(raw.Keys), maxJWKSKeys)
	}
	out := map[string]tokenKey{}
	for _, r := range raw.Keys {
		var k jose.JSONWebKey
		if k.UnmarshalJSON(r) != nil {
			continue // a key type that is not known here
		}
		if _, secret := k.Key.([]byte); secret || !k.IsPublic() {
			return nil, errors.New("it has a secret or private key: give it public keys only")
		}
		if k.Use != "" && k.Use != "sig" && k.Use != "jwt-svid" || k.KeyID == "" {
			continue
		}
		alg, ok := algorithm(k)
		if !ok {
			continue
		}
		if _, twice := out[k.KeyID]; twice {
			return nil, errors.New("two of its keys have one id")
		}
		out[k.KeyID] = tokenKey{k.Key, alg}
	}
	return out, nil
}

// algorithm returns the only algorithm that a key is used with: the one that it names, if it
// fits the key, else the usual one.
func algorithm(k jose.JSONWebKey) (jose.SignatureAlgorithm, bool) {
	var fit []jose.SignatureAlgorithm
	switch key := k.Key.(type) {
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n >= minRSA && n <= maxRSA {
			fit = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}
		}
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256():
			fit = []jose.SignatureAlgorithm{jose.ES256}
		case elliptic.P384():
			fit = []jose.SignatureAlgorithm{jose.ES384}
		case elliptic.P521():
			fit = []jose.SignatureAlgorithm{jose.ES512}
		}
	}
	switch {
	case len(fit) == 0:
		return "", false
	case k.Algorithm == "":
		return fit[0], true
	}
	alg := jose.SignatureAlgorithm(k.Algorithm)
	return alg, slices.Contains(fit, alg)
}

// claims are the claims of a token that are read. Others are ignored.
type claims struct {
	Issuer   *string   `json:"iss"`
	Subject  string    `json:"sub"`
	Audience audience  `json:"aud"`
	Expires  *float64  `json:"exp"`
	Issued   *float64  `json:"iat"`
	After    *float64  `json:"nbf"`
	K8s      *k8sClaim `json:"kubernetes.io"`
}

type k8sClaim struct {
	Namespace      string `json:"namespace"`
	ServiceAccount struct {
		Name string `json:"name"`
	} `json:"serviceaccount"`
}

// audience is a string or a list of strings.
type audience []string

func (a *audience) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = audience{one}
		return nil
	}
	var list []string
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	*a = list
	return nil
}

// tokenHeader is the whole header of a token. A header with another member is rejected: a
// critical extension, or a key or an address of one that the token itself brings.
type tokenHeader struct {
	Algorithm string  `json:"alg"`
	KeyID     string  `json:"kid"`
	Type      *string `json:"typ"`
}

// of returns the issuer that a token claims, and its claims. Nothing is verified yet.
func (s *Issuers) of(token string) (*issuer, *claims) {
	if s == nil {
		return nil, nil
	}
	_, rest, ok := strings.Cut(token, ".")
	payload, signature, ok1 := strings.Cut(rest, ".")
	if !ok || !ok1 || len(token) > maxToken || strings.Contains(signature, ".") {
		return nil, nil
	}
	return s.claimed(payload)
}

func (s *Issuers) claimed(payload string) (*issuer, *claims) {
	b, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return nil, nil
	}
	return s.claim(b)
}

func (s *Issuers) claim(b []byte) (*issuer, *claims) {
	var c claims
	if json.Unmarshal(b, &c) != nil {
		return nil, nil
	}
	for _, x := range s.all {
		switch {
		case c.Issuer != nil && *c.Issuer != "" && *c.Issuer == x.Issuer.Issuer,
			c.Issuer == nil && x.Kind == KindSPIFFE && strings.HasPrefix(c.Subject, "spiffe://"+x.TrustDomain+"/"):
			return x, &c
		}
	}
	return nil, nil
}

// Ours reports whether a text has the form of a token of a configured issuer. Nothing is
// verified.
func (s *Issuers) Ours(token string) bool {
	x, _ := s.of(token)
	return x != nil
}

// Verify returns the workload that a token identifies at a time. The error is
// [ErrNotWorkload], wraps [ErrKeysUnavailable], or is an [*InvalidToken].
func (s *Issuers) Verify(token string, now time.Time) (Token, error) {
	x, _ := s.of(token)
	if x == nil {
		return Token{}, ErrNotWorkload
	}
	invalid := func(reason string) (Token, error) { return Token{}, &InvalidToken{reason} }
	if strings.Trim(token, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
		return invalid("it is not in the compact form of JWS")
	}
	protected, _, _ := strings.Cut(token, ".")
	var head tokenHeader
	b, err := base64.RawURLEncoding.DecodeString(protected)
	if err != nil || json.Unmarshal(b, &head, json.RejectUnknownMembers(true)) != nil {
		return invalid("its header has other members than alg, kid and typ")
	}
	if head.Type != nil && *head.Type != tokenTypeJWT && (x.Kind != KindSPIFFE || *head.Type != tokenTypeJOSE) {
		return invalid("its typ is not JWT")
	}
	keys := x.keys.Load()
	if keys == nil || now.Sub(keys.at) > x.maxAge() {
		x.rereads(now)
		return Token{}, fmt.Errorf("%w: %s", ErrKeysUnavailable, x.name())
	}
	k, ok := keys.byID[head.KeyID]
	switch {
	case !ok && x.rereads(now):
		return Token{}, fmt.Errorf("%w: %s: they are read again for a key that is not known", ErrKeysUnavailable, x.name())
	case !ok:
		return invalid("its kid is not a key of its issuer")
	case head.Algorithm != string(k.alg):
		return invalid("its alg is not the key's")
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{k.alg})
	if err != nil {
		return invalid("it is not in the compact form of JWS")
	}
	payload, err := jws.Verify(k.key)
	if err != nil {
		return invalid("its signature is wrong")
	}
	var c claims // of the bytes that were verified
	if json.Unmarshal(payload, &c) != nil {
		return invalid("its claims are not valid JSON, or one is there twice")
	}
	return x.accept(c, now)
}

// maxAge is how long keys are used after they were read.
func (x *issuer) maxAge() time.Duration {
	if x.JWKSFile != "" {
		return jwksFileMaxAge
	}
	return jwksMaxAge
}

// rereads reports whether the keys of a URL may soon be others: they are read again now, or
// could not be read. It starts a reading, at most every ten seconds, so that tokens with
// invented keys cause no load.
func (x *issuer) rereads(now time.Time) bool {
	if x.JWKSURL == "" {
		return false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.tried.IsZero() && now.Sub(x.tried).Abs() < jwksSoon {
		return x.failed
	}
	x.tried = time.Time{}
	select {
	case x.kick <- struct{}{}:
	default:
	}
	return true
}

// accept returns the workload of verified claims.
func (x *issuer) accept(c claims, now time.Time) (Token, error) {
	invalid := func(reason string) (Token, error) { return Token{}, &InvalidToken{reason} }
	if c.Issuer == nil && x.Issuer.Issuer != "" || c.Issuer != nil && *c.Issuer != x.Issuer.Issuer {
		return invalid("its iss is not the issuer's")
	}
	if len(c.Audience) != 1 || c.Audience[0] != x.Audience {
		return invalid("its only audience must be this installation's")
	}
	expires, ok := moment(c.Expires)
	if !ok {
		return invalid("it has no exp")
	}
	if !now.Before(expires) {
		return invalid("it has expired")
	}
	from := now // SPIFFE tokens need no iat: then the rest of their life counts
	if c.Issued != nil || x.Kind == KindKubernetes {
		if from, ok = moment(c.Issued); !ok {
			return invalid("it has no iat")
		}
	}
	after, hasAfter := moment(c.After)
	switch {
	case c.After != nil && !hasAfter:
		return invalid("its nbf is not a time")
	case from.After(now.Add(tokenSkew)), hasAfter && after.After(now.Add(tokenSkew)):
		return invalid("it is not valid yet")
	case expires.Sub(from) > maxTokenLife:
		return invalid("it is valid for more than an hour: request a shorter one")
	}
	w := Workload{Kind: x.Kind}
	switch x.Kind {
	case KindSPIFFE:
		if CheckSPIFFEID(c.Subject) != nil || !strings.HasPrefix(c.Subject, "spiffe://"+x.TrustDomain+"/") {
			return invalid("its sub is not a SPIFFE id of the trust domain")
		}
		w.SPIFFEID = c.Subject
	default:
		name, ok := strings.CutPrefix(c.Subject, k8sSubject)
		namespace, account, ok1 := strings.Cut(name, ":")
		if !ok || !ok1 || CheckNamespace(namespace) != nil || CheckServiceAccount(account) != nil {
			return invalid("its sub is not a service account")
		}
		if c.K8s != nil && (c.K8s.Namespace != namespace || c.K8s.ServiceAccount.Name != account) {
			return invalid("its sub and its claim kubernetes.io differ")
		}
		w.Issuer, w.Namespace, w.ServiceAccount = x.Issuer.Issuer, namespace, account
	}
	return Token{Workload: w, Expires: expires}, nil
}

// moment is the time of a NumericDate. ok is false for none, and for one before 1970 or after
// 9999.
func moment(n *float64) (t time.Time, ok bool) {
	const last = 253402300799
	if n == nil || !(*n >= 0 && *n <= last) {
		return time.Time{}, false
	}
	sec, frac := math.Modf(*n)
	return time.Unix(int64(sec), int64(frac*1e9)).UTC(), true
}

// find looks for the payload of a token, between its two dots.
func (s *Issuers) find(b []byte) bool {
	for {
		i := bytes.Index(b, []byte(payloadBegins))
		if i < 0 {
			return false
		}
		b = b[i+1:]
		n := 0
		for n < len(b) && n <= maxPayloadFound && base64URL(b[n]) {
			n++
		}
		if n < len(b) && b[n] == '.' && s.names(b[:n]) {
			return true
		}
		b = b[n:]
	}
}

// names reports whether a payload is of a configured issuer. Most texts do not have the name of
// one, and are not parsed: parsing costs a hundred times as much.
func (s *Issuers) names(payload []byte) bool {
	b := make([]byte, base64.RawURLEncoding.DecodedLen(len(payload)))
	n, err := base64.RawURLEncoding.Decode(b, payload)
	if err != nil {
		return false
	}
	for _, x := range s.all {
		if bytes.Contains(b[:n], x.mark) {
			found, _ := s.claim(b[:n])
			return found != nil
		}
	}
	return false
}

func base64URL(c byte) bool { return digit(c) || c == '-' || c == '_' }
