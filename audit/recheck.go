package audit

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"time"
)

// recheckEvery is the interval at which a Writer that ships checks that the chain still has
// the acknowledged records.
const recheckEvery = time.Hour

// recheck makes sure, when shipping begins and then every hour, that the chain has
// the last acknowledged record of each org. A chain that was restored to an older
// state lacks it. Without recheck, the loss would show only at the org's next record.
func (sh *shipping) recheck(ctx context.Context) {
	for ctx.Err() == nil {
		sh.mu.Lock()
		kept := slices.Collect(maps.Values(sh.kept))
		sh.mu.Unlock()
		pause := minSendPause
		for len(kept) > 0 && ctx.Err() == nil {
			var again []keptRecord
			for _, k := range kept {
				if ctx.Err() == nil && !sh.recheckOrg(ctx, k) {
					again = append(again, k)
				}
			}
			if kept = again; len(kept) > 0 {
				rest(ctx, sh.w.jitter(pause))
				pause = min(2*pause, maxSendPause)
			}
		}
		rest(ctx, recheckEvery)
	}
}

// keptRecord is a record that the chain acknowledged.
type keptRecord struct {
	writer string
	rec    Record
}

// recheckOrg sends k's record again. It reports whether the result is definite.
func (sh *shipping) recheckOrg(ctx context.Context, k keptRecord) bool {
	w := sh.w
	w.mu.Lock()
	busy := w.lanes[k.rec.Org] != nil
	w.mu.Unlock()
	if busy {
		return false // the lane checks it
	}
	err := sh.send(ctx, sendDeadline, Batch{Org: k.rec.Org, Writer: k.writer, Shipper: w.ID(), Records: []Record{k.rec}})
	var behind *Behind
	switch {
	case err == nil || definite(err):
		return true
	case errors.As(err, &behind):
		w.c.Log.WarnContext(ctx, "the control plane has fewer audit records than it acknowledged; the segments are sent again",
			"org", k.rec.Org, "writer", k.writer, "acknowledged", k.rec.Seq, "have", behind.Have)
		return sh.again(ctx, k.rec.Org)
	}
	return false
}

// before returns the last acknowledged record of the org if recs begin another writer. The chain
// accepts a writer's first record without regard to earlier writers. So a restored chain would
// not be noticed.
func (sh *shipping) before(writer, org string, recs []Record) *keptRecord {
	if recs[0].Prev != 0 {
		return nil
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if k, ok := sh.kept[org]; ok && k.writer != writer && k.rec.Seq < recs[0].Seq {
		return &k
	}
	return nil
}

// has returns nil if the chain has an acknowledged record, and a *Behind if not.
func (sh *shipping) has(ctx context.Context, limit time.Duration, k *keptRecord) error {
	if k == nil {
		return nil
	}
	err := sh.send(ctx, limit, Batch{Org: k.rec.Org, Writer: k.writer, Shipper: sh.w.ID(), Records: []Record{k.rec}})
	if definite(err) {
		return nil
	}
	return err
}

// keep stores the last acknowledged record.
func (sh *shipping) keep(writer string, recs []Record) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	last := recs[len(recs)-1]
	if last.Seq < sh.kept[last.Org].rec.Seq {
		return // it was sent again
	}
	sh.kept[last.Org] = keptRecord{writer, last}
}

// again starts a lane that sends all records of an org in the segments.
func (sh *shipping) again(ctx context.Context, org string) bool {
	w := sh.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lanes[org] != nil {
		return false
	}
	l := &lane{org: org, until: w.passed, had: w.passed}
	w.seekLocked(&l.c, 0)
	l.pos = l.c.after
	sh.startLocked(ctx, l)
	return true
}

// lastKept returns each org's last acknowledged record in the segments.
func (w *Writer) lastKept() (kept []keptRecord, err error) {
	w.mu.Lock()
	acked := w.passed // for an org that has less, the lane checks it
	segs := slices.Clone(w.segs)
	ends := make([]int64, len(segs))
	for i, s := range segs {
		ends[i] = s.end
	}
	w.mu.Unlock()
	found := make(map[string]bool)
	seen := make(map[string]bool)            // writers
	need := make(map[string]map[string]bool) // by writer: orgs with records in its older segments
	for i := len(segs) - 1; i >= 0; i-- {
		s := segs[i]
		if s.first > acked || seen[s.writer] && len(need[s.writer]) == 0 {
			continue
		}
		last, err := w.lastByOrg(s, ends[i], acked)
		if errors.Is(err, os.ErrNotExist) {
			continue // removed meanwhile, or written again without acknowledged records
		}
		if err != nil {
			return kept, err
		}
		for org, r := range last {
			delete(need[s.writer], org)
			if !found[org] {
				found[org] = true
				kept = append(kept, keptRecord{s.writer, r})
			}
		}
		if !seen[s.writer] {
			seen[s.writer], need[s.writer] = true, make(map[string]bool)
			for org := range s.prevs {
				if !found[org] {
					need[s.writer][org] = true
				}
			}
		}
	}
	return kept, nil
}

// lastByOrg returns each org's last record in a segment, up to a number.
func (w *Writer) lastByOrg(s *segment, end int64, upTo uint64) (map[string]Record, error) {
	w.mu.Lock()
	f, err := w.openLocked(s)
	w.mu.Unlock()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	last, prevs := make(map[string]Record), make(map[string]uint64)
	for org, n := range s.prevs {
		prevs[org] = n
	}
	r := newFrames(s.path, f, s.start, end)
	for {
		f, err := r.next()
		if err == io.EOF || err == nil && f.seq > upTo {
			return last, nil
		}
		if err != nil {
			return nil, err
		}
		last[f.name] = Record{Seq: f.seq, Prev: prevs[f.name], Org: f.name, Entry: append(last[f.name].Entry[:0], f.body...)}
		prevs[f.name] = f.seq
	}
}
