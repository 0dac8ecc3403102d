package audit

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// peerOf returns the address of the n-th of many peers. Each has its own prefix.
func peerOf(n int) netip.Addr {
	if n%2 == 0 {
		return netip.AddrFrom4([4]byte{byte(n >> 16), byte(n >> 8), byte(n), 7})
	}
	return netip.AddrFrom16([16]byte{0x20, 1, byte(n >> 16), byte(n >> 8), byte(n), 1, 15: 9})
}

// countsOf returns the entries of counts among records.
func countsOf(t *testing.T, recs []Record) (out []UnknownCallers) {
	t.Helper()
	for _, r := range recs {
		e, err := Parse(r.Entry)
		if err != nil {
			t.Fatal(err)
		}
		if c, ok := e.(UnknownCallers); ok {
			out = append(out, c)
		}
	}
	return out
}

// Requests without a known caller become one entry per minute and cause, for any number of
// requests, without an fsync for each.
func TestCountsByTheMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var syncs atomic.Int64
		w, stop := open(t, t.TempDir(), func(c *WriterConfig) {
			c.fault = func(o operation, do func() error) error {
				if o.name == "sync" {
					syncs.Add(1)
				}
				return do()
			}
		})
		synctest.Wait()
		began, before := time.Now(), syncs.Load()
		for n := range 10_000 {
			w.Count("org_a", []string{"missing_api_key", "unknown_api_key"}[n/5000], peerOf(n))
		}
		if syncs.Load() != before {
			t.Errorf("10,000 requests of no known caller cost %d fsyncs", syncs.Load()-before)
		}
		time.Sleep(countInterval + time.Second)
		synctest.Wait()
		w.Count("org_a", "unknown_api_key", netip.MustParseAddr("::ffff:192.0.2.77"))
		time.Sleep(countInterval)
		synctest.Wait()
		if got := syncs.Load() - before; got > 4 {
			t.Errorf("two minutes of counts cost %d fsyncs", got)
		}
		got := countsOf(t, drain(t, w))
		stop()
		slices.SortStableFunc(got[:min(2, len(got))], func(a, b UnknownCallers) int { return strings.Compare(a.Cause, b.Cause) })
		if len(got) != 3 {
			t.Fatalf("%d entries: %+v", len(got), got)
		}
		for i, want := range []struct {
			cause string
			count int64
		}{{"missing_api_key", 5000}, {"unknown_api_key", 5000}, {"unknown_api_key", 1}} {
			if e := got[i]; e.Cause != want.cause || e.Count != want.count || e.Org != "org_a" || e.First.Before(began.Truncate(time.Microsecond)) || e.Last.Before(e.First) {
				t.Errorf("entry %d: %+v", i, e)
			}
		}
		if s := got[0].Samples; len(s) != maxSamples || s[0] != "0.0.0.0/24" || s[1] != "2001:0:101::/48" {
			t.Errorf("samples: %v", s)
		}
		if s := got[2].Samples; !slices.Equal(s, []string{"192.0.2.0/24"}) {
			t.Errorf("samples: %v", s)
		}
	})
}

