package audit

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// WriterConfig configures a Writer.
type WriterConfig struct {
	// Dir has only the segments. It is created if it does not exist, and belongs to one
	// process at a time. It must be on a disk that outlives the process, since it has the
	// only copy of records that are not shipped.
	Dir string

	Node string           // this sidecar's name in writer.started
	Now  func() time.Time // nil: time.Now
	Rand io.Reader        // for the writer's id and for pauses; nil: crypto/rand
	Log  *slog.Logger     // nil: nothing is logged

	// Registerer registers the metrics aid_audit_…; nil: no metrics.
	Registerer prometheus.Registerer

	// SegmentBytes is the size of a file at which the next one begins. 0: 16 MiB.
	SegmentBytes int64
	// MaxBacklogBytes is the size of all files from which on Append rejects, because the
	// control plane was not available for too long. Completions are accepted even then.
	// 0: 4 GiB. It must be at least two segments.
	MaxBacklogBytes int64
	// MinFreeBytes is the free space that the disk must have for Append to accept an entry.
	// This space is for the completions of accepted requests, and for recovery, which writes
	// the last segment again. 0: 64 MiB; negative: none.
	MinFreeBytes int64

	// KeepAckedBytes is the size of shipped segments to keep, for a database that is restored
	// to an older state. They are kept for at most keepAcked, and never cause rejections.
	// 0: 2 GiB; negative: none.
	KeepAckedBytes int64

	// Resend sends all records in the segments, including acknowledged ones. The chain drops
	// those that it has.
	Resend bool

	fault func(o operation, do func() error) error // for tests; see disk
}

const (
	// maxBatchBytes limits a batch, which is one write and one fsync.
	maxBatchBytes = 4 << 20
	// maxQueuedBytes limits the entries that wait while the disk fails.
	maxQueuedBytes = 64 << 20
	// maxUnsettled limits the requests in flight. Each costs a few hundred bytes in memory,
	// and again in the head of every segment that begins meanwhile.
	maxUnsettled = 1 << 17

	// lingerTime is how long entries without a waiting caller stay in memory. If an entry
	// with a waiting caller arrives meanwhile, one fsync serves both. So no decision waits
	// for the fsync of a completion. After a crash, the completions of the last lingerTime
	// are "unknown". Entries of lingerBytes are written at once.
	lingerTime  = 20 * time.Millisecond
	lingerBytes = 256 << 10

	// gatherTime is how long a batch stays open if several callers waited for the one before.
	// An fsync costs about 0.1 ms of CPU for any size. A single caller never waits.
	gatherTime = 500 * time.Microsecond

	keepAcked = 24 * time.Hour
	// stuckAfter is how long records may wait without any reaching the control
	// plane before Shipping reports it.
	stuckAfter = 2 * time.Minute

	freeInterval = time.Second // between two checks of the free space

	// Pauses between attempts to begin a new segment on a disk that failed.
	minRetry = 100 * time.Millisecond
	maxRetry = 5 * time.Second
)

