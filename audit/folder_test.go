package audit_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// A folder can be read when no process uses it. An interrupted write is distinguished from
// damage.
func TestFolder(t *testing.T) {
	dir := t.TempDir()
	w, err := audit.OpenWriter(audit.WriterConfig{Dir: dir, SegmentBytes: 4 << 10, MinFreeBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	var receipts []audit.Receipt
	for range 20 {
		receipts = append(receipts, write(t, w, "org_a", "a", 1)...)
		receipts = append(receipts, write(t, w, "org_b", "b", 2)...)
	}
	if _, err := audit.OpenFolder(dir); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a folder in use: %v", err)
	}
	cancel()
	<-done
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	read := func() (f *audit.Folder, held map[string]bool) {
		f, err := audit.OpenFolder(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		held = map[string]bool{}
		if err := f.Each(func(r audit.FolderRecord) error { held[r.Receipt().String()] = true; return nil }); err != nil {
			t.Fatal(err)
		}
		return f, held
	}
	f, held := read()
	if f.Damaged != 0 || f.Records != 62 || f.Unacked != 62 || len(f.Segments) < 3 {
		t.Errorf("%+v", f)
	}
	for _, r := range receipts {
		if !held[r.String()] {
			t.Errorf("%s is not in the folder", r)
		}
	}
	orgs := map[string]int64{}
	for _, s := range f.Segments {
		for org, n := range s.Orgs {
			orgs[org] += n
		}
		if s.Records > 0 && (s.Writer != receipts[0].Writer || s.Acked || s.Torn != 0) {
			t.Errorf("%+v", s)
		}
	}
	if orgs["org_a"] != 21 || orgs["org_b"] != 41 {
		t.Errorf("records by org: %v", orgs)
	}
	if _, err := audit.OpenWriter(audit.WriterConfig{Dir: dir, MinFreeBytes: -1}); err != nil {
		t.Errorf("reading kept the lock: %v", err)
	}

	// A wrong byte in the middle is damage. A wrong byte at the end of the last file is not.
	f, _ = read2(t, dir)
	for _, s := range f.Segments {
		path := filepath.Join(dir, s.File)
		if s.Records < 4 {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[s.Bytes/2] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		break
	}
	f, held = read2(t, dir)
	if f.Damaged != 1 || len(held) == 0 {
		t.Errorf("%d damaged, %d records before the damage", f.Damaged, len(held))
	}
}

// read2 reads a copy, which is not locked.
func read2(t *testing.T, dir string) (*audit.Folder, map[string]bool) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil {
		t.Fatal(err)
	}
	to := t.TempDir()
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(file)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := audit.OpenFolder(to)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	held := map[string]bool{}
	if err := f.Each(func(r audit.FolderRecord) error { held[r.Receipt().String()] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	return f, held
}

// A receipt is in the chain, in a gap, pending, or missing.
func TestLocate(t *testing.T) {
	db := storetest.Open(t)
	org := storetest.Org(t, db)
	c := chain(t, db, 1)
	recs := records(org, "w_1", 1, 9)
	receipt := func(r audit.Record) audit.Receipt {
		return audit.Receipt{Writer: "w_1", Seq: r.Seq, Leaf: audit.LeafHash(r.Entry)}
	}
	// 1 to 3 arrived, 4 to 6 are lost, 7 arrived, 8 and 9 are waiting.
	gap := audit.Record{Seq: 6, Prev: 3, Org: org, Entry: audit.Gap{Org: org, Writer: "w_1", After: 3, Last: 6}.Encode()}
	for _, batch := range [][]audit.Record{recs[:3], {gap}, recs[6:7]} {
		if _, err := c.Append(context.Background(), audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: batch}); err != nil {
			t.Fatal(err)
		}
	}
	changed := receipt(recs[1])
	changed.Leaf[0] ^= 1
	places, err := audit.Locate(context.Background(), db, org, []audit.Receipt{
		receipt(recs[0]), receipt(recs[3]), receipt(recs[5]), receipt(recs[6]), receipt(recs[8]), changed, {Writer: "w_other", Seq: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"chain", "gap", "gap", "chain", "pending", "missing", "pending"}
	for i, p := range places {
		if p.State != want[i] {
			t.Errorf("receipt %d: %+v, want %s", i, p, want[i])
		}
	}
	if places[0].Seq != 1 || places[1].Seq != 4 || places[3].Seq != 5 || places[4].Have != 7 {
		t.Errorf("%+v", places)
	}
}
