package audit_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// orgJWKS is what the organization's auditor gets, parsed as a verifier does.
func orgJWKS(t *testing.T, n *notaries, org string) (set evidence.KeySet, text []byte) {
	t.Helper()
	err := n.db.InOrg(t.Context(), org, func(tx pgx.Tx) (err error) {
		set, err = audit.OrgKeys(t.Context(), tx, logName, org)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if text, err = set.JWKS(); err != nil {
		t.Fatal(err)
	}
	if set, err = evidence.ParseJWKS(text); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return set, text
}

// exportID returns the id in an export's header.
func exportID(t *testing.T, export []byte) string {
	t.Helper()
	_, rest, ok := bytes.Cut(export, []byte(`"id":"`))
	id, _, ok2 := bytes.Cut(rest, []byte(`"`))
	if !ok || !ok2 {
		t.Fatal("the export has no id")
	}
	return string(id)
}

// exported orders and writes an export.
func exported(t *testing.T, n *notaries, org string, signer evidence.Signer, o audit.ExportOrder) []byte {
	t.Helper()
	order := func() (e audit.Export) {
		t.Helper()
		err := n.db.InOrg(t.Context(), org, func(tx pgx.Tx) (err error) {
			e, err = audit.OrderExport(t.Context(), tx, org, o, n.clock())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	e := order()
	if _, err := audit.MakeExport(t.Context(), n.db, org, e.ID, signer, n.clock); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if e = order(); !e.Complete {
		t.Fatalf("%+v", e)
	}
	if err := e.Write(t.Context(), n.db, &b, 0); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// bothVerify runs the two verifiers on an export.
func bothVerify(t *testing.T, set evidence.KeySet, jwks, export []byte, held ...string) evidence.Verdict {
	t.Helper()
	o := evidence.ChainOptions{Keys: set}
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	args := []string{"../cli/ai_identity_verify.py", "chain", write("export.json", export), "--jwks", write("jwks.json", jwks)}
	for i, note := range held {
		o.Held = append(o.Held, evidence.HeldNote{From: "held", Note: []byte(note)})
		args = append(args, "--checkpoint", write("held"+string(rune('a'+i)), []byte(note)))
	}
	v := evidence.VerifyChain(bytes.NewReader(export), o)
	python := os.Getenv("AID_SDK_PYTHON")
	if python == "" {
		python = "python3"
	}
	cmd := exec.Command(python, args...)
	out, err := cmd.CombinedOutput()
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if code != v.Exit {
		t.Errorf("the verifiers differ: %+v\n%s", v, out)
	}
	return v
}

// Both keys are replaced while the log grows: in the directory and in the chain of an
// organization. An earlier incarnation has the change behind its end. A new log needs none. Every
// checkpoint of every time verifies with one JWKS, and the old keys alone sign nothing any more.
func TestRotate(t *testing.T) {
	ctx := context.Background()
	n := newNotaries(t)
	old := n.signers
	if err := audit.UseSigningKeys(ctx, n.db.Pool(), n.clock(), old...); err != nil {
		t.Fatal(err)
	}
	org := storetest.Org(t, n.db)
	c := chain(t, n.db, 1)
	appendMany(t, c, org, "w_1", 1, 30)
	var held []string
	work := func() error {
		t.Helper()
		notary := n.start(t, n.db, n.clock)
		err := errors.Join(notary.Round(ctx), notary.Tick(ctx))
		notary.Publish(ctx)
		n.later(11 * time.Second)
		if newest, e := n.newest(t, org); e == nil {
			held = append(held, string(newest.Note))
		}
		return err
	}
	if err := work(); err != nil {
		t.Fatal(err)
	}
	set, jwks := orgJWKS(t, n, org)
	if v := bothVerify(t, set, jwks, exported(t, n, org, old[0], audit.ExportOrder{})); v.Exit != 0 {
		t.Fatalf("%+v", v)
	}

	next, _ := signingKeys(t)
	rotate := func(i int) (audit.RotationResult, error) {
		return c.Rotate(ctx, audit.Rotation{Pool: n.db.Pool(), LogName: logName, Actor: audit.Actor{Kind: "operator", ID: "me@here"},
			Old: old[i], New: next[i], Overlap: time.Hour, Now: n.clock()})
	}
	// What is not a key change of this installation is rejected, and changes nothing.
	for name, r := range map[string]audit.Rotation{
		"the same key":      {Old: old[0], New: old[0]},
		"another role":      {Old: old[0], New: next[1]},
		"a key of a thief":  {Old: next[0], New: old[0]},
		"not the key there": {Old: next[1], New: next[1]},
	} {
		r.Pool, r.LogName, r.Now = n.db.Pool(), logName, n.clock()
		if _, err := c.Rotate(ctx, r); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// A control plane that has the next keys signs with the old ones until the key change.
	n.signers = []evidence.Signer{next[0], old[0], next[1], old[1]}
	appendMany(t, c, org, "w_1", 31, 5)
	if err := work(); err != nil {
		t.Fatal(err)
	}
	if newest, err := n.newest(t, org); err != nil || strings.Count(string(newest.Note), "\u2014") != 2 {
		t.Errorf("%s %v", newest.Note, err)
	}
	done, err := rotate(0)
	if err != nil || done.Orgs != 1 || done.Old != kid(t, old[0]) || done.New != kid(t, next[0]) || !done.RetireAt.Equal(n.clock().Add(time.Hour)) {
		t.Fatalf("%+v %v", done, err)
	}
	if again, err := rotate(0); err != nil || again.Orgs != 0 || again.Directory != done.Directory || !again.RetireAt.Equal(done.RetireAt) {
		t.Errorf("again: %+v %v", again, err)
	}
	if _, err := rotate(1); err != nil {
		t.Fatal(err)
	}
	// A control plane with the old keys only signs nothing, and starts no more.
	n.signers = old
	if err := work(); !errors.Is(err, audit.ErrSigningKey) {
		t.Errorf("with the old keys: %v", err)
	}
	if err := audit.UseSigningKeys(ctx, n.db.Pool(), n.clock(), old...); !errors.Is(err, audit.ErrSigningKey) {
		t.Errorf("with the old keys: %v", err)
	}
	if _, err := evidence.SignEnvelope(ctx, evidence.InTotoType, []byte("{}"), audit.NewDocumentSigner(n.db.Pool(), logName, old)); !errors.Is(err, audit.ErrSigningKey) {
		t.Errorf("a document with the old key: %v", err)
	}
	both := []evidence.Signer{old[0], next[0], old[1], next[1]}
	n.signers = both
	if err := audit.UseSigningKeys(ctx, n.db.Pool(), n.clock(), both...); err != nil {
		t.Fatal(err)
	}
	if err := work(); err != nil {
		t.Fatal(err)
	}
	newest, err := n.newest(t, org)
	if err != nil || newest.Size != 37 || strings.Count(string(newest.Note), "\u2014") != 4 {
		t.Errorf("%d %s %v", newest.Size, newest.Note, err)
	}
	// An organization that begins now has no key change, and needs none.
	young := storetest.Org(t, n.db)
	appendMany(t, c, young, "w_1", 1, 5)
	if err := work(); err != nil {
		t.Fatal(err)
	}
	if again, err := rotate(1); err != nil || again.Orgs != 0 {
		t.Errorf("again: %+v %v", again, err)
	}

	// The old keys retire.
	n.later(time.Hour)
	appendMany(t, c, org, "w_1", 36, 5)
	if err := work(); err != nil {
		t.Fatal(err)
	}
	if newest, err = n.newest(t, org); err != nil || strings.Count(string(newest.Note), "\u2014") != 2 {
		t.Errorf("%s %v", newest.Note, err)
	}
	n.signers = next
	appendMany(t, c, org, "w_1", 41, 5)
	if err := work(); err != nil {
		t.Fatal(err)
	}
	set, jwks = orgJWKS(t, n, org)
	for _, k := range set.Keys {
		if ended := k.ID == kid(t, old[0]) || k.ID == kid(t, old[1]); ended != (k.To > 0) || ended == (k.From > 0) {
			t.Errorf("%+v", k)
		}
	}
	documents := audit.NewDocumentSigner(n.db.Pool(), logName, both)
	export := exported(t, n, org, documents, audit.ExportOrder{})
	if v := bothVerify(t, set, jwks, export, held...); v.Exit != 0 || len(held) < 6 {
		t.Errorf("%+v", v)
	}
	pinned, err := set.Pin(kid(t, old[0]), kid(t, old[1]))
	if err != nil {
		t.Fatal(err)
	}
	if v := evidence.VerifyChain(bytes.NewReader(export), evidence.ChainOptions{Keys: pinned}); v.Exit != 0 {
		t.Errorf("%+v", v)
	}
	youngSet, youngJWKS := orgJWKS(t, n, young)
	if v := bothVerify(t, youngSet, youngJWKS, exported(t, n, young, documents, audit.ExportOrder{})); v.Exit != 0 {
		t.Errorf("%+v", v)
	}
	// For the directory the public JWKS is enough.
	public, err := audit.PublicKeys(ctx, n.db.Pool(), logName)
	if err != nil || len(public.Changes) != 2 {
		t.Fatalf("%+v %v", public, err)
	}
	rows, err := n.db.Pool().Query(ctx, "SELECT convert_from(note, 'UTF8') FROM directory_checkpoints ORDER BY size")
	if err != nil {
		t.Fatal(err)
	}
	notes, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(notes) < 5 {
		t.Fatal(len(notes), err)
	}
	for _, note := range notes {
		if _, err := public.Open([]byte(note), evidence.DirectoryOrigin(logName)); err != nil {
			t.Errorf("%s: %v", note, err)
		}
	}
	// Each statement is a leaf of the directory's log.
	for _, change := range public.Changes {
		var leaf []byte
		if err := n.db.Pool().QueryRow(ctx, "SELECT data FROM directory_leaves WHERE n = $1", change.Size-1).Scan(&leaf); err != nil || !bytes.Equal(leaf, change.Leaf()) {
			t.Errorf("leaf %d: %q %v", change.Size-1, leaf, err)
		}
	}
	if report := verify(t, n.db, org, 1); report.FirstBad != nil {
		t.Errorf("%+v", report.FirstBad)
	}

	// A node cannot write a key change.
	forged := audit.Stamp(audit.KeysChanged{Role: "p256", Old: "a", New: "b", Size: 48}, org, "w_1", n.clock()).Encode()
	if _, err := c.Append(ctx, audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: []audit.Record{{Org: org, Seq: 46, Prev: 45, Entry: forged}}}); err != nil {
		t.Fatal(err)
	}
	if err := work(); err != nil {
		t.Fatal(err)
	}
	if v := bothVerify(t, set, jwks, exported(t, n, org, documents, audit.ExportOrder{})); v.Exit != 0 {
		t.Errorf("%+v", v)
	}

	// A second rotation. The young organization has its first key change then. An incarnation that
	// has ended has a change behind its end.
	third, _ := signingKeys(t)
	n.signers = []evidence.Signer{next[0], third[0], next[1]}
	admin := storetest.Connect(t, storetest.URL(t, "postgres"))
	if _, err := admin.Exec(ctx, "UPDATE audit_heads SET incarnation = 2 WHERE org_id = $1", org); err != nil {
		t.Fatal(err)
	}
	appendMany(t, c, org, "w_1", 47, 1)
	if err := work(); err != nil {
		t.Fatal(err)
	}
	done, err = c.Rotate(ctx, audit.Rotation{Pool: n.db.Pool(), LogName: logName, Actor: audit.Actor{Kind: "operator", ID: "me@here"}, Old: next[0], New: third[0], Now: n.clock()})
	if err != nil || done.Orgs != 2 {
		t.Fatalf("%+v %v", done, err)
	}
	if err := work(); err != nil {
		t.Fatal(err)
	}
	set, _ = orgJWKS(t, n, org)
	first := evidence.OrgOrigin(logName, org, 1)
	for _, note := range held {
		if c, err := set.Open([]byte(note), strings.SplitN(note, "\n", 2)[0]); err != nil {
			t.Errorf("%+v %v", c, err)
		}
	}
	if !set.Changed(first, evidence.RoleP256) || !set.Changed(evidence.OrgOrigin(logName, org, 2), evidence.RoleP256) {
		t.Errorf("%+v", set.Changes)
	}
	// The key comes back at once where it has to, and never takes its place again.
	if _, err := c.Rotate(ctx, audit.Rotation{Pool: n.db.Pool(), LogName: logName, Actor: audit.Actor{Kind: "operator", ID: "me@here"}, Old: third[0], New: old[0], Now: n.clock()}); err == nil {
		t.Error("an old key came back")
	}
}

// A database is restored, and its chain reopened. A rotation after that signs nothing that
// contradicts what was signed before the loss, whenever it comes. The backup may be from before the
// first checkpoint, and the new incarnation may have no tree yet.
func TestRotateAfterReopen(t *testing.T) {
	for name, late := range map[string]bool{"a checkpoint and a tree": true, "no checkpoint and no new tree": false} {
		t.Run(name, func(t *testing.T) { rotateAfterReopen(t, late, late) })
	}
}

func rotateAfterReopen(t *testing.T, signed, looked bool) {
	ctx := context.Background()
	n := newNotaries(t)
	old := n.signers
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(audit.UseSigningKeys(ctx, n.db.Pool(), n.clock(), old...))
	org := storetest.Org(t, n.db)
	c := chain(t, n.db, 1)
	var held []string
	work := func() {
		t.Helper()
		notary := n.start(t, n.db, n.clock)
		must(errors.Join(notary.Round(ctx), notary.Tick(ctx)))
		notary.Publish(ctx)
		n.later(11 * time.Second)
		newest, err := n.newest(t, org)
		must(err)
		held = append(held, string(newest.Note))
	}
	appendMany(t, c, org, "w_1", 1, 50)
	if signed {
		work()
	}
	_, restore := backUp(t)
	appendMany(t, c, org, "w_1", 51, 15)
	work()
	appendMany(t, c, org, "w_1", 66, 15)
	work()
	restore()
	owner, err := store.Open(ctx, store.Config{URL: storetest.OwnerURL(t), MaxConns: 2})
	must(err)
	defer owner.Close()
	done, err := chain(t, owner, 1).Reopen(ctx, audit.Reopening{Org: org, LogName: logName, Actor: audit.Actor{Kind: "operator", ID: "me@here"}, Reason: "a disk failed",
		Keys: n.keys, Newest: n.anchors[0].Newest})
	if err != nil || done.Incarnation != 2 || done.LostTo != 80 {
		t.Fatalf("%+v %v", done, err)
	}
	if looked {
		work()
	}
	next, _ := signingKeys(t)
	for i := range next {
		_, err := c.Rotate(ctx, audit.Rotation{Pool: n.db.Pool(), LogName: logName, Actor: audit.Actor{Kind: "operator", ID: "me@here"}, Old: old[i], New: next[i],
			Overlap: time.Hour, Now: n.clock()})
		must(err)
	}
	n.signers = []evidence.Signer{old[0], next[0], old[1], next[1]}
	set, err := audit.PublicKeys(ctx, n.db.Pool(), logName)
	must(err)
	n.keys = set
	work()
	n.later(time.Hour)
	appendMany(t, c, org, "w_1", 51, 30)
	n.signers = next
	work()
	// One more: an incarnation that has ended gets a second change behind its end.
	third, _ := signingKeys(t)
	if _, err := c.Rotate(ctx, audit.Rotation{Pool: n.db.Pool(), LogName: logName, Actor: audit.Actor{Kind: "operator", ID: "me@here"}, Old: next[0], New: third[0], Now: n.clock()}); err != nil {
		t.Fatal(err)
	}
	next[0] = third[0]
	n.keys, err = audit.PublicKeys(ctx, n.db.Pool(), logName)
	must(err)
	work()
	set, jwks := orgJWKS(t, n, org)
	for _, note := range held {
		if _, err := set.Open([]byte(note), strings.SplitN(note, "\n", 2)[0]); err != nil {
			t.Errorf("%s: %v", note, err)
		}
	}
	export := exported(t, n, org, next[0], audit.ExportOrder{})
	v := bothVerify(t, set, jwks, export, held...)
	if v.Exit != evidence.Incomplete || !strings.Contains(v.Problem, "entries 51 to 80 were lost") || strings.Contains(v.Problem, "no key") {
		t.Errorf("%+v", v)
	}
	appendMany(t, c, org, "w_1", 81, 3)
	work()
	part := exported(t, n, org, next[0], audit.ExportOrder{After: exportID(t, export)})
	if v := bothVerify(t, set, jwks, part); v.Exit != evidence.Intact {
		t.Errorf("%+v", v)
	}
}
