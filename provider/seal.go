package provider

import (
	"errors"
	"fmt"

	"github.com/fernet/fernet-go"
)

// Sealer keeps credentials at rest: Fernet tokens (AES-128-CBC and HMAC-SHA256,
// https://github.com/fernet/spec). The first key seals; all of them open, so that
// keys are rotated by putting a new one in front and sealing again.
type Sealer struct {
	keys []*fernet.Key
}

// NewSealer takes keys as Fernet writes them: 32 bytes in URL-safe base64. An
// error says which key is malformed and does not quote it.
func NewSealer(keys []string) (*Sealer, error) {
	if len(keys) == 0 {
		return nil, errors.New("no Fernet key: credentials cannot be kept without one")
	}
	s := &Sealer{}
	for i, text := range keys {
		k, err := fernet.DecodeKey(text)
		if err != nil {
			return nil, fmt.Errorf("fernet key %d of %d is not 32 bytes in base64", i+1, len(keys))
		}
		s.keys = append(s.keys, k)
	}
	return s, nil
}

// Seal encrypts b with the first key.
func (s *Sealer) Seal(b []byte) (string, error) {
	token, err := fernet.EncryptAndSign(b, s.keys[0])
	if err != nil {
		return "", fmt.Errorf("sealing: %w", err)
	}
	return string(token), nil
}

// Open decrypts what Seal made with any of the keys, whenever that was. The error
// is ErrUnreadable.
func (s *Sealer) Open(sealed string) ([]byte, error) {
	b := fernet.VerifyAndDecrypt([]byte(sealed), -1, s.keys)
	if b == nil {
		return nil, fmt.Errorf("opening a sealed secret: %w", ErrUnreadable)
	}
	return b, nil
}
