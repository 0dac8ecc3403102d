package provider_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/provider"
)

// A header's value is encrypted for one provider, address and name, and is never printed.
func TestHeadersAtRest(t *testing.T) {
	w := open(t)
	p := stored(w.a, "prov_1", "one")
	p.Headers = provider.Headers(map[string]string{"private-token": "canary-1", "x-team": "canary-2"})
	if text := fmt.Sprintf("%v %+v %#v", p, p, p); strings.Contains(text, "canary") {
		t.Error(text)
	}
	if b, err := json.Marshal(p); err != nil || strings.Contains(string(b), "canary") {
		t.Error(string(b), err)
	}
	read := func() (got provider.Provider) {
		t.Helper()
		w.in(w.a, nil, func(ctx context.Context, tx pgx.Tx) (err error) { got, err = provider.ByID(ctx, tx, p.ID); return err })
		return got
	}
	swap := func(sql string) {
		t.Helper()
		w.in(w.a, nil, func(ctx context.Context, tx pgx.Tx) error { _, err := tx.Exec(ctx, sql); return err })
	}
	w.in(w.a, nil, func(ctx context.Context, tx pgx.Tx) error { return provider.Insert(ctx, tx, testSealer, p) })
	if got, err := read().OpenHeaders(testSealer); err != nil || got.HeaderValues()["private-token"] != "canary-1" {
		t.Error(got.HeaderValues(), err)
	}
	if _, err := read().OpenHeaders(sealer(t, fernetKey(2))); !errors.Is(err, provider.ErrUnreadable) {
		t.Error(err)
	}
	// A change that does not set the headers needs no key that decrypts them.
	w.in(w.a, nil, func(ctx context.Context, tx pgx.Tx) error {
		kept := read()
		kept.Models = []string{"m"}
		_, err := provider.Update(ctx, tx, sealer(t, fernetKey(2)), kept)
		return err
	})
	if got, err := read().OpenHeaders(testSealer); err != nil || got.HeaderValues()["x-team"] != "canary-2" {
		t.Error(got.HeaderValues(), err)
	}
	// Values under another name, or at another address, cannot be decrypted.
	swap(`UPDATE providers SET headers = jsonb_build_object('x-team', headers->'private-token', 'private-token', headers->'x-team')`)
	if _, err := read().OpenHeaders(testSealer); !errors.Is(err, provider.ErrUnreadable) {
		t.Error(err)
	}
	swap(`UPDATE providers SET headers = jsonb_build_object('x-team', headers->'private-token', 'private-token', headers->'x-team')`)
	if _, err := read().OpenHeaders(testSealer); err != nil {
		t.Error(err)
	}
	swap(`UPDATE providers SET base_url = 'https://evil.example/v1'`)
	if _, err := read().OpenHeaders(testSealer); !errors.Is(err, provider.ErrUnreadable) {
		t.Error(err)
	}
	// A row from before schema 6 is used, and encrypted when it is next written.
	swap(`UPDATE providers SET headers = '{"private-token": "canary-3"}'`)
	old, err := read().OpenHeaders(testSealer)
	if err != nil || old.HeaderValues()["private-token"] != "canary-3" || old.Headers["private-token"].Sealed() {
		t.Error(old.HeaderValues(), err)
	}
	w.in(w.a, nil, func(ctx context.Context, tx pgx.Tx) error {
		_, err := provider.Update(ctx, tx, testSealer, old)
		return err
	})
	if got := read(); !got.Headers["private-token"].Sealed() {
		t.Error("still as it was")
	}
	for _, broken := range []string{`{"a": null}`, `{"a": 1}`, `{"a": {}}`, `{"a": ["canary-4"]}`} {
		swap(`UPDATE providers SET headers = '` + broken + `'`)
		if err := w.try(w.a, func(ctx context.Context, tx pgx.Tx) error { _, err := provider.ByID(ctx, tx, p.ID); return err }); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", broken, err)
		}
	}
}

