package api_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/api"
	"github.com/ai-identity/ai-identity/audit/evidence"
)

// The keys need no key to read, can be cached, have their sizes, and are served while the
// database is away. Many requests cost one query.
func TestJWKS(t *testing.T) {
	w := serve(t)
	if r := w.call("", "GET", "/.well-known/jwks.json", ""); r.status != 200 || strings.TrimSpace(r.body) != `{"keys":[]}` {
		t.Errorf("without keys: %d %s", r.status, r.body)
	}
	now, queries := time.Now(), 0
	var away error
	key, err := evidence.NewKey(ed25519.NewKeyFromSeed(make([]byte, 32)).Public())
	if err != nil {
		t.Fatal(err)
	}
	s, err := api.New(api.Config{
		DB: w.db, Chain: w.chain, Sealer: w.sealer, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now },
		PublicKeys: func(context.Context) (evidence.KeySet, error) {
			queries++
			return evidence.KeySet{Keys: []evidence.Key{key}}, away
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	get := func() (int, evidence.KeySet) {
		t.Helper()
		rec := httptest.NewRecorder()
		s.ServeHTTP(rec, httptest.NewRequest("GET", "/.well-known/jwks.json", nil))
		r := rec.Result()
		b, _ := io.ReadAll(r.Body)
		if r.StatusCode != 200 {
			return r.StatusCode, evidence.KeySet{}
		}
		if r.Header.Get("Cache-Control") != "public, max-age=300" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%v", r.Header)
		}
		set, err := evidence.ParseJWKS(b)
		if err != nil {
			t.Fatalf("%v in %s", err, b)
		}
		return r.StatusCode, set
	}
	away = errors.New("the database is away")
	if status, _ := get(); status != http.StatusInternalServerError && status != http.StatusServiceUnavailable {
		t.Errorf("keys that were never read: %d", status)
	}
	away, queries = nil, 0
	for range 50 {
		_, set := get()
		if k, ok := set.Find(key.ID); !ok || k.From != 0 || k.To != 0 {
			t.Fatalf("%+v", set)
		}
	}
	if r := w.want(200, "GET", "/v1/audit/jwks", ""); !strings.Contains(r.body, `"keys":[]`) {
		t.Errorf("an organization whose log nothing has signed: %s", r.body)
	}
	if queries != 1 {
		t.Errorf("%d queries", queries)
	}
	now, away = now.Add(time.Minute), errors.New("the database is away")
	if status, set := get(); status != 200 || len(set.Keys) != 1 {
		t.Errorf("while the database is away: %d", status)
	}
	if r := w.call("", "POST", "/.well-known/jwks.json", "{}"); r.status != 405 {
		t.Errorf("POST: %d", r.status)
	}
}
