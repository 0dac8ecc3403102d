package evidence

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/mod/sumdb/tlog"
)

// BundleFormat is the format of bundles.
const BundleFormat = "aid bundle v1"

// A Bundle has single entries of a log with inclusion proofs, and proofs that checkpoints
// continue one another. It never shows that no other entry is missing.
type Bundle struct {
	Format      string              `json:"format"`
	Org         string              `json:"org"`
	Checkpoints []string            `json:"checkpoints"` // signed
	Consistency []BundleConsistency `json:"consistency"`
	Entries     []BundleEntry       `json:"entries"`
}

// A BundleConsistency proves that a checkpoint of the bundle continues another one.
type BundleConsistency struct {
	Incarnation int64    `json:"incarnation"`
	Old         int64    `json:"old"`
	Size        int64    `json:"size"`
	Proof       [][]byte `json:"proof"`
}

// A BundleEntry is an entry and the proof that it is in the tree of a checkpoint.
type BundleEntry struct {
	Index int64    `json:"index"`
	Size  int64    `json:"size"` // of the checkpoint
	Link  []byte   `json:"link"`
	Entry *string  `json:"entry,omitzero"`         // nil, as is Coded: the link only
	Coded []byte   `json:"entry_base64,omitempty"` // an entry that is not UTF-8
	Proof [][]byte `json:"proof"`
}

// NewBundleEntry returns the entry with its link and proof.
func NewBundleEntry(l Link, entry []byte, index, size int64, proof []tlog.Hash) BundleEntry {
	b := BundleEntry{Index: index, Size: size, Link: l.Append(nil), Proof: Hashes(proof)}
	if utf8.Valid(entry) {
		text := string(entry)
		b.Entry = &text
	} else {
		b.Coded = entry
	}
	return b
}

func join(hashes [][]byte) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(hashes))
	for i, b := range hashes {
		if len(b) != len(out[i]) {
			return nil, errors.New("a hash has not 32 bytes")
		}
		out[i] = tlog.Hash(b)
	}
	return out, nil
}

// ParseLink parses the bytes of a link.
func ParseLink(b []byte) (l Link, err error) {
	var parts [][]byte
	for len(b) > 0 {
		if len(b) < 8 || binary.BigEndian.Uint64(b) > uint64(len(b)-8) {
			return l, errors.New("a link is cut off")
		}
		n := binary.BigEndian.Uint64(b)
		parts = append(parts, b[8:8+n])
		b = b[8+n:]
	}
	bad := errors.New("a link has another version or form")
	if len(parts) != 14 || string(parts[0]) != LinkDomain || len(parts[13]) != len(l.Entry) {
		return l, bad
	}
	for i, to := range map[int]*string{1: &l.Org, 6: &l.Kind, 7: &l.AgentID, 8: &l.SessionID, 9: &l.RequestID, 10: &l.Writer} {
		if *to = string(parts[i]); !utf8.ValidString(*to) {
			return l, bad
		}
	}
	var appended, at int64
	for i, to := range map[int]*int64{2: &l.Incarnation, 3: &l.Seq, 4: &appended, 5: &at, 11: &l.WriterSeq, 12: &l.PrevWriterSeq} {
		if len(parts[i]) != 8 {
			return l, bad
		}
		*to = int64(binary.BigEndian.Uint64(parts[i]))
	}
	l.AppendedAt, l.Time, l.Entry = micro(appended), micro(at), [32]byte(parts[13])
	return l, nil
}

// checkedBundle is a bundle whose content was verified.
type checkedBundle struct {
	Bundle
	links   []Link
	entries [][]byte
	proved  map[string]bool // consistency, by origin and sizes
	signed  []Checkpoint    // those with valid signatures
}

func consistencyKey(origin string, old, size int64) string {
	return origin + " " + strconv.FormatInt(old, 10) + " " + strconv.FormatInt(size, 10)
}

// parseBundle parses a bundle strictly, or a response of /v1/audit/proof.
func parseBundle(c *check, b []byte) (x Bundle, err error) {
	var names map[string]jsontext.Value
	if err = json.Unmarshal(b, &names); err == nil {
		switch {
		case names["status"] != nil:
			x, err = proofBundle(c, b)
		case names["old"] != nil:
			x, err = consistencyBundle(b)
		default:
			err = parse(b, &x)
		}
	}
	if err != nil {
		return x, faultAt("the bundle", "%v", err)
	}
	return x, nil
}

