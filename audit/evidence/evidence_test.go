package evidence_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"math/big"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// local signs with keys that are derived from a name, so that tests have the same keys in
// each run.
type local struct{ key crypto.Signer }

func p256(name string) local {
	d := sha256.Sum256([]byte("p256 " + name))
	d[0] = 0 // below the order of the group
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d[:])
	if err != nil {
		panic(err)
	}
	return local{k}
}

func ed(name string) local {
	seed := sha256.Sum256([]byte("ed25519 " + name))
	return local{ed25519.NewKeyFromSeed(seed[:])}
}

func (l local) Public() crypto.PublicKey {
	if k, ok := l.key.Public().(*ecdsa.PublicKey); ok {
		return k
	}
	return l.key.Public()
}

func (l local) Sign(_ context.Context, message []byte) ([]byte, error) {
	if _, ok := l.key.(ed25519.PrivateKey); ok {
		return l.key.Sign(nil, message, crypto.Hash(0))
	}
	sum := sha256.Sum256(message)
	return l.key.Sign(nil, sum[:], crypto.SHA256) // without randomness: RFC 6979
}

func keySet(t testing.TB, signers ...local) (s evidence.KeySet) {
	t.Helper()
	for _, l := range signers {
		k, err := evidence.NewKey(l.Public())
		if err != nil {
			t.Fatal(err)
		}
		s.Keys = append(s.Keys, k)
	}
	return s
}

const origin = "aid-00112233445566aa/org/org_1/1"

var at = time.Date(2026, 11, 27, 15, 0, 0, 123456000, time.UTC)

