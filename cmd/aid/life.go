package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// life has the running parts in the order of their start, and stops them in the reverse
// order. So a part ends before the parts that it depends on. Each part has its own context.
type life struct {
	log   *slog.Logger
	mu    sync.Mutex
	parts []part
	ended chan error // the first part that ended before it was stopped
}

type part struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
}

func newLife(log *slog.Logger) *life { return &life{log: log, ended: make(chan error, 1)} }

// start runs a part. Its context has ctx's values, and does not end with ctx.
func (l *life) start(ctx context.Context, name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := part{name, cancel, make(chan struct{})}
	l.mu.Lock()
	l.parts = append(l.parts, p)
	l.mu.Unlock()
	go func() {
		defer close(p.done)
		err := run(ctx)
		switch {
		case ctx.Err() == nil && err == nil:
			err = errors.New("ended")
		case ctx.Err() == nil:
		case err != nil && !errors.Is(err, context.Canceled):
			l.log.Warn("stopping", "part", name, "err", err)
			return
		default:
			return
		}
		select {
		case l.ended <- fmt.Errorf("%s: %w", name, err):
		default:
		}
	}()
}

// wait returns nil when ctx is done, or the error of a part that ended earlier.
func (l *life) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-l.ended:
		return err
	}
}

// stop stops all parts, the last one first, each within limit.
func (l *life) stop(limit time.Duration) {
	l.mu.Lock()
	parts := l.parts
	l.parts = nil
	l.mu.Unlock()
	for _, p := range slices.Backward(parts) {
		p.cancel()
		timer := time.NewTimer(limit)
		select {
		case <-p.done:
		case <-timer.C:
			l.log.Error("the part did not stop in time; continuing without it", "part", p.name, "limit", limit)
		}
		timer.Stop()
	}
}
