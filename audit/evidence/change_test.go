package evidence_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/ai-identity/ai-identity/audit/evidence"
)

// rotated returns a log with 40 entries, a change of both keys in the entries 41 and 42, and 40
// more. Up to 51 and 52 entries the keys before sign too.
func rotated() *aLog {
	l := newLog("org_1")
	l.add(40, "x")
	l.rotate(p256("c"))
	l.rotate(ed("d"))
	l.add(40, "x")
	return l
}

func kidOf(l local) string { return mustKey(l).ID }

// Keys change in a log. Both verifiers accept what the keys of each size signed, and nothing else.
func TestKeyChange(t *testing.T) {
	l := rotated()
	py := startSecond(t)
	set := l.keys(t)
	full := jwks(t, set)
	var public, old evidence.KeySet
	public.Keys, old.Keys = set.Keys, set.Keys[:2]
	for _, c := range set.Changes {
		if evidence.IsDirectory(c.Origin) {
			public.Changes = append(public.Changes, c)
		}
	}
	thief := l.clone() // has the keys before, and nothing else
	thief.turns = nil
	half := l.clone()
	half.turns = l.turns[:1]
	pins := func(keys ...local) (out []string) {
		for _, k := range keys {
			out = append(out, kidOf(k))
		}
		return out
	}
	for _, c := range []struct {
		name  string
		q     question
		exit  int
		where string
	}{
		{"the whole log", question{Data: l.export(order{end: 82})}, 0, ""},
		{"before the change", question{Data: l.export(order{end: 40})}, 0, ""},
		{"before the change, continued by the newest", question{Data: l.export(order{end: 40, newest: 82})}, 0, ""},
		{"while both sign", question{Data: l.export(order{first: 30, end: 47, newest: 50})}, 0, ""},
		{"between the two changes", question{Data: l.export(order{end: 41})}, 0, ""},
		{"behind the change", question{Data: l.export(order{first: 60, end: 82})}, 0, ""},
		{"a filter", question{Data: l.export(order{end: 82, filter: evidence.ExportFilter{AgentID: "ag_1"}})}, 0, ""},
		{"checkpoints of both times", question{Data: l.export(order{end: 82}), Held: [][2]string{{"a", l.note(12)}, {"b", l.note(45)}, {"c", l.note(70)}}}, 0, ""},
		{"pinned before", question{Data: l.export(order{end: 82}), Pins: pins(l.p256, l.ed)}, 0, ""},
		{"pinned behind", question{Data: l.export(order{first: 60, end: 82}), Pins: pins(p256("c"), ed("d"))}, 0, ""},
		{"pinned behind, and an older checkpoint", question{Data: l.export(order{end: 40}), Pins: pins(p256("c"), ed("d"))}, 2, ""},
		{"one key is pinned", question{Data: l.export(order{end: 82}), Pins: pins(l.p256)}, 2, ""},
		{"the pinned key is not there", question{Data: l.export(order{end: 82}), Pins: pins(l.p256, ed("x"))}, 2, ""},

		// What a JWKS lacks is incomplete.
		{"the public JWKS has not the log's changes", question{JWKS: jwks(t, public), Data: l.export(order{end: 82})}, 2, ""},
		{"the public JWKS, before the change", question{JWKS: jwks(t, public), Data: l.export(order{end: 40})}, 2, ""},
		{"the public JWKS, behind the change", question{JWKS: jwks(t, public), Data: l.export(order{first: 60, end: 82})}, 0, ""},
		{"an older JWKS", question{JWKS: jwks(t, old), Data: l.export(order{end: 82})}, 2, ""},
		{"an older JWKS, while both sign", question{JWKS: jwks(t, old), Data: l.export(order{end: 47})}, 2, ""},

		// Who has only keys that were replaced signs nothing.
		{"a retired key signs a later size", question{Data: thief.export(order{end: 82})}, 1, "the checkpoint at the end"},
		{"a retired key signs while both sign", question{Data: thief.export(order{end: 47})}, 1, "the checkpoint at the end"},
		{"one retired key signs", question{Data: half.export(order{end: 82})}, 1, "the checkpoint at the end"},
		{"a retired key signs the newest checkpoint", question{Data: func() []byte {
			other := l.clone()
			other.turns = nil
			return []byte(strings.Replace(string(l.export(order{end: 40, newest: 82})), quoted(l.note(82)), quoted(other.note(82)), 1))
		}()}, 1, "the header"},
		{"a retired key, and the JWKS has not the log's changes", question{JWKS: jwks(t, public), Data: thief.export(order{end: 82})}, 2, ""},
		{"the next key signs before its time", question{Command: "checkpoint", Held: [][2]string{{"a", signedAs(l, 30, p256("c"), ed("d"))}}}, 1, "a"},
		{"the next keys sign beside the ones before, before their time", question{Command: "checkpoint", Held: [][2]string{{"a", signedAs(l, 30, l.p256, p256("c"), l.ed, ed("d"))}}}, 0, ""},
		{"an old and a new key", question{Command: "checkpoint", Held: [][2]string{{"a", signedAs(l, 70, p256("c"), l.ed)}}}, 1, "a"},
		{"the signature of a retired key beside those of the new ones", question{Command: "checkpoint", Held: [][2]string{{"a", signedAs(l, 70, p256("c"), l.p256, ed("d"))}}}, 0, ""},
		{"another log, behind the last change", question{Command: "checkpoint", Held: [][2]string{{"a", signedAs(newLog("org_2"), 0, p256("c"), ed("d"))}}}, 0, ""},
		{"a retired key signs another log", question{Command: "checkpoint", Held: [][2]string{{"a", signedAs(newLog("org_2"), 0, l.p256, l.ed)}}}, 2, ""},
	} {
		if c.q.Command == "" {
			c.q.Command = "chain"
		}
		if c.q.JWKS == "" {
			c.q.JWKS = full
		}
		v := py.both(c.name, c.q)
		where := v.Where
		if strings.HasPrefix(c.where, "the header") && strings.HasPrefix(where, "the ") {
			where = c.where
		}
		if v.Exit != c.exit || where != c.where {
			t.Errorf("%s: %+v", c.name, v)
		}
	}

	// An export that a replaced key signed as a document.
	early := l.clone()
	early.turns = nil
	b := l.export(order{end: 82})
	last := strings.LastIndex(string(b[:len(b)-1]), "\n") + 1
	var doc struct{ Envelope evidence.Envelope }
	if err := json.Unmarshal([]byte("{"+string(b[last:])), &doc); err != nil {
		t.Fatal(err)
	}
	e, err := evidence.SignEnvelope(t.Context(), evidence.ExportType, doc.Envelope.Payload, l.p256)
	if err != nil {
		t.Fatal(err)
	}
	line, err := evidence.ExportLastLine(e)
	if err != nil {
		t.Fatal(err)
	}
	if v := py.both("a replaced key signs a document", question{Command: "chain", JWKS: full, Data: append(b[:last:last], line...)}); v.Exit != 1 || v.Where != "the signature" {
		t.Errorf("%+v", v)
	}

	// The log has another key change than the JWKS, or none.
	without := newLog("org_1")
	without.add(82, "x")
	without.turns = l.turns
	if v := py.both("no entry", question{Command: "chain", JWKS: full, Data: without.export(order{end: 82})}); v.Exit != 1 || v.Where != "entry 41" {
		t.Errorf("%+v", v)
	}
	moved := newLog("org_1")
	moved.add(41, "x")
	moved.changed(l.turns[0].change)
	moved.changed(l.turns[1].change)
	moved.add(39, "x")
	moved.turns = l.turns
	if v := py.both("an entry in another place", question{Command: "chain", JWKS: full, Data: moved.export(order{end: 82})}); v.Exit != 1 || v.Where != "entry 42" {
		t.Errorf("%+v", v)
	}
	twice := rotated()
	twice.changed(l.turns[0].change)
	if v := py.both("an old key change again", question{Command: "chain", JWKS: full, Data: twice.export(order{end: 83})}); v.Exit != 1 || v.Where != "entry 83" {
		t.Errorf("%+v", v)
	}
}