// A Writer makes entries durable in the segments of a directory, and ships them from there.
// It is safe for concurrent use.
//
// When a write or an fsync fails, every caller that waits for it gets an error, and nothing
// more is written to that file. After a failed fsync the kernel may drop the pages it could
// not write, and report success the next time. The Writer then rejects entries until it has
// begun a new segment. It tries after 0.1 s, then later each time, up to every 5 s.
//
// The head of the new segment has the number of the last durable record. So records of the
// failed batch that did reach the disk are not valid. If a crash happens before that head is
// durable, such a record stays valid. Its caller got an error, and it is still in the
// audit log. If it is an allowed decision, it is completed as "unknown". In both cases its
// sequence number is never used for another entry.
type Writer struct {
	c       WriterConfig
	disk    disk
	id      atomic.Pointer[string] // changes only when the committer begins a segment
	rotate  atomic.Bool            // a new id is needed
	metrics *metrics

	receiptKey ed25519.PrivateKey // signs receipts; made at the start, and never stored

	countMu sync.Mutex
	counts  map[countKey]*UnknownCallers
	repeats repeats

	wake    chan struct{} // there may be a batch to commit
	linger  *time.Timer   // when it fires, an entry without a waiting caller is due
	closing chan struct{} // closed by Close
	ended   chan struct{} // closed by Run when it has ended

	unsettled atomic.Int64 // len(book.bySeq), for other goroutines

	// Only the goroutine that commits uses these: OpenWriter, then Run, then Close.
	next         uint64   // the next sequence number
	file         *os.File // the last segment; nil: it failed
	buf          []byte
	book         book
	prevs        map[string]uint64 // by org: the last durable number of this writer
	previous     string            // the previous writer
	previousSeqs map[string]uint64 // its last durable numbers, by org
	earlier      []string          // all writers before that the folder knows, oldest first

	apartMu sync.Mutex // held while a record is put in quarantine
	ackMu   sync.Mutex // held while segments are removed; locked before mu

	mu       sync.Mutex // guards the following
	queue    []*batch   // the last one accepts entries, unless it is full
	queued   int64      // bytes in queue
	failed   error      // why nothing can be written now
	running  bool
	stopped  bool // Run has ended: only Close commits
	ending   bool // Close was called
	closed   bool // nothing is accepted any more
	shipping bool
	lock     *os.File // nil: released
	segs     []*segment
	found    uint64 // the last record that was durable when the folder was opened
	latest   *batch // the last one that got an item

	deciding   map[uint64]time.Time // the times of decisions that are being made
	decidingID uint64
	committing time.Time // when the batch that is being written was begun; zero: none is

	durable  uint64            // the last record that callers know to be durable
	acked    uint64            // the control plane has all up to this one, in all orgs
	behind   map[string]uint64 // by org: while Ship does not run, how far those are that have less than passed
	passed   uint64            // the orgs without a lane have all up to this one
	lanes    map[string]*lane  // by org; nil: Ship does not run
	oldest   time.Time         // of the first that it has not; zero: it has all
	changed  chan struct{}     // closed and replaced when segs, durable or acked change
	progress time.Time         // when records last reached the control plane, or began to wait
	marks    []Mark            // of durable records, oldest first; see markFor
	marked   time.Time         // when the last of them was made
	retired  []string          // ids that this process used before
	noted    time.Time         // when acked was last written to its file
	notedAt  [2]uint64         // acked and passed as they were then
	checked  time.Time         // when full was found out
	full     error             // the disk has too little room left
}

// batch has the entries that are committed together.
type batch struct {
	items []item
	began time.Time // when it got its first item
	bytes int64
	waits int           // how many of the items have a waiting caller
	done  chan struct{} // closed when the items' numbers and err are set
	err   error
}

// urgent reports whether the batch must be written without waiting for more entries.
func (b *batch) urgent() bool { return b.waits > 0 || b.bytes >= lingerBytes }

// item is an entry on its way to the disk.
type item struct {
	org    string
	writer string // the writer in the entry
	source Entry  // the value that entry encodes, to encode it again for another writer
	entry  []byte
	seq    uint64 // set when the item is written
	waited bool   // a caller waits, and gets an error if it fails
	count  bool   // the entry counts, and uses the space of counts

	allowed *Settled // for an allowed decision: the completion to write after a crash
	settled *Settled // for a completion: the completion itself
}

// size returns the largest size of the item in a file.
func (it item) size() int64 { return frameSum + frameFixed + maxID + int64(len(it.entry)) }

