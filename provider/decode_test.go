package provider_test

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"math"
	"runtime"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/ai-identity/ai-identity/provider"
)

func gzipped(t testing.TB, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	write(t, w, plain)
	return b.Bytes()
}

func brotlied(t testing.TB, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := brotli.NewWriter(&b)
	write(t, w, plain)
	return b.Bytes()
}

func write(t testing.TB, w interface {
	Write([]byte) (int, error)
	Close() error
}, plain []byte) {
	t.Helper()
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func zstded(t testing.TB, plain []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(plain, nil)
}

// streamed returns zstd data without its decompressed size.
func streamed(t testing.TB, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	for p := plain; len(p) > 0; p = p[min(len(p), 100_000):] {
		if _, err := w.Write(p[:min(len(p), 100_000)]); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const maxBody = 1 << 20

func TestDecode(t *testing.T) {
	text := []byte(`{"model":"m","messages":[` + strings.Repeat(`{"role":"user","content":"hello"},`, 1000) + `{}]}`)
	noise := make([]byte, 300_000)
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	for _, plain := range [][]byte{text, noise, []byte("{}"), {}, bytes.Repeat([]byte{'a'}, maxBody), bytes.Repeat([]byte{'a'}, maxBody-1)} {
		for name, packed := range map[string][]byte{
			"gzip": gzipped(t, plain), "x-gzip": gzipped(t, plain), "br": brotlied(t, plain), "zstd": zstded(t, plain), "identity": plain, "": plain,
			"zstd ": streamed(t, plain), "zstd  ": zstded(t, plain, zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true)), "zstd   ": zstded(t, plain, zstd.WithEncoderLevel(zstd.SpeedBestCompression)),
		} {
			if len(packed) == 0 && name != "identity" && name != "" {
				continue // nothing was written
			}
			got, e := provider.Decode([]string{strings.TrimSpace(name)}, packed, maxBody)
			if e != nil || !bytes.Equal(got, plain) {
				t.Errorf("%q of %d bytes: %d bytes, %v", name, len(plain), len(got), e)
			}
		}
	}
	if got, e := provider.Decode(nil, text, maxBody); e != nil || &got[0] != &text[0] {
		t.Errorf("a plain body was copied: %v", e)
	}
}

func TestDecodeRefuses(t *testing.T) {
	plain := []byte(`{"model":"m"}`)
	gz, br, zs := gzipped(t, plain), brotlied(t, plain), zstded(t, plain)
	large := bytes.Repeat([]byte(`{"model":"m"}`), maxBody/10)
	skippable := []byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 'a', 'b', 'c', 'd'}
	lie := bytes.Clone(zstded(t, bytes.Repeat([]byte("a"), 1000), zstd.WithSingleSegment(true)))
	lie[5], lie[6] = 0, 0 // the frame declares 256 bytes
	join := func(bs ...[]byte) []byte { return bytes.Join(bs, nil) }
	for _, c := range []struct {
		name      string
		encodings []string
		body      []byte
		status    int
	}{
		{"two", []string{"gzip", "gzip"}, gzipped(t, gz), 415},
		{"two different", []string{"gzip", "zstd"}, zstded(t, gz), 415},
		{"identity and gzip", []string{"identity", "gzip"}, gz, 415},
		{"an empty one and gzip", []string{"", "gzip"}, gz, 415},
		{"deflate", []string{"deflate"}, plain, 415},
		{"compress", []string{"compress"}, plain, 415},
		{"unknown", []string{"rot13"}, plain, 415},
		{"with a weight", []string{"identity;q=0"}, plain, 415},
		{"with a parameter", []string{"gzip;q=1"}, gz, 415},
		{"upper case", []string{"GZIP"}, gz, 400},
		{"mixed case", []string{"Zstd"}, zs, 400},
		{"chunked", []string{"chunked"}, plain, 415},

		{"gzip, not said", nil, gz, 400},
		{"zstd, not said", []string{"identity"}, zs, 400},
		{"plain as gzip", []string{"gzip"}, plain, 400},
		{"plain as br", []string{"br"}, plain, 400},
		{"plain as zstd", []string{"zstd"}, plain, 400},
		{"gzip as zstd", []string{"zstd"}, gz, 400},
		{"zstd as gzip", []string{"gzip"}, zs, 400},
		{"gzip as br", []string{"br"}, gz, 400},
		{"nothing as gzip", []string{"gzip"}, nil, 400},
		{"nothing as br", []string{"br"}, nil, 400},
		{"nothing as zstd", []string{"zstd"}, nil, 400},

		{"gzip and something", []string{"gzip"}, join(gz, []byte("x")), 400},
		{"two members", []string{"gzip"}, join(gz, gz), 400},
		{"br and something", []string{"br"}, join(br, []byte("x")), 400},
		{"br and much", []string{"br"}, join(br, make([]byte, 100_000)), 400},
		{"zstd and something", []string{"zstd"}, join(zs, []byte("x")), 400},
		{"two frames", []string{"zstd"}, join(zs, zs), 400},
		{"a skippable frame before", []string{"zstd"}, join(skippable, zs), 400},
		{"a skippable frame after", []string{"zstd"}, join(zs, skippable), 400},
		{"only a skippable frame", []string{"zstd"}, skippable, 400},
		{"a wrong checksum of gzip's", []string{"gzip"}, join(gz[:len(gz)-5], []byte{gz[len(gz)-5] ^ 1}, gz[len(gz)-4:]), 400},
		{"a wrong length of gzip's", []string{"gzip"}, join(gz[:len(gz)-1], []byte{gz[len(gz)-1] ^ 1}), 400},
		{"a wrong checksum of zstd's", []string{"zstd"}, join(zs[:len(zs)-1], []byte{zs[len(zs)-1] ^ 1}), 400},
		{"a wrong size of zstd's", []string{"zstd"}, lie, 400},

		{"too large", nil, large, 413},
		{"too large in gzip", []string{"gzip"}, gzipped(t, large), 413},
		{"too large in br", []string{"br"}, brotlied(t, large), 413},
		{"too large in zstd", []string{"zstd"}, zstded(t, large), 413},
		{"too large in zstd that does not say so", []string{"zstd"}, streamed(t, large), 413},
		{"one byte too large", []string{"zstd"}, streamed(t, make([]byte, maxBody+1)), 413},
		{"one byte too large, gzip", []string{"gzip"}, gzipped(t, make([]byte, maxBody+1)), 413},
		{"a window of 64 MiB", []string{"zstd"}, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 16 << 3, 0x01, 0x00, 0x00}, 413},
		{"a dictionary", []string{"zstd"}, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x21, 0x05, 0x02, 0x01, 0x00, 0x00}, 400},
		{"a reserved block", []string{"zstd"}, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x02, 0x07, 0x00, 0x00}, 400},
	} {
		got, e := provider.Decode(c.encodings, c.body, maxBody)
		if e == nil || e.Status != c.status || got != nil || e.Code == "" {
			t.Errorf("%s: %d bytes, %v", c.name, len(got), e)
		}
	}
	// Cut at every byte.
	long := []byte(`{"model":"m","x":"` + base64.StdEncoding.EncodeToString(large[:5000]) + `"}`)
	for name, packed := range map[string][]byte{"gzip": gzipped(t, long), "br": brotlied(t, long), "zstd": zstded(t, long)} {
		for n := range len(packed) {
			if got, e := provider.Decode([]string{name}, packed[:n], maxBody); e == nil || e.Status != 400 {
				t.Fatalf("%s cut to %d of %d: %d bytes, %v", name, n, len(packed), len(got), e)
			}
		}
	}
}

