package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// goals are the goals, and the results of this run.
type goals struct {
	fsync time.Duration // of one small record on this disk
	rows  []goal
}

type goal struct {
	what      string
	got, want float64
	unit      string
	most      bool // want is an upper limit, not a lower one
}

func (g *goals) add(what string, got, want float64, unit string, most bool) {
	g.rows = append(g.rows, goal{what, got, want, unit, most})
}

// closed is for closed-loop requests. With many connections, CPU time and throughput are
// compared with the no-op's. With one connection, latency is compared with the no-op's plus the
// audit log's one fsync.
func (g *goals) closed(shape string, conns, size int, got map[string][]measured) {
	if got["noop"] == nil || got["aid"] == nil {
		return
	}
	switch rate := median(got["aid"], rateOf) / median(got["noop"], rateOf); {
	case size > 10<<10:
		g.add(shape+": throughput", rate, 0.75, "of the no-op's", false)
	case conns > 1:
		g.add(shape+": CPU per request, all processes", median(got["aid"], allOf)/median(got["noop"], allOf), 1.6, "of the no-op's", true)
		g.add(shape+": throughput", rate, 0.60, "of the no-op's", false)
	default:
		g.add(shape+": p50", median(got["aid"], p50Of), median(got["noop"], p50Of)+ms(g.fsync)+0.10, "ms (no-op + one fsync + 0.10)", true)
	}
	if shared := got["aid-valkey"]; shared != nil && conns == 16 && size <= 10<<10 {
		g.add(shape+": throughput with limits in a Valkey", median(shared, rateOf)/median(got["aid"], rateOf), 0.85, "of limits in memory", false)
	}
}

// streamed is for events of n streamed responses.
func (g *goals) streamed(n int, got map[string][]measured) {
	if got["noop"] != nil && got["aid"] != nil {
		g.add(fmt.Sprintf("an event of %d streams", n), median(got["aid"], pathOf)/median(got["noop"], pathOf), 1.15, "of the no-op's CPU", true)
	}
	if got["plain"] != nil && got["aid-usage-envoy"] != nil {
		g.add(fmt.Sprintf("an event of %d streams, usage: envoy", n), median(got["aid-usage-envoy"], pathOf)/median(got["plain"], pathOf), 1.3, "of Envoy alone", true)
	}
}

func (g *goals) print(out io.Writer) {
	fmt.Fprintf(out, "\n### Goals (one fsync takes %.2f ms here)\n\n| goal | measured | limit | |\n|---|---|---|---|\n", float64(g.fsync.Microseconds())/1000)
	for _, r := range g.rows {
		sign, held := "≥", r.got >= r.want
		if r.most {
			sign, held = "≤", r.got <= r.want
		}
		mark := "held"
		if !held {
			mark = "**missed**"
		}
		fmt.Fprintf(out, "| %s | %.2f | %s %.2f %s | %s |\n", r.what, r.got, sign, r.want, r.unit, mark)
	}
}

// fsyncLatency is the median time that one record of 700 bytes takes to be durable.
func fsyncLatency(dir string) (time.Duration, error) {
	f, err := os.CreateTemp(dir, "fsync-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	took := make([]time.Duration, 501)
	record := make([]byte, 700)
	for i := range took {
		began := time.Now()
		if _, err := f.Write(record); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}
