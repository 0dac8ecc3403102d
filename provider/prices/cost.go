package prices

import (
	"math"
	"math/bits"
	"slices"

	"github.com/ai-identity/ai-identity/provider"
)

// Sorts of tokens that may have separate rates. The names are those of list.json.
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

// instead is the sort whose rate applies if a model has no separate rate: the sort that the
// tokens are a part of. Without a price for cached tokens, the normal price applies.
var instead = [sorts]sort{
	input: input, output: output, cached: input, write: input, longWrite: write, reasoning: output,
	inputAudio: input, inputImage: input, inputVideo: input, cachedAudio: cached, cachedImage: cached,
	outputAudio: output, outputImage: output, outputVideo: output,
}

// price is a rate in nano-dollars per million tokens. It may depend on the length of the
// input: the rate of the highest step below that length applies to all tokens.
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

// rates are the prices of a model.
type rates [sorts]price

// cost returns the cost of u, or false.
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

// sorted divides usage so that each token is in one sort. Sorts for which the model has no
// rates are not separated. So the provider's details need not add up for them.
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
			return n, false // it is not known which of them were cached
		}
		n[cachedAudio], n[cachedImage] = c.Audio, c.Image
		n[inputAudio], n[inputImage], n[inputVideo] = in.Audio-c.Audio, in.Image-c.Image, in.Video-c.Video
		if c.Video > 0 {
			return n, false // no model in the list has a rate for it
		}
	}
	if shows {
		n[outputAudio], n[outputImage], n[outputVideo] = u.OutputMedia.Audio, u.OutputMedia.Image, u.OutputMedia.Video
	}
	if r[reasoning].known {
		n[reasoning] = u.ReasoningTokens
	}
	if !r[cached].known && !hears {
		u.CachedTokens = 0 // it counts as other input
	}
	n[longWrite] = u.LongWriteTokens
	n[write] = u.CacheWriteTokens - u.LongWriteTokens
	n[cached] = u.CachedTokens - n[cachedAudio] - n[cachedImage]
	n[input] = u.InputTokens - u.CachedTokens - u.CacheWriteTokens - n[inputAudio] - n[inputImage] - n[inputVideo]
	n[output] = u.OutputTokens - n[reasoning] - n[outputAudio] - n[outputImage] - n[outputVideo]
	return n, slices.Min(n[:]) >= 0
}

// maxTokens bounds each count, far above the tokens of any request, so that no difference
// of counts overflows.
const maxTokens = 1 << 56

// amount is a sum of tokens times rates: millionths of a nano-dollar, in 128 bits.
type amount struct{ hi, lo uint64 }

// add adds tokens × rate, and reports whether the sum fits.
func (a *amount) add(tokens, rate int64) bool {
	hi, lo := bits.Mul64(uint64(tokens), uint64(rate))
	var carry uint64
	a.lo, carry = bits.Add64(a.lo, lo, 0)
	a.hi, carry = bits.Add64(a.hi, hi, carry)
	return carry == 0
}

// nano returns the sum in nano-dollars, with halves rounded up. It returns false if the sum
// does not fit into an int64.
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
