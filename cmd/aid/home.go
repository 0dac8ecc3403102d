package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/ai-identity/ai-identity/audit/signer"
)

// home is the folder of one `aid up`: its state, its secrets, its sockets.
//
//	lock             held while an `aid up` runs here
//	org.key          the first organization key, shown nowhere else
//	endpoints.json   where things listen, for scripts
//	secrets/         keys that only this machine has; without them, encrypted data is lost
//	postgres/        the embedded database
//	segments/        audit entries on their way to the database
//	run/             sockets and the files of this run
type home struct {
	dir  string
	run  string // the folder of sockets: dir/run, or a short path in /tmp
	lock *os.File
}

// openHome makes the folder and takes its lock.
func openHome(dir string) (*home, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	// 0711, since the embedded Postgres may have another user id and must reach its folder.
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("--home %s: %w", dir, err)
	}
	if err := makeFolder(dir, 0o711); err != nil {
		return nil, fmt.Errorf("--home: %w", err)
	}
	for _, name := range []string{"secrets", "segments", "postgres"} {
		if err := makeFolder(filepath.Join(dir, name), 0o700); err != nil {
			return nil, fmt.Errorf("--home: %w", err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--home %s: %w", dir, err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		by, _ := io.ReadAll(io.LimitReader(lock, 32))
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("another `aid up` (process %s) runs on %s; stop it, or choose another folder with --home", strings.TrimSpace(string(by)), dir)
		}
		return nil, fmt.Errorf("--home %s: locking: %w", dir, err)
	}
	if err := errors.Join(lock.Truncate(0), writeAt(lock, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		lock.Close()
		return nil, fmt.Errorf("--home %s: %w", dir, err)
	}
	h := &home{dir: dir, lock: lock, run: filepath.Join(dir, "run")}
	// The longest socket path must fit into a Unix address.
	if len(filepath.Join(h.run, "control-status.sock")) > maxSocketPath {
		sum := sha256.Sum256([]byte(dir))
		h.run = filepath.Join("/tmp", fmt.Sprintf("aid-%d-%s", os.Getuid(), hex.EncodeToString(sum[:6])))
	}
	if err := makeFolder(h.run, 0o700); err != nil {
		lock.Close()
		return nil, err
	}
	return h, nil
}

// runsOn returns the process id of the `aid up` that uses the folder, or "".
func runsOn(dir string) string {
	lock, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		return ""
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err == nil {
		return "" // closing the file releases the lock
	}
	by, _ := io.ReadAll(io.LimitReader(lock, 32))
	return strings.TrimSpace(string(by))
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

func (h *home) close() { h.lock.Close() }

func (h *home) path(elem ...string) string {
	return filepath.Join(append([]string{h.dir}, elem...)...)
}

func (h *home) socket(name string) string { return filepath.Join(h.run, name+".sock") }

// secret returns the file of that name in secrets/, made by generate if it is missing.
func (h *home) secret(name string, generate func() (string, error)) (path string, err error) {
	path = h.path("secrets", name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	text, err := generate()
	if err != nil {
		return "", fmt.Errorf("making %s: %w", path, err)
	}
	return path, writeFile(path, []byte(text), 0o600)
}

// keyFiles are the secrets that the control plane needs.
type keyFiles struct{ fernet, hmac, digest, signing, witness string }

// lostKeys returns an error with the missing key files. New files, beside a used database,
// could not verify its audit log and could not decrypt its credentials.
func (h *home) lostKeys() error {
	var lost []string
	for _, name := range []string{"fernet.keys", "hmac.keys", "digest.key"} {
		if _, err := os.Lstat(h.path("secrets", name)); err != nil {
			lost = append(lost, h.path("secrets", name))
		}
	}
	if len(lost) == 0 {
		return nil
	}
	return fmt.Errorf("the database is in use and its keys are missing: %s. Restore them from your backup of %s. "+
		"Without hmac.keys the audit log cannot be verified. Without fernet.keys no stored credential can be decrypted. "+
		"To start with empty state instead, choose another --home (and another database)", strings.Join(lost, ", "), h.path("secrets"))
}

// lostSigningKeys returns an error with the missing signing keys, if the database has public keys.
func (h *home) lostSigningKeys(signed bool) error {
	for _, name := range []string{"signing.pem", "witness.pem"} {
		if _, err := os.Lstat(h.path("secrets", name)); err != nil && signed {
			return fmt.Errorf("the database is in use and its signing key is missing: %s. Restore it from your backup of %s", h.path("secrets", name), h.path("secrets"))
		}
	}
	return nil
}

// keys returns the key files, and makes those that are missing.
func (h *home) keys() (k keyFiles, err error) {
	random := func(encode func([]byte) string) func() (string, error) {
		return func() (string, error) {
			b := make([]byte, 32)
			_, err := rand.Read(b)
			return encode(b) + "\n", err
		}
	}
	var errs [5]error
	k.fernet, errs[0] = h.secret("fernet.keys", random(base64.URLEncoding.EncodeToString))
	k.hmac, errs[1] = h.secret("hmac.keys", random(func(b []byte) string { return "1 " + hex.EncodeToString(b) }))
	k.digest, errs[2] = h.secret("digest.key", random(hex.EncodeToString))
	k.signing, errs[3] = h.signingKey("signing.pem", signer.P256)
	k.witness, errs[4] = h.signingKey("witness.pem", signer.Ed25519)
	return k, errors.Join(errs[:]...)
}

// signingArgs are the control plane's flags of the signing keys. Beside each key there may be
// its successor, for a rotation.
func (h *home) signingArgs(k keyFiles) (args []string) {
	for _, key := range []struct{ flag, file, next string }{{"--signing-key", k.signing, "signing.next.pem"}, {"--witness-key", k.witness, "witness.next.pem"}} {
		args = append(args, key.flag, "file:"+key.file)
		if next := h.path("secrets", key.next); exists(next) {
			args = append(args, key.flag, "file:"+next)
		}
	}
	return args
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// signingKey returns the file of a signing key, made if it is missing.
func (h *home) signingKey(name string, kind signer.Kind) (string, error) {
	path := h.path("secrets", name)
	if _, err := signer.Create(path, kind); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("making %s: %w", path, err)
	}
	return path, nil
}

// endpoints is the content of endpoints.json. Parts that are not built are absent.
type endpoints struct {
	Gateway   string `json:"gateway,omitempty"`
	Egress    string `json:"egress,omitempty"`
	Proxy     string `json:"proxy,omitempty"`
	API       string `json:"api,omitempty"`
	Metrics   string `json:"metrics,omitempty"`
	Dashboard string `json:"dashboard,omitempty"`
}

func (h *home) writeEndpoints(e endpoints) error {
	b, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(h.path("endpoints.json"), append(b, '\n'), 0o644)
}

// writeFile replaces a file in one step: a reader of path sees the old or the new content.
func writeFile(path string, b []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		os.Remove(path + ".new")
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return os.Rename(path+".new", path)
}
