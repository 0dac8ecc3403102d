package xds_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/ai-identity/ai-identity/store/storetest"
	"github.com/ai-identity/ai-identity/xds"
)

// stepped returns now as time.Now does after the machine's clock was set by d: the wall time
// differs, and the monotonic reading does not.
func stepped(t testing.TB, now time.Time, d time.Duration) time.Time {
	t.Helper()
	at := now
	// The first word of a Time with a monotonic reading has seconds, above 30 bits of nanoseconds.
	*(*uint64)(unsafe.Pointer(&at)) += uint64(int64(d/time.Second)) << 30
	if at.Sub(now) != 0 || at.Round(0).Sub(now.Round(0)) != d {
		t.Fatalf("this Go has another time.Time: %v became %v", now, at)
	}
	return at
}

// The machine's clock is set while the control plane is connected: the next heartbeat makes
// the configuration fresh, whatever the clock was. The clock is set back while the control
// plane is away: the configuration becomes stale all the same.
func TestClockStep(t *testing.T) {
	p := newPlane(t)
	org := storetest.Org(t, p.db)
	token, _ := p.node(org)
	var step atomic.Int64
	x := p.client(token, func(c *xds.ClientConfig) {
		c.MaxStaleness = 2 * time.Second
		c.Now = func() time.Time { return stepped(t, time.Now(), time.Duration(step.Load())) }
	})
	eventually(t, x.Ready)
	for _, d := range []time.Duration{time.Hour, -time.Hour, 0} {
		step.Store(int64(d))
		eventually(t, func() error {
			if age, ok := x.Staleness(); !ok || age < 0 || age > time.Minute {
				return fmt.Errorf("the clock is set by %v: the configuration is %v old", d, age)
			}
			return x.Ready()
		})
	}
	p.stop()
	step.Store(int64(-time.Hour))
	eventually(t, func() error {
		if err := x.Ready(); !errors.Is(err, xds.ErrUnavailable) {
			return fmt.Errorf("without a control plane, and after the clock was set back: %v", err)
		}
		return nil
	})
	// A machine that was suspended has a wall time that went on without it. The last
	// heartbeat came with one of the steps above.
	step.Store(int64(3 * time.Hour))
	if age, _ := x.Staleness(); age < time.Hour {
		t.Errorf("after hours of suspension the configuration is %v old", age)
	}
}
