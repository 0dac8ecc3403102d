package audit_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
)

var everyStep = flag.Bool("everystep", false, "TestEveryStep continues each failure in all ways, and not in one of them")

// stepDB fails at one of the steps of a transaction: a statement, or the commit.
type stepDB struct {
	*store.DB
	step  int    // that fails, from 1; 0: none
	how   string // a fail… constant
	steps int    // so far
}

// How a step fails.
const (
	failsBefore = "fails"                      // it is not done
	failsAfter  = "fails, and was done"        // the transaction is rolled back
	failsStored = "its commit is not answered" // of the commit: it is stored, and the caller gets an error
	failsLost   = "its connection is lost"     // the server ends the transaction
)

var errStep = errors.New("the step failed")

// fail reports whether this step fails now, in this way.
func (d *stepDB) fail(how string) bool {
	return d.steps == d.step && d.how == how
}

func (d *stepDB) InOrg(ctx context.Context, org string, fn func(pgx.Tx) error) error {
	stored := false
	err := d.DB.InOrg(ctx, org, func(tx pgx.Tx) error {
		if err := fn(&stepTx{tx, d}); err != nil {
			return err
		}
		d.steps++
		switch {
		case d.fail(failsBefore), d.fail(failsAfter):
			return errStep
		case d.fail(failsLost):
			return tx.Conn().Close(ctx)
		}
		stored = d.fail(failsStored)
		return nil
	})
	if err == nil && stored {
		return errStep
	}
	return err
}

// stepTx counts the statements of a transaction, and fails at one of them.
type stepTx struct {
	pgx.Tx
	d *stepDB
}

func (x *stepTx) step(ctx context.Context) error {
	x.d.steps++
	switch {
	case x.d.fail(failsBefore):
		return errStep
	case x.d.fail(failsLost):
		return errors.Join(errStep, x.Tx.Conn().Close(ctx))
	}
	return nil
}

func (x *stepTx) after() error {
	if x.d.fail(failsAfter) {
		return errStep
	}
	return nil
}

func (x *stepTx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if err := x.step(ctx); err != nil {
		return pgconn.CommandTag{}, err
	}
	tag, err := x.Tx.Exec(ctx, sql, args...)
	return tag, errors.Join(err, x.after())
}

func (x *stepTx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if err := x.step(ctx); err != nil {
		return nil, err
	}
	rows, err := x.Tx.Query(ctx, sql, args...)
	if failed := x.after(); err == nil && failed != nil {
		rows.Close()
		return nil, failed
	}
	return rows, err
}

type failedRow struct{ error }

func (r failedRow) Scan(...any) error { return r.error }

func (x *stepTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if err := x.step(ctx); err != nil {
		return failedRow{err}
	}
	row := x.Tx.QueryRow(ctx, sql, args...)
	if x.d.fail(failsAfter) {
		_ = row.Scan()
		return failedRow{errStep}
	}
	return row
}

type failedBatch struct {
	pgx.BatchResults
	err error
}

func (b failedBatch) Close() error { return b.err }

func (x *stepTx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	if err := x.step(ctx); err != nil {
		return failedBatch{err: err}
	}
	results := x.Tx.SendBatch(ctx, b)
	if x.d.fail(failsAfter) {
		return failedBatch{err: errors.Join(results.Close(), errStep)}
	}
	return results
}

