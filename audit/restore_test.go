package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// fileOf is an export outside of the database.
func fileOf(name string, b []byte) audit.ExportFile {
	return audit.ExportFile{Name: name, Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }}
}

// A database is restored to an older state, and exports have what it lacks. Every entry comes
// back with its number, time and MAC, and the newest checkpoint outside is one of this database
// again. What does not lead to that checkpoint changes nothing.
func TestRestoreFromExports(t *testing.T) {
	ctx := context.Background()
	n := newNotaries(t)
	if err := audit.UseSigningKeys(ctx, n.db.Pool(), n.clock(), n.signers...); err != nil {
		t.Fatal(err)
	}
	org := storetest.Org(t, n.db)
	work := func() error {
		notary := n.start(t, n.db, n.clock)
		err := errors.Join(notary.Round(ctx), notary.Tick(ctx))
		notary.Publish(ctx)
		n.later(11 * time.Second)
		return err
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	c := chain(t, n.db, 1)
	appendMany(t, c, org, "w_1", 1, 50)
	must(work())
	older := exported(t, n, org, n.signers[0], audit.ExportOrder{})
	exec, restore := backUp(t)
	appendMany(t, c, org, "w_1", 51, 20)
	appendMany(t, c, org, "w_2", 1, 300)
	if _, err := c.Append(ctx, audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: []audit.Record{{Org: org, Seq: 71, Prev: 70, Entry: []byte("\xff not an entry")}}}); err != nil {
		t.Fatal(err)
	}
	must(work())
	first := exported(t, n, org, n.signers[0], audit.ExportOrder{After: exportID(t, older)})
	appendMany(t, c, org, "w_1", 72, 40)
	must(work())
	second := exported(t, n, org, n.signers[0], audit.ExportOrder{After: exportID(t, first)})
	whole := exported(t, n, org, n.signers[0], audit.ExportOrder{})
	filtered := exported(t, n, org, n.signers[0], audit.ExportOrder{Filter: evidence.ExportFilter{Kind: "malformed"}})
	rows := func() string {
		t.Helper()
		var text string
		admin := storetest.Connect(t, storetest.URL(t, "postgres"))
		must(admin.QueryRow(ctx, `SELECT string_agg(concat_ws('|', seq, appended_at, time, kind, agent_id, session_id, request_id, writer, writer_seq, prev_writer_seq, encode(entry, 'hex'),
			epoch, encode(prev_mac, 'hex'), encode(mac, 'hex'), mac_version, incarnation, shipped_by, lane), chr(10) ORDER BY seq) FROM audit_entries WHERE org_id = $1`, org).Scan(&text))
		return text
	}
	before := rows()
	restore()
	guard := n.guard(t, n.db.Pool())
	if err := guard.Check(ctx); !errors.Is(err, audit.ErrRolledBack) {
		t.Fatal(err)
	}
	lacking := rows()

	set, _ := orgJWKS(t, n, org)
	back := func(c *audit.Chain, files ...audit.ExportFile) (audit.RestoreResult, error) {
		return c.Restore(ctx, audit.Restoration{Org: org, LogName: logName, Keys: set, Newest: n.anchors[0].Newest, Exports: files})
	}
	changed := bytes.Replace(second, []byte(`"writer_seq":80`), []byte(`"writer_seq":81`), 1)
	other := chain(t, n.db, 7)
	for name, try := range map[string]func() (audit.RestoreResult, error){
		"no file":                  func() (audit.RestoreResult, error) { return back(c) },
		"one that ends before":     func() (audit.RestoreResult, error) { return back(c, fileOf("a", first)) },
		"one that begins behind":   func() (audit.RestoreResult, error) { return back(c, fileOf("a", second)) },
		"another order":            func() (audit.RestoreResult, error) { return back(c, fileOf("a", second), fileOf("b", first)) },
		"a filter":                 func() (audit.RestoreResult, error) { return back(c, fileOf("a", filtered)) },
		"a changed row":            func() (audit.RestoreResult, error) { return back(c, fileOf("a", first), fileOf("b", changed)) },
		"half a file":              func() (audit.RestoreResult, error) { return back(c, fileOf("a", whole[:len(whole)/2])) },
		"a file that is no export": func() (audit.RestoreResult, error) { return back(c, fileOf("a", []byte("{}\n"))) },
		"other HMAC keys":          func() (audit.RestoreResult, error) { return back(other, fileOf("a", whole)) },
		"no keys": func() (audit.RestoreResult, error) {
			return c.Restore(ctx, audit.Restoration{Org: org, LogName: logName, Newest: n.anchors[0].Newest, Exports: []audit.ExportFile{fileOf("a", whole)}})
		},
		"an anchor without a checkpoint": func() (audit.RestoreResult, error) {
			return c.Restore(ctx, audit.Restoration{Org: org, LogName: logName, Keys: set, Exports: []audit.ExportFile{fileOf("a", whole)}, Newest: func(context.Context, string) ([]byte, error) { return nil, nil }})
		},
	} {
		if done, err := try(); err == nil {
			t.Errorf("%s: %+v", name, done)
		}
		if rows() != lacking {
			t.Fatalf("%s: the chain was changed", name)
		}
	}
	done, err := back(c, fileOf("older", older), fileOf("first", first), fileOf("second", second))
	if err != nil || done != (audit.RestoreResult{From: 51, To: 411, Size: 411}) {
		t.Fatalf("%+v %v", done, err)
	}
	if after := rows(); after != before {
		t.Errorf("the entries differ:\n%.2000s\n%.2000s", after, before)
	}
	if _, err := back(c, fileOf("whole", whole)); !errors.Is(err, audit.ErrNothingLost) {
		t.Errorf("again: %v", err)
	}
	// The directory lacks what no export has. Its owner accepts that.
	exec("SET session_replication_role = origin")
	owner, err := store.Open(ctx, store.Config{URL: storetest.OwnerURL(t), MaxConns: 2})
	must(err)
	defer owner.Close()
	result, err := chain(t, owner, 1).Reopen(ctx, audit.Reopening{Org: org, LogName: logName, Actor: audit.Actor{Kind: "operator", ID: "me@here"}, Reason: "a disk failed", Keys: set, Newest: n.anchors[0].Newest})
	if err != nil || result.Incarnation != 0 || result.Directory == 0 {
		t.Fatalf("%+v %v", result, err)
	}
	// The log goes on, and has one history: what was exported before is a part of it.
	appendMany(t, c, org, "w_1", 112, 5)
	must(work())
	must(guard.Check(ctx))
	now := exported(t, n, org, n.signers[0], audit.ExportOrder{})
	_, jwks := orgJWKS(t, n, org)
	_, end, _ := strings.Cut(string(whole), `"end":"`)
	end, _, _ = strings.Cut(end, `","newest"`)
	if v := bothVerify(t, set, jwks, now, strings.ReplaceAll(end, `\n`, "\n")); v.Exit != evidence.Intact || !strings.Contains(v.Complete, "entries 1 to 416") {
		t.Errorf("%+v", v)
	}
	if report := verify(t, n.db, org, 1); report.FirstBad != nil || report.Entries != 416 || report.Forks+report.Broken > 0 {
		t.Errorf("%+v", report)
	}
}

