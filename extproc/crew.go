package extproc

import "time"

// crew is a pool of goroutines that run exchanges. The evaluation of policy needs a deep
// stack. Growing a new stack for each exchange took a sixth of all CPU time
// (docs/performance.md).
type crew struct {
	work chan func()
	idle chan struct{} // holds a token for each idle goroutine
}

const (
	// maxIdle bounds the idle goroutines, each with a stack of some 32 KiB. A goroutine
	// ends after idleTime without work.
	maxIdle  = 64
	idleTime = 10 * time.Second
)

func newCrew() *crew { return &crew{work: make(chan func()), idle: make(chan struct{}, maxIdle)} }

// do runs f on another goroutine, without waiting.
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