// Every statement of appending, and the commit, fails in every way. The sidecar sends the batch
// again, to the same control plane or to one that has just started, or sends other batches. The
// chain has each record once, and the counts of USD caps and the usage are those of a run
// without a fault.
func TestEveryStep(t *testing.T) {
	ctx := t.Context()
	real := storetest.Open(t)
	limit := usdCap("c", "2026-03", 1000)
	// A first batch reserves and completes. In the second one a threshold is reached, and a real
	// completion replaces an unknown one.
	story := func(b *books) (recs []audit.Record) {
		for i, e := range []audit.Entry{
			reserves("r1", 400, limit), charges("r1", "w_1", 1, 300, "known"), reserves("r2", 400, limit), unknown(charges("r2", "w_1", 3, 400, "reserved")),
			charges("r2", "w_1", 3, 600, "known"), reserves("r3", 50, limit), charges("r3", "w_1", 6, 40, "known"),
		} {
			recs = append(recs, audit.Record{Seq: uint64(i + 1), Prev: uint64(i), Org: b.org, Entry: audit.Stamp(e, b.org, "w_1", booked).Encode()})
		}
		return recs
	}
	send := func(c *audit.Chain, b *books, recs []audit.Record) error {
		_, err := c.Append(ctx, audit.Batch{Org: b.org, Node: "node_1", Writer: "w_1", Records: recs})
		return err
	}
	result := func(b *books) []any {
		b.t.Helper()
		kinds := b.kinds()
		slices.Sort(kinds) // a threshold's place depends on the batches
		return []any{kinds, b.sums(audit.CountName{Counter: "c", Period: "2026-03"}).Counts, b.usage()}
	}
	newChain := func(d *stepDB) *audit.Chain {
		t.Helper()
		c, err := audit.NewChain(audit.ChainConfig{DB: d, Keys: keys(t, 1)})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	owner := storetest.Connect(t, storetest.OwnerURL(t))
	n := 0
	books := func() *books { // without a connection of its own
		t.Helper()
		n++
		org := fmt.Sprintf("org_step%d", n)
		if _, err := owner.Exec(ctx, "SELECT set_config('aid.org', '"+org+"', false); INSERT INTO orgs (org_id, name) VALUES ('"+org+"', '"+org+"')"); err != nil {
			t.Fatal(err)
		}
		return &books{t: t, db: real, org: org, c: chain(t, real, 1), next: map[string]uint64{}}
	}
	var want []any
	steps := 0
	for range 2 { // the first run stores which keys are the installation's
		clean, d := books(), &stepDB{DB: real}
		c := newChain(d)
		if err := errors.Join(send(c, clean, story(clean)[:4]), send(c, clean, story(clean)[4:])); err != nil {
			t.Fatal(err)
		}
		want, steps = result(clean), d.steps
	}
	t.Logf("%d steps: %v", steps, want)
	if steps < 20 {
		t.Fatalf("only %d steps", steps)
	}
	runs, began := 0, time.Now()
	for step := 1; step <= steps; step++ {
		for _, how := range []string{failsBefore, failsAfter, failsStored, failsLost} {
			for i, then := range []string{"the same batch", "other batches", "a restart"} {
				if !*everyStep && (step+len(how))%3 != i {
					continue
				}
				b := books()
				recs := story(b)
				d := &stepDB{DB: real, step: step, how: how}
				c := newChain(d)
				name := fmt.Sprintf("step %d %s, then %s", step, how, then)
				failed := 0
				try := func(recs []audit.Record) error {
					err := send(c, b, recs)
					if err != nil {
						failed++
					}
					return err
				}
				again := func(first []audit.Record) {
					switch then {
					case "the same batch":
						if err := try(first); err != nil {
							t.Fatalf("%s: %v", name, err)
						}
					case "a restart":
						c = newChain(d)
						fallthrough
					default:
						for other := range slices.Chunk(recs, 3) {
							if err := try(other); err != nil {
								t.Fatalf("%s: record %d: %v", name, other[0].Seq, err)
							}
						}
					}
				}
				for _, part := range [][]audit.Record{recs[:4], recs[4:]} {
					if try(part) != nil {
						again(part)
					}
				}
				if failed == 0 && how != failsStored {
					t.Errorf("%s: nothing failed", name)
				}
				if failed == 0 {
					continue // only a commit can be stored without a response
				}
				runs++
				if diff := cmp.Diff(want, result(b)); diff != "" {
					t.Errorf("%s: %s", name, diff)
				}
			}
		}
	}
	t.Logf("%d runs in %v", runs, time.Since(began))
}
