package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ai-identity/ai-identity/audit"
	aidv1 "github.com/ai-identity/ai-identity/proto/aid/v1"
)

// Append takes a node's audit records. A node may write for its own org only.
func (s *Server) Append(g grpc.BidiStreamingServer[aidv1.AppendRequest, aidv1.AppendReply]) error {
	ctx := g.Context()
	n, err := s.identify(ctx)
	if err != nil {
		return err
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
		if n, err = s.node(ctx, presented); err != nil || n.ActiveAt(s.c.Now()) != nil {
			return status.Error(codes.Unauthenticated, "this node was revoked, or cannot be looked up")
		}
		recs := make([]audit.Record, len(req.GetRecords()))
		for i, r := range req.GetRecords() {
			if r.GetOrgId() != n.OrgID {
				s.metrics.records.WithLabelValues("foreign").Inc()
				s.c.Log.ErrorContext(ctx, "a node sends records of another org", "node", n.ID, "org", n.OrgID)
				return status.Error(codes.PermissionDenied, "records of another org")
			}
			recs[i] = audit.Record{Seq: r.GetWriterSeq(), Org: r.GetOrgId(), Entry: r.GetEntry()}
		}
		upTo, err := s.c.Appender.Append(ctx, n.OrgID, req.GetWriter(), recs)
		if err != nil {
			code, result := codes.Unavailable, "failed"
			if errors.Is(err, audit.ErrRefused) {
				code, result = codes.FailedPrecondition, "refused"
			}
			s.metrics.records.WithLabelValues(result).Add(float64(len(recs)))
			if ctx.Err() == nil {
				s.c.Log.ErrorContext(ctx, "appending audit records", "node", n.ID, "org", n.OrgID, "err", err)
			}
			return status.Error(code, "the records were not appended: see the control plane's log")
		}
		s.metrics.records.WithLabelValues("committed").Add(float64(len(recs)))
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
