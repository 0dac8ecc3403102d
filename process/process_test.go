package process_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/process"
)

// TestMain lets this binary be the parent that is killed: see TestParentKilled.
func TestMain(m *testing.M) {
	if os.Getenv("PROCESS_TEST_PARENT") == "" {
		os.Exit(m.Run())
	}
	c := process.New(process.Config{
		Name: "sleeper", Path: "/bin/sh", Args: []string{"-c", "echo $$; exec sleep 300"},
		Line: func(line string) { fmt.Println(line) },
		Log:  slog.New(slog.DiscardHandler),
	})
	c.Run(context.Background())
}

type lines struct {
	mu sync.Mutex
	s  []string
	c  chan string
}

func collect() *lines { return &lines{c: make(chan string, 100)} }

func (l *lines) add(s string) {
	l.mu.Lock()
	l.s = append(l.s, s)
	l.mu.Unlock()
	l.c <- s
}

func (l *lines) next(t *testing.T) string {
	t.Helper()
	select {
	case s := <-l.c:
		return s
	case <-time.After(10 * time.Second):
		t.Fatal("no line from the child in 10 s")
		return ""
	}
}

func run(t *testing.T, c *process.Child) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() { cancel(); err = <-done })
		return err
	}
	t.Cleanup(func() { stop() })
	return stop
}

func TestRestartsAndStops(t *testing.T) {
	got := collect()
	c := process.New(process.Config{
		Name: "brief", Path: "/bin/sh", Args: []string{"-c", "echo hello $WHO; exit 3"}, Env: []string{"WHO=you"},
		Line: got.add, MinBackoff: time.Millisecond, Log: slog.New(slog.DiscardHandler),
	})
	stop := run(t, c)
	for range 3 {
		if s := got.next(t); s != "hello you" {
			t.Fatalf("line %q", s)
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if c.Restarts() < 2 {
		t.Errorf("%d restarts, want at least 2", c.Restarts())
	}
	if c.PID() != 0 {
		t.Errorf("pid %d after the end", c.PID())
	}
}

func TestStopIsPoliteThenNot(t *testing.T) {
	for name, tc := range map[string]struct{ script, want string }{
		"ends on SIGTERM":  {`trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done`, "bye"},
		"ignores SIGTERM":  {`trap '' TERM; echo up; while :; do sleep 0.01; done`, ""},
		"ended by itself ": {`echo up; sleep 0.01`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := collect()
			c := process.New(process.Config{
				Name: "x", Path: "/bin/sh", Args: []string{"-c", tc.script}, Env: []string{"PATH=/bin:/usr/bin"},
				Line: got.add, StopTimeout: 500 * time.Millisecond, MinBackoff: time.Hour, Log: slog.New(slog.DiscardHandler),
			})
			stop := run(t, c)
			got.next(t)
			pid := c.PID()
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			if pid != 0 && syscall.Kill(pid, 0) == nil {
				t.Errorf("%d still runs", pid)
			}
			tail := c.Tail()
			if last := tail[len(tail)-1]; tc.want != "" && last != tc.want {
				t.Errorf("last line %q, want %q", last, tc.want)
			}
		})
	}
}

func TestProgramMissing(t *testing.T) {
	c := process.New(process.Config{Name: "ghost", Path: "/nonexistent/ghost", Log: slog.New(slog.DiscardHandler)})
	if err := c.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "ghost") {
		t.Fatalf("got %v", err)
	}
}

// A child must not outlive a parent that was killed without warning.
func TestParentKilled(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(exe)
	parent.Env = append(os.Environ(), "PROCESS_TEST_PARENT=1")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	// The process is not our child, so poll until it is gone.
	parent.Process.Kill()
	parent.Wait()
	deadline := time.Now().Add(5 * time.Second)
	for alive(pid) {
		if time.Now().After(deadline) {
			syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("child %d outlived its parent", pid)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// alive reports whether pid runs. A zombie does not run.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}
