package evidence

import (
	"bufio"
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"golang.org/x/mod/sumdb/tlog"
)

// ChainOptions are what an auditor holds beside an export.
type ChainOptions struct {
	Keys KeySet
	// Held are checkpoints that the auditor kept, with the names of their files.
	Held []HeldNote
	// MACKeys are the HMAC keys by epoch; epoch 0 is for every epoch. Each may be the org's key
	// or the installation's.
	MACKeys map[int32][]byte
	// Rows is called with each row that has its entry, in order, once the row is verified. What
	// the whole export is worth is known at its end only.
	Rows func(ExportRow) error
	// Opened is called with the header, once it is verified.
	Opened func(ExportHeader)
}

// A HeldNote is a signed checkpoint from outside the file that is verified.
type HeldNote struct {
	From string
	Note []byte
}

// Limits of an export. A line has at most one entry, whose text has at most six characters for
// each byte.
const (
	maxLine    = 8 << 20
	batchRows  = 256
	batchBytes = 1 << 20
)

// VerifyChain verifies an export. It reads the file once and needs memory for some lines only.
// The result rests on links, checkpoints and entries. MACs are checked if there are keys.
func VerifyChain(r io.Reader, o ChainOptions) Verdict {
	c := newCheck("chain")
	return c.result(verifyChain(c, r, o))
}

// exportCheck is the state of one verification.
type exportCheck struct {
	*check
	h            ExportHeader
	end          Checkpoint
	opened       bool  // end has valid signatures
	late         int64 // entries with a time before this are late; math.MinInt64: none is
	origin       string
	tree         *Range
	held         []seen
	earlier      []seen // held ones of earlier incarnations
	known        []seen // of the export, with valid signatures
	rows         int64
	entries      int64
	malformed    int64
	lastTime     int64 // appended_at of the last row
	lastVersion  int16
	lastEpoch    int32
	mac          []byte
	macs         map[int32]hash.Hash // by epoch
	macChecked   int64
	macUnchecked int64
	keys         KeySet
	full         bool        // rows have their content
	lost         []string    // what the first entry of a reopened log makes incomplete
	changes      []rowChange // of the rows
	agreed       int64       // size up to which a held checkpoint agrees; -1: none
}

func verifyChain(c *check, r io.Reader, o ChainOptions) error {
	e := &exportCheck{check: c, keys: o.Keys, late: math.MinInt64, agreed: -1, full: o.Rows != nil}
	in := bufio.NewReaderSize(r, maxLine)
	sum := sha256.New()
	line, err := readLine(in)
	if err != nil {
		return faultAt("line 1", "%v", err)
	}
	sum.Write(line)
	if err := e.header(line, o); err != nil {
		return err
	}
	if o.Opened != nil {
		o.Opened(e.h)
	}
	last, err := e.readRows(in, sum, o)
	if err != nil {
		return err
	}
	return e.finish(last, [32]byte(sum.Sum(nil)), in, o)
}

var errLine = fmt.Errorf("the file ends before the line is complete, or the line has more than %d bytes", maxLine)

// readLine returns the next line with its end. It is valid until the next call.
func readLine(in *bufio.Reader) ([]byte, error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return nil, errLine
	}
	return line, nil
}

// openNote verifies a checkpoint. With an unknown key the result is incomplete. The checkpoint
// is returned all the same, to find contradictions.
func (e *exportCheck) openNote(keys KeySet, note, where string) (Checkpoint, bool, error) {
	return openNote(e.check, keys, note, e.origin, where)
}

func openNote(c *check, keys KeySet, note, origin, where string) (Checkpoint, bool, error) {
	cp, err := keys.Open([]byte(note), origin)
	if errors.Is(err, errUnknownKey) {
		c.incomplete("%s: %v", where, err)
		cp, err = ParseNote(note)
		return cp, false, err
	}
	if err != nil {
		return cp, false, faultAt(where, "%v", err)
	}
	return cp, true, nil
}

