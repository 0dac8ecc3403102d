package provider

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// A Header is sent with every request to a provider. Its value may be a secret. It is
// encrypted at rest and never shown to users. The zero Header has no value.
type Header struct {
	value  Secret // empty until it is decrypted
	sealed string // as it is stored; empty if it is not yet encrypted
}

// NewHeader returns a header with a value.
func NewHeader(value string) Header { return Header{value: NewSecret(value)} }

// Headers returns headers with the values of m.
func Headers(m map[string]string) map[string]Header {
	out := make(map[string]Header, len(m))
	for name, value := range m {
		out[name] = NewHeader(value)
	}
	return out
}

// Redacted is shown instead of a header's value.
const Redacted = redacted

// Sealed reports whether the header is encrypted as it is stored.
func (h Header) Sealed() bool { return h.sealed != "" }

// storedHeader is a header in the database. Until schema 6 it was the value, as a string.
type storedHeader struct {
	Sealed string `json:"sealed"`
}

func (h *Header) scan(b []byte) error {
	var s storedHeader
	if err := json.Unmarshal(b, &s); err == nil {
		if s.Sealed == "" {
			return errors.New("neither a value nor an encrypted one")
		}
		*h = Header{sealed: s.Sealed}
		return nil
	}
	var value string
	if err := json.Unmarshal(b, &value); err != nil {
		return errors.New("neither a value nor an encrypted one") // the library's error could quote it
	}
	*h = NewHeader(value)
	return nil
}

// bound is the authenticated data of an encrypted value. A value that is moved to another
// provider, address or name cannot be decrypted. A change of base_url must come with the
// values, as with the credential.
func bound(p Provider, name string) string {
	return "ai-identity provider header 1\n" + ClusterName(p) + "\n" + name + "\n"
}

// sealHeaders returns p's headers as they are stored. Headers that are encrypted already
// are not encrypted again.
func (p Provider) sealHeaders(s *Sealer) (string, error) {
	out := make(map[string]storedHeader, len(p.Headers))
	for name, h := range p.Headers {
		if h.sealed == "" {
			var err error
			if h.sealed, err = s.Seal([]byte(bound(p, name) + h.value.Reveal())); err != nil {
				return "", fmt.Errorf("header %s: %w", name, err)
			}
		}
		out[name] = storedHeader{h.sealed}
	}
	b, err := json.Marshal(out)
	return string(b), err
}

// OpenHeaders returns p with the values of its headers. The error is ErrUnreadable if
// one was encrypted with another key, or for another provider or address.
func (p Provider) OpenHeaders(s *Sealer) (Provider, error) {
	open := make(map[string]Header, len(p.Headers))
	for name, h := range p.Headers {
		if h.sealed != "" {
			b, err := s.Open(h.sealed)
			if err != nil {
				return p, fmt.Errorf("header %s: %w", name, err)
			}
			value, ok := strings.CutPrefix(string(b), bound(p, name))
			if !ok {
				return p, fmt.Errorf("header %s: encrypted for another provider or base_url: %w", name, ErrUnreadable)
			}
			h.value = NewSecret(value)
		}
		open[name] = h
	}
	p.Headers, p.ready = open, nil
	return p, nil
}

// HeaderValues returns the values of p's headers, which must be open.
func (p Provider) HeaderValues() map[string]string {
	out := make(map[string]string, len(p.Headers))
	for name, h := range p.Headers {
		out[name] = h.value.Reveal()
	}
	return out
}

// harmlessHeaders are the headers whose values are known not to be secrets. Responses may
// contain them. With settings.public_headers other values pass too.
var harmlessHeaders = map[string]bool{
	"accept": true, "accept-language": true, "user-agent": true, "http-referer": true, "x-title": true, "x-openrouter-title": true, "x-openrouter-categories": true,
	"openai-beta": true, "openai-organization": true, "openai-project": true, "openai-version": true, "anthropic-version": true, "anthropic-beta": true,
	"x-goog-user-project": true, "x-goog-api-client": true, "x-client-name": true, "x-app": true, "x-hf-bill-to": true, "version": true,
}

// secretsIn returns the parts of a header's value that must not come back. They are the
// whole value, the part after its scheme, and the password of the scheme Basic.
func secretsIn(value string) []string {
	out := []string{value}
	scheme, rest, ok := strings.Cut(value, " ")
	if !ok || strings.Trim(strings.ToLower(scheme), "abcdefghijklmnopqrstuvwxyz") != "" {
		return out
	}
	rest = strings.TrimSpace(rest)
	out = append(out, rest)
	if strings.EqualFold(scheme, "basic") {
		if plain, err := base64.StdEncoding.DecodeString(rest); err == nil {
			out = append(out, string(plain))
			if _, password, ok := strings.Cut(string(plain), ":"); ok {
				out = append(out, password)
			}
		}
	}
	return out
}
