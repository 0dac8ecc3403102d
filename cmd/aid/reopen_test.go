package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/anchor"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/audit/signer"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// A restored database lacks the key that signed the newest checkpoints in its anchor. reopen and
// restore say so and change nothing, until they get the organization's JWKS. A checkpoint that
// no key verifies stops them too.
func TestReopenUnknownKey(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	file := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		must(os.WriteFile(path, text, 0o600))
		return path
	}
	var old, next []evidence.Signer
	var set evidence.KeySet
	for _, kind := range []signer.Kind{signer.P256, signer.Ed25519} {
		for _, to := range []*[]evidence.Signer{&old, &next} {
			path := filepath.Join(dir, string(kind)+string(rune('a'+len(old)+len(next))))
			_, err := signer.Create(path, kind)
			must(err)
			s, err := signer.Open(ctx, "file:"+path, os.ReadFile)
			must(err)
			*to = append(*to, s)
			k, err := evidence.NewKey(s.Public())
			must(err)
			if to == &next {
				k.From = 7
			}
			set.Keys = append(set.Keys, k)
		}
	}
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	must(audit.UseSigningKeys(ctx, db.Pool(), time.Now(), old...))
	const log = "aid-test"
	_, err := db.Pool().Exec(ctx, "INSERT INTO installation (log_name) VALUES ($1)", log)
	must(err)
	origins := []string{evidence.DirectoryOrigin(log), evidence.OrgOrigin(log, org, 1)}
	place := filepath.Join(dir, "anchor")
	must(os.Mkdir(place, 0o700))
	a, err := anchor.NewFile(place)
	must(err)
	for _, origin := range origins {
		note, err := evidence.Sign(ctx, evidence.Checkpoint{Origin: origin, Size: 9, Time: time.Unix(1, 0)}, next...)
		must(err)
		must(a.Publish(ctx, origin, note))
		for i := range old {
			change, err := evidence.SignKeyChange(ctx, origin, 7, old[i], next[i])
			must(err)
			set.Changes = append(set.Changes, change)
		}
	}
	jwks, err := set.JWKS()
	must(err)
	unknown, err := evidence.VerifierKey(origins[1], next[0].Public())
	must(err)
	id := strings.Split(unknown, "+")[1]

	with := []string{"--postgres", storetest.OwnerURL(t), "--org", org, "--hmac-keys", file("hmac.keys", []byte("1 "+strings.Repeat("ab", 32)+"\n")), "--anchor", "file:" + place}
	reopen := append([]string{"audit", "reopen", "--reason", "a disk failed"}, with...)
	restore := append([]string{"audit", "restore", "--from", file("export.json", nil)}, with...)
	keys := func() int {
		t.Helper()
		all, err := audit.SigningKeys(ctx, db.Pool())
		must(err)
		return len(all)
	}
	// The chain begins with an entry, so that there is a head.
	if code, _, errs := play(t, append([]string{"audit", "hold", "--reason", "x"}, with[:6]...)...); code != 0 {
		t.Fatal(errs)
	}
	for _, command := range [][]string{reopen, restore} {
		code, out, errs := play(t, command...)
		if code == 0 || out != "" || !strings.Contains(errs, "--jwks") || !strings.Contains(errs, "docs/restore.md") {
			t.Errorf("%s: %d %s %s", command[1], code, out, errs)
		}
	}
	if _, _, errs := play(t, restore...); !strings.Contains(errs, id) {
		t.Errorf("the key %s is not named: %s", id, errs)
	}
	for _, bad := range []string{file("none.json", []byte(`{"keys":[]}`)), file("x.json", []byte("x")), filepath.Join(dir, "absent")} {
		if code, _, errs := play(t, append(reopen, "--jwks", bad)...); code == 0 || !strings.Contains(errs, "--jwks") {
			t.Errorf("%d %s", code, errs)
		}
	}
	if n := keys(); n != 2 {
		t.Fatalf("%d keys", n)
	}
	// A note that no key verifies may hide a newer one.
	path := filepath.Join(place, filepath.FromSlash(origins[1]), "checkpoint")
	good, err := os.ReadFile(path)
	must(err)
	must(os.WriteFile(path, bytes.Replace(good, []byte("\n9\n"), []byte("\n8\n"), 1), 0o600))
	given := append(reopen, "--jwks", file("jwks.json", jwks))
	if code, _, errs := play(t, given...); code == 0 || !strings.Contains(errs, "may hide the newest one") {
		t.Errorf("%d %s", code, errs)
	}
	must(os.WriteFile(path, good, 0o600))
	code, out, errs := play(t, given...)
	if code != 0 || !strings.Contains(out, "incarnation 2 begins with entry 10") || keys() != 4 {
		t.Errorf("%d %s %s", code, out, errs)
	}
}
