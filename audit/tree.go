package audit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// A tile has 256 hashes. Source: https://c2sp.org/tlog-tiles.
const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
	tileBytes  = tileWidth * tlog.HashSize
)

// ErrTree means that a tree does not fit what is stored about it. Nothing is signed for it.
var ErrTree = errors.New("the tree behind the audit log is damaged")

// ErrBeyond means that a tree has fewer leaves than were requested.
var ErrBeyond = errors.New("the tree has fewer leaves")

// merkle is a tree that grows at its end. It has the hashes of the tiles that are not full.
type merkle struct {
	size int64
	edge [][]tlog.Hash // by level
	full []tile        // became full and are not stored yet
}

type tile struct {
	level  int16
	n      int64
	hashes []byte
}

// add adds a leaf by its hash.
func (m *merkle) add(h tlog.Hash) {
	for level := 0; ; level++ {
		if level == len(m.edge) {
			m.edge = append(m.edge, make([]tlog.Hash, 0, tileWidth))
		}
		e := append(m.edge[level], h)
		if len(e) < tileWidth {
			m.edge[level] = e
			break
		}
		t := tile{level: int16(level), n: m.size >> ((level + 1) * tileHeight), hashes: make([]byte, 0, tileBytes)}
		for i := range e {
			t.hashes = append(t.hashes, e[i][:]...)
		}
		m.full = append(m.full, t)
		h = subtree(e)
		m.edge[level] = e[:0]
	}
	m.size++
}

// subtree returns the root over hashes, whose number is a power of two. It overwrites them.
func subtree(hashes []tlog.Hash) tlog.Hash {
	for n := len(hashes); n > 1; n /= 2 {
		for i := range n / 2 {
			hashes[i] = node(hashes[2*i], hashes[2*i+1])
		}
	}
	return hashes[0]
}

// node is tlog.NodeHash without an allocation.
func node(left, right tlog.Hash) tlog.Hash {
	var b [1 + 2*tlog.HashSize]byte
	b[0] = 1
	copy(b[1:], left[:])
	copy(b[1+tlog.HashSize:], right[:])
	return sha256.Sum256(b[:])
}

// state returns the roots of the complete subtrees.
func (m *merkle) state() *evidence.Range {
	var hashes []tlog.Hash
	for level := len(m.edge) - 1; level >= 0; level-- {
		rest := append([]tlog.Hash(nil), m.edge[level]...)
		for len(rest) > 0 {
			n := 1 << (bits.Len(uint(len(rest))) - 1)
			hashes = append(hashes, subtree(rest[:n]))
			rest = rest[n:]
		}
	}
	r, err := evidence.NewRange(m.size, hashes)
	if err != nil {
		panic(err) // add and parseEdge keep the lengths
	}
	return r
}

func (m *merkle) root() tlog.Hash { return m.state().Root() }

// bytes returns the hashes of the edge, level 0 first. Their numbers follow from the size.
func (m *merkle) bytes() []byte {
	b := []byte{}
	for _, level := range m.edge {
		for i := range level {
			b = append(b, level[i][:]...)
		}
	}
	return b
}

// parseTree returns a stored tree. It computes the root again.
func parseTree(size int64, root, edge []byte) (*merkle, error) {
	m := &merkle{size: size}
	for level := 0; size>>(level*tileHeight) > 0; level++ {
		n := int(size >> (level * tileHeight) & (tileWidth - 1))
		if len(edge) < n*tlog.HashSize {
			return nil, fmt.Errorf("%w: its edge has too few hashes for %d leaves", ErrTree, size)
		}
		hashes := make([]tlog.Hash, n, tileWidth)
		for i := range hashes {
			copy(hashes[i][:], edge[i*tlog.HashSize:])
		}
		m.edge, edge = append(m.edge, hashes), edge[n*tlog.HashSize:]
	}
	if len(edge) > 0 {
		return nil, fmt.Errorf("%w: its edge has too many hashes for %d leaves", ErrTree, size)
	}
	if got := m.root(); string(got[:]) != string(root) {
		return nil, fmt.Errorf("%w: its edge has another root than it", ErrTree)
	}
	return m, nil
}

// A forest has the tables of a kind of tree.
type forest struct {
	tree  string // SELECT size, root, edge
	tiles string // SELECT level, n, nodes of the levels and numbers in the last two arguments
	args  []any  // of both, before those
}

