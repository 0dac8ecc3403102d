package extproc

import (
	"bytes"
	"slices"
	"strings"
)

// minSecret is the shortest credential that is looked for in answers: a shorter
// one would be found in ordinary words.
const minSecret = 8

// keeper keeps a provider's credential from leaving with an answer: a server that
// echoes its request, in an error or for fun, would hand it to every caller. It
// knows the credential in each form in which an echo may have it.
type keeper struct{ all []kept } // empty: there is nothing to keep

// kept is one form.
type kept struct {
	secret []byte
	tail   []byte // the end of what was let through: shorter than secret
}

// keep adds a form, and the one in which some write its slashes in JSON.
func (k *keeper) keep(secret string) {
	if len(secret) < minSecret {
		return
	}
	k.all = append(k.all, kept{secret: []byte(secret)})
	if strings.Contains(secret, "/") {
		k.all = append(k.all, kept{secret: []byte(strings.ReplaceAll(secret, "/", `\/`))})
	}
}

// in says whether b holds the credential.
func (k *keeper) in(b []byte) bool {
	return slices.ContainsFunc(k.all, func(k kept) bool { return bytes.Contains(b, k.secret) })
}

// blank returns b with the credential overwritten, at its length, so that
// content-length stays true. It says split if the credential began in an earlier
// piece, where it is too late.
func (k *keeper) blank(b []byte) (out []byte, blanked, split bool) {
	for i := range k.all {
		changed := false
		if b, changed, split = k.all[i].blank(b, blanked); split {
			return b, false, true
		}
		blanked = blanked || changed
	}
	return b, blanked, false
}

// blank is keeper's for one form; own says that b may be written to.
func (k *kept) blank(b []byte, own bool) (out []byte, blanked, split bool) {
	n := len(k.secret)
	if len(b) == 0 {
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
		if !own {
			b, own = bytes.Clone(b), true
		}
		blanked = true
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
