package anchor

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// An Anchor stores checkpoints. Its methods are those of audit.Anchor.
type Anchor interface {
	Publish(ctx context.Context, origin string, note []byte) error
	Newest(ctx context.Context, origin string) ([]byte, error)
}

// Open opens the anchor of a URI: file:DIR, or s3://BUCKET/PREFIX?region=REGION.
func Open(ctx context.Context, uri string) (Anchor, error) {
	scheme, rest, ok := strings.Cut(uri, ":")
	switch {
	case !ok || rest == "":
		return nil, errors.New("an anchor has a URI: file:DIR, or s3://BUCKET/PREFIX?region=REGION")
	case scheme == "file":
		return NewFile(strings.TrimPrefix(rest, "//"))
	case scheme == "s3":
		u, err := url.Parse(uri)
		if err != nil {
			return nil, errors.New("the URI is not well formed")
		}
		return newS3(ctx, u)
	}
	return nil, fmt.Errorf("unknown scheme %q; valid schemes: file, s3", scheme)
}

// Measured returns the anchors with a metric: how long one of them has not accepted checkpoints.
func Measured(anchors []Anchor, now func() time.Time, r prometheus.Registerer) []Anchor {
	out := make([]Anchor, len(anchors))
	for i, a := range anchors {
		out[i] = &measured{Anchor: a, now: now}
	}
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "aid_audit_anchor_lag_seconds", Help: "How long an anchor or a witness has not accepted checkpoints, the longest of all. 0: all accept them.",
	}, func() (lag float64) {
		for _, a := range out {
			lag = max(lag, a.(*measured).lag().Seconds())
		}
		return lag
	}))
	return out
}

type measured struct {
	Anchor
	now func() time.Time

	mu      sync.Mutex
	failing time.Time // since when; zero: it accepts checkpoints
}

func (m *measured) Publish(ctx context.Context, origin string, note []byte) error {
	err := m.Anchor.Publish(ctx, origin, note)
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err == nil:
		m.failing = time.Time{}
	case m.failing.IsZero():
		m.failing = m.now()
	}
	return err
}

func (m *measured) lag() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failing.IsZero() {
		return 0
	}
	return max(0, m.now().Sub(m.failing))
}
