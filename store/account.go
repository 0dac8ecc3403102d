package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is who the server runs as. The zero account is ours.
type account struct {
	uid, gid uint32
	other    bool // not ours: we are root
}

func (a account) String() string {
	uid := strconv.Itoa(os.Geteuid())
	if a.other {
		uid = strconv.FormatUint(uint64(a.uid), 10)
	}
	if u, err := user.LookupId(uid); err == nil {
		return u.Username
	}
	return "account " + uid
}

// credential is nil for our own account.
func (a account) credential() *syscall.Credential {
	if !a.other {
		return nil
	}
	return &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: []uint32{}}
}

// own gives the account a folder that we made.
func (a account) own(dir string) error {
	if !a.other {
		return nil
	}
	return os.Chown(dir, int(a.uid), int(a.gid))
}

// handed is how the account gets into a folder of its own, whatever stands above
// it: ours by its path; another account's as a folder that we opened, and that its
// process has as file 3.
func (a account) handed(dir string) (path string, files []*os.File, err error) {
	if !a.other {
		return dir, nil, nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return "/proc/self/fd/3", []*os.File{f}, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// accountFor says who may be the server of the data, which need not be there yet.
func accountFor(data string) (account, error) {
	us := os.Geteuid()
	info, err := os.Lstat(data)
	if err == nil {
		st, ok := info.Sys().(*syscall.Stat_t)
		switch {
		case !ok || !info.IsDir():
			return account{}, fmt.Errorf("%s is not a folder", data)
		case int(st.Uid) == us && us != 0:
			return account{}, nil
		case us != 0:
			return account{}, fmt.Errorf("%s belongs to another account (%d): run as that one or as root", data, st.Uid)
		case st.Uid != 0:
			return account{uid: st.Uid, gid: st.Gid, other: true}, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return account{}, err
	}
	if us != 0 {
		return account{}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil && uid != 0 {
			return account{uid: uint32(uid), gid: uint32(gid), other: true}, nil
		}
	}
	return account{}, errors.New("Postgres does not run as root, and there is no account \"postgres\" or \"nobody\": make one, run as an ordinary user, or use a server with --postgres")
}

// usable says whether the programs are in dir, and returns it absolute.
func usable(dir string) (string, error) {
	if dir == "" {
		return "", errors.New("no folder with Postgres is named")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", fmt.Errorf("no Postgres: %w", err)
	}
	for _, name := range []string{"initdb", "postgres"} {
		if info, err := os.Stat(filepath.Join(dir, "bin", name)); err != nil || info.Mode()&0o111 == 0 {
			return "", fmt.Errorf("%s has no program bin/%s: `make setup` or `aid fetch-postgres %s` puts it there", dir, name, dir)
		}
	}
	return dir, nil
}

// FindPostgres returns the folder with Postgres to use: the one that was asked for,
// or the one that `make` fetched for a program in programDir or the working directory,
// or the newest that Debian's packages installed.
func FindPostgres(asked, programDir string) (string, error) {
	if asked != "" {
		return usable(asked)
	}
	for _, dir := range []string{".", programDir, filepath.Join(programDir, "..")} {
		if found, err := usable(filepath.Join(dir, ".tools", "postgres")); err == nil {
			return found, nil
		}
	}
	newest, best := 0, ""
	installed, _ := filepath.Glob("/usr/lib/postgresql/*") // its only error is of the pattern
	for _, dir := range installed {
		major, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || major < max(minServer, newest) {
			continue
		}
		if found, err := usable(dir); err == nil {
			newest, best = major, found
		}
	}
	if best == "" {
		return "", errors.New("no Postgres found: not in .tools (run `make setup`), not installed; or use a server with --postgres")
	}
	return best, nil
}

// binariesFor returns the folder of the programs, by a path that the account can
// walk. Where it cannot, since they are below a folder that only we may enter (as
// /root), they are copied to where it can, once. Handing over the open folder does
// not help there: Postgres looks for its own path.
func (e *Embedded) binariesFor(who account) (string, error) {
	from := e.c.Binaries
	if !who.other || who.walks(from) {
		return filepath.Join(from, "bin"), nil
	}
	info, err := os.Stat(filepath.Join(from, "bin", "postgres"))
	if err != nil {
		return "", err
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%s %d %d", from, info.Size(), info.ModTime().UnixNano()))
	to := filepath.Join(os.TempDir(), "aid-postgres-"+hex.EncodeToString(key[:8]))
	if mine(to) {
		return filepath.Join(to, "bin"), nil
	}
	e.c.Log.Info("copying Postgres to where its account can reach it", "from", from, "to", to, "account", who.String())
	fresh, err := os.MkdirTemp(os.TempDir(), "aid-postgres-new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(fresh)
	if err := errors.Join(os.CopyFS(fresh, os.DirFS(from)), runnable(fresh)); err != nil {
		return "", fmt.Errorf("copying Postgres: %w", err)
	}
	// Two may get here at once; then one of them finds the other's.
	if err := os.Rename(fresh, to); err != nil && !mine(to) {
		return "", fmt.Errorf("copying Postgres to %s: %w", to, err)
	}
	if !mine(to) || !who.walks(to) {
		return "", fmt.Errorf("%s may run no program in %s: put Postgres where it may, or run as an ordinary user", who, to)
	}
	return filepath.Join(to, "bin"), nil
}

// mine says whether dir is a folder that only we can have made: anybody may make
// one in /tmp.
func mine(dir string) bool {
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() || info.Mode()&0o022 != 0 {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// walks says whether the account may enter dir and every folder above.
func (a account) walks(dir string) bool {
	for {
		info, err := os.Stat(dir)
		if err != nil {
			return false
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return false
		}
		bit := fs.FileMode(0o001)
		switch {
		case st.Uid == a.uid:
			bit = 0o100
		case st.Gid == a.gid:
			bit = 0o010
		}
		if info.Mode()&bit == 0 {
			return false
		}
		up := filepath.Dir(dir)
		if up == dir {
			return true
		}
		dir = up
	}
}

// runnable lets everybody read a copy, and run what its owner may, whatever our
// umask was.
func runnable(dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if e.IsDir() || info.Mode()&0o100 != 0 {
			return os.Chmod(path, 0o755)
		}
		return os.Chmod(path, 0o644)
	})
}
