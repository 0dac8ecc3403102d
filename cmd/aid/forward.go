package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	grpcstatus "google.golang.org/grpc/status"
)

// forwardXDS serves Envoy's configuration on a socket of this machine, over the
// sidecar's own connection to the control plane. Envoy then needs no join token and no
// certificate, and its /config_dump has none. Who may connect is decided by the socket's
// folder, as for the sidecar's own socket.
func forwardXDS(to *grpc.ClientConn) *grpc.Server {
	return grpc.NewServer(
		grpc.ForceServerCodecV2(verbatim{}), grpc.MaxConcurrentStreams(16),
		grpc.MaxRecvMsgSize(32<<20), grpc.MaxSendMsgSize(256<<20),
		// Envoy pings every 10 s (envoy/bootstrap.go). gRPC's default allows a ping every 5
		// minutes, and closes the connection at the fourth.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		grpc.UnknownServiceHandler(func(_ any, in grpc.ServerStream) error { return forward(in, to) }),
	)
}

// ads is the only service that is forwarded: the audit log's ingest is the sidecar's.
const ads = "/envoy.service.discovery.v3.AggregatedDiscoveryService/"

// forward copies one stream in both directions. Headers that Envoy sends are left out.
func forward(in grpc.ServerStream, to *grpc.ClientConn) error {
	method, _ := grpc.MethodFromServerStream(in)
	if !strings.HasPrefix(method, ads) {
		return grpcstatus.Error(codes.Unimplemented, "only Envoy's configuration is served here")
	}
	ctx, cancel := context.WithCancel(in.Context())
	defer cancel()
	both := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
	out, err := to.NewStream(ctx, both, method, grpc.ForceCodecV2(verbatim{}))
	if err != nil {
		return err
	}
	go func() { // ends when the stream does, at the latest when forward returns
		for {
			var message []byte
			if err := in.RecvMsg(&message); errors.Is(err, io.EOF) {
				out.CloseSend() //nolint:errcheck // it is always nil
				return
			} else if err != nil {
				cancel()
				return
			}
			if err := out.SendMsg(&message); err != nil {
				return // RecvMsg below returns why
			}
		}
	}()
	for {
		var message []byte
		if err := out.RecvMsg(&message); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := in.SendMsg(&message); err != nil {
			return err
		}
	}
}

// verbatim passes messages on without reading them.
type verbatim struct{}

var _ encoding.CodecV2 = verbatim{}

func (verbatim) Name() string { return "proto" }

func (verbatim) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, errors.New("not bytes")
	}
	return mem.BufferSlice{mem.SliceBuffer(*b)}, nil
}

func (verbatim) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return errors.New("not bytes")
	}
	*b = data.Materialize()
	return nil
}
