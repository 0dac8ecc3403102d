package store

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// account is the user that the server runs as. The zero account is our own.
type account struct {
	uid, gid uint32
	other    bool // another user's: we are root
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

// own changes the owner of a folder that we made to the account.
func (a account) own(dir string) error {
	if !a.other {
		return nil
	}
	return os.Chown(dir, int(a.uid), int(a.gid))
}

// handed returns the path by which the account reaches one of its folders, for every mode
// of the parent folders. Our own account uses the folder's path. Another account gets the
// opened folder, as file 3 of its process.
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

// accountFor returns the account that runs the server of the data in dir. The data need not
// exist yet. moved reports that existing data must be given to that account.
//
//   - Not root: our own account, and the data must belong to it.
//   - Root, and dir belongs to another user: that user. Root only starts it.
//   - Root, and dir belongs to root: a separate user id, without an account and without a
//     process. The id is stored as the owner of the data folder.
func accountFor(dir, data string) (who account, moved bool, err error) {
	us := os.Geteuid()
	above, err := owner(dir)
	if err != nil {
		return account{}, false, err
	}
	has, err := owner(data)
	missing := errors.Is(err, fs.ErrNotExist)
	switch {
	case err != nil && !missing:
		return account{}, false, err
	case us != 0 && !missing && int(has.uid) != us:
		return account{}, false, fmt.Errorf("%s belongs to user id %d: run as that user, or as root", data, has.uid)
	case us != 0:
		return account{}, false, nil
	case above.uid != 0:
		return account{uid: above.uid, gid: above.gid, other: true}, false, nil
	case !missing && has.uid != 0 && !named(has.uid):
		return account{uid: has.uid, gid: has.gid, other: true}, false, nil
	}
	who, err = unused(data)
	return who, !missing, err
}

// owner returns the owner of a folder. A symbolic link is not a folder.
func owner(dir string) (account, error) {
	info, err := os.Lstat(dir)
	if err != nil {
		return account{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() {
		return account{}, fmt.Errorf("%s is not a folder", dir)
	}
	return account{uid: st.Uid, gid: st.Gid}, nil
}

// named reports whether a user id has an account, which other programs may share.
func named(uid uint32) bool {
	_, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	var unknown user.UnknownUserIdError
	return !errors.As(err, &unknown)
}

// The user ids for embedded databases lie between those of people and those that
// systemd gives to dynamic users. They also exist in a user namespace of 65,536 ids.
const firstUnused, countUnused = 50_000, 10_000

// unused returns a user id without an account and without a process. The search begins at a
// number that depends on the folder, so that two databases rarely conflict.
func unused(data string) (account, error) {
	sum := sha256.Sum256([]byte(data))
	start := binary.BigEndian.Uint32(sum[:])
	for i := range uint32(countUnused) {
		id := firstUnused + (start+i)%countUnused
		if named(id) || runs(id) {
			continue
		}
		if _, err := user.LookupGroupId(strconv.FormatUint(uint64(id), 10)); err == nil {
			continue
		}
		return account{uid: id, gid: id, other: true}, nil
	}
	return account{}, fmt.Errorf("every user id from %d to %d is taken: run as an ordinary user, or use a server with --postgres",
		firstUnused, firstUnused+countUnused-1)
}

// idle returns an account that initdb can run as. initdb requires a name for its user id,
// and the user id of the database has no name. The account is a system account without a
// process. When initdb ends, the data is given to the database's user id.
func idle() (account, error) {
	b, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return account{}, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 4 || f[0] == "nobody" {
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil || uid == 0 || uid >= 1000 || gid == 0 || runs(uint32(uid)) {
			continue
		}
		return account{uid: uint32(uid), gid: uint32(gid), other: true}, nil
	}
	return account{}, errors.New("making a database as root needs a system account without a process in /etc/passwd. " +
		"Add one (`useradd --system aid-initdb`), run as an ordinary user, or use a server with --postgres")
}

// runs reports whether a user id has a process.
func runs(uid uint32) bool {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return true
	}
	for _, p := range processes {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		if info, err := p.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid == uid {
				return true
			}
		}
	}
	return false
}

// give changes the owner of all files below dir to the account. No link leads out of dir,
// even if another account replaces a folder at the same time.
func (a account) give(dir string) error {
	if !a.other {
		return nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return root.Lchown(path, int(a.uid), int(a.gid))
	})
}

// usable reports whether the programs are in dir, and returns its absolute path.
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

// FindPostgres returns the folder with Postgres. It is asked, if that is not empty.
// Otherwise it is the folder that `make` fetched for a program in programDir or the working
// directory, or the newest of Debian's packages.
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
	installed, _ := filepath.Glob("/usr/lib/postgresql/*") // the only possible error is an invalid pattern
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

// binariesFor returns the folder of the programs, by a path that the account can use. If
// they are below a folder that only we may enter (such as /root), they are copied once to
// another folder. To pass the open folder is not enough: Postgres searches for its own
// path.
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
	// Two processes may do this at the same time. Then one of them finds the other's copy.
	if err := os.Rename(fresh, to); err != nil && !mine(to) {
		return "", fmt.Errorf("copying Postgres to %s: %w", to, err)
	}
	if !mine(to) || !who.walks(to) {
		return "", fmt.Errorf("%s may run no program in %s: put Postgres where it may, or run as an ordinary user", who, to)
	}
	return filepath.Join(to, "bin"), nil
}

// mine reports whether only we can have created dir, since every user may create a folder
// in /tmp.
func mine(dir string) bool {
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() || info.Mode()&0o022 != 0 {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// walks reports whether the account may enter dir and every folder above it.
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

// runnable lets every user read a copy, and run the programs that its owner may run, for
// every umask.
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
