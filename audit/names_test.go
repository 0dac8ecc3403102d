package audit_test

import (
	"context"
	"flag"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/store/storetest"
)

var invented = flag.Int("invented", 600, "names of models in TestInventedModels")

// Clients choose the names of models, and rejected requests have them too. Usage of names that
// are in no list is one row, also after a recovered completion.
func TestInventedModels(t *testing.T) {
	b := newBooks(t, storetest.Open(t))
	for i := 0; i < *invented; {
		batch := audit.Batch{Org: b.org, Node: "node_1", Writer: "w_1"}
		for ; i < *invented && len(batch.Records) < 500; i++ {
			s := charges(fmt.Sprint("r", i), "w_1", 0, 0, "")
			s.Model, s.ModelUnlisted = fmt.Sprint("invented-", i), true
			switch i % 3 {
			case 1:
				s.Outcome, s.Provider = "refused", ""
			case 2:
				s.DecidedSeq, s.Outcome = b.next["w_1"]+1, audit.OutcomeUnknown
			}
			seq := b.next["w_1"] + 1
			batch.Records = append(batch.Records, audit.Record{Seq: seq, Prev: b.next["w_1"], Org: b.org, Entry: audit.Stamp(s, b.org, "w_1", booked).Encode()})
			b.next["w_1"] = seq
		}
		if _, err := b.c.Append(context.Background(), batch); err != nil {
			t.Fatal(err)
		}
	}
	for table, most := range map[string]int{"usage_daily": 2, "usage_policies": 4} {
		var rows, others int
		var requests int64
		err := b.db.InOrg(context.Background(), b.org, func(tx pgx.Tx) error {
			return tx.QueryRow(context.Background(), "SELECT count(*), count(*) FILTER (WHERE model = '(other)'), sum(requests)::bigint FROM "+table).Scan(&rows, &others, &requests)
		})
		if err != nil || rows > most || others != rows || requests != int64(*invented*most/2) {
			t.Errorf("%s: %d rows, %d of (other), %d requests, %v", table, rows, others, requests, err)
		}
	}
}