func (e *exportCheck) header(line []byte, o ChainOptions) error {
	const where = "the header"
	begin, end := []byte(`{"format":"`+ExportFormat+`","header":`), []byte(`,"rows":[`+"\n")
	b, ok := bytes.CutPrefix(line, begin)
	b, ok2 := bytes.CutSuffix(b, end)
	if !ok || !ok2 {
		return faultAt(where, "it is not that of an export in the format %q", ExportFormat)
	}
	h := &e.h
	if err := json.Unmarshal(b, h, json.RejectUnknownMembers(true)); err != nil {
		return faultAt(where, "it is not valid: %v", err)
	}
	again, err := h.line()
	if err != nil || !bytes.Equal(again, line) {
		return faultAt(where, "it is not in canonical form")
	}
	id := h.ID
	if err := h.setID(); err != nil || h.ID != id {
		return faultAt(where, "its id is not that of its content")
	}
	if h.Incarnation < 1 || h.FirstSeq < 1 || h.First < 0 || h.First > math.MaxInt64/4 || h.FirstSeq > math.MaxInt64/4 {
		return faultAt(where, "incarnation, first_seq or first is out of range")
	}
	if h.Filter.Until != 0 && h.Filter.Until <= h.Filter.Since {
		return faultAt(where, "the filter ends before it begins")
	}
	// The origin's first part is the installation's name, which only the signature proves.
	e.origin, _, _ = strings.Cut(h.End, "\n")
	if !strings.HasSuffix(e.origin, OrgOrigin("", h.Org, h.Incarnation)) {
		return faultAt(where, "the checkpoint at the end is not of this organization and incarnation")
	}
	var signed bool
	if e.end, signed, err = e.openNote(o.Keys, h.End, "the checkpoint at the end"); err != nil {
		return err
	}
	if e.opened = signed; signed {
		e.known = append(e.known, seen{e.end, h.End, "the export's end"})
	}
	if e.end.Size < h.First {
		return faultAt(where, "the export begins after its end")
	}
	if e.tree, err = h.start(); err != nil {
		return faultAt(where, "left: %v", err)
	}
	if h.Before == "" {
		if h.First != 0 {
			return faultAt(where, "the checkpoint before the first row is missing")
		}
		if h.After != "" {
			return faultAt(where, "an export that continues another one needs the checkpoint before")
		}
	} else {
		before, signed, err := e.openNote(o.Keys, h.Before, "the checkpoint before")
		if err != nil {
			return err
		}
		if before.Size != h.First || before.Root != e.tree.Root() {
			return faultAt("the checkpoint before", "it does not fit the tree before the first row")
		}
		if signed {
			e.known = append(e.known, seen{before, h.Before, "the checkpoint before"})
		}
		if h.After != "" {
			e.late = before.Time.UnixMicro()
		}
	}
	if h.Newest == "" {
		if len(h.Consistency) != 0 {
			return faultAt(where, "it has a proof without the newest checkpoint")
		}
	} else {
		newest, signed, err := e.openNote(o.Keys, h.Newest, "the newest checkpoint")
		if err != nil {
			return err
		}
		proof := make(tlog.TreeProof, len(h.Consistency))
		for i, b := range h.Consistency {
			if len(b) != 32 {
				return faultAt(where, "a hash of the proof has not 32 bytes")
			}
			proof[i] = tlog.Hash(b)
		}
		if newest.Size <= e.end.Size {
			return faultAt("the newest checkpoint", "it is not after the end")
		}
		if e.end.Size == 0 {
			if len(proof) != 0 {
				return faultAt("the newest checkpoint", "an empty tree needs no proof")
			}
		} else if err := tlog.CheckTree(proof, newest.Size, newest.Root, e.end.Size, e.end.Root); err != nil {
			return faultAt("the newest checkpoint", "its tree does not continue that of the end")
		}
		if signed {
			e.known = append(e.known, seen{newest, h.Newest, "the newest checkpoint"})
		}
	}
	prev, err := hex.DecodeString(h.PrevMAC)
	if err != nil || len(prev) != 0 && len(prev) != 32 || hex.EncodeToString(prev) != h.PrevMAC || h.FirstSeq == 1 && h.First == 0 && len(prev) != 0 {
		return faultAt(where, "prev_mac is not a MAC")
	}
	e.mac = prev
	for _, n := range o.Held {
		cp, err := ParseNote(string(n.Note))
		if err == nil && h.First == 0 && e.isEarlier(cp.Origin) {
			cp, signed, err := openNote(e.check, o.Keys, string(n.Note), cp.Origin, n.From)
			if err != nil {
				return err
			}
			if signed {
				e.earlier = append(e.earlier, seen{cp, string(n.Note), n.From})
			}
			continue
		}
		if err == nil && cp.Origin != e.origin {
			e.incomplete("%s is of %s, and the export is of %s: nothing compares them", n.From, cp.Origin, e.origin)
			continue
		}
		cp, signed, err := e.openNote(o.Keys, string(n.Note), n.From)
		if err != nil {
			return err
		}
		if signed {
			e.held = append(e.held, seen{cp, string(n.Note), n.From})
		}
	}
	if err := compare(append(slices.Clone(e.held), e.known...)); err != nil {
		return err
	}
	return e.passed()
}

