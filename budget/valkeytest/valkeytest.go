// Package valkeytest runs a real Valkey for tests.
package valkeytest

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Server is a real Valkey.
type Server struct {
	t      testing.TB
	Port   int
	binary string
	folder string
	args   []string
	cmd    *exec.Cmd
}

// Start starts one with more arguments, or skips the test where none is installed.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	binary := os.Getenv("AID_VALKEY")
	if binary == "" {
		binary = tool()
	}
	if _, err := os.Stat(binary); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("the tests need a Valkey: `make .tools/valkey/.done` installs it: %v", err)
		}
		t.Skip(err) // on a developer's machine only: CI fails above
	}
	s := &Server{t: t, binary: binary, folder: t.TempDir(), args: args, Port: freePort(t)}
	s.Restart()
	t.Cleanup(s.Kill)
	return s
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// Restart starts the server again after Kill, empty.
func (s *Server) Restart() {
	s.t.Helper()
	args := append([]string{"--port", strconv.Itoa(s.Port), "--bind", "127.0.0.1", "--dir", s.folder, "--save", "", "--appendonly", "no",
		"--maxmemory-policy", "noeviction", "--repl-diskless-sync-delay", "0"}, s.args...)
	s.cmd = exec.Command(s.binary, args...)
	out, err := os.Create(filepath.Join(s.folder, "log"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer out.Close()
	s.cmd.Stdout, s.cmd.Stderr = out, out
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	Within(s.t, "Valkey starts", func() bool { return s.Try("PING") == nil })
}

// Address is its host:port.
func (s *Server) Address() string { return "127.0.0.1:" + strconv.Itoa(s.Port) }

// Kill ends it without a warning.
func (s *Server) Kill() {
	if s.cmd.ProcessState == nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	}
}

// Signal sends it a signal.
func (s *Server) Signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// Do sends an inline command that replies with one line.
func (s *Server) Do(command string) string {
	s.t.Helper()
	line, err := s.Send(command)
	if err != nil {
		s.t.Fatalf("%s: %v", command, err)
	}
	return line
}

// Try sends a command and returns its error.
func (s *Server) Try(command string) error {
	_, err := s.Send(command)
	return err
}

// Send sends an inline command and returns its reply, one line or a bulk string.
func (s *Server) Send(command string) (string, error) {
	c, err := net.DialTimeout("tcp", s.Address(), time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, command+"\r\n"); err != nil {
		return "", err
	}
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimRight(line, "\r\n")
	switch {
	case strings.HasPrefix(line, "-"):
		return "", errors.New(line)
	case strings.HasPrefix(line, "$") && line != "$-1":
		n, _ := strconv.Atoi(line[1:])
		text := make([]byte, n)
		if _, err := io.ReadFull(r, text); err != nil {
			return "", err
		}
		return string(text), nil
	}
	return line[1:], nil
}

// Within waits until is returns true, for 20 seconds.
func Within(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); {
		if time.Now().After(end) {
			t.Fatal("not within 20s: " + what)
		}
		time.Sleep(5 * time.Millisecond) // between two looks; the end is above
	}
}

// tool is where make installs it.
func tool() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", ".tools", "valkey", "valkey-server")
}
