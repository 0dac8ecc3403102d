package prices

import (
	"math"
	"math/bits"
	"slices"

	"github.com/ai-identity/ai-identity/provider"
)

// Sorts of tokens that may have a rate of their own. The names are those of
// list.json.
const (
	input sort = iota
	output
	cached
	write
	longWrite
	reasoning
	inputAudio
	inputImage
	inputVideo
	cachedAudio
	cachedImage
	outputAudio
	outputImage
	outputVideo
	sorts
)

type sort int

var sortNames = [sorts]string{
	"input", "output", "cached", "write", "write_1h", "reasoning", "input_audio", "input_image", "input_video",
	"cached_audio", "cached_image", "output_audio", "output_image", "output_video",
}

// instead says which rate counts where a model has none of its own for a sort: the
// one of the sort that it is a part of. A cache that has no price saves nothing.
var instead = [sorts]sort{
	input: input, output: output, cached: input, write: input, longWrite: write, reasoning: output,
	inputAudio: input, inputImage: input, inputVideo: input, cachedAudio: cached, cachedImage: cached,
	outputAudio: output, outputImage: output, outputVideo: output,
}

// price is a rate in nano-dollars per million tokens, which may depend on the
// length of the input: all of the tokens then cost what the highest step says that
// the input is longer than.
type price struct {
	known bool
	base  int64
	steps []step // by above
}

type step struct{ above, rate int64 }

func (p price) at(length int64) int64 {
	rate := p.base
	for _, s := range p.steps {
		if length > s.above {
			rate = s.rate
		}
	}
	return rate
}

// rates are what a model costs.
type rates [sorts]price

// cost is what u costs, or false.
func (r *rates) cost(u provider.Usage) (int64, bool) {
	counts, ok := r.sorted(u)
	if !ok {
		return 0, false
	}
	var sum amount
	for s, n := range counts {
		if n == 0 {
			continue
		}
		p := r[s]
		for of := sort(s); !p.known && instead[of] != of; p = r[of] {
			of = instead[of]
		}
		if !p.known || !sum.add(n, p.at(u.InputTokens)) {
			return 0, false
		}
	}
	return sum.nano()
}

// sorted takes usage apart, so that each token is in one sort. Sorts that the
// model has no rates for are not taken apart: then it does not matter whether the
// provider's details add up.
func (r *rates) sorted(u provider.Usage) (n [sorts]int64, ok bool) {
	if b := u.Billed; b.More {
		return n, false
	} else if b.Said {
		u.InputTokens, u.OutputTokens = b.InputTokens, b.OutputTokens
	}
	for _, count := range []int64{
		u.InputTokens, u.OutputTokens, u.CachedTokens, u.CacheWriteTokens, u.LongWriteTokens, u.ReasoningTokens,
		u.InputMedia.Audio, u.InputMedia.Image, u.InputMedia.Video, u.CachedMedia.Audio, u.CachedMedia.Image, u.CachedMedia.Video,
		u.OutputMedia.Audio, u.OutputMedia.Image, u.OutputMedia.Video,
	} {
		if count < 0 || count > maxTokens {
			return n, false
		}
	}
	hears := r[inputAudio].known || r[inputImage].known || r[inputVideo].known
	shows := r[outputAudio].known || r[outputImage].known || r[outputVideo].known
	if u.Coarse && (hears || shows || r[longWrite].known && u.CacheWriteTokens > 0) {
		return n, false
	}
	if hears {
		in, c := u.InputMedia, u.CachedMedia
		if u.CachedTokens > 0 && in.Audio+in.Image+in.Video > 0 && c == (provider.Media{}) {
			return n, false // which of them were cached?
		}
		n[cachedAudio], n[cachedImage] = c.Audio, c.Image
		n[inputAudio], n[inputImage], n[inputVideo] = in.Audio-c.Audio, in.Image-c.Image, in.Video-c.Video
		if c.Video > 0 {
			return n, false // no model of the list has a rate for it
		}
	}
	if shows {
		n[outputAudio], n[outputImage], n[outputVideo] = u.OutputMedia.Audio, u.OutputMedia.Image, u.OutputMedia.Video
	}
	if r[reasoning].known {
		n[reasoning] = u.ReasoningTokens
	}
	if !r[cached].known && !hears {
		u.CachedTokens = 0 // that is input like any other
	}
	n[longWrite] = u.LongWriteTokens
	n[write] = u.CacheWriteTokens - u.LongWriteTokens
	n[cached] = u.CachedTokens - n[cachedAudio] - n[cachedImage]
	n[input] = u.InputTokens - u.CachedTokens - u.CacheWriteTokens - n[inputAudio] - n[inputImage] - n[inputVideo]
	n[output] = u.OutputTokens - n[reasoning] - n[outputAudio] - n[outputImage] - n[outputVideo]
	return n, slices.Min(n[:]) >= 0
}

// maxTokens bounds each count, far above what any exchange can use, so that no
// difference of counts overflows.
const maxTokens = 1 << 56

// amount is a sum of tokens times rates: millionths of a nano-dollar, in 128 bits.
type amount struct{ hi, lo uint64 }

// add adds tokens × rate, and says whether it could.
func (a *amount) add(tokens, rate int64) bool {
	hi, lo := bits.Mul64(uint64(tokens), uint64(rate))
	var carry uint64
	a.lo, carry = bits.Add64(a.lo, lo, 0)
	a.hi, carry = bits.Add64(a.hi, hi, carry)
	return carry == 0
}

// nano is the sum in nano-dollars, half of one rounded up, or false if that is more
// than an int64 holds.
func (a amount) nano() (int64, bool) {
	lo, carry := bits.Add64(a.lo, perMillion/2, 0)
	hi, carry := bits.Add64(a.hi, 0, carry)
	if carry != 0 || hi >= perMillion {
		return 0, false // the quotient would not fit
	}
	n, _ := bits.Div64(hi, lo, perMillion)
	return int64(n), n <= math.MaxInt64
}

const perMillion = 1_000_000