// TestBombs: for a small body that would become large, memory stays below the limit, and it
// is released.
func TestBombs(t *testing.T) {
	const size = 64 << 20
	zeros := make([]byte, size)
	for name, bomb := range map[string][]byte{"gzip": gzipped(t, zeros), "br": brotlied(t, zeros), "zstd": zstded(t, zeros), "zstd ": streamed(t, zeros)} {
		if len(bomb) > size/500 {
			t.Fatalf("%s: %d bytes are no bomb", name, len(bomb))
		}
		// This counts all allocations: the windows are pooled, and buffers double. With the
		// race detector, pools drop one value in four at random, so the minimum of some
		// rounds counts. A window that is not pooled is in all rounds.
		least := uint64(math.MaxUint64)
		for range 6 {
			runtime.GC()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			const n = 10
			for range n {
				if _, e := provider.Decode([]string{strings.TrimSpace(name)}, bomb, maxBody); e == nil || e.Status != 413 {
					t.Fatalf("%s: %v", name, e)
				}
			}
			runtime.ReadMemStats(&after)
			if least = min(least, (after.TotalAlloc-before.TotalAlloc)/n); least <= 6*maxBody {
				break
			}
		}
		if least > 6*maxBody {
			t.Errorf("%s: %d KB were allocated for each", name, least>>10)
		}
	}
}

// FuzzDecode: the result is bounded, and the same every time.
func FuzzDecode(f *testing.F) {
	plain := []byte(`{"model":"m","messages":[]}`)
	f.Add(0, gzipped(f, plain))
	f.Add(1, brotlied(f, plain))
	f.Add(2, zstded(f, plain))
	f.Add(2, streamed(f, bytes.Repeat(plain, 100)))
	f.Add(2, zstded(f, make([]byte, 1<<20)))
	f.Fuzz(func(t *testing.T, which int, body []byte) {
		const limit = 64 << 10
		name := []string{"gzip", "br", "zstd"}[uint(which)%3]
		got, e := provider.Decode([]string{name}, body, limit)
		again, f := provider.Decode([]string{name}, body, limit)
		if (e == nil) != (f == nil) || !bytes.Equal(got, again) {
			t.Fatalf("%s: %v, then %v", name, e, f)
		}
		if len(got) > limit || e != nil && (got != nil || e.Status != 400 && e.Status != 413) {
			t.Fatalf("%s: %d bytes, %v", name, len(got), e)
		}
		if e == nil && name == "zstd" {
			// The library's own reader returns the same.
			d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if want, err := d.DecodeAll(body, nil); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("DecodeAll: %v", err)
			}
		}
	})
}
