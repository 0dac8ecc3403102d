package xds

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
	aidv1 "github.com/ai-identity/ai-identity/proto/aid/v1"
)

// Ledger returns the sums of the counts of USD caps; *audit.Chain is one.
type Ledger interface {
	// Counts returns sums, and stores that the sidecar serves the org.
	Counts(ctx context.Context, r audit.CountsRequest) (audit.Counts, error)
}

// countsAtOnce limits the concurrent reads of sums. Other requests wait.
const countsAtOnce = 4

// Counts returns the sums of an org's counts to a sidecar that serves the org.
func (s *Server) Counts(ctx context.Context, req *aidv1.CountsRequest) (*aidv1.CountsReply, error) {
	n, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	if !n.Has(identity.NodeExtproc) {
		s.metrics.refused.Inc()
		return nil, status.Error(codes.PermissionDenied, "this node has not the role extproc, which reading counts requires: make one with `aid node create --role extproc`")
	}
	if !slices.Contains(n.Orgs, req.GetOrgId()) {
		s.c.Log.ErrorContext(ctx, "a node asks for counts of an org that it does not serve", "node", n.ID)
		return nil, status.Error(codes.PermissionDenied, "counts of another org")
	}
	select {
	case s.counting <- struct{}{}:
		defer func() { <-s.counting }()
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	r := audit.CountsRequest{Org: req.GetOrgId(), Node: n.ID, Writer: req.GetWriter(), Ended: req.GetEndedWriters(), Leaving: req.GetLeaving()}
	for _, name := range req.GetNames() {
		r.Names = append(r.Names, audit.CountName{Counter: name.GetCounter(), Period: name.GetPeriod()})
	}
	got, err := s.c.Ledger.Counts(ctx, r)
	switch {
	case errors.Is(err, audit.ErrRefused):
		return nil, status.Error(codes.InvalidArgument, err.Error())
	case err != nil:
		if ctx.Err() == nil {
			s.c.Log.WarnContext(ctx, "reading counts", "node", n.ID, "org", r.Org, "err", err)
		}
		return nil, status.Error(codes.Unavailable, "counts cannot be read now: see the control plane's log")
	}
	reply := &aidv1.CountsReply{
		AsOf: timestamppb.New(got.AsOf), Sidecars: int32(min(got.Sidecars, 1<<30)), WriterSeq: got.WriterSeq, Lease: durationpb.New(got.Lease),
	}
	for i, c := range got.Counts {
		reply.Counts = append(reply.Counts, &aidv1.Count{
			Name: req.GetNames()[i], ChargedNanoUsd: c.ChargedNanoUSD, Charges: c.Charges, ReservedNanoUsd: c.ReservedNanoUSD,
		})
	}
	return reply, nil
}

// Budgets requests sums from the control plane. It is safe for concurrent use.
type Budgets struct {
	client aidv1.BudgetsClient
	token  string
}

// NewBudgets returns Budgets that request over conn as the node with the token. The token is ""
// for a client certificate.
func NewBudgets(conn grpc.ClientConnInterface, token string) *Budgets {
	return &Budgets{client: aidv1.NewBudgetsClient(conn), token: token}
}

// Counts implements Ledger. The control plane takes the node from the connection. The error
// wraps ErrDenied or audit.ErrRefused if another request cannot help.
func (b *Budgets) Counts(ctx context.Context, r audit.CountsRequest) (audit.Counts, error) {
	req := &aidv1.CountsRequest{OrgId: r.Org, Writer: r.Writer, EndedWriters: r.Ended, Leaving: r.Leaving}
	for _, n := range r.Names {
		req.Names = append(req.Names, &aidv1.CountName{Counter: n.Counter, Period: n.Period})
	}
	reply, err := b.client.Counts(bearer(ctx, b.token), req)
	switch status.Code(err) {
	case codes.OK:
	case codes.Unauthenticated, codes.PermissionDenied:
		return audit.Counts{}, fmt.Errorf("reading counts of %s: %w: %w", r.Org, ErrDenied, err)
	case codes.InvalidArgument:
		return audit.Counts{}, fmt.Errorf("reading counts of %s: %w: %w", r.Org, audit.ErrRefused, err)
	default:
		return audit.Counts{}, fmt.Errorf("reading counts of %s: %w", r.Org, err)
	}
	if len(reply.GetCounts()) != len(r.Names) || reply.GetAsOf() == nil || reply.GetLease().AsDuration() <= 0 {
		return audit.Counts{}, fmt.Errorf("reading counts of %s: the control plane's reply is not whole", r.Org)
	}
	out := audit.Counts{AsOf: reply.GetAsOf().AsTime(), Sidecars: int(reply.GetSidecars()), WriterSeq: reply.GetWriterSeq(), Lease: reply.GetLease().AsDuration()}
	for i, c := range reply.GetCounts() {
		if c.GetName().GetCounter() != r.Names[i].Counter || c.GetName().GetPeriod() != r.Names[i].Period {
			return audit.Counts{}, fmt.Errorf("reading counts of %s: the control plane replies with other counts", r.Org)
		}
		out.Counts = append(out.Counts, audit.Count{
			CountName: r.Names[i], ChargedNanoUSD: c.GetChargedNanoUsd(), Charges: c.GetCharges(), ReservedNanoUSD: c.GetReservedNanoUsd(),
		})
	}
	return out, nil
}
