package main

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/audit/signer"
)

// Both keys or none, each of its own kind, in files that only their owner can read. Errors
// name the flag, and no key is printed.
func TestSigningFlags(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	made := make(map[string]string) // the secret of each file, in base64
	for kind, name := range map[string]string{"p256": "signing.pem", "ed25519": "witness.pem"} {
		code, out, errs := play(t, "keys", "signing", "create", "--kind", kind, "--out", file(name))
		text, err := os.ReadFile(file(name))
		if code != 0 || err != nil || len(strings.TrimSpace(out)) != 43 {
			t.Fatalf("%d %q %q %v", code, out, errs, err)
		}
		block, _ := pem.Decode(text)
		if block == nil {
			t.Fatal("no PEM")
		}
		made[name] = strings.Split(string(text), "\n")[1]
		if strings.Contains(out+errs, made[name][:20]) {
			t.Error("the key is printed")
		}
	}
	open := file("open.pem")
	if _, err := signer.Create(open, signer.P256); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	p256, ed := "file:"+file("signing.pem"), "file:"+file("witness.pem")
	for _, c := range []struct{ p256, ed, want string }{
		{p256, "", "--signing-key needs --witness-key"},
		{"", ed, "--witness-key needs --signing-key"},
		{ed, p256, "--signing-key " + ed + ": the key is ed25519, and this flag needs p256"},
		{p256, p256, "--witness-key " + p256 + ": the key is p256, and this flag needs ed25519"},
		{"file:" + open, ed, "--signing-key: " + open + " has mode 0644, so others can read or change it"},
		{"file:" + file("none"), ed, "--signing-key: "},
		{"signing.pem", ed, "--signing-key: a key has a URI"},
		{"", "", ""},
		{p256, ed, ""},
	} {
		var s signing
		if c.p256 != "" {
			s.p256URIs = []string{c.p256}
		}
		if c.ed != "" {
			s.ed25519URIs = []string{c.ed}
		}
		err := s.open(t.Context())
		switch {
		case c.want == "" && (err != nil || len(s.signers()) != 0 != (c.p256 != "")):
			t.Errorf("%q %q: %v", c.p256, c.ed, err)
		case c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want)):
			t.Errorf("%q %q: %v", c.p256, c.ed, err)
		}
		if err != nil && (strings.Contains(err.Error(), made["signing.pem"][:20]) || strings.Contains(err.Error(), made["witness.pem"][:20])) {
			t.Error("the key is printed")
		}
	}
}

// A home whose database has public keys never gets other keys.
func TestHomeLostSigningKeys(t *testing.T) {
	h, err := openHome(filepath.Join(t.TempDir(), "home"))
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	if err := h.lostSigningKeys(false); err != nil {
		t.Error(err)
	}
	k, err := h.keys()
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(k.signing)
	if err != nil {
		t.Fatal(err)
	}
	again, err := h.keys()
	if err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(again.signing); err != nil || string(after) != string(before) {
		t.Errorf("the key was replaced: %v", err)
	}
	if err := h.lostSigningKeys(true); err != nil {
		t.Error(err)
	}
	if err := os.Remove(k.witness); err != nil {
		t.Fatal(err)
	}
	if err := h.lostSigningKeys(true); err == nil || !strings.Contains(err.Error(), "witness.pem") {
		t.Error(err)
	}
}

// What is wrong with an anchor or a witness is reported at the start, and names the flag.
func TestAnchorFlags(t *testing.T) {
	dir := t.TempDir()
	const vkey = "http://127.0.0.1:1=witness.example+c04a2a3d+BMzvSbPvQmVyGZvDV2zJ6TFkQnTfyJ2hwZIXIkhkDbLZ"
	for _, c := range []struct {
		a     anchoring
		signs bool
		want  string
	}{
		{anchoring{}, false, ""},
		{anchoring{anchors: []string{"file:" + dir}}, true, ""},
		{anchoring{anchors: []string{"file:" + dir}}, false, "--anchor needs --signing-key"},
		{anchoring{witnesses: []string{vkey}}, false, "--witness needs --signing-key"},
		{anchoring{anchors: []string{"file:" + dir, "file:" + dir}}, true, "is there twice"},
		{anchoring{anchors: []string{"file:" + dir + "/none"}}, true, "--anchor file:" + dir + "/none: "},
		{anchoring{anchors: []string{"ftp://x"}}, true, "valid schemes: file, s3"},
		{anchoring{witnesses: []string{vkey}}, true, "--witness " + vkey + ": the HASH"},
		{anchoring{quorum: 1}, true, "--witness-quorum 1: the number of --witness flags is 0"},
		{anchoring{quorum: -1}, true, "--witness-quorum -1"},
	} {
		err := c.a.check(t.Context(), c.signs)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v", c.a, err)
		}
	}
}
