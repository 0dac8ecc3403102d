package api_test

import (
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/identity"
)

// A change of the time zone holds from the next month of the zone before, and can be
// withdrawn until then.
func TestTimezone(t *testing.T) {
	w := serve(t)
	is := func(r reply, zone, next string) {
		t.Helper()
		if r.field("timezone") != zone || r.field("timezone_next") != next {
			t.Errorf("%s, want %s and then %q", r.body, zone, next)
		}
		from, due := r.field("timezone_next_from").(string)
		if due != (next != "") {
			t.Errorf("due: %s", r.body)
		}
		if !due {
			return
		}
		at, err := time.Parse(time.RFC3339, from)
		if err != nil || at.Day() != 1 || at.Hour() != 0 || !at.After(time.Now()) || at.After(time.Now().AddDate(0, 0, 32)) {
			t.Errorf("from %s, %v", from, err)
		}
	}
	is(w.want(200, "GET", "/v1/org", ""), "UTC", "")
	is(w.want(200, "PATCH", "/v1/org", `{"timezone":"Europe/Berlin"}`), "UTC", "Europe/Berlin")
	is(w.want(200, "PATCH", "/v1/org", `{"timezone":"Asia/Tokyo"}`), "UTC", "Asia/Tokyo")
	is(w.want(200, "GET", "/v1/org", ""), "UTC", "Asia/Tokyo")
	is(w.want(200, "PATCH", "/v1/org", `{"timezone":"UTC"}`), "UTC", "")
	for _, bad := range []string{`{"timezone":"Europe/Atlantis"}`, `{"timezone":"Local"}`, `{"timezone":""}`, `{"timezone":null}`, `{}`, `{"tier":"free"}`} {
		w.want(422, "PATCH", "/v1/org", bad)
	}
	is(w.call(w.keys[identity.Reviewer], "GET", "/v1/org", ""), "UTC", "")
	if got := w.call(w.keys[identity.Auditor], "PATCH", "/v1/org", `{"timezone":"Asia/Tokyo"}`); got.status != 403 {
		t.Errorf("an auditor: %d %s", got.status, got.body)
	}
	if n := len(w.want(200, "GET", "/v1/audit/entries?kind=org.updated", "").field("data").([]any)); n != 3 {
		t.Errorf("%d changes are recorded, want 3", n)
	}
}