// passed compares the tree with the held checkpoints of its size.
func (e *exportCheck) passed() error {
	for _, k := range e.held {
		if k.Size != e.tree.Size() {
			continue
		}
		if root := e.tree.Root(); root != k.Root {
			from := max(e.agreed, e.h.First)
			return &fault{fmt.Sprintf("entries %d to %d", e.h.FirstSeq+from, e.h.FirstSeq+k.Size-1),
				fmt.Sprintf("the export has other entries than %s", k.from), []string{k.note, e.h.End}}
		}
		e.agreed = k.Size
	}
	return nil
}

// A rowChange is the key change in the row of a leaf.
type rowChange struct {
	KeyChange
	index int64
}

// A row is what a worker found in one line.
type row struct {
	seq, appended int64
	leaf          tlog.Hash
	epoch         int32
	version       int16
	mac           []byte
	link          []byte // for the MAC
	entry         []byte // of the first leaf
	change        *rowChange
	full          *ExportRow // for ChainOptions.Rows
	selected      bool
	malformed     bool
	err           error
}

// readRows verifies the rows in batches, which are parsed in parallel and taken in order. It
// returns the last line.
func (e *exportCheck) readRows(in *bufio.Reader, sum hash.Hash, o ChainOptions) ([]byte, error) {
	total := e.end.Size - e.h.First
	type batch struct {
		lines []byte
		first int64 // index of its first row
		done  chan []row
	}
	queue := make(chan *batch, 2*runtime.GOMAXPROCS(0))
	work := make(chan *batch, cap(queue))
	stop := make(chan struct{})
	defer close(stop)
	needMAC := len(o.MACKeys) > 0
	for range runtime.GOMAXPROCS(0) {
		go func() {
			for b := range work {
				b.done <- e.parse(b.lines, b.first, total, needMAC)
			}
		}()
	}
	// The reader sets these before it closes queue. After an error of a row they are not read.
	var readErr error
	var last []byte
	go func() {
		defer close(work)
		defer close(queue)
		b := &batch{done: make(chan []row, 1)}
		n := 0
		flush := func(next int64) bool {
			if n == 0 {
				return true
			}
			select {
			case queue <- b:
			case <-stop:
				return false
			}
			work <- b
			b, n = &batch{first: next, done: make(chan []row, 1), lines: make([]byte, 0, len(b.lines))}, 0
			return true
		}
		for i := range total {
			line, err := readLine(in)
			if err != nil {
				readErr = faultAt(fmt.Sprintf("entry %d", e.h.FirstSeq+e.h.First+i), "%v", err)
				flush(0)
				return
			}
			sum.Write(line)
			b.lines = append(b.lines, line...)
			if n++; n == batchRows || len(b.lines) > batchBytes {
				if !flush(i + 1) {
					return
				}
			}
		}
		if !flush(0) {
			return
		}
		line, err := readLine(in)
		if err != nil || string(line) != ExportRowsEnd {
			readErr = faultAt("the end of the rows", "the export has more or fewer rows than its checkpoint has leaves")
			return
		}
		sum.Write(line)
		if line, err = readLine(in); err != nil {
			readErr = faultAt("the last line", "%v", err)
			return
		}
		last = bytes.Clone(line)
	}()
	for b := range queue {
		for _, r := range <-b.done {
			if err := e.take(&r, o); err != nil {
				return nil, err
			}
		}
	}
	return last, readErr
}

