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
type keeper struct {
	forms [][]byte // none: there is nothing to keep
	held  []byte   // the end of what came, which may be the beginning of one
}

// keep adds a form, and the one in which some write its slashes in JSON.
func (k *keeper) keep(secret string) {
	if len(secret) < minSecret {
		return
	}
	k.forms = append(k.forms, []byte(secret))
	if strings.Contains(secret, "/") {
		k.forms = append(k.forms, []byte(strings.ReplaceAll(secret, "/", `\/`)))
	}
}

// in says whether b holds the credential.
func (k *keeper) in(b []byte) bool {
	return slices.ContainsFunc(k.forms, func(form []byte) bool { return bytes.Contains(b, form) })
}

// holds says whether something was held back, of which no more will come.
func (k *keeper) holds() bool { return len(k.held) > 0 }

// pass returns what may go on of the next piece of an answer, with the credential
// overwritten, at its length, so that content-length stays true. What may be the
// beginning of it waits for the next piece, unless this is the last: whoever can
// choose where an answer is cut would get all of it but a character. b is not
// changed.
func (k *keeper) pass(b []byte, end bool) (out []byte, blanked bool) {
	own := len(k.held) > 0
	if own {
		b = append(k.held, b...)
		k.held = nil
	}
	for _, form := range k.forms {
		for i := bytes.Index(b, form); i >= 0; i = bytes.Index(b, form) {
			if !own {
				b, own = bytes.Clone(b), true
			}
			blanked = true
			for j := range form {
				b[i+j] = '*'
			}
		}
	}
	if end {
		return b, blanked
	}
	most := 0
	for _, form := range k.forms {
		for n := min(len(form)-1, len(b)); n > most; n-- {
			if bytes.HasSuffix(b, form[:n]) {
				most = n
			}
		}
	}
	if most > 0 {
		k.held = bytes.Clone(b[len(b)-most:])
		b = b[:len(b)-most]
	}
	return b, blanked
}
