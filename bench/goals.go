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

// closed is for closed-loop requests. With many connections, throughput is compared with
// the no-op's. With one connection, latency is compared with the no-op's plus the audit
// log's one fsync.
func (g *goals) closed(shape string, conns int, got map[string][]measured) {
	rate := func(m measured) float64 { return m.rate() }
	p50 := func(m measured) float64 { return float64(m.p50.Microseconds()) / 1000 }
	if conns > 1 {
		g.add(shape+": throughput", median(got["aid"], rate)/median(got["noop"], rate), 0.80, "of the no-op's", false)
		return
	}
	limit := median(got["noop"], p50) + float64(g.fsync.Microseconds())/1000 + 0.10
	g.add(shape+": p50", median(got["aid"], p50), limit, "ms (no-op + one fsync + 0.10)", true)
}

// streamed is for events of streamed responses.
func (g *goals) streamed(got map[string][]measured) {
	g.add("a streamed event", median(got["aid"], cpuOf)/median(got["noop"], cpuOf), 1.15, "of the no-op's CPU", true)
	g.add("a streamed event, usage: envoy", median(got["aid-usage-envoy"], cpuOf)/median(got["plain"], cpuOf), 1.6, "of Envoy alone", true)
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