// take verifies the next row's place.
func (e *exportCheck) take(r *row, o ChainOptions) error {
	want := e.h.FirstSeq + e.h.First + e.rows
	where := fmt.Sprintf("entry %d", want)
	switch {
	case r.err != nil:
		if f, ok := r.err.(*fault); ok {
			return &fault{where, f.problem, f.proof}
		}
		return faultAt(where, "%v", r.err)
	case r.seq != want:
		return faultAt(where, "%d is in its place", r.seq)
	case r.version < min(e.lastVersion, 2) || r.epoch < e.lastEpoch: // replicas of two versions write 2 and 3 in turn
		return faultAt(where, "its MAC has an older version or epoch than the entry before")
	case r.version > 1 && e.lastVersion > 1 && e.rows > 0 && r.appended <= e.lastTime:
		return faultAt(where, "it was not appended after the entry before it")
	}
	e.lastVersion, e.lastEpoch, e.lastTime = r.version, r.epoch, r.appended
	if len(o.MACKeys) > 0 {
		if err := e.checkMAC(r, o); err != nil {
			return faultAt(where, "%v", err)
		}
	}
	e.mac = r.mac
	e.rows++
	if r.selected {
		e.entries++
	}
	if r.malformed {
		e.malformed++
	}
	if r.change != nil {
		e.changes = append(e.changes, *r.change)
	}
	e.tree.Append(r.leaf)
	if r.full != nil {
		if err := o.Rows(*r.full); err != nil {
			return err
		}
	}
	if len(e.held) > 0 {
		return e.passed()
	}
	return nil
}

// macDomain is the info of HKDF for the key of an org and epoch: see audit.Keys.
const macDomain = "aid audit chain v2\x00"

func (e *exportCheck) checkMAC(r *row, o ChainOptions) error {
	key, ok := o.MACKeys[r.epoch]
	if !ok {
		key, ok = o.MACKeys[0]
	}
	if !ok || r.version == 1 {
		e.macUnchecked++
		return nil
	}
	b := appendMAC(nil, r.epoch, e.mac, r.link)
	try := func(h hash.Hash) bool {
		h.Reset()
		h.Write(b)
		return hmac.Equal(h.Sum(nil), r.mac)
	}
	if e.macs == nil {
		e.macs = make(map[int32]hash.Hash)
	}
	h := e.macs[r.epoch]
	if h == nil {
		own, err := hkdf.Key(sha256.New, key, nil, string(binary.BigEndian.AppendUint64([]byte(macDomain), uint64(r.epoch)))+e.h.Org, sha256.Size)
		if err != nil {
			return err
		}
		if h = hmac.New(sha256.New, key); !try(h) {
			h = hmac.New(sha256.New, own)
		}
		e.macs[r.epoch] = h
	}
	if !try(h) {
		return errors.New("its MAC is wrong, or the HMAC key is another one")
	}
	e.macChecked++
	return nil
}

// finish verifies what follows the rows.
func (e *exportCheck) finish(last []byte, sum [32]byte, in *bufio.Reader, o ChainOptions) error {
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		return faultAt("the end of the file", "something follows the export")
	}
	if e.tree.Root() != e.end.Root {
		from := max(e.agreed, e.h.First)
		return faultAt(fmt.Sprintf("entries %d to %d", e.h.FirstSeq+from, e.h.FirstSeq+e.end.Size-1), "their links are not those of the checkpoint with size %d", e.end.Size)
	}
	const where = "the signature"
	b, ok := bytes.CutPrefix(last, []byte(`"envelope":`))
	b, ok2 := bytes.CutSuffix(b, []byte("}\n"))
	if !ok || !ok2 {
		return faultAt(where, "the last line is not an envelope")
	}
	var env Envelope
	if err := parse(b, &env); err != nil {
		return faultAt(where, "the envelope is invalid: %v", err)
	}
	again, err := ExportLastLine(env)
	if err != nil || !bytes.Equal(again, last) {
		return faultAt(where, "the last line is not in canonical form")
	}
	payload, signer, err := o.Keys.Verify(env, ExportType)
	switch {
	case errors.Is(err, errUnknownKey):
		e.incomplete("%s: %v", where, err)
		payload = env.Payload
	case err != nil:
		return faultAt(where, "%v", err)
	}
	root := e.tree.Root()
	want, err := json.Marshal(ExportStatement{
		Format: ExportFormat, ID: e.h.ID, Org: e.h.Org, Filter: e.h.Filter, First: e.h.First, End: e.end.Size, Root: root[:], Entries: e.entries,
		SHA256: hex.EncodeToString(sum[:]),
	})
	if err != nil || !bytes.Equal(want, payload) {
		return faultAt(where, "it is of another file: the statement does not say what the file is")
	}
	if signer.ID != "" && o.Keys.replaced(e.origin, signer.ID, e.end.Size, e.opened) {
		return faultAt(where, "key %s signed it, and was replaced before the end of the export", signer.ID)
	}
	if err := e.keyChanges(); err != nil {
		return err
	}
	e.report(signer, o)
	return nil
}

