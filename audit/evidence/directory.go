package evidence

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// A Tick is a state of the directory: the root over the slots of all orgs at a time. Its bytes
// are a leaf of the directory's log, and its number is the index of that leaf.
type Tick struct {
	Number int64
	Time   time.Time
	Slots  int64 // a power of two
	Root   tlog.Hash
}

// tickDomain is the first part of a tick.
const tickDomain = "aid tick v1"

// tickBytes is the length of a tick's bytes.
const tickBytes = 8 + len(tickDomain) + 3*(8+8) + 8 + tlog.HashSize

// Bytes returns each part after its length in 8 bytes, as a Link's.
func (t Tick) Bytes() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, tickBytes), uint64(len(tickDomain)))
	b = append(b, tickDomain...)
	for _, n := range []int64{t.Number, t.Time.UnixMicro(), t.Slots} {
		b = binary.BigEndian.AppendUint64(b, 8)
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	b = binary.BigEndian.AppendUint64(b, tlog.HashSize)
	return append(b, t.Root[:]...)
}

// ParseTick returns false if b is not the bytes of a tick: the log has other leaves too.
func ParseTick(b []byte) (Tick, bool) {
	if len(b) != tickBytes {
		return Tick{}, false
	}
	number := func(i int) int64 { return int64(binary.BigEndian.Uint64(b[8+len(tickDomain)+16*i+8:])) }
	t := Tick{Number: number(0), Time: time.UnixMicro(number(1)).UTC(), Slots: number(2), Root: tlog.Hash(b[tickBytes-tlog.HashSize:])}
	return t, string(t.Bytes()) == string(b) && t.Number >= 0 && validSlots(t.Slots)
}

func validSlots(n int64) bool { return n > 0 && bits.OnesCount64(uint64(n)) == 1 }

// SlotData returns the data of an org's leaf in a tick. text is the text of the org's newest
// checkpoint, without signatures. It is empty if there is no checkpoint, and "deleted\n" if
// the org was deleted.
func SlotData(nonce []byte, text string) [sha256.Size]byte {
	return sha256.Sum256(append(append([]byte(nil), nonce...), text...))
}

// EmptySlot is the data of a slot without an org.
var EmptySlot [sha256.Size]byte

// SlotTree returns the levels of a tick's tree. Level 0 has the leaves' hashes, and the last
// one only the root. data has the slots in their order. It is padded to a power of two.
func SlotTree(data [][sha256.Size]byte) [][]tlog.Hash {
	slots := 1
	for slots < len(data) {
		slots *= 2
	}
	level := make([]tlog.Hash, slots)
	empty := tlog.RecordHash(EmptySlot[:])
	for i := range level {
		if level[i] = empty; i < len(data) {
			level[i] = tlog.RecordHash(data[i][:])
		}
	}
	levels := [][]tlog.Hash{level}
	for len(level) > 1 {
		next := make([]tlog.Hash, len(level)/2)
		for i := range next {
			next[i] = tlog.NodeHash(level[2*i], level[2*i+1])
		}
		levels, level = append(levels, next), next
	}
	return levels
}

// SlotPath returns the hashes beside the way from a slot to the root.
func SlotPath(levels [][]tlog.Hash, slot int64) (path []tlog.Hash) {
	for _, level := range levels[:len(levels)-1] {
		path = append(path, level[slot^1])
		slot /= 2
	}
	return path
}

// A DirectoryProof proves that a tick of the directory has a checkpoint of an org. Path leads
// from the slot to the tick, and LogPath from the tick to a checkpoint of the directory.
type DirectoryProof struct {
	Slot       int64     `json:"slot"`
	Slots      int64     `json:"slots"`
	Nonce      []byte    `json:"nonce"`
	Path       [][]byte  `json:"path"`
	Tick       ProofTick `json:"tick"`
	LogPath    [][]byte  `json:"log_path"`
	Checkpoint string    `json:"checkpoint"` // of the directory, signed
}

// ProofTick is a Tick in a DirectoryProof. Its slots are those of the proof.
type ProofTick struct {
	Number int64  `json:"number"`
	Time   string `json:"time"`
	Root   []byte `json:"root"`
}

// NewDirectoryProof returns the proof of a slot in a tick, without the way to a checkpoint.
func NewDirectoryProof(slot int64, nonce []byte, path []tlog.Hash, t Tick) DirectoryProof {
	return DirectoryProof{
		Slot: slot, Slots: t.Slots, Nonce: nonce, Path: Hashes(path),
		Tick: ProofTick{Number: t.Number, Time: t.Time.UTC().Format(TimeLayout), Root: t.Root[:]},
	}
}

// Hashes returns hashes for JSON.
func Hashes(hashes []tlog.Hash) [][]byte {
	out := make([][]byte, len(hashes))
	for i := range hashes {
		out[i] = hashes[i][:]
	}
	return out
}

var errDirectory = errors.New("the proof of the directory is invalid")

// Verify checks the proof for the text of an org's checkpoint, or "deleted\n". It returns the
// tick, and the checkpoint of the directory that has it.
func (p DirectoryProof) Verify(keys KeySet, installation, text string) (Tick, Checkpoint, error) {
	none := func(format string, args ...any) (Tick, Checkpoint, error) {
		return Tick{}, Checkpoint{}, fmt.Errorf("%w: "+format, append([]any{errDirectory}, args...)...)
	}
	at, err := time.Parse(TimeLayout, p.Tick.Time)
	switch {
	case err != nil || at.Format(TimeLayout) != p.Tick.Time:
		return none("the time of its tick is invalid")
	case !validSlots(p.Slots) || p.Slot < 0 || p.Slot >= p.Slots || len(p.Path) != bits.Len64(uint64(p.Slots))-1:
		return none("its slot or path does not fit %d slots", p.Slots)
	case len(p.Nonce) != sha256.Size || len(p.Tick.Root) != tlog.HashSize:
		return none("its nonce or root has not 32 bytes")
	}
	data := SlotData(p.Nonce, text)
	h, slot := tlog.RecordHash(data[:]), p.Slot
	for _, beside := range p.Path {
		if len(beside) != tlog.HashSize {
			return none("a hash of its path has not 32 bytes")
		}
		if slot&1 == 0 {
			h = tlog.NodeHash(h, tlog.Hash(beside))
		} else {
			h = tlog.NodeHash(tlog.Hash(beside), h)
		}
		slot /= 2
	}
	if string(h[:]) != string(p.Tick.Root) {
		return none("the tick has not this checkpoint in the slot")
	}
	t := Tick{Number: p.Tick.Number, Time: at, Slots: p.Slots, Root: h}
	c, err := keys.Open([]byte(p.Checkpoint), DirectoryOrigin(installation))
	if err != nil {
		return Tick{}, Checkpoint{}, err
	}
	if t.Number < 0 || t.Number >= c.Size {
		return none("tick %d is not in a log of %d", t.Number, c.Size)
	}
	path := make(tlog.RecordProof, len(p.LogPath))
	for i, b := range p.LogPath {
		if len(b) != tlog.HashSize {
			return none("a hash of its log_path has not 32 bytes")
		}
		path[i] = tlog.Hash(b)
	}
	if tlog.CheckRecord(path, c.Size, c.Root, t.Number, tlog.RecordHash(t.Bytes())) != nil {
		return none("the directory's log has not this tick")
	}
	return t, c, nil
}
