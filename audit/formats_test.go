package audit_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// testdata/v1 was written by the build of 73cbabe. It has a chain with MACs of version 1. It
// also has the AIDSEG1 folder of the sidecar, which was killed before it shipped all records.
type oldChain struct {
	Org      string         `json:"org"`
	Receipts []string       `json:"receipts"`
	Entries  []audit.Stored `json:"entries"`
}

// loadOld inserts the rows into a current database, as after the migration.
func loadOld(t *testing.T, db *store.DB) oldChain {
	t.Helper()
	b, err := os.ReadFile("testdata/v1/chain.json")
	if err != nil {
		t.Fatal(err)
	}
	var old oldChain
	if err := json.Unmarshal(b, &old); err != nil {
		t.Fatal(err)
	}
	conn := superuser(t, db)
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(context.Background(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec(`SET session_replication_role = replica`)
	exec(`INSERT INTO orgs (org_id, name) VALUES ($1, 'old') ON CONFLICT DO NOTHING`, old.Org)
	for _, s := range old.Entries {
		e, err := s.Parse()
		if err != nil {
			t.Fatal(err)
		}
		h := e.Head()
		exec(`INSERT INTO audit_entries (org_id, seq, appended_at, time, kind, agent_id, request_id, writer, writer_seq, entry, epoch, prev_mac, mac)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`,
			old.Org, s.Seq, s.AppendedAt, h.Time, s.Kind, h.AgentID, h.RequestID, s.Writer, s.WriterSeq, s.Entry, s.Epoch, append([]byte{}, s.PrevMAC...), s.MAC)
	}
	last := old.Entries[len(old.Entries)-1]
	exec(`INSERT INTO audit_heads (org_id, seq, epoch, mac) VALUES ($1, $2, $3, $4)
		ON CONFLICT (org_id) DO UPDATE SET seq = EXCLUDED.seq, epoch = EXCLUDED.epoch, mac = EXCLUDED.mac`, old.Org, last.Seq, last.Epoch, last.MAC)
	exec(`INSERT INTO audit_writers (org_id, writer, writer_seq) VALUES ($1, $2, $3)`, old.Org, last.Writer, last.WriterSeq)
	return old
}

// The history of earlier builds verifies, and this build continues it. Records that their
// sidecars had not shipped arrive.
func TestOldFormats(t *testing.T) {
	db := storetest.Open(t)
	old := loadOld(t, db)
	n := int64(len(old.Entries))
	if r := verify(t, db, old.Org, 1); r.FirstBad != nil || r.Entries != n || r.Malformed != 0 {
		t.Fatalf("%+v", r)
	}
	dir := t.TempDir()
	name := "00000000000000000001.seg"
	b, err := os.ReadFile(filepath.Join("testdata/v1/segments", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := audit.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if s := f.Segments[0]; f.Damaged != 0 || s.Version != 1 || f.Records <= n || s.Torn != 0 {
		t.Errorf("%+v", s)
	}
	var receipts []audit.Receipt
	for _, s := range old.Receipts {
		r, err := audit.ParseReceipt(s)
		if err != nil {
			t.Fatal(err)
		}
		receipts = append(receipts, r)
	}
	if n := hasAll(t, db, old.Org, receipts); n != 5 {
		t.Errorf("%d receipts are missing before, want the 5 that were not shipped", n)
	}
	w := sidecar(t, dir, audit.WriterConfig{MinFreeBytes: -1})
	shipAll(t, w, direct{chain(t, db, 1), "node_1"})
	receipts = append(receipts, write(t, w, old.Org, "new", 3)...)
	shipAll(t, w, direct{chain(t, db, 1), "node_1"})
	if n := hasAll(t, db, old.Org, receipts); n != 0 {
		t.Errorf("%d receipts are missing", n)
	}
	if r := verify(t, db, old.Org, 1); r.FirstBad != nil || r.Entries <= n || r.Gaps+r.Forks != 0 {
		t.Errorf("%+v", r)
	}

	// A changed row of version 1 is found, and cannot be presented as version 2.
	conn := superuser(t, db)
	set := func(change string) {
		t.Helper()
		for _, sql := range []string{`SET session_replication_role = replica`, `UPDATE audit_entries SET ` + change + ` WHERE org_id = '` + old.Org + `' AND seq = 4`} {
			if _, err := conn.Exec(context.Background(), sql); err != nil {
				t.Fatal(err)
			}
		}
	}
	for change, undo := range map[string]string{
		`entry = entry || '\x20'::bytea`: `entry = substring(entry FROM 1 FOR length(entry) - 1)`,
		`writer_seq = writer_seq + 1`:    `writer_seq = writer_seq - 1`,
		`mac_version = 2`:                `mac_version = 1`,
	} {
		set(change)
		if r := verify(t, db, old.Org, 1); r.FirstBad == nil || r.FirstBad.Seq != 4 {
			t.Errorf("%s: %+v", change, r.FirstBad)
		}
		set(undo)
	}
	if r := verify(t, db, old.Org, 1); r.FirstBad != nil {
		t.Errorf("put back: %+v", r.FirstBad)
	}
}