// keyChanges compares the key changes in the rows with those of the JWKS.
func (e *exportCheck) keyChanges() error {
	for _, c := range e.changes {
		seq := e.h.FirstSeq + c.index
		switch {
		case c.Size != c.index+1:
			return faultAt(fmt.Sprintf("entry %d", seq), "it is a key change that begins at another size than its own")
		case slices.ContainsFunc(e.keys.Changes, c.same):
			e.ok("entry %d: key %s replaces %s from size %d on, signed by both", seq, c.New, c.Old, c.Size)
		default:
			e.incomplete("entry %d is a key change that the JWKS does not have: get the organization's JWKS again (GET /v1/audit/jwks)", seq)
		}
	}
	for _, c := range e.keys.Changes {
		there := slices.ContainsFunc(e.changes, func(r rowChange) bool { return r.same(c) })
		if c.Origin == e.origin && c.Size > e.h.First && c.Size <= e.end.Size && !there {
			return faultAt(fmt.Sprintf("entry %d", e.h.FirstSeq+c.Size-1), "the JWKS has a key change of this log, and the entry is not that change")
		}
	}
	return nil
}

func (e *exportCheck) report(signer Key, o ChainOptions) {
	defer func() {
		e.OnlyLost = len(e.gaps) > 0 && !slices.ContainsFunc(e.gaps, func(gap string) bool { return !slices.Contains(e.lost, gap) })
	}()
	for _, text := range e.lost {
		e.incomplete("%s", text)
	}
	if e.rows == 0 && len(e.earlier) > 0 {
		e.incomplete("%s is of %s, and the export has no entry: nothing compares them", e.earlier[0].from, e.earlier[0].Origin)
	}
	first, last := e.h.FirstSeq+e.h.First, e.h.FirstSeq+e.end.Size-1
	newest := e.end
	if e.h.Newest != "" {
		newest, _ = ParseNote(e.h.Newest) // header has parsed it
	}
	for _, k := range e.held {
		switch {
		case k.Size > newest.Size:
			e.incomplete("%s has %d entries and the export's newest checkpoint has %d: the export is older, or the log was cut; order a new one", k.from, k.Size, newest.Size)
		case k.Size < e.h.First:
			e.incomplete("%s has %d entries, and the export begins behind them: order an export from there", k.from, k.Size)
		case k.Size > e.end.Size && k.Size < newest.Size:
			e.incomplete("%s has %d entries, and the export ends at %d: order an export up to there", k.from, k.Size, e.end.Size)
		}
	}
	if e.rows == 0 {
		e.Complete = fmt.Sprintf("no entries, up to the checkpoint of %s with %d entries at %s", e.origin, e.end.Size, e.end.Time.Format(TimeLayout))
	} else {
		e.Complete = fmt.Sprintf("complete for the filter among entries %d to %d, up to the checkpoint of %s with %d entries at %s",
			first, last, e.origin, e.end.Size, e.end.Time.Format(TimeLayout))
	}
	e.ok("%d links are the leaves of the signed checkpoint with %d entries", e.rows, e.end.Size)
	e.ok("%d entries match the filter, and each has the hash and the fields of its link", e.entries)
	if e.h.First > 0 {
		e.ok("the links continue the checkpoint with %d entries", e.h.First)
	}
	if e.h.Newest != "" {
		e.ok("the newest checkpoint, with %d entries, continues the end", newest.Size)
	}
	for _, k := range e.held {
		if k.Size >= e.h.First && k.Size <= e.end.Size || k.Size == newest.Size {
			e.ok("%s agrees: %d entries at %s", k.from, k.Size, k.Time.Format(TimeLayout))
		}
	}
	if signer.ID != "" {
		e.ok("the export is signed with key %s", signer.ID)
	}
	switch {
	case len(o.MACKeys) == 0:
		e.note("The result rests on public keys and checkpoints. No HMAC key was given, so MACs were not checked.")
	default:
		e.note("%d MACs are right and %d could not be checked. They prove nothing to a reader who does not trust the holders of the HMAC key; the checkpoints do.", e.macChecked, e.macUnchecked)
	}
	if len(e.held) == 0 {
		e.note("No checkpoint from elsewhere was given (--checkpoint). Without one, a log that was rewritten or cut and signed again is not detected.")
	}
	if e.malformed > 0 {
		e.note("%d entries could not be read when they arrived, and are in the log unchanged.", e.malformed)
	}
	if e.h.Filter != (ExportFilter{}) {
		e.note("The links say which entries match. The fields of links whose entries are not here were not compared with these entries.")
	}
}

