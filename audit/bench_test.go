package audit_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/store/storetest"
)

// BenchmarkChain appends batches to the chain of one org in a real Postgres, as ingest does.
// It reports how many entries one chain accepts each second.
func BenchmarkChain(b *testing.B) {
	for _, size := range []int{1, 64, 512} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			db := storetest.Open(b)
			org := storetest.Org(b, db)
			c := chain(b, db, 1)
			from := 1
			for b.Loop() {
				batch := audit.Batch{Org: org, Node: "node_1", Writer: "w_1", Records: records(org, "w_1", from, size)}
				if _, err := c.Append(context.Background(), batch); err != nil {
					b.Fatal(err)
				}
				from += size
			}
			b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}