func checkpoint(t testing.TB, origin string, size int64, signers ...evidence.Signer) string {
	t.Helper()
	b, err := evidence.Sign(context.Background(), evidence.Checkpoint{Origin: origin, Size: size, Root: tlog.RecordHash([]byte("x")), Time: at}, signers...)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestOpen(t *testing.T) {
	a, b := p256("a"), ed("b")
	keys := keySet(t, a, b)
	good := checkpoint(t, origin, 7, a, b)
	c, err := keys.Open([]byte(good), origin)
	if err != nil || c.Size != 7 || !c.Time.Equal(at) || c.Origin != origin {
		t.Fatalf("%+v, %v", c, err)
	}
	witness := "\u2014 witness.example/w abcdefgh\n"
	if _, err := keys.Open([]byte(good+witness), origin); err != nil {
		t.Errorf("with the line of a witness: %v", err)
	}
	text, lines, _ := strings.Cut(good, "\n\n")
	line := strings.SplitAfter(lines, "\n")
	for name, bad := range map[string]string{
		"without signatures":       text + "\n",
		"without P-256":            text + "\n\n" + line[1],
		"without Ed25519":          text + "\n\n" + line[0],
		"P-256 twice":              text + "\n\n" + line[0] + line[0],
		"empty":                    "",
		"CR in the base64":         strings.Replace(good, line[0][len(line[0])-10:], "\r"+line[0][len(line[0])-10:], 1),
		"CRLF":                     strings.ReplaceAll(good, "\n", "\r\n"),
		"an empty line at the end": good + "\n",
		"no end of line":           strings.TrimSuffix(good, "\n"),
		"another dash":             strings.Replace(good, "\u2014", "-", 1),
		"a leading zero":           strings.Replace(good, "\n7\n", "\n07\n", 1),
		"a sign":                   strings.Replace(good, "\n7\n", "\n+7\n", 1),
		"a negative size":          strings.Replace(good, "\n7\n", "\n-7\n", 1),
		"a huge size":              strings.Replace(good, "\n7\n", "\n9223372036854775808\n", 1),
		"another size":             strings.Replace(good, "\n7\n", "\n8\n", 1),
		"a comma in the time":      strings.Replace(good, ".123456Z", ",123456Z", 1),
		"another time":             strings.Replace(good, ".123456Z", ".123457Z", 1),
		"another origin":           strings.ReplaceAll(good, "org_1/1", "org_1/2"),
		"another name":             strings.ReplaceAll(good, "\u2014 "+origin, "\u2014 x"),
		"a second extension":       strings.Replace(good, "Z\n\n", "Z\nx\n\n", 1),
		"too many lines":           good + strings.Repeat(witness, 63),
		"too long":                 good + "\u2014 " + strings.Repeat("w", 1<<16) + " abcdefgh\n",
		"a space in a name":        good + "\u2014 a\u00a0b abcdefgh\n",
		"a short signature":        good + "\u2014 w abcd\n",
	} {
		if c, err := keys.Open([]byte(bad), origin); err == nil {
			t.Errorf("%s: accepted: %+v", name, c)
		}
	}
	// Each byte is covered, except the s of ECDSA, which has a second valid value.
	for i := range good {
		for _, bit := range []byte{1, 2, 4, 8, 16, 32, 64, 128} {
			bad := []byte(good)
			bad[i] ^= bit
			if c, err := keys.Open(bad, origin); err == nil {
				t.Fatalf("byte %d with bit %d: accepted: %+v", i, bit, c)
			}
		}
	}
	for name, other := range map[string]evidence.KeySet{"no key": {}, "P-256 only": keySet(t, a), "other keys": keySet(t, p256("c"), ed("d")), "half": keySet(t, a, ed("d"))} {
		if _, err := other.Open([]byte(good), origin); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := keys.Open([]byte(good), "aid-00112233445566aa/org/org_2/1"); err == nil {
		t.Error("the checkpoint of another org is accepted")
	}
}

// A key of the directory is valid for its sizes only.
func TestOpenSizes(t *testing.T) {
	a, b := p256("a"), ed("b")
	keys := keySet(t, a, b)
	keys.Keys[0].From, keys.Keys[0].To = 5, 9
	origin := evidence.DirectoryOrigin("aid-00112233445566aa")
	for size, want := range map[int64]bool{0: false, 4: false, 5: true, 8: true, 9: false, 10: false} {
		if _, err := keys.Open([]byte(checkpoint(t, origin, size, a, b)), origin); (err == nil) != want {
			t.Errorf("size %d: %v", size, err)
		}
	}
}

// The notes are those of other implementations.
func TestSignedNote(t *testing.T) {
	b := ed("b")
	c := evidence.Checkpoint{Origin: origin, Size: 3, Time: at}
	msg, err := evidence.Sign(context.Background(), c, p256("a"), b)
	if err != nil {
		t.Fatal(err)
	}
	id := sha256.Sum256(append([]byte(origin+"\n\x01"), b.Public().(ed25519.PublicKey)...))
	v, err := note.NewVerifier(origin + "+" + hex8(binary.BigEndian.Uint32(id[:])) + "+" +
		base64.StdEncoding.EncodeToString(append([]byte{1}, b.Public().(ed25519.PublicKey)...)))
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Open(msg, note.VerifierList(v))
	if err != nil || n.Text != c.Text() || len(n.Sigs) != 1 || len(n.UnverifiedSigs) != 1 {
		t.Fatalf("%+v, %v", n, err)
	}
}

func hex8(n uint32) string {
	s := big.NewInt(int64(n)).Text(16)
	return strings.Repeat("0", 8-len(s)) + s
}

// liar returns a signature of another message.
type liar struct{ local }

func (l liar) Sign(ctx context.Context, message []byte) ([]byte, error) {
	return l.local.Sign(ctx, append(message, '!'))
}

func TestSignRejects(t *testing.T) {
	ctx := context.Background()
	c := evidence.Checkpoint{Origin: origin, Size: 3, Time: at}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rng{})
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]evidence.Signer{"wrong P-256": liar{p256("a")}, "wrong Ed25519": liar{ed("a")}, "P-384": local{p384}} {
		if _, err := evidence.Sign(ctx, c, s); err == nil {
			t.Errorf("%s: a checkpoint was signed", name)
		}
		if _, err := evidence.SignEnvelope(ctx, evidence.ReportType, []byte("{}"), s); err == nil {
			t.Errorf("%s: an envelope was signed", name)
		}
	}
	if _, err := evidence.SignEnvelope(ctx, evidence.ReportType, []byte("{}"), ed("a")); err == nil {
		t.Error("an envelope was signed with Ed25519")
	}
	for _, c := range []evidence.Checkpoint{
		{Origin: "", Time: at}, {Origin: "a b", Time: at}, {Origin: "a\nb", Time: at}, {Origin: "a+b", Time: at}, {Origin: origin, Size: -1, Time: at},
		{Origin: origin}, {Origin: "a\u0085", Time: at}, {Origin: "\xff", Time: at},
	} {
		if b, err := evidence.Sign(ctx, c, p256("a"), ed("b")); err == nil {
			t.Errorf("signed %q", b)
		}
	}
}

