package xds

import (
	"strings"
	"sync"
	"time"
)

const (
	// maxMissing bounds the names that are known to be of no caller.
	maxMissing = 100_000
	// missingFor is how long such a name is not looked up again. A caller that is
	// created is looked up at once; this is for a change that was not received.
	missingFor = 10 * time.Second
)

// missing remembers which callers were not found, so that keys that no caller has
// cost no transaction each. The zero missing is empty.
type missing struct {
	mu      sync.Mutex
	changes uint64                          // counts what may have created a caller
	names   map[string]map[string]time.Time // by name and by the orgs that were searched: until when
	count   int
}

// now is passed to note: what was created in between is not noted as missing.
func (m *missing) now() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changes
}

// has is true if the name was looked up in these orgs a moment ago, and not found.
func (m *missing) has(name string, orgs []string, at time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	until, ok := m.names[name][strings.Join(orgs, " ")]
	return ok && at.Before(until)
}

// note remembers names that were not found, unless something changed since now.
func (m *missing) note(since uint64, names, orgs []string, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.changes != since {
		return
	}
	if m.names == nil {
		m.names = make(map[string]map[string]time.Time)
	}
	key := strings.Join(orgs, " ")
	for _, name := range names {
		for other, by := range m.names {
			if m.count < maxMissing {
				break
			}
			m.count -= len(by)
			delete(m.names, other) // any: it will be looked up again
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

// forget is called when a caller of that name may have been created.
func (m *missing) forget(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changes++
	m.count -= len(m.names[name])
	delete(m.names, name)
}

func (m *missing) forgetAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changes++
	m.names, m.count = nil, 0
}