// OpenWriter locks a directory, checks every segment in it, and completes the requests that
// were in flight at a crash. When it returns, each allowed decision without a completion has
// one with outcome "unknown", durably.
//
// It returns an error if another process uses the directory, or if a segment is damaged in a
// way that a crash does not explain. The error names the file and the byte. It starts no
// goroutine: nothing is written before Run.
func OpenWriter(c WriterConfig) (*Writer, error) {
	if c.Dir == "" {
		return nil, errors.New("opening audit segments: set a directory")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.SegmentBytes == 0 {
		c.SegmentBytes = 16 << 20
	}
	if c.MaxBacklogBytes == 0 {
		c.MaxBacklogBytes = 4 << 30
	}
	if c.KeepAckedBytes == 0 {
		c.KeepAckedBytes = 2 << 30
	}
	if c.MinFreeBytes == 0 {
		c.MinFreeBytes = 64 << 20
	}
	if c.SegmentBytes < 0 || c.MaxBacklogBytes < 2*c.SegmentBytes {
		return nil, fmt.Errorf("opening audit segments: a backlog of %d bytes must hold two segments of %d", c.MaxBacklogBytes, c.SegmentBytes)
	}
	w := &Writer{
		c: c, disk: disk{c.Dir, c.fault},
		wake: make(chan struct{}, 1), closing: make(chan struct{}), ended: make(chan struct{}), changed: make(chan struct{}),
		book: newBook(), prevs: make(map[string]uint64), counts: make(map[countKey]*UnknownCallers), repeats: newRepeats(),
		deciding: make(map[uint64]time.Time),
	}
	w.linger = time.NewTimer(lingerTime)
	w.metrics = newMetrics(w)
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(c.Rand, seed); err != nil {
		return nil, fmt.Errorf("opening audit segments: making the key of receipts: %w", err)
	}
	w.receiptKey = ed25519.NewKeyFromSeed(seed)
	var err error
	if err = makeDir(c.Dir); err != nil {
		return nil, fmt.Errorf("opening audit segments: %w", err)
	}
	if w.lock, err = lock(c.Dir); err != nil {
		return nil, fmt.Errorf("opening audit segments: %w", err)
	}
	if err := w.recover(); err != nil {
		if w.file != nil {
			_ = w.file.Close()
		}
		_ = w.lock.Close()
		return nil, fmt.Errorf("opening audit segments: %w", err)
	}
	// Registered last, so that a Writer without the directory does not replace these metrics.
	if err := w.metrics.register(c.Registerer); err != nil {
		_ = w.file.Close()
		_ = w.lock.Close()
		return nil, fmt.Errorf("opening audit segments: %w", err)
	}
	return w, nil
}

// receiptPublic returns the public key of receipts as writer.started has it.
func (w *Writer) receiptPublic() string {
	return base64.RawURLEncoding.EncodeToString(w.receiptKey.Public().(ed25519.PublicKey))
}

// ID returns the writer id: "w_" and 26 characters. It is new at each start, and if the control
// plane has other records under the old one.
func (w *Writer) ID() string { return *w.id.Load() }

// Append writes e for org and returns nil only once it is durable. After an error it is not
// known to be durable. If ctx was done first, it may become durable later.
func (w *Writer) Append(ctx context.Context, org string, e Entry) (Receipt, error) {
	began := w.c.Now()
	it, err := w.item(org, e)
	if err != nil {
		return Receipt{}, err
	}
	it.waited = true
	if err := ctx.Err(); err != nil {
		return Receipt{}, fmt.Errorf("audit entry not written: %w", err)
	}
	b, i, err := w.add(it)
	if err != nil {
		return Receipt{}, err
	}
	select {
	case <-b.done:
	case <-ctx.Done():
		select {
		case <-b.done:
		default:
			return Receipt{}, fmt.Errorf("waiting for the audit segment: %w", ctx.Err())
		}
	}
	if b.err != nil {
		return Receipt{}, b.err
	}
	w.metrics.append.Observe(w.c.Now().Sub(began).Seconds())
	done := &b.items[i]
	return Receipt{Writer: done.writer, Seq: done.seq, Leaf: LeafHash(done.entry)}, nil
}

// Enqueue writes e for org after everything that was appended before, asynchronously. If
// the disk fails, e is kept and written once the disk works again. It is lost only if the
// process dies before that, or if more than 64 MiB wait for a disk that does not work. Then
// an allowed decision is completed as "unknown" at the next start.
//
// It returns at once unless a disk that works cannot keep up with those 64 MiB.
func (w *Writer) Enqueue(org string, e Entry) {
	it, err := w.item(org, e)
	if err == nil {
		_, _, err = w.add(it)
	}
	if err != nil {
		w.metrics.dropped.Inc()
		w.c.Log.Error("audit entry dropped", "kind", e.Head().Kind, "exchange", e.Head().RequestID, "err", err)
	}
}

// item encodes e, and rejects an entry that could not be parsed again.
func (w *Writer) item(org string, e Entry) (item, error) {
	id := w.ID()
	e = Stamp(e, org, id, w.c.Now())
	h := e.Head()
	if !validID(org) || h.Org != org || h.Writer != id || h.Kind == "" {
		return item{}, fmt.Errorf("an audit entry of kind %q cannot be written for org %q", h.Kind, org)
	}
	it := item{org: org, writer: id, source: e, entry: e.Encode()}
	if len(it.entry) > MaxEntryBytes {
		return item{}, fmt.Errorf("audit entry of kind %q has %d bytes, the limit is %d", h.Kind, len(it.entry), MaxEntryBytes)
	}
	switch e := e.(type) {
	case Decided:
		if e.Effect == effectAllow {
			s := unknownSettlement(e)
			it.allowed = &s
		}
	case Settled:
		it.settled = &e
	case UnknownCallers, RepeatedRejections, TieOutHour, TieOutUnknown, RefusedConnections:
		it.count = true
	}
	return it, nil
}

// unknownSettlement returns the completion of a decision with an unknown end. It charges the
// whole reservation.
func unknownSettlement(d Decided) Settled {
	s := Settled{
		Time: d.Time, Org: d.Org, Writer: d.Writer, DecidedWriter: d.Writer, RequestID: d.RequestID, AgentID: d.AgentID, KeyID: d.KeyID,
		Provider: d.Provider, Model: d.Model, ModelUnlisted: d.ModelUnlisted, Day: cmp.Or(d.Day, d.Time.UTC().Format(time.DateOnly)), Outcome: OutcomeUnknown, Usage: Usage{Source: "absent"},
		ChargedNanoUSD: d.ReservedNanoUSD, AgentTeam: d.AgentTeam, PolicyIDs: d.PolicyIDs, SessionID: d.Session(),
	}
	if d.ReservedNanoUSD != 0 {
		s.ChargeBasis = BasisReservation
	}
	return s
}

// effectAllow is the effect of a decision after which the request is forwarded.
const effectAllow = "allow"

// add adds an item to the next batch, and returns the batch and the item's index.
func (w *Writer) add(it item) (*batch, int, error) {
	size := it.size()
	w.mu.Lock()
	for {
		full := w.queued+size > maxQueuedBytes
		if err := w.refusalLocked(it, full); err != nil {
			w.mu.Unlock()
			return nil, 0, err
		}
		if it.waited || it.count || !full {
			break // the goroutine that commits adds counts, and must not wait for itself
		}
		// Only here Enqueue can wait: briefly, since the disk works.
		first := w.queue[0]
		w.mu.Unlock()
		<-first.done
		w.mu.Lock()
	}
	defer w.mu.Unlock()
	var b *batch
	if n := len(w.queue); n > 0 && w.queue[n-1].bytes+size <= maxBatchBytes {
		b = w.queue[n-1]
	} else {
		b = &batch{done: make(chan struct{}), began: w.c.Now()}
		w.queue = append(w.queue, b)
	}
	w.latest = b
	b.items = append(b.items, it)
	b.bytes += size
	if it.waited {
		b.waits++
	}
	w.queued += size
	if !b.urgent() {
		if len(b.items) == 1 {
			w.linger.Reset(lingerTime)
		}
		return b, len(b.items) - 1, nil
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return b, len(b.items) - 1, nil
}

// refusalLocked returns why an entry is not accepted. A caller that waits for an entry can
// still reject its request. An entry without a waiting caller reports what has happened, so
// it is accepted as long as there is room.
func (w *Writer) refusalLocked(it item, full bool) error {
	switch {
	case w.closed:
		return errors.New("audit entry not written: the writer is closed")
	case !it.waited && full && (w.failed != nil || w.stopped):
		return fmt.Errorf("audit entry not written: %d MiB are waiting, and the disk does not work", maxQueuedBytes>>20)
	case !it.waited:
		return nil
	case w.stopped:
		return errors.New("audit entry not written: the writer is stopping")
	case it.allowed != nil && w.unsettled.Load() >= maxUnsettled:
		return fmt.Errorf("audit entry not written: there are %d requests in flight", maxUnsettled)
	}
	if err := w.unreadyLocked(); err != nil {
		return err
	}
	err := w.orgFullLocked(it.org)
	if err != nil {
		w.metrics.orgFull.Inc()
	}
	return err
}

// Ready returns nil if Append would accept an entry now, or the reason why not.
func (w *Writer) Ready() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.running {
		return errors.New("the audit writer is not running")
	}
	return w.unreadyLocked()
}

func (w *Writer) unreadyLocked() error {
	if w.failed != nil {
		return fmt.Errorf("audit segments cannot be written: %w", w.failed)
	}
	if n := w.bytesLocked(); n >= w.c.MaxBacklogBytes {
		return fmt.Errorf("%d bytes of audit segments wait for the control plane, and the limit is %d", n, w.c.MaxBacklogBytes)
	}
	return w.diskLocked()
}

// diskLocked returns nil if the disk has enough free space, or an error.
func (w *Writer) diskLocked() error {
	if w.c.MinFreeBytes < 0 {
		return nil
	}
	if now := w.c.Now(); now.Sub(w.checked).Abs() >= freeInterval {
		w.checked, w.full = now, nil
		free, err := w.disk.free()
		switch {
		case err != nil:
			w.full = err
		case free+w.keptLocked() < w.c.MinFreeBytes:
			w.full = fmt.Errorf("%d bytes are free on the disk of %s, and the minimum is %d", free, w.c.Dir, w.c.MinFreeBytes)
		}
	}
	return w.full
}

// bytesLocked returns the bytes that are not shipped, without the entries of counts, which
// have separate space.
func (w *Writer) bytesLocked() (n int64) {
	for i, s := range w.segs {
		n += max(0, w.waitingLocked(i)-s.counts)
	}
	return n
}

// keptLocked returns the bytes of shipped segments.
func (w *Writer) keptLocked() (n int64) {
	for i, s := range w.segs {
		n += s.size - w.waitingLocked(i)
	}
	return n
}

// Shipping returns nil if records reach the control plane, or why they do not.
func (w *Writer) Shipping() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.c.Now()
	if err := w.stuckLocked(now); err != nil {
		return err
	}
	waiting := w.durable - min(w.passed, w.durable)
	switch since := now.Sub(w.progress); {
	case waiting > 0 && since > stuckAfter:
		return fmt.Errorf("%d audit records wait, and none has reached the control plane for %s: check its log and its database", waiting, since.Round(time.Second))
	}
	return nil
}

