package extproc

import "bytes"

// minSecret is the shortest credential that is looked for in answers: a shorter
// one would be found in ordinary words.
const minSecret = 8

// keeper keeps a provider's credential from leaving with an answer: a server that
// echoes its request, in an error or for fun, would hand it to every caller.
type keeper struct {
	secret []byte // empty: there is nothing to keep
	tail   []byte // the end of what was let through: shorter than secret
}

// in says whether b holds the credential.
func (k *keeper) in(b []byte) bool {
	return len(k.secret) > 0 && bytes.Contains(b, k.secret)
}

// blank returns b with the credential overwritten, at its length, so that
// content-length stays true. It says split if the credential began in an earlier
// piece, where it is too late.
func (k *keeper) blank(b []byte) (out []byte, blanked, split bool) {
	n := len(k.secret)
	if n == 0 || len(b) == 0 {
		return b, false, false
	}
	if len(k.tail) > 0 {
		head := append(k.tail, b[:min(len(b), n-1)]...)
		k.tail = head[:len(k.tail)] // head may have moved
		if bytes.Contains(head, k.secret) {
			return b, false, true
		}
	}
	for i := bytes.Index(b, k.secret); i >= 0; i = bytes.Index(b, k.secret) {
		if !blanked {
			b, blanked = bytes.Clone(b), true
		}
		for j := range n {
			b[i+j] = '*'
		}
	}
	if len(b) >= n-1 {
		k.tail = append(k.tail[:0], b[len(b)-(n-1):]...)
	} else {
		k.tail = append(k.tail, b...)
		if over := len(k.tail) - (n - 1); over > 0 {
			k.tail = append(k.tail[:0], k.tail[over:]...)
		}
	}
	return b, blanked, false
}
