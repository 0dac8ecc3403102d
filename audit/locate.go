package audit

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// The places where Locate can find the entry of a receipt.
const (
	PlaceChain   = "chain"   // the entry is in the chain, byte for byte
	PlaceGap     = "gap"     // the chain records the entry as lost
	PlacePending = "pending" // the chain does not have the writer's number yet: the sidecar has the entry, or it is lost
	PlaceMissing = "missing" // the chain has later numbers, and has neither the entry nor a gap

	// The chain had the writer's numbers around it, and they left the database.
	PlaceArchived = "archived"
)

// Place is the place of a receipt's entry.
type Place struct {
	Receipt string `json:"receipt"`
	State   string `json:"state"` // a Place… constant
	Seq     int64  `json:"seq"`   // the org's number of the entry, or of the gap; 0: neither
	Have    int64  `json:"have"`  // the chain's last number of the receipt's writer in this org

	Signature string `json:"signature"` // a Signature… constant
}

// What is known about the signature of a receipt.
const (
	SignatureValid   = "valid"   // the writer's process made it
	SignatureWrong   = "wrong"   // it did not
	SignatureAbsent  = "absent"  // an earlier version made the receipt
	SignatureUnknown = "unknown" // the chain does not have the writer's key yet
)

// locateAtOnce limits the receipts of one statement.
const locateAtOnce = 1000