func orgForest(org string, incarnation int64) forest {
	return forest{
		tree: "SELECT size, root, edge FROM audit_trees WHERE org_id = $1 AND incarnation = $2",
		tiles: `SELECT t.level, t.n, t.nodes FROM unnest($3::smallint[], $4::bigint[]) AS u(level, n)
			JOIN audit_tiles t ON t.org_id = $1 AND t.incarnation = $2 AND t.level = u.level AND t.n = u.n`,
		args: []any{org, incarnation},
	}
}

var directoryForest = forest{
	tree:  "SELECT size, root, edge FROM directory_tree",
	tiles: "SELECT t.level, t.n, t.nodes FROM unnest($1::smallint[], $2::bigint[]) AS u(level, n) JOIN directory_tiles t USING (level, n)",
}

// load reads a tree.
func (f forest) load(ctx context.Context, tx pgx.Tx) (*merkle, error) {
	var size int64
	var root, edge []byte
	err := tx.QueryRow(ctx, f.tree, f.args...).Scan(&size, &root, &edge)
	if err != nil {
		return nil, err
	}
	return parseTree(size, root, edge)
}

// reader returns the hashes of m. Every tile that is read is checked against m's root.
func (f forest) reader(ctx context.Context, tx pgx.Tx, m *merkle) tlog.HashReader {
	return tlog.TileHashReader(tlog.Tree{N: m.size, Hash: m.root()}, &tileReader{ctx, tx, f, m})
}

// partial returns the data of a tile at the edge, or nil if t is not there or not as wide.
func (m *merkle) partial(t tlog.Tile) (data []byte) {
	if t.L < 0 || t.L >= len(m.edge) || t.N != m.size>>((t.L+1)*tileHeight) || t.W < 1 || t.W != len(m.edge[t.L]) {
		return nil
	}
	for i := range m.edge[t.L] {
		data = append(data, m.edge[t.L][i][:]...)
	}
	return data
}

// tileReader reads tiles for tlog.
type tileReader struct {
	ctx context.Context
	tx  pgx.Tx
	f   forest
	m   *merkle
}

func (*tileReader) Height() int                     { return tileHeight }
func (*tileReader) SaveTiles([]tlog.Tile, [][]byte) {}

// ReadTiles returns the data of tiles: full ones from the database, others from the edge.
func (r *tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	var levels []int16
	var ns []int64
	for i, t := range tiles {
		if t.W == tileWidth {
			levels, ns = append(levels, int16(t.L)), append(ns, t.N)
			continue
		}
		if data[i] = r.m.partial(t); data[i] == nil {
			return nil, fmt.Errorf("%w: %s is not at its edge", ErrTree, t.Path())
		}
	}
	if len(ns) == 0 {
		return data, nil
	}
	full, err := r.f.read(r.ctx, r.tx, levels, ns)
	if err != nil {
		return nil, err
	}
	for i, t := range tiles {
		if t.W == tileWidth {
			if data[i] = full[tileKey{int16(t.L), t.N}]; data[i] == nil {
				return nil, fmt.Errorf("%w: tile %s is missing", ErrTree, t.Path())
			}
		}
	}
	return data, nil
}

type tileKey struct {
	level int16
	n     int64
}

// read reads full tiles.
func (f forest) read(ctx context.Context, tx pgx.Tx, levels []int16, ns []int64) (map[tileKey][]byte, error) {
	rows, err := tx.Query(ctx, f.tiles, append(append([]any(nil), f.args...), levels, ns)...)
	if err != nil {
		return nil, fmt.Errorf("reading tiles: %w", err)
	}
	found := make(map[tileKey][]byte)
	var k tileKey
	var hashes []byte
	_, err = pgx.ForEachRow(rows, []any{&k.level, &k.n, &hashes}, func() error {
		found[k] = append([]byte(nil), hashes...)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading tiles: %w", err)
	}
	return found, nil
}

// prove runs a proof over a tree that must have at least size leaves.
func (f forest) prove(ctx context.Context, tx pgx.Tx, size int64, proof func(tlog.HashReader) error) error {
	m, err := f.load(ctx, tx)
	if errors.Is(err, pgx.ErrNoRows) {
		m, err = &merkle{}, nil
	}
	if err != nil {
		return err
	}
	if size > m.size {
		return fmt.Errorf("%w: it has %d, and %d were requested", ErrBeyond, m.size, size)
	}
	if m.size == 0 {
		return nil
	}
	return damaged(proof(f.reader(ctx, tx, m)))
}

// damaged makes an error of tlog, which has found a wrong tile, an ErrTree.
func damaged(err error) error {
	var pg interface{ SQLState() string }
	if err == nil || errors.Is(err, ErrTree) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &pg) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrTree, err)
}