// resigned returns an export whose last line other keys signed.
func resigned(t *testing.T, b []byte, signers ...local) []byte {
	t.Helper()
	last := strings.LastIndex(string(b[:len(b)-1]), "\n") + 1
	var doc struct{ Envelope evidence.Envelope }
	if err := json.Unmarshal([]byte("{"+string(b[last:])), &doc); err != nil {
		t.Fatal(err)
	}
	line, err := evidence.ExportLastLine(signedBy(t, evidence.ExportType, doc.Envelope.Payload, signers...))
	if err != nil {
		t.Fatal(err)
	}
	return append(b[:last:last], line...)
}

// signedBy is an envelope with a signature of each signer.
func signedBy(t *testing.T, payloadType string, payload []byte, signers ...local) (all evidence.Envelope) {
	t.Helper()
	for _, s := range signers {
		e, err := evidence.SignEnvelope(t.Context(), payloadType, payload, s)
		if err != nil {
			t.Fatal(err)
		}
		e.Signatures = append(all.Signatures, e.Signatures...)
		all = e
	}
	return all
}

// A document that a replaced key signed is valid if its checkpoint is older than the replacement.
// Without such a checkpoint it is incomplete, and with a newer one it is tampered.
func TestReplacedKeySignsDocuments(t *testing.T) {
	l := rotated() // p256("c") replaces p256("a") at 41
	later := newLog("org_2")
	later.add(5, "x")
	later.p256, later.ed = p256("c"), ed("d") // it began after the change
	py := startSecond(t)
	full := jwks(t, l.keys(t))
	public := l.keys(t)
	public.Changes = []evidence.KeyChange{l.turns[0].general, l.turns[1].general}
	a, b := p256("a"), p256("c")
	text := func(v any) []byte {
		t.Helper()
		out, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	attestation := func(org string, checkpoint any, by ...local) []byte {
		t.Helper()
		return text(signedBy(t, evidence.InTotoType, fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://ai-identity.co/attestations/session/v1",
			"subject":[{"name":"aid:session/%s/ag_1/s/1","digest":{"rfc6962_sha256":"%s"}}],"predicate":{"complete":true,"checkpoint":%s}}`,
			org, strings.Repeat("ab", 32), text(checkpoint)), by...))
	}
	report := func(log *aLog, notes []string, attestation []byte, by local) []byte {
		t.Helper()
		r := evidence.Report{Format: evidence.ReportFormat, Org: log.org, Attestation: attestation, Summary: evidence.ReportSummary{Agents: []string{}, Models: []string{}, Policies: []string{}},
			Timeline: []evidence.ReportStep{}, Bundle: evidence.Bundle{Format: evidence.BundleFormat, Org: log.org, Checkpoints: notes, Consistency: []evidence.BundleConsistency{}, Entries: []evidence.BundleEntry{}}}
		payload, err := jsonv2.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return text(signedBy(t, evidence.ReportType, payload, by))
	}
	null := []byte("null")
	for _, c := range []struct {
		name, command string
		data          []byte
		jwks          string
		exit          int
		noted         bool
	}{
		{"the new key", "attestation", attestation("org_1", "", b), full, 0, false},
		{"the old key, no checkpoint", "attestation", attestation("org_1", "", a), full, 2, false},
		{"the old key, a checkpoint that is null", "attestation", attestation("org_1", nil, a), full, 2, false},
		{"the old key, a number", "attestation", attestation("org_1", 5, a), full, 2, false},
		{"the old key, an older checkpoint", "attestation", attestation("org_1", l.note(40), a), full, 0, true},
		{"the old key, the checkpoint of the change", "attestation", attestation("org_1", l.note(41), a), full, 1, false},
		{"the old key, a newer checkpoint", "attestation", attestation("org_1", l.note(82), a), full, 1, false},
		{"the old key, a checkpoint that is not signed", "attestation", attestation("org_1", strings.SplitAfter(l.note(40), "\n\n")[0], a), full, 2, false},
		{"the old key, the checkpoint of another organization", "attestation", attestation("org_2", l.note(40), a), full, 2, false},
		{"the old key, a log that began after the change", "attestation", attestation("org_2", later.note(3), a), full, 1, false},
		{"the old key, the public JWKS", "attestation", attestation("org_1", l.note(40), a), jwks(t, public), 2, false},
		{"both keys", "attestation", attestation("org_1", "", a, b), full, 0, false},
		{"both keys, the new one first", "attestation", attestation("org_1", "", b, a), full, 0, false},
		{"a report by the new key", "report", report(l, []string{}, null, b), full, 0, false},
		{"a report without a checkpoint", "report", report(l, []string{}, null, a), full, 2, false},
		{"a report with an older checkpoint", "report", report(l, []string{l.note(40)}, null, a), full, 0, true},
		{"a report with a newer checkpoint", "report", report(l, []string{l.note(12), l.note(60)}, null, a), full, 1, false},
		{"a report of a log that began after the change", "report", report(later, []string{later.note(3)}, null, a), full, 1, false},
		{"an attestation in a report", "report", report(l, []string{}, attestation("org_1", "", a), b), full, 2, false},
		{"an export of a log that began after the change", "chain", resigned(t, later.export(order{end: 5}), a), full, 1, false},
		{"an export with both signatures", "chain", resigned(t, l.export(order{end: 82}), b, a), full, 0, false},
		{"an older export", "chain", resigned(t, l.export(order{end: 40}), a), full, 0, false},
	} {
		v := py.both(c.name, question{Command: c.command, JWKS: c.jwks, Data: c.data})
		noted := strings.Contains(strings.Join(v.Notes, " "), "was replaced after its checkpoint")
		if v.Exit != c.exit || noted != c.noted {
			t.Errorf("%s: %+v", c.name, v)
		}
	}
}

func quoted(s string) string { return strings.ReplaceAll(s, "\n", `\n`) }

func signedAs(l *aLog, size int64, signers ...evidence.Signer) string {
	text, _, _ := strings.Cut(l.note(size), "\n\n")
	c, err := evidence.ParseCheckpoint(text + "\n")
	if err != nil {
		panic(err)
	}
	b, err := evidence.Sign(context.Background(), c, signers...)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// A forged, moved, replayed or incomplete key change makes a JWKS useless, for both verifiers.
func TestForgedKeyChange(t *testing.T) {
	l := rotated()
	py := startSecond(t)
	good := l.keys(t)
	export := l.export(order{end: 82})
	sign := func(origin string, size int64, old, new local) evidence.KeyChange {
		c, err := evidence.SignKeyChange(t.Context(), origin, size, old, new)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	directory := evidence.DirectoryOrigin(installation)
	with := func(change func(s *evidence.KeySet)) string {
		s := good
		s.Keys = append([]evidence.Key(nil), good.Keys...)
		s.Changes = append([]evidence.KeyChange(nil), good.Changes...)
		change(&s)
		return jwks(t, s)
	}
	if v := py.both("good", question{Command: "chain", JWKS: with(func(*evidence.KeySet) {}), Data: export}); v.Exit != 0 {
		t.Fatalf("%+v", v)
	}
	thief := sign(directory, 500, l.p256, p256("evil"))
	for name, set := range map[string]string{
		"the key of another one":         with(func(s *evidence.KeySet) { s.Keys = append(s.Keys, mustKey(p256("evil"))) }),
		"no change of the directory":     with(func(s *evidence.KeySet) { s.Changes = s.Changes[1:] }),
		"no key":                         with(func(s *evidence.KeySet) { s.Keys = s.Keys[:3] }),
		"another size":                   with(func(s *evidence.KeySet) { s.Changes[1].Size++ }),
		"another log":                    with(func(s *evidence.KeySet) { s.Changes[1].Origin = evidence.OrgOrigin(installation, "org_2", 1) }),
		"another role":                   with(func(s *evidence.KeySet) { s.Changes[1].Role = evidence.RoleEd25519 }),
		"an unknown role":                with(func(s *evidence.KeySet) { s.Changes[1].Role = "rsa" }),
		"swapped keys":                   with(func(s *evidence.KeySet) { s.Changes[1].Old, s.Changes[1].New = s.Changes[1].New, s.Changes[1].Old }),
		"swapped keys and signatures":    with(func(s *evidence.KeySet) { s.Changes[1] = sign(l.origin(), 41, p256("c"), l.p256) }),
		"signed by the new key only":     with(func(s *evidence.KeySet) { s.Changes[1].OldSignature = s.Changes[1].NewSignature }),
		"signed by the old key only":     with(func(s *evidence.KeySet) { s.Changes[1].NewSignature = s.Changes[1].OldSignature }),
		"without a signature":            with(func(s *evidence.KeySet) { s.Changes[1].NewSignature = []byte{} }),
		"twice":                          with(func(s *evidence.KeySet) { s.Changes = append(s.Changes, s.Changes[1]) }),
		"the same step at another size":  with(func(s *evidence.KeySet) { s.Changes = append(s.Changes, sign(l.origin(), 70, l.p256, p256("c"))) }),
		"the directory's of another log": with(func(s *evidence.KeySet) { s.Changes[0] = sign("aid-other/directory", 1040, l.p256, p256("c")) }),
		"the directory of two": with(func(s *evidence.KeySet) {
			s.Changes = append(s.Changes, sign("aid-other/directory", 5, l.p256, p256("c")))
		}),
		"a log of another installation": with(func(s *evidence.KeySet) {
			s.Changes = append(s.Changes, sign("aid-other/org/org_1/1", 5, l.p256, p256("c")))
		}),
		"a second key in the place of one": with(func(s *evidence.KeySet) {
			s.Keys = append(s.Keys, withFrom(p256("evil"), 500))
			s.Changes = append(s.Changes, thief)
		}),
		"a thief's key instead": with(func(s *evidence.KeySet) { s.Keys[2] = withFrom(p256("evil"), 500); s.Changes[0] = thief }),
		"a step that the directory has not": with(func(s *evidence.KeySet) {
			s.Keys = append(s.Keys, mustKey(p256("e")))
			s.Changes = append(s.Changes, sign(l.origin(), 70, p256("c"), p256("e")))
		}),
		"back to the first key":           with(func(s *evidence.KeySet) { s.Changes = append(s.Changes, sign(directory, 2000, p256("c"), l.p256)) }),
		"a key that begins elsewhere":     with(func(s *evidence.KeySet) { s.Keys[2].From++ }),
		"a key that ends before the next": with(func(s *evidence.KeySet) { s.Keys[0].To = 900 }),
		"a key that ends without a next":  with(func(s *evidence.KeySet) { s.Keys[2].To = 9000 }),
		"an unknown member":               strings.Replace(with(func(*evidence.KeySet) {}), `"role"`, `"x":1,"role"`, 1),
		"no changes in a list":            strings.Replace(jwks(t, keySet(t, l.p256, l.ed)), `"keys"`, `"aid_changes":[],"keys"`, 1),
		"changes that are null":           strings.Replace(jwks(t, keySet(t, l.p256, l.ed)), `"keys"`, `"aid_changes":null,"keys"`, 1),
	} {
		if _, err := evidence.ParseJWKS([]byte(set)); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if v := py.both(name, question{Command: "chain", JWKS: set, Data: export}); v.Exit != 2 {
			t.Errorf("%s: %+v", name, v)
		}
	}
	// A retired key that the directory's log has ended signs no later checkpoint of it, also not
	// beside the new one.
	ended := good
	ended.Keys = append([]evidence.Key(nil), good.Keys...)
	ended.Keys[0].To = 1100
	dir := func(size int64, signers ...evidence.Signer) string {
		b, err := evidence.Sign(t.Context(), evidence.Checkpoint{Origin: directory, Size: size, Time: at}, signers...)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	both := []evidence.Signer{l.p256, p256("c"), l.ed, ed("d")}
	for _, c := range []struct {
		note string
		exit int
	}{
		{dir(900, l.p256, l.ed), 0}, {dir(1041, both...), 0}, {dir(1099, both...), 0}, {dir(1100, both...), 1}, {dir(1100, p256("c"), ed("d")), 0}, {dir(1099, l.p256, l.ed), 1}, {dir(900, p256("c"), ed("d")), 2},
	} {
		if v := py.both("directory", question{Command: "checkpoint", JWKS: jwks(t, ended), Held: [][2]string{{"a", c.note}}}); v.Exit != c.exit {
			t.Errorf("%s%+v", c.note, v)
		}
	}
}

func withFrom(l local, from int64) evidence.Key {
	k := mustKey(l)
	k.From = from
	return k
}
