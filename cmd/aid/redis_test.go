package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Flags of the shared store are strict: each error names the flag, and what to write.
func TestRedisFlags(t *testing.T) {
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, want string }{
		{"--redis=valkey.example.com:6379", "redis://host:port"},
		{"--redis=http://valkey.example.com", `"http"`},
		{"--redis=redis://valkey.example.com:6379", "rediss://"},
		{"--redis=rediss://user:secret@valkey.example.com:6379", "--redis-password-file"},
		{"--redis=rediss://valkey.example.com:6379/1", "database"},
		{"--redis=rediss://valkey.example.com:6379?x=1", "options"},
		{"--redis=rediss://valkey.example.com:x", `"valkey.example.com:x"`},
		{"--redis=rediss://valkey.example.com:70000", "65535"},
		{"--redis=rediss://", "host:port"},
		{"--redis=rediss://a,", "host:port"},
		{"--redis=redis://127.0.0.1 --redis-ca=/x", "rediss://"},
		{"--redis=redis://127.0.0.1 --redis-user=aid", "--redis-password-file"},
		{"--redis=rediss://a --redis-cert=/x", "--redis-key"},
		{"--redis-user=aid", "without --redis"},
		{"--redis-password-file=" + password, "without --redis"},
		{"--redis=redis://127.0.0.1 --redis-password-file=/no/such/file", "redis-password-file"},
		{"--redis=rediss://a --redis-ca=/no/such/file", "redis-ca"},
	} {
		args := append([]string{"extproc", "--xds", "unix:/x", "--segments", t.TempDir(), "--listen", "unix:" + t.TempDir() + "/s", "--listen-status", "127.0.0.1:0"}, strings.Fields(c.args)...)
		code, _, errs := play(t, args...)
		if code != 2 || !strings.Contains(errs, c.want) || strings.Contains(errs, "secret@") {
			t.Errorf("%s: %d %s", c.args, code, errs)
		}
	}
}
