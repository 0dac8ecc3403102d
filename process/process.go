// Package process runs another program as our child and restarts it: Envoy, and the
// subcommands of our own binary that `aid up` runs side by side.
//
// This holds for every child:
//
//   - Its lines go to our log.
//   - When it ends and Stop was not called, it is started again, after a pause that
//     grows.
//   - It has its own process group. A terminal's Ctrl-C reaches only us, and we decide
//     the order of shutdown.
//   - The kernel kills it when our process ends, for any reason.
//
// The package is below the leaves because envoy and cmd both need it.
package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Config describes one child.
type Config struct {
	Name string   // in our log and in errors
	Path string   // the program
	Args []string // without the program's own name
	Env  []string // the whole environment: nothing is inherited
	Dir  string   // working directory; empty: ours
	// Each returns further variables for one start. Nil: there are none.
	Each func() []string

	// Line takes each line that the child prints, without its end. Nil: logged
	// at Info under the child's name.
	Line func(line string)

	// Stop asks the child to end, and may take until ctx is done. A child that still runs
	// then is killed. Nil: SIGTERM.
	Stop func(ctx context.Context, p *os.Process) error
	// StopTimeout bounds Stop and the end that follows. 0: 10 s.
	StopTimeout time.Duration

	// MinBackoff is the pause before the first restart. It doubles for each further
	// restart, up to MaxBackoff. It is MinBackoff again once a child ran for StableAfter.
	// 0: 100 ms, 10 s and 30 s.
	MinBackoff, MaxBackoff, StableAfter time.Duration

	Log *slog.Logger
}

// Child is one supervised program.
type Child struct {
	c        Config
	pid      atomic.Int64
	restarts atomic.Int64

	mu   sync.Mutex
	tail []string // the last lines, for the error of a failed wait
}

const tailLines = 8

// New returns a child that is not yet started.
func New(c Config) *Child {
	if c.StopTimeout == 0 {
		c.StopTimeout = 10 * time.Second
	}
	if c.MinBackoff == 0 {
		c.MinBackoff = 100 * time.Millisecond
	}
	if c.MaxBackoff == 0 {
		c.MaxBackoff = 10 * time.Second
	}
	if c.StableAfter == 0 {
		c.StableAfter = 30 * time.Second
	}
	if c.Line == nil {
		log := c.Log.With("process", c.Name)
		c.Line = func(line string) { log.Info(line) }
	}
	return &Child{c: c}
}

// Name returns the child's name in logs and errors.
func (c *Child) Name() string { return c.c.Name }

// PID returns the process id of the running child, and 0 while none runs.
func (c *Child) PID() int { return int(c.pid.Load()) }

// Restarts counts how often the child ended without Stop.
func (c *Child) Restarts() int64 { return c.restarts.Load() }

// Tail returns the last lines that the child printed, oldest first.
func (c *Child) Tail() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.tail...)
}

// Run keeps the child running until ctx is done, then stops it and returns nil. It returns
// an error only when the program cannot be started at all.
func (c *Child) Run(ctx context.Context) error {
	pause := c.c.MinBackoff
	for {
		began := time.Now()
		ended, err := c.start()
		if err != nil {
			return fmt.Errorf("starting %s (%s): %w", c.c.Name, c.c.Path, err)
		}
		select {
		case err = <-ended.done:
		case <-ctx.Done():
			c.stop(ended)
			return nil
		}
		c.restarts.Add(1)
		if time.Since(began) >= c.c.StableAfter {
			pause = c.c.MinBackoff
		}
		c.c.Log.Error("child ended, starting it again", "process", c.c.Name, "err", exitText(err), "pause", pause)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		pause = min(2*pause, c.c.MaxBackoff)
	}
}

type running struct {
	process *os.Process
	done    chan error // one value, when the child has ended and its lines are read
}

// start returns once the program runs. The goroutine keeps its thread locked until the
// child ends, because the parent-death signal is tied to the thread that forked, not to our
// process.
func (c *Child) start() (*running, error) {
	r := &running{done: make(chan error, 1)}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		cmd := exec.Command(c.c.Path, c.c.Args...)
		cmd.Dir = c.c.Dir
		cmd.Env = slices.Clone(c.c.Env)
		if c.c.Each != nil {
			cmd.Env = append(cmd.Env, c.c.Each()...)
		}
		if cmd.Env == nil {
			cmd.Env = []string{} // nil would mean: ours
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		out, in, err := os.Pipe()
		if err != nil {
			started <- err
			return
		}
		cmd.Stdout, cmd.Stderr = in, in
		err = cmd.Start()
		in.Close()
		if err != nil {
			out.Close()
			started <- err
			return
		}
		r.process = cmd.Process
		c.pid.Store(int64(cmd.Process.Pid))
		read := make(chan struct{})
		go func() { defer close(read); c.read(out) }()
		started <- nil
		err = cmd.Wait()
		c.pid.Store(0)
		// A grandchild may hold the pipe open. The child's own lines have arrived by then,
		// or nearly all of them.
		select {
		case <-read:
		case <-time.After(time.Second):
		}
		out.Close()
		r.done <- err
	}()
	return r, <-started
}

// read passes on each line, and cuts lines that are too long for a log.
func (c *Child) read(out io.Reader) {
	b := bufio.NewReaderSize(out, 64<<10)
	for {
		line, more, err := b.ReadLine()
		if err != nil {
			return
		}
		text := string(line)
		c.mu.Lock()
		c.tail = append(c.tail, text)
		c.tail = c.tail[max(0, len(c.tail)-tailLines):]
		c.mu.Unlock()
		c.c.Line(text)
		for more && err == nil {
			_, more, err = b.ReadLine()
		}
	}
}

// stop ends the child: it asks first, then kills. It returns when the child is gone.
func (c *Child) stop(r *running) {
	ctx, cancel := context.WithTimeout(context.Background(), c.c.StopTimeout)
	defer cancel()
	polite := c.c.Stop
	if polite == nil {
		polite = func(_ context.Context, p *os.Process) error { return p.Signal(syscall.SIGTERM) }
	}
	asked := make(chan error, 1)
	go func() { asked <- polite(ctx, r.process) }()
	for {
		select {
		case <-r.done:
			return
		case err := <-asked:
			asked = nil
			if err != nil && !errors.Is(err, os.ErrProcessDone) {
				c.c.Log.Warn("asking child to end", "process", c.c.Name, "err", err)
				r.process.Kill()
			}
		case <-ctx.Done():
			c.c.Log.Warn("child did not end in time, killing it", "process", c.c.Name, "timeout", c.c.StopTimeout)
			r.process.Kill()
			<-r.done
			return
		}
	}
}

func exitText(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}