// Counts have limits in memory and on the disk. They never use space of the backlog of
// decisions, also not after a restart.
func TestCountsHaveTheirOwnSpace(t *testing.T) {
	dir := t.TempDir()
	change := func(c *WriterConfig) { c.SegmentBytes, c.MaxBacklogBytes = 1<<20, 2<<20 }
	w, stop := open(t, dir, change)
	junk := func(causes int) {
		for n := range causes {
			for s := range 20 {
				w.Count("org_a", fmt.Sprintf("cause_%d", n), peerOf(n*20+s))
			}
		}
	}
	junk(1000)
	w.countMu.Lock()
	if len(w.counts) > 2*maxCounts {
		t.Errorf("%d causes are in memory", len(w.counts))
	}
	if c := w.counts[countKey{"org_a", "other"}]; c == nil || len(c.Samples) != maxSamples {
		t.Errorf("what is beyond the bound: %+v", c)
	}
	w.countMu.Unlock()
	bytes := func() (backlog, counts int64) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.bytesLocked(), w.countBytesLocked()
	}
	// Nothing is shipped meanwhile: there are many rounds, and only some have room.
	for range 200 {
		w.writeCounts()
		if _, err := w.Append(t.Context(), "org_a", decided("r", "deny")); err != nil {
			t.Fatalf("a decision is refused: %v", err)
		}
		junk(maxCounts + 10)
	}
	backlog, counts := bytes()
	if backlog > 1<<20 || counts < maxCountBytes || counts > maxCountBytes+(1<<20) {
		t.Errorf("%d bytes of backlog and %d of counts", backlog, counts)
	}
	if err := w.Ready(); err != nil {
		t.Error(err)
	}
	w.countMu.Lock()
	clear(w.counts) // or the stop would write them
	w.countMu.Unlock()
	stop()

	w, _ = open(t, dir, change)
	again, same := bytes()
	if same != counts || again > backlog+64<<10 {
		t.Errorf("after a restart %d bytes of backlog and %d of counts, before %d and %d", again, same, backlog, counts)
	}
	junk(1000)
	w.writeCounts()
	if w.counts[countKey{"org_a", "cause_1"}] == nil {
		t.Error("counts were written beyond their space")
	}
	// Once they are shipped, there is space again, and the counts are written.
	if n := len(countsOf(t, drain(t, w))); n == 0 {
		t.Error("no entry was shipped")
	}
	w.writeCounts()
	if n := len(w.counts); n != 0 {
		t.Errorf("%d causes are still in memory", n)
	}
}

// Requests with a key that may not be used cost one entry, and one for the count, a minute
// and key. Those of one org leave room for those of others.
func TestRepeatedRejections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, stop := open(t, t.TempDir(), nil)
		synctest.Wait()
		r := Rejection{Org: "org_a", AgentID: "ag_1", KeyID: "key_1", Cause: "key_revoked"}
		request := func(r Rejection, n int) (recorded int) {
			for i := range n {
				if w.Repeated(r, peerOf(i)) {
					continue
				}
				recorded++
				if _, err := w.Append(t.Context(), r.Org, decided("r", "deny")); err != nil {
					t.Fatal(err)
				}
				w.Rejected(r)
			}
			return recorded
		}
		if n := request(r, 1000); n != 1 {
			t.Errorf("%d of 1,000 requests are recorded", n)
		}
		other := r
		other.Cause = "agent_suspended"
		if n := request(other, 1); n != 1 {
			t.Error("another cause is counted as equal")
		}
		time.Sleep(countInterval + time.Second)
		synctest.Wait()
		if n := request(r, 10); n != 1 {
			t.Errorf("in the next minute %d of 10 requests are recorded", n)
		}
		// An org with many keys does not take the room of others.
		for i := range 2 * maxRepeatsOfOrg {
			many := r
			many.Org, many.KeyID = "org_b", fmt.Sprintf("key_%d", i)
			w.Rejected(many)
		}
		last := r
		last.Org, last.KeyID = "org_c", "key_9"
		w.Rejected(last)
		if !w.Repeated(last, peerOf(1)) {
			t.Error("another org's keys take all the room")
		}
		beyond := r
		beyond.Org, beyond.KeyID = "org_b", fmt.Sprintf("key_%d", 2*maxRepeatsOfOrg-1)
		if w.Repeated(beyond, peerOf(1)) {
			t.Error("more keys of an org are counted than may be")
		}
		time.Sleep(countInterval + time.Second)
		synctest.Wait()
		recs := drain(t, w)
		stop()
		var got []RepeatedRejections
		for _, rec := range recs {
			e, err := Parse(rec.Entry)
			if err != nil {
				t.Fatal(err)
			}
			if c, ok := e.(RepeatedRejections); ok && c.Org == "org_a" {
				got = append(got, c)
			}
		}
		if len(got) != 2 || got[0].Count != 999 || got[1].Count != 9 || got[0].KeyID != "key_1" || got[0].AgentID != "ag_1" || len(got[0].Samples) != maxSamples {
			t.Errorf("%+v", got)
		}
	})
}