type rng struct{}

func (rng) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 7
	}
	return len(b), nil
}

func TestJWKS(t *testing.T) {
	keys := keySet(t, p256("c"), ed("b"), p256("a"))
	change, err := evidence.SignKeyChange(t.Context(), evidence.DirectoryOrigin("aid-1"), 3, p256("a"), p256("c"))
	if err != nil {
		t.Fatal(err)
	}
	keys.Changes = append(keys.Changes, change)
	keys.Keys[0].From, keys.Keys[2].To = 3, 9
	b, err := keys.JWKS()
	if err != nil {
		t.Fatal(err)
	}
	back, err := evidence.ParseJWKS(b)
	if err != nil || len(back.Keys) != 3 || back.Keys[0].From != 3 || back.Keys[2].To != 9 || back.Keys[1].ID != keys.Keys[1].ID {
		t.Fatalf("%+v, %v", back, err)
	}
	good := string(b)
	first, _, _ := strings.Cut(strings.TrimPrefix(good, `{"keys":[`), `},`)
	small := func(x []byte) string {
		s := base64.RawURLEncoding.EncodeToString(x)
		sum := sha256.Sum256([]byte(`{"crv":"Ed25519","kty":"OKP","x":"` + s + `"}`))
		return `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"` + s + `","kid":"` + base64.RawURLEncoding.EncodeToString(sum[:]) + `","alg":"EdDSA","use":"sig","aid_from":0}]}`
	}
	zero, one, over := make([]byte, 32), append([]byte{1}, make([]byte, 31)...), bytes.Repeat([]byte{0xff}, 32)
	over[31] = 0x7f
	for name, bad := range map[string]string{
		"twice":             strings.Replace(good, `{"keys":[`, `{"keys":[`+first+`},`, 1),
		"unknown member":    strings.Replace(good, `"use"`, `"d":"x","use"`, 1),
		"a name twice":      strings.Replace(good, `"use":"sig"`, `"use":"sig","use":"sig"`, 1),
		"another case":      strings.Replace(good, `"use"`, `"Use"`, 1),
		"another alg":       strings.Replace(good, `"ES256"`, `"HS256"`, 1),
		"alg none":          strings.Replace(good, `"ES256"`, `"none"`, 1),
		"another use":       strings.Replace(good, `"sig"`, `"enc"`, 1),
		"another kid":       strings.Replace(good, `"kid":"`, `"kid":"A`, 1),
		"a newline in x":    strings.Replace(good, `"x":"`, `"x":"\n`, 1),
		"a range backwards": strings.Replace(good, `"aid_to":9`, `"aid_to":2`, 1),
		"a negative size":   strings.Replace(good, `"aid_from":3`, `"aid_from":-3`, 1),
		"a fraction":        strings.Replace(good, `"aid_from":3`, `"aid_from":3.0`, 1),
		"a huge size":       strings.Replace(good, `"aid_from":3`, `"aid_from":9223372036854775808`, 1),
		"null":              strings.Replace(good, `"aid_from":3`, `"aid_from":null`, 1),
		"no keys":           `{}`,
		"null keys":         `{"keys":null}`,
		"more":              good + `{}`,
		"small order 0":     small(zero),
		"small order 1":     small(one),
		"above the prime":   small(over),
	} {
		if s, err := evidence.ParseJWKS([]byte(bad)); err == nil {
			t.Errorf("%s: accepted: %+v", name, s)
		}
	}
}