// Locate finds the entries of receipts in the chain of org, in the order of receipts. It does
// not check the chain: see Verify.
func Locate(ctx context.Context, db DB, org string, receipts []Receipt) ([]Place, error) {
	places := make([]Place, 0, len(receipts))
	for len(receipts) > 0 {
		some := receipts[:min(len(receipts), locateAtOnce)]
		receipts = receipts[len(some):]
		var found []Place
		err := db.InOrg(ctx, org, func(tx pgx.Tx) (err error) {
			found, err = locate(ctx, tx, org, some)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("looking for receipts in the chain of %s: %w", org, err)
		}
		places = append(places, found...)
	}
	return places, nil
}

func locate(ctx context.Context, tx pgx.Tx, org string, receipts []Receipt) ([]Place, error) {
	n := len(receipts)
	places, writers, seqs := make([]Place, n), make([]string, n), make([]int64, n)
	for i, r := range receipts {
		places[i] = Place{Receipt: r.String(), State: PlaceMissing, Signature: SignatureUnknown}
		if !r.Signed {
			places[i].Signature = SignatureAbsent
		}
		writers[i], seqs[i] = r.Writer, int64(r.Seq)
	}
	// Read the last numbers first, so that a record that arrives meanwhile is pending, not missing.
	rows, err := tx.Query(ctx, `SELECT r.i, w.writer_seq FROM unnest($2::text[], $3::bigint[]) WITH ORDINALITY AS r(writer, seq, i)
		JOIN audit_writers w ON w.org_id = $1 AND w.writer = r.writer AND w.lane = ''`, org, writers, seqs)
	if err != nil {
		return nil, err
	}
	var i, have int64
	if _, err = pgx.ForEachRow(rows, []any{&i, &have}, func() error {
		places[i-1].Have = have
		return nil
	}); err != nil {
		return nil, err
	}
	for i := range places {
		if seqs[i] > places[i].Have {
			places[i].State = PlacePending
		}
	}
	// The process has said that the chain has all records up to its watermark.
	rows, err = tx.Query(ctx, `SELECT r.i FROM unnest($2::text[], $3::bigint[]) WITH ORDINALITY AS r(writer, seq, i)
		JOIN audit_watermarks w ON w.org_id = $1 AND w.writer = r.writer AND (w.seq >= r.seq OR w.ended)`, org, writers, seqs)
	if err != nil {
		return nil, err
	}
	if _, err = pgx.ForEachRow(rows, []any{&i}, func() error {
		places[i-1].State = PlaceMissing
		return nil
	}); err != nil {
		return nil, err
	}
	// A gap has the number of the last lost record.
	rows, err = tx.Query(ctx, `SELECT r.i, g.seq FROM unnest($2::text[], $3::bigint[]) WITH ORDINALITY AS r(writer, seq, i)
		JOIN audit_entries g ON g.org_id = $1 AND g.kind = $4 AND g.writer = r.writer AND g.prev_writer_seq < r.seq AND g.writer_seq >= r.seq`,
		org, writers, seqs, KindGap)
	if err != nil {
		return nil, err
	}
	var seq int64
	if _, err = pgx.ForEachRow(rows, []any{&i, &seq}, func() error {
		places[i-1].State, places[i-1].Seq = PlaceGap, seq
		return nil
	}); err != nil {
		return nil, err
	}
	rows, err = tx.Query(ctx, `SELECT r.i, e.seq, e.entry FROM unnest($2::text[], $3::bigint[]) WITH ORDINALITY AS r(writer, seq, i)
		JOIN audit_entries e ON e.org_id = $1 AND e.writer = r.writer AND e.writer_seq = r.seq ORDER BY e.seq DESC`, org, writers, seqs)
	if err != nil {
		return nil, err
	}
	var entry []byte
	if _, err = pgx.ForEachRow(rows, []any{&i, &seq, &entry}, func() error {
		if LeafHash(entry) == receipts[i-1].Leaf {
			places[i-1].State, places[i-1].Seq = PlaceChain, seq
		}
		return nil
	}); err != nil {
		return nil, err
	}
	if err := archivedPlaces(ctx, tx, org, writers, seqs, places); err != nil {
		return nil, err
	}
	return places, signatures(ctx, tx, org, writers, receipts, places)
}

// archivedPlaces finds the receipts whose entries may have left the database: those before the
// first number of their writer that is still there.
func archivedPlaces(ctx context.Context, tx pgx.Tx, org string, writers []string, seqs []int64, places []Place) error {
	if !slices.ContainsFunc(places, func(p Place) bool { return p.State == PlaceMissing }) {
		return nil
	}
	if begin, err := trimmed(ctx, tx, org); err != nil || begin.UpTo == 0 {
		return err
	}
	rows, err := tx.Query(ctx, `SELECT r.i FROM unnest($2::text[], $3::bigint[]) WITH ORDINALITY AS r(writer, seq, i)
		WHERE r.seq <= coalesce((SELECT e.prev_writer_seq FROM audit_entries e WHERE e.org_id = $1 AND e.writer = r.writer AND e.lane = '' ORDER BY e.writer_seq LIMIT 1),
			9223372036854775807)`, org, writers, seqs)
	if err != nil {
		return err
	}
	var i int64
	_, err = pgx.ForEachRow(rows, []any{&i}, func() error {
		if places[i-1].State == PlaceMissing && seqs[i-1] <= places[i-1].Have {
			places[i-1].State = PlaceArchived
		}
		return nil
	})
	return err
}

// signatures verifies signed receipts with the keys in the chain. A writer's first record has its
// key. A fork may have another one.
func signatures(ctx context.Context, tx pgx.Tx, org string, writers []string, receipts []Receipt, places []Place) error {
	rows, err := tx.Query(ctx, `SELECT w.writer, e.entry FROM (SELECT DISTINCT writer FROM unnest($2::text[]) AS u(writer)) w,
		LATERAL (SELECT entry FROM audit_entries WHERE org_id = $1 AND writer = w.writer ORDER BY writer_seq LIMIT 4) e`, org, writers)
	if err != nil {
		return err
	}
	keys := make(map[string][]string)
	var writer string
	var entry []byte
	if _, err = pgx.ForEachRow(rows, []any{&writer, &entry}, func() error {
		if e, err := Parse(entry); err == nil {
			if s, ok := e.(Started); ok && s.Org == org && s.Writer == writer && s.ReceiptKey != "" {
				keys[writer] = append(keys[writer], s.ReceiptKey)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	for i, r := range receipts {
		if !r.Signed || len(keys[r.Writer]) == 0 {
			continue
		}
		places[i].Signature = SignatureWrong
		if slices.ContainsFunc(keys[r.Writer], func(key string) bool { return r.Verify(org, key) == nil }) {
			places[i].Signature = SignatureValid
		}
	}
	return nil
}
