package evidence_test

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"testing"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/secure-systems-lab/go-securesystemslib/signerverifier"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// Other implementations of DSSE accept our envelopes, and reject changed ones: Go's library, and
// Python's securesystemslib.
func TestDSSE(t *testing.T) {
	key := p256("a")
	payload := []byte(`{"_type":"https://in-toto.io/Statement/v1","predicate":{"text":"é <>&"}}`)
	e, err := evidence.SignEnvelope(t.Context(), evidence.InTotoType, payload, key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	public := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))
	kid := mustKey(key).ID
	change := func(fn func(e *evidence.Envelope)) []byte {
		t.Helper()
		c := e
		c.Payload, c.Signatures = bytes.Clone(e.Payload), append([]evidence.Signature(nil), e.Signatures...)
		c.Signatures[0].Sig = bytes.Clone(c.Signatures[0].Sig)
		fn(&c)
		b, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	thief, err := evidence.SignEnvelope(t.Context(), evidence.InTotoType, payload, p256("evil"))
	if err != nil {
		t.Fatal(err)
	}
	type tried struct {
		name string
		text []byte
		ok   bool
	}
	cases := []tried{
		{"ours", text, true},
		{"another payload", change(func(e *evidence.Envelope) { e.Payload[len(e.Payload)-2] ^= 1 }), false},
		{"more payload", change(func(e *evidence.Envelope) { e.Payload = append(e.Payload, ' ') }), false},
		{"another type", change(func(e *evidence.Envelope) { e.PayloadType = evidence.ReportType }), false},
		{"another signature", change(func(e *evidence.Envelope) { e.Signatures[0].Sig[20] ^= 1 }), false},
		{"the signature of a thief", change(func(e *evidence.Envelope) { e.Signatures[0].Sig = thief.Signatures[0].Sig }), false},
		{"a thief's envelope", change(func(e *evidence.Envelope) { e.Signatures = thief.Signatures }), false},
	}

	library, err := signerverifier.NewECDSASignerVerifierFromSSLibKey(&signerverifier.SSLibKey{
		KeyType: "ecdsa", Scheme: "ecdsa-sha2-nistp256", KeyID: kid, KeyVal: signerverifier.KeyVal{Public: public},
	})
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := dsse.NewEnvelopeVerifier(library)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		var other dsse.Envelope
		if err := json.Unmarshal(c.text, &other); err != nil {
			t.Fatal(err)
		}
		_, got, err := verifier.VerifyAndDecode(t.Context(), &other)
		if (err == nil) != c.ok || c.ok && !bytes.Equal(got, payload) {
			t.Errorf("Go's library: %s: %q %v", c.name, got, err)
		}
		if _, _, err := keySet(t, key).OpenEnvelope(c.text, evidence.InTotoType); (err == nil) != c.ok {
			t.Errorf("ours: %s: %v", c.name, err)
		}
	}
	if string(dsse.PAE(evidence.InTotoType, payload)) != "DSSEv1 28 application/vnd.in-toto+json 73 "+string(payload) {
		t.Errorf("%q", dsse.PAE(evidence.InTotoType, payload))
	}

	python := os.Getenv("AID_SDK_PYTHON")
	if python == "" {
		python = "python3"
	}
	if err := exec.Command(python, "-c", "import securesystemslib").Run(); err != nil && os.Getenv("CI") == "" {
		t.Skip("there is no securesystemslib")
	}
	cmd := exec.Command(python, "testdata/dsse.py")
	var in bytes.Buffer
	for _, c := range cases {
		b, err := json.Marshal(map[string]any{"envelope": json.RawMessage(c.text), "pem": public, "keyid": kid})
		if err != nil {
			t.Fatal(err)
		}
		in.Write(append(b, '\n'))
	}
	cmd.Stdin, cmd.Stderr = &in, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(bytes.NewReader(out))
	for _, c := range cases {
		if !lines.Scan() || (lines.Text() == "true") != c.ok {
			t.Errorf("securesystemslib: %s: %s", c.name, lines.Text())
		}
	}
}
