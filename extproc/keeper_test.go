package extproc

import (
	"bytes"
	"strings"
	"testing"
)

// However an answer is cut into pieces, the credential is in none of them, nor its
// beginning at the end of one, and all else passes.
func TestKeeperPieces(t *testing.T) {
	const secret = "sk-sk-provider/key"
	text := "s sk-sk- " + secret + secret + `x sk-sk-provider\/key sk-` + secret[:17] + " sk-sk-sk-provider/key s"
	want := text
	for _, form := range []string{secret, strings.ReplaceAll(secret, "/", `\/`)} {
		want = strings.ReplaceAll(want, form, strings.Repeat("*", len(form)))
	}
	for size := 1; size <= len(text); size++ {
		var k keeper
		k.keep(secret)
		var got []byte
		for rest := []byte(text); len(rest) > 0; {
			n := min(size, len(rest))
			piece := bytes.Clone(rest[:n])
			rest = rest[n:]
			out, _ := k.pass(piece, len(rest) == 0)
			got = append(got, out...)
			if !bytes.Equal(piece, []byte(text)[len(text)-len(rest)-n:len(text)-len(rest)]) {
				t.Fatal("the piece was written to")
			}
			if len(rest) > 0 && bytes.HasSuffix(got, []byte(secret[:8])) {
				t.Fatalf("in pieces of %d: %q is out before it is known what it is", size, got)
			}
		}
		if string(got) != want || k.holds() {
			t.Fatalf("in pieces of %d:\n%s\n%s", size, got, want)
		}
	}
}
