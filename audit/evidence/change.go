package evidence

import (
	"context"
	"crypto/ecdsa"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
)

// The roles of signing keys. Each checkpoint has a signature of each role.
const (
	RoleP256    = "p256"    // the promise; it signs documents too
	RoleEd25519 = "ed25519" // what witnesses understand
)

// Role returns the key's role.
func (k Key) Role() string {
	if _, ok := k.Public.(*ecdsa.PublicKey); ok {
		return RoleP256
	}
	return RoleEd25519
}

// A KeyChange says that a key takes the place of another one in one log. Both keys sign it.
// Checkpoints from Size on need a signature of the new key. Smaller ones need one of the old key.
type KeyChange struct {
	Origin       string `json:"origin"`
	Role         string `json:"role"`
	Old          string `json:"old"` // key ids
	New          string `json:"new"`
	Size         int64  `json:"size"`
	OldSignature []byte `json:"old_signature"`
	NewSignature []byte `json:"new_signature"`
}

// changeDomain is the first part of a key change.
const changeDomain = "aid key change v1"

// message returns what both keys sign: each part after its length in 8 bytes.
func (c KeyChange) message() []byte {
	var b []byte
	for _, part := range []string{changeDomain, c.Origin, c.Role, c.Old, c.New} {
		b = appendPart(b, []byte(part))
	}
	return appendPart(b, binary.BigEndian.AppendUint64(nil, uint64(c.Size)))
}

// Leaf returns the data of the change's leaf in the directory's log: the signed bytes, then
// both signatures.
func (c KeyChange) Leaf() []byte {
	return appendPart(appendPart(c.message(), c.OldSignature), c.NewSignature)
}

func appendPart(b, part []byte) []byte {
	return append(binary.BigEndian.AppendUint64(b, uint64(len(part))), part...)
}

// SignKeyChange returns the change from one key to another, with the signatures of both.
func SignKeyChange(ctx context.Context, origin string, size int64, old, new Signer) (c KeyChange, err error) {
	before, err := NewKey(old.Public())
	if err != nil {
		return c, err
	}
	after, err := NewKey(new.Public())
	if err != nil {
		return c, err
	}
	c = KeyChange{Origin: origin, Role: after.Role(), Old: before.ID, New: after.ID, Size: size}
	if c.OldSignature, err = old.Sign(ctx, c.message()); err != nil {
		return c, fmt.Errorf("signing the key change with the old key: %w", err)
	}
	if c.NewSignature, err = new.Sign(ctx, c.message()); err != nil {
		return c, fmt.Errorf("signing the key change with the new key: %w", err)
	}
	return c, c.verify(before, after)
}

func (c KeyChange) verify(old, new Key) error {
	switch {
	case !validName(c.Origin) || c.Size < 1:
		return errors.New("its origin or its size is invalid")
	case old.ID == new.ID || old.ID != c.Old || new.ID != c.New || old.Role() != c.Role || new.Role() != c.Role:
		return errors.New("its keys are not two keys of its role")
	case !verify(old.Public, c.message(), c.OldSignature):
		return errors.New("the signature of the old key is wrong")
	case !verify(new.Public, c.message(), c.NewSignature):
		return errors.New("the signature of the new key is wrong")
	}
	return nil
}

// same reports whether two changes say the same thing.
func (c KeyChange) same(other KeyChange) bool {
	return c.Origin == other.Origin && c.Role == other.Role && c.Old == other.Old && c.New == other.New && c.Size == other.Size
}

// IsDirectory reports whether a log is the directory's.
func IsDirectory(origin string) bool { return strings.HasSuffix(origin, "/directory") }

// of returns the changes of a log and role, by size.
func (s KeySet) of(origin, role string) (out []KeyChange) {
	for _, c := range s.Changes {
		if c.Role == role && c.Origin == origin {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b KeyChange) int { return int(min(1, max(-1, a.Size-b.Size))) })
	return out
}

// directory returns the origin of the changes of the directory, or "".
func (s KeySet) directory() string {
	for _, c := range s.Changes {
		if IsDirectory(c.Origin) {
			return c.Origin
		}
	}
	return ""
}

