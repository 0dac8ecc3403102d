package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// disk performs a Writer's operations on its directory, one at a time. So a test can make any
// of them fail, before or after it is done.
type disk struct {
	dir   string
	fault func(o operation, do func() error) error // nil: none
}

// operation is an operation on a file or on the directory.
type operation struct {
	name string // "create", "write", "sync", "rename", "remove", "syncdir"
	path string
	file *os.File // of "write"
	data []byte   // of "write"
}

func (d disk) do(o operation, f func() error) error {
	if d.fault != nil {
		return d.fault(o, f)
	}
	return f()
}

func (d disk) path(name string) string { return filepath.Join(d.dir, name) }

func (d disk) create(path string) (f *os.File, err error) {
	err = d.do(operation{name: "create", path: path}, func() error {
		f, err = os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		return err
	})
	if err != nil {
		if f != nil {
			_ = f.Close()
		}
		return nil, err
	}
	return f, nil
}

func (d disk) write(f *os.File, data []byte) error {
	return d.do(operation{name: "write", path: f.Name(), file: f, data: data}, func() error {
		_, err := f.Write(data)
		return err
	})
}

// sync makes the written data and the file's length durable.
func (d disk) sync(f *os.File) error {
	return d.do(operation{name: "sync", path: f.Name()}, func() error {
		for {
			// Not fsync, since the time of the last change is not used.
			err := syscall.Fdatasync(int(f.Fd()))
			if err == nil {
				return nil
			}
			if !errors.Is(err, syscall.EINTR) {
				return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
			}
		}
	})
}

// reserve extends a file to size with zeros. A write then changes only data, and making it
// durable takes two thirds of the time (docs/performance.md). On a file system without
// support it does nothing.
func (d disk) reserve(f *os.File, size int64) { _ = syscall.Fallocate(int(f.Fd()), 0, 0, size) }

func (d disk) rename(from, to string) error {
	return d.do(operation{name: "rename", path: to}, func() error { return os.Rename(from, to) })
}

func (d disk) remove(path string) error {
	return d.do(operation{name: "remove", path: path}, func() error { return os.Remove(path) })
}

// syncDir makes the names of files durable. Without it, a synced file can be missing after a
// power failure.
func (d disk) syncDir() error {
	return d.do(operation{name: "syncdir", path: d.dir}, func() error { return syncDir(d.dir) })
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// makeDir creates a directory, and makes it and its name in the parent durable.
func makeDir(path string) error {
	if info, err := os.Stat(path); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("%s is not a directory", path)
		}
		return nil
	}
	above := filepath.Dir(filepath.Clean(path))
	if above == path {
		return fmt.Errorf("%s cannot be created", path)
	}
	if err := makeDir(above); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return syncDir(above)
}

// free returns how many bytes an unprivileged process may still write.
func (d disk) free() (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(d.dir, &s); err != nil {
		return 0, fmt.Errorf("reading the free space of %s: %w", d.dir, err)
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
}

// place puts a complete file at its final name, durably. A reader that finds the name finds
// the whole file. It returns the file, open for appending.
func (d disk) place(name string, fill func(f *os.File) error) (*os.File, error) {
	path := d.path(name)
	f, err := d.create(path + temporarySuffix)
	if err != nil {
		return nil, err
	}
	err = fill(f)
	if err == nil {
		err = d.sync(f)
	}
	if err == nil {
		err = d.rename(path+temporarySuffix, path)
	}
	if err == nil {
		err = d.syncDir()
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

const temporarySuffix = ".tmp"

// lock locks the directory as long as the returned file is open. The kernel releases the lock
// when the process ends.
func lock(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return held(f, dir, syscall.LOCK_EX)
}

// lockName is the file that locks the directory.
const lockName = "lock"

// held returns the lock file once it is locked.
func held(f *os.File, dir string, how int) (*os.File, error) {
	if err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is in use by another process: stop that process (`fuser %s` shows it), or use another directory for this one", dir, f.Name())
		}
		return nil, fmt.Errorf("locking %s: %w", f.Name(), err)
	}
	return f, nil
}