// Run writes appended entries until ctx is done or Close is called. Then it writes the rest and
// returns nil. It must outlive the callers of Append, since nothing is accepted after it.
// Entries that are enqueued after it are written by Close.
func (w *Writer) Run(ctx context.Context) error {
	w.mu.Lock()
	if w.running || w.stopped || w.ending {
		w.mu.Unlock()
		return errors.New("an audit writer runs once")
	}
	w.running = true
	w.mu.Unlock()
	defer close(w.ended)

	var retry *time.Timer // set while the disk is failing
	pause := minRetry
	counting := time.NewTicker(countInterval)
	defer counting.Stop()
	for {
		if w.rotate.Load() && w.file != nil {
			if err := w.begin(); err != nil {
				w.fail(&batch{done: make(chan struct{})}, err)
			}
		}
		b, failed := w.take(false)
		if b != nil {
			if w.commit(b) {
				pause = minRetry
			}
			if b.waits > 1 {
				time.Sleep(gatherTime)
			}
			continue
		}
		var again <-chan time.Time
		if failed {
			if retry == nil {
				retry = time.NewTimer(pause)
				pause = min(2*pause, maxRetry)
			}
			again = retry.C
		}
		select {
		case <-w.wake:
		case <-counting.C:
			w.writeCounts()
		case <-w.linger.C:
			if b, _ := w.take(true); b != nil && w.commit(b) {
				pause = minRetry
			}
		case <-again:
			retry = nil
			w.reopen()
		case <-ctx.Done():
			w.stop()
			return nil
		case <-w.closing:
			w.stop()
			return nil
		}
	}
}

