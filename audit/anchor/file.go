// Package anchor stores signed checkpoints outside of the database. A database that was
// restored to an older state is noticed by them.
package anchor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// File keeps the newest checkpoint of each origin in a folder, as ORIGIN/checkpoint. The folder
// should be on another disk than the database. Several processes may use it.
type File struct{ dir string }

// NewFile returns the anchor in dir, which must exist.
func NewFile(dir string) (*File, error) {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = errors.New("it is not a folder")
	}
	if err != nil {
		return nil, fmt.Errorf("the folder of the anchor, %s: %w", dir, err)
	}
	return &File{dir}, nil
}

// path returns the file of an origin. An origin is a path of names.
func (f *File) path(origin string) (string, error) {
	if !fs.ValidPath(origin) || origin == "." {
		return "", fmt.Errorf("the origin %q is not a path below the anchor's folder", origin)
	}
	return filepath.Join(f.dir, filepath.FromSlash(origin), "checkpoint"), nil
}

// Newest returns the newest checkpoint of an origin, or nil.
func (f *File) Newest(_ context.Context, origin string) ([]byte, error) {
	path, err := f.path(origin)
	if err != nil {
		return nil, err
	}
	note, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(f.dir); err != nil {
			return nil, err // the disk of the folder is not mounted
		}
		return nil, nil
	}
	return note, err
}

// Publish stores a signed checkpoint, unless there is a newer one. It returns when it is durable.
func (f *File) Publish(ctx context.Context, origin string, note []byte) error {
	path, err := f.path(origin)
	if err != nil {
		return err
	}
	size, err := sizeOf(note)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	lock, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", dir, err)
	}
	have, err := f.Newest(ctx, origin)
	if err != nil {
		return err
	}
	if newest, err := sizeOf(have); err == nil && newest >= size {
		return nil
	}
	if err := writeFile(path+".new", note); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return lock.Sync()
}

func writeFile(path string, b []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = file.Write(b)
	return errors.Join(err, file.Sync(), file.Close())
}

// sizeOf returns the size in a signed checkpoint. Its signatures are not checked.
func sizeOf(note []byte) (int64, error) {
	text, _, ok := strings.Cut(string(note), "\n\n")
	if !ok {
		return 0, errors.New("it is not a signed checkpoint")
	}
	c, err := evidence.ParseCheckpoint(text + "\n")
	return c.Size, err
}