// proofBundle is the bundle of a response of GET /v1/audit/proof.
func proofBundle(c *check, b []byte) (Bundle, error) {
	var p struct {
		Status      string   `json:"status"`
		Reason      string   `json:"reason"`
		Receipt     string   `json:"receipt"`
		Signature   string   `json:"signature"`
		Seq         int64    `json:"seq"`
		RequestID   string   `json:"request_id"`
		Incarnation int64    `json:"incarnation"`
		Index       int64    `json:"leaf_index"`
		Link        string   `json:"link"`
		Path        []string `json:"path"`
		Checkpoint  string   `json:"checkpoint"`

		Archive []jsontext.Value `json:"archive"`
	}
	if err := json.Unmarshal(b, &p, json.RejectUnknownMembers(true)); err != nil {
		return Bundle{}, err
	}
	x := Bundle{Format: BundleFormat, Consistency: []BundleConsistency{}}
	if p.Status != "included" {
		c.incomplete("the service says that the entry is %s", strconv.Quote(p.Status))
		return x, nil
	}
	link, err := decode64(p.Link)
	if err != nil {
		return x, err
	}
	l, err := ParseLink(link)
	if err != nil {
		return x, err
	}
	if l.Seq != p.Seq || l.Incarnation != p.Incarnation || l.RequestID != p.RequestID {
		return x, errors.New("seq, incarnation or request_id is not that of the link")
	}
	path, err := decodePath(p.Path)
	if err != nil {
		return x, err
	}
	cp, err := ParseNote(p.Checkpoint)
	if err != nil {
		return x, err
	}
	x.Org, x.Checkpoints = l.Org, []string{p.Checkpoint}
	x.Entries = []BundleEntry{{Index: p.Index, Size: cp.Size, Link: link, Proof: path}}
	return x, nil
}

// consistencyBundle is the bundle of a response of GET /v1/audit/consistency.
func consistencyBundle(b []byte) (Bundle, error) {
	var p struct {
		Incarnation   int64    `json:"incarnation"`
		Old           int64    `json:"old"`
		Size          int64    `json:"size"`
		Path          []string `json:"path"`
		OldCheckpoint string   `json:"old_checkpoint"`
		Checkpoint    string   `json:"checkpoint"`
	}
	if err := json.Unmarshal(b, &p, json.RejectUnknownMembers(true)); err != nil {
		return Bundle{}, err
	}
	path, err := decodePath(p.Path)
	if err != nil {
		return Bundle{}, err
	}
	origin, _, _ := strings.Cut(p.Checkpoint, "\n")
	_, org, _ := strings.Cut(origin, "/org/")
	org, ok := strings.CutSuffix(org, "/"+strconv.FormatInt(p.Incarnation, 10))
	if !ok || p.OldCheckpoint == "" {
		return Bundle{}, errors.New("it has not the two checkpoints")
	}
	return Bundle{
		Format: BundleFormat, Org: org, Checkpoints: []string{p.OldCheckpoint, p.Checkpoint},
		Consistency: []BundleConsistency{{Incarnation: p.Incarnation, Old: p.Old, Size: p.Size, Proof: path}},
	}, nil
}