// stop writes the rest, and releases all waiting callers.
func (w *Writer) stop() {
	w.writeCounts()
	w.mu.Lock()
	w.running, w.stopped = false, true
	w.mu.Unlock()
	w.flush()
}

// flush writes waiting entries. If the disk was failing, it tries once more.
func (w *Writer) flush() {
	for tried := false; ; {
		b, failed := w.take(true)
		switch {
		case b != nil:
			w.commit(b)
		case failed && !tried && w.waiting():
			tried = true
			w.reopen()
		default:
			return
		}
	}
}

func (w *Writer) waiting() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.queue) > 0
}

// Close writes waiting entries, begins a segment with the end of all segments before in its
// head, and releases the directory once Ship has returned. A second call does nothing.
func (w *Writer) Close() error {
	w.mu.Lock()
	if w.ending {
		w.mu.Unlock()
		return nil
	}
	w.ending = true
	running := w.running || w.stopped
	w.mu.Unlock()
	close(w.closing)
	if running {
		<-w.ended // until then Run still writes enqueued entries
	}
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.flush()

	var err error
	if w.file != nil && !w.last().empty() {
		// With a next segment, damage in this file is never an interrupted write.
		err = w.begin()
	}
	w.leave()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed != nil {
		err = errors.Join(err, w.failed)
	}
	if n := len(w.queue); n > 0 {
		err = errors.Join(err, fmt.Errorf("%d batches of completions are lost. The next start completes their exchanges as %q", n, OutcomeUnknown))
	}
	w.releaseLocked()
	if err != nil {
		return fmt.Errorf("closing audit segments: %w", err)
	}
	return nil
}

