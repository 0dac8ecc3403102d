package api_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/api"
	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/provider"
)

// none is a database and an audit log that must not be used.
type none struct{ t testing.TB }

func (n none) InOrg(context.Context, string, func(pgx.Tx) error) error {
	n.t.Error("the database was asked")
	return context.Canceled
}

func (n none) Presenting(context.Context, string, func(pgx.Tx) error) error {
	n.t.Error("the database was asked")
	return context.Canceled
}

func (n none) Record(context.Context, pgx.Tx, string, audit.Changed) (audit.Position, error) {
	n.t.Error("something was recorded")
	return audit.Position{}, context.Canceled
}

// asset matches a file that a page needs; fetched matches a file that a script loads.
var (
	asset   = regexp.MustCompile(`(?:src|href)="([^"#]+)"`)
	fetched = regexp.MustCompile(`src:"https?://[^"]*"|https?://[^"'` + "`" + ` ]*cdn[^"'` + "`" + ` ]*\.(?:svg|png|js|css)`)
)

var elsewhere = regexp.MustCompile(`(src|href)="(https?:)?//`)

// TestSitePages: the pages need no key, no database and no other server.
func TestSitePages(t *testing.T) {
	sealer, err := provider.NewSealer([]string{"cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="})
	if err != nil {
		t.Fatal(err)
	}
	var logs bytes.Buffer
	s, err := api.New(api.Config{DB: none{t}, Chain: none{t}, Sealer: sealer, Log: slog.New(slog.NewTextHandler(&logs, nil))})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/openapi.json": `"openapi": "3.1`, "/openapi.yaml": "openapi: 3.1", "/docs": "swagger", "/redoc": "redoc.standalone.js",
		"/redoc/redoc.standalone.js": "function",
	} {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		body := w.Body.String()
		if w.Code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %.200s", path, w.Code, body)
		}
		if !strings.HasSuffix(path, ".js") && !strings.HasPrefix(path, "/openapi") && elsewhere.MatchString(body) {
			t.Errorf("%s loads something from elsewhere: %s", path, body)
		}
		if strings.HasSuffix(path, ".js") && fetched.MatchString(body) {
			t.Errorf("%s loads %q", path, fetched.FindAllString(body, -1))
		}
		if path != "/docs" && path != "/redoc" {
			continue
		}
		assets := asset.FindAllStringSubmatch(body, -1)
		for _, a := range assets {
			w := httptest.NewRecorder()
			s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, a[1], nil))
			if w.Code != 200 || w.Body.Len() == 0 {
				t.Errorf("%s needs %s: %d", path, a[1], w.Code)
			}
		}
		if len(assets) == 0 || w.Header().Get("Content-Security-Policy") == "" {
			t.Errorf("%s: %d assets, policy %q", path, len(assets), w.Header().Get("Content-Security-Policy"))
		}
	}
}
