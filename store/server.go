package store

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// server is the running postgres of an Embedded. It has the same lifecycle as in package
// process, which cannot change the account of a child, nor pass it a folder.
type server struct {
	pid      atomic.Int64
	restarts atomic.Int64
	starting atomic.Bool // the server itself writes, and not one of its connections

	mu   sync.Mutex
	tail []string
}

const (
	tailLines   = 8
	minBackoff  = 100 * time.Millisecond
	maxBackoff  = 10 * time.Second
	stableAfter = 30 * time.Second
	stopTimeout = 15 * time.Second
)

func (s *server) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.tail...)
}

// keep runs the server until ctx is done. When the server ends before that, keep starts it
// again, with growing pauses.
func (e *Embedded) keep(ctx context.Context, bin string, who account) error {
	pause := minBackoff
	for {
		began := time.Now()
		proc, done, err := e.start(bin, who)
		if err != nil {
			return fmt.Errorf("starting %s: %w", filepath.Join(bin, "postgres"), err)
		}
		select {
		case err = <-done:
		case <-ctx.Done():
			e.stop(proc, done)
			return nil
		}
		e.server.restarts.Add(1)
		if time.Since(began) >= stableAfter {
			pause = minBackoff
		}
		e.c.Log.Error("Postgres ended, starting it again", "err", err, "pause", pause)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		pause = min(2*pause, maxBackoff)
		// If it was killed, some of its children may still run.
		if err := e.settle(ctx); err != nil {
			return err
		}
	}
}

// start returns once the server runs. done receives one value when the server has ended.
//
// When our process dies, the kernel sends the server SIGQUIT, which ends its children and
// itself at once. SIGKILL would leave the children running for a while. The signal is set
// after the change of account, which would reset it. It is tied to the thread that forks,
// so that thread stays.
func (e *Embedded) start(bin string, who account) (*os.Process, <-chan error, error) {
	dir, files, err := who.handed(e.data)
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(filepath.Join(bin, "postgres"), e.arguments(dir)...)
	cmd.Dir, cmd.Env, cmd.ExtraFiles = "/", environment(), files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGQUIT, Credential: who.credential()}
	out, in, err := os.Pipe()
	if err != nil {
		closeAll(files)
		return nil, nil, err
	}
	cmd.Stdout, cmd.Stderr = in, in
	e.server.starting.Store(true)

	done, started := make(chan error, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the server
		err := cmd.Start()
		in.Close()
		closeAll(files)
		if err != nil {
			out.Close()
			started <- err
			return
		}
		e.server.pid.Store(int64(cmd.Process.Pid))
		read := make(chan struct{})
		go func() { defer close(read); e.read(out) }()
		started <- nil
		err = cmd.Wait()
		e.server.pid.Store(0)
		select {
		case <-read:
		case <-time.After(time.Second): // one of its children holds the pipe
		}
		out.Close()
		done <- err
	}()
	if err := <-started; err != nil {
		return nil, nil, err
	}
	return cmd.Process, done, nil
}

// read logs each line, cut to a length that fits a log.
func (e *Embedded) read(out io.Reader) {
	b := bufio.NewReaderSize(out, 16<<10)
	for {
		raw, more, err := b.ReadLine()
		if err != nil {
			return
		}
		text := string(raw)
		for more && err == nil {
			_, more, err = b.ReadLine()
		}
		s := &e.server
		s.mu.Lock()
		s.tail = append(s.tail, text)
		s.tail = s.tail[max(0, len(s.tail)-tailLines):]
		s.mu.Unlock()
		if strings.HasSuffix(text, "database system is ready to accept connections") {
			s.starting.Store(false)
		}
		e.line(text)
	}
}

// stop ends the server: with a checkpoint and without waiting for clients, then without a
// checkpoint, then with SIGKILL. It returns when the server has ended.
func (e *Embedded) stop(proc *os.Process, done <-chan error) {
	for _, step := range []struct {
		signal syscall.Signal
		wait   time.Duration
	}{{syscall.SIGINT, stopTimeout}, {syscall.SIGQUIT, 6 * time.Second}} {
		proc.Signal(step.signal) //nolint:errcheck // it has ended, then
		timer := time.NewTimer(step.wait)
		select {
		case <-done:
			timer.Stop()
			return
		case <-timer.C:
			e.c.Log.Warn("Postgres did not end in time", "signal", step.signal.String(), "timeout", step.wait)
		}
	}
	proc.Kill() //nolint:errcheck // it has ended, then
	<-done
}

// settle ends every postgres that still runs on our data, and then removes its pid file. We
// hold the lock, so the process that started them is dead. Postgres alone would use the
// number in postmaster.pid. It would not start while any other process has that number.
func (e *Embedded) settle(ctx context.Context) error {
	data, err := os.Stat(e.data)
	if err != nil {
		return nil // it does not exist yet
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	gentle := time.Now().Add(6 * time.Second) // a postmaster gives its children 5
	for asked := map[int]bool{}; ; {
		left := workingIn(data)
		if len(left) == 0 {
			break
		}
		for _, pid := range left {
			switch {
			case time.Now().After(gentle):
				syscall.Kill(pid, syscall.SIGKILL) //nolint:errcheck // it has ended, then
			case !asked[pid]:
				asked[pid] = true
				e.c.Log.Warn("ending a Postgres that outlived its parent", "pid", pid)
				syscall.Kill(pid, syscall.SIGQUIT) //nolint:errcheck // it has ended, then
			}
		}
		select {
		case <-ctx.Done():
			return nil // the next process does it
		case <-tick.C:
		}
	}
	if !e.stale() {
		return nil
	}
	inSockets := filepath.Join(socketDir, socketFile)
	for _, name := range []string{"postmaster.pid", socketFile, socketFile + ".lock", inSockets, inSockets + ".lock"} {
		if err := os.Remove(filepath.Join(e.data, name)); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}

// stale reports whether the process in postmaster.pid is known not to be a Postgres on our
// data. If that is not known, Postgres decides.
func (e *Embedded) stale() bool {
	b, err := os.ReadFile(filepath.Join(e.data, "postmaster.pid"))
	if err != nil {
		return os.IsNotExist(err)
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 0 {
		return true // it was interrupted during writing
	}
	_, err = os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil || os.IsNotExist(err)
}

// workingIn returns the process ids of the programs called postgres whose working directory
// is data. A server and all its children have it.
func workingIn(data os.FileInfo) (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		exe, err := os.Readlink(filepath.Join("/proc", entry.Name(), "exe"))
		if err != nil || filepath.Base(strings.TrimSuffix(exe, " (deleted)")) != "postgres" {
			continue
		}
		if at, err := os.Stat(filepath.Join("/proc", entry.Name(), "cwd")); err == nil && os.SameFile(at, data) {
			pids = append(pids, pid)
		}
	}
	return pids
}
