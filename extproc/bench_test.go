package extproc_test

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"

	"github.com/ai-identity/ai-identity/audit"
	"github.com/ai-identity/ai-identity/extproc"
)

// BenchmarkExchange is one complete chat completion without gRPC and Envoy, so it measures
// our own code. "memory" stores no audit entries: it shows the cost of the processor.
// "disk" stores them as production does.
func BenchmarkExchange(b *testing.B) {
	b.Run("memory", func(b *testing.B) { benchmarkExchange(b, nowhere{}) })
	b.Run("disk", func(b *testing.B) {
		w, err := audit.OpenWriter(audit.WriterConfig{Dir: b.TempDir()})
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = w.Run(ctx)
		}()
		benchmarkExchange(b, w)
		cancel()
		<-done
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	})
}

func benchmarkExchange(b *testing.B, r extproc.Recorder) {
	w := serve(b, options{config: func(c *extproc.Config) {
		c.Recorder, c.Now, c.Rand = r, time.Now, nil
		c.Log = slog.New(slog.DiscardHandler)
	}})
	script := []*extprocv3.ProcessingRequest{w.messageOf('h'), w.messageOf('b'), w.messageOf('r'), w.messageOf('p'), w.messageOf('P')}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			s := &scripted{ctx: context.Background(), script: script}
			if err := w.server.Process(s); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// scripted is Envoy's end of a stream. It sends the next message after the reply to the
// last one.
type scripted struct {
	grpc.ServerStream
	ctx    context.Context
	script []*extprocv3.ProcessingRequest
}

func (s *scripted) Context() context.Context { return s.ctx }

func (s *scripted) Recv() (*extprocv3.ProcessingRequest, error) {
	if len(s.script) == 0 {
		return nil, io.EOF
	}
	m := s.script[0]
	s.script = s.script[1:]
	return m, nil
}

func (s *scripted) Send(*extprocv3.ProcessingResponse) error { return nil }

// nowhere is a recorder that encodes entries and drops them.
type nowhere struct{}

func (nowhere) Deciding(time.Time) func() { return func() {} }

func (nowhere) Sign(_ string, r audit.Receipt) audit.Receipt { return r }

func (nowhere) Append(_ context.Context, org string, e audit.Entry) (audit.Receipt, error) {
	b := audit.Stamp(e, org, "w_bench", time.Now()).Encode()
	return audit.Receipt{Writer: "w_bench", Seq: 1, Leaf: audit.LeafHash(b)}, nil
}

func (nowhere) Enqueue(org string, e audit.Entry) {
	_ = audit.Stamp(e, org, "w_bench", time.Now()).Encode()
}
