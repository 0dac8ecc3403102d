package provider

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Decode removes a body's content-encoding, which agents use for large prompts: one of gzip
// (and x-gzip), br and zstd. identity means no encoding. The result has at most max bytes,
// and no more than about that is ever in memory. A larger body is rejected with 413.
//
// Any other encoding is rejected with 415. So is deflate, which clients and servers use for
// two different formats. A body is rejected with 400 if
//
//   - it is not in the encoding that the header declares
//   - it is cut short
//   - it has bytes after its end, or several parts, on which decoders disagree
//   - it is declared as plain and begins like an encoded one
func Decode(encodings []string, body []byte, max int64) ([]byte, *Error) {
	if len(encodings) > 1 {
		return nil, unsupportedEncoding("The request has more than one content-encoding. Send one.")
	}
	name := ""
	if len(encodings) == 1 {
		name = encodings[0]
	}
	switch name {
	case "", "identity":
		if int64(len(body)) > max {
			return nil, tooLarge(max)
		}
		if magic := compressed(body); magic != "" {
			return nil, bad("mislabelled_body", "", "The body looks like "+magic+", and the content-encoding header does not declare that.")
		}
		return body, nil
	case "gzip", "x-gzip":
		return gunzip(body, max)
	case "br":
		return unbrotli(body, max)
	case "zstd":
		return unzstd(body, max)
	}
	switch strings.ToLower(name) {
	case "identity", "gzip", "x-gzip", "br", "zstd":
		return nil, bad("invalid_encoding", "", "Write the content-encoding in lower case: not every server accepts other spellings.")
	}
	return nil, unsupportedEncoding("The content-encoding is not one of gzip, br, zstd and identity.")
}

func unsupportedEncoding(message string) *Error {
	return &Error{Status: http.StatusUnsupportedMediaType, Type: invalidRequest, Code: "unsupported_encoding", Message: message}
}

func tooLarge(max int64) *Error {
	return &Error{Status: http.StatusRequestEntityTooLarge, Type: invalidRequest, Code: "request_too_large",
		Message: fmt.Sprintf("The request is larger than %d bytes.", max)}
}

// compressed returns the encoding that a body's first bytes identify, or "". Brotli has no
// such bytes. JSON never begins like this.
func compressed(b []byte) string {
	switch {
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		return "gzip"
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return "zstd"
	}
	return ""
}

func gunzip(body []byte, max int64) ([]byte, *Error) {
	src := bytes.NewReader(body)
	r, _ := gzips.Get().(*gzip.Reader)
	if r == nil {
		r = new(gzip.Reader)
	}
	defer gzips.Put(r)
	if err := r.Reset(src); err != nil {
		return nil, garbled("gzip")
	}
	r.Multistream(false)
	return drained(r, src, guess(body), max, "gzip")
}

func unbrotli(body []byte, max int64) ([]byte, *Error) {
	src := bytes.NewReader(body)
	r, _ := brotlis.Get().(*brotli.Reader)
	if r == nil {
		r = brotli.NewReader(nil)
	}
	defer brotlis.Put(r)
	if err := r.Reset(src); err != nil {
		return nil, garbled("br")
	}
	return drained(r, src, guess(body), max, "br")
}

func unzstd(body []byte, max int64) ([]byte, *Error) {
	// A frame declares its decompressed size and the memory that a decoder needs. A wrong
	// declaration is detected, and a correct one may already be too large.
	var h zstd.Header
	if err := h.Decode(body); err != nil || h.Skippable || !oneFrame(h, body) {
		return nil, garbled("zstd")
	}
	if h.HasFCS && h.FrameContentSize > uint64(max) || !h.SingleSegment && h.WindowSize > maxWindow {
		return nil, tooLarge(max)
	}
	r, _ := zstds.Get().(*zstd.Decoder)
	if r == nil {
		var err error
		// One goroutine. The window of a frame in a single segment is its content, whose
		// size was verified above.
		r, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(1<<29))
		if err != nil {
			return nil, garbled("zstd")
		}
	}
	defer zstds.Put(r)
	src := bytes.NewReader(body)
	if err := r.Reset(src); err != nil {
		return nil, garbled("zstd")
	}
	size := guess(body)
	if h.HasFCS {
		size = min(size, int64(h.FrameContentSize)) + 1 // one more byte, to detect that it ends
	}
	out, e := drained(r, src, size, max, "zstd")
	_ = r.Reset(nil) // releases the body
	return out, e
}

// maxWindow is the largest distance of a reference in a frame: the value that RFC 8878
// recommends for decoders.
const maxWindow = 8 << 20

// oneFrame reports whether body is a single zstd frame, to its last byte (RFC 8878, section
// 3.1.1).
func oneFrame(h zstd.Header, body []byte) bool {
	at := h.HeaderSize
	for last := false; !last; {
		if len(body)-at < 3 {
			return false
		}
		block := int(body[at]) | int(body[at+1])<<8 | int(body[at+2])<<16
		at += 3
		last = block&1 != 0
		switch kind, size := block>>1&3, block>>3; kind {
		case 1: // one byte, repeated
			at++
		case 3: // reserved
			return false
		default:
			at += size
		}
		if at > len(body) {
			return false
		}
	}
	if h.HasCheckSum {
		at += 4
	}
	return at == len(body)
}

// guess is the size of the first allocation for a body. Compression reduces text to about a
// fifth. A short body gets a small allocation.
func guess(body []byte) int64 { return int64(len(body))*5 + 512 }

// drained reads r to its end, where src must end too.
func drained(r io.Reader, src *bytes.Reader, size, max int64, name string) ([]byte, *Error) {
	out := make([]byte, 0, min(size, max+1))
	for {
		n, err := r.Read(out[len(out):cap(out)])
		out = out[:len(out)+n]
		switch {
		case int64(len(out)) > max:
			return nil, tooLarge(max)
		case errors.Is(err, io.EOF):
			if src.Len() > 0 {
				return nil, bad("invalid_encoding", "", "There are more bytes after the end of the "+name+" data.")
			}
			return out, nil
		case err != nil:
			return nil, garbled(name)
		}
		if len(out) == cap(out) {
			next := make([]byte, len(out), min(2*int64(cap(out)), max+1))
			copy(next, out)
			out = next
		}
	}
}

func garbled(name string) *Error {
	return bad("invalid_encoding", "", "The body is not valid "+name+", which its content-encoding declares.")
}

// Decoders are large, and most requests are not compressed, so decoders are reused.
var gzips, brotlis, zstds sync.Pool
