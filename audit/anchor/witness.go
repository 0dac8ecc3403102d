package anchor

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// Cosignatures stores what witnesses have signed. *audit.WitnessStore is one.
type Cosignatures interface {
	// Consistency proves that the log with old leaves is the beginning of the one with size.
	Consistency(ctx context.Context, old, size int64) ([]tlog.Hash, error)
	// Cosigned stores the signature line of a witness under the checkpoint with this size.
	Cosigned(ctx context.Context, witness string, size int64, line string) error
}

// A Witness cosigns checkpoints of one log, and only those that continue what it has signed.
// Source: https://c2sp.org/tlog-witness and https://c2sp.org/tlog-cosignature.
type Witness struct {
	Name string // in its cosignatures

	url    string
	key    ed25519.PublicKey
	id     uint32
	origin string
	store  Cosignatures
	client *http.Client

	mu  sync.Mutex
	old int64 // the size that the witness has, as far as is known
}

// witnessDeadline limits one request to a witness.
const witnessDeadline = 10 * time.Second

// The types of Ed25519 keys in a verifier key.
const (
	typeEd25519   = 1
	typeCosigning = 4
)

// NewWitness opens the witness URL=VKEY. VKEY is its verifier key, such as
// witness.example+5f3a…+BAkK…, of the type that cosigns.
func NewWitness(flag, origin string, store Cosignatures) (*Witness, error) {
	address, vkey, ok := strings.Cut(flag, "=")
	u, err := url.Parse(address)
	if !ok || err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "" {
		return nil, errors.New("a witness has the form URL=VKEY, such as https://witness.example.com=NAME+HASH+KEY")
	}
	part := strings.SplitN(vkey, "+", 3)
	if len(part) != 3 || part[0] == "" || strings.ContainsAny(part[0], " \n\t") {
		return nil, errors.New("its VKEY has not the form NAME+HASH+KEY")
	}
	id, err := strconv.ParseUint(part[1], 16, 32)
	raw, bad := base64.StdEncoding.Strict().DecodeString(part[2])
	if err != nil || bad != nil || len(part[1]) != 8 || len(raw) != 1+ed25519.PublicKeySize || raw[0] != typeCosigning && raw[0] != typeEd25519 {
		return nil, errors.New("the KEY in its VKEY is not the base64 of an Ed25519 key that cosigns (type 4)")
	}
	// Witnesses may publish their key as type 1. Their cosignatures are always of type 4.
	sum := sha256.Sum256(append([]byte(part[0]+"\n"), raw...))
	if binary.BigEndian.Uint32(sum[:]) != uint32(id) {
		return nil, errors.New("the HASH in its VKEY does not fit NAME and KEY")
	}
	raw[0] = typeCosigning
	sum = sha256.Sum256(append([]byte(part[0]+"\n"), raw...))
	return &Witness{
		Name: part[0], url: strings.TrimSuffix(address, "/") + "/add-checkpoint", key: raw[1:], id: binary.BigEndian.Uint32(sum[:]), origin: origin, store: store,
		client: &http.Client{Timeout: witnessDeadline, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}, nil
}

// Newest returns nil: a witness serves no checkpoints.
func (*Witness) Newest(context.Context, string) ([]byte, error) { return nil, nil }

// Publish has a checkpoint cosigned, and stores the cosignature. Other origins are ignored.
func (w *Witness) Publish(ctx context.Context, origin string, note []byte) error {
	if origin != w.origin {
		return nil
	}
	size, err := sizeOf(note)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	// At the first request, and when another control plane was faster, the witness has another
	// size than is known here. It names that size once.
	for try := 0; ; try++ {
		if w.old > size {
			return nil // it has a newer one
		}
		status, body, err := w.add(ctx, size, note)
		if err != nil {
			return err
		}
		switch status {
		case http.StatusOK:
			line, err := w.cosignature(note, body)
			if err != nil {
				return fmt.Errorf("witness %s: %w", w.Name, err)
			}
			w.old = size
			return w.store.Cosigned(ctx, w.Name, size, line)
		case http.StatusConflict:
			have, err := strconv.ParseInt(strings.TrimSuffix(string(body), "\n"), 10, 64)
			if err != nil || have < 0 || try > 1 || have == w.old {
				return fmt.Errorf("witness %s: 409 without the size that it has", w.Name)
			}
			if have > size {
				// Another control plane has published a newer one, or the database is older.
				w.old = have
				return nil
			}
			w.old = have
		default:
			return fmt.Errorf("witness %s: %d%s", w.Name, status, meaning[status])
		}
	}
}

var meaning = map[int]string{
	http.StatusForbidden:           ": it has another key of this log; give it the one that `aid keys signing vkey` prints",
	http.StatusNotFound:            ": it does not know this log; give it the key that `aid keys signing vkey` prints",
	http.StatusUnprocessableEntity: ": the checkpoint does not continue the one that it has signed",
}

func (w *Witness) add(ctx context.Context, size int64, note []byte) (status int, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, witnessDeadline)
	defer cancel()
	var b bytes.Buffer
	fmt.Fprintf(&b, "old %d\n", w.old)
	if w.old > 0 && w.old < size {
		proof, err := w.store.Consistency(ctx, w.old, size)
		if err != nil {
			return 0, nil, fmt.Errorf("proving checkpoint %d to witness %s: %w", size, w.Name, err)
		}
		for _, h := range proof {
			b.WriteString(base64.StdEncoding.EncodeToString(h[:]) + "\n")
		}
	}
	b.WriteByte('\n')
	b.Write(note)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, &b)
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("Content-Type", "text/plain; charset=utf-8")
	response, err := w.client.Do(request)
	if err != nil {
		return 0, nil, fmt.Errorf("witness %s: %w", w.Name, err)
	}
	defer response.Body.Close()
	body, err = io.ReadAll(io.LimitReader(response.Body, maxNote))
	if err != nil {
		return 0, nil, fmt.Errorf("witness %s: %w", w.Name, err)
	}
	return response.StatusCode, body, nil
}

// cosignature returns the line of the response with a valid cosignature of the witness.
func (w *Witness) cosignature(note, body []byte) (string, error) {
	text, _, _ := strings.Cut(string(note), "\n\n")
	for line := range strings.Lines(string(body)) {
		line = strings.TrimSuffix(line, "\n")
		name, sig, ok := strings.Cut(strings.TrimPrefix(line, "\u2014 "), " ")
		if !ok || !strings.HasPrefix(line, "\u2014 ") || name != w.Name {
			continue
		}
		raw, err := base64.StdEncoding.Strict().DecodeString(sig)
		// 4 bytes of the key's id, 8 of the time, 64 of the signature.
		if err != nil || len(raw) != 4+8+ed25519.SignatureSize || binary.BigEndian.Uint32(raw) != w.id {
			continue
		}
		signed := fmt.Sprintf("cosignature/v1\ntime %d\n%s\n", binary.BigEndian.Uint64(raw[4:]), text)
		if !ed25519.Verify(w.key, []byte(signed), raw[12:]) {
			return "", errors.New("its cosignature is wrong")
		}
		return line, nil
	}
	return "", errors.New("its response has no cosignature of its key")
}