// releaseLocked releases the directory if nothing here uses it any more.
func (w *Writer) releaseLocked() {
	if w.closed && !w.shipping && w.lock != nil {
		_ = w.lock.Close()
		w.lock = nil
	}
}

// take returns the next batch. It returns nil if nothing can be written, or if the batch should
// be written later. With any, it also returns such a batch.
func (w *Writer) take(any bool) (b *batch, failed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed != nil || len(w.queue) == 0 {
		return nil, w.failed != nil
	}
	if !any && len(w.queue) == 1 && !w.queue[0].urgent() {
		return nil, false // wait for more entries; a batch with another one behind it does not
	}
	b = w.queue[0]
	w.queue = w.queue[1:]
	w.queued -= b.bytes
	w.committing = b.began
	return b, false
}

// commit writes b and releases the callers that wait for it.
func (w *Writer) commit(b *batch) bool {
	last := w.last()
	if last.end-last.start >= w.c.SegmentBytes {
		if err := w.begin(); err != nil {
			w.fail(b, err)
			return false
		}
		last = w.last()
	}

	// From here on these sequence numbers are used, also after a failure.
	first, id := w.next, w.ID()
	buf := w.buf[:0]
	var changes []change          // changes of the book, to undo if the batch fails
	before := map[string]uint64{} // old values of prevs, to restore if it fails; 0: no entry
	counts := int64(0)            // bytes of entries of counts
	written := map[string]int64{} // bytes by org
	follow := func(org string, seq uint64) {
		if _, ok := before[org]; !ok {
			before[org] = w.prevs[org]
		}
		w.prevs[org] = seq
	}
	for i := range b.items {
		it := &b.items[i]
		if w.prevs[it.org] == 0 {
			begun := len(buf)
			e := Started{Node: w.c.Node, Previous: w.previous, PreviousSeq: w.previousSeqs[it.org], ReceiptKey: w.receiptPublic()}
			buf = appendFrame(buf, frame{kind: kindRecord, seq: w.next, mark: first, name: it.org, body: Stamp(e, it.org, id, w.c.Now()).Encode()})
			written[it.org] += int64(len(buf) - begun)
			follow(it.org, w.next)
			w.next++
		}
		f := frame{kind: kindRecord, seq: w.next, mark: first, name: it.org}
		w.next++
		again := it.writer != id // the id changed while the item waited
		if again {
			it.source, it.writer = Stamp(it.source, it.org, id, w.c.Now()), id
		}
		switch {
		case it.allowed != nil:
			f.kind = kindAllowed
			it.allowed.DecidedWriter, it.allowed.DecidedSeq = id, f.seq
			w.book.open(*it.allowed)
			changes = append(changes, change{opened: true, s: *it.allowed})
		case it.settled != nil:
			if s, ok := w.book.find(it.org, *it.settled); ok {
				f.kind, f.ref = kindSettled, s.DecidedSeq
				w.book.close(s)
				changes = append(changes, change{s: s})
				// The entry has the writer and the number of its decision.
				if e, ok := it.source.(Settled); ok && (e.DecidedWriter != s.DecidedWriter || e.DecidedSeq != s.DecidedSeq) {
					e.DecidedWriter, e.DecidedSeq = s.DecidedWriter, s.DecidedSeq
					it.source, again = e, true
				}
			}
		}
		if again {
			it.entry = it.source.Encode()
		}
		f.body, it.seq = it.entry, f.seq
		follow(it.org, f.seq)
		start := len(buf)
		if buf = appendFrame(buf, f); it.count {
			counts += int64(len(buf) - start)
		}
		written[it.org] += int64(len(buf) - start)
	}
	if w.buf = buf; cap(buf) > 2*maxBatchBytes {
		w.buf = nil
	}

	if err := w.write(buf); err != nil {
		w.book.undo(changes)
		for org, seq := range before {
			w.prevs[org] = seq
			if seq == 0 {
				delete(w.prevs, org)
			}
		}
		w.fail(b, err)
		return false
	}
	// All of b is on the disk.
	w.unsettled.Store(int64(len(w.book.bySeq)))
	w.metrics.batch.Observe(float64(len(b.items)))
	w.mu.Lock()
	if w.oldest.IsZero() {
		w.oldest = w.c.Now()
		w.progress = w.oldest
	}
	w.durable = w.next - 1
	last.last = w.durable
	last.end += int64(len(buf))
	last.size = last.end
	last.counts += counts
	if last.orgs == nil {
		last.orgs = make(map[string]int64)
	}
	for org, n := range written {
		last.orgs[org] += n
	}
	w.committing = time.Time{}
	w.keepMarkLocked()
	w.tellLocked()
	w.mu.Unlock()
	close(b.done)
	return true
}

