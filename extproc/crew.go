package extproc

import "time"

// crew runs exchanges on goroutines that are used again. The evaluation of policy
// needs a deep stack, and growing a new one for each exchange took a sixth of all
// CPU time (docs/performance.md).
type crew struct {
	work chan func()
	idle chan struct{} // holds a token for each that waits for work
}

const (
	// maxIdle bounds the goroutines that wait for the next exchange, each with a
	// stack of some 32 KiB; idleTime is for how long they do.
	maxIdle  = 64
	idleTime = 10 * time.Second
)

func newCrew() *crew { return &crew{work: make(chan func()), idle: make(chan struct{}, maxIdle)} }

// do runs f, at once and elsewhere.
func (c *crew) do(f func()) {
	select {
	case c.work <- f:
	default:
		go c.member(f)
	}
}

func (c *crew) member(f func()) {
	f()
	bored := time.NewTimer(idleTime)
	defer bored.Stop()
	for {
		select {
		case c.idle <- struct{}{}:
		default:
			return
		}
		bored.Reset(idleTime)
		select {
		case f = <-c.work:
			<-c.idle
			f()
		case <-bored.C:
			<-c.idle
			return
		}
	}
}
