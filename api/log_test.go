package api_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/audit/evidence"
	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// logKey signs as evidence.Signer describes.
type logKey struct{ crypto.Signer }

func (k logKey) Sign(_ context.Context, message []byte) ([]byte, error) {
	if _, ok := k.Public().(ed25519.PublicKey); ok {
		return k.Signer.Sign(rand.Reader, message, crypto.Hash(0))
	}
	sum := sha256.Sum256(message)
	return k.Signer.Sign(rand.Reader, sum[:], crypto.SHA256)
}

// tilesOver reads tiles with a client of tlog.
type tilesOver struct {
	get func(path string) reply
}

func (tilesOver) Height() int                     { return 8 }
func (tilesOver) SaveTiles([]tlog.Tile, [][]byte) {}
func (o tilesOver) ReadTiles(tiles []tlog.Tile) (data [][]byte, err error) {
	for _, t := range tiles {
		r := o.get(strings.Replace(t.Path(), "tile/8/", "tile/", 1))
		if r.status != 200 || r.header.Get("Content-Type") != "application/octet-stream" {
			return nil, fmt.Errorf("%s: %d %s", t.Path(), r.status, r.body)
		}
		data = append(data, []byte(r.body))
	}
	return data, nil
}

// A client of tlog-tiles finds each leaf of the org's tree, and of the directory without a key.
func TestTiles(t *testing.T) {
	w := serve(t)
	stranger := w.orgKey(storetest.Org(t, w.db), identity.Auditor)
	for path, status := range map[string]int{"/v1/audit/checkpoint": 404, "/v1/audit/tile/0/000.p/1": 404, "/log/checkpoint": 503, "/log/tile/0/000": 404} {
		if r := w.call(w.keys[identity.Auditor], "GET", path, ""); r.status != status || r.field("error", "code") == nil {
			t.Errorf("%s of an empty log: %d %s", path, r.status, r.body)
		}
	}
	decided := make([]audit.Decided, 300)
	for i := range decided {
		decided[i] = audit.Decided{RequestID: fmt.Sprint("req_", i), AgentID: "ag_1", Effect: "allow"}
	}
	w.record(decided...)
	p, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, e, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signers := []evidence.Signer{logKey{p}, logKey{e}}
	var keys evidence.KeySet
	for _, s := range signers {
		k, err := evidence.NewKey(s.Public())
		if err != nil {
			t.Fatal(err)
		}
		keys.Keys = append(keys.Keys, k)
	}
	notary, err := audit.NewNotary(audit.NotaryConfig{DB: w.db, Pool: w.db.Pool(), LogName: "aid", Signers: func() []evidence.Signer { return signers }})
	if err != nil {
		t.Fatal(err)
	}
	if err := notary.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := notary.Tick(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, log := range []struct {
		prefix, origin, key string
		leaves              int64
	}{{"/v1/audit/", evidence.OrgOrigin("aid", w.org, 1), w.keys[identity.Auditor], 300}, {"/log/", "aid/directory", "", 1}} {
		get := func(path string) reply { return w.call(log.key, "GET", log.prefix+path, "") }
		note := get("checkpoint")
		c, err := keys.Open([]byte(note.body), log.origin)
		if err != nil || note.header.Get("Content-Type") != "text/plain; charset=utf-8" || c.Size < log.leaves {
			t.Fatalf("%s: %d %v\n%s", log.prefix, note.status, err, note.body)
		}
		r := tlog.TileHashReader(tlog.Tree{N: c.Size, Hash: c.Root}, tilesOver{get})
		for i := int64(0); i < c.Size; i += 37 {
			if _, err := tlog.ProveRecord(c.Size, i, r); err != nil {
				t.Fatalf("%s: leaf %d: %v", log.prefix, i, err)
			}
		}
		for _, path := range []string{"tile/0/001", "tile/0/999.p/1", "tile/9/000", "tile/0/0", "tile/0/000.p/257", "tile/0/000.p/0", "tile/-1/000", "tile/0/x001", "tile/0/../000",
			"tile/6/x999/x999/x999/x999/x999/x999/x999/999", "tile/0/000.p/1/", "tile/0/000%2ep/1x"} {
			if r := get(path); r.status != 404 || r.field("error", "code") == nil {
				t.Errorf("%s%s: %d %s", log.prefix, path, r.status, r.body)
			}
		}
	}
	full := w.call(w.keys[identity.Auditor], "GET", "/v1/audit/tile/0/000", "")
	if !strings.Contains(full.header.Get("Cache-Control"), "immutable") || len(full.body) != 8192 {
		t.Errorf("a full tile: %v, %d bytes", full.header, len(full.body))
	}
	if part := w.call(w.keys[identity.Auditor], "GET", "/v1/audit/tile/0/000.p/7", ""); part.body != full.body[:7*32] {
		t.Errorf("the first hashes of a full tile: %d, %d bytes", part.status, len(part.body))
	}
	if r := w.call(w.keys[identity.Auditor], "GET", "/v1/audit/tile/0/000?incarnation=2", ""); r.status != 404 {
		t.Errorf("another incarnation: %d", r.status)
	}
	if r := w.call(stranger, "GET", "/v1/audit/tile/0/000", ""); r.status != 404 {
		t.Errorf("another org reads the tile: %d", r.status)
	}
}
