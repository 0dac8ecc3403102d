package store

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A .txz of bin/postgres (755, "#!/bin/sh\n"), lib/libx.so.1 ("lib") and the link
// lib/libx.so to it: tar c … | xz, in hexadecimal.
const txz = "fd377a585a000004e6d6b446020021011c00000010cf58cce027ff00ac5d00311a4a1b059190373a51bd5771b3d6e413d88910a2701b7b134dd79b6273bd2beab3496e456a0ba44b407dba" +
	"eb950be77ccc0b37ce8285207edc3ca2af2f1d21d5ae628839e817b81d71d96f2a89b8839a431651a547fb00cfffb878a5fa9e1b040825af96474a906f573355ec9d1dab0e58197bfaefda" +
	"21b4a6dd294c679a2fd2f187f83ce78ffb8c50e91dd0690f46c5d1c1f44f377316beb29e6f6b95b217fa391d4b5add6deb3c92df0000d823eab288a596090001c801805000003ff96b82b1" +
	"c467fb020000000004595a"

func jarOf(t *testing.T, name string, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func serve(t *testing.T, b []byte) (url string, asked *int) {
	t.Helper()
	asked = new(int)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		*asked++
		if b == nil {
			http.NotFound(w, nil)
			return
		}
		w.Write(b) //nolint:errcheck // the client says
	}))
	t.Cleanup(s.Close)
	return s.URL, asked
}

func TestFetch(t *testing.T) {
	archive, err := hex.DecodeString(txz)
	if err != nil {
		t.Fatal(err)
	}
	jar := jarOf(t, "postgres-linux-x86_64.txz", archive)
	url, asked := serve(t, jar)
	dir := filepath.Join(t.TempDir(), "a", "postgres")
	var steps []string
	get := func() error {
		return fetch(t.Context(), url, digestOf(jar), dir, func(s string) { steps = append(steps, s) })
	}
	for range 2 {
		if err := get(); err != nil {
			t.Fatal(err)
		}
	}
	if *asked != 1 || len(steps) != 3 || !strings.Contains(steps[2], "already") {
		t.Errorf("asked %d times, said %q", *asked, steps)
	}
	for name, want := range map[string]string{"": "drwxr-xr-x", "bin": "drwxr-xr-x", "bin/postgres": "-rwxr-xr-x", "lib/libx.so.1": "-rw-r--r--", "lib/libx.so": "Lrwxrwxrwx", fetchedMark: "-rw-r--r--"} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || info.Mode().String() != want {
			t.Errorf("%q is %v, %v, want %s", name, info, err, want)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "lib/libx.so")); err != nil || string(b) != "lib" {
		t.Errorf("through the link: %q, %v", b, err)
	}
	// Another version replaces the whole.
	if err := os.WriteFile(filepath.Join(dir, fetchedMark), []byte("older\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin", "left-over"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := get(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "bin", "left-over")); err == nil {
		t.Error("a file of the older one is still there")
	}
	if left, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A download that differs in any way changes nothing.
func TestFetchRefuses(t *testing.T) {
	archive, err := hex.DecodeString(txz)
	if err != nil {
		t.Fatal(err)
	}
	good := jarOf(t, "x.txz", archive)
	for name, tc := range map[string]struct {
		body []byte
		want string
	}{
		"not there": {nil, "404"}, "other bytes": {append(bytes.Clone(good), 0), "SHA-256"}, "nothing": {[]byte{}, "SHA-256"}, "no zip": {[]byte("zip"), "zip"},
		"another archive": {jarOf(t, "x.tar", archive), "no .txz"}, "no xz": {jarOf(t, "x.txz", []byte("xz")), "unpacking"}, "cut short": {jarOf(t, "x.txz", archive[:len(archive)/2]), "unpacking"},
	} {
		digest := digestOf(tc.body)
		if tc.want == "SHA-256" {
			digest = digestOf(good)
		}
		url, _ := serve(t, tc.body)
		parent := t.TempDir()
		dir := filepath.Join(parent, "postgres")
		if err := fetch(t.Context(), url, digest, dir, func(string) {}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
		if left, err := os.ReadDir(parent); err != nil || len(left) != 0 {
			t.Errorf("%s: left behind: %v, %v", name, left, err)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.tex"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	url, asked := serve(t, good)
	if err := fetch(t.Context(), url, digestOf(good), dir, func(string) {}); err == nil || *asked != 0 {
		t.Errorf("a folder with somebody's files: %v", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := fetch(cancelled, url, digestOf(good), filepath.Join(t.TempDir(), "x"), func(string) {}); err == nil {
		t.Error("it goes on when told not to")
	}
}

func TestUnpackStaysInside(t *testing.T) {
	for name, h := range map[string]tar.Header{
		"up": {Name: "../x", Typeflag: tar.TypeReg}, "absolute": {Name: "/tmp/x", Typeflag: tar.TypeReg}, "hidden up": {Name: "a/../../x", Typeflag: tar.TypeReg},
		"link up": {Name: "a", Linkname: "../x", Typeflag: tar.TypeSymlink}, "link to the root": {Name: "a", Linkname: "/etc", Typeflag: tar.TypeSymlink},
		"hard link": {Name: "a", Linkname: "b", Typeflag: tar.TypeLink}, "device": {Name: "a", Typeflag: tar.TypeChar}, "the folder": {Name: "..", Typeflag: tar.TypeDir},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		w.Close()
		dir := t.TempDir()
		if err := unpackTar(&b, filepath.Join(dir)); err == nil {
			t.Errorf("%s is unpacked", name)
		}
	}
}

func TestArtifact(t *testing.T) {
	for _, tc := range []struct {
		arch string
		musl bool
		want string
	}{{"amd64", false, "amd64"}, {"amd64", true, "amd64-alpine"}, {"arm64", false, "arm64v8"}, {"arm64", true, ""}, {"riscv64", false, ""}} {
		name, digest, err := artifact(tc.arch, tc.musl)
		if name != tc.want || (err == nil) != (name != "") || name != "" && len(digest) != 64 {
			t.Errorf("%s: %q, %q, %v", tc.arch, name, digest, err)
		}
		if err != nil && !strings.Contains(err.Error(), "--postgres") {
			t.Errorf("%v does not say what to do", err)
		}
	}
}