func (w *Writer) write(buf []byte) error {
	began := w.c.Now()
	if err := w.disk.write(w.file, buf); err != nil {
		return err
	}
	if err := w.disk.sync(w.file); err != nil {
		return err
	}
	w.metrics.sync.Observe(w.c.Now().Sub(began).Seconds())
	return nil
}

// fail closes the file, returns an error to all waiting callers, and keeps the entries without
// a waiting caller. From now on nothing is accepted until reopen has begun another file.
func (w *Writer) fail(b *batch, err error) {
	w.metrics.failures.Inc()
	w.c.Log.Error("audit segment cannot be written", "path", w.last().path, "err", err)
	if w.file != nil {
		_ = w.file.Close()
		w.file = nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failed = err
	began := b.began
	w.committing = time.Time{}
	var keep []item
	for _, b := range append([]*batch{b}, w.queue...) {
		for _, it := range b.items {
			if !it.waited {
				keep = append(keep, it)
			}
		}
		b.err = fmt.Errorf("audit entry not written: %w", err)
		close(b.done)
	}
	w.queue, w.queued = nil, 0
	for len(keep) > 0 {
		b := &batch{done: make(chan struct{}), began: began}
		for len(keep) > 0 && b.bytes < maxBatchBytes {
			b.items = append(b.items, keep[0])
			b.bytes += keep[0].size()
			keep = keep[1:]
		}
		w.queue = append(w.queue, b)
		w.queued += b.bytes
	}
}

// reopen begins another file after a failure. This tests whether the disk works again, without
// risk to a record.
func (w *Writer) reopen() {
	if err := w.begin(); err != nil {
		w.metrics.failures.Inc()
		w.c.Log.Warn("audit segments still cannot be written", "err", err)
		w.mu.Lock()
		w.failed = err
		w.mu.Unlock()
		return
	}
	w.c.Log.Info("audit segments can be written again", "path", w.last().path)
	w.mu.Lock()
	w.failed = nil
	w.mu.Unlock()
	w.linger.Reset(0) // write the entries that were kept
}

// begin makes the next segment durable, and closes the one before it. Its head has the
// decisions without a completion, so that older files are not needed for them.
func (w *Writer) begin() error {
	id, prevs, rotate := w.ID(), w.prevs, w.rotate.Load()
	if rotate {
		var err error
		if id, err = newWriterID(w.c.Now(), w.c.Rand); err != nil {
			return err
		}
		prevs = make(map[string]uint64)
	}
	h := head{writer: id, first: w.next, durable: w.durable, open: w.book.frames(), prevs: prevs}
	b := appendHead(nil, h)
	name := segmentName(h.first)
	f, err := w.disk.place(name, func(f *os.File) error {
		w.disk.reserve(f, w.c.SegmentBytes)
		return w.disk.write(f, b)
	})
	if err != nil {
		return err
	}
	w.leave()
	w.file = f
	size := int64(len(b))
	if rotate {
		w.previous, w.previousSeqs, w.prevs = w.ID(), w.prevs, prevs
		w.mu.Lock()
		w.retired = append(w.retired, w.previous)
		w.mu.Unlock()
		w.id.Store(&id)
		w.rotate.Store(false)
		w.metrics.changes.Inc()
		w.c.Log.Warn("a new audit writer id is in use", "before", w.previous, "now", id)
	}
	seg := &segment{path: w.disk.path(name), writer: id, prevs: maps.Clone(prevs), before: h.durable, first: h.first, last: h.first - 1, start: size, end: size, size: size}
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.segs); n > 0 && w.segs[n-1].empty() {
		// The old file has no valid record, and the new head is the same. So a disk that
		// fails repeatedly does not leave a file each time.
		if old := w.segs[n-1]; old.path == seg.path || w.disk.remove(old.path) == nil {
			w.segs = w.segs[:n-1]
		}
	}
	w.segs = append(w.segs, seg)
	w.tellLocked()
	return nil
}

