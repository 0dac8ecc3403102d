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

// Decode undoes a body's content-encoding, which agents use for large prompts:
// gzip (and x-gzip), br and zstd, one of them. identity is none. The result has at
// most max bytes, and no more than that is ever held: 413 if it would. Anything
// else is 415, and a body that is not what it says 400; so is one that says that
// it is plain and begins like one of the others.
func Decode(encodings []string, body []byte, max int64) ([]byte, *Error) {
	if len(encodings) > 1 {
		return nil, unsupportedEncoding("The request has more than one content-encoding. Send one.")
	}
	name := ""
	if len(encodings) == 1 {
		name = strings.ToLower(encodings[0])
	}
	switch name {
	case "", "identity":
		if int64(len(body)) > max {
			return nil, tooLarge(max)
		}
		if magic := compressed(body); magic != "" {
			return nil, bad("mislabelled_body", "", "The body looks like "+magic+", and the content-encoding header does not say so.")
		}
		return body, nil
	case "gzip", "x-gzip":
		return gunzip(body, max)
	case "br":
		return unbrotli(body, max)
	case "zstd":
		return unzstd(body, max)
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

// compressed names the encoding that a body's first bytes are of, or "". Brotli has
// no such mark. No JSON begins like this.
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
	// One member: what another decoder makes of a second one, nobody knows.
	r.Multistream(false)
	return drained(r, src, max, "gzip")
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
	return drained(r, src, max, "br")
}

func unzstd(body []byte, max int64) ([]byte, *Error) {
	// A frame says how large it gets; a lie is found out, and the truth may already
	// be too much.
	var h zstd.Header
	if err := h.Decode(body); err != nil || h.Skippable {
		return nil, garbled("zstd")
	}
	if h.HasFCS && h.FrameContentSize > uint64(max) {
		return nil, tooLarge(max)
	}
	r, _ := zstds.Get().(*zstd.Decoder)
	if r == nil {
		var err error
		// One goroutine, and a window of at most 8 MiB, as RFC 8878 recommends.
		r, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return nil, garbled("zstd")
		}
	}
	defer zstds.Put(r)
	src := bytes.NewReader(body)
	if err := r.Reset(src); err != nil {
		return nil, garbled("zstd")
	}
	out, e := drained(r, src, max, "zstd")
	_ = r.Reset(nil) // lets go of the body
	return out, e
}

// drained reads r to its end, and wants src to end there too.
func drained(r io.Reader, src *bytes.Reader, max int64, name string) ([]byte, *Error) {
	var out bytes.Buffer
	n, err := io.Copy(&out, io.LimitReader(r, max+1))
	switch {
	case n > max:
		return nil, tooLarge(max)
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return nil, tooLarge(max)
	case err != nil:
		return nil, garbled(name)
	case src.Len() > 0:
		return nil, bad("invalid_encoding", "", "Something follows the end of the "+name+" data.")
	}
	return out.Bytes(), nil
}

func garbled(name string) *Error {
	return bad("invalid_encoding", "", "The body is not valid "+name+", which its content-encoding says it is.")
}

// Decoders are large, and most requests are not compressed.
var gzips, brotlis, zstds sync.Pool
