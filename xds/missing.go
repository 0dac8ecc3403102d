package xds

import (
	"strings"
	"sync"
	"time"
)

const (
	// maxMissing limits the cached names that belong to no caller.
	maxMissing = 100_000
	// missingFor is how long such a name stays in the cache. A created caller is removed
	// from it at once; this limit is for a notification that was lost.
	missingFor = 10 * time.Second
)

// missing is a cache of callers that were not found, so that an unknown key does not cost a
// transaction each time. The zero missing is empty.
type missing struct {
	mu      sync.Mutex
	changes uint64                          // counts what may have created a caller
	whole   uint64                          // changes at the last forgetAll
	changed map[string]uint64               // changes at the last forget, by name
	names   map[string]map[string]time.Time // expiry, by name and by the searched orgs
	count   int
}

// now returns the state to pass to note, which ignores names that were created since.
func (m *missing) now() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changes
}

// has reports whether the cache has the name for these orgs.
func (m *missing) has(name string, orgs []string, at time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	until, ok := m.names[name][strings.Join(orgs, " ")]
	return ok && at.Before(until)
}

// note adds names that were not found, except names that were forgotten since now.
func (m *missing) note(since uint64, names, orgs []string, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.whole > since {
		return
	}
	if m.names == nil {
		m.names = make(map[string]map[string]time.Time)
	}
	key := strings.Join(orgs, " ")
	for _, name := range names {
		if m.changed[name] > since {
			continue
		}
		for other, by := range m.names {
			if m.count < maxMissing {
				break
			}
			m.count -= len(by)
			delete(m.names, other) // any one; it will be looked up again
		}
		if m.names[name] == nil {
			m.names[name] = make(map[string]time.Time)
		}
		if _, ok := m.names[name][key]; !ok {
			m.count++
		}
		m.names[name][key] = at.Add(missingFor)
	}
}

// forget is called when a caller with that name may have been created.
func (m *missing) forget(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changes++
	if len(m.changed) >= maxMissing { // a read in progress then notes nothing
		m.whole = m.changes
		clear(m.changed)
	}
	if m.changed == nil {
		m.changed = make(map[string]uint64)
	}
	m.changed[name] = m.changes
	m.count -= len(m.names[name])
	delete(m.names, name)
}

func (m *missing) forgetAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changes++
	m.whole = m.changes
	m.names, m.changed, m.count = nil, nil, 0
}