// leave closes the last segment and releases its unused space. All of the segment is durable,
// or known not to be. leave may fail, since the next head has the segment's end.
func (w *Writer) leave() {
	if w.file == nil {
		return
	}
	_ = w.file.Truncate(w.last().end)
	_ = w.file.Close()
	w.file = nil
}

// last returns the segment that is being written.
func (w *Writer) last() *segment {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.segs[len(w.segs)-1]
}

func (w *Writer) tellLocked() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// book has the allowed decisions without a completion, with the completion to write if the
// process dies.
type book struct {
	bySeq     map[uint64]Settled
	byRequest map[request]uint64
}

type request struct{ org, id string }

// change is a change that can be undone.
type change struct {
	opened bool // else closed
	s      Settled
}

func newBook() book {
	return book{bySeq: make(map[uint64]Settled), byRequest: make(map[request]uint64)}
}

func (b *book) open(s Settled) {
	b.bySeq[s.DecidedSeq] = s
	b.byRequest[request{s.Org, s.RequestID}] = s.DecidedSeq
}

func (b *book) close(s Settled) {
	delete(b.bySeq, s.DecidedSeq)
	if r := (request{s.Org, s.RequestID}); b.byRequest[r] == s.DecidedSeq {
		delete(b.byRequest, r)
	}
}

// find returns the decision of a completion of org. If the caller did not wait until the
// decision was durable, the completion does not have its number.
func (b *book) find(org string, settled Settled) (Settled, bool) {
	seq := settled.DecidedSeq
	if seq == 0 {
		seq = b.byRequest[request{org, settled.RequestID}]
	}
	s, ok := b.bySeq[seq]
	return s, ok && s.Org == org
}

func (b *book) undo(changes []change) {
	for i := len(changes) - 1; i >= 0; i-- {
		if c := changes[i]; c.opened {
			b.close(c.s)
		} else {
			b.open(c.s)
		}
	}
}

// newWriterID returns a new id in the form of all ids of this product. It has 26 characters of
// base 32: 48 bits of now in milliseconds since 1970 and 80 random bits.
func newWriterID(now time.Time, rand io.Reader) (string, error) {
	const alphabet = "0123456789abcdefghjkmnpqrstvwxyz"
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], uint64(max(0, now.UnixMilli()))<<16)
	if _, err := io.ReadFull(rand, b[6:]); err != nil {
		return "", fmt.Errorf("making a writer id: %w", err)
	}
	id := []byte("w_")
	acc, n := uint(0), 2 // 26 digits are 130 bits, so the first digit has only 3 bits of the id
	for _, c := range b {
		acc, n = acc<<8|uint(c), n+8
		for n >= 5 {
			n -= 5
			id = append(id, alphabet[acc>>n&31])
		}
		acc &= 1<<n - 1
	}
	return string(id), nil
}
