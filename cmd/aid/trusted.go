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

// audience says who may read a file that a flag names.
type audience int

const (
	secretFile audience = iota // only its owner
	publicFile                 // everyone: certificates, prices
)

// maxFile is the most bytes that a file of keys, certificates or settings may have.
const maxFile = 4 << 20

// readTrusted reads a file that decides what we do: a key, a token, a certificate, a
// configuration. It rejects a file that another user has prepared or can change, and a
// secret that others can read:
//
//   - The file is a regular file of ours or of root's, and so is each link to it.
//   - No other user may write it.
//   - A secret of ours has at most mode 0600. One of root's has at most mode 0640, since
//     Kubernetes and systemd pass on secrets like that.
//
// The checks are made on the open file, so that it cannot be exchanged after them. No error
// quotes the file.
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
		return nil, fmt.Errorf("%s belongs to user id %d, who could change it: it must belong to %s (`chown`)", path, ownerID(info), us())
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

// checkFolder rejects a folder that another user has prepared or can change. With
// private, others may not even enter it: what they may is taken away.
func checkFolder(dir string, private bool) error {
	info, err := os.Lstat(dir)
	switch {
	case err != nil:
		return err
	case info.Mode()&fs.ModeSymlink != 0:
		return fmt.Errorf("%s is a link: name the folder that it leads to", dir)
	case !info.IsDir():
		return fmt.Errorf("%s is not a folder", dir)
	case ownerID(info) != os.Geteuid():
		return fmt.Errorf("%s belongs to user id %d, and we run as %d: run as that user, or choose another folder", dir, ownerID(info), os.Geteuid())
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s has mode %#o, so others can put files there: look at what is in it, then `chmod go-w %s`", dir, info.Mode().Perm(), dir)
	}
	if private && info.Mode().Perm()&0o077 != 0 {
		return os.Chmod(dir, 0o700)
	}
	return nil
}

// makeFolder makes a folder of mode, or checks the one that exists.
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

// ownerID is -1 where it is not known.
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

// readSecret reads a file that holds one secret.
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

// lines are the lines of a file of keys that are neither blank nor a comment.
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
