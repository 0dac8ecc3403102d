package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// audience sets which users may read the file of a flag.
type audience int

const (
	secretFile audience = iota // only its owner
	publicFile                 // everyone: certificates, prices
)

// maxFile is the most bytes that a file of keys, certificates or settings may have.
const maxFile = 4 << 20

// readTrusted reads a key, a token, a certificate or a configuration. It rejects a file that
// another user can change, and a secret that others can read. These rules hold:
//
//   - The file is a regular file. It and each link to it belong to this process's user or to
//     root.
//   - No other user may write it.
//   - A secret of this user has at most mode 0600. A secret of root has at most mode 0640,
//     since Kubernetes and systemd provide secrets with that mode.
//
// The open file is checked, so it cannot be exchanged after the check. No error quotes the
// content.
func readTrusted(path string, who audience) ([]byte, error) {
	if link, err := os.Lstat(path); err != nil {
		return nil, err
	} else if link.Mode()&fs.ModeSymlink != 0 && !ours(link) {
		return nil, fmt.Errorf("%s is a link of user id %d: name the file, or a link that belongs to %s", path, ownerID(link), us())
	}
	// Without O_NONBLOCK, opening a pipe would wait for its writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	forbidden, fix := fs.FileMode(0o022), "chmod go-w"
	if who == secretFile {
		forbidden, fix = 0o077, "chmod 600"
		if ownerID(info) == 0 {
			forbidden, fix = 0o037, "chmod 640"
		}
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case !ours(info):
		return nil, fmt.Errorf("%s belongs to user id %d, which could change it: it must belong to %s (`chown`)", path, ownerID(info), us())
	case info.Mode().Perm()&forbidden != 0:
		return nil, fmt.Errorf("%s has mode %#o, so others can read or change it: `%s %s`", path, info.Mode().Perm(), fix, path)
	case info.Size() > maxFile:
		return nil, fmt.Errorf("%s has %d bytes; the limit is %d", path, info.Size(), maxFile)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return b, nil
}

// checkFolder rejects a folder that belongs to another user or that others can change. With
// private, it removes all permissions of others.
func checkFolder(dir string, private bool) error {
	info, err := os.Lstat(dir)
	switch {
	case err != nil:
		return err
	case info.Mode()&fs.ModeSymlink != 0:
		return fmt.Errorf("%s is a link: use the path of the folder itself", dir)
	case !info.IsDir():
		return fmt.Errorf("%s is not a folder", dir)
	case ownerID(info) != os.Geteuid():
		return fmt.Errorf("%s belongs to user id %d, and this process runs as %d: run as that user, or choose another folder", dir, ownerID(info), os.Geteuid())
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s has mode %#o, so others can create files in it: check its content, then run `chmod go-w %s`", dir, info.Mode().Perm(), dir)
	}
	if private && info.Mode().Perm()&0o077 != 0 {
		return os.Chmod(dir, 0o700)
	}
	return nil
}

// makeFolder creates a folder with mode, or checks the existing one.
func makeFolder(dir string, mode fs.FileMode) error {
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return checkFolder(dir, mode == 0o700)
}

func ours(info fs.FileInfo) bool {
	owner := ownerID(info)
	return owner == 0 || owner == os.Geteuid()
}

// ownerID returns -1 if the owner is not known.
func ownerID(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

func us() string {
	if os.Geteuid() == 0 {
		return "root"
	}
	return fmt.Sprintf("user id %d or root", os.Geteuid())
}

// readSecret reads a file with one secret.
func readSecret(path string) (string, error) {
	b, err := readTrusted(path, secretFile)
	if err != nil {
		return "", err
	}
	s := strings.TrimSpace(string(b))
	if s == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return s, nil
}

// lines returns the lines of a file of keys, without blank lines and comments.
func lines(path string) (out []string, err error) {
	text, err := readSecret(path)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return out, nil
}