// A signing key is replaced, and the database is restored to a state from before. Its newest
// checkpoints have only signatures of the new key. Nothing accepts them without that key. With the
// organization's JWKS the key comes back, and then the entries do, or their loss is accepted.
func TestRestoreOverRotation(t *testing.T) {
	for _, lost := range []bool{false, true} {
		t.Run(fmt.Sprintf("lost=%v", lost), func(t *testing.T) { restoreOverRotation(t, lost) })
	}
}

func restoreOverRotation(t *testing.T, lost bool) {
	ctx := context.Background()
	n := newNotaries(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	old := n.signers
	must(audit.UseSigningKeys(ctx, n.db.Pool(), n.clock(), old...))
	org := storetest.Org(t, n.db)
	var held []string
	work := func() {
		t.Helper()
		var err error
		n.keys, err = audit.PublicKeys(ctx, n.db.Pool(), logName)
		must(err)
		notary := n.start(t, n.db, n.clock)
		must(errors.Join(notary.Round(ctx), notary.Tick(ctx)))
		notary.Publish(ctx)
		n.later(11 * time.Second)
		newest, err := n.newest(t, org)
		must(err)
		held = append(held, string(newest.Note))
	}
	c := chain(t, n.db, 1)
	appendMany(t, c, org, "w_1", 1, 50)
	work()
	exec, restore := backUp(t)
	next, _ := signingKeys(t)
	n.signers = []evidence.Signer{old[0], next[0], old[1], next[1]}
	rotate := func(from, to evidence.Signer) {
		t.Helper()
		_, err := c.Rotate(ctx, audit.Rotation{Pool: n.db.Pool(), LogName: logName, Actor: audit.Actor{Kind: "operator", ID: "me@here"}, Old: from, New: to,
			Overlap: time.Hour, Now: n.clock()})
		must(err)
	}
	rotate(old[0], next[0])
	rotate(old[1], next[1])
	work()
	n.later(time.Hour)
	n.signers = next
	appendMany(t, c, org, "w_1", 51, 20)
	work()
	whole := exported(t, n, org, next[0], audit.ExportOrder{})
	jwks, text := orgJWKS(t, n, org)
	restore()
	exec("DELETE FROM directory_key_changes")
	exec("DELETE FROM audit_key_changes")
	exec("DELETE FROM signing_keys WHERE from_size > 0")
	exec("UPDATE signing_keys SET retire_at = NULL, to_size = NULL")
	exec("DELETE FROM audit_exports") // an export's id is not used again
	exec("SET session_replication_role = origin")

	owner, err := store.Open(ctx, store.Config{URL: storetest.OwnerURL(t), MaxConns: 2})
	must(err)
	defer owner.Close()
	back := func() (audit.RestoreResult, error) {
		set, _ := orgJWKS(t, n, org)
		return chain(t, owner, 1).Restore(ctx, audit.Restoration{Org: org, LogName: logName, Keys: set, Newest: n.anchors[0].Newest, Exports: []audit.ExportFile{fileOf("whole", whole)}})
	}
	reopen := func() (audit.ReopenResult, error) {
		set, _ := orgJWKS(t, n, org)
		set.Own = true
		return chain(t, owner, 1).Reopen(ctx, audit.Reopening{Org: org, LogName: logName, Actor: audit.Actor{Kind: "operator", ID: "me@here"}, Reason: "a disk failed",
			Keys: set, Newest: n.anchors[0].Newest})
	}
	if _, err := back(); !evidence.UnknownKey(err) {
		t.Errorf("without the key: %v", err)
	}
	if _, err := reopen(); !evidence.UnknownKey(err) {
		t.Errorf("without the key: %v", err)
	}
	if err := audit.UseSigningKeys(ctx, n.db.Pool(), n.clock(), next...); !errors.Is(err, audit.ErrSigningKey) || !strings.Contains(err.Error(), "docs/restore.md") {
		t.Errorf("with the new key: %v", err)
	}

	// What no key of the database vouches for is not stored.
	before, _ := orgJWKS(t, n, org)
	strange, others := signingKeys(t)
	forged, err := evidence.SignKeyChange(ctx, evidence.DirectoryOrigin(logName), 2, strange[0], next[0])
	must(err)
	foreign := others
	foreign.Keys = append(slices.Clone(others.Keys), jwks.Keys...)
	foreign.Changes = []evidence.KeyChange{forged}
	other, err := evidence.SignKeyChange(ctx, evidence.OrgOrigin(logName, "org_other", 1), 2, old[0], next[0])
	must(err)
	another := jwks
	another.Changes = append(slices.Clone(jwks.Changes), other)
	for name, set := range map[string]evidence.KeySet{"another installation": others, "nothing": {}, "keys without changes": {Keys: jwks.Keys}, "a thief's line": foreign, "another organization": another} {
		if added, err := audit.PutBackKeys(ctx, owner, logName, org, set); err == nil {
			t.Errorf("%s: %v", name, added)
		}
	}
	if added, err := audit.PutBackKeys(ctx, n.db, logName, org, jwks); err == nil {
		t.Errorf("the application's role: %v", added)
	}
	if after, _ := orgJWKS(t, n, org); len(after.Keys) != len(before.Keys) || len(after.Changes) != 0 {
		t.Fatalf("%+v", after)
	}

	parsed, err := evidence.ParseJWKS(text)
	must(err)
	added, err := audit.PutBackKeys(ctx, owner, logName, org, parsed)
	if err != nil || len(added) != 2 || !slices.Contains(added, kid(t, next[0])) {
		t.Fatalf("%v %v", added, err)
	}
	if added, err := audit.PutBackKeys(ctx, owner, logName, org, parsed); err != nil || len(added) != 0 {
		t.Errorf("again: %v %v", added, err)
	}
	must(audit.UseSigningKeys(ctx, n.db.Pool(), n.clock(), next...))
	n.keys, err = audit.PublicKeys(ctx, n.db.Pool(), logName)
	must(err)
	if err := n.guard(t, n.db.Pool()).Check(ctx); !errors.Is(err, audit.ErrRolledBack) {
		t.Errorf("the guard: %v", err)
	}
	if !lost {
		if done, err := back(); err != nil || done != (audit.RestoreResult{From: 51, To: 72, Size: 72}) {
			t.Fatalf("%+v %v", done, err)
		}
	}
	if done, err := reopen(); err != nil || (done.Incarnation == 2) != lost {
		t.Fatalf("%+v %v", done, err)
	}
	if lost {
		appendMany(t, c, org, "w_1", 51, 5)
	} else {
		appendMany(t, c, org, "w_1", 71, 5)
	}
	n.signers = []evidence.Signer{old[0], next[0], old[1], next[1]} // the old ones have to sign no more
	work()
	n.signers = next
	if lost {
		third, _ := signingKeys(t)
		n.signers = []evidence.Signer{next[0], third[0], next[1]}
		rotate(next[0], third[0])
		next[0] = third[0]
		work()
	}
	set, jwksText := orgJWKS(t, n, org)
	for _, note := range held {
		if _, err := set.Open([]byte(note), strings.SplitN(note, "\n", 2)[0]); err != nil {
			t.Errorf("%s: %v", note, err)
		}
	}
	v := bothVerify(t, set, jwksText, exported(t, n, org, next[0], audit.ExportOrder{}), held[0])
	if want := map[bool]int{false: evidence.Intact, true: evidence.Incomplete}[lost]; v.Exit != want {
		t.Errorf("%+v", v)
	}
}
