package budget_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ai-identity/ai-identity/budget"
)

func calendar(t testing.TB, zone, before string, from time.Time) *budget.Calendar {
	t.Helper()
	c, err := budget.NewCalendar(zone, before, from)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func instant(t testing.TB, s string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// Days have 23, 24 or 25 hours, and a month ends with its last day.
func TestCalendar(t *testing.T) {
	for _, c := range []struct {
		zone, at, day, dayEnd, month, monthEnd string
	}{
		{"UTC", "2026-01-31T23:59:59.999999999Z", "2026-01-31", "2026-02-01T00:00:00Z", "2026-01", "2026-02-01T00:00:00Z"},
		{"UTC", "2026-02-01T00:00:00Z", "2026-02-01", "2026-02-02T00:00:00Z", "2026-02", "2026-03-01T00:00:00Z"},
		{"UTC", "2026-12-31T12:00:00Z", "2026-12-31", "2027-01-01T00:00:00Z", "2026-12", "2027-01-01T00:00:00Z"},
		{"Europe/Berlin", "2026-03-29T00:30:00Z", "2026-03-29", "2026-03-29T22:00:00Z", "2026-03", "2026-03-31T22:00:00Z"},       // 23 hours
		{"Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25", "2026-10-25T23:00:00Z", "2026-10", "2026-10-31T23:00:00Z"},       // 25 hours
		{"Europe/Berlin", "2026-07-31T22:00:00Z", "2026-08-01", "2026-08-01T22:00:00Z", "2026-08", "2026-08-31T22:00:00Z"},       // the 31st in UTC
		{"America/Los_Angeles", "2026-08-01T06:59:59Z", "2026-07-31", "2026-08-01T07:00:00Z", "2026-07", "2026-08-01T07:00:00Z"}, // the 1st in UTC
		{"America/Santiago", "2026-09-06T03:30:00Z", "2026-09-05", "2026-09-06T04:00:00Z", "2026-09", "2026-10-01T03:00:00Z"},    // no midnight on the 6th
		{"America/Santiago", "2026-09-06T04:00:00Z", "2026-09-06", "2026-09-07T03:00:00Z", "2026-09", "2026-10-01T03:00:00Z"},    // which begins at 01:00
		{"America/Havana", "2026-11-01T04:30:00Z", "2026-11-01", "2026-11-02T05:00:00Z", "2026-11", "2026-12-01T05:00:00Z"},      // midnight comes twice
	} {
		at := instant(t, c.at)
		day, dayEnd := calendar(t, c.zone, "UTC", time.Time{}).Day(at)
		month, monthEnd := calendar(t, c.zone, "UTC", time.Time{}).Month(at)
		if day != c.day || !dayEnd.Equal(instant(t, c.dayEnd)) || month != c.month || !monthEnd.Equal(instant(t, c.monthEnd)) {
			t.Errorf("%s in %s: %s until %v, %s until %v", c.at, c.zone, day, dayEnd.UTC(), month, monthEnd.UTC())
		}
	}
	var utc *budget.Calendar
	if day, end := utc.Day(instant(t, "2026-11-27T23:00:00Z")); day != "2026-11-27" || !end.Equal(instant(t, "2026-11-28T00:00:00Z")) {
		t.Errorf("without a calendar: %s until %v", day, end)
	}
	for _, bad := range []string{"", "Local", "Europe/Atlantis", "../etc/passwd"} {
		if _, err := budget.NewCalendar(bad, "UTC", time.Time{}); err == nil {
			t.Errorf("%q is a zone", bad)
		}
	}
}

// A change holds from the first of the next month in the zone before. No period comes
// back, whichever way the clocks go. Two of the zones are 25 hours apart. When one takes
// the place of the other, the first day may be left out.
func TestZoneChanges(t *testing.T) {
	zones := []string{"UTC", "Europe/Berlin", "America/Los_Angeles", "Pacific/Kiritimati", "Pacific/Pago_Pago", "Asia/Kathmandu", "America/Santiago", "Africa/Cairo"}
	rapid.Check(t, func(r *rapid.T) {
		zone, before := rapid.SampledFrom(zones).Draw(r, "zone"), rapid.SampledFrom(zones).Draw(r, "before")
		now := time.Unix(rapid.Int64Range(1767225600, 1830297600).Draw(r, "now"), 0) // 2026 and 2027
		from := calendar(t, before, before, time.Time{}).NextMonth(now)
		c := calendar(t, zone, before, from)
		for _, of := range []func(time.Time) (string, time.Time){c.Day, c.Month} {
			last, end := of(from.Add(-time.Nanosecond))
			if !end.Equal(from) {
				r.Fatalf("%s ends at %v, and the change is at %v", last, end, from)
			}
			for n := range 20 {
				name, next := of(end)
				if name <= last || !next.After(end) || next.Sub(end) > 33*24*time.Hour {
					r.Fatalf("after %s comes %s, from %v until %v", last, name, end, next)
				}
				for _, at := range []time.Time{end.Add(next.Sub(end) / 2), next.Add(-time.Nanosecond)} {
					if same, until := of(at); same != name || !until.Equal(next) {
						r.Fatalf("at %v it is %s until %v, and %s began at %v until %v", at, same, until, name, end, next)
					}
				}
				if day, err := time.Parse(time.DateOnly, last); err == nil && n > 0 && day.AddDate(0, 0, 1).Format(time.DateOnly) != name {
					r.Fatalf("after %s comes %s", last, name)
				}
				last, end = name, next
			}
		}
	})
}