// parse reads the lines of a batch. Lines are accepted in canonical form only.
func (e *exportCheck) parse(lines []byte, first, total int64, needMAC bool) []row {
	rows := make([]row, 0, batchRows)
	var buf []byte
	l := Link{Org: e.h.Org, Incarnation: e.h.Incarnation}
	for i := first; len(lines) > 0; i++ {
		end := bytes.IndexByte(lines, '\n')
		line := lines[:end]
		lines = lines[end+1:]
		var r row
		buf, r.err = e.parseRow(line, e.h.First+i, i+1 == total, &l, &r, buf[:0], needMAC)
		if r.err == nil && e.h.First+i == 0 && e.h.Incarnation > 1 {
			r.err = e.reopened(l.Kind, r.entry)
		}
		rows = append(rows, r)
		if r.err != nil {
			break
		}
	}
	return rows
}

// isEarlier reports whether an origin is of an earlier incarnation of the export's log.
func (e *exportCheck) isEarlier(origin string) bool {
	prefix := strings.TrimSuffix(e.origin, strconv.FormatInt(e.h.Incarnation, 10))
	n, err := strconv.ParseInt(strings.TrimPrefix(origin, prefix), 10, 64)
	return err == nil && n >= 1 && n < e.h.Incarnation && strings.HasPrefix(origin, prefix)
}

// reopened verifies the first entry of a reopened log. It runs once, before later rows are taken.
func (e *exportCheck) reopened(kind string, entry []byte) error {
	var r Reopened
	if err := json.Unmarshal(entry, &r); err != nil || kind != KindReopened {
		return errors.New("a reopened log does not begin with its entry " + KindReopened)
	}
	origin, _, _ := strings.Cut(r.Previous, "\n")
	if !e.isEarlier(origin) {
		return errors.New("its previous checkpoint is not of an earlier incarnation")
	}
	c, err := e.keys.Open([]byte(r.Previous), origin)
	switch {
	case errors.Is(err, errUnknownKey):
		e.lost = append(e.lost, fmt.Sprintf("the checkpoint before the log was reopened: %v", err))
	case err != nil:
		return fmt.Errorf("its previous checkpoint: %w", err)
	}
	for _, k := range e.earlier {
		switch {
		case err != nil || k.Origin != c.Origin || k.Size < c.Size:
			e.lost = append(e.lost, fmt.Sprintf("%s is of %s, and the export is of %s: nothing compares them", k.from, k.Origin, e.origin))
		case k.Size > c.Size || k.Root != c.Root:
			return &fault{"", fmt.Sprintf("%s has %d entries, and the log was reopened behind another checkpoint with %d", k.from, k.Size, c.Size), []string{k.note, r.Previous}}
		default:
			e.ok("%s is the checkpoint behind which the log was reopened", k.from)
		}
	}
	switch {
	case r.Restored < 0 || r.LostFrom < 0 || (r.LostTo == 0) != (r.LostFrom == 0) || r.LostTo < r.LostFrom || r.LostTo >= e.h.FirstSeq:
		return errors.New("the numbers of the lost entries are not a range before the first entry")
	case r.LostTo != 0:
		e.lost = append(e.lost, fmt.Sprintf("entries %d to %d were lost before the log was reopened", r.LostFrom, r.LostTo))
	case err == nil && r.Restored < c.Size:
		return errors.New("it names no lost entries, and fewer were restored than the checkpoint has")
	}
	return nil
}

var errRow = errors.New("the row is not in canonical form")

