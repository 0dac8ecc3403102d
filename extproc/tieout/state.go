package tieout

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/ai-identity/ai-identity/audit"
)

// state is what a TieOut continues from. It is saved every few seconds, beside the access log.
// Lines and records after it are read again after a crash.
type state struct {
	Version   int
	Since     time.Time // requests that began before are not compared
	Log       position
	After     uint64 // the last record that was read
	LastEntry time.Time

	Process   string    // of Envoy, that writes now
	Former    []string  // the ones before
	LastRead  time.Time // when its last line was read
	LastStart time.Time // of the request of that line
	Ended     []ended

	Lines, Forwarded int64 // of all

	Hours   []*hour
	Pending map[string]*pending
	Order   []settled   // the completions of Pending, oldest first
	Held    []*heldLine // they need an entry
	// Possible lines may still get an entry, and are no difference without one.
	Possible []*heldLine
	Unseen   []*unseen // oldest first
	Writes   int64     // of hours
	Early    early
	Change   string // why lines were lost, until Pending shows it

	Refused   []*refused
	RefusedAt time.Time
}

type settled struct {
	ID string
	At time.Time
}

const stateVersion = 1

func (t *TieOut) statePath() string { return t.c.Path + ".state" }

// load reads the state. Without one, comparing begins now.
func (t *TieOut) load() error {
	now := t.c.Now()
	b, err := os.ReadFile(t.statePath())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return t.begin(now)
	case err != nil:
		return fmt.Errorf("the state of the tie-out: %w", err)
	}
	if err := json.Unmarshal(b, &t.s); err != nil || t.s.Version != stateVersion || t.s.After > t.c.Segments.Durable() {
		// Damaged, of another version, or of other segments.
		t.c.Log.Warn("the state of the tie-out is not usable, so comparing begins again", "file", t.statePath())
		return t.begin(now)
	}
	if t.s.Pending == nil {
		t.s.Pending = map[string]*pending{}
	}
	for _, h := range t.s.Hours {
		t.hours[hourKey{h.Start.UnixNano(), h.Process}] = h
	}
	for _, h := range slices.Concat(t.s.Held, t.s.Possible) {
		t.held[h.ID] = h
	}
	for _, u := range t.s.Unseen {
		t.unseen[u.ID] = u
	}
	t.follow = t.c.Segments.Follow(t.s.After)
	return nil
}

// begin begins with the next request. Older lines are not compared.
func (t *TieOut) begin(now time.Time) error {
	t.s = state{Version: stateVersion, Since: now, After: t.c.Segments.Durable(), Pending: map[string]*pending{}, LastEntry: now, LastRead: now, RefusedAt: now}
	var err error
	if t.s.Log, err = t.log.atEnd(); err != nil {
		return fmt.Errorf("access log: %w", err)
	}
	t.follow = t.c.Segments.Follow(t.s.After)
	return t.save(now)
}

// save replaces the file of the state.
func (t *TieOut) save(now time.Time) error {
	t.saved = now
	for _, held := range []*[]*heldLine{&t.s.Held, &t.s.Possible} {
		*held = slices.DeleteFunc(slices.Clone(*held), func(h *heldLine) bool { return h.done })
	}
	t.s.Unseen = slices.DeleteFunc(slices.Clone(t.s.Unseen), func(u *unseen) bool { return u.done })
	b, err := json.Marshal(t.s)
	if err != nil {
		return fmt.Errorf("saving the state of the tie-out: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(t.c.Path), ".tieout-*")
	if err != nil {
		return fmt.Errorf("saving the state of the tie-out: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(f.Name(), t.statePath())
	}
	if err != nil {
		return fmt.Errorf("saving the state of the tie-out: %w", err)
	}
	return nil
}

var _ Segments = (*audit.Writer)(nil)
