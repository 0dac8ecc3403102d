package extproc

import "time"

// workers is a pool of goroutines that run exchanges. The evaluation of policy needs a deep
// stack. Growing a new stack for each exchange took a sixth of all CPU time
// (docs/performance.md).
type workers struct {
	work chan func()
	idle chan struct{} // holds a token for each idle goroutine
}

const (
	// maxIdle bounds the idle goroutines, each with a stack of some 32 KiB. A goroutine
	// ends after idleTime without work.
	maxIdle  = 64
	idleTime = 10 * time.Second
)

func newWorkers() *workers {
	return &workers{work: make(chan func()), idle: make(chan struct{}, maxIdle)}
}

// do runs f on another goroutine, without waiting.
func (c *workers) do(f func()) {
	select {
	case c.work <- f:
	default:
		go c.worker(f)
	}
}

func (c *workers) worker(f func()) {
	f()
	timer := time.NewTimer(idleTime)
	defer timer.Stop()
	for {
		select {
		case c.idle <- struct{}{}:
		default:
			return
		}
		timer.Reset(idleTime)
		select {
		case f = <-c.work:
			<-c.idle
			f()
		case <-timer.C:
			<-c.idle
			return
		}
	}
}
