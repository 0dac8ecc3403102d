package budget

import (
	"fmt"
	"time"
	_ "time/tzdata" // each machine has the same zones
)

// Calendar names the days and months of an org, whose time zone may change. The nil
// Calendar is UTC.
type Calendar struct {
	zone, before *time.Location
	from         time.Time // where zone takes the place of before: the first of a month there
}

// NewCalendar returns the calendar of an org whose zone is before until from, and then zone.
// A zone is an IANA name. A zero from means that there was no change.
func NewCalendar(zone, before string, from time.Time) (*Calendar, error) {
	c := &Calendar{from: from}
	for _, z := range []struct {
		name string
		into **time.Location
	}{{zone, &c.zone}, {before, &c.before}} {
		l, err := time.LoadLocation(z.name)
		if err != nil || z.name == "" || z.name == "Local" {
			return nil, fmt.Errorf("%q is not a time zone: use an IANA name, such as Europe/Berlin", z.name)
		}
		*z.into = l
	}
	return c, nil
}

// Day returns the name of the day that an instant is in, such as 2026-11-27, and its end.
func (c *Calendar) Day(at time.Time) (name string, end time.Time) {
	y, m, d, zone := c.date(at)
	return time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Format(time.DateOnly), begin(y, m, d+1, zone)
}

// Month returns the name of the month that an instant is in, such as 2026-11, and its end.
func (c *Calendar) Month(at time.Time) (name string, end time.Time) {
	y, m, _, zone := c.date(at)
	return time.Date(y, m, 1, 0, 0, 0, 0, time.UTC).Format("2006-01"), begin(y, m+1, 1, zone)
}

// date returns the date of an instant, and the zone that it is of. A zone to the west still
// shows the last of the month when it takes effect. The first of the month holds then, so
// that no period comes back.
func (c *Calendar) date(at time.Time) (y int, m time.Month, d int, zone *time.Location) {
	switch {
	case c == nil:
		zone = time.UTC
	case !c.from.IsZero() && at.Before(c.from):
		zone = c.before
	default:
		zone = c.zone
	}
	y, m, d = at.In(zone).Date()
	if c != nil && !c.from.IsZero() && zone == c.zone && !at.Before(c.from) {
		fy, fm, fd := c.from.In(c.before).Date()
		if time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Before(time.Date(fy, fm, fd, 0, 0, 0, 0, time.UTC)) {
			y, m, d = fy, fm, fd
		}
	}
	return y, m, d, zone
}

// begin is the first instant of a date. It is after midnight where clocks are put forward
// then, and the earlier midnight where there are two.
func begin(y int, m time.Month, d int, zone *time.Location) time.Time {
	t := time.Date(y, m, d, 0, 0, 0, 0, zone)
	want := time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
	early := func(t time.Time) bool {
		y, m, d := t.In(zone).Date()
		return time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Before(want)
	}
	if !early(t) && early(t.Add(-time.Second)) {
		return t
	}
	// Search the second between one that is certainly before and one that is certainly not.
	low, high := t.Add(-26*time.Hour), t.Add(26*time.Hour)
	for high.Sub(low) > time.Second {
		if mid := low.Add((high.Sub(low) / 2).Truncate(time.Second)); early(mid) {
			low = mid
		} else {
			high = mid
		}
	}
	return high
}

// NextMonth is when a change of the zone takes effect that is made now.
func (c *Calendar) NextMonth(now time.Time) time.Time {
	_, end := c.Month(now)
	return end
}
