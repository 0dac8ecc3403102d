package audit

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// GrowTree adds up to limit entries to an org's tree, and returns the tree's size.
func GrowTree(ctx context.Context, tx pgx.Tx, org string, limit int64) (size int64, err error) {
	g, err := grow(ctx, tx, org, limit, nil)
	if g.tree != nil {
		size = g.tree.size
	}
	return size, err
}

// SetFault makes a notary fail between its steps.
func (n *Notary) SetFault(fn func(ctx context.Context, step string) error) { n.fault = fn }

// Publish publishes what is waiting to all anchors.
func (n *Notary) Publish(ctx context.Context) bool {
	ok := true
	for i := range n.c.Anchors {
		ok = n.drain(ctx, i) && ok
	}
	return ok
}

// SetFault makes a retention fail between its steps.
func (r *Retention) SetFault(fn func(step string) error) { r.fault = fn }

// InspectTails checks what Inspect would check now.
func (c *Chain) InspectTails(ctx context.Context) error { return c.inspectTails(ctx) }