func (f forest) inclusion(ctx context.Context, tx pgx.Tx, index, size int64) (p []tlog.Hash, err error) {
	if index < 0 || index >= size {
		return nil, fmt.Errorf("%w: leaf %d of a tree with %d", ErrBeyond, index, size)
	}
	err = f.prove(ctx, tx, size, func(r tlog.HashReader) (err error) {
		p, err = tlog.ProveRecord(size, index, r)
		return err
	})
	return p, err
}

func (f forest) consistency(ctx context.Context, tx pgx.Tx, old, size int64) (p []tlog.Hash, err error) {
	if old < 0 || old > size {
		return nil, fmt.Errorf("%w: %d of a tree with %d", ErrBeyond, old, size)
	}
	err = f.prove(ctx, tx, size, func(r tlog.HashReader) (err error) {
		if old > 0 {
			p, err = tlog.ProveTree(size, old, r)
		}
		return err
	})
	return p, err
}

func (f forest) before(ctx context.Context, tx pgx.Tx, size int64) (*evidence.Range, error) {
	if size < 0 {
		return nil, fmt.Errorf("%w: %d", ErrBeyond, size)
	}
	var hashes []tlog.Hash
	err := f.prove(ctx, tx, size, func(r tlog.HashReader) (err error) {
		var indexes []int64
		at := int64(0)
		for rest := size; rest > 0; {
			level := bits.Len64(uint64(rest)) - 1
			indexes = append(indexes, tlog.StoredHashIndex(level, at>>level))
			at, rest = at+1<<level, rest-1<<level
		}
		hashes, err = r.ReadHashes(indexes)
		return err
	})
	if err != nil {
		return nil, err
	}
	return evidence.NewRange(size, hashes)
}

// Inclusion proves that the leaf with this index is in the tree of an org's incarnation with
// size leaves. tx has the org set.
func Inclusion(ctx context.Context, tx pgx.Tx, org string, incarnation, index, size int64) ([]tlog.Hash, error) {
	return orgForest(org, incarnation).inclusion(ctx, tx, index, size)
}

// Consistency proves that the tree with old leaves is the beginning of the one with size.
func Consistency(ctx context.Context, tx pgx.Tx, org string, incarnation, old, size int64) ([]tlog.Hash, error) {
	return orgForest(org, incarnation).consistency(ctx, tx, old, size)
}

// RangeBefore returns the tree of an org's incarnation as it was with size leaves.
func RangeBefore(ctx context.Context, tx pgx.Tx, org string, incarnation, size int64) (*evidence.Range, error) {
	return orgForest(org, incarnation).before(ctx, tx, size)
}

// A TilePath is the place of a tile: LEVEL/INDEX, as tlog-tiles writes it, such as 0/x001/234
// or 1/000.p/8. The zero TilePath is invalid.
type TilePath struct{ t tlog.Tile }

// ParseTilePath parses the part of a path after "tile/".
func ParseTilePath(path string) (TilePath, bool) {
	t, err := tlog.ParseTilePath("tile/8/" + path)
	if err != nil || t.L < 0 || t.L > 6 || t.N < 0 || t.N >= 1<<(63-tileHeight*(t.L+1)) {
		return TilePath{}, false
	}
	return TilePath{t}, true
}

// Full reports whether the tile can never change.
func (p TilePath) Full() bool { return p.t.W == tileWidth }

// Tile returns a tile of the tree of an org's incarnation. A partial tile of an earlier size is
// the beginning of the present one. The error is ErrBeyond if the tree has fewer hashes there.
func Tile(ctx context.Context, tx pgx.Tx, org string, incarnation int64, p TilePath) ([]byte, error) {
	return orgForest(org, incarnation).tile(ctx, tx, p.t)
}

// DirectoryTile returns a tile of the directory's log.
func DirectoryTile(ctx context.Context, tx pgx.Tx, p TilePath) ([]byte, error) {
	return directoryForest.tile(ctx, tx, p.t)
}

func (f forest) tile(ctx context.Context, tx pgx.Tx, t tlog.Tile) ([]byte, error) {
	full, err := f.read(ctx, tx, []int16{int16(t.L)}, []int64{t.N})
	if err != nil {
		return nil, err
	}
	data := full[tileKey{int16(t.L), t.N}]
	if data == nil && t.W < tileWidth {
		m, err := f.load(ctx, tx)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return nil, err
		}
		if err == nil && t.L < len(m.edge) {
			data = m.partial(tlog.Tile{L: t.L, N: t.N, W: len(m.edge[t.L])})
		}
	}
	if len(data) < t.W*tlog.HashSize {
		return nil, fmt.Errorf("%w: it has no tile %s", ErrBeyond, t.Path())
	}
	return data[:t.W*tlog.HashSize], nil
}