func decodePath(path []string) ([][]byte, error) {
	out := make([][]byte, len(path))
	for i, text := range path {
		var err error
		if out[i], err = decode64(text); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func checkBundle(c *check, b Bundle, keys KeySet, held []seen) (*checkedBundle, error) {
	x := &checkedBundle{Bundle: b, proved: make(map[string]bool)}
	if b.Format != BundleFormat {
		return nil, faultAt("the bundle", "its format is unknown: this version reads %s", BundleFormat)
	}
	all := slices.Clone(held)
	type size struct{ incarnation, size int64 }
	checkpoints := make(map[size]Checkpoint)
	for i, note := range b.Checkpoints {
		where := fmt.Sprintf("checkpoint %d of the bundle", i+1)
		cp, err := ParseNote(note)
		if err != nil {
			return nil, faultAt(where, "%v", err)
		}
		at := strings.LastIndexByte(cp.Origin, '/')
		incarnation, err := strconv.ParseInt(cp.Origin[at+1:], 10, 64)
		if err != nil || incarnation < 1 || !strings.HasSuffix(cp.Origin, OrgOrigin("", b.Org, incarnation)) {
			return nil, faultAt(where, "it is not of the organization")
		}
		cp, signed, err := openNote(c, keys, note, cp.Origin, where)
		if err != nil {
			return nil, err
		}
		if signed {
			all, x.signed = append(all, seen{cp, note, where}), append(x.signed, cp)
			c.ok("a signed checkpoint of %s with %d entries at %s", cp.Origin, cp.Size, cp.Time.Format(TimeLayout))
		}
		checkpoints[size{incarnation, cp.Size}] = cp
	}
	if err := compare(all); err != nil {
		return nil, err
	}
	for i, p := range b.Consistency {
		where := fmt.Sprintf("consistency proof %d of the bundle", i+1)
		old, ok := checkpoints[size{p.Incarnation, p.Old}]
		cp, ok2 := checkpoints[size{p.Incarnation, p.Size}]
		if !ok || !ok2 {
			return nil, faultAt(where, "the bundle has no checkpoint of this size")
		}
		proof, err := join(p.Proof)
		if err != nil {
			return nil, faultAt(where, "%v", err)
		}
		if !consistent(old, cp, proof) {
			return nil, faultAt(where, "the larger tree does not continue the smaller one")
		}
		x.proved[consistencyKey(cp.Origin, p.Old, p.Size)] = true
		c.ok("the checkpoint with %d entries continues that with %d", p.Size, p.Old)
	}
	for i, p := range b.Entries {
		where := fmt.Sprintf("piece %d of the bundle", i+1)
		if p.Entry != nil && len(p.Coded) > 0 || len(p.Coded) > 0 && utf8.Valid(p.Coded) {
			return nil, faultAt(where, "it has both entry and entry_base64, or text in base64")
		}
		l, err := ParseLink(p.Link)
		if err != nil {
			return nil, faultAt(where, "%v", err)
		}
		where = fmt.Sprintf("entry %d", l.Seq)
		entry := p.Coded
		if p.Entry != nil {
			entry = []byte(*p.Entry)
		}
		if l.Org != b.Org {
			return nil, faultAt(where, "it is of another organization")
		}
		if p.Entry != nil || entry != nil {
			if EntryHash(entry) != l.Entry {
				return nil, faultAt(where, "the entry has another hash than its link")
			}
			if err := sameFields(entry, &l, l.AppendedAt.UnixMicro(), l.Time.UnixMicro()); err != nil {
				return nil, faultAt(where, "%v", err)
			}
		}
		if p.Index < 0 || l.Incarnation == 1 && l.Seq-1 != p.Index {
			return nil, faultAt(where, "its index is not that of its number")
		}
		proof, err := join(p.Proof)
		if err != nil {
			return nil, faultAt(where, "%v", err)
		}
		cp, ok := checkpoints[size{l.Incarnation, p.Size}]
		switch {
		case !ok:
			c.incomplete("%s: the bundle has no checkpoint of its size, so nothing shows that the entry is in the log", where)
		case tlog.CheckRecord(proof, p.Size, cp.Root, p.Index, tlog.RecordHash(p.Link)) != nil:
			return nil, faultAt(where, "its proof does not lead to the checkpoint with size %d", p.Size)
		default:
			c.ok("entry %d is in the log with %d entries", l.Seq, p.Size)
		}
		x.links, x.entries = append(x.links, l), append(x.entries, entry)
	}
	if len(x.links) > 0 {
		c.note("A bundle has single entries. It does not show that no other entry is missing: order an export for that.")
	}
	c.Complete = "no completeness"
	return x, nil
}

// consistent reports whether a proof is right that b continues a.
func consistent(a, b Checkpoint, proof []tlog.Hash) bool {
	switch {
	case a.Size > b.Size:
		return false
	case a.Size == 0:
		return len(proof) == 0 && a.Root == emptyRoot
	case a.Size == b.Size:
		return len(proof) == 0 && a.Root == b.Root
	}
	return tlog.CheckTree(proof, b.Size, b.Root, a.Size, a.Root) == nil
}

// VerifyBundle verifies single entries with inclusion proofs.
func VerifyBundle(b []byte, keys KeySet) Verdict {
	c := newCheck("bundle")
	return c.result(func() error {
		x, err := parseBundle(c, b)
		if err != nil {
			return err
		}
		_, err = checkBundle(c, x, keys, nil)
		return err
	}())
}

// VerifyCheckpoints verifies signed checkpoints of one log, and compares them. The bundle has
// consistency proofs; it may be nil.
func VerifyCheckpoints(notes []HeldNote, keys KeySet, bundle []byte) Verdict {
	c := newCheck("checkpoint")
	return c.result(verifyCheckpoints(c, notes, keys, bundle))
}

func verifyCheckpoints(c *check, notes []HeldNote, keys KeySet, bundle []byte) error {
	var all []seen
	var origins []string
	for _, n := range notes {
		cp, err := ParseNote(string(n.Note))
		if err != nil {
			return faultAt(n.From, "%v", err)
		}
		cp, signed, err := openNote(c, keys, string(n.Note), cp.Origin, n.From)
		if err != nil {
			return err
		}
		if !slices.Contains(origins, cp.Origin) {
			origins = append(origins, cp.Origin)
		}
		if signed {
			all = append(all, seen{cp, string(n.Note), n.From})
			c.ok("%s: %s has %d entries at %s", n.From, cp.Origin, cp.Size, cp.Time.Format(TimeLayout))
		}
	}
	if err := compare(all); err != nil {
		return err
	}
	if len(origins) > 1 {
		slices.Sort(origins)
		c.incomplete("the checkpoints are of %d logs: %s", len(origins), strings.Join(origins, ", "))
	}
	proved := map[string]bool{}
	if bundle != nil {
		x, err := parseBundle(c, bundle)
		if err != nil {
			return err
		}
		b, err := checkBundle(c, x, keys, all)
		if err != nil {
			return err
		}
		proved = b.proved
		c.Complete = ""
	}
	slices.SortStableFunc(all, func(a, b seen) int {
		if a.Origin != b.Origin {
			return strings.Compare(a.Origin, b.Origin)
		}
		return int(min(1, max(-1, a.Size-b.Size)))
	})
	for i := 1; i < len(all); i++ {
		a, b := all[i-1], all[i]
		if a.Origin == b.Origin && a.Size != b.Size && a.Size != 0 && !proved[consistencyKey(a.Origin, a.Size, b.Size)] {
			c.incomplete("nothing shows that the log with %d entries continues that with %d: give --bundle with a consistency proof, or check an export with --checkpoint", b.Size, a.Size)
		}
	}
	if len(all) == 1 {
		c.note("One checkpoint proves its own signatures only. Give two, or check an export with --checkpoint.")
	}
	if len(all) > 0 {
		last := all[len(all)-1]
		c.Complete = fmt.Sprintf("up to the checkpoint of %s with %d entries at %s", last.Origin, last.Size, last.Time.Format(TimeLayout))
	}
	return nil
}

// ReportFormat is the format of the payload of a forensics report.
const ReportFormat = "aid forensics v1"

// A Report is the story of a request or a session. The bundle proves its
// entries. The sentences are the control plane's.
type Report struct {
	Format      string         `json:"format"`
	ID          string         `json:"id"`
	Org         string         `json:"org"`
	Subject     ReportSubject  `json:"subject"`
	CreatedAt   string         `json:"created_at"`
	Summary     ReportSummary  `json:"summary"`
	Timeline    []ReportStep   `json:"timeline"`
	Attestation jsontext.Value `json:"attestation"` // an envelope of InTotoType, or null
	Bundle      Bundle         `json:"bundle"`
}

// ReportID is derived from the report's content.
func ReportID(r Report) string {
	r.ID = ""
	b, err := json.Marshal(r)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// ReportSubject is what a report is about.
type ReportSubject struct {
	Kind string `json:"kind"` // request_id or session_id
	ID   string `json:"id"`
}

// ReportSummary counts what the entries say.
type ReportSummary struct {
	Requests int64    `json:"requests"`
	Allowed  int64    `json:"allowed"`
	Denied   int64    `json:"denied"`
	Open     int64    `json:"open"` // without an end yet
	Agents   []string `json:"agents"`
	Models   []string `json:"models"`
	Policies []string `json:"policies"`
	// CostNanoUSD is the known cost; Unpriced counts requests with unknown cost.
	CostNanoUSD int64 `json:"cost_nano_usd"`
	Unpriced    int64 `json:"unpriced"`
}

// ReportStep is one step of the story.
type ReportStep struct {
	Seq    int64    `json:"seq"` // of the entry that says so
	Time   string   `json:"time"`
	Stage  string   `json:"stage"` // gateway, policy, upstream or audit
	Text   string   `json:"text"`
	Detail []string `json:"detail"`
}

// document opens a signed document. With an unknown key the result is incomplete.
func document(c *check, b []byte, keys KeySet, payloadType, where string) (payload []byte, signer string, err error) {
	payload, k, err := keys.OpenEnvelope(b, payloadType)
	switch {
	case errors.Is(err, errUnknownKey):
		c.incomplete("%s: %v", where, err)
		var e Envelope
		if err := parse(b, &e); err != nil {
			return nil, "", faultAt(where, "%v", err)
		}
		return e.Payload, "", nil
	case err != nil:
		return nil, "", faultAt(where, "%v", err)
	}
	c.ok("signed with key %s", k.ID)
	return payload, k.ID, nil
}

// signedInTime checks the key that signed a document: a holder of a replaced key can still sign. The
// checkpoints are those of the document that the set opens. A signature counts if the key
// had no successor in their logs at their sizes.
func signedInTime(c *check, keys KeySet, signer, where string, checkpoints []Checkpoint) error {
	if signer == "" || !keys.succeeded(signer) {
		return nil
	}
	for _, cp := range checkpoints {
		if keys.replaced(cp.Origin, signer, cp.Size, true) {
			return faultAt(where, "key %s signed it, and was replaced before its checkpoint of %s with %d entries", signer, cp.Origin, cp.Size)
		}
	}
	if len(checkpoints) == 0 {
		c.incomplete("%s: key %s signed it, and was replaced since. No checkpoint in it shows that it is older: order a new one", where, signer)
		return nil
	}
	c.note("Key %s signed %s, and was replaced after its checkpoint. A thief of that key could still sign it.", signer, where)
	return nil
}

// VerifyReport verifies a forensics report.
func VerifyReport(b []byte, keys KeySet) Verdict {
	c := newCheck("report")
	return c.result(verifyReport(c, b, keys))
}

func verifyReport(c *check, b []byte, keys KeySet) error {
	const where = "the report"
	payload, signer, err := document(c, b, keys, ReportType, where)
	if err != nil {
		return err
	}
	var r Report
	if err := parse(payload, &r); err != nil {
		return faultAt(where, "%v", err)
	}
	if r.Format != ReportFormat {
		return faultAt(where, "its format is unknown: this version reads %s", ReportFormat)
	}
	if r.Bundle.Org != r.Org {
		return faultAt(where, "its entries are of another organization")
	}
	x, err := checkBundle(c, r.Bundle, keys, nil)
	if err != nil {
		return err
	}
	if err := signedInTime(c, keys, signer, where, x.signed); err != nil {
		return err
	}
	for _, step := range r.Timeline {
		if !slices.ContainsFunc(x.links, func(l Link) bool { return l.Seq == step.Seq }) {
			return faultAt(where, "a step of its timeline has no entry in its bundle")
		}
	}
	if string(r.Attestation) != "null" {
		if err := checkStatement(c, r.Attestation, keys, "the attestation in the report"); err != nil {
			return err
		}
	}
	c.note("The entries and their proofs are checked. The summary and the sentences of the timeline are the service's own.")
	return nil
}

const (
	statementType = "https://in-toto.io/Statement/v1"
	predicateType = "https://ai-identity.co/attestations/session/v1"
)

// VerifyAttestation verifies the attestation of a session.
func VerifyAttestation(b []byte, keys KeySet) Verdict {
	c := newCheck("attestation")
	err := checkStatement(c, b, keys, "the attestation")
	c.note("The attestation counts the session's entries. Check them with an export of the session: chain EXPORT.")
	return c.result(err)
}

func checkStatement(c *check, b []byte, keys KeySet, where string) error {
	payload, signer, err := document(c, b, keys, InTotoType, where)
	if err != nil {
		return err
	}
	var s struct {
		Type    string `json:"_type"`
		Subject []struct {
			Name   string            `json:"name"`
			Digest map[string]string `json:"digest"`
		} `json:"subject"`
		PredicateType string         `json:"predicateType"`
		Predicate     jsontext.Value `json:"predicate"`
	}
	if err := parse(payload, &s); err != nil {
		return faultAt(where, "%v", err)
	}
	if s.Type != statementType {
		return faultAt(where, "it is not an in-toto Statement v1")
	}
	if s.PredicateType != predicateType {
		return faultAt(where, "its predicate is of a type that this version does not read")
	}
	if len(s.Subject) != 1 || s.Predicate.Kind() != '{' {
		return faultAt(where, "it has not exactly one subject and a predicate")
	}
	digest := s.Subject[0].Digest["rfc6962_sha256"]
	if raw, err := hex.DecodeString(digest); err != nil || len(raw) != 32 || hex.EncodeToString(raw) != digest || len(s.Subject[0].Digest) != 1 ||
		!strings.HasPrefix(s.Subject[0].Name, "aid:session/") {
		return faultAt(where, "its subject is not a session")
	}
	c.ok("%s is about %s, whose links have the root %s", where, s.Subject[0].Name, digest)
	var p struct {
		Complete   jsontext.Value `json:"complete"`
		Checkpoint jsontext.Value `json:"checkpoint"`
	}
	if err := json.Unmarshal(s.Predicate, &p); err != nil {
		return faultAt(where, "%v", err)
	}
	if err := signedInTime(c, keys, signer, where, attested(keys, s.Subject[0].Name, p.Checkpoint)); err != nil {
		return err
	}
	if string(p.Complete) != "true" {
		c.incomplete("%s says that it is not complete", where)
	}
	return nil
}

// attested returns the checkpoint of an attestation if the set opens it, and if it is of the
// subject's organization.
func attested(keys KeySet, subject string, text jsontext.Value) []Checkpoint {
	var note string
	if json.Unmarshal(text, &note) != nil {
		return nil
	}
	org, _, _ := strings.Cut(strings.TrimPrefix(subject, "aid:session/"), "/")
	origin, _, _ := strings.Cut(note, "\n")
	if at := strings.LastIndexByte(origin, '/'); at < 0 || org == "" || !strings.HasSuffix(origin[:at], "/org/"+org) {
		return nil
	}
	cp, err := keys.Open([]byte(note), origin)
	if err != nil {
		return nil
	}
	return []Checkpoint{cp}
}

// VerifyReceipt verifies a receipt against a bundle, which has its entry and the first entry of
// its writer.
func VerifyReceipt(receipt string, bundle []byte, keys KeySet) Verdict {
	c := newCheck("receipt")
	return c.result(verifyReceipt(c, receipt, bundle, keys))
}

func verifyReceipt(c *check, receipt string, bundle []byte, keys KeySet) error {
	r, err := ParseReceipt(receipt)
	if err != nil {
		return faultAt("the receipt", "%v", err)
	}
	b, err := parseBundle(c, bundle)
	if err != nil {
		return err
	}
	x, err := checkBundle(c, b, keys, nil)
	if err != nil {
		return err
	}
	there, same := false, false
	var receiptKeys []string
	for i, l := range x.links {
		if l.Writer != r.Writer {
			continue
		}
		if l.WriterSeq == int64(r.Seq) {
			there, same = true, same || l.Entry == r.Leaf
		}
		if l.Kind == "writer.started" {
			var e struct {
				Key string `json:"receipt_key"`
			}
			if err := json.Unmarshal(x.entries[i], &e); err == nil && e.Key != "" {
				receiptKeys = append(receiptKeys, e.Key)
			}
		}
	}
	switch {
	case same:
		c.ok("the log has the receipt's entry")
	case there:
		return faultAt("the receipt", "the log has another entry under the receipt's number")
	default:
		c.incomplete("the bundle has no entry of writer %s with number %d", r.Writer, r.Seq)
	}
	switch {
	case !r.Signed || len(receiptKeys) == 0:
		c.note("The receipt's signature was not checked. The proof that the log has its entry does not need it.")
	default:
		good := false
		for _, text := range receiptKeys {
			key, err := decodeReceiptKey(text)
			if err != nil {
				return faultAt("the entry writer.started", "its receipt key is not base64url")
			}
			good = good || r.signedBy(b.Org, key)
		}
		if !good {
			return faultAt("the receipt", "its signature is not that of its writer")
		}
		c.ok("the receipt is signed by its writer")
	}
	return nil
}
