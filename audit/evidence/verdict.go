package evidence

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Exit codes of verifiers.
const (
	Intact     = 0 // everything that was checked is right
	Tampered   = 1 // something contradicts itself, or a signature
	Incomplete = 2 // nothing is wrong, but not everything could be checked
)

// A Verdict is what a verification found.
type Verdict struct {
	Verdict string `json:"verdict"` // intact, tampered or incomplete
	Exit    int    `json:"exit"`
	What    string `json:"what"` // chain, report, attestation, checkpoint, bundle or receipt
	// Problem is why the result is not intact, and Where is the place of the first fault.
	Problem string `json:"problem"`
	Where   string `json:"where"`
	// Complete says up to which checkpoint nothing is missing.
	Complete string `json:"complete"`
	// Checks are what was found to be right; Notes are what a reader has to know.
	Checks []string `json:"checks"`
	Notes  []string `json:"notes"`
	// Proof has two signed checkpoints that contradict each other, as they were given.
	Proof []string `json:"proof"`

	// OnlyLost is whether an export is incomplete only by what was lost before its log was
	// reopened. No other file of this range has more.
	OnlyLost bool `json:"-"`
}

// A fault makes a result tampered.
type fault struct {
	where, problem string
	proof          []string
}

func (f *fault) Error() string {
	if f.where == "" {
		return f.problem
	}
	return f.where + ": " + f.problem
}

func faultAt(where, format string, args ...any) error {
	return &fault{where: where, problem: fmt.Sprintf(format, args...)}
}

// errUnknownKey is wrapped by errors of signatures that no key of the set made. It is not a
// fault: with another JWKS they may be valid.
var errUnknownKey = errors.New("no key of the JWKS")

// UnknownKey reports whether an error of Open means that no key of the set made a signature.
func UnknownKey(err error) bool { return errors.Is(err, errUnknownKey) }

// A check collects what a verification finds.
type check struct {
	Verdict
	gaps []string // why the result is incomplete
}

func newCheck(what string) *check {
	return &check{Verdict: Verdict{What: what, Checks: []string{}, Notes: []string{}, Proof: []string{}}}
}

func (c *check) ok(format string, args ...any) {
	c.Checks = append(c.Checks, fmt.Sprintf(format, args...))
}
func (c *check) note(format string, args ...any) {
	c.Notes = append(c.Notes, fmt.Sprintf(format, args...))
}

func (c *check) incomplete(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !slices.Contains(c.gaps, s) {
		c.gaps = append(c.gaps, s)
	}
}

// result returns what was found. err is what ended the verification: a *fault, or nil.
func (c *check) result(err error) Verdict {
	var f *fault
	switch {
	case errors.As(err, &f):
		c.Verdict.Verdict, c.Exit, c.Problem, c.Where, c.Proof = "tampered", Tampered, f.problem, f.where, f.proof
		c.Complete = ""
	case err != nil:
		c.Verdict.Verdict, c.Exit, c.Problem, c.Complete = "incomplete", Incomplete, err.Error(), ""
	case len(c.gaps) > 0:
		c.Verdict.Verdict, c.Exit, c.Problem = "incomplete", Incomplete, strings.Join(c.gaps, "; ")
	default:
		c.Verdict.Verdict, c.Exit = "intact", Intact
	}
	if c.Proof == nil {
		c.Proof = []string{}
	}
	return c.Verdict
}

// A seen checkpoint is one with its note, and where it came from.
type seen struct {
	Checkpoint
	note, from string
}

// compare looks for two checkpoints that one log cannot have: one size with two roots, or a
// later time with a smaller size.
func compare(all []seen) error {
	for i, a := range all {
		for _, b := range all[i+1:] {
			if a.Origin != b.Origin {
				continue
			}
			if a.Size > b.Size || a.Size == b.Size && a.Time.After(b.Time) {
				a, b = b, a
			}
			switch {
			case a.Size == b.Size && a.Root != b.Root:
				return &fault{fmt.Sprintf("checkpoint %d", a.Size), fmt.Sprintf("%s and %s have the size %d and two roots: the log has two histories", a.from, b.from, a.Size), []string{a.note, b.note}}
			case a.Size < b.Size && a.Time.After(b.Time):
				return &fault{fmt.Sprintf("checkpoints %d and %d", a.Size, b.Size), fmt.Sprintf("%s has fewer entries than %s, and a later time: the log was cut or went back", a.from, b.from), []string{a.note, b.note}}
			}
		}
	}
	return nil
}
