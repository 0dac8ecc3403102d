package identity_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/ai-identity/ai-identity/identity"
)

const ours = "https://ai.example.com"

// signer is an issuer of tokens with one key. It signs any header and any claims.
type signer struct {
	kid string
	key crypto.Signer
}

func newSigner(t testing.TB, kid string) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{kid, key}
}

func (s signer) jwks(t testing.TB) []byte {
	t.Helper()
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: s.key.Public(), KeyID: s.kid, Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sign signs the bytes of a header and of claims as they are.
func (s signer) sign(t testing.TB, header, claims string) string {
	t.Helper()
	text := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	sum := sha256.Sum256([]byte(text))
	var sig []byte
	switch key := s.key.(type) {
	case *ecdsa.PrivateKey:
		r, v, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		sig = append(r.FillBytes(make([]byte, 32)), v.FillBytes(make([]byte, 32))...)
	case *rsa.PrivateKey:
		var err error
		if sig, err = rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:]); err != nil {
			t.Fatal(err)
		}
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func (s signer) header() string { return `{"alg":"ES256","kid":"` + s.kid + `"}` }

type obj = map[string]any

func (o obj2) with(changes obj) string {
	m := maps.Clone(map[string]any(o))
	for k, v := range changes {
		if v == nil {
			delete(m, k)
			continue
		}
		m[k] = v
	}
	b, _ := json.Marshal(m)
	return string(b)
}

type obj2 map[string]any

func k8sClaims(issuer string) obj2 {
	return obj2{"iss": issuer, "sub": "system:serviceaccount:ai:bot", "aud": []string{ours}, "iat": noon.Unix(), "exp": noon.Add(time.Hour).Unix(), "nbf": noon.Unix(),
		"kubernetes.io": obj{"namespace": "ai", "serviceaccount": obj{"name": "bot", "uid": "x"}}}
}

func svidClaims() obj2 {
	return obj2{"sub": "spiffe://corp.example/ns/ai/sa/bot", "aud": ours, "exp": noon.Add(5 * time.Minute).Unix()}
}

// trust is the file of issuers: one cluster, and two trust domains. Each has its own key.
type trust struct {
	issuers              *identity.Issuers
	cluster, corp, named signer
}

func newTrust(t testing.TB) trust {
	t.Helper()
	x := trust{cluster: newSigner(t, "one"), corp: newSigner(t, "one"), named: newSigner(t, "one")}
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	list := []identity.Issuer{
		{Kind: identity.KindKubernetes, Issuer: cluster, Audience: ours, JWKSFile: file("cluster", x.cluster.jwks(t))},
		{Kind: identity.KindSPIFFE, TrustDomain: "corp.example", Audience: ours, JWKSFile: file("corp", bytes.Replace(x.corp.jwks(t), []byte(`"sig"`), []byte(`"jwt-svid"`), 1))},
		{Kind: identity.KindSPIFFE, TrustDomain: "named.example", Issuer: "https://spire.named.example", Audience: ours, JWKSFile: file("named", x.named.jwks(t))},
	}
	b, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	if x.issuers, err = identity.ParseIssuers(b, noon, discard); err != nil {
		t.Fatal(err)
	}
	return x
}

// Valid tokens name their workloads, and every other token is rejected, whatever it is signed
// with.
func TestTokens(t *testing.T) {
	x := newTrust(t)
	k, s := k8sClaims(cluster), svidClaims()
	at := noon.Add(time.Minute)
	for name, c := range map[string]struct {
		token string
		want  identity.Workload
	}{
		"service account":        {x.cluster.sign(t, x.cluster.header(), k.with(nil)), sa(cluster, "ai", "bot")},
		"typ, audience as text":  {x.cluster.sign(t, `{"typ":"JWT","alg":"ES256","kid":"one"}`, k.with(obj{"aud": ours, "nbf": nil, "kubernetes.io": nil})), sa(cluster, "ai", "bot")},
		"name with dots":         {x.cluster.sign(t, x.cluster.header(), k.with(obj{"sub": "system:serviceaccount:ai:b.o-t", "kubernetes.io": nil})), sa(cluster, "ai", "b.o-t")},
		"issued a little ahead":  {x.cluster.sign(t, x.cluster.header(), k.with(obj{"iat": at.Add(29 * time.Second).Unix()})), sa(cluster, "ai", "bot")},
		"fractions of a second":  {x.cluster.sign(t, x.cluster.header(), k.with(obj{"exp": float64(at.Unix()) + 0.5})), sa(cluster, "ai", "bot")},
		"SVID":                   {x.corp.sign(t, `{"typ":"JOSE","alg":"ES256","kid":"one"}`, s.with(nil)), spiffe("spiffe://corp.example/ns/ai/sa/bot")},
		"SVID with issuer":       {x.named.sign(t, x.named.header(), s.with(obj{"sub": "spiffe://named.example/x", "iss": "https://spire.named.example"})), spiffe("spiffe://named.example/x")},
		"SVID, issued long ago?": {x.corp.sign(t, x.corp.header(), s.with(obj{"iat": noon.Add(-30 * time.Minute).Unix()})), spiffe("spiffe://corp.example/ns/ai/sa/bot")},
	} {
		got, err := x.issuers.Verify(c.token, at)
		if err != nil || got.Workload != c.want || !got.Expires.After(at) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if !x.issuers.Ours(c.token) {
			t.Errorf("%s: not ours", name)
		}
	}

	valid := x.cluster.sign(t, x.cluster.header(), k.with(nil))
	parts := strings.Split(valid, ".")
	seg := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	public, err := json.Marshal(jose.JSONWebKey{Key: x.corp.key.Public(), KeyID: "one"})
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, x.cluster.jwks(t))
	fmt.Fprint(mac, seg(`{"alg":"HS256","kid":"one"}`)+"."+parts[1])
	big, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ofRSA := signer{"one", big}
	header := func(h string) string { return x.cluster.sign(t, h, k.with(nil)) }
	claim := func(o obj) string { return x.cluster.sign(t, x.cluster.header(), k.with(o)) }
	svid := func(o obj) string { return x.corp.sign(t, x.corp.header(), s.with(o)) }
	for name, token := range map[string]string{
		// Algorithms and keys.
		"alg none":                 seg(`{"alg":"none","kid":"one"}`) + "." + parts[1] + ".",
		"alg none, signed":         header(`{"alg":"none","kid":"one"}`),
		"HMAC with the public key": seg(`{"alg":"HS256","kid":"one"}`) + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)),
		"RSA key":                  ofRSA.sign(t, `{"alg":"RS256","kid":"one"}`, k.with(nil)),
		"alg in lower case":        header(`{"alg":"es256","kid":"one"}`),
		"another alg":              header(`{"alg":"ES384","kid":"one"}`),
		"no alg":                   header(`{"kid":"one"}`),
		"no kid":                   header(`{"alg":"ES256"}`),
		"kid of no key":            header(`{"alg":"ES256","kid":"two"}`),
		"kid with a path":          header(`{"alg":"ES256","kid":"../one"}`),
		"kid a number":             header(`{"alg":"ES256","kid":1}`),
		"kid twice":                header(`{"alg":"ES256","kid":"two","kid":"one"}`),
		"alg twice":                header(`{"alg":"none","alg":"ES256","kid":"one"}`),
		"member in another case":   header(`{"alg":"ES256","KID":"one"}`),
		"a key of its own":         x.corp.sign(t, `{"alg":"ES256","kid":"one","jwk":`+string(public)+`}`, k.with(nil)),
		"an address of a key":      header(`{"alg":"ES256","kid":"one","jku":"https://evil.example/jwks"}`),
		"a certificate":            header(`{"alg":"ES256","kid":"one","x5u":"https://evil.example/"}`),
		"critical extension":       header(`{"alg":"ES256","kid":"one","crit":["b64"],"b64":false}`),
		"encrypted in name":        header(`{"alg":"ES256","kid":"one","enc":"A128GCM"}`),
		"typ of an access token":   header(`{"alg":"ES256","kid":"one","typ":"at+jwt"}`),
		"typ JOSE of a cluster":    header(`{"alg":"ES256","kid":"one","typ":"JOSE"}`),
		"another issuer's key":     x.corp.sign(t, x.corp.header(), k.with(nil)),
		"a cluster's key for SPIFFE": x.cluster.sign(t, x.cluster.header(),
			s.with(nil)),
		"one domain's key for another": x.corp.sign(t, x.corp.header(), s.with(obj{"sub": "spiffe://named.example/x", "iss": "https://spire.named.example"})),
		// Form.
		"signature cut":       valid[:len(valid)-2],
		"signature empty":     parts[0] + "." + parts[1] + ".",
		"claims exchanged":    parts[0] + "." + seg(k.with(obj{"sub": "system:serviceaccount:ai:root"})) + "." + parts[2],
		"padding":             parts[0] + "." + parts[1] + "." + parts[2] + "=",
		"a blank":             valid + " ",
		"a line end":          parts[0] + "." + parts[1] + "." + parts[2][:4] + "\n" + parts[2][4:],
		"four parts":          valid + "." + parts[2],
		"two parts":           parts[0] + "." + parts[1],
		"JSON form":           `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
		"oversize":            claim(obj{"x": strings.Repeat("x", 8<<10)}),
		"sub twice":           x.cluster.sign(t, x.cluster.header(), strings.Replace(k.with(nil), `{`, `{"sub":"system:serviceaccount:ai:root",`, 1)),
		"claim in other case": claim(obj{"exp": nil, "EXP": noon.Add(time.Hour).Unix()}),
		"not UTF-8":           x.cluster.sign(t, x.cluster.header(), strings.Replace(k.with(nil), `ai:bot`, "ai:\xff", 1)),
		"bytes after claims":  x.cluster.sign(t, x.cluster.header(), k.with(nil)+"{}"),
		// Issuer, audience and time.
		"no issuer":                 claim(obj{"iss": nil}),
		"issuer with a slash":       claim(obj{"iss": cluster + "/"}),
		"issuer in another case":    claim(obj{"iss": strings.ToUpper(cluster)}),
		"issuer a list":             claim(obj{"iss": []string{cluster}}),
		"no audience":               claim(obj{"aud": nil}),
		"empty audience":            claim(obj{"aud": []string{}}),
		"another audience":          claim(obj{"aud": "https://kubernetes.default.svc"}),
		"ours and another":          claim(obj{"aud": []string{ours, "https://other"}}),
		"ours twice":                claim(obj{"aud": []string{ours, ours}}),
		"audience with a slash":     claim(obj{"aud": ours + "/"}),
		"audience in a list in one": claim(obj{"aud": [][]string{{ours}}}),
		"no exp":                    claim(obj{"exp": nil}),
		"exp as text":               claim(obj{"exp": "9999999999"}),
		"exp huge":                  claim(obj{"exp": 1e300}),
		"exp negative":              claim(obj{"exp": -1}),
		"expired":                   claim(obj{"exp": at.Unix(), "iat": noon.Add(-time.Minute).Unix()}),
		"no iat":                    claim(obj{"iat": nil}),
		"a life above an hour":      claim(obj{"exp": noon.Add(time.Hour + time.Second).Unix()}),
		"an old long one":           claim(obj{"iat": noon.Add(-10 * time.Hour).Unix()}),
		"iat in the future":         claim(obj{"iat": at.Add(31 * time.Second).Unix()}),
		"not yet":                   claim(obj{"nbf": at.Add(31 * time.Second).Unix()}),
		"nbf negative":              claim(obj{"nbf": -5}),
		// Names.
		"a user":                     claim(obj{"sub": "system:node:x", "kubernetes.io": nil}),
		"no name":                    claim(obj{"sub": "system:serviceaccount:ai:", "kubernetes.io": nil}),
		"name with a colon":          claim(obj{"sub": "system:serviceaccount:ai:bot:x", "kubernetes.io": nil}),
		"name with a slash":          claim(obj{"sub": "system:serviceaccount:ai/x:bot", "kubernetes.io": nil}),
		"SPIFFE id of a cluster":     claim(obj{"sub": "spiffe://corp.example/x"}),
		"claims that differ":         claim(obj{"sub": "system:serviceaccount:ai:root"}),
		"no sub":                     claim(obj{"sub": nil}),
		"SVID of another domain":     svid(obj{"sub": "spiffe://other.example/x"}),
		"SVID of a longer domain":    svid(obj{"sub": "spiffe://corp.example.evil/x"}),
		"SVID of the domain":         svid(obj{"sub": "spiffe://corp.example"}),
		"SVID with dots":             svid(obj{"sub": "spiffe://corp.example/a/../b"}),
		"SVID with an issuer":        svid(obj{"iss": "https://spire.corp.example"}),
		"SVID with a cluster as iss": svid(obj{"iss": cluster}),
		"SVID named, without issuer": x.named.sign(t, x.named.header(), s.with(obj{"sub": "spiffe://named.example/x"})),
		"SVID above an hour":         svid(obj{"exp": at.Add(time.Hour + time.Second).Unix()}),
	} {
		got, err := x.issuers.Verify(token, at)
		var invalid *identity.InvalidToken
		if err == nil || !errors.As(err, &invalid) && !errors.Is(err, identity.ErrNotWorkload) || got != (identity.Token{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if err != nil && len(token) > 64 && (strings.Contains(err.Error(), parts[1]) || strings.Contains(err.Error(), token[len(token)-20:])) {
			t.Errorf("%s: the error quotes the token", name)
		}
	}
	if _, err := x.issuers.Verify(valid, noon.Add(time.Hour)); err == nil {
		t.Error("a token is accepted at its end")
	}
}

// A token is found in a text, whether it is valid or not, and in every encoding that a receiver
// would decode. Other texts are not.
func TestFindToken(t *testing.T) {
	x := newTrust(t)
	token := x.cluster.sign(t, x.cluster.header(), k8sClaims(cluster).with(nil))
	unsigned := token[:strings.LastIndex(token, ".")+1] + "AAAA"
	svid := x.corp.sign(t, x.corp.header(), svidClaims().with(nil))
	escaped := strings.ReplaceAll(strings.ReplaceAll(token, "J", `\u004a`), ".", `\u002E`)
	texts := []string{
		token, unsigned, svid, "Bearer " + token, "key=" + token + ";", "x" + token + "x", `{"a":"` + token + `"}`, ".eyJ." + token, url.QueryEscape(token), strings.ReplaceAll(token, ".", "%2E"),
		`{"a":"` + escaped + `"}`, strings.Repeat(".eyJ", 50) + token,
	}
	for i := range 4 {
		plain := strings.Repeat("u", i) + ":" + token
		texts = append(texts, base64.StdEncoding.EncodeToString([]byte(plain)), base64.RawURLEncoding.EncodeToString([]byte(plain)), "data:;base64,"+base64.StdEncoding.EncodeToString([]byte(plain))+"==x",
			base64.StdEncoding.EncodeToString([]byte(strings.Repeat("u", i)+".eyJ"))+base64.StdEncoding.EncodeToString([]byte(plain)))
	}
	for _, text := range texts {
		if !x.issuers.Find([]byte(text)) {
			t.Errorf("not found: %.80s", text)
		}
	}
	foreign := x.cluster.sign(t, x.cluster.header(), k8sClaims("https://elsewhere.example").with(nil))
	for _, text := range []string{"", ".eyJ", ".eyJ.", foreign, base64.StdEncoding.EncodeToString([]byte(foreign)), token[:len(token)/2], "https://kubernetes.default.svc.cluster.local", strings.Repeat("LmV5S", 100), `\u00`, "%", "%2"} {
		if x.issuers.Find([]byte(text)) {
			t.Errorf("found in %.80s", text)
		}
	}
	// The cost is linear, whatever the text is.
	for _, part := range []string{".eyJ", "LmV5S", "LmV5SjAA", `\u002e`, "%2e"} {
		x.issuers.Find(bytes.Repeat([]byte(part), 1<<20/len(part)))
	}
	if (*identity.Issuers)(nil).Find([]byte(token)) || (*identity.Issuers)(nil).Ours(token) {
		t.Error("no issuers find a token")
	}
}

// Keys from a URL are read again for a key that is not known, and rarely. If they cannot be
// read, that is an outage. A token without one of the keys is invalid.
func TestJWKSFromURL(t *testing.T) {
	first, second := newSigner(t, "first"), newSigner(t, "second")
	var serves atomic.Pointer[[]byte]
	var asked atomic.Int64
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		b := serves.Load()
		asked.Add(1)
		if b != nil {
			w.Write(*b) //nolint:errcheck // the client sees it
			return
		}
		http.Redirect(w, &http.Request{}, "https://127.0.0.1:1/", http.StatusFound)
	}))
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal([]identity.Issuer{{Kind: identity.KindKubernetes, Issuer: cluster, Audience: ours, JWKSURL: server.URL + "/jwks", CAFile: ca}})
	if err != nil {
		t.Fatal(err)
	}
	issuers, err := identity.ParseIssuers(b, noon, discard)
	if err != nil {
		t.Fatal(err)
	}
	var now atomic.Int64 // seconds after noon
	clock := func() time.Time { return noon.Add(time.Duration(now.Load()) * time.Second) }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- issuers.Run(ctx, clock) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	token := func(s signer) string { return s.sign(t, s.header(), k8sClaims(cluster).with(nil)) }
	until := func(what string, s signer, ok func(error) bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			_, err := issuers.Verify(token(s), clock())
			if ok(err) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	outage := func(err error) bool { return errors.Is(err, identity.ErrKeysUnavailable) }
	fine := func(err error) bool { return err == nil }
	invalid := func(err error) bool { _, ok := errors.AsType[*identity.InvalidToken](err); return ok }
	until("a redirect is no key set", first, func(err error) bool { return asked.Load() > 0 && outage(err) })
	keys := first.jwks(t)
	serves.Store(&keys)
	now.Add(31)
	until("the first keys", first, fine)
	// Its keys are fresh: a token of another key is rejected for good, without a request.
	n := asked.Load()
	for range 100 {
		if _, err := issuers.Verify(token(second), clock()); !invalid(err) {
			t.Fatalf("an unknown key: %v", err)
		}
	}
	if asked.Load() != n {
		t.Errorf("unknown keys cause %d requests", asked.Load()-n)
	}
	keys = second.jwks(t)
	serves.Store(&keys)
	now.Add(11)
	until("a rotated key", second, fine)
	until("the key before", first, invalid)
	// An empty set withdraws the keys.
	empty := []byte(`{"keys":[]}`)
	serves.Store(&empty)
	now.Add(11)
	if _, err := issuers.Verify(token(first), clock()); !outage(err) { // it causes a reading
		t.Errorf("an unknown key: %v", err)
	}
	until("a withdrawn key", second, invalid)
	keys = second.jwks(t)
	serves.Store(&keys)
	now.Add(11)
	until("a key that is back", second, fine)
	// Older keys than a day are not used.
	serves.Store(nil)
	now.Add(25 * 3600)
	if _, err := issuers.Verify(token(second), clock()); !outage(err) {
		t.Errorf("keys that are a day old: %v", err)
	}
}

// Keys that are no longer in their file are not used. An empty set and a deleted file withdraw
// them at once. A file that cannot be read does so after five minutes.
func TestWithdrawnKeys(t *testing.T) {
	s := newSigner(t, "one")
	path := filepath.Join(t.TempDir(), "keys")
	write := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(s.jwks(t))
	b, err := json.Marshal([]identity.Issuer{{Kind: identity.KindKubernetes, Issuer: cluster, Audience: ours, JWKSFile: path}})
	if err != nil {
		t.Fatal(err)
	}
	issuers, err := identity.ParseIssuers(b, noon, discard)
	if err != nil {
		t.Fatal(err)
	}
	token := s.sign(t, s.header(), k8sClaims(cluster).with(nil))
	ended, end := context.WithCancel(t.Context())
	end()
	check := func(name string, at time.Duration, reads bool, want string) {
		t.Helper()
		now := noon.Add(at)
		if reads { // Run reads a file once before it ends
			if err := issuers.Run(ended, func() time.Time { return now }); err != nil {
				t.Fatal(err)
			}
		}
		_, err := issuers.Verify(token, now)
		got := "invalid"
		if err == nil {
			got = "valid"
		} else if errors.Is(err, identity.ErrKeysUnavailable) {
			got = "unavailable"
		}
		if got != want {
			t.Errorf("%s: %s (%v), want %s", name, got, err, want)
		}
	}
	check("the file is there", time.Minute, true, "valid")
	write([]byte(`{"keys":[]}`))
	check("an empty set", 2*time.Minute, true, "invalid")
	write(s.jwks(t))
	check("it is back", 3*time.Minute, true, "valid")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	check("it is deleted", 4*time.Minute, true, "unavailable")
	write(s.jwks(t))
	check("it is there again", 5*time.Minute, true, "valid")
	for _, broken := range []string{"", "x", "{}", `{"keys":null}`, `{"keys":{}}`} {
		write([]byte(broken))
		check("a broken file "+broken, 10*time.Minute, true, "valid")
	}
	check("broken for longer", 10*time.Minute+time.Second, true, "unavailable")
	check("not read any more", 11*time.Minute, false, "unavailable")
}

// A file with a mistake is rejected with its place, and a key set that is not safe as a whole.
func TestIssuersFile(t *testing.T) {
	dir := t.TempDir()
	s := newSigner(t, "one")
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good", s.jwks(t))
	private, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: s.key, KeyID: "one"}}})
	if err != nil {
		t.Fatal(err)
	}
	secret, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: []byte("0123456789abcdef0123456789abcdef"), KeyID: "one"}, {Key: s.key.Public(), KeyID: "two"}}})
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024) //nolint:gosec // it must be rejected
	if err != nil {
		t.Fatal(err)
	}
	small, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &weak.PublicKey, KeyID: "one"}}})
	if err != nil {
		t.Fatal(err)
	}
	twice := bytes.Replace(s.jwks(t), []byte(`]}`), append([]byte{','}, append(s.jwks(t)[len(`{"keys":[`):len(s.jwks(t))-2], []byte(`]}`)...)...), 1)
	one := func(change func(*identity.Issuer)) string {
		i := identity.Issuer{Kind: identity.KindKubernetes, Issuer: cluster, Audience: ours, JWKSFile: good}
		change(&i)
		b, _ := json.Marshal([]identity.Issuer{i})
		return string(b)
	}
	if _, err := identity.ParseIssuers([]byte(one(func(*identity.Issuer) {})), noon, discard); err != nil {
		t.Fatal(err)
	}
	keys := func(b []byte) string {
		return one(func(i *identity.Issuer) { i.JWKSFile = write("keys", b) })
	}
	for name, file := range map[string]string{
		"nothing": "", "empty": "[]", "an object": "{}", "an unknown field": `[{"kind":"kubernetes","issuers":"x"}]`, "a field twice": strings.Replace(one(func(*identity.Issuer) {}), `{`, `{"audience":"x",`, 1),
		"twice":              strings.Replace(one(func(*identity.Issuer) {}), "]", ","+strings.TrimPrefix(one(func(*identity.Issuer) {}), "["), 1),
		"no kind":            one(func(i *identity.Issuer) { i.Kind = "" }),
		"no audience":        one(func(i *identity.Issuer) { i.Audience = "" }),
		"http issuer":        one(func(i *identity.Issuer) { i.Issuer = "http://a" }),
		"no keys":            one(func(i *identity.Issuer) { i.JWKSFile = "" }),
		"two sources":        one(func(i *identity.Issuer) { i.JWKSURL = "https://a/jwks" }),
		"http keys":          one(func(i *identity.Issuer) { i.JWKSFile, i.JWKSURL = "", "http://a/jwks" }),
		"CA without URL":     one(func(i *identity.Issuer) { i.CAFile = good }),
		"CA without PEM":     one(func(i *identity.Issuer) { i.JWKSFile, i.JWKSURL, i.CAFile = "", "https://a/jwks", good }),
		"domain of cluster":  one(func(i *identity.Issuer) { i.TrustDomain = "corp.example" }),
		"no domain":          one(func(i *identity.Issuer) { i.Kind = identity.KindSPIFFE }),
		"domain with a path": one(func(i *identity.Issuer) { i.Kind, i.TrustDomain = identity.KindSPIFFE, "corp.example/a" }),
		"missing file":       one(func(i *identity.Issuer) { i.JWKSFile = filepath.Join(dir, "missing") }),
		"a private key":      keys(private), "a secret key": keys(secret), "a weak key": keys(small), "one id twice": keys(twice), "no key": keys([]byte(`{"keys":[]}`)),
		"keys twice": keys(append([]byte(`{"keys":[],`), s.jwks(t)[1:]...)), "too large": keys(append(s.jwks(t), bytes.Repeat([]byte(" "), 256<<10)...)), "no JSON": keys([]byte("x")),
	} {
		if _, err := identity.ParseIssuers([]byte(file), noon, discard); err == nil {
			t.Errorf("%s is accepted: %s", name, file)
		}
	}
}
