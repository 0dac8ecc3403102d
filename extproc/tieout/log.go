package tieout

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"syscall"

	"github.com/ai-identity/ai-identity/envoy"
)

const (
	chunk = 1 << 20
	// freeBytes is the size of what was read and is freed at once.
	freeBytes = 1 << 20
	// maxBehind is how much of the log may be unread. More is skipped, so that the disk is
	// bounded and the sidecar catches up.
	maxBehind = 256 << 20
)

// position is a place in a file.
type position struct {
	Inode  uint64
	Offset int64
	Freed  int64 // what is before was given back to the disk
	Within bool  // Offset may be within a line, and what is left of the line is skipped
}

// logFile reads Envoy's access log, to which Envoy appends. A hole gives what was read back to
// the disk. So the file needs no rotation, and no line is lost.
type logFile struct {
	path    string
	file    *os.File
	noHoles bool
}

// create makes the file if it does not exist. Envoy would make one that others can read.
func (l *logFile) create() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", l.path)
	}
	return err
}

func (l *logFile) close() {
	if l.file != nil {
		_ = l.file.Close() // nothing is written to it
		l.file = nil
	}
}

func inode(info fs.FileInfo) uint64 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Ino
	}
	return 0
}

// read returns the next lines, which end with a newline. more is true if there may be more now.
// change says that lines were lost.
func (l *logFile) read(at *position) (lines []byte, change string, more bool, err error) {
	if l.file == nil {
		f, err := os.OpenFile(l.path, os.O_RDWR|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
		if errors.Is(err, os.ErrNotExist) {
			return nil, "", false, nil // it was moved, and Envoy has not opened it again
		}
		if err != nil {
			return nil, "", false, err
		}
		l.file = f
	}
	info, err := l.file.Stat()
	if err != nil {
		return nil, "", false, err
	}
	if n := inode(info); at.Inode != n {
		if at.Inode != 0 {
			change = "log_truncated" // another file, while the sidecar did not run
		}
		*at = position{Inode: n}
	}
	size := info.Size()
	if size < at.Offset {
		change, at.Offset, at.Freed, at.Within = "log_truncated", 0, 0, false
	}
	if size-at.Offset > maxBehind {
		change, at.Offset, at.Within = "log_skipped", size-maxBehind/2-1, true
	}
	b := make([]byte, min(chunk, size-at.Offset))
	n, err := l.file.ReadAt(b, at.Offset)
	if err != nil && err != io.EOF {
		return nil, change, false, fmt.Errorf("reading the access log: %w", err)
	}
	b = b[:n]
	if at.Within && n > 0 {
		rest := bytes.IndexByte(b, '\n') + 1
		if rest == 0 {
			at.Offset += int64(n)
			return nil, change, true, nil
		}
		at.Offset, at.Within = at.Offset+int64(rest), false
		b = b[rest:]
	}
	end := bytes.LastIndexByte(b, '\n') + 1
	if end == 0 && len(b) > 2*envoy.MaxLogLine {
		end, at.Within = len(b), true // no line is that long: it is skipped
	}
	if end == 0 && !l.current(at.Inode) {
		// It was rotated, and all of it is read.
		l.close()
		*at = position{}
		return nil, change, true, nil
	}
	return b[:end], change, end > 0 && at.Offset+int64(end) < size, nil
}

// atEnd returns the place after what is in the log. Nothing before it is read.
func (l *logFile) atEnd() (position, error) {
	f, err := os.OpenFile(l.path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		return position{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return position{}, err
	}
	last := []byte{'\n'}
	if info.Size() > 0 {
		if _, err := f.ReadAt(last, info.Size()-1); err != nil {
			return position{}, err
		}
	}
	// What was given back to the disk ended with a line, and reads as zeros.
	return position{Inode: inode(info), Offset: info.Size(), Within: last[0] != '\n' && last[0] != 0}, nil
}

// current reports whether the path leads to the file.
func (l *logFile) current(ino uint64) bool {
	info, err := os.Lstat(l.path)
	if errors.Is(err, os.ErrNotExist) {
		return true // Envoy may still write to it
	}
	return err != nil || inode(info) == ino
}

// free gives what was read back to the disk.
func (l *logFile) free(at *position, log *slog.Logger) {
	const keep, punch = 1, 2 // FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
	if l.file == nil || l.noHoles || at.Offset-at.Freed < freeBytes {
		return
	}
	if err := syscall.Fallocate(int(l.file.Fd()), keep|punch, 0, at.Offset); err != nil {
		l.noHoles = true
		log.Warn("this file system cannot free the beginning of Envoy's access log: rotate it, or use another", "file", l.path, "err", err)
		return
	}
	at.Freed = at.Offset
}

// bytes returns the size of the log on the disk, or -1.
func (l *logFile) bytes() float64 {
	info, err := os.Lstat(l.path)
	if err != nil {
		return -1
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return float64(s.Blocks * 512)
	}
	return float64(info.Size())
}

// cutLine returns the first line, "" for one that is too long, and the rest.
func cutLine(b []byte) (line, rest []byte) {
	line, rest, _ = bytes.Cut(b, []byte{'\n'})
	if len(line) > envoy.MaxLogLine {
		line = line[:1] // not a line that can be parsed
	}
	return line, rest
}
