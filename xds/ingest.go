package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/identity"
	aidv1 "github.com/ai-identity/ai-identity/proto/aid/v1"
)

// Append accepts a node's audit records. A node may write only for the orgs that it serves.
func (s *Server) Append(g grpc.BidiStreamingServer[aidv1.AppendRequest, aidv1.AppendReply]) error {
	ctx := g.Context()
	n, err := s.identify(ctx)
	if err != nil {
		return err
	}
	if !n.Has(identity.NodeExtproc) {
		s.metrics.refused.Inc()
		return status.Error(codes.PermissionDenied, "this node does not have the role extproc, which appending audit records requires: create a node with `aid node create --role extproc`")
	}
	presented, _ := presentedBy(ctx)
	st := s.appending(n)
	defer s.appended(st)
	reqs, failed := make(chan *aidv1.AppendRequest), make(chan error, 1)
	go func() {
		for {
			req, err := g.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case reqs <- req:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		var req *aidv1.AppendRequest
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case req = <-reqs:
		case <-st.woken:
		}
		// Asked anew for each batch, and whenever the node may have changed: a node that
		// was revoked writes no more, and its stream ends.
		n, err = s.node(ctx, presented)
		switch {
		case errors.Is(err, identity.ErrNotFound), err == nil && (n.ActiveAt(s.c.Now()) != nil || !n.Has(identity.NodeExtproc)):
			return status.Error(codes.Unauthenticated, "this node was revoked or has expired")
		case err != nil && req == nil:
			s.asksAgain(st) // with the next heartbeat: the database may be away
			continue
		case err != nil:
			s.c.Log.WarnContext(ctx, "looking up a node", "err", err)
			return status.Error(codes.Unavailable, "nodes cannot be looked up now")
		case !s.serves(st, n):
			return status.Error(codes.Aborted, "this node serves fewer orgs than before: open the stream again")
		}
		if req == nil {
			continue
		}
		if len(req.GetRecords()) == 0 && req.GetWatermark() == nil {
			return status.Error(codes.InvalidArgument, "the batch has neither records nor a watermark")
		}
		org := req.GetOrgId()
		if len(req.GetRecords()) > 0 {
			org = req.GetRecords()[0].GetOrgId()
		} else if !slices.Contains(n.Orgs, org) {
			return status.Error(codes.PermissionDenied, "the watermark is of an org that this node does not serve")
		}
		// A batch with a record of another org is rejected as a whole.
		recs := make([]audit.Record, len(req.GetRecords()))
		for i, r := range req.GetRecords() {
			if !slices.Contains(n.Orgs, r.GetOrgId()) {
				s.metrics.records.WithLabelValues("foreign").Inc()
				s.c.Log.ErrorContext(ctx, "a node sends records of an org that it does not serve", "node", n.ID)
				return status.Error(codes.PermissionDenied, "the batch has records of an org that this node does not serve")
			}
			if r.GetOrgId() != org {
				return status.Error(codes.InvalidArgument, "all records of a batch must belong to one org")
			}
			recs[i] = audit.Record{Seq: r.GetWriterSeq(), Prev: r.GetPrev(), Org: r.GetOrgId(), Entry: r.GetEntry()}
		}
		// The node is the authenticated one. The node's name in the batch is ignored.
		upTo, err := s.c.Appender.Append(ctx, audit.Batch{
			Org: org, Node: n.ID, Writer: req.GetWriter(), Shipper: req.GetShippedBy(), Fork: req.GetFork(), Records: recs,
			Mark: markOf(req.GetWatermark()),
		})
		reply := &aidv1.AppendReply{WriterSeq: upTo}
		result := "committed"
		var behind *audit.Behind
		switch {
		case err == nil:
		case errors.As(err, &behind):
			reply.Result, reply.WriterSeq, result = aidv1.AppendResult_APPEND_RESULT_HAVE, behind.Have, "behind"
		case errors.Is(err, audit.ErrFork):
			reply.Result, reply.Reason, result = aidv1.AppendResult_APPEND_RESULT_FORK, err.Error(), "fork"
		case errors.Is(err, audit.ErrRefused):
			reply.Result, reply.Reason, result = aidv1.AppendResult_APPEND_RESULT_REFUSED, err.Error(), "refused"
		default:
			s.metrics.records.WithLabelValues("failed").Add(float64(len(recs)))
			if ctx.Err() == nil {
				s.c.Log.ErrorContext(ctx, "appending audit records", "node", n.ID, "org", org, "err", err)
			}
			return status.Error(codes.Unavailable, "the records were not appended: see the control plane's log")
		}
		s.metrics.records.WithLabelValues(result).Add(float64(len(recs)))
		if err := g.Send(reply); err != nil {
			return err
		}
	}
}

// markOf returns a watermark, or nil.
func markOf(m *aidv1.Watermark) *audit.Mark {
	if m == nil {
		return nil
	}
	return &audit.Mark{Seq: m.GetWriterSeq(), Time: m.GetTime().AsTime(), Ended: m.GetEndedWriters(), Leaving: m.GetLeaving()}
}

// appendStreams are the streams of nodes that append records. They receive the same changes
// as the streams of configuration.
type appendStreams map[*appending]struct{}

// appending is one node's stream. Server.mu guards all but woken.
type appending struct {
	orgs    []string // that the node served when it opened the stream
	expires time.Time
	unsure  bool          // whether the node may append could not be found out
	woken   chan struct{} // holds a token while the node may have changed
}

func (s *Server) appending(n identity.Node) *appending {
	st := &appending{orgs: n.Orgs, expires: n.ExpiresAt, woken: make(chan struct{}, 1)}
	st.wake() // it may have changed before it is in the list
	s.mu.Lock()
	defer s.mu.Unlock()
	s.appends[st] = struct{}{}
	return st
}