func TestEnvelope(t *testing.T) {
	a := p256("a")
	keys := keySet(t, a, ed("b"))
	e, err := evidence.SignEnvelope(context.Background(), evidence.ReportType, []byte(`{"a":1}`), a)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.StdEncoding.EncodeToString
	text := func(payloadType, payload, keyid, sig string) string {
		return `{"payloadType":"` + payloadType + `","payload":"` + payload + `","signatures":[{"keyid":"` + keyid + `","sig":"` + sig + `"}]}`
	}
	payload, id, sig := b64(e.Payload), e.Signatures[0].KeyID, b64(e.Signatures[0].Sig)
	if p, k, err := keys.OpenEnvelope([]byte(" "+text(e.PayloadType, payload, id, sig)+"\n"), evidence.ReportType); err != nil || string(p) != `{"a":1}` || k.ID != id {
		t.Fatalf("%s, %v, %v", p, k, err)
	}
	good := text(e.PayloadType, payload, id, sig)
	edKey, _ := evidence.NewKey(ed("b").Public())
	edSig := ed("b").key.(ed25519.PrivateKey)
	for name, bad := range map[string]string{
		"another type":       text(evidence.ExportType, payload, id, sig),
		"another payload":    text(e.PayloadType, b64([]byte(`{"a":2}`)), id, sig),
		"another key":        text(e.PayloadType, payload, edKey.ID, sig),
		"unknown key":        text(e.PayloadType, payload, "x", sig),
		"Ed25519":            text(e.PayloadType, payload, edKey.ID, b64(ed25519.Sign(edSig, []byte("DSSEv1 43 "+evidence.ReportType+` 7 {"a":1}`)))),
		"no signature":       text(e.PayloadType, payload, id, ""),
		"a newline":          text(e.PayloadType, payload+`\n`, id, sig),
		"no signatures":      `{"payloadType":"` + e.PayloadType + `","payload":"` + payload + `","signatures":[]}`,
		"null signatures":    `{"payloadType":"` + e.PayloadType + `","payload":"` + payload + `","signatures":null}`,
		"a name twice":       strings.Replace(good, `"payload":`, `"payload":"","payload":`, 1),
		"an unknown name":    strings.Replace(good, `{`, `{"x":1,`, 1),
		"alg none":           strings.Replace(good, `"keyid"`, `"alg":"none","keyid"`, 1),
		"two documents":      good + good,
		"not the base64 end": text(e.PayloadType, strings.Replace(payload, "fQ==", "fR==", 1), id, sig),
		"URL-safe":           text(e.PayloadType, payload, id, strings.NewReplacer("+", "-", "/", "_", "=", "").Replace(sig)),
	} {
		if bad == good {
			t.Errorf("%s: nothing was changed", name)
		}
		if p, _, err := keys.OpenEnvelope([]byte(bad), evidence.ReportType); err == nil {
			t.Errorf("%s: accepted: %s", name, p)
		}
	}
	many := e
	for range 64 {
		many.Signatures = append(many.Signatures, many.Signatures[0])
	}
	if _, _, err := keys.Verify(many, evidence.ReportType); err == nil {
		t.Error("65 signatures: accepted")
	}
	// r and s as 64 bytes are the form of JWS, not of DSSE.
	var r, s big.Int
	der := e.Signatures[0].Sig
	n := int(der[3])
	r.SetBytes(der[4 : 4+n])
	s.SetBytes(der[6+n:])
	raw := e
	raw.Signatures = []evidence.Signature{{KeyID: id, Sig: append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)}}
	if _, _, err := keys.Verify(raw, evidence.ReportType); err == nil {
		t.Error("r and s without DER: accepted")
	}
}

