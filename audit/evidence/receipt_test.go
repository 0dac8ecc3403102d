package evidence

import (
	"crypto/ed25519"
	"encoding/base64"
	"strings"
	"testing"
)

// TestReceipt signs a receipt and parses it back. A receipt is valid only for its org, writer,
// number and leaf, under its key. Receipts of three parts stay readable.
func TestReceipt(t *testing.T) {
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	public := base64.RawURLEncoding.EncodeToString(key.Public().(ed25519.PublicKey))
	old := Receipt{Writer: "w_1", Seq: 12, Leaf: EntryHash([]byte("entry"))}
	if back, err := ParseReceipt(old.String()); err != nil || back != old {
		t.Errorf("a receipt of three parts is read as %v, %v", back, err)
	}
	if err := old.Verify("org_1", public); err == nil {
		t.Error("a receipt without a signature is verified")
	}
	r := SignReceipt(old, "org_1", key)
	back, err := ParseReceipt(r.String())
	if err != nil || back != r {
		t.Errorf("%s is read as %v, %v", r, back, err)
	}
	if err := back.Verify("org_1", public); err != nil {
		t.Error(err)
	}
	other := base64.RawURLEncoding.EncodeToString(ed25519.NewKeyFromSeed(append(make([]byte, 31), 1)).Public().(ed25519.PublicKey))
	for name, err := range map[string]error{
		"another org":    r.Verify("org_2", public),
		"another writer": Receipt{"w_2", r.Seq, r.Leaf, r.Sig, true}.Verify("org_1", public),
		"another number": Receipt{r.Writer, 13, r.Leaf, r.Sig, true}.Verify("org_1", public),
		"another leaf":   Receipt{r.Writer, r.Seq, [32]byte{1}, r.Sig, true}.Verify("org_1", public),
		"another key":    r.Verify("org_1", other),
		"no key":         r.Verify("org_1", ""),
		"a long key":     r.Verify("org_1", public+"AA"),
	} {
		if err == nil {
			t.Errorf("a receipt of %s is verified", name)
		}
	}
	text := r.String()
	for _, s := range []string{
		"", "w_1", text + "/", text + "A", text[:len(text)-1], strings.ToUpper(text), "w 1" + text[3:], "w_1/0" + text[5:], "w_1/+12" + text[6:],
		text[:len(text)-1] + "B", // bits beyond the last byte
	} {
		if r, err := ParseReceipt(s); err == nil {
			t.Errorf("%q is read as %v", s, r)
		}
	}
}

func BenchmarkSignReceipt(b *testing.B) {
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	r := Receipt{Writer: "w_01k0000000abcdefghjkmnpqrs", Seq: 12}
	for b.Loop() {
		SignReceipt(r, "org_01k0000000abcdefghjkmnpqrs", key)
	}
}