func (s *Server) appended(st *appending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.appends, st)
}

func (s *Server) asksAgain(st *appending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.unsure = true
}

// serves notes what the node is now. It is false if the node lost an org.
func (s *Server) serves(st *appending, n identity.Node) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.unsure, st.expires = false, n.ExpiresAt
	for _, org := range st.orgs {
		if !slices.Contains(n.Orgs, org) {
			return false
		}
	}
	st.orgs = n.Orgs
	return true
}

func (st *appending) wake() {
	select {
	case st.woken <- struct{}{}:
	default:
	}
}

// recheckAppends wakes the streams of an org's nodes, "" for all.
func (s *Server) recheckAppends(org string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.appends {
		if org == "" || slices.Contains(st.orgs, org) {
			st.wake()
		}
	}
}

// dueAppends wakes those that have expired, or whose node could not be looked up.
func (s *Server) dueAppends() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.c.Now()
	for st := range s.appends {
		if st.unsure || !st.expires.IsZero() && !now.Before(st.expires) {
			st.wake()
		}
	}
}

// Ingest ships a writer's records to the control plane. It is an audit.Shipper. Each call in
// flight has its own stream.
type Ingest struct {
	client aidv1.IngestClient
	token  string

	mu   sync.Mutex
	idle *appendStream // for the next call; may be nil
}

// appendStream is one stream of batches and their replies.
type appendStream struct {
	grpc.BidiStreamingClient[aidv1.AppendRequest, aidv1.AppendReply]
	cancel context.CancelFunc
}

// NewIngest returns an Ingest that sends over conn as the node with the token. The token is ""
// for a client certificate.
func NewIngest(conn grpc.ClientConnInterface, token string) *Ingest {
	return &Ingest{client: aidv1.NewIngestClient(conn), token: token}
}

// Send sends a batch and waits until all of it is committed.
func (i *Ingest) Send(ctx context.Context, b audit.Batch) (uint64, error) {
	stream, used, err := i.stream(ctx)
	if err != nil {
		return 0, fmt.Errorf("sending audit records: %w", err)
	}
	reply, err := stream.send(ctx, b)
	if err != nil && used && ctx.Err() == nil {
		// It may have ended while it was idle. Sending twice changes nothing.
		stream.cancel()
		if stream, err = i.open(ctx); err != nil {
			return 0, fmt.Errorf("sending audit records: %w", err)
		}
		reply, err = stream.send(ctx, b)
	}
	if err != nil {
		stream.cancel() // the next try opens a new stream
		return 0, fmt.Errorf("sending audit records: %w", err)
	}
	i.keep(stream)
	switch reply.GetResult() {
	case aidv1.AppendResult_APPEND_RESULT_UNSPECIFIED:
		return reply.GetWriterSeq(), nil
	case aidv1.AppendResult_APPEND_RESULT_HAVE:
		return 0, &audit.Behind{Have: reply.GetWriterSeq()}
	case aidv1.AppendResult_APPEND_RESULT_FORK:
		return 0, fmt.Errorf("%w: %s", audit.ErrFork, reply.GetReason())
	case aidv1.AppendResult_APPEND_RESULT_REFUSED:
		return 0, fmt.Errorf("%w: %s", audit.ErrRefused, reply.GetReason())
	}
	// A reply of a newer control plane that this build does not support.
	return 0, fmt.Errorf("sending audit records: this version does not support the control plane's reply %v: update the node", reply.GetResult())
}

// stream returns the idle stream, which was used before, or a new one.
func (i *Ingest) stream(ctx context.Context) (s *appendStream, used bool, err error) {
	i.mu.Lock()
	s = i.idle
	i.idle = nil
	i.mu.Unlock()
	if s != nil {
		return s, true, nil
	}
	s, err = i.open(ctx)
	return s, false, err
}

func (i *Ingest) open(ctx context.Context) (*appendStream, error) {
	// The stream outlives this call, so it has its own context.
	own, cancel := context.WithCancel(bearer(context.WithoutCancel(ctx), i.token))
	stop := context.AfterFunc(ctx, cancel) // opening the stream must end with ctx
	stream, err := i.client.Append(own)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return &appendStream{stream, cancel}, nil
}

// keep keeps a stream for the next call, unless there is one.
func (i *Ingest) keep(s *appendStream) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.idle != nil {
		s.cancel()
		return
	}
	i.idle = s
}

func (s *appendStream) send(ctx context.Context, b audit.Batch) (*aidv1.AppendReply, error) {
	stop := context.AfterFunc(ctx, s.cancel)
	defer stop()
	req := &aidv1.AppendRequest{Writer: b.Writer, ShippedBy: b.Shipper, Fork: b.Fork, Records: make([]*aidv1.Record, len(b.Records))}
	for n, r := range b.Records {
		req.Records[n] = &aidv1.Record{WriterSeq: r.Seq, Prev: r.Prev, OrgId: r.Org, Entry: r.Entry}
	}
	if m := b.Mark; m != nil {
		req.Watermark = &aidv1.Watermark{WriterSeq: m.Seq, Time: timestamppb.New(m.Time), EndedWriters: m.Ended, Leaving: m.Leaving}
	}
	if len(b.Records) == 0 {
		req.OrgId = b.Org
	}
	// If Send returns io.EOF, Recv returns the cause.
	if err := s.Send(req); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return s.Recv()
}

// bearer adds a join token to the metadata. gRPC's own credentials require TLS, which a Unix
// socket does not need.
func bearer(ctx context.Context, token string) context.Context {
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}
