package budget

import (
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"time"
)

// SessionLife is how long the counts of a session last from its first request. After that,
// the same id begins a new session.
const SessionLife = 24 * time.Hour

const (
	// silence ends a session without an id of its own.
	silence = 30 * time.Minute
	// touchEvery is how often a shared store gets to know that a session goes on.
	touchEvery = time.Minute
	// maxSessions is how many sessions of an agent are told apart. Further ones share one.
	maxSessions = 1000
	// maxSessionID is the longest id that is kept as it is.
	maxSessionID = 80
)

// Session is a session of an agent: requests with the same X-Session-ID, or without one those
// with keys of one line.
type Session struct {
	Name  string // names its counts
	Began time.Time
	Named bool // by the client: earlier processes may have counted for it
	Fresh bool // no request of it has passed yet

	org, agent string
}

// Sessions distinguishes the sessions of agents in this process. The zero value is ready for use. It is safe
// for concurrent use.
type Sessions struct {
	mu     sync.Mutex
	agents map[[2]string]map[string]*lasting
	swept  time.Time

	own      map[[3]string]*ownID // by org, agent and line
	ownSwept time.Time
}

// ownID is the id of a session without an id of the client.
type ownID struct {
	id   string
	last time.Time
}

// maxOwn limits the ids in memory. Beyond it, each request is a session of its own.
const maxOwn = 200_000

// Own returns our id for the session of a request without an id of the client. The session
// ends by silence. A new session gets the result of id.
func (s *Sessions) Own(now time.Time, org, agent, line string, id func() (string, error)) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.ownSwept).Abs() >= silence || len(s.own) >= maxOwn && now.Sub(s.ownSwept).Abs() >= time.Minute {
		s.ownSwept = now
		for k, o := range s.own {
			if now.Sub(o.last) >= silence {
				delete(s.own, k)
			}
		}
	}
	k := [3]string{org, agent, line}
	if o := s.own[k]; o != nil && now.Sub(o.last) < silence {
		o.last = now
		return o.id, nil
	}
	name, err := id()
	if err != nil {
		return "", err
	}
	if s.own == nil {
		s.own = make(map[[3]string]*ownID)
	}
	if s.own[k] != nil || len(s.own) < maxOwn {
		s.own[k] = &ownID{name, now}
	}
	return name, nil
}

// lasting is when a session began, and when its last request was.
type lasting struct {
	began, last time.Time
	told        time.Time       // when Passed last reported true
	silent      bool            // it ends by silence
	starts      map[string]bool // the keys of limits that have counted its start
}

func (s *lasting) over(now time.Time) bool {
	return now.Sub(s.began) >= SessionLife || s.silent && now.Sub(s.last) >= silence
}

// Find returns the session of a request. id is what the client sent, "" without. Agents never
// share a session.
func (s *Sessions) Find(now time.Time, org, agent, line, id string) Session {
	if len(id) > maxSessionID {
		sum := sha256.Sum256([]byte(id))
		id = "sha256-" + hex.EncodeToString(sum[:])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.agents[[2]string{org, agent}]
	x := Session{Name: agent + "/id/" + id, Named: true, org: org, agent: agent}
	if id == "" {
		x.Name, x.Named = agent+"/key/"+line, false
	}
	known := of[x.Name]
	if known == nil && len(of) >= maxSessions {
		for name, one := range of {
			if one.over(now) {
				delete(of, name)
			}
		}
		if len(of) >= maxSessions {
			x.Name, x.Named = agent+"/more", true
			known = of[x.Name]
		}
	}
	if known == nil || known.over(now) {
		x.Began, x.Fresh = now, true
		return x
	}
	x.Began = known.began
	return x
}

// Started reports whether the start of the session has been counted against the limit with
// this key. A session may have begun under other policies, and counts for each limit once.
func (s *Sessions) Started(now time.Time, x Session, limit string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.agents[[2]string{x.org, x.agent}][x.Name]
	return known != nil && !known.over(now) && known.starts[limit]
}

// Passed notes that a request of the session has passed, and the limits that have counted its
// start. It reports whether a store that sidecars share must know: at the first request, and
// once in touchEvery.
func (s *Sessions) Passed(now time.Time, x Session, starts ...string) (tell bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.swept) >= time.Hour {
		s.swept = now
		for key, of := range s.agents {
			for name, one := range of {
				if one.over(now) {
					delete(of, name)
				}
			}
			if len(of) == 0 {
				delete(s.agents, key)
			}
		}
	}
	key := [2]string{x.org, x.agent}
	if s.agents[key] == nil {
		if s.agents == nil {
			s.agents = make(map[[2]string]map[string]*lasting)
		}
		s.agents[key] = make(map[string]*lasting)
	}
	of := s.agents[key]
	known := of[x.Name]
	if known == nil || known.over(now) {
		known = &lasting{began: x.Began, silent: !x.Named}
		of[x.Name] = known
	}
	known.last = now
	for _, limit := range starts {
		if known.starts == nil {
			known.starts = map[string]bool{}
		}
		known.starts[limit] = true
	}
	if tell = now.Sub(known.told).Abs() >= touchEvery; tell {
		known.told = now
	}
	return tell
}