// Range has the roots of tlog at each size, and continues a tree from any size.
func TestRange(t *testing.T) {
	const n = 1025
	var stored []tlog.Hash
	read := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			out[i] = stored[x]
		}
		return out, nil
	})
	var r evidence.Range
	var states []*evidence.Range
	for size := int64(0); size <= n; size++ {
		want, err := tlog.TreeHash(size, read)
		if err != nil {
			t.Fatal(err)
		}
		if size == 0 {
			want = sha256.Sum256(nil)
		}
		if got := r.Root(); got != want || r.Size() != size {
			t.Fatalf("size %d: %v, want %v", size, got, want)
		}
		state, err := evidence.NewRange(size, r.Hashes())
		if err != nil {
			t.Fatal(err)
		}
		states = append(states, state)
		data := []byte{byte(size), byte(size >> 8)}
		more, err := tlog.StoredHashes(size, data, read)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, more...)
		r.Append(tlog.RecordHash(data))
	}
	for from, state := range states {
		for i := from; i < n; i++ {
			state.Append(tlog.RecordHash([]byte{byte(i), byte(i >> 8)}))
		}
		if state.Root() != states[n].Root() {
			t.Fatalf("continued from %d: another root", from)
		}
	}
	for _, bad := range []struct {
		size   int64
		hashes int
	}{{-1, 0}, {0, 1}, {1, 0}, {3, 1}, {3, 3}, {-1, 64}} {
		if _, err := evidence.NewRange(bad.size, make([]tlog.Hash, bad.hashes)); err == nil {
			t.Errorf("a tree of size %d with %d hashes is accepted", bad.size, bad.hashes)
		}
	}
}

// A checkpoint that is accepted has one text only.
func FuzzOpen(f *testing.F) {
	a, b := p256("a"), ed("b")
	keys := keySet(f, a, b)
	good := checkpoint(f, origin, 7, a, b)
	f.Add(good)
	f.Add(strings.Replace(good, "\n7\n", "\n08\n", 1))
	f.Fuzz(func(t *testing.T, s string) {
		if c, err := keys.Open([]byte(s), origin); err == nil && !strings.HasPrefix(s, c.Text()+"\n") {
			t.Errorf("%q is read as %q", s, c.Text())
		}
		text, _, _ := strings.Cut(s, "\n\n")
		if c, err := evidence.ParseCheckpoint(text + "\n"); err == nil && c.Text() != text+"\n" {
			t.Errorf("%q is read as %q", text, c.Text())
		}
	})
}

// Two different links never have the same bytes.
func FuzzLink(f *testing.F) {
	f.Add("org", "kind", "a", "s", "r", "w", int64(1), int64(2))
	f.Fuzz(func(t *testing.T, org, kind, agent, session, request, writer string, seq, n int64) {
		l := evidence.Link{Org: org, Incarnation: 1, Seq: seq, AppendedAt: at, Time: at, Kind: kind, AgentID: agent, SessionID: session, RequestID: request, Writer: writer, WriterSeq: n}
		moved := l
		moved.Kind, moved.AgentID = agent, kind
		if l != moved && bytes.Equal(l.Append(nil), moved.Append(nil)) {
			t.Error("two links have the same bytes")
		}
	})
}

func FuzzJWKS(f *testing.F) {
	good, err := keySet(f, p256("a"), ed("b")).JWKS()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := evidence.ParseJWKS(b)
		if err != nil {
			return
		}
		again, err := s.JWKS()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := evidence.ParseJWKS(again); err != nil {
			t.Errorf("%s is read, and written as %s: %v", b, again, err)
		}
	})
}
