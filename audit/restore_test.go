package audit_test

import (
	"bytes"
	"context"
	"errors"
	"io"
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
