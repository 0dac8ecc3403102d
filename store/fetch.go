package store

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/xi2/xz"
)

// PostgresVersion is the Postgres that FetchPostgres fetches.
const PostgresVersion = "18.3"

// The binaries are those of github.com/zonkyio/embedded-postgres-binaries, from Maven
// Central. Each file must have the digest below, for every response of the server.
const (
	postgresArtifact = "https://repo1.maven.org/maven2/io/zonky/test/postgres/embedded-postgres-binaries-linux-%[1]s/18.3.0/embedded-postgres-binaries-linux-%[1]s-18.3.0.jar"
	maxArtifact      = 64 << 20  // bytes; they have about 15 MB
	maxUnpacked      = 512 << 20 // bytes; they have about 60 MB
)

// artifact returns the platform's name there, and the SHA-256 of its file.
func artifact(arch string, musl bool) (name, digest string, err error) {
	switch {
	case arch == "amd64" && musl:
		return "amd64-alpine", "510fd314da39f1eeccef774a92428474168fedf55403342548e2adeaed66b483", nil
	case arch == "amd64":
		return "amd64", "1974c3a59c3ae010e9818e81637e425aad94eaac26e4ef533b42e081fe7ca345", nil
	case arch == "arm64" && !musl:
		return "arm64v8", "1fb555a6602c13a113ab1f0cc9224d599948e85e51ac5f001393605505eaf78e", nil
	}
	libc := "glibc"
	if musl {
		libc = "musl"
	}
	return "", "", fmt.Errorf("no Postgres is published for linux/%s with %s; install one (15 or newer) and name its folder, or use a server with --postgres", arch, libc)
}

// FetchPostgres downloads Postgres and unpacks it into dir: dir/bin, dir/lib, dir/share.
// All accounts may read it, since the server may run under another one. It verifies the
// digest, and leaves dir complete or unchanged. It does nothing if dir is up to date.
// progress, which may be nil, is called with each step.
func FetchPostgres(ctx context.Context, dir string, progress func(step string)) error {
	if progress == nil {
		progress = func(string) {}
	}
	_, err := os.Stat("/etc/alpine-release")
	name, digest, err := artifact(runtime.GOARCH, err == nil)
	if err != nil {
		return err
	}
	return fetch(ctx, fmt.Sprintf(postgresArtifact, name), digest, dir, progress)
}

func fetch(ctx context.Context, url, digest, dir string, progress func(step string)) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if b, err := os.ReadFile(filepath.Join(dir, fetchedMark)); err == nil && string(b) == digest+"\n" {
		progress("Postgres " + PostgresVersion + " is there already")
		return nil
	}
	if err := replaceable(dir); err != nil {
		return err
	}

	progress("downloading Postgres " + PostgresVersion + " (about 15 MB)")
	jar, err := download(ctx, url)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(jar); hex.EncodeToString(sum[:]) != digest {
		return fmt.Errorf("the downloaded file has the SHA-256 %x instead of %s, so it is not used", sum, digest)
	}
	progress("unpacking it")
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	fresh, err := os.MkdirTemp(filepath.Dir(dir), ".postgres-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(fresh)
	if err := unpackJar(jar, fresh); err != nil {
		return fmt.Errorf("unpacking Postgres: %w", err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(fresh, fetchedMark), []byte(digest+"\n"), 0o644), readable(fresh)); err != nil {
		return err
	}
	return swap(fresh, dir)
}

// readable gives every user access to dir's folders, for every umask.
func readable(dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir():
			return os.Chmod(path, 0o755)
		case path == filepath.Join(dir, fetchedMark):
			return os.Chmod(path, 0o644)
		}
		return nil
	})
}

// fetchedMark is the file with the name of what was unpacked into a folder.
const fetchedMark = ".fetched"

// replaceable rejects a folder with other content than ours.
func replaceable(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case len(entries) == 0:
		return nil
	}
	if _, err := os.Stat(filepath.Join(dir, fetchedMark)); err != nil {
		return fmt.Errorf("%s is not empty and was not made by this command: name another folder, or empty it", dir)
	}
	return nil
}

// swap replaces dir by the folder fresh.
func swap(fresh, dir string) error {
	old := fresh + ".old"
	switch err := os.Rename(dir, old); {
	case err == nil:
		defer os.RemoveAll(old)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := os.Rename(fresh, dir); err != nil {
		return errors.Join(err, os.Rename(old, dir))
	}
	return nil
}

func download(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("downloading: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("downloading %s: the server responded with %s", url, resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxArtifact+1))
	if err != nil {
		return nil, fmt.Errorf("downloading %s: %w", url, err)
	}
	if len(b) > maxArtifact {
		return nil, fmt.Errorf("downloading %s: more than %d MB", url, maxArtifact>>20)
	}
	return b, nil
}

// unpackJar unpacks the one .txz in a jar (a zip).
func unpackJar(jar []byte, dir string) error {
	z, err := zip.NewReader(bytes.NewReader(jar), int64(len(jar)))
	if err != nil {
		return err
	}
	for _, f := range z.File {
		if path.Ext(f.Name) != ".txz" {
			continue
		}
		r, err := f.Open()
		if err != nil {
			return err
		}
		defer r.Close()
		x, err := xz.NewReader(r, 0)
		if err != nil {
			return err
		}
		return unpackTar(io.LimitReader(x, maxUnpacked), dir)
	}
	return errors.New("there is no .txz in it")
}

// unpackTar writes files, folders and links below dir, and never elsewhere.
func unpackTar(r io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean(h.Name)
		if !filepath.IsLocal(name) {
			return fmt.Errorf("%q is not below the folder", h.Name)
		}
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(name, 0o755)
		case tar.TypeReg:
			err = writeFile(root, name, fs.FileMode(h.Mode), t)
		case tar.TypeSymlink:
			if !filepath.IsLocal(path.Join(path.Dir(name), h.Linkname)) || strings.HasPrefix(h.Linkname, "/") {
				return fmt.Errorf("%q links out of the folder", h.Name)
			}
			err = root.Symlink(h.Linkname, name)
		default:
			err = fmt.Errorf("%q is neither file, folder nor link", h.Name)
		}
		if err != nil {
			return err
		}
	}
}

// writeFile creates one file that every user may read, for every umask.
func writeFile(root *os.Root, name string, mode fs.FileMode, r io.Reader) error {
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Chmod(0o644|mode&0o111), f.Close())
}