// line returns the keys of a role, each after the one that it replaced. Without a key, or if the
// directory's changes do not connect all of them, it is empty.
func (s KeySet) line(role string) (ids []string) {
	n := 0
	var only string
	for _, k := range s.Keys {
		if k.Role() == role {
			n, only = n+1, k.ID
		}
	}
	changes := s.of(s.directory(), role)
	if len(changes) == 0 && n == 1 {
		return []string{only}
	}
	if len(changes) != n-1 {
		return nil
	}
	ids = []string{changes[0].Old}
	for _, c := range changes {
		if c.Old != ids[len(ids)-1] || slices.Contains(ids, c.New) {
			return nil
		}
		ids = append(ids, c.New)
	}
	return ids
}

// Check verifies the changes. Each is signed by both keys. Those of the directory connect all
// keys of a role in one line. Those of another log are steps of that line in its order.
func (s KeySet) Check() error {
	directory := s.directory()
	for i, c := range s.Changes {
		old, ok := s.Find(c.Old)
		new, ok2 := s.Find(c.New)
		if !ok || !ok2 {
			return fmt.Errorf("key change %d: the set lacks one of its keys", i+1)
		}
		if err := c.verify(old, new); err != nil {
			return fmt.Errorf("key change %d: %w", i+1, err)
		}
		if IsDirectory(c.Origin) && c.Origin != directory {
			return fmt.Errorf("key change %d: it is of the directory of another installation", i+1)
		}
		if !IsDirectory(c.Origin) && !strings.HasPrefix(c.Origin, strings.TrimSuffix(directory, "directory")+"org/") {
			return fmt.Errorf("key change %d: it is of a log of another installation, or the directory's is missing", i+1)
		}
	}
	from := make(map[string]int64)
	for _, role := range []string{RoleP256, RoleEd25519} {
		line := s.line(role)
		if len(line) == 0 && slices.ContainsFunc(s.Keys, func(k Key) bool { return k.Role() == role }) {
			return fmt.Errorf("nothing connects the keys with the role %s: each key but the first needs the directory's key change", role)
		}
		logs := make(map[string]bool)
		for _, c := range s.Changes {
			if c.Role == role {
				logs[c.Origin] = true
			}
		}
		for origin := range logs {
			changes := s.of(origin, role)
			at := slices.Index(line, changes[0].Old)
			for i, c := range changes {
				if at < 0 || at+i+1 >= len(line) || c.Old != line[at+i] || c.New != line[at+i+1] || i > 0 && c.Size <= changes[i-1].Size {
					return fmt.Errorf("the key changes of %s are not in the order of the keys", origin)
				}
				if origin == directory {
					from[c.New] = c.Size
				}
			}
		}
	}
	for _, k := range s.Keys {
		if k.From != from[k.ID] {
			return fmt.Errorf("key %s begins with size %d, and the directory's key change says %d", k.ID, k.From, from[k.ID])
		}
		if k.To == 0 {
			continue
		}
		next := slices.IndexFunc(s.Changes, func(c KeyChange) bool { return c.Old == k.ID && IsDirectory(c.Origin) })
		if next < 0 || k.To < s.Changes[next].Size {
			return fmt.Errorf("key %s ends with size %d, and no key has taken its place by then", k.ID, k.To)
		}
	}
	return nil
}

// Pin returns the set in which keys are believed from the pinned ones on: a pinned key, and
// those that have replaced it. Other keys sign nothing. Without ids every key is believed.
func (s KeySet) Pin(ids ...string) (KeySet, error) {
	if len(ids) == 0 {
		return s, nil
	}
	s.believed = make(map[string]bool)
	for _, id := range ids {
		k, ok := s.Find(id)
		if !ok {
			return KeySet{}, fmt.Errorf("it does not have the pinned key %s", id)
		}
		line := s.line(k.Role())
		for _, next := range line[max(0, slices.Index(line, id)):] {
			s.believed[next] = true
		}
	}
	return s, nil
}

// believes reports whether a key's signature counts.
func (s KeySet) believes(k Key) bool { return s.believed == nil || s.believed[k.ID] }

// Changed reports whether the set has key changes of a log and role.
func (s KeySet) Changed(origin, role string) bool { return len(s.of(origin, role)) > 0 }