// growBatch is how many entries one transaction adds to a tree. It takes about 0.2 s.
const growBatch = 10_000

// growth is the result of grow.
type growth struct {
	incarnation int64
	firstSeq    int64
	tree        *merkle
	head        int64 // of the chain
	added       int
	busy        bool // another process has the tree
}

// behind returns how many entries are not in the tree.
func (g growth) behind() int64 {
	if g.busy || g.tree == nil {
		return 0
	}
	return g.head - (g.firstSeq + g.tree.size - 1)
}

// lockTree locks the tree of the newest incarnation of the org, which tx has set. It makes
// the tree first if it does not exist.
func lockTree(ctx context.Context, tx pgx.Tx, org string) (g growth, err error) {
	err = tx.QueryRow(ctx, "SELECT seq, incarnation FROM audit_heads WHERE org_id = $1", org).Scan(&g.head, &g.incarnation)
	if err != nil {
		return g, fmt.Errorf("reading the audit log's head: %w", err)
	}
	for range 2 {
		var size int64
		var root, edge []byte
		err = tx.QueryRow(ctx, `SELECT first_seq, size, root, edge FROM audit_trees WHERE org_id = $1 AND incarnation = $2
			FOR UPDATE SKIP LOCKED`, org, g.incarnation).Scan(&g.firstSeq, &size, &root, &edge)
		if err == nil {
			if g.tree, err = parseTree(size, root, edge); err != nil {
				err = fmt.Errorf("%s: %w", org, err)
			}
			return g, err
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return g, err
		}
		made, err := makeTree(ctx, tx, org, g.incarnation)
		if err != nil {
			return g, err
		}
		if !made {
			break
		}
	}
	g.busy = true
	return g, nil
}

// makeTree makes the empty tree of an incarnation. It returns false if the tree exists.
func makeTree(ctx context.Context, tx pgx.Tx, org string, incarnation int64) (bool, error) {
	first, err := firstSeq(ctx, tx, org, incarnation)
	if err != nil {
		return false, err
	}
	none := (&merkle{}).root()
	made, err := tx.Exec(ctx, `INSERT INTO audit_trees (org_id, incarnation, first_seq, root, edge) VALUES ($1, $2, $3, $4, '') ON CONFLICT DO NOTHING`,
		org, incarnation, first, none[:])
	return made.RowsAffected() > 0, err
}

// grow adds the next entries of an org's chain to its tree. The entries are committed and
// their numbers have no gap, so the tree is a function of them.
func grow(ctx context.Context, tx pgx.Tx, org string, limit int64, seen *ownTree) (growth, error) {
	g, err := lockTree(ctx, tx, org)
	if err != nil || g.busy || g.behind() <= 0 {
		return g, err
	}
	from := g.firstSeq + g.tree.size
	to := min(g.head, from+limit-1)
	err = leaves(ctx, tx, org, g.incarnation, from, to, func(h tlog.Hash) {
		seen.add(g.incarnation, g.tree.size, h)
		g.tree.add(h)
	})
	if err != nil {
		return g, fmt.Errorf("%s: %w", org, err)
	}
	g.added = int(to - from + 1)
	return g, orgForest(org, g.incarnation).save(ctx, tx, g.tree,
		"INSERT INTO audit_tiles (org_id, incarnation, level, n, nodes) SELECT $1, $2, u.level, u.n, u.nodes",
		"UPDATE audit_trees SET size = $3, root = $4, edge = $5 WHERE org_id = $1 AND incarnation = $2")
}

// ownTree is a tree that a process has computed from entries. It starts from a signed
// checkpoint, so what is stored between two checkpoints does not change it. A nil one notes nothing.
type ownTree struct {
	incarnation int64
	evidence.Range
}

// add adds the leaf with this index, unless it is not the next one.
func (o *ownTree) add(incarnation, index int64, h tlog.Hash) {
	if o != nil && o.incarnation == incarnation && o.Size() == index {
		o.Append(h)
	}
}

// ownAtOnce limits the entries that confirm reads in one transaction, in which others may wait.
const ownAtOnce = 100_000

