package xds_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ai-identity/ai-identity/identity"
	aidv1 "github.com/ai-identity/ai-identity/proto/aid/v1"
	"github.com/ai-identity/ai-identity/store"
	"github.com/ai-identity/ai-identity/store/storetest"
	"github.com/ai-identity/ai-identity/verdict"
)

// appendStream opens a stream of the node that appends nothing.
func (p *plane) appendStream(token string) interface {
	Recv() (*aidv1.AppendReply, error)
} {
	p.t.Helper()
	stream, err := aidv1.NewIngestClient(p.conn()).Append(metadata.AppendToOutgoingContext(ctx(p.t), "authorization", "Bearer "+token))
	if err != nil {
		p.t.Fatal(err)
	}
	return stream
}

// A stream of records that is idle ends when its node is revoked or loses an org. It ends
// also if the node has no stream of configuration here.
func TestIdleAppendEnds(t *testing.T) {
	p := newPlane(t)
	one, two := storetest.Org(t, p.db), storetest.Org(t, p.db)
	for _, c := range []struct {
		name string
		orgs []string
		end  func(id string)
		want codes.Code
	}{
		{"revoked", []string{one}, func(id string) {
			p.in(one, func(tx pgx.Tx) error { return identity.RevokeNode(context.Background(), tx, id, time.Now()) })
		}, codes.Unauthenticated},
		{"an org leaves", []string{one, two}, func(id string) {
			p.in(two, func(tx pgx.Tx) error { return identity.RevokeNode(context.Background(), tx, id, time.Now()) })
		}, codes.Aborted},
		{"expired", []string{one}, func(id string) {
			p.exec(fmt.Sprintf(`UPDATE nodes SET expires_at = now() - interval '1 second' WHERE id = '%s'`, id))
		}, codes.Unauthenticated},
	} {
		t.Run(c.name, func(t *testing.T) {
			token, id := p.nodeOf(identity.Node{Roles: bothRoles, ByOperator: true}, c.orgs...)
			other, _ := p.nodeOf(identity.Node{Roles: bothRoles, ByOperator: true}, c.orgs...)
			stream, stays := p.appendStream(token), p.appendStream(other)
			ended, open := make(chan error, 1), make(chan error, 1)
			go func() { _, err := stream.Recv(); ended <- err }()
			go func() { _, err := stays.Recv(); open <- err }()
			eventually(t, func() error {
				if n := p.server.Appending(); n < 2 {
					return fmt.Errorf("%d streams", n)
				}
				return nil
			})
			c.end(id)
			select {
			case err := <-ended:
				if status.Code(err) != c.want {
					t.Errorf("ended with %v, want %v", err, c.want)
				}
			case <-time.After(20 * time.Second):
				t.Error("the stream goes on")
			}
			select {
			case err := <-open:
				t.Errorf("another node's stream ended: %v", err)
			default:
			}
		})
	}
}

// exec runs SQL as a superuser.
func (p *plane) exec(sql string) {
	p.t.Helper()
	c, err := pgx.ParseConfig(storetest.AdminURL(p.t))
	if err != nil {
		p.t.Fatal(err)
	}
	c.Database = p.db.Pool().Config().ConnConfig.Database
	conn, err := pgx.ConnectConfig(context.Background(), c)
	if err != nil {
		p.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(context.Background(), sql); err != nil {
		p.t.Fatal(err)
	}
}

// Any role may send a notification. However many, and whatever they say, they change
// nothing, cause a bounded number of readings, and hold up no real change for long.
func TestForgedNotifications(t *testing.T) {
	p := newPlane(t)
	org := storetest.Org(t, p.db)
	p.provider(org, "good")
	token, _ := p.node(org)
	x := p.client(token, nil)
	_, k := p.agent(org)
	eventually(t, func() error { _, err := x.Caller(ctx(t), identity.PresentedKey(k.Hash), netip.Addr{}); return err })
	before := p.server.Applied()
	conn, err := pgx.Connect(ctx(t), storetest.URL(t, store.AuditorRole))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	notify := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(ctx(t), sql); err != nil {
			t.Fatal(err)
		}
	}
	tag := `left(encode(sha256(convert_to(n || ' ' || '` + org + `', 'UTF8')), 'hex'), 16)`
	began := time.Now()
	for round := range 5 {
		// Forged numbers with the right tag, all numbers that there are again and again,
		// and what is no announcement.
		notify(fmt.Sprintf(`SELECT pg_notify('aid_changed', n || ' ' || %s) FROM generate_series(%d, %d) n`, tag, 1e9+round*10_000, 1e9+round*10_000+9_999))
		notify(fmt.Sprintf(`SELECT pg_notify('aid_changed', n || ' ' || %s) FROM generate_series(1, 1000) n`, tag))
		notify(`SELECT pg_notify('aid_changed', 'agent_keys ` + org + ` x y key:1'), pg_notify('aid_changed', '*'), pg_notify('aid_changed', repeat('9', 7000))`)
	}
	// A real change among them.
	p.in(org, func(tx pgx.Tx) error {
		return identity.RevokeKey(context.Background(), tx, k.AgentID, k.ID, time.Now())
	})
	eventually(t, func() error {
		c, err := x.Caller(ctx(t), identity.PresentedKey(k.Hash), netip.Addr{})
		if verdict.Inactive(c, time.Now()) == nil || err != nil {
			return errors.New("the revoked key is in use")
		}
		return nil
	})
	took := time.Since(began)
	if n, most := p.server.Applied()-before, 10+2*float64(took/(50*time.Millisecond)); n > most {
		t.Errorf("%v readings in %v, want at most %v", n, took, most)
	} else {
		t.Logf("%v readings in %v", n, took)
	}
	if got, err := sole(x, org); err != nil || got.Credential.Reveal() != "good" {
		t.Errorf("the configuration has changed: %v", err)
	}
}