func (e *exportCheck) parseRow(line []byte, index int64, last bool, l *Link, r *row, buf []byte, needMAC bool) ([]byte, error) {
	s := scan{b: line}
	s.lit(`{"seq":`)
	l.Seq = s.num()
	s.lit(`,"appended_at":`)
	appended := s.num()
	s.lit(`,"time":`)
	at := s.num()
	s.lit(`,"kind":`)
	l.Kind = s.str()
	s.lit(`,"agent_id":`)
	l.AgentID = s.str()
	s.lit(`,"session_id":`)
	l.SessionID = s.str()
	s.lit(`,"request_id":`)
	l.RequestID = s.str()
	s.lit(`,"writer":`)
	l.Writer = s.str()
	s.lit(`,"writer_seq":`)
	l.WriterSeq = s.num()
	s.lit(`,"prev_writer_seq":`)
	l.PrevWriterSeq = s.num()
	s.lit(`,"entry_hash":"`)
	s.hex(l.Entry[:])
	s.lit(`","epoch":`)
	epoch := s.num()
	s.lit(`,"mac_version":`)
	version := s.num()
	s.lit(`,"mac":"`)
	r.mac = make([]byte, 32)
	s.hex(r.mac)
	s.lit(`"`)
	late := s.has(`,"late":true`)
	var entry []byte
	text, coded := s.has(`,"entry":`), false
	if text {
		entry = s.bytes()
	} else if coded = s.has(`,"entry_base64":`); coded {
		var err error
		if entry, err = decode64(string(s.bytes())); err != nil || utf8.Valid(entry) {
			return buf, errRow
		}
	}
	s.lit("}")
	if !last {
		s.lit(",")
	}
	if s.bad || s.i != len(line) {
		return buf, errRow
	}
	if epoch < 1 || epoch > math.MaxInt32 || version < 1 || version > 3 || l.WriterSeq < 0 || l.PrevWriterSeq < 0 {
		return buf, errors.New("a number is out of range")
	}
	l.AppendedAt, l.Time = micro(appended), micro(at)
	r.seq, r.appended, r.epoch, r.version = l.Seq, appended, int32(epoch), int16(version)
	buf = l.Append(buf)
	r.leaf = tlog.RecordHash(buf)
	if needMAC {
		r.link = bytes.Clone(buf)
	}
	r.malformed = l.Kind == kindMalformed
	if index == 0 {
		r.entry = entry
	}
	r.selected = e.h.selects(l, index)
	switch {
	case r.selected && !text && !coded:
		return buf, errors.New("it matches the filter, and its entry is missing")
	case !r.selected && (text || coded || late):
		return buf, errors.New("it does not match the filter, and has an entry")
	case late != (r.selected && at < e.late):
		return buf, errors.New(`"late" is wrong`)
	}
	if r.selected {
		if EntryHash(entry) != l.Entry {
			return buf, errors.New("the entry has another hash than its link")
		}
		if err := sameFields(entry, l, appended, at); err != nil {
			return buf, err
		}
	}
	if e.full && r.selected {
		r.full = &ExportRow{Link: *l, Epoch: r.epoch, Version: r.version, MAC: r.mac, Bytes: bytes.Clone(entry)}
	}
	if l.changesKeys() {
		c, err := parseChange(entry, e.origin)
		if err != nil {
			return buf, err
		}
		r.change = &rowChange{c, index}
	}
	return buf, nil
}

// kindMalformed is the kind of links whose entries could not be read when they arrived.
const kindMalformed = "malformed"

