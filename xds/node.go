package xds

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/ai-identity/ai-identity/identity"
)

// presentedBy returns the identity of the peer: the hex SHA-256 of a join token, or the
// SPIFFE id of a verified client certificate. A token takes precedence. A certificate with
// two ids is rejected
// (https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md#2-spiffe-id).
func presentedBy(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	switch values := md.Get("authorization"); len(values) {
	case 0:
	case 1:
		scheme, token, _ := strings.Cut(values[0], " ")
		kind, hash, err := identity.Parse(token)
		if !strings.EqualFold(scheme, "bearer") || err != nil || kind != identity.NodeToken {
			return "", errors.New("the authorization is not a join token of a node (aid_node_…)")
		}
		return identity.HexHash(hash), nil
	default:
		return "", errors.New("the request has two authorizations")
	}
	if p, ok := peer.FromContext(ctx); ok {
		if t, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(t.State.VerifiedChains) > 0 {
			uris := t.State.VerifiedChains[0][0].URIs
			if len(uris) == 1 && uris[0].Scheme == "spiffe" && uris[0].Host != "" {
				return uris[0].String(), nil
			}
			return "", errors.New("the certificate does not have exactly one SPIFFE id")
		}
	}
	return "", errors.New("send a join token (aid_node_…) or a client certificate")
}

// node returns the node with this identity, and the orgs that it serves.
func (s *Server) node(ctx context.Context, presented string) (n identity.Node, err error) {
	err = s.c.DB.Presenting(ctx, presented, func(tx pgx.Tx) error {
		n, err = identity.NodePresented(ctx, tx, presented, s.c.Now())
		return err
	})
	return n, err
}