// Signer returns the key of a role that must sign a log's checkpoint of a size.
func (s KeySet) Signer(origin, role string, size int64) string {
	id, _ := s.signer(origin, role, size)
	return id
}

// Signed reports whether a note has a valid signature of the key with this id.
func (s KeySet) Signed(note []byte, origin, id string) bool {
	_, signed, err := s.signatures(note, origin)
	_, ok := signed[id]
	return err == nil && ok
}

// signer returns the key of a role whose signature a checkpoint must have. ok is false if the
// set does not say so.
func (s KeySet) signer(origin, role string, size int64) (id string, ok bool) {
	line := s.line(role)
	if len(line) == 0 {
		return "", false
	}
	newest := line[len(line)-1]
	changes := s.of(origin, role)
	if len(changes) == 0 {
		// A log that began after the last change, or one whose changes the set does not have.
		return newest, true
	}
	id = changes[0].Old
	for _, c := range changes {
		if size >= c.Size {
			id = c.New
		}
	}
	return id, s.Own || changes[len(changes)-1].New == newest
}

// replaced reports whether a key was replaced in a log at a size or before it. opened is whether
// the set opens a checkpoint of that size. Without that, a log whose key changes the set lacks
// has no result.
func (s KeySet) replaced(origin, id string, size int64, opened bool) bool {
	k, ok := s.Find(id)
	if !ok || !opened && !s.Changed(origin, k.Role()) {
		return false
	}
	want, _ := s.signer(origin, k.Role(), size)
	line := s.line(k.Role())
	return slices.Index(line, id) < slices.Index(line, want)
}

// succeeded reports whether another key has taken the place of a key.
func (s KeySet) succeeded(id string) bool {
	return slices.ContainsFunc(s.Changes, func(c KeyChange) bool { return c.Old == id })
}

// signedBy checks that the keys that signed a checkpoint are those that must.
func (s KeySet) signedBy(c Checkpoint, signed map[string]Key) error {
	for _, role := range []string{RoleP256, RoleEd25519} {
		kind := map[string]string{RoleP256: "a P-256", RoleEd25519: "an Ed25519"}[role]
		what := fmt.Sprintf("%s signature of the checkpoint with size %d of %s", kind, c.Size, c.Origin)
		any := ""
		for id, k := range signed {
			if k.Role() == role {
				any = id
			}
		}
		want, ok := s.signer(c.Origin, role, c.Size)
		_, good := signed[want]
		switch known := s.Changed(c.Origin, role); {
		case any == "":
			return fmt.Errorf("%w made %s", errUnknownKey, what)
		case good && ok:
		case s.Own && !known: // the key change of this log is not written yet
		case ok && known && (s.believed == nil || s.believed[want]):
			return fmt.Errorf("%w: key %s made %s, and key %s must: a key was replaced, and a signature is missing", errCheckpoint, any, what, want)
		default:
			return fmt.Errorf("%w that the key changes of this log name made %s: the key changes are in the organization's JWKS (GET /v1/audit/jwks)", errUnknownKey, what)
		}
	}
	return nil
}

// KindKeysChanged is the kind of an entry with a key change of its log. The control plane
// writes it. Every export has those of its range.
const KindKeysChanged = "keys.changed"

// ControlWriter is the writer of the control plane's own entries. No node has this name.
const ControlWriter = "control"

// changesKeys reports whether a link's entry is a key change of its log.
func (l *Link) changesKeys() bool { return l.Kind == KindKeysChanged && l.Writer == ControlWriter }

// parseChange reads the key change of an entry.
func parseChange(entry []byte, origin string) (c KeyChange, err error) {
	var e struct {
		Role         string `json:"role"`
		Old          string `json:"old_kid"`
		New          string `json:"new_kid"`
		Size         int64  `json:"size"`
		OldSignature string `json:"old_signature"`
		NewSignature string `json:"new_signature"`
	}
	if err := json.Unmarshal(entry, &e); err != nil {
		return c, errors.New("it is not the entry of a key change")
	}
	return KeyChange{Origin: origin, Role: e.Role, Old: e.Old, New: e.New, Size: e.Size}, nil
}
