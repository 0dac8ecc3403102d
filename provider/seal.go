package provider

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/fernet/fernet-go"
)

// Sealer keeps credentials at rest: Fernet tokens (AES-128-CBC and HMAC-SHA256,
// https://github.com/fernet/spec). The first key seals; all of them open, so that
// keys are rotated by putting a new one in front and sealing again.
type Sealer struct {
	keys atomic.Pointer[[]*fernet.Key]
}

// NewSealer takes keys as Fernet writes them: 32 bytes in URL-safe base64. An
// error says which key is malformed and does not quote it.
func NewSealer(keys []string) (*Sealer, error) {
	s := &Sealer{}
	if err := s.Replace(keys); err != nil {
		return nil, err
	}
	return s, nil
}

// Replace makes keys the current ones, all of them or, with an error, none. It may be
// called while the Sealer is in use.
func (s *Sealer) Replace(keys []string) error {
	if len(keys) == 0 {
		return errors.New("no Fernet key: credentials cannot be kept without one")
	}
	next := make([]*fernet.Key, 0, len(keys))
	for i, text := range keys {
		k, err := fernet.DecodeKey(text)
		if err != nil {
			return fmt.Errorf("fernet key %d of %d is not 32 bytes in base64", i+1, len(keys))
		}
		next = append(next, k)
	}
	s.keys.Store(&next)
	return nil
}

// Seal encrypts b with the first key.
func (s *Sealer) Seal(b []byte) (string, error) {
	token, err := fernet.EncryptAndSign(b, (*s.keys.Load())[0])
	if err != nil {
		return "", fmt.Errorf("sealing: %w", err)
	}
	return string(token), nil
}

// Open decrypts what Seal made with any of the keys, whenever that was. The error
// is ErrUnreadable.
func (s *Sealer) Open(sealed string) ([]byte, error) {
	b := fernet.VerifyAndDecrypt([]byte(sealed), -1, *s.keys.Load())
	if b == nil {
		return nil, fmt.Errorf("opening a sealed secret: %w", ErrUnreadable)
	}
	return b, nil
}

// Newest reports whether the first key sealed it.
func (s *Sealer) Newest(sealed string) bool {
	return fernet.VerifyAndDecrypt([]byte(sealed), -1, (*s.keys.Load())[:1]) != nil
}