// Every header's value is a secret in responses, unless its name is known to be harmless
// or listed.
func TestForwardSentHeaders(t *testing.T) {
	p := prov("a", "custom", "m")
	p.Headers = provider.Headers(map[string]string{
		"x-internal": "opaque-0123", "x-mail": "Basic dTpwYXNzd29yZC0wMTIz", "user-agent": "gateway-0123", "openai-project": "proj_0123", "x-team": "research-team",
	})
	p.Settings = []byte(`{"public_headers":["x-team"]}`)
	if err := provider.Validate(p); err != nil {
		t.Fatal(err)
	}
	f, e := forward(t, p, chat, "")
	if e != nil {
		t.Fatal(e)
	}
	for _, want := range []string{"opaque-0123", "Basic dTpwYXNzd29yZC0wMTIz", "dTpwYXNzd29yZC0wMTIz", "u:password-0123", "password-0123"} {
		if !slices.Contains(f.Sent, want) {
			t.Errorf("%q may come back", want)
		}
	}
	for _, not := range []string{"gateway-0123", "proj_0123", "research-team"} {
		if slices.Contains(f.Sent, not) {
			t.Errorf("%q is overwritten", not)
		}
	}
}

// Rotation of the key: all values are encrypted with the first key, once. If a value cannot
// be decrypted, nothing is changed.
func TestReseal(t *testing.T) {
	w := open(t)
	p := stored(w.a, "prov_1", "one")
	older, both, newer := sealer(t, fernetKey(1)), sealer(t, fernetKey(2), fernetKey(1)), sealer(t, fernetKey(2))
	put := func(s *provider.Sealer) error {
		return w.try(w.a, func(ctx context.Context, tx pgx.Tx) error {
			sealed, err := s.Seal([]byte("secret"))
			if err != nil {
				return err
			}
			return provider.PutCredential(ctx, tx, provider.Credential{ProviderID: p.ID, Cluster: provider.ClusterName(p), Sealed: sealed, UpdatedAt: noon})
		})
	}
	reseal := func(s *provider.Sealer) (n int, err error) {
		err = w.try(w.a, func(ctx context.Context, tx pgx.Tx) (err error) {
			n, err = provider.Reseal(ctx, tx, s, p.ID)
			return err
		})
		return n, err
	}
	opens := func() {
		t.Helper()
		w.in(w.a, nil, func(ctx context.Context, tx pgx.Tx) error {
			got, err := provider.ByID(ctx, tx, p.ID)
			if err == nil {
				got, err = got.OpenHeaders(newer)
			}
			if err != nil {
				return err
			}
			cs, err := provider.Credentials(ctx, tx)
			if err != nil {
				return err
			}
			if b, err := newer.Open(cs[0].Sealed); err != nil || string(b) != "secret" || got.HeaderValues()["x-team"] == "" || got.Version != 1 {
				t.Errorf("%q %v %v", b, err, got)
			}
			return nil
		})
	}
	w.in(w.a, nil, func(ctx context.Context, tx pgx.Tx) error { return provider.Insert(ctx, tx, older, p) })
	if err := put(older); err != nil {
		t.Fatal(err)
	}
	if n, err := reseal(newer); !errors.Is(err, provider.ErrUnreadable) {
		t.Errorf("without the old key: %d %v", n, err)
	}
	if n, err := reseal(both); n != 2 || err != nil {
		t.Errorf("%d %v", n, err)
	}
	opens()
	if n, err := reseal(both); n != 0 || err != nil {
		t.Errorf("again: %d %v", n, err)
	}
	// A header from before schema 6.
	w.in(w.a, nil, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE providers SET headers = '{"x-team": "canary"}'`)
		return err
	})
	if n, err := reseal(both); n != 1 || err != nil {
		t.Errorf("%d %v", n, err)
	}
	opens()
	w.in(w.b, provider.ErrNotFound, func(ctx context.Context, tx pgx.Tx) error { _, err := provider.Reseal(ctx, tx, both, p.ID); return err })
}