// confirm compares the tree of g with the entries since the last checkpoint, whose size and root
// are given. It reads those that the process has not seen when the tree grew. It returns false if
// there are more to read, in another transaction.
func (o *ownTree) confirm(ctx context.Context, tx pgx.Tx, org string, g growth, size int64, root tlog.Hash) (bool, error) {
	if o.incarnation != g.incarnation || o.Size() < size || o.Size() > g.tree.size {
		r, err := RangeBefore(ctx, tx, org, g.incarnation, size)
		if err != nil {
			return false, err
		}
		if r.Root() != root {
			return false, fmt.Errorf("%w: its first %d leaves are not those that were signed", ErrTree, size)
		}
		o.incarnation, o.Range = g.incarnation, *r
	}
	from, to := g.firstSeq+o.Size(), g.firstSeq+min(g.tree.size, o.Size()+ownAtOnce)-1
	if from <= to {
		if err := leaves(ctx, tx, org, g.incarnation, from, to, o.Append); err != nil {
			return false, err
		}
	}
	if o.Size() < g.tree.size {
		return false, nil
	}
	if o.Root() != g.tree.root() {
		o.incarnation = 0 // the next try reads every entry since the checkpoint
		return false, fmt.Errorf("%w: its leaves since the last checkpoint, from %d on, are not the entries", ErrTree, size)
	}
	return true, nil
}

// save stores a tree that has grown.
func (f forest) save(ctx context.Context, tx pgx.Tx, m *merkle, insert, update string) error {
	levels, ns, hashes := make([]int16, len(m.full)), make([]int64, len(m.full)), make([][]byte, len(m.full))
	for i, t := range m.full {
		levels[i], ns[i], hashes[i] = t.level, t.n, t.hashes
	}
	var b pgx.Batch
	if n := len(f.args); len(levels) > 0 {
		b.Queue(fmt.Sprintf("%s FROM unnest($%d::smallint[], $%d::bigint[], $%d::bytea[]) AS u(level, n, nodes)", insert, n+1, n+2, n+3),
			append(append([]any(nil), f.args...), levels, ns, hashes)...)
	}
	root := m.root()
	b.Queue(update, append(append([]any(nil), f.args...), m.size, root[:], m.bytes())...)
	if err := tx.SendBatch(ctx, &b).Close(); err != nil {
		return fmt.Errorf("storing the tree: %w", err)
	}
	m.full = nil
	return nil
}

// leafHash is tlog.RecordHash of data[1:] without an allocation. data[0] is 0.
func leafHash(data []byte) tlog.Hash { return sha256.Sum256(data) }

// leaves calls fn with the hash of each entry's leaf, in order. An entry that is missing or
// belongs to another incarnation is an ErrTree.
func leaves(ctx context.Context, tx pgx.Tx, org string, incarnation, from, to int64, fn func(tlog.Hash)) error {
	rows, err := tx.Query(ctx, `SELECT seq, appended_at, time, kind, agent_id, session_id, request_id, writer, writer_seq, prev_writer_seq, incarnation,
			sha256('\x00'::bytea || entry)
		FROM audit_entries WHERE org_id = $1 AND seq >= $2 AND seq <= $3 ORDER BY seq, appended_at`, org, from, to)
	if err != nil {
		return fmt.Errorf("reading audit entries: %w", err)
	}
	defer rows.Close()
	l := evidence.Link{Org: org}
	var appendedAt, at pgtype.Timestamptz
	var entry []byte
	var b []byte
	want := from
	for rows.Next() {
		err := rows.Scan(&l.Seq, &appendedAt, &at, &l.Kind, &l.AgentID, &l.SessionID, &l.RequestID, &l.Writer, &l.WriterSeq, &l.PrevWriterSeq, &l.Incarnation, &entry)
		switch {
		case err != nil:
			return fmt.Errorf("reading audit entries: %w", err)
		case l.Seq != want:
			return fmt.Errorf("%w: entry %d is missing or is there twice", ErrTree, want)
		case l.Incarnation != incarnation:
			return fmt.Errorf("%w: entry %d has incarnation %d, and the chain has %d", ErrTree, l.Seq, l.Incarnation, incarnation)
		case appendedAt.InfinityModifier != pgtype.Finite || at.InfinityModifier != pgtype.Finite || len(entry) != len(l.Entry):
			return fmt.Errorf("%w: entry %d has an invalid time", ErrTree, l.Seq)
		}
		l.AppendedAt, l.Time, l.Entry = appendedAt.Time, at.Time, [32]byte(entry)
		b = l.Append(append(b[:0], 0))
		fn(leafHash(b))
		want++
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("reading audit entries: %w", err)
	}
	if want <= to {
		return fmt.Errorf("%w: entry %d is missing", ErrTree, want)
	}
	return nil
}
