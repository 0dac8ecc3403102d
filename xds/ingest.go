package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
	aidv1 "github.com/ai-identity/ai-identity/proto/aid/v1"
)

// Append takes a node's audit records. A node may write for the orgs that
// it serves only.
func (s *Server) Append(g grpc.BidiStreamingServer[aidv1.AppendRequest, aidv1.AppendReply]) error {
	ctx := g.Context()
	n, err := s.identify(ctx)
	if err != nil {
		return err
	}
	if !n.Has(identity.NodeExtproc) {
		s.metrics.refused.Inc()
		return status.Error(codes.PermissionDenied, "this node has not the role extproc, which appending audit records requires: make one with `aid node create --role extproc`")
	}
	presented, _ := presentedBy(ctx)
	for {
		req, err := g.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		// Asked anew for each batch: a node that was revoked writes no more.
		n, err = s.node(ctx, presented)
		switch {
		case errors.Is(err, identity.ErrNotFound), err == nil && (n.ActiveAt(s.c.Now()) != nil || !n.Has(identity.NodeExtproc)):
			return status.Error(codes.Unauthenticated, "this node was revoked or has expired")
		case err != nil:
			s.c.Log.WarnContext(ctx, "looking up a node", "err", err)
			return status.Error(codes.Unavailable, "nodes cannot be looked up now")
		}
		if len(req.GetRecords()) == 0 {
			return status.Error(codes.InvalidArgument, "a batch without records")
		}
		// Nothing is appended of a batch that holds a record of another org.
		byOrg := map[string][]audit.Record{}
		for _, r := range req.GetRecords() {
			if !slices.Contains(n.Orgs, r.GetOrgId()) {
				s.metrics.records.WithLabelValues("foreign").Inc()
				s.c.Log.ErrorContext(ctx, "a node sends records of an org that it does not serve", "node", n.ID)
				return status.Error(codes.PermissionDenied, "records of another org")
			}
			byOrg[r.GetOrgId()] = append(byOrg[r.GetOrgId()], audit.Record{Seq: r.GetWriterSeq(), Org: r.GetOrgId(), Entry: r.GetEntry()})
		}
		// Each org has a chain of its own. The reply stands for all of them: after an
		// error the node sends the batch again, and what was appended is not repeated.
		var upTo uint64
		for _, org := range slices.Sorted(maps.Keys(byOrg)) {
			recs := byOrg[org]
			last, err := s.c.Appender.Append(ctx, org, req.GetWriter(), recs)
			if err == nil && last < recs[len(recs)-1].Seq {
				err = fmt.Errorf("only up to record %d", last)
			}
			if err != nil {
				code, result := codes.Unavailable, "failed"
				if errors.Is(err, audit.ErrRefused) {
					code, result = codes.FailedPrecondition, "refused"
				}
				s.metrics.records.WithLabelValues(result).Add(float64(len(recs)))
				if ctx.Err() == nil {
					s.c.Log.ErrorContext(ctx, "appending audit records", "node", n.ID, "org", org, "err", err)
				}
				return status.Error(code, "the records were not appended: see the control plane's log")
			}
			s.metrics.records.WithLabelValues("committed").Add(float64(len(recs)))
			upTo = max(upTo, recs[len(recs)-1].Seq)
		}
		if err := g.Send(&aidv1.AppendReply{WriterSeq: upTo}); err != nil {
			return err
		}
	}
}

// Ingest ships a writer's records to the control plane. It is an audit.Shipper.
type Ingest struct {
	client aidv1.IngestClient
	token  string

	mu     sync.Mutex // held while records are on their way
	stream grpc.BidiStreamingClient[aidv1.AppendRequest, aidv1.AppendReply]
	cancel context.CancelFunc
}

// NewIngest sends over conn as the node with the token; "" is for a client
// certificate.
func NewIngest(conn grpc.ClientConnInterface, token string) *Ingest {
	return &Ingest{client: aidv1.NewIngestClient(conn), token: token}
}

// Send sends recs and waits until all of them are committed.
func (i *Ingest) Send(ctx context.Context, writer string, recs []audit.Record) (uint64, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	upTo, err := i.send(ctx, writer, recs)
	if err != nil {
		i.close() // the next try begins anew
		return 0, fmt.Errorf("sending audit records: %w", err)
	}
	return upTo, nil
}

func (i *Ingest) send(ctx context.Context, writer string, recs []audit.Record) (uint64, error) {
	if i.stream == nil {
		// The stream outlives this call: its context is its own.
		own, cancel := context.WithCancel(bearer(context.WithoutCancel(ctx), i.token))
		stream, err := i.client.Append(own)
		if err != nil {
			cancel()
			return 0, err
		}
		i.stream, i.cancel = stream, cancel
	}
	stop := context.AfterFunc(ctx, i.cancel)
	defer stop()
	req := &aidv1.AppendRequest{Writer: writer, Records: make([]*aidv1.Record, len(recs))}
	for n, r := range recs {
		req.Records[n] = &aidv1.Record{WriterSeq: r.Seq, OrgId: r.Org, Entry: r.Entry}
	}
	// Send's own error is io.EOF, and Recv says why.
	if err := i.stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	reply, err := i.stream.Recv()
	if err != nil {
		return 0, err
	}
	return reply.GetWriterSeq(), nil
}

func (i *Ingest) close() {
	if i.cancel != nil {
		i.cancel()
	}
	i.stream, i.cancel = nil, nil
}

// bearer adds a join token to what is sent. gRPC's own credentials refuse to send
// one without TLS, which a Unix socket does not need.
func bearer(ctx context.Context, token string) context.Context {
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}
