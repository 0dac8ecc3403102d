package audit

import "time"

// KindClock is the kind of a ClockRegressed.
const KindClock = "clock.regressed"

// maxRegress is how far the clock of a control plane may be behind the chain's last entry
// without an entry about it. Clocks of several control planes differ.
const maxRegress = 5 * time.Second

// ClockRegressed says that the clock of a control plane was behind the chain's last entry. Times
// of appending go on from that entry, by a microsecond for each, until the clock is past them.
// It is recorded once for each process and org while it lasts.
type ClockRegressed struct {
	Time   time.Time `json:"time"`
	Org    string    `json:"org"`    // set by the Chain
	Writer string    `json:"writer"` // set by the Chain

	Clock    time.Time `json:"clock"`     // the control plane's
	Last     time.Time `json:"last"`      // when the last entry was appended
	BehindUS int64     `json:"behind_us"` // the difference in microseconds
}

func (e ClockRegressed) Head() Head {
	return Head{Kind: KindClock, Time: e.Time, Org: e.Org, Writer: e.Writer}
}

func (e ClockRegressed) stamped(org, writer string, now time.Time) Entry {
	e.Org, e.Writer, e.Time = org, writer, or(e.Time, now)
	return e
}

func (e ClockRegressed) Encode() []byte {
	o := begin(320, KindClock, e.Time, e.Org, e.Writer, "")
	o.must("clock", clampYear(e.Clock.UTC()).Format(timeLayout), maxWord)
	o.must("last", clampYear(e.Last.UTC()).Format(timeLayout), maxWord)
	o.always("behind_us", e.BehindUS)
	return o.end()
}

// regressed returns the entry to append if the clock is behind the last entry of an org's chain,
// and no entry says so yet.
func (c *Chain) regressed(org string, clock, last time.Time) *ClockRegressed {
	behind := last.Sub(clock)
	if behind <= maxRegress {
		if behind <= 0 {
			c.clocks.Delete(org)
		}
		return nil
	}
	if _, said := c.clocks.Load(org); said {
		return nil
	}
	return &ClockRegressed{Clock: clock, Last: last, BehindUS: behind.Microseconds()}
}