// sameFields reports an error if the fields of an entry are not those of its link.
func sameFields(entry []byte, l *Link, appended, at int64) error {
	if l.Kind == kindMalformed {
		if l.AgentID+l.SessionID+l.RequestID != "" || at != appended {
			return errors.New("its link has fields that a malformed entry has not")
		}
		return nil
	}
	var f struct {
		Kind      string `json:"kind"`
		Time      string `json:"time"`
		Org       string `json:"org"`
		Writer    string `json:"writer"`
		RequestID string `json:"request_id"`
		AgentID   string `json:"agent_id"`
		SessionID string `json:"session_id"`
		Own       string `json:"own_session"`
	}
	if err := json.Unmarshal(entry, &f); err != nil {
		return errors.New("the entry is not valid JSON, or its fields are not text")
	}
	t, err := time.Parse(TimeLayout, f.Time)
	if err != nil || t.Format(TimeLayout) != f.Time || t.UnixMicro() != at || f.Org != l.Org || f.Writer != l.Writer {
		return errors.New("time, org or writer of the entry are not those of its link")
	}
	if f.SessionID == "" {
		f.SessionID = f.Own // the request had no id of its caller
	}
	for _, c := range []struct {
		in, column string
		limit      int
		optional   bool
	}{{f.Kind, l.Kind, 64, false}, {f.AgentID, l.AgentID, 128, false}, {f.RequestID, l.RequestID, 128, false}, {f.SessionID, l.SessionID, 256, true}} {
		switch {
		case c.in == c.column, c.optional && c.column == "":
		case len(c.in) > c.limit || strings.Contains(c.in, "\x00"): // the link has a shortened text
		default:
			return errors.New("kind, agent_id, request_id or session_id of the entry is not that of its link")
		}
	}
	return nil
}

// A scan reads a line in canonical form.
type scan struct {
	b   []byte
	i   int
	bad bool
}

func (s *scan) has(lit string) bool {
	if len(s.b)-s.i >= len(lit) && string(s.b[s.i:s.i+len(lit)]) == lit {
		s.i += len(lit)
		return true
	}
	return false
}

func (s *scan) lit(lit string) {
	if !s.has(lit) {
		s.bad = true
	}
}

// num reads an integer as strconv writes it.
func (s *scan) num() int64 {
	from := s.i
	for s.i < len(s.b) && (s.b[s.i] == '-' || s.b[s.i] >= '0' && s.b[s.i] <= '9') {
		s.i++
	}
	text := string(s.b[from:s.i])
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || len(text) > 1 && (text[0] == '0' || text[:2] == "-0") {
		s.bad = true
	}
	return n
}

// hex reads lowercase digits.
func (s *scan) hex(to []byte) {
	n := 2 * len(to)
	if s.bad || len(s.b)-s.i < n {
		s.bad = true
		return
	}
	from := s.b[s.i : s.i+n]
	s.i += n
	if _, err := hex.Decode(to, from); err != nil || bytes.ContainsAny(from, "ABCDEF") {
		s.bad = true
	}
}

func (s *scan) str() string { return string(s.bytes()) }

// bytes reads a string: only " and \ and control characters are escaped, in the shortest form.
func (s *scan) bytes() []byte {
	if !s.has(`"`) {
		s.bad = true
		return nil
	}
	rest := s.b[s.i:]
	end := bytes.IndexByte(rest, '"')
	if end < 0 {
		s.bad = true
		return nil
	}
	plain := rest[:end]
	if bytes.IndexByte(plain, '\\') < 0 {
		s.i += end + 1
		s.text(plain)
		return plain
	}
	out := make([]byte, 0, len(rest))
	for i := 0; i < len(rest); i++ {
		switch c := rest[i]; {
		case c == '"':
			s.i += i + 1
			if !utf8.Valid(out) {
				s.bad = true
			}
			return out
		case c < 0x20:
			s.bad = true
			return nil
		case c != '\\':
			out = append(out, c)
		default:
			i++
			if i == len(rest) {
				s.bad = true
				return nil
			}
			if at := strings.IndexByte(`"\bfnrt`, rest[i]); at >= 0 {
				out = append(out, "\"\\\b\f\n\r\t"[at])
				continue
			}
			if rest[i] != 'u' || len(rest)-i < 5 || string(rest[i+1:i+3]) != "00" {
				s.bad = true
				return nil
			}
			var b [1]byte
			if _, err := hex.Decode(b[:], rest[i+3:i+5]); err != nil || b[0] >= 0x20 || bytes.IndexByte([]byte("\b\f\n\r\t"), b[0]) >= 0 || bytes.ContainsAny(rest[i+3:i+5], "ABCDEF") {
				s.bad = true
				return nil
			}
			out = append(out, b[0])
			i += 4
		}
	}
	s.bad = true
	return nil
}

// text checks characters that have no escape.
func (s *scan) text(b []byte) {
	for _, c := range b {
		if c < 0x20 {
			s.bad = true
			return
		}
	}
	if !utf8.Valid(b) {
		s.bad = true
	}
}
